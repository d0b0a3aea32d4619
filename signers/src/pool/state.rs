//! What the threads of a pool share: the queue, who has a session, and when a lost device is tried
//! again.
//!
//! One lock guards it all; it is never held while a device is asked. At most one thread at a time
//! probes a lost device, with pauses that double up to a cap and carry jitter, so that a token that
//! returns meets one visitor and not a crowd.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::PoolOptions;
use super::job::Queued;
use super::source::Source;
use crate::{PublicKey, SignError, SignFailure};

const FIRST_PAUSE: Duration = Duration::from_millis(50);

pub(super) struct Shared {
    pub(super) source: Source,
    pub(super) public_key: PublicKey,
    pub(super) options: PoolOptions,
    state: Mutex<State>,
    job_arrived: Condvar,
    recovery_changed: Condvar,
    thread_ended: Condvar,
    epoch: Instant,
    // For each seat, when the job or the opening inside its device is due, in nanoseconds since
    // `epoch`; 0 outside.
    due: Vec<AtomicU64>,
    // Held while stuck threads are counted and reported, so that the last report is the true one.
    stuck_report: Mutex<()>,
    // Counts the times that every session was called into doubt; a session belongs to the count of
    // its opening.
    generation: AtomicU64,
    reopened: AtomicU64,
}

pub(super) struct State {
    pub(super) jobs: VecDeque<Queued>,
    pub(super) closed: bool,
    pub(super) seats: Vec<Seat>,
    /// The token refused the PIN: nobody tries until `retry_login`.
    pub(super) locked: bool,
    /// Why the last try to open failed.
    pub(super) trouble: Option<SignError>,
    probing: bool,
    /// How often a seat has lost its session: the others look at theirs then.
    losses: u64,
    /// An operator's orders so far. A PIN that was refused in a try from before the last of them
    /// may be tried again.
    orders: u64,
    failures: u32,
    next_try: Instant,
}

/// What one thread has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seat {
    /// A session.
    Serving,
    /// A session that was lost a moment ago, and is being opened again for the first time.
    Renewing,
    /// No session.
    Lost,
    /// The thread has ended.
    Ended,
}

/// What a waiting thread is woken for.
pub(super) enum Wake {
    Job(Queued),
    /// To look at its session: it was idle, or another was lost; so many have been until now.
    Check(u64),
    Stop,
}

