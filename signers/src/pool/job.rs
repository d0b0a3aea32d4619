//! A queued job, and the one flag that caller and thread agree through on whether its bytes may
//! have reached the device. However a job ends, also by a thread's panic, its owner is told exactly
//! once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use crate::{Job, SignError, SignFailure};

/// What a job ends with.
pub(crate) type Answer = Result<Vec<u8>, SignFailure>;

/// How long a job took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timing {
    /// In the queue.
    pub waited: Duration,
    /// Inside the device.
    pub in_device: Duration,
}

/// Who is told how the job ended.
type Owner = Box<dyn FnOnce(Answer, Timing) + Send>;

const WAITING: u8 = 0;
const IN_DEVICE: u8 = 1;
const ABANDONED: u8 = 2;

/// Where a job is: waiting, perhaps in the device, or given up by its caller. Only a waiting job
/// can be given up, only one that was not given up can enter the device; so both sides always tell
/// the same story.
#[derive(Clone, Default)]
pub(crate) struct Progress(Arc<AtomicU8>);

impl Progress {
    fn step(&self, from: u8, to: u8) -> bool {
        self.0
            .compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }

    /// The caller gives up. False if the bytes may have reached the device already.
    pub(crate) fn abandon(&self) -> bool {
        self.step(WAITING, ABANDONED)
    }

    pub(crate) fn may_have_reached_device(&self) -> bool {
        self.0.load(Ordering::Acquire) == IN_DEVICE
    }

    /// From here on the device may sign. False if the caller has given up: the job must be dropped.
    pub(crate) fn enter_device(&self) -> bool {
        self.may_have_reached_device() || self.step(WAITING, IN_DEVICE)
    }

    fn is_abandoned(&self) -> bool {
        self.0.load(Ordering::Acquire) == ABANDONED
    }
}

/// A job in the queue or in a thread's hands.
pub(super) struct Queued {
    pub(super) job: Job,
    pub(super) since: Instant,
    pub(super) timing: Timing,
    progress: Progress,
    owner: Option<Owner>,
    /// A device may have signed the bytes, whatever becomes of another try.
    may_be_signed: bool,
}

impl Drop for Queued {
    fn drop(&mut self) {
        if self.owner.is_some() && !self.is_abandoned() {
            self.end(Err(self.failure(
                SignError::Lost("the signer thread failed".into()),
                false,
            )));
        }
    }
}

impl Queued {
    pub(super) fn new(
        job: Job,
        progress: Progress,
        owner: impl FnOnce(Answer, Timing) + Send + 'static,
    ) -> Self {
        Self {
            job,
            since: Instant::now(),
            timing: Timing::default(),
            progress,
            owner: Some(Box::new(owner)),
            may_be_signed: false,
        }
    }

    /// From here on the device may sign. False if the caller has given up: the job must be dropped.
    pub(super) fn enter_device(&self) -> bool {
        self.progress.enter_device()
    }

    /// A try has failed. Where the device provably did not sign, and no earlier one may have, the
    /// caller may give up again.
    pub(super) fn leave_device(&mut self, may_have_signed: bool) {
        self.may_be_signed |= may_have_signed;
        if !self.may_be_signed {
            self.progress.step(IN_DEVICE, WAITING);
        }
    }

    pub(super) fn is_abandoned(&self) -> bool {
        self.progress.is_abandoned()
    }

    /// Drops the job; whoever brought it says himself how it ended.
    pub(super) fn disown(mut self) {
        self.owner = None;
    }

    /// Gives the signature to the caller, if there still is one.
    pub(super) fn succeed(mut self, signature: Vec<u8>) {
        self.end(Ok(signature));
    }

    /// Fails the job; whether its bytes may have reached the device is known from its progress.
    pub(super) fn fail(mut self, error: SignError) {
        self.end(Err(self.failure(error, false)));
    }

    /// Fails the job because its deadline has passed.
    pub(super) fn fail_late(mut self) {
        self.end(Err(self.failure(
            SignError::Busy("the deadline passed before the device was asked".into()),
            true,
        )));
    }

    fn failure(&self, error: SignError, deadline_passed: bool) -> SignFailure {
        SignFailure {
            error,
            deadline_passed,
            reached_device: self.progress.may_have_reached_device(),
        }
    }

    fn end(&mut self, answer: Answer) {
        if let Some(owner) = self.owner.take() {
            owner(answer, self.timing);
        }
    }
}
