//! The one body that a certificate of this CA may have, TBSCertificate (RFC 5280 §4.1): the few
//! fields that are free are read, and everything is written anew from them, from the issuer's
//! certificate and from a template's list. What is not the same, octet by octet, is refused, so
//! that nothing need be forbidden: an extension, a parameter or an encoding that no template has
//! does not come out of it.

use std::net::IpAddr;

use super::Violation;
use super::der::{
    BIT_STRING, BOOLEAN, EC_PUBLIC_KEY, ED25519, INTEGER, NULL, OBJECT_IDENTIFIER, OCTET_STRING,
    P256, P384, RSA_ENCRYPTION, SEQUENCE, Value, Values, constructed, extension_oid,
    extension_value, instant, primitive, sequence, time, value,
};
use super::issuer::Issuer;
use crate::digest::sha256;
use crate::timestamp::Timestamp;

/// A version of the list of what stands in a body. While a signer and its daemons are upgraded it
/// takes two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Template {
    /// Serials of 18 octets; key usage by the kind of key, serverAuth and clientAuth, empty basic
    /// constraints, both key identifiers, and the names, critical.
    One,
}

impl Template {
    /// Every one that this program knows.
    pub(super) const ALL: [Self; 1] = [Self::One];

    /// The number by which rules and daemons name it.
    pub(super) fn number(self) -> u16 {
        match self {
            Self::One => 1,
        }
    }
}

/// A name in a certificate (RFC 5280 §4.2.1.6).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Name {
    /// uniformResourceIdentifier.
    Uri(String),
    /// dNSName.
    Dns(String),
    /// iPAddress.
    Address(IpAddr),
}

/// What is free in a body.
pub(super) struct Free<'a> {
    serial: &'a [u8],
    pub(super) begins: Timestamp,
    pub(super) ends: Timestamp,
    key: Key<'a>,
    pub(super) names: Vec<Name>,
}

/// The certified key: its kind, and the content of the BIT STRING.
struct Key<'a> {
    kind: Kind,
    bits: &'a [u8],
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Rsa,
    P256,
    P384,
    Ed25519,
}

const SUBJECT_ALT_NAME: u8 = 17;

impl<'a> Free<'a> {
    /// Reads what is free, and no more.
    pub(super) fn read(body: &'a [u8]) -> Result<Self, Violation> {
        let missing = |what: &str| {
            Violation(format!(
                "the to-be-signed bytes are no body of a certificate as this CA writes it: {what}"
            ))
        };
        let mut fields =
            Values::of_sequence(body).ok_or_else(|| missing("they are not one SEQUENCE in DER"))?;
        fields
            .take(constructed(0))
            .ok_or_else(|| missing("they have no version"))?;
        let serial = fields
            .take(INTEGER)
            .ok_or_else(|| missing("they have no serial number"))?;
        let two = fields.take(SEQUENCE).and_then(|_| fields.take(SEQUENCE));
        two.ok_or_else(|| missing("they have no algorithm and issuer"))?;
        let mut validity = Values::of(
            fields
                .take(SEQUENCE)
                .ok_or_else(|| missing("they have no validity"))?,
        );
        let mut time = || {
            validity
                .next()
                .as_ref()
                .and_then(instant)
                .ok_or_else(|| missing("their validity cannot be read"))
        };
        let (begins, ends) = (time()?, time()?);
        fields
            .take(SEQUENCE)
            .ok_or_else(|| missing("they have no subject"))?;
        let key = fields.take(SEQUENCE).and_then(Key::read);
        let key = key.ok_or_else(|| {
            missing("their public key is of no kind, size or form that this CA certifies")
        })?;
        let extensions = fields
            .take(constructed(3))
            .and_then(Values::of_sequence)
            .and_then(Values::all);
        let extensions = extensions.ok_or_else(|| missing("their extensions cannot be read"))?;
        let names = extension_value(&extensions, SUBJECT_ALT_NAME)
            .and_then(Values::of_sequence)
            .and_then(Values::all);
        let names = names
            .ok_or_else(|| missing("they have no subject alternative name that can be read"))?;
        let names: Option<Vec<Name>> = names.iter().map(Name::read).collect();
        let names = names.ok_or_else(|| missing("a name is no URI, DNS name or address"))?;
        Ok(Self {
            serial,
            begins,
            ends,
            key,
            names,
        })
    }

