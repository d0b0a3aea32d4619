//! A demonstration token issuer: what a Kubernetes API server is to a mesh, made of a key and two
//! files. Its tokens have the claims of a projected service-account token. It is for trying things
//! out; a real mesh brings its own issuer.

use std::path::{Path, PathBuf};
use std::time::Duration;

use aws_lc_rs::digest;
use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::rsa;
use aws_lc_rs::signature::KeyPair;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use der::asn1::UintRef;
use der::pem::{LineEnding, decode_vec, encode_string};
use der::{Decode, Sequence};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::ceremony::files;
use crate::cli::Exit;
use crate::timestamp::Timestamp;

/// The `iss` of demonstration tokens.
pub(super) const ISSUER: &str = "https://demo-issuer.ca-server.invalid";
/// Their audience: Istio's.
pub(super) const AUDIENCE: &str = "istio-ca";

/// From `iat` to `exp`.
const LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// A token with less left than this is renewed.
const RENEW_BELOW: Duration = Duration::from_secs(12 * 3600);

/// The issuer's key and where its token goes.
pub(super) struct DemoIssuer {
    key: EncodingKey,
    key_id: String,
    token: PathBuf,
}

#[derive(Sequence)]
struct RsaPublicKey<'a> {
    modulus: UintRef<'a>,
    exponent: UintRef<'a>,
}

impl DemoIssuer {
    /// Makes `jwt-issuer.key` and `jwks.json`, or reads the one and repairs the other.
    pub(super) fn ready(directory: &Path) -> Result<Self, Exit> {
        let path = directory.join("jwt-issuer.key");
        let failed =
            |error: &dyn std::fmt::Display| Exit::missing(format!("{}: {error}", path.display()));
        if !path.exists() {
            let pair =
                rsa::KeyPair::generate(rsa::KeySize::Rsa2048).map_err(|error| failed(&error))?;
            let der: Pkcs8V1Der<'_> = pair.as_der().map_err(|error| failed(&error))?;
            let pem = encode_string("PRIVATE KEY", LineEnding::LF, der.as_ref())
                .map(Zeroizing::new)
                .map_err(|error| failed(&error))?;
            files::create(&path, pem.as_bytes(), files::PRIVATE).map_err(|error| failed(&error))?;
        }
        let pem = Zeroizing::new(std::fs::read(&path).map_err(|error| failed(&error))?);
        let (_, der) = decode_vec(&pem).map_err(|error| failed(&error))?;
        let pair =
            rsa::KeyPair::from_pkcs8(&Zeroizing::new(der)).map_err(|error| failed(&error))?;
        let public =
            RsaPublicKey::from_der(pair.public_key().as_ref()).map_err(|error| failed(&error))?;
        let (n, e) = (
            URL_SAFE_NO_PAD.encode(public.modulus.as_bytes()),
            URL_SAFE_NO_PAD.encode(public.exponent.as_bytes()),
        );
        let key_id = thumbprint(&n, &e);
        let keys = json!({"keys": [{"kty": "RSA", "use": "sig", "alg": "RS256", "kid": key_id, "n": n, "e": e}]});
        write_if_other(
            &directory.join("jwks.json"),
            &format!("{keys:#}\n"),
            files::PUBLIC,
        )?;
        Ok(Self {
            key: EncodingKey::from_rsa_pem(&pem).map_err(|error| failed(&error))?,
            key_id,
            token: directory.join("demo.token"),
        })
    }

    /// The token in `demo.token`: the one that is there, or a new one if it nears its end, is from
    /// the future or of another key.
    pub(super) fn token(&self, now: Timestamp) -> Result<String, Exit> {
        let failed = |error: &dyn std::fmt::Display| {
            Exit::missing(format!("{}: {error}", self.token.display()))
        };
        if let Some(token) = std::fs::read_to_string(&self.token)
            .ok()
            .filter(|token| self.is_good(token.trim_end(), now))
        {
            return Ok(token.trim_end().to_owned());
        }
        let header = Header {
            kid: Some(self.key_id.clone()),
            ..Header::new(Algorithm::RS256)
        };
        let token = jsonwebtoken::encode(&header, &claims(now, &random_uuid()?), &self.key)
            .map_err(|error| failed(&error))?;
        files::replace(&self.token, format!("{token}\n").as_bytes(), files::PRIVATE)
            .map_err(|error| failed(&error))?;
        Ok(token)
    }

    fn is_good(&self, token: &str, now: Timestamp) -> bool {
        let part = |index| -> Option<Value> {
            serde_json::from_slice(&URL_SAFE_NO_PAD.decode(token.split('.').nth(index)?).ok()?).ok()
        };
        let (Some(header), Some(claims)) = (part(0), part(1)) else {
            return false;
        };
        let time = |claim: &str| claims[claim].as_i64().map(Timestamp::from_seconds);
        header["kid"] == self.key_id.as_str()
            && time("exp").is_some_and(|end| end.since(now) > RENEW_BELOW)
            && time("nbf").is_some_and(|begin| begin <= now)
    }
}

