//! A signer that is a service of its own: daemons come to its socket, it judges what they want by its own file, and nobody but its operator
//! tells it anything else. All daemons share the same sessions. Nobody kills it when a device hangs, so it ends by itself then, and whoever
//! runs it starts it again.

use std::io::ErrorKind;
use std::os::unix::net::{UnixListener as StdListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use signers::process::{Keys, serve};
use signers::{HealthState, KeyUri, Pool, PoolOptions, Purpose, SignError};
use tokio::net::UnixListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::alarms::{Alarms, Asked, Kind, Peer};
use super::rules_file::{Key, Peers, RulesFile};
use super::socket::{self, Socket};
use crate::cli::{self, Exit};
use crate::clock::Clock;
use crate::digest::sha256;
use crate::guard::Guard;
use crate::issue::PERMITS;
use crate::{hardening, telemetry};

/// Daemons that are connected at a time.
const CONNECTIONS: usize = 16;

/// A daemon asks four times a second how the signer is; one that is silent for so long is gone.
const SILENT: Duration = Duration::from_secs(10);

/// How long a daemon may take to make room for an answer. Threads that sign wait for it.
const TAKES_WITHIN: Duration = Duration::from_secs(1);

/// A device that takes longer to open the keys is taken for dead.
const OPENED_WITHIN: Duration = Duration::from_secs(30);

/// How often the keys are looked after.
const TICK: Duration = Duration::from_millis(250);

/// What a device call may take beyond twice its limit.
const GRACE: Duration = Duration::from_secs(1);

/// When all keys are lost for so long, a library that is loaded anew finds a token that came back.
const LOST: Duration = Duration::from_secs(5);

/// The longest pause between two attempts to find a lost device.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// A vendor's own clean-up may hang, or crash, when a process ends while one of its calls has not returned.
const ENDS_WITHIN: Duration = Duration::from_secs(2);

/// Reads the file, takes the socket, and serves until SIGTERM or SIGINT.
pub(super) fn run(address: &str, file: Option<&Path>, only_check: bool) -> Result<(), Exit> {
    let file = file.ok_or_else(|| Exit::config("a signer with --listen has a file of its own; name it with --config FILE"))?;
    let (path, rules) = (socket::path(address)?, RulesFile::load(file)?);
    if only_check {
        println!("{} is good: {} key(s)", file.display(), rules.keys.len());
        return Ok(());
    }
    telemetry::start(&rules.log).map_err(Exit::config)?;
    let alarms = Alarms::open(&rules.alarms, Clock::default())
        .map_err(|error| Exit::missing(format_args!("alarms cannot be written to {}: {error}", rules.alarms.display())))?;
    let (socket, listener) = Socket::claim(path)?;
    // Before any thread starts and before the library is loaded: both inherit what is given up here.
    for missing in hardening::enter(rules.network) {
        tracing::warn!("the signer could not be hardened in one way: {missing}");
    }
    let desk = Desk {
        guard: Arc::new(Guard::of_keys(rules.rules, Clock::default())),
        alarms: Arc::new(alarms),
        peers: rules.peers,
        places: Arc::new(Semaphore::new(CONNECTIONS)),
    };
    cli::block_on(desk.serve(socket, listener, rules.keys))
}

/// What meets daemons.
struct Desk {
    guard: Arc<Guard>,
    alarms: Arc<Alarms>,
    peers: Peers,
    places: Arc<Semaphore>,
}

/// The keys, or why they are not open and wait for the operator.
type Opened = Result<Vec<Pool>, SignError>;

impl Desk {
    async fn serve(self, socket: Socket, listener: StdListener, keys: Vec<Key>) -> Result<(), Exit> {
        let failed = |error: std::io::Error| Exit::missing(format_args!("the socket: {error}"));
        listener.set_nonblocking(true).map_err(failed)?;
        let listener = UnixListener::from_std(listener).map_err(failed)?;
        let mut end = Endings { terminate: signals(SignalKind::terminate())?, interrupt: signals(SignalKind::interrupt())? };
        let mut hangup = signals(SignalKind::hangup())?;
        let mut opened = tokio::select! {
            opened = open(&keys) => opened?,
            () = end.come() => return Ok(()),
        };
        let (mut tick, mut watch) = (interval(TICK), Watch::default());
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tracing::info!(keys = keys.len(), version = env!("CARGO_PKG_VERSION"), "the signer listens");
        if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
            tracing::warn!(%error, "systemd could not be told that the signer listens");
        }
        let ended = loop {
            tokio::select! {
                () = end.come() => break None,
                _ = hangup.recv() => {
                    tracing::info!("a refused PIN is tried once more, a lost device at once");
                    opened = again(opened, &keys).await?;
                }
                _ = tick.tick() => {
                    self.alarms.settle();
                    if let Ok(pools) = &opened && let Some(why) = watch.look(pools, &keys) {
                        break Some(why);
                    }
                }
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => self.receive(stream, &opened),
                    Err(error) => {
                        tracing::error!(%error, "a connection could not be accepted");
                        tokio::time::sleep(TICK).await;
                    }
                },
            }
        };
        drop((listener, socket));
        if let Some(why) = ended {
            tracing::error!(why, "the signer ends, so that another with a fresh library takes its place");
            end_at_last();
            return Err(Exit::missing(why));
        }
        tracing::info!("stopping: what is inside the device is finished, the rest is left to the next signer");
        if !opened.iter().flatten().map(stopping).collect::<Vec<_>>().into_iter().all(|stopped| stopped.join().unwrap_or(false)) {
            tracing::warn!("a device call has not returned; the process ends with it");
            end_at_last();
        }
        tracing::info!("stopped");
        Ok(())
    }

    /// Gives a daemon a thread, if it is one of ours and there is room.
    fn receive(&self, stream: tokio::net::UnixStream, opened: &Opened) {
        let peer = match stream.peer_cred() {
            Ok(peer) => Peer { uid: peer.uid(), gid: peer.gid(), pid: peer.pid() },
            Err(error) => return tracing::error!(%error, "a connection is closed: the kernel does not say whose it is"),
        };
        if !self.peers.allow(peer.uid, peer.gid) {
            return self.alarms.raise(Kind::Peer, peer, None, "neither its user is in `uids` nor its group in `gids`");
        }
        let Ok(place) = self.places.clone().try_acquire_owned() else {
            return tracing::warn!(peer.uid, peer.pid, "a connection is closed: {CONNECTIONS} daemons are connected already");
        };
        let connection = Connection { peer, guard: self.guard.clone(), alarms: self.alarms.clone(), _place: place };
        let (opened, started) = (opened.clone(), stream.into_std());
        let started = started.and_then(|stream| {
            stream.set_nonblocking(false)?;
            stream.set_read_timeout(Some(SILENT))?;
            stream.set_write_timeout(Some(TAKES_WITHIN))?;
            std::thread::Builder::new().name("daemon".to_owned()).spawn(move || connection.serve(stream, opened))
        });
        if let Err(error) = started {
            tracing::error!(%error, "a daemon cannot be served");
        }
    }
}

