//! Certificates and requests as bytes (RFC 5280, RFC 2986). Pure: no I/O, no clock, no async, no
//! metrics.

pub mod ca_template;
pub mod certificate;
pub mod chain;
pub mod csr;
mod encode;
pub mod lint;
pub mod path;
pub mod pem;
mod serial;
pub mod subject_key;
pub mod template;
mod uri_constraint;

pub use serial::Serial;

use crate::timestamp::Timestamp;

/// A certificate's time (RFC 5280 §4.1.2.5) as ours.
pub fn timestamp(time: x509_cert::time::Time) -> Timestamp {
    Timestamp::from_seconds(i64::try_from(time.to_unix_duration().as_secs()).unwrap_or(i64::MAX))
}
