//! A signer that is a service of its own: daemons come to its socket, it judges what they want by
//! its own file, and nobody but its operator tells it anything else. All daemons share the same
//! sessions. Nobody kills it when a device hangs, so it ends by itself then, and whoever runs it
//! starts it again.

use std::io::ErrorKind;
use std::os::unix::net::{UnixListener as StdListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use signers::pkcs11::keep_login_marks;
use signers::process::{Keys, serve};
use signers::{KeyUri, Pool, Purpose, SignError};
use tokio::net::UnixListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{MissedTickBehavior, interval};

use super::alarms::{Alarms, Asked, Kind, Peer};
use super::keys::{Watch, again, open, stop};
use super::rules_file::{Key, Peers, RulesFile};
use super::socket::{self, Socket};
use crate::cli::{self, Exit};
use crate::clock::Clock;
use crate::digest::sha256;
use crate::guard::Guard;
use crate::{hardening, output, telemetry};

/// Daemons that are connected at a time.
const CONNECTIONS: usize = 16;

/// A daemon asks four times a second how the signer is; one that is silent for so long is gone.
const SILENT: Duration = Duration::from_secs(10);

/// How long a daemon may take to make room for an answer. Threads that sign wait for it.
const TAKES_WITHIN: Duration = Duration::from_secs(1);

/// How often the keys are looked after.
const TICK: Duration = Duration::from_millis(250);

/// Reads the file, takes the socket, and serves until SIGTERM or SIGINT.
pub(super) fn run(address: &str, file: Option<&Path>, only_check: bool) -> Result<(), Exit> {
    let file = file.ok_or_else(|| {
        Exit::config("a signer with --listen has a file of its own; name it with --config FILE")
    })?;
    let (path, rules) = (socket::path(address)?, RulesFile::load(file)?);
    if only_check {
        return cli::print(format_args!(
            "{} is good: {} key(s)\n",
            file.display(),
            rules.keys.len()
        ));
    }
    output::keep_apart_from_a_library()
        .map_err(|error| Exit::missing(format_args!("standard error: {error}")))?;
    telemetry::start(&rules.log).map_err(Exit::config)?;
    let alarms = Alarms::open(&rules.alarms, Clock::default()).map_err(|error| {
        Exit::missing(format_args!(
            "alarms cannot be written to {}: {error}",
            rules.alarms.display()
        ))
    })?;
    if !rules.state_dir.is_dir() {
        return Err(Exit::missing(format_args!(
            "`state_dir` {} is no directory; make it",
            rules.state_dir.display()
        )));
    }
    let (socket, listener) = Socket::claim(path)?;
    // Before any thread starts and before the library is loaded: both inherit what is given up
    // here.
    for missing in hardening::enter(rules.network) {
        tracing::warn!("the signer could not be hardened in one way: {missing}");
    }
    keep_login_marks(&rules.state_dir);
    let desk = Desk {
        guard: Arc::new(Guard::of_keys(
            rules.rules,
            rules.templates,
            Clock::default(),
        )),
        alarms: Arc::new(alarms),
        peers: rules.peers,
        places: Arc::new(Semaphore::new(CONNECTIONS)),
    };
    let ended = cli::block_on(desk.serve(socket, listener, rules.keys));
    cli::end_at_once(ended)
}

/// What meets daemons.
struct Desk {
    guard: Arc<Guard>,
    alarms: Arc<Alarms>,
    peers: Peers,
    places: Arc<Semaphore>,
}

impl Desk {
    async fn serve(
        self,
        socket: Socket,
        listener: StdListener,
        keys: Vec<Key>,
    ) -> Result<(), Exit> {
        let failed = |error: std::io::Error| Exit::missing(format_args!("the socket: {error}"));
        listener.set_nonblocking(true).map_err(failed)?;
        let listener = UnixListener::from_std(listener).map_err(failed)?;
        let mut end = Endings {
            terminate: signals(SignalKind::terminate())?,
            interrupt: signals(SignalKind::interrupt())?,
        };
        let mut hangup = signals(SignalKind::hangup())?;
        let pools = tokio::select! {
            pools = open(&keys) => pools?,
            () = end.come() => return Ok(()),
        };
        let (mut tick, mut watch) = (interval(TICK), Watch::default());
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tracing::info!(
            keys = keys.len(),
            version = env!("CARGO_PKG_VERSION"),
            "the signer listens"
        );
        if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
            tracing::warn!(%error, "systemd could not be told that the signer listens");
        }
        let ended = loop {
            tokio::select! {
                () = end.come() => break None,
                _ = hangup.recv() => {
                    tracing::info!("a refused PIN is tried once more, a lost device at once");
                    again(&pools);
                }
                _ = tick.tick() => {
                    self.alarms.settle();
                    if let Some(why) = watch.look(&pools, &keys) {
                        break Some(why);
                    }
                }
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => self.receive(stream, &pools),
                    Err(error) => {
                        tracing::error!(%error, "a connection could not be accepted");
                        tokio::time::sleep(TICK).await;
                    }
                },
            }
        };
        // In this order: what nobody answers at any more is another's to replace.
        drop((socket, listener));
        if let Some(why) = ended {
            tracing::error!(
                why,
                "the signer ends, so that another with a fresh library takes its place"
            );
            // A login that is cut off can leave a token half written. A call that hangs is waited
            // for two seconds more.
            stop(&pools);
            return Err(Exit::missing(why));
        }
        tracing::info!(
            "stopping: what is inside the device is finished, the rest is left to the next signer"
        );
        if !stop(&pools) {
            tracing::warn!("a device call has not returned; the process ends with it");
        }
        tracing::info!("stopped");
        Ok(())
    }

    /// Gives a daemon a thread, if it is one of ours and there is room.
    fn receive(&self, stream: tokio::net::UnixStream, pools: &[Pool]) {
        let peer = match stream.peer_cred() {
            Ok(peer) => Peer {
                uid: peer.uid(),
                gid: peer.gid(),
                pid: peer.pid(),
            },
            Err(error) => {
                return tracing::error!(%error, "a connection is closed: the kernel does not say whose it is");
            }
        };
        if !self.peers.allow(peer.uid, peer.gid) {
            return self.alarms.raise(
                Kind::Peer,
                peer,
                None,
                "neither its user is in `uids` nor its group in `gids`",
            );
        }
        let Ok(place) = self.places.clone().try_acquire_owned() else {
            return tracing::warn!(
                peer.uid,
                peer.pid,
                "a connection is closed: {CONNECTIONS} daemons are connected already"
            );
        };
        let connection = Connection {
            peer,
            guard: self.guard.clone(),
            alarms: self.alarms.clone(),
            _place: place,
        };
        let (pools, started) = (pools.to_vec(), stream.into_std());
        let started = started.and_then(|stream| {
            stream.set_nonblocking(false)?;
            stream.set_read_timeout(Some(SILENT))?;
            stream.set_write_timeout(Some(TAKES_WITHIN))?;
            std::thread::Builder::new()
                .name("daemon".to_owned())
                .spawn(move || connection.serve(stream, pools))
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
    fn serve(self, stream: UnixStream, pools: Vec<Pool>) {
        let (peer, alarms) = (self.peer, self.alarms.clone());
        tracing::info!(peer.uid, peer.pid, "a daemon is connected");
        let guard = Watched {
            guard: self.guard.clone(),
            alarms: self.alarms.clone(),
            peer,
        };
        let ended = serve(stream, |setup, _| {
            if setup.is_some() {
                let why = "it brings keys and rules of its own; this signer has its own";
                alarms.raise(Kind::Setup, peer, None, why);
                return Err(SignError::Rejected(
                    "this signer takes no keys and rules from a daemon".into(),
                ));
            }
            Ok(Arc::new(Keys {
                pools,
                guard: Box::new(guard),
            }))
        });
        match ended {
            Ok(()) => tracing::info!(peer.uid, peer.pid, "a daemon has gone"),
            Err(error) if error.kind() == ErrorKind::InvalidData => {
                self.alarms
                    .raise(Kind::Protocol, peer, None, &error.to_string())
            }
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
        let asked = Asked {
            uri: uri.to_string(),
            purpose: purpose.as_str(),
            to_be_signed: sha256(message),
        };
        self.alarms.raise(Kind::Guard, self.peer, Some(&asked), why);
    }

    fn lets_daemon_order_login(&self) -> bool {
        false
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