/// As a projected token of account `demo` in namespace `default` has them.
fn claims(now: Timestamp, id: &str) -> Value {
    json!({
        "iss": ISSUER,
        "sub": "system:serviceaccount:default:demo",
        "aud": [AUDIENCE],
        "iat": now.seconds(),
        "nbf": now.seconds(),
        "exp": now.plus(LIFETIME).seconds(),
        "jti": id,
        "kubernetes.io": {
            "namespace": "default",
            "serviceaccount": {"name": "demo", "uid": "5f9c2b1e-7d3a-4c0f-9b52-0d6d1f3a7c11"},
            "pod": {"name": "demo-0", "uid": "c1d7a3f4-2b68-4e9a-8f10-6a4b9e2d5c33"},
            "node": {"name": "demo-node", "uid": "9e8b7c6d-5a4f-4321-8765-1f2e3d4c5b6a"},
        },
    })
}

/// RFC 7638.
fn thumbprint(n: &str, e: &str) -> String {
    let canonical = format!(r#"{{"e":"{e}","kty":"RSA","n":"{n}"}}"#);
    URL_SAFE_NO_PAD.encode(digest::digest(&digest::SHA256, canonical.as_bytes()))
}

/// RFC 9562 §5.4.
fn random_uuid() -> Result<String, Exit> {
    let mut bytes = [0_u8; 16];
    getrandom::fill(&mut bytes)
        .map_err(|error| Exit::missing(format!("the system has no random numbers: {error}")))?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let text = hex::encode(bytes);
    Ok([
        &text[..8],
        &text[8..12],
        &text[12..16],
        &text[16..20],
        &text[20..],
    ]
    .join("-"))
}

fn write_if_other(path: &Path, text: &str, mode: u32) -> Result<(), Exit> {
    if std::fs::read_to_string(path).is_ok_and(|found| found == text) {
        return Ok(());
    }
    files::replace(path, text.as_bytes(), mode)
        .map_err(|error| Exit::missing(format!("{}: {error}", path.display())))
}

#[cfg(test)]
mod tests {
    use jsonwebtoken::jwk::JwkSet;
    use jsonwebtoken::{DecodingKey, Validation, decode};

    use super::*;

    fn now() -> Timestamp {
        Timestamp::parse_rfc3339("2026-11-22T12:00:00Z").unwrap()
    }

    #[test]
    fn a_token_verifies_with_the_published_key_and_is_a_service_accounts() {
        let directory = tempfile::tempdir().unwrap();
        let token = DemoIssuer::ready(directory.path())
            .unwrap()
            .token(now())
            .unwrap();
        let keys: JwkSet =
            serde_json::from_slice(&std::fs::read(directory.path().join("jwks.json")).unwrap())
                .unwrap();
        let mut rules = Validation::new(Algorithm::RS256);
        rules.validate_exp = false;
        rules.set_audience(&[AUDIENCE]);
        rules.set_issuer(&[ISSUER]);
        let claims = decode::<Value>(
            &token,
            &DecodingKey::from_jwk(&keys.keys[0]).unwrap(),
            &rules,
        )
        .unwrap()
        .claims;
        assert_eq!(claims["sub"], "system:serviceaccount:default:demo");
        assert_eq!(claims["kubernetes.io"]["pod"]["name"], "demo-0");
    }

    #[test]
    fn a_token_is_kept_until_it_nears_its_end() {
        let directory = tempfile::tempdir().unwrap();
        let issuer = DemoIssuer::ready(directory.path()).unwrap();
        let first = issuer.token(now()).unwrap();
        let again = DemoIssuer::ready(directory.path()).unwrap();
        assert_eq!(
            again.token(now().plus(Duration::from_secs(3600))).unwrap(),
            first
        );
        assert_ne!(
            again
                .token(now().plus(Duration::from_secs(13 * 3600)))
                .unwrap(),
            first
        );
        assert_ne!(
            again.token(now()).unwrap(),
            first,
            "the token on disk now begins in the future"
        );
    }

    #[test]
    fn a_lost_key_set_is_written_again_and_a_new_key_brings_a_new_token() {
        let directory = tempfile::tempdir().unwrap();
        let first = DemoIssuer::ready(directory.path())
            .unwrap()
            .token(now())
            .unwrap();
        std::fs::remove_file(directory.path().join("jwks.json")).unwrap();
        DemoIssuer::ready(directory.path()).unwrap();
        assert!(directory.path().join("jwks.json").exists());
        std::fs::remove_file(directory.path().join("jwt-issuer.key")).unwrap();
        assert_ne!(
            DemoIssuer::ready(directory.path())
                .unwrap()
                .token(now())
                .unwrap(),
            first
        );
    }
}
