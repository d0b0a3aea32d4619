//! A refused PIN waits for an operator's order, each order is worth one try, and no order is lost:
//! whatever calls go on meanwhile, whatever try is under way when it comes, and whatever becomes of
//! the process afterwards.

use softhsm_tests::daemon::{Setup, signal};
use softhsm_tests::{Ask, Csr, Load, TestCa};

use crate::signer_process::signer_processes;

/// Takes the sessions away, so that the PIN is tried again, and waits until it is refused: by
/// CKR_PIN_INCORRECT where it is right.
async fn lock_out(ca: &TestCa, load: &Load, login: &str) {
    ca.command_faults(&format!("C_SignInit close_sessions count 1\n{login}"));
    ca.until("locked out", || async {
        load.all_in_vain(2) && ca.get("/healthz/ready").await.1.contains("locked_out")
    })
    .await;
}

async fn until_issued_again(ca: &TestCa, load: &Load, what: &str) {
    let issued = load.issued();
    ca.until(what, || async { load.issued() > issued + 20 })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pin_outage_that_was_healed_under_traffic_leaves_no_hidden_lock() {
    let ca = TestCa::start_with(Setup::default().with_faults()).await;
    let mut load = Load::on(&ca, 4);
    load.until_issued(&ca, 10).await;
    lock_out(&ca, &load, "C_Login rv 0xA0").await;
    // The PIN is right again. The token takes its time over it, and calls are refused meanwhile.
    ca.command_faults("C_Login sleep_ms 1500 count 1");
    assert!(ca.reload().await);
    until_issued_again(&ca, &load, "served after the order").await;
    signal(signer_processes(&ca)[0], "KILL");
    until_issued_again(&ca, &load, "served by the next process without an order").await;
    load.stop().await;
    assert!(load.unanswered().is_empty(), "{:?}", load.unanswered());
    let ledger = ca.check();
    assert_eq!(ca.open_intents(&ledger), 0);
}

/// The PIN is wrong, `provoke` has it tried, and the operator puts the right one in its place, and
/// says so, while that try is under way.
async fn an_order_comes_during_a_try(ca: &TestCa, load: &Load, provoke: impl AsyncFnOnce()) {
    let (faults, pin) = (ca.faults(), ca.material.read("issuing.pin"));
    ca.material.write("issuing.pin", "wrong");
    let (logins, met) = (faults.logins(), faults.met("C_Login"));
    ca.command_faults("C_Login sleep_ms 1500 once");
    provoke().await;
    ca.until("a try is under way", || async {
        faults.met("C_Login") > met
    })
    .await;
    ca.material.write("issuing.pin", &pin);
    assert!(ca.reload().await);
    until_issued_again(ca, load, "served").await;
    assert_eq!(
        faults.logins() - logins,
        2,
        "the one that was under way, and the one of the order"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_that_comes_while_a_pin_is_tried_is_not_lost() {
    let places = [
        (true, Setup::default().with_faults()),
        (false, Setup::default().with_faults().on_threads()),
    ];
    for (in_process, setup) in places {
        let ca = TestCa::start_with(setup).await;
        let mut load = Load::on(&ca, 4);
        load.until_issued(&ca, 10).await;
        lock_out(&ca, &load, "C_Login rv 0xA0").await;
        an_order_comes_during_a_try(&ca, &load, async || assert!(ca.reload().await)).await;
        if in_process {
            an_order_comes_during_a_try(&ca, &load, async || {
                signal(signer_processes(&ca)[0], "KILL")
            })
            .await;
        }
        load.stop().await;
        ca.call(&Csr::demo().pem, &Ask::bearer(&ca.token()))
            .await
            .expect("issued");
        let ledger = ca.check();
        assert_eq!(ca.open_intents(&ledger), 0);
    }
}
