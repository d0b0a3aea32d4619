//! A test's hand on a fault directory: it writes the rules and reads the counters.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::SystemTime;

/// A test's hand on a fault directory.
#[derive(Clone, Debug)]
pub struct Control {
    directory: PathBuf,
}

impl Control {
    /// Of an existing directory, the one in `PKCS11_FAULT_DIR` of the process under test.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
        }
    }

    /// Replaces all rules; see the crate's page for their form.
    #[allow(
        clippy::disallowed_methods,
        reason = "decides nothing: it tells two versions of a file apart"
    )]
    pub fn set(&self, rules: &str) -> io::Result<()> {
        let new = self.directory.join("control.new");
        let mut file = File::create(&new)?;
        file.write_all(rules.as_bytes())?;
        // The kernel's own stamps are milliseconds apart, and inodes come back.
        file.set_modified(SystemTime::now())?;
        fs::rename(new, self.directory.join("control"))
    }

    /// Ends all rules.
    pub fn clear(&self) -> io::Result<()> {
        self.set("")
    }

    /// C_Sign calls that were about to reach the real module.
    pub fn signatures(&self) -> u64 {
        self.count("signatures")
    }

    /// C_Sign calls that the real module answered with a signature.
    pub fn signed(&self) -> u64 {
        self.count("signed")
    }

    /// C_Sign calls that only asked how long the signature would be.
    pub fn lengths(&self) -> u64 {
        self.count("lengths")
    }

    /// C_Login calls: each may be a try of the PIN.
    pub fn logins(&self) -> u64 {
        self.count("logins")
    }

    /// Calls of a function, by its name in the standard, ruled or not.
    pub fn calls(&self, function: &str) -> u64 {
        self.octets("calls", function)
    }

    /// Those of them that a rule applied to: whether a fault was met at all, and how often.
    pub fn met(&self, function: &str) -> u64 {
        self.octets("met", function)
    }

    /// What C_Sign was given, call by call, as lower-case hex: for ECDSA the digest of the
    /// to-be-signed bytes.
    pub fn signature_inputs(&self) -> Vec<String> {
        self.lines("signatures")
            .lines()
            .map(str::to_owned)
            .collect()
    }

    /// From now on each process that initialises the module tries what a sandbox should refuse.
    pub fn attempt(&self) -> io::Result<()> {
        File::create(self.directory.join("attempt")).map(drop)
    }

    /// How the last attempts ended: an errno each, 0 for success; `dumpable` and `core` are values.
    /// Forgets them.
    pub fn take_attempts(&self) -> BTreeMap<String, i64> {
        let text = self.lines("attempts");
        // Not there is fine.
        let _ = fs::remove_file(self.directory.join("attempts"));
        let line = |line: &str| {
            line.split_once(' ')
                .and_then(|(name, errno)| Some((name.to_owned(), errno.parse().ok()?)))
        };
        text.lines().filter_map(line).collect()
    }

    fn count(&self, counter: &str) -> u64 {
        self.lines(counter).lines().count() as u64
    }

    fn lines(&self, counter: &str) -> String {
        // Before the first event there is no file.
        fs::read_to_string(self.directory.join(counter)).unwrap_or_default()
    }

    /// These counters hold a single octet an event, so that a test may ask often.
    fn octets(&self, kind: &str, function: &str) -> u64 {
        fs::metadata(self.directory.join(kind).join(function)).map_or(0, |file| file.len())
    }
}

/// The module's file, where cargo puts it for a test that depends on this package: beside the
/// test's executable or one directory above.
pub fn library() -> io::Result<PathBuf> {
    let executable = std::env::current_exe()?;
    let places = executable
        .ancestors()
        .skip(1)
        .take(2)
        .flat_map(|dir| [dir.to_owned(), dir.join("deps")]);
    let mut found: Vec<PathBuf> = places
        .map(|dir| dir.join("libpkcs11_fault.so"))
        .filter(|path| path.is_file())
        .collect();
    // An old one may lie about from another kind of build: the newest is ours.
    found.sort_by_key(|path| fs::metadata(path).and_then(|m| m.modified()).ok());
    found.pop().ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::NotFound,
            "libpkcs11_fault.so is not beside the test: depend on the package pkcs11-fault",
        )
    })
}
