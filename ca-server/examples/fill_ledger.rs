//! Fills a ledger with valid issuances, for measurements of `audit` at size: real intents and
//! outcomes through the real writer, signed by a key that is made here and forgotten. The
//! identities are those of loadgen's tokens with 10,000 accounts, in no order: an index of
//! identities is then written all over, as by a mesh that renews.
//!
//! `cargo run --release --example fill_ledger -- LEDGER ISSUANCES [IN_FLIGHT]`, where LEDGER is
//! sqlite:FILE or postgres://LOGIN@HOST/DATABASE, migrated. Each issuance is two rows. Run again on
//! the same ledger, it adds another chain.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
use ca_server::clock::Clock;
use ca_server::evidence::{Credential, Evidence, Pod, RequestId};
use ca_server::policy::{Asked, Choice, KeyAllowed, Policy, Profile, SanRule, Wishes};
use ca_server::spiffe::{ServiceAccount, SpiffeId, TrustDomain};
use ca_server::store::ledger::{
    Ledger, LedgerOptions, Location, NotOpened, ServerFiles, StartFact, Unobserved,
};
use ca_server::x509::chain::IssuerChain;
use ca_server::x509::csr::Csr;
use ca_server::x509::template::{Draft, SerialRandom};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair, KeyUsagePurpose};

const ACCOUNTS: u64 = 10_000;
const ACCOUNTS_OF_NAMESPACE: u64 = 20;

/// CSRs, each with a key of its own, that are used in turn: the key of a certificate does not
/// matter here.
const CSRS: usize = 16;

fn main() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .expect("threads");
    match runtime.block_on(run(std::env::args().skip(1).collect())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("fill_ledger: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: Vec<String>) -> Result<()> {
    let (ledger, count, in_flight) = match args.as_slice() {
        [ledger, count] => (ledger, count.parse::<u64>()?, 256),
        [ledger, count, in_flight] => (ledger, count.parse::<u64>()?, in_flight.parse::<u64>()?),
        _ => return Err(anyhow!("usage: fill_ledger LEDGER ISSUANCES [IN_FLIGHT]")),
    };
    let ca = Arc::new(Ca::new()?);
    let clock = Clock::system();
    let options = LedgerOptions {
        location: Location::parse(ledger, ServerFiles::default(), Path::new(""))
            .map_err(|why| anyhow!("the ledger's URL {why}"))?,
        host: "fill-ledger".into(),
        version: env!("CARGO_PKG_VERSION").into(),
        facts: vec![ca.fact()],
        config_digest: [0; 32],
        accept_clock: false,
        clock_tolerance: Duration::from_secs(30),
        capacity: usize::try_from(in_flight)?,
        observer: Arc::new(Unobserved),
    };
    let ledger = Ledger::start(options, clock.clone()).await?;
    let (begun, next) = (Instant::now(), Arc::new(AtomicU64::new(0)));
    let mut tasks: tokio::task::JoinSet<Result<()>> = tokio::task::JoinSet::new();
    for _ in 0..in_flight {
        let (ca, ledger, clock, next) = (ca.clone(), ledger.clone(), clock.clone(), next.clone());
        tasks.spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    return Ok(());
                }
                let begun_at = Instant::now();
                // A database that stalls for a moment, as a busy disk makes it, is no reason to
                // begin hours of work anew.
                while let Err(error) = ca.issue(&ledger, &clock, number).await {
                    if begun_at.elapsed() > PATIENCE {
                        return Err(error.context(format!("issuance {number}")));
                    }
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                if number % 100_000 == 99_999 {
                    eprintln!(
                        "{} issuances, {:.0}/s",
                        number + 1,
                        (number + 1) as f64 / begun.elapsed().as_secs_f64()
                    );
                }
            }
        });
    }
    while let Some(task) = tasks.join_next().await {
        task??;
    }
    ledger.shutdown().await;
    println!(
        "{count} issuances in {:.1} s",
        begun.elapsed().as_secs_f64()
    );
    Ok(())
}

/// How long one issuance is tried.
const PATIENCE: Duration = Duration::from_secs(60);

/// A root that issues by itself, and what policy needs to grant in its name.
struct Ca {
    key: EcdsaKeyPair,
    chain: Arc<IssuerChain>,
    policy: Policy,
    csrs: Vec<Csr>,
    random: SystemRandom,
}

