//! The files of a fault directory, from both sides: rules as the module reads them, and `Control` for the tests that write them.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// A test's hand on a fault directory.
#[derive(Clone, Debug)]
pub struct Control {
    directory: PathBuf,
}

impl Control {
    /// Of an existing directory, the one in `PKCS11_FAULT_DIR` of the process under test.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into() }
    }

    /// Replaces all rules; see the crate's page for their form.
    pub fn set(&self, rules: &str) -> io::Result<()> {
        let new = self.directory.join("control.new");
        fs::write(&new, rules)?;
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

    /// C_Login calls.
    pub fn logins(&self) -> u64 {
        self.count("logins")
    }

    /// What C_Sign was given, call by call, as lower-case hex: for ECDSA the digest of the to-be-signed bytes.
    pub fn signature_inputs(&self) -> Vec<String> {
        self.lines("signatures").lines().map(str::to_owned).collect()
    }

    fn count(&self, counter: &str) -> u64 {
        self.lines(counter).lines().count() as u64
    }

    fn lines(&self, counter: &str) -> String {
        // Before the first event there is no file.
        fs::read_to_string(self.directory.join(counter)).unwrap_or_default()
    }
}

/// The module's file, where cargo puts it for a test that depends on this package: beside the test's executable or one directory above.
pub fn library() -> io::Result<PathBuf> {
    let executable = std::env::current_exe()?;
    let places = executable.ancestors().skip(1).take(2).flat_map(|dir| [dir.to_owned(), dir.join("deps")]);
    let mut found: Vec<PathBuf> = places.map(|dir| dir.join("libpkcs11_fault.so")).filter(|path| path.is_file()).collect();
    // An old one may lie about from another kind of build: the newest is ours.
    found.sort_by_key(|path| fs::metadata(path).and_then(|m| m.modified()).ok());
    found.pop().ok_or_else(|| {
        io::Error::new(io::ErrorKind::NotFound, "libpkcs11_fault.so is not beside the test: depend on the package pkcs11-fault")
    })
}

/// What a rule does to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Return(u64),
    ReturnLate(u64),
    Sleep(Duration),
    Logout,
    CloseSessions,
    Corrupt,
    Flags(u64),
    Sessions(u64),
}

#[derive(Debug, PartialEq, Eq)]
struct Rule {
    function: String,
    action: Action,
    left: Option<u64>,
}

/// The rules as last read.
pub(crate) struct Rules {
    path: PathBuf,
    read: Mutex<Read>,
}

#[derive(Default)]
struct Read {
    version: Option<(u64, i64, i64, u64)>,
    rules: Vec<Rule>,
    unreadable: bool,
}

/// CKR_ARGUMENTS_BAD.
const UNREADABLE: u64 = 7;

impl Rules {
    pub(crate) fn new(directory: &Path) -> Self {
        Self { path: directory.join("control"), read: Mutex::default() }
    }

    /// What is to be done to a call of `function`; uses up one of a rule's counts. One stat(2) while the file is unchanged.
    pub(crate) fn take(&self, function: &str) -> Option<Action> {
        let version = fs::metadata(&self.path).ok().as_ref().map(version);
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if read.version != version {
            let parsed = parse(&fs::read_to_string(&self.path).unwrap_or_default());
            *read = Read { version, unreadable: parsed.is_none(), rules: parsed.unwrap_or_default() };
        }
        if read.unreadable {
            return Some(Action::Return(UNREADABLE));
        }
        let rule = read.rules.iter_mut().find(|rule| rule.function == function && rule.left != Some(0))?;
        rule.left = rule.left.map(|left| left - 1);
        Some(rule.action)
    }
}

fn version(file: &Metadata) -> (u64, i64, i64, u64) {
    (file.ino(), file.mtime(), file.mtime_nsec(), file.len())
}

fn parse(text: &str) -> Option<Vec<Rule>> {
    text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')).map(parse_rule).collect()
}

fn parse_rule(line: &str) -> Option<Rule> {
    let mut words = line.split_whitespace();
    let function = words.next()?.to_owned();
    let action = match words.next()? {
        "rv" => Action::Return(number(words.next()?)?),
        "late_rv" => Action::ReturnLate(number(words.next()?)?),
        "sleep_ms" => Action::Sleep(Duration::from_millis(number(words.next()?)?)),
        "logout" => Action::Logout,
        "close_sessions" => Action::CloseSessions,
        "corrupt" if function == "C_Sign" => Action::Corrupt,
        "flags" if function == "C_GetTokenInfo" => Action::Flags(number(words.next()?)?),
        "sessions" if function == "C_GetTokenInfo" => Action::Sessions(number(words.next()?)?),
        _ => return None,
    };
    let left = match words.next() {
        None => None,
        Some("count") => Some(number(words.next()?)?),
        Some(_) => return None,
    };
    words.next().is_none().then_some(Rule { function, action, left })
}

fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

/// A file with a line an event.
pub(crate) struct Counter(File);

impl Counter {
    pub(crate) fn open(directory: &Path, name: &str) -> io::Result<Self> {
        OpenOptions::new().append(true).create(true).open(directory.join(name)).map(Self)
    }

    /// One line, by one write: the hex of `what`, which may be empty.
    pub(crate) fn add(&self, what: &[u8]) -> io::Result<()> {
        let mut line: String = what.iter().map(|byte| format!("{byte:02x}")).collect();
        line.push('\n');
        (&self.0).write_all(line.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_read_and_typing_errors_noticed() {
        let rules = parse("# none\n\nC_Sign rv 0x32 count 1\nC_Sign sleep_ms 3000\n C_Login logout count 2 ").unwrap();
        assert_eq!(rules[0], Rule { function: "C_Sign".into(), action: Action::Return(0x32), left: Some(1) });
        assert_eq!(rules[1], Rule { function: "C_Sign".into(), action: Action::Sleep(Duration::from_secs(3)), left: None });
        assert_eq!(rules[2], Rule { function: "C_Login".into(), action: Action::Logout, left: Some(2) });
        for bad in [
            "C_Sign",
            "C_Sign rv",
            "C_Sign rv x",
            "C_Sign vr 1",
            "C_Sign rv 1 count",
            "C_Sign rv 1 2",
            "C_Sign logout count 1 1",
            "C_Login corrupt",
            "C_Sign flags 1",
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_counted_rule_is_used_up_until_the_file_changes() {
        let directory = std::env::temp_dir().join(format!("pkcs11-fault-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let (control, rules) = (Control::new(&directory), Rules::new(&directory));
        assert_eq!(rules.take("C_Sign"), None);
        control.set("C_Sign rv 5 count 1\nC_Sign rv 6 count 1").unwrap();
        assert_eq!(rules.take("C_Login"), None);
        assert_eq!(rules.take("C_Sign"), Some(Action::Return(5)));
        assert_eq!(rules.take("C_Sign"), Some(Action::Return(6)));
        assert_eq!(rules.take("C_Sign"), None);
        control.set("C_Sign rv 5 count 1").unwrap();
        assert_eq!(rules.take("C_Sign"), Some(Action::Return(5)));
        control.set("nonsense").unwrap();
        assert_eq!(rules.take("C_Login"), Some(Action::Return(UNREADABLE)));
        control.clear().unwrap();
        assert_eq!(rules.take("C_Login"), None);
        fs::remove_dir_all(&directory).unwrap();
    }
}
