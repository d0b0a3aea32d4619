//! One thread with one session: takes jobs, signs, and gets itself a new session when the old one
//! is lost.
//!
//! A session that failed once is not used again, whatever the device called its trouble: a vendor's
//! code may well mean a dead session. The first reopening happens at once and unseen by callers;
//! the same bytes are tried once more, if the device made nothing of them. When that fails the
//! thread joins those who wait for the device to return (`Shared::turn_to_probe`). A session that
//! was called into doubt (`Shared::distrust_sessions`) is replaced before it signs again. After a
//! loss only a session that signs a probe counts as open: many a library opens sessions of a device
//! that is gone.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use super::job::Queued;
use super::state::{Seat, Shared, Wake};
use crate::probe::Proof;
use crate::{Device, Failure, SignError};

struct Session {
    device: Box<dyn Device>,
    generation: u64,
    /// Losses of other seats that it has heard of.
    losses: u64,
}

impl Session {
    fn open(shared: &Shared, seat: usize, proof: Proof) -> Result<Self, SignError> {
        // Asked first: a doubt that is raised meanwhile holds for this session, too.
        let (generation, losses) = (shared.generation(), shared.losses());
        shared.enter(seat, Instant::now() + shared.options.open_limit);
        let device = shared.source.open(proof);
        shared.leave(seat);
        Ok(Self {
            device: device?,
            generation,
            losses,
        })
    }

    fn is_doubtful(&self, shared: &Shared) -> bool {
        self.generation != shared.generation()
    }
}

/// The life of a thread. `device` is `None` where it has to open its own.
pub(super) fn run(shared: &Shared, seat: usize, device: Option<Box<dyn Device>>) {
    let mut first = device.map(|device| Session {
        device,
        generation: 0,
        losses: 0,
    });
    let mut was_lost = false;
    // A panic inside a device library's wrapper costs one job and one session, not the thread.
    while catch_unwind(AssertUnwindSafe(|| {
        live(shared, seat, first.take(), was_lost)
    }))
    .is_err()
    {
        shared.leave(seat);
        shared.lost(
            seat,
            &SignError::Lost("the signer thread failed".into()),
            shared.orders(),
        );
        was_lost = true;
    }
    shared.set(seat, Seat::Ended);
}

fn live(shared: &Shared, seat: usize, first: Option<Session>, mut was_lost: bool) {
    let mut device = first;
    loop {
        let Some(mut session) = device.take() else {
            match reopen(
                shared,
                seat,
                if was_lost {
                    Proof::Signature
                } else {
                    Proof::None
                },
            ) {
                Some(session) => device = Some(session),
                None => return,
            }
            if was_lost {
                tracing::info!(uri = %shared.source.uri(), seat, "a session was opened again");
                shared.count_reopened();
            }
            continue;
        };
        was_lost = true;
        device = match shared.next(session.losses) {
            Wake::Stop => return,
            Wake::Job(job) => serve(shared, seat, session, job),
            Wake::Check(losses) => {
                session.losses = losses;
                check(shared, seat, session)
            }
        };
    }
}

/// Waits for its turn, tries, and so on until there is a session or the pool is closed.
fn reopen(shared: &Shared, seat: usize, proof: Proof) -> Option<Session> {
    loop {
        if !shared.turn_to_probe() {
            return None;
        }
        let orders = shared.orders();
        // A panic here would leave the turn taken for ever.
        let opened = catch_unwind(AssertUnwindSafe(|| Session::open(shared, seat, proof)));
        shared.leave(seat);
        match opened.unwrap_or_else(|_| Err(SignError::Lost("opening the device failed".into()))) {
            Ok(session) => {
                shared.probed(seat, Ok(()), orders);
                return Some(session);
            }
            Err(error) => {
                tracing::warn!(uri = %shared.source.uri(), seat, %error, "the device could not be opened");
                shared.probed(seat, Err(&error), orders);
            }
        }
    }
}

