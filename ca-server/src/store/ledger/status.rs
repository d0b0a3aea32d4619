//! What every call may know of the writer without asking it: whether it records, where its clock and period stand.

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

/// What the writer is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// It records.
    Up,
    /// No chain is begun: the clock is behind the newest row of former chains.
    ClockBehind(Timestamp),
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
    epoch: Instant,
}

impl Status {
    pub(super) fn new() -> Self {
        Self {
            state: ArcSwap::from_pointee(State::Stopped),
            time: AtomicI64::new(0),
            period: AtomicU32::new(0),
            commit_began: AtomicU64::new(0),
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
        self.period.store(chain.period(chain.time()).yyyymm(), Ordering::Relaxed);
    }

    pub(super) fn commit_begins(&self) {
        let began = u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX - 1) + 1;
        self.commit_began.store(began, Ordering::Relaxed);
    }

    pub(super) fn commit_ended(&self) {
        self.commit_began.store(0, Ordering::Relaxed);
    }

    /// The chain's period, or the month of `now` if that is later.
    pub(super) fn period(&self, now: Timestamp) -> Period {
        Period::new(self.period.load(Ordering::Relaxed)).map_or(now.period(), |period| period.max(now.period()))
    }

    /// Whether an intent would be accepted now.
    pub(super) fn accepting(&self, now: Timestamp) -> Result<(), Refusal> {
        match &**self.state.load() {
            State::Up => {}
            State::ClockBehind(recorded) => return Err(behind(now, *recorded)),
            State::Down(cause) => return Err(Refusal::new(Reason::LedgerDown, format_args!("the ledger is down: {cause}"))),
            State::WentBack(cause) => return Err(Refusal::new(Reason::LedgerDown, format_args!("the ledger went back: {cause}"))),
            State::Stopped => return Err(Refusal::new(Reason::Stopping, "the ledger is closed")),
        }
        let began = self.commit_began.load(Ordering::Relaxed);
        if began != 0 && self.epoch.elapsed().saturating_sub(Duration::from_millis(began - 1)) > SLOW_COMMIT {
            return Err(Refusal::new(Reason::LedgerDown, "the ledger is down: a commit has been waiting for more than 2 s"));
        }
        let recorded = Timestamp::from_micros(self.time.load(Ordering::Relaxed));
        if is_behind(now, recorded) { Err(behind(now, recorded)) } else { Ok(()) }
    }
}

pub(super) fn is_behind(now: Timestamp, recorded: Timestamp) -> bool {
    recorded.since(now) > CLOCK_TOLERANCE
}

pub(super) fn behind(now: Timestamp, recorded: Timestamp) -> Refusal {
    let sentence = "the clock is behind the ledger; correct it, or accept it once with `serve --accept-clock`";
    Refusal::new(Reason::Clock, format_args!("{sentence} (clock {now}, newest row {recorded})"))
}
