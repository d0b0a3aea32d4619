use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair,
};
use serde_json::json;

use super::*;

const ISSUER: &str = "https://issuer.example";
const NOW: i64 = 1_800_000_000;

enum Signer {
    Ed25519(Ed25519KeyPair),
    P256(EcdsaKeyPair),
}

impl Signer {
    fn ed25519(seed: u8) -> Self {
        Self::Ed25519(Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).expect("32 octets"))
    }

    fn p256() -> Self {
        Self::P256(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("a key pair"))
    }

    fn jwk(&self, id: Option<&str>) -> Value {
        let text = |octets: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(octets);
        let mut jwk = match self {
            Self::Ed25519(key) => {
                json!({"kty": "OKP", "crv": "Ed25519", "x": text(key.public_key().as_ref())})
            }
            Self::P256(key) => {
                let point = key.public_key().as_ref();
                json!({"kty": "EC", "crv": "P-256", "x": text(&point[1..33]), "y": text(&point[33..])})
            }
        };
        if let Some(id) = id {
            jwk["kid"] = id.into();
        }
        jwk
    }

    fn token(&self, id: Option<&str>, claims: &Value) -> String {
        let mut header =
            json!({"alg": match self { Self::Ed25519(_) => "EdDSA", Self::P256(_) => "ES256" }});
        if let Some(id) = id {
            header["kid"] = id.into();
        }
        let part = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(&header), part(claims));
        let signature = match self {
            Self::Ed25519(key) => key.sign(signed.as_bytes()).as_ref().to_vec(),
            Self::P256(key) => key
                .sign(&SystemRandom::new(), signed.as_bytes())
                .expect("signed")
                .as_ref()
                .to_vec(),
        };
        format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature))
    }
}

fn claims(changes: &Value) -> Value {
    let mut claims = json!({"iss": ISSUER, "sub": "system:serviceaccount:default:demo", "aud": ["istio-ca"], "exp": NOW + 600});
    claims
        .as_object_mut()
        .expect("an object")
        .extend(changes.as_object().expect("an object").clone());
    claims
}

/// A daemon's tokens with one issuer, whose set is in a file.
struct Configured {
    tokens: Tokens,
    directory: tempfile::TempDir,
}

impl Configured {
    fn with(keys: &[Value]) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let configured = |jwks| TokenIssuer {
            issuer: ISSUER.into(),
            audiences: vec!["istio-ca".into()],
            cluster: "east".into(),
            jwks,
        };
        write(&directory, keys);
        let now = Timestamp::from_seconds(NOW);
        let jwks = Jwks::open(
            &directory.path().join("jwks.json"),
            Duration::from_secs(60),
            now,
        )
        .expect("a key set");
        let trust_domain = TrustDomain::parse("cluster.local").expect("a trust domain");
        Self {
            tokens: Tokens::new(vec![configured(jwks)], "east".into(), trust_domain),
            directory,
        }
    }

    async fn asked(&self, token: &str, now: Timestamp) -> Result<(), Refusal> {
        let credentials = Credentials {
            bearer: vec![token.to_owned()],
            ..Credentials::default()
        };
        self.tokens
            .authenticate(&credentials, now)
            .await
            .map(|proven| assert!(proven.is_some()))
    }

    async fn accepts(&self, token: &str) {
        self.asked(token, Timestamp::from_seconds(NOW))
            .await
            .expect("accepted");
    }

    async fn says(&self, token: &str) -> String {
        self.asked(token, Timestamp::from_seconds(NOW))
            .await
            .expect_err("refused")
            .detail()
            .to_owned()
    }
}

fn write(directory: &tempfile::TempDir, keys: &[Value]) {
    std::fs::write(
        directory.path().join("jwks.json"),
        json!({ "keys": keys }).to_string(),
    )
    .expect("written");
}

#[tokio::test]
async fn a_token_that_names_no_key_is_tried_with_each_of_its_kind() {
    let (one, two, other, stranger) = (
        Signer::ed25519(1),
        Signer::ed25519(2),
        Signer::p256(),
        Signer::ed25519(3),
    );
    let configured = Configured::with(&[other.jwk(Some("k0")), one.jwk(Some("k1")), two.jwk(None)]);
    for signer in [&one, &two, &other] {
        configured
            .accepts(&signer.token(None, &claims(&json!({}))))
            .await;
    }
    let refused = configured
        .says(&stranger.token(None, &claims(&json!({}))))
        .await;
    assert!(refused.contains("by none of the 2 for EdDSA"), "{refused}");
}

#[tokio::test]
async fn keys_of_one_name_are_told_apart_by_kind_and_signature() {
    let (one, two, other) = (Signer::ed25519(1), Signer::ed25519(2), Signer::p256());
    let configured =
        Configured::with(&[one.jwk(Some("k")), other.jwk(Some("k")), two.jwk(Some("k"))]);
    for signer in [&one, &two, &other] {
        configured
            .accepts(&signer.token(Some("k"), &claims(&json!({}))))
            .await;
    }
}

