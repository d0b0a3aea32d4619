//! What listens: the Istio CSR call over TLS, and monitoring over plain HTTP. Turns bytes into a `Call` and an `Answer` into bytes; decides nothing.

pub mod call_limit;
pub mod grpc;
pub mod monitoring;
pub mod tls;

use std::net::IpAddr;
use std::sync::Arc;

use crate::fairness::Arrival;
use crate::refusal::Reason;

/// Asked whether a peer may have one more connection or call; a refusal is recorded by who answers.
pub type Admits = Arc<dyn Fn(Arrival, IpAddr) -> bool + Send + Sync>;

/// Told of a caller who was refused before the pipeline: why, and where he called from.
pub type OnRefusal = Arc<dyn Fn(Reason, Option<IpAddr>) + Send + Sync>;
