//! The parsers that meet the network, driven with what is in `corpus/` and with everything near it:
//! none panics, and nothing that was changed after it was signed is ever accepted. A file's name
//! says what must become of it.

use std::path::Path;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use ca_server::authn::jwks;
use ca_server::authn::jwt::{Claims, Unverified};
use ca_server::spiffe::SpiffeId;
use ca_server::timestamp::Timestamp;
use ca_server::x509::csr::Csr;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

/// Every file of a corpus: name and text.
fn corpus(kind: &str, extension: &str) -> Vec<(String, String)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/corpus")
        .join(kind);
    let mut files: Vec<(String, String)> = std::fs::read_dir(directory)
        .expect("committed")
        .map(|entry| entry.expect("readable").path())
        .filter(|path| path.extension().is_some_and(|found| found == extension))
        .map(|path| {
            (
                path.file_name()
                    .expect("named")
                    .to_string_lossy()
                    .into_owned(),
                std::fs::read_to_string(&path).expect("text"),
            )
        })
        .collect();
    files.sort();
    assert!(files.len() > 10, "the corpus is there");
    files
}

fn good(kind: &str, extension: &str) -> Vec<String> {
    corpus(kind, extension)
        .into_iter()
        .filter(|(name, _)| name.starts_with("good"))
        .map(|(_, text)| text)
        .collect()
}

fn der_of(pem: &str) -> Vec<u8> {
    let body: String = pem
        .lines()
        .filter(|line| !line.starts_with("-----"))
        .collect();
    BASE64_STANDARD.decode(body).expect("base64")
}

fn pem_of(der: &[u8]) -> String {
    let text = BASE64_STANDARD.encode(der);
    let lines: Vec<&str> = text
        .as_bytes()
        .chunks(64)
        .map(|line| std::str::from_utf8(line).expect("ASCII"))
        .collect();
    format!(
        "-----BEGIN CERTIFICATE REQUEST-----\n{}\n-----END CERTIFICATE REQUEST-----\n",
        lines.join("\n")
    )
}

/// Whether a token of the corpus' issuer is accepted, by the two steps that the daemon takes.
fn verified(token: &str) -> Result<Claims, String> {
    let unverified = Unverified::read(token)?;
    let set =
        std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus/token/jwks.json"))
            .expect("committed");
    let mut keys = jwks::parse(&set).expect("a good set").keys;
    keys.retain(|key| key.id.as_deref() == unverified.key_id());
    let now = Timestamp::from_seconds(1_800_000_000);
    unverified
        .verify(
            &keys,
            "https://issuer.example",
            &["istio-ca".to_owned()],
            now,
        )
        .map_err(|rejection| rejection.why)
}

#[test]
fn every_csr_of_the_corpus_becomes_what_its_name_says() {
    for (name, pem) in corpus("csr", "pem") {
        let parsed = Csr::parse(&pem);
        assert_eq!(
            parsed.is_ok(),
            name.starts_with("good"),
            "{name}: {:?}",
            parsed.err()
        );
    }
}

#[test]
fn every_token_of_the_corpus_becomes_what_its_name_says() {
    for (name, token) in corpus("token", "jwt") {
        let claims = verified(&token);
        assert_eq!(
            claims.is_ok(),
            name.starts_with("good"),
            "{name}: {claims:?}"
        );
    }
}

/// One change: replace, insert or remove a byte, or cut the rest off.
fn changed(bytes: &[u8], at: prop::sample::Index, byte: u8, how: u8) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let at = at.index(bytes.len());
    match how % 4 {
        0 => bytes[at] = byte,
        1 => bytes.insert(at, byte),
        2 => drop(bytes.remove(at)),
        _ => bytes.truncate(at),
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, rng_seed: RngSeed::Fixed(20_261_122), ..ProptestConfig::default() })]

    #[test]
    fn no_text_makes_the_csr_parser_panic(text in "\\PC{0,300}") {
        prop_assert!(Csr::parse(&text).is_err());
    }

    #[test]
    fn no_bytes_make_the_csr_parser_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        prop_assert!(Csr::parse(&pem_of(&bytes)).is_err());
    }

    #[test]
    fn a_csr_that_was_changed_is_not_proven(which in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(), byte: u8, how: u8) {
        let all = good("csr", "pem");
        let original: &String = which.get(&all);
        let original = der_of(original);
        let other = changed(&original, at, byte, how);
        if other != original {
            prop_assert!(Csr::parse(&pem_of(&other)).is_err());
        }
    }

    #[test]
    fn no_text_makes_the_token_parser_panic(text in "\\PC{0,300}") {
        prop_assert!(verified(&text).is_err());
    }

    #[test]
    fn a_token_that_was_changed_is_not_verified(which in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(), byte in 0x21u8..0x7f, how: u8) {
        let all = good("token", "jwt");
        let original = which.get(&all);
        let other = changed(original.as_bytes(), at, byte, how);
        if other != original.as_bytes() {
            prop_assert!(verified(&String::from_utf8(other).expect("ASCII")).is_err());
        }
    }

    #[test]
    fn an_identity_that_parses_is_written_as_it_was_read(text in "(spiffe://)?[a-zA-Z0-9./%_-]{0,20}(/ns/)?[a-z0-9.%-]{0,10}(/sa/)?[a-z0-9.-]{0,10}") {
        if let Some(identity) = SpiffeId::parse(&text) {
            prop_assert_eq!(identity.to_string(), text);
        }
    }
}

#[test]
fn a_key_set_that_is_too_large_or_holds_only_secrets_is_refused() {
    let key = serde_json::json!({"kty": "EC", "use": "sig", "crv": "P-256", "kid": "ec",
        "x": "AUFJK9nTgXKi1mvmJUx_5byNVMZvDV1dyzp3IdMpTgc", "y": "jJVhx0ndwWkoUEsNko1yC3VyOHO2P_15y79F804GlYI"});
    let set = |keys: Vec<&serde_json::Value>| serde_json::json!({ "keys": keys }).to_string();
    assert_eq!(
        jwks::parse(set(vec![&key; 100]).as_bytes())
            .expect("a hundred are read")
            .keys
            .len(),
        100
    );
    assert!(
        jwks::parse(set(vec![&key; 101]).as_bytes())
            .unwrap_err()
            .contains("at most 100")
    );
    let secret = serde_json::json!({"kty": "oct", "kid": "ec", "k": "c2VjcmV0", "alg": "HS256"});
    assert!(
        jwks::parse(set(vec![&secret]).as_bytes())
            .unwrap_err()
            .contains("no public signature key")
    );
    assert_eq!(
        jwks::parse(set(vec![&secret, &key]).as_bytes())
            .expect("the public one")
            .keys
            .len(),
        1
    );
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("jwks.json");
    std::fs::write(&file, format!("{}{}", set(vec![&key]), " ".repeat(1 << 20))).expect("writable");
    let refused =
        jwks::Jwks::open(&file, std::time::Duration::ZERO, Timestamp::from_seconds(0)).unwrap_err();
    assert!(refused.contains("at most 1048576"), "{refused}");
}
