//! Our own written list of what a certificate of this CA must be: RFC 5280 for every one, the
//! SPIFFE X.509-SVID rules for a workload's. Written without the code that drafts certificates, so
//! that `audit verify` is a second opinion on it.

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA384_ASN1, ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256,
    VerificationAlgorithm,
};
use const_oid::ObjectIdentifier;
use const_oid::db::rfc5280::{
    ID_CE_AUTHORITY_KEY_IDENTIFIER, ID_CE_BASIC_CONSTRAINTS, ID_CE_EXT_KEY_USAGE, ID_CE_KEY_USAGE,
    ID_CE_SUBJECT_ALT_NAME, ID_CE_SUBJECT_KEY_IDENTIFIER, ID_KP_CLIENT_AUTH, ID_KP_SERVER_AUTH,
};
use const_oid::db::rfc5912::{ECDSA_WITH_SHA_256, ECDSA_WITH_SHA_384, SHA_256_WITH_RSA_ENCRYPTION};
use der::asn1::BitString;
use der::{Decode, Encode};
use spki::SubjectPublicKeyInfoOwned;
use x509_cert::certificate::{TbsCertificate, Version};
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::ext::pkix::{
    AuthorityKeyIdentifier, BasicConstraints, ExtendedKeyUsage, KeyUsage, SubjectAltName,
    SubjectKeyIdentifier,
};
use x509_cert::time::Time;

use super::certificate::{Certificate, content, elements};
use crate::digest::sha256;
use crate::timestamp::Timestamp;

/// A rule that a certificate breaks, with its source.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Violation(pub String);

fn broken<T>(rule: &str) -> Result<T, Violation> {
    Err(Violation(rule.to_owned()))
}

fn ensure(holds: bool, rule: &str) -> Result<(), Violation> {
    if holds { Ok(()) } else { broken(rule) }
}

/// Which rules hold beside those of RFC 5280.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rules {
    /// A workload's certificate: SPIFFE X.509-SVID.
    Svid,
    /// The daemon's own: DNS names and addresses only.
    Serving,
}

/// What an issuer's certificate says that its certificates must agree with.
pub struct Issuer {
    subject: Vec<u8>,
    key_identifier: Vec<u8>,
    key: ParsedPublicKey,
    algorithm: ObjectIdentifier,
    not_before: Timestamp,
    not_after: Timestamp,
}

impl Issuer {
    /// Reads an issuer's certificate; it must be one that may sign certificates.
    pub fn parse(der: &[u8]) -> Result<Self, Violation> {
        let unreadable = |error| Violation(format!("the issuer cannot be read: {error}"));
        let certificate = Certificate::read(der).map_err(unreadable)?;
        // RFC 5280 §4.2.1.9 asks a CA to mark it critical, and nobody to refuse one that has not.
        let constraints = certificate
            .extension::<BasicConstraints>()
            .map_err(unreadable)?;
        ensure(
            constraints.is_some_and(|(_, constraints)| constraints.ca),
            "the issuer is no CA (RFC 5280 §4.2.1.9)",
        )?;
        let usage = certificate.extension::<KeyUsage>().map_err(unreadable)?;
        let signs = usage.is_none_or(|(_, usage)| usage.key_cert_sign());
        ensure(
            signs,
            "the issuer's key may not sign certificates (RFC 5280 §4.2.1.3)",
        )?;
        let spki = SubjectPublicKeyInfoOwned::from_der(certificate.spki());
        let spki = spki.map_err(|_| Violation("the issuer's public key cannot be read".into()))?;
        let (verification, algorithm) =
            algorithm_of(spki.algorithm.oid, spki.algorithm.parameters.as_ref())?;
        let key = ParsedPublicKey::new(verification, spki.subject_public_key.raw_bytes());
        Ok(Self {
            subject: certificate.subject().to_vec(),
            // Without one, what we give to such a key ourselves (RFC 7093 §2, method 1).
            key_identifier: match certificate
                .extension::<SubjectKeyIdentifier>()
                .map_err(unreadable)?
            {
                Some((_, identifier)) => identifier.0.into_bytes().into_vec(),
                None => sha256(spki.subject_public_key.raw_bytes())[..20].to_vec(),
            },
            key: key.map_err(|_| Violation("the issuer's public key is not a legal one".into()))?,
            algorithm,
            not_before: certificate.begins(),
            not_after: certificate.ends(),
        })
    }

