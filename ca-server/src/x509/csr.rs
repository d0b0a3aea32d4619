//! Certificate signing requests (PKCS#10, RFC 2986): parsed as DER under size limits, proof of
//! possession checked. Nothing of a request but its public key reaches a certificate; the SANs are
//! kept only for strict profiles to compare.

use const_oid::ObjectIdentifier;
use const_oid::db::rfc5912::{ID_CE_SUBJECT_ALT_NAME, ID_EXTENSION_REQ};
use der::asn1::{AnyRef, BitStringRef, OctetStringRef, UintRef};
use der::{Decode, Reader, SliceReader, Tag, TagNumber, Tagged};
use spki::AlgorithmIdentifierRef;
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;

use super::pem;
use super::subject_key::{BadKey, BadSignature, KeyKind, SubjectKey};
use crate::refusal::{Reason, Refusal};

/// The largest CSR that is looked at, in bytes of PEM.
pub const MAX_PEM: usize = 64 * 1024;

/// A request whose sender holds the private key. `Csr::parse` is its only maker.
#[derive(Clone, Debug)]
pub struct Csr {
    key: SubjectKey,
    sans: Vec<San>,
}

/// A subject alternative name that a CSR asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum San {
    /// A URI.
    Uri(String),
    /// Anything else; its kind is all that a comparison with a SPIFFE ID needs.
    Other,
}

impl Csr {
    /// Reads one PEM request, checks its limits, its key and its signature.
    pub fn parse(pem: &str) -> Result<Self, Refusal> {
        let malformed = |why: &dyn std::fmt::Display| {
            Refusal::new(Reason::MalformedCsr, format_args!("malformed CSR: {why}"))
        };
        if pem.is_empty() {
            return Err(malformed(&"it is empty"));
        }
        if pem.len() > MAX_PEM {
            return Err(malformed(&format_args!(
                "{} bytes, at most {MAX_PEM} are read",
                pem.len()
            )));
        }
        let der = pem::request(pem.as_bytes()).map_err(|error| malformed(&error))?;
        let request = RawRequest::read(&der)
            .map_err(|_| malformed(&"it is no PKCS#10 request in DER (RFC 2986)"))?;
        let key = SubjectKey::from_spki(request.spki).map_err(|error| match error {
            BadKey::Malformed => malformed(&error),
            BadKey::Unsupported(_) => Refusal::new(Reason::WeakKey, error),
        })?;
        check_size(key.kind())?;
        let sans = requested_sans(request.attributes)
            .map_err(|_| malformed(&"its attributes cannot be read (RFC 2986 §4.1)"))?;
        let unproven = |why: BadSignature| {
            Refusal::new(
                Reason::ProofOfPossession,
                format_args!("CSR proof of possession failed: {why}"),
            )
        };
        // The signature does not cover its own algorithm's parameters: NULL or nothing for RSA (RFC
        // 4055 §5), nothing else (RFC 5758 §3.2).
        let null_allowed = matches!(key.kind(), KeyKind::Rsa(_));
        if request
            .algorithm
            .parameters
            .is_some_and(|parameters| !null_allowed || parameters != AnyRef::NULL)
        {
            return Err(malformed(&"its signature algorithm has parameters"));
        }
        key.verify(request.algorithm.oid, request.info, request.signature)
            .map_err(unproven)?;
        Ok(Self { key, sans })
    }

    /// The public key.
    pub fn key(&self) -> &SubjectKey {
        &self.key
    }

    /// The public key, for the certificate.
    pub fn into_key(self) -> SubjectKey {
        self.key
    }

    /// The SANs it asks for.
    pub fn sans(&self) -> &[San] {
        &self.sans
    }
}

/// The sizes that no profile can widen (contract §4); checked before the signature, so that a huge
/// key costs nothing.
fn check_size(kind: KeyKind) -> Result<(), Refusal> {
    match kind {
        KeyKind::Rsa(bits) if !(2048..=8192).contains(&bits) => Err(Refusal::new(
            Reason::WeakKey,
            format_args!("RSA key of {bits} bits, 2048 to 8192 are accepted"),
        )),
        _ => Ok(()),
    }
}

