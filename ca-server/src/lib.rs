//! A certificate authority for Istio meshes whose keys live in hardware. Start reading at `issue`; ARCHITECTURE.md is the map.

pub mod ceremony;
pub mod cli;
pub mod client;
pub mod clock;
pub mod evidence;
pub mod refusal;
pub mod spiffe;
pub mod store;
pub mod timestamp;
pub mod x509;