impl Shared {
    pub(super) fn new(source: Source, public_key: PublicKey, options: PoolOptions) -> Self {
        let threads = options.threads.max(1);
        let now = Instant::now();
        let mut seats = vec![Seat::Lost; threads];
        // The first seat gets the session that the start has opened.
        seats[0] = Seat::Serving;
        let state = State {
            jobs: VecDeque::with_capacity(options.queue.min(4096)),
            closed: false,
            seats,
            locked: false,
            trouble: None,
            probing: false,
            losses: 0,
            orders: 0,
            failures: 0,
            next_try: now,
        };
        Self {
            source,
            public_key,
            options,
            state: Mutex::new(state),
            job_arrived: Condvar::new(),
            recovery_changed: Condvar::new(),
            thread_ended: Condvar::new(),
            epoch: now,
            due: (0..threads).map(|_| AtomicU64::new(0)).collect(),
            stuck_report: Mutex::new(()),
            generation: AtomicU64::new(0),
            reopened: AtomicU64::new(0),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn seats(&self) -> usize {
        self.due.len()
    }

    /// Queues a job, or says at once why it cannot be signed; then its owner is told nothing.
    pub(super) fn push(&self, job: Queued) -> Result<(), SignFailure> {
        let refuse = |job: Queued, error| {
            job.disown();
            Err(SignFailure {
                error,
                deadline_passed: false,
                reached_device: false,
            })
        };
        let mut state = self.lock();
        if state.closed {
            return refuse(job, SignError::Stopped);
        }
        if !state.anyone_able() {
            return refuse(job, state.out_of_order());
        }
        if state.jobs.len() >= self.options.queue {
            state.jobs.retain(|job| !job.is_abandoned());
            if state.jobs.len() >= self.options.queue {
                return refuse(
                    job,
                    SignError::Busy(format!("{} jobs wait already", state.jobs.len())),
                );
            }
        }
        state.jobs.push_back(job);
        let depth = state.jobs.len();
        drop(state);
        self.job_arrived.notify_one();
        self.options.observer.queue_depth(depth);
        Ok(())
    }

    /// Answers the jobs that have waited past their deadlines.
    pub(super) fn fail_late(&self) {
        let now = Instant::now();
        let mut state = self.lock();
        if state.jobs.iter().all(|job| job.job.deadline > now) {
            return;
        }
        let (late, waiting): (VecDeque<_>, _) = std::mem::take(&mut state.jobs)
            .into_iter()
            .partition(|job| job.job.deadline <= now);
        state.jobs = waiting;
        drop(state);
        late.into_iter().for_each(Queued::fail_late);
    }

    /// Waits for a job; `losses` is how many it has heard of.
    pub(super) fn next(&self, losses: u64) -> Wake {
        let mut state = self.lock();
        loop {
            if state.closed {
                return Wake::Stop;
            }
            if state.losses != losses {
                return Wake::Check(state.losses);
            }
            if let Some(job) = state.jobs.pop_front() {
                let depth = state.jobs.len();
                drop(state);
                self.options.observer.queue_depth(depth);
                return Wake::Job(job);
            }
            let (guard, waited) = self
                .job_arrived
                .wait_timeout(state, self.options.idle_check)
                .unwrap_or_else(PoisonError::into_inner);
            state = guard;
            if waited.timed_out() && state.jobs.is_empty() && !state.closed {
                return Wake::Check(losses);
            }
        }
    }

    pub(super) fn set(&self, seat: usize, now: Seat) {
        self.lock().seats[seat] = now;
        if now == Seat::Ended {
            self.thread_ended.notify_all();
        }
    }

    /// A seat could not get a session. When it was the last with hope, the waiting jobs fail now
    /// rather than at their deadlines. `orders` is how many had come when it tried.
    pub(super) fn lost(&self, seat: usize, error: &SignError, orders: u64) {
        let mut state = self.lock();
        state.seats[seat] = Seat::Lost;
        state.losses += 1;
        state.failed(error, orders, self.options.longest_pause);
        let stranded = if state.anyone_able() {
            VecDeque::new()
        } else {
            std::mem::take(&mut state.jobs)
        };
        let answer = state.out_of_order();
        drop(state);
        self.recovery_changed.notify_all();
        self.job_arrived.notify_all();
        if !stranded.is_empty() {
            self.options.observer.queue_depth(0);
        }
        for job in stranded {
            job.fail(answer.clone());
        }
    }

    /// Waits until it is this thread's turn to try the lost device. False when the pool has been
    /// closed.
    pub(super) fn turn_to_probe(&self) -> bool {
        let mut state = self.lock();
        loop {
            if state.closed {
                return false;
            }
            let now = Instant::now();
            state = if state.locked || state.probing {
                self.recovery_changed
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner)
            } else if now < state.next_try {
                let pause = state.next_try - now;
                self.recovery_changed
                    .wait_timeout(state, pause)
                    .unwrap_or_else(PoisonError::into_inner)
                    .0
            } else {
                state.probing = true;
                return true;
            };
        }
    }

    /// The turn is over, with or without a session; `orders` is how many had come when it began.
    pub(super) fn probed(&self, seat: usize, result: Result<(), &SignError>, orders: u64) {
        let mut state = self.lock();
        state.probing = false;
        match result {
            Ok(()) => {
                state.seats[seat] = Seat::Serving;
                state.trouble = None;
                state.failures = 0;
                state.next_try = Instant::now();
            }
            Err(error) => state.failed(error, orders, self.options.longest_pause),
        }
        drop(state);
        self.recovery_changed.notify_all();
    }

    /// Waits, at most so long, until a session is open or the first try to open one has failed.
    /// `None` when neither has come.
    pub(super) fn opened(&self, longest: Duration) -> Option<Result<(), SignError>> {
        let undecided =
            |state: &mut State| !state.closed && !state.anyone_able() && state.trouble.is_none();
        let waited = self
            .recovery_changed
            .wait_timeout_while(self.lock(), longest, undecided);
        let state = waited.unwrap_or_else(PoisonError::into_inner).0;
        match &state.trouble {
            _ if state.closed => Some(Err(SignError::Stopped)),
            _ if state.anyone_able() => Some(Ok(())),
            trouble => trouble.clone().map(Err),
        }
    }

    /// Why nobody tries to open a session before an order; `None` while one is open.
    pub(super) fn locked(&self) -> Option<SignError> {
        let state = self.lock();
        (state.locked && !state.anyone_able()).then(|| state.out_of_order())
    }

    pub(super) fn retry_login(&self, ordered_at: Instant) {
        self.source.order(ordered_at);
        let mut state = self.lock();
        state.orders += 1;
        state.locked = false;
        // What was refused is no answer to calls any more: the order decides.
        state
            .trouble
            .take_if(|trouble| matches!(trouble, SignError::Locked(_)));
        state.failures = 0;
        state.next_try = Instant::now();
        drop(state);
        self.recovery_changed.notify_all();
    }

    pub(super) fn orders(&self) -> u64 {
        self.lock().orders
    }

    pub(super) fn losses(&self) -> u64 {
        self.lock().losses
    }

    /// No session that was opened before now is used again.
    pub(super) fn distrust_sessions(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        // Idle ones are opened anew at once: whoever asks how it is must not wait for a call to
        // hear it.
        self.lock().losses += 1;
        self.job_arrived.notify_all();
    }

    /// A session was opened again after a loss.
    pub(super) fn count_reopened(&self) {
        self.reopened.fetch_add(1, Ordering::Relaxed);
        self.options.observer.reopened();
    }

    pub(super) fn reopened(&self) -> u64 {
        self.reopened.load(Ordering::Relaxed)
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    pub(super) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        let jobs = std::mem::take(&mut state.jobs);
        drop(state);
        self.job_arrived.notify_all();
        self.recovery_changed.notify_all();
        for job in jobs {
            job.fail(SignError::Stopped);
        }
    }

    pub(super) fn wait_until_ended(&self, longest: Duration) -> bool {
        let running = |state: &mut State| state.seats.iter().any(|seat| *seat != Seat::Ended);
        let (_state, waited) = self
            .thread_ended
            .wait_timeout_while(self.lock(), longest, running)
            .unwrap_or_else(PoisonError::into_inner);
        !waited.timed_out()
    }

    /// The seat's thread goes into its device, and is due back at `deadline`.
    pub(super) fn enter(&self, seat: usize, deadline: Instant) {
        self.due[seat].store(self.nanos(deadline), Ordering::Release);
    }

    /// The seat's thread has come back.
    pub(super) fn leave(&self, seat: usize) {
        let due = self.due[seat].swap(0, Ordering::AcqRel);
        if due != 0 && due < self.nanos(Instant::now()) {
            self.report_stuck();
        }
    }

    pub(super) fn stuck_now(&self) -> usize {
        (0..self.seats())
            .filter(|seat| self.is_stuck(*seat))
            .count()
    }

    /// Whether the seat's thread is inside its device for longer than it may.
    pub(super) fn is_stuck(&self, seat: usize) -> bool {
        let due = self.due[seat].load(Ordering::Acquire);
        due != 0 && due < self.nanos(Instant::now())
    }

    /// By how much the device call that is longest past its limit is past it.
    pub(super) fn longest_overdue(&self) -> Duration {
        let now = self.nanos(Instant::now());
        let due = self
            .due
            .iter()
            .map(|due| due.load(Ordering::Acquire))
            .filter(|due| *due != 0)
            .min();
        Duration::from_nanos(due.map_or(0, |due| now.saturating_sub(due)))
    }

    pub(super) fn report_stuck(&self) {
        let _one_at_a_time = self
            .stuck_report
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        self.options.observer.stuck_threads(self.stuck_now());
    }

    fn nanos(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.epoch).as_nanos())
            .unwrap_or(u64::MAX)
            .max(1)
    }
}

