//! What a signer's operator must see: each refusal of the guard, and whoever else comes or comes
//! with something else than he may. One line of JSON each, synced, beside a line in the log. A
//! flood writes fifty lines a second and a count; a file that has grown too large keeps what came
//! first and takes no more.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::clock::Clock;
use crate::refusal::{Reason, Refusal};
use crate::timestamp::Timestamp;

/// Lines of one second.
const A_SECOND: u64 = 50;

/// What came first tells how it began, so it is kept rather than what came last.
const LARGEST: u64 = 64 * 1024 * 1024;

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The guard refused to sign.
    Guard,
    /// Somebody connected who may not.
    Peer,
    /// A daemon brought rules of its own.
    Setup,
    /// A daemon does not keep to the protocol.
    Protocol,
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Guard => "guard",
            Self::Peer => "peer",
            Self::Setup => "setup",
            Self::Protocol => "protocol",
        }
    }
}

/// The process at the other end, as the kernel tells (`SO_PEERCRED`).
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub(super) struct Peer {
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) pid: Option<i32>,
}

/// What the guard was asked to sign.
pub(super) struct Asked {
    pub(super) uri: String,
    pub(super) purpose: &'static str,
    pub(super) to_be_signed: [u8; 32],
}

#[derive(serde::Serialize)]
struct Line<'a> {
    time: String,
    alarm: &'a str,
    why: &'a str,
    #[serde(flatten)]
    peer: Option<Peer>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    purpose: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    to_be_signed_sha256: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    count: Option<u64>,
}

/// Where alarms are kept.
pub(super) struct Alarms {
    path: PathBuf,
    clock: Clock,
    second: Mutex<Second>,
}

/// What has been raised in the present second.
#[derive(Default)]
struct Second {
    begins: i64,
    raised: u64,
}

impl Alarms {
    /// Makes the file if it is not there; what is there stays.
    pub(super) fn open(path: &Path, clock: Clock) -> io::Result<Self> {
        let alarms = Self {
            path: path.to_owned(),
            clock,
            second: Mutex::default(),
        };
        alarms.file()?;
        Ok(alarms)
    }

    /// Tells log and file.
    pub(super) fn raise(&self, kind: Kind, peer: Peer, asked: Option<&Asked>, why: &str) {
        let now = self.clock.now();
        let mut second = self.lock();
        self.begin(&mut second, now);
        second.raised += 1;
        if second.raised > A_SECOND {
            return;
        }
        // Cut as refusals are: some of it is a stranger's.
        let why = Refusal::new(Reason::GuardRefused, why);
        let (alarm, why, uri) = (
            kind.as_str(),
            why.detail(),
            asked.map(|asked| asked.uri.as_str()),
        );
        let purpose = asked.map(|asked| asked.purpose);
        match kind {
            Kind::Guard => tracing::error!(
                alarm,
                uri,
                purpose,
                peer.uid,
                peer.pid,
                why,
                "refused to sign"
            ),
            Kind::Peer => tracing::error!(
                alarm,
                peer.uid,
                peer.gid,
                peer.pid,
                why,
                "refused a connection"
            ),
            Kind::Setup => tracing::error!(alarm, peer.uid, peer.pid, why, "refused a daemon"),
            Kind::Protocol => {
                tracing::error!(alarm, peer.uid, peer.pid, why, "closed a connection")
            }
        }
        let to_be_signed_sha256 = asked.map(|asked| hex::encode(asked.to_be_signed));
        let line = Line {
            time: now.to_string(),
            alarm,
            why,
            peer: Some(peer),
            key: uri,
            purpose,
            to_be_signed_sha256,
            count: None,
        };
        self.write(&line);
    }

    /// Writes the count of what a second had too much, once that second is over.
    pub(super) fn settle(&self) {
        let now = self.clock.now();
        self.begin(&mut self.lock(), now);
    }

    fn begin(&self, second: &mut Second, now: Timestamp) {
        if second.begins == now.seconds() {
            return;
        }
        let more = second.raised.saturating_sub(A_SECOND);
        *second = Second {
            begins: now.seconds(),
            raised: 0,
        };
        if more > 0 {
            let (alarm, why) = (
                "more",
                "alarms of one second that have no line of their own",
            );
            tracing::error!(alarm, count = more, "{why}");
            let count = Some(more);
            self.write(&Line {
                time: now.to_string(),
                alarm,
                why,
                peer: None,
                key: None,
                purpose: None,
                to_be_signed_sha256: None,
                count,
            });
        }
    }

