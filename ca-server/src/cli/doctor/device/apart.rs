//! The devices of a section are examined in a process of their own, which gives up what a signer
//! process gives up before it loads a library, and has the section's environment. A library that
//! crashes or hangs there costs what was not yet asked; one that prints, prints to standard error.
//! What was found comes back line by line on standard output, each line all that is known by then.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use super::{Findings, examine};
use crate::cli::doctor::Args;
use crate::cli::{self, Exit};
use crate::config::{ExaminedKey, Isolation};
use crate::{hardening, output};

/// Has another process of this program look at the devices of `[device.NAME]`, or of no section
/// where the name is empty.
pub(super) fn ask(device: &str, all: &[ExaminedKey], args: &Args, path: &Path) -> Findings {
    let mut findings = Findings::in_area("device");
    let failed = |findings: &mut Findings, why: &str| {
        let of = if device.is_empty() {
            "the device".to_owned()
        } else {
            format!("[device.{device}]")
        };
        let what =
            format!("the process that looked at {of} {why}; what it has found by then is above");
        findings.problem(
            "answers",
            what,
            "a library that ends its process: look at its own log, and try it with pkcs11-tool as the same user",
        );
    };
    let mut command = Command::new("/proc/self/exe");
    command
        .args(["doctor", "--apart", device, "--config"])
        .arg(path);
    command
        .args(args.try_pin.then_some("--try-pin"))
        .args(args.no_rate.then_some("--no-rate"));
    command
        .envs(super::environment(device, all).unwrap_or_default())
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let mut process = match command.spawn() {
        Ok(process) => process,
        Err(error) => {
            failed(&mut findings, &format!("cannot be started ({error})"));
            return findings;
        }
    };
    if let Some(out) = process.stdout.take() {
        for line in BufReader::new(out).lines().map_while(Result::ok) {
            if let Ok(told) = Findings::told("device", line.as_bytes()) {
                findings = told;
            }
        }
    }
    match process.wait() {
        Ok(status) if status.success() => {}
        Ok(status) => failed(&mut findings, &format!("has ended ({status})")),
        Err(error) => failed(&mut findings, &format!("cannot be waited for ({error})")),
    }
    findings
}

/// The other process: examines the keys of that section, tells what it finds, and ends.
pub(in crate::cli::doctor) fn answer(
    device: &str,
    all: &[ExaminedKey],
    args: &Args,
) -> Result<(), Exit> {
    let failed = |error: std::io::Error| Exit::missing(format_args!("standard output: {error}"));
    // From here on what a library prints is no part of the answer.
    let mut out = output::take_from_libraries().map_err(failed)?;
    let keys: Vec<&ExaminedKey> = all
        .iter()
        .filter(|key| super::section(key) == device)
        .collect();
    // Before any thread starts. What the kernel does not let it give up, the daemon's own log says.
    let opened = keys.iter().find_map(|key| key.device.as_ref());
    if opened.is_none_or(|device| device.isolation == Isolation::Process) {
        hardening::enter(opened.is_some_and(|device| device.network));
    }
    let mut found = Findings::in_area("device");
    for key in keys {
        let mut tell = |so_far: &Findings| {
            // Whoever asked may have gone; then nobody is told.
            let _ = writeln!(out, "{}", found.clone().and(so_far.clone()).line());
        };
        let of_key = examine(key, all, args.try_pin, !args.no_rate, &mut tell);
        tell(&of_key);
        found = found.and(of_key);
    }
    // A call that hangs must not keep this process, nor a library's own clean-up end it badly.
    cli::end_at_once(Ok(()))
}
