//! The one task that writes: it gathers what many calls want recorded, commits it as one batch, and
//! answers when that is durable.
//!
//! One batch is in flight at a time, and the next is hashed only when the last is known to be
//! committed or known not to be. What happens after an error stands in `recovery`.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use super::batch::{Batch, refuse, refuse_for_ever};
use super::chain::{Chain, OpenIntents};
use super::database::Database;
use super::due::Upkeep;
use super::event::{Event, RowRef, Why};
use super::lock::WriterLock;
use super::options::LedgerOptions;
use super::refusals::Refusals;
use super::status::{State, Status};
use super::work::{Answer, Item, Reply, Work};
use crate::clock::Clock;
use crate::refusal::{Reason, Refusal};

/// Items of one batch; what else is waiting goes into the next.
const BATCH: usize = 1024;

/// Refusals of one batch: they must not keep calls waiting.
const REFUSALS: usize = 256;

/// How often the writer looks for refusals that are due.
const TICK: Duration = Duration::from_millis(250);

/// How often calls that were just answered may run before a batch is closed, so that their outcomes
/// are in it.
const YIELDS: usize = 4;

/// The pause between attempts while the database does not take rows. An attempt itself may wait a
/// second for another process.
const PAUSE: Duration = Duration::from_millis(250);

/// Why a ledger that could be written is not.
pub(super) const LOCK_IS_GONE: &str = "the lock file beside the database was removed or replaced";

pub(super) struct Writer {
    pub(super) options: LedgerOptions,
    pub(super) clock: Clock,
    pub(super) status: Arc<Status>,
    pub(super) refusals: Arc<Refusals>,
    pub(super) work: mpsc::UnboundedReceiver<Work>,
    pub(super) refused: mpsc::Receiver<Item>,
    /// The last batch took as many refusals as one may, so more are waiting: they must not wait for
    /// the tick.
    pub(super) more_refused: bool,
    /// `None` after an error, until it is opened anew.
    pub(super) database: Option<Database>,
    /// `None` while no chain may begin: the clock is wrong, the database was never reached, or this
    /// process was declared dead.
    pub(super) chain: Option<Chain>,
    /// The server's numbers of the sessions that may hold the chain's lock: the last that did, and
    /// those of which nobody knows.
    pub(super) sessions: Vec<i32>,
    pub(super) upkeep: Upkeep,
    pub(super) open: OpenIntents,
    /// What must be recorded and is not; first in the next batch.
    pub(super) retained: Vec<Item>,
    /// A batch of which nobody knows yet whether it is durable.
    pub(super) unsettled: Option<Batch>,
    /// Of a SQLite file; held as long as the writer lives.
    pub(super) lock: Option<WriterLock>,
}

impl Writer {
    /// Works until it is told to shut down, or until no call can reach it any more.
    pub(super) async fn run(mut self) {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut attempt_at = Instant::now();
        loop {
            let state = self.status.state();
            let down = matches!(*state, State::Down(_));
            let records = matches!(*state, State::Up);
            let first = tokio::select! {
                biased;
                () = sleep_until(attempt_at), if down => {
                    self.attempt().await;
                    attempt_at = Instant::now() + PAUSE;
                    continue;
                }
                work = self.work.recv(), if self.retained.is_empty() || !records => match work {
                    Some(work) => Some(work),
                    None => return,
                },
                _ = tick.tick() => None,
                () = std::future::ready(()), if (!self.retained.is_empty() || self.more_refused) && records => None,
            };
            if let Some(done) = self.turn(first).await {
                self.shut_down().await;
                let _ = done.send(());
                return;
            }
            self.keep_up().await;
            if !down {
                attempt_at = Instant::now() + PAUSE;
            }
        }
    }

    /// Takes what is waiting and records it. Returns who waits for the shutdown, if somebody asked
    /// for it.
    async fn turn(&mut self, first: Option<Work>) -> Option<oneshot::Sender<()>> {
        let mut items = std::mem::take(&mut self.retained);
        let mut done = None;
        let mut next = first;
        if next.is_some() {
            self.let_others_come().await;
        }
        while let Some(work) = next {
            match work {
                Work::Record(item) => items.push(item),
                Work::Reload { events, reply } => items.extend(facts(events, reply)),
                Work::Shutdown { done: asked } => done = Some(asked),
            }
            next = if items.len() < BATCH && done.is_none() {
                self.work.try_recv().ok()
            } else {
                None
            };
        }
        self.options.observer.queue_depth(self.work.len());
        self.more_refused = false;
        let state = self.status.state();
        match &*state {
            State::Up if self.status.clock_apart(self.clock.now()).is_some() => {
                self.clock_is_apart();
                self.hold(items);
            }
            State::Up => {
                items.extend(self.refusals.due(self.clock.now(), false));
                let others = items.len();
                items.extend(std::iter::from_fn(|| self.refused.try_recv().ok()).take(REFUSALS));
                self.more_refused = items.len() - others == REFUSALS;
                self.record(items).await;
            }
            State::ClockBehind(_) => {
                self.hold(items);
                self.begin_when_due().await;
            }
            State::ClockApart => {
                self.hold(items);
                self.go_on_when_clocks_agree().await;
            }
            State::Down(_) | State::WentBack(_) | State::Stopped => self.hold(items),
        }
        done
    }

    /// Lets calls run on whose outcomes are owed, so that this batch has them. A pause without
    /// effect costs a wake-up of an idle processor.
    async fn let_others_come(&self) {
        for _ in 0..YIELDS {
            // One has been taken out of the queue already.
            if self.open.len() <= self.work.len() + 1 {
                return;
            }
            tokio::task::yield_now().await;
        }
    }

