//! What needs a process of its own: one that is killed, and one whose files may not grow. The test runs itself again as a child.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::refusal::Reason;
use crate::store::ledger::fixture::World;
use crate::store::ledger::open_intent::NotOpened;
use crate::store::ledger::query::Cursor;
use crate::store::ledger::sqlite::Database;

const LEDGER: &str = "CA_SERVER_TEST_LEDGER";

/// Runs the ignored test `name` of this binary, after `shell`.
fn child(name: &str, shell: &str, ledger: &Path) -> Child {
    let binary = std::env::current_exe().unwrap();
    let test = format!("{}::{name}", module_path!().split_once("::").unwrap().1);
    let script = format!("{shell} exec \"$0\" --exact {test} --ignored --nocapture");
    Command::new("sh").arg("-c").arg(script).arg(binary).env(LEDGER, ledger).stdout(Stdio::piped()).spawn().unwrap()
}

/// The world that the child finds; its certificates are of an issuer of its own.
fn inherited() -> World {
    World::at(std::env::var(LEDGER).expect("run by its parent").into())
}

#[test]
fn a_process_killed_between_intent_and_outcome_is_accounted_for_by_the_next() {
    let world = World::new();
    let mut child = child("child_that_waits_to_be_killed", "", &world.path);
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

#[tokio::test]
#[ignore = "run by its parent"]
async fn child_that_waits_to_be_killed() {
    let world = inherited();
    let ledger = world.start().await;
    let _held = (world.open(&ledger).await, world.open(&ledger).await, world.open(&ledger).await);
    world.issue(&ledger).await;
    println!("three are open");
    std::future::pending::<()>().await;
}

#[test]
fn when_nothing_more_can_be_written_calls_are_refused_and_it_resumes_by_itself() {
    let world = World::new();
    let mut child = child("child_whose_files_may_not_grow", "trap '' XFSZ; ulimit -S -f 2000;", &world.path);
    assert!(child.wait().unwrap().success());
    world.block_on(async {
        let report = world.holds().await;
        assert_eq!((report.open, report.intents), (0, report.issued + report.failed));
        assert!(report.issued > 10);
    });
}

#[tokio::test]
#[ignore = "run by its parent"]
async fn child_whose_files_may_not_grow() {
    let world = inherited();
    let ledger = world.start().await;
    let waiting = world.open(&ledger).await;
    // While somebody reads, the write-ahead log cannot begin anew and make room.
    let mut reader = Database::reader(&world.path).await.unwrap();
    Cursor::begin(&mut reader).await.unwrap();
    let refusal = loop {
        match ledger.open_made(world.make(&ledger)).await {
            Ok(recorded) => drop(recorded.issue_later()),
            Err(NotOpened::Refused(refusal)) => break refusal,
            Err(other) => panic!("{other:?}"),
        }
    };
    assert_eq!(refusal.reason(), Reason::LedgerDown);
    assert!(!ledger.health(world.hands.now()).ready);
    let outcome = waiting.issue_later();
    tokio::time::sleep(std::time::Duration::from_millis(700)).await;
    assert!(!outcome.is_finished() && ledger.accepting(world.hands.now()).is_err(), "it is withheld, and nothing new is begun");
    let (_, hard) = rlimit::getrlimit(rlimit::Resource::FSIZE).unwrap();
    rlimit::setrlimit(rlimit::Resource::FSIZE, hard, hard).unwrap();
    let free = std::time::Instant::now();
    world.recovers(&ledger).await;
    assert!(free.elapsed() < std::time::Duration::from_secs(2));
    outcome.await.unwrap().unwrap();
    world.issue(&ledger).await;
    ledger.shutdown().await;
}
