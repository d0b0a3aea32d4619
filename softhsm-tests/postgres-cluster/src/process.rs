//! Processes by their ids: are they alive, whose children are they, signals to them; and a client
//! program's run.

use std::collections::hash_map::RandomState;
use std::fs;
use std::hash::{BuildHasher, Hasher};
use std::io::Write;
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::PATIENCE;

/// Sends a signal by name. Processes that have just ended are no error.
pub(super) fn signal(name: &str, pids: &[u32]) {
    // The shell's own kill: a small Debian has no other.
    let mut command = Command::new("sh");
    command.args([
        "-c",
        "name=$1; shift; for pid do kill -\"$name\" \"$pid\" 2>/dev/null; done; true",
        "sh",
        name,
    ]);
    let status = command
        .args(pids.iter().map(u32::to_string))
        .status()
        .expect("sh runs");
    assert!(status.success(), "kill -{name} {pids:?}");
}

/// Whether a process runs or is stopped: one that has ended and waits for its parent is not alive.
pub(super) fn is_alive(pid: u32) -> bool {
    stat(pid).is_some_and(|(state, _)| !matches!(state, 'Z' | 'X'))
}

/// Whether a process stands still, or is no more.
pub(super) fn is_stopped(pid: u32) -> bool {
    stat(pid).is_none_or(|(state, _)| matches!(state, 'T' | 'Z' | 'X'))
}

/// The children of a process that are alive.
pub(super) fn children(parent: u32) -> Vec<u32> {
    let all = fs::read_dir("/proc")
        .expect("proc is mounted")
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    all.filter(|pid| {
        stat(*pid).is_some_and(|(state, of)| of == parent && !matches!(state, 'Z' | 'X'))
    })
    .collect()
}

/// State and parent.
fn stat(pid: u32) -> Option<(char, u32)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = text.rsplit_once(')')?.1.split_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

/// Runs a program with this input; what it printed, or what it complained of.
pub(super) fn run(mut command: Command, input: &str) -> Result<String, String> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program runs");
    // A program that ends before it has read everything says why itself.
    let _ = child
        .stdin
        .take()
        .expect("piped")
        .write_all(input.as_bytes());
    let output = child.wait_with_output().expect("waited");
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(format!(
            "{}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        ))
    }
}

/// Waits until something holds; whether it ever did.
pub(super) fn until(holds: impl Fn() -> bool) -> bool {
    let begun = Instant::now();
    while !holds() {
        if begun.elapsed() > PATIENCE {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    true
}

/// A loopback port that is free now, from below those that the kernel gives to clients, so that it
/// stays free over a restart.
pub fn free_port() -> u16 {
    const FIRST: u16 = 20_000;
    const COUNT: u16 = 12_000;
    loop {
        let random = RandomState::new().build_hasher().finish() % u64::from(COUNT);
        let port = FIRST + u16::try_from(random).expect("below COUNT");
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
