//! The signer's side: opens the keys, judges what is to be signed, and answers. Reads one socket on
//! one thread; signatures are made, and answered, on the threads of each key's pool.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::answers::Answers;
use super::wire::{BegunKey, KeyHealth, Malformed, Reply, Request, Setup, VERSION, length};
use crate::pkcs11::watch_logins;
use crate::pool::job::Progress;
use crate::{Job, KeyUri, Pool, Purpose, SignError, SignFailure, Timing};

/// How often waiting jobs are held against their deadlines.
const SWEEP: Duration = Duration::from_millis(50);

/// The longest that a job waits for a session, whatever time its daemon says is left: as long as
/// the longest call.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// How much is read at once: many requests where many come.
const READ: usize = 64 * 1024;

/// Who says whether bytes may be signed. Its rules are fixed when it is made.
pub trait Guard: Send + Sync {
    /// Whether the key of this number may sign these bytes for this purpose; if not, why.
    fn judge(&self, key: usize, purpose: Purpose, message: &[u8]) -> Result<(), String>;

    /// Its own refusal, told to whoever must know; the log, unless it knows a better place.
    fn alarm(&self, uri: &KeyUri, purpose: Purpose, _message: &[u8], why: &str) {
        tracing::error!(alarm = "guard", %uri, purpose = purpose.as_str(), why, "refused to sign");
    }

    /// Whether the daemon may order that a refused PIN is tried once more. Each such try may be the
    /// token's last.
    fn lets_daemon_order_login(&self) -> bool {
        true
    }
}

/// Why a process with these keys should not begin: one is the wrong key; or none is open, for
/// reasons of one kind that concern all. Where some are locked and others lost, it begins: it may
/// find the lost ones again, and another process would try the PIN again.
pub fn why_none_serves(opened: &[Result<(), SignError>]) -> Option<&SignError> {
    let failures = || opened.iter().filter_map(|opened| opened.as_ref().err());
    if let Some(wrong) = failures().find(|error| matches!(error, SignError::WrongKey(_))) {
        return Some(wrong);
    }
    let locked = failures()
        .filter(|error| matches!(error, SignError::Locked(_)))
        .count();
    failures()
        .next()
        .filter(|_| failures().count() == opened.len() && (locked == 0 || locked == opened.len()))
}

/// Keys and the guard before them.
pub struct Keys {
    /// In the order of their numbers.
    pub pools: Vec<Pool>,
    /// The guard.
    pub guard: Box<dyn Guard>,
}

/// How a daemon hears of this process's C_Logins.
pub struct Logins(Answers, Orders);

impl Logins {
    /// From now on the daemon is told before each C_Login and after it. For a process that the
    /// daemon has started and replaces: it must not spend a try of the PIN with each that ends
    /// inside, nor try one again that was refused.
    pub fn are_told(self) {
        watch_logins(move |tried_at, event| {
            self.0.send_and_wait(&Reply::Login {
                order: self.1.before(tried_at),
                event,
            })
        });
    }
}

/// The daemon's orders to log in, and when they came.
#[derive(Clone, Default)]
struct Orders(Arc<Mutex<Vec<(Instant, u64)>>>);

impl Orders {
    fn came(&self, at: Instant, order: u64) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push((at, order));
    }

    /// The last one that had come by then.
    fn before(&self, at: Instant) -> u64 {
        let orders = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        orders
            .iter()
            .rev()
            .find(|(came, _)| *came <= at)
            .map_or(0, |(_, order)| *order)
    }
}

