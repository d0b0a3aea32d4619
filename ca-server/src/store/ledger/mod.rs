//! The append-only record: an intent before each signature, an outcome after it, and everything
//! else an auditor needs.
//!
//! `Ledger` is what calls use; `writer` commits their rows in batches, in one hash chain per
//! process life. `docs/ledger-format.md` describes the bytes. Reading and checking, by other
//! processes too, is in `query` and `verify`.

mod batch;
mod begin;
mod body;
mod brief_locks;
mod chain;
mod cursor;
mod database;
mod detach;
mod due;
pub mod event;
mod export;
pub mod inspection;
mod issuance;
mod location;
mod lock;
mod migrate;
mod open_intent;
mod options;
mod postgres;
mod query;
mod recovery;
mod refusals;
mod repeat;
mod schema;
mod sqlite;
mod start;
mod statement;
mod status;
mod survey;
mod upkeep;
mod verify;
mod work;
mod writer;

#[cfg(test)]
mod fixture;
#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::sync::Arc;

use tokio::sync::{Semaphore, mpsc, oneshot};

pub use body::BadBody;
pub use detach::{Detached, detach};
pub use event::DeviceFacts;
pub use export::{Format, Selection};
pub use location::{Location, ServerFiles, Servers};
pub use migrate::{Logins, Migrated, MigrationError, migrate};
pub use open_intent::{Issued, NotOpened, Recorded, Signed, Unsigned};
pub use options::{
    LedgerHealth, LedgerObserver, LedgerOptions, LedgerStartError, StartFact, Unobserved,
};
pub use query::{Entry, Found, LedgerReader, ReadError};
pub use repeat::{Remembered, Repeated};
pub use start::Prepared;
pub use verify::{
    BadCheckpoint, Begin, Broken, Checkpoint, NamedIssuer, Report, TrustedRoots, VerifyOptions,
};

use self::event::{Event, Hash, Intent};
use self::open_intent::intent_of;
use self::refusals::Refusals;
use self::status::Status;
use self::work::{Answer, Item, NotFiled, OpenIntent, Work};
use crate::clock::Clock;
use crate::evidence::{Evidence, RequestId};
use crate::refusal::{Reason, Refusal};
use crate::spiffe::SpiffeId;
use crate::timestamp::{Period, Timestamp};
use crate::x509::template::Draft;

/// The ledger as a running daemon uses it. Clones share one writer.
#[derive(Clone)]
pub struct Ledger {
    queue: mpsc::UnboundedSender<Work>,
    permits: Arc<Semaphore>,
    status: Arc<Status>,
    refusals: Arc<Refusals>,
    observer: Arc<dyn LedgerObserver>,
    clock: Clock,
}

impl Ledger {
    /// The period that a draft's serial must have now.
    pub fn period(&self, now: Timestamp) -> Period {
        self.status.period(now)
    }

    /// Whether an intent would be accepted now; asks nobody.
    pub fn accepting(&self, now: Timestamp) -> Result<(), Refusal> {
        if self.queue.is_closed() {
            Err(gone())
        } else {
            self.status.accepting(now)
        }
    }

    /// What a call that has run out of time was waiting for, if it is the ledger.
    pub fn answering(&self, now: Timestamp) -> Result<(), Refusal> {
        if self.queue.is_closed() {
            Err(gone())
        } else {
            self.status.answering(now)
        }
    }

    /// Makes the draft's intent durable. Only what this returns may be signed.
    pub async fn open(
        &self,
        draft: Draft,
        evidence: &Evidence,
        request: RequestId,
    ) -> Result<Recorded<Draft>, NotOpened<Draft>> {
        let intent = intent_of(&draft, evidence);
        self.record(draft, intent, request).await
    }

    /// `open`, for anything that has an intent.
    async fn record<T>(
        &self,
        draft: T,
        intent: Intent,
        request: RequestId,
    ) -> Result<Recorded<T>, NotOpened<T>> {
        match self.file(intent, request).await {
            Ok(intent) => Ok(Recorded { draft, intent }),
            Err(NotFiled::PeriodMoved(period)) => {
                Err(NotOpened::PeriodMoved(Box::new(draft), period))
            }
            Err(NotFiled::Refused(refusal)) => Err(NotOpened::Refused(refusal)),
        }
    }

