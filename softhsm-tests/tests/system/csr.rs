//! Cases 28–39: what may be asked for, and how little of it reaches the certificate.

use der::asn1::OctetString;
use rcgen::{BasicConstraints, CustomExtension, DnType, IsCa, SanType};
use rustls::pki_types::CertificateSigningRequestDer;
use rustls::pki_types::pem::PemObject;
use softhsm_tests::daemon::{DEMO, Setup};
use softhsm_tests::{Ask, Csr, KeyChoice, TestCa};
use tonic::Code;
use x509_cert::ext::pkix::{BasicConstraints as ReadConstraints, KeyUsage};

use crate::seen::{assert_refused, identity, leaf, openssl_verifies, public_key};

#[tokio::test]
async fn cases_28_29_30_a_malformed_or_unproven_csr_is_refused_with_the_reason() {
    let ca = TestCa::start().await;
    let ask = Ask::bearer(&ca.token());
    let good =
        CertificateSigningRequestDer::from_pem_slice(Csr::demo().pem.as_bytes()).expect("PEM");
    let armoured = |der: &[u8]| pem("CERTIFICATE REQUEST", der);
    let changed = |at: usize| {
        let mut der = good.to_vec();
        let index = if at == 0 { der.len() - 3 } else { at };
        der[index] ^= 1;
        armoured(&der)
    };
    let truncated = armoured(&good[..good.len() - 1]);
    let trailing = armoured(&[good.as_ref(), b"\0"].concat());
    let certificate = ca.roots();
    for (csr, expected) in [
        ("", "empty"),
        ("not PEM at all", "PEM"),
        (
            "-----BEGIN CERTIFICATE REQUEST-----\n!!!\n-----END CERTIFICATE REQUEST-----\n",
            "not base64",
        ),
        (&armoured(b""), "malformed"),
        (&armoured(b"\x30\x80\0\0"), "malformed"),
        (&truncated, "malformed"),
        (&trailing, "malformed"),
        (&certificate, "a block CERTIFICATE"),
        (&changed(0), "proof of possession"),
        (&"A".repeat(70_000), "70000 bytes"),
    ] {
        let message = assert_refused(ca.call(csr, &ask).await, Code::InvalidArgument);
        assert!(
            message.contains(expected),
            "{message:?} should say {expected:?}"
        );
    }
    // A bit anywhere: whatever the parser makes of it, no certificate leaves for a request that its
    // key did not sign.
    for at in (4..good.len()).step_by(17) {
        assert_refused(ca.call(&changed(at), &ask).await, Code::InvalidArgument);
    }
    ca.until("filed", || async { ca.export().count("refused") > 10 })
        .await;
    let ledger = ca.check();
    assert!(
        ledger
            .kind("refused")
            .iter()
            .all(|row| row["identity"] == DEMO && row["code"] == "InvalidArgument")
    );
}

#[tokio::test]
async fn cases_31_32_33_34_every_client_of_the_mesh_is_served() {
    let ca = TestCa::start().await;
    let ask = Ask::bearer(&ca.token());
    for csr in [
        Csr::pilot_agent(KeyChoice::Rsa2048, DEMO),
        Csr::pilot_agent(KeyChoice::P256, DEMO),
        Csr::pilot_agent(KeyChoice::P384, DEMO),
        Csr::ztunnel(DEMO),
        Csr::openssl(ca.material.path(), &["-newkey", "rsa:4096", "-subj", "/"]),
        Csr::openssl(
            ca.material.path(),
            &[
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:P-384",
                "-subj",
                "/",
                "-sha512",
            ],
        ),
        // Old ztunnels leave the SAN not critical; it is issued critical all the same.
        Csr::openssl(
            ca.material.path(),
            &[
                "-newkey",
                "rsa:2048",
                "-subj",
                "/O=",
                "-addext",
                &format!("subjectAltName=URI:{DEMO}"),
            ],
        ),
    ] {
        let chain = ca.call(&csr.pem, &ask).await.expect("issued");
        assert_eq!(identity(&chain), DEMO);
        openssl_verifies(&chain, &ca.roots());
        let key =
            rustls::pki_types::PrivateKeyDer::from_pem_slice(csr.key.as_bytes()).expect("a key");
        let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key).expect("supported");
        assert_eq!(
            public_key(&leaf(&chain)),
            key.public_key().expect("known").as_ref(),
            "the key is the CSR's"
        );
    }
    ca.check();
}

#[tokio::test]
async fn case_35_a_workload_cannot_ask_for_its_neighbour() {
    let ca = TestCa::start().await;
    let neighbour = Csr::ztunnel("spiffe://cluster.local/ns/kube-system/sa/admin");
    let chain = ca
        .call(&neighbour.pem, &Ask::bearer(&ca.token()))
        .await
        .expect("issued");
    assert_eq!(
        identity(&chain),
        DEMO,
        "its own identity, whatever the CSR says"
    );
    ca.check();
}

#[tokio::test]
async fn case_35_a_strict_profile_refuses_every_san_but_the_callers_own() {
    let ca =
        TestCa::start_with(Setup::default().replace("san = \"overwrite\"", "san = \"strict\""))
            .await;
    let ask = Ask::bearer(&ca.token());
    let bare = Csr::build(KeyChoice::P256, |_| {});
    for good in [Csr::demo(), bare] {
        assert_eq!(
            identity(&ca.call(&good.pem, &ask).await.expect("issued")),
            DEMO
        );
    }
    let uri = |uri: &str| SanType::URI(uri.try_into().expect("ASCII"));
    let dns = || SanType::DnsName("demo.default.svc".try_into().expect("ASCII"));
    let with =
        |sans: Vec<SanType>| Csr::build(KeyChoice::P256, |params| params.subject_alt_names = sans);
    for bad in [
        Csr::ztunnel("spiffe://cluster.local/ns/kube-system/sa/admin"),
        with(vec![
            uri(DEMO),
            uri("spiffe://cluster.local/ns/kube-system/sa/admin"),
        ]),
        with(vec![uri(DEMO), dns()]),
        with(vec![dns()]),
    ] {
        assert_refused(ca.call(&bad.pem, &ask).await, Code::InvalidArgument);
    }
    ca.check();
}

