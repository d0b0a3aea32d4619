//! The file of a signer that is a service of its own: which keys it opens, what each may sign, who
//! may connect, and where alarms go. What it says is all that counts; a daemon adds nothing to it.
//! Unknown keys are refused, relative paths count from its directory.

use std::fmt::Display;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use serde::de::IgnoredAny;
use signers::{KeyUri, PublicKey};

use crate::cli::Exit;
use crate::config::{self, Log, device};
use crate::guard::key_rules::{BACKDATED_AT_MOST, KeyRules, LeafRules, ServingRules};
use crate::guard::pattern::IdentityPattern;
use crate::guard::{Issuer, Name, Templates};
use crate::policy::ServingName;
use crate::spiffe::TrustDomain;
use crate::x509::pem;

/// The whole file, checked.
pub(super) struct RulesFile {
    pub(super) log: Log,
    pub(super) network: bool,
    pub(super) alarms: PathBuf,
    /// Where a try of a PIN leaves its mark.
    pub(super) state_dir: PathBuf,
    pub(super) peers: Peers,
    pub(super) keys: Vec<Key>,
    /// What each key may sign, in their order.
    pub(super) rules: Vec<KeyRules>,
    pub(super) templates: Templates,
}

/// Users and groups whose processes may connect.
pub(super) struct Peers {
    uids: Vec<u32>,
    gids: Vec<u32>,
}

impl Peers {
    /// Whether a process of this user and group may.
    pub(super) fn allow(&self, uid: u32, gid: u32) -> bool {
        self.uids.contains(&uid) || self.gids.contains(&gid)
    }
}

