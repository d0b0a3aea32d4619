//! `doctor --bench`: what each issuer's device does on 1, 2, 4 … sessions, and how many the daemon
//! should use. It signs with throw-away keys of the issuer's kind in a process of its own; a daemon
//! on the same device is slower meanwhile. A PIN is tried at most once, and not where the token's
//! flags warn of it.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;
use std::process::Command;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

use signers::bench::{Bench, Level, Measured, Step, gain};
use signers::pkcs11::{SessionLimit, inspect_token};
use signers::{KeyKind, KeyUri, PublicKey, SignError, open_vault_for_reading};

use super::Args;
use super::device::{self, PATIENCE};
use super::finding::span;
use crate::cli::{Exit, environment};
use crate::config::ExaminedKey;
use crate::output;

/// How long each number of sessions is measured.
const TIME: Duration = Duration::from_secs(1);

/// The largest number of sessions that a config may ask for.
const MOST: usize = 64;

/// What the thread that measures tells.
enum Told {
    /// It begins, with keys of this kind.
    Begun(KeyKind),
    Step(Step),
    Ended(Result<Measured, SignError>),
}

/// Measures the device of every active issuer. Modules read the process's environment, so devices
/// that want different ones get a process each.
pub(super) fn run(keys: &[ExaminedKey], args: &Args, path: &Path) -> Result<(), Exit> {
    let wanted = |key: &&ExaminedKey| {
        key.active && args.device.as_ref().is_none_or(|name| name == section(key))
    };
    let wanted: Vec<&ExaminedKey> = keys.iter().filter(wanted).collect();
    let environments: BTreeMap<&str, _> = wanted
        .iter()
        .map(|key| (section(key), variables(key)))
        .collect();
    let mut different: Vec<_> = environments.values().collect();
    different.dedup();
    let failed = match different[..] {
        [] => return Err(Exit::config("no active issuer has its key in that device")),
        [variables] => {
            // Before any thread starts.
            environment::enter(variables)?;
            one_by_one(&wanted, keys, args.try_pin).map_err(Exit::unwritten)?
        }
        _ => environments
            .keys()
            .map(|name| usize::from(!in_a_process(name, args, path)))
            .sum(),
    };
    match failed {
        0 => Ok(()),
        1 => Err(Exit::refused("1 device could not be measured")),
        more => Err(Exit::refused(format_args!(
            "{more} devices could not be measured"
        ))),
    }
}

/// `NAME` of the `[device.NAME]` that a key names; empty for none.
fn section(key: &ExaminedKey) -> &str {
    key.device.as_ref().map_or("", |device| &device.name)
}

fn variables(key: &ExaminedKey) -> BTreeMap<String, String> {
    key.device
        .as_ref()
        .map(|device| device.environment.clone())
        .unwrap_or_default()
}

/// The same for one device. Whether it could be measured.
fn in_a_process(device: &str, args: &Args, path: &Path) -> bool {
    let mut command = Command::new("/proc/self/exe");
    command
        .args(["doctor", "--bench", "--device", device, "--config"])
        .arg(path);
    command.args(args.try_pin.then_some("--try-pin"));
    command.status().is_ok_and(|status| status.success())
}

/// How many could not be measured.
fn one_by_one(wanted: &[&ExaminedKey], all: &[ExaminedKey], try_pin: bool) -> io::Result<usize> {
    let mut out = output::writer();
    let mut failed = 0;
    for key in wanted {
        // Before anything else: the PIN, which nothing here may cost a try more than `doctor` does.
        let findings = device::examine(key, all, try_pin, false, &mut |_| {});
        findings.print(&mut out)?;
        let measured = match &key.uri {
            Ok(Some(uri))
                if !findings.has_problem(&["key", "module", "token", "login", "answers"]) =>
            {
                measure(&mut out, key, uri)?
            }
            _ => {
                writeln!(out, "\n{}: not measured, as long as that is so", key.id)?;
                false
            }
        };
        failed += usize::from(!measured);
    }
    Ok(failed)
}