    /// The identifier of its key (RFC 5280 §4.2.1.2).
    pub fn key_identifier(&self) -> &[u8] {
        &self.key_identifier
    }

    /// Whether its certificate was valid at that time.
    pub fn is_valid_at(&self, now: Timestamp) -> bool {
        self.not_before <= now && now <= self.not_after
    }

    /// Whether `signature` over `to_be_signed` is this issuer's.
    pub fn verify(&self, to_be_signed: &[u8], signature: &[u8]) -> Result<(), Violation> {
        self.key
            .verify_sig(to_be_signed, signature)
            .map_err(|_| Violation("the signature is not the issuer's".into()))
    }
}

const ID_EC_PUBLIC_KEY: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const RSA_ENCRYPTION: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
const SECP256R1: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");
const SECP384R1: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.34");

type Verification = &'static dyn VerificationAlgorithm;

fn algorithm_of(
    key: ObjectIdentifier,
    parameters: Option<&der::Any>,
) -> Result<(Verification, ObjectIdentifier), Violation> {
    let curve = parameters.and_then(|parameters| parameters.decode_as::<ObjectIdentifier>().ok());
    match (key, curve) {
        (ID_EC_PUBLIC_KEY, Some(SECP256R1)) => Ok((&ECDSA_P256_SHA256_ASN1, ECDSA_WITH_SHA_256)),
        (ID_EC_PUBLIC_KEY, Some(SECP384R1)) => Ok((&ECDSA_P384_SHA384_ASN1, ECDSA_WITH_SHA_384)),
        (RSA_ENCRYPTION, _) => Ok((&RSA_PKCS1_2048_8192_SHA256, SHA_256_WITH_RSA_ENCRYPTION)),
        _ => broken("the issuer's key is of a kind that this CA does not use"),
    }
}

/// What to-be-signed bytes say that keep every rule.
#[derive(Debug)]
pub struct Examined {
    /// The serial's octets.
    pub serial: Vec<u8>,
    /// The SAN's URI, in a workload's certificate.
    pub identity: Option<String>,
}

/// The certificate of to-be-signed bytes and their signature, DER (RFC 5280 §4.1); `None` if the
/// bytes cannot be read.
pub fn certificate(to_be_signed: &[u8], signature: &[u8]) -> Option<Vec<u8>> {
    assemble(
        to_be_signed,
        &ToBeSigned::read(to_be_signed).ok()?.signature_algorithm()?,
        signature,
    )
}

/// The same, of bytes whose AlgorithmIdentifier is known.
pub fn assemble(
    to_be_signed: &[u8],
    signature_algorithm: &[u8],
    signature: &[u8],
) -> Option<Vec<u8>> {
    let signature = BitString::from_bytes(signature).ok()?.to_der().ok()?;
    let content = to_be_signed.len() + signature_algorithm.len() + signature.len();
    let length = der::Length::try_from(content).ok()?.to_der().ok()?;
    Some(
        [
            &[0x30],
            length.as_slice(),
            to_be_signed,
            signature_algorithm,
            &signature,
        ]
        .concat(),
    )
}

/// To-be-signed bytes, read once.
pub struct ToBeSigned<'a> {
    bytes: &'a [u8],
    tbs: TbsCertificate,
}

impl<'a> ToBeSigned<'a> {
    /// Reads them.
    pub fn read(bytes: &'a [u8]) -> Result<Self, Violation> {
        let tbs = TbsCertificate::from_der(bytes);
        let tbs =
            tbs.map_err(|error| Violation(format!("the to-be-signed bytes are no DER: {error}")))?;
        Ok(Self { bytes, tbs })
    }

