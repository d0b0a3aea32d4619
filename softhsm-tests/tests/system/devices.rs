//! What devices do to a daemon, by name: each row of the table of faults that is about a token.
//! Sessions and logins that are gone, a wrong PIN, a hanging call and a wrong signature are in
//! `operations`; every return value at every step is in `faults`.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use softhsm_tests::daemon::{DEMO, Setup};
use softhsm_tests::{Ask, Csr, Load, Material, TestCa, tell};
use tonic::Code;

use crate::seen::{Chains, assert_refused, identity};

/// The limit on how long a token that is back may stay unused.
const RECOVERY: Duration = Duration::from_secs(10);

async fn with_faults() -> TestCa {
    TestCa::start_with(Setup::default().with_faults()).await
}

/// The checks of readiness.
pub async fn checks(ca: &TestCa) -> Vec<serde_json::Value> {
    let ready: serde_json::Value =
        serde_json::from_str(&ca.get("/healthz/ready").await.1).expect("JSON");
    ready["checks"].as_array().expect("a list").clone()
}

/// A check of readiness: whether it is well, whether it must be, and its sentence.
pub async fn check(ca: &TestCa, name: &str) -> (bool, bool, String) {
    let checks = checks(ca).await;
    let check = checks
        .iter()
        .find(|check| check["name"] == name)
        .unwrap_or_else(|| panic!("no {name}: {checks:?}"));
    let flag = |key: &str| check[key].as_bool().expect("a flag");
    (
        flag("ready"),
        flag("required"),
        check["detail"].as_str().expect("text").to_owned(),
    )
}

/// What readiness says of the signer.
pub async fn signer_detail(ca: &TestCa) -> String {
    check(ca, "signer:quickstart").await.2
}

