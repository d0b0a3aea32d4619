//! Cases 56, 65, 66, 72 and 73: what else a request may carry.

use prost_types::value::Kind;
use prost_types::{ListValue, NullValue, Struct};
use softhsm_tests::daemon::DEMO;
use softhsm_tests::{Ask, Csr, TestCa};
use tonic::Code;

use crate::seen::{assert_opaque, assert_refused, identity};

/// Every kind of value that is no text.
fn not_texts() -> Vec<Kind> {
    vec![
        Kind::NumberValue(7.0),
        Kind::BoolValue(true),
        Kind::NullValue(NullValue::NullValue.into()),
        Kind::ListValue(ListValue { values: Vec::new() }),
        Kind::StructValue(Struct::default()),
    ]
}

#[tokio::test]
async fn cases_56_65_66_while_impersonation_is_off_nobody_is_given_another_identity_nor_his_own_instead()
 {
    let ca = TestCa::start().await;
    let ask = || Ask::bearer(&ca.token());
    let key = "ImpersonatedIdentity";
    for wanted in [
        "spiffe://cluster.local/ns/default/sa/other",
        DEMO,
        "junk",
        " ",
        "a,b",
        "%2f",
    ] {
        assert_opaque(ca.call(&Csr::demo().pem, &ask().text(key, wanted)).await);
    }
    assert_eq!(
        identity(
            &ca.call(&Csr::demo().pem, &ask().text(key, ""))
                .await
                .expect("empty is absent")
        ),
        DEMO
    );
    for kind in not_texts() {
        assert_refused(
            ca.call(&Csr::demo().pem, &ask().value(key, kind)).await,
            Code::InvalidArgument,
        );
    }
    ca.until("filed", || async { ca.export().count("refused") >= 11 })
        .await;
    let ledger = ca.check();
    assert_eq!(
        ledger
            .kind("refused")
            .iter()
            .filter(|row| row["reason"] == "impersonation")
            .count(),
        6
    );
    assert_eq!(ledger.count("issued"), 2, "serving and the empty one");
}

#[tokio::test]
async fn case_72_cert_signer_chooses_an_issuer_by_its_id() {
    let ca = TestCa::start().await;
    let ask = || Ask::bearer(&ca.token());
    let text = ca.material.read("ca.toml");
    let id = text
        .lines()
        .find_map(|line| line.strip_prefix("id = "))
        .expect("an id")
        .trim_matches('"')
        .to_owned();
    for known in ["", &id] {
        assert_eq!(
            identity(
                &ca.call(&Csr::demo().pem, &ask().text("CertSigner", known))
                    .await
                    .expect("issued")
            ),
            DEMO
        );
    }
    for unknown in [
        "unknown",
        "clusterissuers.cert-manager.io/x",
        &id.to_uppercase(),
    ] {
        let message = assert_refused(
            ca.call(&Csr::demo().pem, &ask().text("CertSigner", unknown))
                .await,
            Code::InvalidArgument,
        );
        assert!(message.contains("CertSigner"), "{message}");
    }
    for kind in not_texts() {
        assert_refused(
            ca.call(&Csr::demo().pem, &ask().value("CertSigner", kind))
                .await,
            Code::InvalidArgument,
        );
    }
    ca.check();
}

#[tokio::test]
async fn case_73_unknown_metadata_is_tolerated() {
    let ca = TestCa::start().await;
    let ask = Ask::bearer(&ca.token())
        .text("Colour", "green")
        .value("Depth", Kind::NumberValue(3.0));
    assert_eq!(
        identity(&ca.call(&Csr::demo().pem, &ask).await.expect("issued")),
        DEMO
    );
    ca.check();
}
