//! The line before one issuer's device: how many calls are under way to it, who waits and in which
//! order, and who has no chance in the time that is left. A plain value: it is told the time and
//! the device's pace, and says what follows.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound::{Excluded, Unbounded};
use std::time::{Duration, Instant};

use signers::Pace;

use super::Standing;

/// So many calls for each session are under way at least: one in the device and one that is next.
const EACH_SESSION: usize = 2;

/// Beside these, the signatures of so much time: the device goes on while the ledger commits the
/// intents of those that come next.
const COMMIT: Duration = Duration::from_millis(250);

/// What a call needs beside the device, where the ledger is as fast as can be.
const BESIDE: Duration = Duration::from_millis(25);

/// One part in so many of all calls is kept free of those that wait: whoever comes must be heard
/// before it is known where it stands.
const KEPT_FREE: usize = 4;

/// What the last commit counts in the mean.
const NEWEST: f64 = 0.125;

/// Those that were let in or made to wait within so long tell how many more will come who go first;
/// so many of them are remembered.
const LATELY: Duration = Duration::from_secs(2);
const REMEMBERED: usize = 1024;
/// Nor is it judged by less time, or less than so many signatures take: one burst is no rate.
const BURST: Duration = Duration::from_secs(1);
const BURST_SIGNATURES: f64 = 8.0;

/// Whoever has to leave more than so much of the device to those who go first would wait in vain.
const OVERTAKEN_AT_MOST: f64 = 0.95;

/// See the module. `T` is how those who wait are told.
#[derive(Debug)]
pub(super) struct Line<T> {
    most: usize,
    pace: Pace,
    /// What the ledger takes to make a row durable, on average.
    commit: Duration,
    inside: usize,
    waiting: BTreeMap<Turn, Waiting<T>>,
    arrivals: u64,
    /// Those that were let in or made to wait last, the oldest first.
    lately: VecDeque<(Instant, Standing)>,
}

/// A place in the order: standing, then arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Turn {
    standing: Standing,
    arrival: u64,
}

#[derive(Debug)]
struct Waiting<T> {
    deadline: Instant,
    who: T,
}

/// What becomes of one that arrives.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Arrival<T> {
    /// It goes on at once.
    Enters,
    /// It waits. Somebody behind it may have lost the chance, or the room, by that, and is turned
    /// away.
    Waits { turn: Turn, pushed_out: Option<T> },
    /// It cannot be served in its time.
    TurnedAway,
}

/// What becomes of those who wait.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Moved<T> {
    /// They go on, and are inside.
    pub(super) called: Vec<T>,
    /// They cannot be served in their time.
    pub(super) turned_away: Vec<T>,
}

impl<T> Line<T> {
    /// So many are inside at most, whatever the pace.
    pub(super) fn new(most: usize) -> Self {
        let pace = Pace {
            sessions: 1,
            per_signature: None,
        };
        Self {
            most,
            pace,
            commit: Duration::ZERO,
            inside: 0,
            waiting: BTreeMap::new(),
            arrivals: 0,
            lately: VecDeque::new(),
        }
    }

    /// Calls that may be inside.
    pub(super) fn window(&self) -> usize {
        let meanwhile =
            self.pace.per_second().unwrap_or(0.0) * COMMIT.max(2 * self.commit).as_secs_f64();
        (EACH_SESSION * self.pace.sessions)
            .saturating_add(meanwhile.ceil() as usize)
            .min(self.most)
            .max(1)
    }

    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    pub(super) fn pace(&self) -> Pace {
        self.pace
    }

