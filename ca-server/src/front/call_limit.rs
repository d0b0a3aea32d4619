//! The limits on each call, outside tonic's decoding so that slow and large bodies count. Clients set no deadline of their own
//! (ISTIO-CONTRACT §2), and tonic's own timeout would answer Cancelled. A call that ends here never reached the pipeline, so it is
//! reported for the ledger's groups of refusals.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http::{Request, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::body::Body;
use tonic::{Code, Status};
use tower::Service;
use tower_layer::Layer;

use super::tls::Peer;
use super::{Admits, OnRefusal};
use crate::fairness::Arrival;
use crate::metrics::Metrics;
use crate::refusal::Reason;

/// The pipeline answers at the deadline itself; this much later the call is ended from outside, so that the two never race.
const BACKSTOP: Duration = Duration::from_millis(50);

/// What a body may hold without asking; a CSR call needs a few kilobytes.
const SMALL_BODY: usize = 16 * 1024;

/// What all larger bodies together may hold, in kilobytes. Nobody has authenticated yet when they are read.
const LARGE_BODIES: usize = 64 * 1024;

/// What whoever meets a limit here is told.
const AT_LIMIT: &str = "the CA is at its limit, try again later";

/// When the call will have been answered; the layer puts it into the request's extensions.
#[derive(Clone, Copy, Debug)]
pub struct Deadline(pub Instant);

/// Set by the handler when a call has become the pipeline's, which records every end of it.
#[derive(Clone, Debug, Default)]
pub struct Reached(Arc<AtomicBool>);

impl Reached {
    /// From here on the pipeline records.
    pub fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn get(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Limits every call and counts its answer.
#[derive(Clone)]
pub struct CallLimit {
    limit: Duration,
    metrics: Arc<Metrics>,
    admits: Admits,
    refused: OnRefusal,
    large: Arc<Semaphore>,
}

impl CallLimit {
    /// `limit` runs from a call's headers to its answer.
    pub fn new(limit: Duration, metrics: Arc<Metrics>, admits: Admits, refused: OnRefusal) -> Self {
        Self { limit, metrics, admits, refused, large: Arc::new(Semaphore::new(LARGE_BODIES)) }
    }
}

impl<S> Layer<S> for CallLimit {
    type Service = Limited<S>;

    fn layer(&self, inner: S) -> Limited<S> {
        Limited { inner, limit: self.clone() }
    }
}

/// A service whose calls are limited.
#[derive(Clone)]
pub struct Limited<S> {
    inner: S,
    limit: CallLimit,
}

impl<S, R> Service<Request<Body>> for Limited<S>
where
    S: Service<Request<Body>, Response = Response<R>>,
    S::Future: Send + 'static,
    R: Default,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let begun = Instant::now();
        let deadline = begun + self.limit.limit;
        let peer = request.extensions().get::<Peer>().map(|peer| peer.address.ip());
        // Before the body is read: what an address sends beyond its limit costs as little as can be.
        if peer.is_some_and(|peer| !(self.limit.admits)(Arrival::Call, peer)) {
            let status = Status::resource_exhausted(AT_LIMIT);
            self.limit.metrics.answered(&format!("{:?}", status.code()), begun.elapsed());
            return Box::pin(async move { Ok(status.into_http()) });
        }
        let reached = Reached::default();
        let large = self.limit.large.clone();
        let mut request = request.map(|inner| Body::new(Bounded { inner, read: 0, large, held: None }));
        request.extensions_mut().insert(Deadline(deadline));
        request.extensions_mut().insert(reached.clone());
        let answer = self.inner.call(request);
        let (metrics, refused) = (self.limit.metrics.clone(), self.limit.refused.clone());
        Box::pin(async move {
            let response = match tokio::time::timeout_at((deadline + BACKSTOP).into(), answer).await {
                Ok(response) => response?,
                Err(_) => Status::deadline_exceeded("the CA's time limit for a call has passed").into_http(),
            };
            // A unary success carries its status in trailers, a failure in the headers.
            let code = Status::from_header_map(response.headers()).map_or(Code::Ok, |status| status.code());
            metrics.answered(&format!("{code:?}"), begun.elapsed());
            if code != Code::Ok && !reached.get() {
                refused(if code == Code::DeadlineExceeded { Reason::Deadline } else { Reason::MalformedRequest }, peer);
            }
            Ok(response)
        })
    }
}

/// A request's body: what it holds beyond `SMALL_BODY` counts against what all of them may hold, for as long as the call lasts.
struct Bounded {
    inner: Body,
    read: usize,
    large: Arc<Semaphore>,
    held: Option<OwnedSemaphorePermit>,
}

impl Bounded {
    /// Makes room for so many bytes more; false if there is none.
    fn admit(&mut self, bytes: usize) -> bool {
        let kilobytes = |bytes: usize| bytes.saturating_sub(SMALL_BODY).div_ceil(1024);
        let more = kilobytes(self.read + bytes) - kilobytes(self.read);
        self.read += bytes;
        let Ok(more) = u32::try_from(more) else { return false };
        match self.large.clone().try_acquire_many_owned(more) {
            Ok(permit) => {
                match &mut self.held {
                    Some(held) => held.merge(permit),
                    None => self.held = Some(permit),
                }
                true
            }
            Err(_) => false,
        }
    }
}

impl HttpBody for Bounded {
    type Data = <Body as HttpBody>::Data;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Self::Data>, Status>>> {
        let frame = std::task::ready!(Pin::new(&mut self.inner).poll_frame(context));
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
        {
            let bytes = data.len();
            if !self.admit(bytes) {
                return Poll::Ready(Some(Err(Status::resource_exhausted(AT_LIMIT))));
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
