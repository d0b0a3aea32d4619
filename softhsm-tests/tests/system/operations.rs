//! Cases 68–70 and 74, and what else happens to a daemon in its life: reload, shutdown, a locked
//! token, a swapped certificate.

use std::time::Duration;

use softhsm_tests::client::tls;
use softhsm_tests::daemon::{DEMO, Setup};
use softhsm_tests::{Ask, Channel, Csr, Material, TestCa};
use sqlx::{Connection, Executor, SqliteConnection};
use tonic::Code;

use crate::seen::{assert_refused, identity, leaf};

/// CK_RVs, PKCS#11 v2.40 §A.
const CKR_DEVICE_ERROR: &str = "0x30";
const CKR_TOKEN_NOT_PRESENT: &str = "0xE0";
const CKR_PIN_INCORRECT: &str = "0xA0";
const CKR_SESSION_HANDLE_INVALID: &str = "0xB3";

#[tokio::test]
async fn case_68_a_login_that_is_gone_is_made_again_in_silence() {
    let ca = TestCa::start_with(Setup::default().with_faults()).await;
    let ask = Ask::bearer(&ca.token());
    for fault in [
        "C_SignInit logout count 1",
        "C_SignInit close_sessions count 1",
        &format!("C_SignInit rv {CKR_SESSION_HANDLE_INVALID} count 1"),
    ] {
        ca.command_faults(fault);
        assert_eq!(
            identity(
                &ca.call(&Csr::demo().pem, &ask)
                    .await
                    .unwrap_or_else(|status| panic!("{fault}: {status}"))
            ),
            DEMO
        );
    }
    ca.command_faults(&format!("C_SignInit logout\nC_Login rv {CKR_TOKEN_NOT_PRESENT}\nC_OpenSession rv {CKR_TOKEN_NOT_PRESENT}"));
    ca.until("not ready", || async {
        assert_refused(ca.call(&Csr::demo().pem, &ask).await, Code::Unavailable);
        ca.get("/healthz/ready").await.0 == 503
    })
    .await;
    assert_eq!(
        ca.get("/healthz/live").await.0,
        200,
        "an outage of the token restarts no pod"
    );
    ca.command_faults("");
    ca.until_ready().await;
    ca.call(&Csr::demo().pem, &ask)
        .await
        .expect("it has healed itself");
    ca.check();
}

#[tokio::test]
async fn a_wrong_pin_costs_one_try_and_waits_for_the_operator() {
    let ca = TestCa::start_with(Setup::default().with_faults()).await;
    let ask = Ask::bearer(&ca.token());
    let before = ca.faults().logins();
    ca.command_faults(&format!(
        "C_SignInit logout count 4\nC_Login rv {CKR_PIN_INCORRECT}"
    ));
    let connection = ca.connect().await;
    let csrs: Vec<String> = (0..16).map(|_| Csr::demo().pem).collect();
    let calls = csrs.iter().map(|csr| connection.call(csr, &ask));
    for answer in futures_util::future::join_all(calls).await {
        match answer {
            Ok(chain) => ca.remember(&chain),
            Err(status) => assert_eq!(status.code(), Code::Unavailable, "{status}"),
        }
    }
    ca.until("locked", || async {
        ca.get("/healthz/ready").await.0 == 503
    })
    .await;
    assert_eq!(ca.faults().logins() - before, 1, "many threads, one try");
    assert_refused(ca.call(&Csr::demo().pem, &ask).await, Code::Unavailable);
    assert_eq!(
        ca.faults().logins() - before,
        1,
        "and none by itself afterwards"
    );
    ca.command_faults("");
    assert!(ca.reload().await);
    ca.until_ready().await;
    ca.call(&Csr::demo().pem, &ask)
        .await
        .expect("after the operator's word");
    ca.check();
}

