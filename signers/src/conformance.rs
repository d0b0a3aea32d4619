//! One suite that every back end passes, over the public API alone.
//!
//! A back end hands in a `Subject`: its keys, and how to break it. What it cannot do it declares; a
//! kind of key or a fault that is neither offered nor declared absent fails the suite, and so does
//! a missing `openssl` command. Each case is a function that answers with the rule that was broken.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use der::pem::{self, LineEnding};

use crate::{
    Algorithm, HealthState, Job, KeyKind, KeyUri, Observer, PoolOptions, PublicKey, Purpose,
    SignError, SignFailure, Signature, Signer,
};

/// What a case says when a rule is broken.
pub type Verdict = Result<(), String>;

/// A back end under test.
pub struct Subject<'a> {
    /// Its name in failures.
    pub name: &'a str,
    /// Keys that exist and can be opened, of different kinds and, where there are tokens, in the
    /// same one; at least two.
    pub keys: Vec<(KeyKind, KeyUri)>,
    /// Kinds that it declares not to support.
    pub unsupported: Vec<KeyKind>,
    /// A directory for files of the suite.
    pub scratch: PathBuf,
    /// Faults that can be brought about in it; `None` declares that it has no session, PIN or
    /// device that could fail.
    pub faults: Option<Faults<'a>>,
}

/// How to break a back end.
pub struct Faults<'a> {
    /// Closes every session that is open, as a device does that was restarted: at once, or when the
    /// next job reaches the device.
    pub close_sessions: &'a dyn Fn(),
    /// Delays the next signature, inside the device.
    pub delay_next: &'a dyn Fn(Duration),
    /// Makes the PIN that the keys' URIs refer to wrong, or right again.
    pub break_pin: &'a dyn Fn(bool),
    /// How many logins were tried up to now.
    pub logins: &'a dyn Fn() -> u64,
}

/// The kinds that must be offered or declared; larger RSA keys differ from the smallest in their
/// time alone.
const KINDS: [KeyKind; 3] = [KeyKind::P256, KeyKind::P384, KeyKind::Rsa2048];

/// Far beyond what anything here takes: reached only by a failure.
const PATIENCE: Duration = Duration::from_secs(60);

/// Every case.
pub fn run(subject: &Subject<'_>) -> Verdict {
    each_algorithm_is_verified_by_openssl_and_by_aws_lc(subject)?;
    sixty_four_tasks_sign_at_once(subject)?;
    another_key_is_refused(subject)?;
    a_job_past_its_deadline_is_never_signed(subject)?;
    a_stopped_signer_refuses(subject)?;
    a_lost_session_is_replaced_unseen(subject)?;
    a_hanging_device_costs_the_call_its_deadline_and_no_more(subject)?;
    a_wrong_signature_makes_every_session_be_opened_anew(subject)?;
    a_wrong_pin_costs_exactly_one_try(subject)?;
    one_order_to_many_signers_costs_one_try(subject)
}

/// Each kind is offered and its signatures verify, or it is declared absent.
pub fn each_algorithm_is_verified_by_openssl_and_by_aws_lc(subject: &Subject<'_>) -> Verdict {
    for kind in KINDS {
        let offered = subject.keys.iter().find(|(offered, _)| *offered == kind);
        let Some((_, uri)) = offered else {
            subject.require(subject.unsupported.contains(&kind), || {
                format!("{kind} is neither offered nor declared unsupported")
            })?;
            continue;
        };
        let signer = subject.start(uri, PoolOptions::default())?;
        let key = signer.public_key().clone();
        subject.require(key.algorithm() == kind.algorithm(), || {
            format!("the {kind} key says {}", key.algorithm())
        })?;
        for message in [&b""[..], b"to be signed", &[0xa5; 5000]] {
            let signature = subject
                .sign(&signer, message, PATIENCE)
                .map_err(|e| subject.broken(&format!("{kind}: {e}")))?;
            subject.require(key.verify(message, &signature.octets), || {
                format!("{kind}: aws-lc does not verify {} bytes", message.len())
            })?;
            subject.require(!key.verify(b"other", &signature.octets), || {
                format!("{kind}: aws-lc verifies another message")
            })?;
            openssl_verifies(&subject.scratch, &key, message, &signature.octets)
                .map_err(|e| subject.broken(&format!("{kind}: {e}")))?;
        }
    }
    Ok(())
}

