//! What a caller may have: profile, lifetime, issuer, SANs. Pure: no I/O, no clock, no async, no
//! metrics; time and randomness are passed in.

pub mod grant;
mod group;
mod profile;

use std::sync::Arc;
use std::time::Duration;

pub use grant::{Grant, ServingName, Subject};
pub use group::{Member, default_group};
pub use profile::{BadProfile, KeyAllowed, Profile, SanRule};

use crate::refusal::{Reason, Refusal};
use crate::spiffe::{SpiffeId, TrustDomain};
use crate::timestamp::Timestamp;
use crate::x509::chain::IssuerChain;
use crate::x509::csr::{Csr, San};

/// NotBefore lies at most this far in the past (contract §4).
pub const BACKDATED_AT_MOST: Duration = Duration::from_secs(120);

/// A text value of the request's metadata, as it arrived.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Asked {
    /// The key is absent or its text is empty.
    #[default]
    Nothing,
    /// A text.
    Text(String),
    /// A number, list, struct, boolean or null.
    NotText,
}

/// What a call asks for, beside its CSR.
#[derive(Clone, Debug, Default)]
pub struct Wishes {
    /// Seconds; zero or less asks for the default.
    pub lifetime: i64,
    /// CertSigner: the issuer's id.
    pub signer: Asked,
    /// ImpersonatedIdentity: a SPIFFE ID.
    pub impersonated: Asked,
}

/// An issuer as policy sees it.
#[derive(Clone, Debug)]
pub struct Choice {
    /// Its certificates.
    pub chain: Arc<IssuerChain>,
    /// Whether it signs; a retiring one does not.
    pub active: bool,
    /// The id of the issuer that it stands beside: it signs for calls that name no issuer as that
    /// one does.
    pub sibling_of: Option<String>,
}

impl Choice {
    fn member(&self) -> Member<'_> {
        Member {
            id: self.chain.id(),
            active: self.active,
            sibling_of: self.sibling_of.as_deref(),
        }
    }
}

/// The rules of one snapshot.
#[derive(Debug)]
pub struct Policy {
    profile: Profile,
    issuers: Vec<Choice>,
    default: Vec<Arc<IssuerChain>>,
}

impl Policy {
    /// Rules over these issuers.
    pub fn new(profile: Profile, issuers: Vec<Choice>) -> Self {
        let default = default_group(issuers.iter().map(Choice::member))
            .into_iter()
            .map(|place| issuers[place].chain.clone())
            .collect();
        Self {
            profile,
            issuers,
            default,
        }
    }

    /// The issuers that sign for calls that name none, whatever the time: see `default_group`.
    pub fn default_issuers(&self) -> &[Arc<IssuerChain>] {
        &self.default
    }

    /// What `caller` is granted for its CSR and wishes. `jitter` is fresh randomness that shortens
    /// the lifetime where the profile says so. `issuer` is one of `issuers`.
    pub fn grant(
        &self,
        caller: &SpiffeId,
        csr: &Csr,
        wishes: &Wishes,
        issuer: &Arc<IssuerChain>,
        now: Timestamp,
        jitter: u64,
    ) -> Result<Grant, Refusal> {
        refuse_impersonation(&wishes.impersonated)?;
        self.profile.check_key(csr.key().kind())?;
        self.check_sans(caller, csr)?;
        let lifetime = self.profile.lifetime(wishes.lifetime, jitter)?;
        self.terms(Subject::Workload(caller.clone()), issuer, lifetime, now)
    }

    /// What the daemon grants itself for serving under `names`.
    pub fn serving(
        &self,
        names: &[ServingName],
        issuer: &Arc<IssuerChain>,
        now: Timestamp,
    ) -> Result<Grant, Refusal> {
        self.terms(
            Subject::Serving(names.to_vec()),
            issuer,
            self.profile.default,
            now,
        )
    }

    /// What a certificate for `subject` would say that lasts as long as one may, to judge an issuer
    /// by; nobody has asked for it.
    pub fn trial(
        &self,
        subject: Subject,
        issuer: &Arc<IssuerChain>,
        now: Timestamp,
    ) -> Result<Grant, Refusal> {
        self.terms(subject, issuer, self.profile.maximum, now)
    }

