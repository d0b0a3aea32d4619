//! The file `control` as the module reads it: which call meets which action. What an action does is
//! not known here.

use std::collections::BTreeMap;
use std::fs::{self, Metadata, OpenOptions};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// What a rule can be for.
pub(crate) const FUNCTIONS: [&str; 18] = [
    "C_Initialize",
    "C_Finalize",
    "C_GetSlotList",
    "C_GetSlotInfo",
    "C_GetTokenInfo",
    "C_GetMechanismList",
    "C_GetMechanismInfo",
    "C_OpenSession",
    "C_CloseSession",
    "C_CloseAllSessions",
    "C_GetSessionInfo",
    "C_Login",
    "C_FindObjectsInit",
    "C_FindObjects",
    "C_GetAttributeValue",
    "C_GenerateKeyPair",
    "C_SignInit",
    "C_Sign",
];

/// In the place of a function: every one of them.
const TOKEN: &str = "token";

/// What a rule does to a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Return(u64),
    ReturnLate(u64),
    Sleep(Duration),
    Hang,
    Abort,
    Segfault,
    Print,
    Logout,
    CloseSessions,
    Forget,
    Stale(u64),
    Mute { code: u64, for_good: bool },
    SwapHandles(Vec<u8>),
    Removed,
    NoSlots,
    Limit(u64),
    Corrupt,
    Short(u64),
    Flags(u64),
    Sessions(u64),
    Clock,
    Refuses(u64),
}

/// To which calls it does it, counted from when the file was last changed.
#[derive(Debug, PartialEq, Eq)]
enum When {
    Always,
    /// So many are left.
    Next(u64),
    /// This one alone, the first being 1.
    At(u64),
    /// The first of any process.
    Once,
}

#[derive(Debug, PartialEq, Eq)]
struct Rule {
    function: String,
    action: Action,
    when: When,
}

/// The rules as last read.
pub(crate) struct Rules {
    directory: PathBuf,
    read: Mutex<Read>,
}

type Version = (u64, i64, i64, u64);

#[derive(Default)]
struct Read {
    version: Option<Version>,
    rules: Vec<Rule>,
    unreadable: bool,
    calls: BTreeMap<&'static str, u64>,
}

/// CKR_ARGUMENTS_BAD.
const UNREADABLE: u64 = 7;

impl Rules {
    pub(crate) fn new(directory: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
            read: Mutex::default(),
        }
    }

    /// What is to be done to a call of `function`; uses up one of a rule's counts. One stat(2)
    /// while the file is unchanged.
    pub(crate) fn take(&self, function: &'static str) -> Option<Action> {
        let path = self.directory.join("control");
        let version = fs::metadata(&path).ok().as_ref().map(version);
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if read.version != version {
            let parsed = parse(&fs::read_to_string(&path).unwrap_or_default());
            *read = Read {
                version,
                unreadable: parsed.is_none(),
                rules: parsed.unwrap_or_default(),
                calls: BTreeMap::new(),
            };
        }
        if read.unreadable {
            return Some(Action::Return(UNREADABLE));
        }
        let Read { rules, calls, .. } = &mut *read;
        let call = calls.entry(function).or_default();
        *call += 1;
        for (line, rule) in rules.iter_mut().enumerate() {
            if rule.function != function && rule.function != TOKEN {
                continue;
            }
            let applies = match &mut rule.when {
                When::Always => true,
                When::Next(0) => false,
                When::Next(left) => {
                    *left -= 1;
                    true
                }
                When::At(nth) => nth == call,
                When::Once => self.first_of_all_processes(line, version),
            };
            if applies {
                return Some(rule.action.clone());
            }
        }
        None
    }

    /// Whoever makes the mark was first. The file's version is in its name: an inode alone may come
    /// back.
    fn first_of_all_processes(&self, line: usize, version: Option<Version>) -> bool {
        let (inode, seconds, nanoseconds, _) = version.unwrap_or_default();
        let mark = self
            .directory
            .join(format!("once-{inode}-{seconds}.{nanoseconds:09}-{line}"));
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(mark)
            .is_ok()
    }
}