/// Many callers share a few sessions, and each gets the signature of its own message.
pub fn sixty_four_tasks_sign_at_once(subject: &Subject<'_>) -> Verdict {
    let signer = subject.start(
        subject.first(),
        PoolOptions {
            threads: 3,
            ..PoolOptions::default()
        },
    )?;
    runtime().block_on(async {
        let tasks: Vec<_> = (0..64u32)
            .map(|task| {
                let signer = signer.clone();
                tokio::spawn(async move {
                    for round in 0..8u32 {
                        let message = [task.to_be_bytes(), round.to_be_bytes()].concat();
                        let signature = signer
                            .sign(job(&message, PATIENCE))
                            .await
                            .map_err(|e| e.to_string())?;
                        if !signer.public_key().verify(&message, &signature.octets) {
                            return Err("a caller got another caller's signature".to_owned());
                        }
                    }
                    Ok(())
                })
            })
            .collect();
        for task in tasks {
            task.await
                .map_err(|e| e.to_string())?
                .map_err(|e| subject.broken(&e))?;
        }
        Ok(())
    })
}

/// A signer that expects one key does not start with another.
pub fn another_key_is_refused(subject: &Subject<'_>) -> Verdict {
    let [(_, one), (_, two), ..] = &subject.keys[..] else {
        return Err(subject.broken("needs two keys"));
    };
    let expected = subject
        .start(two, PoolOptions::default())?
        .public_key()
        .clone();
    let found = subject
        .start(one, PoolOptions::default())?
        .public_key()
        .clone();
    match Signer::start(
        one.clone(),
        PoolOptions {
            expected: Some(expected.clone()),
            ..PoolOptions::default()
        },
    ) {
        Err(SignError::WrongKey(text)) => subject.require(
            text.contains(&expected.fingerprint()) && text.contains(&found.fingerprint()),
            || format!("the sentence does not name both keys: {text}"),
        )?,
        other => {
            return Err(
                subject.broken(&format!("another key than the expected one gave {other:?}"))
            );
        }
    }
    subject
        .start(
            one,
            PoolOptions {
                expected: Some(found),
                ..PoolOptions::default()
            },
        )
        .map(drop)
}

/// A job whose deadline has passed reaches no device.
pub fn a_job_past_its_deadline_is_never_signed(subject: &Subject<'_>) -> Verdict {
    let signer = subject.start(subject.first(), PoolOptions::default())?;
    let failure = subject.sign(&signer, b"late", Duration::ZERO).err();
    let right = failure.as_ref().is_some_and(|f| {
        f.deadline_passed && !f.reached_device && matches!(f.error, SignError::Busy(_))
    });
    subject.require(right, || format!("a late job gave {failure:?}"))
}

/// After `stop` every job is refused and every thread has ended.
pub fn a_stopped_signer_refuses(subject: &Subject<'_>) -> Verdict {
    let signer = subject.start(subject.first(), PoolOptions::default())?;
    subject.require(signer.stop(), || "threads outlived the stop".into())?;
    let failure = subject.sign(&signer, b"late", PATIENCE).err();
    let right = failure
        .as_ref()
        .is_some_and(|f| matches!(f.error, SignError::Stopped) && !f.reached_device);
    subject.require(right, || format!("a stopped signer gave {failure:?}"))?;
    subject.require(signer.health().state == HealthState::Stopped, || {
        "a stopped signer says something else".into()
    })
}

/// Sessions that close under the threads are opened again, and no caller notices.
pub fn a_lost_session_is_replaced_unseen(subject: &Subject<'_>) -> Verdict {
    let Some(faults) = &subject.faults else {
        return Ok(());
    };
    let counts = Arc::new(Counts::default());
    let signer = subject.start(
        subject.first(),
        PoolOptions {
            threads: 2,
            observer: counts.clone(),
            ..PoolOptions::default()
        },
    )?;
    for round in 0..5 {
        subject
            .sign(&signer, b"before", PATIENCE)
            .map_err(|e| subject.broken(&e.to_string()))?;
        (faults.close_sessions)();
        for _ in 0..6 {
            let signature = subject
                .sign(&signer, b"after", PATIENCE)
                .map_err(|e| subject.broken(&format!("round {round}: {e}")))?;
            subject.require(
                signer.public_key().verify(b"after", &signature.octets),
                || "a signature after reopening does not verify".into(),
            )?;
        }
    }
    subject.require(counts.reopened.load(Ordering::Relaxed) >= 5, || {
        "reopening was not told to the observer".into()
    })
}