    /// The AlgorithmIdentifier that stands in them and again after them in the certificate, DER.
    pub fn signature_algorithm(&self) -> Option<Vec<u8>> {
        self.tbs.signature().to_der().ok()
    }

    /// The key identifier by which they name their issuer (RFC 5280 §4.2.1.1).
    pub fn authority_key_identifier(&self) -> Result<Vec<u8>, Violation> {
        authority(&self.tbs)
    }

    /// The octets of the issuer's name, if all others are in DER. The name repeats its issuer's
    /// certificate (RFC 5280 §4.1.2.4), which may have been written by somebody who does not sort a
    /// set.
    fn issuer_as_written(&self) -> Option<&[u8]> {
        const ISSUER: usize = 3;
        let again = self.tbs.to_der().ok()?;
        let (written, again) = (
            content(self.bytes).and_then(elements).ok()?,
            content(&again).and_then(elements).ok()?,
        );
        let same = written.len() == again.len()
            && written
                .iter()
                .zip(&again)
                .enumerate()
                .all(|(at, (one, other))| at == ISSUER || one == other);
        written.get(ISSUER).copied().filter(|_| same)
    }

    /// Holds them against every rule.
    pub fn examine(&self, issuer: &Issuer, rules: Rules) -> Result<Examined, Violation> {
        let tbs = &self.tbs;
        ensure(
            tbs.version() == Version::V3,
            "the version is not 3 (RFC 5280 §4.1.2.1)",
        )?;
        let named = self.issuer_as_written().ok_or_else(|| {
            Violation("the to-be-signed bytes are not in DER (RFC 5280 §4.1)".into())
        })?;
        let names_it = !tbs.issuer().is_empty() && named == issuer.subject;
        ensure(
            names_it,
            "the issuer's name is not the issuer's (RFC 5280 §4.1.2.4)",
        )?;
        fields(tbs, issuer)?;
        extensions(tbs, issuer)?;
        let identity = match rules {
            Rules::Svid => Some(svid(tbs)?),
            Rules::Serving => {
                serving(tbs)?;
                None
            }
        };
        Ok(Examined {
            serial: tbs.serial_number().as_bytes().to_vec(),
            identity,
        })
    }
}

fn authority(tbs: &TbsCertificate) -> Result<Vec<u8>, Violation> {
    match get::<AuthorityKeyIdentifier>(tbs)? {
        Some((
            false,
            AuthorityKeyIdentifier {
                key_identifier: Some(identifier),
                ..
            },
        )) => Ok(identifier.into_bytes().into_vec()),
        _ => broken("it has no plain authority key identifier (RFC 5280 §4.2.1.1)"),
    }
}

fn fields(tbs: &TbsCertificate, issuer: &Issuer) -> Result<(), Violation> {
    let serial = tbs.serial_number().as_bytes();
    ensure(
        serial.len() <= 20,
        "the serial is longer than 20 octets (RFC 5280 §4.1.2.2)",
    )?;
    ensure(
        serial.first().is_some_and(|first| *first < 0x80),
        "the serial is not positive (RFC 5280 §4.1.2.2)",
    )?;
    ensure(
        serial.iter().any(|octet| *octet != 0),
        "the serial is zero (RFC 5280 §4.1.2.2)",
    )?;
    ensure(
        tbs.signature().oid == issuer.algorithm,
        "the algorithm is not the issuer's (RFC 5280 §4.1.1.2)",
    )?;
    let (begin, end) = (&tbs.validity().not_before, &tbs.validity().not_after);
    ensure(
        instant(begin) < instant(end),
        "it ends before it begins (RFC 5280 §4.1.2.5)",
    )?;
    ensure(
        [begin, end].into_iter().all(is_rightly_written),
        "a time is not in the form its year asks for (RFC 5280 §4.1.2.5)",
    )?;
    ensure(instant(end) <= issuer.not_after, "it outlives its issuer")?;
    let unique = tbs.issuer_unique_id().is_some() || tbs.subject_unique_id().is_some();
    ensure(!unique, "it has a unique identifier (RFC 5280 §4.1.2.8)")?;
    ensure(tbs.subject().is_empty(), "the subject is not empty")
}

