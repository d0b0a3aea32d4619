//! Path validation (RFC 5280 §6) from a certificate to trust anchors, by rustls-webpki with the
//! algorithms that TLS has: what the daemon, its `request` and peers on rustls accept of a
//! certificate. Beside that library it knows constraints on URIs (RFC 5280 §4.2.1.10), which that
//! library refuses whatever they say, and anchors whose RSA key is shorter than 2048 bits. An
//! anchor is a name and a key, nothing more (RFC 5280 §6.1.1).

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use aws_lc_rs::signature::{
    RSA_PKCS1_1024_8192_SHA256_FOR_LEGACY_USE_ONLY, RSA_PKCS1_1024_8192_SHA512_FOR_LEGACY_USE_ONLY,
    RsaParameters, UnparsedPublicKey,
};
use const_oid::ObjectIdentifier;
use const_oid::db::rfc5280::ID_CE_SUBJECT_ALT_NAME;
use const_oid::db::rfc5912::RSA_ENCRYPTION;
use der::Decode;
use rustls::{CertificateError, OtherError};
use rustls_pki_types::{
    AlgorithmIdentifier, CertificateDer, InvalidSignature, SignatureVerificationAlgorithm,
    TrustAnchor, UnixTime, alg_id,
};
use spki::SubjectPublicKeyInfoRef;
use webpki::{EndEntityCert, Error, KeyUsage, VerifiedPath};

use super::certificate::{Certificate, content, elements};
use super::uri_constraint;
use crate::timestamp::Timestamp;

/// What a certificate is to be used for (RFC 5280 §4.2.1.12).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usage {
    /// As a TLS client.
    Client,
    /// As a TLS server.
    Server,
}

/// Trust anchors.
#[derive(Clone, Debug)]
pub struct Anchors {
    anchors: Vec<TrustAnchor<'static>>,
    short_keys: Vec<Vec<u8>>,
}

/// Why there is no path; a clause for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the texts say it")]
pub enum BadPath {
    #[error("it cannot be read")]
    Unreadable,
    #[error("a certificate of its chain has expired")]
    Expired,
    #[error("a certificate of its chain is not valid yet")]
    NotYetValid,
    #[error("it does not chain to a root that is trusted here")]
    UnknownIssuer,
    #[error("a signature of its chain is wrong")]
    Signature,
    #[error("a signature of its chain has an algorithm that is not accepted")]
    Algorithm,
    #[error("the name constraints of its chain do not allow its names")]
    NameConstraints,
    #[error("the extended key usages of its chain do not allow this use")]
    Usage,
    #[error("its chain has a critical extension that is not understood")]
    CriticalExtension,
    #[error("its chain has a certificate that may not sign certificates, or not so many below it")]
    NotCa,
    #[error("it is a CA certificate")]
    IsCa,
    #[error("its chain breaks a rule of RFC 5280")]
    Other,
}

impl BadPath {
    /// What decides which alert the peer sees in a handshake (RFC 8446 §6.2).
    fn in_tls(self) -> rustls::Error {
        rustls::Error::InvalidCertificate(match self {
            Self::Unreadable => CertificateError::BadEncoding,
            Self::Expired => CertificateError::Expired,
            Self::NotYetValid => CertificateError::NotValidYet,
            Self::UnknownIssuer => CertificateError::UnknownIssuer,
            Self::Signature => CertificateError::BadSignature,
            Self::Usage => CertificateError::InvalidPurpose,
            Self::CriticalExtension => CertificateError::UnhandledCriticalExtension,
            other => CertificateError::Other(OtherError(Arc::new(other))),
        })
    }
}

impl From<Error> for BadPath {
    fn from(error: Error) -> Self {
        match error {
            Error::BadDer
            | Error::BadDerTime
            | Error::TrailingData(_)
            | Error::UnsupportedCertVersion => Self::Unreadable,
            Error::CertExpired { .. } => Self::Expired,
            Error::CertNotValidYet { .. } => Self::NotYetValid,
            Error::UnknownIssuer => Self::UnknownIssuer,
            Error::InvalidSignatureForPublicKey => Self::Signature,
            Error::UnsupportedSignatureAlgorithmContext(_)
            | Error::UnsupportedSignatureAlgorithmForPublicKeyContext(_) => Self::Algorithm,
            Error::NameConstraintViolation | Error::MalformedNameConstraint => {
                Self::NameConstraints
            }
            Error::RequiredEkuNotFoundContext(_) | Error::EmptyEkuExtension => Self::Usage,
            Error::UnsupportedCriticalExtension => Self::CriticalExtension,
            Error::EndEntityUsedAsCa | Error::PathLenConstraintViolated => Self::NotCa,
            Error::CaUsedAsEndEntity => Self::IsCa,
            _ => Self::Other,
        }
    }
}

