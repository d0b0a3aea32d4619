//! The config part by part, for `doctor`: one mistake hides nothing else. What cannot be read of a
//! part is a complaint about that part, in the words in which `serve` would refuse it; the other
//! parts are examined all the same.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::de::DeserializeOwned;
use signers::{KeyUri, PublicKey};
use toml::{Table, Value};

use super::check::Checker;
use super::file::{
    Csr, Device, File, Issuer, IssuerState, Jwt, Ledger, Monitoring, Profile as ProfileFile,
};
use super::judge::Judge;
use super::{Config, ConfigError, DeviceConfig, parse, read};
use crate::policy::{Member, Profile, ServingName, TrustDomains, default_group};
use crate::spiffe::TrustDomain;
use crate::store::ledger::Location;
use crate::timestamp::Timestamp;
use crate::x509::chain::IssuerChain;

/// A config, as far as it can be understood.
#[derive(Debug)]
pub struct Examination {
    /// Whether `serve` would take it: the first thing that it would refuse.
    pub refused: Option<ConfigError>,
    /// What else is wrong with the parts that are not listed one by one below.
    pub complaints: Vec<ConfigError>,
    /// What is worth a line in the log, and no reason to refuse.
    pub warnings: Vec<String>,
    /// `[ledger]`.
    pub ledger: Option<Location>,
    /// `state_dir`, or where a ledger in a file is.
    pub state_dir: Option<PathBuf>,
    /// `[csr] names`.
    pub names: Vec<ServingName>,
    /// `[profile]`.
    pub profile: Option<Profile>,
    /// `[[issuer]]`, in order.
    pub issuers: Vec<ExaminedIssuer>,
    /// Every place of every issuer's key, in order.
    pub keys: Vec<ExaminedKey>,
    /// `[[jwt]]`, in order.
    pub jwt: Vec<ExaminedJwt>,
}

/// One `[[issuer]]`.
#[derive(Debug)]
pub struct ExaminedIssuer {
    /// `id`.
    pub id: String,
    /// Whether it signs.
    pub active: bool,
    /// Its certificates.
    pub chain: Result<Arc<IssuerChain>, ConfigError>,
    /// Why what it issues would not be accepted; `None` if it would be, or if too little of the
    /// config can be read to tell.
    pub judged: Option<String>,
    /// Why `transcript` cannot be read.
    pub transcript: Option<ConfigError>,
}

/// One place of an issuer's key.
#[derive(Debug)]
pub struct ExaminedKey {
    /// The issuer's id, and which of its tokens where there are several.
    pub id: String,
    /// Whether its issuer signs.
    pub active: bool,
    /// The public key in the issuer's certificate, if that can be read.
    pub expected: Option<PublicKey>,
    /// Where it is; a retiring issuer need not say.
    pub uri: Result<Option<KeyUri>, ConfigError>,
    /// How its device is opened; `None` if that section is refused.
    pub device: Option<DeviceConfig>,
}

/// One `[[jwt]]`.
#[derive(Debug)]
pub struct ExaminedJwt {
    /// `issuer`.
    pub issuer: String,
    /// The key file.
    pub jwks: PathBuf,
    /// The first thing that `serve` would refuse of it.
    pub refused: Option<ConfigError>,
}

impl Examination {
    /// Examines the file and everything it names, as of `now`. An error only if there is no TOML to
    /// be read at all.
    pub fn of(path: &Path, now: Timestamp) -> Result<Self, ConfigError> {
        let text = read(path)?;
        let table: Table = parse(path, &text)?;
        let refused = Config::load(path, now);
        let warnings = refused
            .as_ref()
            .map(|config| config.warnings.clone())
            .unwrap_or_default();
        let mut parts = Parts {
            checker: Checker::new(path),
            table: &table,
            complaints: Vec::new(),
        };
        // The shape as a whole names lines, so it speaks first; its parts are then looked at one by
        // one.
        parts.complaints.extend(parse::<File>(path, &text).err());
        let names = parts.csr();
        let profile = parts
            .section::<ProfileFile>("profile")
            .and_then(|profile| parts.checked(|checker| checker.profile(&profile)));
        let issuers = parts.issuers(&names, profile.as_ref(), now);
        let mut examination = Self {
            refused: refused.err(),
            warnings,
            ledger: parts
                .section::<Ledger>("ledger")
                .and_then(|ledger| parts.checked(|checker| checker.ledger(&ledger))),
            names,
            profile,
            issuers,
            keys: parts.keys(),
            jwt: parts.jwt(),
            state_dir: None,
            complaints: Vec::new(),
        };
        let named = parts.text("state_dir").map(PathBuf::from);
        examination.state_dir = parts
            .checked(|checker| checker.state_dir(named.as_deref(), examination.ledger.as_ref()))
            .flatten();
        parts.rest();
        let first = examination
            .refused
            .as_ref()
            .map(|refused| refused.0.clone());
        examination.complaints = parts
            .complaints
            .into_iter()
            .filter(|other| Some(&other.0) != first.as_ref())
            .collect();
        Ok(examination)
    }

    /// Whether this is what `refused` says already.
    pub fn said(&self, complaint: &ConfigError) -> bool {
        self.refused
            .as_ref()
            .is_some_and(|refused| refused.0 == complaint.0)
    }
}

/// The file's table, and what was found wrong with it so far.
struct Parts<'a> {
    checker: Checker<'a>,
    table: &'a Table,
    complaints: Vec<ConfigError>,
}

