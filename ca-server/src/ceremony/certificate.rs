//! A CA certificate that stands in a file, and whether it is the one that the spec describes.

use std::path::Path;

use der::asn1::{Any, BitString, UintRef};
use der::{Decode, DecodePem, Encode, EncodePem, Sequence};
use signers::{KeyKind, PublicKey};
use spki::{AlgorithmIdentifierOwned, SubjectPublicKeyInfoRef};
use x509_cert::Certificate;
use x509_cert::ext::pkix::BasicConstraints;
use x509_cert::name::Name;

use super::spec::EntrySpec;
use super::{BACKDATED, Failure, Made, sha256_hex};
use crate::timestamp::Timestamp;

/// One parsed CA certificate.
pub(super) struct CaCertificate {
    der: Vec<u8>,
    parsed: Certificate,
}

/// The three parts of a certificate, with the signed bytes as they stand (RFC 5280 §4.1).
#[derive(Sequence)]
struct Parts {
    to_be_signed: Any,
    algorithm: AlgorithmIdentifierOwned,
    signature: BitString,
}

impl CaCertificate {
    /// The certificate in a PEM file that holds exactly one; `None` if there is no file.
    pub(super) fn read(path: &Path) -> Result<Option<Self>, String> {
        let pem = match std::fs::read(path) {
            Ok(pem) => pem,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.to_string()),
        };
        let parsed = Certificate::from_pem(&pem)
            .map_err(|error| format!("is not one certificate in PEM: {error}"))?;
        let der = parsed.to_der().map_err(|error| error.to_string())?;
        Ok(Some(Self { der, parsed }))
    }

    pub(super) fn from_der(der: &[u8]) -> Result<Self, String> {
        let parsed = Certificate::from_der(der).map_err(|error| error.to_string())?;
        Ok(Self {
            der: der.to_vec(),
            parsed,
        })
    }

    pub(super) fn pem(&self) -> String {
        self.parsed
            .to_pem(der::pem::LineEnding::LF)
            .expect("it was parsed from the same structure")
    }

    pub(super) fn subject(&self) -> &Name {
        self.parsed.tbs_certificate().subject()
    }

    pub(super) fn not_after(&self) -> Timestamp {
        timestamp(self.parsed.tbs_certificate().validity().not_after)
    }

    /// This certificate, read from `file`, if it is what the spec describes: subject, key, path
    /// length, lifetime, and a signature by `root` (by itself when `None`).
    pub(super) fn check(
        self,
        file: &Path,
        spec: &EntrySpec,
        key: &PublicKey,
        root: Option<(&CaCertificate, &PublicKey)>,
    ) -> Result<Self, Failure> {
        let differs = |what: &str| {
            Failure::spec(format!(
                "{} differs from the spec in its {what}: name another output, or correct the spec",
                file.display()
            ))
        };
        let tbs = self.parsed.tbs_certificate();
        if tbs.subject() != &spec.subject {
            return Err(differs("subject"));
        }
        if tbs.subject_public_key_info().to_der().ok().as_deref() != Some(key.spki_der()) {
            return Err(differs(
                "public key (the key that the spec names is another one)",
            ));
        }
        let constraints = tbs.get_extension::<BasicConstraints>().ok().flatten();
        if !constraints.is_some_and(|(_, found)| {
            found.ca && found.path_len_constraint == Some(spec.path_length)
        }) {
            return Err(differs("path length"));
        }
        let made = timestamp(tbs.validity().not_before).plus(BACKDATED);
        if self.not_after() != not_after(spec, made, root.map(|(certificate, _)| certificate)) {
            return Err(differs("lifetime"));
        }
        let (issuer, signer) = root.map_or((tbs.subject(), key), |(certificate, key)| {
            (certificate.subject(), key)
        });
        if tbs.issuer() != issuer || !self.is_signed_by(signer) {
            return Err(differs(
                "signer: it is not signed by the root that stands here",
            ));
        }
        Ok(self)
    }

    fn is_signed_by(&self, key: &PublicKey) -> bool {
        let Ok(parts) = Parts::from_der(&self.der) else {
            return false;
        };
        parts
            .to_be_signed
            .to_der()
            .is_ok_and(|body| key.verify(&body, parts.signature.raw_bytes()))
    }

    /// SHA-256 of the DER and of the signed bytes in it, in hex, as the transcript names them.
    pub(super) fn digests(&self) -> Option<Digests> {
        let body = Parts::from_der(&self.der)
            .ok()?
            .to_be_signed
            .to_der()
            .ok()?;
        Some(Digests {
            certificate: sha256_hex(&self.der),
            body: sha256_hex(&body),
        })
    }

    pub(super) fn made(&self, now: bool, file: &Path) -> Made {
        let (subject, not_after) = (self.subject().to_string(), self.not_after());
        Made {
            now,
            file: file.to_owned(),
            subject,
            not_after,
            sha256: sha256_hex(&self.der),
        }
    }
}

/// What the transcript knows a certificate by.
pub(super) struct Digests {
    pub(super) certificate: String,
    pub(super) body: String,
}

/// The end that the spec gives a certificate made at `now`: never beyond its root's.
pub(super) fn not_after(
    spec: &EntrySpec,
    now: Timestamp,
    root: Option<&CaCertificate>,
) -> Timestamp {
    let wanted = now.plus(spec.lifetime);
    root.map_or(wanted, |root| wanted.min(root.not_after()))
}

/// Whether a key is of the kind that a spec asks for: the same algorithm and, for RSA, the same
/// size.
pub(super) fn is_of_kind(key: &PublicKey, kind: KeyKind) -> bool {
    #[derive(Sequence)]
    struct RsaPublicKey<'a> {
        modulus: UintRef<'a>,
        exponent: UintRef<'a>,
    }
    let bits = || {
        let spki = SubjectPublicKeyInfoRef::from_der(key.spki_der()).ok()?;
        let modulus = RsaPublicKey::from_der(spki.subject_public_key.raw_bytes())
            .ok()?
            .modulus;
        u32::try_from(modulus.as_bytes().len() * 8).ok()
    };
    key.algorithm() == kind.algorithm()
        && kind
            .modulus_bits()
            .is_none_or(|wanted| bits() == Some(wanted))
}

fn timestamp(time: x509_cert::time::Time) -> Timestamp {
    Timestamp::from_seconds(i64::try_from(time.to_unix_duration().as_secs()).unwrap_or(i64::MAX))
}