/// A device that hangs: the call ends at its deadline as perhaps signed, the queue behind it as not
/// signed, and later all is well.
pub fn a_hanging_device_costs_the_call_its_deadline_and_no_more(subject: &Subject<'_>) -> Verdict {
    let Some(faults) = &subject.faults else {
        return Ok(());
    };
    let counts = Arc::new(Counts::default());
    let signer = subject.start(
        subject.first(),
        PoolOptions {
            threads: 1,
            observer: counts.clone(),
            ..PoolOptions::default()
        },
    )?;
    (faults.delay_next)(Duration::from_secs(4));
    let inside = subject
        .sign(&signer, b"hangs", Duration::from_secs(1))
        .err();
    let right = inside
        .as_ref()
        .is_some_and(|f| f.deadline_passed && f.reached_device);
    subject.require(right, || {
        format!("a job inside a hanging device gave {inside:?}")
    })?;
    let health = signer.health();
    subject.require(
        health.stuck == 1 && health.state == HealthState::Stuck,
        || format!("a pool whose only thread is stuck says {health:?}"),
    )?;
    subject.require(counts.stuck.load(Ordering::Relaxed) == 1, || {
        "the stuck thread was not told to the observer".into()
    })?;
    let behind = subject
        .sign(&signer, b"waits", Duration::from_millis(200))
        .err();
    let right = behind
        .as_ref()
        .is_some_and(|f| f.deadline_passed && !f.reached_device);
    subject.require(right, || {
        format!("a job behind a stuck thread gave {behind:?}")
    })?;
    subject
        .sign(&signer, b"after", PATIENCE)
        .map_err(|e| subject.broken(&format!("after the hang: {e}")))?;
    subject.require(signer.health().is_ready(), || {
        format!("after the hang: {:?}", signer.health())
    })?;
    subject.require(counts.stuck.load(Ordering::Relaxed) == 0, || {
        "the thread's return was not told to the observer".into()
    })
}

/// However many threads and callers there are, a wrong PIN is tried once, and then only when an
/// operator asks.
pub fn a_wrong_pin_costs_exactly_one_try(subject: &Subject<'_>) -> Verdict {
    let Some(faults) = &subject.faults else {
        return Ok(());
    };
    let counts = Arc::new(Counts::default());
    let options = PoolOptions {
        threads: 4,
        longest_pause: Duration::from_millis(100),
        observer: counts.clone(),
        ..PoolOptions::default()
    };
    let signer = subject.start(subject.first(), options)?;
    subject.wait_until("every session is open", || whole(&signer, 4))?;

    (faults.break_pin)(true);
    (faults.close_sessions)();
    let before = (faults.logins)();
    let mut failures: Vec<_> = subject
        .sign(&signer, b"the first to notice", PATIENCE)
        .err()
        .into_iter()
        .collect();
    failures.extend(subject.storm(&signer)?);
    let right = failures
        .iter()
        .all(|f| matches!(&f.error, SignError::Locked(_)) && !f.reached_device);
    subject.require(right && failures.len() == 65, || {
        format!(
            "with a wrong PIN: {} failures, {:?}",
            failures.len(),
            failures.first()
        )
    })?;
    subject.wait_until("the pool says that it is locked", || {
        signer.health().state == HealthState::Locked
    })?;
    // Threads that wait for their turn would try within the longest pause, were they not parked.
    std::thread::sleep(Duration::from_millis(500));
    subject.storm(&signer)?;
    subject.require((faults.logins)() - before == 1, || {
        format!("a wrong PIN cost {} tries", (faults.logins)() - before)
    })?;

    signer.retry_login();
    subject.wait_until("one more try was made", || {
        (faults.logins)() - before == 2 && signer.health().state == HealthState::Locked
    })?;
    let fresh = Signer::start(subject.first().clone(), PoolOptions::default()).map(drop);
    subject.require(matches!(fresh, Err(SignError::Locked(_))), || {
        format!("starting with a wrong PIN gave {fresh:?}")
    })?;
    subject.require((faults.logins)() - before == 3, || {
        format!("three orders cost {} tries", (faults.logins)() - before)
    })?;

    (faults.break_pin)(false);
    let failure = subject.sign(&signer, b"still locked", PATIENCE).err();
    subject.require(
        failure.is_some_and(|f| matches!(f.error, SignError::Locked(_))),
        || "it logged in without being asked".into(),
    )?;
    signer.retry_login();
    subject.wait_until("the pool is back", || whole(&signer, 4))?;
    subject
        .sign(&signer, b"after", PATIENCE)
        .map(drop)
        .map_err(|e| subject.broken(&e.to_string()))
}

