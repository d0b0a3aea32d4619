//! More than the daemon can take, and more connections than calls: case 71, and a fleet that keeps
//! its connections open.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use rlimit::Resource;
use softhsm_tests::client::tls;
use softhsm_tests::daemon::Setup;
use softhsm_tests::{Ask, Channel, Csr, TestCa, tell};
use tonic::Code;

/// Calls that the daemon takes at a time: `issue::PERMITS`.
const ADMITTED: usize = ca_server::issue::PERMITS;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_71_overload_is_refused_at_once_and_every_admitted_call_gets_its_certificate() {
    const CALLS: usize = 1_600;
    // A connection carries 250 calls at a time.
    const CONNECTIONS: usize = 8;
    let ca = TestCa::start_with(
        Setup::default()
            .with_faults()
            .replace("call_timeout = \"5s\"", "call_timeout = \"60s\""),
    )
    .await;
    let ask = Ask::bearer(&ca.token());
    let csrs: Vec<String> = (0..CALLS).map(|_| Csr::demo().pem).collect();
    let channels = join_all((0..CONNECTIONS).map(|_| ca.connect())).await;
    // Four sessions give four signatures a second, until every call is either admitted or refused.
    ca.command_faults("C_Sign sleep_ms 1000");
    let (answered, held) = (AtomicUsize::new(0), AtomicBool::new(true));
    let calls = (0..CALLS).map(|call| {
        let (channel, csr, ask, answered, held) = (
            &channels[call % CONNECTIONS],
            &csrs[call],
            &ask,
            &answered,
            &held,
        );
        async move {
            let answer = channel.call(csr, ask).await;
            answered.fetch_add(1, Ordering::Relaxed);
            (answer, held.load(Ordering::Relaxed))
        }
    });
    let release = async {
        ca.until("full", || async {
            answered.load(Ordering::Relaxed) + ADMITTED >= CALLS
        })
        .await;
        assert_eq!(
            ca.get("/healthz/live").await.0,
            200,
            "overload restarts no pod"
        );
        held.store(false, Ordering::Relaxed);
        ca.command_faults("");
    };
    let (answers, ()) = tokio::join!(join_all(calls), release);
    let (mut certificates, mut refused, mut refused_at_once) = (0, 0, 0);
    for (answer, while_full) in answers {
        match answer {
            Ok(chain) => {
                ca.remember(&chain);
                certificates += 1;
            }
            Err(status) => {
                assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
                refused += 1;
                refused_at_once += usize::from(while_full);
            }
        }
    }
    tell(&format!(
        "{CALLS} calls at once: {certificates} certificates, {refused} refused as overload"
    ));
    assert!(
        certificates >= ADMITTED && refused > 0,
        "{certificates} certificates, {refused} refusals"
    );
    assert!(
        10 * refused_at_once >= 9 * refused,
        "a refusal does not wait for the device: {refused_at_once} of {refused}"
    );
    ca.until("idle", || async {
        ca.metric("ca_server_calls_in_flight").await == 0.0
    })
    .await;
    let csrs: Vec<String> = (0..100).map(|_| Csr::demo().pem).collect();
    for chain in
        join_all((0..100).map(|call| channels[call % CONNECTIONS].call(&csrs[call], &ask))).await
    {
        ca.remember(&chain.expect("afterwards as before"));
    }
    let ledger = ca.check();
    assert_eq!(
        (
            ca.open_intents(&ledger),
            ledger.count("failed"),
            ledger.count("unknown")
        ),
        (0, 0, 0)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_idle_connections_take_memory_and_fail_no_call() {
    const IDLE: usize = 10_000;
    /// Dialled at a time.
    const TOGETHER: usize = 50;
    /// What a connection may take: TLS and HTTP/2 state with their buffers.
    const OCTETS_EACH: usize = 128 * 1024;
    let needed = IDLE as u64 + 1_000;
    let descriptors = rlimit::increase_nofile_limit(u64::MAX).expect("readable");
    let (_, hard) = Resource::NOFILE.get().expect("readable");
    assert!(
        descriptors >= needed,
        "this test needs {needed} open files in two processes, and the hard limit is {hard}: raise it (ulimit -Hn)"
    );

    let ca = TestCa::start_with(Setup::default().with_faults()).await;
    let (ask, config) = (Ask::bearer(&ca.token()), tls(&ca.roots(), None));
    let alone = work(&ca).await;
    let before = ca.resident();
    let mut idle = Vec::with_capacity(IDLE);
    while idle.len() < IDLE {
        for channel in
            join_all((0..TOGETHER).map(|_| Channel::open(ca.csr_address(), config.clone()))).await
        {
            idle.push(channel.unwrap_or_else(|error| {
                panic!("connection {}: {error:?}\n{}", idle.len(), ca.log_text())
            }));
        }
    }
    ca.until("alone with them", || async {
        ca.metric("ca_server_connections").await == IDLE as f64
    })
    .await;
    let (beside, with) = (work(&ca).await, ca.resident());
    // They are alive, each hundredth.
    for channel in idle.iter().step_by(100) {
        ca.remember(
            &channel
                .call(&Csr::demo().pem, &ask)
                .await
                .unwrap_or_else(|status| panic!("{status}\n{}", ca.log_text())),
        );
    }
    ca.until("alone with them, of which none was closed", || async {
        ca.metric("ca_server_connections").await == IDLE as f64
    })
    .await;
    drop(idle);
    ca.until("left alone", || async {
        ca.metric("ca_server_connections").await == 0.0
    })
    .await;
    let (after, each) = (ca.resident(), with.saturating_sub(before) / IDLE);
    tell(&format!(
        "{IDLE} idle connections: resident memory {} MiB before, {} MiB with them ({} KiB each), {} MiB after; a median call took {alone:?} alone, \
         {beside:?} beside them",
        before >> 20,
        with >> 20,
        each >> 10,
        after >> 20
    ));
    assert!(each > 0 && each < OCTETS_EACH, "{each} octets a connection");
    work(&ca).await;
    assert_eq!(ca.open_intents(&ca.check()), 0);
}

/// Sixteen clients that want fifty certificates each; every call succeeds. Returns the median of
/// what a call took.
async fn work(ca: &TestCa) -> Duration {
    let ask = Ask::bearer(&ca.token());
    let clients = (0..16).map(|_| {
        let ask = &ask;
        async move {
            let (channel, mut took) = (ca.connect().await, Vec::new());
            for _ in 0..50 {
                let csr = Csr::demo().pem;
                let begun = Instant::now();
                let chain = channel
                    .call(&csr, ask)
                    .await
                    .unwrap_or_else(|status| panic!("{status}\n{}", ca.log_text()));
                took.push(begun.elapsed());
                ca.remember(&chain);
            }
            took
        }
    });
    let mut took: Vec<Duration> = join_all(clients).await.into_iter().flatten().collect();
    took.sort_unstable();
    // The connections of this work are closed before the idle ones are counted.
    ca.until("answered", || async {
        ca.metric("ca_server_calls_in_flight").await == 0.0
    })
    .await;
    took[took.len() / 2]
}
