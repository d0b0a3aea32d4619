//! Whatever reaches the port, the process lives and other calls go on.

use std::time::Duration;

use softhsm_tests::client::tls;
use softhsm_tests::daemon::Setup;
use softhsm_tests::{Ask, Csr, TestCa};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

#[tokio::test]
async fn random_bytes_on_the_port_hurt_nobody() {
    let ca = TestCa::start().await;
    for size in [0, 1, 5, 100, 1000, 70_000] {
        let mut junk = vec![0; size];
        aws_lc_rs::rand::fill(&mut junk).expect("randomness");
        let mut stream = TcpStream::connect(ca.csr_address())
            .await
            .expect("connected");
        // It may have hung up in the middle.
        let _ = stream.write_all(&junk).await;
        let _ = stream.shutdown().await;
        let _ = stream.read_to_end(&mut Vec::new()).await;
    }
    ca.call(&Csr::demo().pem, &Ask::bearer(&ca.token()))
        .await
        .expect("alive");
    ca.check();
}

#[tokio::test]
async fn random_bytes_inside_tls_hurt_nobody() {
    let ca = TestCa::start().await;
    for size in [1, 24, 1000, 100_000] {
        let mut junk = vec![0; size];
        aws_lc_rs::rand::fill(&mut junk).expect("randomness");
        let mut stream = over_tls(&ca).await;
        let _ = stream.write_all(&junk).await;
        let _ = stream.shutdown().await;
        let _ = stream.read_to_end(&mut Vec::new()).await;
    }
    let half = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\xff\x04\0\0\0\0\0junk";
    let mut stream = over_tls(&ca).await;
    stream.write_all(half).await.expect("sent");
    let _ = stream.shutdown().await;
    let _ = stream.read_to_end(&mut Vec::new()).await;
    ca.call(&Csr::demo().pem, &Ask::bearer(&ca.token()))
        .await
        .expect("alive");
    ca.check();
}

#[tokio::test]
async fn junk_in_a_message_is_refused_as_such() {
    let ca = TestCa::start().await;
    for body in [
        vec![],
        vec![0, 0, 0, 0, 4, 0xff, 0xff, 0xff, 0xff],
        vec![0, 0xff, 0xff, 0xff, 0xff],
        vec![1, 0, 0, 0, 1, 0],
        vec![9; 64],
    ] {
        let (status, _) = post(
            &ca,
            "/istio.v1.auth.IstioCertificateService/CreateCertificate",
            body,
            Duration::ZERO,
        )
        .await;
        assert!(status != 0, "answered with {status}");
    }
    let (unknown, _) = post(
        &ca,
        "/istio.v1.auth.IstioCertificateService/Nothing",
        vec![0; 5],
        Duration::ZERO,
    )
    .await;
    assert_eq!(unknown, 12, "Unimplemented");
    ca.call(&Csr::demo().pem, &Ask::bearer(&ca.token()))
        .await
        .expect("alive");
    ca.check();
}

#[tokio::test]
async fn a_message_that_unfolds_in_memory_is_refused_before_it_does() {
    const CALL: &str = "/istio.v1.auth.IstioCertificateService/CreateCertificate";
    let ca = TestCa::start().await;
    let varint = |mut value: usize| {
        let mut bytes = Vec::new();
        while value >= 0x80 {
            bytes.push(0x80 | (value & 0x7f) as u8);
            value >>= 7;
        }
        bytes.push(value as u8);
        bytes
    };
    let field = |key: u8, content: &[u8]| [&[key][..], &varint(content.len()), content].concat();
    let half_a_million = [0x0a, 0].repeat(1 << 19);
    // metadata { fields: { "a": [null, null, …] } }: each null is two bytes here and seventy in
    // memory.
    let list = field(
        0x22,
        &field(
            0x0a,
            &[
                &field(0x0a, b"a")[..],
                &field(0x12, &field(0x32, &half_a_million)),
            ]
            .concat(),
        ),
    );
    // The same as half a million keys of metadata, as a field said again and again, and as one that
    // nobody knows.
    let messages = [
        list,
        field(0x22, &half_a_million),
        half_a_million.clone(),
        field(0x7a, &half_a_million),
    ];
    let before = ca.cpu();
    for message in messages.iter().cycle().take(20) {
        let length = u32::try_from(message.len())
            .expect("a mebibyte")
            .to_be_bytes();
        let (status, said) = post(
            &ca,
            CALL,
            [&[0], &length[..], message].concat(),
            Duration::ZERO,
        )
        .await;
        assert_eq!(
            (status, said.replace("%20", " ").as_str()),
            (3, "the message holds more than a CSR call needs"),
            "InvalidArgument"
        );
    }
    // A mebibyte through TLS and HTTP/2, and a handshake, are in it.
    let each = (ca.cpu() - before) / 20;
    assert!(
        each < Duration::from_millis(10),
        "{each:?} of CPU a refusal"
    );
    ca.call(&Csr::demo().pem, &Ask::bearer(&ca.token()))
        .await
        .expect("alive");
    ca.until("filed", || async {
        ca.export()
            .kind("refused_group")
            .iter()
            .any(|row| row["reason"] == "malformed_request")
    })
    .await;
    ca.check();
}

