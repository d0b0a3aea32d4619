//! A ledger's database on a throw-away PostgreSQL server: migrated by the real program, with a
//! login for the daemons that has only the application's rights.

use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

use postgres_cluster::Cluster;

/// See the module. The server is the cluster's, which must live as long.
pub struct LedgerDatabase<'a> {
    cluster: &'a Cluster,
    name: String,
    logins: AtomicU64,
}

impl LedgerDatabase<'static> {
    /// On the server that all tests of this process share.
    pub fn new() -> Self {
        Self::on(Cluster::shared())
    }
}

impl Default for LedgerDatabase<'static> {
    fn default() -> Self {
        Self::new()
    }
}

impl<'a> LedgerDatabase<'a> {
    /// On a server of the test's own.
    pub fn on(cluster: &'a Cluster) -> Self {
        Self::named(cluster, cluster.database())
    }

    /// In a database that is there and empty.
    pub fn named(cluster: &'a Cluster, name: String) -> Self {
        let database = Self {
            cluster,
            name,
            logins: AtomicU64::new(0),
        };
        database.migrate();
        database
    }

    /// `ca-server migrate`, as the superuser.
    pub fn migrate(&self) {
        let mut migrate = Command::new(super::build::ca_server());
        let output = migrate
            .args(["migrate", "--ledger", &self.superuser_url()])
            .output()
            .expect("ca-server runs");
        assert!(
            output.status.success(),
            "migrate: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    /// The way to it for the superuser, who may migrate it.
    pub fn superuser_url(&self) -> String {
        self.cluster.url(&self.name)
    }

    /// The database's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A new login with the application's rights.
    pub fn login(&self) -> String {
        let login = format!(
            "{}_daemon_{}",
            self.name,
            self.logins.fetch_add(1, Ordering::Relaxed)
        );
        self.psql(&format!(
            "CREATE ROLE {login} LOGIN IN ROLE {}_application",
            self.name
        ));
        login
    }

    /// The way to it for a new login, over the socket.
    pub fn url(&self) -> String {
        self.url_as(&self.login())
    }

    /// The way to it for a login, over the socket.
    pub fn url_as(&self, login: &str) -> String {
        self.cluster.url_as(login, &self.name)
    }

    /// The way to it for a login over TCP, by `HOST:PORT` or several of them with commas between.
    pub fn url_over(&self, hosts: &str, login: &str) -> String {
        format!("postgres://{login}@{hosts}/{}", self.name)
    }

    /// Statements as superuser.
    pub fn psql(&self, sql: &str) -> String {
        self.cluster.psql(&self.name, sql)
    }

    /// How many sessions a login has.
    pub fn sessions(&self, login: &str) -> usize {
        let counted = self.psql(&format!(
            "SELECT count(*) FROM pg_stat_activity WHERE usename = '{login}'"
        ));
        counted.parse().expect("a number")
    }

    /// Ends all sessions of a login, and waits until they are gone.
    pub fn end_sessions(&self, login: &str) {
        // 5 s for each; true if the session is gone.
        let ended = self.psql(&format!(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = '{login}'"
        ));
        assert!(
            !ended.is_empty() && ended.lines().all(|gone| gone == "t"),
            "not ended: {ended:?}"
        );
    }
}
