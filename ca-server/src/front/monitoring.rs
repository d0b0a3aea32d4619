//! Monitoring over plain HTTP: metrics, liveness, readiness, and the root bundle. Liveness never looks at the device: an outage of the
//! token must not restart the pod.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use serde::Serialize;

use crate::metrics::Metrics;

/// One thing that must be well before calls are answered.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    /// Short and stable: `ledger`, `issuer:<id>`, `serving_certificate` …
    pub name: String,
    /// Whether it is well.
    pub ready: bool,
    /// One sentence.
    pub detail: String,
}

/// What monitoring can see of the daemon.
pub trait Watched: Send + Sync + 'static {
    /// Everything that must be well before calls are answered.
    fn checks(&self) -> Vec<Check>;
    /// Every root, PEM.
    fn bundle(&self) -> Arc<str>;
    /// The metrics.
    fn metrics(&self) -> &Metrics;
}

#[derive(Serialize)]
struct Readiness {
    ready: bool,
    checks: Vec<Check>,
}

/// The routes.
pub fn router(watched: Arc<dyn Watched>) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz/live", get(|| async { "alive\n" }))
        .route("/healthz/ready", get(ready))
        .route("/root-cert.pem", get(bundle))
        .with_state(watched)
}

async fn metrics(State(watched): State<Arc<dyn Watched>>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], watched.metrics().render())
}

async fn ready(State(watched): State<Arc<dyn Watched>>) -> impl IntoResponse {
    let checks = watched.checks();
    let readiness = Readiness { ready: checks.iter().all(|check| check.ready), checks };
    let status = if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = serde_json::to_string(&readiness).expect("texts and booleans always encode");
    (status, [(header::CONTENT_TYPE, "application/json")], body)
}

async fn bundle(State(watched): State<Arc<dyn Watched>>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/x-pem-file")], watched.bundle().to_string())
}