    async fn file(&self, intent: Intent, request: RequestId) -> Result<OpenIntent, NotFiled> {
        self.accepting(self.clock.now())
            .map_err(NotFiled::Refused)?;
        let event = row_of(Event::Intent(intent)).map_err(NotFiled::Refused)?;
        let permit = self.permits.clone().try_acquire_owned();
        let permit = permit.map_err(|_| {
            NotFiled::Refused(Refusal::new(
                Reason::Overloaded,
                "too many intents are open",
            ))
        })?;
        let (reply, answered) = oneshot::channel();
        let answer = Answer::Intent {
            reply,
            queue: self.queue.clone(),
            permit,
        };
        let item = Item {
            event,
            request: Some(request),
            answer,
        };
        self.queue
            .send(Work::Record(item))
            .map_err(|_| NotFiled::Refused(gone()))?;
        answered
            .await
            .unwrap_or_else(|_| Err(NotFiled::Refused(gone())))
    }

    /// Makes the outcome durable and waits for it. The refusal of an `Unsigned` comes back when its
    /// row is durable; a certificate whose outcome cannot be recorded is withheld.
    pub async fn close(&self, outcome: Result<Signed, Unsigned>) -> Result<Issued, Refusal> {
        match outcome {
            Ok(signed) => {
                let (intent, event, issued) = signed.into_parts();
                intent.close(event).await.unwrap_or_else(|_| Err(gone()))?;
                Ok(issued)
            }
            Err(unsigned) => {
                let (intent, event, refusal) = unsigned.into_parts();
                let _ = intent.close(event).await;
                Err(refusal)
            }
        }
    }

    /// Files the refusal of an authenticated caller, within a second and without waiting.
    pub fn refused(
        &self,
        refusal: &Refusal,
        request: RequestId,
        identity: Option<&SpiffeId>,
        evidence: &Evidence,
    ) {
        if !self
            .refusals
            .one(refusal, request, identity, evidence, self.clock.now())
        {
            self.observer.dropped(1);
        }
    }

    /// Counts the refusal of a caller who proved nothing.
    pub fn refused_before_authentication(&self, reason: Reason, peer: Option<IpAddr>) {
        self.refusals.count(reason, peer, self.clock.now());
    }

    /// Files that a token is in another state, within a second and without waiting.
    pub fn device(&self, facts: DeviceFacts) {
        if !self.refusals.row(Event::Device(facts)) {
            self.observer.dropped(1);
        }
    }

    /// Records a new configuration; when this fails it must not be used.
    pub async fn reloaded(
        &self,
        facts: Vec<StartFact>,
        config_digest: Hash,
    ) -> Result<(), Refusal> {
        let (reply, answered) = oneshot::channel();
        let mut events = vec![Event::Reload {
            config: config_digest,
        }];
        events.extend(facts.into_iter().map(Event::from));
        let events = events.into_iter().map(row_of).collect::<Result<_, _>>()?;
        self.queue
            .send(Work::Reload { events, reply })
            .map_err(|_| gone())?;
        answered.await.unwrap_or_else(|_| Err(gone()))
    }

    /// Whether it records, for readiness.
    pub fn health(&self, now: Timestamp) -> LedgerHealth {
        match self.accepting(now) {
            Ok(()) => {
                let warning = self
                    .status
                    .partitions_run_out(now)
                    .map(|warning| format!("; {warning}"));
                LedgerHealth {
                    ready: true,
                    detail: format!("the ledger is recording{}", warning.unwrap_or_default()),
                }
            }
            Err(refusal) => LedgerHealth {
                ready: false,
                detail: refusal.detail().into(),
            },
        }
    }

    /// Waits until nothing can be recorded any more: the writer has ended, by a shutdown or by a
    /// fault of its own.
    pub async fn ended(&self) {
        self.queue.closed().await;
    }

    /// Files what is queued, *unknown* for what is still open, and `end`; closes the database and
    /// releases the lock.
    pub async fn shutdown(&self) {
        let (done, ended) = oneshot::channel();
        if self.queue.send(Work::Shutdown { done }).is_ok() {
            let _ = ended.await;
        }
    }
}

impl std::fmt::Debug for Ledger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Ledger({:?})", self.status.state())
    }
}

/// Why a row that is longer than any may be is not written.
const TOO_LONG: &str = "what would have to be recorded is longer than the 65,535 octets of a row";

/// The event, if it fits into a row. One that does not would be refused by the database, and the
/// ledger with it.
fn row_of(event: Event) -> Result<Event, Refusal> {
    if body::fits(&event) {
        Ok(event)
    } else {
        Err(Refusal::new(Reason::MalformedRequest, TOO_LONG))
    }
}

fn gone() -> Refusal {
    Refusal::new(Reason::Stopping, "the ledger is closed")
}