#[tokio::test]
async fn case_69_a_hanging_device_costs_its_call_and_no_other() {
    // On threads: a process that hangs is replaced, which is another story.
    let setup = Setup::default()
        .with_faults()
        .on_threads()
        .replace("call_timeout = \"5s\"", "call_timeout = \"1s\"");
    let ca = TestCa::start_with(setup).await;
    let ask = Ask::bearer(&ca.token());
    ca.command_faults("C_Sign sleep_ms 4000 count 1");
    assert_refused(
        ca.call(&Csr::demo().pem, &ask).await,
        Code::DeadlineExceeded,
    );
    ca.call(&Csr::demo().pem, &ask)
        .await
        .expect("other sessions go on");
    ca.until("recorded", || async { ca.export().count("unknown") == 1 })
        .await;
    ca.until("free again", || async {
        ca.metric("ca_server_signer_stuck_threads{issuer=\"quickstart\",token=\"1\"}")
            .await
            == 0.0
    })
    .await;

    ca.command_faults("C_Sign sleep_ms 4000 count 4");
    let connection = ca.connect().await;
    let csrs: Vec<String> = (0..4).map(|_| Csr::demo().pem).collect();
    for answer in
        futures_util::future::join_all(csrs.iter().map(|csr| connection.call(csr, &ask))).await
    {
        assert_refused(answer, Code::DeadlineExceeded);
    }
    assert_eq!(
        ca.get("/healthz/ready").await.0,
        503,
        "every thread is stuck"
    );
    ca.until_ready().await;
    ca.call(&Csr::demo().pem, &ask).await.expect("served again");
    let ledger = ca.check();
    assert_eq!(ledger.count("unknown"), 5);
    assert_eq!(ca.open_intents(&ledger), 0);
}

#[tokio::test]
async fn a_device_error_refuses_one_call_and_is_recorded() {
    let ca = TestCa::start_with(Setup::default().with_faults()).await;
    let ask = Ask::bearer(&ca.token());
    ca.command_faults(&format!("C_Sign rv {CKR_DEVICE_ERROR} count 2"));
    assert_refused(ca.call(&Csr::demo().pem, &ask).await, Code::Unavailable);
    ca.command_faults("");
    ca.until_ready().await;
    ca.call(&Csr::demo().pem, &ask).await.expect("served again");
    let ledger = ca.check();
    assert_eq!(ledger.count("failed") + ledger.count("unknown"), 1);
}

#[tokio::test]
async fn a_signature_that_does_not_verify_leaves_nobody_and_its_session_is_not_trusted_again() {
    let ca = TestCa::start_with(Setup::default().with_faults()).await;
    let ask = Ask::bearer(&ca.token());
    ca.command_faults("C_Sign corrupt count 1");
    assert_refused(ca.call(&Csr::demo().pem, &ask).await, Code::Internal);
    ca.call(&Csr::demo().pem, &ask)
        .await
        .expect("the next one is good");
    ca.until("opened again", || async {
        ca.metric("ca_server_signer_reopened_total{issuer=\"quickstart\",token=\"1\"}")
            .await
            >= 1.0
    })
    .await;
    let ledger = ca.check();
    assert_eq!((ledger.count("unknown"), ca.open_intents(&ledger)), (1, 0));
}

#[tokio::test]
async fn case_70_a_ledger_held_by_another_process_releases_no_certificate() {
    let ca = TestCa::start_with(Setup::default().with_faults()).await;
    let ask = Ask::bearer(&ca.token());
    ca.call(&Csr::demo().pem, &ask).await.expect("issued");
    let signatures = ca.faults().signatures();
    let url = format!("sqlite:{}", ca.material.file("ledger.db").display());
    let mut holder = SqliteConnection::connect(&url).await.expect("opened");
    holder.execute("BEGIN EXCLUSIVE").await.expect("held");
    for _ in 0..3 {
        assert_refused(ca.call(&Csr::demo().pem, &ask).await, Code::Unavailable);
    }
    ca.until("not ready", || async {
        ca.get("/healthz/ready").await.0 == 503
    })
    .await;
    assert_eq!(
        ca.faults().signatures(),
        signatures,
        "the device was not asked"
    );
    holder.execute("ROLLBACK").await.expect("released");
    ca.until_ready().await;
    ca.call(&Csr::demo().pem, &ask)
        .await
        .expect("it has resumed by itself");
    ca.check();
}

