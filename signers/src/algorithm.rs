//! Public keys and the signature algorithms that CA keys may have.
//!
//! A `PublicKey` is always one that aws-lc-rs has parsed (point on the curve, modulus of a
//! permitted size), re-encoded in one canonical way, so that two of them are equal exactly when the
//! keys are.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use aws_lc_rs::digest;
use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA384_ASN1, ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256,
    VerificationAlgorithm,
};
use const_oid::ObjectIdentifier;
use der::asn1::{AnyRef, BitStringRef, UintRef};
use der::{Decode, Encode, Sequence};
use spki::{AlgorithmIdentifierRef, SubjectPublicKeyInfoRef};

use crate::SignError;

const ID_EC_PUBLIC_KEY: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const RSA_ENCRYPTION: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
const PRIME256V1: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");
const SECP384R1: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.34");

/// The one signature algorithm of a CA key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// ECDSA on P-256 with SHA-256 (RFC 5758 §3.2).
    EcdsaP256Sha256,
    /// ECDSA on P-384 with SHA-384 (RFC 5758 §3.2).
    EcdsaP384Sha384,
    /// RSASSA-PKCS1-v1_5 with SHA-256 (RFC 4055 §5), modulus of 2048 to 8192 bits.
    RsaPkcs1Sha256,
}

impl Algorithm {
    /// Every algorithm.
    pub const ALL: [Self; 3] = [
        Self::EcdsaP256Sha256,
        Self::EcdsaP384Sha384,
        Self::RsaPkcs1Sha256,
    ];

    /// The name in configurations, logs and rows.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::EcdsaP256Sha256 => "ecdsa-p256-sha256",
            Self::EcdsaP384Sha384 => "ecdsa-p384-sha384",
            Self::RsaPkcs1Sha256 => "rsa-pkcs1-sha256",
        }
    }

    fn verification(self) -> &'static dyn VerificationAlgorithm {
        match self {
            Self::EcdsaP256Sha256 => &ECDSA_P256_SHA256_ASN1,
            Self::EcdsaP384Sha384 => &ECDSA_P384_SHA384_ASN1,
            Self::RsaPkcs1Sha256 => &RSA_PKCS1_2048_8192_SHA256,
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A name that is not in the list.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown name; expected one of: {expected}")]
pub struct UnknownName {
    expected: String,
}

impl UnknownName {
    fn expected(names: &[&str]) -> Self {
        Self {
            expected: names.join(", "),
        }
    }
}

impl FromStr for Algorithm {
    type Err = UnknownName;

    fn from_str(text: &str) -> Result<Self, UnknownName> {
        Self::ALL
            .into_iter()
            .find(|a| a.as_str() == text)
            .ok_or_else(|| UnknownName::expected(&Self::ALL.map(Self::as_str)))
    }
}

/// A kind of key that can be generated: what a ceremony's specification names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KeyKind {
    /// Elliptic curve P-256.
    P256,
    /// Elliptic curve P-384.
    P384,
    /// RSA, modulus of 2048 bits.
    Rsa2048,
    /// RSA, modulus of 3072 bits.
    Rsa3072,
    /// RSA, modulus of 4096 bits.
    Rsa4096,
}

impl KeyKind {
    /// Every kind.
    pub const ALL: [Self; 5] = [
        Self::P256,
        Self::P384,
        Self::Rsa2048,
        Self::Rsa3072,
        Self::Rsa4096,
    ];

    /// The name in a ceremony's specification.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::P256 => "p256",
            Self::P384 => "p384",
            Self::Rsa2048 => "rsa-2048",
            Self::Rsa3072 => "rsa-3072",
            Self::Rsa4096 => "rsa-4096",
        }
    }

    /// The signature algorithm of such a key.
    pub fn algorithm(self) -> Algorithm {
        match self {
            Self::P256 => Algorithm::EcdsaP256Sha256,
            Self::P384 => Algorithm::EcdsaP384Sha384,
            Self::Rsa2048 | Self::Rsa3072 | Self::Rsa4096 => Algorithm::RsaPkcs1Sha256,
        }
    }

    /// Bits of the RSA modulus; `None` for a curve.
    pub fn modulus_bits(self) -> Option<u32> {
        match self {
            Self::P256 | Self::P384 => None,
            Self::Rsa2048 => Some(2048),
            Self::Rsa3072 => Some(3072),
            Self::Rsa4096 => Some(4096),
        }
    }
}

