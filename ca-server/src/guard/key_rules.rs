//! What one key may sign, as a signer's operator writes it: an issuer, and rules for each purpose. What has no rules is not signed.

use std::time::Duration;

use const_oid::ObjectIdentifier;
use const_oid::db::rfc5280::{
    ID_CE_AUTHORITY_KEY_IDENTIFIER, ID_CE_BASIC_CONSTRAINTS, ID_CE_EXT_KEY_USAGE, ID_CE_KEY_USAGE, ID_CE_SUBJECT_ALT_NAME,
    ID_CE_SUBJECT_KEY_IDENTIFIER,
};
use serde::Deserialize;

use super::pattern::IdentityPattern;
use crate::x509::lint::{Issuer, KeyUsages, ToBeSigned, Violation};

/// By how much a certificate's validity may begin before it is issued.
pub const BACKDATED_AT_MOST: Duration = Duration::from_secs(120);

/// What one key may sign.
pub struct KeyRules {
    /// Its issuer.
    pub issuer: Issuer,
    /// Certificates of workloads; `None` signs none.
    pub leaf: Option<LeafRules>,
    /// The daemons' own certificates; `None` signs none.
    pub serving: Option<ServingRules>,
}

/// Which workloads get certificates, and which.
pub struct LeafRules {
    /// Trust domains of which every workload may have one.
    pub trust_domains: Vec<String>,
    /// Identities of these forms may have one.
    pub identities: Vec<IdentityPattern>,
    /// What holds beside.
    pub limits: Limits,
}

/// Under which names daemons may serve.
pub struct ServingRules {
    /// DNS names, in small letters, and addresses.
    pub names: Vec<String>,
    /// What holds beside.
    pub limits: Limits,
}

/// What holds whatever a certificate is for.
pub struct Limits {
    /// The longest validity, in seconds, from its first second to its last.
    pub longest: i64,
    /// What the certified key may be used for; what must and what must never be there is fixed.
    pub key_usages: Vec<Usage>,
    /// Extensions that may be there; no others than these six ever are.
    pub extensions: Vec<Extension>,
}

/// What a certified key may be used for (RFC 5280 §4.2.1.3). To sign certificates and CRLs is not among it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "the standard's names")]
pub enum Usage {
    DigitalSignature,
    NonRepudiation,
    KeyEncipherment,
    DataEncipherment,
    KeyAgreement,
    EncipherOnly,
    DecipherOnly,
}

/// An extension of a certificate (RFC 5280 §4.2.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "the standard's names")]
pub enum Extension {
    KeyUsage,
    ExtendedKeyUsage,
    BasicConstraints,
    SubjectKeyIdentifier,
    AuthorityKeyIdentifier,
    SubjectAlternativeName,
}

impl Usage {
    /// Every one.
    pub const ALL: [Self; 7] = [
        Self::DigitalSignature,
        Self::NonRepudiation,
        Self::KeyEncipherment,
        Self::DataEncipherment,
        Self::KeyAgreement,
        Self::EncipherOnly,
        Self::DecipherOnly,
    ];
    /// What certificates of this CA have.
    pub const USUAL: [Self; 2] = [Self::DigitalSignature, Self::KeyEncipherment];

    fn of(usage: KeyUsages) -> Option<Self> {
        match usage {
            KeyUsages::DigitalSignature => Some(Self::DigitalSignature),
            KeyUsages::NonRepudiation => Some(Self::NonRepudiation),
            KeyUsages::KeyEncipherment => Some(Self::KeyEncipherment),
            KeyUsages::DataEncipherment => Some(Self::DataEncipherment),
            KeyUsages::KeyAgreement => Some(Self::KeyAgreement),
            KeyUsages::EncipherOnly => Some(Self::EncipherOnly),
            KeyUsages::DecipherOnly => Some(Self::DecipherOnly),
            KeyUsages::KeyCertSign | KeyUsages::CRLSign => None,
        }
    }
}

impl Extension {
    /// Every one that a certificate of this CA has.
    pub const ALL: [Self; 6] = [
        Self::KeyUsage,
        Self::ExtendedKeyUsage,
        Self::BasicConstraints,
        Self::SubjectKeyIdentifier,
        Self::AuthorityKeyIdentifier,
        Self::SubjectAlternativeName,
    ];
    /// Those without which no certificate keeps the fixed rules.
    pub const NEEDED: [Self; 4] = [Self::KeyUsage, Self::ExtendedKeyUsage, Self::AuthorityKeyIdentifier, Self::SubjectAlternativeName];

    fn oid(self) -> ObjectIdentifier {
        match self {
            Self::KeyUsage => ID_CE_KEY_USAGE,
            Self::ExtendedKeyUsage => ID_CE_EXT_KEY_USAGE,
            Self::BasicConstraints => ID_CE_BASIC_CONSTRAINTS,
            Self::SubjectKeyIdentifier => ID_CE_SUBJECT_KEY_IDENTIFIER,
            Self::AuthorityKeyIdentifier => ID_CE_AUTHORITY_KEY_IDENTIFIER,
            Self::SubjectAlternativeName => ID_CE_SUBJECT_ALT_NAME,
        }
    }
}

impl Limits {
    /// All that the fixed rules allow, for so many seconds.
    pub fn of_lifetime(longest: i64) -> Self {
        Self { longest, key_usages: Usage::ALL.to_vec(), extensions: Extension::ALL.to_vec() }
    }

    pub(super) fn hold(&self, certificate: &ToBeSigned<'_>) -> Result<(), Violation> {
        let (begins, ends) = certificate.validity();
        let lasts = ends.seconds().saturating_sub(begins.seconds());
        if lasts > self.longest {
            return Err(Violation(format!("it is valid for {lasts} s, at most {} s are allowed", self.longest)));
        }
        let allowed = |usage: KeyUsages| Usage::of(usage).is_some_and(|usage| self.key_usages.contains(&usage));
        if let Some(usage) = certificate.key_usages()?.find(|usage| !allowed(*usage)) {
            return Err(Violation(format!("its key usage {usage:?} is not allowed")));
        }
        let allowed = |oid: &ObjectIdentifier| self.extensions.iter().any(|extension| extension.oid() == *oid);
        match certificate.extensions().find(|oid| !allowed(oid)) {
            None => Ok(()),
            Some(oid) => Err(Violation(format!("its extension {oid} is not allowed"))),
        }
    }
}

impl LeafRules {
    pub(super) fn allow(&self, identity: &str) -> Result<(), Violation> {
        let domain = identity.strip_prefix("spiffe://").and_then(|rest| rest.split_once('/')).map(|(domain, _)| domain);
        let of_domain = domain.is_some_and(|domain| self.trust_domains.iter().any(|ours| ours == domain));
        if of_domain || self.identities.iter().any(|pattern| pattern.matches(identity)) {
            Ok(())
        } else {
            Err(Violation(format!("{identity:?} is none of the workloads that may have a certificate")))
        }
    }
}

impl ServingRules {
    pub(super) fn allow(&self, names: &[String]) -> Result<(), Violation> {
        match names.iter().find(|name| !self.names.contains(name)) {
            None => Ok(()),
            Some(name) => Err(Violation(format!("{name:?} is not a name that the daemon serves under"))),
        }
    }
}
