//! One process writes a ledger: whoever holds the flock on `<database>.lock` knows that its former
//! holder can commit nothing more. A lock file of its own, because SQLite's exclusive locking mode
//! would shut out `audit`.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Symbolic links that are followed from a database's path, as the kernel does.
const LINKS: usize = 40;

/// What stands against a chain that wants to go on writing on a new connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lock {
    /// It is held, by this connection: its former holder can commit nothing more.
    Held,
    /// A former connection of this process still holds it; it was told to end.
    OwnFormer,
    /// Somebody else has it: this process was taken for dead.
    Lost,
}

/// The lock, held until dropped or until the process ends in whatever way.
#[derive(Debug)]
pub(super) struct WriterLock {
    file: File,
    path: PathBuf,
}

impl WriterLock {
    /// Takes the lock of a resolved path; `None` if another process has it.
    pub(super) fn take(database: &Path) -> io::Result<Option<Self>> {
        let path = path(database);
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Self { file, path })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// Whether it still keeps others out: a lock file that was removed or replaced does not, since
    /// others lock what they find.
    pub(super) fn holds(&self) -> bool {
        let (Ok(held), Ok(found)) = (self.file.metadata(), std::fs::metadata(&self.path)) else {
            return false;
        };
        (held.dev(), held.ino()) == (found.dev(), found.ino())
    }
}

/// Who writes a ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writer {
    /// Nobody holds the lock.
    Nobody,
    /// A process does; which one, where the system tells.
    Process(Option<u32>),
}

/// Who holds the lock of a resolved path. The system's list of locks is asked first, because trying
/// the lock could meet a daemon that is about to take it; but that list leaves out other
/// containers.
pub(super) fn writer(database: &Path) -> io::Result<Writer> {
    let file = match File::open(path(database)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Writer::Nobody),
        opened => opened?,
    };
    if let Some(process) = std::fs::read_to_string("/proc/locks")
        .ok()
        .and_then(|list| holder(&list, file.metadata().ok()?.ino()))
    {
        return Ok(Writer::Process(Some(process)));
    }
    match file.try_lock_shared() {
        Ok(()) => Ok(Writer::Nobody),
        Err(TryLockError::WouldBlock) => Ok(Writer::Process(None)),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// The process that has a flock for writing on this inode, by `/proc/locks`: `1: FLOCK  ADVISORY
/// WRITE 4711 fe:01:131 0 EOF`. The device is not compared: some file systems show another one
/// there.
fn holder(list: &str, inode: u64) -> Option<u32> {
    list.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, "FLOCK", _, "WRITE", process, place, ..] = words[..] else {
            return None;
        };
        let same = place.rsplit(':').next()?.parse() == Ok(inode);
        process.parse().ok().filter(|process| same && *process > 0)
    })
}

fn path(database: &Path) -> PathBuf {
    beside(database, ".lock")
}

/// A file that lies beside a database, by what its name has more than the database's.
pub(super) fn beside(database: &Path, suffix: &str) -> PathBuf {
    let mut name = database.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// The one spelling of a database's path, so that no second spelling has a lock of its own: its
/// directory without links, and no link itself. The file need not exist.
pub(super) fn resolve(database: &Path) -> io::Result<PathBuf> {
    let mut path = database.to_owned();
    for _ in 0..LINKS {
        let name = path.file_name().ok_or(io::ErrorKind::InvalidFilename)?;
        let directory = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.canonicalize()?,
            _ => Path::new(".").canonicalize()?,
        };
        let spelled = directory.join(name);
        match spelled.read_link() {
            Ok(target) => path = directory.join(target),
            Err(_) => return Ok(spelled),
        }
    }
    Err(io::Error::other("too many symbolic links"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_writer_is_told_by_its_process() {
        let directory = tempfile::tempdir().unwrap();
        let database = resolve(&directory.path().join("ledger.db")).unwrap();
        assert_eq!(writer(&database).unwrap(), Writer::Nobody);
        let lock = WriterLock::take(&database).unwrap().unwrap();
        let Writer::Process(told) = writer(&database).unwrap() else {
            panic!("the lock is held")
        };
        assert!(
            told.is_none_or(|process| process == std::process::id()),
            "{told:?}"
        );
        drop(lock);
        assert_eq!(writer(&database).unwrap(), Writer::Nobody);
    }

    #[test]
    fn the_systems_list_of_locks_is_understood() {
        let list = "1: POSIX  ADVISORY  WRITE 11 fe:01:7 0 EOF\n2: FLOCK  ADVISORY  WRITE 12 fe:01:8 0 EOF\n3: FLOCK  ADVISORY  WRITE 0 fe:01:9 0 EOF\n";
        assert_eq!(
            (holder(list, 7), holder(list, 8), holder(list, 9)),
            (None, Some(12), None)
        );
    }
}
