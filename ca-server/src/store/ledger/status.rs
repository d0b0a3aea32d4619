//! What every call may know of the writer without asking it: whether it records, where its clock
//! and period stand.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use super::chain::Chain;
use crate::refusal::{Reason, Refusal};
use crate::timestamp::{Period, Timestamp};

/// How far the clock may stand behind the ledger.
pub(super) const CLOCK_TOLERANCE: Duration = Duration::from_secs(2);

/// A commit that takes longer counts as a ledger that is down, for new calls.
const SLOW_COMMIT: Duration = Duration::from_secs(2);

/// A commit that takes longer is why the calls that wait for it run out of time.
const LATE_COMMIT: Duration = Duration::from_millis(250);

/// Months of partitions below which readiness says so.
pub const FEW_MONTHS: u32 = 2;

/// What the writer is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// It records.
    Up,
    /// No chain is begun: the clock is behind the newest row of former chains.
    ClockBehind(Timestamp),
    /// The clock is too far from the database's; compared until it is not.
    ClockApart,
    /// The database does not take rows; tried again until it does.
    Down(String),
    /// The database is not the one that was written to; never tried again.
    WentBack(String),
    /// Shut down.
    Stopped,
}

/// Shared between the writer, which alone changes it, and every call.
#[derive(Debug)]
pub(super) struct Status {
    state: ArcSwap<State>,
    /// The chain's last time, microseconds.
    time: AtomicI64,
    /// The chain's period.
    period: AtomicU32,
    /// When the commit in flight began, milliseconds after `epoch` plus one; 0 without one.
    commit_began: AtomicU64,
    /// The database's time less the age of this process, microseconds; `NO_CLOCK` where there is no
    /// such clock.
    database_epoch: AtomicI64,
    /// How far the clock may be from the database's.
    tolerance: Duration,
    /// The last month with a partition; 0 where there is none yet, `NO_PARTITIONS_NEEDED` on
    /// SQLite.
    partitioned_until: AtomicU32,
    epoch: Instant,
}

const NO_CLOCK: i64 = i64::MIN;

const NO_PARTITIONS_NEEDED: u32 = u32::MAX;

impl Status {
    /// `tolerance`: how far the clock may be from the database's.
    pub(super) fn new(tolerance: Duration) -> Self {
        Self {
            state: ArcSwap::from_pointee(State::Stopped),
            time: AtomicI64::new(0),
            period: AtomicU32::new(0),
            commit_began: AtomicU64::new(0),
            database_epoch: AtomicI64::new(NO_CLOCK),
            tolerance,
            partitioned_until: AtomicU32::new(NO_PARTITIONS_NEEDED),
            epoch: Instant::now(),
        }
    }

    pub(super) fn set(&self, state: State) {
        self.state.store(Arc::new(state));
    }

    pub(super) fn state(&self) -> Arc<State> {
        self.state.load_full()
    }

    pub(super) fn chain_stands_at(&self, chain: &Chain) {
        self.time.store(chain.time().micros(), Ordering::Relaxed);
        self.period
            .store(chain.period(chain.time()).yyyymm(), Ordering::Relaxed);
    }

    /// The database's time was just read.
    pub(super) fn clock_is(&self, database: Option<Timestamp>) {
        let age = i64::try_from(self.epoch.elapsed().as_micros()).unwrap_or(i64::MAX);
        self.database_epoch.store(
            database.map_or(NO_CLOCK, |time| time.micros() - age),
            Ordering::Relaxed,
        );
    }

    /// What keeps anything from being recorded if `now` is too far from what the database's clock
    /// must show.
    pub(super) fn clock_apart(&self, now: Timestamp) -> Option<Refusal> {
        let epoch = self.database_epoch.load(Ordering::Relaxed);
        if epoch == NO_CLOCK {
            return None;
        }
        let database = Timestamp::from_micros(epoch).plus(self.epoch.elapsed());
        let apart = now.since(database).max(database.since(now));
        let sentence = format_args!(
            "the clock is not the database's (clock {now}, database {database}); correct the one that is wrong"
        );
        (apart > self.tolerance).then(|| Refusal::new(Reason::Clock, sentence))
    }

