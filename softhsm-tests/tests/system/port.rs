//! What somebody without any credential can hold of the daemon: memory, connections, calls,
//! monitoring. And what he cannot make it say.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::select_all;
use futures_util::stream::{FuturesUnordered, StreamExt};
use h2::client::{ResponseFuture, SendRequest};
use http::Request;
use softhsm_tests::authority::Authority;
use softhsm_tests::client::tls;
use softhsm_tests::daemon::{PATIENCE, Setup};
use softhsm_tests::{Ask, Channel, Csr, TestCa, tell};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;

const CALL: &str = "https://localhost/istio.v1.auth.IstioCertificateService/CreateCertificate";

/// Dials from one of this machine's loopback addresses, so that a test is several hosts.
async fn dial_from(host: u8, to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::new(
        IpAddr::V4(Ipv4Addr::new(127, 0, 0, host)),
        0,
    ))?;
    socket.connect(to).await
}

/// One connection whose calls begin and never end.
struct Endless {
    client: SendRequest<tonic::codegen::Bytes>,
    driver: JoinHandle<Result<(), h2::Error>>,
    calls: Vec<(ResponseFuture, h2::SendStream<tonic::codegen::Bytes>)>,
}

impl Endless {
    async fn from(host: u8, ca: &TestCa) -> Self {
        let stream = dial_from(host, ca.csr_address()).await.expect("connected");
        let stream = TlsConnector::from(Arc::new(tls(&ca.roots(), None)))
            .connect("localhost".try_into().expect("a name"), stream)
            .await;
        let (client, connection) = h2::client::handshake(stream.expect("handshake"))
            .await
            .expect("HTTP/2");
        let mut new = Self {
            client,
            driver: tokio::spawn(connection),
            calls: Vec::new(),
        };
        // Only then it knows how many streams it may have, and sends them in their order.
        new.settled().await;
        new
    }

    /// So many calls more, each with so many tiny headers.
    async fn begin(&mut self, calls: usize, headers: usize) {
        for _ in 0..calls {
            let mut request = Request::post(CALL).header("content-type", "application/grpc");
            for _ in 0..headers {
                request = request.header("a", "b");
            }
            self.client = self.client.clone().ready().await.expect("ready");
            self.calls.push(
                self.client
                    .send_request(request.body(()).expect("a request"), false)
                    .expect("sent"),
            );
        }
    }

    /// Waits for the answer to a call that ends: whatever was sent before has been read by then.
    async fn settled(&mut self) {
        self.client = self.client.clone().ready().await.expect("ready");
        let (answer, _) = self
            .client
            .send_request(Request::post(CALL).body(()).expect("a request"), true)
            .expect("sent");
        let _ = tokio::time::timeout(Duration::from_secs(60), answer)
            .await
            .expect("answered");
    }

    /// Waits until so many of its calls are answered; all of them were refused as too many.
    async fn refused(&mut self, count: usize) {
        let mut open = std::mem::take(&mut self.calls);
        let most = open.len() - count;
        while open.len() > most {
            let (answer, _) = &mut open[0];
            // Which of them were refused, the order of tasks says; those that were not are asked
            // again later.
            if let Ok(answer) = tokio::time::timeout(Duration::from_millis(1), answer).await {
                let status = answer
                    .expect("a response")
                    .headers()
                    .get("grpc-status")
                    .map(|status| status.as_bytes().to_vec());
                assert_eq!(status.as_deref(), Some(&b"8"[..]));
                drop(open.swap_remove(0));
            } else {
                open.rotate_left(1);
            }
        }
        self.calls = open;
    }

    /// Whether none of its calls is answered within this time.
    async fn all_open(&mut self, time: Duration) -> bool {
        let answers = self.calls.iter_mut().map(|(answer, _)| answer);
        tokio::time::timeout(time, select_all(answers))
            .await
            .is_err()
    }
}