impl Parts<'_> {
    /// A value in the shape it should have. What does not fit was named, with its line, by the
    /// reading of the whole.
    fn shaped<T: DeserializeOwned>(value: &Value) -> Option<T> {
        value.clone().try_into().ok()
    }

    fn section<T: DeserializeOwned>(&self, name: &str) -> Option<T> {
        self.table.get(name).and_then(Self::shaped)
    }

    fn list<T: DeserializeOwned>(&self, name: &str) -> Vec<T> {
        self.table
            .get(name)
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(Self::shaped)
            .collect()
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.table.get(name).and_then(Value::as_str)
    }

    fn checked<T>(
        &mut self,
        check: impl FnOnce(&Checker<'_>) -> Result<T, ConfigError>,
    ) -> Option<T> {
        check(&self.checker)
            .map_err(|complaint| self.complaints.push(complaint))
            .ok()
    }

    fn csr(&mut self) -> Vec<ServingName> {
        let Some(csr) = self.section::<Csr>("csr") else {
            return Vec::new();
        };
        self.checked(|checker| checker.address("csr.listen", &csr.listen));
        self.checked(|checker| checker.call_timeout(csr.call_timeout));
        self.checked(|checker| checker.names(&csr.names))
            .unwrap_or_default()
    }

    fn issuers(
        &self,
        names: &[ServingName],
        profile: Option<&Profile>,
        now: Timestamp,
    ) -> Vec<ExaminedIssuer> {
        let issuers: Vec<Issuer> = self.list("issuer");
        let is_active = |issuer: &Issuer| matches!(issuer.state, IssuerState::Active);
        let members = issuers.iter().map(|issuer| Member {
            id: &issuer.id,
            active: is_active(issuer),
            sibling_of: issuer.sibling_of.as_deref(),
        });
        let default = default_group(members);
        let own = self.text("trust_domain").and_then(TrustDomain::parse);
        let trust_domains = own.map(|own| TrustDomains {
            own,
            aliases: Vec::new(),
        });
        let judge = trust_domains
            .as_ref()
            .zip(profile)
            .map(|(trust_domains, profile)| Judge {
                profile,
                trust_domains,
                names,
                now,
            });
        let examined = |(place, issuer): (usize, &Issuer)| {
            let chain = self.checker.chain(issuer).map(Arc::new);
            let signs = chain
                .as_ref()
                .ok()
                .filter(|chain| is_active(issuer) && chain.may_sign_at(now));
            let serves = default.contains(&place) && !names.is_empty();
            let judged = signs
                .zip(judge.as_ref())
                .and_then(|(chain, judge)| judge.one(chain, serves).err());
            let transcript = self.checker.transcript(issuer).err();
            ExaminedIssuer {
                id: issuer.id.clone(),
                active: is_active(issuer),
                chain,
                judged,
                transcript,
            }
        };
        issuers.iter().enumerate().map(examined).collect()
    }

    fn keys(&mut self) -> Vec<ExaminedKey> {
        let issuers: Vec<Issuer> = self.list("issuer");
        let devices: BTreeMap<String, Device> = self.section("device").unwrap_or_default();
        issuers
            .iter()
            .flat_map(|issuer| self.keys_of(issuer, &devices))
            .collect()
    }

    fn keys_of(&mut self, issuer: &Issuer, devices: &BTreeMap<String, Device>) -> Vec<ExaminedKey> {
        let (active, expected) = (
            matches!(issuer.state, IssuerState::Active),
            self.checker.chain(issuer).ok(),
        );
        let expected = expected.map(|chain| chain.public_key().clone());
        let uris: Vec<Result<Option<KeyUri>, ConfigError>> = match self.checker.keys(issuer) {
            Err(complaint) => vec![Err(complaint)],
            Ok(uris) if uris.is_empty() => vec![Ok(None)],
            Ok(uris) => uris.into_iter().map(|uri| Ok(Some(uri))).collect(),
        };
        let several = uris.len() > 1;
        let key = |(number, uri)| {
            let id = if several {
                format!("{}, token {}", issuer.id, number + 1)
            } else {
                issuer.id.clone()
            };
            let device = self.checked(|checker| checker.device(issuer.device_of(number), devices));
            ExaminedKey {
                id,
                active,
                expected: expected.clone(),
                uri,
                device,
            }
        };
        uris.into_iter().enumerate().map(key).collect()
    }

    fn jwt(&mut self) -> Vec<ExaminedJwt> {
        let jwt: Vec<Jwt> = self.list("jwt");
        let examined = |jwt: &Jwt| ExaminedJwt {
            issuer: jwt.issuer.clone(),
            jwks: self.checker.file(&jwt.jwks),
            refused: self.checker.jwt(jwt, &mut Vec::new()).err(),
        };
        jwt.iter().map(examined).collect()
    }

    /// The keys at the top, and the listener that is left.
    fn rest(&mut self) {
        if let Some(name) = self.text("trust_domain").map(str::to_owned) {
            self.checked(|checker| checker.trust_domain("trust_domain", &name));
        }
        if let Some(name) = self.text("cluster_id").map(str::to_owned) {
            self.checked(|checker| checker.not_empty("cluster_id", &name));
        }
        if let Some(monitoring) = self.section::<Monitoring>("monitoring") {
            self.checked(|checker| checker.address("monitoring.listen", &monitoring.listen));
        }
    }
}
