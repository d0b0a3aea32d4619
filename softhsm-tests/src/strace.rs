//! System calls of a running daemon, watched and tampered with by Debian's `strace`.
//!
//! A `Scope` says which threads, files and calls are meant. strace counts occurrences for each
//! thread by itself, so an injection is aimed at threads of one name, of which one does the work. A
//! machine that forbids ptrace fails the test with a sentence.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};

use tempfile::NamedTempFile;

use super::daemon::{PATIENCE, signal};

/// Which calls are meant; what is empty does not restrict.
#[derive(Clone, Debug, Default)]
pub struct Scope {
    /// Name of the threads, as `role` gives it; empty: every thread, those to come as well.
    pub role: String,
    /// Paths as arguments or behind descriptors; a socket is `socket:[INODE]`.
    pub paths: Vec<String>,
    /// Names of system calls, as strace's `-e trace=` takes them.
    pub calls: String,
}

/// One system call that was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// The thread's id.
    pub thread: u32,
    /// The thread's name without its number: of `signer-3` it is `signer`.
    pub role: String,
    /// Such as `pwrite64`.
    pub name: String,
}

/// strace at work. Lets go of the daemon when dropped.
pub struct Strace {
    process: Option<Child>,
    output: NamedTempFile,
}

impl Strace {
    /// Attaches to threads of a running process. `injection` is what follows `-e inject=`. From the
    /// return on no call escapes.
    pub fn attach(pid: u32, scope: &Scope, injection: Option<&str>) -> Self {
        let output = NamedTempFile::new().expect("a temporary file");
        let mut command = Command::new("strace");
        // Thread names, paths behind descriptors, no contents.
        command
            .args(["-Y", "-y", "-s", "0", "-o"])
            .arg(output.path());
        for path in &scope.paths {
            command.args(["-P", path]);
        }
        if !scope.calls.is_empty() {
            command.args(["-e", &format!("trace={}", scope.calls)]);
        }
        if let Some(injection) = injection {
            command.args(["-e", &format!("inject={injection}")]);
        }
        let threads: Vec<u32> = match scope.role.as_str() {
            "" => vec![pid],
            wanted => threads(pid)
                .into_iter()
                .filter(|(_, role)| role == wanted)
                .map(|(thread, _)| thread)
                .collect(),
        };
        assert!(
            !threads.is_empty(),
            "the daemon has no thread {:?}: {:?}",
            scope.role,
            threads_by_name(pid)
        );
        if scope.role.is_empty() {
            command.arg("-f");
        }
        for thread in &threads {
            command.args(["-p", &thread.to_string()]);
        }
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut process = command
            .spawn()
            .unwrap_or_else(|error| panic!("strace is installed by ./run-tests: {error}"));
        let stderr = process.stderr.take().expect("piped");
        let (say, said) = channel();
        std::thread::spawn(move || {
            BufReader::new(stderr)
                .lines()
                .map_while(Result::ok)
                .for_each(|line| drop(say.send(line)))
        });
        let strace = Self {
            process: Some(process),
            output,
        };
        attached(&said, threads.len());
        strace
    }

    /// What was seen so far, in order of beginning.
    pub fn seen(&self) -> Vec<Call> {
        self.text().lines().filter_map(parse).collect()
    }

    /// Whether an injected delay is being waited for: the call has been executed and has not
    /// returned.
    pub fn delays(&self) -> bool {
        self.text().contains("(DELAYED)")
    }

    /// Whether an injected error was returned.
    pub fn injected(&self) -> usize {
        self.text().matches("(INJECTED)").count()
    }

    /// Everything that strace wrote.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.output.path()).expect("strace writes it"))
            .into_owned()
    }

    /// Ends strace at once: while it holds a call back it would not notice that its process is
    /// dead, nor let that one be waited for.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().expect("killed");
            process.wait().expect("waited");
        }
    }

    /// Lets go of the daemon, which runs on as if nothing had been.
    pub fn detach(&mut self) {
        if let Some(mut process) = self.process.take() {
            // It ends by itself when its process ends.
            if process.try_wait().expect("waited").is_none() {
                signal(process.id(), "TERM");
            }
            process.wait().expect("waited");
        }
    }
}

