//! Calls that are made again within a minute: the certificate that is recorded, no second
//! signature, and a row for each.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::future::join_all;
use softhsm_tests::check::Ledger;
use softhsm_tests::daemon::{DEMO, Setup};
use softhsm_tests::{Ask, Csr, Material, TestCa, tell};
use sqlx::{Connection, Executor, SqliteConnection};
use tonic::Code;

use crate::clocks::{move_clock, start, timeless};
use crate::seen::{assert_opaque, assert_refused, identity, leaf, openssl_verifies};

const REPEATED: &str = "ca_server_certificates_repeated_total{issuer=\"quickstart\"}";

fn serial(chain: &[String]) -> String {
    hex::encode(leaf(chain).tbs_certificate().serial_number().as_bytes())
}

/// Intents of workloads, not of the daemon itself.
fn leaves(ledger: &Ledger) -> usize {
    ledger
        .kind("intent")
        .into_iter()
        .filter(|row| row["purpose"] == "leaf")
        .count()
}

#[tokio::test]
async fn a_repeated_csr_gets_the_recorded_certificate_and_costs_no_signature() {
    for setup in [Setup::default(), Setup::default().on_postgres()] {
        let ca = TestCa::start_with(setup.with_faults()).await;
        let (csr, token) = (Csr::demo().pem, ca.token());
        let first = ca.call(&csr, &Ask::bearer(&token)).await.expect("issued");
        let signatures = ca.faults().signatures();
        for _ in 0..3 {
            // Each with a token of its own: the evidence is the repeat's.
            assert_eq!(
                ca.call(&csr, &Ask::bearer(&ca.token()))
                    .await
                    .expect("again"),
                first
            );
        }
        assert_eq!(
            (ca.faults().signatures(), ca.metric(REPEATED).await),
            (signatures, 3.0)
        );
        openssl_verifies(&first, &ca.roots());

        let ledger = ca.check();
        assert_eq!((leaves(&ledger), ledger.count("repeated")), (1, 3));
        let intent = ledger
            .kind("intent")
            .into_iter()
            .find(|row| row["purpose"] == "leaf")
            .expect("recorded");
        let (mut tokens, mut requests) = (BTreeSet::new(), BTreeSet::new());
        for row in ledger.kind("repeated").into_iter().chain([intent]) {
            assert_eq!(
                (row["serial"].as_str(), row["identity"].as_str()),
                (Some(serial(&first).as_str()), Some(DEMO)),
                "{row}"
            );
            tokens.insert(
                row["evidence"]["token"]
                    .as_str()
                    .expect("its id")
                    .to_owned(),
            );
            requests.insert(row["request_id"].as_str().expect("its id").to_owned());
        }
        assert_eq!(
            (tokens.len(), requests.len()),
            (4, 4),
            "each says what proved the identity then"
        );
        let shown = ca.verb(&["audit", "show", DEMO]).output().expect("runs");
        let shown = String::from_utf8(shown.stdout).expect("text");
        assert_eq!(
            shown
                .matches("repeated    the certificate of the intent at")
                .count(),
            3,
            "{shown}"
        );
    }
}

#[tokio::test]
async fn another_identity_lifetime_issuer_or_csr_is_another_call() {
    let ca = TestCa::start().await;
    let (csr, token) = (Csr::demo(), ca.token());
    let ask = Ask::bearer(&token);
    let mut serials = BTreeSet::from([serial(&ca.call(&csr.pem, &ask).await.expect("issued"))]);
    let other = ca
        .call(&csr.pem, &Ask::bearer(&ca.minter().token("shop", "cart")))
        .await
        .expect("issued");
    assert_eq!(
        identity(&other),
        "spiffe://cluster.local/ns/shop/sa/cart",
        "nobody gets another's"
    );
    serials.insert(serial(&other));
    serials.insert(serial(
        &ca.call(&csr.pem, &ask.clone().lifetime(3600))
            .await
            .expect("issued"),
    ));
    serials.insert(serial(
        &ca.call(&csr.again().pem, &ask).await.expect("issued"),
    ));
    assert_eq!(serials.len(), 4);
    // The default issuer, by its name.
    let named = ca
        .call(&csr.pem, &ask.clone().text("CertSigner", "quickstart"))
        .await
        .expect("the same");
    assert!(serials.contains(&serial(&named)));
    assert_eq!(ca.check().count("repeated"), 1);
}

