//! The roots that an auditor trusts. What a chain says of its issuers is only what it says: whoever
//! can write rows can name an issuer of his own and sign with it. With these, an issuer is believed
//! if its certificates lead to one of them.

use std::collections::BTreeSet;

use super::super::event::{Hash, IssuerFacts};
use crate::digest::sha256;
use crate::x509::chain::IssuerChain;
use crate::x509::pem;

/// See the module.
#[derive(Clone, Debug)]
pub struct TrustedRoots {
    pem: Vec<u8>,
    fingerprints: BTreeSet<Hash>,
}

impl TrustedRoots {
    /// Reads PEM certificates; the error is one sentence.
    pub fn parse(pem: &[u8]) -> Result<Self, String> {
        let read = pem::certificates(pem).map_err(|why| format!("cannot be used: {why}"))?;
        let fingerprints = read.iter().map(|block| sha256(&block.der)).collect();
        Ok(Self {
            pem: pem.to_owned(),
            fingerprints,
        })
    }

    /// SHA-256 over those of the certificates: by which roots a checkpoint's rows were judged.
    pub(super) fn digest(&self) -> Hash {
        sha256(
            &self
                .fingerprints
                .iter()
                .flatten()
                .copied()
                .collect::<Vec<u8>>(),
        )
    }

    /// Whether it is one of them, by its SHA-256.
    pub fn has(&self, fingerprint: &Hash) -> bool {
        self.fingerprints.contains(fingerprint)
    }

    /// Whether an issuer's certificates lead to one of them. They may have ended since; when they
    /// signed is judged with each certificate.
    pub(super) fn lead_to(&self, facts: &IssuerFacts) -> Result<(), String> {
        let above = if facts.chain.is_empty() {
            facts.roots.get(..1).unwrap_or_default()
        } else {
            &facts.chain
        };
        let chain: String = above.iter().map(|der| pem::certificate(der)).collect();
        let led = IssuerChain::parse(&facts.id, chain.as_bytes(), &self.pem);
        led.map(drop).map_err(|why| {
            format!(
                "the issuer {:?} does not stand under a root that is trusted: {why}",
                facts.id
            )
        })
    }
}
