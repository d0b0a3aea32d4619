//! The to-be-signed bytes of CA certificates (RFC 5280 §4): a root that signs itself, or an issuing
//! certificate signed by it.
//!
//! Everything that stands in the certificate is a field of the template, so that the same template
//! always gives the same bytes. It signs nothing: a device does, and `assemble` puts the signature
//! behind the bytes.

use der::asn1::{Any, BitString, OctetString};
use der::oid::{AssociatedOid, ObjectIdentifier};
use der::{DateTime, Decode, Encode, Sequence};
use signers::Algorithm;
use spki::{AlgorithmIdentifierOwned, SubjectPublicKeyInfoOwned};
use x509_cert::ext::Extension;
use x509_cert::ext::pkix::{
    AuthorityKeyIdentifier, BasicConstraints, KeyUsage, KeyUsages, SubjectKeyIdentifier,
};
use x509_cert::name::Name;
use x509_cert::serial_number::SerialNumber;
use x509_cert::time::Time;

use super::subject_key;
use crate::timestamp::Timestamp;

/// One CA certificate, before it is signed.
#[derive(Clone, Debug)]
pub struct CaTemplate<'a> {
    /// Who signs: for a root the same as `subject`.
    pub issuer: &'a Name,
    /// The signer's SubjectPublicKeyInfo, DER: its key identifier becomes the AKI.
    pub issuer_key: &'a [u8],
    /// The signer's algorithm.
    pub signature: Algorithm,
    /// Whose certificate it is.
    pub subject: &'a Name,
    /// SubjectPublicKeyInfo, DER.
    pub subject_key: &'a [u8],
    /// Fresh randomness for the serial: 16 octets, of which 126 bits count.
    pub serial: [u8; 16],
    /// First second of validity.
    pub not_before: Timestamp,
    /// Last second of validity.
    pub not_after: Timestamp,
    /// How many CA certificates may stand between this one and a leaf (RFC 5280 §4.2.1.9).
    pub path_length: u8,
}

#[derive(Sequence)]
struct Tbs {
    #[asn1(context_specific = "0", tag_mode = "EXPLICIT")]
    version: u8,
    serial: SerialNumber,
    signature: AlgorithmIdentifierOwned,
    issuer: Name,
    validity: Validity,
    subject: Name,
    subject_key: SubjectPublicKeyInfoOwned,
    #[asn1(context_specific = "3", tag_mode = "EXPLICIT")]
    extensions: Vec<Extension>,
}

#[derive(Sequence)]
struct Validity {
    not_before: Time,
    not_after: Time,
}

#[derive(Sequence)]
struct Signed {
    tbs: Any,
    algorithm: AlgorithmIdentifierOwned,
    signature: BitString,
}

impl CaTemplate<'_> {
    /// The serial as it stands in the certificate: positive and of exactly 16 octets (RFC 5280
    /// §4.1.2.2).
    pub fn serial_octets(&self) -> [u8; 16] {
        positive(self.serial)
    }

    /// The exact bytes to be signed: TBSCertificate, DER.
    pub fn to_be_signed(&self) -> der::Result<Vec<u8>> {
        Tbs {
            version: 2,
            serial: SerialNumber::new(&self.serial_octets())?,
            signature: algorithm_identifier(self.signature),
            issuer: self.issuer.clone(),
            validity: Validity {
                not_before: time(self.not_before)?,
                not_after: time(self.not_after)?,
            },
            subject: self.subject.clone(),
            subject_key: SubjectPublicKeyInfoOwned::from_der(self.subject_key)?,
            extensions: vec![
                extension(
                    &BasicConstraints {
                        ca: true,
                        path_len_constraint: Some(self.path_length),
                    },
                    true,
                )?,
                extension(&KeyUsage(KeyUsages::KeyCertSign | KeyUsages::CRLSign), true)?,
                extension(
                    &SubjectKeyIdentifier(OctetString::new(key_identifier(self.subject_key)?)?),
                    false,
                )?,
                extension(
                    &AuthorityKeyIdentifier {
                        key_identifier: Some(OctetString::new(key_identifier(self.issuer_key)?)?),
                        ..AuthorityKeyIdentifier::default()
                    },
                    false,
                )?,
            ],
        }
        .to_der()
    }
}