    /// The body that these fields have by a template. `Err` where a free field is not as the
    /// template has it.
    fn write(&self, template: Template, issuer: &Issuer) -> Result<Vec<u8>, Violation> {
        match template {
            Template::One => {
                // A period, a second and 88 random bits: positive, and never with a leading zero
                // (RFC 5280 §4.1.2.2).
                if self.serial.len() != 18 || !matches!(self.serial[0], 1..=0x7f) {
                    return Err(Violation(
                        "its serial is not one of 18 octets, positive (RFC 5280 §4.1.2.2)".into(),
                    ));
                }
                Ok(self.version_1(issuer))
            }
        }
    }

    fn version_1(&self, issuer: &Issuer) -> Vec<u8> {
        // digitalSignature is the first bit, keyEncipherment the third (RFC 5280 §4.2.1.3).
        let usage: &[u8] = if self.key.kind == Kind::Rsa {
            &[5, 0xa0]
        } else {
            &[7, 0x80]
        };
        let server_auth = value(OBJECT_IDENTIFIER, &[&[0x2b, 6, 1, 5, 5, 7, 3, 1]]);
        let client_auth = value(OBJECT_IDENTIFIER, &[&[0x2b, 6, 1, 5, 5, 7, 3, 2]]);
        // RFC 7093 §2, method 1.
        let key_identifier = &sha256(self.key.bits)[..20];
        let names: Vec<Vec<u8>> = self.names.iter().map(Name::write).collect();
        let names: Vec<&[u8]> = names.iter().map(Vec::as_slice).collect();
        let extensions = sequence(&[
            &extension(15, true, &value(BIT_STRING, &[usage])),
            &extension(37, false, &sequence(&[&server_auth, &client_auth])),
            &extension(19, true, &sequence(&[])),
            &extension(14, false, &value(OCTET_STRING, &[key_identifier])),
            &extension(
                35,
                false,
                &sequence(&[&value(primitive(0), &[issuer.key_identifier()])]),
            ),
            &extension(SUBJECT_ALT_NAME, true, &sequence(&names)),
        ]);
        sequence(&[
            &value(constructed(0), &[&value(INTEGER, &[&[2]])]),
            &value(INTEGER, &[self.serial]),
            issuer.algorithm(),
            issuer.subject(),
            &sequence(&[&time(self.begins), &time(self.ends)]),
            &sequence(&[]),
            &self.key.write(),
            &value(constructed(3), &[&extensions]),
        ])
    }

    /// Whether `body`, from which these were read, is what one of the templates makes of them.
    pub(super) fn is_all_of(
        &self,
        body: &[u8],
        issuer: &Issuer,
        templates: &[Template],
    ) -> Result<(), Violation> {
        let mut why = Violation("the guard takes no template".into());
        for template in templates {
            match self.write(*template, issuer) {
                Ok(written) if written == body => return Ok(()),
                Ok(written) => {
                    why = Violation(format!(
                        "{} as template {} has it",
                        difference(body, &written),
                        template.number()
                    ))
                }
                Err(violation) => why = violation,
            }
        }
        Err(why)
    }
}

/// What differs first, for people.
fn difference(body: &[u8], written: &[u8]) -> String {
    const FIELDS: [&str; 7] = [
        "version",
        "serial number",
        "signature algorithm",
        "issuer",
        "validity",
        "subject",
        "public key",
    ];
    const EXTENSIONS: [&str; 6] = [
        "key usage",
        "extended key usage",
        "basic constraints",
        "subject key identifier",
        "authority key identifier",
        "subject alternative name",
    ];
    let (found, right) = (values(body), values(written));
    if let Some(field) = first_that_differs(&found, &right).and_then(|at| FIELDS.get(at)) {
        return format!("its {field} is not");
    }
    let extensions = |fields: &[Value<'_>]| {
        fields
            .get(FIELDS.len())
            .map(|field| field.content.to_vec())
            .unwrap_or_default()
    };
    let (found, right) = (extensions(&found), extensions(&right));
    match first_that_differs(&values(&found), &values(&right)).and_then(|at| EXTENSIONS.get(at)) {
        Some(extension) => format!("its {extension}, or what stands in the place of it, is not"),
        None => "what follows is not".to_owned(),
    }
}

fn values(sequence: &[u8]) -> Vec<Value<'_>> {
    Values::of_sequence(sequence)
        .and_then(Values::all)
        .unwrap_or_default()
}

fn first_that_differs(found: &[Value<'_>], right: &[Value<'_>]) -> Option<usize> {
    found
        .iter()
        .zip(right)
        .position(|(found, right)| found != right)
}

