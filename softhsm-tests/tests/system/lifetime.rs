//! Cases 40–48: how long a certificate lives, and what exactly it says.

use std::time::Duration;

use softhsm_tests::authority::Authority;
use softhsm_tests::daemon::{DEMO, Setup};
use softhsm_tests::{Ask, Csr, KeyChoice, Material, TestCa};
use tonic::Code;
use x509_cert::ext::pkix::{
    AuthorityKeyIdentifier, BasicConstraints, ExtendedKeyUsage, KeyUsage, SubjectKeyIdentifier,
};

use crate::seen::{
    assert_refused, certificates, identity, leaf, lifetime, openssl_verifies, validity,
};

const DAY: i64 = 86_400;

/// Seconds that a call may take before a lifetime counted from now is off.
const SLACK: i64 = 30;

#[tokio::test]
async fn cases_40_to_44_a_wish_is_defaulted_granted_or_refused() {
    let ca = TestCa::start().await;
    let token = ca.token();
    let call = async |seconds: i64| {
        ca.call(&Csr::demo().pem, &Ask::bearer(&token).lifetime(seconds))
            .await
    };
    for (asked, granted) in [
        (0, DAY),
        (-1, DAY),
        (i64::MIN, DAY),
        (90 * DAY, 90 * DAY),
        (3600, 3600),
    ] {
        let seen = lifetime(&call(asked).await.expect("issued"));
        assert!(
            (granted - SLACK..=granted).contains(&seen),
            "asked {asked}, granted {seen}"
        );
    }
    for asked in [90 * DAY + 1, i64::MAX, i64::MAX / 1000] {
        assert_refused(call(asked).await, Code::InvalidArgument);
    }
    ca.check();
}

#[tokio::test]
async fn case_45_a_short_wish_is_raised_so_that_ztunnel_does_not_renew_in_a_hot_loop() {
    let ca = TestCa::start().await;
    let chain = ca
        .call(&Csr::demo().pem, &Ask::bearer(&ca.token()).lifetime(60))
        .await
        .expect("issued");
    let (not_before, not_after) = validity(&leaf(&chain));
    assert!((600 - SLACK..=600).contains(&lifetime(&chain)));
    assert_eq!(not_after - not_before, 660, "backdated by a tenth");
    // ztunnel renews at the middle: that must lie well ahead.
    let renewed_at = not_before + (not_after - not_before) / 2;
    assert!(renewed_at - crate::seen::now() > 200);
    ca.check();
}

#[tokio::test]
async fn case_46_no_certificate_outlives_its_issuer() {
    let ca = on_file_key(Duration::from_secs(3600), "").await;
    for asked in [0, DAY] {
        let chain = ca
            .call(&Csr::demo().pem, &Ask::bearer(&ca.token()).lifetime(asked))
            .await
            .expect("issued");
        let issuer_ends = validity(&certificates(&chain[1])[0]).1;
        assert_eq!(
            validity(&leaf(&chain)).1,
            issuer_ends,
            "clamped to the second"
        );
    }
    ca.check();
}

#[tokio::test]
async fn case_46_the_issuers_end_wins_over_the_minimum() {
    let ca = on_file_key(Duration::from_secs(300), "").await;
    let chain = ca
        .call(&Csr::demo().pem, &Ask::bearer(&ca.token()).lifetime(3600))
        .await
        .expect("issued");
    assert!(lifetime(&chain) <= 300);
    ca.check();
}

#[tokio::test]
async fn case_47_an_issuer_in_its_last_minute_answers_internal() {
    // Time enough for a start on a busy machine before its last minute begins.
    let ca = on_file_key(Duration::from_secs(80), "").await;
    let channel = ca.connect().await;
    let ask = Ask::bearer(&ca.token());
    ca.until("ended", || async { matches!(channel.call(&Csr::demo().pem, &ask).await, Err(status) if status.code() == Code::Internal) })
        .await;
    assert_eq!(ca.get("/healthz/ready").await.0, 503);
    assert_eq!(ca.get("/healthz/live").await.0, 200);
    ca.check();
}