/// Serves one daemon until it closes the socket. `open` begins to open the keys once the daemon has
/// begun; what it was given to do, if anything, is handed on. An error is a broken socket or a peer
/// that does not keep to the protocol.
pub fn serve(
    stream: UnixStream,
    open: impl FnOnce(Option<Setup>, Logins) -> Result<Arc<Keys>, SignError>,
) -> io::Result<()> {
    let connection = Connection {
        answers: Answers::over(stream.try_clone()?)?,
        asked: Asked::default(),
    };
    let answers = &connection.answers;
    let mut frames = Frames::new(stream);
    let Some(Request::Begin { version, setup }) = frames.next()? else {
        return Err(Malformed.into());
    };
    let orders = Orders::default();
    let opened = match version {
        VERSION => open(setup, Logins(answers.clone(), orders.clone())),
        other => Err(SignError::Rejected(format!(
            "the daemon speaks version {other} of the signer's protocol, this signer {VERSION}"
        ))),
    };
    let keys = match opened {
        Ok(keys) => keys,
        Err(error) => return answers.send(&Reply::NotReady(error)),
    };
    let opened = Pool::first_tries(&keys.pools, Duration::MAX);
    if let Some(error) = why_none_serves(&opened) {
        return answers.send(&Reply::NotReady(error.clone()));
    }
    let begun = |(pool, opened): (&Pool, Result<(), SignError>)| BegunKey {
        uri: pool.uri().to_string(),
        public_key: pool.public_key().spki_der().to_vec(),
        trouble: opened.err(),
    };
    answers.send(&Reply::Ready {
        version: VERSION,
        keys: keys.pools.iter().zip(opened).map(begun).collect(),
    })?;
    let _sweeping = Sweeping::of(&keys);
    while let Some(request) = frames.next()? {
        match request {
            Request::Begin { .. } => return Err(Malformed.into()),
            Request::Sign {
                id,
                key,
                purpose,
                time_left,
                message,
            } => {
                sign(
                    &keys,
                    &connection,
                    id,
                    Wanted {
                        key,
                        purpose,
                        time_left,
                        message,
                    },
                );
            }
            Request::LogIn { .. } if !keys.guard.lets_daemon_order_login() => {
                tracing::debug!("a daemon's order to log in is left to this signer's own operator");
            }
            Request::LogIn { order } => {
                let ordered = Instant::now();
                orders.came(ordered, order);
                keys.pools
                    .iter()
                    .for_each(|pool| pool.retry_login_ordered_at(ordered));
            }
            Request::Distrust { key } => {
                if let Some(pool) = keys.pools.get(usize::from(key)) {
                    pool.signature_was_wrong();
                }
            }
            Request::Ask => {
                answers.send(&Reply::Health(keys.pools.iter().map(health).collect()))?
            }
        }
    }
    Ok(())
}

/// A signature that is wanted.
struct Wanted {
    key: u16,
    purpose: Purpose,
    time_left: Duration,
    message: Vec<u8>,
}

/// Nothing here waits, neither for a device nor for the daemon.
fn sign(
    keys: &Keys,
    Connection { answers, asked }: &Connection,
    id: u64,
    Wanted {
        key,
        purpose,
        time_left,
        message,
    }: Wanted,
) {
    let refuse = |error| {
        let failure = SignFailure {
            error,
            deadline_passed: false,
            reached_device: false,
        };
        answers.send_if_there(&Reply::NotSigned {
            id,
            timing: Timing::default(),
            failure,
        });
    };
    let number = usize::from(key);
    let Some(pool) = keys.pools.get(number) else {
        return refuse(SignError::Rejected(format!("there is no key {key} here")));
    };
    if let Err(why) = keys.guard.judge(number, purpose, &message) {
        keys.guard.alarm(pool.uri(), purpose, &message, &why);
        return refuse(SignError::Forbidden(why));
    }
    let (asked_for, progress) = asked.begin();
    let job = Job {
        purpose,
        deadline: Instant::now() + time_left.min(LONGEST_WAIT),
        message,
    };
    let (to, of) = (answers.clone(), asked.clone());
    let tell = move |answer, timing| {
        of.answered(asked_for);
        match answer {
            Ok(signature) => to.send_if_there(&Reply::Signed {
                id,
                timing,
                signature,
            }),
            // This process is ending. The daemon gives what it was not answered to the next one.
            Err(SignFailure {
                error: SignError::Stopped,
                ..
            }) => {}
            Err(failure) => to.send_if_there(&Reply::NotSigned {
                id,
                timing,
                failure,
            }),
        }
    };
    if let Err(failure) = pool.submit(job, progress, tell.clone()) {
        tell(Err(failure), Timing::default());
    }
}

fn health(pool: &Pool) -> KeyHealth {
    let health = pool.health();
    let short = |number: usize| u16::try_from(number).unwrap_or(u16::MAX);
    KeyHealth {
        state: health.state,
        threads: short(health.threads),
        open: short(health.open),
        stuck: short(health.stuck),
        queued: u32::try_from(health.queued).unwrap_or(u32::MAX),
        reopened: pool.reopened(),
        detail: health.detail,
    }
}

/// A thread that answers jobs at their deadlines while they wait for the device, as long as this is
/// kept.
struct Sweeping(Arc<AtomicBool>);

