//! What the owner of a pool decides.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::{Observer, PublicKey, Unobserved};

/// How a pool works.
#[derive(Clone)]
pub struct PoolOptions {
    /// Threads, each with a session of its own; at least one.
    pub threads: usize,
    /// Jobs that may wait; one more is answered `Busy`.
    pub queue: usize,
    /// The key that must be found, from the issuer's certificate. `None` takes the key as it is.
    pub expected: Option<PublicKey>,
    /// Whether it is started by an operator's order to try a PIN where something speaks against it.
    pub ordered: bool,
    /// Who is told what happens.
    pub observer: Arc<dyn Observer>,
    /// The longest pause between two tries to reopen a lost device.
    pub longest_pause: Duration,
    /// How long the device may take for one signature; beyond that its thread counts as stuck.
    /// `None`: until the job's deadline.
    pub device_limit: Option<Duration>,
    /// How long the device may take to open a session and find the key; beyond that its thread
    /// counts as stuck.
    pub open_limit: Duration,
    /// How long a thread may idle before it asks whether its session still lives, so that health is
    /// honest without traffic.
    pub idle_check: Duration,
}

impl Default for PoolOptions {
    fn default() -> Self {
        Self {
            threads: 4,
            queue: 1024,
            expected: None,
            ordered: false,
            observer: Arc::new(Unobserved),
            longest_pause: Duration::from_secs(5),
            device_limit: None,
            open_limit: Duration::from_secs(10),
            idle_check: Duration::from_secs(5),
        }
    }
}

impl fmt::Debug for PoolOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PoolOptions")
            .field("threads", &self.threads)
            .field("queue", &self.queue)
            .field("expected", &self.expected)
            .field("ordered", &self.ordered)
            .field("longest_pause", &self.longest_pause)
            .field("device_limit", &self.device_limit)
            .field("open_limit", &self.open_limit)
            .field("idle_check", &self.idle_check)
            .finish_non_exhaustive()
    }
}
