//! A device in a process of its own: the same signatures, asked for over a Unix socket. What a
//! vendor's library does to its process, a crash, a hang, a leak, then costs that process and not
//! the daemon.
//!
//! `serve` is the signer's side, with a guard that judges what is to be signed; `supervisor` is the
//! daemon's, which starts the process, or finds one that runs as a service, and replaces it when it
//! dies or hangs. `wire` is what they say to each other.

mod answers;
mod link;
mod options;
mod order;
mod remote;
mod serve;
mod supervisor;
pub mod wire;

pub use options::{KeyOfProcess, ProcessOptions, Way};
pub use remote::RemoteKey;
pub use serve::{Guard, Keys, Logins, serve, why_none_serves};
pub use supervisor::{Begun, begin};
