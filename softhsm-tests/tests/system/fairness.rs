//! What one identity, and one address, may ask for: beyond `[limits]` calls are refused, counted
//! and filed, and nobody else notices.

use std::time::Instant;

use futures_util::future::join_all;
use softhsm_tests::check::Ledger;
use softhsm_tests::daemon::{DEMO, Setup};
use softhsm_tests::{Ask, Csr, TestCa};
use tonic::Code;

use crate::seen::{assert_opaque, assert_refused};

/// Refusals of a reason in the ledger: rows of their own, and those in groups.
fn filed(ledger: &Ledger, reason: &str) -> (usize, u64) {
    let rows = ledger
        .kind("refused")
        .into_iter()
        .filter(|row| row["reason"] == reason);
    let groups = ledger
        .kind("refused_group")
        .into_iter()
        .filter(|row| row["reason"] == reason);
    (
        rows.count(),
        groups
            .map(|row| row["count"].as_u64().expect("a count"))
            .sum(),
    )
}

fn refusals(reason: &str) -> String {
    format!("ca_server_refusals_total{{reason=\"{reason}\"}}")
}

#[tokio::test]
async fn the_calls_of_an_identity_are_limited() {
    const LIMIT: usize = 6;
    for setup in [Setup::default(), Setup::default().on_postgres()] {
        let ca = TestCa::start_with(setup.with_faults().limit("identity_calls_a_minute", 6)).await;
        let (channel, ask, begun) = (ca.connect().await, Ask::bearer(&ca.token()), Instant::now());
        let (mut issued, mut refused) = (0, 0);
        for _ in 0..30 {
            match channel.call(&Csr::demo().pem, &ask).await {
                Ok(chain) => {
                    ca.remember(&chain);
                    issued += 1;
                }
                Err(status) => {
                    assert_eq!(
                        (status.code(), status.message()),
                        (
                            Code::ResourceExhausted,
                            "the CA is at its limit, try again later"
                        )
                    );
                    refused += 1;
                }
            }
        }
        // A sixth of the limit comes back every ten seconds.
        let most = LIMIT + 1 + usize::try_from(begun.elapsed().as_secs()).expect("small") / 10;
        assert!(
            (LIMIT..=most).contains(&issued) && refused > 0,
            "{issued} issued, {refused} refused"
        );
        let signatures = ca.faults().signatures();
        let other = Ask::bearer(&ca.minter().token("shop", "cart"));
        ca.call(&Csr::demo().pem, &other)
            .await
            .expect("nobody else notices");
        assert_eq!(
            ca.faults().signatures(),
            signatures + 1,
            "what is beyond a limit is not signed"
        );
        assert_eq!(ca.get("/healthz/ready").await.0, 200);
        assert_eq!(
            ca.metric(&refusals("identity_limit")).await,
            f64::from(refused)
        );
        // A flood of one identity has a row that names it every ten seconds, and a count.
        ca.until("filed", || async {
            let (rows, counted) = filed(&ca.export(), "identity_limit");
            rows > 0 && rows as u64 + counted == refused as u64
        })
        .await;
        let ledger = ca.check();
        let (rows, _) = filed(&ledger, "identity_limit");
        assert!(
            rows < usize::try_from(refused).expect("small"),
            "not a row each: {rows}"
        );
        let named = ledger
            .kind("refused")
            .into_iter()
            .find(|row| row["reason"] == "identity_limit")
            .expect("a row");
        assert_eq!(
            (named["identity"].as_str(), named["code"].as_str()),
            (Some(DEMO), Some("ResourceExhausted"))
        );
    }
}