fn check(shared: &Shared, seat: usize, mut session: Session) -> Option<Session> {
    if session.is_doubtful(shared) {
        return distrusted(shared, seat, session).ok();
    }
    // A device may hang here too: then this thread shows as stuck.
    shared.enter(seat, Instant::now() + shared.options.idle_check);
    let checked = session.device.check();
    shared.leave(seat);
    match checked {
        Ok(()) => Some(session),
        Err(error) => {
            tracing::warn!(uri = %shared.source.uri(), seat, %error, "an idle session was lost");
            drop(session);
            renew(shared, seat, Proof::Signature).ok()
        }
    }
}

/// The first reopening after a loss: at once, and jobs meanwhile wait for it.
fn renew(shared: &Shared, seat: usize, proof: Proof) -> Result<Session, SignError> {
    shared.set(seat, Seat::Renewing);
    let orders = shared.orders();
    match Session::open(shared, seat, proof) {
        Ok(session) => {
            shared.set(seat, Seat::Serving);
            tracing::info!(uri = %shared.source.uri(), seat, "a session was opened again");
            shared.count_reopened();
            Ok(session)
        }
        Err(error) => {
            tracing::warn!(uri = %shared.source.uri(), seat, %error, "the device is lost");
            shared.lost(seat, &error, orders);
            Err(error)
        }
    }
}

/// Ends one job. What comes back is the session, unless it was lost.
fn serve(shared: &Shared, seat: usize, mut session: Session, mut job: Queued) -> Option<Session> {
    job.timing.waited = job.since.elapsed();
    shared.options.observer.waited(job.timing.waited);
    if session.is_doubtful(shared) {
        session = match distrusted(shared, seat, session) {
            Ok(session) => session,
            Err(error) => {
                job.fail(error);
                return None;
            }
        };
    }
    match attempt(shared, seat, &mut session, &mut job) {
        Attempt::Dropped => Some(session),
        Attempt::Late => {
            job.fail_late();
            Some(session)
        }
        Attempt::Signed(signature) => {
            job.succeed(signature);
            Some(session)
        }
        Attempt::Failed(error, failure) => {
            drop(session);
            if failure.worth_a_retry {
                return retry(shared, seat, job);
            }
            job.fail(error);
            renew(shared, seat, Proof::Signature).ok()
        }
    }
}

/// Another session in the place of one that was called into doubt.
fn distrusted(shared: &Shared, seat: usize, session: Session) -> Result<Session, SignError> {
    tracing::warn!(uri = %shared.source.uri(), seat, "a signature did not verify: the session is opened anew and its key compared");
    drop(session);
    renew(shared, seat, Proof::Signature)
}

/// The same bytes once more, on a new session of which they are the proof.
fn retry(shared: &Shared, seat: usize, mut job: Queued) -> Option<Session> {
    let mut session = match renew(shared, seat, Proof::None) {
        Ok(session) => session,
        Err(error) => {
            job.fail(error);
            return None;
        }
    };
    match attempt(shared, seat, &mut session, &mut job) {
        Attempt::Dropped => Some(session),
        Attempt::Late => {
            job.fail_late();
            Some(session)
        }
        Attempt::Signed(signature) => {
            job.succeed(signature);
            Some(session)
        }
        Attempt::Failed(error, _) => {
            drop(session);
            job.fail(error.clone());
            // Twice in a row: no hurry any more.
            shared.lost(seat, &error, shared.orders());
            None
        }
    }
}

enum Attempt {
    /// Its caller has given up.
    Dropped,
    /// Its deadline has passed.
    Late,
    Signed(Vec<u8>),
    Failed(SignError, Failure),
}

fn attempt(shared: &Shared, seat: usize, session: &mut Session, job: &mut Queued) -> Attempt {
    let begun = Instant::now();
    if begun >= job.job.deadline {
        return Attempt::Late;
    }
    if !job.enter_device() {
        return Attempt::Dropped;
    }
    shared.enter(
        seat,
        shared
            .options
            .device_limit
            .map_or(job.job.deadline, |limit| begun + limit),
    );
    let result = session.device.sign(&job.job.message);
    shared.leave(seat);
    job.timing.in_device = begun.elapsed();
    shared
        .options
        .observer
        .signed(job.job.purpose, job.timing.in_device, result.is_ok());
    match result {
        Ok(signature) => Attempt::Signed(signature),
        Err(error) => {
            let failure = session.device.last_failure();
            job.leave_device(failure.may_have_signed);
            Attempt::Failed(error, failure)
        }
    }
}