/// One daemon.
struct Connection {
    peer: Peer,
    guard: Arc<Guard>,
    alarms: Arc<Alarms>,
    _place: OwnedSemaphorePermit,
}

impl Connection {
    fn serve(self, stream: UnixStream, opened: Opened) {
        let (peer, alarms) = (self.peer, self.alarms.clone());
        tracing::info!(peer.uid, peer.pid, "a daemon is connected");
        let guard = Watched { guard: self.guard.clone(), alarms: self.alarms.clone(), peer };
        let ended = serve(stream, |setup| {
            if setup.is_some() {
                let why = "it brings keys and rules of its own; this signer has its own";
                alarms.raise(Kind::Setup, peer, None, why);
                return Err(SignError::Rejected("this signer takes no keys and rules from a daemon".into()));
            }
            Ok(Arc::new(Keys { pools: opened?, guard: Box::new(guard) }))
        });
        match ended {
            Ok(()) => tracing::info!(peer.uid, peer.pid, "a daemon has gone"),
            Err(error) if error.kind() == ErrorKind::InvalidData => self.alarms.raise(Kind::Protocol, peer, None, &error.to_string()),
            Err(error) if [ErrorKind::WouldBlock, ErrorKind::TimedOut].contains(&error.kind()) => {
                tracing::warn!(
                    peer.uid,
                    peer.pid,
                    "a daemon said nothing for {} s, or takes no answers; its connection is closed",
                    SILENT.as_secs()
                );
            }
            Err(error) => tracing::info!(peer.uid, peer.pid, %error, "a daemon has gone"),
        }
    }
}

/// The guard before one daemon: what it refuses is an alarm that names the process which asked.
struct Watched {
    guard: Arc<Guard>,
    alarms: Arc<Alarms>,
    peer: Peer,
}

impl signers::process::Guard for Watched {
    fn judge(&self, key: usize, purpose: Purpose, message: &[u8]) -> Result<(), String> {
        self.guard.judge(key, purpose, message)
    }

