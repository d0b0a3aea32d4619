//! The server-side limit on each call, outside tonic's decoding so that slow bodies count. Clients set no deadline of their own
//! (ISTIO-CONTRACT §2); tonic's own timeout would answer Cancelled.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http::{Request, Response};
use tonic::Status;
use tower::Service;
use tower_layer::Layer;

use crate::metrics::Metrics;

/// When the call will have been answered; the layer puts it into the request's extensions.
#[derive(Clone, Copy, Debug)]
pub struct Deadline(pub Instant);

/// Limits every call and counts its answer.
#[derive(Clone, Debug)]
pub struct CallLimit {
    /// From the call's headers to its answer.
    pub limit: Duration,
    /// Where answers are counted.
    pub metrics: Arc<Metrics>,
}

impl<S> Layer<S> for CallLimit {
    type Service = Limited<S>;

    fn layer(&self, inner: S) -> Limited<S> {
        Limited { inner, limit: self.clone() }
    }
}

/// A service whose calls are limited.
#[derive(Clone, Debug)]
pub struct Limited<S> {
    inner: S,
    limit: CallLimit,
}

impl<S, B, R> Service<Request<B>> for Limited<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Future: Send + 'static,
    R: Default,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let begun = Instant::now();
        let deadline = begun + self.limit.limit;
        request.extensions_mut().insert(Deadline(deadline));
        let answer = self.inner.call(request);
        let metrics = self.limit.metrics.clone();
        Box::pin(async move {
            let response = match tokio::time::timeout_at(deadline.into(), answer).await {
                Ok(response) => response?,
                Err(_) => Status::deadline_exceeded("the CA's time limit for a call has passed").into_http(),
            };
            metrics.answered(code(&response), begun.elapsed());
            Ok(response)
        })
    }
}

/// The gRPC status of an answer, by its canonical name. A unary success carries it in trailers, a failure in the headers.
fn code<R>(response: &Response<R>) -> &'static str {
    match Status::from_header_map(response.headers()).map_or(tonic::Code::Ok, |status| status.code()) {
        tonic::Code::Ok => "OK",
        tonic::Code::Cancelled => "Cancelled",
        tonic::Code::InvalidArgument => "InvalidArgument",
        tonic::Code::DeadlineExceeded => "DeadlineExceeded",
        tonic::Code::PermissionDenied => "PermissionDenied",
        tonic::Code::ResourceExhausted => "ResourceExhausted",
        tonic::Code::OutOfRange => "OutOfRange",
        tonic::Code::Unimplemented => "Unimplemented",
        tonic::Code::Internal => "Internal",
        tonic::Code::Unavailable => "Unavailable",
        tonic::Code::Unauthenticated => "Unauthenticated",
        _ => "other",
    }
}
