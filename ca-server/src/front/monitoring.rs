//! Monitoring over plain HTTP: metrics, liveness, readiness, and the root bundle. Liveness never looks at the device: an outage of the
//! token must not restart the pod.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::metrics::Metrics;

/// Connections at once: a few scrapers and probes. Files are needed elsewhere.
const MAX_CONNECTIONS: usize = 64;
/// For a request's headers.
const HEADER_LIMIT: Duration = Duration::from_secs(10);
/// For a whole connection; scrapers dial again.
const CONNECTION_LIMIT: Duration = Duration::from_secs(300);

/// One thing that can be well or not.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    /// Short and stable: `ledger`, `default_issuer`, `serving_certificate`, `issuer:<id>`, `signer:<id>`.
    pub name: String,
    /// Whether it must be well before calls are answered; what is not required is for alerts and people.
    pub required: bool,
    /// Whether it is well.
    pub ready: bool,
    /// One sentence.
    pub detail: String,
}

/// What monitoring can see of the daemon.
pub trait Watched: Send + Sync + 'static {
    /// Everything that can be well or not.
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

/// Answers on `listener` until it is dropped with its task.
pub async fn serve(listener: TcpListener, routes: Router) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        // The semaphore is never closed.
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a monitoring connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let service = TowerToHyperService::new(routes.clone());
        tokio::spawn(async move {
            let mut builder = Builder::new(TokioExecutor::new());
            builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_LIMIT);
            // How a scraper's connection ends is the scraper's affair.
            let _ = tokio::time::timeout(CONNECTION_LIMIT, builder.serve_connection(TokioIo::new(stream), service)).await;
            drop(place);
        });
    }
}

async fn metrics(State(watched): State<Arc<dyn Watched>>) -> impl IntoResponse {
    // Said at each scrape, so that an alert needs no prober of its own.
    watched.metrics().ready(watched.checks().iter().map(|check| (check.name.as_str(), check.ready)));
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], watched.metrics().render())
}

async fn ready(State(watched): State<Arc<dyn Watched>>) -> impl IntoResponse {
    let checks = watched.checks();
    let readiness = Readiness { ready: checks.iter().all(|check| check.ready || !check.required), checks };
    let status = if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = serde_json::to_string(&readiness).expect("texts and booleans always encode");
    (status, [(header::CONTENT_TYPE, "application/json")], body)
}

async fn bundle(State(watched): State<Arc<dyn Watched>>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/x-pem-file")], watched.bundle().to_string())
}