#[tokio::test]
async fn a_body_that_never_ends_is_cut_off_by_the_calls_limit() {
    let ca = TestCa::start_with(
        Setup::default().replace("call_timeout = \"5s\"", "call_timeout = \"1s\""),
    )
    .await;
    let slow = post(
        &ca,
        "/istio.v1.auth.IstioCertificateService/CreateCertificate",
        vec![0, 0, 1, 0, 0, b'A'],
        Duration::from_secs(30),
    );
    let others = async {
        let ask = Ask::bearer(&ca.token());
        for _ in 0..5 {
            ca.call(&Csr::demo().pem, &ask)
                .await
                .expect("other calls go on");
        }
    };
    let ((status, _), ()) = tokio::join!(slow, others);
    assert_eq!(status, 4, "DeadlineExceeded");
    ca.until("filed", || async {
        ca.export()
            .kind("refused_group")
            .iter()
            .any(|row| row["reason"] == "deadline")
    })
    .await;
    ca.check();
}

#[tokio::test]
async fn a_client_that_never_finishes_its_preface_loses_its_connection() {
    let ca = TestCa::start().await;
    let mut stream = over_tls(&ca).await;
    stream.write_all(b"PRI").await.expect("sent");
    let mut said = Vec::new();
    // Whether it ends with a close or a reset is all the same.
    let ended = tokio::time::timeout(Duration::from_secs(60), stream.read_to_end(&mut said)).await;
    assert!(
        ended.is_ok(),
        "the place among the connections is given back"
    );
    ca.until("closed", || async {
        ca.metric("ca_server_connections").await == 0.0
    })
    .await;
    ca.check();
}

#[tokio::test]
async fn bodies_of_strangers_hold_so_much_memory_and_no_more() {
    let ca = TestCa::start().await;
    let (client, connection) = h2::client::handshake(over_tls(&ca).await)
        .await
        .expect("HTTP/2");
    let driver = tokio::spawn(connection);
    let mut client = client.ready().await.expect("ready");
    let mut answers = Vec::new();
    for _ in 0..30 {
        let request = http::Request::post(
            "https://localhost/istio.v1.auth.IstioCertificateService/CreateCertificate",
        );
        let request = request
            .header("content-type", "application/grpc")
            .body(())
            .expect("a request");
        let (answer, mut send) = client.send_request(request, false).expect("sent");
        // Announces 4 MiB, sends 3 and keeps the rest: thirty of them would be 90 MiB.
        let mut body = vec![0, 0, 0x40, 0, 0];
        body.resize(3 << 20, b'A');
        send.send_data(body.into(), false).expect("sent");
        answers.push((answer, send));
        client = client.ready().await.expect("ready");
    }
    let mut refused = 0;
    for (answer, _send) in answers {
        let answer = tokio::time::timeout(Duration::from_secs(30), answer)
            .await
            .expect("answered");
        let answer = answer.expect("a response");
        refused += usize::from(
            answer
                .headers()
                .get("grpc-status")
                .is_some_and(|status| status == "8"),
        );
    }
    assert!(refused > 0, "ResourceExhausted for what does not fit");
    driver.abort();
    ca.call(&Csr::demo().pem, &Ask::bearer(&ca.token()))
        .await
        .expect("a small body always fits");
    ca.check();
}

#[tokio::test]
async fn a_hundred_connections_that_say_nothing_are_shown_the_door_and_others_are_served() {
    let ca = TestCa::start().await;
    let mut silent = Vec::new();
    for _ in 0..100 {
        silent.push(
            TcpStream::connect(ca.csr_address())
                .await
                .expect("connected"),
        );
    }
    ca.call(&Csr::demo().pem, &Ask::bearer(&ca.token()))
        .await
        .expect("served beside them");
    ca.until("shown the door", || async {
        ca.metric("ca_server_handshake_failures_total{reason=\"timeout\"}")
            .await
            >= 100.0
    })
    .await;
    ca.check();
}

async fn over_tls(ca: &TestCa) -> tokio_rustls::client::TlsStream<TcpStream> {
    let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(tls(&ca.roots(), None)));
    let stream = TcpStream::connect(ca.csr_address())
        .await
        .expect("connected");
    connector
        .connect("localhost".try_into().expect("a name"), stream)
        .await
        .expect("handshake")
}

/// One gRPC-like POST with any body; the body stays open for `linger`. Returns `grpc-status` (0 if
/// there is none) and the message.
async fn post(ca: &TestCa, path: &str, body: Vec<u8>, linger: Duration) -> (u32, String) {
    let stream = over_tls(ca).await;
    let (mut client, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
    let driver = tokio::spawn(connection);
    let request = http::Request::post(format!("https://localhost{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    let (response, mut send) = client
        .send_request(request.body(()).expect("a request"), false)
        .expect("sent");
    send.send_data(body.into(), linger.is_zero()).expect("sent");
    let response = tokio::time::timeout(Duration::from_secs(20), response)
        .await
        .expect("answered")
        .expect("a response");
    let mut trailers = response.headers().clone();
    let mut body = response.into_body();
    while let Some(Ok(_)) = body.data().await {}
    if let Ok(Some(more)) = body.trailers().await {
        trailers.extend(more);
    }
    driver.abort();
    let text = |name: &str| {
        trailers
            .get(name)
            .map(|value| value.to_str().expect("text").to_owned())
            .unwrap_or_default()
    };
    (
        text("grpc-status").parse().unwrap_or(0),
        text("grpc-message"),
    )
}
