//! The data directory: whose it is, who uses it now, and how it is emptied. Only a directory that
//! carries our marker is ever touched, and only what quickstart itself makes is ever deleted, each
//! file by its name.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, IsTerminal, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::{ca_toml, tokens};
use crate::cli::Exit;
use crate::config::Config;
use crate::output;
use crate::store::ledger::Location;

/// Holds the directory's absolute path, and the lock of whoever works in it.
const MARKER: &str = ".quickstart";

/// The ledger of a new config.
const LEDGER: &str = "ledger.db";

/// What quickstart makes beside the marker, the config, the tokens, the demonstration's certificate
/// and the ledger's lock.
const MADE: [&str; 15] = [
    LEDGER,
    "ledger.db-wal",
    "ledger.db-shm",
    "demo.token",
    "jwks.json",
    "jwt-issuer.key",
    "issuing-chain.pem",
    "root-cert.pem",
    "ceremony.toml",
    "ceremony.jsonl",
    ".ceremony.lock",
    tokens::MAKING,
    "softhsm2.conf",
    "root.pin",
    "issuing.pin",
];

/// What it makes in `demo`.
const DEMO: [&str; 3] = ["key.pem", "cert-chain.pem", "root-cert.pem"];

/// A directory that is ours, locked against other processes for as long as this value lives.
pub(super) struct Directory {
    path: PathBuf,
    _lock: File,
    // The locks that a daemon holds on its ledger: nobody can begin to serve from here while they
    // are ours.
    ledgers: Vec<File>,
}

impl Directory {
    /// Makes the directory or recognises it, and takes its lock and its ledger's.
    pub(super) fn claim(path: &Path) -> Result<Self, Exit> {
        let failed =
            |error: &dyn std::fmt::Display| Exit::missing(format!("{}: {error}", path.display()));
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(path)
            .map_err(|error| failed(&error))?;
        // The one name that everything in it uses, however the directory was called this time.
        let path = &path.canonicalize().map_err(|error| failed(&error))?;
        let marker = path.join(MARKER);
        let holds_something = fs::read_dir(path)
            .map_err(|error| failed(&error))?
            .next()
            .is_some();
        if holds_something && !marker.exists() {
            return Err(Exit::missing(format!(
                "{} is not empty and was not made by quickstart, so it is left alone; name another directory with --dir",
                path.display()
            )));
        }
        let mut lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&marker)
            .map_err(|error| failed(&error))?;
        take(&lock, path, "another quickstart")?;
        let mut made_for = String::new();
        lock.read_to_string(&mut made_for)
            .map_err(|error| failed(&error))?;
        let is_here = |made_for: &str| {
            Path::new(made_for)
                .canonicalize()
                .is_ok_and(|made_for| made_for == *path)
        };
        if made_for.is_empty() {
            lock.write_all(format!("{}\n", path.display()).as_bytes())
                .and_then(|()| lock.sync_all())
                .map_err(|error| failed(&error))?;
        } else if !is_here(made_for.trim_end_matches('\n')) {
            let sentence = "was made as {} and moved; its files name the old place: move it back, or name another directory with --dir";
            return Err(Exit::missing(format!(
                "{} {}",
                path.display(),
                sentence.replace("{}", made_for.trim_end())
            )));
        }
        Ok(Self {
            path: path.clone(),
            _lock: lock,
            ledgers: lock_ledgers(path)?,
        })
    }

    /// Its absolute path, without symbolic links.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Lets go of the ledger, for the daemon that now starts in this process.
    pub(super) fn release_ledger(&mut self) {
        self.ledgers.clear();
    }

    /// Deletes what quickstart made, after asking at a terminal; elsewhere `yes` must have been
    /// said. A ledger that the operator's config names elsewhere is not ours. `demo` and `tokens`
    /// stay if they hold something else.
    pub(super) fn reset(&self, yes: bool) -> Result<(), Exit> {
        let there = self
            .made()
            .map_err(|error| Exit::missing(format!("{}: {error}", self.path.display())))?;
        if there.is_empty() {
            return Ok(());
        }
        if !yes && !self.asked()? {
            return Err(Exit::refused("nothing was deleted"));
        }
        // Last of all, and while it is held.
        let lock = lock_of(&self.path.join(LEDGER));
        for path in there.into_iter().chain(Some(lock)) {
            self.delete(&path)
                .map_err(|error| Exit::missing(format!("{}: {error}", path.display())))?;
        }
        Ok(())
    }

    /// What there is of ours, in the order of deletion. The config goes first, so that a reset that
    /// is cut short leaves a directory known as half made; then the tokens, so that the next run
    /// says that the keys are gone and what to do.
    fn made(&self) -> io::Result<Vec<PathBuf>> {
        let (tokens, demo) = (self.path.join("tokens"), self.path.join("demo"));
        let is_directory = |path: &Path| path.symlink_metadata().is_ok_and(|facts| facts.is_dir());
        let mut made = with_beside(self.path.join(ca_toml::FILE)).to_vec();
        if is_directory(&tokens) {
            made.extend(tokens::directories(&tokens)?);
            made.push(tokens);
        }
        made.extend(
            MADE.iter()
                .flat_map(|name| with_beside(self.path.join(name))),
        );
        if is_directory(&demo) {
            made.extend(DEMO.iter().flat_map(|name| with_beside(demo.join(name))));
            made.push(demo);
        }
        made.retain(|path| path.symlink_metadata().is_ok());
        Ok(made)
    }

    fn delete(&self, path: &Path) -> io::Result<()> {
        let removed = match path.symlink_metadata() {
            Ok(facts) if !facts.is_dir() => fs::remove_file(path),
            Ok(_) if path.parent() != Some(&self.path) => fs::remove_dir_all(path),
            Ok(_) => match fs::remove_dir(path) {
                Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => {
                    output::complain(format_args!(
                        "{} holds files that quickstart did not make; they are kept",
                        path.display()
                    ));
                    Ok(())
                }
                removed => removed,
            },
            Err(error) => Err(error),
        };
        removed.or_else(|error| {
            if error.kind() == ErrorKind::NotFound {
                Ok(())
            } else {
                Err(error)
            }
        })
    }

    fn asked(&self) -> Result<bool, Exit> {
        if !std::io::stdin().is_terminal() {
            return Err(Exit::config(
                "--reset deletes root, keys and ledger; where there is no terminal to ask at, say --yes too",
            ));
        }
        let question = format!(
            "Delete root, keys and ledger in {}? They cannot be brought back",
            self.path.display()
        );
        dialoguer::Confirm::new()
            .with_prompt(question)
            .default(false)
            .interact()
            .map_err(|error| Exit::missing(format!("the terminal does not answer: {error}")))
    }
}

