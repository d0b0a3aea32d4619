//! A month leaves a ledger that is in use: nobody is held up, nothing that was written becomes
//! changeable, and nothing that is still needed goes.

use sqlx::{Executor, Row as _};

use crate::store::ledger::detach::{Detached, detach};
use crate::store::ledger::event::RowRef;
use crate::store::ledger::fixture::{NOON, World};
use crate::store::ledger::verify::Begin;
use crate::store::ledger::{Location, MigrationError};
use crate::timestamp::Period;

const MONTH: i64 = 31 * 86_400;

fn november() -> Period {
    Period::new(202_611).unwrap()
}

async fn detached(world: &World, period: Period) -> Result<Detached, String> {
    detach(&world.location, period, world.hands.now())
        .await
        .map_err(|error| match error {
            MigrationError::Refused(why) => why,
            other => panic!("{other}"),
        })
}

/// A chain of November that has ended, and December.
async fn in_december() -> World {
    let world = World::postgres();
    let first = world.start().await;
    world.issue(&first).await;
    drop(world.open(&first).await);
    first.shutdown().await;
    world.hands.set(NOON + MONTH);
    world
}

#[tokio::test]
async fn a_month_is_detached_beside_a_reader_and_a_daemon_and_no_call_fails() {
    let world = in_december().await;
    let ledger = world.start().await;
    world.issue(&ledger).await;
    let mut reader = world.superuser().await;
    reader
        .execute("BEGIN; SELECT count(*) FROM event")
        .await
        .unwrap();
    let (location, now) = (world.location.clone(), world.hands.now());
    let detaching = tokio::spawn(async move { detach(&location, november(), now).await });
    let mut watcher = world.superuser().await;
    let waits = "SELECT EXISTS (SELECT FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE application_name = 'ca-server migrate' \
                 AND datname = current_database() AND mode = 'AccessExclusiveLock' AND NOT granted)";
    let mut tries = 0;
    while tries < 2 {
        // Each try is seen, and that it was given up; calls go on meanwhile.
        for is_waiting in [true, false] {
            while watcher.fetch_one(waits).await.unwrap().get::<bool, _>(0) != is_waiting {
                assert!(!detaching.is_finished(), "the reader still reads");
                world.issue(&ledger).await;
            }
        }
        tries += 1;
    }
    reader.execute("COMMIT").await.unwrap();
    while !detaching.is_finished() {
        world.issue(&ledger).await;
    }
    let done = detaching.await.unwrap().unwrap();
    world.issue(&ledger).await;
    assert_eq!(done.table, "event_202611");
    let left: i64 = watcher
        .fetch_one("SELECT count(*) FROM event WHERE period = 202611")
        .await
        .unwrap()
        .get(0);
    let kept: i64 = watcher
        .fetch_one("SELECT count(*) FROM event_202611")
        .await
        .unwrap()
        .get(0);
    assert_eq!((left, kept), (0, 8));
    // A later start needs nothing of it, and what is left holds from a time on that is told.
    let second = world.start().await;
    world.issue(&second).await;
    second.shutdown().await;
    ledger.shutdown().await;
    world.start().await.shutdown().await;
    assert_eq!(
        world
            .findings_from(Begin::Since(done.verifiable_since))
            .await,
        [""; 0]
    );
    assert!(
        !world.findings().await.is_empty(),
        "a whole verification says that the month is missing"
    );
    assert!(!world.migrate().await.partitions_made.contains(&november()));
}

#[tokio::test]
async fn a_detached_month_is_as_unchangeable_as_before_and_the_auditors_can_read_it() {
    let world = in_december().await;
    world.start().await.shutdown().await;
    detached(&world, november()).await.unwrap();
    for (role, sql, allowed) in [
        ("owner", "UPDATE event_202611 SET time = 0", false),
        ("owner", "DELETE FROM event_202611", false),
        ("owner", "TRUNCATE event_202611", false),
        ("auditor", "SELECT count(*) FROM event_202611", true),
        ("auditor", "DELETE FROM event_202611", false),
        (
            "application",
            "INSERT INTO event_202611 SELECT * FROM event_202611",
            false,
        ),
    ] {
        let done = world.execute_as(role, sql).await;
        assert_eq!(done.is_ok(), allowed, "{role}: {sql}: {done:?}");
    }
    let back = "BEGIN; DROP TRIGGER event_is_never_changed ON event_202611; ALTER TABLE event ATTACH PARTITION event_202611 FOR VALUES IN (202611); COMMIT";
    world.execute(back).await.unwrap();
    assert_eq!(world.holds().await.issued, 1);
}

#[tokio::test]
async fn a_month_that_is_still_needed_is_not_detached() {
    let world = World::postgres();
    let refused = |why: Result<Detached, String>, part: &str| {
        let why = why.unwrap_err();
        assert!(why.contains(part), "{part}: {why}");
    };
    let first = world.start().await;
    world.issue(&first).await;
    refused(detached(&world, november()).await, "is not over");
    world.hands.set(NOON + MONTH);
    world.issue(&first).await;
    refused(
        detached(&world, november()).await,
        "has not ended; restart that daemon",
    );
    first.shutdown().await;
    refused(detached(&world, november()).await, "start a daemon");
    let second = world.start().await;
    refused(
        detached(&world, november().next().next()).await,
        "is not over",
    );
    world.hands.set(NOON + 2 * MONTH);
    world.issue(&second).await;
    second.shutdown().await;
    world.start().await.shutdown().await;
    refused(
        detached(&world, november().next()).await,
        "202611 comes before",
    );
    detached(&world, november()).await.unwrap();
    refused(detached(&world, november()).await, "is detached already");
    refused(
        detached(&world, Period::new(202_001).unwrap()).await,
        "there is no partition",
    );
    detached(&world, november().next()).await.unwrap();
    let file = World::sqlite();
    refused(detached(&file, november()).await, "one file");
}

#[tokio::test]
async fn a_dead_chain_of_a_month_keeps_it_until_it_is_settled() {
    let world = World::postgres();
    let mut forged = world.forge(1, Vec::new());
    let head: RowRef = forged.row(crate::store::ledger::event::Event::Intent(
        world.make_now().intent(),
    ));
    forged.write().await;
    world.hands.set(NOON + MONTH);
    assert!(
        detached(&world, november())
            .await
            .unwrap_err()
            .contains(&head.chain.to_string())
    );
    world.start().await.shutdown().await;
    let done = detached(&world, november()).await.unwrap();
    world.start().await.shutdown().await;
    assert_eq!(
        world
            .findings_from(Begin::Since(done.verifiable_since))
            .await,
        [""; 0]
    );
}

#[tokio::test]
async fn whoever_may_not_is_told_as_whom_to_run_it() {
    let world = in_december().await;
    world.start().await.shutdown().await;
    let lesser = world.as_member_of("auditor").await;
    assert!(matches!(&lesser.location, Location::Postgres(_)));
    let why = detach(&lesser.location, november(), world.hands.now())
        .await
        .unwrap_err()
        .to_string();
    assert!(
        why.contains("is no member of") && why.contains("migrate"),
        "{why}"
    );
}