#[tokio::test]
async fn case_70_a_ledger_lost_after_signing_withholds_the_certificate_and_records_it_later() {
    let ca = TestCa::start_with(
        Setup::default()
            .with_faults()
            .replace("call_timeout = \"5s\"", "call_timeout = \"2s\""),
    )
    .await;
    let (channel, ask, csr) = (
        ca.connect().await,
        Ask::bearer(&ca.token()),
        Csr::demo().pem,
    );
    ca.command_faults("C_Sign sleep_ms 700 count 1");
    let call = channel.call(&csr, &ask);
    let hold = async {
        ca.until("in the device", || async {
            ca.export().count("intent") == 2
        })
        .await;
        let url = format!("sqlite:{}", ca.material.file("ledger.db").display());
        let mut holder = SqliteConnection::connect(&url).await.expect("opened");
        holder.execute("BEGIN EXCLUSIVE").await.expect("held");
        holder
    };
    let (answer, mut holder) = tokio::join!(call, hold);
    assert_refused(answer, Code::Unavailable);
    holder.execute("ROLLBACK").await.expect("released");
    ca.until("recorded", || async { ca.open_intents(&ca.export()) == 0 })
        .await;
    assert_eq!(
        ca.check().count("issued"),
        2,
        "signed, so recorded as issued, although nobody received it"
    );
}

#[tokio::test]
async fn case_70_a_full_file_system_refuses_before_signing_and_recovers_by_itself() {
    let ca = on_small_file_system().await;
    let ask = Ask::bearer(&ca.token());
    ca.call(&Csr::demo().pem, &ask).await.expect("issued");
    let signatures = ca.faults().signatures();
    // The daemon sees a file system that nobody else does; through /proc so do we.
    let filler = format!(
        "/proc/{}/root{}/filler",
        ca.pid(),
        ca.material.file("small").display()
    );
    let filled = std::process::Command::new("dd")
        .args(["if=/dev/zero", "bs=4k", &format!("of={filler}")])
        .output()
        .expect("dd runs");
    assert!(
        !filled.status.success(),
        "it is full: {}",
        String::from_utf8_lossy(&filled.stderr)
    );
    ca.until("refused", || async {
        match ca.call(&Csr::demo().pem, &ask).await {
            // The write-ahead log may have room left for a few.
            Ok(_) => false,
            Err(status) => status.code() == Code::Unavailable,
        }
    })
    .await;
    let issued = ca.faults().signatures();
    for _ in 0..3 {
        assert_refused(ca.call(&Csr::demo().pem, &ask).await, Code::Unavailable);
    }
    assert_eq!(
        ca.faults().signatures(),
        issued,
        "the device is not asked while nothing can be recorded"
    );
    assert!(issued >= signatures);
    assert_eq!(ca.get("/healthz/ready").await.0, 503);
    std::fs::remove_file(&filler).expect("removed");
    ca.until_ready().await;
    ca.call(&Csr::demo().pem, &ask)
        .await
        .expect("it has resumed by itself");
    let mut ca = ca;
    // The small file system goes with the process, so the ledger is read first.
    let copy = ca.material.file("after");
    std::fs::create_dir_all(&copy).expect("writable");
    let status = std::process::Command::new("sh")
        .arg("-c")
        .arg(format!(
            "cp /proc/{}/root{}/ledger.db* {}",
            ca.pid(),
            ca.material.file("small").display(),
            copy.display()
        ))
        .status()
        .expect("cp runs");
    assert!(status.success());
    ca.kill();
    ca.edit_config("sqlite:small/ledger.db", "sqlite:after/ledger.db");
    ca.check();
}

/// A daemon in a mount namespace of its own, its ledger on a tmpfs of 2 MiB.
async fn on_small_file_system() -> TestCa {
    let material = Material::new();
    std::fs::create_dir_all(material.file("small")).expect("writable");
    let setup = Setup {
        small_file_system: Some("small".to_owned()),
        ..Setup::default()
    };
    TestCa::start_on(
        material,
        setup
            .with_faults()
            .replace("sqlite:ledger.db", "sqlite:small/ledger.db"),
    )
    .await
}

