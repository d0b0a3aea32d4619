//! What a signer process checks before it signs: a second opinion on the bytes, by rules that were fixed when the process began. It shares no
//! code with the template that writes them, only the reader of certificates, so that a fault there, or a daemon that was taken over, does not
//! get a CA certificate, a name of another trust domain, a life of ten years or an extension that nobody knows. Pure, but for the rules' text.

use serde::{Deserialize, Serialize};
use signers::Purpose;

use crate::x509::lint::{self, ToBeSigned, Violation};

/// The rules, as a config or a daemon writes them.
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
    issuers: Vec<lint::Issuer>,
    trust_domain: String,
    longest: i64,
    serving_names: Vec<String>,
}

impl Guard {
    /// Reads rules; a sentence says what is wrong with them.
    pub fn read(text: &[u8]) -> Result<Self, String> {
        let rules: Rules = serde_json::from_slice(text).map_err(|error| format!("the guard's rules cannot be read: {error}"))?;
        Self::new(&rules)
    }

    /// Makes a guard of rules.
    pub fn new(rules: &Rules) -> Result<Self, String> {
        let issuer = |der: &String| {
            let der = hex::decode(der).map_err(|error| format!("an issuer of the guard's rules is not hexadecimal: {error}"))?;
            lint::Issuer::parse(&der).map_err(|violation| violation.to_string())
        };
        Ok(Self {
            issuers: rules.issuers.iter().map(issuer).collect::<Result<_, _>>()?,
            trust_domain: rules.trust_domain.clone(),
            longest: i64::try_from(rules.longest).map_err(|_| "the guard's longest validity is too long".to_owned())?,
            serving_names: rules.serving_names.iter().map(|name| name.to_ascii_lowercase()).collect(),
        })
    }

    fn examine(&self, key: usize, purpose: Purpose, message: &[u8]) -> Result<(), Violation> {
        let issuer = self.issuers.get(key).ok_or_else(|| Violation(format!("the guard knows no issuer {key}")))?;
        let rules = match purpose {
            Purpose::Leaf => lint::Rules::Svid,
            Purpose::Serving => lint::Rules::Serving,
            Purpose::CaCertificate | Purpose::Crl | Purpose::Probe => {
                return Err(Violation(format!("this signer signs nothing for the purpose {}", purpose.as_str())));
            }
        };
        let certificate = ToBeSigned::read(message)?;
        let examined = certificate.examine(issuer, rules)?;
        let (begins, ends) = certificate.validity();
        let lasts = ends.seconds().saturating_sub(begins.seconds());
        if lasts > self.longest {
            return Err(Violation(format!("it is valid for {lasts} s, at most {} s are allowed", self.longest)));
        }
        match (rules, examined.identity) {
            (lint::Rules::Svid, Some(identity)) => self.is_ours(&identity),
            (lint::Rules::Svid, None) => Err(Violation("it has no identity".into())),
            (lint::Rules::Serving, _) => self.are_serving_names(&certificate.serving_names()?),
        }
    }

    fn is_ours(&self, identity: &str) -> Result<(), Violation> {
        let domain = identity.strip_prefix("spiffe://").and_then(|rest| rest.split_once('/')).map(|(domain, _)| domain);
        if domain == Some(self.trust_domain.as_str()) {
            Ok(())
        } else {
            Err(Violation(format!("{identity:?} is not of the trust domain {}", self.trust_domain)))
        }
    }

    fn are_serving_names(&self, names: &[String]) -> Result<(), Violation> {
        match names.iter().find(|name| !self.serving_names.contains(name)) {
            None => Ok(()),
            Some(name) => Err(Violation(format!("{name:?} is not a name that the daemon serves under"))),
        }
    }
}

impl signers::process::Guard for Guard {
    fn judge(&self, key: usize, purpose: Purpose, message: &[u8]) -> Result<(), String> {
        self.examine(key, purpose, message).map_err(|violation| violation.to_string())
    }
}
