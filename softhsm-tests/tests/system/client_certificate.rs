//! Cases 19–24 and 27: who is calling, by client certificate. A retiring issuer on an rcgen root
//! lets the tests make certificates of every shape under one of our own roots.

use std::time::Duration;

use softhsm_tests::authority::{Authority, Issued, San};
use softhsm_tests::client::Identity;
use softhsm_tests::daemon::{DEMO, Setup};
use softhsm_tests::{Ask, Csr, Material, TestCa};
use tonic::Code;

use crate::seen::{assert_opaque, identity};

const HOUR: Duration = Duration::from_secs(3600);

/// A daemon that also trusts the root of this authority.
async fn ca_trusting(authority: &Authority) -> TestCa {
    ca_trusting_with(authority, Setup::default()).await
}

async fn ca_trusting_with(authority: &Authority, setup: Setup) -> TestCa {
    let material = Material::new();
    material.write("old-root.pem", authority.certificate());
    let append = "\n[[issuer]]\nid = \"old\"\nchain = \"old-root.pem\"\nroots = \"old-root.pem\"\nstate = \"retiring\"\n".to_owned();
    TestCa::start_on(material, Setup { append, ..setup }).await
}

/// One call with this client certificate: refused in the handshake (`None`) or answered.
async fn call_as(
    ca: &TestCa,
    client: &Issued,
    ask: &Ask,
) -> Option<Result<Vec<String>, tonic::Status>> {
    let channel = ca
        .connect_as(&Identity {
            chain: &client.certificate,
            key: &client.key,
        })
        .await
        .ok()?;
    let answer = channel.call(&Csr::demo().pem, ask).await;
    match &answer {
        Ok(chain) => ca.remember(chain),
        // TLS 1.3 tells the client of a refused certificate only after its own handshake is done.
        Err(status)
            if matches!(
                status.code(),
                Code::Unknown | Code::Unavailable | Code::Cancelled
            ) =>
        {
            return None;
        }
        Err(_) => {}
    }
    Some(answer)
}

#[tokio::test]
async fn case_19_a_workload_renews_with_the_certificate_it_has() {
    let ca = TestCa::start().await;
    let csr = Csr::demo();
    let first = ca
        .call(&csr.pem, &Ask::bearer(&ca.token()))
        .await
        .expect("issued");
    let held = Issued {
        certificate: first[..first.len() - 1].concat(),
        key: csr.key,
    };
    let renewed = call_as(&ca, &held, &Ask::default())
        .await
        .expect("connected")
        .expect("renewed without a token");
    assert_eq!(identity(&renewed), DEMO);
    let ledger = ca.check();
    let evidence = &ledger.kind("intent").last().expect("recorded")["evidence"];
    assert_eq!(
        (
            evidence["credential"].as_str(),
            evidence["subject"].as_str()
        ),
        (Some("client_certificate"), Some(DEMO))
    );
}

#[tokio::test]
async fn cases_20_21_an_expired_certificate_and_one_of_a_foreign_root_prove_nothing() {
    let authority = Authority::root("old", HOUR);
    let ca = ca_trusting(&authority).await;
    let ours = authority.client(&[San::Uri(DEMO)], HOUR);
    assert_eq!(
        identity(
            &call_as(&ca, &ours, &Ask::default())
                .await
                .expect("connected")
                .expect("issued")
        ),
        DEMO
    );

    let expired = authority.expired_client(&[San::Uri(DEMO)]);
    let foreign = Authority::root("stranger", HOUR).client(&[San::Uri(DEMO)], HOUR);
    for client in [expired, foreign] {
        if let Some(answer) = call_as(&ca, &client, &Ask::default()).await {
            assert_opaque(answer);
        }
    }
    assert_eq!(ca.check().count("issued"), 2, "serving and ours");
}