/// After a caller's doubt each session is replaced once, before it signs again, and no caller
/// notices.
pub fn a_wrong_signature_makes_every_session_be_opened_anew(subject: &Subject<'_>) -> Verdict {
    let counts = Arc::new(Counts::default());
    let signer = subject.start(
        subject.first(),
        PoolOptions {
            threads: 3,
            observer: counts.clone(),
            ..PoolOptions::default()
        },
    )?;
    let reopened = || counts.reopened.load(Ordering::Relaxed);
    let quiet = |when: &str| {
        let failures = subject.storm(&signer)?;
        subject.require(failures.is_empty(), || {
            format!("{when} a doubt: {:?}", failures.first())
        })
    };
    subject.wait_until("every session is open", || whole(&signer, 3))?;
    quiet("before")?;
    subject.require(reopened() == 0, || {
        "a session was replaced without a doubt".into()
    })?;
    let one = subject
        .sign(&signer, b"whatever", PATIENCE)
        .map_err(|e| subject.broken(&e.to_string()))?;
    for round in 1..=3 {
        signer.signature_was_wrong(&one);
        let end = Instant::now() + PATIENCE;
        while reopened() < 3 * round {
            quiet("after")?;
            subject.require(Instant::now() < end, || {
                format!(
                    "of 3 doubtful sessions {} were replaced",
                    reopened() - 3 * (round - 1)
                )
            })?;
        }
        quiet("long after")?;
        subject.require(reopened() == 3 * round, || {
            format!("{round} doubts cost {} sessions of 3", reopened())
        })?;
    }
    Ok(())
}

/// Signers whose keys share a token share the one try of an order; the next order allows the next.
pub fn one_order_to_many_signers_costs_one_try(subject: &Subject<'_>) -> Verdict {
    let Some(faults) = &subject.faults else {
        return Ok(());
    };
    let options = || PoolOptions {
        threads: 2,
        longest_pause: Duration::from_millis(50),
        ..PoolOptions::default()
    };
    let signers = subject
        .keys
        .iter()
        .map(|(_, uri)| subject.start(uri, options()))
        .collect::<Result<Vec<_>, _>>()?;
    let all = |state: HealthState| signers.iter().all(|signer| signer.health().state == state);
    subject.wait_until("every session is open", || {
        signers.iter().all(|signer| signer.health().open == 2)
    })?;

    (faults.break_pin)(true);
    (faults.close_sessions)();
    let before = (faults.logins)();
    let tries = || (faults.logins)() - before;
    subject.wait_until("every signer is locked", || {
        signers
            .iter()
            .for_each(|signer| drop(subject.sign(signer, b"notices", PATIENCE)));
        all(HealthState::Locked)
    })?;
    subject.require(tries() == 1, || {
        format!(
            "{} signers of one token cost {} tries",
            signers.len(),
            tries()
        )
    })?;
    for orders in 1..=2 {
        let ordered_at = Instant::now();
        // Given twice, as by an impatient operator's second signal that finds the first still at
        // work.
        for signer in signers.iter().chain(&signers) {
            signer.retry_login_ordered_at(ordered_at);
        }
        subject.wait_until("the try was made", || {
            tries() > orders && all(HealthState::Locked)
        })?;
        std::thread::sleep(Duration::from_millis(300));
        subject.require(tries() == 1 + orders, || {
            format!("{orders} orders cost {} tries", tries() - 1)
        })?;
    }
    (faults.break_pin)(false);
    let ordered_at = Instant::now();
    signers
        .iter()
        .for_each(|signer| signer.retry_login_ordered_at(ordered_at));
    subject.wait_until("every signer is back", || {
        signers.iter().all(|signer| signer.health().open == 2)
    })?;
    subject.require(tries() == 4, || {
        format!("coming back cost {} tries", tries() - 3)
    })
}

