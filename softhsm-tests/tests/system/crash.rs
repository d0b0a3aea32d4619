//! What no crash and no cancelled call may do: lose a row, invent one, or leave an intent open.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use postgres_cluster::Cluster;
use softhsm_tests::client::tls;
use softhsm_tests::daemon::{DEMO, Setup};
use softhsm_tests::{Ask, Channel, Csr, LedgerDatabase, Load, TestCa};

/// A fixed sequence of pseudo-random numbers (SplitMix64), so that a failure can be run again.
struct Sequence(u64);

impl Sequence {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_calls_cancelled_at_random_moments_leave_no_open_intent() {
    const CALLS: usize = 10_000;
    let ca = TestCa::start_with(Setup::default().with_faults()).await;
    let (ask, config) = (Ask::bearer(&ca.token()), tls(&ca.roots(), None));
    let (begun, cancelled) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let workers = (0..64u64).map(|worker| {
        let (ca, ask, config, begun, cancelled) = (&ca, &ask, &config, &begun, &cancelled);
        async move {
            let mut random = Sequence(worker);
            let mut channel = None;
            while begun.fetch_add(1, Ordering::Relaxed) < CALLS {
                let open = match channel.take() {
                    Some(open) => open,
                    None => Channel::open(ca.csr_address(), config.clone())
                        .await
                        .expect("the daemon accepts"),
                };
                let (csr, patience) = (
                    Csr::demo().pem,
                    Duration::from_micros(random.next() % 30_000),
                );
                match tokio::time::timeout(patience, open.call(&csr, ask)).await {
                    Ok(Ok(chain)) => {
                        ca.remember(&chain);
                        channel = Some(open);
                    }
                    // A connection that was reset too often is dialled anew.
                    Ok(Err(_)) => {}
                    Err(_) => {
                        cancelled.fetch_add(1, Ordering::Relaxed);
                        channel = (!random.next().is_multiple_of(8)).then_some(open);
                    }
                }
            }
        }
    });
    futures_util::future::join_all(workers).await;
    ca.until("idle", || async {
        ca.metric("ca_server_calls_in_flight").await == 0.0 && ca.open_intents(&ca.export()) == 0
    })
    .await;
    let ledger = ca.check();
    let cancelled = cancelled.into_inner();
    softhsm_tests::tell(&format!(
        "{cancelled} of {CALLS} calls cancelled; {} intents, {} issued, {} failed, {} unknown",
        ledger.count("intent"),
        ledger.count("issued"),
        ledger.count("failed"),
        ledger.count("unknown")
    ));
    assert!(cancelled > CALLS / 10, "the test cancels: {cancelled}");
    assert_eq!(
        (ca.open_intents(&ledger), ledger.count("start")),
        (0, 1),
        "with no restart"
    );
    ca.call(&Csr::demo().pem, &ask)
        .await
        .expect("and it serves on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_nine_under_load_twenty_times_loses_and_invents_nothing_on_sqlite() {
    kill_nine_under_load(Setup::default(), "SQLite").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_nine_under_load_twenty_times_loses_and_invents_nothing_on_postgres() {
    kill_nine_under_load(Setup::default().on_postgres(), "Postgres").await;
}

async fn kill_nine_under_load(setup: Setup, ledger_on: &str) {
    const KILLS: u64 = 20;
    let mut ca = TestCa::start_with(setup.with_faults()).await;
    let ask = Ask::bearer(&ca.token());
    let mut random = Sequence(7);
    let mut received = 0;
    for _ in 0..KILLS {
        let (stop, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
        let kill_after = 1 + usize::try_from(random.next() % 300).expect("small");
        let config = tls(&ca.roots(), None);
        {
            let (ca, ask, stop, answered) = (&ca, &ask, &stop, &answered);
            let load = (0..32).map(|_| {
                let config = config.clone();
                async move {
                    let Ok(channel) = Channel::open(ca.csr_address(), config).await else {
                        return;
                    };
                    while !stop.load(Ordering::Relaxed) {
                        match channel.call(&Csr::demo().pem, ask).await {
                            Ok(chain) => {
                                ca.remember(&chain);
                                answered.fetch_add(1, Ordering::Relaxed);
                            }
                            Err(_) => return,
                        }
                    }
                }
            });
            let killer = async {
                ca.until("under load", || async {
                    answered.load(Ordering::Relaxed) >= kill_after
                })
                .await;
                ca.signal("KILL");
                stop.store(true, Ordering::Relaxed);
            };
            tokio::join!(futures_util::future::join_all(load), killer);
        }
        received += answered.into_inner();
        ca.kill();
        ca.restart().await;
    }
    let ledger = ca.check();
    softhsm_tests::tell(&format!(
        "{KILLS} kills of the daemon on {ledger_on}, {received} certificates received; {} intents, {} issued, {} unknown; {} signatures by the module",
        ledger.count("intent"),
        ledger.count("issued"),
        ledger.count("unknown"),
        ca.faults().signatures()
    ));
    assert_eq!(
        ca.open_intents(&ledger),
        0,
        "what the dead left open is filed as unknown"
    );
    assert_eq!(
        ledger.count("chain_ended"),
        usize::try_from(KILLS).expect("small"),
        "each dead chain is named once"
    );
    assert_eq!(ledger.count("failed"), 0);
    let signatures = usize::try_from(ca.faults().signatures()).expect("small");
    assert!(
        (ledger.count("issued")..=ledger.count("issued") + ledger.count("unknown"))
            .contains(&signatures)
    );
    assert!(
        ledger
            .kind("issued")
            .iter()
            .any(|row| row["identity"] == DEMO)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_nine_of_postgres_under_load_twenty_times_loses_and_invents_nothing() {
    const KILLS: u64 = 20;
    let cluster = Cluster::start();
    let ca = TestCa::start_with(
        Setup::default()
            .with_faults()
            .on_ledger(&LedgerDatabase::on(&cluster).url()),
    )
    .await;
    let mut load = Load::on(&ca, 16);
    let mut random = Sequence(11);
    let mut longest = Duration::ZERO;
    for _ in 0..KILLS {
        load.until_issued(
            &ca,
            1 + usize::try_from(random.next() % 100).expect("small"),
        )
        .await;
        tokio::time::sleep(Duration::from_micros(random.next() % 20_000)).await;
        tokio::task::block_in_place(|| {
            cluster.kill();
            cluster.start_again();
        });
        let recovered = std::time::Instant::now();
        load.until_issued(&ca, 1).await;
        longest = longest.max(recovered.elapsed());
    }
    load.stop().await;
    ca.until("settled", || async { ca.open_intents(&ca.export()) == 0 })
        .await;
    let ledger = ca.check();
    softhsm_tests::tell(&format!(
        "{KILLS} kills of Postgres, {} certificates received, resumed after at most {} ms; {} intents, {} issued, {} failed, {} unknown; \
         calls refused: {:?}",
        load.issued(),
        longest.as_millis(),
        ledger.count("intent"),
        ledger.count("issued"),
        ledger.count("failed"),
        ledger.count("unknown"),
        load.refused()
    ));
    assert_eq!(
        (ledger.count("start"), ledger.count("unknown")),
        (1, 0),
        "the daemon has lived through it all"
    );
    assert!(load.unanswered().is_empty(), "{:?}", load.unanswered());
    assert!(
        load.refused().keys().all(|code| code == "Unavailable"),
        "{:?}",
        load.refused()
    );
}
