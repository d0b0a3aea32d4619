//! What monitoring sees of the daemon: readiness check by check, the bundle, the metrics.

use std::sync::Arc;

use super::Daemon;
use crate::front::monitoring::{Check, Watched};
use crate::issuer::Issuer;
use crate::metrics::Metrics;
use crate::timestamp::Timestamp;

/// A view of the daemon for monitoring.
pub(super) struct View(pub Arc<Daemon>);

impl Watched for View {
    fn checks(&self) -> Vec<Check> {
        self.0.checks()
    }

    fn bundle(&self) -> Arc<str> {
        self.0.pipeline.snapshot().bundle.clone()
    }

    fn metrics(&self) -> &Metrics {
        for issuer in &self.0.pipeline.snapshot().issuers.0 {
            if let Some(signer) = &issuer.signer {
                self.0.metrics.signer_state(issuer.chain.id(), &signer.health());
            }
        }
        &self.0.metrics
    }
}

impl Daemon {
    /// Everything that must be well before calls are answered.
    pub(super) fn checks(&self) -> Vec<Check> {
        let now = self.clock.now();
        let ledger = self.ledger.health(now);
        let mut checks = vec![Check { name: "ledger".to_owned(), ready: ledger.ready, detail: ledger.detail }];
        let issuers = &self.pipeline.snapshot().issuers;
        checks.extend(issuers.0.iter().flat_map(|issuer| issuer_checks(issuer, issuers.serves(issuer), now)));
        checks.push(self.serving_check(now));
        checks
    }

    fn serving_check(&self, now: Timestamp) -> Check {
        let ends = self.serving_ends.get();
        let (ready, detail) = match self.serving.is_there() {
            false => (false, "none issued yet, handshakes fail".to_owned()),
            true if ends <= now => (false, format!("ended at {ends}")),
            true => (true, format!("valid until {ends}")),
        };
        Check { name: "serving_certificate".to_owned(), ready, detail }
    }
}

/// An active issuer's certificates and signer; a retiring one does nothing that could be unwell. `serves`: its calls are signed, if need be by
/// a sibling.
fn issuer_checks(issuer: &Issuer, serves: bool, now: Timestamp) -> Vec<Check> {
    let (id, chain) = (issuer.chain.id(), &issuer.chain);
    let Some(signer) = &issuer.signer else {
        return Vec::new();
    };
    let health = signer.health();
    let detail = if signer.is_file() {
        format!("{}: file key, for development and migration; {}", health.condition, health.detail)
    } else {
        format!("{}: {}", health.condition, health.detail)
    };
    vec![
        Check {
            name: format!("issuer:{id}"),
            ready: chain.may_sign_at(now),
            detail: format!("valid from {} to {}", chain.begins(), chain.ends()),
        },
        Check { name: format!("signer:{id}"), ready: serves, detail },
    ]
}
