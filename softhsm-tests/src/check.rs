//! The whole-state check after a story: what clients received, what the device signed, what the
//! ledger holds.

use std::collections::{BTreeMap, BTreeSet};

use aws_lc_rs::digest::{SHA256, digest};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::Value;

use super::TestCa;

/// One state of the ledger, as `audit export` tells it.
pub struct Ledger {
    /// Every row, in the order of the export.
    pub rows: Vec<Value>,
}

impl Ledger {
    /// The rows of a kind.
    pub fn kind(&self, kind: &str) -> Vec<&Value> {
        self.rows.iter().filter(|row| row["kind"] == kind).collect()
    }

    /// How many rows of a kind there are.
    pub fn count(&self, kind: &str) -> usize {
        self.kind(kind).len()
    }
}

impl TestCa {
    /// Re-reads the ledger beside the daemon, or after it: `audit verify` is content, no serial
    /// stands twice, no intent has two outcomes, only what was issued is given out again, and every
    /// certificate that a client received is there. With the fault module, signatures made equal
    /// intents signed or unknown.
    pub fn check(&self) -> Ledger {
        self.check_with(&[])
    }

    /// The same for several daemons on one ledger: what all their clients received, and what all
    /// their devices signed.
    pub fn check_with(&self, others: &[&Self]) -> Ledger {
        let verified = self
            .verb(&["audit", "verify"])
            .output()
            .expect("ca-server runs");
        let said =
            String::from_utf8_lossy(&verified.stdout) + String::from_utf8_lossy(&verified.stderr);
        assert!(
            verified.status.success(),
            "audit verify: {said}\n{}",
            self.log_text()
        );
        let all: Vec<&Self> = others.iter().copied().chain([self]).collect();
        let asked = || -> BTreeSet<String> {
            all.iter()
                .flat_map(|one| one.faults().signature_inputs())
                .collect()
        };
        // A daemon may be signing its own serving certificate meanwhile: what the device was asked
        // for before must stand in the ledger.
        let asked_before = asked();
        let ledger = self.export();
        let mut intents = BTreeSet::new();
        for intent in ledger.kind("intent") {
            assert!(
                intents.insert(intent["serial"].as_str().expect("serial").to_owned()),
                "a serial stands twice: {intent}"
            );
        }
        let mut outcomes: BTreeMap<&str, &str> = BTreeMap::new();
        for kind in ["issued", "failed", "unknown"] {
            for outcome in ledger.kind(kind) {
                let serial = outcome["serial"].as_str().expect("serial");
                assert!(
                    intents.contains(serial),
                    "an outcome without an intent: {outcome}"
                );
                assert_eq!(
                    outcomes.insert(serial, kind),
                    None,
                    "two outcomes: {outcome}"
                );
            }
        }
        for repeated in ledger.kind("repeated") {
            let serial = repeated["serial"].as_str().expect("serial");
            assert_eq!(
                outcomes.get(serial),
                Some(&"issued"),
                "given out again and never issued: {repeated}"
            );
        }
        let issued: BTreeSet<&str> = ledger
            .kind("issued")
            .iter()
            .map(|row| row["certificate_sha256"].as_str().expect("a digest"))
            .collect();
        for leaf in all.iter().flat_map(|one| one.received()) {
            let der = CertificateDer::from_pem_slice(leaf.as_bytes()).expect("PEM");
            assert!(
                issued.contains(hex::encode(digest(&SHA256, &der)).as_str()),
                "received, and not in the ledger: {leaf}"
            );
        }
        if all.iter().all(|one| one.faults_directory().exists()) {
            check_signatures(&ledger, &asked_before, &asked());
        }
        ledger
    }

    /// Intents without an outcome.
    pub fn open_intents(&self, ledger: &Ledger) -> usize {
        ledger.count("intent")
            - ledger.count("issued")
            - ledger.count("failed")
            - ledger.count("unknown")
    }

    /// `audit export`.
    pub fn export(&self) -> Ledger {
        let exported = self
            .verb(&["audit", "export"])
            .output()
            .expect("ca-server runs");
        assert!(
            exported.status.success(),
            "audit export: {}",
            String::from_utf8_lossy(&exported.stderr)
        );
        let text = String::from_utf8(exported.stdout).expect("text");
        Ledger {
            rows: text
                .lines()
                .map(|line| serde_json::from_str(line).expect("a JSON object a line"))
                .collect(),
        }
    }
}

/// Invariant 3 (docs/invariants.md): every signature that a device was asked for belongs to exactly
/// one intent, which was issued, is unknown, or is open still; and every certificate issued was
/// signed. A retry of the same bytes after a lost session is the same signature.
fn check_signatures(
    ledger: &Ledger,
    asked_before: &BTreeSet<String>,
    asked_after: &BTreeSet<String>,
) {
    let digests = |kind: &str| -> BTreeSet<String> {
        ledger
            .kind(kind)
            .iter()
            .map(|row| {
                row["to_be_signed_sha256"]
                    .as_str()
                    .expect("a digest")
                    .to_owned()
            })
            .collect()
    };
    let mut allowed: BTreeSet<String> = digests("intent")
        .difference(&digests("failed"))
        .cloned()
        .collect();
    // The one text that is signed without an intent, to see whether a token is back.
    allowed.insert(hex::encode(digest(&SHA256, signers::PROBE)));
    let said_of = |digest: &String| -> Vec<&Value> {
        ledger
            .rows
            .iter()
            .filter(|row| row["to_be_signed_sha256"].as_str() == Some(digest.as_str()))
            .collect()
    };
    let stray: Vec<_> = asked_before
        .difference(&allowed)
        .map(|digest| (digest, said_of(digest)))
        .collect();
    assert!(
        stray.is_empty(),
        "signed without an intent that says so, and what the ledger says of it: {stray:#?}"
    );
    let unsigned: Vec<String> = digests("issued").difference(asked_after).cloned().collect();
    assert!(unsigned.is_empty(), "issued and never signed: {unsigned:?}");
}