#[tokio::test]
async fn cases_36_and_38_nothing_of_a_csr_but_its_key_reaches_the_certificate() {
    let ca = TestCa::start().await;
    let greedy = Csr::openssl(
        ca.material.path(),
        &[
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-subj",
            "/O=Evil/CN=istiod.istio-system.svc",
            "-addext",
            "basicConstraints=critical,CA:TRUE",
            "-addext",
            "keyUsage=critical,keyCertSign,cRLSign",
            "-addext",
            "extendedKeyUsage=codeSigning",
            "-addext",
            "subjectAltName=DNS:istiod.istio-system.svc,IP:127.0.0.1",
            "-addext",
            "nameConstraints=permitted;DNS:example.com",
        ],
    );
    let chain = ca
        .call(&greedy.pem, &Ask::bearer(&ca.token()))
        .await
        .expect("issued");
    let certificate = leaf(&chain);
    assert_eq!(identity(&chain), DEMO);
    assert!(
        certificate.tbs_certificate().subject().is_empty(),
        "no subject"
    );
    let (critical, constraints) = certificate
        .tbs_certificate()
        .get_extension::<ReadConstraints>()
        .expect("readable")
        .expect("there");
    assert!(critical && !constraints.ca);
    let (_, usage) = certificate
        .tbs_certificate()
        .get_extension::<KeyUsage>()
        .expect("readable")
        .expect("there");
    assert!(usage.digital_signature() && !usage.key_cert_sign() && !usage.crl_sign());
    assert_eq!(
        certificate
            .tbs_certificate()
            .extensions()
            .expect("there")
            .len(),
        6,
        "the profile's six and no other"
    );
    openssl_verifies(&chain, &ca.roots());
    ca.check();
}

#[tokio::test]
async fn case_37_weak_and_unlisted_keys_are_refused() {
    let ca = TestCa::start().await;
    let ask = Ask::bearer(&ca.token());
    for weak in [
        Csr::openssl(ca.material.path(), &["-newkey", "rsa:1024", "-subj", "/"]),
        Csr::openssl(
            ca.material.path(),
            &[
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:P-521",
                "-subj",
                "/",
            ],
        ),
        Csr::openssl(
            ca.material.path(),
            &[
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:secp256k1",
                "-subj",
                "/",
            ],
        ),
        Csr::openssl(
            ca.material.path(),
            &["-newkey", "rsa:2048", "-subj", "/", "-sha1"],
        ),
        Csr::build(KeyChoice::Ed25519, |_| {}),
    ] {
        assert_refused(ca.call(&weak.pem, &ask).await, Code::InvalidArgument);
    }
    ca.check();
}

#[tokio::test]
async fn ed25519_is_issued_where_the_profile_lists_it() {
    let ca =
        TestCa::start_with(Setup::default().replace("keys = [", "keys = [\"ed25519\", ")).await;
    let chain = ca
        .call(
            &Csr::build(KeyChoice::Ed25519, |_| {}).pem,
            &Ask::bearer(&ca.token()),
        )
        .await
        .expect("issued");
    openssl_verifies(&chain, &ca.roots());
    ca.check();
}

#[tokio::test]
async fn case_39_a_message_over_the_limit_is_refused_and_the_process_lives() {
    let ca = TestCa::start().await;
    let ask = Ask::bearer(&ca.token());
    for size in [(4 << 20) + 1, 16 << 20] {
        let refused = ca.call(&"A".repeat(size), &ask).await.expect_err("refused");
        assert!(
            matches!(refused.code(), Code::ResourceExhausted | Code::OutOfRange),
            "{refused}"
        );
    }
    ca.call(&Csr::demo().pem, &ask).await.expect("alive");
    ca.check();
}

#[tokio::test]
async fn a_csr_with_as_many_extensions_as_fit_is_refused_or_served_like_any_other() {
    let ca = TestCa::start().await;
    let ask = Ask::bearer(&ca.token());
    let crowded = |count: usize| {
        Csr::build(KeyChoice::P256, |params| {
            params.distinguished_name.push(DnType::CommonName, "crowd");
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.custom_extensions = (0..count)
                .map(|index| {
                    let value = OctetString::new(vec![0; 2]).expect("short");
                    CustomExtension::from_oid_content(
                        &[1, 3, 6, 1, 4, 1, 99_999, index as u64],
                        value.as_bytes().to_vec(),
                    )
                })
                .collect();
        })
    };
    assert_eq!(
        identity(
            &ca.call(&crowded(1000).pem, &ask)
                .await
                .expect("1,000 fit, and none passes through")
        ),
        DEMO
    );
    let message = assert_refused(
        ca.call(&crowded(100_000).pem, &ask).await,
        Code::InvalidArgument,
    );
    assert!(message.contains("bytes"), "{message}");
    ca.check();
}

fn pem(label: &str, der: &[u8]) -> String {
    use base64::Engine;
    let text = base64::prelude::BASE64_STANDARD.encode(der);
    let lines: Vec<&str> = text
        .as_bytes()
        .chunks(64)
        .map(|line| std::str::from_utf8(line).expect("ASCII"))
        .collect();
    format!(
        "-----BEGIN {label}-----\n{}\n-----END {label}-----\n",
        lines.join("\n")
    )
}
