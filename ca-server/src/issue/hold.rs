//! What a call holds until its outcome is durable, whatever becomes of its caller.

use std::sync::Arc;

use tokio::sync::OwnedSemaphorePermit;

use crate::fairness::NewKey;
use crate::metrics::Metrics;
use crate::repeats::Place;
use crate::store::ledger::Issued;
use crate::timestamp::Timestamp;

/// The right to be under way; counted while it is held.
pub(super) struct Permit {
    _permit: OwnedSemaphorePermit,
    metrics: Arc<Metrics>,
}

impl Permit {
    pub(super) fn new(permit: OwnedSemaphorePermit, metrics: Arc<Metrics>) -> Self {
        metrics.call_began();
        Self { _permit: permit, metrics }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.metrics.call_ended();
    }
}

/// See the module. Dropped without a certificate, it lets whoever asks the same go first, and the key has not counted.
pub(super) struct Hold {
    /// Of a caller; the daemon itself asks nothing twice and has no limits.
    caller: Option<(Place, NewKey, Timestamp)>,
    _permit: Permit,
}

impl Hold {
    pub(super) fn of_caller(permit: Permit, place: Place, key: NewKey, now: Timestamp) -> Self {
        Self { caller: Some((place, key, now)), _permit: permit }
    }

    pub(super) fn of_daemon(permit: Permit) -> Self {
        Self { caller: None, _permit: permit }
    }

    /// The certificate is recorded: it is what others get who ask the same, and its key counts.
    pub(super) fn end(self, issued: &Issued) {
        if let Some((place, key, now)) = self.caller {
            place.leave(issued, now);
            key.certified();
        }
    }
}
