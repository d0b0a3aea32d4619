//! An issuer's certificates: the chain from the issuing certificate upwards, and the roots that end
//! it. Each certificate of the chain is judged as a CA's (RFC 5280 §6.1.4); a root is a name and a
//! key (§6.1.1), whose own signature nobody checks. A sentence about one names it by file, place
//! and subject. Holds what a template and an answer need of them.

mod listed;
mod peers;

use std::time::Duration;

use rustls_pki_types::CertificateDer;
use signers::PublicKey;
use x509_cert::ext::pkix::{BasicConstraints, KeyUsage, SubjectKeyIdentifier};

use self::listed::Listed;
use super::certificate::name_text;
use super::path::{self, Anchors, BadPath, Usage};
use super::pem;
use super::subject_key::{SubjectKey, key_identifier};
use crate::timestamp::Timestamp;

/// One issuer: its chain, issuing certificate first and root left out, and the roots that the chain
/// leads to.
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
    members: Vec<Listed>,
    anchors: Anchors,
    warnings: Vec<String>,
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

/// From when to when each CA of a chain has a certificate. Above the issuing one, whose own
/// certificate alone counts, a CA may stand there twice, as two roots certified it: then either
/// will do.
fn spans(chain: &[Listed]) -> impl Iterator<Item = (Timestamp, Timestamp)> {
    let is_twin = |one: &Listed, other: &Listed| {
        (one.subject(), one.spki()) == (other.subject(), other.spki())
    };
    chain.iter().enumerate().map(move |(at, one)| {
        let twins = chain
            .iter()
            .skip(1)
            .filter(|other| at > 0 && is_twin(one, other));
        let span = |(begins, ends): (Timestamp, Timestamp), other: &Listed| {
            (begins.min(other.begins()), ends.max(other.ends()))
        };
        twins.fold((one.begins(), one.ends()), span)
    })
}

impl IssuerChain {
    /// Reads and checks an issuer's PEM files. A self-signed issuer stands in both.
    pub fn parse(id: &str, chain_pem: &[u8], roots_pem: &[u8]) -> Result<Self, BadChain> {
        let mut warnings = Vec::new();
        let chain = listed::read_all("chain", chain_pem, &mut warnings)?;
        let roots = anchors(
            listed::read_all("roots", roots_pem, &mut warnings)?,
            &mut warnings,
        )?;
        let depths = depths(&chain, &roots)?;
        let issuing = &chain[0];
        let leads_to = |root: &&Listed| {
            chain
                .iter()
                .any(|one| one.der() == root.der() || one.signed_by(root).is_ok())
        };
        let used: Vec<&Listed> = roots.iter().filter(leads_to).collect();
        if used.is_empty() {
            return Err(bad(format_args!(
                "{issuing} and what is above it lead to none of the roots"
            )));
        }
        // A root may stand in the chain file; it is not sent between leaf and roots.
        let is_root = |one: &Listed| roots.iter().any(|root| root.der() == one.der());
        for (one, depth) in chain.iter().zip(&depths).filter(|(one, _)| !is_root(one)) {
            check_ca(one, *depth)?;
        }
        for root in &used {
            let below = chain
                .iter()
                .zip(&depths)
                .filter(|(one, _)| !is_root(one) && one.signed_by(root).is_ok());
            check_anchor(root, below.map(|(_, depth)| depth + 1).max().unwrap_or(0))?;
        }
        if issuing.is_nameless() {
            return Err(bad(format_args!(
                "{issuing}: its subject is empty, and a CA must have a name (RFC 5280 §4.1.2.6)"
            )));
        }
        let unfit = |why: &dyn std::fmt::Display| bad(format_args!("{issuing}: {why}"));
        let key = SubjectKey::from_spki(issuing.spki()).map_err(|error| unfit(&error))?;
        let own_identifier = issuing
            .extension::<SubjectKeyIdentifier>()
            .map_err(|error| unfit(&error))?;
        let root_ends = used
            .iter()
            .map(|root| root.ends())
            .max()
            .expect("not empty");
        let root_begins = used
            .iter()
            .map(|root| root.begins())
            .min()
            .expect("not empty");
        let sent: Vec<&Listed> = chain.iter().filter(|one| !is_root(one)).collect();
        peers::warn(&chain, &roots, &used, &mut warnings);
        Ok(Self {
            id: id.to_owned(),
            subject: issuing.subject().to_vec(),
            // RFC 5280 §4.2.1.2 asks every CA for one; else the one that we would have given it.
            key_identifier: own_identifier.map_or_else(
                || key_identifier(key.bits()).to_vec(),
                |(_, id)| id.0.as_bytes().to_vec(),
            ),
            public_key: PublicKey::from_spki_der(key.spki()).map_err(|error| unfit(&error))?,
            intermediates: sent.iter().map(|one| one.der().to_vec()).collect(),
            intermediates_pem: sent.iter().map(|one| pem::certificate(one.der())).collect(),
            begins: spans(&chain)
                .map(|(begins, _)| begins)
                .max()
                .expect("not empty")
                .max(root_begins),
            ends: spans(&chain)
                .map(|(_, ends)| ends)
                .min()
                .expect("not empty")
                .min(root_ends),
            issuing_ends: issuing.ends(),
            root_ends,
            anchors: of_roots(&roots)?,
            roots: roots.iter().map(|one| one.der().to_vec()).collect(),
            chain: chain.iter().map(|one| one.der().to_vec()).collect(),
            members: chain.into_iter().chain(roots).collect(),
            warnings,
        })
    }