    async fn go_on_when_clocks_agree(&mut self) {
        if self.chain.is_none() {
            return self.begin_when_due().await;
        }
        match self.compare_clocks().await {
            Ok(()) if self.status.clock_apart(self.clock.now()).is_none() => self.go_up(),
            Ok(()) => {}
            Err(error) => self.lose_database(&error).await,
        }
    }

    /// Commits a batch, or finds out that it did not. Whether it did.
    pub(super) async fn record(&mut self, items: Vec<Item>) -> bool {
        if !self.keeps_others_out() {
            self.lose_database(&LOCK_IS_GONE).await;
        }
        let (Some(chain), Some(database)) = (&self.chain, &mut self.database) else {
            self.hold(items);
            return false;
        };
        let batch = Batch::new(items, chain, &self.open, self.clock.now());
        if batch.rows().is_empty() {
            return true;
        }
        let began = Instant::now();
        self.status.commit_begins();
        let inserted = database.insert(batch.rows()).await;
        match inserted.and_then(|()| {
            if self.keeps_others_out() {
                Ok(())
            } else {
                Err(io::Error::other(LOCK_IS_GONE).into())
            }
        }) {
            Ok(()) => {
                self.status.commit_ended();
                self.options
                    .observer
                    .committed(batch.rows().len(), began.elapsed());
                self.settle(batch);
                true
            }
            Err(error) => {
                // A commit that has to be read back is still waited for.
                let durable = self.recover(batch, &error).await;
                self.status.commit_ended();
                durable
            }
        }
    }

    /// Whether nobody else can have taken the ledger over. On a server the connection itself says
    /// so.
    pub(super) fn keeps_others_out(&self) -> bool {
        self.lock.as_ref().is_none_or(WriterLock::holds)
    }

    /// The batch is durable: the chain moves on, and every waiting call is answered.
    pub(super) fn settle(&mut self, batch: Batch) {
        batch
            .rows()
            .iter()
            .for_each(|row| self.options.keep(&row.event));
        let (chain, retained) = batch.settle(&mut self.open);
        self.status.chain_stands_at(&chain);
        self.chain = Some(chain);
        self.retained.extend(retained);
    }

    /// Nothing is recorded at present: intents are refused, outcomes kept.
    pub(super) fn hold(&mut self, items: Vec<Item>) {
        let refusal = self.status.accepting(self.clock.now()).err();
        let refusal =
            refusal.unwrap_or_else(|| Refusal::new(Reason::LedgerDown, "the ledger is down"));
        if matches!(*self.status.state(), State::WentBack(_) | State::Stopped) {
            refuse_for_ever(items, &refusal);
        } else {
            self.retained.extend(refuse(items, &refusal));
        }
    }

    /// Files what is left: what is queued, *unknown* for every intent that is still open, and
    /// `end`.
    async fn shut_down(&mut self) {
        self.work.close();
        if matches!(*self.status.state(), State::Down(_)) {
            self.attempt().await;
        }
        let mut items = std::mem::take(&mut self.retained);
        while let Some(work) = self.work.recv().await {
            match work {
                Work::Record(item) => items.push(item),
                Work::Reload { events, reply } => items.extend(facts(events, reply)),
                Work::Shutdown { .. } => {}
            }
        }
        let stopping = Refusal::new(Reason::Stopping, "the daemon is shutting down");
        let mut items = refuse(items, &stopping);
        items.extend(self.refusals.due(self.clock.now(), true));
        items.extend(std::iter::from_fn(|| self.refused.try_recv().ok()));
        if matches!(*self.status.state(), State::Up)
            && self.record(items).await
            && self.retained_recorded().await
        {
            let why = Why::from(&Refusal::new(
                Reason::Stopping,
                "the daemon shut down before the outcome was known",
            ));
            let left = self.open_intents();
            let mut rest: Vec<Item> = left
                .into_iter()
                .map(|intent| {
                    unanswered(Event::Unknown {
                        intent,
                        why: why.clone(),
                    })
                })
                .collect();
            rest.push(unanswered(Event::End));
            if self.record(rest).await {
                self.open.clear();
            }
        } else if self.chain.is_some() {
            tracing::error!(
                "the ledger is down at the shutdown: open intents are filed at the next start"
            );
        }
        self.status.set(State::Stopped);
        if let Some(database) = self.database.take()
            && let Err(error) = database.close().await
        {
            tracing::warn!(%error, "closing the ledger failed");
        }
    }

    async fn retained_recorded(&mut self) -> bool {
        let retained = std::mem::take(&mut self.retained);
        self.record(retained).await
    }

    fn open_intents(&self) -> Vec<RowRef> {
        let Some(chain) = &self.chain else {
            return Vec::new();
        };
        self.open
            .iter()
            .map(|(place, hash)| RowRef {
                chain: chain.id(),
                place: *place,
                hash: *hash,
            })
            .collect()
    }
}

fn unanswered(event: Event) -> Item {
    Item {
        event,
        request: None,
        answer: Answer::Nobody,
    }
}

fn facts(events: Vec<Event>, reply: Reply) -> Vec<Item> {
    let mut items: Vec<Item> = events
        .into_iter()
        .map(|event| Item {
            event,
            request: None,
            answer: Answer::Fact(None),
        })
        .collect();
    if let Some(last) = items.last_mut() {
        last.answer = Answer::Fact(Some(reply));
    }
    items
}
