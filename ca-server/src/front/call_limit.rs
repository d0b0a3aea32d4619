//! The limits on each call, outside tonic's decoding so that slow and large bodies count. Clients
//! set no deadline of their own (contract §2), and tonic's own timeout would answer Cancelled. A
//! call that ends here never reached the pipeline, so it is reported for the ledger's groups of
//! refusals. From its headers on a call holds a place, and nothing of its headers but what is read:
//! whoever opens calls and never ends them, holds little and soon has no more.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, Uri};
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

/// The pipeline answers at the deadline itself; this much later the call is ended from outside, so
/// that the two never race.
const BACKSTOP: Duration = Duration::from_millis(50);

/// What a body may hold without asking; a CSR call needs a few kilobytes.
const SMALL_BODY: usize = 16 * 1024;

/// What all larger bodies together may hold, in kilobytes. Nobody has authenticated yet when they
/// are read.
const LARGE_BODIES: usize = 64 * 1024;

/// The headers that anybody reads behind this point: `front::grpc` the first two, tonic the others.
const READ: [HeaderName; 5] = [
    AUTHORIZATION,
    HeaderName::from_static("clusterid"),
    CONTENT_TYPE,
    HeaderName::from_static("grpc-encoding"),
    HeaderName::from_static("grpc-accept-encoding"),
];

/// How often each of them is kept: twice as many as tokens that are looked at.
const VALUES: usize = 8;

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
        Self {
            limit,
            metrics,
            admits,
            refused,
            large: Arc::new(Semaphore::new(LARGE_BODIES)),
        }
    }
}

impl<S> Layer<S> for CallLimit {
    type Service = Limited<S>;

    fn layer(&self, inner: S) -> Limited<S> {
        Limited {
            inner,
            limit: self.clone(),
        }
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
        let peer = request
            .extensions()
            .get::<Peer>()
            .map(|peer| peer.address.ip());
        // Before the body is read: what an address sends beyond its limit costs as little as can
        // be.
        let Ok(place) = peer
            .map(|peer| (self.limit.admits)(Arrival::Call, peer))
            .transpose()
        else {
            let status = Status::resource_exhausted(AT_LIMIT);
            self.limit
                .metrics
                .answered(&format!("{:?}", status.code()), begun.elapsed());
            return Box::pin(async move { Ok(status.into_http()) });
        };
        let reached = Reached::default();
        let room = Arc::new(Room {
            large: self.limit.large.clone(),
            held: Mutex::default(),
        });
        let body_room = room.clone();
        let mut request = lean(request).map(|inner| {
            Body::new(Bounded {
                inner,
                read: 0,
                room: body_room,
            })
        });
        request.extensions_mut().insert(Deadline(deadline));
        request.extensions_mut().insert(reached.clone());
        let answer = self.inner.call(request);
        let (metrics, refused) = (self.limit.metrics.clone(), self.limit.refused.clone());
        Box::pin(async move {
            let response = match tokio::time::timeout_at((deadline + BACKSTOP).into(), answer).await
            {
                Ok(response) => response?,
                Err(_) => Status::deadline_exceeded("the CA's time limit for a call has passed")
                    .into_http(),
            };
            // A unary success carries its status in trailers, a failure in the headers.
            let code = Status::from_header_map(response.headers())
                .map_or(Code::Ok, |status| status.code());
            metrics.answered(&format!("{code:?}"), begun.elapsed());
            if code != Code::Ok && !reached.get() {
                refused(
                    if code == Code::DeadlineExceeded {
                        Reason::Deadline
                    } else {
                        Reason::MalformedRequest
                    },
                    peer,
                );
            }
            // The message outlives its body: it may be as large, and is held until now.
            drop((place, room));
            Ok(response)
        })
    }
}

/// The request with the headers alone that are read, and a path without its query, all copied: what
/// the HTTP/2 layer hands over refers into the frames that brought it, and would keep them whole.
fn lean<B>(request: Request<B>) -> Request<B> {
    let (mut parts, body) = request.into_parts();
    let mut headers = HeaderMap::new();
    for name in &READ {
        for value in parts.headers.get_all(name).iter().take(VALUES) {
            // What was a value is one.
            if let Ok(copy) = HeaderValue::from_bytes(value.as_bytes()) {
                headers.append(name, copy);
            }
        }
    }
    parts.headers = headers;
    parts.uri = parts
        .uri
        .path()
        .parse()
        .unwrap_or_else(|_| Uri::from_static("/"));
    Request::from_parts(parts, body)
}

/// What one call holds of what all large bodies may hold together, for as long as the call lasts.
struct Room {
    large: Arc<Semaphore>,
    held: Mutex<Option<OwnedSemaphorePermit>>,
}

impl Room {
    /// So many kilobytes more; false if they are not there.
    fn takes(&self, kilobytes: usize) -> bool {
        let Ok(kilobytes) = u32::try_from(kilobytes) else {
            return false;
        };
        let Ok(permit) = self.large.clone().try_acquire_many_owned(kilobytes) else {
            return false;
        };
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *held {
            Some(held) => held.merge(permit),
            None => *held = Some(permit),
        }
        true
    }
}

/// A request's body: what it holds beyond `SMALL_BODY` must find room. Its trailers are read by
/// nobody and are not passed on.
struct Bounded {
    inner: Body,
    read: usize,
    room: Arc<Room>,
}

