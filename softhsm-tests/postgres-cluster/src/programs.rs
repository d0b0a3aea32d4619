//! PostgreSQL's programs, wherever the system has them, and the unprivileged user who runs them: a
//! server refuses to run as root.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Where PostgreSQL's programs are.
#[derive(Debug)]
pub(super) struct Programs {
    directory: PathBuf,
    /// Such as `15.18`.
    pub(super) version: String,
}

const NEEDED: [&str; 4] = ["initdb", "postgres", "psql", "pg_basebackup"];

impl Programs {
    /// Those beside the `initdb` on the path, else the newest that Debian's packages have
    /// installed.
    pub(super) fn find() -> &'static Self {
        static FOUND: OnceLock<Programs> = OnceLock::new();
        FOUND.get_or_init(|| {
            let path = std::env::var_os("PATH").unwrap_or_default();
            let on_path = std::env::split_paths(&path)
                .filter_map(|directory| directory.join("initdb").canonicalize().ok());
            let on_path = on_path.filter_map(|initdb| Some(initdb.parent()?.to_owned()));
            let directory = on_path
                .chain(packaged())
                .find(|directory| NEEDED.iter().all(|name| directory.join(name).is_file()));
            let directory = directory.unwrap_or_else(|| {
                panic!("{NEEDED:?} are missing: ./run-tests installs PostgreSQL")
            });
            let told = Command::new(directory.join("postgres"))
                .arg("--version")
                .output()
                .expect("postgres runs");
            let told = String::from_utf8_lossy(&told.stdout).into_owned();
            let version = told
                .split_whitespace()
                .nth(2)
                .unwrap_or_else(|| panic!("no version: {told}"));
            Self {
                version: version.to_owned(),
                directory,
            }
        })
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// A client program, run as ourselves and ended when it takes too long.
    pub(super) fn command(&self, name: &str) -> Command {
        let mut command = Command::new("timeout");
        command.args(["--kill-after=5", "120"]).arg(self.path(name));
        without_postgres_variables(command)
    }
}

/// `/usr/lib/postgresql/<version>/bin`, newest first.
fn packaged() -> Vec<PathBuf> {
    let entries = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten();
    let mut found: Vec<(u32, PathBuf)> = entries
        .filter_map(|entry| {
            Some((
                entry.file_name().to_str()?.parse().ok()?,
                entry.path().join("bin"),
            ))
        })
        .collect();
    found.sort_by_key(|(version, _)| std::cmp::Reverse(*version));
    found.into_iter().map(|(_, path)| path).collect()
}

/// A program, run by the unprivileged user if we are root.
pub(super) fn unprivileged(program: impl AsRef<Path>) -> Command {
    let command = match user() {
        None => Command::new(program.as_ref()),
        Some((user, group)) => {
            let mut command = Command::new("setpriv");
            command
                .args([
                    "--reuid",
                    &user.to_string(),
                    "--regid",
                    &group.to_string(),
                    "--clear-groups",
                ])
                .arg(program.as_ref());
            command
        }
    };
    without_postgres_variables(command)
}

/// Gives a file to the unprivileged user if we are root.
pub(super) fn owned(path: &Path) {
    if let Some((user, group)) = user() {
        chown(path, Some(user), Some(group)).expect("root may");
    }
}

/// The user who owns the files of a cluster.
pub(super) fn owner() -> u32 {
    user().map_or_else(ourselves, |(user, _)| user)
}

fn ourselves() -> u32 {
    fs::metadata("/proc/self").expect("proc is mounted").uid()
}

/// `postgres` if there is such a user, else `nobody`; `None` if we are not root.
fn user() -> Option<(u32, u32)> {
    static USER: OnceLock<Option<(u32, u32)>> = OnceLock::new();
    *USER.get_or_init(|| {
        (ourselves() == 0).then(|| {
            let known = fs::read_to_string("/etc/passwd").expect("readable");
            let ids = |name: &str| {
                let line = known
                    .lines()
                    .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
                let mut fields = line.split(':').skip(1).map(|id| id.parse().ok());
                Some((fields.next()??, fields.next()??))
            };
            ids("postgres")
                .or_else(|| ids("nobody"))
                .expect("a system has the user nobody")
        })
    })
}

/// What stands in the tester's environment must not lead to another server.
fn without_postgres_variables(mut command: Command) -> Command {
    for (name, _) in
        std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"PG"))
    {
        command.env_remove(name);
    }
    // A directory that the unprivileged user may not enter would be complained about.
    command.current_dir("/").env("PGCONNECT_TIMEOUT", "10");
    command
}
