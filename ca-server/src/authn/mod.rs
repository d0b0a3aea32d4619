//! Who is calling. A closed enum of authenticators, tried in the contract's order: client
//! certificate, then JWT. The first success wins; every refusal looks the same from outside and
//! keeps its full reason inside.

pub mod client_cert;
pub mod jwk;
pub mod jwks;
pub mod jwt;

use std::net::SocketAddr;
use std::sync::Arc;

use rustls_pki_types::CertificateDer;

use crate::evidence::Evidence;
use crate::refusal::{Reason, Refusal};
use crate::spiffe::SpiffeId;
use crate::timestamp::Timestamp;
use client_cert::ClientCertificates;
use jwt::Tokens;

/// What a call presented. Its tokens are secrets, so it prints none of them.
#[derive(Clone, Default)]
pub struct Credentials {
    /// Every bearer token, in the order of the headers.
    pub bearer: Vec<String>,
    /// Every `clusterid` value.
    pub clusters: Vec<String>,
    /// The chain of the TLS handshake, leaf first.
    pub certificates: Option<Arc<[CertificateDer<'static>]>>,
    /// Where the call came from.
    pub peer: Option<SocketAddr>,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Credentials {{ {} bearer, clusters: {:?}, certificate: {} }}",
            self.bearer.len(),
            self.clusters,
            self.certificates.is_some()
        )
    }
}

/// A caller whose identity was proven. Only `authenticate` makes one.
#[derive(Clone, Debug)]
pub struct Caller {
    identity: SpiffeId,
    evidence: Evidence,
    presented_ends: Option<Timestamp>,
}

impl Caller {
    /// The proven identity.
    pub fn identity(&self) -> &SpiffeId {
        &self.identity
    }

    /// The proof, as the ledger keeps it.
    pub fn evidence(&self) -> &Evidence {
        &self.evidence
    }

    /// When the certificate ends that proved the identity, if it was one.
    pub fn presented_ends(&self) -> Option<Timestamp> {
        self.presented_ends
    }
}

/// One way to prove an identity.
#[derive(Debug)]
pub enum Authenticator {
    /// A certificate of our own roots.
    ClientCertificate(ClientCertificates),
    /// Tokens of configured issuers.
    Jwt(Tokens),
}

/// Every authenticator of one snapshot, in order.
#[derive(Debug)]
pub struct Authenticators(Vec<Authenticator>);

impl Authenticators {
    /// In the order of contract §3.
    pub fn new(certificates: ClientCertificates, tokens: Tokens) -> Self {
        Self(vec![
            Authenticator::ClientCertificate(certificates),
            Authenticator::Jwt(tokens),
        ])
    }

    /// The caller, or one opaque refusal with every reason in its detail.
    pub async fn authenticate(
        &self,
        credentials: &Credentials,
        now: Timestamp,
    ) -> Result<Caller, Refusal> {
        let mut refusals: Vec<Refusal> = Vec::new();
        for authenticator in &self.0 {
            let proven = match authenticator {
                Authenticator::ClientCertificate(certificates) => {
                    certificates.authenticate(credentials, now).map(|proven| {
                        proven.map(|(identity, evidence, ends)| (identity, evidence, Some(ends)))
                    })
                }
                Authenticator::Jwt(tokens) => tokens
                    .authenticate(credentials, now)
                    .await
                    .map(|proven| proven.map(|(identity, evidence)| (identity, evidence, None))),
            };
            match proven {
                Ok(Some((identity, evidence, presented_ends))) => {
                    return Ok(Caller {
                        identity,
                        evidence,
                        presented_ends,
                    });
                }
                Ok(None) => {}
                Err(refusal) => refusals.push(refusal),
            }
        }
        // A checker that is down outweighs a credential that is bad: trying again may help.
        let reason = refusals
            .iter()
            .find(|refusal| refusal.reason() == Reason::TokenCheckDown)
            .or(refusals.last())
            .map(Refusal::reason);
        let Some(reason) = reason else {
            return Err(Refusal::new(
                Reason::NoCredentials,
                "neither a client certificate nor a bearer token",
            ));
        };
        let details: Vec<&str> = refusals.iter().map(Refusal::detail).collect();
        Err(Refusal::new(reason, details.join("; ")))
    }
}
