//! Opens the keys of the issuers that sign: each device in a process of its own, or on threads of
//! this one. A signer that would be started just as before is taken over from the snapshot before,
//! sessions and all. A device that is away is no reason to wait for long, or to refuse: its signer
//! goes on looking for it.

mod outlook;

use std::sync::Arc;
use std::time::{Duration, Instant};

use ::signers::pkcs11::{MayTry, keep_login_marks, set_init_string};
use ::signers::process::{Begun, KeyOfProcess, ProcessOptions, Way, begin};
use ::signers::{KeyUri, Pool, PoolOptions, SignError, Signer};
use futures_util::future::{BoxFuture, FutureExt};
use futures_util::stream::{FuturesUnordered, StreamExt};

use self::outlook::Outlook;
use crate::cli::Exit;
use crate::config::{Config, DeviceConfig, Isolation, KeyConfig, LogFormat};
use crate::guard::Rules;
use crate::issue::{PERMITS, Snapshot};
use crate::issuer::{Issuer, Issuers, OpenedKey};
use crate::metrics::{Metrics, SignerMetrics};
use crate::policy::BACKDATED_AT_MOST;
use crate::timestamp::Timestamp;
use crate::x509::chain::IssuerChain;
use crate::x509::template;

/// How long the other devices are waited for when calls can be signed.
const OTHERS_WITHIN: Duration = Duration::from_secs(2);

/// The longest pause between two attempts to replace a signer process: a token that comes back is
/// found within ten seconds.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// The issuers of a config, in its order, those that sign with their keys, which are open or will
/// be. What can be said of them by then is judged by `outlook`. It was ordered at `ordered`: a PIN
/// that was refused before is tried once more.
pub(super) async fn open(
    config: &Config,
    metrics: &Arc<Metrics>,
    now: Timestamp,
    ordered: Instant,
    before: Option<&Snapshot>,
) -> Result<Vec<Issuer>, Exit> {
    let mut keys: Vec<Vec<Option<OpenedKey>>> = config
        .issuers
        .iter()
        .map(|issuer| vec![None; issuer.keys.len()])
        .collect();
    let (mut outlook, mut firsts) = (Outlook::of(config, now), FuturesUnordered::new());
    for places in groups(config) {
        let wanted = Wanted { config, places };
        let started_with: Arc<str> = wanted.description().into();
        let signers = match before.and_then(|before| wanted.kept(&before.issuers, &started_with)) {
            Some(signers) => {
                // It has been judged, and gets an order of its own when the reload is in force.
                wanted
                    .places
                    .iter()
                    .zip(&signers)
                    .for_each(|(place, signer)| outlook.kept(*place, signer));
                signers
            }
            None => {
                let (signers, first) = wanted
                    .begin(metrics, ordered, before.is_some())
                    .map_err(Exit::missing)?;
                let places = wanted.places.clone();
                firsts.push(async move { places.into_iter().zip(first.await).collect::<Vec<_>>() });
                signers
            }
        };
        if signers.iter().any(Signer::is_file) {
            tracing::warn!(
                issuer = wanted.names(),
                "its key is a file: good for development and migration, no hardware protects it"
            );
        }
        for (at, (place, signer)) in wanted.places.iter().zip(signers).enumerate() {
            keys[place.issuer][place.number] = Some(OpenedKey {
                signer,
                started_with: started_with.clone(),
                place: at,
            });
        }
    }
    // Started together, they are waited for together; and where a call can be signed, only a moment
    // longer for the others.
    let longest = config
        .issuers
        .iter()
        .flat_map(|issuer| &issuer.keys)
        .map(|key| key.device.open_timeout)
        .max()
        .unwrap_or_default();
    let mut until = tokio::time::Instant::now() + 2 * longest;
    loop {
        if outlook.signs() {
            until = until.min(tokio::time::Instant::now() + OTHERS_WITHIN);
        }
        tokio::select! {
            first = firsts.next() => match first {
                Some(first) => first.into_iter().for_each(|(place, trouble)| outlook.first(place, trouble)),
                None => break,
            },
            () = tokio::time::sleep_until(until) => break,
        }
    }
    drop(firsts);
    outlook.judge()?;
    let issuers = config.issuers.iter().zip(keys).map(|(issuer, keys)| {
        let keys: Vec<OpenedKey> = keys.into_iter().flatten().collect();
        let signers: Vec<Signer> = keys.iter().map(|key| key.signer.clone()).collect();
        // Each is for the key of the issuer's certificate, and for no other.
        Issuer {
            chain: issuer.chain.clone(),
            signer: Signer::together(&signers),
            keys,
        }
    });
    Ok(issuers.collect())
}

