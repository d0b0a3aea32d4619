//! Whether an issuer will do, judged before its first call and by the parts that judge later: a
//! workload's certificate and the daemon's own are drafted under it, held against the linter and
//! the guard, and led through the whole chain by the daemon's path validation. Nobody signs them,
//! so that no device is needed and no key signs anything for it.

use std::sync::Arc;

use signers::process::Guard as _;

use super::IssuerConfig;
use crate::guard::{Guard, Rules};
use crate::policy::{Policy, Profile, ServingName, Subject, TrustDomains, default_group};
use crate::spiffe::{SpiffeId, TrustDomain};
use crate::timestamp::Timestamp;
use crate::x509::chain::IssuerChain;
use crate::x509::lint::{self, ToBeSigned};
use crate::x509::path::Usage;
use crate::x509::subject_key::SubjectKey;
use crate::x509::template::{self, Draft, SerialRandom};

/// What an issuer is judged with.
pub(super) struct Judge<'a> {
    pub(super) profile: &'a Profile,
    pub(super) trust_domains: &'a TrustDomains,
    pub(super) names: &'a [ServingName],
    pub(super) now: Timestamp,
}

impl Judge<'_> {
    /// Judges each issuer whose time it is. The error is the id of an active one that will not do,
    /// and why; of one that signs no more that is a warning.
    pub(super) fn all(&self, issuers: &[IssuerConfig]) -> Result<Vec<String>, (String, String)> {
        let is_active = |issuer: &IssuerConfig| !issuer.keys.is_empty();
        let default = default_group(issuers.iter().map(IssuerConfig::member));
        let mut warnings = Vec::new();
        for (place, issuer) in issuers
            .iter()
            .enumerate()
            .filter(|(_, issuer)| issuer.chain.may_sign_at(self.now))
        {
            let id = issuer.chain.id();
            // The daemon's own certificate comes from the default group.
            let serves = default.contains(&place);
            match self.one(&issuer.chain, serves) {
                Err(why) if is_active(issuer) => {
                    return Err((
                        id.to_owned(),
                        format!("has certificates that would not do: {why}"),
                    ));
                }
                Err(why) => warnings.push(format!("retiring issuer {id}: {why}")),
                Ok(()) => {}
            }
            warnings.extend(
                self.aliases(&issuer.chain)
                    .into_iter()
                    .map(|why| format!("issuer {id}: {why}")),
            );
        }
        Ok(warnings)
    }

    /// Judges one issuer; `serves` if the daemon's own certificate comes from it.
    pub(super) fn one(&self, chain: &Arc<IssuerChain>, serves: bool) -> Result<(), String> {
        self.workloads(chain)?;
        if serves { self.serving(chain) } else { Ok(()) }
    }

    /// Whether workloads of our trust domain could use what it issues, as clients and as servers.
    fn workloads(&self, chain: &Arc<IssuerChain>) -> Result<(), String> {
        self.workload(chain, &self.trust_domains.own)
            .map_err(|why| format!("a workload's certificate would not be accepted: {why}"))
    }

    /// The trust domains beside ours whose workloads could not use what it issues, a sentence each.
    fn aliases(&self, chain: &Arc<IssuerChain>) -> Vec<String> {
        let judged = |alias: &TrustDomain| {
            let why = self.workload(chain, alias).err()?;
            Some(format!(
                "a certificate for a workload of {alias} would not be accepted: {why}"
            ))
        };
        self.trust_domains
            .aliases
            .iter()
            .filter_map(judged)
            .collect()
    }

    /// Whether the daemon could serve with what it issues.
    fn serving(&self, chain: &Arc<IssuerChain>) -> Result<(), String> {
        let judged = |names: &[ServingName]| {
            self.trial(chain, Subject::Serving(names.to_vec()), &[Usage::Server])
        };
        judged(self.names).map_err(|why| {
            // One name may be in the way of all.
            let name = self
                .names
                .iter()
                .find(|name| judged(std::slice::from_ref(name)).is_err());
            let name = name.map(|name| format!(" for {name}")).unwrap_or_default();
            format!("the daemon's own certificate{name} would not be accepted: {why}")
        })
    }

    fn workload(&self, chain: &Arc<IssuerChain>, domain: &TrustDomain) -> Result<(), String> {
        let identity = SpiffeId::parse(&format!("spiffe://{domain}/ns/default/sa/default"))
            .ok_or("its trust domain is too long")?;
        self.trial(
            chain,
            Subject::Workload(identity),
            &[Usage::Client, Usage::Server],
        )
    }

    fn trial(
        &self,
        chain: &Arc<IssuerChain>,
        subject: Subject,
        usages: &[Usage],
    ) -> Result<(), String> {
        let rules = match &subject {
            Subject::Workload(_) => lint::Rules::Svid,
            Subject::Serving(_) => lint::Rules::Serving,
        };
        let domain = match &subject {
            Subject::Workload(identity) => identity.trust_domain(),
            Subject::Serving(_) => &self.trust_domains.own,
        };
        let grant = Policy::new(self.profile.clone(), Vec::new())
            .trial(subject.clone(), chain, self.now)
            .map_err(|refusal| refusal.to_string())?;
        let longest = grant.not_after().since(grant.not_before());
        let guard = Guard::new(&Rules {
            issuers: chain.chain().iter().take(1).map(hex::encode).collect(),
            templates: vec![template::VERSION],
            trust_domains: vec![domain.to_string()],
            // A certificate's times are whole seconds, each rounded down by itself, so it may last
            // a second longer than the grant.
            longest: longest.as_secs() + 1,
            serving_names: self.names.iter().map(ToString::to_string).collect(),
        })?;
        // Any legal key will do; the issuer's own is at hand.
        let key = SubjectKey::from_spki(chain.public_key().spki_der())
            .map_err(|error| error.to_string())?;
        let draft = Draft::new(
            grant,
            key,
            self.now.period(),
            self.now,
            SerialRandom([1; 11]),
        );
        guard.judge(0, draft.purpose(), draft.to_be_signed())?;
        let issuer =
            lint::Issuer::parse(&chain.chain()[0]).map_err(|violation| violation.to_string())?;
        let read =
            ToBeSigned::read(draft.to_be_signed()).and_then(|read| read.examine(&issuer, rules));
        read.map_err(|violation| violation.to_string())?;
        let certificate =
            lint::certificate(draft.to_be_signed(), &[0]).ok_or("it cannot be put together")?;
        usages
            .iter()
            .try_for_each(|usage| chain.would_verify(&certificate, *usage, self.now))
            .map_err(|why| why.to_string())
    }
}