impl Anchors {
    /// Takes each root for an anchor: its own signature, its validity and its extensions but name
    /// constraints do not count (RFC 5280 §6.1.1).
    pub fn new<'a>(roots: impl IntoIterator<Item = &'a [u8]>) -> Result<Self, BadPath> {
        let mut made = Self {
            anchors: Vec::new(),
            short_keys: Vec::new(),
        };
        for root in roots {
            made.anchors
                .push(webpki::anchor_from_trusted_cert(&CertificateDer::from(root))?.to_owned());
            made.short_keys.extend(
                Certificate::read(root)
                    .ok()
                    .and_then(|root| short_key(root.spki())),
            );
        }
        Ok(made)
    }
}

/// Checks that a certificate leads to one of the anchors at that time, for that use. `others` may
/// stand between them, in any order.
pub fn verify(
    leaf: &[u8],
    others: &[CertificateDer<'_>],
    anchors: &Anchors,
    usage: Usage,
    now: Timestamp,
) -> Result<(), BadPath> {
    walk(leaf, others, anchors, usage, now, true)
}

/// `verify` as rustls asks for it in a handshake.
pub fn verify_in_tls(
    leaf: &CertificateDer<'_>,
    others: &[CertificateDer<'_>],
    anchors: &Anchors,
    usage: Usage,
    now: UnixTime,
) -> Result<(), rustls::Error> {
    let now = Timestamp::from_seconds(i64::try_from(now.as_secs()).unwrap_or(i64::MAX));
    verify(leaf, others, anchors, usage, now).map_err(BadPath::in_tls)
}

/// `verify` for a certificate that nobody has signed yet: every signature counts but its own.
pub(super) fn verify_unsigned(
    leaf: &[u8],
    others: &[CertificateDer<'_>],
    anchors: &Anchors,
    usage: Usage,
    now: Timestamp,
) -> Result<(), BadPath> {
    walk(leaf, others, anchors, usage, now, false)
}

fn walk(
    leaf: &[u8],
    others: &[CertificateDer<'_>],
    anchors: &Anchors,
    usage: Usage,
    now: Timestamp,
    is_signed: bool,
) -> Result<(), BadPath> {
    let original = Certificate::read(leaf).map_err(|_| BadPath::Unreadable)?;
    let (hidden, uris) = hide_uris(leaf).map_err(|_| BadPath::Unreadable)?;
    let read = body(&hidden).map_err(|_| BadPath::Unreadable)?;
    let algorithms: Vec<Algorithm<'_>> = algorithms()
        .iter()
        .map(|real| Algorithm {
            real: *real,
            short_keys: &anchors.short_keys,
            read,
            signed: is_signed.then_some(original.to_be_signed()),
        })
        .collect();
    let algorithms: Vec<&dyn SignatureVerificationAlgorithm> =
        algorithms.iter().map(|one| one as _).collect();
    let allows = |path: &VerifiedPath<'_>| uris_allowed(path, &uris);
    let usage = match usage {
        Usage::Client => KeyUsage::client_auth(),
        Usage::Server => KeyUsage::server_auth(),
    };
    let now = UnixTime::since_unix_epoch(Duration::from_secs(
        u64::try_from(now.seconds()).unwrap_or(0),
    ));
    let hidden = CertificateDer::from(hidden.as_slice());
    let end = EndEntityCert::try_from(&hidden)?;
    end.verify_for_usage(
        &algorithms,
        &anchors.anchors,
        others,
        now,
        usage,
        None,
        Some(&allows),
    )
    .map(drop)
    .map_err(BadPath::from)
}

/// The octets of a certificate that its issuer signs.
fn body(certificate: &[u8]) -> Result<&[u8], der::Error> {
    Ok(elements(content(certificate)?)?
        .first()
        .copied()
        .unwrap_or_default())
}

/// The certificate with each URI of its names under the tag of a registeredID, for which nothing is
/// constrained, and the URIs. The library refuses a URI wherever a URI is constrained; so it does
/// not see ours, and `uris_allowed` looks at them instead.
fn hide_uris(leaf: &[u8]) -> Result<(Vec<u8>, Vec<String>), der::Error> {
    const URI: u8 = 0x86;
    const REGISTERED_ID: u8 = 0x88;
    let (mut hidden, mut uris) = (leaf.to_vec(), Vec::new());
    let fields = elements(content(body(leaf)?)?)?;
    let Some(extensions) = fields.iter().find(|field| field.first() == Some(&0xa3)) else {
        return Ok((hidden, uris));
    };
    for extension in elements(content(content(extensions)?)?)? {
        let parts = elements(content(extension)?)?;
        let (Some(oid), Some(value)) = (parts.first(), parts.last()) else {
            continue;
        };
        if ObjectIdentifier::from_der(oid)? != ID_CE_SUBJECT_ALT_NAME {
            continue;
        }
        for name in elements(content(content(value)?)?)? {
            if name.first() == Some(&URI) {
                hidden[name.as_ptr().addr() - leaf.as_ptr().addr()] = REGISTERED_ID;
                uris.push(String::from_utf8_lossy(content(name)?).into_owned());
            }
        }
    }
    Ok((hidden, uris))
}

fn uris_allowed(path: &VerifiedPath<'_>, uris: &[String]) -> Result<(), Error> {
    let mut constraints = Vec::new();
    for authority in path.intermediate_certificates() {
        let authority = Certificate::read(&authority.der()).map_err(|_| Error::BadDer)?;
        constraints
            .extend(uri_constraint::of(&authority).map_err(|_| Error::MalformedNameConstraint)?);
    }
    if let Some(of_anchor) = &path.anchor().name_constraints {
        constraints.push(
            uri_constraint::Constraint::read(of_anchor.as_ref())
                .map_err(|_| Error::MalformedNameConstraint)?,
        );
    }
    let allowed = uris
        .iter()
        .all(|uri| constraints.iter().all(|constraint| constraint.allows(uri)));
    if allowed {
        Ok(())
    } else {
        Err(Error::NameConstraintViolation)
    }
}

/// What TLS verifies with here; nothing in it is SHA-1.
fn algorithms() -> &'static [&'static dyn SignatureVerificationAlgorithm] {
    static ALL: LazyLock<&[&dyn SignatureVerificationAlgorithm]> = LazyLock::new(|| {
        rustls::crypto::aws_lc_rs::default_provider()
            .signature_verification_algorithms
            .all
    });
    *ALL
}

/// One of them for one path.
#[derive(Debug)]
struct Algorithm<'a> {
    real: &'static dyn SignatureVerificationAlgorithm,
    short_keys: &'a [Vec<u8>],
    /// The leaf's body as the library reads it.
    read: &'a [u8],
    /// The leaf's body as it was signed; `None` if nobody has signed it.
    signed: Option<&'a [u8]>,
}

impl SignatureVerificationAlgorithm for Algorithm<'_> {
    fn verify_signature(
        &self,
        key: &[u8],
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), InvalidSignature> {
        let message = match self.signed {
            _ if message != self.read => message,
            Some(signed) => signed,
            None => return Ok(()),
        };
        self.real
            .verify_signature(key, message, signature)
            .or_else(|invalid| {
                let short = self
                    .short_keys
                    .iter()
                    .any(|short| short == key)
                    .then(|| with_short_key(self.signature_alg_id()))
                    .flatten();
                let short = short.ok_or(invalid)?;
                UnparsedPublicKey::new(short, key)
                    .verify(message, signature)
                    .map_err(|_| InvalidSignature)
            })
    }

    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        self.real.public_key_alg_id()
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        self.real.signature_alg_id()
    }
}

