//! One of a signer's tokens: where its key is open, how much it has to do, and whether it is asked
//! at all.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::circuit::Circuit;
use super::condition::TokenHealth;
use crate::pace::{Pace, PaceMeter};
use crate::pool::job::Progress;
use crate::probe::PROBE;
use crate::process::RemoteKey;
use crate::{Job, KeyUri, Pool, PublicKey, Purpose, SignError, SignFailure};

/// How long an answer of another process may be under way.
const ON_ITS_WAY: Duration = Duration::from_millis(200);

/// Between two probes of a token that fails; doubles up to the longest.
const FIRST_PROBE: Duration = Duration::from_millis(100);
const LONGEST_PROBE: Duration = Duration::from_millis(500);
/// For one probe's signature.
const PROBE_LIMIT: Duration = Duration::from_secs(5);

/// Where the device is open.
#[derive(Debug)]
pub(super) enum Place {
    Threads(Pool),
    Process(Box<RemoteKey>),
}

#[derive(Debug)]
pub(super) struct Token {
    place: Place,
    meter: Arc<PaceMeter>,
    outstanding: AtomicUsize,
    circuit: Circuit,
    /// Why the circuit opened.
    trouble: Mutex<Option<SignError>>,
    probes: AtomicU64,
}

/// Counts a job as under way, also when its caller goes away.
struct Outstanding<'a>(&'a AtomicUsize);

impl<'a> Outstanding<'a> {
    fn count(of: &'a AtomicUsize) -> Self {
        of.fetch_add(1, Ordering::Relaxed);
        Self(of)
    }
}

impl Drop for Outstanding<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Token {
    pub(super) fn new(place: Place, meter: Arc<PaceMeter>) -> Self {
        let (outstanding, probes) = (AtomicUsize::new(0), AtomicU64::new(0));
        Self {
            place,
            meter,
            outstanding,
            circuit: Circuit::default(),
            trouble: Mutex::default(),
            probes,
        }
    }

    /// Whether a job would be tried. One that is locked would refuse each at once, so it would have
    /// the least to do and be asked first.
    pub(super) fn is_usable(&self) -> bool {
        !self.circuit.is_open() && self.locked().is_none()
    }

    /// Why it waits for an operator, if it does.
    fn locked(&self) -> Option<SignError> {
        match &self.place {
            Place::Threads(pool) => pool.locked(),
            Place::Process(key) => key.locked(),
        }
    }

    pub(super) fn outstanding(&self) -> usize {
        self.outstanding.load(Ordering::Relaxed)
    }

    /// How fast it signs. While no session is open, as fast as with all of them: what is wrong then
    /// is for its health to say.
    pub(super) fn pace(&self) -> Pace {
        let health = match &self.place {
            Place::Threads(pool) => pool.health(),
            Place::Process(key) => key.health(),
        };
        self.meter.pace(if health.open > 0 {
            health.open
        } else {
            health.threads
        })
    }

    /// Why it is not asked.
    pub(super) fn trouble(&self) -> Option<SignError> {
        self.locked().or_else(|| {
            self.trouble
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone()
        })
    }

    /// One job, and what its end says of the token. `only`: there is no other that could be asked.
    pub(super) async fn sign(
        self: &Arc<Self>,
        job: Job,
        only: bool,
    ) -> Result<Vec<u8>, SignFailure> {
        let answer = self.ask(job, only).await;
        match &answer {
            Ok(_) => self.circuit.succeeded(),
            Err(failure) if is_the_devices(failure) => self.failed(&failure.error),
            Err(_) => {}
        }
        answer
    }

