//! The config: `ca.toml` read whole and validated into typed parts, together with the files that it
//! names. Relative paths count from its directory. An error names file, key and remedy in one line;
//! nothing half-read ever leaves this room.

mod check;
pub(crate) mod device;
mod examine;
mod file;
mod judge;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use signers::KeyUri;

pub use examine::{Examination, ExaminedIssuer, ExaminedJwt, ExaminedKey};
pub use file::{Isolation, Log, LogFormat, RequestDefaults};

use crate::fairness::Limits;
use crate::policy::{Member, Profile, ServingName, TrustDomains};
use crate::spiffe::TrustDomain;
use crate::store::ledger::{Location, ServerFiles};
use crate::timestamp::Timestamp;
use crate::toml_text;
use crate::x509::chain::IssuerChain;

/// A config that cannot be used: one line with file, key and remedy.
#[derive(Clone, Debug)]
pub struct ConfigError(String);

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ConfigError {}

/// The whole config, validated.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where it was read from.
    pub path: PathBuf,
    /// SHA-256 of its text.
    pub digest: [u8; 32],
    /// `trust_domain`, `trust_domain_aliases`.
    pub trust_domains: TrustDomains,
    /// `cluster_id`: which cluster a call without `clusterid` means.
    pub cluster_id: String,
    /// `state_dir`, or where a ledger in a file is: where a try of a PIN leaves its mark.
    pub state_dir: Option<PathBuf>,
    /// `[csr] listen`.
    pub csr_listen: SocketAddr,
    /// `[csr] names`: what the serving certificate carries.
    pub names: Vec<ServingName>,
    /// `[csr] call_timeout`.
    pub call_timeout: Duration,
    /// `[monitoring] listen`.
    pub monitoring_listen: SocketAddr,
    /// `[ledger]`: where it is kept.
    pub ledger: Location,
    /// `[log]`.
    pub log: Log,
    /// `[request]`.
    pub request: RequestDefaults,
    /// `env` of the devices that are opened in this process, put together.
    pub environment: BTreeMap<String, String>,
    /// `[[issuer]]`, in order; at least one is active.
    pub issuers: Vec<IssuerConfig>,
    /// `[profile]`.
    pub profile: Profile,
    /// `[limits]`.
    pub limits: Limits,
    /// `[[jwt]]`.
    pub jwt: Vec<JwtConfig>,
    /// What is worth a line in the log, and no reason to refuse.
    pub warnings: Vec<String>,
}

/// One `[[issuer]]`.
#[derive(Clone, Debug)]
pub struct IssuerConfig {
    /// Its certificates; their `id` is the issuer's.
    pub chain: Arc<IssuerChain>,
    /// The places of an active issuer's key, at least one; a retiring one signs nothing and has
    /// none here.
    pub keys: Vec<KeyConfig>,
    /// The URIs of the key as the ledger keeps them, without secrets, a space between them.
    pub key_uris: String,
    /// SHA-256 of the ceremony's transcript.
    pub transcript: Option<[u8; 32]>,
    /// The id of the issuer beside which it signs.
    pub sibling_of: Option<String>,
}

impl IssuerConfig {
    /// As a member of its group.
    pub fn member(&self) -> Member<'_> {
        Member {
            id: self.chain.id(),
            active: !self.keys.is_empty(),
            sibling_of: self.sibling_of.as_deref(),
        }
    }
}

/// One place of an issuer's key.
#[derive(Clone, Debug)]
pub struct KeyConfig {
    /// Where.
    pub uri: KeyUri,
    /// How its device is opened.
    pub device: DeviceConfig,
}

/// One `[device.NAME]`, or what holds without one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceConfig {
    /// `NAME`; empty for issuers without a device section.
    pub name: String,
    /// `env`.
    pub environment: BTreeMap<String, String>,
    /// `isolation`.
    pub isolation: Isolation,
    /// `socket`: where a signer of its own answers, instead of a child.
    pub socket: Option<PathBuf>,
    /// `timeout`: how long one signature may take.
    pub timeout: Duration,
    /// `open_timeout`: how long it may take until the keys are open, at a start as at a
    /// replacement.
    pub open_timeout: Duration,
    /// `init_string`: what the module wants in C_Initialize as `pReserved`.
    pub init_string: Option<String>,
    /// `network`: whether the module needs the network.
    pub network: bool,
    /// `sessions`: how many each key signs on at once.
    pub sessions: usize,
}

/// One `[[jwt]]`.
#[derive(Clone, Debug)]
pub struct JwtConfig {
    /// `iss`.
    pub issuer: String,
    /// Accepted `aud`.
    pub audiences: Vec<String>,
    /// The cluster it speaks for.
    pub cluster_id: String,
    /// The key file.
    pub jwks: PathBuf,
    /// The least time between two reads for unknown keys.
    pub refresh: Duration,
}