/// The certificate, DER, from its to-be-signed bytes and the signature over them.
pub fn assemble(
    to_be_signed: &[u8],
    algorithm: Algorithm,
    signature: &[u8],
) -> der::Result<Vec<u8>> {
    Signed {
        tbs: Any::from_der(to_be_signed)?,
        algorithm: algorithm_identifier(algorithm),
        signature: BitString::from_bytes(signature)?,
    }
    .to_der()
}

/// The key identifier of a SubjectPublicKeyInfo: the same rule as for leaves.
pub fn key_identifier(spki_der: &[u8]) -> der::Result<[u8; 20]> {
    let spki = SubjectPublicKeyInfoOwned::from_der(spki_der)?;
    Ok(subject_key::key_identifier(
        spki.subject_public_key.raw_bytes(),
    ))
}

/// The first bit is the sign, the second keeps the length.
fn positive(mut serial: [u8; 16]) -> [u8; 16] {
    serial[0] = serial[0] & 0x7f | 0x40;
    serial
}

/// UTCTime through 2049, GeneralizedTime from 2050 (RFC 5280 §4.1.2.5); whole seconds.
fn time(at: Timestamp) -> der::Result<Time> {
    let seconds = u64::try_from(at.seconds()).unwrap_or(0);
    Ok(Time::from(DateTime::from_unix_duration(
        std::time::Duration::from_secs(seconds),
    )?))
}

fn extension<T: Encode + AssociatedOid>(value: &T, critical: bool) -> der::Result<Extension> {
    Ok(Extension {
        extn_id: T::OID,
        critical,
        extn_value: OctetString::new(value.to_der()?)?,
    })
}

