//! Standard output and standard error: the one place that writes to either. Both are outside parts:
//! they fill, they close, and whoever reads them may stop. What cannot be said on standard error is
//! counted and dropped, and nobody waits long for it, so that a log costs no call. What cannot be
//! written to standard output is an error for whoever asked.

use std::fmt::Display;
use std::fs::File;
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{LazyLock, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rustix::net::{SendFlags, send};

/// How long a line waits for a reader that is slow. After one that was lost the next does not wait
/// at all, and within a second of one that waited no other does: else a reader that takes a line
/// now and then would hold up whoever has something to say.
const PATIENCE: Duration = Duration::from_millis(100);
const WAITS_EVERY: Duration = Duration::from_secs(1);

/// Between two tries.
const PAUSE: Duration = Duration::from_millis(2);

/// A pipe takes so much whole or not at all (POSIX `PIPE_BUF` on Linux).
const PIECE: usize = 4096;

static LOST: AtomicU64 = AtomicU64::new(0);
/// Where our own lines go, where that is not descriptor 2.
static APART: OnceLock<OwnedFd> = OnceLock::new();
/// Opened when it is first used.
static ERROR: LazyLock<Mutex<StandardError>> = LazyLock::new(|| Mutex::new(StandardError::open()));

/// Writes to standard output, and at once.
pub fn print(text: impl Display) -> io::Result<()> {
    let mut out = writer();
    write!(out, "{text}")?;
    out.flush()
}

/// Standard output, for what is written piece by piece. Flush it: what is lost at the process's end
/// nobody hears of.
pub fn writer() -> impl Write {
    io::stdout().lock()
}

/// Standard output for its holder alone: what anybody else writes there from here on, such as a
/// device's library, goes to standard error.
pub fn take_from_libraries() -> io::Result<File> {
    let own = rustix::io::fcntl_dupfd_cloexec(io::stdout(), 3)?;
    rustix::stdio::dup2_stdout(io::stderr())?;
    Ok(own.into())
}

/// A line on standard error; where that cannot be written, nothing.
pub fn complain(line: impl Display) {
    // Never an error.
    let _ = Log.write_all(format!("{line}\n").as_bytes());
}

/// Whether somebody sits before standard error.
pub fn error_is_terminal() -> bool {
    descriptor().is_terminal()
}

/// From here on our own lines have a way of their own to standard error, and what anybody else
/// writes there goes to standard output. For a process in which a device's library may print; call
/// it before anything is logged.
pub fn keep_apart_from_a_library() -> io::Result<()> {
    let own = rustix::io::fcntl_dupfd_cloexec(io::stderr(), 3)?;
    rustix::stdio::dup2_stderr(io::stdout())?;
    // Only the first way counts: a second would be standard output.
    let _ = APART.set(own);
    Ok(())
}

fn descriptor() -> BorrowedFd<'static> {
    APART.get().map_or_else(rustix::stdio::stderr, AsFd::as_fd)
}

/// Lines that standard error did not take since the process began.
pub fn lost_lines() -> u64 {
    LOST.load(Ordering::Relaxed)
}

/// Where lines of the log go: standard error, one `write` each. Never fails, and never waits longer
/// than a tenth of a second.
#[derive(Clone, Copy, Debug)]
pub struct Log;

impl Log {
    /// Opens it. Call before the process gives up what opening takes.
    pub fn open() -> Self {
        LazyLock::force(&ERROR);
        Self
    }
}

impl Write for Log {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if !ERROR
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .write(line)
        {
            LOST.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// How it is written to without being waited for.
enum Way {
    /// A socket, such as a service manager's: the kernel is told with each write.
    Socket,
    /// A pipe or a terminal, opened once more: the one that we were given is shared with others,
    /// who expect it to wait.
    Opened(File),
    /// A file, and a pipe that we may not open.
    Plain,
}

struct StandardError {
    way: Way,
    /// The last line was lost.
    stuck: bool,
    /// When a line last waited.
    waited: Option<Instant>,
    /// A part of the last line was written.
    torn: bool,
}

impl StandardError {
    fn open() -> Self {
        let path = format!("/proc/self/fd/{}", descriptor().as_raw_fd());
        let kind = std::fs::metadata(&path).map(|found| found.file_type());
        let way = match kind {
            Ok(kind) if kind.is_socket() => Way::Socket,
            Ok(kind) if kind.is_fifo() || kind.is_char_device() => {
                let opened = File::options()
                    .write(true)
                    .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
                    .open(path);
                opened.map_or(Way::Plain, Way::Opened)
            }
            _ => Way::Plain,
        };
        Self {
            way,
            stuck: false,
            waited: None,
            torn: false,
        }
    }

    /// Whether the whole line was written.
    fn write(&mut self, line: &[u8]) -> bool {
        let waits = !self.stuck
            && self
                .waited
                .is_none_or(|waited| waited.elapsed() >= WAITS_EVERY);
        let until = Instant::now() + if waits { PATIENCE } else { Duration::ZERO };
        let begin: &[u8] = if self.torn { b"\n" } else { b"" };
        let line = [begin, line].concat();
        let mut rest = line.as_slice();
        while !rest.is_empty() {
            match self.way.write(&rest[..rest.len().min(PIECE)]) {
                Ok(written) if written > 0 => rest = &rest[written..],
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock && Instant::now() < until => {
                    std::thread::sleep(PAUSE);
                    self.waited = Some(Instant::now());
                }
                Ok(_) | Err(_) => break,
            }
        }
        self.stuck = !rest.is_empty();
        // A newline that went alone has mended it.
        self.torn = if rest.len() == line.len() {
            self.torn
        } else {
            self.stuck && line.len() - rest.len() > begin.len()
        };
        !self.stuck
    }
}

impl Way {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        match self {
            Self::Socket => Ok(send(
                descriptor(),
                piece,
                SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
            )?),
            Self::Opened(file) => file.write(piece),
            Self::Plain => Ok(rustix::io::write(descriptor(), piece)?),
        }
    }
}
