//! An issuer's key as the daemon sees it: asked for signatures, wherever its device was opened. Threads of this process or a process of its
//! own (`process`) do the work; deadlines and what a failure means are the same for both.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::pace::{Pace, PaceMeter};
use crate::pool::job::Progress;
use crate::pool::{Health, Pool, PoolOptions};
use crate::process::RemoteKey;
use crate::{Job, KeyUri, PublicKey, SignError, SignFailure};

/// How long an answer of another process may be under way.
const ON_ITS_WAY: Duration = Duration::from_millis(200);

/// A key that signs jobs. Clones share the same device, which is closed when the last clone is dropped.
#[derive(Clone, Debug)]
pub struct Signer(Place, Arc<PaceMeter>);

/// Where the device is open.
#[derive(Clone, Debug)]
enum Place {
    Threads(Pool),
    Process(Arc<RemoteKey>),
}

impl Signer {
    /// A key in a device that this process opens, on threads of its own: see `Pool::start`. Blocks meanwhile.
    pub fn start(key: KeyUri, mut options: PoolOptions) -> Result<Self, SignError> {
        let meter = Arc::new(PaceMeter::default());
        options.observer = meter.before(options.observer);
        Ok(Self(Place::Threads(Pool::start(key, options)?), meter))
    }

    /// A key in a device that another process has opened.
    pub(crate) fn remote(key: RemoteKey, meter: Arc<PaceMeter>) -> Self {
        Self(Place::Process(Arc::new(key)), meter)
    }

    /// Queues a job and waits for its signature until its deadline. Once queued the job runs whether or not the caller still waits.
    pub async fn sign(&self, job: Job) -> Result<Vec<u8>, SignFailure> {
        let deadline = job.deadline;
        if Instant::now() >= deadline {
            let error = SignError::Busy("the deadline had passed before the job was queued".into());
            return Err(SignFailure { error, deadline_passed: true, reached_device: false });
        }
        let (progress, (tell, told)) = (Progress::default(), oneshot::channel());
        match &self.0 {
            // The caller may be gone when the answer comes.
            Place::Threads(pool) => pool.submit(job, progress.clone(), |answer, _| drop(tell.send(answer)))?,
            Place::Process(key) => key.submit(job, progress.clone(), tell)?,
        }
        // A process answers what came too late at its deadline, and says whether the device has seen it.
        let patience = if let Place::Process(_) = &self.0 { deadline + ON_ITS_WAY } else { deadline };
        match tokio::time::timeout_at(patience.into(), told).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => {
                let error = SignError::Lost("the signer has ended".into());
                Err(SignFailure { error, deadline_passed: false, reached_device: progress.may_have_reached_device() })
            }
            Err(_) if progress.abandon() => {
                let error = SignError::Busy("the deadline passed while the job waited for the device".into());
                Err(SignFailure { error, deadline_passed: true, reached_device: false })
            }
            Err(_) => {
                if let Place::Threads(pool) = &self.0 {
                    pool.report_stuck();
                }
                let error = SignError::Busy("the deadline passed while the device was signing".into());
                Err(SignFailure { error, deadline_passed: true, reached_device: true })
            }
        }
    }

    /// The key, fixed since the start: a device that comes back with another one is not used.
    pub fn public_key(&self) -> &PublicKey {
        match &self.0 {
            Place::Threads(pool) => pool.public_key(),
            Place::Process(key) => key.public_key(),
        }
    }

    /// The URI of the key.
    pub fn uri(&self) -> &KeyUri {
        match &self.0 {
            Place::Threads(pool) => pool.uri(),
            Place::Process(key) => key.uri(),
        }
    }

    /// The back end: `pkcs11` or `file`.
    pub fn kind(&self) -> &'static str {
        self.uri().kind()
    }

    /// Whether the key is a mere PEM file, which logs, metrics and readiness must say.
    pub fn is_file(&self) -> bool {
        self.uri().is_file()
    }

    /// How it is now. Never waits for a device.
    pub fn health(&self) -> Health {
        match &self.0 {
            Place::Threads(pool) => pool.health(),
            Place::Process(key) => key.health(),
        }
    }

    /// How fast it signs, as far as is known. While no session is open, as fast as with all of them: what is wrong then is for health to say.
    pub fn pace(&self) -> Pace {
        let health = self.health();
        self.1.pace(if health.open > 0 { health.open } else { health.threads })
    }

    /// An operator asks (SIGHUP): one more login is tried if the token refused our PIN, and a lost device is tried at once. Never waits.
    pub fn retry_login(&self) {
        self.retry_login_ordered_at(Instant::now());
    }

    /// The same for an order that many signers are given: `ordered_at` is when the operator gave it, the same for all. Those that share a
    /// token share the one try.
    pub fn retry_login_ordered_at(&self, ordered_at: Instant) {
        match &self.0 {
            Place::Threads(pool) => pool.retry_login_ordered_at(ordered_at),
            Place::Process(key) => key.retry_login_ordered_at(ordered_at),
        }
    }

    /// A caller found that a signature is not this key's. A handle that came to name another key looks just like that, so no session signs
    /// again before it was opened anew and its key compared. Never waits.
    pub fn signature_was_wrong(&self) {
        match &self.0 {
            Place::Threads(pool) => pool.signature_was_wrong(),
            Place::Process(key) => key.signature_was_wrong(),
        }
    }

    /// Refuses new jobs, fails the queued ones with `Stopped`, and waits at most two seconds for those inside the device. True if everything
    /// has ended. Blocks.
    pub fn stop(&self) -> bool {
        match &self.0 {
            Place::Threads(pool) => pool.stop(),
            Place::Process(key) => key.stop(),
        }
    }
}
