//! A PgBouncer before a cluster, which hands out its sessions by the transaction. It ends when
//! dropped, and with this process.

use std::fs;
use std::net::TcpStream;
use std::process::{Child, Stdio};

use super::programs::{owned, unprivileged};
use super::{Cluster, SUPERUSER, new_directory, process};

/// A running PgBouncer.
pub struct Pooler {
    directory: std::path::PathBuf,
    port: u16,
    shell: Child,
}

/// Its input is a pipe that the system closes when this process ends, in whatever way.
const SCRIPT: &str = r#"
PATH="$PATH:/usr/sbin" pgbouncer -q "$1/pgbouncer.ini" </dev/null >"$1/log" 2>&1 &
read -r word
kill "$!"
wait "$!"
"#;

impl Pooler {
    /// Begins to pool for a cluster, with the names of parameters that it drops instead of refusing
    /// a connection.
    pub fn start(cluster: &Cluster, dropped: &str) -> Self {
        let directory = new_directory();
        let port = process::free_port();
        let (host, server) = (cluster.socket_directory().display(), cluster.port());
        let settings = format!(
            "[databases]\n* = host={host} port={server} user={SUPERUSER}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
             unix_socket_dir =\nauth_type = any\npool_mode = transaction\nignore_startup_parameters = {dropped}\n"
        );
        fs::write(directory.join("pgbouncer.ini"), settings).expect("writable");
        owned(&directory.join("pgbouncer.ini"));
        let mut command = unprivileged("sh");
        command
            .args(["-c", SCRIPT, "sh"])
            .arg(&directory)
            .stdin(Stdio::piped());
        let pooler = Self {
            shell: command.spawn().expect("sh runs"),
            directory,
            port,
        };
        let log = || fs::read_to_string(pooler.directory.join("log")).unwrap_or_default();
        let listens = || TcpStream::connect(("127.0.0.1", port)).is_ok();
        assert!(
            process::until(listens),
            "PgBouncer does not listen (./run-tests installs it):\n{}",
            log()
        );
        pooler
    }

    /// The way to a database through it: `postgres://postgres@127.0.0.1:N/DATABASE`.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://{SUPERUSER}@127.0.0.1:{}/{database}", self.port)
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        let _ = self.shell.wait();
        let _ = fs::remove_dir_all(&self.directory);
    }
}
