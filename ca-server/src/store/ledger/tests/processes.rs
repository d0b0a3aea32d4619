//! What needs a process of its own: one that is killed, and ones whose files may not grow. The same
//! test runs again as a child; there it finds the path of a ledger in its environment and does the
//! child's part.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rlimit::Resource;

use crate::refusal::Reason;
use crate::store::ledger::LedgerStartError;
use crate::store::ledger::database::Database;
use crate::store::ledger::fixture::{World, start};
use crate::store::ledger::open_intent::NotOpened;

const LEDGER: &str = "CA_SERVER_TEST_LEDGER";

/// In a child process, the world that its parent made; its certificates are of an issuer of its
/// own.
fn inherited() -> Option<World> {
    std::env::var(LEDGER).ok().map(|url| World::at_url(&url))
}

/// Runs the test `name` alone in a process of its own, in which writing too much is an error and no
/// signal.
fn child(name: &str, world: &World) -> Child {
    let test = format!("{}::{name}", module_path!().split_once("::").unwrap().1);
    let script = "trap '' XFSZ; exec \"$0\" \"$1\" --exact --nocapture --test-threads=1";
    let binary = std::env::current_exe().unwrap();
    Command::new("sh")
        .args(["-c", script])
        .arg(binary)
        .arg(test)
        .env(LEDGER, world.url())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Waits for a child that is to do its part to the end.
fn passes(child: Child) {
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{}\n{text}",
        output.status
    );
}

/// From now on no file of this process may grow beyond so many octets.
fn limit_files(octets: u64) {
    let (_, hard) = rlimit::getrlimit(Resource::FSIZE).unwrap();
    rlimit::setrlimit(Resource::FSIZE, octets.min(hard), hard).unwrap();
}

#[test]
fn a_process_killed_between_intent_and_outcome_is_accounted_for_by_the_next() {
    if let Some(world) = inherited() {
        return world.block_on(waits_to_be_killed(&world));
    }
    let world = World::sqlite();
    let mut child = child(
        "a_process_killed_between_intent_and_outcome_is_accounted_for_by_the_next",
        &world,
    );
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("three are open")));
    child.kill().unwrap();
    child.wait().unwrap();
    world.block_on(async {
        assert_eq!(world.holds().await.open, 3);
        world.start().await.shutdown().await;
        let report = world.holds().await;
        assert_eq!((report.open, report.issued, report.unknown), (0, 1, 3));
    });
}

async fn waits_to_be_killed(world: &World) {
    let ledger = world.start().await;
    let _held = (
        world.open(&ledger).await,
        world.open(&ledger).await,
        world.open(&ledger).await,
    );
    world.issue(&ledger).await;
    println!("three are open");
    std::future::pending::<()>().await;
}

#[test]
fn when_nothing_more_can_be_written_calls_are_refused_and_it_resumes_by_itself() {
    if let Some(world) = inherited() {
        return world.block_on(meets_a_full_disk(&world));
    }
    let world = World::sqlite();
    passes(child(
        "when_nothing_more_can_be_written_calls_are_refused_and_it_resumes_by_itself",
        &world,
    ));
    world.block_on(async {
        let report = world.holds().await;
        assert_eq!(
            (report.open, report.intents),
            (0, report.issued + report.failed)
        );
        assert!(report.issued > 10);
    });
}

async fn meets_a_full_disk(world: &World) {
    limit_files(1_024_000);
    let ledger = world.start().await;
    let waiting = world.open(&ledger).await;
    // While somebody reads, the write-ahead log cannot begin anew and make room.
    let mut reader = Database::reader(&world.location).await.unwrap();
    reader.begin_snapshot().await.unwrap();
    reader.row_count().await.unwrap();
    let refusal = loop {
        match ledger.open_made(world.make(&ledger)).await {
            Ok(recorded) => drop(recorded.issue_later()),
            Err(NotOpened::Refused(refusal)) => break refusal,
            Err(other) => panic!("{other:?}"),
        }
    };
    assert_eq!(refusal.reason(), Reason::LedgerDown);
    // What did not fit for an intent may still do for an outcome; from here on no write beyond the
    // first page succeeds.
    limit_files(4096);
    let outcome = waiting.issue_later();
    world.goes_down(&ledger).await;
    assert!(!ledger.health(world.hands.now()).ready);
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert!(
        !outcome.is_finished() && ledger.accepting(world.hands.now()).is_err(),
        "it is withheld, and nothing new is begun"
    );
    limit_files(u64::MAX);
    world.recovers(&ledger).await;
    outcome.await.unwrap().unwrap();
    world.issue(&ledger).await;
    ledger.shutdown().await;
}

#[test]
fn a_disk_that_is_full_at_the_first_start_is_not_called_a_newer_schema() {
    if let Some(world) = inherited() {
        return world.block_on(begins_on_a_full_disk(&world));
    }
    let world = World::sqlite();
    passes(child(
        "a_disk_that_is_full_at_the_first_start_is_not_called_a_newer_schema",
        &world,
    ));
    world.block_on(async { world.holds().await });
}

async fn begins_on_a_full_disk(world: &World) {
    let mut refused = 0;
    for kib in 0.. {
        limit_files(kib * 1024);
        let started = start(&world.location, &world.ca, &world.hands).await;
        match &started {
            Err(LedgerStartError::Unavailable { .. }) => refused += 1,
            Ok(ledger) => {
                limit_files(u64::MAX);
                ledger.shutdown().await;
                break;
            }
            Err(other) => panic!("at {kib} KiB: {other}"),
        }
    }
    assert!(refused > 10, "only {refused}");
}
