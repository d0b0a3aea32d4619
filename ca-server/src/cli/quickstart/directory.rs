//! The data directory: whose it is, who uses it now, and how it is emptied. Only a directory that carries our marker is ever touched,
//! and only what quickstart itself makes is ever deleted.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{IsTerminal, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use crate::cli::Exit;

/// Holds the directory's absolute path, and the lock of whoever works in it.
const MARKER: &str = ".quickstart";

/// The daemon's own lock, which `serve` holds too.
const LEDGER_LOCK: &str = "ledger.db.lock";

/// All that quickstart makes beside the marker; `ca.toml` first, so that a reset that is cut short leaves a directory known as half made.
const MADE: [&str; 21] = [
    "ca.toml",
    "ledger.db",
    "ledger.db-wal",
    "ledger.db-shm",
    LEDGER_LOCK,
    "demo",
    "demo.token",
    "jwks.json",
    "jwt-issuer.key",
    "issuing-chain.pem",
    "root-cert.pem",
    "ceremony.toml",
    "ceremony.jsonl",
    ".ceremony.lock",
    "tokens",
    super::tokens::MAKING,
    "softhsm2.conf",
    "root.pin",
    "issuing.pin",
    ".root.pin.new",
    ".issuing.pin.new",
];

/// A directory that is ours, locked against other processes for as long as this value lives.
pub(super) struct Directory {
    path: PathBuf,
    _lock: File,
}

impl Directory {
    /// Makes the directory or recognises it, and takes its lock.
    pub(super) fn claim(path: &Path) -> Result<Self, Exit> {
        let failed = |error: &dyn std::fmt::Display| Exit::missing(format!("{}: {error}", path.display()));
        DirBuilder::new().recursive(true).mode(0o755).create(path).map_err(|error| failed(&error))?;
        let marker = path.join(MARKER);
        let holds_something = fs::read_dir(path).map_err(|error| failed(&error))?.next().is_some();
        if holds_something && !marker.exists() {
            return Err(Exit::missing(format!(
                "{} is not empty and was not made by quickstart, so it is left alone; name another directory with --dir",
                path.display()
            )));
        }
        let mut lock =
            OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&marker).map_err(|error| failed(&error))?;
        take(&lock, path, "another quickstart")?;
        // The ledger's lock is the daemon's to keep; whether it is free is all that matters here.
        if let Ok(ledger) = File::open(path.join(LEDGER_LOCK)) {
            take(&ledger, path, "a running daemon")?;
        }
        let mut made_for = String::new();
        lock.read_to_string(&mut made_for).map_err(|error| failed(&error))?;
        let here = format!("{}\n", path.display());
        if made_for.is_empty() {
            lock.write_all(here.as_bytes()).and_then(|()| lock.sync_all()).map_err(|error| failed(&error))?;
        } else if made_for != here {
            let sentence = "was made as {} and moved; its files name the old place: move it back, or name another directory with --dir";
            return Err(Exit::missing(format!("{} {}", path.display(), sentence.replace("{}", made_for.trim_end()))));
        }
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    /// Deletes what quickstart made, after asking at a terminal; elsewhere `yes` must have been said.
    pub(super) fn reset(&self, yes: bool) -> Result<(), Exit> {
        let there: Vec<PathBuf> = MADE.iter().map(|name| self.path.join(name)).filter(|path| path.symlink_metadata().is_ok()).collect();
        if there.is_empty() {
            return Ok(());
        }
        if !yes && !self.asked()? {
            return Err(Exit::refused("nothing was deleted"));
        }
        for path in there {
            let removed =
                if path.symlink_metadata().is_ok_and(|facts| facts.is_dir()) { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed.map_err(|error| Exit::missing(format!("{}: {error}", path.display())))?;
        }
        Ok(())
    }

    fn asked(&self) -> Result<bool, Exit> {
        if !std::io::stdin().is_terminal() {
            return Err(Exit::config("--reset deletes root, keys and ledger; where there is no terminal to ask at, say --yes too"));
        }
        let question = format!("Delete root, keys and ledger in {}? They cannot be brought back", self.path.display());
        dialoguer::Confirm::new()
            .with_prompt(question)
            .default(false)
            .interact()
            .map_err(|error| Exit::missing(format!("the terminal does not answer: {error}")))
    }
}

fn take(lock: &File, path: &Path, by: &str) -> Result<(), Exit> {
    lock.try_lock().map_err(|error| match error {
        TryLockError::WouldBlock => {
            Exit::missing(format!("{} is in use by {by}; stop it, or name another directory with --dir", path.display()))
        }
        TryLockError::Error(error) => Exit::missing(format!("{}: {error}", path.display())),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_is_not_ours_is_left_alone() {
        let other = tempfile::tempdir().unwrap();
        fs::write(other.path().join("thesis.tex"), "years of work").unwrap();
        let exit = Directory::claim(other.path()).err().unwrap();
        assert_eq!(exit.code(), 3, "{exit}");
        assert_eq!(fs::read_dir(other.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_reset_deletes_what_quickstart_made_and_nothing_else() {
        let parent = tempfile::tempdir().unwrap();
        let directory = Directory::claim(&parent.path().join("var")).unwrap();
        fs::create_dir(directory.path.join("tokens")).unwrap();
        fs::write(directory.path.join("ca.toml"), "").unwrap();
        fs::write(directory.path.join("notes.txt"), "mine").unwrap();
        assert_eq!(directory.reset(false).unwrap_err().code(), 2, "the test has no terminal");
        directory.reset(true).unwrap();
        let mut left: Vec<_> = fs::read_dir(&directory.path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, [MARKER, "notes.txt"]);
    }

    #[test]
    fn one_process_at_a_time_works_in_a_directory() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("var");
        let first = Directory::claim(&path).unwrap();
        let exit = Directory::claim(&path).err().unwrap();
        assert!(exit.code() == 3 && exit.to_string().contains("another quickstart"), "{exit}");
        drop(first);
        let daemon = File::create(path.join(LEDGER_LOCK)).unwrap();
        daemon.try_lock().unwrap();
        let exit = Directory::claim(&path).err().unwrap();
        assert!(exit.code() == 3 && exit.to_string().contains("running daemon"), "{exit}");
    }

    #[test]
    fn a_moved_directory_is_recognised() {
        let parent = tempfile::tempdir().unwrap();
        drop(Directory::claim(&parent.path().join("var")).unwrap());
        fs::rename(parent.path().join("var"), parent.path().join("elsewhere")).unwrap();
        let exit = Directory::claim(&parent.path().join("elsewhere")).err().unwrap();
        assert!(exit.code() == 3 && exit.to_string().contains("moved"), "{exit}");
    }
}