#[tokio::test]
async fn a_new_key_is_found_without_a_name_as_with_one() {
    let (old, new) = (Signer::ed25519(1), Signer::ed25519(2));
    for id in [None, Some("new")] {
        let configured = Configured::with(&[old.jwk(Some("old"))]);
        write(
            &configured.directory,
            &[old.jwk(Some("old")), new.jwk(Some("new"))],
        );
        configured
            .accepts(&new.token(id, &claims(&json!({}))))
            .await;
    }
    // A key that is known by its name has nothing to be read again for.
    let configured = Configured::with(&[old.jwk(Some("old"))]);
    write(&configured.directory, &[new.jwk(Some("old"))]);
    assert!(
        configured
            .says(&new.token(Some("old"), &claims(&json!({}))))
            .await
            .contains("not by its issuer's key \"old\"")
    );
}

#[tokio::test]
async fn a_date_may_have_a_fraction() {
    let signer = Signer::ed25519(1);
    let configured = Configured::with(&[signer.jwk(None)]);
    let token = signer.token(
        None,
        &claims(
            &json!({"exp": NOW as f64 + 0.5, "nbf": NOW as f64 - 0.25, "iat": NOW as f64 - 0.25}),
        ),
    );
    let at = |micros: i64| Timestamp::from_micros(NOW * 1_000_000 + micros);
    configured
        .asked(&token, at(499_999))
        .await
        .expect("before its end");
    assert!(
        configured
            .asked(&token, at(500_000))
            .await
            .expect_err("at its end")
            .detail()
            .contains("expired at 2027-01-15T08:00:00.500000Z")
    );
    for dates in [
        json!({"exp": 2.1e9}),
        json!({"exp": i64::MAX}),
        json!({"nbf": -1.5}),
    ] {
        configured
            .accepts(&signer.token(None, &claims(&dates)))
            .await;
    }
    for dates in [
        json!({"exp": 1e300}),
        json!({"exp": u64::MAX}),
        json!({"exp": 0}),
        json!({"exp": NOW}),
        json!({"nbf": NOW as f64 + 10.5}),
    ] {
        configured.says(&signer.token(None, &claims(&dates))).await;
    }
}

#[tokio::test]
async fn a_refusal_shows_what_was_there_and_what_is_wanted() {
    let signer = Signer::ed25519(1);
    let configured = Configured::with(&[signer.jwk(Some("k1"))]);
    let list: Vec<String> = (0..40).map(|number| format!("audience-{number}")).collect();
    for (id, changes, texts) in [
        (
            Some("k1"),
            json!({"iss": "https://issuer.example/"}),
            &[
                "\"https://issuer.example/\" is none of cluster \"east\"",
                "nearest configured one is \"https://issuer.example\"",
            ][..],
        ),
        (
            Some("k1"),
            json!({"aud": "vault"}),
            &["for audience \"vault\"", "accepted here: \"istio-ca\""],
        ),
        (
            Some("k1"),
            json!({"aud": ["a", "b"]}),
            &["for audience \"a\", \"b\"", "accepted here: \"istio-ca\""],
        ),
        (
            Some("k1"),
            json!({"aud": []}),
            &["for audience nobody", "accepted here: \"istio-ca\""],
        ),
        (
            Some("k1"),
            json!({ "aud": list }),
            &["\"audience-0\"", "accepted here: \"istio-ca\""],
        ),
        (Some("k2"), json!({}), &["has no key \"k2\" for EdDSA"]),
        (
            Some("k1"),
            json!({"exp": "1900000000"}),
            &["claim `exp` is not a number"],
        ),
        (
            Some("k1"),
            json!({"nbf": null}),
            &["claim `nbf` is not a number"],
        ),
        (
            Some("k1"),
            json!({"aud": ["istio-ca", null]}),
            &["claim `aud` is not a text or a list of texts"],
        ),
        (
            Some("k1"),
            json!({"iss": 7}),
            &["claim `iss` is not a text"],
        ),
        (
            Some("k1"),
            json!({"sub": "admin"}),
            &["sub \"admin\" names no service account"],
        ),
        (
            Some("k1"),
            json!({"kubernetes.io": {"namespace": "default"}}),
            &["claim `kubernetes.io` is not what Kubernetes writes"],
        ),
    ] {
        let refused = configured.says(&signer.token(id, &claims(&changes))).await;
        for text in texts {
            assert!(refused.contains(text), "{changes}: {refused}");
        }
        for prose in [
            "Some(",
            "invalid type",
            "expected",
            "line 1",
            "missing field",
        ] {
            assert!(!refused.contains(prose), "{changes}: {refused}");
        }
    }
    let mut without = claims(&json!({}));
    without.as_object_mut().expect("an object").remove("aud");
    assert!(
        configured
            .says(&signer.token(None, &without))
            .await
            .contains("no claim `aud`")
    );
    let twice = claims(&json!({}))
        .to_string()
        .replacen('{', "{\"exp\":1,", 1);
    let twice = format!(
        "{}.{}.AAAA",
        BASE64_URL_SAFE_NO_PAD.encode(r#"{"alg":"EdDSA"}"#),
        BASE64_URL_SAFE_NO_PAD.encode(twice)
    );
    assert!(configured.says(&twice).await.contains("stands there twice"));
}
