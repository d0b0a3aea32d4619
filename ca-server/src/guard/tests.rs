//! The guard over what the real template drafts, whole and changed. What else must not pass is in
//! `fuzz/corpus/guard`.

use std::sync::Arc;

use signers::process::Guard as _;

use super::pattern::IdentityPattern;
use super::*;
use crate::policy::{Choice, KeyAllowed, Policy, Profile, SanRule, ServingName, Wishes};
use crate::spiffe::SpiffeId;
use crate::timestamp::Timestamp;
use crate::x509::chain::IssuerChain;
use crate::x509::csr::Csr;
use crate::x509::template::{self, Draft, SerialRandom};

const NOW: i64 = 1_800_000_000;
const DEMO: &str = "spiffe://cluster.local/ns/default/sa/demo";
const CHAIN: &[u8] = include_bytes!("../../../fuzz/files/chain.pem");
const ROOT: &[u8] = include_bytes!("../../../fuzz/files/root.pem");
const P256: &str =
    include_str!("../../tests/corpus/csr/good-ec-pkeyopt-ec-paramgen-curve-P-256.pem");
const RSA: &str = include_str!("../../tests/corpus/csr/good-rsa-2048.pem");

fn chain() -> Arc<IssuerChain> {
    Arc::new(IssuerChain::parse("mesh", CHAIN, ROOT).expect("certificates that fit"))
}

/// A guard that allows accounts of one namespace for an hour, and two serving names.
fn guard() -> Guard {
    let rules = KeyRules {
        issuer: Issuer::parse(&chain().chain()[0]).unwrap(),
        leaf: Some(LeafRules {
            trust_domains: Vec::new(),
            identities: vec![
                IdentityPattern::parse("spiffe://cluster.local/ns/default/sa/*").unwrap(),
            ],
            longest: 3600 + 120,
        }),
        serving: Some(ServingRules {
            names: vec![
                Name::Dns("ca.example".to_owned()),
                Name::Address([127, 0, 0, 1].into()),
            ],
            longest: 3600 + 120,
        }),
    };
    Guard::of_keys(
        vec![rules],
        Templates::known(),
        Clock::from_fn(|| Timestamp::from_seconds(NOW)),
    )
}

fn policy() -> Policy {
    let hour = Duration::from_secs(3600);
    let profile = Profile {
        default: hour,
        minimum: Duration::from_secs(60),
        maximum: 1000 * hour,
        jitter: Duration::ZERO,
        san: SanRule::Overwrite,
        keys: vec![KeyAllowed::Rsa, KeyAllowed::P256],
    };
    Policy::new(
        profile,
        vec![Choice {
            chain: chain(),
            active: true,
            sibling_of: None,
        }],
    )
}

fn leaf(identity: &str, csr: &str, lifetime: i64, now: i64) -> Vec<u8> {
    let csr = Csr::parse(csr).unwrap_or_else(|refusal| panic!("{}", refusal.detail()));
    let (now, wishes) = (
        Timestamp::from_seconds(now),
        Wishes {
            lifetime,
            ..Wishes::default()
        },
    );
    let identity = SpiffeId::parse(identity).expect("an identity");
    let grant = policy()
        .grant(&identity, &csr, &wishes, &chain(), now, 0)
        .unwrap_or_else(|refusal| panic!("{}", refusal.detail()));
    Draft::new(
        grant,
        csr.key().clone(),
        now.period(),
        now,
        SerialRandom([7; 11]),
    )
    .to_be_signed()
    .to_vec()
}

fn demo() -> Vec<u8> {
    leaf(DEMO, P256, 3600, NOW)
}

fn serving(names: &[&str]) -> Vec<u8> {
    let names: Vec<ServingName> = names
        .iter()
        .map(|name| ServingName::parse(name).expect("a name"))
        .collect();
    let csr = Csr::parse(P256).unwrap_or_else(|refusal| panic!("{}", refusal.detail()));
    let now = Timestamp::from_seconds(NOW);
    let grant = policy()
        .serving(&names, &chain(), now)
        .unwrap_or_else(|refusal| panic!("{}", refusal.detail()));
    Draft::new(
        grant,
        csr.key().clone(),
        now.period(),
        now,
        SerialRandom([7; 11]),
    )
    .to_be_signed()
    .to_vec()
}