/// The RSAPublicKey of a SubjectPublicKeyInfo if its modulus is shorter than the 2048 bits that TLS
/// libraries ask for.
pub(super) fn short_key(spki: &[u8]) -> Option<Vec<u8>> {
    let info = SubjectPublicKeyInfoRef::from_der(spki)
        .ok()
        .filter(|info| info.algorithm.oid == RSA_ENCRYPTION)?;
    let key = info.subject_public_key.as_bytes()?;
    let modulus = elements(content(key).ok()?)
        .ok()?
        .first()
        .copied()
        .and_then(|modulus| content(modulus).ok())?;
    let modulus = modulus.strip_prefix(&[0]).unwrap_or(modulus);
    (modulus.len() < 256).then(|| key.to_vec())
}

fn with_short_key(algorithm: AlgorithmIdentifier) -> Option<&'static RsaParameters> {
    match algorithm {
        alg_id::RSA_PKCS1_SHA256 => Some(&RSA_PKCS1_1024_8192_SHA256_FOR_LEGACY_USE_ONLY),
        alg_id::RSA_PKCS1_SHA512 => Some(&RSA_PKCS1_1024_8192_SHA512_FOR_LEGACY_USE_ONLY),
        _ => None,
    }
}

/// Checks one signature over the octets as they stand. `short_too` takes an RSA key of less than
/// 2048 bits: an anchor's.
pub(super) fn verify_signature(
    certificate: &Certificate,
    issuer_spki: &[u8],
    short_too: bool,
) -> Result<(), BadPath> {
    let parts = content(issuer_spki)
        .and_then(elements)
        .map_err(|_| BadPath::Algorithm)?;
    let [key_algorithm, _] = parts[..] else {
        return Err(BadPath::Algorithm);
    };
    let key_algorithm = content(key_algorithm).map_err(|_| BadPath::Algorithm)?;
    let info = SubjectPublicKeyInfoRef::from_der(issuer_spki).map_err(|_| BadPath::Algorithm)?;
    let key = info
        .subject_public_key
        .as_bytes()
        .ok_or(BadPath::Algorithm)?;
    let short_keys: Vec<Vec<u8>> = short_key(issuer_spki)
        .filter(|_| short_too)
        .into_iter()
        .collect();
    let fits = |one: &&&'static dyn SignatureVerificationAlgorithm| {
        one.signature_alg_id().as_ref() == certificate.signature_algorithm()
            && one.public_key_alg_id().as_ref() == key_algorithm
    };
    let real = *algorithms().iter().find(fits).ok_or(BadPath::Algorithm)?;
    let algorithm = Algorithm {
        real,
        short_keys: &short_keys,
        read: &[],
        signed: None,
    };
    algorithm
        .verify_signature(key, certificate.to_be_signed(), certificate.signature())
        .map_err(|_| BadPath::Signature)
}