#[tokio::test]
async fn case_74_pings_on_a_slow_call_draw_no_goaway() {
    let ca = TestCa::start_with(Setup::default().with_faults()).await;
    let channel = Channel::open_with_pings(
        ca.csr_address(),
        tls(&ca.roots(), None),
        Duration::from_millis(50),
    )
    .await
    .expect("connected");
    ca.command_faults("C_Sign sleep_ms 1500 count 1");
    let ask = Ask::bearer(&ca.token());
    ca.remember(
        &channel
            .call(&Csr::demo().pem, &ask)
            .await
            .expect("some thirty pings later"),
    );
    ca.remember(
        &channel
            .call(&Csr::demo().pem, &ask)
            .await
            .expect("on the same connection"),
    );
    ca.check();
}

#[tokio::test]
async fn a_reload_changes_what_it_may_and_a_bad_file_changes_nothing() {
    let ca = TestCa::start().await;
    let (channel, ask) = (
        ca.connect().await,
        Ask::bearer(&ca.token()).lifetime(86_400),
    );
    ca.remember(&channel.call(&Csr::demo().pem, &ask).await.expect("issued"));
    ca.edit_config("maximum = \"90d\"", "maximum = \"1h\"");
    assert!(!ca.reload().await, "the default is above the maximum");
    ca.remember(
        &channel
            .call(&Csr::demo().pem, &ask)
            .await
            .expect("the former config is in force"),
    );
    ca.edit_config("default = \"24h\"", "default = \"1h\"");
    assert!(ca.reload().await, "{}", ca.log_text());
    assert_refused(
        channel.call(&Csr::demo().pem, &ask).await,
        Code::InvalidArgument,
    );
    for (from, to, key) in [
        (
            "trust_domain = \"cluster.local\"",
            "trust_domain = \"other.local\"",
            "trust_domain",
        ),
        ("sqlite:ledger.db", "sqlite:other.db", "ledger"),
    ] {
        ca.edit_config(from, to);
        assert!(!ca.reload().await);
        ca.logged(&format!("`{key}` has changed, which needs a restart"))
            .await;
        ca.edit_config(to, from);
    }
    assert_eq!(ca.check().count("reload"), 1);
}

#[tokio::test]
async fn a_reload_never_gives_an_issuers_id_to_another_key() {
    use softhsm_tests::authority::Authority;
    let material = Material::new();
    let root = Authority::root("root", Duration::from_secs(86_400));
    for name in ["first", "second"] {
        let issuing = root.intermediate(name, Duration::from_secs(86_400));
        material.write(&format!("{name}.pem"), issuing.certificate());
        crate::lifetime::write_key(&material, &format!("{name}.key"), &issuing.key());
    }
    material.write("file-root.pem", root.certificate());
    let issuer = "\n[[issuer]]\nid = \"file\"\nkey = \"file:first.key\"\nchain = \"first.pem\"\nroots = \"file-root.pem\"\n";
    let ca = TestCa::start_on(
        material,
        Setup {
            append: issuer.to_owned(),
            ..Setup::default()
        },
    )
    .await;
    let ask = Ask::bearer(&ca.token()).text("CertSigner", "file");
    ca.call(&Csr::demo().pem, &ask).await.expect("issued");
    ca.edit_config(
        "key = \"file:first.key\"\nchain = \"first.pem\"",
        "key = \"file:second.key\"\nchain = \"second.pem\"",
    );
    assert!(!ca.reload().await);
    ca.logged("give a new issuing key a new id").await;
    ca.edit_config("id = \"file\"", "id = \"file-2\"");
    assert!(ca.reload().await, "{}", ca.log_text());
    ca.call(
        &Csr::demo().pem,
        &Ask::bearer(&ca.token()).text("CertSigner", "file-2"),
    )
    .await
    .expect("issued by the new key");
    assert_refused(ca.call(&Csr::demo().pem, &ask).await, Code::InvalidArgument);
    ca.check();
}

