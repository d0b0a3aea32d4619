//! One certificate of an issuer's files, with the file, its place and its line, by which every
//! sentence names it.

use std::collections::BTreeSet;
use std::fmt::{self, Display};
use std::ops::Deref;

use super::{BadChain, bad};
use crate::x509::certificate::{Certificate, name_text};
use crate::x509::path::{self, BadPath};
use crate::x509::pem;

/// A certificate and where it stands.
#[derive(Clone, Debug)]
pub(super) struct Listed {
    /// The config's key of the file.
    file: &'static str,
    /// Its place in the file, counted from 1.
    place: usize,
    line: usize,
    certificate: Certificate,
}

impl Deref for Listed {
    type Target = Certificate;

    fn deref(&self) -> &Certificate {
        &self.certificate
    }
}

impl Display for Listed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "`{}`, certificate {} (line {}), {}",
            self.file,
            self.place,
            self.line,
            name_text(self.subject())
        )
    }
}

impl Listed {
    /// The same CA, perhaps certified by another: name and key are the same.
    pub fn is_twin_of(&self, other: &Self) -> bool {
        self.subject() == other.subject() && self.spki() == other.spki()
    }

    /// Whether its subject has no attribute at all.
    pub fn is_nameless(&self) -> bool {
        self.subject() == [0x30, 0]
    }

    /// Whether `issuer` has signed it, by name and by key. Names are compared octet by octet, as Go
    /// and rustls do.
    pub fn signed_by(&self, issuer: &Self) -> Result<(), BadPath> {
        if self.issuer() != issuer.subject() {
            return Err(BadPath::UnknownIssuer);
        }
        path::verify_signature(self, issuer.spki(), issuer.file == "roots")
    }
}

/// Every certificate of a file, at least one; one that stands there twice is taken once.
pub(super) fn read_all(
    file: &'static str,
    text: &[u8],
    warnings: &mut Vec<String>,
) -> Result<Vec<Listed>, BadChain> {
    let blocks = pem::certificates(text).map_err(|error| bad(format_args!("`{file}`: {error}")))?;
    let (mut members, mut seen) = (Vec::new(), BTreeSet::new());
    for (at, block) in blocks.into_iter().enumerate() {
        let (place, line) = (at + 1, block.line);
        let not = |error| {
            bad(format_args!(
                "`{file}`: what stands in line {line} is not a certificate: {error}"
            ))
        };
        let listed = Listed {
            file,
            place,
            line,
            certificate: Certificate::read(&block.der).map_err(not)?,
        };
        if seen.insert(block.der) {
            members.push(listed);
        } else {
            warnings.push(format!("{listed}: it stands in the file twice"));
        }
    }
    Ok(members)
}

/// Why a certificate is signed by none of the others.
pub(super) fn unsigned<'a>(one: &Listed, others: impl Iterator<Item = &'a Listed>) -> String {
    let issuer = name_text(one.issuer());
    let mut said = format!("{one}: its issuer, {issuer}, stands neither in `chain` nor in `roots`");
    for other in others {
        if one.issuer() == other.subject() {
            return match one.signed_by(other) {
                Err(BadPath::Algorithm) => format!(
                    "{one}: it is signed with an algorithm that is not accepted, such as SHA-1; have its issuer, {other}, sign it with another"
                ),
                _ => format!(
                    "{one}: it is not signed by the key of {other}, though it names that as its issuer"
                ),
            };
        }
        let similar = name_text(other.subject()).eq_ignore_ascii_case(&issuer);
        if similar && path::verify_signature(one, other.spki(), true).is_ok() {
            said = format!(
                "{one}: it is signed by {other}, but writes that name with other octets, such as another kind of string; Go and rustls \
                 compare names octet by octet. Have it issued again with its issuer's name as it stands in the issuer's certificate"
            );
        }
    }
    said
}