    fn alarm(&self, uri: &KeyUri, purpose: Purpose, message: &[u8], why: &str) {
        let asked = Asked { uri: uri.to_string(), purpose: purpose.as_str(), to_be_signed: sha256(message) };
        self.alarms.raise(Kind::Guard, self.peer, Some(&asked), why);
    }

    fn lets_daemon_order_login(&self) -> bool {
        false
    }
}

/// Opens every key. A token that refuses the PIN is no reason to end: whoever starts the process again would try the PIN again, and no token
/// bears that often.
async fn open(keys: &[Key]) -> Result<Opened, Exit> {
    let wanted = keys.to_vec();
    let opening = tokio::task::spawn_blocking(move || wanted.iter().map(pool).collect::<Opened>());
    let opened = match timeout(OPENED_WITHIN, opening).await {
        Ok(Ok(opened)) => opened,
        Ok(Err(error)) => return Err(Exit::missing(error)),
        Err(_) => {
            end_at_last();
            return Err(Exit::missing(format_args!("the device has not answered for {} s", OPENED_WITHIN.as_secs())));
        }
    };
    match &opened {
        Ok(pools) => {
            for pool in pools.iter().filter(|pool| pool.uri().is_file()) {
                tracing::warn!(uri = %pool.uri(), "its key is a file: good for development and migration, no hardware protects it");
            }
        }
        Err(error @ SignError::Locked(_)) => {
            tracing::error!(%error, "nothing is signed; put the right PIN into its file, then send SIGHUP")
        }
        Err(error @ (SignError::Lost(_) | SignError::Busy(_) | SignError::Stopped)) => return Err(Exit::missing(error)),
        Err(error @ (SignError::Rejected(_) | SignError::Forbidden(_))) => return Err(Exit::config(error)),
    }
    Ok(opened)
}

fn pool(key: &Key) -> Result<Pool, SignError> {
    let options = PoolOptions {
        threads: key.sessions,
        queue: PERMITS,
        expected: Some(key.expected.clone()),
        device_limit: key.device_limit,
        longest_pause: LONGEST_PAUSE,
        ..PoolOptions::default()
    };
    Pool::start(key.uri.clone(), options)
}

/// The operator's order.
async fn again(opened: Opened, keys: &[Key]) -> Result<Opened, Exit> {
    let ordered = Instant::now();
    match opened {
        Ok(pools) => {
            pools.iter().for_each(|pool| pool.retry_login_ordered_at(ordered));
            Ok(Ok(pools))
        }
        Err(_) => open(keys).await,
    }
}

/// Whether it is worth another process.
#[derive(Default)]
struct Watch {
    /// Since when every key is lost.
    lost_since: Option<Instant>,
}

impl Watch {
    /// Why the process should end, as far as is known now.
    fn look(&mut self, pools: &[Pool], keys: &[Key]) -> Option<String> {
        let health: Vec<_> = pools.iter().map(Pool::health).collect();
        let lost = health.iter().all(|health| health.state == HealthState::Lost);
        self.lost_since = if lost { self.lost_since.or_else(|| Some(Instant::now())) } else { None };
        // Another process would try the PIN once more.
        if health.iter().any(|health| health.state == HealthState::Locked) {
            return None;
        }
        let hangs = |(pool, key): (&Pool, &Key)| pool.longest_overdue() > key.device_limit + GRACE;
        if let Some((pool, key)) = pools.iter().zip(keys).find(|pair| hangs(*pair)) {
            let limit = key.device_limit.as_secs_f32();
            return Some(format!("a device call for {} has not returned long after its limit of {limit} s", pool.uri()));
        }
        let detail = || health.first().map(|health| health.detail.clone()).unwrap_or_default();
        self.lost_since.is_some_and(|since| since.elapsed() > LOST).then(|| format!("every key is lost: {}", detail()))
    }
}

/// The signals that end it.
struct Endings {
    terminate: Signal,
    interrupt: Signal,
}

impl Endings {
    async fn come(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

fn signals(kind: SignalKind) -> Result<Signal, Exit> {
    signal(kind).map_err(|error| Exit::missing(format_args!("cannot watch for signals: {error}")))
}

/// Each key's threads end beside those of the others.
fn stopping(pool: &Pool) -> std::thread::JoinHandle<bool> {
    let pool = pool.clone();
    std::thread::spawn(move || pool.stop())
}

/// Ends the process from outside, should it not end by itself.
fn end_at_last() {
    std::thread::spawn(|| {
        std::thread::sleep(ENDS_WITHIN);
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    });
}