impl Subject<'_> {
    fn first(&self) -> &KeyUri {
        &self.keys[0].1
    }

    fn start(&self, uri: &KeyUri, options: PoolOptions) -> Result<Signer, String> {
        Signer::start(uri.clone(), options).map_err(|e| self.broken(&format!("{uri}: {e}")))
    }

    fn sign(
        &self,
        signer: &Signer,
        message: &[u8],
        limit: Duration,
    ) -> Result<Signature, SignFailure> {
        runtime().block_on(signer.sign(job(message, limit)))
    }

    /// 64 jobs at once; their failures.
    fn storm(&self, signer: &Signer) -> Result<Vec<SignFailure>, String> {
        runtime().block_on(async {
            let tasks: Vec<_> = (0..64)
                .map(|_| {
                    let signer = signer.clone();
                    tokio::spawn(async move { signer.sign(job(b"storm", PATIENCE)).await })
                })
                .collect();
            let mut failures = Vec::new();
            for task in tasks {
                failures.extend(task.await.map_err(|e| self.broken(&e.to_string()))?.err());
            }
            Ok(failures)
        })
    }

    fn wait_until(&self, what: &str, is: impl Fn() -> bool) -> Verdict {
        let end = Instant::now() + PATIENCE;
        while !is() {
            self.require(Instant::now() < end, || {
                format!("waited in vain until {what}")
            })?;
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    fn require(&self, holds: bool, otherwise: impl FnOnce() -> String) -> Verdict {
        if holds {
            Ok(())
        } else {
            Err(self.broken(&otherwise()))
        }
    }

    fn broken(&self, text: &str) -> String {
        format!("{}: {text}", self.name)
    }
}

/// What the suite looks at of what an observer is told.
#[derive(Default)]
struct Counts {
    reopened: AtomicUsize,
    stuck: AtomicUsize,
}

impl Observer for Counts {
    fn queue_depth(&self, _: usize) {}
    fn waited(&self, _: Duration) {}
    fn signed(&self, _: Purpose, _: Duration, _: bool) {}
    fn stuck_threads(&self, threads: usize) {
        self.stuck.store(threads, Ordering::Relaxed);
    }
    fn reopened(&self) {
        self.reopened.fetch_add(1, Ordering::Relaxed);
    }
}

fn job(message: &[u8], limit: Duration) -> Job {
    Job {
        purpose: Purpose::Probe,
        deadline: Instant::now() + limit,
        message: message.to_vec(),
    }
}

/// So many sessions are open, and no token is left alone.
fn whole(signer: &Signer, sessions: usize) -> bool {
    let health = signer.health();
    health.open == sessions && health.is_ready()
}

/// One for the whole process, as a daemon has it: tokens that are left alone are probed there.
fn runtime() -> &'static tokio::runtime::Runtime {
    static RUNTIME: LazyLock<tokio::runtime::Runtime> = LazyLock::new(|| {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_time()
            .build()
            .expect("a process can start two threads")
    });
    &RUNTIME
}

fn openssl_verifies(scratch: &Path, key: &PublicKey, message: &[u8], signature: &[u8]) -> Verdict {
    let write = |name: &str, content: &[u8]| {
        let path = scratch.join(name);
        std::fs::write(&path, content)
            .map_err(|e| format!("{}: {e}", path.display()))
            .map(|()| path)
    };
    let pem = pem::encode_string("PUBLIC KEY", LineEnding::LF, key.spki_der())
        .map_err(|e| e.to_string())?;
    let (key_file, message_file, signature_file) = (
        write("key.pem", pem.as_bytes())?,
        write("message", message)?,
        write("signature", signature)?,
    );
    let hash = match key.algorithm() {
        Algorithm::EcdsaP256Sha256 | Algorithm::RsaPkcs1Sha256 => "-sha256",
        Algorithm::EcdsaP384Sha384 => "-sha384",
    };
    let output = Command::new("openssl")
        .args(["dgst", hash, "-verify"])
        .arg(key_file)
        .arg("-signature")
        .args([signature_file, message_file])
        .output()
        .map_err(|e| format!("the openssl command cannot be run: {e}"))?;
    if output.status.success() {
        Ok(())
    } else {
        Err(format!(
            "openssl does not verify {} bytes: {}",
            message.len(),
            String::from_utf8_lossy(&output.stderr)
        ))
    }
}
