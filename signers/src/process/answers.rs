//! What a signer says to one daemon. Nobody who answers waits for a daemon that is slow to read:
//! what its socket does not take at once is kept, up to a limit, and written by a thread of this
//! connection alone, so that the sessions which others share go on signing.

use std::io::{self, ErrorKind, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use rustix::net::{SendFlags, send};

use super::wire::Reply;

/// Octets that may wait for a daemon: more than answers to all that a pool queues.
const BACKLOG: usize = 1024 * 1024;

/// The socket's direction to the daemon.
#[derive(Clone)]
pub(super) struct Answers(Arc<Outbox>);

struct Outbox {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    /// `None` once the connection has ended.
    stream: Option<Arc<UnixStream>>,
    backlog: Vec<u8>,
    /// The thread has taken a part of the backlog, and writes it.
    writing: bool,
}

impl State {
    fn is_clear(&self) -> bool {
        self.backlog.is_empty() && !self.writing
    }
}

impl Answers {
    /// Starts the thread that writes what waits. The socket's time limit for writing is that
    /// thread's.
    pub(super) fn over(stream: UnixStream) -> io::Result<Self> {
        let state = State {
            stream: Some(Arc::new(stream)),
            backlog: Vec::new(),
            writing: false,
        };
        let outbox = Arc::new(Outbox {
            state: Mutex::new(state),
            changed: Condvar::new(),
        });
        let writer = outbox.clone();
        std::thread::Builder::new()
            .name("answers".to_owned())
            .spawn(move || writer.write_what_waits())?;
        Ok(Self(outbox))
    }

    /// Each answer is one frame, after those before it. An error is a connection that has ended, or
    /// ends with this.
    pub(super) fn send(&self, reply: &Reply) -> io::Result<()> {
        let mut frame = Vec::with_capacity(256);
        reply.write(&mut frame);
        self.0.send(&frame)
    }

    /// To a daemon that has gone nothing is said.
    pub(super) fn send_if_there(&self, reply: &Reply) {
        if let Err(error) = self.send(reply) {
            tracing::debug!(%error, "an answer could not be sent");
        }
    }

    /// The same, and returns only when the socket has it, for what must be known should this
    /// process end at once.
    pub(super) fn send_and_wait(&self, reply: &Reply) {
        self.send_if_there(reply);
        let waits = |state: &mut State| state.stream.is_some() && !state.is_clear();
        drop(
            self.0
                .changed
                .wait_while(self.0.lock(), waits)
                .unwrap_or_else(PoisonError::into_inner),
        );
    }

    /// Ends the connection and lets go of its descriptor, whoever may still have something to say.
    pub(super) fn end(&self) {
        self.0.end(&mut self.0.lock());
    }
}

impl Outbox {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, state: &mut State) {
        if let Some(stream) = state.stream.take() {
            // Already closed is fine.
            let _ = stream.shutdown(Shutdown::Both);
        }
        state.backlog = Vec::new();
        self.changed.notify_all();
    }

    fn send(&self, frame: &[u8]) -> io::Result<()> {
        let mut state = self.lock();
        let stream = state.stream.clone().ok_or(ErrorKind::NotConnected)?;
        let mut rest = frame;
        while state.is_clear() && !rest.is_empty() {
            match send(&*stream, rest, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)
                .map_err(io::Error::from)
            {
                Ok(sent) => rest = &rest[sent..],
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => {
                    self.end(&mut state);
                    return Err(error);
                }
            }
        }
        if rest.is_empty() {
            return Ok(());
        }
        if state.backlog.len() + rest.len() > BACKLOG {
            tracing::warn!("a daemon takes no answers; its connection is closed");
            self.end(&mut state);
            return Err(ErrorKind::TimedOut.into());
        }
        state.backlog.extend_from_slice(rest);
        drop(state);
        self.changed.notify_all();
        Ok(())
    }

    fn write_what_waits(&self) {
        loop {
            let idle = |state: &mut State| state.stream.is_some() && state.backlog.is_empty();
            let mut state = self
                .changed
                .wait_while(self.lock(), idle)
                .unwrap_or_else(PoisonError::into_inner);
            let Some(stream) = state.stream.clone() else {
                return;
            };
            let taken = std::mem::take(&mut state.backlog);
            state.writing = true;
            drop(state);
            let written = (&*stream).write_all(&taken);
            let mut state = self.lock();
            state.writing = false;
            if let Err(error) = written {
                if state.stream.is_some() {
                    tracing::warn!(%error, "a daemon takes no answers; its connection is closed");
                }
                self.end(&mut state);
            }
            drop(state);
            self.changed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::time::Duration;

    use super::*;
    use crate::pkcs11::LoginEvent;
    use crate::process::wire::length;

    fn reply(number: usize) -> Reply {
        Reply::Login {
            order: number as u64,
            event: LoginEvent::Begun,
        }
    }

    #[test]
    fn answers_arrive_whole_and_in_order_however_slowly_they_are_read() {
        const COUNT: usize = 20_000;
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let answers = Answers::over(ours).unwrap();
        (0..COUNT).for_each(|number| answers.send(&reply(number)).unwrap());
        for number in 0..COUNT {
            let mut header = [0; 4];
            theirs.read_exact(&mut header).unwrap();
            let mut body = vec![0; length(header).unwrap()];
            theirs.read_exact(&mut body).unwrap();
            assert_eq!(
                format!("{:?}", Reply::read(&body).unwrap()),
                format!("{:?}", reply(number))
            );
        }
        answers.send_and_wait(&reply(0));
        let mut frame = Vec::new();
        reply(0).write(&mut frame);
        theirs.read_exact(&mut vec![0; frame.len()]).unwrap();
        answers.end();
        assert_eq!(theirs.read(&mut [0; 1]).unwrap(), 0);
        assert!(answers.send(&reply(0)).is_err());
    }

    #[test]
    fn whoever_reads_nothing_costs_nobody_time_and_loses_its_connection() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_write_timeout(Some(Duration::from_secs(3600)))
            .unwrap();
        let answers = Answers::over(ours).unwrap();
        // Were one of them to wait, it would wait for an hour.
        let sent = (0..BACKLOG).position(|number| answers.send(&reply(number)).is_err());
        assert!(sent.is_some_and(|sent| sent < BACKLOG), "there is a limit");
        answers.send_and_wait(&reply(0));
        drop(theirs);
    }
}
