//! Opens the keys of the issuers that sign: each device in a process of its own, or on threads of this one. A signer that would be started just
//! as before is taken over from the snapshot before, sessions and all.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use ::signers::process::{KeyOfProcess, ProcessOptions, Way, start};
use ::signers::{PoolOptions, SignError, Signer};

use crate::cli::Exit;
use crate::config::{Config, DeviceConfig, Isolation, KeyConfig, LogFormat};
use crate::guard::Rules;
use crate::guard::key_rules::BACKDATED_AT_MOST;
use crate::issue::{PERMITS, Snapshot};
use crate::issuer::{Issuer, Issuers, OpenedKey};
use crate::metrics::{Metrics, SignerMetrics};
use crate::policy::ServingName;
use crate::x509::chain::IssuerChain;

/// A device that takes longer to open its first session is taken for dead.
const OPENED_WITHIN: Duration = Duration::from_secs(30);

/// The longest pause between two attempts to replace a signer process: a token that comes back is found within ten seconds.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// The issuers of a config, in its order, those that sign with open keys.
pub(super) async fn open(config: &Config, metrics: &Arc<Metrics>, before: Option<&Snapshot>) -> Result<Vec<Issuer>, Exit> {
    let mut opened: Vec<Vec<Option<OpenedKey>>> = config.issuers.iter().map(|issuer| vec![None; issuer.keys.len()]).collect();
    for places in groups(config) {
        let wanted = Wanted { config, places };
        let started_with: Arc<str> = wanted.description().into();
        let signers = match before.and_then(|before| wanted.kept(&before.issuers, &started_with)) {
            Some(signers) => signers,
            None => wanted.start(metrics).await?,
        };
        for (at, (place, signer)) in wanted.places.iter().zip(signers).enumerate() {
            opened[place.issuer][place.number] = Some(OpenedKey { signer, started_with: started_with.clone(), place: at });
        }
    }
    let issuers = config.issuers.iter().zip(opened).map(|(issuer, keys)| {
        let keys: Vec<OpenedKey> = keys.into_iter().flatten().collect();
        let signers: Vec<Signer> = keys.iter().map(|key| key.signer.clone()).collect();
        // Each was compared with the issuer's certificate when it was opened.
        Issuer { chain: issuer.chain.clone(), signer: Signer::together(&signers), keys }
    });
    Ok(issuers.collect())
}

/// One key of one issuer.
#[derive(Clone, Copy)]
struct Place<'a> {
    /// Which of the config's issuers.
    issuer: usize,
    /// Which of that issuer's keys.
    number: usize,
    key: &'a KeyConfig,
}

impl Place<'_> {
    /// A file is no device: there is no library to keep apart, and nothing that could hang.
    fn in_a_process(&self) -> bool {
        self.key.device.isolation == Isolation::Process && !self.key.uri.is_file()
    }

    /// Whether both are opened by one process: keys that may be in one token share it, so that a wrong PIN costs one try, and all keys of a
    /// signer that runs by itself.
    fn shares_a_process_with(&self, other: &Self) -> bool {
        let same_device = self.in_a_process() && other.in_a_process() && self.key.device == other.key.device;
        same_device && (self.key.device.socket.is_some() || self.key.uri.may_share_a_token_with(&other.key.uri))
    }
}

/// What is opened together.
fn groups(config: &Config) -> Vec<Vec<Place<'_>>> {
    let places = config.issuers.iter().enumerate().flat_map(|(issuer, of)| {
        let keys = of.keys.iter().enumerate();
        keys.map(move |(number, key)| Place { issuer, number, key })
    });
    grouped(places, Place::shares_a_process_with)
}

/// Whatever shares with anything in a group is in that group, so that two that share are never in two.
fn grouped<T>(all: impl Iterator<Item = T>, share: impl Fn(&T, &T) -> bool) -> Vec<Vec<T>> {
    let mut groups: Vec<Vec<T>> = Vec::new();
    for one in all {
        let (sharing, mut others): (Vec<_>, Vec<_>) = groups.into_iter().partition(|group| group.iter().any(|other| share(other, &one)));
        others.push(sharing.into_iter().flatten().chain([one]).collect());
        groups = others;
    }
    groups
}

/// Keys that are opened together; never none.
struct Wanted<'a> {
    config: &'a Config,
    places: Vec<Place<'a>>,
}

