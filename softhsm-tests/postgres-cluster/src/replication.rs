//! Standbys and copies: a second server that follows the first, and a data directory as it once
//! was.

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use super::programs::unprivileged;
use super::{Cluster, Mode, SUPERUSER, new_directory, process};

/// A cluster's files as they once were.
pub struct Backup {
    data: PathBuf,
}

impl Cluster {
    /// A hot standby of this server, synchronous: from now on a commit here waits until it is
    /// durable there.
    pub fn standby(&self) -> Self {
        let name = format!("standby_{}", self.named.fetch_add(1, Ordering::Relaxed));
        let directory = new_directory();
        self.copy_to(&directory.join("data"), &["-R", "-C", "-S", &name]);
        let mut standby = Self::in_directory(directory, self.programs, None);
        let own = standby
            .directory
            .to_str()
            .expect("temporary paths are text")
            .to_owned();
        standby.append(&[
            ("unix_socket_directories", &own),
            ("cluster_name", &name),
            ("synchronous_standby_names", ""),
        ]);
        standby.start_on_a_free_port();
        self.reload(&[("synchronous_standby_names", &name)]);
        self.until("followed by its standby", || self.is_followed());
        standby
    }

    /// Whether a synchronous standby follows.
    pub fn is_followed(&self) -> bool {
        self.psql(SUPERUSER, "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming' AND sync_state = 'sync'") == "1"
    }

    /// Makes a standby a server of its own, and waits until it takes writes.
    pub fn promote(&self) {
        assert_eq!(
            self.psql(SUPERUSER, "SELECT pg_promote(true, 60)"),
            "t",
            "not promoted:\n{}",
            self.log()
        );
    }

    /// A copy of the files, made while the server runs.
    pub fn back_up(&self) -> Backup {
        let data = self.directory.join(format!(
            "backup-{}",
            self.named.fetch_add(1, Ordering::Relaxed)
        ));
        self.copy_to(&data, &[]);
        Backup { data }
    }

    /// Ends the server, puts the copy in its files' place and starts it on them.
    pub fn restore(&self, backup: &Backup) {
        self.stop(Mode::Immediate);
        self.as_owner("rm", &["-rf".as_ref(), &self.data_directory()]);
        self.as_owner("cp", &["-a".as_ref(), &backup.data, &self.data_directory()]);
        self.start_again();
    }

    fn as_owner(&self, program: &str, arguments: &[&Path]) {
        let status = unprivileged(program)
            .args(arguments)
            .status()
            .expect("the program runs");
        assert!(status.success(), "{program} {arguments:?}");
    }

    fn copy_to(&self, to: &Path, more: &[&str]) {
        let mut command = unprivileged(self.programs.path("pg_basebackup"));
        command
            .args([
                "-U",
                SUPERUSER,
                "-X",
                "stream",
                "-c",
                "fast",
                "--no-sync",
                "-D",
            ])
            .arg(to);
        command
            .arg("-h")
            .arg(&self.directory)
            .args(["-p", &self.port.to_string()])
            .args(more);
        process::run(command, "").unwrap_or_else(|error| panic!("pg_basebackup: {error}"));
    }
}
