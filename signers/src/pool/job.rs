//! A queued job, and the one flag that caller and thread agree through on whether its bytes may have reached the device.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Instant;

use tokio::sync::oneshot;

use crate::{Job, SignError, SignFailure};

/// What a job ends with.
pub(super) type Answer = Result<Vec<u8>, SignFailure>;

const WAITING: u8 = 0;
const IN_DEVICE: u8 = 1;
const ABANDONED: u8 = 2;

/// Where a job is: waiting, perhaps in the device, or given up by its caller. Only a waiting job can be given up, only one that was not given
/// up can enter the device; so both sides always tell the same story.
#[derive(Clone, Default)]
pub(super) struct Progress(Arc<AtomicU8>);

impl Progress {
    fn step(&self, from: u8, to: u8) -> bool {
        self.0.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// The caller gives up. False if the bytes may have reached the device already.
    pub(super) fn abandon(&self) -> bool {
        self.step(WAITING, ABANDONED)
    }

    pub(super) fn may_have_reached_device(&self) -> bool {
        self.0.load(Ordering::Acquire) == IN_DEVICE
    }

    fn is_abandoned(&self) -> bool {
        self.0.load(Ordering::Acquire) == ABANDONED
    }
}

/// A job in the queue or in a thread's hands.
pub(super) struct Queued {
    pub(super) job: Job,
    pub(super) since: Instant,
    progress: Progress,
    answer: oneshot::Sender<Answer>,
}

impl Queued {
    pub(super) fn new(job: Job) -> (Self, Progress, oneshot::Receiver<Answer>) {
        let (answer, receiver) = oneshot::channel();
        let progress = Progress::default();
        (Self { job, since: Instant::now(), progress: progress.clone(), answer }, progress, receiver)
    }

    /// From here on the device may sign. False if the caller has given up: the job must be dropped.
    pub(super) fn enter_device(&self) -> bool {
        self.progress.may_have_reached_device() || self.progress.step(WAITING, IN_DEVICE)
    }

    /// The device provably did not sign: the caller may give up again.
    pub(super) fn leave_device_unsigned(&self) {
        self.progress.step(IN_DEVICE, WAITING);
    }

    pub(super) fn is_abandoned(&self) -> bool {
        self.progress.is_abandoned()
    }

    /// Gives the signature to the caller, if there still is one.
    pub(super) fn succeed(self, signature: Vec<u8>) {
        let _ = self.answer.send(Ok(signature));
    }

    /// Fails the job; whether its bytes may have reached the device is known from its progress.
    pub(super) fn fail(self, error: SignError) {
        let failure = SignFailure { error, deadline_passed: false, reached_device: self.progress.may_have_reached_device() };
        let _ = self.answer.send(Err(failure));
    }

    /// Fails the job because its deadline has passed.
    pub(super) fn fail_late(self) {
        let error = SignError::Busy("the deadline passed before the device was asked".into());
        let failure = SignFailure { error, deadline_passed: true, reached_device: self.progress.may_have_reached_device() };
        let _ = self.answer.send(Err(failure));
    }
}