impl Drop for Strace {
    fn drop(&mut self) {
        self.detach();
    }
}

/// Waits for as many threads as were asked for, of which some may have ended meanwhile.
fn attached(said: &Receiver<String>, threads: usize) {
    let mut before = Vec::new();
    for _ in 0..threads {
        loop {
            let line = match said.recv_timeout(PATIENCE) {
                Ok(line) => line,
                Err(RecvTimeoutError::Timeout) => panic!("strace does not attach: {before:?}"),
                Err(RecvTimeoutError::Disconnected) => {
                    panic!("strace ended before it was attached: {before:?}")
                }
            };
            assert!(
                !line.contains("Operation not permitted"),
                "strace may not attach to the daemon ({line}): run the tests as root, the daemon is not dumpable"
            );
            let settled = line.contains(" attached") || line.contains("No such process");
            before.push(line);
            if settled {
                break;
            }
        }
    }
    assert!(
        before.iter().any(|line| line.contains(" attached")),
        "strace attached to nothing: {before:?}"
    );
}

/// The threads of a process with their roles.
pub fn threads(pid: u32) -> Vec<(u32, String)> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten()
        .flatten();
    let named = tasks.filter_map(|task| {
        // A thread may end meanwhile.
        let name = fs::read_to_string(task.path().join("comm")).ok()?;
        Some((
            task.file_name().to_str()?.parse().ok()?,
            role(name.trim_end()),
        ))
    });
    named.collect()
}

fn threads_by_name(pid: u32) -> BTreeMap<String, usize> {
    threads(pid)
        .into_iter()
        .fold(BTreeMap::new(), |mut counts, (_, role)| {
            *counts.entry(role).or_default() += 1;
            counts
        })
}

/// A thread's name without its number.
fn role(name: &str) -> String {
    name.trim_end_matches(|c: char| c.is_ascii_digit())
        .trim_end_matches('-')
        .to_owned()
}

/// A line such as `1085<signer-0> openat(AT_FDCWD</>, …`; `None` for the end of a call, a signal,
/// an exit.
fn parse(line: &str) -> Option<Call> {
    let (thread, rest) = line.split_once('<')?;
    let (thread_name, rest) = rest.split_once('>')?;
    let name: String = rest
        .trim_start()
        .chars()
        .take_while(|c| c.is_ascii_alphanumeric() || *c == '_')
        .collect();
    let called = !name.is_empty() && rest.trim_start()[name.len()..].starts_with('(');
    // The rest of a call that had begun before.
    let begins = called && !rest.contains("<... resuming");
    begins.then(|| {
        Some(Call {
            thread: thread.trim().parse().ok()?,
            role: role(thread_name),
            name,
        })
    })?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_counted_where_they_begin() {
        let text = "\
            1085<signer-0> openat(AT_FDCWD</>, \"/t/generation\", O_RDONLY <unfinished ...>\n\
            1085<signer-0> <... openat resumed>) = 18</t/generation>\n\
            985  <sqlx-sqlite-wor> fsync(15</t/ledger.db-wal>) = 0 (DELAYED)\n\
            1086<tokio-rt-worker> restart_syscall(<... resuming interrupted read ...> <unfinished ...>\n\
            1086<tokio-rt-worker> +++ killed by SIGKILL +++\n\
            1086<tokio-rt-worker> --- SIGHUP {si_signo=SIGHUP} ---\n";
        let seen: Vec<Call> = text.lines().filter_map(parse).collect();
        let call = |thread, role: &str, name: &str| Call {
            thread,
            role: role.to_owned(),
            name: name.to_owned(),
        };
        assert_eq!(
            seen,
            [
                call(1085, "signer", "openat"),
                call(985, "sqlx-sqlite-wor", "fsync")
            ]
        );
    }
}
