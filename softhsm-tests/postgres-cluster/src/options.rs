//! What differs from a plain server: settings, TLS with its ways to log in, and a tablespace that
//! can be filled.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use super::Cluster;
use super::programs::owned;

/// What differs from a plain server.
#[derive(Clone, Debug, Default)]
pub struct Options {
    pub(super) settings: Vec<(String, String)>,
    pub(super) tls: Option<ServerTls>,
    pub(super) small_tablespace: Option<u32>,
}

/// How a server speaks TLS. With it, TCP connections without TLS are refused; the socket stays as
/// it is.
#[derive(Clone, Debug)]
pub struct ServerTls {
    /// The server's certificate and those above it, PEM.
    pub certificate: PathBuf,
    /// Its key, PEM.
    pub key: PathBuf,
    /// How a client proves who it is.
    pub login: Login,
}

/// How a client that comes over TLS proves who it is.
#[derive(Clone, Debug)]
pub enum Login {
    /// By password, SCRAM-SHA-256.
    Password,
    /// By a certificate under one of these roots (PEM) whose common name is the role.
    Certificate(PathBuf),
}

/// What every server here runs with: as durable as in production, and needing nothing of the
/// machine but files.
const USUAL: [(&str, &str); 11] = [
    ("listen_addresses", "127.0.0.1"),
    ("fsync", "on"),
    ("synchronous_commit", "on"),
    ("full_page_writes", "on"),
    ("dynamic_shared_memory_type", "mmap"),
    ("shared_buffers", "32MB"),
    ("wal_keep_size", "256MB"),
    ("logging_collector", "off"),
    ("log_line_prefix", "%m [%p] %u "),
    ("timezone", "UTC"),
    ("log_timezone", "UTC"),
];

impl Options {
    /// One more setting.
    pub fn setting(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// TLS on TCP.
    pub fn tls(mut self, tls: ServerTls) -> Self {
        self.tls = Some(tls);
        self
    }

    /// With a tablespace `small` on a file system of so many MiB that only the server sees.
    pub fn small_tablespace(mut self, mebibytes: u32) -> Self {
        self.small_tablespace = Some(mebibytes);
        self
    }

    pub(super) fn settings(&self) -> Vec<(&str, &str)> {
        USUAL
            .into_iter()
            .chain(
                self.settings
                    .iter()
                    .map(|(name, value)| (name.as_str(), value.as_str())),
            )
            .collect()
    }

    /// Writes the socket's directory, certificates and who may come into the files of a cluster
    /// that has not started.
    pub(super) fn admit(&self, cluster: &Cluster) {
        let directory = cluster
            .socket_directory()
            .to_str()
            .expect("temporary paths are text");
        cluster.append(&[("unix_socket_directories", directory)]);
        let Some(tls) = &self.tls else { return };
        let mut files = vec![(&tls.certificate, "server.pem"), (&tls.key, "server.key")];
        let mut settings = vec![
            ("ssl", "on"),
            ("ssl_cert_file", "server.pem"),
            ("ssl_key_file", "server.key"),
        ];
        let method = match &tls.login {
            Login::Password => "scram-sha-256",
            Login::Certificate(roots) => {
                files.push((roots, "client-roots.pem"));
                settings.push(("ssl_ca_file", "client-roots.pem"));
                "cert"
            }
        };
        for (from, to) in files {
            let to = cluster.data_directory().join(to);
            fs::copy(from, &to).unwrap_or_else(|error| panic!("{}: {error}", from.display()));
            fs::set_permissions(&to, fs::Permissions::from_mode(0o600)).expect("ours");
            owned(&to);
        }
        cluster.append(&settings);
        let admitted = format!(
            "local all all trust\nlocal replication all trust\nhostssl all all 127.0.0.1/32 {method}\n"
        );
        fs::write(cluster.data_directory().join("pg_hba.conf"), admitted).expect("writable");
    }
}
