//! `ca-server signer`: the process that opens a device and signs for a daemon. The daemon starts it
//! with a socket as standard input and tells it what to do; it ends when the daemon closes that
//! socket. What crashes or hangs in a device's library does so here. With `--listen` it is a
//! service of its own instead (`service`), which is told what to do by its own file.

mod alarms;
mod keys;
mod rules_file;
mod service;
mod socket;

use std::io::IsTerminal;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use signers::pkcs11::{keep_login_marks, may_try_first, set_init_string};
use signers::process::wire::{KeySetup, Setup};
use signers::process::{Keys, serve};
use signers::{KeyUri, Pool, PoolOptions, PublicKey, SignError};
use tokio::signal::unix::{SignalKind, signal};

use super::{self as cli, Exit};
use crate::config::{Log, LogFormat};
use crate::guard::Guard;
use crate::issue::PERMITS;
use crate::{hardening, output, telemetry};

/// Opens devices and signs. The daemon starts it by itself; with --listen it is a service of its
/// own user, unit or container.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Serve daemons at this socket, by the rules in the file that --config names, which is the
    /// signer's own and not the daemon's
    #[arg(long, value_name = "unix:PATH")]
    listen: Option<String>,
    /// Only check that file and what it names; open no device
    #[arg(long, requires = "listen")]
    check: bool,
    /// What is logged, as in the config's `log.level`
    #[arg(
        long,
        default_value = "info",
        value_name = "FILTER",
        conflicts_with = "listen"
    )]
    log_level: String,
    /// The log is one JSON object a line
    #[arg(long, conflicts_with = "listen")]
    log_json: bool,
    /// Where a try of a PIN leaves its mark
    #[arg(long, value_name = "DIRECTORY", conflicts_with = "listen")]
    state_dir: Option<PathBuf>,
    /// What the device's library wants in C_Initialize, as `init_string` in the config
    #[arg(long, value_name = "TEXT", conflicts_with = "listen")]
    init_string: Option<String>,
    /// The device's library needs the network
    #[arg(long, conflicts_with = "listen")]
    network: bool,
}

/// Serves the daemon at standard input until it closes the socket, or those that come to a socket
/// of its own.
pub fn run(args: &Args, config: Option<&Path>) -> Result<(), Exit> {
    match &args.listen {
        Some(address) => service::run(address, config, args.check),
        None => serve_parent(args),
    }
}

fn serve_parent(args: &Args) -> Result<(), Exit> {
    let input = std::io::stdin();
    let by_hand = "it is started by `ca-server serve`, with a socket as standard input, and does nothing by hand; as a service of its own it is \
                   started with --listen unix:PATH --config FILE";
    if input.is_terminal() {
        return Err(Exit::config(by_hand));
    }
    let stream = input
        .as_fd()
        .try_clone_to_owned()
        .map(UnixStream::from)
        .map_err(|error| Exit::missing(format_args!("{by_hand}: {error}")))?;
    if stream.peer_addr().is_err() {
        return Err(Exit::config(by_hand));
    }
    output::keep_apart_from_a_library()
        .map_err(|error| Exit::missing(format_args!("standard error: {error}")))?;
    let format = if args.log_json {
        LogFormat::Json
    } else {
        LogFormat::Text
    };
    telemetry::start(&Log {
        level: args.log_level.clone(),
        format,
    })
    .map_err(Exit::config)?;
    leave_signals_to_the_daemon()?;
    // Before any thread starts and before the library is loaded: both inherit what is given up
    // here.
    for missing in hardening::enter(args.network) {
        tracing::warn!("the signer process could not be hardened in one way: {missing}");
    }
    if let Some(directory) = &args.state_dir {
        keep_login_marks(directory);
    }
    let mut opened = None;
    let served = serve(stream, |setup, logins| {
        logins.are_told();
        let keys = setup
            .ok_or_else(|| SignError::Rejected("the daemon gave no setup".into()))
            .and_then(|setup| open(&setup, args.init_string.as_deref()))?;
        opened = Some(keys.clone());
        Ok(keys)
    });
    // The daemon has gone. What it had open is closed, but a call that hangs must not keep this
    // process.
    if let Some(keys) = opened {
        keys::stop(&keys.pools);
    }
    cli::end_at_once(
        served.map_err(|error| Exit::missing(format_args!("the daemon's socket: {error}"))),
    )
}

/// A signal to the whole group, such as systemd's or a terminal's, must not take the signer from a
/// daemon that still finishes calls.
fn leave_signals_to_the_daemon() -> Result<(), Exit> {
    let failed =
        |error: std::io::Error| Exit::missing(format_args!("cannot watch for signals: {error}"));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .map_err(failed)?;
    let _inside = runtime.enter();
    for kind in [
        SignalKind::interrupt(),
        SignalKind::terminate(),
        SignalKind::hangup(),
    ] {
        // Once heard, a signal never has its default effect again, also when nobody listens any
        // more.
        drop(signal(kind).map_err(failed)?);
    }
    Ok(())
}

fn open(setup: &Setup, init_string: Option<&str>) -> Result<Arc<Keys>, SignError> {
    may_try_first(setup.may_try);
    let guard = Guard::read(&setup.rules).map_err(SignError::Rejected)?;
    // One start, so that several keys in one token cost one try of its PIN.
    let ordered = Instant::now();
    let pools = setup
        .keys
        .iter()
        .map(|key| pool(key, ordered, init_string))
        .collect::<Result<_, _>>()?;
    Ok(Arc::new(Keys {
        pools,
        guard: Box::new(guard),
    }))
}

fn pool(key: &KeySetup, ordered: Instant, init_string: Option<&str>) -> Result<Pool, SignError> {
    // Absolute paths only: the daemon has resolved them.
    let uri = KeyUri::parse(&key.uri, Path::new("/"))
        .map_err(|error| SignError::Rejected(error.to_string()))?;
    if let (KeyUri::Pkcs11(uri), Some(text)) = (&uri, init_string) {
        set_init_string(&uri.module_path, text);
    }
    let options = PoolOptions {
        threads: key.sessions.into(),
        queue: PERMITS,
        device_limit: Some(key.device_limit),
        open_limit: key.open_limit,
        ..PoolOptions::default()
    };
    Pool::begin(
        uri,
        PublicKey::from_spki_der(&key.expected)?,
        options,
        ordered,
    )
}