fn extensions(tbs: &TbsCertificate, issuer: &Issuer) -> Result<(), Violation> {
    let known = [
        ID_CE_KEY_USAGE,
        ID_CE_EXT_KEY_USAGE,
        ID_CE_BASIC_CONSTRAINTS,
        ID_CE_SUBJECT_KEY_IDENTIFIER,
        ID_CE_AUTHORITY_KEY_IDENTIFIER,
        ID_CE_SUBJECT_ALT_NAME,
    ];
    let all = tbs.extensions().map(Vec::as_slice).unwrap_or_default();
    for (at, extension) in all.iter().enumerate() {
        let earlier = all
            .iter()
            .take(at)
            .any(|earlier| earlier.extn_id == extension.extn_id);
        ensure(!earlier, "an extension stands twice (RFC 5280 §4.2)")?;
        ensure(
            known.contains(&extension.extn_id),
            "it has an extension that no profile gives",
        )?;
    }
    let named = authority(tbs)?;
    ensure(
        named == issuer.key_identifier,
        "the authority key identifier is not the issuer's (RFC 5280 §4.2.1.1)",
    )?;
    if let Some((critical, _)) = get::<SubjectKeyIdentifier>(tbs)? {
        ensure(
            !critical,
            "the subject key identifier is critical (RFC 5280 §4.2.1.2)",
        )?;
    }
    let Some((true, usage)) = get::<KeyUsage>(tbs)? else {
        return broken("it has no critical key usage (RFC 5280 §4.2.1.3)");
    };
    ensure(
        !usage.key_cert_sign() && !usage.crl_sign(),
        "its key may sign certificates or CRLs (RFC 5280 §4.2.1.3, X.509-SVID §4.3)",
    )?;
    ensure(
        usage.digital_signature(),
        "its key may not sign (X.509-SVID §4.3)",
    )?;
    let ca = get::<BasicConstraints>(tbs)?.is_some_and(|(_, constraints)| {
        constraints.ca || constraints.path_len_constraint.is_some()
    });
    ensure(!ca, "it is a CA (RFC 5280 §4.2.1.9)")?;
    let Some((_, purposes)) = get::<ExtendedKeyUsage>(tbs)? else {
        return broken("it has no extended key usage (RFC 5280 §4.2.1.12)");
    };
    let both = purposes.0.contains(&ID_KP_SERVER_AUTH)
        && purposes.0.contains(&ID_KP_CLIENT_AUTH)
        && purposes.0.len() == 2;
    ensure(
        both,
        "its extended key usage is not serverAuth and clientAuth (X.509-SVID §4.4)",
    )
}

fn names(tbs: &TbsCertificate) -> Result<Vec<GeneralName>, Violation> {
    match get::<SubjectAltName>(tbs)? {
        Some((true, names)) if !names.0.is_empty() => Ok(names.0),
        Some((true, _)) => broken("the subject alternative name is empty (RFC 5280 §4.2.1.6)"),
        _ => broken(
            "the subject is empty and there is no critical subject alternative name (RFC 5280 §4.1.2.6)",
        ),
    }
}

/// X.509-SVID §2: exactly one URI SAN, a SPIFFE ID of at most 2048 octets (SPIFFE-ID §2.3). Ours
/// has no other name beside it.
fn svid(tbs: &TbsCertificate) -> Result<String, Violation> {
    match names(tbs)?.as_slice() {
        [GeneralName::UniformResourceIdentifier(uri)] => {
            let uri = uri.as_str();
            ensure(
                is_workload_id(uri),
                "the name is no SPIFFE ID of a workload (SPIFFE-ID §2)",
            )?;
            Ok(uri.to_owned())
        }
        _ => broken("it does not have exactly one name, a URI (X.509-SVID §2)"),
    }
}

