//! A certificate authority for Istio meshes whose keys live in hardware. Start reading at `issue`; ARCHITECTURE.md is the map.

pub mod app;
pub mod authn;
pub mod ceremony;
pub mod cli;
pub mod client;
pub mod clock;
pub mod config;
pub mod digest;
pub mod evidence;
pub mod fairness;
pub mod front;
pub mod guard;
pub mod hardening;
pub mod issue;
pub mod issuer;
pub mod metrics;
pub mod policy;
pub mod refusal;
pub mod repeats;
pub mod spiffe;
pub mod store;
pub mod telemetry;
pub mod timestamp;
pub mod x509;
