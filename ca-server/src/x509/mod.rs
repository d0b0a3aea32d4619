//! Certificates and requests as bytes (RFC 5280, RFC 2986). Pure: no I/O, no clock, no async, no metrics.

pub mod ca_template;
pub mod chain;
pub mod csr;
mod encode;
pub mod lint;
pub mod pem;
mod serial;
pub mod subject_key;
pub mod template;

pub use serial::Serial;