    /// What `grant` says under another issuer, as of `now`.
    pub fn under(
        &self,
        issuer: &Arc<IssuerChain>,
        grant: &Grant,
        now: Timestamp,
    ) -> Result<Grant, Refusal> {
        self.terms(grant.subject().clone(), issuer, grant.lifetime(), now)
    }

    fn terms(
        &self,
        subject: Subject,
        issuer: &Arc<IssuerChain>,
        lifetime: Duration,
        now: Timestamp,
    ) -> Result<Grant, Refusal> {
        let now = Timestamp::from_seconds(now.seconds());
        let not_after = now.plus(lifetime).min(issuer.ends());
        if !issuer.may_sign_at(now) {
            let (begins, ends) = (issuer.begins(), issuer.ends());
            return Err(Refusal::new(
                Reason::IssuerExpired,
                format_args!("issuer {} is valid from {begins} to {ends}", issuer.id()),
            ));
        }
        let not_before = now
            .minus(BACKDATED_AT_MOST.min(not_after.since(now) / 10))
            .max(issuer.begins());
        Ok(Grant::new(
            subject,
            issuer.clone(),
            lifetime,
            (not_before, not_after),
            self.profile.digest(),
        ))
    }

    /// The issuers that may sign, never none: the one that CertSigner names; when it names none,
    /// the default ones. Those whose time has not come, or is over, are left out while there are
    /// others.
    pub fn issuers(&self, asked: &Asked, now: Timestamp) -> Result<Vec<Arc<IssuerChain>>, Refusal> {
        let mut allowed: Vec<Arc<IssuerChain>> = match asked {
            Asked::NotText => {
                return Err(Refusal::new(
                    Reason::MalformedRequest,
                    "CertSigner is not a text",
                ));
            }
            Asked::Text(id) => {
                let named = self
                    .issuers
                    .iter()
                    .find(|issuer| issuer.active && issuer.chain.id() == id);
                named
                    .map(|issuer| issuer.chain.clone())
                    .into_iter()
                    .collect()
            }
            Asked::Nothing => self.default.clone(),
        };
        if allowed.len() > 1 && allowed.iter().any(|issuer| issuer.may_sign_at(now)) {
            allowed.retain(|issuer| issuer.may_sign_at(now));
        }
        match (allowed.is_empty(), asked) {
            (false, _) => Ok(allowed),
            (true, Asked::Text(id)) => Err(Refusal::new(
                Reason::UnknownSigner,
                format_args!("CertSigner {id:?} is no active issuer"),
            )),
            (true, _) => Err(Refusal::new(Reason::Internal, "no issuer is active")),
        }
    }

    fn check_sans(&self, caller: &SpiffeId, csr: &Csr) -> Result<(), Refusal> {
        let own = San::Uri(caller.to_string());
        match self.profile.san {
            SanRule::Overwrite => Ok(()),
            SanRule::Strict if csr.sans().iter().all(|san| *san == own) => Ok(()),
            SanRule::Strict => Err(Refusal::new(
                Reason::SanMismatch,
                format_args!("the CSR's SANs are not {caller} alone"),
            )),
        }
    }
}

/// Impersonation is not offered: every value but the empty one is refused, and the caller's own
/// identity is never given instead.
fn refuse_impersonation(asked: &Asked) -> Result<(), Refusal> {
    match asked {
        Asked::Nothing => Ok(()),
        Asked::Text(id) => Err(Refusal::new(
            Reason::Impersonation,
            format_args!("impersonation of {id:?} asked for; it is off"),
        )),
        Asked::NotText => Err(Refusal::new(
            Reason::MalformedRequest,
            "ImpersonatedIdentity is not a text",
        )),
    }
}

/// The trust domains whose identities are accepted: ours first, then aliases.
#[derive(Clone, Debug)]
pub struct TrustDomains {
    /// The one that tokens of our clusters speak for.
    pub own: TrustDomain,
    /// Others whose client certificates are honoured.
    pub aliases: Vec<TrustDomain>,
}

impl TrustDomains {
    /// Whether identities of `domain` are accepted.
    pub fn accept(&self, domain: &TrustDomain) -> bool {
        *domain == self.own || self.aliases.contains(domain)
    }
}
