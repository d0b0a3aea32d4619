//! What happens when the database does not take rows.

use sqlx::{Connection, Executor, SqliteConnection};

use crate::refusal::Reason;
use crate::store::ledger::LedgerStartError;
use crate::store::ledger::fixture::{World, start};
use crate::store::ledger::open_intent::NotOpened;

async fn hold_database(world: &World) -> SqliteConnection {
    let mut other = SqliteConnection::connect(world.path.to_str().unwrap()).await.unwrap();
    other.execute("BEGIN IMMEDIATE").await.unwrap();
    other
}

#[tokio::test]
async fn while_another_process_holds_the_database_calls_are_refused_and_outcomes_wait() {
    let world = World::new();
    let ledger = world.start().await;
    let signed = world.open(&ledger).await;
    let mut other = hold_database(&world).await;
    let outcome = signed.issue_later();
    let refused = ledger.open_made(world.make(&ledger)).await;
    assert!(matches!(&refused, Err(NotOpened::Refused(refusal)) if refusal.reason() == Reason::LedgerDown), "{refused:?}");
    world.goes_down(&ledger).await;
    assert!(ledger.accepting(world.hands.now()).is_err(), "known to be down: nobody needs to ask the database");
    assert!(ledger.open_made(world.make(&ledger)).await.is_err());
    assert!(!outcome.is_finished(), "a certificate without a durable outcome is withheld");
    other.execute("ROLLBACK").await.unwrap();
    world.recovers(&ledger).await;
    outcome.await.unwrap().expect("the outcome was kept and recorded");
    world.issue(&ledger).await;
    ledger.shutdown().await;
    let report = world.holds().await;
    assert_eq!((report.intents, report.issued, report.open), (2, 2, 0));
}

#[tokio::test]
async fn a_schema_that_cannot_be_written_is_not_called_a_newer_one() {
    let world = World::new();
    world.start().await.shutdown().await;
    // What a first start leaves that ends before the ledger's own table is made.
    world.execute("DROP TABLE event; DELETE FROM _sqlx_migrations").await.unwrap();
    let mut other = hold_database(&world).await;
    let refused = start(&world.path, &world.ca, &world.hands).await;
    assert!(matches!(&refused, Err(LedgerStartError::Unavailable { .. })), "{refused:?}");
    other.execute("ROLLBACK").await.unwrap();
    world.start().await.shutdown().await;
    world.holds().await;
}

#[tokio::test]
async fn a_reload_that_cannot_be_recorded_is_refused_and_leaves_no_row() {
    let world = World::new();
    let ledger = world.start().await;
    let mut other = hold_database(&world).await;
    assert_eq!(ledger.reloaded(vec![world.ca.fact()], [9; 32]).await.unwrap_err().reason(), Reason::LedgerDown);
    other.execute("ROLLBACK").await.unwrap();
    world.recovers(&ledger).await;
    ledger.shutdown().await;
    assert_eq!(world.kinds().await, ["start", "ceremony", "issuer", "end"]);
}

#[tokio::test]
async fn a_ledger_that_went_back_is_never_written_to_again() {
    let world = World::new();
    let ledger = world.start().await;
    world.issue(&ledger).await;
    let mut other = hold_database(&world).await;
    let waiting = ledger.open_made(world.make(&ledger)).await;
    assert!(waiting.is_err());
    other.execute("DROP TRIGGER event_is_never_deleted; DELETE FROM event WHERE kind = 'issued'; COMMIT").await.unwrap();
    world.until("it knows that rows were lost", || ledger.health(world.hands.now()).detail.contains("went back")).await;
    let refused = ledger.open_made(world.make(&ledger)).await;
    assert!(matches!(refused, Err(NotOpened::Refused(refusal)) if refusal.reason() == Reason::LedgerDown));
    let rows = world.rows().await.len();
    ledger.shutdown().await;
    assert_eq!(world.rows().await.len(), rows);
}

#[tokio::test]
async fn a_database_file_that_was_taken_away_is_not_made_anew() {
    let world = World::new();
    let ledger = world.start().await;
    for suffix in ["", "-wal", "-shm"] {
        std::fs::remove_file(format!("{}{suffix}", world.path.display())).unwrap();
    }
    assert!(ledger.open_made(world.make(&ledger)).await.is_err());
    world.until("it does not find the file", || ledger.health(world.hands.now()).detail.contains("unable to open")).await;
    assert!(!world.path.exists());
}