/// How the files that a config names are reached. Whoever feeds the check with texts of strangers
/// lets it open none of the system's.
#[derive(Debug)]
pub struct Files {
    /// The whole content.
    pub read: fn(&Path) -> std::io::Result<Vec<u8>>,
    /// Whether it is a secret file as it must be; and what it should hold, "PIN" or "password".
    pub check_secret: fn(&Path, &str) -> Result<(), signers::SecretFileError>,
    /// Whether the files for TLS to the ledger's server hold what they should.
    pub check_server: fn(&ServerFiles) -> Result<(), String>,
}

impl Files {
    /// Those of the system.
    pub const SYSTEM: Self = Self {
        read: |path| std::fs::read(path),
        check_secret: signers::check_secret_file,
        check_server: ServerFiles::check,
    };
}

impl Config {
    /// Reads and validates the file and everything it names, as of `now`.
    pub fn load(path: &Path, now: Timestamp) -> Result<Self, ConfigError> {
        Self::of_text(path, &read(path)?, now, &Files::SYSTEM)
    }

    /// The same for a text that is said to stand at `path`, with these files for those that it
    /// names.
    pub fn of_text(
        path: &Path,
        text: &str,
        now: Timestamp,
        files: &Files,
    ) -> Result<Self, ConfigError> {
        let file = parse(path, text)?;
        check::Checker::new(path)
            .over(files)
            .config(file, text.as_bytes(), now)
    }

    /// The ledger of the config at `path`, for verbs that read the ledger alone and must work when
    /// the rest is broken.
    pub fn ledger_of(path: &Path) -> Result<Location, ConfigError> {
        #[derive(serde::Deserialize)]
        struct Only {
            ledger: file::Ledger,
        }
        let text = read(path)?;
        let only: Only = parse(path, &text)?;
        check::Checker::new(path).ledger(&only.ledger)
    }

    /// `[request]` and the trust domain of the config at `path`, for a client that must work where
    /// PINs and certificates are out of reach. A config that is not there gives none.
    pub fn request_of(path: &Path) -> Result<(RequestDefaults, Option<TrustDomain>), ConfigError> {
        #[derive(serde::Deserialize)]
        struct Only {
            trust_domain: Option<String>,
            #[serde(default)]
            request: RequestDefaults,
        }
        if !path.exists() {
            return Ok((RequestDefaults::default(), None));
        }
        let text = read(path)?;
        let only: Only = parse(path, &text)?;
        Ok((
            check::Checker::new(path).request(only.request),
            only.trust_domain.as_deref().and_then(TrustDomain::parse),
        ))
    }

    /// An issuer id that stands for another key or name in `other`: the ledger's readers tell
    /// issuers apart by it.
    pub fn reused_issuer_id<'a>(&self, other: &'a Config) -> Option<&'a str> {
        let changed = |new: &&IssuerConfig| {
            let same = |old: &IssuerConfig| {
                old.chain.public_key() == new.chain.public_key()
                    && old.chain.subject() == new.chain.subject()
            };
            self.issuers
                .iter()
                .any(|old| old.chain.id() == new.chain.id() && !same(old))
        };
        other
            .issuers
            .iter()
            .find(changed)
            .map(|issuer| issuer.chain.id())
    }

    /// The first thing that differs from `other` and cannot change without a restart.
    pub fn needs_restart(&self, other: &Config) -> Option<&'static str> {
        let differs = [
            ("csr.listen", self.csr_listen != other.csr_listen),
            ("csr.names", self.names != other.names),
            ("csr.call_timeout", self.call_timeout != other.call_timeout),
            (
                "monitoring.listen",
                self.monitoring_listen != other.monitoring_listen,
            ),
            ("ledger", self.ledger != other.ledger),
            (
                "trust_domain",
                self.trust_domains.own != other.trust_domains.own,
            ),
            ("state_dir", self.state_dir != other.state_dir),
            ("device env", self.environment != other.environment),
            (
                "log",
                self.log.level != other.log.level || self.log.format != other.log.format,
            ),
        ];
        differs
            .iter()
            .find(|(_, differs)| *differs)
            .map(|(key, _)| *key)
    }
}

fn read(path: &Path) -> Result<String, ConfigError> {
    std::fs::read_to_string(path).map_err(|error| {
        let remedy = "name another with --config, or make one with `ca-server quickstart`";
        ConfigError(format!(
            "{}: cannot be read ({error}); {remedy}",
            path.display()
        ))
    })
}

/// A TOML file's text in this shape.
pub(crate) fn parse<T: serde::de::DeserializeOwned>(
    path: &Path,
    text: &str,
) -> Result<T, ConfigError> {
    let wrong = |error| {
        ConfigError(format!(
            "{}:{}: {}",
            path.display(),
            toml_text::line(text, &error),
            toml_text::sentence(text, &error)
        ))
    };
    toml::from_str(text).map_err(wrong)
}