impl fmt::Display for KeyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for KeyKind {
    type Err = UnknownName;

    fn from_str(text: &str) -> Result<Self, UnknownName> {
        Self::ALL
            .into_iter()
            .find(|k| k.as_str() == text)
            .ok_or_else(|| UnknownName::expected(&Self::ALL.map(Self::as_str)))
    }
}

/// A public key: its SubjectPublicKeyInfo (RFC 5280 §4.1.2.7), DER, with the algorithm that it
/// verifies. Cheap to clone.
#[derive(Clone)]
pub struct PublicKey(Arc<Parts>);

struct Parts {
    spki_der: Vec<u8>,
    algorithm: Algorithm,
    // Kept parsed, because every signature of our own is verified with it before it leaves.
    parsed: ParsedPublicKey,
}

/// RFC 8017 §A.1.1.
#[derive(Sequence)]
struct RsaPublicKey<'a> {
    n: UintRef<'a>,
    e: UintRef<'a>,
}

impl PublicKey {
    /// Reads a SubjectPublicKeyInfo in DER: P-256 and P-384 as named curves (RFC 5480 §2.1.1), RSA
    /// of 2048 to 8192 bits. Everything else is `Rejected`. The encoding kept is canonical:
    /// uncompressed points, RSA with NULL parameters.
    pub fn from_spki_der(der: &[u8]) -> Result<Self, SignError> {
        let spki = SubjectPublicKeyInfoRef::from_der(der)
            .map_err(|e| rejected(format!("not a SubjectPublicKeyInfo in DER: {e}")))?;
        let key = spki
            .subject_public_key
            .as_bytes()
            .ok_or_else(|| rejected("the public key is not a whole number of bytes"))?;
        match spki.algorithm.oid {
            ID_EC_PUBLIC_KEY => {
                let curve = spki
                    .algorithm
                    .parameters
                    .map(|p| p.decode_as::<ObjectIdentifier>());
                match curve {
                    Some(Ok(PRIME256V1)) => Self::from_ec_point(Algorithm::EcdsaP256Sha256, key),
                    Some(Ok(SECP384R1)) => Self::from_ec_point(Algorithm::EcdsaP384Sha384, key),
                    Some(Ok(other)) => Err(rejected(format!(
                        "the curve {other} is not supported: only P-256 and P-384 are"
                    ))),
                    Some(Err(_)) | None => Err(rejected("the elliptic curve key names no curve")),
                }
            }
            RSA_ENCRYPTION => {
                if spki.algorithm.parameters.is_some_and(|p| p != AnyRef::NULL) {
                    return Err(rejected("the RSA key's algorithm parameters are not NULL"));
                }
                let rsa = RsaPublicKey::from_der(key)
                    .map_err(|e| rejected(format!("not an RSAPublicKey in DER: {e}")))?;
                Self::from_rsa(rsa.n.as_bytes(), rsa.e.as_bytes())
            }
            other => Err(rejected(format!(
                "a key of algorithm {other} is not supported: only P-256, P-384 and RSA are"
            ))),
        }
    }

    /// A key from its curve (by its algorithm) and its point (SEC 1 §2.3.3, compressed or not).
    pub fn from_ec_point(algorithm: Algorithm, point: &[u8]) -> Result<Self, SignError> {
        let (curve, uncompressed) = match algorithm {
            Algorithm::EcdsaP256Sha256 => (PRIME256V1, 65),
            Algorithm::EcdsaP384Sha384 => (SECP384R1, 97),
            Algorithm::RsaPkcs1Sha256 => return Err(rejected("an RSA key has no point")),
        };
        let spki_der = spki(ID_EC_PUBLIC_KEY, AnyRef::from(&curve), point)?;
        if point.len() == uncompressed && point.first() == Some(&4) {
            return Self::parse(spki_der, algorithm);
        }
        // aws-lc decompresses the point; what it writes is uncompressed.
        let parsed = ParsedPublicKey::new(algorithm.verification(), &spki_der)
            .map_err(|_| rejected("the point is not on the curve"))?;
        let written = parsed
            .as_der()
            .map_err(|_| rejected("the point could not be encoded"))?;
        let written = SubjectPublicKeyInfoRef::from_der(written.as_ref())
            .map_err(|e| rejected(format!("the point could not be encoded: {e}")))?;
        match written.subject_public_key.as_bytes() {
            Some(point) if point.len() == uncompressed && point.first() == Some(&4) => Self::parse(
                spki(ID_EC_PUBLIC_KEY, AnyRef::from(&curve), point)?,
                algorithm,
            ),
            _ => Err(rejected("the point is not in the uncompressed form")),
        }
    }