fn version(file: &Metadata) -> Version {
    (file.ino(), file.mtime(), file.mtime_nsec(), file.len())
}

fn parse(text: &str) -> Option<Vec<Rule>> {
    text.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(parse_rule)
        .collect()
}

fn parse_rule(line: &str) -> Option<Rule> {
    let mut words = line.split_whitespace();
    let function = words.next()?;
    if function != TOKEN && !FUNCTIONS.contains(&function) {
        return None;
    }
    let action = match (function, words.next()?) {
        (TOKEN, "removed") => Action::Removed,
        (TOKEN, _) => return None,
        (_, "rv") => Action::Return(number(words.next()?)?),
        (_, "late_rv") => Action::ReturnLate(number(words.next()?)?),
        (_, "sleep_ms") => Action::Sleep(Duration::from_millis(number(words.next()?)?)),
        (_, "hang") => Action::Hang,
        (_, "print") => Action::Print,
        (_, "abort") => Action::Abort,
        (_, "segfault") => Action::Segfault,
        (_, "logout") => Action::Logout,
        (_, "close_sessions") => Action::CloseSessions,
        (_, "forget") => Action::Forget,
        (_, "stale") => Action::Stale(number(words.next()?)?),
        (_, "mute") => Action::Mute {
            code: number(words.next()?)?,
            for_good: false,
        },
        (_, "mute_for_good") => Action::Mute {
            code: number(words.next()?)?,
            for_good: true,
        },
        (_, "swap_handles") => Action::SwapHandles(octets(words.next()?)?),
        ("C_GetSlotList", "no_slots") => Action::NoSlots,
        ("C_OpenSession", "limit") => Action::Limit(number(words.next()?)?),
        ("C_Sign", "corrupt") => Action::Corrupt,
        ("C_Sign", "short") => Action::Short(number(words.next()?)?),
        ("C_GetTokenInfo", "flags") => Action::Flags(number(words.next()?)?),
        ("C_GetTokenInfo", "clock") => Action::Clock,
        ("C_GenerateKeyPair", "refuses") => Action::Refuses(number(words.next()?)?),
        ("C_GetTokenInfo", "sessions") => Action::Sessions(number(words.next()?)?),
        _ => return None,
    };
    let when = match words.next() {
        None => When::Always,
        Some("count") => When::Next(number(words.next()?)?),
        Some("at") => When::At(number(words.next()?).filter(|nth| *nth > 0)?),
        Some("once") => When::Once,
        Some(_) => return None,
    };
    words.next().is_none().then(|| Rule {
        function: function.to_owned(),
        action,
        when,
    })
}

fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

