//! Service-account tokens as an API server would mint them, and as an attacker would.

use std::path::Path;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};

/// The `iss` of the quickstart's token issuer; stands in the copied `ca.toml`.
pub struct Minter {
    key: EncodingKey,
    key_id: String,
    issuer: String,
}

impl Minter {
    /// The issuer whose key and name the quickstart left in `directory`.
    pub fn of(directory: &Path) -> Self {
        let read = |name: &str| {
            std::fs::read(directory.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
        };
        let jwks: Value = serde_json::from_slice(&read("jwks.json")).expect("JSON");
        let demo = String::from_utf8(read("demo.token")).expect("text");
        let payload = BASE64_URL_SAFE_NO_PAD
            .decode(demo.trim().split('.').nth(1).expect("a JWT"))
            .expect("base64url");
        let payload: Value = serde_json::from_slice(&payload).expect("JSON");
        Self {
            key: EncodingKey::from_rsa_pem(&read("jwt-issuer.key")).expect("PKCS#8"),
            key_id: jwks["keys"][0]["kid"].as_str().expect("kid").to_owned(),
            issuer: payload["iss"].as_str().expect("iss").to_owned(),
        }
    }

    /// Another issuer with a key of its own. `jwks` is what to write where the daemon reads it.
    pub fn with_key(issuer: &str, key_id: &str, pkcs8_pem: &str) -> Self {
        Self {
            key: EncodingKey::from_rsa_pem(pkcs8_pem.as_bytes()).expect("PKCS#8"),
            key_id: key_id.to_owned(),
            issuer: issuer.to_owned(),
        }
    }

    /// `iss`.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// `kid`.
    pub fn key_id(&self) -> &str {
        &self.key_id
    }

    /// Good claims for an account: audience `istio-ca`, an hour to live.
    pub fn claims(&self, namespace: &str, account: &str) -> Value {
        let now = time::OffsetDateTime::UNIX_EPOCH
            + std::time::SystemTime::UNIX_EPOCH
                .elapsed()
                .expect("after 1970");
        let now = now.unix_timestamp();
        let mut id = [0; 8];
        aws_lc_rs::rand::fill(&mut id).expect("randomness");
        json!({
            "iss": self.issuer,
            "sub": format!("system:serviceaccount:{namespace}:{account}"),
            "aud": ["istio-ca"],
            "exp": now + 3600,
            "iat": now,
            "nbf": now,
            "jti": hex::encode(id),
        })
    }

    /// A good token for an account.
    pub fn token(&self, namespace: &str, account: &str) -> String {
        self.sign(&self.claims(namespace, account))
    }

    /// A token with these claims, RS256.
    pub fn sign(&self, claims: &Value) -> String {
        let mut header = Header::new(Algorithm::RS256);
        header.kid = Some(self.key_id.clone());
        jsonwebtoken::encode(&header, claims, &self.key).expect("signed")
    }
}

/// A token of this header and these claims with any bytes as its signature.
pub fn forged(header: &Value, claims: &Value, signature: &[u8]) -> String {
    let part = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
    format!(
        "{}.{}.{}",
        part(header),
        part(claims),
        BASE64_URL_SAFE_NO_PAD.encode(signature)
    )
}
