//! The exact to-be-signed bytes of a certificate (RFC 5280 §4.1), written from a grant and a public
//! key for one issuer.
//!
//! `write` is the template: everything but serial, key and SAN comes from the grant.
//! `Draft::complete` is the only way to a `Certificate`: it verifies the signature with the
//! issuer's public key.

use std::net::IpAddr;
use std::sync::Arc;

use const_oid::ObjectIdentifier;
use const_oid::db::rfc5280::{
    ID_CE_AUTHORITY_KEY_IDENTIFIER, ID_CE_BASIC_CONSTRAINTS, ID_CE_EXT_KEY_USAGE, ID_CE_KEY_USAGE,
    ID_CE_SUBJECT_ALT_NAME, ID_CE_SUBJECT_KEY_IDENTIFIER, ID_KP_CLIENT_AUTH, ID_KP_SERVER_AUTH,
};
use const_oid::db::rfc5912::{ECDSA_WITH_SHA_256, ECDSA_WITH_SHA_384, SHA_256_WITH_RSA_ENCRYPTION};
use der::asn1::AnyRef;
use der::{Encode, Tag};
use signers::{Algorithm, Purpose};
use spki::AlgorithmIdentifierRef;

use super::encode::{context, sequence, time, tlv};
use super::serial::Serial;
use super::subject_key::{KeyKind, SubjectKey, key_identifier};
use crate::digest::sha256;
use crate::policy::grant::{Grant, ServingName, Subject};
use crate::spiffe::SpiffeId;
use crate::timestamp::{Period, Timestamp};
use crate::x509::chain::IssuerChain;

/// The number of this template, by which signers name what they take. Another list of fields, or
/// another form of one, is another number: a signer that runs by itself is upgraded first and takes
/// both meanwhile.
pub const VERSION: u16 = 1;

/// Fresh randomness for one serial.
#[derive(Clone, Copy, Debug)]
pub struct SerialRandom(pub [u8; 11]);

/// The to-be-signed bytes of one certificate for one issuer, not yet recorded.
#[derive(Clone, Debug)]
pub struct Draft {
    grant: Grant,
    key: SubjectKey,
    serial: Serial,
    to_be_signed: Vec<u8>,
}

impl Draft {
    /// Writes the to-be-signed bytes.
    pub fn new(
        grant: Grant,
        key: SubjectKey,
        period: Period,
        now: Timestamp,
        random: SerialRandom,
    ) -> Self {
        let serial = Serial::new(period, now, random.0);
        let to_be_signed = write(&grant, &key, &serial);
        Self {
            grant,
            key,
            serial,
            to_be_signed,
        }
    }

    /// The same certificate with another serial, for a period that the ledger has moved to.
    pub fn again(self, period: Period, now: Timestamp, random: SerialRandom) -> Self {
        Self::new(self.grant, self.key, period, now, random)
    }

    /// For the same key by another grant, with another serial.
    pub fn under(self, grant: Grant, period: Period, now: Timestamp, random: SerialRandom) -> Self {
        Self::new(grant, self.key, period, now, random)
    }

    /// What it was written from.
    pub fn grant(&self) -> &Grant {
        &self.grant
    }

    /// What the signature is for.
    pub fn purpose(&self) -> Purpose {
        match self.grant.subject() {
            Subject::Workload(_) => Purpose::Leaf,
            Subject::Serving(_) => Purpose::Serving,
        }
    }

    /// Its serial number.
    pub fn serial(&self) -> &Serial {
        &self.serial
    }

    /// The SPIFFE identity it names; none in a serving certificate.
    pub fn identity(&self) -> Option<&SpiffeId> {
        match self.grant.subject() {
            Subject::Workload(identity) => Some(identity),
            Subject::Serving(_) => None,
        }
    }

    /// The issuer's id.
    pub fn issuer_id(&self) -> &str {
        self.grant.issuer().id()
    }

    /// The issuer's certificates.
    pub fn issuer(&self) -> &Arc<IssuerChain> {
        self.grant.issuer()
    }

    /// First and last second of validity.
    pub fn validity(&self) -> (Timestamp, Timestamp) {
        (self.grant.not_before(), self.grant.not_after())
    }

    /// SHA-256 of the profile.
    pub fn profile(&self) -> &[u8; 32] {
        self.grant.profile()
    }

    /// The bytes that the issuer's key is to sign.
    pub fn to_be_signed(&self) -> &[u8] {
        &self.to_be_signed
    }

    /// Puts the certificate together, if the issuer's public key verifies the signature.
    pub fn complete(&self, signature: Vec<u8>) -> Result<Certificate, BadSignature> {
        let key = self.grant.issuer().public_key();
        if !key.verify(&self.to_be_signed, &signature) {
            return Err(BadSignature);
        }
        let mut bits = vec![0];
        bits.extend_from_slice(&signature);
        let der = sequence(&[
            &self.to_be_signed,
            &signature_algorithm(key.algorithm()),
            &tlv(Tag::BitString, &[&bits]),
        ]);
        Ok(Certificate {
            der,
            signature,
            to_be_signed: self.to_be_signed.clone(),
        })
    }
}

/// What came back from the device is no signature of the issuer over the draft.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the signature does not verify with the issuer's public key")]
pub struct BadSignature;

