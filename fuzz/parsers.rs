//! What fuzzing and the tests run over each input: one function a parser that meets strangers' or operators' bytes. Each returns whether the
//! input was accepted, and panics when what was accepted is not what it must be. The fuzz targets and `ca-server/tests/fuzz_corpus.rs`
//! include this one file.
#![allow(dead_code, reason = "each fuzz target uses one of them")]

use std::path::Path;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use ca_server::authn::jwks;
use ca_server::authn::jwt::Unverified;
use ca_server::ceremony::Spec;
use ca_server::config::{Config, Files};
use ca_server::spiffe::ServiceAccount;
use ca_server::timestamp::Timestamp;
use ca_server::x509::csr::Csr;
use ca_server::x509::subject_key::{KeyKind, SubjectKey};
use serde_json::Value;
use signers::KeyUri;

/// The time at which everything is judged.
const NOW: i64 = 1_800_000_000;

const ISSUER: &str = "https://issuer.example";
const AUDIENCE: &str = "istio-ca";

/// The seed of the key that signs claims here.
const SEED: [u8; 32] = [7; 32];

/// A CSR: PEM as it is, anything else as the DER inside.
pub fn csr(data: &[u8]) -> bool {
    let pem = match std::str::from_utf8(data) {
        Ok(text) if text.contains("-----") => text.to_owned(),
        _ => format!("-----BEGIN CERTIFICATE REQUEST-----\n{}\n-----END CERTIFICATE REQUEST-----\n", BASE64_STANDARD.encode(data)),
    };
    let Ok(csr) = Csr::parse(&pem) else { return false };
    assert_eq!(SubjectKey::from_spki(csr.key().spki()).as_ref(), Ok(csr.key()), "the key that goes into a certificate is canonical");
    if let KeyKind::Rsa(bits) = csr.key().kind() {
        assert!((2048..=8192).contains(&bits));
    }
    true
}

/// A token. JSON is taken for the claims of one that its issuer signed, since no fuzzer makes a signature; anything else for a whole token,
/// which only the committed ones can be.
pub fn token(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    let own = Ed25519KeyPair::from_seed_unchecked(&SEED).expect("32 octets");
    let is_json = text.starts_with(['{', '[']);
    let token = if is_json { signed(&own, text) } else { text.to_owned() };
    let set = match is_json {
        true => format!(
            "{{\"keys\":[{{\"kty\":\"OKP\",\"crv\":\"Ed25519\",\"kid\":\"own\",\"x\":\"{}\"}}]}}",
            BASE64_URL_SAFE_NO_PAD.encode(own.public_key().as_ref())
        ),
        false => include_str!("../ca-server/tests/corpus/token/jwks.json").to_owned(),
    };
    let header = token.split('.').next().and_then(|header| BASE64_URL_SAFE_NO_PAD.decode(header).ok());
    let header: Option<Value> = header.and_then(|header| serde_json::from_slice(&header).ok());
    let named = header.and_then(|header| Some(header.get("kid")?.as_str()?.to_owned()));
    let mut accepted = false;
    for key in jwks::parse(set.as_bytes()).expect("a good set").iter().filter(|key| key.id == named) {
        let Ok(unverified) = Unverified::read(&token) else { break };
        let Ok(claims) = unverified.verify(key, ISSUER, &[AUDIENCE.to_owned()], Timestamp::from_seconds(NOW)) else { continue };
        accepted = true;
        // Read once more by other code: what was accepted says so itself.
        let payload = BASE64_URL_SAFE_NO_PAD.decode(token.split('.').nth(1).expect("a payload")).expect("base64url");
        let said: Value = serde_json::from_slice(&payload).expect("JSON");
        assert_eq!(said["iss"], ISSUER);
        assert!(said["aud"] == AUDIENCE || said["aud"].as_array().is_some_and(|all| all.contains(&AUDIENCE.into())), "{said}");
        assert!(said["exp"].as_i64().is_some_and(|ends| ends > NOW), "{said}");
        assert!(said.get("nbf").is_none_or(|begins| begins.as_i64().is_some_and(|begins| begins <= NOW + 60)), "{said}");
        assert_eq!(said["sub"], claims.subject.as_str());
        assert_eq!(ServiceAccount::parse_username(&claims.subject), Some(claims.account.clone()));
        if let Some(bound) = said.get("kubernetes.io") {
            assert_eq!(
                (&bound["namespace"], &bound["serviceaccount"]["name"]),
                (&claims.account.namespace().into(), &claims.account.name().into())
            );
        }
    }
    accepted
}

fn signed(key: &Ed25519KeyPair, claims: &str) -> String {
    let header = BASE64_URL_SAFE_NO_PAD.encode(r#"{"alg":"EdDSA","kid":"own"}"#);
    let message = format!("{header}.{}", BASE64_URL_SAFE_NO_PAD.encode(claims));
    let signature = BASE64_URL_SAFE_NO_PAD.encode(key.sign(message.as_bytes()).as_ref());
    format!("{message}.{signature}")
}

/// A key's URI: what was read is printed as a URI that reads the same, and holds no PIN.
pub fn key_uri(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    let base = Path::new("/base");
    let Ok(uri) = KeyUri::parse(text, base) else { return false };
    let printed = uri.to_string();
    assert_eq!(KeyUri::parse(&printed, base).as_ref(), Ok(&uri), "{printed}");
    assert!(!printed.contains("pin-value"), "{printed}");
    true
}

/// A ceremony's spec.
pub fn ceremony_spec(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    match Spec::parse(text, Path::new("/base")) {
        Ok(spec) => {
            assert!(spec.output().is_absolute());
            true
        }
        Err(failure) => {
            assert!(!failure.to_string().contains('\n'), "one line for the operator: {failure}");
            false
        }
    }
}

/// A config. Whatever files it names are answered from memory: good certificates of a CA, a good key set, a good PIN file.
pub fn config(data: &[u8]) -> bool {
    const FILES: Files = Files {
        read: |path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            match () {
                () if name.contains("chain") => Ok(include_bytes!("files/chain.pem").to_vec()),
                () if name.contains("root") => Ok(include_bytes!("files/root.pem").to_vec()),
                () if name.contains("jwks") => Ok(include_bytes!("../ca-server/tests/corpus/token/jwks.json").to_vec()),
                () => Err(std::io::ErrorKind::NotFound.into()),
            }
        },
        check_secret: |_, _| Ok(()),
    };
    let Ok(text) = std::str::from_utf8(data) else { return false };
    match Config::of_text(Path::new("/base/ca.toml"), text, Timestamp::from_seconds(NOW), &FILES) {
        Ok(config) => {
            assert!(config.issuers.iter().any(|issuer| !issuer.keys.is_empty()), "something can be issued");
            assert!(config.issuers.iter().all(|issuer| !issuer.key_uris.contains("pin-value")));
            assert!((100..=60_000).contains(&config.call_timeout.as_millis()));
            assert!(config.profile.minimum <= config.profile.default && config.profile.default <= config.profile.maximum);
            true
        }
        Err(error) => {
            assert!(!error.to_string().contains('\n'), "one line for the operator: {error}");
            false
        }
    }
}