/// What becomes of keys in their first try: why each is not open.
type First = BoxFuture<'static, Vec<Option<SignError>>>;

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

    /// Whether both are opened by one process: keys that may be in one token share it, so that a
    /// wrong PIN costs one try, and all keys of a signer that runs by itself.
    fn shares_a_process_with(&self, other: &Self) -> bool {
        let same_device =
            self.in_a_process() && other.in_a_process() && self.key.device == other.key.device;
        same_device
            && (self.key.device.socket.is_some()
                || self.key.uri.may_share_a_token_with(&other.key.uri))
    }
}

/// What is opened together.
fn groups(config: &Config) -> Vec<Vec<Place<'_>>> {
    let places = config.issuers.iter().enumerate().flat_map(|(issuer, of)| {
        let keys = of.keys.iter().enumerate();
        keys.map(move |(number, key)| Place {
            issuer,
            number,
            key,
        })
    });
    grouped(places, Place::shares_a_process_with)
}

/// Whatever shares with anything in a group is in that group, so that two that share are never in
/// two.
fn grouped<T>(all: impl Iterator<Item = T>, share: impl Fn(&T, &T) -> bool) -> Vec<Vec<T>> {
    let mut groups: Vec<Vec<T>> = Vec::new();
    for one in all {
        let (sharing, mut others): (Vec<_>, Vec<_>) = groups
            .into_iter()
            .partition(|group| group.iter().any(|other| share(other, &one)));
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
        self.places
            .iter()
            .map(|place| self.chain(place).id())
            .collect::<Vec<_>>()
            .join(", ")
    }

    /// Everything that a start depends on, and whom the metrics name.
    fn description(&self) -> String {
        let key = |place: &Place<'_>| {
            let chain = self.chain(place);
            (
                chain.id().to_owned(),
                place.number,
                place.key.uri.to_string(),
                chain.public_key().fingerprint(),
            )
        };
        let rules = if self.places[0].in_a_process() {
            self.rules()
        } else {
            Vec::new()
        };
        format!(
            "{:?} {:?} {:?}",
            self.device(),
            self.places.iter().map(key).collect::<Vec<_>>(),
            String::from_utf8_lossy(&rules)
        )
    }

    /// The signers of a snapshot before that were started just so, each for its own key.
    fn kept(&self, before: &Issuers, started_with: &Arc<str>) -> Option<Vec<Signer>> {
        let kept = |at: usize| {
            let mut former = before.0.iter().flat_map(|former| &former.keys);
            former
                .find(|key| key.started_with == *started_with && key.place == at)
                .map(|key| key.signer.clone())
        };
        (0..self.places.len()).map(kept).collect()
    }

    /// A signer for each place, and what becomes of each in its first try. `by_operator`: it is a
    /// reload, by which an operator orders that a PIN be tried where something speaks against it.
    fn begin(
        &self,
        metrics: &Arc<Metrics>,
        ordered: Instant,
        by_operator: bool,
    ) -> Result<(Vec<Signer>, First), SignError> {
        match self.places[0].in_a_process() {
            true => Ok(self.in_a_process(metrics, ordered, by_operator)),
            false => self.on_threads(metrics, ordered, by_operator),
        }
    }

    fn in_a_process(
        &self,
        metrics: &Arc<Metrics>,
        ordered: Instant,
        by_operator: bool,
    ) -> (Vec<Signer>, First) {
        let keys = self.places.iter().map(|place| KeyOfProcess {
            uri: place.key.uri.clone(),
            expected: self.chain(place).public_key().clone(),
            sessions: place.key.device.sessions,
            observer: Arc::new(SignerMetrics::new(
                metrics,
                self.chain(place).id(),
                place.number,
            )),
        });
        let options = ProcessOptions {
            way: self.way(),
            keys: keys.collect(),
            rules: self.rules(),
            device_limit: self.device().timeout,
            opened_within: self.device().open_timeout,
            may_try: if by_operator {
                MayTry::Ordered
            } else {
                MayTry::Carefully
            },
            longest_pause: LONGEST_PAUSE,
        };
        let (Begun { signers, first }, places) = (begin(options, ordered), self.places.len());
        (
            signers,
            async move {
                first
                    .await
                    .unwrap_or_else(|_| vec![Some(SignError::Stopped); places])
            }
            .boxed(),
        )
    }

    fn way(&self) -> Way {
        let device = self.device();
        if let Some(socket) = &device.socket {
            return Way::Connect(socket.clone());
        }
        let mut arguments = vec![
            "signer".into(),
            "--log-level".into(),
            self.config.log.level.clone().into(),
        ];
        arguments.extend((self.config.log.format == LogFormat::Json).then(|| "--log-json".into()));
        arguments.extend(device.network.then(|| "--network".into()));
        if let Some(directory) = &self.config.state_dir {
            arguments.extend(["--state-dir".into(), directory.clone().into()]);
        }
        if let Some(text) = &device.init_string {
            arguments.extend(["--init-string".into(), text.clone().into()]);
        }
        // The same program, also when its file was replaced meanwhile.
        Way::Spawn {
            program: "/proc/self/exe".into(),
            arguments,
            environment: device.environment.clone(),
        }
    }

    fn rules(&self) -> Vec<u8> {
        rules(
            self.config,
            self.places.iter().map(|place| self.chain(place)),
        )
        .to_text()
    }

    fn on_threads(
        &self,
        metrics: &Arc<Metrics>,
        ordered: Instant,
        by_operator: bool,
    ) -> Result<(Vec<Signer>, First), SignError> {
        let (mut signers, mut pools, limit) = (Vec::new(), Vec::new(), self.device().open_timeout);
        if let Some(directory) = &self.config.state_dir {
            keep_login_marks(directory);
        }
        for place in &self.places {
            if let (KeyUri::Pkcs11(uri), Some(text)) =
                (&place.key.uri, &place.key.device.init_string)
            {
                set_init_string(&uri.module_path, text);
            }
            let options = PoolOptions {
                threads: place.key.device.sessions,
                queue: PERMITS,
                observer: Arc::new(SignerMetrics::new(
                    metrics,
                    self.chain(place).id(),
                    place.number,
                )),
                open_limit: limit,
                ordered: by_operator,
                ..PoolOptions::default()
            };
            let (signer, pool) = Signer::begin(
                place.key.uri.clone(),
                self.chain(place).public_key().clone(),
                options,
                ordered,
            )?;
            signers.push(signer);
            pools.push(pool);
        }
        let first =
            tokio::task::spawn_blocking(move || Pool::first_tries(&pools, limit)).map(|first| {
                let first = first.unwrap_or_else(|_| vec![Err(SignError::Stopped)]);
                first.into_iter().map(Result::err).collect::<Vec<_>>()
            });
        Ok((signers, first.boxed()))
    }
}

