//! What a clock that jumps may not do, by `faketime`: the daemon reads its time through a library
//! that the test steers.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use softhsm_tests::client::tls_later;
use softhsm_tests::daemon::Setup;
use softhsm_tests::{Ask, Channel, Csr, LedgerDatabase, Material, TestCa};
use tonic::Code;

use crate::seen::assert_refused;

const LIBRARIES: [&str; 3] = [
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/faketime/libfaketimeMT.so.1",
];

/// Moves the daemon's clock by this offset from the real one, such as `-10s` or `+13h`.
pub(crate) fn move_clock(material: &Material, offset: &str) {
    material.write("clock.new", offset);
    std::fs::rename(material.file("clock.new"), clock_file(material)).expect("renamed");
}

fn clock_file(material: &Material) -> PathBuf {
    material.file("clock")
}

/// The variables that put a process under faketime; which time it is, `FAKETIME` or
/// `FAKETIME_TIMESTAMP_FILE` says.
pub(crate) fn faketime() -> [(&'static str, &'static str); 4] {
    let library = LIBRARIES
        .into_iter()
        .find(|path| Path::new(path).exists())
        .expect("faketime is installed by ./run-tests");
    [
        ("LD_PRELOAD", library),
        ("FAKETIME_NO_CACHE", "1"),
        ("DONT_FAKE_MONOTONIC", "1"),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
    ]
}

fn under_faketime(material: &Material, setup: Setup) -> Setup {
    move_clock(material, "+0s");
    let setup = setup.env(
        "FAKETIME_TIMESTAMP_FILE",
        clock_file(material).to_str().expect("text"),
    );
    faketime()
        .into_iter()
        .fold(setup, |setup, (name, value)| setup.env(name, value))
}

pub(crate) async fn start(setup: Setup) -> TestCa {
    let material = Material::new();
    let setup = under_faketime(&material, setup);
    TestCa::start_on(material, setup).await
}

/// A token that is valid at every time these tests move to.
pub(crate) fn timeless(ca: &TestCa) -> Ask {
    let mut claims = ca.minter().claims("default", "demo");
    claims["exp"] = serde_json::json!(4_000_000_000_i64);
    claims["nbf"] = serde_json::json!(1_000_000_000);
    Ask::bearer(&ca.minter().sign(&claims))
}

/// A connection of a client whose clock is ahead as far as the daemon's.
async fn dial_later(ca: &TestCa, by: Duration) -> Result<Channel, tonic::transport::Error> {
    Channel::open(ca.csr_address(), tls_later(&ca.roots(), None, by)).await
}

#[tokio::test]
async fn nothing_is_issued_while_the_clock_is_behind_the_ledger() {
    let ca = start(Setup::default().with_faults()).await;
    let (ask, channel) = (timeless(&ca), ca.connect().await);
    ca.remember(&channel.call(&Csr::demo().pem, &ask).await.expect("issued"));
    let signatures = ca.faults().signatures();
    move_clock(&ca.material, "-1h");
    assert_refused(
        channel.call(&Csr::demo().pem, &ask).await,
        Code::Unavailable,
    );
    assert_eq!(ca.get("/healthz/ready").await.0, 503);
    assert_eq!(ca.get("/healthz/live").await.0, 200);
    assert_eq!(ca.faults().signatures(), signatures);
    move_clock(&ca.material, "+0s");
    ca.until_ready().await;
    ca.remember(
        &channel
            .call(&Csr::demo().pem, &ask)
            .await
            .expect("it has resumed by itself"),
    );
    ca.check();
}

#[tokio::test]
async fn a_start_with_a_clock_behind_the_ledger_is_alive_not_ready_and_waits_for_the_operator() {
    let mut ca = start(Setup::default()).await;
    move_clock(&ca.material, "+2h");
    let ask = timeless(&ca);
    ca.call(&Csr::demo().pem, &ask)
        .await
        .expect("issued in what will have been the future");
    assert!(ca.stop().success());
    move_clock(&ca.material, "+0s");
    ca.spawn();
    ca.until("alive", || async { ca.get("/healthz/live").await.0 == 200 })
        .await;
    let (status, body) = ca.get("/healthz/ready").await;
    assert_eq!(status, 503);
    assert!(body.contains("clock is behind"), "{body}");
    assert!(ca.stop().success());

    ca.add_argument("--accept-clock");
    ca.restart().await;
    ca.call(&Csr::demo().pem, &ask)
        .await
        .expect("the operator has accepted the clock");
    let ledger = ca.check();
    assert_eq!(ledger.count("clock"), 1);
}

