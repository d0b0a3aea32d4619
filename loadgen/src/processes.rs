//! CPU and memory of the processes of a run, as /proc tells them: the endpoint, its database, and
//! this client. A process counts with its children, those that have ended too, because a database
//! server is one process a connection.

use std::collections::BTreeMap;
use std::fs;

use crate::exit::Exit;

/// A process under a name.
#[derive(Clone, Debug)]
pub struct Watched {
    pub name: String,
    pub pid: u32,
}

/// What a process has used so far.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// Seconds in the process.
    pub user: f64,
    /// Seconds in the kernel on its behalf.
    pub system: f64,
    /// Resident memory, kB; of the process alone.
    pub resident_kb: u64,
    /// The most that it ever was, kB.
    pub peak_kb: u64,
}

/// The processes that the arguments name, and this one as `client`.
pub fn watched(arguments: &[String]) -> Result<Vec<Watched>, Exit> {
    let mut all = Vec::new();
    for argument in arguments {
        let parsed = argument.split_once('=').and_then(|(name, pid)| {
            Some(Watched {
                name: name.to_owned(),
                pid: pid.parse().ok()?,
            })
        });
        let one = parsed.ok_or_else(|| {
            Exit::usage(format!(
                "--pid {argument}: write NAME=PID, such as daemon=123"
            ))
        })?;
        usage(&one, &children())
            .ok_or_else(|| Exit::missing(format!("--pid {argument}: there is no such process")))?;
        all.push(one);
    }
    all.push(Watched {
        name: "client".into(),
        pid: std::process::id(),
    });
    Ok(all)
}

/// What each has used so far; a process that has ended is left out.
pub fn usages(watched: &[Watched]) -> BTreeMap<String, Usage> {
    let children = children();
    watched
        .iter()
        .filter_map(|one| Some((one.name.clone(), usage(one, &children)?)))
        .collect()
}

/// Resident memory of a process now, kB.
pub fn resident_kb(pid: u32) -> Option<u64> {
    memory(pid).map(|(resident, _)| resident)
}

fn usage(watched: &Watched, children: &BTreeMap<u32, Vec<u32>>) -> Option<Usage> {
    let stat = Stat::read(watched.pid)?;
    let (mut user, mut system) = (stat.user, stat.system);
    let mut open = children.get(&watched.pid).cloned().unwrap_or_default();
    while let Some(pid) = open.pop() {
        // One that ends between the listing and here is in its parent's sum at the next reading.
        if let Some(child) = Stat::read(pid) {
            user += child.user;
            system += child.system;
        }
        open.extend(children.get(&pid).into_iter().flatten());
    }
    let (resident_kb, peak_kb) = memory(watched.pid)?;
    let second = rustix::param::clock_ticks_per_second() as f64;
    Some(Usage {
        user: user as f64 / second,
        system: system as f64 / second,
        resident_kb,
        peak_kb,
    })
}

/// proc_pid_stat(5): clock ticks, with those of children that were waited for.
#[derive(Debug, PartialEq)]
struct Stat {
    parent: u32,
    user: u64,
    system: u64,
}

impl Stat {
    fn read(pid: u32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    fn parse(text: &str) -> Option<Self> {
        // The name stands in parentheses and may hold any letter, parentheses too.
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
        let number = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok());
        Some(Self {
            parent: u32::try_from(number(1)?).ok()?,
            user: number(11)? + number(13)?,
            system: number(12)? + number(14)?,
        })
    }
}

/// Every process by its parent.
fn children() -> BTreeMap<u32, Vec<u32>> {
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let pid = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok());
        if let Some((pid, stat)) = pid.and_then(|pid| Some((pid, Stat::read(pid)?))) {
            children.entry(stat.parent).or_default().push(pid);
        }
    }
    children
}

/// Resident memory and its peak, kB.
fn memory(pid: u32) -> Option<(u64, u64)> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim_start_matches(':')
            .trim()
            .trim_end_matches("kB")
            .trim()
            .parse()
            .ok()
    };
    Some((field("VmRSS")?, field("VmHWM")?))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_stat_line_is_read_past_a_name_with_parentheses() {
        let line = "12 (a) b (c)) S 7 1 1 0 -1 4194560 1 2 3 4 100 20 3 4 20 0 9 0 5 6 7";
        assert_eq!(
            Stat::parse(line),
            Some(Stat {
                parent: 7,
                user: 103,
                system: 24
            })
        );
        assert_eq!(Stat::parse("12 (a) S"), None);
    }

    #[test]
    fn a_process_counts_with_its_children() {
        let busy = "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done";
        let own = Watched {
            name: "own".into(),
            pid: std::process::id(),
        };
        let before = usage(&own, &children()).unwrap();
        assert!(
            Command::new("sh")
                .args(["-c", busy])
                .status()
                .unwrap()
                .success()
        );
        let after = usage(&own, &children()).unwrap();
        assert!(after.user > before.user, "{before:?} {after:?}");
        assert!(after.resident_kb > 0 && after.peak_kb >= after.resident_kb);
    }

    #[test]
    fn a_name_without_a_process_is_refused() {
        assert!(
            watched(&["daemon".into()])
                .unwrap_err()
                .to_string()
                .contains("NAME=PID")
        );
        assert!(
            watched(&["daemon=4194304".into()])
                .unwrap_err()
                .to_string()
                .contains("no such process")
        );
        assert_eq!(watched(&[]).unwrap()[0].name, "client");
    }
}