fn refusal(purpose: Purpose, message: &[u8]) -> String {
    guard().judge(0, purpose, message).expect_err("refused")
}

#[test]
fn what_the_rules_of_a_key_allow_is_signed() {
    let guard = guard();
    for message in [
        demo(),
        leaf(DEMO, RSA, 3600, NOW),
        leaf(DEMO, P256, 60, NOW),
    ] {
        assert_eq!(guard.judge(0, Purpose::Leaf, &message), Ok(()));
    }
    for names in [&["ca.example", "127.0.0.1"][..], &["127.0.0.1"]] {
        assert_eq!(guard.judge(0, Purpose::Serving, &serving(names)), Ok(()));
    }
    assert!(
        guard
            .judge(1, Purpose::Leaf, &demo())
            .unwrap_err()
            .contains("no issuer 1")
    );
}

#[test]
fn a_validity_that_does_not_begin_now_is_refused() {
    // Drafted 120 s after its first second.
    for by in [-481, 181, 86_400] {
        let why = refusal(Purpose::Leaf, &leaf(DEMO, P256, 3600, NOW + by));
        assert!(why.contains("its validity begins at"), "{why}");
    }
    for by in [-480, 0, 180] {
        assert_eq!(
            guard().judge(0, Purpose::Leaf, &leaf(DEMO, P256, 3600, NOW + by)),
            Ok(()),
            "{by}"
        );
    }
}

#[test]
fn what_a_key_has_no_rule_for_is_refused() {
    let why = refusal(Purpose::Leaf, &leaf(DEMO, P256, 3601, NOW));
    assert!(why.contains("at most 3720 s"), "{why}");
    for identity in [
        "spiffe://cluster.local/ns/other/sa/demo",
        "spiffe://else/ns/default/sa/demo",
    ] {
        let why = refusal(Purpose::Leaf, &leaf(identity, P256, 3600, NOW));
        assert!(why.contains("none of the workloads"), "{why}");
    }
    let why = refusal(
        Purpose::Serving,
        &serving(&["ca.example", "istiod.istio-system.svc"]),
    );
    assert!(
        why.contains("the DNS name \"istiod.istio-system.svc\" is not a name"),
        "{why}"
    );
    for purpose in [Purpose::CaCertificate, Purpose::Crl, Purpose::Probe] {
        assert!(refusal(purpose, &demo()).contains("signs nothing for the purpose"));
    }
    let mut guard = guard();
    (guard.keys[0].leaf, guard.keys[0].serving) = (None, None);
    for (purpose, message) in [
        (Purpose::Leaf, demo()),
        (Purpose::Serving, serving(&["ca.example"])),
    ] {
        assert!(
            guard
                .judge(0, purpose, &message)
                .unwrap_err()
                .contains("signs nothing for the purpose")
        );
    }
    assert!(refusal(Purpose::Leaf, &vec![0x30; LARGEST + 1]).contains("at most"));
}

/// `from` occurs once; the lengths around it stay right only if both are of one length.
fn swapped(message: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let found: Vec<usize> = (0..message.len())
        .filter(|at| message[*at..].starts_with(from))
        .collect();
    let [at] = found[..] else {
        panic!("{from:x?} stands there {} times", found.len())
    };
    [&message[..at], to, &message[at + from.len()..]].concat()
}

