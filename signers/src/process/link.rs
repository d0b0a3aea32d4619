//! One connection to one signer process, from its first frame on. A spawned process is killed when
//! its link is dropped.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::process::{Child, Command};

use super::options::{KeyOfProcess, Way};
use super::wire::{Malformed, Reply, Request, Setup, VERSION, length};
use crate::SignError;
use crate::pkcs11::LoginEvent;

/// How long a killed process is waited for.
const KILLED_WITHIN: Duration = Duration::from_secs(1);

/// What a library prints in one line is cut there.
const LONGEST_LINE: usize = 512;

/// How much is read at once.
const READ: usize = 64 * 1024;

/// What a process has said of its C_Logins; noted also while it is only being opened.
#[derive(Clone, Default)]
pub(super) struct LoginRecord(Arc<Mutex<Told>>);

#[derive(Default)]
struct Told {
    under_way: bool,
    /// The last refusal, and the last order that had come when its try began.
    refused: Option<(u64, String)>,
}

impl LoginRecord {
    fn lock(&self) -> MutexGuard<'_, Told> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, order: u64, event: LoginEvent) {
        let mut told = self.lock();
        told.under_way = event == LoginEvent::Begun;
        if let LoginEvent::Refused(text) = event {
            told.refused = Some((order, text));
        }
    }

    /// Whether a C_Login was begun and never ended.
    pub(super) fn is_under_way(&self) -> bool {
        self.lock().under_way
    }

    /// Why the PIN is not tried again; `None` where the last of so many orders came after that try
    /// had begun.
    pub(super) fn refused(&self, orders: u64) -> Option<String> {
        self.lock()
            .refused
            .as_ref()
            .filter(|(order, _)| *order >= orders)
            .map(|(_, text)| text.clone())
    }

    /// Another process begins.
    pub(super) fn forget(&self) {
        *self.lock() = Told::default();
    }
}

/// What the daemon writes to.
pub(super) struct Link {
    write: OwnedWriteHalf,
    /// `None` where the signer runs as a service.
    child: Option<Child>,
}

/// Replies as they arrive.
pub(super) struct Replies {
    read: OwnedReadHalf,
    buffer: Vec<u8>,
    ready: std::ops::Range<usize>,
    logins: LoginRecord,
}

/// Starts, or finds, a signer and waits until its keys are open and are the expected ones; what of
/// them is not open is said of each. Whoever gives up waiting drops the future, and with it the
/// process.
pub(super) async fn open(
    way: &Way,
    setup: Option<Setup>,
    keys: &[KeyOfProcess],
    logins: LoginRecord,
) -> Result<(Link, Replies, Vec<Option<SignError>>), SignError> {
    let lost = |what: &str, error: io::Error| SignError::Lost(format!("{what}: {error}"));
    let (stream, child) = match way {
        Way::Spawn {
            program,
            arguments,
            environment,
        } => spawn(program, arguments, environment)
            .map_err(|error| lost(&format!("{} cannot be started", program.display()), error))?,
        Way::Connect(path) => (
            UnixStream::connect(path).await.map_err(|error| {
                lost(&format!("no signer answers at {}", path.display()), error)
            })?,
            None,
        ),
    };
    let (read, write) = stream.into_split();
    let (mut link, mut replies) = (
        Link { write, child },
        Replies {
            read,
            buffer: vec![0; READ],
            ready: 0..0,
            logins,
        },
    );
    link.send(&[Request::Begin {
        version: VERSION,
        setup,
    }])
    .await
    .map_err(|error| lost("the signer ended at its start", error))?;
    let ready = match replies.next().await {
        Ok(Some(Reply::Ready {
            version: VERSION,
            keys,
        })) => keys,
        Ok(Some(Reply::NotReady(error))) => return Err(error),
        Ok(Some(_)) => {
            return Err(SignError::Rejected(
                "the signer is of another version".into(),
            ));
        }
        Ok(None) => {
            return Err(SignError::Lost(format!(
                "the signer ended at its start{}",
                link.how_it_ended().await
            )));
        }
        Err(error) => return Err(lost("the signer did not begin", error)),
    };
    let same = ready.len() == keys.len()
        && ready
            .iter()
            .zip(keys)
            .all(|(found, key)| found.public_key == key.expected.spki_der());
    if !same {
        return Err(SignError::WrongKey(
            "the signer serves other keys than the issuers' certificates name".into(),
        ));
    }
    Ok((
        link,
        replies,
        ready.into_iter().map(|key| key.trouble).collect(),
    ))
}