#[tokio::test]
async fn a_repeat_must_prove_itself_again() {
    let ca = TestCa::start().await;
    let (csr, token) = (Csr::demo().pem, ca.token());
    ca.call(&csr, &Ask::bearer(&token)).await.expect("issued");
    assert_opaque(ca.call(&csr, &Ask::default()).await);
    assert_opaque(ca.call(&csr, &Ask::bearer(&format!("{token}x"))).await);
    let mut claims = ca.minter().claims("default", "demo");
    claims["exp"] = serde_json::json!(1_000_000_000);
    assert_opaque(
        ca.call(&csr, &Ask::bearer(&ca.minter().sign(&claims)))
            .await,
    );
    assert_refused(
        ca.call(&csr, &Ask::bearer(&token).text("CertSigner", "unknown"))
            .await,
        Code::InvalidArgument,
    );
    assert_eq!(ca.check().count("repeated"), 0);
}

#[tokio::test]
async fn calls_at_once_with_one_csr_share_one_intent() {
    const CALLS: usize = 50;
    for setup in [Setup::default(), Setup::default().on_postgres()] {
        let ca = TestCa::start_with(setup.with_faults()).await;
        let (channel, csr, ask) = (
            ca.connect().await,
            Csr::demo().pem,
            Ask::bearer(&ca.token()),
        );
        ca.command_faults("C_Sign sleep_ms 700 count 1");
        let answers = join_all((0..CALLS).map(|_| channel.call(&csr, &ask))).await;
        let chains: BTreeSet<Vec<String>> = answers
            .into_iter()
            .map(|answer| answer.expect("issued"))
            .collect();
        assert_eq!(chains.len(), 1);
        chains.iter().for_each(|chain| ca.remember(chain));
        let ledger = ca.check();
        assert_eq!((leaves(&ledger), ledger.count("repeated")), (1, CALLS - 1));
    }
}

#[tokio::test]
async fn when_the_first_call_fails_one_of_those_that_wait_goes_first() {
    const WAITING: usize = 8;
    let setup = Setup::default()
        .with_faults()
        .replace("call_timeout = \"5s\"", "call_timeout = \"3s\"");
    let ca = TestCa::start_with(setup).await;
    let (channel, csr, ask) = (
        ca.connect().await,
        Csr::demo().pem,
        Ask::bearer(&ca.token()),
    );
    ca.command_faults("C_Sign sleep_ms 8000 count 1");
    let waiting = async {
        ca.until("in the device", || async { leaves(&ca.export()) == 1 })
            .await;
        tokio::time::sleep(Duration::from_millis(1000)).await;
        join_all((0..WAITING).map(|_| channel.call(&csr, &ask))).await
    };
    let (first, others) = tokio::join!(channel.call(&csr, &ask), waiting);
    assert_refused(first, Code::DeadlineExceeded);
    let chains: BTreeSet<Vec<String>> = others
        .into_iter()
        .map(|answer| answer.expect("issued to the next"))
        .collect();
    assert_eq!(chains.len(), 1);
    chains.iter().for_each(|chain| ca.remember(chain));
    ca.until("recorded", || async { ca.open_intents(&ca.export()) == 0 })
        .await;
    let ledger = ca.check();
    assert_eq!(
        (
            leaves(&ledger),
            ledger.count("unknown"),
            ledger.count("repeated")
        ),
        (2, 1, WAITING - 1)
    );
}

#[tokio::test]
async fn a_repeat_that_cannot_be_recorded_does_not_leave() {
    let ca = TestCa::start_with(Setup::default().with_faults()).await;
    let (csr, ask) = (Csr::demo().pem, Ask::bearer(&ca.token()));
    let first = ca.call(&csr, &ask).await.expect("issued");
    let signatures = ca.faults().signatures();
    let url = format!("sqlite:{}", ca.material.file("ledger.db").display());
    let mut holder = SqliteConnection::connect(&url).await.expect("opened");
    holder.execute("BEGIN EXCLUSIVE").await.expect("held");
    for _ in 0..3 {
        assert_refused(ca.call(&csr, &ask).await, Code::Unavailable);
    }
    holder.execute("ROLLBACK").await.expect("released");
    ca.until_ready().await;
    assert_eq!(ca.call(&csr, &ask).await.expect("again"), first);
    assert_eq!(ca.faults().signatures(), signatures);
    ca.check();
}