/// A key, and how it is opened.
#[derive(Clone)]
pub(super) struct Key {
    pub(super) uri: KeyUri,
    pub(super) expected: PublicKey,
    pub(super) sessions: usize,
    pub(super) device_limit: Duration,
    pub(super) open_limit: Duration,
    pub(super) init_string: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    uids: Vec<u32>,
    #[serde(default)]
    gids: Vec<u32>,
    alarms: PathBuf,
    state_dir: Option<PathBuf>,
    #[serde(default)]
    network: bool,
    templates: Option<Vec<u16>>,
    #[serde(default)]
    log: Log,
    key: Vec<KeyFile>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyFile {
    uri: String,
    issuer: PathBuf,
    #[serde(default = "device::sessions")]
    sessions: u16,
    #[serde(default = "device::timeout", with = "humantime_serde")]
    timeout: Duration,
    #[serde(default = "device::open_timeout", with = "humantime_serde")]
    open_timeout: Duration,
    init_string: Option<String>,
    leaf: Option<LeafFile>,
    serving: Option<ServingFile>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LeafFile {
    trust_domains: Vec<String>,
    identities: Option<Vec<String>>,
    #[serde(with = "humantime_serde")]
    longest: Duration,
    // Of a former version; a sentence says that they are gone.
    key_usages: Option<IgnoredAny>,
    extensions: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ServingFile {
    names: Vec<String>,
    #[serde(with = "humantime_serde")]
    longest: Duration,
    // Of a former version; a sentence says that they are gone.
    key_usages: Option<IgnoredAny>,
    extensions: Option<IgnoredAny>,
}

impl RulesFile {
    /// Reads and checks the file and the certificates that it names; opens no device.
    pub(super) fn load(path: &Path) -> Result<Self, Exit> {
        let checker = Checker {
            path,
            directory: directory(path),
        };
        let text = checker.read_guarded(path)?;
        let text =
            std::str::from_utf8(&text).map_err(|_| checker.bad("the file", "is not UTF-8"))?;
        checker.file(config::parse(path, text).map_err(Exit::config)?)
    }
}

fn directory(path: &Path) -> PathBuf {
    let directory = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    std::path::absolute(directory).unwrap_or_else(|_| directory.to_owned())
}

struct Checker<'a> {
    path: &'a Path,
    directory: PathBuf,
}

impl Checker<'_> {
    fn bad(&self, key: &str, why: impl Display) -> Exit {
        Exit::config(format_args!("{}: {key} {why}", self.path.display()))
    }

    /// A file that nobody but its owner can change, who is root or ourselves: whoever writes it
    /// decides what is signed.
    fn read_guarded(&self, path: &Path) -> Result<Vec<u8>, Exit> {
        let failed = |error: std::io::Error| {
            Exit::config(format_args!("{} cannot be read: {error}", path.display()))
        };
        let seen = std::fs::metadata(path).map_err(failed)?;
        let ours = [0, rustix::process::geteuid().as_raw()].contains(&seen.uid());
        if !ours || seen.mode() & 0o022 != 0 {
            let remedy = format_args!("run: chown root {0} && chmod go-w {0}", path.display());
            return Err(Exit::config(format_args!(
                "{} could be changed by others, and it decides what is signed; {remedy}",
                path.display()
            )));
        }
        std::fs::read(path).map_err(failed)
    }

    fn file(&self, file: File) -> Result<RulesFile, Exit> {
        if file.uids.is_empty() && file.gids.is_empty() {
            return Err(self.bad("`uids`", "and `gids` are empty, so nobody could connect; write what `id -u` says of the daemon's user"));
        }
        if file.key.is_empty() {
            return Err(self.bad("`key`", "is missing; write a [[key]] for each key that the daemon's issuers on this device name"));
        }
        let templates = file
            .templates
            .as_deref()
            .map_or_else(|| Ok(Templates::known()), Templates::of);
        let templates = templates.map_err(|why| self.bad("`templates`:", why))?;
        let (mut keys, mut rules) = (Vec::new(), Vec::new());
        for (number, key) in (1..).zip(file.key) {
            let (key, its) = self.key(&format!("key {number}:"), key)?;
            keys.push(key);
            rules.push(its);
        }
        let alarms = self.directory.join(file.alarms);
        let state_dir = match &file.state_dir {
            Some(named) => self.directory.join(named),
            None => alarms.parent().unwrap_or(Path::new("/")).to_owned(),
        };
        Ok(RulesFile {
            log: file.log,
            network: file.network,
            alarms,
            state_dir,
            peers: Peers {
                uids: file.uids,
                gids: file.gids,
            },
            keys,
            rules,
            templates,
        })
    }

    fn key(&self, of: &str, key: KeyFile) -> Result<(Key, KeyRules), Exit> {
        let uri = KeyUri::parse(&key.uri, &self.directory)
            .map_err(|error| self.bad(of, format_args!("`uri` {error}")))?;
        if let Some(pin) = uri.pin_source() {
            signers::check_secret_file(pin, "PIN").map_err(|error| {
                self.bad(of, format_args!("`uri` has a bad pin-source: {error}"))
            })?;
        }
        if let Some((setting, why)) = device::unfit(
            key.timeout,
            key.open_timeout,
            key.init_string.as_deref(),
            key.sessions,
        ) {
            return Err(self.bad(of, format_args!("`{setting}` {why}")));
        }
        let path = self.directory.join(&key.issuer);
        let issuer = self.issuer(&path).map_err(|why| {
            self.bad(of, format_args!("`issuer` names {}: {why}", path.display()))
        })?;
        let expected = PublicKey::from_spki_der(issuer.public_key()).map_err(|error| {
            self.bad(
                of,
                format_args!("`issuer` has a public key of an unknown kind: {error}"),
            )
        })?;
        if key.leaf.is_none() && key.serving.is_none() {
            return Err(self.bad(
                of,
                "has neither [key.leaf] nor [key.serving], so it could sign nothing",
            ));
        }
        let rules = KeyRules {
            issuer,
            leaf: key
                .leaf
                .map(|leaf| self.leaf(&format!("{of} [key.leaf]"), leaf))
                .transpose()?,
            serving: key
                .serving
                .map(|serving| self.serving(&format!("{of} [key.serving]"), serving))
                .transpose()?,
        };
        let (sessions, device_limit, open_limit) =
            (key.sessions.into(), key.timeout, key.open_timeout);
        Ok((
            Key {
                uri,
                expected,
                sessions,
                device_limit,
                open_limit,
                init_string: key.init_string,
            },
            rules,
        ))
    }

    /// The first certificate of a PEM file.
    fn issuer(&self, path: &Path) -> Result<Issuer, String> {
        let pem = self.read_guarded(path).map_err(|exit| exit.to_string())?;
        let blocks = pem::certificates(&pem).map_err(|error| error.to_string())?;
        Issuer::parse(&blocks[0].der).map_err(|violation| violation.to_string())
    }

    fn leaf(&self, of: &str, leaf: LeafFile) -> Result<LeafRules, Exit> {
        if leaf.trust_domains.is_empty() {
            return Err(self.bad(
                of,
                "`trust_domains` is empty; name the mesh's, such as \"cluster.local\"",
            ));
        }
        if let Some(name) = leaf
            .trust_domains
            .iter()
            .find(|name| TrustDomain::parse(name).is_none())
        {
            return Err(self.bad(
                of,
                format_args!("`trust_domains` holds {name:?}, which is no trust domain"),
            ));
        }
        let of_istio = || {
            leaf.trust_domains
                .iter()
                .map(|domain| format!("spiffe://{domain}/ns/*/sa/*"))
                .collect()
        };
        let patterns = leaf.identities.clone().unwrap_or_else(of_istio);
        let mut identities = Vec::new();
        for text in &patterns {
            let pattern = IdentityPattern::parse(text)
                .map_err(|why| self.bad(of, format_args!("`identities`: {why}")))?;
            if !leaf
                .trust_domains
                .iter()
                .any(|domain| domain == pattern.trust_domain())
            {
                return Err(self.bad(
                    of,
                    format_args!(
                        "`identities` holds {text:?}, which is of none of its `trust_domains`"
                    ),
                ));
            }
            identities.push(pattern);
        }
        if identities.is_empty() {
            return Err(self.bad(of, "`identities` is empty, so nobody could have a certificate; leave it out, or name some"));
        }
        self.gone(of, leaf.key_usages, leaf.extensions)?;
        Ok(LeafRules {
            trust_domains: Vec::new(),
            identities,
            longest: self.longest(of, leaf.longest)?,
        })
    }

    fn serving(&self, of: &str, serving: ServingFile) -> Result<ServingRules, Exit> {
        if serving.names.is_empty() {
            return Err(self.bad(
                of,
                "`names` is empty; write those of the daemon's `csr.names`",
            ));
        }
        let names = serving
            .names
            .iter()
            .map(|text| match ServingName::parse(text) {
                Some(ServingName::Dns(name)) => Ok(Name::Dns(name)),
                Some(ServingName::Ip(address)) => Ok(Name::Address(address)),
                None => Err(self.bad(
                    of,
                    format_args!("`names` holds {text:?}, no DNS name and no IP address"),
                )),
            });
        let names = names.collect::<Result<_, _>>()?;
        self.gone(of, serving.key_usages, serving.extensions)?;
        Ok(ServingRules {
            names,
            longest: self.longest(of, serving.longest)?,
        })
    }

    fn gone(
        &self,
        of: &str,
        key_usages: Option<IgnoredAny>,
        extensions: Option<IgnoredAny>,
    ) -> Result<(), Exit> {
        let named = [("`key_usages`", key_usages), ("`extensions`", extensions)]
            .into_iter()
            .find_map(|(key, found)| found.map(|_| key));
        let why = "is no setting any more: the guard writes each certificate's body itself and takes no other; remove the line";
        named.map_or(Ok(()), |key| Err(self.bad(of, format_args!("{key} {why}"))))
    }

    fn longest(&self, of: &str, longest: Duration) -> Result<i64, Exit> {
        if longest.is_zero() {
            return Err(self.bad(
                of,
                "`longest` is 0; write the longest lifetime, such as \"24h\"",
            ));
        }
        let longest = longest
            .checked_add(BACKDATED_AT_MOST)
            .and_then(|longest| i64::try_from(longest.as_secs()).ok());
        longest.ok_or_else(|| self.bad(of, "`longest` is too long"))
    }
}