/// A request cut into its parts; `info` is exactly what was signed.
struct RawRequest<'a> {
    info: &'a [u8],
    spki: &'a [u8],
    attributes: &'a [u8],
    algorithm: AlgorithmIdentifierRef<'a>,
    signature: &'a [u8],
}

impl<'a> RawRequest<'a> {
    fn read(der: &'a [u8]) -> Result<Self, der::Error> {
        let mut reader = SliceReader::new(der)?;
        let (info, algorithm, signature) = reader.sequence(|outer| {
            Ok::<_, der::Error>((
                outer.tlv_bytes()?,
                AlgorithmIdentifierRef::decode(outer)?,
                BitStringRef::decode(outer)?,
            ))
        })?;
        reader.finish()?;
        let mut reader = SliceReader::new(info)?;
        let (spki, attributes) = reader.sequence(|inner| {
            let version = UintRef::decode(inner)?;
            if version.as_bytes() != [0] {
                return Err(inner.error(der::ErrorKind::Value { tag: Tag::Integer }));
            }
            x509_cert::name::Name::decode(inner)?;
            let spki = inner.tlv_bytes()?;
            // RFC 2986 §4.1 has the attributes always there; some old clients leave an empty set
            // out.
            let attributes = if inner.is_finished() {
                &[][..]
            } else {
                inner.tlv_bytes()?
            };
            Ok::<_, der::Error>((spki, attributes))
        })?;
        reader.finish()?;
        let signature = signature.as_bytes().ok_or_else(|| {
            der::Error::from(der::ErrorKind::Value {
                tag: Tag::BitString,
            })
        })?;
        Ok(Self {
            info,
            spki,
            attributes,
            algorithm,
            signature,
        })
    }
}

/// The SANs inside the extensionRequest attribute (RFC 2985 §5.4.2). Every other attribute and
/// extension is passed over.
fn requested_sans(attributes: &[u8]) -> Result<Vec<San>, der::Error> {
    let mut sans = Vec::new();
    if attributes.is_empty() {
        return Ok(sans);
    }
    let set = AnyRef::from_der(attributes)?;
    set.tag().assert_eq(Tag::ContextSpecific {
        constructed: true,
        number: TagNumber(0),
    })?;
    let mut set = SliceReader::new(set.value())?;
    while !set.is_finished() {
        let (oid, values) = set.sequence(|attribute| {
            Ok::<_, der::Error>((
                ObjectIdentifier::decode(attribute)?,
                AnyRef::decode(attribute)?,
            ))
        })?;
        values.tag().assert_eq(Tag::Set)?;
        if oid != ID_EXTENSION_REQ {
            continue;
        }
        let mut values = SliceReader::new(values.value())?;
        while !values.is_finished() {
            values.sequence(|extensions| {
                while !extensions.is_finished() {
                    if let Some(names) = requested_extension(extensions)? {
                        sans.extend(names);
                    }
                }
                Ok::<_, der::Error>(())
            })?;
        }
    }
    Ok(sans)
}

/// Reads one Extension; the names if it is a SubjectAltName.
fn requested_extension<'a>(reader: &mut impl Reader<'a>) -> Result<Option<Vec<San>>, der::Error> {
    let (oid, value) = reader.sequence(|extension| {
        let oid = ObjectIdentifier::decode(extension)?;
        let _critical = Option::<bool>::decode(extension)?;
        Ok::<_, der::Error>((oid, <&OctetStringRef>::decode(extension)?))
    })?;
    if oid != ID_CE_SUBJECT_ALT_NAME {
        return Ok(None);
    }
    let names = SubjectAltName::from_der(value.as_bytes())?;
    let sans = names.0.iter().map(|name| match name {
        GeneralName::UniformResourceIdentifier(uri) => San::Uri(uri.as_str().to_owned()),
        _ => San::Other,
    });
    Ok(Some(sans.collect()))
}
