//! An issuer's certificates: the chain from the issuing certificate upwards, and the roots that end it (RFC 5280 §6, as far as a CA must
//! check its own). Holds what a template and an answer need of them.

use std::time::Duration;

use der::{Decode, Encode};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use signers::PublicKey;
use x509_cert::Certificate;
use x509_cert::ext::pkix::{BasicConstraints, KeyUsage, SubjectKeyIdentifier};
use x509_cert::name::Name;

use super::subject_key::{SubjectKey, key_identifier};
use super::{pem, timestamp};
use crate::timestamp::Timestamp;

/// One issuer: its chain, issuing certificate first and root left out, and the roots that the chain leads to.
#[derive(Debug)]
pub struct IssuerChain {
    id: String,
    chain: Vec<Vec<u8>>,
    roots: Vec<Vec<u8>>,
    intermediates: Vec<Vec<u8>>,
    intermediates_pem: Vec<String>,
    subject: Vec<u8>,
    key_identifier: Vec<u8>,
    public_key: PublicKey,
    begins: Timestamp,
    ends: Timestamp,
    issuing_ends: Timestamp,
    root_ends: Timestamp,
}

/// No shorter than the longest time limit that a call may be given.
const LAST_MINUTE: Duration = Duration::from_secs(60);

/// Why certificates are not an issuer's; one sentence for the operator.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct BadChain(String);

fn bad(why: impl std::fmt::Display) -> BadChain {
    BadChain(why.to_string())
}

impl IssuerChain {
    /// Reads and checks an issuer's PEM files. A self-signed issuer stands in both.
    pub fn parse(id: &str, chain_pem: &[u8], roots_pem: &[u8]) -> Result<Self, BadChain> {
        let chain = read_all(chain_pem).map_err(|error| bad(format_args!("chain: {error}")))?;
        let roots = read_all(roots_pem).map_err(|error| bad(format_args!("roots: {error}")))?;
        let issuing = &chain[0];
        for root in &roots {
            check_signed_by(root, root).map_err(|_| bad(format_args!("roots: {} is not self-signed", root.subject())))?;
        }
        for (at, certificate) in chain.iter().enumerate() {
            certificate.check_ca(at)?;
            if let Some(next) = chain.get(at + 1) {
                check_signed_by(certificate, next)?;
            }
        }
        let last = chain.last().expect("read_all refuses an empty file");
        let anchors: Vec<&Read> = roots.iter().filter(|root| check_signed_by(last, root).is_ok()).collect();
        if anchors.is_empty() {
            return Err(bad(format_args!("the chain ends at {}, which no certificate of the roots has signed", last.subject())));
        }
        // A root may close the chain file; it is not sent between leaf and roots.
        let sent: Vec<&Read> = chain.iter().filter(|one| !roots.iter().any(|root| root.der == one.der)).collect();
        for anchor in &anchors {
            anchor.check_ca(sent.len())?;
        }
        let root_ends = anchors.iter().map(|root| root.ends).max().expect("not empty");
        let root_begins = anchors.iter().map(|root| root.begins).min().expect("not empty");
        let begins = chain.iter().map(|one| one.begins).max().expect("not empty").max(root_begins);
        let ends = chain.iter().map(|one| one.ends).min().expect("not empty").min(root_ends);
        Ok(Self {
            id: id.to_owned(),
            subject: issuing.parsed.tbs_certificate().subject().to_der().map_err(bad)?,
            key_identifier: issuing.key_identifier()?,
            public_key: PublicKey::from_spki_der(issuing.key.spki())
                .map_err(|error| bad(format_args!("{}: {error}", issuing.subject())))?,
            intermediates: sent.iter().map(|one| one.der.clone()).collect(),
            intermediates_pem: sent.iter().map(|one| pem::certificate(&one.der)).collect(),
            begins,
            ends,
            issuing_ends: issuing.ends,
            root_ends,
            roots: roots.iter().map(|one| one.der.clone()).collect(),
            chain: chain.iter().map(|one| one.der.clone()).collect(),
        })
    }

    /// The issuer's id in config, ledger and CertSigner.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// All certificates of the chain file, DER, issuing certificate first.
    pub fn chain(&self) -> &[Vec<u8>] {
        &self.chain
    }

    /// The roots, DER.
    pub fn roots(&self) -> &[Vec<u8>] {
        &self.roots
    }

    /// What stands between leaf and roots, DER: the chain without any root.
    pub fn intermediates(&self) -> &[Vec<u8>] {
        &self.intermediates
    }

    /// The same for an answer: one PEM certificate a string, each ending in a newline.
    pub fn intermediates_pem(&self) -> &[String] {
        &self.intermediates_pem
    }

    /// Subject of the issuing certificate, DER `Name`: the `issuer` of what it signs.
    pub fn subject(&self) -> &[u8] {
        &self.subject
    }

    /// The same for people (RFC 4514), such as `CN=Mesh Issuing,O=Example`.
    pub fn subject_text(&self) -> String {
        Name::from_der(&self.subject).map(|name| name.to_string()).unwrap_or_default()
    }

