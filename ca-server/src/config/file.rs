//! The shape of `ca.toml`. Unknown keys are refused; every value is checked in `config` and turned
//! into typed parts.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::device;
use crate::fairness::Limits;

/// The whole file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    pub trust_domain: String,
    #[serde(default)]
    pub trust_domain_aliases: Vec<String>,
    pub cluster_id: String,
    pub state_dir: Option<PathBuf>,
    pub csr: Csr,
    pub monitoring: Monitoring,
    pub ledger: Ledger,
    #[serde(default)]
    pub log: Log,
    #[serde(default)]
    pub request: RequestDefaults,
    #[serde(default)]
    pub device: BTreeMap<String, Device>,
    pub issuer: Vec<Issuer>,
    pub profile: Profile,
    #[serde(default)]
    pub limits: Limits,
    #[serde(default)]
    pub jwt: Vec<Jwt>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Csr {
    pub listen: String,
    pub names: Vec<String>,
    #[serde(default = "five_seconds", with = "humantime_serde")]
    pub call_timeout: Duration,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Monitoring {
    pub listen: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Ledger {
    pub url: String,
    pub password_file: Option<PathBuf>,
    pub roots: Option<PathBuf>,
    pub certificate: Option<PathBuf>,
    pub key: Option<PathBuf>,
}

/// How logs are written.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Log {
    /// A `tracing` filter, such as `info` or `info,ca_server=debug`.
    #[serde(default = "info")]
    pub level: String,
    /// For people or for machines.
    #[serde(default)]
    pub format: LogFormat,
}

impl Default for Log {
    fn default() -> Self {
        Self {
            level: info(),
            format: LogFormat::default(),
        }
    }
}

/// The shape of a log line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Defaults of the `request` verb, as they stand in the file; paths count from its directory once
/// they have left this room.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RequestDefaults {
    /// host:port.
    pub address: Option<String>,
    /// The name to verify the server's certificate for.
    pub server_name: Option<String>,
    /// PEM file of roots.
    pub roots: Option<PathBuf>,
    /// A file with a bearer token.
    pub token_file: Option<PathBuf>,
    /// `clusterid`.
    pub cluster_id: Option<String>,
    /// Directory for key and certificates.
    pub out: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Device {
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    #[serde(default)]
    pub isolation: Isolation,
    pub socket: Option<PathBuf>,
    #[serde(default = "device::timeout", with = "humantime_serde")]
    pub timeout: Duration,
    #[serde(default = "device::open_timeout", with = "humantime_serde")]
    pub open_timeout: Duration,
    pub init_string: Option<String>,
    #[serde(default)]
    pub network: bool,
    #[serde(default = "device::sessions")]
    pub sessions: u16,
}

impl Default for Device {
    fn default() -> Self {
        Self {
            env: BTreeMap::new(),
            isolation: Isolation::default(),
            socket: None,
            timeout: device::timeout(),
            open_timeout: device::open_timeout(),
            init_string: None,
            network: false,
            sessions: device::sessions(),
        }
    }
}

/// Where a device is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Isolation {
    /// In a process of its own.
    #[default]
    Process,
    /// On threads of the daemon.
    Thread,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Issuer {
    pub id: String,
    #[serde(default)]
    pub key: OneOrMore,
    pub chain: PathBuf,
    pub roots: PathBuf,
    #[serde(default)]
    pub state: IssuerState,
    pub transcript: Option<PathBuf>,
    #[serde(default)]
    pub device: OneOrMore,
    pub sibling_of: Option<String>,
}

impl Issuer {
    /// The device of its key of this number: one for all, or one for each; empty for none.
    pub fn device_of(&self, number: usize) -> String {
        self.device
            .0
            .get(number)
            .or(self.device.0.first())
            .cloned()
            .unwrap_or_default()
    }
}

/// A text, or several.
#[derive(Debug, Default)]
pub(super) struct OneOrMore(pub Vec<String>);

impl<'de> Deserialize<'de> for OneOrMore {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Texts;

        impl<'de> Visitor<'de> for Texts {
            type Value = OneOrMore;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string, or a list of strings")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<OneOrMore, E> {
                Ok(OneOrMore(vec![text.to_owned()]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<OneOrMore, A::Error> {
                let mut texts = Vec::new();
                while let Some(text) = list.next_element()? {
                    texts.push(text);
                }
                Ok(OneOrMore(texts))
            }
        }

        deserializer.deserialize_any(Texts)
    }
}

/// Whether an issuer signs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum IssuerState {
    #[default]
    Active,
    Retiring,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Profile {
    #[serde(default = "a_day", with = "humantime_serde")]
    pub default: Duration,
    #[serde(default = "ten_minutes", with = "humantime_serde")]
    pub minimum: Duration,
    #[serde(default = "ninety_days", with = "humantime_serde")]
    pub maximum: Duration,
    #[serde(default, with = "humantime_serde")]
    pub jitter: Duration,
    #[serde(default)]
    pub san: San,
    #[serde(default = "mesh_keys")]
    pub keys: Vec<Key>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum San {
    #[default]
    Overwrite,
    Strict,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Key {
    Rsa,
    P256,
    P384,
    Ed25519,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Jwt {
    pub issuer: String,
    pub audiences: Vec<String>,
    pub cluster_id: String,
    pub jwks: PathBuf,
    #[serde(default = "ten_seconds", with = "humantime_serde")]
    pub refresh: Duration,
}

fn info() -> String {
    "info".to_owned()
}

fn five_seconds() -> Duration {
    Duration::from_secs(5)
}

fn ten_seconds() -> Duration {
    Duration::from_secs(10)
}

fn ten_minutes() -> Duration {
    Duration::from_secs(600)
}

fn a_day() -> Duration {
    Duration::from_secs(86_400)
}

fn ninety_days() -> Duration {
    Duration::from_secs(90 * 86_400)
}

fn mesh_keys() -> Vec<Key> {
    vec![Key::Rsa, Key::P256, Key::P384]
}
