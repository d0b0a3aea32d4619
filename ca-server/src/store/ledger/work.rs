//! What calls hand to the writer and what they get back. An open intent is part of it: the writer
//! makes it for the call that waits, and it sends its own outcome back, whatever becomes of the
//! call.

use std::fmt;

use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

use super::event::{Event, Place, RowRef, Why};
use crate::evidence::RequestId;
use crate::refusal::{Reason, Refusal};
use crate::timestamp::Period;

/// What calls ask of the writer.
#[allow(
    clippy::large_enum_variant,
    reason = "nearly every message is an event to record"
)]
pub(super) enum Work {
    /// An event to record.
    Record(Item),
    /// A new configuration: all its rows, or none.
    Reload { events: Vec<Event>, reply: Reply },
    /// File what is left, then end.
    Shutdown { done: oneshot::Sender<()> },
}

/// One event that is to become a row.
pub(super) struct Item {
    pub(super) event: Event,
    pub(super) request: Option<RequestId>,
    pub(super) answer: Answer,
}

pub(super) type Reply = oneshot::Sender<Result<(), Refusal>>;

/// Who waits for a row, and what they hold meanwhile.
pub(super) enum Answer {
    /// A call that wants to sign.
    Intent {
        reply: oneshot::Sender<Result<OpenIntent, NotFiled>>,
        queue: mpsc::UnboundedSender<Work>,
        permit: OwnedSemaphorePermit,
    },
    /// A call that has signed, or not. Its permit comes back when the row is durable.
    Outcome {
        intent: Place,
        reply: Option<Reply>,
        permit: OwnedSemaphorePermit,
    },
    /// An intent that was refused while nobody could say whether its row is durable.
    Withheld { permit: OwnedSemaphorePermit },
    /// Nobody. The row is about a chain that this connection has claimed, and is worth nothing once
    /// the claim is lost.
    WhileClaimed,
    /// A reload; the reply stands with its last row.
    Fact(Option<Reply>),
    /// A call that is to get a certificate again, if the row is recorded now; none once it was
    /// refused.
    Repeat(Option<Reply>),
    /// Nobody; the row is kept until it is recorded.
    Nobody,
}

/// Why an intent has no row.
#[derive(Debug)]
pub(super) enum NotFiled {
    PeriodMoved(Period),
    Refused(Refusal),
}

/// A durable intent without an outcome. The permit is its reserved place: the queue to the writer
/// has no other bound, so an outcome never waits for room.
pub(super) struct OpenIntent {
    row: RowRef,
    request: Option<RequestId>,
    queue: mpsc::UnboundedSender<Work>,
    /// Gone once an outcome is on its way.
    permit: Option<OwnedSemaphorePermit>,
}

impl OpenIntent {
    /// Only the writer makes one, and only for a row that is committed.
    pub(super) fn new(
        row: RowRef,
        request: Option<RequestId>,
        queue: mpsc::UnboundedSender<Work>,
        permit: OwnedSemaphorePermit,
    ) -> Self {
        Self {
            row,
            request,
            queue,
            permit: Some(permit),
        }
    }

    pub(super) fn row(&self) -> RowRef {
        self.row
    }

    /// Hands the outcome to the writer, which answers when it is durable.
    pub(super) fn close(mut self, outcome: Event) -> oneshot::Receiver<Result<(), Refusal>> {
        let (reply, answered) = oneshot::channel();
        self.send(outcome, Some(reply));
        answered
    }

    fn send(&mut self, outcome: Event, reply: Option<Reply>) {
        let Some(permit) = self.permit.take() else {
            return;
        };
        let answer = Answer::Outcome {
            intent: self.row.place,
            reply,
            permit,
        };
        // A writer that is gone leaves the intent to the next start, which files it as an orphan.
        let _ = self.queue.send(Work::Record(Item {
            event: outcome,
            request: self.request,
            answer,
        }));
    }
}

impl Drop for OpenIntent {
    fn drop(&mut self) {
        let why = Why::from(&Refusal::new(
            Reason::Internal,
            "the call was dropped before its outcome was known",
        ));
        self.send(
            Event::Unknown {
                intent: self.row,
                why,
            },
            None,
        );
    }
}

impl fmt::Debug for OpenIntent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OpenIntent({})", self.row)
    }
}