/// A finished certificate, verified with its issuer's public key. `Draft::complete` is its only
/// maker.
#[derive(Clone, Debug)]
pub struct Certificate {
    der: Vec<u8>,
    signature: Vec<u8>,
    to_be_signed: Vec<u8>,
}

impl Certificate {
    /// The certificate, DER.
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// The signature alone, as X.509 encodes it.
    pub fn signature(&self) -> &[u8] {
        &self.signature
    }

    /// What was signed.
    pub fn to_be_signed(&self) -> &[u8] {
        &self.to_be_signed
    }

    /// SHA-256 of the DER.
    pub fn sha256(&self) -> [u8; 32] {
        sha256(&self.der)
    }
}

/// The AlgorithmIdentifier of an issuer's signatures, DER (RFC 5758 §3.2: no parameters for ECDSA;
/// RFC 4055 §5: NULL for RSA).
pub fn signature_algorithm(algorithm: Algorithm) -> Vec<u8> {
    let (oid, parameters) = match algorithm {
        Algorithm::EcdsaP256Sha256 => (ECDSA_WITH_SHA_256, None),
        Algorithm::EcdsaP384Sha384 => (ECDSA_WITH_SHA_384, None),
        Algorithm::RsaPkcs1Sha256 => (SHA_256_WITH_RSA_ENCRYPTION, Some(AnyRef::NULL)),
    };
    AlgorithmIdentifierRef { oid, parameters }
        .to_der()
        .expect("two short fields always encode")
}

/// TBSCertificate (RFC 5280 §4.1), field by field in its order.
fn write(grant: &Grant, key: &SubjectKey, serial: &Serial) -> Vec<u8> {
    let version_3 = context(0, true, &tlv(Tag::Integer, &[&[2]]));
    let validity = sequence(&[&time(grant.not_before()), &time(grant.not_after())]);
    let empty_subject = sequence(&[]);
    let extensions = context(3, true, &extensions(grant, key));
    sequence(&[
        &version_3,
        &tlv(Tag::Integer, &[serial.as_bytes()]),
        &signature_algorithm(grant.issuer().public_key().algorithm()),
        grant.issuer().subject(),
        &validity,
        &empty_subject,
        key.spki(),
        &extensions,
    ])
}

fn extensions(grant: &Grant, key: &SubjectKey) -> Vec<u8> {
    // KeyUsage (RFC 5280 §4.2.1.3): digitalSignature is bit 0, keyEncipherment bit 2; unused low
    // bits first.
    let key_usage: &[u8] = match key.kind() {
        KeyKind::Rsa(_) => &[5, 0b1010_0000],
        KeyKind::P256 | KeyKind::P384 | KeyKind::Ed25519 => &[7, 0b1000_0000],
    };
    let purposes = [ID_KP_SERVER_AUTH, ID_KP_CLIENT_AUTH]
        .map(|oid| tlv(Tag::ObjectIdentifier, &[oid.as_bytes()]));
    sequence(&[
        &extension(ID_CE_KEY_USAGE, true, &tlv(Tag::BitString, &[key_usage])),
        &extension(
            ID_CE_EXT_KEY_USAGE,
            false,
            &sequence(&[&purposes[0], &purposes[1]]),
        ),
        &extension(ID_CE_BASIC_CONSTRAINTS, true, &sequence(&[])),
        &extension(
            ID_CE_SUBJECT_KEY_IDENTIFIER,
            false,
            &tlv(Tag::OctetString, &[&key_identifier(key.bits())]),
        ),
        &extension(
            ID_CE_AUTHORITY_KEY_IDENTIFIER,
            false,
            &sequence(&[&context(0, false, grant.issuer().key_identifier())]),
        ),
        &extension(
            ID_CE_SUBJECT_ALT_NAME,
            true,
            &subject_alt_name(grant.subject()),
        ),
    ])
}

/// One Extension; `critical` is written only when true (DER omits defaults).
fn extension(oid: ObjectIdentifier, critical: bool, value: &[u8]) -> Vec<u8> {
    let oid = tlv(Tag::ObjectIdentifier, &[oid.as_bytes()]);
    let critical = if critical {
        tlv(Tag::Boolean, &[&[0xff]])
    } else {
        Vec::new()
    };
    sequence(&[&oid, &critical, &tlv(Tag::OctetString, &[value])])
}

/// GeneralNames (RFC 5280 §4.2.1.6): dNSName [2], uniformResourceIdentifier [6], iPAddress [7].
fn subject_alt_name(subject: &Subject) -> Vec<u8> {
    let names: Vec<Vec<u8>> = match subject {
        Subject::Workload(identity) => vec![context(6, false, identity.to_string().as_bytes())],
        Subject::Serving(names) => names
            .iter()
            .map(|name| match name {
                ServingName::Dns(name) => context(2, false, name.as_bytes()),
                ServingName::Ip(IpAddr::V4(address)) => context(7, false, &address.octets()),
                ServingName::Ip(IpAddr::V6(address)) => context(7, false, &address.octets()),
            })
            .collect(),
    };
    sequence(&names.iter().map(Vec::as_slice).collect::<Vec<_>>())
}
