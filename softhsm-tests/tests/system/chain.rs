//! Cases 49–53: the shape of the answer, which Istio's clients read by position.

use std::time::Duration;

use softhsm_tests::authority::Authority;
use softhsm_tests::daemon::Setup;
use softhsm_tests::{Ask, Csr, Material, TestCa};

use crate::lifetime::{file_issuer, write_key};
use crate::seen::{certificates, openssl_verifies};

const YEAR: Duration = Duration::from_secs(86_400 * 365);

/// Every string ends in a newline, and nothing but the last holds more than one certificate.
fn assert_shape(chain: &[String], strings: usize, roots: usize) {
    assert_eq!(chain.len(), strings);
    assert!(
        chain
            .iter()
            .all(|text| text.ends_with("-----END CERTIFICATE-----\n"))
    );
    for text in &chain[..chain.len() - 1] {
        assert_eq!(
            certificates(text).len(),
            1,
            "nothing is concatenated before the last"
        );
    }
    assert_eq!(certificates(&chain[strings - 1]).len(), roots);
}

#[tokio::test]
async fn cases_49_and_52_leaf_intermediate_root_one_a_string() {
    let ca = TestCa::start().await;
    let chain = ca
        .call(&Csr::demo().pem, &Ask::bearer(&ca.token()))
        .await
        .expect("issued");
    assert_shape(&chain, 3, 1);
    assert_eq!(certificates(&chain[2]), certificates(&ca.roots()));
    openssl_verifies(&chain, &ca.roots());
    ca.check();
}

#[tokio::test]
async fn cases_50_and_53_during_root_rotation_both_roots_stand_in_the_last_string_and_both_ways_verify()
 {
    let material = Material::new();
    let (old_root, new_root) = (
        Authority::root("old root", YEAR),
        Authority::root("new root", YEAR),
    );
    let (old, new) = (
        old_root.intermediate("old issuing", YEAR),
        new_root.intermediate("new issuing", YEAR),
    );
    for (name, authority) in [("old", &old), ("new", &new)] {
        material.write(&format!("{name}-chain.pem"), authority.certificate());
        write_key(&material, &format!("{name}.key"), &authority.key());
    }
    material.write("old-root.pem", old_root.certificate());
    material.write("new-root.pem", new_root.certificate());
    let issuer = |name: &str| {
        format!(
            "\n[[issuer]]\nid = \"{name}\"\nkey = \"file:{name}.key\"\nchain = \"{name}-chain.pem\"\nroots = \"{name}-root.pem\"\nstate = \"active\"\n"
        )
    };
    let setup = Setup {
        append: issuer("old") + &issuer("new"),
        ..Setup::default()
    };
    let ca = TestCa::start_on(material, setup).await;
    let token = ca.token();
    let all_roots = ca.roots() + old_root.certificate() + new_root.certificate();
    for (signer, own_root) in [("old", &old_root), ("new", &new_root)] {
        let chain = ca
            .call(
                &Csr::demo().pem,
                &Ask::bearer(&token).text("CertSigner", signer),
            )
            .await
            .expect("issued");
        assert_shape(&chain, 3, 3);
        openssl_verifies(&chain, own_root.certificate());
        openssl_verifies(&chain, &chain[2]);
        let sorted = |pem: &str| {
            let mut all: Vec<String> = certificates(pem)
                .iter()
                .map(|one| one.tbs_certificate().subject().to_string())
                .collect();
            all.sort();
            all
        };
        assert_eq!(sorted(&chain[2]), sorted(&all_roots));
    }
    assert_eq!(ca.get("/root-cert.pem").await.1.matches("BEGIN").count(), 3);

    // The old one retires: it signs nothing any more, and its root stays.
    ca.edit_config(
        "chain = \"old-chain.pem\"\nroots = \"old-root.pem\"\nstate = \"active\"",
        "chain = \"old-chain.pem\"\nroots = \"old-root.pem\"\nstate = \"retiring\"",
    );
    assert!(ca.reload().await, "{}", ca.log_text());
    let refused = ca
        .call(
            &Csr::demo().pem,
            &Ask::bearer(&token).text("CertSigner", "old"),
        )
        .await;
    crate::seen::assert_refused(refused, tonic::Code::InvalidArgument);
    let chain = ca
        .call(
            &Csr::demo().pem,
            &Ask::bearer(&token).text("CertSigner", "new"),
        )
        .await
        .expect("issued");
    assert_shape(&chain, 3, 3);
    let ledger = ca.check();
    assert_eq!(ledger.count("reload"), 1);
}

#[tokio::test]
async fn case_51_a_self_signed_issuer_answers_leaf_and_root() {
    let material = Material::new();
    let root = Authority::root("only", YEAR);
    material.write("root-cert.pem", root.certificate());
    material.write("only.pem", root.certificate());
    write_key(&material, "only.key", &root.key());
    let setup = Setup::default().replace("chain = \"issuing-chain.pem\"", "chain = \"only.pem\"");
    let setup = file_issuer(&material, setup, "only.key");
    let ca = TestCa::start_on(material, setup).await;
    let chain = ca
        .call(&Csr::demo().pem, &Ask::bearer(&ca.token()))
        .await
        .expect("issued");
    assert_shape(&chain, 2, 1);
    openssl_verifies(&chain, root.certificate());
    ca.check();
}