#[tokio::test]
async fn case_48_the_certificate_is_exactly_the_template() {
    let ca = TestCa::start().await;
    for key in [KeyChoice::P256, KeyChoice::Rsa2048] {
        let chain = ca
            .call(&Csr::pilot_agent(key, DEMO).pem, &Ask::bearer(&ca.token()))
            .await
            .expect("issued");
        let certificate = leaf(&chain);
        let tbs = certificate.tbs_certificate();
        let issuer = &certificates(&chain[1])[0];
        assert_eq!(identity(&chain), DEMO);
        assert!(tbs.subject().is_empty());
        assert_eq!(tbs.issuer(), issuer.tbs_certificate().subject());

        let serial = tbs.serial_number().as_bytes();
        assert!(
            serial.len() <= 20 && serial[0] < 0x80 && serial[0] != 0,
            "positive, at most 20 octets"
        );

        let (critical, usage) = tbs
            .get_extension::<KeyUsage>()
            .expect("readable")
            .expect("there");
        assert!(critical && usage.digital_signature() && !usage.key_cert_sign());
        assert_eq!(
            usage.key_encipherment(),
            key == KeyChoice::Rsa2048,
            "for RSA only"
        );
        let (_, purposes) = tbs
            .get_extension::<ExtendedKeyUsage>()
            .expect("readable")
            .expect("there");
        let purposes: Vec<String> = purposes.0.iter().map(ToString::to_string).collect();
        assert_eq!(
            purposes,
            ["1.3.6.1.5.5.7.3.1", "1.3.6.1.5.5.7.3.2"],
            "serverAuth, clientAuth"
        );
        let (critical, constraints) = tbs
            .get_extension::<BasicConstraints>()
            .expect("readable")
            .expect("there");
        assert!(critical && !constraints.ca && constraints.path_len_constraint.is_none());
        let (_, authority) = tbs
            .get_extension::<AuthorityKeyIdentifier>()
            .expect("readable")
            .expect("there");
        let (_, issuer_key) = issuer
            .tbs_certificate()
            .get_extension::<SubjectKeyIdentifier>()
            .expect("readable")
            .expect("there");
        assert_eq!(
            authority.key_identifier.expect("there").as_bytes(),
            issuer_key.0.as_bytes(),
            "AKI is the issuer's SKI"
        );
        assert!(
            tbs.get_extension::<SubjectKeyIdentifier>()
                .expect("readable")
                .is_some()
        );

        let (not_before, not_after) = validity(&certificate);
        assert_eq!(
            not_after - not_before,
            DAY + 120,
            "a day, backdated by two minutes"
        );
        openssl_verifies(&chain, &ca.roots());
    }
    ca.check();
}

#[tokio::test]
async fn jitter_only_shortens() {
    let ca = on_file_key(Duration::from_secs(86_400 * 300), "jitter = \"1h\"").await;
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..20 {
        let chain = ca
            .call(&Csr::demo().pem, &Ask::bearer(&ca.token()).lifetime(DAY))
            .await
            .expect("issued");
        let granted = lifetime(&chain);
        assert!((DAY - 3600 - SLACK..=DAY).contains(&granted), "{granted}");
        seen.insert(granted / 10);
    }
    assert!(seen.len() > 3, "they differ: {seen:?}");
    ca.check();
}

/// A daemon whose only issuer is a file key under an rcgen root, ending `life` from now.
async fn on_file_key(life: Duration, profile: &str) -> TestCa {
    let material = Material::new();
    let root = Authority::root("root", Duration::from_secs(86_400 * 365));
    let issuing = root.intermediate("issuing", life);
    material.write("root-cert.pem", root.certificate());
    material.write("file-chain.pem", issuing.certificate());
    write_key(&material, "file.key", &issuing.key());
    let mut setup = Setup::default().replace(
        "chain = \"issuing-chain.pem\"",
        "chain = \"file-chain.pem\"",
    );
    setup = file_issuer(&material, setup, "file.key");
    if !profile.is_empty() {
        setup = setup.replace("jitter = \"0s\"", profile);
    }
    TestCa::start_on(material, setup).await
}

/// Puts a file key in the place of the token key.
pub fn file_issuer(material: &Material, setup: Setup, key: &str) -> Setup {
    let line = material
        .read("ca.toml")
        .lines()
        .find(|line| line.starts_with("key = \"pkcs11:"))
        .expect("a key line")
        .to_owned();
    setup.replace(&line, &format!("key = \"file:{key}\""))
}

/// A key file as the daemon wants it.
pub fn write_key(material: &Material, name: &str, pem: &str) {
    use std::os::unix::fs::PermissionsExt;
    material.write(name, pem);
    std::fs::set_permissions(material.file(name), std::fs::Permissions::from_mode(0o600))
        .expect("permitted");
}
