//! Private throw-away PostgreSQL clusters for tests: real servers with `fsync` on, a socket
//! directory and a port of their own.
//!
//! A cluster runs as an unprivileged user also when the tests run as root, and ends with the
//! process that started it, in whatever way that ends. It never touches a cluster that is there,
//! and reads no `PG…` variable. Everything here panics with what the server said when it cannot be
//! done: a missing PostgreSQL fails a test. Every wait is bounded.

mod options;
mod pooler;
mod process;
mod programs;
mod replication;
mod template;
mod watchdog;

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock};

pub use options::{Login, Options, ServerTls};
pub use pooler::Pooler;
pub use process::free_port;
pub use replication::Backup;

use self::programs::{Programs, owned, unprivileged};
use self::watchdog::Watchdog;

/// The superuser of every cluster.
pub const SUPERUSER: &str = "postgres";

/// The longest that a server may take for anything before the test says what is missing; never a
/// measure of speed.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);

/// How many ports are tried for a new server.
const PORTS: usize = 8;

/// A running server. Stopped and removed when dropped, and when this process ends.
pub struct Cluster {
    directory: PathBuf,
    port: u16,
    programs: &'static Programs,
    watchdog: Mutex<Option<Watchdog>>,
    postmaster: AtomicU32,
    named: AtomicU64,
}

/// How a server is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Waits until every client has left (SIGTERM).
    Smart,
    /// Ends the clients' sessions and shuts down in order (SIGINT).
    Fast,
    /// Shuts down without a checkpoint; the next start recovers (SIGQUIT).
    Immediate,
}

impl Cluster {
    /// A new server without databases of its own.
    pub fn start() -> Self {
        Self::start_with(&Options::default())
    }

    /// A new server with these differences.
    pub fn start_with(options: &Options) -> Self {
        let programs = Programs::find();
        let directory = new_directory();
        template::copy(programs, &directory.join("data"));
        let mut cluster = Self::in_directory(directory, programs, options.small_tablespace);
        cluster.append(&options.settings());
        options.admit(&cluster);
        cluster.start_on_a_free_port();
        if options.small_tablespace.is_some() {
            cluster.psql(
                SUPERUSER,
                &format!(
                    "CREATE TABLESPACE small LOCATION '{}'",
                    cluster.directory.join("small").display()
                ),
            );
        }
        cluster
    }

