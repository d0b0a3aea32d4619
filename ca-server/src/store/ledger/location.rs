//! Where a ledger is kept: a SQLite file, or a database on one of several PostgreSQL servers. A
//! location is a plain value without secrets; the files that it names are read at each connection,
//! so that a rotated password or certificate is taken up by itself.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject;
use sqlx::ConnectOptions;
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use zeroize::Zeroizing;

use crate::x509::pem;

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// A database file. Beside it stand `-wal`, `-shm` and the lock file.
    Sqlite(PathBuf),
    /// A database on a PostgreSQL server.
    Postgres(Box<Servers>),
}

/// PostgreSQL servers of which one at a time takes writes, and how to log in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Servers {
    /// One URL for each host, without secrets, each understood by sqlx.
    urls: Vec<String>,
    shown: String,
    files: ServerFiles,
}

/// What a connection needs beside the URL.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerFiles {
    /// The password; a secret, so nobody else may read the file.
    pub password: Option<PathBuf>,
    /// PEM certificates by which the server's is judged.
    pub roots: Option<PathBuf>,
    /// A client certificate and its key, PEM.
    pub certificate: Option<PathBuf>,
    /// The client certificate's key, PEM.
    pub key: Option<PathBuf>,
}

/// Parameters of the URL that are passed on.
const PARAMETERS: [&str; 4] = ["host", "port", "sslmode", "application_name"];

impl Location {
    /// `sqlite:FILE`, relative to `directory`, or
    /// `postgres://LOGIN@HOST[:PORT][,HOST[:PORT]…]/DATABASE[?sslmode=…]`; a server behind a Unix
    /// socket is `postgres://LOGIN@/DATABASE?host=/directory`. The error says what is wrong and
    /// what to write.
    pub fn parse(url: &str, files: ServerFiles, directory: &Path) -> Result<Self, String> {
        if let Some(path) = url
            .strip_prefix("sqlite:")
            .map(|path| path.strip_prefix("//").unwrap_or(path))
        {
            return match path {
                _ if files != ServerFiles::default() => {
                    Err("is a file and needs no password_file, roots, certificate or key".into())
                }
                "" => Err("names no file; write sqlite:FILE".into()),
                _ if path.contains('?') => {
                    Err("has parameters, of which a file has none; write sqlite:FILE".into())
                }
                path => Ok(Self::Sqlite(directory.join(path))),
            };
        }
        match url
            .strip_prefix("postgres://")
            .or_else(|| url.strip_prefix("postgresql://"))
        {
            Some(rest) => {
                Servers::parse(rest, files).map(|servers| Self::Postgres(Box::new(servers)))
            }
            None => {
                Err("is not understood; write sqlite:FILE or postgres://LOGIN@HOST/DATABASE".into())
            }
        }
    }

    /// Whether both are the same database of the same servers, or the same file; how to log in does
    /// not matter.
    pub fn is_same_place(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Sqlite(one), Self::Sqlite(other)) => one == other,
            (Self::Postgres(one), Self::Postgres(other)) => one.urls == other.urls,
            _ => false,
        }
    }

    /// What an operator should know although it works.
    pub fn warning(&self) -> Option<String> {
        let Self::Postgres(servers) = self else {
            return None;
        };
        let weak = servers
            .urls
            .iter()
            .filter_map(|url| PgConnectOptions::from_str(url).ok())
            .any(|options| {
                !is_near(&options) && !matches!(options.get_ssl_mode(), PgSslMode::VerifyFull)
            });
        weak.then(|| "the ledger's connection does not verify the server's name; use sslmode=verify-full and `roots`".to_owned())
    }
}

