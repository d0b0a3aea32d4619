//! Opens the keys of the issuers that sign: each device in a process of its own, or on threads of this one. A signer that would be started just
//! as before is taken over from the snapshot before, sessions and all.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use ::signers::process::{KeyOfProcess, ProcessOptions, Way, start};
use ::signers::{KeyUri, PoolOptions, SignError, Signer};

use crate::cli::Exit;
use crate::config::{Config, DeviceConfig, Isolation, IssuerConfig, LogFormat};
use crate::guard::Rules;
use crate::issue::{PERMITS, Snapshot};
use crate::issuer::Issuer;
use crate::metrics::{Metrics, SignerMetrics};
use crate::policy::ServingName;

/// A device that takes longer to open its first session is taken for dead.
const OPENED_WITHIN: Duration = Duration::from_secs(30);

/// The longest pause between two attempts to replace a signer process: a token that comes back is found within ten seconds.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// By how much a certificate's validity may begin before it is issued.
const BACKDATED_AT_MOST: Duration = Duration::from_secs(120);

/// The issuers of a config, in its order, those that sign with open keys.
pub(super) async fn open(config: &Config, metrics: &Arc<Metrics>, before: Option<&Snapshot>) -> Result<Vec<Issuer>, Exit> {
    let mut issuers: Vec<Issuer> =
        config.issuers.iter().map(|issuer| Issuer { chain: issuer.chain.clone(), signer: None, started_with: "".into() }).collect();
    for device in devices(config) {
        let wanted = Wanted::of(config, &device);
        let started_with: Arc<str> = wanted.description().into();
        let signers = match before.and_then(|before| wanted.kept(before, &started_with)) {
            Some(signers) => signers,
            None => wanted.start(metrics).await?,
        };
        for ((at, _), signer) in wanted.issuers.iter().zip(signers) {
            (issuers[*at].signer, issuers[*at].started_with) = (Some(signer), started_with.clone());
        }
    }
    Ok(issuers)
}

/// What is opened together: a device's keys in one process, or one key on threads.
fn devices(config: &Config) -> Vec<Opened> {
    let mut devices: Vec<Opened> = Vec::new();
    for (at, issuer) in config.issuers.iter().enumerate() {
        let Some(key) = &issuer.key else { continue };
        // A file is no device: there is no library to keep apart, and nothing that could hang.
        let together = issuer.device.isolation == Isolation::Process && !key.is_file();
        match devices.iter_mut().find(|opened| together && opened.process && opened.device == issuer.device) {
            Some(opened) => opened.issuers.push(at),
            None => devices.push(Opened { device: issuer.device.clone(), process: together, issuers: vec![at] }),
        }
    }
    devices
}

struct Opened {
    device: DeviceConfig,
    process: bool,
    /// Which of the config's issuers.
    issuers: Vec<usize>,
}

struct Wanted<'a> {
    config: &'a Config,
    opened: &'a Opened,
    issuers: Vec<(usize, &'a IssuerConfig)>,
}

impl<'a> Wanted<'a> {
    fn of(config: &'a Config, opened: &'a Opened) -> Self {
        let issuers = opened.issuers.iter().map(|at| (*at, &config.issuers[*at])).collect();
        Self { config, opened, issuers }
    }

    fn key(issuer: &IssuerConfig) -> &KeyUri {
        issuer.key.as_ref().expect("only issuers with a key are opened")
    }

    fn names(&self) -> String {
        self.issuers.iter().map(|(_, issuer)| issuer.chain.id()).collect::<Vec<_>>().join(", ")
    }

    /// Everything that a start depends on.
    fn description(&self) -> String {
        let keys = self.issuers.iter().map(|(_, issuer)| (Self::key(issuer).to_string(), issuer.chain.public_key().fingerprint()));
        let rules = if self.opened.process { self.rules() } else { Vec::new() };
        format!("{:?} {:?} {:?}", self.opened.device, keys.collect::<Vec<_>>(), String::from_utf8_lossy(&rules))
    }