#[tokio::test]
async fn a_new_month_begins_a_new_period_with_no_gap_in_the_chain() {
    let ca = start(Setup::default()).await;
    let ask = timeless(&ca).lifetime(3600);
    ca.call(&Csr::demo().pem, &ask).await.expect("issued");
    move_clock(&ca.material, "+31d");
    // The serving certificate has ended meanwhile; it is renewed within seconds.
    let later = Duration::from_secs(31 * 86_400);
    ca.until("renewed", || async {
        dial_later(&ca, later).await.is_ok() && ca.get("/healthz/ready").await.0 == 200
    })
    .await;
    let channel = dial_later(&ca, later).await.expect("connected");
    ca.remember(
        &channel
            .call(&Csr::demo().pem, &ask)
            .await
            .unwrap_or_else(|status| panic!("{status}\n{}", ca.log_text())),
    );
    let ledger = ca.check();
    assert_eq!(ledger.count("period"), 1);
    let intents = ledger.kind("intent");
    let periods: std::collections::BTreeSet<u64> = intents
        .iter()
        .map(|row| row["period"].as_u64().expect("a period"))
        .collect();
    assert_eq!(periods.len(), 2);
    for intent in intents {
        let leading =
            u64::from_str_radix(&intent["serial"].as_str().expect("hex")[..6], 16).expect("hex");
        assert_eq!(
            leading,
            intent["period"].as_u64().expect("a period"),
            "the serial begins with its period"
        );
    }
}

#[tokio::test]
async fn the_serving_certificate_is_renewed_at_half_life_and_no_call_is_dropped() {
    let ca = start(Setup::default()).await;
    let ask = timeless(&ca);
    let kept = ca.connect().await;
    let before = ca
        .metric("ca_server_certificate_expiry_timestamp_seconds{certificate=\"serving\"}")
        .await;
    let (done, calls) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let load = async {
        while done.load(Ordering::Relaxed) == 0 {
            let chain = kept
                .call(&Csr::demo().pem, &ask)
                .await
                .expect("no call is dropped");
            ca.remember(&chain);
            calls.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let renewal = async {
        move_clock(&ca.material, "+13h");
        ca.until("renewed", || async {
            ca.metric("ca_server_certificate_expiry_timestamp_seconds{certificate=\"serving\"}")
                .await
                > before + 40_000.0
        })
        .await;
        let channel = dial_later(&ca, Duration::from_secs(13 * 3600))
            .await
            .expect("a new connection sees the new certificate");
        ca.remember(&channel.call(&Csr::demo().pem, &ask).await.expect("issued"));
        done.store(1, Ordering::Relaxed);
    };
    tokio::join!(load, renewal);
    assert!(calls.into_inner() > 0);
    let ledger = ca.check();
    let serving = ledger
        .kind("intent")
        .into_iter()
        .filter(|row| row["purpose"] == "serving")
        .count();
    assert_eq!(serving, 2, "recorded like any other");
}

#[tokio::test]
async fn nothing_is_recorded_by_a_clock_that_is_not_the_databases() {
    let ca = start(Setup::default().with_faults().on_postgres()).await;
    let (ask, channel) = (timeless(&ca), ca.connect().await);
    ca.remember(&channel.call(&Csr::demo().pem, &ask).await.expect("issued"));
    ca.until("idle", || async { ca.open_intents(&ca.export()) == 0 })
        .await;
    let (signatures, rows) = (ca.faults().signatures(), ca.export().rows.len());
    for offset in ["+40s", "-40s"] {
        move_clock(&ca.material, offset);
        assert_refused(
            channel.call(&Csr::demo().pem, &ask).await,
            Code::Unavailable,
        );
        ca.until("not ready", || async {
            ca.get("/healthz/ready").await.0 == 503
        })
        .await;
        assert_eq!(ca.get("/healthz/live").await.0, 200);
        move_clock(&ca.material, "+0s");
        let corrected = std::time::Instant::now();
        ca.until("recording", || async {
            channel
                .call(&Csr::demo().pem, &ask)
                .await
                .inspect(|chain| ca.remember(chain))
                .is_ok()
        })
        .await;
        softhsm_tests::tell(&format!(
            "clock {offset} from the database's: resumed {} ms after it was corrected",
            corrected.elapsed().as_millis()
        ));
    }
    // Two calls since then, of two rows each; nothing else was signed or recorded, and none with a
    // time that was not so.
    ca.until("idle", || async { ca.open_intents(&ca.export()) == 0 })
        .await;
    let ledger = ca.check();
    assert_eq!(ca.faults().signatures(), signatures + 2);
    assert_eq!(
        ledger.kind("intent").len() + ledger.kind("issued").len(),
        2 * (2 + 2)
    );
    assert!(ledger.rows.len() >= rows + 4);
}

#[tokio::test]
async fn a_start_with_a_clock_that_is_not_the_databases_is_alive_not_ready_and_resumes_by_itself() {
    let database = LedgerDatabase::new();
    let material = Material::new();
    let setup = under_faketime(
        &material,
        Setup::default().with_faults().on_ledger(&database.url()),
    );
    move_clock(&material, "-50s");
    let mut ca = TestCa::configured(material, setup);
    ca.spawn();
    ca.until("alive", || async { ca.get("/healthz/live").await.0 == 200 })
        .await;
    let (status, body) = ca.get("/healthz/ready").await;
    assert_eq!(status, 503);
    assert!(body.contains("clock"), "{body}");
    assert_eq!(
        ca.faults().signatures(),
        0,
        "not even its own serving certificate"
    );
    move_clock(&ca.material, "+0s");
    ca.until_ready().await;
    ca.call(&Csr::demo().pem, &timeless(&ca))
        .await
        .expect("issued");
    ca.check();
}
