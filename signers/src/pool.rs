//! A bounded queue before threads that each own one session with the same key.
//!
//! A job has one deadline, its call's. It ends exactly once, with a signature or with a failure
//! that says whether its bytes may have reached the device; that holds when the caller has gone
//! away, too. Losing a session is repaired here and mostly unseen (`seat`); no thread of the async
//! runtime ever waits for a device.

mod health;
pub(crate) mod job;
mod options;
mod seat;
mod source;
mod state;

use std::sync::Arc;
use std::time::{Duration, Instant};

pub use health::{Health, HealthState};
pub use options::PoolOptions;

use crate::pkcs11::LoginOrder;
use crate::probe::Proof;
use crate::{Device, Job, KeyUri, PublicKey, SignError, SignFailure};
use job::{Answer, Progress, Queued, Timing};
use source::Source;
use state::{Seat, Shared};

/// How long pools that have no session yet are waited for when another has.
const OTHERS_WITHIN: Duration = Duration::from_secs(2);
/// How often several are looked at meanwhile.
const LOOK: Duration = Duration::from_millis(20);
/// How long `stop` waits for threads that are inside their device.
const STOP_WAIT: Duration = Duration::from_secs(2);
/// The same where the last clone is merely dropped.
const DROP_WAIT: Duration = Duration::from_millis(250);

/// A key that signs jobs. Clones share the same threads, which end when the last clone is dropped.
#[derive(Clone)]
pub struct Pool(Arc<Owner>);

struct Owner {
    shared: Arc<Shared>,
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.shared.close();
        // A process that exits while a thread is inside a PKCS#11 module can crash in the module's
        // own clean-up.
        self.shared.wait_until_ended(DROP_WAIT);
    }
}

impl Pool {
    /// A pool that has no session yet: its threads open theirs, now or when the device is back. The
    /// key is known, so nothing need be asked. The start was an operator's act of `ordered_at`, the
    /// same for all that are started with it: a PIN that the token refused before gets one more
    /// try. An error is that of a thread that could not be started.
    pub fn begin(
        key: KeyUri,
        expected: PublicKey,
        options: PoolOptions,
        ordered_at: Instant,
    ) -> Result<Self, SignError> {
        let source = Source::as_ordered(
            key,
            Some(expected.clone()),
            LoginOrder {
                at: ordered_at,
                by_operator: options.ordered,
            },
        );
        Self::on_threads(Shared::new(source, expected, options), None)
    }

    /// Waits until each of these has a session or its first try to open one has failed, at most
    /// `longest`; and when one has, only a moment more for the others. Blocks.
    pub fn first_tries(pools: &[Self], longest: Duration) -> Vec<Result<(), SignError>> {
        let begun = Instant::now();
        let mut one_since = None;
        loop {
            let now: Vec<_> = pools
                .iter()
                .map(|pool| pool.0.shared.opened(Duration::ZERO))
                .collect();
            if one_since.is_none() && now.iter().any(|opened| matches!(opened, Some(Ok(())))) {
                one_since = Some(Instant::now());
            }
            let enough = begun.elapsed() >= longest
                || one_since.is_some_and(|since| since.elapsed() >= OTHERS_WITHIN);
            match pools.iter().zip(&now).find(|(_, opened)| opened.is_none()) {
                // Woken when that one is decided; meanwhile another may be the first to have a
                // session.
                Some((pool, _)) if !enough => drop(pool.0.shared.opened(LOOK)),
                _ => {
                    let waited = begun.elapsed().as_secs();
                    let silent = || {
                        Err(SignError::Lost(format!(
                            "its device has not answered for {waited} s"
                        )))
                    };
                    return now
                        .into_iter()
                        .map(|opened| opened.unwrap_or_else(silent))
                        .collect();
                }
            }
        }
    }

    /// Opens the first session and compares its key with the expected one, then starts the threads.
    /// Blocks meanwhile; what fails here is final. Starting is an operator's act: a PIN that the
    /// token refused earlier gets one more try.
    ///
    /// There is no deadline: PKCS#11 cannot be interrupted, so a library that hangs here hangs its
    /// caller. Who cannot wait calls it on a thread that may be lost.
    pub fn start(key: KeyUri, options: PoolOptions) -> Result<Self, SignError> {
        let source = Source::new(key, options.expected.clone(), options.ordered);
        let first = source.open(Proof::None)?;
        let shared = Shared::new(source, first.public_key().clone(), options);
        Self::on_threads(shared, Some(first))
    }

