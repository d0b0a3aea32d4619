//! What policy has decided about one certificate. Only `policy` makes a `Grant`; a template writes
//! nothing that is not in it.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::spiffe::SpiffeId;
use crate::timestamp::Timestamp;
use crate::x509::chain::IssuerChain;

/// Whom a certificate names, in its SubjectAltName (RFC 5280 §4.2.1.6). The subject is empty, so
/// the extension is critical.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// A workload: exactly one URI (SPIFFE X.509-SVID §2).
    Workload(SpiffeId),
    /// The daemon's own serving certificate.
    Serving(Vec<ServingName>),
}

/// A name under which the daemon serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServingName {
    /// A DNS name, lower case.
    Dns(String),
    /// An IP address.
    Ip(IpAddr),
}

impl ServingName {
    /// An IP address, else a DNS name of letters, digits, dashes and dots; a leading `*.` is
    /// allowed. `None` if it is neither.
    pub fn parse(text: &str) -> Option<Self> {
        if let Ok(address) = text.parse() {
            return Some(Self::Ip(address));
        }
        let label = |label: &str| {
            (1..=63).contains(&label.len())
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
        };
        let host = text.strip_prefix("*.").unwrap_or(text);
        (text.len() <= 253 && host.split('.').all(label))
            .then(|| Self::Dns(text.to_ascii_lowercase()))
    }
}

/// As a config writes it.
impl fmt::Display for ServingName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dns(name) => f.write_str(name),
            Self::Ip(address) => address.fmt(f),
        }
    }
}

/// Everything about a certificate that policy decides.
#[derive(Clone, Debug)]
pub struct Grant {
    subject: Subject,
    issuer: Arc<IssuerChain>,
    lifetime: Duration,
    not_before: Timestamp,
    not_after: Timestamp,
    profile: [u8; 32],
}

impl Grant {
    pub(super) fn new(
        subject: Subject,
        issuer: Arc<IssuerChain>,
        lifetime: Duration,
        (not_before, not_after): (Timestamp, Timestamp),
        profile: [u8; 32],
    ) -> Self {
        Self {
            subject,
            issuer,
            lifetime,
            not_before,
            not_after,
            profile,
        }
    }

    /// How long it lasts where its issuer lasts longer.
    pub(super) fn lifetime(&self) -> Duration {
        self.lifetime
    }

    /// Whom it names.
    pub fn subject(&self) -> &Subject {
        &self.subject
    }

    /// Who signs it.
    pub fn issuer(&self) -> &Arc<IssuerChain> {
        &self.issuer
    }

    /// First second of validity.
    pub fn not_before(&self) -> Timestamp {
        self.not_before
    }

    /// Last second of validity.
    pub fn not_after(&self) -> Timestamp {
        self.not_after
    }

    /// SHA-256 of the profile it was granted by.
    pub fn profile(&self) -> &[u8; 32] {
        &self.profile
    }
}