#[tokio::test]
async fn cases_22_23_24_exactly_one_uri_of_an_accepted_trust_domain_is_the_identity() {
    let authority = Authority::root("old", HOUR);
    let ca = ca_trusting(&authority).await;
    let other = "spiffe://cluster.local/ns/default/sa/other";
    for refused in [
        vec![San::Uri(DEMO), San::Uri(other)],
        vec![San::Uri("spiffe://elsewhere.example/ns/default/sa/demo")],
        vec![San::Uri("https://cluster.local/ns/default/sa/demo")],
        vec![San::Uri("spiffe://cluster.local/ns/default")],
        vec![San::Dns("demo.default.svc")],
    ] {
        assert_opaque(
            call_as(&ca, &authority.client(&refused, HOUR), &Ask::default())
                .await
                .expect("the handshake is good"),
        );
    }
    let both = authority.client(&[San::Uri(DEMO), San::Dns("demo.default.svc")], HOUR);
    let chain = call_as(&ca, &both, &Ask::default())
        .await
        .expect("connected")
        .expect("the URI counts");
    assert_eq!(
        identity(&chain),
        DEMO,
        "and the DNS name does not pass through"
    );
    ca.check();
}

#[tokio::test]
async fn a_workload_of_an_aliased_trust_domain_keeps_its_identity_and_raises_no_alarm() {
    let authority = Authority::root("old", HOUR);
    let aliases = "trust_domain_aliases = [\"old.local\", \"older.local\"]";
    let ca = ca_trusting_with(
        &authority,
        Setup::default().replace("trust_domain_aliases = []", aliases),
    )
    .await;
    for account in [
        "spiffe://old.local/ns/default/sa/demo",
        "spiffe://older.local/ns/default/sa/demo",
        DEMO,
    ] {
        let answer = call_as(
            &ca,
            &authority.client(&[San::Uri(account)], HOUR),
            &Ask::default(),
        )
        .await
        .expect("connected");
        assert_eq!(
            identity(&answer.unwrap_or_else(|refused| panic!("{account}: {refused:?}"))),
            account
        );
    }
    ca.check();
    assert!(!ca.log_text().contains("\"alarm\""), "{}", ca.log_text());
}

#[tokio::test]
async fn case_23_a_certificate_that_expires_on_a_kept_connection_counts_no_more() {
    let authority = Authority::root("old", HOUR);
    let ca = ca_trusting(&authority).await;
    let short = authority.client(&[San::Uri(DEMO)], Duration::from_secs(4));
    let channel = ca
        .connect_as(&Identity {
            chain: &short.certificate,
            key: &short.key,
        })
        .await
        .expect("connected");
    // The same CSR each time: that its certificate is there already is no reason to give it to
    // whoever proves nothing any more.
    let csr = Csr::demo().pem;
    ca.remember(
        &channel
            .call(&csr, &Ask::default())
            .await
            .expect("valid still"),
    );
    ca.until("expired", || async {
        channel.call(&csr, &Ask::default()).await.is_err()
    })
    .await;
    assert_opaque(channel.call(&csr, &Ask::default()).await);
    let chain = channel
        .call(&csr, &Ask::bearer(&ca.minter().token("shop", "cart")))
        .await
        .expect("a good token beside it counts");
    assert_eq!(identity(&chain), "spiffe://cluster.local/ns/shop/sa/cart");
    ca.check();
}

#[tokio::test]
async fn case_27_a_valid_certificate_counts_beside_an_expired_token() {
    let authority = Authority::root("old", HOUR);
    let ca = ca_trusting(&authority).await;
    let mut claims = ca.minter().claims("shop", "cart");
    claims["exp"] = serde_json::json!(1_000_000_000);
    let ask = Ask::bearer(&ca.minter().sign(&claims));
    let chain = call_as(&ca, &authority.client(&[San::Uri(DEMO)], HOUR), &ask)
        .await
        .expect("connected")
        .expect("issued");
    assert_eq!(identity(&chain), DEMO);
    ca.check();
}

#[tokio::test]
async fn a_serving_certificate_is_no_workload() {
    let authority = Authority::root("old", HOUR);
    let ca = ca_trusting(&authority).await;
    let serving = authority.client(&[San::Dns("istiod.istio-system.svc")], HOUR);
    assert_opaque(
        call_as(&ca, &serving, &Ask::default())
            .await
            .expect("the handshake is good"),
    );
    ca.check();
}
