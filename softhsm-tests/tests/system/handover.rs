//! What an operator does to daemons at work, and no accepted call fails: a serving certificate
//! swapped, a config reloaded, a daemon restarted in order while another serves beside it.

use softhsm_tests::check::Ledger;
use softhsm_tests::daemon::Setup;
use softhsm_tests::{LedgerDatabase, Load, TestCa};

const CLIENTS: usize = 16;
const ROUNDS: usize = 5;

/// No call got anything but a certificate, and none was accepted whose certificate did not arrive:
/// a call that a daemon never took, because its connection was just ending, has left nothing.
fn none_failed(load: &Load, ledger: &Ledger) {
    assert!(load.refused().is_empty(), "{:?}", load.refused());
    let accepted = ledger
        .kind("intent")
        .into_iter()
        .filter(|row| row["purpose"] == "leaf")
        .count();
    assert_eq!(
        accepted,
        load.issued(),
        "an accepted call failed; unanswered: {:?}",
        load.unanswered()
    );
    assert_eq!(
        ["failed", "unknown", "refused"].map(|kind| ledger.count(kind)),
        [0, 0, 0]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reloads_and_new_serving_certificates_drop_no_call() {
    for (setup, ledger_on) in [
        (Setup::default(), "SQLite"),
        (Setup::default().on_postgres(), "Postgres"),
    ] {
        let ca = TestCa::start_with(setup.with_faults()).await;
        let mut load = Load::on(&ca, CLIENTS);
        for round in 1..=ROUNDS {
            load.until_issued(&ca, 50).await;
            // A reload also renews the serving certificate.
            assert!(ca.reload().await, "{}", ca.log_text());
            ca.until("renewed", || async {
                ca.log_text()
                    .matches("serving certificate in force")
                    .count()
                    > round
            })
            .await;
        }
        load.until_issued(&ca, 50).await;
        load.stop().await;
        let ledger = ca.check();
        none_failed(&load, &ledger);
        assert!(load.unanswered().is_empty(), "{:?}", load.unanswered());
        let serving = ledger
            .kind("intent")
            .into_iter()
            .filter(|row| row["purpose"] == "serving")
            .count();
        softhsm_tests::tell(&format!(
            "{ROUNDS} reloads on {ledger_on}: {serving} serving certificates, {} certificates received, no call failed",
            load.issued()
        ));
        assert_eq!((serving, ledger.count("reload")), (1 + ROUNDS, ROUNDS));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_graceful_restart_behind_a_second_daemon_fails_no_accepted_call() {
    let database = LedgerDatabase::new();
    let start = async || {
        TestCa::start_with(Setup::default().with_faults().on_ledger(&database.url())).await
    };
    let (mut first, mut second) = (start().await, start().await);
    let mut load = Load::on(&first, CLIENTS);
    load.connect_to(&[first.csr_address(), second.csr_address()]);
    for _ in 0..ROUNDS {
        load.until_issued(&second, 100).await;
        // The balancer sends nobody new to the one that is about to end.
        load.connect_to(&[second.csr_address()]);
        assert!(tokio::task::block_in_place(|| first.stop()).success());
        load.until_issued(&second, 50).await;
        first.restart().await;
        load.connect_to(&[first.csr_address(), second.csr_address()]);
        std::mem::swap(&mut first, &mut second);
    }
    load.until_issued(&first, 100).await;
    load.stop().await;
    let ledger = first.check_with(&[&second]);
    none_failed(&load, &ledger);
    softhsm_tests::tell(&format!(
        "{ROUNDS} restarts in order behind a second daemon: {} certificates received; never taken, and sent again: {:?}",
        load.issued(),
        load.unanswered()
    ));
    assert_eq!(
        (ledger.count("end"), first.open_intents(&ledger)),
        (ROUNDS, 0)
    );
}
