//! What listens: the Istio CSR call over TLS, and monitoring over plain HTTP. Turns bytes into a `Call` and an `Answer` into bytes; decides nothing.

pub mod call_limit;
pub mod grpc;
pub mod monitoring;
pub mod tls;

use std::net::IpAddr;
use std::sync::Arc;

use crate::refusal::Reason;

/// Told of a caller who was refused before the pipeline: why, and where he called from.
pub type OnRefusal = Arc<dyn Fn(Reason, Option<IpAddr>) + Send + Sync>;
