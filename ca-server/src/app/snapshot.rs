//! Builds a snapshot from a config: signers, authenticators, policy, bundle.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::server::danger::ClientCertVerifier;

use super::signers;
use crate::authn::Authenticators;
use crate::authn::client_cert::ClientCertificates;
use crate::authn::jwks::Jwks;
use crate::authn::jwt::{TokenIssuer, Tokens};
use crate::cli::Exit;
use crate::config::{Config, IssuerConfig};
use crate::issue::Snapshot;
use crate::issuer::{Issuer, Issuers};
use crate::metrics::Metrics;
use crate::policy::{Choice, Policy};
use crate::store::ledger::StartFact;
use crate::timestamp::Timestamp;
use crate::x509::pem;

/// A snapshot, and what the TLS configuration needs of it.
pub(super) struct Parts {
    pub snapshot: Snapshot,
    pub verifier: Arc<dyn ClientCertVerifier>,
}

/// Begins to open, and checks, everything that the config names; nothing is in force yet. It was
/// ordered at `ordered`, which counts for PINs.
pub(super) async fn build(
    config: &Config,
    metrics: &Arc<Metrics>,
    now: Timestamp,
    ordered: Instant,
    before: Option<&Snapshot>,
) -> Result<Parts, Exit> {
    let issuers = signers::open(config, metrics, now, ordered, before).await?;
    let roots = config
        .issuers
        .iter()
        .flat_map(|issuer| issuer.chain.roots().iter().map(Vec::as_slice));
    let certificates =
        ClientCertificates::new(roots, config.trust_domains.clone()).map_err(Exit::config)?;
    let verifier = certificates.verifier();
    let tokens = Tokens::new(
        token_issuers(config, now)?,
        config.cluster_id.clone(),
        config.trust_domains.own.clone(),
    );
    let choice = |(issuer, config): (&Issuer, &IssuerConfig)| Choice {
        chain: issuer.chain.clone(),
        active: issuer.signer.is_some(),
        sibling_of: config.sibling_of.clone(),
    };
    let choices = issuers.iter().zip(&config.issuers).map(choice).collect();
    let snapshot = Snapshot {
        authenticators: Authenticators::new(certificates, tokens),
        policy: Policy::new(config.profile.clone(), choices),
        limits: config.limits,
        bundle: bundle(&config.issuers),
        issuers: Issuers(issuers),
    };
    Ok(Parts { snapshot, verifier })
}

/// What the ledger's first rows, and those of each reload, say of keys and certificates.
pub(super) fn facts(config: &Config) -> Vec<StartFact> {
    let transcripts: BTreeSet<_> = config
        .issuers
        .iter()
        .filter_map(|issuer| issuer.transcript)
        .collect();
    let ceremonies = transcripts
        .into_iter()
        .map(|digest| StartFact::Ceremony { digest });
    let issuers = config.issuers.iter().map(|issuer| StartFact::Issuer {
        id: issuer.chain.id().to_owned(),
        chain: issuer.chain.chain().to_vec(),
        roots: issuer.chain.roots().to_vec(),
        key_uri: issuer.key_uris.clone(),
    });
    ceremonies.chain(issuers).collect()
}

fn token_issuers(config: &Config, now: Timestamp) -> Result<Vec<TokenIssuer>, Exit> {
    let open = |jwt: &crate::config::JwtConfig| {
        let jwks = Jwks::open(&jwt.jwks, jwt.refresh.max(Duration::from_secs(1)), now)
            .map_err(Exit::config)?;
        Ok(TokenIssuer {
            issuer: jwt.issuer.clone(),
            audiences: jwt.audiences.clone(),
            cluster: jwt.cluster_id.clone(),
            jwks,
        })
    };
    config.jwt.iter().map(open).collect()
}

/// Every root once, in the config's order, so that the default issuer's comes first.
fn bundle(issuers: &[IssuerConfig]) -> Arc<str> {
    let mut seen = BTreeSet::new();
    let roots = issuers
        .iter()
        .flat_map(|issuer| issuer.chain.roots())
        .filter(|root| seen.insert(*root));
    roots
        .map(|root| pem::certificate(root))
        .collect::<String>()
        .into()
}

/// Tells the metrics what is in force now.
pub(super) fn show(metrics: &Metrics, snapshot: &Snapshot) {
    metrics.forget_issuers();
    for issuer in &snapshot.issuers.0 {
        metrics.issuer_ends(
            issuer.chain.id(),
            issuer.chain.issuing_ends(),
            issuer.chain.root_ends(),
        );
        if let Some(signer) = &issuer.signer {
            metrics.signer_kind(issuer.chain.id(), signer.kind());
        }
    }
    if let Some(default) = snapshot.policy.default_issuers().first() {
        metrics.default_issuer_ends(default.ends(), default.root_ends());
    }
}