/// One Extension (RFC 5280 §4.2), 2.5.29.`number`; DER omits the default of `critical`.
fn extension(number: u8, critical: bool, content: &[u8]) -> Vec<u8> {
    let oid = value(OBJECT_IDENTIFIER, &[&extension_oid(number)]);
    let critical = if critical {
        value(BOOLEAN, &[&[0xff]])
    } else {
        Vec::new()
    };
    sequence(&[&oid, &critical, &value(OCTET_STRING, &[content])])
}

impl Name {
    fn read(name: &Value<'_>) -> Option<Self> {
        const URI: u8 = primitive(6);
        const DNS: u8 = primitive(2);
        const ADDRESS: u8 = primitive(7);
        let text = || {
            std::str::from_utf8(name.content)
                .ok()
                .filter(|text| text.is_ascii())
                .map(str::to_owned)
        };
        match name.tag {
            URI => text().map(Self::Uri),
            DNS => text().map(Self::Dns),
            ADDRESS => {
                let four = <[u8; 4]>::try_from(name.content).map(IpAddr::from);
                four.or_else(|_| <[u8; 16]>::try_from(name.content).map(IpAddr::from))
                    .ok()
                    .map(Self::Address)
            }
            _ => None,
        }
    }

    fn write(&self) -> Vec<u8> {
        match self {
            Self::Uri(uri) => value(primitive(6), &[uri.as_bytes()]),
            Self::Dns(name) => value(primitive(2), &[name.as_bytes()]),
            Self::Address(IpAddr::V4(address)) => value(primitive(7), &[&address.octets()]),
            Self::Address(IpAddr::V6(address)) => value(primitive(7), &[&address.octets()]),
        }
    }
}

impl<'a> Key<'a> {
    /// Of the content of a SubjectPublicKeyInfo (RFC 5280 §4.1.2.7).
    fn read(info: &'a [u8]) -> Option<Self> {
        let mut parts = Values::of(info);
        let mut algorithm = Values::of(parts.take(SEQUENCE)?);
        let [0, bits @ ..] = parts.take(BIT_STRING)? else {
            return None;
        };
        // Points are uncompressed (RFC 5480 §2.2).
        let kind = match (
            algorithm.take(OBJECT_IDENTIFIER)?,
            algorithm.take(OBJECT_IDENTIFIER),
        ) {
            (RSA_ENCRYPTION, None) if is_fit_rsa(bits)? => Kind::Rsa,
            (EC_PUBLIC_KEY, Some(P256)) if bits.len() == 65 && bits[0] == 4 => Kind::P256,
            (EC_PUBLIC_KEY, Some(P384)) if bits.len() == 97 && bits[0] == 4 => Kind::P384,
            (ED25519, None) if bits.len() == 32 => Kind::Ed25519,
            _ => return None,
        };
        Some(Self { kind, bits })
    }

    /// RFC 4055 §1.2, RFC 5480 §2.1.1, RFC 8410 §3.
    fn write(&self) -> Vec<u8> {
        let (oid, parameters) = match self.kind {
            Kind::Rsa => (RSA_ENCRYPTION, value(NULL, &[])),
            Kind::P256 => (EC_PUBLIC_KEY, value(OBJECT_IDENTIFIER, &[P256])),
            Kind::P384 => (EC_PUBLIC_KEY, value(OBJECT_IDENTIFIER, &[P384])),
            Kind::Ed25519 => (ED25519, Vec::new()),
        };
        let algorithm = sequence(&[&value(OBJECT_IDENTIFIER, &[oid]), &parameters]);
        sequence(&[&algorithm, &value(BIT_STRING, &[&[0], self.bits])])
    }
}

/// Whether these octets are an RSAPublicKey (RFC 8017 §A.1.1) of 2048 to 8192 bits, whose exponent
/// is odd and above 1; `None` if they are none.
fn is_fit_rsa(key: &[u8]) -> Option<bool> {
    let mut parts = Values::of_sequence(key)?;
    let (modulus, exponent) = (
        positive(parts.take(INTEGER)?)?,
        positive(parts.take(INTEGER)?)?,
    );
    let bits = 8 * modulus.len() - usize::try_from(modulus[0].leading_zeros()).ok()?;
    let odd = exponent.last().is_some_and(|octet| octet & 1 == 1);
    Some(parts.is_empty() && (2048..=8192).contains(&bits) && odd && exponent != [1])
}

/// The octets of a positive INTEGER in its shortest form, without the one that keeps it positive.
fn positive(integer: &[u8]) -> Option<&[u8]> {
    match integer {
        [0, 0x80..=0xff, ..] => Some(&integer[1..]),
        [1..=0x7f, ..] => Some(integer),
        _ => None,
    }
}
