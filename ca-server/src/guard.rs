//! What a signer process checks before it signs: a second opinion on the bytes, by rules that were fixed when the process began. It shares no
//! code with the template that writes them, only the reader of certificates, so that a fault there, or a daemon that was taken over, does not
//! get a CA certificate, a name of another trust domain, a life of ten years or an extension that nobody knows. Pure, but for the rules' text
//! and the clock that a guard may be given.

pub mod key_rules;
pub mod pattern;

use std::time::Duration;

use serde::{Deserialize, Serialize};
use signers::Purpose;

use crate::clock::Clock;
use crate::x509::lint::{self, Issuer, ToBeSigned, Violation};
use key_rules::{KeyRules, LeafRules, Limits, ServingRules};

/// Longer than any certificate of this CA; what waits to be signed is in memory.
const LARGEST: usize = 64 * 1024;

/// How old the beginning of a validity may be when it is signed: backdating, the longest call, and some more.
const BEGUN_AT_MOST: Duration = Duration::from_secs(600);

/// How far in the future it may be.
const BEGINS_WITHIN: Duration = Duration::from_secs(60);

/// The rules that a daemon gives a process of its own, the same for each key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rules {
    /// Of each key, in the order of their numbers: the certificate of its issuer, DER in hexadecimal.
    pub issuers: Vec<String>,
    /// The one trust domain whose workloads may get certificates.
    pub trust_domain: String,
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

/// Rules that were read and hold together.
pub struct Guard {
    keys: Vec<KeyRules>,
    clock: Option<Clock>,
}

impl Guard {
    /// Reads rules; a sentence says what is wrong with them.
    pub fn read(text: &[u8]) -> Result<Self, String> {
        let rules: Rules = serde_json::from_slice(text).map_err(|error| format!("the guard's rules cannot be read: {error}"))?;
        Self::new(&rules)
    }

    /// Makes a guard of rules.
    pub fn new(rules: &Rules) -> Result<Self, String> {
        let longest = i64::try_from(rules.longest).map_err(|_| "the guard's longest validity is too long".to_owned())?;
        let names: Vec<String> = rules.serving_names.iter().map(|name| name.to_ascii_lowercase()).collect();
        let key = |der: &String| {
            let der = hex::decode(der).map_err(|error| format!("an issuer of the guard's rules is not hexadecimal: {error}"))?;
            let limits = || Limits::of_lifetime(longest);
            let trust_domains = vec![rules.trust_domain.clone()];
            Ok(KeyRules {
                issuer: Issuer::parse(&der).map_err(|violation| violation.to_string())?,
                leaf: Some(LeafRules { trust_domains, identities: Vec::new(), limits: limits() }),
                serving: Some(ServingRules { names: names.clone(), limits: limits() }),
            })
        };
        Ok(Self { keys: rules.issuers.iter().map(key).collect::<Result<_, String>>()?, clock: None })
    }

    /// A guard with rules for each key, in the order of their numbers, that also lets no validity begin at another time than now.
    pub fn of_keys(keys: Vec<KeyRules>, clock: Clock) -> Self {
        Self { keys, clock: Some(clock) }
    }

    fn examine(&self, key: usize, purpose: Purpose, message: &[u8]) -> Result<(), Violation> {
        if message.len() > LARGEST {
            return Err(Violation(format!("it has {} bytes, at most {LARGEST} are allowed", message.len())));
        }
        let key = self.keys.get(key).ok_or_else(|| Violation(format!("the guard knows no issuer {key}")))?;
        let unwanted = || Violation(format!("this key signs nothing for the purpose {}", purpose.as_str()));
        match purpose {
            Purpose::Leaf => {
                let rules = key.leaf.as_ref().ok_or_else(unwanted)?;
                let certificate = ToBeSigned::read(message)?;
                let examined = certificate.examine(&key.issuer, lint::Rules::Svid)?;
                self.holds(&rules.limits, &certificate)?;
                rules.allow(&examined.identity.ok_or_else(|| Violation("it has no identity".into()))?)
            }
            Purpose::Serving => {
                let rules = key.serving.as_ref().ok_or_else(unwanted)?;
                let certificate = ToBeSigned::read(message)?;
                certificate.examine(&key.issuer, lint::Rules::Serving)?;
                self.holds(&rules.limits, &certificate)?;
                rules.allow(&certificate.serving_names()?)
            }
            Purpose::CaCertificate | Purpose::Crl | Purpose::Probe => Err(unwanted()),
        }
    }

    fn holds(&self, limits: &Limits, certificate: &ToBeSigned<'_>) -> Result<(), Violation> {
        limits.hold(certificate)?;
        let Some(now) = self.clock.as_ref().map(Clock::now) else { return Ok(()) };
        let (begins, _) = certificate.validity();
        // Certificates for later, made in one day, would outlast the day on which a daemon was taken over.
        if now.minus(BEGUN_AT_MOST) <= begins && begins <= now.plus(BEGINS_WITHIN) {
            Ok(())
        } else {
            Err(Violation(format!("its validity begins at {begins}; it is now {now}")))
        }
    }
}

impl signers::process::Guard for Guard {
    fn judge(&self, key: usize, purpose: Purpose, message: &[u8]) -> Result<(), String> {
        self.examine(key, purpose, message).map_err(|violation| violation.to_string())
    }
}
