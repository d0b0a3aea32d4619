//! Marks of tries of a PIN that outlive the process which makes them. Before C_Login a file of the
//! token is written and synced; it is removed when C_Login has come back and has cost no try. So a
//! process that takes the place of one that died or hung in there, or that was refused, does not
//! try the same PIN again by itself, however often a unit or a container is started. A mark holds
//! nothing of the PIN, only which state of its file was tried: another file is another PIN.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use aws_lc_rs::digest::{SHA256, digest};

use super::login_watch::MayTry;
use crate::{SignError, TokenFacts};

static DIRECTORY: Mutex<Option<PathBuf>> = Mutex::new(None);

/// How long another process of ours may be inside C_Login before this one gives up its turn.
const TURN: Duration = Duration::from_secs(2);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// A mark says no more than that.
const LONGEST: u64 = 1024;

const UNDER_WAY: &str = "under way";
const REFUSED: &str = "refused";

/// From now on each C_Login of this process leaves its mark in this directory while it lasts. Call
/// it before the first.
pub fn keep_login_marks(directory: &Path) {
    *DIRECTORY.lock().unwrap_or_else(PoisonError::into_inner) = Some(directory.to_owned());
}

/// The mark of one C_Login; locked as long as this process lives and holds it.
pub(super) struct LoginMark {
    file: File,
    path: PathBuf,
    pin: String,
}

impl LoginMark {
    /// Makes the mark, unless one of an earlier process speaks against the try: `Locked` then.
    /// `None` where no marks are kept. `Lost` if it cannot be kept, or if another process is inside
    /// C_Login.
    pub(super) fn make(
        token: &TokenFacts,
        pin_source: &Path,
        may: MayTry,
    ) -> Result<Option<Self>, SignError> {
        let Some(directory) = DIRECTORY
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
        else {
            return Ok(None);
        };
        let path = directory.join(name(token));
        let failed = |error: io::Error| {
            SignError::Lost(format!(
                "the mark that a PIN is being tried cannot be kept in {}: {error}",
                directory.display()
            ))
        };
        let pin = stamp(pin_source).map_err(failed)?;
        let Some(file) = locked(&path).map_err(failed)? else {
            return Err(SignError::Lost(format!(
                "another process is logging in to token {:?}",
                token.label
            )));
        };
        let mut mark = Self { file, path, pin };
        if let Some(state) = mark.speaks_against(may).map_err(failed)? {
            let (label, pin, path) = (&token.label, pin_source.display(), mark.path.display());
            let so = match state {
                REFUSED => format!("token {label:?} has refused the PIN in {pin} before"),
                _ => format!(
                    "an earlier process ended inside C_Login of token {label:?} with the PIN in {pin}, which may have cost a try"
                ),
            };
            return Err(SignError::Locked(format!(
                "{so}; it is not tried again until the next reload, or until that file changes ({path})"
            )));
        }
        mark.write(UNDER_WAY).map_err(failed)?;
        sync_directory(&directory).map_err(failed)?;
        Ok(Some(mark))
    }

    /// C_Login has come back and has cost no try.
    pub(super) fn remove(self) {
        if let Err(error) = fs::remove_file(&self.path)
            .and_then(|()| sync_directory(self.path.parent().unwrap_or(Path::new("/"))))
        {
            tracing::warn!(mark = %self.path.display(), %error, "the mark of a log-in that went well stays: remove it by hand");
        }
    }

    /// C_Login was refused: the mark stays.
    pub(super) fn refused(mut self) {
        if let Err(error) = self.write(REFUSED) {
            tracing::warn!(mark = %self.path.display(), %error, "the mark of a refused PIN could not be written");
        }
    }

    /// What an earlier mark says, if that forbids a try.
    fn speaks_against(&mut self, may: MayTry) -> io::Result<Option<&'static str>> {
        let mut text = String::new();
        (&self.file).take(LONGEST).read_to_string(&mut text)?;
        let mut lines = text.lines();
        let (state, pin) = (
            lines.next().unwrap_or_default(),
            lines.next().unwrap_or_default(),
        );
        // An empty one was never finished: whoever made it had not called C_Login.
        if state.is_empty() || pin != self.pin {
            return Ok(None);
        }
        Ok(match (state, may) {
            (_, MayTry::Ordered) | (UNDER_WAY, MayTry::Again) => None,
            (REFUSED, _) => Some(REFUSED),
            _ => Some(UNDER_WAY),
        })
    }

    fn write(&mut self, state: &str) -> io::Result<()> {
        self.file.seek(SeekFrom::Start(0))?;
        self.file.set_len(0)?;
        writeln!(self.file, "{state}\n{}", self.pin)?;
        self.file.sync_all()
    }
}

/// One file for each token, wherever it sits and whoever opens it.
fn name(token: &TokenFacts) -> String {
    let whole = format!(
        "{}\0{}\0{}\0{}",
        token.label, token.manufacturer, token.model, token.serial
    );
    format!(
        "login-{}",
        hex::encode(&digest(&SHA256, whole.as_bytes()).as_ref()[..8])
    )
}

/// Which state of the PIN's file it is; says nothing of what is in it.
fn stamp(pin_source: &Path) -> io::Result<String> {
    let file = fs::metadata(pin_source)?;
    Ok(format!(
        "{} {}.{:09} {}",
        file.ino(),
        file.mtime(),
        file.mtime_nsec(),
        file.len()
    ))
}

/// The file, made if it is not there, once nobody else holds it. `None` if somebody does for longer
/// than a turn.
fn locked(path: &Path) -> io::Result<Option<File>> {
    let until = Instant::now() + TURN;
    loop {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)?;
        match file.try_lock() {
            // Whoever held it may have removed it meanwhile.
            Ok(()) if file.metadata()?.nlink() > 0 => return Ok(Some(file)),
            Ok(()) => {}
            Err(TryLockError::WouldBlock) if Instant::now() < until => {
                std::thread::sleep(LOOK_AGAIN)
            }
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
}

fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}