    fn lock(&self) -> MutexGuard<'_, Second> {
        self.second.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What could not be written is in the log; the refusal stands anyhow.
    fn write(&self, line: &Line<'_>) {
        let mut text = serde_json::to_vec(line).expect("plain texts and numbers");
        text.push(b'\n');
        if let Err(error) = self.append(&text) {
            tracing::error!(%error, file = %self.path.display(), "an alarm could not be written into its file");
        }
    }

    fn append(&self, line: &[u8]) -> io::Result<()> {
        let (mut file, length) = self.file()?;
        if length + line.len() as u64 > LARGEST {
            return Err(io::Error::other(format!(
                "it has grown to {LARGEST} bytes; move it away, another is made"
            )));
        }
        file.write_all(line)?;
        file.sync_data()
    }

    /// Opened anew each time, so that it can be moved away.
    fn file(&self) -> io::Result<(File, u64)> {
        let mut options = OpenOptions::new();
        options
            .append(true)
            .create(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
        let file = options.open(&self.path)?;
        let found = file.metadata()?;
        if !found.is_file() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "it is no regular file",
            ));
        }
        let length = found.len();
        if length == 0
            && let Some(directory) = self
                .path
                .parent()
                .filter(|parent| !parent.as_os_str().is_empty())
        {
            File::open(directory)?.sync_all()?;
        }
        Ok((file, length))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicI64, Ordering};

    use super::*;

    const PEER: Peer = Peer {
        uid: 7,
        gid: 8,
        pid: Some(9),
    };

    fn lines(path: &Path) -> Vec<serde_json::Value> {
        std::fs::read_to_string(path)
            .unwrap()
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    #[test]
    fn a_flood_writes_so_many_lines_a_second_and_a_count() {
        let (directory, time) = (tempfile::tempdir().unwrap(), Arc::new(AtomicI64::new(100)));
        let (path, shown) = (directory.path().join("alarms"), time.clone());
        let clock = Clock::from_fn(move || Timestamp::from_seconds(shown.load(Ordering::Relaxed)));
        let alarms = Alarms::open(&path, clock).unwrap();
        let asked = Asked {
            uri: "pkcs11:object=a".to_owned(),
            purpose: "leaf",
            to_be_signed: [1; 32],
        };
        (0..120).for_each(|_| alarms.raise(Kind::Guard, PEER, Some(&asked), "no"));
        assert_eq!(lines(&path).len(), 50);
        alarms.settle();
        assert_eq!(lines(&path).len(), 50, "the second is not over");
        time.store(101, Ordering::Relaxed);
        alarms.settle();
        alarms.settle();
        alarms.raise(Kind::Peer, PEER, None, &"ü".repeat(100_000));
        let lines = lines(&path);
        assert_eq!(
            (lines.len(), &lines[50]["alarm"], &lines[50]["count"]),
            (52, &"more".into(), &70.into())
        );
        assert_eq!(
            (&lines[0]["uid"], &lines[0]["to_be_signed_sha256"]),
            (&7.into(), &"01".repeat(32).into())
        );
        assert!(
            lines[51]["alarm"] == "peer" && lines[51]["why"].as_str().unwrap().len() < 600,
            "{}",
            lines[51]
        );
    }

    #[test]
    fn a_file_that_was_moved_away_is_made_anew_and_one_that_is_full_keeps_what_came_first() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("alarms");
        let alarms = Alarms::open(&path, Clock::from_fn(|| Timestamp::from_seconds(1))).unwrap();
        alarms.raise(Kind::Setup, PEER, None, "first");
        std::fs::rename(&path, directory.path().join("old")).unwrap();
        alarms.raise(Kind::Setup, PEER, None, "second");
        assert_eq!(
            (lines(&path).len(), &lines(&path)[0]["why"]),
            (1, &"second".into())
        );
        OpenOptions::new()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(LARGEST)
            .unwrap();
        alarms.raise(Kind::Setup, PEER, None, "third");
        assert_eq!(std::fs::metadata(&path).unwrap().len(), LARGEST);
    }
}