/// The AlgorithmIdentifier of a signature: ECDSA's carry no parameters (RFC 5758 §3.2), RSA's a
/// NULL (RFC 4055 §5).
pub fn algorithm_identifier(algorithm: Algorithm) -> AlgorithmIdentifierOwned {
    let (oid, parameters) = match algorithm {
        Algorithm::EcdsaP256Sha256 => (ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.2"), None),
        Algorithm::EcdsaP384Sha384 => (ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.3"), None),
        Algorithm::RsaPkcs1Sha256 => (
            ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.11"),
            Some(Any::null()),
        ),
    };
    AlgorithmIdentifierOwned { oid, parameters }
}

#[cfg(test)]
mod tests {
    use std::str::FromStr;

    use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
    use aws_lc_rs::rand::SystemRandom;
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair};
    use x509_cert::Certificate;

    use super::*;

    fn key() -> (EcdsaKeyPair, Vec<u8>) {
        let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).unwrap();
        let spki: PublicKeyX509Der<'_> = key.public_key().as_der().unwrap();
        let spki = spki.as_ref().to_vec();
        (key, spki)
    }

    fn certificate(template: &CaTemplate<'_>, signer: &EcdsaKeyPair) -> Vec<u8> {
        let tbs = template.to_be_signed().unwrap();
        let signature = signer.sign(&SystemRandom::new(), &tbs).unwrap();
        assemble(&tbs, template.signature, signature.as_ref()).unwrap()
    }

    fn pem(der: &[u8]) -> String {
        use der::EncodePem;
        Certificate::from_der(der)
            .unwrap()
            .to_pem(der::pem::LineEnding::LF)
            .unwrap()
    }

    /// A root to 2060 and an issuing certificate to 2049, with the issuing key's
    /// SubjectPublicKeyInfo.
    fn pair() -> (Vec<u8>, Vec<u8>, Vec<u8>) {
        let (root_key, root_spki) = key();
        let (_, spki) = key();
        let root_name = Name::from_str("CN=Root,O=Test").unwrap();
        let name = Name::from_str("CN=Issuing,O=Test").unwrap();
        let not_before = Timestamp::parse_rfc3339("2026-01-01T00:00:00Z").unwrap();
        let root = CaTemplate {
            issuer: &root_name,
            issuer_key: &root_spki,
            signature: Algorithm::EcdsaP256Sha256,
            subject: &root_name,
            subject_key: &root_spki,
            serial: [0xff; 16],
            not_before,
            not_after: Timestamp::parse_rfc3339("2060-01-01T00:00:00Z").unwrap(),
            path_length: 1,
        };
        let issuing = CaTemplate {
            subject: &name,
            subject_key: &spki,
            serial: [0; 16],
            not_after: Timestamp::parse_rfc3339("2049-12-31T23:59:59Z").unwrap(),
            path_length: 0,
            ..root.clone()
        };
        (
            certificate(&root, &root_key),
            certificate(&issuing, &root_key),
            spki,
        )
    }

    #[test]
    fn an_issuing_certificate_has_the_profile_of_the_contract() {
        let (root, issuing, spki) = pair();
        let certificate = Certificate::from_der(&issuing).unwrap();
        let tbs = certificate.tbs_certificate();
        let (critical, constraints) = tbs.get_extension::<BasicConstraints>().unwrap().unwrap();
        assert!(critical && constraints.ca && constraints.path_len_constraint == Some(0));
        let (critical, usage) = tbs.get_extension::<KeyUsage>().unwrap().unwrap();
        assert!(critical && usage.0 == KeyUsages::KeyCertSign | KeyUsages::CRLSign);
        let (critical, ski) = tbs
            .get_extension::<SubjectKeyIdentifier>()
            .unwrap()
            .unwrap();
        assert!(!critical && ski.0.as_bytes() == key_identifier(&spki).unwrap());
        let (_, aki) = tbs
            .get_extension::<AuthorityKeyIdentifier>()
            .unwrap()
            .unwrap();
        let root = Certificate::from_der(&root).unwrap();
        let (_, root_ski) = root
            .tbs_certificate()
            .get_extension::<SubjectKeyIdentifier>()
            .unwrap()
            .unwrap();
        assert_eq!(aki.key_identifier.unwrap(), root_ski.0);
        assert_eq!(tbs.issuer(), root.tbs_certificate().subject());
        assert_eq!(tbs.subject().to_string(), "CN=Issuing,O=Test");
    }

    #[test]
    fn a_serial_is_positive_and_has_sixteen_octets_whatever_the_randomness() {
        let (root, issuing, _) = pair();
        for der in [root, issuing] {
            let certificate = Certificate::from_der(&der).unwrap();
            let serial = certificate.tbs_certificate().serial_number().as_bytes();
            assert!(serial.len() == 16 && serial[0] & 0x80 == 0, "{serial:02x?}");
        }
    }

    #[test]
    fn dates_through_2049_are_utc_time_and_later_ones_generalized() {
        let (root, issuing, _) = pair();
        let end = |der: &[u8]| {
            Certificate::from_der(der)
                .unwrap()
                .tbs_certificate()
                .validity()
                .not_after
        };
        assert!(matches!(end(&issuing), Time::UtcTime(_)));
        assert!(matches!(end(&root), Time::GeneralTime(_)));
    }

    #[test]
    fn openssl_verifies_the_chain_with_its_strict_rules() {
        let (root, issuing, _) = pair();
        let directory = tempfile::tempdir().unwrap();
        let (root_file, issuing_file) = (
            directory.path().join("root.pem"),
            directory.path().join("issuing.pem"),
        );
        std::fs::write(&root_file, pem(&root)).unwrap();
        std::fs::write(&issuing_file, pem(&issuing)).unwrap();
        let output = std::process::Command::new("openssl")
            .args(["verify", "-x509_strict", "-check_ss_sig", "-CAfile"])
            .args([&root_file, &issuing_file])
            .output()
            .expect("openssl is installed by ./run-tests");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}
