//! Monitoring over plain HTTP: metrics, liveness, readiness, and the root bundle. Liveness never
//! looks at the device: an outage of the token must not restart the pod. Whoever finds no place is
//! shown the door at once, and a few places are kept for health: connections that somebody else
//! holds must not make a probe fail.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use serde::Serialize;
use tokio::net::{TcpListener, TcpStream};

use crate::metrics::Metrics;
use crate::places::{Place, Places};

/// Connections at once: a few scrapers and probes. Files are needed elsewhere.
const PLACES: usize = 64;
/// Of these, for one address.
const SHARE: u32 = 16;
/// Beside them, for health alone: whoever comes when those are taken.
const HEALTH_PLACES: usize = 16;
/// Of these, for one address: a kubelet asks for readiness and liveness at once.
const HEALTH_SHARE: u32 = 4;
/// For a request's headers, and between two requests.
const HEADER_LIMIT: Duration = Duration::from_secs(10);
/// For a whole connection; scrapers dial again.
const CONNECTION_LIMIT: Duration = Duration::from_secs(300);
/// For a connection that is kept for health, from its first octet to its answer.
const HEALTH_LIMIT: Duration = Duration::from_secs(2);

/// One thing that can be well or not.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    /// Short and stable: `ledger`, `default_issuer`, `serving_certificate`, `issuer:<id>`,
    /// `signer:<id>`.
    pub name: String,
    /// Whether it must be well before calls are answered; what is not required is for alerts and
    /// people.
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
pub async fn serve(listener: TcpListener, routes: Router, watched: Arc<dyn Watched>) {
    let health = routes.clone().layer(middleware::from_fn(health_alone));
    let (places, kept) = (Places::new(PLACES), Places::new(HEALTH_PLACES));
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a monitoring connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        if let Ok(place) = places.take(peer.ip(), SHARE) {
            tokio::spawn(answer(
                stream,
                routes.clone(),
                place,
                HEADER_LIMIT,
                CONNECTION_LIMIT,
            ));
        } else if let Ok(place) = kept.take(peer.ip(), HEALTH_SHARE) {
            tokio::spawn(answer(
                stream,
                health.clone(),
                place,
                HEALTH_LIMIT,
                HEALTH_LIMIT,
            ));
        } else {
            watched.metrics().monitoring_shed();
        }
    }
}

/// Answers on one connection for as long as it may last.
async fn answer(
    stream: TcpStream,
    routes: Router,
    place: Place,
    headers: Duration,
    whole: Duration,
) {
    let mut builder = Builder::new(TokioExecutor::new()).http1_only();
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(headers);
    let service = TowerToHyperService::new(routes);
    // How a scraper's connection ends is the scraper's affair.
    let _ = tokio::time::timeout(
        whole,
        builder.serve_connection(TokioIo::new(stream), service),
    )
    .await;
    drop(place);
}

/// On a connection that is kept for health: one request, and nothing else.
async fn health_alone(request: Request, next: Next) -> Response {
    let mut response = if request.uri().path().starts_with("/healthz/") {
        next.run(request).await
    } else {
        (
            StatusCode::SERVICE_UNAVAILABLE,
            "too many monitoring connections are open; try again later\n",
        )
            .into_response()
    };
    response.headers_mut().insert(
        header::CONNECTION,
        header::HeaderValue::from_static("close"),
    );
    response
}

async fn metrics(State(watched): State<Arc<dyn Watched>>) -> impl IntoResponse {
    // Said at each scrape, so that an alert needs no prober of its own.
    watched.metrics().ready(
        watched
            .checks()
            .iter()
            .map(|check| (check.name.as_str(), check.ready)),
    );
    (
        [(
            header::CONTENT_TYPE,
            "text/plain; version=0.0.4; charset=utf-8",
        )],
        watched.metrics().render(),
    )
}

async fn ready(State(watched): State<Arc<dyn Watched>>) -> impl IntoResponse {
    let checks = watched.checks();
    let readiness = Readiness {
        ready: checks.iter().all(|check| check.ready || !check.required),
        checks,
    };
    let status = if readiness.ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let body = serde_json::to_string(&readiness).expect("texts and booleans always encode");
    (status, [(header::CONTENT_TYPE, "application/json")], body)
}

async fn bundle(State(watched): State<Arc<dyn Watched>>) -> impl IntoResponse {
    (
        [(header::CONTENT_TYPE, "application/x-pem-file")],
        watched.bundle().to_string(),
    )
}
