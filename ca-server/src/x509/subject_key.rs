//! The one thing a CSR contributes to a certificate: a public key, of a kind and size that the
//! rooms above can judge.

use aws_lc_rs::signature as sig;
use const_oid::ObjectIdentifier;
use const_oid::db::rfc5912::{
    ECDSA_WITH_SHA_256, ECDSA_WITH_SHA_384, ECDSA_WITH_SHA_512, ID_EC_PUBLIC_KEY, RSA_ENCRYPTION,
    SECP_256_R_1, SECP_384_R_1, SHA_256_WITH_RSA_ENCRYPTION, SHA_384_WITH_RSA_ENCRYPTION,
    SHA_512_WITH_RSA_ENCRYPTION,
};
use const_oid::db::rfc8410::ID_ED_25519;
use der::asn1::{AnyRef, BitStringRef, UintRef};
use der::{Decode, Encode, Reader, SliceReader};
use spki::{AlgorithmIdentifierRef, SubjectPublicKeyInfoRef};

use crate::digest::sha256;

/// Kind and size of a subject's public key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyKind {
    /// RSA with a modulus of so many bits.
    Rsa(u32),
    /// ECDSA on P-256.
    P256,
    /// ECDSA on P-384.
    P384,
    /// Ed25519 (RFC 8410).
    Ed25519,
}

/// A subject's public key: canonical SubjectPublicKeyInfo (RFC 5280 §4.1.2.7) and its kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubjectKey {
    spki: Vec<u8>,
    bits_at: usize,
    kind: KeyKind,
}

/// Why bytes are not a public key that a certificate could carry.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadKey {
    /// Not legal DER, or not canonical.
    #[error("the public key is malformed")]
    Malformed,
    /// A legal key of a kind that is never issued.
    #[error("keys of algorithm {0} are not accepted")]
    Unsupported(ObjectIdentifier),
}

/// Why a signature does not prove what it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadSignature {
    /// Not on the list, or for another kind of key.
    #[error("its signature algorithm is not accepted for its key")]
    Algorithm,
    /// Not by this key over these bytes.
    #[error("the signature does not match the key")]
    Wrong,
}

impl SubjectKey {
    /// Reads a SubjectPublicKeyInfo. Its algorithm parameters must be the canonical ones, so that
    /// nothing rides along.
    pub fn from_spki(spki: &[u8]) -> Result<Self, BadKey> {
        let malformed = |_| BadKey::Malformed;
        let info = SubjectPublicKeyInfoRef::from_der(spki).map_err(|_| BadKey::Malformed)?;
        let bits = info
            .subject_public_key
            .as_bytes()
            .ok_or(BadKey::Malformed)?;
        let kind = match info.algorithm.oid {
            RSA_ENCRYPTION => {
                if info.algorithm.parameters != Some(AnyRef::NULL) {
                    return Err(BadKey::Malformed);
                }
                KeyKind::Rsa(rsa_modulus_bits(bits).ok_or(BadKey::Malformed)?)
            }
            ID_EC_PUBLIC_KEY => {
                let (kind, length) = match info
                    .algorithm
                    .parameters_oid()
                    .map_err(|_| BadKey::Malformed)?
                {
                    SECP_256_R_1 => (KeyKind::P256, 65),
                    SECP_384_R_1 => (KeyKind::P384, 97),
                    other => return Err(BadKey::Unsupported(other)),
                };
                // Uncompressed only (RFC 5480 §2.2), as every mesh client sends it.
                if bits.len() != length || bits[0] != 4 {
                    return Err(BadKey::Malformed);
                }
                kind
            }
            ID_ED_25519 => {
                if info.algorithm.parameters.is_some() || bits.len() != 32 {
                    return Err(BadKey::Malformed);
                }
                KeyKind::Ed25519
            }
            other => return Err(BadKey::Unsupported(other)),
        };
        let canonical = SubjectPublicKeyInfoRef {
            algorithm: AlgorithmIdentifierRef {
                oid: info.algorithm.oid,
                parameters: info.algorithm.parameters,
            },
            subject_public_key: BitStringRef::from_bytes(bits).map_err(malformed)?,
        }
        .to_der()
        .map_err(malformed)?;
        Ok(Self {
            bits_at: canonical.len() - bits.len(),
            spki: canonical,
            kind,
        })
    }

