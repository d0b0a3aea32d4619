//! What an issuer's certificate says that the bodies it signs must agree with, read by the guard's
//! own reader.

use super::Violation;
use super::der::{
    BIT_STRING, BOOLEAN, EC_PUBLIC_KEY, INTEGER, NULL, OBJECT_IDENTIFIER, OCTET_STRING, P256, P384,
    RSA_ENCRYPTION, SEQUENCE, Value, Values, constructed, extension_value, instant, sequence,
    value,
};
use crate::digest::sha256;
use crate::timestamp::Timestamp;

/// So that what is written of it stays within the lengths that are written here.
const LARGEST: usize = 16 * 1024;

const ECDSA_WITH_SHA256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];
const ECDSA_WITH_SHA384: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x03];
const SHA256_WITH_RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0b];

/// An issuer.
pub struct Issuer {
    subject: Vec<u8>,
    key_identifier: Vec<u8>,
    spki: Vec<u8>,
    algorithm: Vec<u8>,
    begins: Timestamp,
    ends: Timestamp,
}

impl Issuer {
    /// Reads an issuer's certificate, DER; it must be one that may sign certificates.
    pub fn parse(der: &[u8]) -> Result<Self, Violation> {
        if der.len() > LARGEST {
            return Err(Violation(format!(
                "the issuer's certificate has {} bytes, at most {LARGEST} are allowed",
                der.len()
            )));
        }
        let unreadable = || {
            Violation(
                "the issuer's certificate cannot be read: it is not DER of RFC 5280 §4.1".into(),
            )
        };
        let mut certificate = Values::of_sequence(der).ok_or_else(unreadable)?;
        let body = certificate.take(SEQUENCE).ok_or_else(unreadable)?;
        let mut fields = Values::of(body);
        if fields.take(constructed(0)) != Some(&[INTEGER, 1, 2]) {
            return Err(Violation(
                "the issuer's certificate is not of version 3 (RFC 5280 §4.1.2.1)".into(),
            ));
        }
        fields
            .take(INTEGER)
            .and_then(|_| fields.take(SEQUENCE))
            .and_then(|_| fields.take(SEQUENCE))
            .ok_or_else(unreadable)?;
        let mut validity = Values::of(fields.take(SEQUENCE).ok_or_else(unreadable)?);
        let mut time = || {
            validity
                .next()
                .as_ref()
                .and_then(instant)
                .ok_or_else(unreadable)
        };
        let (begins, ends) = (time()?, time()?);
        let mut sequence_of = || {
            fields
                .next()
                .filter(|value| value.tag == SEQUENCE)
                .ok_or_else(unreadable)
        };
        let (subject, spki) = (sequence_of()?, sequence_of()?);
        if subject.content.is_empty() {
            return Err(Violation(
                "the issuer has no name (RFC 5280 §4.1.2.6)".into(),
            ));
        }
        let rest = fields.all().ok_or_else(unreadable)?;
        let extensions = rest
            .iter()
            .find(|value| value.tag == constructed(3))
            .map(|value| value.content);
        let extensions = extensions
            .and_then(Values::of_sequence)
            .and_then(Values::all)
            .ok_or_else(unreadable)?;
        let extension = |number| extension_value(&extensions, number);
        // RFC 5280 §4.2.1.9 asks a CA to mark it critical, and nobody to refuse one that has not.
        if !matches!(extension(19), Some([SEQUENCE, _, BOOLEAN, 1, 0xff, ..])) {
            return Err(Violation("the issuer is no CA (RFC 5280 §4.2.1.9)".into()));
        }
        // keyCertSign is the sixth bit (RFC 5280 §4.2.1.3).
        let signs = extension(15)
            .is_none_or(|usage| matches!(usage, [BIT_STRING, _, _, bits, ..] if bits & 0x04 != 0));
        if !signs {
            return Err(Violation(
                "the issuer's key may not sign certificates (RFC 5280 §4.2.1.3)".into(),
            ));
        }
        let own = extension(14)
            .map(|identifier| {
                Values::of(identifier)
                    .take(OCTET_STRING)
                    .ok_or_else(unreadable)
            })
            .transpose()?;
        // Without one, what this CA gives to such a key (RFC 7093 §2, method 1).
        let key_identifier =
            own.map_or_else(|| sha256(key_bits(&spki))[..20].to_vec(), <[u8]>::to_vec);
        Ok(Self {
            subject: subject.whole.to_vec(),
            key_identifier,
            algorithm: algorithm_of(&spki)?,
            spki: spki.whole.to_vec(),
            begins,
            ends,
        })
    }

    /// Its SubjectPublicKeyInfo, DER.
    pub fn public_key(&self) -> &[u8] {
        &self.spki
    }

    /// Its name, DER, as it stands in its certificate.
    pub(super) fn subject(&self) -> &[u8] {
        &self.subject
    }

    /// The identifier of its key (RFC 5280 §4.2.1.2).
    pub(super) fn key_identifier(&self) -> &[u8] {
        &self.key_identifier
    }

    /// The AlgorithmIdentifier of its signatures, DER.
    pub(super) fn algorithm(&self) -> &[u8] {
        &self.algorithm
    }

    /// First and last second of its validity.
    pub(super) fn validity(&self) -> (Timestamp, Timestamp) {
        (self.begins, self.ends)
    }
}

/// What the BIT STRING of a SubjectPublicKeyInfo holds.
fn key_bits<'a>(spki: &Value<'a>) -> &'a [u8] {
    let mut parts = Values::of(spki.content);
    parts.take(SEQUENCE);
    parts
        .take(BIT_STRING)
        .and_then(|bits| bits.split_first())
        .map_or(&[], |(_, bits)| bits)
}

/// RFC 5758 §3.2: no parameters for ECDSA; RFC 4055 §5: NULL for RSA.
fn algorithm_of(spki: &Value<'_>) -> Result<Vec<u8>, Violation> {
    let mut kind = Values::of(Values::of(spki.content).take(SEQUENCE).unwrap_or_default());
    let key = kind.take(OBJECT_IDENTIFIER);
    let curve = kind.take(OBJECT_IDENTIFIER);
    let algorithm = |oid: &[u8], parameters: &[u8]| {
        Ok(sequence(&[&value(OBJECT_IDENTIFIER, &[oid]), parameters]))
    };
    match (key, curve) {
        (Some(EC_PUBLIC_KEY), Some(P256)) => algorithm(ECDSA_WITH_SHA256, &[]),
        (Some(EC_PUBLIC_KEY), Some(P384)) => algorithm(ECDSA_WITH_SHA384, &[]),
        (Some(RSA_ENCRYPTION), _) => algorithm(SHA256_WITH_RSA, &value(NULL, &[])),
        _ => Err(Violation(
            "the issuer's key is of a kind that this CA does not use".into(),
        )),
    }
}