    /// An RSA key from modulus and public exponent, both unsigned and big-endian; leading zeroes
    /// are ignored.
    pub fn from_rsa(modulus: &[u8], exponent: &[u8]) -> Result<Self, SignError> {
        let bits = significant_bits(modulus);
        if !(2048..=8192).contains(&bits) {
            return Err(rejected(format!(
                "an RSA modulus of {bits} bits is not supported: it must have 2048 to 8192"
            )));
        }
        let (n, e) = UintRef::new(modulus)
            .and_then(|n| Ok((n, UintRef::new(exponent)?)))
            .map_err(|e| rejected(format!("not an RSA key: {e}")))?;
        let key = RsaPublicKey { n, e }
            .to_der()
            .map_err(|e| rejected(format!("the RSA key could not be encoded: {e}")))?;
        Self::parse(
            spki(RSA_ENCRYPTION, AnyRef::NULL, &key)?,
            Algorithm::RsaPkcs1Sha256,
        )
    }

    fn parse(spki_der: Vec<u8>, algorithm: Algorithm) -> Result<Self, SignError> {
        let parsed = ParsedPublicKey::new(algorithm.verification(), &spki_der)
            .map_err(|e| rejected(format!("not a valid {algorithm} public key: {e}")))?;
        Ok(Self(Arc::new(Parts {
            spki_der,
            algorithm,
            parsed,
        })))
    }

    /// SubjectPublicKeyInfo, DER.
    pub fn spki_der(&self) -> &[u8] {
        &self.0.spki_der
    }

    /// The algorithm that it verifies.
    pub fn algorithm(&self) -> Algorithm {
        self.0.algorithm
    }

    /// What a ceremony's specification would call such a key; `None` for an RSA modulus of another
    /// size.
    pub fn kind(&self) -> Option<KeyKind> {
        match self.algorithm() {
            Algorithm::EcdsaP256Sha256 => Some(KeyKind::P256),
            Algorithm::EcdsaP384Sha384 => Some(KeyKind::P384),
            Algorithm::RsaPkcs1Sha256 => {
                let spki = SubjectPublicKeyInfoRef::from_der(self.spki_der()).ok()?;
                let rsa = RsaPublicKey::from_der(spki.subject_public_key.as_bytes()?).ok()?;
                let bits = significant_bits(rsa.n.as_bytes());
                KeyKind::ALL.into_iter().find(|kind| {
                    kind.modulus_bits()
                        .is_some_and(|of| usize::try_from(of) == Ok(bits))
                })
            }
        }
    }

    /// Whether `signature` (encoded as X.509 wants it) is this key's over `message`.
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        self.0.parsed.verify_sig(message, signature).is_ok()
    }

    /// SHA-256 of the SubjectPublicKeyInfo, in hexadecimal: how people compare keys.
    pub fn fingerprint(&self) -> String {
        hex::encode(digest::digest(&digest::SHA256, self.spki_der()))
    }
}

impl PartialEq for PublicKey {
    fn eq(&self, other: &Self) -> bool {
        self.0.spki_der == other.0.spki_der
    }
}

impl Eq for PublicKey {}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({}, {})", self.algorithm(), self.fingerprint())
    }
}

fn spki(oid: ObjectIdentifier, parameters: AnyRef<'_>, key: &[u8]) -> Result<Vec<u8>, SignError> {
    let encode = || -> der::Result<Vec<u8>> {
        let algorithm = AlgorithmIdentifierRef {
            oid,
            parameters: Some(parameters),
        };
        SubjectPublicKeyInfoRef {
            algorithm,
            subject_public_key: BitStringRef::from_bytes(key)?,
        }
        .to_der()
    };
    encode().map_err(|e| rejected(format!("the public key could not be encoded: {e}")))
}

fn significant_bits(number: &[u8]) -> usize {
    match number.iter().position(|byte| *byte != 0) {
        Some(first) => (number.len() - first) * 8 - number[first].leading_zeros() as usize,
        None => 0,
    }
}