#[tokio::test]
async fn shutdown_finishes_calls_under_way_and_ends_the_chain() {
    let mut ca = TestCa::start_with(Setup::default().with_faults()).await;
    let (channel, ask) = (ca.connect().await, Ask::bearer(&ca.token()));
    ca.command_faults("C_Sign sleep_ms 1500 count 1");
    let csr = Csr::demo().pem;
    let (answer, ()) = tokio::join!(channel.call(&csr, &ask), async {
        ca.until("in the device", || async {
            ca.export().count("intent") == 2
        })
        .await;
        ca.signal("TERM");
    });
    ca.remember(&answer.expect("an accepted call is answered"));
    assert!(ca.wait().success());
    let ledger = ca.check();
    assert_eq!(
        (
            ledger.count("end"),
            ledger.count("issued"),
            ca.open_intents(&ledger)
        ),
        (1, 2, 0)
    );
    ca.restart().await;
    let ledger = ca.check();
    assert_eq!(ledger.count("start"), 2);
    assert_eq!(
        ledger.count("chain_ended"),
        0,
        "the first chain ended itself"
    );
}

#[tokio::test]
async fn shutdown_does_not_wait_for_a_stuck_device_beyond_its_limit() {
    let mut ca = TestCa::start_with(
        Setup::default()
            .with_faults()
            .replace("call_timeout = \"5s\"", "call_timeout = \"1s\""),
    )
    .await;
    let (channel, ask) = (ca.connect().await, Ask::bearer(&ca.token()));
    ca.command_faults("C_Sign sleep_ms 60000 count 1");
    assert_refused(
        channel.call(&Csr::demo().pem, &ask).await,
        Code::DeadlineExceeded,
    );
    assert!(ca.stop().success());
    let ledger = ca.check();
    assert_eq!(
        (
            ledger.count("unknown"),
            ledger.count("end"),
            ca.open_intents(&ledger)
        ),
        (1, 1, 0)
    );
}

#[tokio::test]
async fn a_second_signal_ends_at_once_and_the_next_start_files_what_was_open() {
    let mut ca = TestCa::start_with(
        Setup::default()
            .with_faults()
            .replace("call_timeout = \"5s\"", "call_timeout = \"30s\""),
    )
    .await;
    let (channel, ask) = (ca.connect().await, Ask::bearer(&ca.token()));
    ca.command_faults("C_Sign sleep_ms 60000 count 1");
    let csr = Csr::demo().pem;
    let (answer, ()) = tokio::join!(channel.call(&csr, &ask), async {
        ca.until("in the device", || async {
            ca.export().count("intent") == 2
        })
        .await;
        ca.signal("TERM");
        ca.logged("a second signal ends at once").await;
        ca.signal("TERM");
    });
    answer.expect_err("nothing leaves");
    assert_eq!(ca.wait().code(), Some(143));
    ca.command_faults("");
    ca.restart().await;
    let ledger = ca.check();
    assert_eq!(
        (
            ledger.count("unknown"),
            ledger.count("chain_ended"),
            ca.open_intents(&ledger)
        ),
        (1, 1, 0)
    );
}

#[tokio::test]
async fn two_daemons_never_share_a_ledger() {
    let ca = TestCa::start().await;
    let second = ca.verb(&["serve"]).output().expect("ca-server runs");
    assert_eq!(
        second.status.code(),
        Some(3),
        "{}",
        String::from_utf8_lossy(&second.stderr)
    );
    assert!(String::from_utf8_lossy(&second.stderr).contains("in use by another process"));
    ca.call(&Csr::demo().pem, &Ask::bearer(&ca.token()))
        .await
        .expect("the first is unharmed");
    ca.check();
}

