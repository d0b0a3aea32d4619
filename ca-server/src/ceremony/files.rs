//! Files that are either absent or whole, and never overwritten: written under another name,
//! synced, then linked into place.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Readable by everyone: certificates.
pub(crate) const PUBLIC: u32 = 0o644;
/// Readable by its owner alone: PINs, private keys, tokens.
pub(crate) const PRIVATE: u32 = 0o600;

/// Creates `path` with these bytes, durably. Fails with `AlreadyExists`, and changes nothing, if
/// something is there.
pub(crate) fn create(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let beside = write_beside(path, bytes, mode)?;
    let linked = fs::hard_link(&beside, path);
    fs::remove_file(&beside)?;
    linked?;
    sync_directory(path)
}

/// Puts these bytes in the place of `path`, durably; a reader sees the old file or the new one.
/// Only for what may be made again.
pub(crate) fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let beside = write_beside(path, bytes, mode)?;
    fs::rename(&beside, path)?;
    sync_directory(path)
}

/// Makes an entry of a directory durable.
pub(crate) fn sync_directory(path: &Path) -> io::Result<()> {
    let parent = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    File::open(parent)?.sync_all()
}

fn write_beside(path: &Path, bytes: &[u8], mode: u32) -> io::Result<PathBuf> {
    let name = path
        .file_name()
        .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    let beside = path.with_file_name(format!(".{}.new", name.to_string_lossy()));
    // One that a killed run left behind; callers hold their directory's lock.
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&beside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    Ok(beside)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn nothing_is_ever_overwritten() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("root-cert.pem");
        create(&path, b"first", PUBLIC).unwrap();
        assert_eq!(
            create(&path, b"second", PUBLIC).unwrap_err().kind(),
            io::ErrorKind::AlreadyExists
        );
        assert_eq!(fs::read(&path).unwrap(), b"first");
        assert_eq!(
            fs::read_dir(directory.path()).unwrap().count(),
            1,
            "nothing is left beside it"
        );
    }

    #[test]
    fn a_private_file_is_never_readable_by_others_and_a_killed_runs_remains_do_not_stop_the_next() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("root.pin");
        fs::write(directory.path().join(".root.pin.new"), b"torn").unwrap();
        create(&path, b"1234", PRIVATE).unwrap();
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        replace(&path, b"5678", PRIVATE).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"5678");
    }
}