/// SPIFFE-ID §2: a trust domain of 1 to 255 small letters, digits, dots, hyphens and underscores,
/// then a path whose segments may have capitals too. That leaves no character that a port, user,
/// query, fragment or percent-encoding would need.
fn is_workload_id(uri: &str) -> bool {
    let Some((domain, path)) = uri
        .strip_prefix("spiffe://")
        .and_then(|rest| rest.split_once('/'))
    else {
        return false;
    };
    let small = |letter: u8| matches!(letter, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_');
    let legal = |segment: &str| {
        !matches!(segment, "" | "." | "..")
            && segment
                .bytes()
                .all(|letter| small(letter) || letter.is_ascii_uppercase())
    };
    uri.len() <= 2048
        && (1..=255).contains(&domain.len())
        && domain.bytes().all(small)
        && path.split('/').all(legal)
}

fn serving(tbs: &TbsCertificate) -> Result<(), Violation> {
    let allowed =
        |name: &GeneralName| matches!(name, GeneralName::DnsName(_) | GeneralName::IpAddress(_));
    ensure(
        names(tbs)?.iter().all(allowed),
        "a serving certificate has a name that is neither DNS nor address",
    )
}

fn get<'a, T: Decode<'a, Error = der::Error> + const_oid::AssociatedOid>(
    tbs: &'a TbsCertificate,
) -> Result<Option<(bool, T)>, Violation> {
    tbs.get_extension::<T>()
        .map_err(|error| Violation(format!("the extension {} cannot be read: {error}", T::OID)))
}

fn instant(time: &Time) -> Timestamp {
    Timestamp::from_seconds(i64::try_from(time.to_unix_duration().as_secs()).unwrap_or(i64::MAX))
}

/// UTCTime through 2049, GeneralizedTime from 2050 on.
fn is_rightly_written(time: &Time) -> bool {
    let year = instant(time).date_time().year();
    matches!(time, Time::UtcTime(_)) == (year < 2050)
}

#[cfg(test)]
mod tests {
    use super::is_workload_id;

    #[test]
    fn a_workloads_name_is_a_spiffe_id_with_a_path() {
        let long = |domain: usize| format!("spiffe://{}/a", "d".repeat(domain));
        let whole = |length: usize| format!("spiffe://d/{}", "p".repeat(length - 11));
        let legal = [
            "spiffe://cluster.local/ns/default/sa/demo",
            "spiffe://a_b-c.9/X.y_Z-0",
            "spiffe://d/...",
            "spiffe://d/.a/b.",
        ];
        for uri in legal
            .map(str::to_owned)
            .into_iter()
            .chain([long(1), long(255), whole(2048)])
        {
            assert!(is_workload_id(&uri), "{uri}");
        }
        let illegal = [
            "",
            "spiffe://",
            "spiffe://d",
            "spiffe://d/",
            "spiffe:///ns/a",
            "spiffe://d//a",
            "spiffe://d/a/",
            "spiffe://d/./a",
            "spiffe://d/a/..",
            "spiffe://D/a",
            "SPIFFE://d/a",
            "https://d/a",
            "spiffe://d:8443/a",
            "spiffe://user@d/a",
            "spiffe://d/a?b=c",
            "spiffe://d/a#b",
            "spiffe://d?/a",
            "spiffe://d/%61",
            "spiffe://d/a b",
            "spiffe://d/\u{e4}",
            "spiffe://d\u{e4}/a",
            "spiffe://d/a\0",
            "spiffe://d/a:b",
        ];
        for uri in illegal
            .map(str::to_owned)
            .into_iter()
            .chain([long(256), whole(2049)])
        {
            assert!(!is_workload_id(&uri), "{uri}");
        }
    }
}
