//! Hostile CSRs and tokens by the ten thousand: none becomes a certificate, none crashes anything,
//! and no refusal costs more CPU time than ten milliseconds. Most are handed to the very functions
//! that the daemon calls; a sample goes to a daemon over TLS. What counts as hostile, and why each
//! case is so by construction, stands in `softhsm_tests::hostile`.
#![allow(
    clippy::disallowed_methods,
    reason = "tests choose times around the real clock"
)]

use std::collections::BTreeMap;
use std::io::Write;
use std::time::Duration;

use ca_server::authn::client_cert::ClientCertificates;
use ca_server::authn::jwks::Jwks;
use ca_server::authn::jwt::{TokenIssuer, Tokens as Checker};
use ca_server::authn::{Authenticators, Credentials};
use ca_server::policy::TrustDomains;
use ca_server::refusal::{Reason, Refusal};
use ca_server::spiffe::TrustDomain;
use ca_server::timestamp::Timestamp;
use ca_server::x509::csr::Csr as Request;
use futures_util::StreamExt;
use rustix::time::{ClockId, clock_gettime};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use softhsm_tests::authority::Authority;
use softhsm_tests::daemon::Setup;
use softhsm_tests::hostile::csr::Csrs;
use softhsm_tests::hostile::token::{ISSUER, Tokens};
use softhsm_tests::hostile::{Case, SEED};
use softhsm_tests::{Ask, Csr, Material, TestCa};
use tonic::Code;

const CSRS: usize = 100_000;
const TOKENS: usize = 50_000;
/// How many of each go through a daemon.
const SAMPLE: usize = 2_000;

/// What a refusal may cost.
const BOUND: Duration = Duration::from_millis(10);

#[test]
fn no_hostile_csr_is_accepted_and_each_refusal_is_cheap() {
    let good = Csrs::new(SEED).good();
    assert!(
        good.iter().all(|pem| Request::parse(pem).is_ok()),
        "what the cases are made of is good"
    );
    let mut costs = Costs::default();
    for case in Csrs::new(SEED).take(CSRS) {
        costs.refuse(&case, || Request::parse(&case.text).map(drop));
    }
    costs.report("CSRs", CSRS / Csrs::families());
    let expected = [
        Reason::MalformedCsr,
        Reason::ProofOfPossession,
        Reason::WeakKey,
    ];
    assert!(
        costs
            .reasons
            .keys()
            .all(|reason| expected.iter().any(|one| one.as_str() == *reason)),
        "{:?}",
        costs.reasons
    );
}