    /// One that arrives. `who` is asked for only if it waits.
    pub(super) fn arrive(
        &mut self,
        standing: Standing,
        deadline: Instant,
        now: Instant,
        who: impl FnOnce() -> T,
    ) -> Arrival<T> {
        // Without its own certificate the daemon serves nobody. And somebody must find out when a
        // slow device is fast again.
        let at_once =
            standing == Standing::Daemon || (self.inside < self.pace.sessions && deadline > now);
        if at_once
            || (self.waiting.is_empty()
                && self.inside < self.window()
                && self.is_in_time(0, deadline, now))
        {
            self.inside += 1;
            self.accepted(standing, now);
            return Arrival::Enters;
        }
        let turn = Turn {
            standing,
            arrival: self.arrivals,
        };
        let full = self.inside + self.waiting.len() >= self.most - self.most / KEPT_FREE;
        if full
            && self
                .waiting
                .last_key_value()
                .is_none_or(|(last, _)| *last < turn)
        {
            return Arrival::TurnedAway;
        }
        let ahead = self.waiting.range(..turn).count();
        if self
            .overtaking(standing, ahead, now)
            .is_none_or(|others| !self.is_in_time(ahead + others, deadline, now))
        {
            return Arrival::TurnedAway;
        }
        self.arrivals += 1;
        self.accepted(standing, now);
        // Whoever is behind moves back by one; of these at most one is turned away, because the
        // others then have their place again.
        let behind = self.waiting.range((Excluded(turn), Unbounded));
        let late = (ahead + 1..)
            .zip(behind)
            .find(|(ahead, (_, waiting))| !self.is_in_time(*ahead, waiting.deadline, now));
        let last = || {
            self.waiting
                .last_key_value()
                .map(|(last, _)| *last)
                .filter(|_| full)
        };
        let late = late.map(|(_, (turn, _))| *turn).or_else(last);
        let pushed_out = late
            .and_then(|late| self.waiting.remove(&late))
            .map(|waiting| waiting.who);
        self.waiting.insert(
            turn,
            Waiting {
                deadline,
                who: who(),
            },
        );
        Arrival::Waits { turn, pushed_out }
    }

    /// One that waited does not any more.
    pub(super) fn give_up(&mut self, turn: Turn) {
        self.waiting.remove(&turn);
    }

    /// One that was inside is not any more.
    pub(super) fn leave(&mut self, now: Instant) -> Moved<T> {
        self.inside = self.inside.saturating_sub(1);
        self.advance(now)
    }

    /// The device is this fast. Whoever waits goes on waiting: a pace that is worse for a moment
    /// turns nobody away before its turn.
    pub(super) fn set_pace(&mut self, pace: Pace, now: Instant) -> Moved<T> {
        self.pace = Pace {
            sessions: pace.sessions.max(1),
            ..pace
        };
        self.advance(now)
    }

    /// The ledger took so long to make an intent durable.
    pub(super) fn recorded(&mut self, took: Duration) {
        self.commit = self.commit.mul_f64(1.0 - NEWEST) + took.mul_f64(NEWEST);
    }

    fn advance(&mut self, now: Instant) -> Moved<T> {
        let mut moved = Moved {
            called: Vec::new(),
            turned_away: Vec::new(),
        };
        while self.inside < self.window()
            && let Some((_, next)) = self.waiting.pop_first()
        {
            let session_is_free = self.inside < self.pace.sessions && next.deadline > now;
            if session_is_free || self.is_in_time(0, next.deadline, now) {
                self.inside += 1;
                moved.called.push(next.who);
            } else {
                moved.turned_away.push(next.who);
            }
        }
        moved
    }

    fn accepted(&mut self, standing: Standing, now: Instant) {
        while self.lately.len() >= REMEMBERED
            || self
                .lately
                .front()
                .is_some_and(|(at, _)| now.saturating_duration_since(*at) > LATELY)
        {
            self.lately.pop_front();
        }
        self.lately.push_back((now, standing));
    }

    /// How many will still come and go before one that has so many waiting ahead of it, if things
    /// go on as they did lately; `None` if they leave it nothing of the device.
    fn overtaking(&self, standing: Standing, ahead: usize, now: Instant) -> Option<usize> {
        let Some(((since, _), per_second)) = self.lately.front().zip(self.pace.per_second()) else {
            return Some(0);
        };
        let time = now
            .saturating_duration_since(*since)
            .max(BURST)
            .as_secs_f64();
        let better = self
            .lately
            .iter()
            .filter(|(_, other)| *other < standing)
            .count() as f64;
        // Of the signatures that the device makes, so much is for them.
        let share = better / (time * per_second).max(BURST_SIGNATURES);
        (share <= OVERTAKEN_AT_MOST)
            .then(|| (ahead as f64 * share / (1.0 - share)).round() as usize)
    }

    /// Whether one with so many waiting ahead of it has its certificate before its deadline. As far
    /// as is known: yes, as long as nothing is.
    fn is_in_time(&self, ahead: usize, deadline: Instant, now: Instant) -> bool {
        let Some(per_signature) = self.pace.per_signature else {
            return deadline > now;
        };
        let before_it = (self.inside + ahead) as f64 / self.pace.sessions as f64;
        let needed = per_signature.mul_f64(before_it + 1.0) + 2 * self.commit + BESIDE;
        deadline.saturating_duration_since(now) > needed
    }
}

#[cfg(test)]
mod tests;
