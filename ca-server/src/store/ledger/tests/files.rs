//! What holds of a ledger in a file only.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::refusal::Reason;
use crate::store::ledger::fixture::{World, start};
use crate::store::ledger::open_intent::NotOpened;
use crate::store::ledger::{LedgerReader, LedgerStartError, Location, ReadError};

fn at(path: &Path) -> Location {
    Location::Sqlite(path.to_owned())
}

#[tokio::test]
async fn a_ledger_has_one_writer() {
    let world = World::sqlite();
    let ledger = world.start().await;
    let second = start(&world.location, &world.ca, &world.hands).await;
    assert!(
        matches!(&second, Err(LedgerStartError::Locked(_))),
        "{second:?}"
    );
    ledger.shutdown().await;
    world.start().await.shutdown().await;
    world.holds().await;
}

#[tokio::test]
async fn a_lock_file_that_was_removed_is_noticed_at_the_next_commit_and_made_again() {
    let world = World::sqlite();
    let ledger = world.start().await;
    world.issue(&ledger).await;
    let lock = world.path().with_file_name("ledger.db.lock");
    for replaced in [false, true] {
        std::fs::remove_file(&lock).unwrap();
        if replaced {
            std::fs::write(&lock, "").unwrap();
        }
        let refused = ledger.open_made(world.make(&ledger)).await;
        assert!(
            matches!(&refused, Err(NotOpened::Refused(refusal)) if refusal.detail().contains("lock file")),
            "{refused:?}"
        );
        world.recovers(&ledger).await;
        let second = start(&world.location, &world.ca, &world.hands).await;
        assert!(
            matches!(&second, Err(LedgerStartError::Locked(_))),
            "{second:?}"
        );
        world.issue(&ledger).await;
    }
    ledger.shutdown().await;
    assert_eq!(
        (world.holds().await.chains, world.holds().await.issued),
        (1, 3)
    );
}

#[tokio::test]
async fn whoever_finds_no_lock_file_takes_the_ledger_over_and_the_first_writes_no_more_until_it_is_gone()
 {
    let world = World::sqlite();
    let first = world.start().await;
    let open = world.open(&first).await;
    std::fs::remove_file(world.path().with_file_name("ledger.db.lock")).unwrap();
    let second = world.start().await;
    let outcome = open.issue_later();
    world.goes_down(&first).await;
    world.issue(&second).await;
    assert!(first.open_made(world.make_now()).await.is_err());
    second.shutdown().await;
    world.recovers(&first).await;
    assert_eq!(
        outcome.await.unwrap().unwrap_err().reason(),
        Reason::LedgerDown,
        "the certificate is withheld"
    );
    world.issue(&first).await;
    first.shutdown().await;
    let report = world.holds().await;
    assert_eq!(
        (report.chains, report.issued, report.unknown, report.open),
        (3, 2, 1, 0)
    );
}

#[tokio::test]
async fn two_spellings_of_a_ledger_share_one_lock() {
    let world = World::sqlite();
    let directory = world.path().parent().unwrap();
    let linked = directory.join("linked.db");
    let far = directory.join("far");
    std::fs::create_dir(&far).unwrap();
    std::os::unix::fs::symlink("far/../ledger.db", &linked).unwrap();
    std::os::unix::fs::symlink(directory, far.join("back")).unwrap();
    let spellings = [
        world.path().to_owned(),
        linked,
        far.join("../ledger.db"),
        far.join("back/linked.db"),
    ];
    for first in &spellings {
        let ledger = start(&at(first), &world.ca, &world.hands).await.unwrap();
        for second in &spellings {
            let refused = start(&at(second), &world.ca, &world.hands).await;
            assert!(
                matches!(&refused, Err(LedgerStartError::Locked(path)) if Path::new(path) == second),
                "{first:?}, {second:?}: {refused:?}"
            );
        }
        world.issue(&ledger).await;
        ledger.shutdown().await;
    }
    let mut names: Vec<_> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    names.sort();
    assert_eq!(
        names,
        ["far", "ledger.db", "ledger.db.lock", "linked.db"],
        "no other file was made"
    );
    assert_eq!(world.holds().await.issued, 4);
}

#[tokio::test]
async fn the_files_of_a_ledger_are_their_owners_alone() {
    let world = World::sqlite();
    let ledger = world.start().await;
    world.issue(&ledger).await;
    for suffix in ["", "-wal", "-shm", ".lock"] {
        let mode = std::fs::metadata(format!("{}{suffix}", world.path().display()))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600, "ledger.db{suffix}");
    }
    ledger.shutdown().await;
}

#[tokio::test]
async fn a_file_that_is_no_database_and_a_directory_that_is_missing_are_each_one_sentence() {
    let world = World::sqlite();
    std::fs::write(
        world.path(),
        "this is not a database, and longer than a hundred octets".repeat(20),
    )
    .unwrap();
    let junk = start(&world.location, &world.ca, &world.hands)
        .await
        .unwrap_err()
        .to_string();
    assert!(junk.contains("ledger.db") && !junk.contains('\n'), "{junk}");
    let missing = start(
        &at(&world.path().join("no/such.db")),
        &world.ca,
        &world.hands,
    )
    .await
    .unwrap_err()
    .to_string();
    assert!(
        missing.contains("such.db") && !missing.contains('\n'),
        "{missing}"
    );
}

#[tokio::test]
async fn a_database_file_that_was_taken_away_is_not_made_anew() {
    let world = World::sqlite();
    let ledger = world.start().await;
    for suffix in ["", "-wal", "-shm"] {
        std::fs::remove_file(format!("{}{suffix}", world.path().display())).unwrap();
    }
    assert!(ledger.open_made(world.make(&ledger)).await.is_err());
    world
        .until("it does not find the file", || {
            ledger
                .health(world.hands.now())
                .detail
                .contains("unable to open")
        })
        .await;
    assert!(!world.path().exists());
}

#[tokio::test]
async fn a_schema_that_cannot_be_written_is_not_called_a_newer_one() {
    let world = World::sqlite();
    world.start().await.shutdown().await;
    // What a first start leaves that ends before the ledger's own table is made.
    world
        .execute("DROP TABLE event; DROP TABLE oldest_writer; DELETE FROM _sqlx_migrations")
        .await
        .unwrap();
    let mut other = world.hold().await;
    let refused = start(&world.location, &world.ca, &world.hands).await;
    assert!(
        matches!(&refused, Err(LedgerStartError::Unavailable { .. })),
        "{refused:?}"
    );
    other.run("ROLLBACK").await;
    world.start().await.shutdown().await;
    world.holds().await;
}

#[tokio::test]
async fn a_missing_ledger_is_said_to_be_missing_and_is_not_made() {
    let world = World::sqlite();
    assert!(matches!(
        LedgerReader::open(&world.location).await,
        Err(ReadError::Missing(_))
    ));
    assert!(!world.path().exists());
}