/// Measures one device and prints what comes of it. False if it could not be measured.
fn measure(out: &mut impl Write, key: &ExaminedKey, uri: &KeyUri) -> io::Result<bool> {
    let (told, telling) = channel();
    let (expected, of_thread) = (key.expected.as_ref().and_then(PublicKey::kind), uri.clone());
    // A library that hangs costs this thread, which ends with the process.
    std::thread::spawn(move || {
        let ended = rise(&of_thread, expected, &told);
        // Nobody listens any more when it took too long.
        let _ = told.send(Told::Ended(ended));
    });
    let mut levels: Vec<Level> = Vec::new();
    loop {
        match telling.recv_timeout(PATIENCE) {
            Ok(Told::Begun(kind)) => {
                let id = &key.id;
                writeln!(
                    out,
                    "\n{id}: measured with throw-away {kind} keys; until it is done the device has no speed left for others"
                )?;
                writeln!(
                    out,
                    "\n  {:>8}{:>14}{:>10}{:>10}{:>8}",
                    "sessions", "signatures/s", "p50 ms", "p99 ms", "gain"
                )?;
            }
            Ok(Told::Step(Step::Opened)) => {}
            Ok(Told::Step(Step::Measured(level))) => {
                levels.push(level);
                row(out, &levels)?;
            }
            Ok(Told::Ended(Ok(measured))) => {
                advise(out, key, &measured)?;
                return Ok(true);
            }
            Ok(Told::Ended(Err(error))) => {
                writeln!(out, "\n{}: not measured: {}", key.id, error.cause())?;
                return Ok(false);
            }
            Err(RecvTimeoutError::Timeout) => {
                writeln!(
                    out,
                    "\n{}: not measured: the device has not answered for {}",
                    key.id,
                    span(PATIENCE)
                )?;
                return Ok(false);
            }
            Err(RecvTimeoutError::Disconnected) => {
                writeln!(
                    out,
                    "\n{}: not measured: the thread that signed has failed",
                    key.id
                )?;
                return Ok(false);
            }
        }
    }
}

fn rise(
    uri: &KeyUri,
    expected: Option<KeyKind>,
    told: &Sender<Told>,
) -> Result<Measured, SignError> {
    let found = || {
        open_vault_for_reading(uri)?
            .describe(uri)
            .map(|facts| facts.and_then(|facts| facts.public_key?.kind()))
    };
    let kind = match expected {
        Some(kind) => Some(kind),
        None => found()?,
    };
    let kind =
        kind.ok_or_else(|| SignError::Rejected("no throw-away key of its kind is made".into()))?;
    let most = most_sessions(uri, kind)?;
    let _ = told.send(Told::Begun(kind));
    Bench::on(uri.clone(), kind, TIME).rise(most, &mut |step| {
        let _ = told.send(Told::Step(step));
    })
}

/// What the token allows besides the session that keeps the login.
fn most_sessions(uri: &KeyUri, kind: KeyKind) -> Result<usize, SignError> {
    let KeyUri::Pkcs11(uri) = uri else {
        return Ok(MOST);
    };
    let state = inspect_token(uri)?;
    if !state.generates(kind) {
        let why = format!(
            "the token {:?} makes no {kind} keys, and the issuer's key is not used for that",
            state.facts.label
        );
        return Err(SignError::Rejected(why));
    }
    Ok(match state.most_sessions {
        SessionLimit::AtMost(most) => usize::try_from(most)
            .unwrap_or(MOST)
            .saturating_sub(1)
            .clamp(1, MOST),
        SessionLimit::Unlimited | SessionLimit::Untold => MOST,
    })
}

fn row(out: &mut impl Write, levels: &[Level]) -> io::Result<()> {
    let Some(level) = levels.last() else {
        return Ok(());
    };
    let gained = gain(levels)
        .map(|gain| format!("{:+.0} %", 100.0 * gain))
        .unwrap_or_default();
    let (p50, p99) = (
        1_000.0 * level.p50.as_secs_f64(),
        1_000.0 * level.p99.as_secs_f64(),
    );
    let line = format!(
        "  {:>8}{:>14.0}{p50:>10.2}{p99:>10.2}{gained:>8}",
        level.sessions, level.per_second
    );
    writeln!(out, "{}", line.trim_end())?;
    // Seen at once: the next one takes a second.
    out.flush()
}

fn advise(out: &mut impl Write, key: &ExaminedKey, measured: &Measured) -> io::Result<()> {
    if let Some((sessions, error)) = &measured.trouble {
        writeln!(
            out,
            "\n{}: {sessions} sessions could not be measured: {}",
            key.id,
            error.cause()
        )?;
    }
    let sessions = measured.recommended().sessions;
    let how = match &key.device {
        Some(device) if device.socket.is_some() => {
            format!("write `sessions = {sessions}` into the signer's own config and restart it")
        }
        Some(device) if device.sessions == sessions => "as many as the daemon has now".to_owned(),
        Some(device) if device.name.is_empty() => format!(
            "write `sessions = {sessions}` into a [device.NAME], name that as `device` of issuer {:?}, and reload; {} now",
            key.id, device.sessions
        ),
        Some(device) => format!(
            "write `sessions = {sessions}` into [device.{}] and reload; {} now",
            device.name, device.sessions
        ),
        None => format!("write `sessions = {sessions}` into its [device.NAME]"),
    };
    let unit = if sessions == 1 { "session" } else { "sessions" };
    writeln!(out, "\n{}: recommended: {sessions} {unit} ({how})", key.id)
}