/// A file, and what a run that was killed while it wrote it may have left beside it.
fn with_beside(path: PathBuf) -> [PathBuf; 2] {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".new");
    [path.with_file_name(name), path]
}

/// As the ledger itself names it.
fn lock_of(ledger: &Path) -> PathBuf {
    let mut name = ledger.as_os_str().to_owned();
    name.push(".lock");
    name.into()
}

/// The lock of the usual ledger, and of the one that the config names: a daemon may still run with
/// the former.
fn lock_ledgers(path: &Path) -> Result<Vec<File>, Exit> {
    let usual = path.join(LEDGER);
    // A config that is wrong is named when it is loaded; a reset must do without.
    let configured = match Config::ledger_of(&path.join(ca_toml::FILE)) {
        Ok(Location::Sqlite(ledger)) if ledger != usual => Some(ledger),
        _ => None,
    };
    let mut held = Vec::new();
    for lock in [Some(usual), configured]
        .into_iter()
        .flatten()
        .map(|ledger| lock_of(&ledger))
    {
        match OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock)
        {
            // By another name perhaps, and a lock that we hold ourselves is not to be had twice.
            Ok(file) if held.iter().any(|held| is_same(held, &file)) => {}
            Ok(file) => {
                take(&file, path, "a running daemon")?;
                held.push(file);
            }
            // Nobody serves from a directory that does not exist.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(Exit::missing(format!("{}: {error}", lock.display()))),
        }
    }
    Ok(held)
}

fn is_same(one: &File, other: &File) -> bool {
    let identity = |file: &File| file.metadata().map(|facts| (facts.dev(), facts.ino())).ok();
    identity(one).is_some() && identity(one) == identity(other)
}