    /// Its subject key identifier: the AKI of what it signs.
    pub fn key_identifier(&self) -> &[u8] {
        &self.key_identifier
    }

    /// Its public key.
    pub fn public_key(&self) -> &PublicKey {
        &self.public_key
    }

    /// The first instant at which the whole chain is valid.
    pub fn begins(&self) -> Timestamp {
        self.begins
    }

    /// The last instant at which the whole chain, root included, is valid. No certificate may outlive it.
    pub fn ends(&self) -> Timestamp {
        self.ends
    }

    /// Whether it may be asked for a signature at `now`. Not in its last minute: the longest call would be recorded after its end.
    pub fn may_sign_at(&self, now: Timestamp) -> bool {
        self.begins <= now && now.plus(LAST_MINUTE) <= self.ends
    }

    /// NotAfter of the issuing certificate, for the metric dashboards know.
    pub fn issuing_ends(&self) -> Timestamp {
        self.issuing_ends
    }

    /// The latest NotAfter among the roots that this chain leads to.
    pub fn root_ends(&self) -> Timestamp {
        self.root_ends
    }
}

/// A certificate with what was read of it.
struct Read {
    der: Vec<u8>,
    parsed: Certificate,
    key: SubjectKey,
    begins: Timestamp,
    ends: Timestamp,
}

fn read_all(pem: &[u8]) -> Result<Vec<Read>, BadChain> {
    let mut read = Vec::new();
    for der in CertificateDer::pem_slice_iter(pem) {
        let der = der.map_err(|error| bad(format_args!("not PEM: {error:?}")))?;
        read.push(Read::new(&der)?);
    }
    if read.is_empty() { Err(bad("no PEM certificate in it")) } else { Ok(read) }
}

impl Read {
    fn new(der: &[u8]) -> Result<Self, BadChain> {
        let parsed = Certificate::from_der(der).map_err(|error| bad(format_args!("not a certificate: {error}")))?;
        let tbs = parsed.tbs_certificate();
        let spki = tbs.subject_public_key_info().to_der().map_err(bad)?;
        let key = SubjectKey::from_spki(&spki).map_err(|error| bad(format_args!("{}: {error}", tbs.subject())))?;
        let (begins, ends) = (timestamp(tbs.validity().not_before), timestamp(tbs.validity().not_after));
        Ok(Self { der: der.to_vec(), key, begins, ends, parsed })
    }

    fn subject(&self) -> String {
        self.parsed.tbs_certificate().subject().to_string()
    }

    /// An extension; one that is there and cannot be read is an error, never absent.
    fn extension<'a, T: Decode<'a> + const_oid::AssociatedOid>(&'a self) -> Result<Option<T>, BadChain> {
        let found = self.parsed.tbs_certificate().get_extension::<T>();
        let found = found.map_err(|_| bad(format_args!("{}: extension {} cannot be read", self.subject(), T::OID)))?;
        Ok(found.map(|(_, value)| value))
    }

    /// The identifier it carries, else the one that we would have given it (RFC 5280 §4.2.1.2).
    fn key_identifier(&self) -> Result<Vec<u8>, BadChain> {
        let own = self.extension::<SubjectKeyIdentifier>()?.map(|id| id.0.as_bytes().to_vec());
        Ok(own.unwrap_or_else(|| key_identifier(self.key.bits()).to_vec()))
    }

    /// It may sign certificates, with `below` CA certificates between it and the leaf (RFC 5280 §4.2.1.9, §4.2.1.3).
    fn check_ca(&self, below: usize) -> Result<(), BadChain> {
        let constraints = self.extension::<BasicConstraints>()?;
        if !constraints.as_ref().is_some_and(|constraints| constraints.ca) {
            return Err(bad(format_args!("{} is not a CA certificate", self.subject())));
        }
        if constraints.and_then(|constraints| constraints.path_len_constraint).is_some_and(|length| usize::from(length) < below) {
            return Err(bad(format_args!("{}: its path length does not allow {below} CA certificates below it", self.subject())));
        }
        if self.extension::<KeyUsage>()?.is_some_and(|usage| !usage.key_cert_sign()) {
            return Err(bad(format_args!("{}: its key usage does not include keyCertSign", self.subject())));
        }
        Ok(())
    }
}

/// `issuer` has signed `certificate`, by name and by key.
fn check_signed_by(certificate: &Read, issuer: &Read) -> Result<(), BadChain> {
    let unsigned = || bad(format_args!("{} is not signed by {}", certificate.subject(), issuer.subject()));
    let tbs = certificate.parsed.tbs_certificate();
    if tbs.issuer() != issuer.parsed.tbs_certificate().subject() {
        return Err(unsigned());
    }
    let signed = tbs.to_der().map_err(|_| unsigned())?;
    let signature = certificate.parsed.signature().as_bytes().ok_or_else(unsigned)?;
    issuer.key.verify(certificate.parsed.signature_algorithm().oid, &signed, signature).map_err(|_| unsigned())
}