/// Waits until every session is open, at most as long as a recovery may take.
async fn until_whole(ca: &TestCa) -> Duration {
    let begun = Instant::now();
    ca.until("whole again", || async {
        signer_detail(ca)
            .await
            .starts_with("healthy: 4 of 4 sessions open, 0 stuck")
    })
    .await;
    let took = begun.elapsed();
    assert!(took < RECOVERY, "{took:?}\n{}", ca.log_text());
    took
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_was_pulled_out_is_used_within_ten_seconds_of_its_return() {
    let ca = with_faults().await;
    let (mut load, faults) = (Load::on(&ca, 8), ca.faults());
    load.until_issued(&ca, 20).await;
    let (logins, pid) = (faults.logins(), ca.pid());
    ca.command_faults("token removed");
    ca.until("without a token", || async {
        ca.get("/healthz/ready").await.0 == 503 && load.all_in_vain(3)
    })
    .await;
    assert_eq!(
        ca.get("/healthz/live").await.0,
        200,
        "an outage of the token restarts no pod"
    );
    let signatures = faults.signatures();
    // Away for so many looks that the pauses between them have grown to their longest.
    let looks = faults.met("C_GetSlotList");
    ca.until("looked for again and again", || async {
        faults.met("C_GetSlotList") > looks + 24
    })
    .await;
    assert_eq!(
        (faults.signatures(), faults.logins()),
        (signatures, logins),
        "nothing was signed and no PIN was tried"
    );
    let (issued, back) = (load.issued(), Instant::now());
    ca.command_faults("");
    ca.until("issued again", || async { load.issued() > issued })
        .await;
    let took = back.elapsed();
    assert!(took < RECOVERY, "{took:?}\n{}", ca.log_text());
    until_whole(&ca).await;
    load.stop().await;
    assert!(
        load.unanswered().is_empty() && load.refused().keys().all(|code| code == "Unavailable"),
        "{:?}",
        load.refused()
    );
    assert_eq!(
        (faults.logins() - logins, ca.pid()),
        (1, pid),
        "one login, no restart"
    );
    let ledger = ca.check();
    assert_eq!(ca.open_intents(&ledger), 0);
    tell(&format!(
        "a token was pulled out under load; {} ms after its return it signed again",
        took.as_millis()
    ));
}

#[tokio::test]
async fn a_library_that_never_finds_its_device_again_is_initialised_anew_without_a_restart() {
    let ca = with_faults().await;
    let (ask, pid, faults) = (Ask::bearer(&ca.token()), ca.pid(), ca.faults());
    // CKR_DEVICE_REMOVED and CKR_CRYPTOKI_NOT_INITIALIZED, by which libraries ask for C_Finalize or
    // C_Initialize.
    for fault in ["C_SignInit stale 0x32 count 1", "C_SignInit forget count 1"] {
        let logins = faults.logins();
        ca.command_faults(fault);
        let begun = Instant::now();
        ca.until("served", || async {
            match ca.call(&Csr::demo().pem, &ask).await {
                Ok(chain) => identity(&chain) == DEMO,
                Err(status) => {
                    assert_eq!(status.code(), Code::Unavailable, "{status}");
                    false
                }
            }
        })
        .await;
        assert!(
            begun.elapsed() < RECOVERY,
            "{fault}: {:?}\n{}",
            begun.elapsed(),
            ca.log_text()
        );
        for _ in 0..8 {
            ca.call(&Csr::demo().pem, &ask)
                .await
                .expect("by every session");
        }
        until_whole(&ca).await;
        assert_eq!((faults.logins() - logins, ca.pid()), (1, pid), "{fault}");
    }
    assert!(faults.calls("C_Finalize") > 0);
    let ledger = ca.check();
    assert_eq!(ca.open_intents(&ledger), 0);
}

/// CKA_ID of another key in the issuing token.
const OTHER: &str = "42";

/// Makes another key in the token that holds the issuing key.
fn another_key(ca: &TestCa) {
    let pair = [
        "--keypairgen",
        "--key-type",
        "EC:prime256v1",
        "--label",
        "other",
        "--id",
        OTHER,
        "--usage-sign",
    ];
    let output = ca.material.pkcs11_tool("issuing", &pair);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[tokio::test]
async fn a_handle_that_names_another_key_after_a_reset_gives_nobody_a_certificate_of_that_key() {
    let mut ca = TestCa::configured(Material::new(), Setup::default().with_faults());
    another_key(&ca);
    ca.restart().await;
    let (ask, chains) = (Ask::bearer(&ca.token()), Chains::under(&ca.roots()));
    let served = async |what: &str| {
        for _ in 0..12 {
            let chain = ca
                .call(&Csr::demo().pem, &ask)
                .await
                .unwrap_or_else(|status| panic!("{what}: {status}\n{}", ca.log_text()));
            chains.assert_verified(&chain);
        }
    };
    served("before").await;
    // The reset takes the sessions along: the key is looked for again, and no caller notices.
    ca.command_faults(&format!(
        "C_SignInit close_sessions count 1\nC_OpenSession swap_handles {OTHER} count 1"
    ));
    served("after a reset that closed the sessions").await;
    assert_eq!(ca.faults().met("C_OpenSession"), 1);
    // The sessions live on. The other key signs once; the signature does not verify, and no session
    // signs again before its key was compared.
    ca.command_faults(&format!("C_SignInit swap_handles {OTHER} count 1"));
    assert_refused(ca.call(&Csr::demo().pem, &ask).await, Code::Internal);
    served("after a reset that nobody noticed").await;
    let ledger = ca.check();
    assert_eq!((ledger.count("unknown"), ca.open_intents(&ledger)), (1, 0));
}

#[tokio::test]
async fn a_short_signature_leaves_nobody_and_costs_its_call_alone() {
    let ca = with_faults().await;
    let ask = Ask::bearer(&ca.token());
    for (octets, code) in [
        (1, Code::Unavailable),
        (2, Code::Internal),
        (64, Code::Unavailable),
    ] {
        ca.command_faults(&format!("C_Sign short {octets} count 1"));
        assert_refused(ca.call(&Csr::demo().pem, &ask).await, code);
        for _ in 0..8 {
            ca.call(&Csr::demo().pem, &ask)
                .await
                .unwrap_or_else(|status| panic!("{octets}: {status}\n{}", ca.log_text()));
        }
    }
    let ledger = ca.check();
    assert_eq!(
        (ledger.count("unknown"), ca.open_intents(&ledger)),
        (3, 0),
        "a signature may exist"
    );
}

#[tokio::test]
async fn a_token_that_runs_short_of_sessions_is_used_by_those_it_gives() {
    let mut ca = TestCa::configured(Material::new(), Setup::default().with_faults());
    // One of the three keeps the login.
    ca.command_faults("C_OpenSession limit 3");
    ca.restart().await;
    let ask = Ask::bearer(&ca.token());
    ca.until("refused a session", || async {
        ca.faults().met("C_OpenSession") > 4
    })
    .await;
    for _ in 0..12 {
        ca.call(&Csr::demo().pem, &ask)
            .await
            .unwrap_or_else(|status| panic!("{status}\n{}", ca.log_text()));
    }
    ca.until("degraded", || async {
        signer_detail(&ca)
            .await
            .starts_with("degraded: 2 of 4 sessions open")
    })
    .await;
    ca.command_faults("");
    until_whole(&ca).await;
    ca.check();
}

#[tokio::test]
async fn a_mechanism_that_is_gone_is_named_and_service_resumes_with_it() {
    let ca = with_faults().await;
    let ask = Ask::bearer(&ca.token());
    // CKR_MECHANISM_INVALID, as after an update that forbids it.
    ca.command_faults("C_SignInit rv 0x70\nC_GetMechanismInfo rv 0x70");
    ca.until("not ready", || async {
        assert_refused(ca.call(&Csr::demo().pem, &ask).await, Code::Unavailable);
        ca.get("/healthz/ready").await.0 == 503
    })
    .await;
    ca.until("named", || async {
        signer_detail(&ca).await.contains("CKM_ECDSA")
    })
    .await;
    assert_eq!(ca.get("/healthz/live").await.0, 200);
    ca.command_faults("");
    until_whole(&ca).await;
    ca.call(&Csr::demo().pem, &ask).await.expect("served again");
    let ledger = ca.check();
    assert_eq!(
        (ledger.count("unknown"), ca.open_intents(&ledger)),
        (0, 0),
        "nothing was signed"
    );
}

#[tokio::test]
async fn a_locked_pin_is_tried_once_an_order_and_named() {
    let ca = with_faults().await;
    let (ask, faults) = (Ask::bearer(&ca.token()), ca.faults());
    let before = faults.logins();
    // CKR_PIN_LOCKED.
    ca.command_faults("C_SignInit close_sessions count 1\nC_Login rv 0xA4");
    for orders in 1..=3 {
        ca.until("locked out", || async {
            assert_refused(ca.call(&Csr::demo().pem, &ask).await, Code::Unavailable);
            // The refusal is told a moment after the try.
            faults.logins() - before == orders
                && signer_detail(&ca).await.contains("not tried again")
        })
        .await;
        let detail = signer_detail(&ca).await;
        assert!(detail.contains("CKR_PIN_LOCKED"), "{detail}");
        assert_eq!(ca.get("/healthz/ready").await.0, 503);
        for _ in 0..8 {
            assert_refused(ca.call(&Csr::demo().pem, &ask).await, Code::Unavailable);
        }
        assert_eq!(faults.logins() - before, orders, "one try an order");
        if orders == 3 {
            ca.command_faults("");
        }
        assert!(ca.reload().await);
    }
    until_whole(&ca).await;
    ca.call(&Csr::demo().pem, &ask)
        .await
        .expect("after the operator's word");
    ca.check();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_token_is_not_asked_for_calls_that_are_past_their_limit() {
    const CALLS: usize = 200;
    let setup = Setup::default()
        .with_faults()
        .replace("call_timeout = \"5s\"", "call_timeout = \"2s\"");
    let ca = TestCa::start_with(setup).await;
    let (ask, channel, faults) = (Ask::bearer(&ca.token()), ca.connect().await, ca.faults());
    let csrs: Vec<String> = (0..CALLS).map(|_| Csr::demo().pem).collect();
    let before = faults.signatures();
    // Four sessions sign forty times a second at most. The calls come before that is known.
    ca.command_faults("C_Sign sleep_ms 100");
    let answers = join_all(csrs.iter().map(|csr| channel.call(csr, &ask))).await;
    let (mut certificates, mut late) = (0, 0);
    for answer in answers {
        match answer {
            Ok(chain) => {
                ca.remember(&chain);
                certificates += 1;
            }
            Err(status) => {
                // Once it is known those are refused that have no chance.
                assert!(
                    matches!(
                        status.code(),
                        Code::DeadlineExceeded | Code::ResourceExhausted
                    ),
                    "{status}"
                );
                late += 1;
            }
        }
    }
    ca.until("idle", || async {
        ca.metric("ca_server_calls_in_flight").await == 0.0
    })
    .await;
    ca.command_faults("");
    let ledger = ca.check();
    let unknown = ledger.count("unknown");
    assert!(
        certificates > 0 && late > 0,
        "{certificates} certificates, {late} late"
    );
    assert!(
        unknown <= 4,
        "no more than were inside the token: {unknown}"
    );
    assert_eq!(
        usize::try_from(faults.signatures() - before).expect("few"),
        ledger.count("issued") - 1 + unknown,
        "late calls are not signed"
    );
    assert_eq!(ca.open_intents(&ledger), 0);
    ca.call(&Csr::demo().pem, &ask)
        .await
        .expect("served at once");
    ca.check();
}