fn rejected(text: impl Into<String>) -> SignError {
    SignError::Rejected(text.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_lc_rs::rand::SystemRandom;
    use aws_lc_rs::rsa;
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair};

    fn p256() -> EcdsaKeyPair {
        EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).unwrap()
    }

    #[test]
    fn a_public_key_survives_its_own_encoding_and_verifies() {
        let pair = p256();
        let key = PublicKey::from_ec_point(Algorithm::EcdsaP256Sha256, pair.public_key().as_ref())
            .unwrap();
        assert_eq!(PublicKey::from_spki_der(key.spki_der()).unwrap(), key);
        let signature = pair.sign(&SystemRandom::new(), b"message").unwrap();
        assert!(key.verify(b"message", signature.as_ref()));
        assert!(!key.verify(b"massage", signature.as_ref()));
        assert!(!key.verify(b"message", &[]));
        assert_eq!(key.fingerprint().len(), 64);
    }

    #[test]
    fn a_compressed_point_becomes_the_same_key() {
        let pair = p256();
        let point = pair.public_key().as_ref();
        let mut compressed = vec![2 + (point[64] & 1)];
        compressed.extend_from_slice(&point[1..33]);
        let plain = PublicKey::from_ec_point(Algorithm::EcdsaP256Sha256, point).unwrap();
        assert_eq!(
            PublicKey::from_ec_point(Algorithm::EcdsaP256Sha256, &compressed).unwrap(),
            plain
        );
    }

    #[test]
    fn a_point_off_the_curve_is_refused() {
        let pair = p256();
        let mut point = pair.public_key().as_ref().to_vec();
        point[64] ^= 1;
        assert!(matches!(
            PublicKey::from_ec_point(Algorithm::EcdsaP256Sha256, &point),
            Err(SignError::Rejected(_))
        ));
        assert!(
            PublicKey::from_ec_point(Algorithm::EcdsaP384Sha384, pair.public_key().as_ref())
                .is_err()
        );
        assert!(PublicKey::from_ec_point(Algorithm::EcdsaP256Sha256, &[]).is_err());
    }

    #[test]
    fn an_rsa_key_is_the_same_with_or_without_leading_zeroes() {
        let pair = rsa::KeyPair::generate(rsa::KeySize::Rsa2048).unwrap();
        let key = RsaPublicKey::from_der(pair.public_key().as_ref()).unwrap();
        let n = key.n.as_bytes().to_vec();
        let plain = PublicKey::from_rsa(&n, &[1, 0, 1]).unwrap();
        let padded = PublicKey::from_rsa(&[&[0, 0], &n[..]].concat(), &[0, 1, 0, 1]).unwrap();
        assert_eq!(plain, padded);
        assert_eq!(PublicKey::from_spki_der(plain.spki_der()).unwrap(), plain);
    }

    #[test]
    fn a_weak_or_huge_rsa_key_is_refused() {
        for bytes in [0, 1, 128, 255, 1025, 4096] {
            assert!(
                matches!(
                    PublicKey::from_rsa(&vec![0xff; bytes], &[1, 0, 1]),
                    Err(SignError::Rejected(_))
                ),
                "{bytes}"
            );
        }
    }

    #[test]
    fn an_unsupported_curve_is_named() {
        const SECP521R1: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.35");
        let der = spki(ID_EC_PUBLIC_KEY, AnyRef::from(&SECP521R1), &[4; 133]).unwrap();
        let error = PublicKey::from_spki_der(&der).unwrap_err();
        assert!(error.to_string().contains("1.3.132.0.35"), "{error}");
    }

    #[test]
    fn damaged_bytes_never_panic() {
        let key =
            PublicKey::from_ec_point(Algorithm::EcdsaP256Sha256, p256().public_key().as_ref())
                .unwrap();
        let good = key.spki_der();
        for end in 0..good.len() {
            assert!(PublicKey::from_spki_der(&good[..end]).is_err());
        }
        for position in 0..good.len() {
            for bit in 0..8 {
                let mut bad = good.to_vec();
                bad[position] ^= 1 << bit;
                let _ = PublicKey::from_spki_der(&bad);
            }
        }
    }

    #[test]
    fn names_are_read_back() {
        for algorithm in Algorithm::ALL {
            assert_eq!(algorithm.to_string().parse(), Ok(algorithm));
        }
        for kind in KeyKind::ALL {
            assert_eq!(kind.to_string().parse(), Ok(kind));
        }
        assert!(
            "p521"
                .parse::<KeyKind>()
                .unwrap_err()
                .to_string()
                .contains("p256, p384, rsa-2048")
        );
    }
}