#[test]
fn a_body_that_differs_by_a_bit_is_refused_or_names_another_key_serial_time_or_account() {
    let message = demo();
    let guard = guard();
    let free = Free::read(&message).unwrap();
    let written = |free: &Free<'_>| free.is_all_of(&message, &guard.keys[0].issuer, &Template::ALL);
    assert_eq!(written(&free), Ok(()));
    let mut passed = 0;
    for at in 0..8 * message.len() {
        let mut changed = message.clone();
        changed[at / 8] ^= 1 << (at % 8);
        if guard.judge(0, Purpose::Leaf, &changed).is_ok() {
            passed += 1;
            let now = Free::read(&changed).unwrap();
            let same = (now.begins, now.ends, &now.names) == (free.begins, free.ends, &free.names);
            // The serial's 18 octets, or one of the fields that the rules have looked at.
            assert!(!same || message[..64] != changed[..64], "bit {at}");
        }
    }
    assert!(
        (100..600).contains(&passed),
        "{passed} of {} bits are free",
        8 * message.len()
    );
}

#[test]
fn the_field_that_differs_is_named() {
    let message = demo();
    let cases: [(&[u8], &[u8], &str); 5] = [
        // KeyUsage whose unused bits are set (X.690 §11.2.1): digitalSignature, and hidden behind
        // it keyCertSign and cRLSign.
        (&[3, 2, 7, 0x80], &[3, 2, 7, 0x86], "its key usage"),
        // keyEncipherment for a key that cannot.
        (&[3, 2, 7, 0x80], &[3, 2, 5, 0xa0], "its key usage"),
        (
            &[0x55, 0x1d, 0x23, 4],
            &[0x55, 0x1d, 0x24, 4],
            "its authority key identifier",
        ),
        (b"Fuzz Issuing", b"Fuzz Forging", "its issuer"),
        (&[0xa0, 3, 2, 1, 2], &[0xa0, 3, 2, 1, 1], "its version"),
    ];
    for (from, to, what) in cases {
        let why = refusal(Purpose::Leaf, &swapped(&message, from, to));
        assert!(
            why.starts_with(what) && why.ends_with("as template 1 has it"),
            "{why}"
        );
    }
}

#[test]
fn the_templates_that_a_guard_takes_are_named_by_number_and_the_daemons_is_among_them() {
    assert!(
        Template::ALL
            .iter()
            .any(|known| known.number() == template::VERSION),
        "the daemon's own"
    );
    assert!(Templates::of(&[template::VERSION]).is_ok());
    for (numbers, why) in [
        (&[][..], "no template"),
        (&[1, 99], "no template 99"),
        (&[0], "no template 0"),
    ] {
        assert!(
            Templates::of(numbers).unwrap_err().contains(why),
            "{numbers:?}"
        );
    }
}

#[test]
fn an_issuer_that_is_none_is_named_as_such() {
    let leaf = demo();
    for (der, why) in [
        (&[][..], "cannot be read"),
        (&leaf, "cannot be read"),
        (b"-----BEGIN CERTIFICATE-----", "cannot be read"),
    ] {
        let violation = Issuer::parse(der).err().expect("no issuer");
        assert!(violation.0.contains(why), "{violation}");
    }
    let der = chain().chain()[0].clone();
    assert!(Issuer::parse(&der).is_ok());
    let not_critical = swapped(
        &der,
        &[0x55, 0x1d, 0x13, 1, 1, 0xff],
        &[0x55, 0x1d, 0x13, 1, 1, 0],
    );
    assert!(
        Issuer::parse(&not_critical).is_ok(),
        "RFC 5280 §4.2.1.9 asks that of CAs, and refuses none"
    );
    let no_ca = swapped(&der, &[0x30, 6, 1, 1, 0xff], &[0x30, 6, 1, 1, 0]);
    assert!(
        Issuer::parse(&no_ca)
            .err()
            .expect("refused")
            .0
            .contains("no CA")
    );
    let of_another_key = swapped(&der, &[0x55, 0x1d, 0x0e], &[0x55, 0x1d, 0x1e]);
    let named = Issuer::parse(&of_another_key)
        .unwrap()
        .key_identifier()
        .to_vec();
    assert_eq!(
        named.len(),
        20,
        "without an identifier, the one that we would have given"
    );
    assert!(
        Issuer::parse(&vec![0x30; 20_000])
            .err()
            .expect("refused")
            .0
            .contains("at most")
    );
}