impl Sweeping {
    fn of(keys: &Arc<Keys>) -> Self {
        let (keys, on) = (Arc::downgrade(keys), Arc::new(AtomicBool::new(true)));
        let still = on.clone();
        let sweep = move || {
            while still.load(Ordering::Relaxed)
                && let Some(keys) = keys.upgrade()
            {
                keys.pools.iter().for_each(Pool::fail_late);
                drop(keys);
                std::thread::sleep(SWEEP);
            }
        };
        if let Err(error) = std::thread::Builder::new()
            .name("deadlines".to_owned())
            .spawn(sweep)
        {
            tracing::warn!(%error, "jobs that wait past their deadlines are answered late");
        }
        Self(on)
    }
}

impl Drop for Sweeping {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// What one daemon has asked for and has no answer to. When it goes, none of it enters a device any
/// more.
#[derive(Clone, Default)]
struct Asked(Arc<Mutex<Jobs>>);

#[derive(Default)]
struct Jobs {
    /// Ours, because a daemon may give one number twice.
    next: u64,
    open: BTreeMap<u64, Progress>,
}

impl Asked {
    fn lock(&self) -> MutexGuard<'_, Jobs> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self) -> (u64, Progress) {
        let (mut jobs, progress) = (self.lock(), Progress::default());
        let number = jobs.next;
        jobs.next += 1;
        jobs.open.insert(number, progress.clone());
        (number, progress)
    }

    fn answered(&self, number: u64) {
        self.lock().open.remove(&number);
    }

    fn forget(&self) {
        for progress in std::mem::take(&mut self.lock().open).into_values() {
            progress.abandon();
        }
    }
}

/// One daemon's connection. At its end its jobs are forgotten and its descriptor is closed,
/// whatever is still inside the device for it.
struct Connection {
    answers: Answers,
    asked: Asked,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.asked.forget();
        self.answers.end();
    }
}

/// Requests as they arrive.
struct Frames {
    stream: UnixStream,
    buffer: Vec<u8>,
    /// What has been read and not yet handed out.
    ready: std::ops::Range<usize>,
}

impl Frames {
    fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            buffer: vec![0; READ],
            ready: 0..0,
        }
    }

    /// The next one; `None` at the end of the stream. A stream that ends in the midst of a frame
    /// ends as well.
    fn next(&mut self) -> io::Result<Option<Request>> {
        let Some(header) = self.take(4)? else {
            return Ok(None);
        };
        let header = self.buffer[header].try_into().expect("four bytes");
        let Some(body) = self.take(length(header)?)? else {
            return Ok(None);
        };
        Ok(Some(Request::read(&self.buffer[body])?))
    }

    fn take(&mut self, length: usize) -> io::Result<Option<std::ops::Range<usize>>> {
        while self.ready.len() < length {
            self.buffer.copy_within(self.ready.clone(), 0);
            self.ready = 0..self.ready.len();
            if self.buffer.len() < length {
                self.buffer.resize(length, 0);
            }
            match self.stream.read(&mut self.buffer[self.ready.end..]) {
                Ok(0) => return Ok(None),
                Ok(read) => self.ready.end += read,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        let taken = self.ready.start..self.ready.start + length;
        self.ready.start = taken.end;
        Ok(Some(taken))
    }
}

impl From<Malformed> for io::Error {
    fn from(malformed: Malformed) -> Self {
        Self::new(ErrorKind::InvalidData, malformed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_without_an_open_key_ends_unless_another_would_try_a_pin_again() {
        let (lost, locked) = (
            || Err(SignError::Lost("away".into())),
            || Err(SignError::Locked("PIN".into())),
        );
        let (wrong, rejected) = (
            || Err(SignError::WrongKey("another".into())),
            || Err(SignError::Rejected("no key".into())),
        );
        let ends = |opened: &[Result<(), SignError>]| {
            why_none_serves(opened).map(|error| error.cause().to_owned())
        };
        assert_eq!(ends(&[Ok(())]), None);
        assert_eq!(
            ends(&[Ok(()), lost(), locked(), rejected()]),
            None,
            "one signs"
        );
        assert_eq!(ends(&[lost()]), Some("away".into()));
        assert_eq!(ends(&[rejected(), lost()]), Some("no key".into()));
        assert_eq!(ends(&[locked(), locked()]), Some("PIN".into()));
        assert_eq!(
            ends(&[lost(), locked()]),
            None,
            "the next process would try the PIN once more"
        );
        assert_eq!(
            ends(&[Ok(()), wrong()]),
            Some("another".into()),
            "whatever the others do"
        );
    }
}