#[tokio::test]
async fn nothing_is_given_out_again_after_a_minute() {
    let ca = start(Setup::default().with_faults()).await;
    let (channel, csr, ask) = (ca.connect().await, Csr::demo().pem, timeless(&ca));
    let call = async || {
        let chain = channel
            .call(&csr, &ask)
            .await
            .unwrap_or_else(|status| panic!("{status}\n{}", ca.log_text()));
        ca.remember(&chain);
        serial(&chain)
    };
    let first = call().await;
    move_clock(&ca.material, "+30s");
    assert_eq!(call().await, first);
    move_clock(&ca.material, "+61s");
    let second = call().await;
    assert_ne!(second, first);
    assert_eq!(call().await, second);
    let ledger = ca.check();
    assert_eq!((leaves(&ledger), ledger.count("repeated")), (2, 2));
}

#[tokio::test]
async fn a_reload_that_changes_profile_or_issuer_answers_nothing_from_before() {
    use softhsm_tests::authority::Authority;
    let material = Material::new();
    let root = Authority::root("root", Duration::from_secs(86_400));
    let issuing = root.intermediate("issuing", Duration::from_secs(86_400));
    material.write("issuing.pem", issuing.certificate());
    material.write(
        "renewed.pem",
        root.renewed("issuing", Duration::from_secs(2 * 86_400), &issuing)
            .certificate(),
    );
    material.write("file-root.pem", root.certificate());
    crate::lifetime::write_key(&material, "issuing.key", &issuing.key());
    let append = "\n[[issuer]]\nid = \"file\"\nkey = \"file:issuing.key\"\nchain = \"issuing.pem\"\nroots = \"file-root.pem\"\n".to_owned();
    let ca = TestCa::start_on(
        material,
        Setup {
            append,
            ..Setup::default()
        },
    )
    .await;
    let (csr, ask) = (
        Csr::demo().pem,
        Ask::bearer(&ca.token())
            .text("CertSigner", "file")
            .lifetime(3600),
    );
    let call = async || {
        ca.call(&csr, &ask)
            .await
            .unwrap_or_else(|status| panic!("{status}\n{}", ca.log_text()))
    };
    let first = call().await;
    assert!(ca.reload().await, "{}", ca.log_text());
    assert_eq!(call().await, first, "nothing has changed");

    ca.edit_config("chain = \"issuing.pem\"", "chain = \"renewed.pem\"");
    assert!(ca.reload().await, "{}", ca.log_text());
    let second = call().await;
    assert_ne!(
        serial(&second),
        serial(&first),
        "the issuer's certificate is another"
    );
    assert_ne!(second[1], first[1]);

    ca.edit_config("maximum = \"90d\"", "maximum = \"89d\"");
    assert!(ca.reload().await, "{}", ca.log_text());
    let third = call().await;
    assert!(
        ![serial(&first), serial(&second)].contains(&serial(&third)),
        "the profile is another"
    );
    assert_eq!(ca.check().count("repeated"), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agents_that_hang_up_and_ask_again_leave_one_certificate_each() {
    const AGENTS: usize = 200;
    let ca = TestCa::start_with(Setup::default().with_faults()).await;
    let ask = Ask::bearer(&ca.token());
    let agents = (0..AGENTS).map(|agent| {
        let (ca, ask) = (&ca, &ask);
        async move {
            let (channel, csr) = (ca.connect().await, Csr::demo().pem);
            // Patience that ends now before the intent, now in the device, now after the answer.
            let patience =
                Duration::from_micros(u64::try_from(agent).expect("small") * 211 % 40_000);
            let _ = tokio::time::timeout(patience, channel.call(&csr, ask)).await;
            ca.remember(
                &ca.connect()
                    .await
                    .call(&csr, ask)
                    .await
                    .unwrap_or_else(|status| panic!("{status}\n{}", ca.log_text())),
            );
        }
    });
    join_all(agents).await;
    ca.until("idle", || async {
        ca.metric("ca_server_calls_in_flight").await == 0.0 && ca.open_intents(&ca.export()) == 0
    })
    .await;
    let ledger = ca.check();
    tell(&format!(
        "{AGENTS} agents that hung up and asked again: {} intents, {} issued, {} given out again",
        leaves(&ledger),
        ledger.count("issued") - 1,
        ledger.count("repeated")
    ));
    assert_eq!(
        (leaves(&ledger), ledger.count("issued")),
        (AGENTS, AGENTS + 1),
        "one each, and the serving certificate"
    );
}
