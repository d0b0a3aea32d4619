//! What monitoring sees of the daemon: readiness check by check, the bundle, the metrics.

use std::sync::Arc;

use super::Daemon;
use crate::front::monitoring::{Check, Watched};
use crate::issue::Snapshot;
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
                self.0
                    .metrics
                    .signer_state(issuer.chain.id(), &signer.health());
            }
        }
        &self.0.metrics
    }
}

impl Daemon {
    /// Everything that can be unwell, what must be well before calls are answered first.
    pub(super) fn checks(&self) -> Vec<Check> {
        let now = self.clock.now();
        let ledger = self.ledger.health(now);
        let snapshot = self.pipeline.snapshot();
        let mut checks = vec![Check {
            name: "ledger".to_owned(),
            required: true,
            ready: ledger.ready,
            detail: ledger.detail,
        }];
        checks.push(default_check(&snapshot, now));
        checks.push(self.serving_check(now));
        checks.extend(
            snapshot
                .issuers
                .0
                .iter()
                .flat_map(|issuer| issuer_checks(issuer, now)),
        );
        checks
    }

    fn serving_check(&self, now: Timestamp) -> Check {
        let ends = self.serving_ends.get();
        let (ready, detail) = match self.serving.is_there() {
            false => (false, "none issued yet, handshakes fail".to_owned()),
            true if ends <= now => (false, format!("ended at {ends}")),
            true => (true, format!("valid until {ends}")),
        };
        Check {
            name: "serving_certificate".to_owned(),
            required: true,
            ready,
            detail,
        }
    }
}

/// Whether a call that names no issuer would be signed. What of its issuers cannot sign is said,
/// too.
fn default_check(snapshot: &Snapshot, now: Timestamp) -> Check {
    let of = |signing: bool| {
        let of = snapshot
            .policy
            .default_issuers()
            .iter()
            .filter_map(|chain| snapshot.issuers.of(chain));
        of.filter(move |issuer| issuer.signs_at(now) == signing)
    };
    let signing = of(true)
        .map(|issuer| issuer.chain.id())
        .collect::<Vec<_>>()
        .join(", ");
    let not: Vec<String> = of(false)
        .map(|issuer| {
            format!(
                "{} cannot ({})",
                issuer.chain.id(),
                what_is_wrong(issuer, now)
            )
        })
        .collect();
    let detail = match (signing.is_empty(), not.join("; ")) {
        (true, not) => not,
        (false, not) if not.is_empty() => format!("can sign: {signing}"),
        (false, not) => format!("can sign: {signing}; {not}"),
    };
    Check {
        name: "default_issuer".to_owned(),
        required: true,
        ready: !signing.is_empty(),
        detail,
    }
}

fn what_is_wrong(issuer: &Issuer, now: Timestamp) -> String {
    match &issuer.signer {
        Some(signer) if issuer.chain.may_sign_at(now) => {
            let health = signer.health();
            format!("{}: {}", health.condition, health.detail)
        }
        _ => validity(issuer),
    }
}

fn validity(issuer: &Issuer) -> String {
    format!(
        "valid from {} to {}",
        issuer.chain.begins(),
        issuer.chain.ends()
    )
}

/// An active issuer's certificates and signer; a retiring one does nothing that could be unwell.
fn issuer_checks(issuer: &Issuer, now: Timestamp) -> Vec<Check> {
    let (id, chain) = (issuer.chain.id(), &issuer.chain);
    let Some(signer) = &issuer.signer else {
        return Vec::new();
    };
    let health = signer.health();
    let detail = if signer.is_file() {
        format!(
            "{}: file key, for development and migration; {}",
            health.condition, health.detail
        )
    } else {
        format!("{}: {}", health.condition, health.detail)
    };
    vec![
        Check {
            name: format!("issuer:{id}"),
            required: false,
            ready: chain.may_sign_at(now),
            detail: validity(issuer),
        },
        Check {
            name: format!("signer:{id}"),
            required: false,
            ready: health.is_ready(),
            detail,
        },
    ]
}
