//! Copies of a file, put back by somebody who left a write-ahead log beside it, or forgot it.

use std::fs;
use std::path::{Path, PathBuf};

use crate::store::ledger::fixture::{World, start};
use crate::store::ledger::inspection::{Inspection, inspect};
use crate::store::ledger::{LedgerStartError, Location};

fn log(path: &Path) -> PathBuf {
    path.with_file_name("ledger.db-wal")
}

/// A ledger, and copies of file and log at several times of its life.
struct Life {
    world: World,
    copies: tempfile::TempDir,
}

impl Life {
    fn new() -> Self {
        Self {
            world: World::sqlite(),
            copies: tempfile::tempdir().unwrap(),
        }
    }

    /// A life of a daemon that ends as by `kill -9`, a copy of which is kept under that name, and
    /// one that ends well.
    async fn live(&self, name: &str, issuances: usize) {
        let ledger = self.world.start().await;
        for _ in 0..issuances {
            self.world.issue(&ledger).await;
        }
        fs::copy(
            self.world.path(),
            self.copies.path().join(format!("{name}.db")),
        )
        .unwrap();
        fs::copy(
            log(self.world.path()),
            self.copies.path().join(format!("{name}.log")),
        )
        .unwrap();
        ledger.shutdown().await;
        assert!(!log(self.world.path()).exists(), "a clean stop leaves none");
        fs::copy(
            self.world.path(),
            self.copies.path().join(format!("{name}-after.db")),
        )
        .unwrap();
    }

    /// The ledger of a new world with that file, if any, and that log.
    fn put_back(&self, file: Option<&str>, log_of: Option<&str>) -> World {
        let world = World::sqlite();
        if let Some(file) = file {
            fs::copy(self.copies.path().join(format!("{file}.db")), world.path()).unwrap();
        }
        if let Some(log_of) = log_of {
            fs::copy(
                self.copies.path().join(format!("{log_of}.log")),
                log(world.path()),
            )
            .unwrap();
        }
        world
    }
}

async fn damage(world: &World) -> String {
    let Inspection::Sqlite(facts) = inspect(&world.location, false, &world.hands.clock()).await
    else {
        panic!("a file")
    };
    match facts.content {
        None => String::new(),
        Some(content) => content
            .unwrap()
            .damage
            .expect("a small file is read through")
            .join("; "),
    }
}

#[tokio::test]
async fn a_log_that_a_crash_has_left_is_its_files_own() {
    let life = Life::new();
    for (name, issuances) in [("first", 1), ("second", 40), ("third", 300)] {
        life.live(name, issuances).await;
        let world = life.put_back(Some(name), Some(name));
        assert_eq!(damage(&world).await, "");
        let ledger = world.start().await;
        world.issue(&ledger).await;
        ledger.shutdown().await;
        world.holds().await;
    }
}

#[tokio::test]
async fn a_log_that_is_not_its_files_own_is_never_applied() {
    let life = Life::new();
    for (name, issuances) in [("a", 3), ("b", 200), ("c", 3), ("d", 200)] {
        life.live(name, issuances).await;
    }
    let other = Life::new();
    other.live("other", 120).await;
    fs::copy(
        other.copies.path().join("other.log"),
        life.copies.path().join("other.log"),
    )
    .unwrap();
    for (file, log_of) in [
        // An older copy beside a newer log, which grew by much or by little.
        (Some("a"), "c"),
        (Some("a-after"), "d"),
        (Some("b"), "d"),
        (Some("b-after"), "d"),
        // A newer copy beside an older log.
        (Some("b-after"), "a"),
        (Some("c-after"), "b"),
        (Some("c-after"), "a"),
        (Some("d-after"), "c"),
        (Some("d"), "b"),
        // Another ledger's, and one whose file is gone.
        (Some("a-after"), "other"),
        (Some("d-after"), "other"),
        (None, "b"),
    ] {
        let world = life.put_back(file, Some(log_of));
        let before = fs::read(world.path()).ok();
        let said = if file.is_some() {
            damage(&world).await
        } else {
            String::new()
        };
        assert!(
            file.is_none() || said.contains("does not continue it"),
            "{file:?} beside the log of {log_of}: doctor says {said:?}"
        );
        let refused = start(&world.location, &world.ca, &world.hands).await;
        let names_it =
            |cause: &str| cause.contains("ledger.db-wal") && cause.contains("remove the log");
        assert!(
            matches!(&refused, Err(LedgerStartError::Corrupt { cause, .. }) if names_it(cause)),
            "{file:?} beside the log of {log_of}: {refused:?}"
        );
        assert_eq!(
            fs::read(world.path()).ok(),
            before,
            "nothing of it was copied into the file"
        );
        for suffix in ["-wal", "-shm"] {
            let _ = fs::remove_file(format!("{}{suffix}", world.path().display()));
        }
        let ledger = world.start().await;
        world.issue(&ledger).await;
        ledger.shutdown().await;
        world.holds().await;
    }
}

#[tokio::test]
async fn a_file_that_is_damaged_is_not_written_and_doctor_says_so() {
    let world = World::sqlite();
    let ledger = world.start().await;
    for _ in 0..50 {
        world.issue(&ledger).await;
    }
    ledger.shutdown().await;
    let mut octets = fs::read(world.path()).unwrap();
    // A page in the middle, of rows or of an index.
    let page = octets.len() / 4096 / 2 * 4096;
    octets[page..page + 4096].fill(0);
    fs::write(world.path(), &octets).unwrap();
    let refused = start(&world.location, &world.ca, &world.hands).await;
    assert!(
        matches!(&refused, Err(LedgerStartError::Corrupt { cause, .. }) if cause.contains("damaged")),
        "{refused:?}"
    );
    assert!(damage(&world).await.contains("damaged"));
    assert!(matches!(world.location, Location::Sqlite(_)));
}
