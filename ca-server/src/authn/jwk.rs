//! One public key of a token issuer (RFC 7517 §4, RFC 7518 §6, RFC 8037 §2), made ready to verify
//! with when its set is read. A key that can verify nothing is told from one that can then, with
//! the reason, and not when a token comes. The library that makes demonstration tokens has no
//! ES512, so algorithms and keys are our own table over aws-lc. Reasons never quote a value of the
//! set: it may hold a private key by mistake.

use aws_lc_rs::signature as sig;
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde_json::Value;

/// A signature algorithm of tokens (RFC 7518 §3.1, RFC 8037 §3.1). There is neither `none` nor an
/// HMAC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenAlgorithm {
    Rs256,
    Rs384,
    Rs512,
    Ps256,
    Ps384,
    Ps512,
    Es256,
    Es384,
    Es512,
    EdDsa,
}

impl TokenAlgorithm {
    const ALL: [Self; 10] = [
        Self::Rs256,
        Self::Rs384,
        Self::Rs512,
        Self::Ps256,
        Self::Ps384,
        Self::Ps512,
        Self::Es256,
        Self::Es384,
        Self::Es512,
        Self::EdDsa,
    ];

    /// The algorithm that `alg` names.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|algorithm| algorithm.as_str() == name)
    }

    /// Its name in `alg`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Rs256 => "RS256",
            Self::Rs384 => "RS384",
            Self::Rs512 => "RS512",
            Self::Ps256 => "PS256",
            Self::Ps384 => "PS384",
            Self::Ps512 => "PS512",
            Self::Es256 => "ES256",
            Self::Es384 => "ES384",
            Self::Es512 => "ES512",
            Self::EdDsa => "EdDSA",
        }
    }
}

/// One public key of a set, ready for each algorithm that it may verify.
pub struct VerifyKey {
    /// `kid`.
    pub id: Option<String>,
    /// Such as `RSA` or `P-256`.
    pub kind: &'static str,
    verifiers: Vec<(TokenAlgorithm, sig::ParsedPublicKey)>,
    /// What a stricter reader would refuse it for, as a sentence that names it.
    pub blemish: Option<String>,
}

impl std::fmt::Debug for VerifyKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "VerifyKey {{ id: {:?}, kind: {} }}", self.id, self.kind)
    }
}

impl VerifyKey {
    /// Whether it may verify this algorithm at all, by its kind and its own `alg`.
    pub fn is_for(&self, algorithm: TokenAlgorithm) -> bool {
        self.verifiers.iter().any(|(own, _)| *own == algorithm)
    }

    /// Whether the signature over `message` is by this key. ECDSA signatures are R ‖ S (RFC 7518
    /// §3.4).
    pub fn verifies(&self, algorithm: TokenAlgorithm, message: &[u8], signature: &[u8]) -> bool {
        let verifier = self.verifiers.iter().find(|(own, _)| *own == algorithm);
        verifier.is_some_and(|(_, key)| key.verify_sig(message, signature).is_ok())
    }
}

/// A key of a set that verifies no token, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unusable {
    /// How to find it: `key "k1"`, or `key 2` by its place where it has no `kid`.
    pub name: String,
    /// Why, as a clause.
    pub why: String,
    /// It says itself that it is for something else: nothing is wrong with it.
    pub for_another_use: bool,
}

impl std::fmt::Display for Unusable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} verifies no token: {}", self.name, self.why)
    }
}

