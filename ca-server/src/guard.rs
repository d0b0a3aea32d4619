//! What a signer process checks before it signs: a second opinion on the bytes, by rules that were
//! fixed when the process began. It writes the one body that they may be once more, from the few
//! fields that are free, with an encoder of its own, and compares octets; then it judges those
//! fields. It shares no code with the template that drafts certificates, so that a fault there, or
//! a daemon that was taken over, does not get a CA certificate, a name of another trust domain, a
//! life of ten years or anything that no template has. Pure, but for the rules' text and the clock
//! that a guard may be given.

mod body;
mod der;
mod issuer;
pub mod key_rules;
pub mod pattern;

use std::time::Duration;

use serde::{Deserialize, Serialize};
use signers::{PROBE, Purpose};

pub use body::Name;
pub use issuer::Issuer;

use crate::clock::Clock;
use body::{Free, Template};
use key_rules::{KeyRules, LeafRules, ServingRules};

/// Longer than any certificate of this CA; what waits to be signed is in memory.
const LARGEST: usize = 32 * 1024;

/// How old the beginning of a validity may be when it is signed: backdating, the longest call, and
/// some more.
const BEGUN_AT_MOST: Duration = Duration::from_secs(600);

/// How far in the future it may be.
const BEGINS_WITHIN: Duration = Duration::from_secs(60);

/// A rule that is broken, with its source.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Violation(pub String);

/// The rules that a daemon gives a process of its own, the same for each key: what its policy may
/// grant, and nothing else.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rules {
    /// The templates of a body that are taken, by their numbers: the daemon's own, and during an
    /// upgrade another.
    pub templates: Vec<u16>,
    /// Of each key, in the order of their numbers: the certificate of its issuer, DER in
    /// hexadecimal.
    pub issuers: Vec<String>,
    /// The trust domains whose workloads may get certificates.
    pub trust_domains: Vec<String>,
    /// The longest validity, in seconds, from its first second to its last.
    pub longest: u64,
    /// Names under which the daemon itself may serve: DNS names and addresses.
    pub serving_names: Vec<String>,
}

impl Rules {
    /// As a signer's setup carries them.
    pub fn to_text(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("plain texts and numbers")
    }
}

/// The templates that a guard takes; never none.
#[derive(Clone, Debug)]
pub struct Templates(Vec<Template>);

impl Templates {
    /// Every one that this program knows.
    pub fn known() -> Self {
        Self(Template::ALL.to_vec())
    }

    /// Those of these numbers; a sentence says what is wrong with them.
    pub fn of(numbers: &[u16]) -> Result<Self, String> {
        let known = || {
            Template::ALL
                .map(|template| template.number().to_string())
                .join(", ")
        };
        let of = |number: &u16| {
            Template::ALL
                .into_iter()
                .find(|template| template.number() == *number)
                .ok_or(*number)
        };
        let unknown = |number| {
            format!(
                "there is no template {number} of a certificate's body here, only {}; upgrade the signer before its daemons",
                known()
            )
        };
        match numbers {
            [] => Err(format!(
                "no template of a certificate's body is named; there is {}",
                known()
            )),
            _ => numbers
                .iter()
                .map(of)
                .collect::<Result<_, _>>()
                .map(Self)
                .map_err(unknown),
        }
    }
}

/// Rules that were read and hold together.
pub struct Guard {
    keys: Vec<KeyRules>,
    templates: Templates,
    clock: Option<Clock>,
}

impl Guard {
    /// Reads rules; a sentence says what is wrong with them.
    pub fn read(text: &[u8]) -> Result<Self, String> {
        let rules: Rules = serde_json::from_slice(text)
            .map_err(|error| format!("the guard's rules cannot be read: {error}"))?;
        Self::new(&rules)
    }