impl<'a> Wanted<'a> {
    fn device(&self) -> &'a DeviceConfig {
        &self.places[0].key.device
    }

    fn chain(&self, place: &Place<'_>) -> &'a IssuerChain {
        &self.config.issuers[place.issuer].chain
    }

    fn names(&self) -> String {
        self.places.iter().map(|place| self.chain(place).id()).collect::<Vec<_>>().join(", ")
    }

    /// Everything that a start depends on, and whom the metrics name.
    fn description(&self) -> String {
        let key = |place: &Place<'_>| {
            let chain = self.chain(place);
            (chain.id().to_owned(), place.number, place.key.uri.to_string(), chain.public_key().fingerprint())
        };
        let rules = if self.places[0].in_a_process() { self.rules() } else { Vec::new() };
        format!("{:?} {:?} {:?}", self.device(), self.places.iter().map(key).collect::<Vec<_>>(), String::from_utf8_lossy(&rules))
    }

    /// The signers of a snapshot before that were started just so, each for its own key.
    fn kept(&self, before: &Issuers, started_with: &Arc<str>) -> Option<Vec<Signer>> {
        let kept = |at: usize| {
            let mut former = before.0.iter().flat_map(|former| &former.keys);
            former.find(|key| key.started_with == *started_with && key.place == at).map(|key| key.signer.clone())
        };
        (0..self.places.len()).map(kept).collect()
    }

    async fn start(&self, metrics: &Arc<Metrics>) -> Result<Vec<Signer>, Exit> {
        let started = if self.places[0].in_a_process() { self.in_a_process(metrics).await } else { self.on_threads(metrics).await };
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
        let keys = self.places.iter().map(|place| KeyOfProcess {
            uri: place.key.uri.clone(),
            expected: self.chain(place).public_key().clone(),
            sessions: place.key.device.sessions,
            observer: Arc::new(SignerMetrics::new(metrics, self.chain(place).id(), place.number)),
        });
        start(ProcessOptions {
            way: self.way(),
            keys: keys.collect(),
            rules: self.rules(),
            device_limit: self.device().timeout,
            opened_within: OPENED_WITHIN,
            longest_pause: LONGEST_PAUSE,
        })
        .await
    }

    fn way(&self) -> Way {
        let device = self.device();
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
        let issuing = |place: &Place<'_>| self.chain(place).chain().first().map(hex::encode).unwrap_or_default();
        let name = |name: &ServingName| match name {
            ServingName::Dns(name) => name.clone(),
            ServingName::Ip(address) => address.to_string(),
        };
        let rules = Rules {
            issuers: self.places.iter().map(issuing).collect(),
            trust_domain: self.config.trust_domains.own.to_string(),
            longest: (self.config.profile.maximum + BACKDATED_AT_MOST).as_secs(),
            serving_names: self.config.names.iter().map(name).collect(),
        };
        rules.to_text()
    }

    async fn on_threads(&self, metrics: &Arc<Metrics>) -> Result<Vec<Signer>, SignError> {
        let mut signers = Vec::new();
        for place in &self.places {
            let options = PoolOptions {
                threads: place.key.device.sessions,
                queue: PERMITS,
                expected: Some(self.chain(place).public_key().clone()),
                observer: Arc::new(SignerMetrics::new(metrics, self.chain(place).id(), place.number)),
                ..PoolOptions::default()
            };
            let key = place.key.uri.clone();
            let started = tokio::time::timeout(OPENED_WITHIN, tokio::task::spawn_blocking(move || Signer::start(key, options))).await;
            let silent = |_| SignError::Lost(format!("its device has not answered for {} s", OPENED_WITHIN.as_secs()));
            signers.push(started.map_err(silent)?.map_err(|error| SignError::Lost(error.to_string()))??);
        }
        Ok(signers)
    }
}

#[cfg(test)]
mod tests {
    use super::grouped;

    #[test]
    fn two_that_share_are_never_in_two_groups_in_whichever_order_they_come() {
        // The first may be either of the others' token; those two are not each other's.
        let share = |one: &char, other: &char| one == other || [*one, *other].contains(&'a');
        for order in ["abc", "acb", "bac", "bca", "cab", "cba"] {
            let groups = grouped(order.chars(), share);
            assert_eq!(groups.len(), 1, "{order}: {groups:?}");
        }
        assert_eq!(grouped("bcbdc".chars(), share), [vec!['b', 'b'], vec!['d'], vec!['c', 'c']]);
    }
}
