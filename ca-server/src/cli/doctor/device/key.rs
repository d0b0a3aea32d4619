//! The issuer's key: whether it is there, is the certificate's, and can leave its token. Its
//! attributes are read, and it signs the one text that certifies nothing.

use signers::{KeyFacts, PROBE, PublicKey, SignError, Vault, open_device_of};

use super::{Case, remedy};
use crate::cli::doctor::finding::Findings;

/// Judges the key; what was found of it, if it was found.
pub(super) fn judge(
    findings: &mut Findings,
    case: &Case,
    vault: &mut dyn Vault,
) -> Option<PublicKey> {
    let facts = match vault.describe(&case.uri) {
        Ok(Some(facts)) => facts,
        Ok(None) => {
            let remedy = "correct object=… or id=… in the key's URI, restore the token from its backup, or hold a ceremony for a new key";
            findings.problem(
                "key",
                format!("there is no private key that {} names", case.uri),
                remedy,
            );
            return None;
        }
        Err(error) => return unnamed(findings, &error),
    };
    let public_key = match (&case.expected, facts.told_public_key(&case.uri)) {
        (None, Err(untold)) => return unnamed(findings, &untold),
        // Where the token tells no public key, the certificate's is believed once a signature has
        // shown it.
        (Some(expected), Err(_)) => {
            if signs(findings, case) {
                let what = format!(
                    "the certificate's, {}: the token tells no public key, a signature has shown it",
                    expected.fingerprint()
                );
                findings.ok("key", what);
            }
            expected
        }
        (expected, Ok(told)) => {
            signs(findings, case);
            compare(findings, expected.as_ref(), told);
            told
        }
    };
    if !case.uri.is_file() {
        protection(findings, &facts);
    }
    Some(public_key.clone())
}

fn unnamed(findings: &mut Findings, error: &SignError) -> Option<PublicKey> {
    let remedy = remedy::of(error)
        .unwrap_or("correct object=… and id=… in the key's URI until they name one key");
    findings.problem("key", error.cause(), remedy);
    None
}

fn compare(findings: &mut Findings, expected: Option<&PublicKey>, told: &PublicKey) {
    let (algorithm, fingerprint) = (told.algorithm(), told.fingerprint());
    match expected {
        Some(expected) if expected != told => {
            let what = format!(
                "the key is not the certificate's: the token has {fingerprint} ({algorithm}), the certificate {} ({})",
                expected.fingerprint(),
                expected.algorithm()
            );
            findings.problem("key", what, "name the key that the certificate was made for, or the certificate that was made for this key");
        }
        Some(_) => findings.ok(
            "key",
            format!("{algorithm}, the certificate's: {fingerprint}"),
        ),
        None => {
            let what = format!(
                "{algorithm}, {fingerprint}; without a certificate nothing can be compared"
            );
            findings.warning("key", what, "correct the issuer's certificates first");
        }
    }
}

/// Has the key sign the one text that certifies nothing, as the daemon does with a token that was
/// away. Whether that was well.
fn signs(findings: &mut Findings, case: &Case) -> bool {
    let signed = open_device_of(&case.uri, case.expected.as_ref()).and_then(|mut device| {
        let signature = device.sign(PROBE)?;
        Ok(device.public_key().verify(PROBE, &signature))
    });
    match signed {
        Ok(true) => {
            findings.ok(
                "signs",
                "it has signed a text that certifies nothing, and the signature verifies",
            );
            true
        }
        Ok(false) => {
            let what =
                "it has signed a text that certifies nothing, and the signature does not verify";
            findings.problem(
                "signs",
                what,
                "take the device out of service until its maker has looked at it",
            );
            false
        }
        Err(error) => {
            let remedy = "use a key that may sign without being asked for its PIN each time";
            findings.problem("signs", error.cause(), remedy::of(&error).unwrap_or(remedy));
            false
        }
    }
}

fn protection(findings: &mut Findings, facts: &KeyFacts) {
    let another = "hold a ceremony: it makes keys that were never outside";
    let whole = facts.sensitive && facts.never_extractable && facts.local;
    if whole {
        findings.ok("protection", "made inside the token, and can never leave it (local, always sensitive, never extractable)");
    }
    if !facts.sensitive {
        let what = "its value can be, or could once be, read in plain (CKA_SENSITIVE and CKA_ALWAYS_SENSITIVE are not both set)";
        findings.warning("protection", what, another);
    }
    if !facts.never_extractable {
        let what = "it can be, or could once be, taken out of the token (CKA_EXTRACTABLE is set, or CKA_NEVER_EXTRACTABLE is not)";
        findings.warning("protection", what, another);
    }
    if !facts.other_uses.is_empty() {
        let what = format!(
            "it may be used for more than signing: {}",
            facts.other_uses.join(", ")
        );
        findings.warning(
            "protection",
            what,
            "take these uses from it with the maker's tool, where the token allows it",
        );
    }
    if !facts.local {
        findings.warning(
            "protection",
            "it was not made inside the token (CKA_LOCAL is not set): copies may lie elsewhere",
            another,
        );
    }
}