#[test]
fn no_hostile_token_is_accepted_and_each_refusal_is_cheap() {
    softhsm_tests::crypto();
    let now = Timestamp::from_seconds(1_800_000_000);
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("jwks.json");
    std::fs::write(&file, Tokens::new(SEED, now.seconds()).jwks()).expect("writable");
    let trust_domain = TrustDomain::parse("cluster.local").expect("legal");
    let issuer = TokenIssuer {
        issuer: ISSUER.to_owned(),
        audiences: vec!["istio-ca".to_owned()],
        cluster: "Kubernetes".to_owned(),
        // One read for all the unknown keys.
        jwks: Jwks::open(&file, Duration::from_secs(3600), now).expect("a good set"),
    };
    let root = Authority::root("root", Duration::from_secs(3600));
    let root = CertificateDer::from_pem_slice(root.certificate().as_bytes()).expect("PEM");
    let trust_domains = TrustDomains {
        own: trust_domain.clone(),
        aliases: Vec::new(),
    };
    let certificates =
        ClientCertificates::new([root.as_ref()].into_iter(), trust_domains).expect("a root");
    let authenticators = Authenticators::new(
        certificates,
        Checker::new(vec![issuer], "Kubernetes".to_owned(), trust_domain),
    );
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime");
    let check = |token: &str| {
        let credentials = Credentials {
            bearer: vec![token.to_owned()],
            ..Credentials::default()
        };
        runtime
            .block_on(authenticators.authenticate(&credentials, now))
            .map(drop)
    };

    assert!(
        Tokens::new(SEED, now.seconds())
            .good()
            .iter()
            .all(|token| check(token).is_ok()),
        "what the cases are made of is good"
    );
    let mut costs = Costs::default();
    for case in Tokens::new(SEED, now.seconds()).take(TOKENS) {
        costs.refuse(&case, || check(&case.text));
    }
    costs.report("tokens", TOKENS / Tokens::families());
    assert_eq!(
        costs.reasons.keys().copied().collect::<Vec<_>>(),
        ["bad_credentials"]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_refuses_hostile_csrs_and_tokens_counts_them_and_issues_none_for_them() {
    let seconds = std::time::SystemTime::UNIX_EPOCH
        .elapsed()
        .expect("after 1970")
        .as_secs();
    let now = i64::try_from(seconds).expect("before the year 292 billion");
    let material = Material::new();
    material.write("hostile-jwks.json", Tokens::new(SEED, now).jwks());
    let append = format!(
        "\n[[jwt]]\nissuer = \"{ISSUER}\"\naudiences = [\"istio-ca\"]\ncluster_id = \"Kubernetes\"\njwks = \"hostile-jwks.json\"\n"
    );
    let ca = TestCa::start_on(
        material,
        Setup {
            append,
            ..Setup::default()
        },
    )
    .await;
    for good in Tokens::new(SEED, now).good() {
        ca.call(&Csr::demo().pem, &Ask::bearer(&good))
            .await
            .expect("what the cases are made of is good");
    }
    let (issued, refused) = (issued(&ca).await, refusals(&ca).await);
    let spent = ca.cpu();

    let channel = ca.connect().await;
    let (good_token, good_csr) = (ca.token(), Csr::demo().pem);
    // Another seed than the functions', so that these are cases of their own.
    let csrs = Csrs::new(SEED + 1).take(SAMPLE).map(|case| {
        (
            case.text.clone(),
            good_token.clone(),
            Code::InvalidArgument,
            case,
        )
    });
    let tokens = Tokens::new(SEED + 1, now)
        .filter(|case| can_be_sent(&case.text))
        .take(SAMPLE);
    let tokens = tokens.map(|case| {
        (
            good_csr.clone(),
            case.text.clone(),
            Code::Unauthenticated,
            case,
        )
    });
    let calls =
        futures_util::stream::iter(csrs.chain(tokens)).map(|(csr, token, expected, case)| {
            let channel = channel.clone();
            async move {
                match channel.call(&csr, &Ask::bearer(&token)).await {
                    Ok(_) => panic!(
                        "issued for number {} ({}): {:?}",
                        case.number, case.family, case.text
                    ),
                    Err(status) => assert_eq!(
                        status.code(),
                        expected,
                        "number {} ({}): {status:?}",
                        case.number,
                        case.family
                    ),
                }
            }
        });
    calls.buffer_unordered(16).collect::<Vec<()>>().await;

    let each = (ca.cpu() - spent) / u32::try_from(2 * SAMPLE).expect("few");
    assert!(
        each <= BOUND,
        "{each:?} of CPU a refusal in the mean, with TLS, HTTP/2, log and ledger"
    );
    told(&format!(
        "hostile, over TLS: {SAMPLE} CSRs and {SAMPLE} tokens refused, {each:?} of daemon CPU each in the mean"
    ));
    ca.call(&good_csr, &Ask::bearer(&good_token))
        .await
        .expect("alive, and serving others");
    assert_eq!(
        issued_since(&ca, issued).await,
        1.0,
        "the call after them alone"
    );
    assert_eq!(
        refusals(&ca).await - refused,
        2.0 * SAMPLE as f64,
        "each is counted"
    );
    // Rows and groups of whoever had proven an identity, groups by network for the others; what a
    // full queue dropped is counted too.
    ca.until("filed", || async {
        filed(&ca) == (SAMPLE as u64, SAMPLE as u64)
    })
    .await;
    ca.check();
    // Nothing that was sent broke out of its line.
    let log = ca.log_text();
    let stray: Vec<&str> = log
        .lines()
        .filter(|line| serde_json::from_str::<serde_json::Value>(line).is_err())
        .collect();
    assert!(stray.is_empty() && log.lines().count() > 50, "{stray:?}");
}

/// Whether a header can carry it, as it is; an empty one is no token.
fn can_be_sent(token: &str) -> bool {
    !token.is_empty()
        && token.len() < 15_000
        && token.bytes().all(|byte| (0x20..0x7f).contains(&byte))
        && token.trim() == token
}

/// Refusals in the ledger: after authentication, and before it.
fn filed(ca: &TestCa) -> (u64, u64) {
    let ledger = ca.export();
    let sum = |kind: &str, of_identity: bool| {
        let rows = ledger
            .kind(kind)
            .into_iter()
            .filter(|row| row["identity"].is_string() == of_identity);
        rows.map(|row| row["count"].as_u64().expect("a count"))
            .sum::<u64>()
    };
    (
        ledger.count("refused") as u64 + sum("dropped", false) + sum("refused_group", true),
        sum("refused_group", false),
    )
}

/// Leaf certificates, as the daemon counts them.
async fn issued(ca: &TestCa) -> f64 {
    ca.metric("citadel_server_success_cert_issuance_count")
        .await
}

async fn issued_since(ca: &TestCa, before: f64) -> f64 {
    issued(ca).await - before
}

/// All refusals, as the daemon counts them.
async fn refusals(ca: &TestCa) -> f64 {
    let text = ca.get("/metrics").await.1;
    let values = text
        .lines()
        .filter(|line| line.starts_with("ca_server_refusals_total{"))
        .map(|line| line.rsplit(' ').next());
    values
        .map(|value| value.expect("a value").parse::<f64>().expect("a number"))
        .sum()
}

/// What refusals cost, in CPU time of the thread that refuses.
#[derive(Default)]
struct Costs {
    all: Vec<Duration>,
    worst: BTreeMap<&'static str, (Duration, usize)>,
    families: BTreeMap<&'static str, usize>,
    reasons: BTreeMap<&'static str, usize>,
}

impl Costs {
    /// One case; fails if it is accepted or too dear.
    fn refuse(&mut self, case: &Case, check: impl Fn() -> Result<(), Refusal>) {
        let timed = || {
            let begun = thread_cpu();
            let refusal = check();
            (thread_cpu() - begun, refusal)
        };
        let (mut cost, refusal) = timed();
        let Err(refusal) = refusal else {
            panic!(
                "accepted: number {} ({}): {:?}",
                case.number, case.family, case.text
            )
        };
        // What it costs, it costs each time; an interrupt or a page fault that is counted to the
        // thread comes once.
        for _ in 0..3 {
            if cost > BOUND {
                cost = cost.min(timed().0);
            }
        }
        assert!(
            cost <= BOUND,
            "{cost:?} of CPU to refuse number {} ({}), {refusal}",
            case.number,
            case.family
        );
        self.all.push(cost);
        let worst = self.worst.entry(case.family).or_default();
        *worst = (*worst).max((cost, case.number));
        *self.families.entry(case.family).or_default() += 1;
        *self.reasons.entry(refusal.reason().as_str()).or_default() += 1;
    }

    /// Says what was measured, past the capture of passing tests. Each family must have had its
    /// share.
    fn report(&mut self, what: &str, share: usize) {
        assert!(
            self.families.values().all(|count| *count >= share),
            "{:?}",
            self.families
        );
        self.all.sort();
        let count = self.all.len();
        let mean = self.all.iter().sum::<Duration>() / u32::try_from(count).expect("few");
        let (worst, (cost, number)) = self
            .worst
            .iter()
            .max_by_key(|(_, worst)| *worst)
            .expect("some");
        told(&format!(
            "hostile: {count} {what} of seed {SEED} refused; CPU mean {mean:?}, 99.9 % {:?}, worst {cost:?} (number {number}, {worst}); {:?}",
            self.all[count - 1 - count / 1000],
            self.reasons,
        ));
    }
}

fn thread_cpu() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(
        u64::try_from(time.tv_sec).expect("positive"),
        u32::try_from(time.tv_nsec).expect("below a second"),
    )
}

/// A line of the test's report, which a passing test shows too.
fn told(line: &str) {
    writeln!(std::io::stderr(), "{line}").expect("standard error is open");
}