    /// One server for all tests of this process.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Cluster> = OnceLock::new();
        SHARED.get_or_init(Self::start)
    }

    fn in_directory(directory: PathBuf, programs: &'static Programs, small: Option<u32>) -> Self {
        let watchdog = Mutex::new(Some(Watchdog::start(&directory, programs, small)));
        Self {
            directory,
            port: 0,
            programs,
            watchdog,
            postmaster: AtomicU32::new(0),
            named: AtomicU64::new(0),
        }
    }

    /// Another process may take the port between our look and the server's: then another is tried.
    fn start_on_a_free_port(&mut self) {
        for _ in 0..PORTS {
            self.port = process::free_port();
            self.append(&[("port", &self.port.to_string())]);
            if self.try_start() {
                return;
            }
            assert!(
                self.log().contains("Address already in use"),
                "PostgreSQL did not start:\n{}",
                self.log()
            );
        }
        panic!("no free port for PostgreSQL:\n{}", self.log());
    }

    /// The name of a fresh empty database.
    pub fn database(&self) -> String {
        self.database_with("")
    }

    /// The name of a fresh empty database, made with these options of `CREATE DATABASE`, such as
    /// `TABLESPACE small`.
    pub fn database_with(&self, options: &str) -> String {
        let name = format!(
            "test_{}_{}",
            std::process::id(),
            self.named.fetch_add(1, Ordering::Relaxed)
        );
        self.psql(SUPERUSER, &format!("CREATE DATABASE {name} {options}"));
        name
    }

    /// The superuser's way to a database, over the socket:
    /// `postgres://postgres@/DATABASE?host=/directory&port=N`.
    pub fn url(&self, database: &str) -> String {
        self.url_as(SUPERUSER, database)
    }

    /// A role's way to a database, over the socket.
    pub fn url_as(&self, role: &str, database: &str) -> String {
        format!(
            "postgres://{role}@/{database}?host={}&port={}",
            self.directory.display(),
            self.port
        )
    }

    /// The port, on 127.0.0.1 and of the socket's name.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The directory of the socket.
    pub fn socket_directory(&self) -> &Path {
        &self.directory
    }

    /// Where the server keeps its files; belongs to the unprivileged user.
    pub fn data_directory(&self) -> PathBuf {
        self.directory.join("data")
    }

    /// Everything that the server has logged.
    pub fn log(&self) -> String {
        fs::read(self.directory.join("log"))
            .map(|log| String::from_utf8_lossy(&log).into_owned())
            .unwrap_or_default()
    }

    /// The postmaster's process id; of the last one while none runs.
    pub fn pid(&self) -> u32 {
        self.postmaster.load(Ordering::Relaxed)
    }

    /// Runs statements as superuser, each in its own transaction; returns what they print:
    /// unaligned, tuples only.
    pub fn psql(&self, database: &str, sql: &str) -> String {
        self.try_psql(database, sql)
            .unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    /// The same, or what psql or the server said instead.
    pub fn try_psql(&self, database: &str, sql: &str) -> Result<String, String> {
        let mut command = self.programs.command("psql");
        command.args([
            "-X",
            "-A",
            "-t",
            "-q",
            "-v",
            "ON_ERROR_STOP=1",
            "-U",
            SUPERUSER,
            "-d",
            database,
            "-f",
            "-",
        ]);
        command
            .arg("-h")
            .arg(&self.directory)
            .args(["-p", &self.port.to_string()]);
        process::run(command, sql).map(|printed| printed.trim_end().to_owned())
    }

    /// Stops the server and waits until it is gone.
    pub fn stop(&self, mode: Mode) {
        let signal = match mode {
            Mode::Smart => "TERM",
            Mode::Fast => "INT",
            Mode::Immediate => "QUIT",
        };
        process::signal(signal, &[self.pid()]);
        self.until("stopped", || !process::is_alive(self.pid()));
    }

    /// SIGKILL for the postmaster and all its processes; waits until they are gone.
    pub fn kill(&self) {
        let killed = self.freeze();
        process::signal("KILL", &killed);
        self.until("killed", || {
            !killed.iter().any(|pid| process::is_alive(*pid))
        });
    }

    /// Starts a server that was stopped or killed, and waits until it takes connections.
    pub fn start_again(&self) {
        assert!(!process::is_alive(self.pid()), "the server runs");
        assert!(
            self.try_start(),
            "PostgreSQL did not start again:\n{}",
            self.log()
        );
    }

    /// SIGSTOP for the postmaster and all its processes.
    pub fn pause(&self) {
        self.freeze();
    }

    /// SIGCONT for the postmaster and all its processes.
    pub fn resume(&self) {
        let mut all = process::children(self.pid());
        all.push(self.pid());
        process::signal("CONT", &all);
    }

    /// The postmaster first, so that no new process appears while the others are stopped.
    fn freeze(&self) -> Vec<u32> {
        let mut stopped = vec![self.pid()];
        process::signal("STOP", &stopped);
        self.until("stopped", || process::is_stopped(self.pid()));
        loop {
            let more: Vec<u32> = process::children(self.pid())
                .into_iter()
                .filter(|pid| !stopped.contains(pid))
                .collect();
            if more.is_empty() {
                return stopped;
            }
            process::signal("STOP", &more);
            stopped.extend(more);
        }
    }

    /// Changes settings and starts the server anew.
    pub fn configure(&self, settings: &[(&str, &str)]) {
        self.append(settings);
        self.stop(Mode::Fast);
        self.start_again();
    }

    /// Changes settings that need no restart, and waits until they are in force.
    pub fn reload(&self, settings: &[(&str, &str)]) {
        let loaded = || self.psql(SUPERUSER, "SELECT pg_conf_load_time()");
        let before = loaded();
        self.append(settings);
        process::signal("HUP", &[self.pid()]);
        self.until("reloaded", || loaded() != before);
    }

    /// Leaves no room in the small tablespace.
    pub fn fill_small_tablespace(&self) {
        self.ask("fill");
    }

    /// Gives the room in the small tablespace back.
    pub fn free_small_tablespace(&self) {
        self.ask("free");
    }

    fn append(&self, settings: &[(&str, &str)]) {
        let mut text = String::new();
        for (name, value) in settings {
            writeln!(text, "{name} = '{}'", value.replace('\'', "''"))
                .expect("a string takes text");
        }
        let path = self.data_directory().join("postgresql.conf");
        let mut file = fs::OpenOptions::new()
            .append(true)
            .open(path)
            .expect("initdb wrote it");
        file.write_all(text.as_bytes()).expect("writable");
    }

    /// Starts the postmaster; false if it ended instead of taking connections.
    fn try_start(&self) -> bool {
        let pid = self.ask("start").parse().expect("a process id");
        self.postmaster.store(pid, Ordering::Relaxed);
        self.until("ready", || self.is_ready() || !process::is_alive(pid));
        self.is_ready()
    }

    /// What the postmaster says of itself in its pid file, as pg_ctl reads it.
    fn is_ready(&self) -> bool {
        let text =
            fs::read_to_string(self.data_directory().join("postmaster.pid")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines
            .first()
            .is_some_and(|pid| *pid == self.pid().to_string())
            && lines
                .get(7)
                .is_some_and(|status| matches!(status.trim(), "ready" | "standby"))
    }

    fn ask(&self, word: &str) -> String {
        self.watched()
            .as_mut()
            .expect("there until dropped")
            .ask(word)
    }

    fn watched(&self) -> MutexGuard<'_, Option<Watchdog>> {
        self.watchdog
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn until(&self, what: &str, holds: impl Fn() -> bool) {
        if !process::until(holds) {
            panic!("PostgreSQL was never {what}:\n{}", self.log());
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(watchdog) = self.watched().take() {
            watchdog.end();
        }
        // The watchdog has removed it, unless somebody killed the watchdog.
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// A socket's path may have 107 octets, and the unprivileged user must reach it: a temporary
/// directory for which that does not hold gives way to /tmp.
fn temporary_directory() -> PathBuf {
    const SOCKET: usize = "/pg-123456/.s.PGSQL.12345".len();
    let usual = std::env::temp_dir();
    let enters = || {
        unprivileged("test")
            .arg("-x")
            .arg(&usual)
            .status()
            .is_ok_and(|status| status.success())
    };
    if usual.as_os_str().len() + SOCKET <= 107 && enters() {
        usual
    } else {
        PathBuf::from("/tmp")
    }
}

fn new_directory() -> PathBuf {
    let directory = tempfile::Builder::new()
        .prefix("pg-")
        .tempdir_in(temporary_directory())
        .expect("a temporary directory")
        .keep();
    owned(&directory);
    directory
}
