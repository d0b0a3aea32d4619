//! What a call holds until its outcome is durable, whatever becomes of its caller.

use std::sync::Arc;

use tokio::sync::OwnedSemaphorePermit;

use crate::admission::Entered;
use crate::fairness::NewKey;
use crate::holders::Holder;
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
        Self {
            _permit: permit,
            metrics,
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.metrics.call_ended();
    }
}

/// See the module. Dropped without a certificate, it lets whoever asks the same go first, and the
/// key has not counted.
pub(super) struct Hold {
    /// Of a caller; the daemon itself asks nothing twice and has no limits.
    caller: Option<OfCaller>,
    /// The right to a signature, until it is there or will not be.
    device: Option<Entered>,
    _permit: Permit,
}

/// What becomes of it when the caller has its certificate.
pub(super) struct OfCaller {
    pub(super) place: Place,
    pub(super) key: NewKey,
    pub(super) holder: Holder,
    /// When it asked.
    pub(super) at: Timestamp,
}

impl Hold {
    pub(super) fn of_caller(permit: Permit, device: Entered, caller: OfCaller) -> Self {
        Self {
            caller: Some(caller),
            device: Some(device),
            _permit: permit,
        }
    }

    pub(super) fn of_daemon(permit: Permit, device: Entered) -> Self {
        Self {
            caller: None,
            device: Some(device),
            _permit: permit,
        }
    }

    /// The intent is durable.
    pub(super) fn recorded(&self) {
        if let Some(device) = &self.device {
            device.recorded();
        }
    }

    /// The device has nothing more to do with it: another call may take its place there while the
    /// ledger commits the outcome.
    pub(super) fn signed(&mut self) {
        self.device = None;
    }

    /// The certificate is recorded: its holder has it, others get it who ask the same, and its key
    /// counts.
    pub(super) fn end(self, issued: &Issued) {
        if let Some(OfCaller {
            place,
            key,
            holder,
            at,
        }) = self.caller
        {
            holder.holds(issued.draft().validity().1, at);
            place.leave(issued, at);
            key.certified();
        }
    }
}
