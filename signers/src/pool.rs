//! A signer: a bounded queue before threads that each own one session with the same key.
//!
//! A job has one deadline, its call's. It ends exactly once, with a signature or with a failure that says whether its bytes may have reached
//! the device; that holds when the caller has gone away, too. Losing a session is repaired here and mostly unseen (`seat`); no thread of the
//! async runtime ever waits for a device.

mod health;
mod job;
mod options;
mod seat;
mod source;
mod state;

use std::sync::Arc;
use std::time::{Duration, Instant};

pub use health::{Health, HealthState};
pub use options::PoolOptions;

use crate::{Job, KeyUri, PublicKey, SignError, SignFailure};
use job::Queued;
use source::Source;
use state::Shared;

/// How long `stop` waits for threads that are inside their device.
const STOP_WAIT: Duration = Duration::from_secs(2);
/// The same where the last clone is merely dropped.
const DROP_WAIT: Duration = Duration::from_millis(250);

/// A key that signs jobs. Clones share the same threads, which end when the last clone is dropped.
#[derive(Clone)]
pub struct Signer(Arc<Owner>);

struct Owner {
    shared: Arc<Shared>,
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.shared.close();
        // A process that exits while a thread is inside a PKCS#11 module can crash in the module's own clean-up.
        self.shared.wait_until_ended(DROP_WAIT);
    }
}

impl Signer {
    /// Opens the first session and compares its key with the expected one, then starts the threads. Blocks meanwhile; what fails here is
    /// final. Starting is an operator's act: a PIN that the token refused earlier gets one more try.
    ///
    /// There is no deadline: PKCS#11 cannot be interrupted, so a library that hangs here hangs its caller. Who cannot wait calls it on a
    /// thread that may be lost.
    pub fn start(key: KeyUri, options: PoolOptions) -> Result<Self, SignError> {
        let source = Source::new(key, options.expected.clone());
        let first = source.open()?;
        let shared = Arc::new(Shared::new(source, first.public_key().clone(), options));
        let mut first = Some(first);
        for seat in 0..shared.seats() {
            let (of_thread, device) = (shared.clone(), first.take());
            let started = std::thread::Builder::new().name(format!("signer-{seat}")).spawn(move || seat::run(&of_thread, seat, device));
            if let Err(e) = started {
                shared.close();
                return Err(SignError::Lost(format!("a signer thread could not be started: {e}")));
            }
        }
        Ok(Self(Arc::new(Owner { shared })))
    }

    /// Queues a job and waits for its signature until its deadline. Once queued the job runs whether or not the caller still waits.
    pub async fn sign(&self, job: Job) -> Result<Vec<u8>, SignFailure> {
        let shared = &self.0.shared;
        let deadline = job.deadline;
        if Instant::now() >= deadline {
            return Err(SignFailure {
                error: SignError::Busy("the deadline had passed before the job was queued".into()),
                deadline_passed: true,
                reached_device: false,
            });
        }
        let (queued, progress, answer) = Queued::new(job);
        shared.push(queued)?;
        match tokio::time::timeout_at(deadline.into(), answer).await {
            Ok(Ok(answer)) => answer,
            // The thread panicked with the job in its hands.
            Ok(Err(_)) => {
                let error = SignError::Lost("the signer thread failed".into());
                Err(SignFailure { error, deadline_passed: false, reached_device: progress.may_have_reached_device() })
            }
            Err(_) if progress.abandon() => {
                let error = SignError::Busy("the deadline passed while the job waited for the device".into());
                Err(SignFailure { error, deadline_passed: true, reached_device: false })
            }
            Err(_) => {
                shared.report_stuck();
                let error = SignError::Busy("the deadline passed while the device was signing".into());
                Err(SignFailure { error, deadline_passed: true, reached_device: true })
            }
        }
    }

    /// The key, fixed since the start: a device that comes back with another one is not used.
    pub fn public_key(&self) -> &PublicKey {
        &self.0.shared.public_key
    }

    /// The URI of the key.
    pub fn uri(&self) -> &KeyUri {
        self.0.shared.source.uri()
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
        self.0.shared.report_stuck();
        self.0.shared.health()
    }

    /// An operator asks (SIGHUP): one more login is tried if the token refused our PIN, and a lost device is tried at once. Never waits.
    pub fn retry_login(&self) {
        self.retry_login_ordered_at(Instant::now());
    }

    /// The same for an order that many signers are given: `ordered_at` is when the operator gave it, the same for all. Those that share a
    /// token share the one try.
    pub fn retry_login_ordered_at(&self, ordered_at: Instant) {
        self.0.shared.retry_login(ordered_at);
    }

    /// A caller found that a signature is not this key's. A handle that came to name another key looks just like that, so no session signs
    /// again before it was opened anew and its key compared. Never waits.
    pub fn signature_was_wrong(&self) {
        self.0.shared.distrust_sessions();
    }

    /// Refuses new jobs, fails the queued ones with `Stopped`, and waits at most two seconds for those inside the device. True if every
    /// thread has ended. Blocks.
    pub fn stop(&self) -> bool {
        self.0.shared.close();
        self.0.shared.wait_until_ended(STOP_WAIT)
    }
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signer").field("uri", &self.uri().to_string()).field("public_key", self.public_key()).finish_non_exhaustive()
    }
}