fn octets(hex: &str) -> Option<Vec<u8>> {
    let digits: Vec<u8> = hex
        .chars()
        .map(|c| c.to_digit(16).and_then(|digit| u8::try_from(digit).ok()))
        .collect::<Option<_>>()?;
    let pairs = digits.chunks_exact(2);
    (!digits.is_empty() && pairs.remainder().is_empty())
        .then(|| pairs.map(|pair| (pair[0] << 4) | pair[1]).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Control;

    #[test]
    fn rules_are_read_and_typing_errors_noticed() {
        let rules =
            parse("# none\n\nC_Sign rv 0x32 count 1\nC_Sign sleep_ms 3000\n C_Login logout count 2 \nC_FindObjects rv 5 at 3").unwrap();
        let rule = |function: &str, action, when| Rule {
            function: function.into(),
            action,
            when,
        };
        assert_eq!(
            rules[0],
            rule("C_Sign", Action::Return(0x32), When::Next(1))
        );
        assert_eq!(
            rules[1],
            rule(
                "C_Sign",
                Action::Sleep(Duration::from_secs(3)),
                When::Always
            )
        );
        assert_eq!(rules[2], rule("C_Login", Action::Logout, When::Next(2)));
        assert_eq!(
            rules[3],
            rule("C_FindObjects", Action::Return(5), When::At(3))
        );
        let rules =
            parse("token removed\nC_SignInit swap_handles 0aFF once\nC_Sign short 2 at 1\nC_SignInit stale 0x30\nC_Sign hang\nC_Sign mute_for_good 5 once").unwrap();
        assert_eq!(rules[0], rule("token", Action::Removed, When::Always));
        assert_eq!(
            rules[1],
            rule("C_SignInit", Action::SwapHandles(vec![10, 255]), When::Once)
        );
        assert_eq!(rules[2], rule("C_Sign", Action::Short(2), When::At(1)));
        assert_eq!(
            rules[3],
            rule("C_SignInit", Action::Stale(0x30), When::Always)
        );
        assert_eq!(rules[4], rule("C_Sign", Action::Hang, When::Always));
        assert_eq!(
            rules[5],
            rule(
                "C_Sign",
                Action::Mute {
                    code: 5,
                    for_good: true
                },
                When::Once
            )
        );
        for bad in [
            "C_Sign",
            "C_Sign rv",
            "C_Sign rv x",
            "C_Sign vr 1",
            "C_Sign rv 1 count",
            "C_Sign rv 1 2",
            "C_Sign rv 1 at",
            "C_Sign rv 1 at 0",
            "C_Sign rv 1 once 2",
            "C_Sing rv 1",
            "C_Sign logout count 1 1",
            "C_Login corrupt",
            "C_Login short 1",
            "C_Sign flags 1",
            "C_Sign limit 1",
            "C_Login no_slots",
            "C_SignInit swap_handles",
            "C_SignInit swap_handles abc",
            "token",
            "token rv 1",
            "C_Sign removed",
            "C_Sign mute",
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    fn in_directory(name: &str, test: impl FnOnce(&Path, &Control)) {
        let directory =
            std::env::temp_dir().join(format!("pkcs11-fault-{name}-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        test(&directory, &Control::new(&directory));
        fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn a_counted_rule_is_used_up_until_the_file_changes() {
        in_directory("count", |directory, control| {
            let rules = Rules::new(directory);
            assert_eq!(rules.take("C_Sign"), None);
            control
                .set("C_Sign rv 5 count 1\nC_Sign rv 6 count 1")
                .unwrap();
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
        });
    }

    #[test]
    fn the_nth_call_is_counted_from_the_change_of_the_file_for_each_function_alone() {
        in_directory("nth", |directory, control| {
            let rules = Rules::new(directory);
            for _ in 0..2 {
                control.set("C_Sign rv 5 at 3\nC_Login rv 6 at 1").unwrap();
                assert_eq!((rules.take("C_Sign"), rules.take("C_Sign")), (None, None));
                assert_eq!(rules.take("C_Login"), Some(Action::Return(6)));
                assert_eq!(
                    (rules.take("C_Sign"), rules.take("C_Sign")),
                    (Some(Action::Return(5)), None)
                );
                assert_eq!(rules.take("C_Login"), None);
                control.clear().unwrap();
                assert_eq!(rules.take("C_Sign"), None);
            }
        });
    }

    #[test]
    fn a_rule_for_one_call_of_all_processes_is_met_by_one() {
        in_directory("once", |directory, control| {
            // What two processes have.
            let (one, other) = (Rules::new(directory), Rules::new(directory));
            control.set("C_Sign abort once").unwrap();
            assert_eq!(
                (one.take("C_Sign"), one.take("C_Sign"), other.take("C_Sign")),
                (Some(Action::Abort), None, None)
            );
            control.clear().unwrap();
            assert_eq!((one.take("C_Sign"), other.take("C_Sign")), (None, None));
            control.set("C_Sign abort once").unwrap();
            assert_eq!(
                (other.take("C_Sign"), one.take("C_Sign")),
                (Some(Action::Abort), None)
            );
        });
    }

    #[test]
    fn a_removed_token_is_a_rule_for_every_function() {
        in_directory("removed", |directory, control| {
            let rules = Rules::new(directory);
            control.set("token removed").unwrap();
            for function in FUNCTIONS {
                assert_eq!(rules.take(function), Some(Action::Removed), "{function}");
            }
        });
    }
}