    /// SubjectPublicKeyInfo, DER.
    pub fn spki(&self) -> &[u8] {
        &self.spki
    }

    /// The content of the BIT STRING: an EC point, an RSAPublicKey, or 32 octets of Ed25519.
    pub fn bits(&self) -> &[u8] {
        &self.spki[self.bits_at..]
    }

    /// Checks a signature that claims to be by this key, with an algorithm of a fixed list.
    pub fn verify(
        &self,
        algorithm: ObjectIdentifier,
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), BadSignature> {
        let verification = verification(self.kind, algorithm).ok_or(BadSignature::Algorithm)?;
        sig::UnparsedPublicKey::new(verification, self.bits())
            .verify(message, signature)
            .map_err(|_| BadSignature::Wrong)
    }

    /// Kind and size.
    pub fn kind(&self) -> KeyKind {
        self.kind
    }
}

/// The check that fits a key and a signature algorithm; there is no SHA-1 in it.
fn verification(
    kind: KeyKind,
    algorithm: ObjectIdentifier,
) -> Option<&'static dyn sig::VerificationAlgorithm> {
    Some(match (kind, algorithm) {
        (KeyKind::Rsa(_), SHA_256_WITH_RSA_ENCRYPTION) => &sig::RSA_PKCS1_2048_8192_SHA256,
        (KeyKind::Rsa(_), SHA_384_WITH_RSA_ENCRYPTION) => &sig::RSA_PKCS1_2048_8192_SHA384,
        (KeyKind::Rsa(_), SHA_512_WITH_RSA_ENCRYPTION) => &sig::RSA_PKCS1_2048_8192_SHA512,
        (KeyKind::P256, ECDSA_WITH_SHA_256) => &sig::ECDSA_P256_SHA256_ASN1,
        (KeyKind::P256, ECDSA_WITH_SHA_384) => &sig::ECDSA_P256_SHA384_ASN1,
        (KeyKind::P256, ECDSA_WITH_SHA_512) => &sig::ECDSA_P256_SHA512_ASN1,
        (KeyKind::P384, ECDSA_WITH_SHA_256) => &sig::ECDSA_P384_SHA256_ASN1,
        (KeyKind::P384, ECDSA_WITH_SHA_384) => &sig::ECDSA_P384_SHA384_ASN1,
        (KeyKind::P384, ECDSA_WITH_SHA_512) => &sig::ECDSA_P384_SHA512_ASN1,
        (KeyKind::Ed25519, ID_ED_25519) => &sig::ED25519,
        _ => return None,
    })
}

/// Bits of the modulus of an RSAPublicKey (RFC 8017 §A.1.1); `None` if it is malformed or its
/// exponent is even or below 3.
fn rsa_modulus_bits(key: &[u8]) -> Option<u32> {
    let mut reader = SliceReader::new(key).ok()?;
    let (modulus, exponent) = reader
        .sequence(|inner| Ok::<_, der::Error>((UintRef::decode(inner)?, UintRef::decode(inner)?)))
        .ok()?;
    reader.finish().ok()?;
    let exponent = exponent.as_bytes();
    let odd = exponent.last().is_some_and(|byte| byte & 1 == 1);
    if !odd || exponent == [1] {
        return None;
    }
    let modulus = modulus.as_bytes();
    let leading = modulus.first()?.leading_zeros();
    u32::try_from(modulus.len())
        .ok()?
        .checked_mul(8)?
        .checked_sub(leading)
}

/// The key identifier of a public key: the leftmost 160 bits of SHA-256 over the BIT STRING's
/// content (RFC 7093 §2, method 1).
pub fn key_identifier(bits: &[u8]) -> [u8; 20] {
    sha256(bits)[..20]
        .try_into()
        .expect("SHA-256 has 32 octets")
}
