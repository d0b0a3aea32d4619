//! What other programs make of an issuer's certificates: what their libraries cannot read or refuse
//! although the daemon can live with it, and which certificate of a chain is in the way where all
//! would refuse.

use const_oid::ObjectIdentifier;
use const_oid::db::rfc5280::{
    ID_CE_BASIC_CONSTRAINTS, ID_CE_EXT_KEY_USAGE, ID_CE_KEY_USAGE, ID_CE_NAME_CONSTRAINTS,
    ID_CE_POLICY_CONSTRAINTS, ID_CE_SUBJECT_ALT_NAME, ID_KP_CLIENT_AUTH, ID_KP_SERVER_AUTH,
};
use der::{Decode, Tag, Tagged};
use x509_cert::ext::pkix::{
    AuthorityKeyIdentifier, BasicConstraints, ExtendedKeyUsage, SubjectKeyIdentifier,
};
use x509_cert::name::Name;

use super::listed::Listed;
use crate::x509::certificate::Extension;
use crate::x509::path::{self, BadPath, Usage};
use crate::x509::uri_constraint;

/// The critical extensions that rustls understands in a CA's certificate.
const UNDERSTOOD: [ObjectIdentifier; 5] = [
    ID_CE_KEY_USAGE,
    ID_CE_SUBJECT_ALT_NAME,
    ID_CE_BASIC_CONSTRAINTS,
    ID_CE_NAME_CONSTRAINTS,
    ID_CE_EXT_KEY_USAGE,
];

/// Says what some peers will not take, a sentence each.
pub(super) fn warn(
    chain: &[Listed],
    roots: &[Listed],
    used: &[&Listed],
    warnings: &mut Vec<String>,
) {
    for one in chain.iter().chain(
        roots
            .iter()
            .filter(|root| chain.iter().all(|one| one.der() != root.der())),
    ) {
        if let Some(why) = unreadable_in_go(one) {
            warnings.push(format!(
                "{one}: {why}, so that programs in Go, such as pilot-agent, cannot read it"
            ));
        }
        if uri_constraint::of(one)
            .is_ok_and(|found| found.is_some_and(|constraint| constraint.concerns_uris()))
        {
            warnings.push(format!("{one}: it constrains URIs, which programs on rustls, such as ztunnel, refuse whatever it says"));
        }
        if one
            .extensions()
            .iter()
            .any(|extension| extension.oid == ID_CE_POLICY_CONSTRAINTS && !extension.critical)
        {
            warnings.push(format!("{one}: it constrains policies, and what is issued here names none; some programs will refuse it"));
        }
    }
    for root in used {
        if path::short_key(root.spki()).is_some() {
            warnings
                .push(format!("{root}: its RSA key has less than 2048 bits; programs on rustls, such as ztunnel, refuse what it signed"));
        }
        for usage in [Usage::Client, Usage::Server] {
            warnings.extend(in_the_way(root, BadPath::Usage, usage));
        }
        if let Some(strange) = critical_and_strange(root) {
            warnings.push(format!("{root}: its critical extension {strange} is not understood by programs in Go, which will refuse it"));
        }
        if root.version() == 3 && !matches!(root.extension::<BasicConstraints>(), Ok(Some(_))) {
            warnings.push(format!("{root}: it has no basic constraints, so that programs in Go do not take it for a CA's"));
        }
    }
    let all: Vec<&Listed> = chain.iter().chain(roots).collect();
    for one in chain {
        let signers: Vec<&&Listed> = all
            .iter()
            .filter(|other| one.signed_by(other).is_ok())
            .collect();
        if !signers.is_empty() && signers.iter().all(|signer| names_another(one, signer)) {
            warnings.push(format!(
                "{one}: its authority key identifier does not fit its issuer; programs on OpenSSL and BoringSSL, such as Envoy, refuse it"
            ));
        }
    }
}

/// Why Go's `x509.ParseCertificate` refuses a certificate that others read.
fn unreadable_in_go(one: &Listed) -> Option<&'static str> {
    if one.serial().first().is_some_and(|first| *first >= 0x80) {
        return Some("its serial number is negative");
    }
    let strange = |name: &[u8]| {
        Name::from_der(name).is_ok_and(|name| {
            name.iter()
                .any(|part| !is_of_its_kind(part.value.tag(), part.value.value()))
        })
    };
    (strange(one.subject()) || strange(one.issuer()))
        .then_some("a name in it has characters that its kind of string does not allow")
}

fn critical_and_strange(one: &Listed) -> Option<ObjectIdentifier> {
    let strange =
        |extension: &&Extension| extension.critical && !UNDERSTOOD.contains(&extension.oid);
    one.extensions()
        .iter()
        .find(strange)
        .map(|extension| extension.oid)
}

/// X.680 §41: what the strings of names may hold. Go allows `*` and `&` in a PrintableString too.
fn is_of_its_kind(tag: Tag, value: &[u8]) -> bool {
    let printable = |octet: &u8| octet.is_ascii_alphanumeric() || b" '()+,-./:=?*&".contains(octet);
    match tag {
        Tag::PrintableString => value.iter().all(printable),
        Tag::Utf8String => std::str::from_utf8(value).is_ok(),
        Tag::Ia5String => value.is_ascii(),
        Tag::NumericString => value
            .iter()
            .all(|octet| octet.is_ascii_digit() || *octet == b' '),
        _ => true,
    }
}

/// Whether its authority key identifier (RFC 5280 §4.2.1.1) is of another certificate than this
/// issuer's.
fn names_another(one: &Listed, issuer: &Listed) -> bool {
    let Ok(Some((_, named))) = one.extension::<AuthorityKeyIdentifier>() else {
        return false;
    };
    let own = issuer.extension::<SubjectKeyIdentifier>().ok().flatten();
    let key = named
        .key_identifier
        .zip(own)
        .is_some_and(|(named, (_, own))| named.as_bytes() != own.0.as_bytes());
    let serial = named
        .authority_cert_serial_number
        .is_some_and(|serial| serial.as_bytes() != issuer.serial());
    key || serial
}

/// The sentence about a certificate of the chain that is why there is no path, if it is this one.
pub(super) fn in_the_way(one: &Listed, why: BadPath, usage: Usage) -> Option<String> {
    match why {
        BadPath::Usage => {
            let (wanted, name) = match usage {
                Usage::Client => (ID_KP_CLIENT_AUTH, "clientAuth"),
                Usage::Server => (ID_KP_SERVER_AUTH, "serverAuth"),
            };
            let limited = one
                .extension::<ExtendedKeyUsage>()
                .ok()
                .flatten()
                .is_some_and(|(_, usages)| !usages.0.contains(&wanted));
            limited.then(|| format!("{one}: its extended key usage does not include {name}, which every certificate of a mesh needs"))
        }
        BadPath::CriticalExtension => {
            let strange = critical_and_strange(one)?;
            Some(format!(
                "{one}: its critical extension {strange} is not understood by programs on rustls, the daemon among them"
            ))
        }
        BadPath::NameConstraints => {
            let constrained = one
                .extensions()
                .iter()
                .any(|extension| extension.oid == ID_CE_NAME_CONSTRAINTS);
            constrained.then(|| format!("{one}: its name constraints do not allow it"))
        }
        _ => None,
    }
}