impl Ca {
    fn new() -> Result<Self> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(Vec::new())?;
        params
            .distinguished_name
            .push(DnType::CommonName, "CA for measurements");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let pem = params.self_signed(&key)?.pem();
        let chain = Arc::new(IssuerChain::parse(
            "default",
            pem.as_bytes(),
            pem.as_bytes(),
        )?);
        let profile = Profile {
            default: Duration::from_secs(86_400),
            minimum: Duration::from_secs(60),
            maximum: Duration::from_secs(86_400),
            jitter: Duration::ZERO,
            san: SanRule::Overwrite,
            keys: vec![KeyAllowed::P256],
        };
        let csr = || {
            let pem = CertificateParams::new(Vec::new())?
                .serialize_request(&KeyPair::generate()?)?
                .pem()?;
            Csr::parse(&pem).map_err(|refusal| anyhow!("{}", refusal.detail()))
        };
        let random = SystemRandom::new();
        Ok(Self {
            key: EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, key.serialized_der())?,
            policy: Policy::new(
                profile,
                vec![Choice {
                    chain: chain.clone(),
                    active: true,
                    sibling_of: None,
                }],
            ),
            chain,
            csrs: (0..CSRS).map(|_| csr()).collect::<Result<_>>()?,
            random,
        })
    }

    fn fact(&self) -> StartFact {
        StartFact::Issuer {
            id: self.chain.id().into(),
            chain: self.chain.chain().to_vec(),
            roots: self.chain.roots().to_vec(),
            key_uri: "file:forgotten.key".into(),
        }
    }

    async fn issue(&self, ledger: &Ledger, clock: &Clock, number: u64) -> Result<()> {
        let account = u64::from_be_bytes(random()?) % ACCOUNTS;
        let (namespace, name) = (
            format!("load-{}", account / ACCOUNTS_OF_NAMESPACE),
            format!("workload-{account}"),
        );
        let subject = format!("system:serviceaccount:{namespace}:{name}");
        let account = ServiceAccount::new(&namespace, &name).context("a service account")?;
        let identity = SpiffeId::new(
            TrustDomain::parse("cluster.local").context("a trust domain")?,
            account,
        );
        let csr = &self.csrs[usize::try_from(number)? % CSRS];
        let now = clock.now();
        let granted = self
            .policy
            .issuers(&Asked::Nothing, now)
            .and_then(|issuers| {
                self.policy
                    .grant(&identity, csr, &Wishes::default(), &issuers[0], now, 0)
            });
        let grant = granted.map_err(|refusal| anyhow!("{}", refusal.detail()))?;
        let mut draft = Draft::new(
            grant,
            csr.key().clone(),
            ledger.period(now),
            now,
            SerialRandom(random()?),
        );
        let evidence = evidence(subject, name, number);
        let recorded = loop {
            match ledger.open(draft, &evidence, RequestId(random()?)).await {
                Ok(recorded) => break recorded,
                Err(NotOpened::PeriodMoved(old, period)) => {
                    draft = old.again(period, clock.now(), SerialRandom(random()?))
                }
                Err(NotOpened::Refused(refusal)) => return Err(anyhow!("{}", refusal.detail())),
            }
        };
        let signature = self
            .key
            .sign(&self.random, recorded.draft().to_be_signed())?
            .as_ref()
            .to_vec();
        let certificate = recorded.draft().complete(signature)?;
        let signed = recorded
            .signed(certificate)
            .map_err(|unsigned| anyhow!("{}", unsigned.refusal().detail()));
        ledger
            .close(Ok(signed?))
            .await
            .map_err(|refusal| anyhow!("{}", refusal.detail()))?;
        Ok(())
    }
}

/// As long as what a real cluster's tokens say.
fn evidence(subject: String, name: String, number: u64) -> Evidence {
    let [a, b] = [number >> 32, number & 0xffff_ffff];
    Evidence {
        credential: Credential::Jwt,
        issuer: Some("https://kubernetes.default.svc.cluster.local".into()),
        subject: Some(subject),
        token: Some(format!("{b:08x}-4c3e-4d9e-9a54-{a:04x}{b:08x}")),
        cluster: Some("Kubernetes".into()),
        pod: Some(Pod {
            name: format!("{name}-5d8f7c9b6-{:05x}", number & 0xf_ffff),
            uid: format!("{b:08x}-5c1b-4f6e-8a77-{a:04x}{b:08x}"),
        }),
        peer: Some(
            (
                [10, 1, (number >> 8 & 255) as u8, (number & 255) as u8],
                40_512,
            )
                .into(),
        ),
    }
}

fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)
        .map_err(|error| anyhow!("the system gives no random bytes: {error}"))?;
    Ok(bytes)
}