    async fn ask(&self, job: Job, only: bool) -> Result<Vec<u8>, SignFailure> {
        let deadline = job.deadline;
        let _counted = Outstanding::count(&self.outstanding);
        let (progress, (tell, told)) = (Progress::default(), oneshot::channel());
        match &self.place {
            // The caller may be gone when the answer comes.
            Place::Threads(pool) => {
                pool.submit(job, progress.clone(), |answer, _| drop(tell.send(answer)))?
            }
            Place::Process(key) => key.submit(job, progress.clone(), tell, only)?,
        }
        // A process answers what came too late at its deadline, and says whether the device has
        // seen it.
        let patience = if let Place::Process(_) = &self.place {
            deadline + ON_ITS_WAY
        } else {
            deadline
        };
        match tokio::time::timeout_at(patience.into(), told).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => {
                let error = SignError::Lost("the signer has ended".into());
                Err(SignFailure {
                    error,
                    deadline_passed: false,
                    reached_device: progress.may_have_reached_device(),
                })
            }
            Err(_) if progress.abandon() => {
                let error = SignError::Busy(
                    "the deadline passed while the job waited for the device".into(),
                );
                Err(SignFailure {
                    error,
                    deadline_passed: true,
                    reached_device: false,
                })
            }
            Err(_) => {
                if let Place::Threads(pool) = &self.place {
                    pool.report_stuck();
                }
                let error =
                    SignError::Busy("the deadline passed while the device was signing".into());
                Err(SignFailure {
                    error,
                    deadline_passed: true,
                    reached_device: true,
                })
            }
        }
    }

    fn failed(self: &Arc<Self>, error: &SignError) {
        // Without a runtime nothing would probe it back.
        let Ok(runtime) = Handle::try_current() else {
            return;
        };
        if self.circuit.failed() {
            tracing::warn!(uri = self.uri().without_secrets(), %error, "signatures of this token fail one after the other; it is probed until one succeeds");
            self.leave_alone(&runtime, error.clone());
        }
    }

    fn leave_alone(self: &Arc<Self>, runtime: &Handle, because: SignError) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = Some(because);
        runtime.spawn(probe_until_back(Arc::downgrade(self)));
    }

    /// Whether a throw-away signature verifies.
    async fn probe(&self) -> Result<(), SignError> {
        let deadline = Instant::now() + PROBE_LIMIT;
        let job = Job {
            purpose: Purpose::Probe,
            deadline,
            message: PROBE.to_vec(),
        };
        let signature = self.ask(job, true).await.map_err(|failure| failure.error)?;
        self.probes.fetch_add(1, Ordering::Relaxed);
        if self.public_key().verify(PROBE, &signature) {
            return Ok(());
        }
        self.distrust();
        Err(SignError::Rejected(
            "a throw-away signature does not verify".into(),
        ))
    }

    pub(super) fn public_key(&self) -> &PublicKey {
        match &self.place {
            Place::Threads(pool) => pool.public_key(),
            Place::Process(key) => key.public_key(),
        }
    }

    pub(super) fn uri(&self) -> &KeyUri {
        match &self.place {
            Place::Threads(pool) => pool.uri(),
            Place::Process(key) => key.uri(),
        }
    }

    pub(super) fn health(&self) -> TokenHealth {
        let sessions = match &self.place {
            Place::Threads(pool) => pool.health(),
            Place::Process(key) => key.health(),
        };
        let trouble = self.circuit.is_open().then(|| {
            self.trouble()
                .map_or_else(String::new, |error| error.to_string())
        });
        TokenHealth::of(
            self.uri().without_secrets(),
            sessions,
            trouble,
            self.probes.load(Ordering::Relaxed),
        )
    }

    pub(super) fn retry_login_ordered_at(&self, ordered_at: Instant) {
        match &self.place {
            Place::Threads(pool) => pool.retry_login_ordered_at(ordered_at),
            Place::Process(key) => key.retry_login_ordered_at(ordered_at),
        }
    }

    pub(super) fn signature_was_good(&self) {
        self.circuit.verified();
    }

    /// `another_signs`: nobody has to wait while this one is left alone.
    pub(super) fn signature_was_wrong(self: &Arc<Self>, another_signs: bool) {
        self.distrust();
        let Ok(runtime) = Handle::try_current() else {
            return;
        };
        if self.circuit.was_wrong(another_signs) {
            let error = SignError::Rejected("a signature does not verify".into());
            tracing::error!(uri = self.uri().without_secrets(), %error, "this token signs wrongly; it is left alone and probed until a signature verifies");
            self.leave_alone(&runtime, error);
        }
    }

    fn distrust(&self) {
        match &self.place {
            Place::Threads(pool) => pool.signature_was_wrong(),
            Place::Process(key) => key.signature_was_wrong(),
        }
    }

    pub(super) fn stop(&self) -> bool {
        match &self.place {
            Place::Threads(pool) => pool.stop(),
            Place::Process(key) => key.stop(),
        }
    }
}

/// Whether a failure speaks against the token; a full queue and a caller out of time do not, unless
/// the device had the job. One that is locked waits for an operator, and no probe could bring it
/// back.
fn is_the_devices(failure: &SignFailure) -> bool {
    match failure.error {
        SignError::Lost(_) | SignError::Rejected(_) | SignError::WrongKey(_) => true,
        SignError::Busy(_) => failure.deadline_passed && failure.reached_device,
        SignError::Locked(_) | SignError::Forbidden(_) | SignError::Stopped => false,
    }
}

/// Ends when the token signs again, or when nobody has it any more.
async fn probe_until_back(token: Weak<Token>) {
    let mut pause = FIRST_PROBE;
    loop {
        tokio::time::sleep(pause).await;
        let Some(token) = token.upgrade() else { return };
        match token.probe().await {
            Ok(()) => {
                token.circuit.close();
                tracing::info!(
                    uri = token.uri().without_secrets(),
                    "a throw-away signature verifies; the token is asked again"
                );
                return;
            }
            Err(SignError::Stopped) => return,
            Err(error) => {
                tracing::debug!(uri = token.uri().without_secrets(), %error, "a probe failed");
                *token.trouble.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            }
        }
        pause = (2 * pause).min(LONGEST_PROBE);
    }
}