fn take(lock: &File, path: &Path, by: &str) -> Result<(), Exit> {
    lock.try_lock().map_err(|error| match error {
        TryLockError::WouldBlock => Exit::missing(format!(
            "{} is in use by {by}; stop it, or name another directory with --dir",
            path.display()
        )),
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

    fn entries(path: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(path)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    const TOKEN: &str = "0b9ae5f2-6d6c-2f3e-8a61-3d0c1b7f9e44";

    #[test]
    fn a_reset_deletes_what_quickstart_made_and_nothing_else() {
        let parent = tempfile::tempdir().unwrap();
        let directory = Directory::claim(&parent.path().join("var")).unwrap();
        let path = directory.path().to_owned();
        fs::create_dir_all(path.join("tokens").join(TOKEN)).unwrap();
        fs::create_dir(path.join("demo")).unwrap();
        for name in MADE.into_iter().chain([
            ca_toml::FILE,
            ".ca.toml.new",
            ".jwt-issuer.key.new",
            "demo/key.pem",
            "demo/.key.pem.new",
        ]) {
            fs::write(path.join(name), "").unwrap();
        }
        fs::write(path.join("tokens").join(TOKEN).join("token.object"), "").unwrap();
        fs::write(path.join("notes.txt"), "mine").unwrap();
        assert_eq!(
            directory.reset(false).unwrap_err().code(),
            2,
            "the test has no terminal"
        );
        directory.reset(true).unwrap();
        assert_eq!(entries(&path), [MARKER, "notes.txt"]);
    }

    #[test]
    fn a_reset_keeps_what_others_put_into_demo_and_tokens() {
        let parent = tempfile::tempdir().unwrap();
        let directory = Directory::claim(&parent.path().join("var")).unwrap();
        let path = directory.path();
        fs::create_dir_all(path.join("tokens").join(TOKEN)).unwrap();
        fs::create_dir_all(path.join("demo")).unwrap();
        for name in ["demo/key.pem", "demo/notes.txt", "tokens/notes.txt"] {
            fs::write(path.join(name), "").unwrap();
        }
        directory.reset(true).unwrap();
        assert_eq!(
            (entries(&path.join("demo")), entries(&path.join("tokens"))),
            (vec!["notes.txt".into()], vec!["notes.txt".into()])
        );
    }

    #[test]
    fn a_reset_that_is_cut_short_has_taken_the_config_and_then_the_tokens() {
        let parent = tempfile::tempdir().unwrap();
        let directory = Directory::claim(&parent.path().join("var")).unwrap();
        let path = directory.path();
        fs::create_dir_all(path.join("tokens").join(TOKEN)).unwrap();
        for name in MADE.into_iter().chain([ca_toml::FILE]) {
            fs::write(path.join(name), "").unwrap();
        }
        let order = directory.made().unwrap();
        let first = [
            path.join(ca_toml::FILE),
            path.join("tokens").join(TOKEN),
            path.join("tokens"),
        ];
        assert_eq!(order[..3], first);
    }

    #[test]
    fn nobody_can_serve_from_a_directory_that_is_claimed() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("var");
        drop(Directory::claim(&path).unwrap());
        // The usual ledger, and another one that the config names.
        fs::write(
            path.join(ca_toml::FILE),
            "[ledger]\nurl = \"sqlite:other.db\"\n",
        )
        .unwrap();
        let locks = ["ledger.db.lock", "other.db.lock"].map(|name| path.join(name));
        for lock in &locks {
            let daemon = File::create(lock).unwrap();
            daemon.try_lock().unwrap();
            let exit = Directory::claim(&path).err().unwrap();
            assert!(exit.to_string().contains("running daemon"), "{exit}");
        }
        let mut directory = Directory::claim(&path).unwrap();
        let is_free = |lock: &PathBuf| File::open(lock).unwrap().try_lock().is_ok();
        assert!(!locks.iter().any(is_free));
        directory.release_ledger();
        assert!(locks.iter().all(is_free));
        fs::write(
            path.join(ca_toml::FILE),
            "[ledger]\nurl = \"sqlite:../var/ledger.db\"\n",
        )
        .unwrap();
        drop(directory);
        drop(Directory::claim(&path).unwrap());
    }

    #[test]
    fn a_directory_is_the_same_by_whatever_name() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("var");
        drop(Directory::claim(&path).unwrap());
        std::os::unix::fs::symlink(&path, parent.path().join("link")).unwrap();
        for other in ["var/", "var/.", "link", "link/../var//"] {
            let directory = Directory::claim(&parent.path().join(other)).unwrap();
            assert_eq!(directory.path(), path.canonicalize().unwrap(), "{other}");
        }
        // As an older version wrote it.
        fs::write(path.join(MARKER), format!("{}/\n", path.display())).unwrap();
        drop(Directory::claim(&path).unwrap());
    }

    #[test]
    fn one_process_at_a_time_works_in_a_directory() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("var");
        let first = Directory::claim(&path).unwrap();
        let exit = Directory::claim(&path).err().unwrap();
        assert!(
            exit.code() == 3 && exit.to_string().contains("another quickstart"),
            "{exit}"
        );
        drop(first);
        drop(Directory::claim(&path).unwrap());
    }

    #[test]
    fn a_moved_directory_is_recognised() {
        let parent = tempfile::tempdir().unwrap();
        drop(Directory::claim(&parent.path().join("var")).unwrap());
        fs::rename(parent.path().join("var"), parent.path().join("elsewhere")).unwrap();
        let exit = Directory::claim(&parent.path().join("elsewhere"))
            .err()
            .unwrap();
        assert!(
            exit.code() == 3 && exit.to_string().contains("moved"),
            "{exit}"
        );
    }
}