/// The members that are read (RFC 7517 §4, RFC 7518 §6). A private key's are never touched.
#[derive(Deserialize)]
struct Members {
    kty: String,
    kid: Option<String>,
    #[serde(rename = "use")]
    usage: Option<String>,
    key_ops: Option<Vec<String>>,
    alg: Option<String>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

/// Why a key is passed over.
enum Fault {
    ForAnotherUse(String),
    Broken(String),
}

impl From<String> for Fault {
    fn from(why: String) -> Self {
        Self::Broken(why)
    }
}

/// Reads the key at `place` (from 1) of its set.
pub fn read(value: &Value, place: usize) -> Result<VerifyKey, Unusable> {
    let id = value.get("kid").and_then(Value::as_str);
    let name = id.map_or_else(|| format!("key {place}"), |id| format!("key {id:?}"));
    let unusable = |why: String, for_another_use| Unusable {
        name: name.clone(),
        why,
        for_another_use,
    };
    let members = Members::deserialize(value).map_err(|_| {
        unusable(
            "a member that RFC 7517 wants is missing or is no text".into(),
            false,
        )
    })?;
    let mut key = parts(&members).map_err(|fault| match fault {
        Fault::ForAnotherUse(why) => unusable(why, true),
        Fault::Broken(why) => unusable(why, false),
    })?;
    key.blemish = key
        .blemish
        .map(|blemish| format!("{name} is used, but {blemish}"));
    Ok(key)
}

fn parts(members: &Members) -> Result<VerifyKey, Fault> {
    if members.usage.as_deref().is_some_and(|usage| usage != "sig") {
        return Err(Fault::ForAnotherUse("its `use` is not \"sig\"".into()));
    }
    if members
        .key_ops
        .as_ref()
        .is_some_and(|operations| !operations.iter().any(|operation| operation == "verify"))
    {
        return Err(Fault::ForAnotherUse(
            "its `key_ops` do not have \"verify\"".into(),
        ));
    }
    let mut blemish = None;
    let (kind, verifiers) = match (members.kty.as_str(), members.crv.as_deref()) {
        ("RSA", _) => ("RSA", rsa(members, &mut blemish)?),
        ("EC", Some("P-256")) => ("P-256", ec(members, 32, TokenAlgorithm::Es256, &sig::ECDSA_P256_SHA256_FIXED, &mut blemish)?),
        ("EC", Some("P-384")) => ("P-384", ec(members, 48, TokenAlgorithm::Es384, &sig::ECDSA_P384_SHA384_FIXED, &mut blemish)?),
        ("EC", Some("P-521")) => ("P-521", ec(members, 66, TokenAlgorithm::Es512, &sig::ECDSA_P521_SHA512_FIXED, &mut blemish)?),
        ("OKP", Some("Ed25519")) => ("Ed25519", ed25519(members)?),
        ("oct", _) => {
            return Err(Fault::Broken("it is a shared secret (\"oct\"), which no signature of a token issuer may rest on".into()));
        }
        _ => return Err(Fault::Broken("its `kty` and `crv` are of no kind that is known here (RSA, P-256, P-384, P-521, Ed25519)".into())),
    };
    let verifiers = pinned(members.alg.as_deref(), kind, verifiers)?;
    Ok(VerifyKey {
        id: members.kid.clone(),
        kind,
        verifiers,
        blemish,
    })
}

type Verifiers = Vec<(TokenAlgorithm, sig::ParsedPublicKey)>;

/// `alg`, where it is there, is the only algorithm that a key is for (RFC 7517 §4.4).
fn pinned(alg: Option<&str>, kind: &str, mut verifiers: Verifiers) -> Result<Verifiers, Fault> {
    let Some(alg) = alg else { return Ok(verifiers) };
    // What RFC 7518 §4.1 and RFC 8037 have for encrypting keys.
    if alg.starts_with("RSA") || alg.starts_with("ECDH") {
        return Err(Fault::ForAnotherUse(
            "its `alg` is one for encryption".into(),
        ));
    }
    verifiers.retain(|(own, _)| own.as_str() == alg);
    if verifiers.is_empty() {
        return Err(Fault::Broken(format!(
            "its `alg` is none of those that a key of its kind ({kind}) verifies here"
        )));
    }
    Ok(verifiers)
}

fn rsa(members: &Members, blemish: &mut Option<String>) -> Result<Verifiers, Fault> {
    let mut n = octets(members.n.as_deref(), "n")?;
    let e = octets(members.e.as_deref(), "e")?;
    // RFC 7518 §6.3.1.1 forbids the zero octet that some libraries put before the modulus; what is
    // meant is clear all the same.
    let zeros = n.iter().take_while(|octet| **octet == 0).count();
    if zeros > 0 {
        n.drain(..zeros);
        *blemish = Some(
            "its `n` begins with a zero octet (RFC 7518 §6.3.1.1), which other readers refuse"
                .into(),
        );
    }
    let bits = n.len() * 8 - n.first().map_or(0, |first| first.leading_zeros() as usize);
    if !(2048..=8192).contains(&bits) {
        return Err(Fault::Broken(format!(
            "it is an RSA key of {bits} bits; 2048 to 8192 are accepted"
        )));
    }
    let components = sig::RsaPublicKeyComponents {
        n: n.as_slice(),
        e: e.as_slice(),
    };
    let each: [(TokenAlgorithm, &'static sig::RsaParameters); 6] = [
        (TokenAlgorithm::Rs256, &sig::RSA_PKCS1_2048_8192_SHA256),
        (TokenAlgorithm::Rs384, &sig::RSA_PKCS1_2048_8192_SHA384),
        (TokenAlgorithm::Rs512, &sig::RSA_PKCS1_2048_8192_SHA512),
        (TokenAlgorithm::Ps256, &sig::RSA_PSS_2048_8192_SHA256),
        (TokenAlgorithm::Ps384, &sig::RSA_PSS_2048_8192_SHA384),
        (TokenAlgorithm::Ps512, &sig::RSA_PSS_2048_8192_SHA512),
    ];
    let parsed = |(algorithm, parameters)| {
        let key = components
            .to_parsed_public_key(parameters)
            .map_err(|_| "its `n` and `e` are no RSA key".to_owned())?;
        Ok((algorithm, key))
    };
    each.into_iter().map(parsed).collect()
}

fn ec(
    members: &Members,
    length: usize,
    algorithm: TokenAlgorithm,
    verification: &'static sig::EcdsaVerificationAlgorithm,
    blemish: &mut Option<String>,
) -> Result<Verifiers, Fault> {
    let mut point = vec![4];
    for (value, member) in [(&members.x, "x"), (&members.y, "y")] {
        let coordinate = octets(value.as_deref(), member)?;
        let missing = length.checked_sub(coordinate.len()).ok_or_else(|| {
            format!("its `{member}` has {} octets; a coordinate of its curve has {length} (RFC 7518 §6.2.1)", coordinate.len())
        })?;
        // RFC 7518 §6.2.1.2 wants the full length; what is meant by less is clear, and a point
        // beside the curve is refused below.
        if missing > 0 {
            *blemish = Some(format!(
                "its `{member}` is {missing} octets short (RFC 7518 §6.2.1), which other readers refuse"
            ));
        }
        point.resize(point.len() + missing, 0);
        point.extend(coordinate);
    }
    let key = sig::ParsedPublicKey::new(verification, point)
        .map_err(|_| "its `x` and `y` are no point of its curve".to_owned())?;
    Ok(vec![(algorithm, key)])
}

fn ed25519(members: &Members) -> Result<Verifiers, Fault> {
    let x = octets(members.x.as_deref(), "x")?;
    let key = sig::ParsedPublicKey::new(&sig::ED25519, x)
        .map_err(|_| "its `x` is no Ed25519 key".to_owned())?;
    Ok(vec![(TokenAlgorithm::EdDsa, key)])
}

fn octets(value: Option<&str>, member: &str) -> Result<Vec<u8>, String> {
    let value = value.ok_or_else(|| format!("it has no `{member}`"))?;
    let decoded = BASE64_URL_SAFE_NO_PAD.decode(value);
    decoded.map_err(|_| match value.contains(['+', '/', '=']) {
        true => format!(
            "its `{member}` is ordinary base64; RFC 7518 §2 wants base64url without padding"
        ),
        false => format!("its `{member}` is not base64url"),
    })
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::rand::SystemRandom;
    use aws_lc_rs::signature::{ECDSA_P521_SHA512_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
    use serde_json::json;

    use super::*;

    fn base64url(octets: &[u8]) -> String {
        BASE64_URL_SAFE_NO_PAD.encode(octets)
    }

    /// A P-521 key pair whose x begins with a zero octet or not, as is asked for.
    fn p521(short_x: bool) -> (EcdsaKeyPair, Vec<u8>) {
        loop {
            let pair =
                EcdsaKeyPair::generate(&ECDSA_P521_SHA512_FIXED_SIGNING).expect("a key pair");
            let point = pair.public_key().as_ref()[1..].to_vec();
            if (point[0] == 0) == short_x {
                return (pair, point);
            }
        }
    }

    fn why(value: &Value) -> String {
        read(value, 1).expect_err("unusable").to_string()
    }

    #[test]
    fn a_key_verifies_by_the_algorithms_of_its_kind_and_no_other() {
        let (pair, point) = p521(false);
        let key = json!({"kty": "EC", "crv": "P-521", "kid": "e5", "x": base64url(&point[..66]), "y": base64url(&point[66..])});
        let key = read(&key, 1).expect("usable");
        let signature = pair.sign(&SystemRandom::new(), b"signed").expect("signed");
        assert!(key.verifies(TokenAlgorithm::Es512, b"signed", signature.as_ref()));
        assert!(!key.verifies(TokenAlgorithm::Es512, b"other", signature.as_ref()));
        assert!(
            !key.verifies(TokenAlgorithm::Es256, b"signed", signature.as_ref())
                && !key.is_for(TokenAlgorithm::Rs256)
        );
        assert_eq!(key.blemish, None);
    }

    #[test]
    fn a_short_coordinate_is_read_as_it_is_meant_and_named() {
        let (pair, point) = p521(true);
        let key = json!({"kty": "EC", "crv": "P-521", "x": base64url(&point[1..66]), "y": base64url(&point[66..])});
        let key = read(&key, 1).expect("usable");
        assert!(
            key.verifies(
                TokenAlgorithm::Es512,
                b"signed",
                pair.sign(&SystemRandom::new(), b"signed")
                    .expect("signed")
                    .as_ref()
            )
        );
        assert!(
            key.blemish
                .expect("named")
                .starts_with("key 1 is used, but its `x` is 1 octets short")
        );
    }

    #[test]
    fn what_verifies_nothing_is_named_with_its_reason() {
        let x = "AUFJK9nTgXKi1mvmJUx_5byNVMZvDV1dyzp3IdMpTgc";
        let y = "jJVhx0ndwWkoUEsNko1yC3VyOHO2P_15y79F804GlYI";
        let ec = |changes: Value| {
            let mut key = json!({"kty": "EC", "crv": "P-256", "kid": "k1", "x": x, "y": y});
            key.as_object_mut()
                .expect("an object")
                .extend(changes.as_object().expect("an object").clone());
            key
        };
        read(&ec(json!({})), 1).expect("usable");
        for (changes, reason, another_use) in [
            (json!({"use": "enc"}), "`use` is not", true),
            (json!({"key_ops": ["deriveKey"]}), "`key_ops`", true),
            (json!({"alg": "ECDH-ES"}), "encryption", true),
            (json!({"alg": "ES384"}), "none of those", false),
            (json!({"x": y}), "no point", false),
            (json!({"x": null}), "no `x`", false),
            (json!({"x": 7}), "is no text", false),
            (json!({"x": format!("{x}AAAA")}), "has 35 octets", false),
            (
                json!({"x": "AUFJK9nTgXKi1mvmJUx/5byNVMZvDV1dyzp3IdMpTgc"}),
                "ordinary base64",
                false,
            ),
            (
                json!({"crv": "secp256k1"}),
                "no kind that is known here",
                false,
            ),
            (
                json!({"kty": "oct", "k": "c2VjcmV0"}),
                "shared secret",
                false,
            ),
            (
                json!({"kty": "RSA", "n": base64url(&[0xff; 128]), "e": "AQAB"}),
                "1024 bits",
                false,
            ),
            (
                json!({"kty": "RSA", "alg": "RSA-OAEP", "n": base64url(&[0xff; 256]), "e": "AQAB"}),
                "encryption",
                true,
            ),
            (
                json!({"kty": "RSA", "n": base64url(&[0; 256]), "e": "AQAB"}),
                "of 0 bits",
                false,
            ),
        ] {
            let refused = read(&ec(changes.clone()), 1).expect_err(reason);
            assert!(
                refused
                    .to_string()
                    .starts_with("key \"k1\" verifies no token: "),
                "{refused}"
            );
            assert!(
                refused.why.contains(reason) && refused.for_another_use == another_use,
                "{changes}: {refused:?}"
            );
            assert!(
                !refused.why.contains("c2VjcmV0") && !refused.why.contains(x),
                "{refused}"
            );
        }
        assert!(why(&json!("text")).starts_with("key 1 verifies no token"));
    }
}
