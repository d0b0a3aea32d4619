//! Turns the file's shape into typed parts, key by key, and reads the files that it names.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use signers::KeyUri;

use super::device::unfit;
use super::file::{
    Device, File, Isolation, Issuer, IssuerState, Jwt, Key, Ledger, Profile as ProfileFile, San,
};
use super::judge::Judge;
use super::{
    Config, ConfigError, DeviceConfig, Files, IssuerConfig, JwtConfig, KeyConfig, RequestDefaults,
};
use crate::authn::jwks;
use crate::digest::sha256;
use crate::policy::{KeyAllowed, Profile, SanRule, ServingName, TrustDomains, default_group};
use crate::spiffe::TrustDomain;
use crate::store::ledger::{Location, ServerFiles, StartFact};
use crate::timestamp::Timestamp;
use crate::x509::chain::IssuerChain;

/// Limits on `csr.call_timeout`.
const CALL_TIMEOUT: std::ops::RangeInclusive<u64> = 100..=60_000;

/// Checks against one file, whose directory relative paths count from.
pub(super) struct Checker<'a> {
    path: &'a Path,
    directory: PathBuf,
    files: &'a Files,
}

impl<'a> Checker<'a> {
    pub(super) fn new(path: &'a Path) -> Self {
        let directory = path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty())
            .unwrap_or(Path::new("."))
            .to_owned();
        Self {
            path,
            directory: std::path::absolute(&directory).unwrap_or(directory),
            files: &Files::SYSTEM,
        }
    }

    /// The same with other files than the system's.
    pub(super) fn over(self, files: &'a Files) -> Self {
        Self { files, ..self }
    }

    pub(super) fn config(
        &self,
        file: File,
        text: &[u8],
        now: Timestamp,
    ) -> Result<Config, ConfigError> {
        let mut warnings = Vec::new();
        let digest = sha256(text);
        let trust_domains = TrustDomains {
            own: self.trust_domain("trust_domain", &file.trust_domain)?,
            aliases: self.each(&file.trust_domain_aliases, |alias| {
                self.trust_domain("trust_domain_aliases", alias)
            })?,
        };
        let (names, profile) = (self.names(&file.csr.names)?, self.profile(&file.profile)?);
        let issuers = self.issuers(&file, now, &mut warnings)?;
        let judge = Judge {
            profile: &profile,
            trust_domains: &trust_domains,
            names: &names,
            now,
        };
        warnings.extend(
            judge
                .all(&issuers)
                .map_err(|(id, why)| self.bad(&format!("issuer.{id}"), why))?,
        );
        if file.jwt.is_empty() {
            warnings.push(
                "no [[jwt]] issuer: only client certificates can prove an identity".to_owned(),
            );
        }
        let mut speaking = BTreeSet::new();
        if let Some(twice) = file
            .jwt
            .iter()
            .find(|jwt| !speaking.insert((&jwt.issuer, &jwt.cluster_id)))
        {
            let why = format_args!(
                "{:?} stands twice for cluster {:?}; put its audiences into one",
                twice.issuer, twice.cluster_id
            )
            .to_string();
            return Err(self.bad("jwt.issuer", why));
        }
        let timeout = self.call_timeout(file.csr.call_timeout)?;
        let ledger = self.ledger(&file.ledger)?;
        warnings.extend(ledger.warning());
        let jwt = self.each(&file.jwt, |jwt| self.jwt(jwt, &mut warnings))?;
        let state_dir = self.state_dir(file.state_dir.as_deref(), Some(&ledger))?;
        let has_a_pin =
            |key: &KeyConfig| key.uri.pin_source().is_some() && key.device.socket.is_none();
        if state_dir.is_none()
            && issuers
                .iter()
                .flat_map(|issuer| &issuer.keys)
                .any(has_a_pin)
        {
            let why = "`state_dir` is not set: where this is started again and again, a PIN may be tried each time; name a directory";
            warnings.push(why.to_owned());
        }
        Ok(Config {
            state_dir,
            path: self.path.to_owned(),
            digest,
            trust_domains,
            cluster_id: self.not_empty("cluster_id", &file.cluster_id)?,
            csr_listen: self.address("csr.listen", &file.csr.listen)?,
            names,
            call_timeout: timeout,
            monitoring_listen: self.address("monitoring.listen", &file.monitoring.listen)?,
            ledger,
            environment: self
                .environment(&file.device, |device| device.isolation == Isolation::Thread)?,
            issuers,
            profile,
            limits: file.limits,
            jwt,
            request: self.request(file.request),
            log: file.log,
            warnings,
        })
    }

    pub(super) fn request(&self, request: RequestDefaults) -> RequestDefaults {
        let file = |path: Option<PathBuf>| path.map(|path| self.file(&path));
        RequestDefaults {
            roots: file(request.roots),
            token_file: file(request.token_file),
            out: file(request.out),
            ..request
        }
    }

    /// Where the ledger is. The files that it names are read at each connection; what can be said
    /// of them now is said now.
    pub(super) fn ledger(&self, ledger: &Ledger) -> Result<Location, ConfigError> {
        let file = |path: &Option<PathBuf>| path.as_deref().map(|path| self.file(path));
        let files = ServerFiles {
            password: file(&ledger.password_file),
            roots: file(&ledger.roots),
            certificate: file(&ledger.certificate),
            key: file(&ledger.key),
        };
        if let Some(password) = &files.password {
            (self.files.check_secret)(password, "password").map_err(|error| {
                self.bad("ledger.password_file", format_args!("names a bad {error}"))
            })?;
        }
        for (key, path) in [
            ("roots", &files.roots),
            ("certificate", &files.certificate),
            ("key", &files.key),
        ] {
            if let Some(path) = path {
                self.read(&format!("ledger.{key}"), path)?;
            }
        }
        (self.files.check_server)(&files)
            .map_err(|why| self.bad("ledger", format_args!("names a bad file: {why}")))?;
        // What the URL says is repeated where it is refused, except what may be a secret.
        Location::parse(&ledger.url, files, &self.directory)
            .map_err(|why| self.bad("ledger.url", why))
    }

    /// Where a try of a PIN leaves its mark: the directory that is named, or that of a ledger in a
    /// file.
    pub(super) fn state_dir(
        &self,
        named: Option<&Path>,
        ledger: Option<&Location>,
    ) -> Result<Option<PathBuf>, ConfigError> {
        match (named, ledger) {
            (Some(named), _) => {
                let directory = self.file(named);
                match directory.is_dir() {
                    true => Ok(Some(directory)),
                    false => Err(self.bad(
                        "state_dir",
                        format_args!(
                            "names {}, which is no directory; make it",
                            directory.display()
                        ),
                    )),
                }
            }
            (None, Some(Location::Sqlite(file))) => Ok(file.parent().map(Path::to_owned)),
            (None, Some(Location::Postgres(_)) | None) => Ok(None),
        }
    }

    fn bad(&self, key: &str, why: impl Display) -> ConfigError {
        ConfigError(format!("{}: `{key}` {why}", self.path.display()))
    }

    pub(super) fn file(&self, path: &Path) -> PathBuf {
        self.directory.join(path)
    }

    fn read(&self, key: &str, path: &Path) -> Result<Vec<u8>, ConfigError> {
        let path = self.file(path);
        (self.files.read)(&path).map_err(|error| {
            self.bad(
                key,
                format_args!("names {}, which cannot be read: {error}", path.display()),
            )
        })
    }

    fn each<T, U>(
        &self,
        items: &[T],
        check: impl FnMut(&T) -> Result<U, ConfigError>,
    ) -> Result<Vec<U>, ConfigError> {
        items.iter().map(check).collect()
    }

    pub(super) fn not_empty(&self, key: &str, text: &str) -> Result<String, ConfigError> {
        if text.is_empty() {
            Err(self.bad(key, "is empty"))
        } else {
            Ok(text.to_owned())
        }
    }

    pub(super) fn trust_domain(&self, key: &str, name: &str) -> Result<TrustDomain, ConfigError> {
        TrustDomain::parse(name).ok_or_else(|| {
            self.bad(
                key,
                format_args!(
                    "{name:?} is no trust domain; use lower-case letters, digits, dots and dashes"
                ),
            )
        })
    }

    pub(super) fn address(&self, key: &str, text: &str) -> Result<SocketAddr, ConfigError> {
        text.parse()
            .map_err(|_| self.bad(key, format_args!("{text:?} is no address; write an IP address and a port, such as 127.0.0.1:15012")))
    }

    pub(super) fn call_timeout(&self, timeout: Duration) -> Result<Duration, ConfigError> {
        let legal = CALL_TIMEOUT.contains(&u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX));
        if legal {
            Ok(timeout)
        } else {
            Err(self.bad("csr.call_timeout", "lies outside 100ms–60s"))
        }
    }

    pub(super) fn names(&self, names: &[String]) -> Result<Vec<ServingName>, ConfigError> {
        if names.is_empty() {
            return Err(self.bad(
                "csr.names",
                "is empty; list every name that agents dial, such as istiod.istio-system.svc",
            ));
        }
        let name = |name: &String| {
            ServingName::parse(name).ok_or_else(|| {
                self.bad(
                    "csr.names",
                    format_args!("holds {name:?}, no DNS name and no IP address"),
                )
            })
        };
        self.each(names, name)
    }

    /// One process has one environment, so two devices that are opened in it must not want
    /// different values.
    pub(super) fn environment(
        &self,
        devices: &BTreeMap<String, Device>,
        opened_here: fn(&Device) -> bool,
    ) -> Result<BTreeMap<String, String>, ConfigError> {
        let mut together = BTreeMap::new();
        for (device, section) in devices.iter().filter(|(_, section)| opened_here(section)) {
            for (name, value) in &section.env {
                let legal =
                    !name.is_empty() && !name.contains(['=', '\0']) && !value.contains('\0');
                if !legal
                    || together
                        .insert(name.clone(), value.clone())
                        .is_some_and(|other| other != *value)
                {
                    let why =
                        "is not a legal variable, or another device wants another value of it";
                    return Err(self.bad(&format!("device.{device}.env.{name}"), why));
                }
            }
        }
        Ok(together)
    }

    fn issuers(
        &self,
        file: &File,
        now: Timestamp,
        warnings: &mut Vec<String>,
    ) -> Result<Vec<IssuerConfig>, ConfigError> {
        let mut ids = BTreeSet::new();
        let issuers = self.each(&file.issuer, |issuer| {
            if !ids.insert(issuer.id.clone()) {
                return Err(self.bad("issuer.id", format_args!("{:?} stands twice", issuer.id)));
            }
            if let Some(device) = issuer
                .device
                .0
                .iter()
                .find(|device| !file.device.contains_key(*device))
            {
                return Err(self.bad(
                    &of(issuer, "device"),
                    format_args!("names [device.{device}], which is not there"),
                ));
            }
            self.issuer(issuer, &file.device, now, warnings)
        })?;
        self.siblings(&issuers)?;
        if !issuers.iter().any(|issuer| !issuer.keys.is_empty()) {
            return Err(self.bad("issuer", "has no active entry, so nothing could be issued"));
        }
        self.default_issuers(&issuers, now)?;
        Ok(issuers)
    }

    fn issuer(
        &self,
        issuer: &Issuer,
        devices: &BTreeMap<String, Device>,
        now: Timestamp,
        warnings: &mut Vec<String>,
    ) -> Result<IssuerConfig, ConfigError> {
        self.not_empty("issuer.id", &issuer.id)?;
        let chain = self.chain(issuer)?;
        let about = |warning: &String| format!("issuer {}: {warning}", issuer.id);
        warnings.extend(chain.warnings().iter().map(about));
        if chain.may_sign_at(now) {
            // Roots that the chain does not need.
            warnings.extend(chain.out_of_date(now).iter().map(about));
        }
        let uris = self.keys(issuer)?;
        let key_uris = uris
            .iter()
            .map(KeyUri::without_secrets)
            .collect::<Vec<_>>()
            .join(" ");
        let recorded = StartFact::Issuer {
            id: issuer.id.clone(),
            chain: chain.chain().to_vec(),
            roots: chain.roots().to_vec(),
            key_uri: key_uris.clone(),
        };
        if !recorded.fits() {
            let why = "together have more octets than the 65,535 of the ledger's row about an issuer; leave out roots that are not needed";
            return Err(self.bad(
                &format!("{} and {}", of(issuer, "chain"), of(issuer, "roots")),
                why,
            ));
        }
        let keys = match issuer.state {
            IssuerState::Active => {
                for pin in uris.iter().filter_map(KeyUri::pin_source) {
                    (self.files.check_secret)(pin, "PIN").map_err(|error| {
                        self.bad(
                            &of(issuer, "key"),
                            format_args!("has a bad pin-source: {error}"),
                        )
                    })?;
                }
                self.places(issuer, uris, devices)?
            }
            IssuerState::Retiring => Vec::new(),
        };
        if !chain.may_sign_at(now) {
            let state = if keys.is_empty() {
                "retiring"
            } else {
                "active"
            };
            warnings.push(format!(
                "{state} issuer {} {}",
                issuer.id,
                validity(&chain, now)
            ));
        }
        Ok(IssuerConfig {
            chain: Arc::new(chain),
            keys,
            key_uris,
            transcript: self.transcript(issuer)?,
            sibling_of: issuer.sibling_of.clone(),
        })
    }

    /// One issuer of those that sign for calls which name none must be good for signatures, now or
    /// when its time comes.
    fn default_issuers(&self, issuers: &[IssuerConfig], now: Timestamp) -> Result<(), ConfigError> {
        let default = default_group(issuers.iter().map(IssuerConfig::member));
        let default: Vec<_> = default
            .into_iter()
            .map(|place| &issuers[place].chain)
            .collect();
        match default.first() {
            Some(first) if default.iter().all(|chain| chain.is_over_at(now)) => {
                let siblings = if default.len() > 1 {
                    ", and its siblings' time is over, too"
                } else {
                    ""
                };
                let why = format_args!(
                    "{}{siblings}; renew it, or set state = \"retiring\"",
                    validity(first, now)
                );
                Err(self.bad(&format!("issuer.{}.chain", first.id()), why))
            }
            _ => Ok(()),
        }
    }

    /// Siblings stand in for one another, so whoever trusts one must trust the other.
    fn siblings(&self, issuers: &[IssuerConfig]) -> Result<(), ConfigError> {
        for (issuer, id) in issuers
            .iter()
            .filter_map(|issuer| issuer.sibling_of.as_ref().map(|id| (issuer, id)))
        {
            let bad = |why: &str| {
                Err(self.bad(
                    &format!("issuer.{}.sibling_of", issuer.chain.id()),
                    format_args!("names {id:?}, {why}"),
                ))
            };
            let Some(other) = issuers.iter().find(|other| other.chain.id() == id) else {
                return bad("and there is no such issuer");
            };
            if other.sibling_of.is_some() || other.chain.id() == issuer.chain.id() {
                return bad(
                    "which is a sibling itself; name the issuer that they all stand beside",
                );
            }
            if other.chain.roots() != issuer.chain.roots() {
                return bad("which has other roots; siblings stand under one root");
            }
            if other.chain.public_key() == issuer.chain.public_key() {
                return bad("which has the same key; name both places of one key in `key` instead");
            }
        }
        Ok(())
    }

    /// Each key with its device: one device for all, or one for each in the same order.
    fn places(
        &self,
        issuer: &Issuer,
        uris: Vec<KeyUri>,
        devices: &BTreeMap<String, Device>,
    ) -> Result<Vec<KeyConfig>, ConfigError> {
        let names = &issuer.device.0;
        if names.len() > 1 && names.len() != uris.len() {
            let why = format_args!(
                "names {} devices for {} keys; name one for all, or one for each",
                names.len(),
                uris.len()
            );
            return Err(self.bad(&of(issuer, "device"), why));
        }
        let mut places: Vec<KeyConfig> = Vec::new();
        for (number, uri) in uris.into_iter().enumerate() {
            let place = KeyConfig {
                uri,
                device: self.device(issuer.device_of(number), devices)?,
            };
            if places.iter().any(|other| {
                other.uri.without_secrets() == place.uri.without_secrets()
                    && other.device == place.device
            }) {
                return Err(self.bad(
                    &of(issuer, "key"),
                    format_args!("names {} twice", place.uri.without_secrets()),
                ));
            }
            places.push(place);
        }
        Ok(places)
    }

    /// How a key's device is opened.
    pub(super) fn device(
        &self,
        name: String,
        devices: &BTreeMap<String, Device>,
    ) -> Result<DeviceConfig, ConfigError> {
        let (plain, of) = (Device::default(), |key: &str| {
            format!("device.{name}.{key}")
        });
        let device = devices.get(&name).unwrap_or(&plain);
        if device.socket.is_some() && device.isolation == Isolation::Thread {
            return Err(self.bad(&of("socket"), "contradicts isolation = \"thread\""));
        }
        if let Some((key, why)) = unfit(
            device.timeout,
            device.open_timeout,
            device.init_string.as_deref(),
            device.sessions,
        ) {
            return Err(self.bad(&of(key), why));
        }
        let legal = |(name, value): (&String, &String)| {
            !name.is_empty() && !name.contains(['=', '\0']) && !value.contains('\0')
        };
        if !device.env.iter().all(legal) {
            return Err(self.bad(&of("env"), "holds a variable that is not legal"));
        }
        Ok(DeviceConfig {
            environment: device.env.clone(),
            isolation: device.isolation,
            socket: device.socket.as_deref().map(|path| self.file(path)),
            timeout: device.timeout,
            open_timeout: device.open_timeout,
            init_string: device.init_string.clone(),
            network: device.network,
            sessions: device.sessions.into(),
            name,
        })
    }

    /// The certificates, whatever the time.
    pub(super) fn chain(&self, issuer: &Issuer) -> Result<IssuerChain, ConfigError> {
        let chain_pem = self.read(&of(issuer, "chain"), &issuer.chain)?;
        let roots_pem = self.read(&of(issuer, "roots"), &issuer.roots)?;
        IssuerChain::parse(&issuer.id, &chain_pem, &roots_pem).map_err(|why| {
            self.bad(
                &format!("issuer.{}", issuer.id),
                format_args!("has certificates that do not fit: {why}"),
            )
        })
    }

    /// Where the key is, one place or several; an active issuer must say.
    pub(super) fn keys(&self, issuer: &Issuer) -> Result<Vec<KeyUri>, ConfigError> {
        let parsed = self.each(&issuer.key.0, |uri| {
            KeyUri::parse(uri, &self.directory).map_err(|error| self.bad(&of(issuer, "key"), error))
        })?;
        match issuer.state {
            IssuerState::Active if parsed.is_empty() => Err(self.bad(
                &of(issuer, "key"),
                "is missing; an active issuer needs the URI of its key",
            )),
            _ => Ok(parsed),
        }
    }

    /// The digest of the ceremony's transcript.
    pub(super) fn transcript(&self, issuer: &Issuer) -> Result<Option<[u8; 32]>, ConfigError> {
        let text = issuer
            .transcript
            .as_deref()
            .map(|path| self.read(&of(issuer, "transcript"), path))
            .transpose()?;
        Ok(text.map(|text| sha256(&text)))
    }

    pub(super) fn profile(&self, profile: &ProfileFile) -> Result<Profile, ConfigError> {
        let profile = Profile {
            default: profile.default,
            minimum: profile.minimum,
            maximum: profile.maximum,
            jitter: profile.jitter,
            san: match profile.san {
                San::Overwrite => SanRule::Overwrite,
                San::Strict => SanRule::Strict,
            },
            keys: profile.keys.iter().map(|key| key_allowed(*key)).collect(),
        };
        profile.checked().map_err(|bad| {
            self.bad(
                &format!("profile.{}", bad.key),
                format_args!("cannot be: {}", bad.why),
            )
        })
    }

    pub(super) fn jwt(
        &self,
        jwt: &Jwt,
        warnings: &mut Vec<String>,
    ) -> Result<JwtConfig, ConfigError> {
        self.not_empty("jwt.issuer", &jwt.issuer)?;
        if jwt.audiences.is_empty() || jwt.audiences.iter().any(String::is_empty) {
            return Err(self.bad(
                "jwt.audiences",
                "needs at least one audience, none of them empty; Istio's is \"istio-ca\"",
            ));
        }
        let file = self.file(&jwt.jwks);
        let set = jwks::parse(&self.read("jwt.jwks", &jwt.jwks)?)
            .map_err(|why| self.bad("jwt.jwks", format_args!("names {}: {why}", file.display())))?;
        warnings.extend(
            set.warnings()
                .iter()
                .map(|warning| format!("{}: {warning}", file.display())),
        );
        Ok(JwtConfig {
            issuer: jwt.issuer.clone(),
            audiences: jwt.audiences.clone(),
            cluster_id: self.not_empty("jwt.cluster_id", &jwt.cluster_id)?,
            jwks: file,
            refresh: jwt.refresh,
        })
    }
}

/// An issuer's key in the file, as errors name it.
fn of(issuer: &Issuer, key: &str) -> String {
    format!("issuer.{}.{key}", issuer.id)
}

/// Which of an issuer's certificates is why it cannot sign now.
fn validity(chain: &IssuerChain, now: Timestamp) -> String {
    let out_of_date = chain.out_of_date(now);
    match out_of_date.is_empty() {
        true => format!(
            "is valid from {} to {}; it is now {now}",
            chain.begins(),
            chain.ends()
        ),
        false => format!(
            "is out of date: {}; it is now {now}",
            out_of_date.join("; ")
        ),
    }
}

fn key_allowed(key: Key) -> KeyAllowed {
    match key {
        Key::Rsa => KeyAllowed::Rsa,
        Key::P256 => KeyAllowed::P256,
        Key::P384 => KeyAllowed::P384,
        Key::Ed25519 => KeyAllowed::Ed25519,
    }
}
