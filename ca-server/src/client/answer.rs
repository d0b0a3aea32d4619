//! Verifies what a CA answered, as strictly as the strictest agent: the shape of the chain
//! (contract §1), our own key in the leaf, a path to roots that we had before the call, and the
//! identity that we expected.

use der::{Decode, Encode};
use rustls_pki_types::CertificateDer;
use x509_cert::Certificate;
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;

use crate::spiffe::SpiffeId;
use crate::timestamp::Timestamp;
use crate::x509::path::{self, Anchors, Usage};
use crate::x509::{self, pem};

/// Roots that the caller trusted before it asked.
#[derive(Clone, Debug)]
pub struct Roots {
    anchors: Anchors,
    pem: String,
}

impl Roots {
    /// Reads one or more root certificates.
    pub fn from_pem(pem: &str) -> Result<Self, RootsError> {
        let blocks =
            pem::certificates(pem.as_bytes()).map_err(|error| RootsError(error.to_string()))?;
        for block in &blocks {
            Anchors::new([block.der.as_slice()]).map_err(|_| {
                RootsError(format!(
                    "line {}: TLS libraries cannot use it as a trust anchor",
                    block.line
                ))
            })?;
        }
        let anchors = Anchors::new(blocks.iter().map(|block| block.der.as_slice()))
            .map_err(|error| RootsError(error.to_string()))?;
        Ok(Self {
            anchors,
            pem: pem.to_owned(),
        })
    }

    /// The PEM they were read from.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    pub(super) fn anchors(&self) -> &Anchors {
        &self.anchors
    }
}

/// A file of roots that holds none, or something else.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct RootsError(String);

/// What the certificate must say.
#[derive(Clone, Debug)]
pub enum Expected {
    /// Exactly this identity.
    Identity(SpiffeId),
    /// This namespace and account, in whatever trust domain the CA has.
    Account(crate::spiffe::ServiceAccount),
    /// Some SPIFFE identity: the credential does not tell which.
    Any,
}

/// A verified certificate.
#[derive(Clone, Debug)]
pub struct Issued {
    /// The one URI SAN.
    pub identity: SpiffeId,
    /// Serial, lower-case hex.
    pub serial: String,
    /// First second of validity.
    pub not_before: Timestamp,
    /// Last second of validity.
    pub not_after: Timestamp,
    /// Leaf first, then the intermediates, each as PEM.
    pub chain: Vec<String>,
}

/// The answer is not what it should be; one sentence.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the CA's answer does not hold: {0}")]
pub struct AnswerError(String);

fn wrong(what: impl std::fmt::Display) -> AnswerError {
    AnswerError(what.to_string())
}

impl Issued {
    /// Verifies an answer at `now`.
    pub fn verify(
        answer: &[String],
        roots: &Roots,
        spki_der: &[u8],
        expected: &Expected,
        now: Timestamp,
    ) -> Result<Self, AnswerError> {
        let [leaf_pem, intermediates_pem @ .., roots_pem] = answer else {
            return Err(wrong("it has fewer than two elements"));
        };
        let leaf_der = single(leaf_pem)?;
        let intermediates = intermediates_pem
            .iter()
            .map(|pem| single(pem))
            .collect::<Result<Vec<_>, _>>()?;
        let answered = certificates(roots_pem)?;
        // An agent takes the last element for its roots: an intermediate there would silently
        // become its trust anchor.
        if answered.is_empty() || !answered.iter().all(is_self_issued) {
            return Err(wrong(
                "its last element does not hold roots, and nothing but roots",
            ));
        }
        let leaf = Certificate::from_der(&leaf_der)
            .map_err(|error| wrong(format!("the leaf: {error}")))?;
        let tbs = leaf.tbs_certificate();
        if tbs.subject_public_key_info().to_der().ok().as_deref() != Some(spki_der) {
            return Err(wrong("the leaf is not for our key"));
        }
        verify_path(&leaf_der, &intermediates, roots, now)?;
        let identity = expected.identity_of(&leaf_der)?;
        let validity = tbs.validity();
        Ok(Self {
            identity,
            serial: hex::encode(tbs.serial_number().as_bytes()),
            not_before: x509::timestamp(validity.not_before),
            not_after: x509::timestamp(validity.not_after),
            chain: answer[..answer.len() - 1].to_vec(),
        })
    }
}

impl Expected {
    fn identity_of(&self, leaf_der: &[u8]) -> Result<SpiffeId, AnswerError> {
        let found = identities(leaf_der).map_err(wrong)?;
        let [identity] = found.as_slice() else {
            return Err(wrong("the leaf has not exactly one SPIFFE identity"));
        };
        let right = match self {
            Self::Identity(expected) => identity == expected,
            Self::Account(account) => identity.account() == account,
            Self::Any => true,
        };
        if right {
            Ok(identity.clone())
        } else {
            Err(wrong(format!(
                "the leaf is for {identity}, which was not asked for"
            )))
        }
    }
}

/// The SPIFFE identities of a certificate; any other name in its SAN is an error.
pub fn identities(der: &[u8]) -> Result<Vec<SpiffeId>, NameError> {
    let certificate = Certificate::from_der(der).map_err(|error| NameError(error.to_string()))?;
    let san = certificate
        .tbs_certificate()
        .get_extension::<SubjectAltName>()
        .map_err(|error| NameError(error.to_string()))?;
    let Some((_, SubjectAltName(names))) = san else {
        return Ok(Vec::new());
    };
    names
        .iter()
        .map(|name| match name {
            GeneralName::UniformResourceIdentifier(uri) => SpiffeId::parse(uri.as_str())
                .ok_or_else(|| NameError(format!("{uri:?} is not an identity"))),
            other => Err(NameError(format!("{other:?} is no URI"))),
        })
        .collect()
}

/// A certificate's names are not SPIFFE identities.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the certificate's names: {0}")]
pub struct NameError(String);

/// A path from the leaf to our roots, valid now, for a TLS client (RFC 5280 §6). Agents check the
/// server's use of it likewise.
fn verify_path(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    roots: &Roots,
    now: Timestamp,
) -> Result<(), AnswerError> {
    path::verify(leaf, intermediates, &roots.anchors, Usage::Client, now)
        .map_err(|error| wrong(format!("the leaf does not chain to our roots: {error}")))
}

fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, AnswerError> {
    if !pem.ends_with('\n') {
        return Err(wrong("an element does not end in a newline"));
    }
    let blocks = pem::certificates(pem.as_bytes()).map_err(wrong)?;
    Ok(blocks
        .into_iter()
        .map(|block| CertificateDer::from(block.der))
        .collect())
}

fn is_self_issued(der: &CertificateDer<'static>) -> bool {
    x509::certificate::Certificate::read(der).is_ok_and(|root| root.is_self_issued())
}

fn single(pem: &str) -> Result<CertificateDer<'static>, AnswerError> {
    match certificates(pem)?.as_slice() {
        [one] => Ok(one.clone()),
        several => Err(wrong(format!(
            "an element before the last holds {} certificates instead of one",
            several.len()
        ))),
    }
}