    /// Makes a guard of rules.
    pub fn new(rules: &Rules) -> Result<Self, String> {
        let longest = i64::try_from(rules.longest)
            .map_err(|_| "the guard's longest validity is too long".to_owned())?;
        let name = |name: &String| {
            name.parse()
                .map_or_else(|_| Name::Dns(name.to_ascii_lowercase()), Name::Address)
        };
        let names: Vec<Name> = rules.serving_names.iter().map(name).collect();
        let key = |der: &String| {
            let der = hex::decode(der).map_err(|error| {
                format!("an issuer of the guard's rules is not hexadecimal: {error}")
            })?;
            Ok(KeyRules {
                issuer: Issuer::parse(&der).map_err(|violation| violation.to_string())?,
                leaf: Some(LeafRules {
                    trust_domains: rules.trust_domains.clone(),
                    identities: Vec::new(),
                    longest,
                }),
                serving: Some(ServingRules {
                    names: names.clone(),
                    longest,
                }),
            })
        };
        let keys = rules
            .issuers
            .iter()
            .map(key)
            .collect::<Result<_, String>>()?;
        Ok(Self {
            keys,
            templates: Templates::of(&rules.templates)?,
            clock: None,
        })
    }

    /// A guard with rules for each key, in the order of their numbers, that also lets no validity
    /// begin at another time than now.
    pub fn of_keys(keys: Vec<KeyRules>, templates: Templates, clock: Clock) -> Self {
        Self {
            keys,
            templates,
            clock: Some(clock),
        }
    }

    fn examine(&self, key: usize, purpose: Purpose, message: &[u8]) -> Result<(), Violation> {
        if message.len() > LARGEST {
            return Err(Violation(format!(
                "it has {} bytes, at most {LARGEST} are allowed",
                message.len()
            )));
        }
        let key = self
            .keys
            .get(key)
            .ok_or_else(|| Violation(format!("the guard knows no issuer {key}")))?;
        let unwanted = || {
            Violation(format!(
                "this key signs nothing for the purpose {}",
                purpose.as_str()
            ))
        };
        match purpose {
            Purpose::Leaf => {
                let rules = key.leaf.as_ref().ok_or_else(unwanted)?;
                rules.allow(&self.body(&key.issuer, rules.longest, message)?.names)
            }
            Purpose::Serving => {
                let rules = key.serving.as_ref().ok_or_else(unwanted)?;
                rules.allow(&self.body(&key.issuer, rules.longest, message)?.names)
            }
            // Whether a token is back: a text that nothing takes for anything.
            Purpose::Probe if message == PROBE => Ok(()),
            Purpose::CaCertificate | Purpose::Crl | Purpose::Probe => Err(unwanted()),
        }
    }

    /// The free fields of a message that is the one body which they have.
    fn body<'a>(
        &self,
        issuer: &Issuer,
        longest: i64,
        message: &'a [u8],
    ) -> Result<Free<'a>, Violation> {
        let free = Free::read(message)?;
        free.is_all_of(message, issuer, &self.templates.0)?;
        let (begins, ends) = (free.begins, free.ends);
        if begins >= ends {
            return Err(Violation(
                "it ends before it begins (RFC 5280 §4.1.2.5)".into(),
            ));
        }
        let lasts = ends.seconds() - begins.seconds();
        if lasts > longest {
            return Err(Violation(format!(
                "it is valid for {lasts} s, at most {longest} s are allowed"
            )));
        }
        let (issuer_begins, issuer_ends) = issuer.validity();
        if begins < issuer_begins || issuer_ends < ends {
            return Err(Violation(format!(
                "its validity is not within its issuer's, from {issuer_begins} to {issuer_ends}"
            )));
        }
        // Certificates for later, made in one day, would outlast the day on which a daemon was
        // taken over.
        let now = self.clock.as_ref().map(Clock::now);
        match now
            .filter(|now| begins < now.minus(BEGUN_AT_MOST) || now.plus(BEGINS_WITHIN) < begins)
        {
            None => Ok(free),
            Some(now) => Err(Violation(format!(
                "its validity begins at {begins}; it is now {now}"
            ))),
        }
    }
}

impl signers::process::Guard for Guard {
    fn judge(&self, key: usize, purpose: Purpose, message: &[u8]) -> Result<(), String> {
        self.examine(key, purpose, message)
            .map_err(|violation| violation.to_string())
    }
}

#[cfg(test)]
mod tests;
