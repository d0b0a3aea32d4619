//! What listens: the Istio CSR call over TLS, and monitoring over plain HTTP. Turns bytes into a
//! `Call` and an `Answer` into bytes; decides nothing.

pub mod call_limit;
pub mod grpc;
pub mod monitoring;
pub mod tls;

use std::net::IpAddr;
use std::sync::Arc;

use crate::fairness::{Arrival, NotAdmitted};
use crate::places::Place;
use crate::refusal::Reason;

/// Asked for one more connection or call of a peer, which is open until the place is dropped; a
/// refusal is recorded by who answers.
pub type Admits = Arc<dyn Fn(Arrival, IpAddr) -> Result<Place, NotAdmitted> + Send + Sync>;

/// Told of a caller who was refused before the pipeline: why, and where he called from.
pub type OnRefusal = Arc<dyn Fn(Reason, Option<IpAddr>) + Send + Sync>;