#[tokio::test]
async fn the_distinct_keys_of_an_identity_are_limited() {
    let ca = TestCa::start_with(
        Setup::default()
            .with_faults()
            .limit("identity_keys_an_hour", 3),
    )
    .await;
    let ask = Ask::bearer(&ca.token());
    // A key that was not certified has not counted.
    ca.command_faults("C_Sign corrupt once");
    assert_refused(ca.call(&Csr::demo().pem, &ask).await, Code::Internal);
    ca.command_faults("");
    ca.until_ready().await;
    let keys: Vec<Csr> = (0..4).map(|_| Csr::demo()).collect();
    for key in &keys[..3] {
        ca.call(&key.pem, &ask).await.expect("within the limit");
    }
    assert_refused(ca.call(&keys[3].pem, &ask).await, Code::ResourceExhausted);
    ca.call(&keys[0].again().pem, &ask)
        .await
        .expect("a key that is known, in another CSR");
    ca.call(&keys[1].pem, &ask).await.expect("or in the same");
    ca.call(
        &keys[3].pem,
        &Ask::bearer(&ca.minter().token("shop", "cart")),
    )
    .await
    .expect("another identity");
    assert_eq!(ca.metric(&refusals("key_limit")).await, 1.0);
    ca.until("filed", || async {
        filed(&ca.export(), "key_limit") == (1, 0)
    })
    .await;
    ca.check();
}

#[tokio::test]
async fn what_an_address_sends_is_limited_before_anybody_has_authenticated() {
    let ca = TestCa::start_with(Setup::default().limit("peer_calls_a_minute", 10)).await;
    let (channel, begun) = (ca.connect().await, Instant::now());
    for _ in 0..10 {
        assert_opaque(channel.call(&Csr::demo().pem, &Ask::default()).await);
    }
    let nobody = Ask::default();
    let calls = join_all((0..20).map(|_| channel.call("junk", &nobody))).await;
    // One comes back every six seconds.
    let back = begun.elapsed().as_secs() / 6 + 1;
    let answered = calls
        .into_iter()
        .filter(|answer| {
            answer
                .as_ref()
                .is_err_and(|status| status.code() == Code::ResourceExhausted)
        })
        .count();
    assert!(
        answered as u64 + back >= 20,
        "{answered} of 20 were refused, {back} may have come back"
    );
    let refused = ca.metric(&refusals("peer_limit")).await;
    assert_eq!(refused, answered as f64);
    ca.until("filed", || async {
        filed(&ca.export(), "peer_limit") == (0, refused as u64)
    })
    .await;
    let ledger = ca.check();
    let group = ledger
        .kind("refused_group")
        .into_iter()
        .find(|row| row["reason"] == "peer_limit")
        .expect("a group")
        .clone();
    assert_eq!(
        (group["prefix"].as_str(), group["code"].as_str()),
        (Some("127.0.0.0/24"), Some("ResourceExhausted"))
    );
    assert_eq!(ca.get("/healthz/ready").await.0, 200);
}

#[tokio::test]
async fn the_connections_of_an_address_are_limited_and_those_that_are_open_go_on() {
    let ca = TestCa::start_with(Setup::default().limit("peer_connections_a_minute", 4)).await;
    let mut open = Vec::new();
    for _ in 0..4 {
        open.push(ca.connect().await);
    }
    let config = softhsm_tests::client::tls(&ca.roots(), None);
    let mut closed = 0;
    for _ in 0..6 {
        closed += usize::from(
            softhsm_tests::Channel::open(ca.csr_address(), config.clone())
                .await
                .is_err(),
        );
    }
    assert!(closed > 0, "one comes back every fifteen seconds, not six");
    let ask = Ask::bearer(&ca.token());
    for channel in &open {
        ca.remember(
            &channel
                .call(&Csr::demo().pem, &ask)
                .await
                .expect("it was open before"),
        );
    }
    assert!(
        ca.metric("ca_server_handshake_failures_total{reason=\"peer_limit\"}")
            .await
            >= closed as f64
    );
    ca.until("filed", || async {
        filed(&ca.export(), "peer_limit").1 >= closed as u64
    })
    .await;
    ca.check();
}

#[tokio::test]
async fn a_reload_puts_other_limits_in_force() {
    let ca = TestCa::start_with(Setup::default().limit("identity_calls_a_minute", 2)).await;
    let (channel, ask) = (ca.connect().await, Ask::bearer(&ca.token()));
    let call = async || {
        channel
            .call(&Csr::demo().pem, &ask)
            .await
            .inspect(|chain| ca.remember(chain))
    };
    for _ in 0..2 {
        call().await.expect("within the limit");
    }
    assert_refused(call().await, Code::ResourceExhausted);
    ca.edit_config(
        "identity_calls_a_minute = 2",
        "identity_calls_a_minute = 50",
    );
    assert!(ca.reload().await, "{}", ca.log_text());
    for _ in 0..20 {
        call().await.expect("within the new one");
    }
    ca.edit_config(
        "identity_calls_a_minute = 50",
        "identity_calls_a_minute = 0",
    );
    assert!(ca.reload().await, "{}", ca.log_text());
    for _ in 0..50 {
        call().await.expect("there is none");
    }
    ca.check();
}