    fn kept(&self, before: &Snapshot, started_with: &Arc<str>) -> Option<Vec<Signer>> {
        let kept = |issuer: &IssuerConfig| {
            let same = |former: &&Issuer| former.started_with == *started_with && former.chain.public_key() == issuer.chain.public_key();
            before.issuers.0.iter().find(same).and_then(|former| former.signer.clone())
        };
        self.issuers.iter().map(|(_, issuer)| kept(issuer)).collect()
    }

    async fn start(&self, metrics: &Arc<Metrics>) -> Result<Vec<Signer>, Exit> {
        let started = if self.opened.process { self.in_a_process(metrics).await } else { self.on_threads(metrics).await };
        let about = |error: &dyn Display| format!("issuer {}: {error}", self.names());
        let signers = started.map_err(|error| match error {
            SignError::Lost(_) | SignError::Busy(_) | SignError::Stopped => Exit::missing(about(&error)),
            SignError::Locked(_) | SignError::Rejected(_) | SignError::Forbidden(_) => Exit::config(about(&error)),
        })?;
        if signers.iter().any(Signer::is_file) {
            tracing::warn!(issuer = self.names(), "its key is a file: good for development and migration, no hardware protects it");
        }
        Ok(signers)
    }

    async fn in_a_process(&self, metrics: &Arc<Metrics>) -> Result<Vec<Signer>, SignError> {
        let keys = self.issuers.iter().map(|(_, issuer)| KeyOfProcess {
            uri: Self::key(issuer).clone(),
            expected: issuer.chain.public_key().clone(),
            sessions: self.opened.device.sessions,
            observer: Arc::new(SignerMetrics::new(metrics, issuer.chain.id())),
        });
        start(ProcessOptions {
            way: self.way(),
            keys: keys.collect(),
            rules: self.rules(),
            device_limit: self.opened.device.timeout,
            opened_within: OPENED_WITHIN,
            longest_pause: LONGEST_PAUSE,
        })
        .await
    }

    fn way(&self) -> Way {
        let device = &self.opened.device;
        if let Some(socket) = &device.socket {
            return Way::Connect(socket.clone());
        }
        let mut arguments = vec!["signer".into(), "--log-level".into(), self.config.log.level.clone().into()];
        arguments.extend((self.config.log.format == LogFormat::Json).then(|| "--log-json".into()));
        arguments.extend(device.network.then(|| "--network".into()));
        // The same program, also when its file was replaced meanwhile.
        Way::Spawn { program: "/proc/self/exe".into(), arguments, environment: device.environment.clone() }
    }

    fn rules(&self) -> Vec<u8> {
        let issuing = |issuer: &IssuerConfig| issuer.chain.chain().first().map(hex::encode).unwrap_or_default();
        let name = |name: &ServingName| match name {
            ServingName::Dns(name) => name.clone(),
            ServingName::Ip(address) => address.to_string(),
        };
        let rules = Rules {
            issuers: self.issuers.iter().map(|(_, issuer)| issuing(issuer)).collect(),
            trust_domain: self.config.trust_domains.own.to_string(),
            longest: (self.config.profile.maximum + BACKDATED_AT_MOST).as_secs(),
            serving_names: self.config.names.iter().map(name).collect(),
        };
        rules.to_text()
    }

    async fn on_threads(&self, metrics: &Arc<Metrics>) -> Result<Vec<Signer>, SignError> {
        let mut signers = Vec::new();
        for (_, issuer) in &self.issuers {
            let options = PoolOptions {
                threads: self.opened.device.sessions,
                queue: PERMITS,
                expected: Some(issuer.chain.public_key().clone()),
                observer: Arc::new(SignerMetrics::new(metrics, issuer.chain.id())),
                ..PoolOptions::default()
            };
            let key = Self::key(issuer).clone();
            let started = tokio::time::timeout(OPENED_WITHIN, tokio::task::spawn_blocking(move || Signer::start(key, options))).await;
            let silent = |_| SignError::Lost(format!("its device has not answered for {} s", OPENED_WITHIN.as_secs()));
            signers.push(started.map_err(silent)?.map_err(|error| SignError::Lost(error.to_string()))??);
        }
        Ok(signers)
    }
}