impl Drop for Endless {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_never_end_hold_little_memory_each_and_so_many_of_them_and_no_more() {
    const CONNECTIONS: usize = 20;
    /// On one connection; one more is left for the call that ends.
    const CALLS: usize = 249;
    /// What they may take, octets: they have no permits, and nobody knows whose they are. So much
    /// each without optimisation, whatever headers they came with, and so much for those that are
    /// just being read and for what the allocator keeps of them.
    const MOST: usize = CONNECTIONS * CALLS * 12 * 1024 + (64 << 20);
    // None; and as many of one octet and a value of one as 16 KiB and 64 KiB of header list have
    // room for.
    for headers in [0, 450, 1_900] {
        let ca = TestCa::start_with(
            Setup::default().replace("call_timeout = \"5s\"", "call_timeout = \"60s\""),
        )
        .await;
        ca.call(&Csr::demo().pem, &Ask::bearer(&ca.token()))
            .await
            .expect("all is warm");
        let before = ca.resident();
        let mut attackers = Vec::new();
        for _ in 0..CONNECTIONS {
            let mut attacker = Endless::from(2, &ca).await;
            attacker.begin(CALLS, headers).await;
            attacker.settled().await;
            attackers.push(attacker);
        }
        let taken = ca.resident().saturating_sub(before);
        tell(&format!(
            "{} calls without an end, {headers} headers each: {} MiB, {} octets each",
            CONNECTIONS * CALLS,
            taken >> 20,
            taken / (CONNECTIONS * CALLS)
        ));
        assert!(taken < MOST, "{} MiB", taken >> 20);
        let overloaded = ca
            .metric("ca_server_refusals_total{reason=\"overloaded\"}")
            .await;
        // Those whose headers are too many were never calls.
        assert_eq!(
            overloaded > 0.0,
            headers < 1_000,
            "{overloaded} beyond what may be open in all"
        );
        drop(attackers);
        ca.until("served again", || async {
            ca.call(&Csr::demo().pem, &Ask::bearer(&ca.token()))
                .await
                .is_ok()
        })
        .await;
        ca.check();
    }
}

#[tokio::test]
async fn calls_that_one_address_leaves_open_take_no_place_from_another() {
    let setup = Setup::default()
        .limit("peer_open_calls", 100)
        .replace("call_timeout = \"5s\"", "call_timeout = \"60s\"");
    let ca = TestCa::start_with(setup).await;
    let mut attacker = Endless::from(2, &ca).await;
    attacker.begin(150, 0).await;
    // What is beyond the share is refused at once, long before the others' time is over.
    tokio::time::timeout(Duration::from_secs(60), attacker.refused(50))
        .await
        .expect("refused");
    assert!(
        attacker.all_open(Duration::from_millis(100)).await,
        "the others are within it"
    );
    ca.call(&Csr::demo().pem, &Ask::bearer(&ca.token()))
        .await
        .expect("another address");
    assert_eq!(
        ca.metric("ca_server_refusals_total{reason=\"peer_limit\"}")
            .await,
        50.0
    );
    drop(attacker);
    ca.until("free", || async {
        let mut again = Endless::from(2, &ca).await;
        again.begin(1, 0).await;
        again.all_open(Duration::from_millis(100)).await
    })
    .await;
    ca.check();
}

#[tokio::test]
async fn connections_that_one_address_holds_take_no_place_from_another() {
    const SHARE: usize = 30;
    let ca =
        TestCa::start_with(Setup::default().limit("peer_open_connections", SHARE as u32)).await;
    let mut held = Vec::new();
    for _ in 0..SHARE {
        held.push(dial_from(2, ca.csr_address()).await.expect("connected"));
    }
    ca.until("held", || async {
        ca.metric("ca_server_connections").await == SHARE as f64
    })
    .await;
    for _ in 0..5 {
        let mut beyond = dial_from(2, ca.csr_address())
            .await
            .expect("the kernel accepts");
        let closed = tokio::time::timeout(Duration::from_secs(60), beyond.read(&mut [0]))
            .await
            .expect("closed at once");
        assert!(!matches!(closed, Ok(1..)), "nothing is said");
    }
    assert_eq!(
        ca.metric("ca_server_handshake_failures_total{reason=\"peer_share\"}")
            .await,
        5.0
    );
    ca.call(&Csr::demo().pem, &Ask::bearer(&ca.token()))
        .await
        .expect("another address");
    held.truncate(SHARE / 2);
    ca.until("free", || async {
        let stream = dial_from(2, ca.csr_address()).await.expect("connected");
        Channel::over(stream, tls(&ca.roots(), None)).await.is_ok()
    })
    .await;
    ca.until("filed", || async {
        ca.export()
            .kind("refused_group")
            .iter()
            .any(|row| row["reason"] == "peer_limit")
    })
    .await;
    ca.check();
}

/// GET on the monitoring port from one of the hosts: the status, or none if the door was shown.
async fn get_from(host: u8, ca: &TestCa, path: &str) -> Option<u16> {
    let mut stream = dial_from(host, ca.monitoring_address()).await.ok()?;
    stream
        .write_all(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes())
        .await
        .ok()?;
    let mut head = [0; 12];
    tokio::time::timeout(Duration::from_secs(60), stream.read_exact(&mut head))
        .await
        .expect("answered or closed")
        .ok()?;
    std::str::from_utf8(&head[9..]).ok()?.parse().ok()
}

#[tokio::test]
async fn monitoring_that_is_full_shows_the_door_and_still_says_how_the_daemon_is() {
    /// Of 20 from one address: four have what is kept for health, and one may have the place that
    /// the last scrape has just left.
    const SHED: usize = 15;
    let ca = TestCa::start().await;
    // One address cannot fill it.
    let mut greedy = Vec::new();
    for _ in 0..100 {
        greedy.push(
            dial_from(9, ca.monitoring_address())
                .await
                .expect("connected"),
        );
    }
    assert_eq!(get_from(1, &ca, "/metrics").await, Some(200));
    let shed_total = || ca.metric("ca_server_monitoring_connections_shed_total");
    let shed_before = shed_total().await;
    drop(greedy);
    // Many together can.
    let mut idle = Vec::new();
    for host in (10..=250).cycle() {
        if get_from(1, &ca, "/metrics").await == Some(503) {
            break;
        }
        idle.push(
            dial_from(host, ca.monitoring_address())
                .await
                .expect("connected"),
        );
        assert!(idle.len() < 10_000, "it is never full");
    }
    for path in ["/healthz/live", "/healthz/ready"] {
        assert_eq!(get_from(1, &ca, path).await, Some(200), "{path}");
    }
    let mut dialled = Vec::new();
    for _ in 0..20 {
        dialled.push(
            dial_from(2, ca.monitoring_address())
                .await
                .expect("connected"),
        );
    }
    let mut closings: FuturesUnordered<_> = dialled
        .into_iter()
        .map(|mut stream| async move { stream.read(&mut [0]).await })
        .collect();
    for _ in 0..SHED {
        let closed = tokio::time::timeout(PATIENCE, closings.next())
            .await
            .expect("nobody waits in a queue")
            .expect("20 are dialled");
        assert!(!matches!(closed, Ok(1..)), "nothing is said");
    }
    assert_eq!(
        get_from(1, &ca, "/healthz/ready").await,
        Some(200),
        "beside those that hold what is kept for health"
    );
    drop((idle, closings));
    ca.until("free", || async {
        get_from(1, &ca, "/metrics").await == Some(200)
    })
    .await;
    let shed = shed_total().await - shed_before;
    assert!(shed >= SHED as f64, "{shed} of 20");
    ca.check();
}

#[tokio::test]
async fn a_port_that_is_probed_counts_failed_handshakes_and_nothing_else() {
    let mut ca = TestCa::start().await;
    // As a load balancer, a scanner, a browser and a client that trusts another CA knock.
    drop(
        TcpStream::connect(ca.csr_address())
            .await
            .expect("connected"),
    );
    for said in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &[0x16, 3, 1, 0, 5, 1, 2, 3, 4, 5],
        &[0xff; 100],
    ] {
        let mut stream = TcpStream::connect(ca.csr_address())
            .await
            .expect("connected");
        stream.write_all(said).await.expect("sent");
        let _ = stream.read_to_end(&mut Vec::new()).await;
    }
    let mut strangers = tls(&ca.roots(), None);
    strangers.alpn_protocols = vec![b"http/1.1".to_vec()];
    for config in [
        tls(
            Authority::root("stranger", Duration::from_secs(86_400)).certificate(),
            None,
        ),
        strangers,
    ] {
        let stream = TcpStream::connect(ca.csr_address())
            .await
            .expect("connected");
        assert!(
            TlsConnector::from(Arc::new(config))
                .connect("localhost".try_into().expect("a name"), stream)
                .await
                .is_err()
        );
    }
    let silent = TcpStream::connect(ca.csr_address())
        .await
        .expect("connected");
    let failures = async |reason: &str| {
        ca.metric(&format!(
            "ca_server_handshake_failures_total{{reason=\"{reason}\"}}"
        ))
        .await
    };
    ca.until("counted", || async {
        failures("tls").await == 6.0 && failures("timeout").await == 1.0
    })
    .await;
    drop(silent);
    let metrics = ca.get("/metrics").await.1;
    let refusals: Vec<&str> = metrics
        .lines()
        .filter(|line| line.starts_with("ca_server_refusals_total{"))
        .collect();
    assert_eq!(refusals, [""; 0], "no bad CSR, no overload");
    assert_eq!(ca.metric("citadel_server_csr_parsing_err_count").await, 0.0);
    assert!(ca.stop().success());
    let ledger = ca.check();
    assert_eq!(
        ledger.count("refused_group") + ledger.count("refused"),
        0,
        "no row"
    );
}
