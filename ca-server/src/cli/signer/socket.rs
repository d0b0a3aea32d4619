//! The socket of a signer that is a service of its own: made for its owner and group, in a
//! directory that nobody else writes to, in the place of one that nobody answers at any more, and
//! removed at the end.

use std::fs;
use std::io::{ErrorKind, Result as IoResult};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, flock};
use rustix::process::{geteuid, umask};

use crate::cli::Exit;

/// A socket that is ours as long as this lives.
#[derive(Debug)]
pub(super) struct Socket {
    path: PathBuf,
    /// Device and inode.
    identity: (u64, u64),
}

/// Where `unix:PATH` is.
pub(super) fn path(address: &str) -> Result<PathBuf, Exit> {
    match address.strip_prefix("unix:").map(PathBuf::from) {
        Some(path) if path.file_name().is_some() => Ok(std::path::absolute(&path).unwrap_or(path)),
        _ => Err(Exit::config(format_args!(
            "--listen {address:?} is no socket; write such as unix:/run/ca-server-signer/socket"
        ))),
    }
}

impl Socket {
    /// Listens at the path. Call while the process has one thread: for a moment its umask is
    /// another.
    pub(super) fn claim(path: PathBuf) -> Result<(Self, UnixListener), Exit> {
        let about = |error: &dyn std::fmt::Display| {
            Exit::missing(format_args!("cannot listen at {}: {error}", path.display()))
        };
        let directory = path.parent().unwrap_or(Path::new("/"));
        belongs_to_us_alone(directory)?;
        // Two that start at once do not take each other's socket for a stale one.
        let handle = fs::File::open(directory).map_err(|error| about(&error))?;
        flock(&handle, FlockOperation::LockExclusive).map_err(|error| about(&error))?;
        remove_stale(&path)?;
        let before = umask(Mode::from_raw_mode(0o117));
        let bound = UnixListener::bind(&path);
        umask(before);
        let listener = bound.map_err(|error| match error.kind() {
            ErrorKind::InvalidInput => Exit::config(format_args!(
                "{}: {error}; a socket's path has at most 107 bytes",
                path.display()
            )),
            _ => about(&error),
        })?;
        let identity = identity(&path).map_err(|error| about(&error))?;
        Ok((Self { path, identity }, listener))
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // Somebody may have put another there by hand.
        if identity(&self.path).is_ok_and(|now| now == self.identity)
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!(%error, socket = %self.path.display(), "the socket could not be removed");
        }
    }
}

fn identity(path: &Path) -> IoResult<(u64, u64)> {
    fs::symlink_metadata(path).map(|found| (found.dev(), found.ino()))
}

/// Whoever can write to the directory can put a socket of his own in the place of ours.
fn belongs_to_us_alone(directory: &Path) -> Result<(), Exit> {
    let found = fs::metadata(directory).map_err(|error| {
        Exit::missing(format_args!(
            "{0}: {error}; make it with: install -d -m 0750 {0}",
            directory.display()
        ))
    })?;
    if ![0, geteuid().as_raw()].contains(&found.uid()) || found.mode() & 0o022 != 0 {
        return Err(Exit::config(format_args!(
            "others than its owner can write to {} (mode {:04o}), and could put another socket there; take one of your own, of mode 0750",
            directory.display(),
            found.mode() & 0o7777
        )));
    }
    Ok(())
}

fn remove_stale(path: &Path) -> Result<(), Exit> {
    let about = |why: &dyn std::fmt::Display| {
        Exit::missing(format_args!("cannot listen at {}: {why}", path.display()))
    };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(about(&error)),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(about(
                &"something is there that is no socket; take another path",
            ));
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(about(
            &"somebody answers there already; stop it, or take another path",
        )),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(|error| about(&error))
        }
        Err(error) => Err(about(&format_args!(
            "it is not known whether somebody answers there: {error}"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn directory(mode: u32) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(mode)).unwrap();
        directory
    }

    fn refusal(path: PathBuf) -> String {
        Socket::claim(path).unwrap_err().to_string()
    }

    #[test]
    fn a_path_needs_its_scheme() {
        assert_eq!(
            path("unix:/run/a/socket").unwrap(),
            Path::new("/run/a/socket")
        );
        for bad in ["/run/a/socket", "unix:", "tcp:127.0.0.1:1", "unix:/", ""] {
            assert_eq!(path(bad).unwrap_err().code(), 2, "{bad}");
        }
    }

    #[test]
    fn a_socket_is_for_its_owner_and_group_and_goes_with_its_owner() {
        let directory = directory(0o750);
        let path = directory.path().join("socket");
        let (socket, listener) = Socket::claim(path.clone()).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o660);
        assert!(refusal(path.clone()).contains("somebody answers there already"));
        drop(listener);
        // What a process that was killed leaves behind is replaced; what somebody put in its place
        // by hand stays.
        fs::rename(&path, directory.path().join("moved")).unwrap();
        let (newer, newer_listener) = Socket::claim(path.clone()).unwrap();
        drop(socket);
        assert!(path.exists(), "another's socket");
        drop(newer_listener);
        std::mem::forget(newer);
        let (newer, _listener) = Socket::claim(path.clone()).unwrap();
        drop(newer);
        assert!(!path.exists());
    }

    #[test]
    fn what_is_no_socket_and_directories_of_others_are_left_alone() {
        let ours = directory(0o700);
        let path = ours.path().join("file");
        fs::write(&path, "content").unwrap();
        assert!(refusal(path.clone()).contains("no socket"));
        assert_eq!(fs::read(&path).unwrap(), b"content");
        for mode in [0o777, 0o1777, 0o770, 0o702] {
            let directory = directory(mode);
            assert!(
                refusal(directory.path().join("socket")).contains("could put another socket there"),
                "{mode:o}"
            );
        }
        assert_eq!(
            Socket::claim(ours.path().join("none/socket"))
                .unwrap_err()
                .code(),
            3
        );
        assert_eq!(
            Socket::claim(ours.path().join("a".repeat(200)))
                .unwrap_err()
                .code(),
            2
        );
    }
}