/// SIGKILL, and a moment's wait.
async fn end(mut child: Child) {
    let _ = child.start_kill();
    if tokio::time::timeout(KILLED_WITHIN, child.wait())
        .await
        .is_err()
    {
        tracing::warn!(
            pid = child.id(),
            "a killed signer process does not go: its kernel holds it in a driver"
        );
        tokio::spawn(async move { child.wait().await });
    }
}

fn spawn(
    program: &PathBuf,
    arguments: &[std::ffi::OsString],
    environment: &std::collections::BTreeMap<String, String>,
) -> io::Result<(UnixStream, Option<Child>)> {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    let mut child = Command::new(program)
        .arg0("ca-server")
        .args(arguments)
        .envs(environment)
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        // What its library prints.
        .stdout(Stdio::piped())
        // Its log goes where ours goes.
        .stderr(Stdio::inherit())
        .kill_on_drop(true)
        .spawn()?;
    if let Some(printed) = child.stdout.take() {
        tokio::spawn(tell_what_is_printed(printed, child.id()));
    }
    Ok((UnixStream::from_std(ours)?, Some(child)))
}

/// A library that prints must not spoil the log, nor wait for somebody to read: each line becomes a
/// line of the log, up to `LONGEST_LINE`.
async fn tell_what_is_printed(mut printed: impl tokio::io::AsyncRead + Unpin, pid: Option<u32>) {
    let (mut buffer, mut line) = ([0; 1024], Vec::new());
    while let Ok(read @ 1..) = printed.read(&mut buffer).await {
        for octet in &buffer[..read] {
            if *octet != b'\n' && line.len() < LONGEST_LINE {
                line.push(*octet);
                continue;
            }
            let text = String::from_utf8_lossy(&line);
            tracing::info!(
                pid,
                printed = text.trim_end(),
                "the library of a signer process printed a line"
            );
            line.clear();
        }
    }
}

impl Link {
    /// The process, where it is a child.
    pub(super) fn pid(&self) -> Option<u32> {
        self.child.as_ref().and_then(Child::id)
    }

    pub(super) async fn send(&mut self, requests: &[Request]) -> io::Result<()> {
        let mut frames = Vec::with_capacity(1024);
        requests
            .iter()
            .for_each(|request| request.write(&mut frames));
        self.write.write_all(&frames).await
    }

    /// For a sentence that has said that it ended.
    pub(super) async fn how_it_ended(&mut self) -> String {
        let Some(child) = &mut self.child else {
            return String::new();
        };
        match tokio::time::timeout(Duration::from_secs(1), child.wait()).await {
            Ok(Ok(status)) => format!(" ({status})"),
            _ => " (and has closed its socket)".to_owned(),
        }
    }

    /// Ends the process now, whatever it is doing. Nothing of its program runs any more when this
    /// returns; one that its kernel holds inside a driver may take longer to go, and is waited for
    /// elsewhere. A service is left alone.
    pub(super) async fn kill(self) {
        if let Some(child) = self.child {
            end(child).await;
        }
    }

    /// Lets it end by itself, and ends it if it does not in time. Whether it did.
    pub(super) async fn stop(self, within: Duration) -> bool {
        let Self { write, child } = self;
        drop(write);
        let Some(mut child) = child else { return true };
        match tokio::time::timeout(within, child.wait()).await {
            Ok(_) => true,
            Err(_) => {
                end(child).await;
                false
            }
        }
    }
}

impl Replies {
    /// The next reply; `None` at the end. May be dropped while it waits: nothing is lost.
    pub(super) async fn next(&mut self) -> io::Result<Option<Reply>> {
        loop {
            if let Some(reply) = self.buffered()? {
                return Ok(Some(reply));
            }
            self.buffer.copy_within(self.ready.clone(), 0);
            self.ready = 0..self.ready.len();
            if self.ready.end == self.buffer.len() {
                self.buffer.resize(2 * self.buffer.len(), 0);
            }
            match self.read.read(&mut self.buffer[self.ready.end..]).await {
                Ok(0) => return Ok(None),
                Ok(read) => self.ready.end += read,
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }

    /// A reply that has arrived whole. What the process says of its C_Login is only noted.
    pub(super) fn buffered(&mut self) -> Result<Option<Reply>, Malformed> {
        loop {
            let waiting = &self.buffer[self.ready.clone()];
            let Some((header, rest)) = waiting.split_first_chunk::<4>() else {
                return Ok(None);
            };
            let Some(body) = rest.get(..length(*header)?) else {
                return Ok(None);
            };
            let reply = Reply::read(body)?;
            self.ready.start += 4 + body.len();
            match reply {
                Reply::Login { order, event } => self.logins.note(order, event),
                reply => return Ok(Some(reply)),
            }
        }
    }
}