    pub(super) fn partitioned_until(&self, period: Option<Period>) {
        self.partitioned_until
            .store(period.map_or(0, Period::yyyymm), Ordering::Relaxed);
    }

    /// What readiness adds when partitions run out.
    pub(super) fn partitions_run_out(&self, now: Timestamp) -> Option<String> {
        let until = match self.partitioned_until.load(Ordering::Relaxed) {
            NO_PARTITIONS_NEEDED => return None,
            until => Period::new(until),
        };
        let Some(until) = until else {
            return Some("there are no partitions: run `ca-server migrate`".into());
        };
        let few = until.months_after(now.period()) < FEW_MONTHS;
        few.then(|| format!("there are partitions until {until} only: run `ca-server migrate`"))
    }

    pub(super) fn commit_begins(&self) {
        let began = u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX - 1) + 1;
        self.commit_began.store(began, Ordering::Relaxed);
    }

    pub(super) fn commit_ended(&self) {
        self.commit_began.store(0, Ordering::Relaxed);
    }

    /// How long the commit in flight has been waiting.
    fn commit_age(&self) -> Duration {
        match self.commit_began.load(Ordering::Relaxed) {
            0 => Duration::ZERO,
            began => self
                .epoch
                .elapsed()
                .saturating_sub(Duration::from_millis(began - 1)),
        }
    }

    /// What a call that has run out of time was waiting for, if it is the ledger.
    pub(super) fn answering(&self, now: Timestamp) -> Result<(), Refusal> {
        self.accepting(now)?;
        let late = || {
            Refusal::new(
                Reason::LedgerDown,
                "the ledger did not answer within the call's time limit",
            )
        };
        if self.commit_age() > LATE_COMMIT {
            Err(late())
        } else {
            Ok(())
        }
    }

    /// The chain's period, or the month of `now` if that is later.
    pub(super) fn period(&self, now: Timestamp) -> Period {
        Period::new(self.period.load(Ordering::Relaxed))
            .map_or(now.period(), |period| period.max(now.period()))
    }

    /// Whether an intent would be accepted now.
    pub(super) fn accepting(&self, now: Timestamp) -> Result<(), Refusal> {
        match &**self.state.load() {
            State::Up => {}
            State::ClockApart => {
                let compared = || {
                    Refusal::new(
                        Reason::Clock,
                        "the clock was not the database's and is being compared anew",
                    )
                };
                return Err(self.clock_apart(now).unwrap_or_else(compared));
            }
            State::ClockBehind(recorded) => return Err(behind(now, *recorded)),
            State::Down(cause) => {
                return Err(Refusal::new(
                    Reason::LedgerDown,
                    format_args!("the ledger is down: {cause}"),
                ));
            }
            State::WentBack(cause) => {
                return Err(Refusal::new(
                    Reason::LedgerDown,
                    format_args!("the ledger went back: {cause}"),
                ));
            }
            State::Stopped => return Err(Refusal::new(Reason::Stopping, "the ledger is closed")),
        }
        if self.commit_age() > SLOW_COMMIT {
            return Err(Refusal::new(
                Reason::LedgerDown,
                "the ledger is down: a commit has been waiting for more than 2 s",
            ));
        }
        if let Some(refusal) = self.clock_apart(now) {
            return Err(refusal);
        }
        let recorded = Timestamp::from_micros(self.time.load(Ordering::Relaxed));
        if is_behind(now, recorded) {
            Err(behind(now, recorded))
        } else {
            Ok(())
        }
    }
}

pub(super) fn is_behind(now: Timestamp, recorded: Timestamp) -> bool {
    recorded.since(now) > CLOCK_TOLERANCE
}

pub(super) fn behind(now: Timestamp, recorded: Timestamp) -> Refusal {
    let sentence =
        "the clock is behind the ledger; correct it, or accept it once with `serve --accept-clock`";
    Refusal::new(
        Reason::Clock,
        format_args!("{sentence} (clock {now}, newest row {recorded})"),
    )
}
