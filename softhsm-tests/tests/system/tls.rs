//! How the CSR port speaks TLS: versions, post-quantum key exchange, the names it serves, and no
//! resumption.

use std::process::{Command, Stdio};
use std::sync::Arc;

use rustls::{HandshakeKind, NamedGroup, ProtocolVersion};
use softhsm_tests::client::tls;
use softhsm_tests::{Ask, Csr, TestCa};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use x509_cert::ext::pkix::name::GeneralName;

use crate::seen::{certificates, sans};

async fn dial(
    ca: &TestCa,
    config: Arc<rustls::ClientConfig>,
    name: &str,
) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(ca.csr_address()).await?;
    TlsConnector::from(config)
        .connect(name.to_owned().try_into().expect("a name"), stream)
        .await
}

#[tokio::test]
async fn tls_1_3_with_post_quantum_key_exchange_and_h2_is_what_a_client_gets() {
    let ca = TestCa::start().await;
    let config = Arc::new(tls(&ca.roots(), None));
    for name in ["localhost", "127.0.0.1", "istiod.istio-system.svc"] {
        let stream = dial(&ca, config.clone(), name)
            .await
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        let session = stream.get_ref().1;
        assert_eq!(session.protocol_version(), Some(ProtocolVersion::TLSv1_3));
        assert_eq!(
            session
                .negotiated_key_exchange_group()
                .map(|group| group.name()),
            Some(NamedGroup::X25519MLKEM768)
        );
        assert_eq!(session.alpn_protocol(), Some(&b"h2"[..]));
    }
    assert!(
        dial(&ca, config, "elsewhere.example").await.is_err(),
        "and no name that is not configured"
    );
    ca.check();
}

#[tokio::test]
async fn no_session_is_ever_resumed() {
    let ca = TestCa::start().await;
    let config = Arc::new(tls(&ca.roots(), None));
    for _ in 0..3 {
        let mut stream = dial(&ca, config.clone(), "localhost")
            .await
            .expect("connected");
        // The server's first words are read, so that a ticket would have arrived.
        stream.read_u8().await.expect("SETTINGS");
        assert_eq!(
            stream.get_ref().1.handshake_kind(),
            Some(HandshakeKind::Full)
        );
    }
    ca.check();
}

#[tokio::test]
async fn tls_1_2_is_spoken_and_what_came_before_is_not() {
    let ca = TestCa::start().await;
    let with = |version: &str| {
        let output = Command::new("openssl")
            .args([
                "s_client",
                version,
                "-alpn",
                "h2",
                "-cipher",
                "ALL:@SECLEVEL=0",
                "-verify_return_error",
                "-CAfile",
            ])
            .arg(ca.material.file("root-cert.pem"))
            .arg("-connect")
            .arg(ca.csr_address().to_string())
            .stdin(Stdio::null())
            .output()
            .expect("openssl runs");
        (
            output.status.success(),
            String::from_utf8_lossy(&output.stdout).into_owned(),
        )
    };
    let (connected, said) = with("-tls1_2");
    assert!(
        connected && said.contains("TLSv1.2") && said.contains("ALPN protocol: h2"),
        "{said}"
    );
    assert!(!with("-tls1_1").0, "TLS 1.1 is refused");
    ca.check();
}

#[tokio::test]
async fn the_serving_certificate_is_recorded_and_carries_the_configured_names_alone() {
    let ca = TestCa::start().await;
    let stream = dial(&ca, Arc::new(tls(&ca.roots(), None)), "localhost")
        .await
        .expect("connected");
    let chain = stream
        .get_ref()
        .1
        .peer_certificates()
        .expect("presented")
        .to_vec();
    assert_eq!(chain.len(), 2, "leaf and intermediate, no root");
    let pem = |der: &[u8]| {
        use base64::Engine;
        format!(
            "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n",
            base64::prelude::BASE64_STANDARD.encode(der)
        )
    };
    let leaf = certificates(&pem(&chain[0])).remove(0);
    let (critical, names) = sans(&leaf);
    let mut names: Vec<String> = names
        .iter()
        .map(|name| match name {
            GeneralName::DnsName(name) => name.to_string(),
            GeneralName::IpAddress(address) => format!("{:?}", address.as_bytes()),
            other => panic!("{other:?}"),
        })
        .collect();
    names.sort();
    assert!(critical);
    assert_eq!(
        names,
        ["[127, 0, 0, 1]", "istiod.istio-system.svc", "localhost"]
    );
    ca.remember(&[pem(&chain[0])]);
    let ledger = ca.check();
    let intent = ledger.kind("intent")[0];
    assert_eq!(
        (intent["purpose"].as_str(), intent["identity"].as_str()),
        (Some("serving"), None)
    );
    assert_eq!(intent["evidence"]["credential"], "daemon");
    ca.call(&Csr::demo().pem, &Ask::bearer(&ca.token()))
        .await
        .expect("issued");
}