    fn on_threads(shared: Shared, mut first: Option<Box<dyn Device>>) -> Result<Self, SignError> {
        if first.is_none() {
            shared.set(0, Seat::Lost);
        }
        let shared = Arc::new(shared);
        for seat in 0..shared.seats() {
            let (of_thread, device) = (shared.clone(), first.take());
            let started = std::thread::Builder::new()
                .name(format!("signer-{seat}"))
                .spawn(move || seat::run(&of_thread, seat, device));
            if let Err(e) = started {
                shared.close();
                return Err(SignError::Lost(format!(
                    "a signer thread could not be started: {e}"
                )));
            }
        }
        Ok(Self(Arc::new(Owner { shared })))
    }

    /// Queues a job; `owner` is told how it ended, on the thread that ended it. Once queued the job
    /// runs whether or not anybody waits, unless `progress` is abandoned first. An error means that
    /// it was not queued, and `owner` is not told.
    pub(crate) fn submit(
        &self,
        job: Job,
        progress: Progress,
        owner: impl FnOnce(Answer, Timing) + Send + 'static,
    ) -> Result<(), SignFailure> {
        self.0.shared.push(Queued::new(job, progress, owner))
    }

    /// Answers the jobs that have waited past their deadlines.
    pub(crate) fn fail_late(&self) {
        self.0.shared.fail_late();
    }

    /// Tells the observer anew how many threads are stuck.
    pub(crate) fn report_stuck(&self) {
        self.0.shared.report_stuck();
    }

    /// How often a session was opened again.
    pub(crate) fn reopened(&self) -> u64 {
        self.0.shared.reopened()
    }

    /// The key, fixed since the start: a device that comes back with another one is not used.
    pub fn public_key(&self) -> &PublicKey {
        &self.0.shared.public_key
    }

    /// The URI of the key.
    pub fn uri(&self) -> &KeyUri {
        self.0.shared.source.uri()
    }

    /// How it is now. Never waits for a device.
    pub fn health(&self) -> Health {
        self.0.shared.report_stuck();
        self.0.shared.health()
    }

    /// Why it waits for an operator, if it does. Never waits for a device.
    pub(crate) fn locked(&self) -> Option<SignError> {
        self.0.shared.locked()
    }

    /// By how much the device call that is longest past its limit is past it; zero if none is.
    /// Never waits for a device.
    pub fn longest_overdue(&self) -> Duration {
        self.0.shared.longest_overdue()
    }

    /// An operator asked at `ordered_at` (SIGHUP), the same for all who are given the order: one
    /// more login is tried if the token refused our PIN, and a lost device is tried at once. Those
    /// that share a token share the one try. Never waits.
    pub fn retry_login_ordered_at(&self, ordered_at: Instant) {
        self.0.shared.retry_login(ordered_at);
    }

    /// A caller found that a signature is not this key's. A handle that came to name another key
    /// looks just like that, so no session signs again before it was opened anew and its key
    /// compared. Never waits.
    pub fn signature_was_wrong(&self) {
        self.0.shared.distrust_sessions();
    }

    /// Refuses new jobs, fails the queued ones with `Stopped`, and waits at most two seconds for
    /// those inside the device. True if every thread has ended. Blocks.
    pub fn stop(&self) -> bool {
        self.0.shared.close();
        self.0.shared.wait_until_ended(STOP_WAIT)
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool")
            .field("uri", &self.uri().to_string())
            .field("public_key", self.public_key())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::file::FileVault;
    use crate::{KeyKind, Purpose, Vault};

    #[test]
    fn the_owner_of_a_job_that_is_not_queued_is_told_by_the_error_alone() {
        let directory = tempfile::tempdir().unwrap();
        let uri = KeyUri::File(directory.path().join("key.pem"));
        FileVault.generate(&uri, KeyKind::P256).unwrap();
        let pool = Pool::start(
            uri,
            PoolOptions {
                queue: 0,
                ..PoolOptions::default()
            },
        )
        .unwrap();
        let told = Arc::new(AtomicUsize::new(0));
        let submit = || {
            let (told, deadline) = (told.clone(), Instant::now() + Duration::from_secs(60));
            let job = Job {
                purpose: Purpose::Leaf,
                deadline,
                message: b"to be signed".to_vec(),
            };
            pool.submit(job, Progress::default(), move |_, _| {
                told.fetch_add(1, Ordering::SeqCst);
            })
        };
        assert!(matches!(
            submit(),
            Err(SignFailure {
                error: SignError::Busy(_),
                ..
            })
        ));
        assert!(pool.stop());
        assert!(matches!(
            submit(),
            Err(SignFailure {
                error: SignError::Stopped,
                ..
            })
        ));
        assert_eq!(told.load(Ordering::SeqCst), 0);
    }
}
