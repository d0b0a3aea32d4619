//! Certificates and requests as bytes (RFC 5280, RFC 2986). Pure: no I/O, no clock, no async, no metrics.

pub mod lint;
mod serial;

pub use serial::Serial;