impl State {
    fn anyone_able(&self) -> bool {
        self.seats
            .iter()
            .any(|seat| matches!(seat, Seat::Serving | Seat::Renewing))
    }

    /// The answer to jobs while no thread has a session.
    fn out_of_order(&self) -> SignError {
        match &self.trouble {
            Some(locked @ SignError::Locked(_)) => locked.clone(),
            Some(SignError::Stopped) | None => SignError::Lost("no session is open".into()),
            Some(error) => SignError::Lost(error.cause().to_owned()),
        }
    }

    fn failed(&mut self, error: &SignError, orders: u64, longest_pause: Duration) {
        self.trouble = Some(error.clone());
        if orders != self.orders {
            // An order came meanwhile: it is carried out now.
            self.next_try = Instant::now();
            return;
        }
        self.locked |= matches!(error, SignError::Locked(_));
        self.next_try = Instant::now() + pause(self.failures, longest_pause);
        self.failures = self.failures.saturating_add(1);
    }
}

/// Doubles with each failure up to `longest`; between half and all of that, by chance.
fn pause(failures: u32, longest: Duration) -> Duration {
    let full = FIRST_PAUSE
        .saturating_mul(1 << failures.min(16))
        .min(longest);
    let chance = f64::from(getrandom::u32().unwrap_or(0)) / f64::from(u32::MAX);
    full.mul_f64(0.5 + chance / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_the_cap_and_never_beyond() {
        let cap = Duration::from_secs(5);
        for failures in 0..40 {
            let pause = pause(failures, cap);
            assert!(
                pause >= FIRST_PAUSE / 2 && pause <= cap,
                "{failures}: {pause:?}"
            );
        }
        assert!(pause(40, cap) >= cap / 2);
    }
}