    /// What peers of some kinds will not like of these certificates, and what of the files is not
    /// used; a sentence each.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Which of the certificates, chain and roots, are outside of their validity at `now`, a
    /// sentence each.
    pub fn out_of_date(&self, now: Timestamp) -> Vec<String> {
        let said = |one: &Listed| match () {
            () if one.ends() < now => Some(format!("{one}: it ended at {}", one.ends())),
            () if now < one.begins() => Some(format!("{one}: it begins at {}", one.begins())),
            () => None,
        };
        self.members.iter().filter_map(said).collect()
    }

    /// Whether the daemon and its peers would accept this certificate of the issuer at `now`, which
    /// needs no signature yet. The error says which certificate of the chain is in the way, if one
    /// alone is.
    pub fn would_verify(
        &self,
        certificate: &[u8],
        usage: Usage,
        now: Timestamp,
    ) -> Result<(), BadChain> {
        let others: Vec<CertificateDer<'_>> = self
            .intermediates
            .iter()
            .map(|der| CertificateDer::from(der.as_slice()))
            .collect();
        path::verify_unsigned(certificate, &others, &self.anchors, usage, now)
            .map_err(|why| self.in_the_way(why, usage))
    }

    fn in_the_way(&self, why: BadPath, usage: Usage) -> BadChain {
        // Of an anchor its name constraints count, and no other extension (RFC 5280 §6.1.1).
        let count = if why == BadPath::NameConstraints {
            self.members.len()
        } else {
            self.chain.len()
        };
        let said = self
            .members
            .iter()
            .take(count)
            .find_map(|one| peers::in_the_way(one, why, usage));
        bad(said
            .unwrap_or_else(|| format!("the issuer's certificates would not be accepted: {why}")))
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
        name_text(&self.subject)
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

    /// The last instant at which the whole chain, root included, is valid. No certificate may
    /// outlive it.
    pub fn ends(&self) -> Timestamp {
        self.ends
    }

    /// Whether it may be asked for a signature at `now`. Not in its last minute: the longest call
    /// would be recorded after its end.
    pub fn may_sign_at(&self, now: Timestamp) -> bool {
        self.begins <= now && now.plus(LAST_MINUTE) <= self.ends
    }

    /// Whether it will not be asked for a signature any more: one whose time has yet to come will.
    pub fn is_over_at(&self, now: Timestamp) -> bool {
        self.begins <= now && !self.may_sign_at(now)
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

fn of_roots(roots: &[Listed]) -> Result<Anchors, BadChain> {
    for root in roots {
        let unfit = |_| {
            bad(format_args!(
                "{root}: TLS libraries cannot use it as a trust anchor; it is of version {}",
                root.version()
            ))
        };
        Anchors::new([root.der()]).map_err(unfit)?;
    }
    Anchors::new(roots.iter().map(|root| root.der())).map_err(bad)
}

/// The roots without what is no anchor: a cross-certificate says of a root's key that another root
/// trusts it, and belongs into the chain.
fn anchors(roots: Vec<Listed>, warnings: &mut Vec<String>) -> Result<Vec<Listed>, BadChain> {
    let (anchors, others): (Vec<Listed>, Vec<Listed>) =
        roots.into_iter().partition(|root| root.is_self_issued());
    for other in others {
        let issuer = name_text(other.issuer());
        if !anchors.iter().any(|anchor| anchor.is_twin_of(&other)) {
            return Err(bad(format_args!(
                "{other}: it is no root but issued by {issuer}; put it into `chain`, and only roots into `roots`"
            )));
        }
        warnings.push(format!(
            "{other}: it is a cross-certificate, issued by {issuer}, of a root that stands in the same file; it is left out. \
             Put it into `chain` for peers that know only {issuer}"
        ));
    }
    Ok(anchors)
}

/// How many CA certificates lie between each certificate of the chain and a leaf. Each must be
/// signed by one of the files, and but for the first must have signed one before it or be that
/// one's twin: the same CA, certified by another.
fn depths(chain: &[Listed], roots: &[Listed]) -> Result<Vec<usize>, BadChain> {
    let mut depths: Vec<usize> = Vec::new();
    for (at, one) in chain.iter().enumerate() {
        let is_root = roots.iter().any(|root| root.der() == one.der());
        if !is_root {
            let others = || {
                chain
                    .iter()
                    .enumerate()
                    .filter(|(other, _)| *other != at)
                    .map(|(_, other)| other)
                    .chain(roots)
            };
            if !others().any(|other| one.signed_by(other).is_ok()) {
                return Err(bad(listed::unsigned(one, others())));
            }
        }
        let twin = chain[..at]
            .iter()
            .position(|earlier| earlier.is_twin_of(one))
            .map(|twin| depths[twin]);
        let below = chain[..at]
            .iter()
            .zip(&depths)
            .filter(|(earlier, _)| earlier.signed_by(one).is_ok())
            .map(|(_, depth)| depth + 1)
            .max();
        match twin.or(below) {
            Some(depth) => depths.push(depth),
            None if at == 0 => depths.push(0),
            None => {
                let why = "it has signed none of those before it; the issuing certificate stands first, then each one's issuer";
                return Err(bad(format_args!("{one}: {why}")));
            }
        }
    }
    Ok(depths)
}

/// It may sign certificates, with `below` CA certificates between it and the leaf (RFC 5280
/// §4.2.1.9, §4.2.1.3).
fn check_ca(one: &Listed, below: usize) -> Result<(), BadChain> {
    let constraints = one
        .extension::<BasicConstraints>()
        .map_err(|error| bad(format_args!("{one}: {error}")))?;
    if !constraints.is_some_and(|(_, constraints)| constraints.ca) {
        return Err(bad(format_args!("{one}: it is not a CA certificate")));
    }
    check_length_and_usage(one, below)
}

/// An anchor without constraints has none (RFC 5280 §6.1.1); Go and OpenSSL obey those that it has.
fn check_anchor(root: &Listed, below: usize) -> Result<(), BadChain> {
    let constraints = root
        .extension::<BasicConstraints>()
        .map_err(|error| bad(format_args!("{root}: {error}")))?;
    if constraints.is_some_and(|(_, constraints)| !constraints.ca) {
        return Err(bad(format_args!(
            "{root}: it says of itself that it is not a CA certificate"
        )));
    }
    check_length_and_usage(root, below)
}

fn check_length_and_usage(one: &Listed, below: usize) -> Result<(), BadChain> {
    let unfit = |error| bad(format_args!("{one}: {error}"));
    let length = one
        .extension::<BasicConstraints>()
        .map_err(unfit)?
        .and_then(|(_, constraints)| constraints.path_len_constraint);
    if length.is_some_and(|length| usize::from(length) < below) {
        return Err(bad(format_args!(
            "{one}: its path length does not allow {below} CA certificates below it"
        )));
    }
    if one
        .extension::<KeyUsage>()
        .map_err(unfit)?
        .is_some_and(|(_, usage)| !usage.key_cert_sign())
    {
        return Err(bad(format_args!(
            "{one}: its key usage does not include keyCertSign"
        )));
    }
    Ok(())
}