#[tokio::test]
async fn a_limit_that_is_lowered_shuts_nobody_out_for_longer_than_its_own_pace() {
    let ca = TestCa::start_with(
        Setup::default()
            .limit("identity_calls_a_minute", 100_000)
            .limit("peer_calls_a_minute", 100_000),
    )
    .await;
    let (channel, ask, csr) = (
        ca.connect().await,
        Ask::bearer(&ca.token()),
        Csr::demo().pem,
    );
    // One certificate, given out again: no load of the device.
    for _ in 0..20 {
        join_all((0..100).map(|_| channel.call(&csr, &ask))).await;
    }
    for key in ["identity_calls_a_minute", "peer_calls_a_minute"] {
        ca.edit_config(&format!("{key} = 100000"), &format!("{key} = 30"));
    }
    assert!(ca.reload().await, "{}", ca.log_text());
    // A call every two seconds, and not one after the two thousand of before have drained at that
    // pace.
    ca.until("served", || async {
        channel.call(&csr, &ask).await.is_ok()
    })
    .await;
}

#[tokio::test]
async fn a_repeat_counts_against_the_limit_of_its_identity_and_always_has_its_row() {
    let ca = TestCa::start_with(
        Setup::default()
            .with_faults()
            .limit("identity_calls_a_minute", 20),
    )
    .await;
    let (channel, ask, csr) = (
        ca.connect().await,
        Ask::bearer(&ca.token()),
        Csr::demo().pem,
    );
    let (mut answered, mut refused) = (0, 0);
    for _ in 0..40 {
        match channel.call(&csr, &ask).await {
            Ok(chain) => {
                ca.remember(&chain);
                answered += 1;
            }
            Err(status) => {
                assert_eq!(status.code(), Code::ResourceExhausted);
                refused += 1;
            }
        }
    }
    assert!(
        answered >= 20 && refused > 0,
        "{answered} answered, {refused} refused"
    );
    let ledger = ca.check();
    assert_eq!(
        ledger.count("repeated") + 1,
        answered,
        "each but the first is a repeat, with a row"
    );
}

#[tokio::test]
async fn one_workload_cannot_fill_the_ledger() {
    const CALLS: usize = 2_000;
    for setup in [Setup::default(), Setup::default().on_postgres()] {
        let ca = TestCa::start_with(setup).await;
        let (channel, ask, begun) = (ca.connect().await, Ask::bearer(&ca.token()), Instant::now());
        for _ in 0..CALLS / 100 {
            for answer in join_all((0..100).map(|_| channel.call("no CSR", &ask))).await {
                assert_refused(answer, Code::InvalidArgument);
            }
        }
        ca.call(&Csr::demo().pem, &ask)
            .await
            .expect("others are served, and this one too");
        ca.until("filed", || async {
            let (rows, counted) = filed(&ca.export(), "malformed_csr");
            rows as u64 + counted == CALLS as u64
        })
        .await;
        let ledger = ca.check();
        let (rows, _) = filed(&ledger, "malformed_csr");
        // Ten in each window of ten seconds, of which one more may have begun at either end.
        let most = 10 * (2 + usize::try_from(begun.elapsed().as_secs()).expect("small") / 10);
        assert!(
            (10..=most).contains(&rows),
            "{rows} rows of {CALLS} refusals"
        );
        let groups: Vec<_> = ledger
            .kind("refused_group")
            .into_iter()
            .filter(|row| row["reason"] == "malformed_csr")
            .collect();
        assert!(
            groups
                .iter()
                .all(|group| group["identity"] == DEMO && group["prefix"] == "any"),
            "{groups:?}"
        );
        let export = ca
            .verb(&[
                "audit",
                "export",
                "--identity",
                DEMO,
                "--kind",
                "refused_group",
            ])
            .output()
            .expect("runs");
        assert!(
            export.status.success()
                && String::from_utf8_lossy(&export.stdout).contains("malformed_csr")
        );
    }
}
