//! Files that hold a secret: PINs and PEM keys. A secret that others can read is refused before it
//! is read, and what was read is zeroised. A file of root's may be read by a group of this process:
//! so a Kubernetes Secret arrives in a pod with `fsGroup`. Errors name the file and the remedy,
//! never a byte of its content.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use secrecy::SecretString;
use zeroize::Zeroizing;

use crate::SignError;

/// Far above any PIN or PEM key; keeps a mistaken path from filling memory.
const LARGEST: u64 = 64 * 1024;

/// One sentence with the file and the remedy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SecretFileError(String);

impl From<SecretFileError> for SignError {
    fn from(error: SecretFileError) -> Self {
        SignError::Rejected(error.0)
    }
}

/// Reads a PIN: UTF-8, one newline at its end is dropped. The file must be a regular one that
/// nobody else can touch; of root's, a group of this process may read it.
pub fn read_pin(path: &Path) -> Result<SecretString, SecretFileError> {
    read_line(path, "PIN")
}

/// Reads a password, by the rules of a PIN.
pub fn read_password(path: &Path) -> Result<SecretString, SecretFileError> {
    read_line(path, "password")
}

/// What `read_pin` would say, without keeping the PIN; or `read_password`, where `what` is
/// "password".
pub fn check_secret_file(path: &Path, what: &str) -> Result<(), SecretFileError> {
    read_line(path, what).map(drop)
}

/// `what` is what the file should hold.
fn read_line(path: &Path, what: &str) -> Result<SecretString, SecretFileError> {
    let bytes = read(path, &format!("{what} file"))?;
    let line = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let fail = |text: String| {
        Err(SecretFileError(format!(
            "{what} file {}: {text}",
            path.display()
        )))
    };
    match std::str::from_utf8(line) {
        Ok("") => fail(format!("is empty; write the {what} into it")),
        // It would be part of what is tried, and a wrong PIN costs one of few tries.
        Ok(line) if line.starts_with('\u{feff}') => fail(format!(
            "begins with a byte order mark; write only the {what} into it"
        )),
        Ok(line) if line.contains('\0') => {
            fail(format!("holds a NUL byte; write only the {what} into it"))
        }
        Ok(line) => Ok(SecretString::from(line)),
        Err(_) => fail(format!("is not UTF-8; write only the {what} into it")),
    }
}

/// The whole content; `what` begins the sentence of an error.
pub(crate) fn read(path: &Path, what: &str) -> Result<Zeroizing<Vec<u8>>, SecretFileError> {
    let fail = |text: String| SecretFileError(format!("{what} {}: {text}", path.display()));
    // Asked by path first, because opening a FIFO would block.
    let seen = fs::metadata(path).map_err(|e| fail(format!("cannot be read: {e}")))?;
    if !seen.is_file() {
        return Err(fail("is not a regular file".into()));
    }
    let mut file = File::open(path).map_err(|e| fail(format!("cannot be read: {e}")))?;
    let opened = file
        .metadata()
        .map_err(|e| fail(format!("cannot be read: {e}")))?;
    if !opened.is_file() {
        return Err(fail("is not a regular file".into()));
    }
    if !is_private(opened.uid(), opened.gid(), opened.mode(), own_groups) {
        let mode = opened.mode() & 0o7777;
        return Err(fail(format!(
            "others can read it (mode {mode:04o}); run: chmod 600 {} (in a Kubernetes pod set fsGroup, and defaultMode 0400)",
            path.display()
        )));
    }
    if opened.len() > LARGEST {
        return Err(fail(format!("is larger than {LARGEST} bytes")));
    }
    // Room for one byte more than may be there: the buffer never moves, so no copy stays behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(LARGEST as usize + 1));
    file.by_ref()
        .take(LARGEST)
        .read_to_end(&mut bytes)
        .map_err(|e| fail(format!("cannot be read: {e}")))?;
    Ok(bytes)
}