impl Servers {
    fn parse(rest: &str, files: ServerFiles) -> Result<Self, String> {
        let (authority, target) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        let (login, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        // What follows a colon here is never repeated in a message.
        if login.contains(':') {
            return Err(
                "holds a password; write it into a file and name that in `password_file`".into(),
            );
        }
        if login.is_empty() {
            return Err("names no login; write postgres://LOGIN@HOST/DATABASE".into());
        }
        if path.trim_start_matches('/').is_empty() {
            return Err("names no database; write postgres://LOGIN@HOST/DATABASE".into());
        }
        let mut passed = Vec::new();
        let mut mode_is_given = false;
        for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            match name {
                "password" | "passfile" => {
                    return Err(
                        "holds a password; write it into a file and name that in `password_file`"
                            .into(),
                    );
                }
                "sslrootcert" => {
                    return Err("names a CA file; write it as `roots` in [ledger]".into());
                }
                "sslcert" | "sslkey" => return Err(
                    "names a client certificate; write it as `certificate` and `key` in [ledger]"
                        .into(),
                ),
                // The ledger is written, so another server than one that takes writes is of no use.
                "target_session_attrs" if value == "read-write" => continue,
                "target_session_attrs" => {
                    return Err("has a target_session_attrs other than read-write, which is the one that works".into());
                }
                name if PARAMETERS.contains(&name) => passed.push(parameter),
                name => {
                    return Err(format!(
                        "has the parameter {name:?}, which is not understood; known are {}",
                        PARAMETERS.join(", ")
                    ));
                }
            }
            mode_is_given |= name == "sslmode";
        }
        let query = passed.join("&");
        let url = |host: &str| format!("postgres://{login}@{host}{path}?{query}");
        // Behind a socket there is no host; a URL wants one, and the parameter `host` overrides it.
        let mut urls: Vec<String> = hosts
            .split(',')
            .map(|host| if host.is_empty() { "localhost" } else { host })
            .map(url)
            .collect();
        for url in &mut urls {
            let options = PgConnectOptions::from_str(url)
                .map_err(|error| format!("is not understood: {error}"))?;
            if !mode_is_given && !is_near(&options) {
                url.push_str("&sslmode=verify-full");
            }
            let verified = PgConnectOptions::from_str(url).is_ok_and(|options| {
                matches!(
                    options.get_ssl_mode(),
                    PgSslMode::VerifyFull | PgSslMode::VerifyCa
                ) && options.get_socket().is_none()
            });
            if verified && files.roots.is_none() {
                return Err("wants the server's certificate verified; name the CA's file as `roots` in [ledger]".into());
            }
        }
        if files.certificate.is_some() != files.key.is_some() {
            return Err("has a client certificate without its key, or the key alone; name both `certificate` and `key`".into());
        }
        let shown = format!("postgres://{login}@{hosts}{path}");
        Ok(Self { urls, shown, files })
    }

    /// How to connect to each host, in order. Reads the files.
    pub(super) fn options(&self) -> sqlx::Result<Vec<PgConnectOptions>> {
        let secret = self
            .files
            .password
            .as_deref()
            .map(signers::read_password)
            .transpose()
            .map_err(|error| configuration(error.to_string()))?;
        let roots = self
            .files
            .roots
            .as_deref()
            .map(certificates)
            .transpose()
            .map_err(configuration)?;
        let certificate = self
            .files
            .certificate
            .as_deref()
            .map(certificates)
            .transpose()
            .map_err(configuration)?;
        let key = self
            .files
            .key
            .as_deref()
            .map(key)
            .transpose()
            .map_err(configuration)?;
        let each = |url: &String| -> sqlx::Result<PgConnectOptions> {
            let mut options = PgConnectOptions::from_str(url)?.disable_statement_logging();
            if let Some(secret) = &secret {
                options = options.password(secrecy::ExposeSecret::expose_secret(secret));
            }
            if let Some(roots) = &roots {
                options = options.ssl_root_cert_from_pem(roots.clone());
            }
            if let (Some(certificate), Some(key)) = (&certificate, &key) {
                options = options
                    .ssl_client_cert_from_pem(certificate)
                    .ssl_client_key_from_pem(key);
            }
            Ok(options)
        };
        self.urls.iter().map(each).collect()
    }

    #[cfg(test)]
    pub(super) fn first_url(&self) -> &str {
        &self.urls[0]
    }
}

impl ServerFiles {
    /// Reads what the files hold now, as each connection will; the error names the file and shows
    /// nothing of it.
    pub fn check(&self) -> Result<(), String> {
        for path in [&self.roots, &self.certificate].into_iter().flatten() {
            certificates(path)?;
        }
        self.key.as_deref().map(key).transpose().map(drop)
    }
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|error| format!("{} cannot be read: {error}", path.display()))
}

/// Certificates as the driver reads them, however they were written. Its own errors would show the
/// file.
fn certificates(path: &Path) -> Result<Vec<u8>, String> {
    let blocks =
        pem::certificates(&read(path)?).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(blocks
        .iter()
        .map(|block| pem::certificate(&block.der))
        .collect::<String>()
        .into_bytes())
}

