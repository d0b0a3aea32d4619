//! Several daemons on one Postgres: no common lock on the way of a call, and whoever dies or is
//! taken for dead leaves nothing open and nothing twice.

use std::time::Instant;

use postgres_cluster::Cluster;
use softhsm_tests::check::Ledger;
use softhsm_tests::daemon::Setup;
use softhsm_tests::{Ask, Csr, LedgerDatabase, Load, TestCa};
use tokio::task::block_in_place;
use tonic::Code;

/// A daemon on a database that others use too.
async fn daemon(url: &str) -> TestCa {
    TestCa::start_with(Setup::default().with_faults().on_ledger(url)).await
}

/// The same, with calls that may take long, so that one can be caught in the device on however slow
/// a machine.
async fn patient_daemon(url: &str) -> TestCa {
    let setup = Setup::default()
        .with_faults()
        .replace("call_timeout = \"5s\"", "call_timeout = \"60s\"");
    TestCa::start_with(setup.on_ledger(url)).await
}

/// The chain of an intent.
fn chain_of(ledger: &Ledger, serial: &str) -> String {
    let intent = ledger
        .kind("intent")
        .into_iter()
        .find(|row| row["serial"] == serial)
        .expect("its intent");
    intent["chain"].as_str().expect("a chain").to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn four_daemons_on_one_database_pass_the_audit_together() {
    const DAEMONS: usize = 4;
    let database = LedgerDatabase::new();
    let mut daemons = Vec::new();
    for _ in 0..DAEMONS {
        daemons.push(daemon(&database.url()).await);
    }
    let mut loads: Vec<Load> = daemons.iter().map(|ca| Load::on(ca, 8)).collect();
    for (ca, load) in daemons.iter().zip(&loads) {
        load.until_issued(ca, 250).await;
    }
    // Beside the daemons at work.
    let (first, others) = daemons.split_first().expect("some");
    let running = first.export();
    assert_eq!(running.count("start"), DAEMONS);
    for load in &mut loads {
        load.stop().await;
        assert!(
            load.refused().is_empty() && load.unanswered().is_empty(),
            "{:?} {:?}",
            load.refused(),
            load.unanswered()
        );
    }
    let others: Vec<&TestCa> = others.iter().collect();
    let ledger = first.check_with(&others);
    softhsm_tests::tell(&format!(
        "{DAEMONS} daemons on one database: {} intents in {} chains, {} issued, {} received",
        ledger.count("intent"),
        ledger.count("start"),
        ledger.count("issued"),
        loads.iter().map(Load::issued).sum::<usize>()
    ));
    assert_eq!(
        (
            first.open_intents(&ledger),
            ledger.count("unknown"),
            ledger.count("failed")
        ),
        (0, 0, 0)
    );
    for ca in &mut daemons {
        assert!(ca.stop().success());
    }
    let (first, others) = daemons.split_first().expect("some");
    let ledger = first.check_with(&others.iter().collect::<Vec<_>>());
    assert_eq!(
        (ledger.count("end"), ledger.count("chain_ended")),
        (DAEMONS, 0),
        "each has ended its own chain"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_daemon_left_open_is_closed_by_another_within_a_minute() {
    let database = LedgerDatabase::new();
    let (mut dead, heir) = (
        patient_daemon(&database.url()).await,
        daemon(&database.url()).await,
    );
    dead.command_faults("C_Sign sleep_ms 60000");
    let (ask, channel) = (Ask::bearer(&dead.token()), dead.connect().await);
    let csrs: Vec<String> = (0..4).map(|_| Csr::demo().pem).collect();
    let open = async {
        heir.until("open", || async { heir.open_intents(&heir.export()) == 4 })
            .await;
        dead.signal("KILL");
    };
    let calls = futures_util::future::join_all(csrs.iter().map(|csr| channel.call(csr, &ask)));
    let (answers, ()) = tokio::join!(calls, open);
    assert!(answers.iter().all(Result::is_err), "nothing leaves");
    let died = Instant::now();
    dead.kill();
    heir.until("closed", || async { heir.export().count("unknown") == 4 })
        .await;
    softhsm_tests::tell(&format!(
        "4 orphans of a killed daemon: closed by another after {} s",
        died.elapsed().as_secs()
    ));
    heir.call(&csrs[0], &ask).await.expect("it serves on");
    let ledger = heir.check_with(&[&dead]);
    assert_eq!(
        (ledger.count("chain_ended"), heir.open_intents(&ledger)),
        (1, 0)
    );
    dead.command_faults("");
    dead.restart().await;
    dead.call(&csrs[0], &ask)
        .await
        .expect("and the killed one is back");
    let ledger = heir.check_with(&[&dead]);
    assert_eq!(
        (
            ledger.count("start"),
            ledger.count("chain_ended"),
            ledger.count("unknown")
        ),
        (3, 1, 4),
        "nothing is filed twice"
    );
}

/// How a daemon that stands still loses its lock.
enum Loss<'a> {
    /// The server ends a session that was silent for too long.
    Silence,
    /// An operator ends it.
    Ended(&'a dyn Fn()),
}

/// A daemon is stopped (SIGSTOP) with a call in its device, loses its lock, is declared dead by
/// another and continued.
async fn stands_still_and_goes_on(database: &LedgerDatabase<'_>, loss: &Loss<'_>, paused: TestCa) {
    let heir = daemon(&database.url()).await;
    let (csr, ask, channel) = (
        Csr::demo().pem,
        Ask::bearer(&paused.token()),
        paused.connect().await,
    );
    paused.remember(&channel.call(&Csr::demo().pem, &ask).await.expect("issued"));
    paused.command_faults("C_Sign sleep_ms 20000 count 1");
    let interrupted = async {
        heir.until("open", || async { heir.open_intents(&heir.export()) == 1 })
            .await;
        paused.signal("STOP");
        let stopped = Instant::now();
        if let Loss::Ended(end) = loss {
            block_in_place(end);
        }
        heir.until("declared dead", || async {
            heir.export().count("chain_ended") == 1
        })
        .await;
        softhsm_tests::tell(&format!(
            "a daemon that stands still is declared dead by another after {} s",
            stopped.elapsed().as_secs()
        ));
        paused.signal("CONT");
    };
    let (answer, ()) = tokio::join!(channel.call(&csr, &ask), interrupted);
    let status = answer.expect_err("what was open is withheld");
    softhsm_tests::tell(&format!(
        "its caller got {:?}: {}",
        status.code(),
        status.message()
    ));
    assert!(
        matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded),
        "{status}"
    );
    paused.until_ready().await;
    paused
        .until("serving on", || async {
            paused.call(&csr, &ask).await.is_ok()
        })
        .await;
    heir.call(&csr, &ask).await.expect("the other too");
    let ledger = heir.check_with(&[&paused]);
    assert_eq!(
        (ledger.count("unknown"), heir.open_intents(&ledger)),
        (1, 0)
    );
    assert_eq!(
        (ledger.count("start"), ledger.count("chain_ended")),
        (3, 1),
        "the one that stood still has begun a new chain"
    );
    let withheld = ledger.kind("unknown")[0]["serial"]
        .as_str()
        .expect("a serial");
    let lost = ledger.kind("chain_ended")[0];
    assert_ne!(
        lost["chain"],
        chain_of(&ledger, withheld).as_str(),
        "declared by the other"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_that_stood_still_past_the_servers_patience_withholds_and_begins_a_new_chain() {
    let database = LedgerDatabase::new();
    let paused = patient_daemon(&database.url()).await;
    stands_still_and_goes_on(&database, &Loss::Silence, paused).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_whose_session_was_ended_while_it_stood_still_withholds_and_begins_a_new_chain() {
    let database = LedgerDatabase::new();
    let login = database.login();
    let paused = patient_daemon(&database.url_as(&login)).await;
    stands_still_and_goes_on(
        &database,
        &Loss::Ended(&|| database.end_sessions(&login)),
        paused,
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_whose_session_was_ended_and_whose_lock_nobody_took_goes_on_in_its_chain() {
    const ENDED: usize = 10;
    let cluster = Cluster::start();
    let database = LedgerDatabase::on(&cluster);
    let login = database.login();
    let ca = daemon(&database.url_as(&login)).await;
    let mut load = Load::on(&ca, 8);
    for _ in 0..ENDED {
        load.until_issued(&ca, 30).await;
        block_in_place(|| database.end_sessions(&login));
    }
    load.until_issued(&ca, 30).await;
    load.stop().await;
    ca.until("settled", || async { ca.open_intents(&ca.export()) == 0 })
        .await;
    let ledger = ca.check();
    softhsm_tests::tell(&format!(
        "{ENDED} sessions ended under load: {} certificates, refused: {:?}",
        load.issued(),
        load.refused()
    ));
    assert_eq!(
        (ledger.count("start"), ledger.count("unknown")),
        (1, 0),
        "an outcome that waited is recorded"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_load_a_daemon_that_stood_still_never_gives_an_intent_a_second_outcome() {
    let database = LedgerDatabase::new();
    let login = database.login();
    let (paused, heir) = (
        daemon(&database.url_as(&login)).await,
        daemon(&database.url()).await,
    );
    let (mut load, mut other) = (Load::on(&paused, 16), Load::on(&heir, 4));
    load.until_issued(&paused, 100).await;
    paused.signal("STOP");
    block_in_place(|| database.end_sessions(&login));
    heir.until("declared dead", || async {
        heir.export().count("chain_ended") == 1
    })
    .await;
    paused.signal("CONT");
    load.until_issued(&paused, 100).await;
    load.stop().await;
    other.stop().await;
    heir.until("settled", || async {
        heir.open_intents(&heir.export()) == 0
    })
    .await;
    let ledger = heir.check_with(&[&paused]);
    softhsm_tests::tell(&format!(
        "stood still under load: {} and {} certificates, {} intents unknown, refused: {:?}",
        load.issued(),
        other.issued(),
        ledger.count("unknown"),
        load.refused()
    ));
    assert_eq!((heir.open_intents(&ledger), ledger.count("start")), (0, 3));
    assert!(
        other.refused().is_empty() && other.unanswered().is_empty(),
        "the other has noticed nothing"
    );
}