impl Bounded {
    /// Makes room for so many bytes more; false if there is none.
    fn admit(&mut self, bytes: usize) -> bool {
        let kilobytes = |bytes: usize| bytes.saturating_sub(SMALL_BODY).div_ceil(1024);
        let more = kilobytes(self.read + bytes) - kilobytes(self.read);
        self.read += bytes;
        more == 0 || self.room.takes(more)
    }
}

impl HttpBody for Bounded {
    type Data = <Body as HttpBody>::Data;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Status>>> {
        let frame = std::task::ready!(Pin::new(&mut self.inner).poll_frame(context));
        if matches!(&frame, Some(Ok(frame)) if frame.is_trailers()) {
            return Poll::Ready(None);
        }
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

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http_body::Frame;
    use tokio::sync::Notify;
    use tower::ServiceExt;

    use super::*;
    use crate::places::Places;

    /// A body that is there at once, and trailers behind it.
    struct Ready(Vec<Frame<axum::body::Bytes>>);

    impl HttpBody for Ready {
        type Data = axum::body::Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Self::Data>, Infallible>>> {
            Poll::Ready(self.0.pop().map(Ok))
        }
    }

    fn request(octets: usize) -> Request<Body> {
        let trailers =
            HeaderMap::from_iter([(AUTHORIZATION, HeaderValue::from_static("Bearer behind"))]);
        let body = Ready(vec![
            Frame::trailers(trailers),
            Frame::data(vec![b'A'; octets].into()),
        ]);
        let peer = Peer {
            address: "10.0.0.1:1".parse().expect("an address"),
            certificates: None,
        };
        Request::post("https://localhost/a/b?query")
            .extension(peer)
            .body(Body::new(body))
            .expect("a request")
    }

    fn limit(calls: &Arc<Places>) -> CallLimit {
        let calls = calls.clone();
        let admits: Admits = Arc::new(move |_, peer| {
            calls
                .take(peer, 0)
                .map_err(|_| crate::fairness::NotAdmitted::Full)
        });
        CallLimit::new(
            Duration::from_secs(60),
            Arc::new(Metrics::new()),
            admits,
            Arc::new(|_, _| {}),
        )
    }

    fn code<B>(response: &Response<B>) -> Code {
        Status::from_header_map(response.headers()).map_or(Code::Ok, |status| status.code())
    }

    /// Reads a body to its end, as tonic does before it calls a handler.
    async fn read(request: Request<Body>) -> Result<usize, Status> {
        let (mut body, mut octets) = (std::pin::pin!(request.into_body()), 0);
        while let Some(frame) =
            std::future::poll_fn(|context| body.as_mut().poll_frame(context)).await
        {
            octets += frame?
                .into_data()
                .map_err(|_| Status::internal("trailers were passed on"))?
                .len();
        }
        Ok(octets)
    }

    #[tokio::test]
    async fn what_large_bodies_may_hold_is_held_until_their_calls_are_answered() {
        let (answer, calls) = (Arc::new(Notify::new()), Places::new(9));
        let service = limit(&calls).layer(tower::service_fn({
            let answer = answer.clone();
            move |request| {
                let answer = answer.clone();
                async move {
                    let status = match read(request).await {
                        Ok(_) => {
                            // The body is gone; whoever handles the message still has it.
                            answer.notified().await;
                            Status::ok("")
                        }
                        Err(status) => status,
                    };
                    Ok::<_, Infallible>(status.into_http::<Body>())
                }
            }
        }));
        let (half, small) = (LARGE_BODIES * 1024 / 2 + SMALL_BODY, SMALL_BODY);
        let ask = |octets| tokio::spawn(service.clone().oneshot(request(octets)));
        let first = [ask(half), ask(half)];
        tokio::task::yield_now().await;
        let third = ask(half).await.expect("answered").expect("infallible");
        assert_eq!(
            code(&third),
            Code::ResourceExhausted,
            "both are still under way"
        );
        let small = ask(small);
        tokio::task::yield_now().await;
        assert!(!small.is_finished(), "a small body always fits");
        assert_eq!(calls.held(), 3, "those that are under way");
        answer.notify_waiters();
        for call in first.into_iter().chain([small]) {
            assert_eq!(
                code(&call.await.expect("answered").expect("infallible")),
                Code::Ok
            );
        }
        let fourth = ask(half);
        tokio::task::yield_now().await;
        answer.notify_waiters();
        assert_eq!(
            code(&fourth.await.expect("answered").expect("infallible")),
            Code::Ok,
            "it is there again"
        );
        assert_eq!(calls.held(), 0);
    }

    #[test]
    fn nothing_is_kept_of_a_requests_head_but_what_is_read() {
        let mut many = Request::post("https://localhost/istio.Service/Call?a=b")
            .header("authorization", "Basic x");
        for number in 0..200 {
            many = many
                .header(format!("x-{number}"), "y")
                .header("clusterid", number.to_string());
        }
        let lean = lean(
            many.header("authorization", "Bearer t")
                .header("content-type", "application/grpc")
                .body(())
                .expect("a request"),
        );
        assert_eq!(lean.uri(), "/istio.Service/Call");
        let values: Vec<_> = lean.headers().get_all("authorization").iter().collect();
        assert_eq!((values.len(), values[1].as_bytes()), (2, &b"Bearer t"[..]));
        assert_eq!(
            (
                lean.headers().get_all("clusterid").iter().count(),
                lean.headers().len()
            ),
            (VALUES, VALUES + 3)
        );
    }
}