#[tokio::test]
async fn monitoring_tells_names_that_dashboards_know_from_the_start() {
    let ca = TestCa::start().await;
    let text = ca.get("/metrics").await.1;
    for family in [
        "csr_count",
        "authentication_failure_count",
        "csr_parsing_err_count",
        "id_extraction_err_count",
        "success_cert_issuance_count",
    ] {
        assert!(
            text.lines()
                .any(|line| line == format!("citadel_server_{family} 0")),
            "{family}:\n{text}"
        );
    }
    assert!(text.contains("citadel_server_csr_sign_err_count{error=\"CSR_ERROR\"} 0"));
    let root_ends = crate::seen::validity(&crate::seen::certificates(&ca.roots())[0]).1;
    assert_eq!(
        ca.metric("citadel_server_root_cert_expiry_timestamp").await,
        root_ends as f64
    );
    assert!(
        ca.metric("citadel_server_cert_chain_expiry_timestamp")
            .await
            > 0.0
    );
    assert!(
        ca.metric("ca_server_certificate_expiry_timestamp_seconds{certificate=\"serving\"}")
            .await
            > 0.0
    );
    assert!(text.contains("ca_server_build_info{version="));
    assert!(text.contains("ca_server_signer_info{issuer=\"quickstart\",kind=\"pkcs11\"} 1"));
    assert_eq!(ca.get("/root-cert.pem").await, (200, ca.roots()));

    ca.call(&Csr::demo().pem, &Ask::bearer(&ca.token()))
        .await
        .expect("issued");
    let _ = ca.call("junk", &Ask::bearer(&ca.token())).await;
    let _ = ca.call(&Csr::demo().pem, &Ask::default()).await;
    assert_eq!(ca.metric("citadel_server_csr_count").await, 3.0);
    assert_eq!(
        ca.metric("citadel_server_success_cert_issuance_count")
            .await,
        1.0
    );
    assert_eq!(ca.metric("citadel_server_csr_parsing_err_count").await, 1.0);
    assert_eq!(
        ca.metric("citadel_server_authentication_failure_count")
            .await,
        1.0
    );
    assert!(text.contains("ca_server_handshake_failures_total{reason=\"peer_limit\"} 0"));
    for step in [
        "authenticate",
        "csr",
        "policy",
        "draft",
        "open",
        "sign",
        "close",
    ] {
        assert!(
            ca.metric(&format!("ca_server_step_seconds_count{{step=\"{step}\"}}"))
                .await
                >= 1.0,
            "{step}"
        );
    }
    let (status, body) = ca.get("/healthz/ready").await;
    let ready: serde_json::Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!(
        (status, &ready["ready"]),
        (200, &serde_json::Value::Bool(true))
    );
    assert!(
        ready["checks"]
            .as_array()
            .expect("a list")
            .iter()
            .all(|check| check["name"].is_string() && check["detail"].is_string())
    );
    for check in ready["checks"].as_array().expect("a list") {
        assert_eq!(
            ca.metric(&format!("ca_server_ready{{check={}}}", check["name"]))
                .await,
            1.0,
            "{check}"
        );
    }
    ca.check();
}

#[tokio::test]
async fn a_request_id_leads_from_the_log_to_the_ledger() {
    // Issuances are logged for those who ask for it.
    let ca = TestCa::start_with(Setup::default().replace(
        "level = \"info\"",
        "level = \"info,ca_server::issue=debug\"",
    ))
    .await;
    let chain = ca
        .call(&Csr::demo().pem, &Ask::bearer(&ca.token()))
        .await
        .expect("issued");
    let serial = hex::encode(leaf(&chain).tbs_certificate().serial_number().as_bytes());
    ca.logged(&serial).await;
    let log = ca.log_text();
    let line = log
        .lines()
        .find(|line| line.contains(&serial) && line.contains("\"issued\""))
        .expect("logged");
    let line: serde_json::Value = serde_json::from_str(line).expect("JSON");
    let request = line["span"]["request"].as_str().expect("a request id");
    let ledger = ca.check();
    assert!(
        ledger
            .kind("intent")
            .iter()
            .any(|row| row["request_id"] == request && row["serial"] == serial.as_str())
    );
}
