//! One process writes a ledger: whoever holds the flock on `<database>.lock` knows that its former holder can commit nothing more.
//! A lock file of its own, because SQLite's exclusive locking mode would shut out `audit`.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
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
    _file: File,
}

impl WriterLock {
    /// Takes the lock of a resolved path; `None` if another process has it.
    pub(super) fn take(database: &Path) -> io::Result<Option<Self>> {
        let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path(database))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Self { _file: file })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }
}

fn path(database: &Path) -> PathBuf {
    let mut name = database.as_os_str().to_owned();
    name.push(".lock");
    name.into()
}

/// The one spelling of a database's path, so that no second spelling has a lock of its own: its directory without links, and no link
/// itself. The file need not exist.
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