fn key(path: &Path) -> Result<Zeroizing<Vec<u8>>, String> {
    let text = Zeroizing::new(read(path)?);
    let unread = |_| {
        format!(
            "{}: it holds no private key in PEM, unencrypted",
            path.display()
        )
    };
    PrivateKeyDer::from_pem_slice(&text).map_err(unread)?;
    Ok(text)
}

fn configuration(text: String) -> sqlx::Error {
    sqlx::Error::Configuration(text.into())
}

/// A server that no network lies before.
fn is_near(options: &PgConnectOptions) -> bool {
    let host = options.get_host();
    let loopback = host
        .trim_matches(['[', ']'])
        .parse::<std::net::IpAddr>()
        .is_ok_and(|address| address.is_loopback());
    options.get_socket().is_some() || host == "localhost" || loopback
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(path) => path.display().fmt(f),
            Self::Postgres(servers) => f.write_str(&servers.shown),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> Result<Location, String> {
        let files = if url.starts_with("postgres") {
            ServerFiles {
                roots: Some("/ca.pem".into()),
                ..ServerFiles::default()
            }
        } else {
            ServerFiles::default()
        };
        Location::parse(url, files, Path::new("/etc/ca-server"))
    }

    fn urls(url: &str) -> Vec<String> {
        match parse(url) {
            Ok(Location::Postgres(servers)) => servers.urls,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_file_is_relative_to_the_config_and_servers_are_tried_in_order() {
        assert_eq!(
            parse("sqlite:ledger.db").unwrap(),
            Location::Sqlite("/etc/ca-server/ledger.db".into())
        );
        assert_eq!(
            parse("sqlite:///var/ledger.db").unwrap(),
            Location::Sqlite("/var/ledger.db".into())
        );
        let hosts = urls(
            "postgres://ca@db1.example,db2.example:5433/ledger?sslmode=verify-full&target_session_attrs=read-write",
        );
        assert_eq!(
            hosts,
            [
                "postgres://ca@db1.example/ledger?sslmode=verify-full",
                "postgres://ca@db2.example:5433/ledger?sslmode=verify-full"
            ]
        );
        assert_eq!(
            parse("postgres://ca@db1,db2/ledger").unwrap().to_string(),
            "postgres://ca@db1,db2/ledger"
        );
        assert_eq!(
            urls("postgres://ca@/ledger?host=/run/postgresql&port=5433").len(),
            1
        );
    }

    #[test]
    fn a_server_across_a_network_is_verified_unless_the_config_says_otherwise() {
        assert!(urls("postgres://ca@db1/ledger")[0].ends_with("sslmode=verify-full"));
        assert!(!urls("postgres://ca@127.0.0.1/ledger")[0].contains("sslmode"));
        assert!(
            parse("postgres://ca@db1/ledger?sslmode=require")
                .unwrap()
                .warning()
                .is_some()
        );
        assert!(
            parse("postgres://ca@db1/ledger")
                .unwrap()
                .warning()
                .is_none()
        );
        let without_roots = Location::parse(
            "postgres://ca@db1/ledger",
            ServerFiles::default(),
            Path::new("/"),
        );
        assert!(without_roots.unwrap_err().contains("`roots`"));
    }

    #[test]
    fn a_password_in_a_url_is_refused_and_not_repeated() {
        for url in [
            "postgres://ca:hunter2@db1/ledger",
            "postgres://ca@db1/ledger?password=hunter2",
            "postgres://ca@db1/x?passfile=hunter2",
        ] {
            let said = parse(url).unwrap_err();
            assert!(
                said.contains("password_file") && !said.contains("hunter2"),
                "{said}"
            );
        }
    }

    #[test]
    fn what_is_not_understood_is_said() {
        for (url, said) in [
            ("ledger.db", "sqlite:FILE"),
            ("sqlite:", "names no file"),
            ("sqlite:a.db?mode=ro", "parameters"),
            ("postgres://db1/ledger", "no login"),
            ("postgres://ca@db1", "no database"),
            ("postgres://ca@db1/ledger?sslmode=perhaps", "not understood"),
            ("postgres://ca@db1/ledger?options=-c", "not understood"),
            (
                "postgres://ca@db1/ledger?target_session_attrs=any",
                "read-write",
            ),
            ("postgres://ca@db1/ledger?sslrootcert=/a", "`roots`"),
        ] {
            let error = parse(url).unwrap_err();
            assert!(error.contains(said), "{url}: {error}");
        }
    }
}