/// A guard's rules for keys of these issuers: what the config's policy may grant. Each is the value
/// that policy itself goes by.
fn rules<'a>(config: &Config, issuers: impl Iterator<Item = &'a IssuerChain>) -> Rules {
    let domains = [&config.trust_domains.own]
        .into_iter()
        .chain(&config.trust_domains.aliases);
    Rules {
        templates: vec![template::VERSION],
        issuers: issuers
            .map(|issuer| issuer.chain().first().map(hex::encode).unwrap_or_default())
            .collect(),
        trust_domains: domains.map(ToString::to_string).collect(),
        longest: (config.profile.maximum + BACKDATED_AT_MOST).as_secs(),
        serving_names: config.names.iter().map(ToString::to_string).collect(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;
    use std::sync::LazyLock;

    use ::signers::Purpose;
    use ::signers::process::Guard as _;
    use rcgen::{
        BasicConstraints, CertificateParams, DnType, IsCa, KeyPair, KeyUsagePurpose, RsaKeySize,
    };

    use super::*;
    use crate::config::Files;
    use crate::guard::Guard;
    use crate::policy::{Choice, Policy, Wishes};
    use crate::refusal::Reason;
    use crate::spiffe::{ServiceAccount, SpiffeId};
    use crate::timestamp::Timestamp;
    use crate::x509::csr::Csr;
    use crate::x509::template::{Draft, SerialRandom};

    const NOW: i64 = 1_800_000_000;

    /// Issuers by name, PEM, self-signed: each kind of key, and one that ends within the hour.
    static ISSUERS: LazyLock<BTreeMap<&str, String>> = LazyLock::new(|| {
        let p256 = || KeyPair::generate().unwrap();
        let issuer = |name: &str, key: KeyPair, ends: i64| {
            let mut params = CertificateParams::new(Vec::new()).unwrap();
            params.distinguished_name.push(DnType::CommonName, name);
            params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
            params.not_before = Timestamp::from_seconds(NOW - 60).date_time();
            params.not_after = Timestamp::from_seconds(ends).date_time();
            params.self_signed(&key).unwrap().pem()
        };
        let long = NOW + 150 * 365 * 86_400;
        let p384 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
        let rsa = KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap();
        BTreeMap::from([
            ("p256", issuer("p256", p256(), long)),
            ("p384", issuer("p384", p384, long)),
            ("rsa", issuer("rsa", rsa, long)),
            ("ending", issuer("ending", p256(), NOW + 1_800)),
        ])
    });

    const FILES: Files = Files {
        read: |path| {
            let name = path.file_stem().unwrap_or_default().to_string_lossy();
            let issuer = ISSUERS.get(&*name).map(|pem| pem.clone().into_bytes());
            issuer.map_or_else(
                || Ok(include_bytes!("../../tests/corpus/token/jwks.json").to_vec()),
                Ok,
            )
        },
        check_secret: |_, _| Ok(()),
        check_server: |_| Ok(()),
    };

    fn config(issuer: &str, aliases: &str, names: &str, profile: &str) -> Config {
        let text = format!(
            "trust_domain = \"cluster.local\"\ntrust_domain_aliases = {aliases}\ncluster_id = \"Kubernetes\"\n\
             [csr]\nlisten = \"127.0.0.1:15012\"\nnames = {names}\n[monitoring]\nlisten = \"127.0.0.1:15014\"\n\
             [ledger]\nurl = \"sqlite:ledger.db\"\n\
             [[issuer]]\nid = \"mesh\"\nkey = \"pkcs11:token=issuing;object=issuing?module-path=/usr/lib/m.so&pin-source=file:pin\"\n\
             chain = \"{issuer}.pem\"\nroots = \"{issuer}.pem\"\n\
             [profile]\nkeys = [\"rsa\", \"p256\", \"p384\", \"ed25519\"]\n{profile}\n\
             [[jwt]]\nissuer = \"https://issuer.example\"\naudiences = [\"istio-ca\"]\ncluster_id = \"Kubernetes\"\njwks = \"jwks.json\"\n"
        );
        Config::of_text(
            Path::new("/base/ca.toml"),
            &text,
            Timestamp::from_seconds(NOW),
            &FILES,
        )
        .unwrap_or_else(|error| panic!("{error}"))
    }

    /// Drafts everything that the config's policy can grant, at three times, and hands it to a
    /// guard that was told what a signer is told.
    fn judge_everything(config: &Config, csrs: &[Csr]) -> usize {
        let chain = &config.issuers[0].chain;
        let policy = Policy::new(
            config.profile.clone(),
            vec![Choice {
                chain: chain.clone(),
                active: true,
                sibling_of: None,
            }],
        );
        let guard = Guard::read(&rules(config, [&**chain].into_iter()).to_text()).unwrap();
        let lifetimes = [
            0,
            1,
            600,
            config.profile.minimum.as_secs(),
            config.profile.maximum.as_secs(),
        ];
        let mut granted = 0;
        for now in [NOW, NOW + 1, NOW + 1_700, NOW + 30 * 365 * 86_400].map(Timestamp::from_seconds)
        {
            let domains = [&config.trust_domains.own]
                .into_iter()
                .chain(&config.trust_domains.aliases);
            for (domain, csr) in
                domains.flat_map(|domain| csrs.iter().map(move |csr| (domain, csr)))
            {
                for (lifetime, jitter) in lifetimes
                    .iter()
                    .flat_map(|lifetime| [0, 7_777].map(|jitter| (*lifetime, jitter)))
                {
                    let caller = SpiffeId::new(
                        domain.clone(),
                        ServiceAccount::new("default", "demo").unwrap(),
                    );
                    let wishes = Wishes {
                        lifetime: i64::try_from(lifetime).unwrap(),
                        ..Wishes::default()
                    };
                    let grant = match policy.grant(&caller, csr, &wishes, chain, now, jitter) {
                        Ok(grant) => grant,
                        Err(refusal)
                            if [Reason::IssuerExpired, Reason::Lifetime]
                                .contains(&refusal.reason()) =>
                        {
                            continue;
                        }
                        Err(refusal) => panic!("{}", refusal.detail()),
                    };
                    let draft = Draft::new(
                        grant,
                        csr.key().clone(),
                        now.period(),
                        now,
                        SerialRandom([0; 11]),
                    );
                    let judged = guard.judge(0, Purpose::Leaf, draft.to_be_signed());
                    assert_eq!(
                        judged,
                        Ok(()),
                        "{caller} {:?} for {lifetime} s at {now}",
                        csr.key().kind()
                    );
                    granted += 1;
                }
            }
            let Ok(grant) = policy.serving(&config.names, chain, now) else {
                continue;
            };
            let draft = Draft::new(
                grant,
                csrs[0].key().clone(),
                now.period(),
                now,
                SerialRandom([0xff; 11]),
            );
            assert_eq!(
                guard.judge(0, Purpose::Serving, draft.to_be_signed()),
                Ok(()),
                "{:?} at {now}",
                config.names
            );
            granted += 1;
        }
        granted
    }

    #[test]
    fn whatever_policy_grants_the_guard_lets_pass() {
        let csrs = [
            include_str!("../../tests/corpus/csr/good-rsa-2048.pem"),
            include_str!("../../tests/corpus/csr/good-ec-pkeyopt-ec-paramgen-curve-P-256.pem"),
            include_str!("../../tests/corpus/csr/good-ec-pkeyopt-ec-paramgen-curve-P-384.pem"),
            include_str!("../../tests/corpus/csr/good-ed25519.pem"),
        ];
        let csrs = csrs
            .map(|csr| Csr::parse(csr).unwrap_or_else(|refusal| panic!("{}", refusal.detail())));
        let mut granted = 0;
        for issuer in ISSUERS.keys() {
            for aliases in ["[]", "[\"old.local\", \"a_b-c.9\"]"] {
                for names in [
                    "[\"localhost\", \"127.0.0.1\"]",
                    "[\"*.example.com\", \"Istiod.Example\", \"::1\", \"::ffff:10.0.0.1\", \"2001:DB8::0:1\"]",
                ] {
                    for profile in [
                        "",
                        "default = \"2m\"\nminimum = \"1m\"\nmaximum = \"2m\"\njitter = \"1m\"",
                        "default = \"30days\"\nmaximum = \"36000days\"",
                    ] {
                        granted +=
                            judge_everything(&config(issuer, aliases, names, profile), &csrs);
                    }
                }
            }
        }
        assert!(granted > 1_000, "{granted}");
    }

    #[test]
    fn two_that_share_are_never_in_two_groups_in_whichever_order_they_come() {
        // The first may be either of the others' token; those two are not each other's.
        let share = |one: &char, other: &char| one == other || [*one, *other].contains(&'a');
        for order in ["abc", "acb", "bac", "bca", "cab", "cba"] {
            let groups = grouped(order.chars(), share);
            assert_eq!(groups.len(), 1, "{order}: {groups:?}");
        }
        assert_eq!(
            grouped("bcbdc".chars(), share),
            [vec!['b', 'b'], vec!['d'], vec!['c', 'c']]
        );
    }
}
