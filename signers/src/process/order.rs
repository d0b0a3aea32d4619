//! What a key's calls and operators ask of the task that owns the process.

use std::time::Instant;

use tokio::sync::oneshot;

use crate::Job;
use crate::pool::job::{Answer, Progress};

/// What calls and operators want of the task.
pub(super) enum Order {
    Sign(RemoteJob),
    /// An operator's, of this time.
    LogIn(Instant),
    Distrust(u16),
    Stop(std::sync::mpsc::Sender<bool>),
}

/// A job on its way to the signer.
pub(super) struct RemoteJob {
    pub(super) key: u16,
    pub(super) job: Job,
    pub(super) progress: Progress,
    pub(super) answer: oneshot::Sender<Answer>,
    /// Nobody else could sign it: it is worth waiting for another process. Otherwise its caller
    /// goes elsewhere.
    pub(super) only: bool,
    /// To how many processes it has been sent.
    pub(super) sent: u32,
}