/// Whether only its owner can touch it, or it is root's and beside root only a group of this
/// process may read it.
fn is_private(owner: u32, group: u32, mode: u32, own_groups: impl FnOnce() -> Vec<u32>) -> bool {
    mode & 0o077 == 0 || (owner == 0 && mode & 0o037 == 0 && own_groups().contains(&group))
}

/// The effective group of this process and its supplementary ones.
fn own_groups() -> Vec<u32> {
    let mut groups: Vec<u32> = rustix::process::getgroups()
        .unwrap_or_default()
        .into_iter()
        .map(|group| group.as_raw())
        .collect();
    groups.push(rustix::process::getegid().as_raw());
    groups
}

#[cfg(test)]
mod tests {
    use super::*;
    use secrecy::ExposeSecret;
    use std::os::unix::fs::PermissionsExt;

    fn pin_file(content: &[u8], mode: u32) -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pin");
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        (dir, path)
    }

    #[test]
    fn one_newline_at_the_end_is_not_part_of_the_pin() {
        for (content, pin) in [
            ("1234", "1234"),
            ("1234\n", "1234"),
            ("1234\r\n", "1234"),
            (" 12 34 \n", " 12 34 "),
            ("1234\n\n", "1234\n"),
        ] {
            let (_dir, path) = pin_file(content.as_bytes(), 0o600);
            assert_eq!(read_pin(&path).unwrap().expose_secret(), pin);
            check_secret_file(&path, "PIN").unwrap();
        }
    }

    #[test]
    fn a_pin_that_others_can_read_is_refused_with_the_remedy() {
        for mode in [0o604, 0o660, 0o610, 0o650, 0o777] {
            let (_dir, path) = pin_file(b"canary", mode);
            let error = read_pin(&path).unwrap_err().to_string();
            assert!(
                error.contains(&format!("chmod 600 {}", path.display())),
                "{error}"
            );
            assert!(!error.contains("canary"));
        }
    }

    #[test]
    fn a_group_of_this_process_may_read_a_file_of_roots_and_nobody_else_may() {
        const ROOT: u32 = 0;
        const OWN: u32 = 2000;
        for (owner, group, mode, private) in [
            (ROOT, OWN, 0o440, true),
            (ROOT, OWN, 0o640, true),
            (ROOT, OWN, 0o400, true),
            (1000, OWN, 0o600, true),
            (1000, OWN, 0o440, false),
            (ROOT, 3000, 0o440, false),
            (ROOT, OWN, 0o444, false),
            (ROOT, OWN, 0o460, false),
            (ROOT, OWN, 0o450, false),
            (ROOT, 3000, 0o644, false),
        ] {
            assert_eq!(
                is_private(owner, group, mode, || vec![100, OWN]),
                private,
                "{owner} {group} {mode:04o}"
            );
        }
        // The real groups of this process, over a real file: only root can make one that is root's.
        let (_dir, path) = pin_file(b"1234", 0o440);
        let by_root = rustix::process::geteuid().is_root();
        assert_eq!(read_pin(&path).is_ok(), by_root);
        if by_root {
            std::os::unix::fs::chown(&path, None, Some(54_321)).unwrap();
            assert!(read_pin(&path).unwrap_err().to_string().contains("fsGroup"));
        }
    }

    #[test]
    fn what_is_no_pin_is_refused() {
        for content in [
            &b""[..],
            b"\n",
            b"\xef\xbb\xbf1234",
            b"\xff\xfe",
            b"12\x0034",
            &[b'1'; 70_000],
        ] {
            let (_dir, path) = pin_file(content, 0o600);
            let error = read_pin(&path).unwrap_err().to_string();
            assert!(
                error.contains("PIN file") && error.contains("pin"),
                "{error}"
            );
        }
        let dir = tempfile::tempdir().unwrap();
        assert!(
            read_pin(dir.path())
                .unwrap_err()
                .to_string()
                .contains("regular file")
        );
        assert!(
            read_pin(&dir.path().join("none"))
                .unwrap_err()
                .to_string()
                .contains("cannot be read")
        );
    }
}
