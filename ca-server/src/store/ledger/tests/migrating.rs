//! A server's schema changes beside the daemons that write: nobody waits for it, whatever it is and
//! however many rows there are.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::{AssertSqlSafe, Executor, Row as _, SqlSafeStr};
use tokio::runtime::Runtime;

use crate::store::ledger::Logins;
use crate::store::ledger::fixture::{NOON, World};
use crate::store::ledger::location::Location;
use crate::store::ledger::migrate::{FENCE, migrate, on_postgres};
use crate::store::ledger::schema::POSTGRES;

/// What a later program's second file could be.
const LATER: &str = "CREATE INDEX event_when ON ONLY event (period, time);
ALTER TABLE event ADD CONSTRAINT event_kind_is_named CHECK (length(kind) > 0) NOT VALID;
ALTER TABLE event ADD COLUMN note text;";

/// Rows of chains that nobody looks at, so that there is something to read.
async fn fill(world: &World, rows: u32, period: u32) {
    let sql = format!(
        "INSERT INTO event (period, chain, seq, kind, time, hash, body) SELECT {period}, decode(repeat('ee', 16), 'hex'), n, 'later', \
         1795348800000000, decode(repeat('00', 32), 'hex'), decode(repeat('00', 300), 'hex') FROM generate_series(1, {rows}) AS n"
    );
    world
        .superuser()
        .await
        .execute(AssertSqlSafe(sql))
        .await
        .unwrap();
}

#[tokio::test]
async fn a_later_migration_keeps_no_insert_waiting_and_the_program_before_it_goes_on() {
    migrates_beside_writers(20_000, Duration::from_secs(1)).await;
}

#[tokio::test]
#[ignore = "measures: on a quiet machine, in release, by hand"]
async fn a_later_migration_of_a_million_rows_keeps_no_insert_waiting_for_150_ms() {
    migrates_beside_writers(1_000_000, Duration::from_millis(150)).await;
}

/// A later migration of so many rows, beside a daemon, a reader in its way, and somebody whose
/// INSERTs wait so long for a lock and no longer.
async fn migrates_beside_writers(rows: u32, patience: Duration) {
    let world = World::postgres();
    let ledger = world.start().await;
    fill(&world, rows, 202_611).await;
    let mut reader = world.superuser().await;
    reader
        .execute("BEGIN; SELECT count(*) FROM event")
        .await
        .unwrap();
    let mut migrations: Vec<Migration> = POSTGRES.iter().cloned().collect();
    migrations.push(Migration::new(
        2,
        "later".into(),
        MigrationType::Simple,
        LATER.into_sql_str(),
        false,
    ));
    let (location, now) = (world.location.clone(), world.hands.now());
    let migrating = std::thread::spawn(move || {
        let Location::Postgres(servers) = &location else {
            panic!("a server's")
        };
        let (logins, migrations) = (Logins::default(), Migrator::with_migrations(migrations));
        let migrated =
            Runtime::new()
                .unwrap()
                .block_on(on_postgres(servers, &logins, now, &migrations));
        migrated.unwrap_or_else(|failed| panic!("{}", failed.at(&location)))
    });
    let mut writer = world.superuser().await;
    writer
        .execute(AssertSqlSafe(format!(
            "SET lock_timeout = '{}ms'",
            patience.as_millis()
        )))
        .await
        .unwrap();
    let done = Arc::new(AtomicBool::new(false));
    let until = done.clone();
    let impatient = tokio::spawn(async move {
        let mut waits = Vec::new();
        while !until.load(Ordering::Relaxed) {
            let insert = "BEGIN; INSERT INTO event (period, chain, seq, kind, time, hash, body) VALUES (202611, \
                          decode(md5(random()::text), 'hex'), 0, 'later', 0, decode(repeat('00', 32), 'hex'), '\\x00'); ROLLBACK";
            let begun = Instant::now();
            writer
                .execute(insert)
                .await
                .expect("nobody holds the table for so long");
            waits.push(begun.elapsed());
        }
        waits
    });
    let mut watcher = world.superuser().await;
    let waits = "SELECT EXISTS (SELECT FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE application_name = 'ca-server migrate' \
                 AND datname = current_database() AND NOT granted)";
    while !watcher.fetch_one(waits).await.unwrap().get::<bool, _>(0) {
        assert!(!migrating.is_finished(), "the reader stands in its way");
        world.issue(&ledger).await;
    }
    for _ in 0..5 {
        world.issue(&ledger).await;
    }
    reader.execute("COMMIT").await.unwrap();
    while !migrating.is_finished() {
        world.issue(&ledger).await;
    }
    assert_eq!(migrating.join().unwrap().version, 2);
    done.store(true, Ordering::Relaxed);
    let waits = impatient.await.unwrap();
    println!(
        "{rows} rows: {} INSERTs beside the migration, the longest {:?}",
        waits.len(),
        waits.iter().max().expect("one at least")
    );
    let whole = "SELECT (SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass('event_when')) \
                 AND (SELECT count(*) FROM pg_inherits WHERE inhparent = to_regclass('event_when')) = \
                 (SELECT count(*) FROM pg_inherits WHERE inhparent = to_regclass('event')) \
                 AND NOT EXISTS (SELECT FROM pg_constraint WHERE NOT convalidated)";
    assert!(
        watcher.fetch_one(whole).await.unwrap().get::<bool, _>(0),
        "every partition has the index and holds the constraint"
    );
    world.issue(&ledger).await;
    world.start().await.shutdown().await;
    ledger.shutdown().await;
    assert!(world.migrate().await.partitions_made.is_empty());
}

#[tokio::test]
async fn months_are_made_beside_a_default_partition_with_rows_and_it_is_not_read_for_each() {
    let world = World::postgres();
    let ledger = world.start().await;
    world.hands.set(NOON + 40 * 31 * 86_400);
    let late = world.hands.now().period();
    world.issue(&ledger).await;
    fill(&world, 5_000, late.yyyymm()).await;
    world.execute("ANALYZE event_default").await.unwrap();
    let mut watcher = world.superuser().await;
    let mut scans = async || {
        let gone = "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE application_name = 'ca-server migrate' AND datname = current_database())";
        while !watcher.fetch_one(gone).await.unwrap().get::<bool, _>(0) {
            tokio::task::yield_now().await;
        }
        let scans = "SELECT seq_scan FROM pg_stat_user_tables WHERE relname = 'event_default'";
        watcher.fetch_one(scans).await.unwrap().get::<i64, _>(0)
    };
    let before = scans().await;
    // What an interrupted run has left.
    world
        .execute(&format!(
            "ALTER TABLE event_default ADD CONSTRAINT {FENCE} CHECK (period <> {})",
            late.next()
        ))
        .await
        .unwrap();
    let migrated = world.migrate().await;
    assert_eq!(
        (
            migrated.in_default.as_slice(),
            migrated.partitions_made.len()
        ),
        ([late].as_slice(), 24)
    );
    let read = scans().await - before;
    assert!(
        read < 6,
        "read from end to end {read} times, for 24 partitions"
    );
    world.issue(&ledger).await;
    world.hands.set(NOON + 41 * 31 * 86_400);
    world.issue(&ledger).await;
    ledger.shutdown().await;
    let of: Vec<String> = watcher
        .fetch_all("SELECT DISTINCT tableoid::regclass::text FROM event ORDER BY 1")
        .await
        .unwrap()
        .iter()
        .map(|row| row.get(0))
        .collect();
    assert_eq!(of, ["event_202611", "event_203005", "event_default"]);
    let fences =
        watcher.fetch_one("SELECT count(*) FROM pg_constraint WHERE conrelid = to_regclass('event_default') AND conname LIKE '%other%'");
    assert_eq!(fences.await.unwrap().get::<i64, _>(0), 0);
}

#[tokio::test]
async fn a_month_that_may_be_written_now_is_left_in_a_default_partition_that_holds_others() {
    let world = World::postgres();
    let ledger = world.start().await;
    world.hands.set(NOON + 40 * 31 * 86_400);
    world.issue(&ledger).await;
    world.hands.set(NOON + 41 * 31 * 86_400);
    let migrated = world.migrate().await;
    assert_eq!(
        migrated.in_default.len(),
        2,
        "the one with rows, and the present one: {migrated:?}"
    );
    assert!(
        !migrated
            .partitions_made
            .contains(&world.hands.now().period())
    );
    world.issue(&ledger).await;
    ledger.shutdown().await;
    assert_eq!(world.holds().await.issued, 2);
}

#[tokio::test]
async fn a_migration_that_fails_halfway_turns_no_row_away() {
    let world = World::postgres();
    let ledger = world.start().await;
    let mut now = NOON + 40 * 31 * 86_400;
    world.hands.set(now);
    world.issue(&ledger).await;
    let month = (0..5).fold(world.hands.now().period(), |month, _| month.next());
    // No table can be made that is named like a type.
    world
        .execute(&format!("CREATE DOMAIN event_{month} AS integer"))
        .await
        .unwrap();
    let Err(failed) = migrate(&world.location, &Logins::default(), world.hands.now()).await else {
        panic!("it is in the way")
    };
    assert!(
        failed.to_string().contains(&format!("event_{month}")),
        "{failed}"
    );
    while world.hands.now().period() != month {
        now += 86_400;
        world.hands.set(now);
    }
    world.issue(&ledger).await;
    ledger.shutdown().await;
    assert_eq!(world.holds().await.issued, 2);
}

/// What is wrong with a later file, by the rule in docs/ledger-format.md.
fn objection(database: &str, sql: &str) -> Option<String> {
    let code: String = sql
        .lines()
        .map(|line| line.split("--").next().unwrap_or_default())
        .collect::<Vec<_>>()
        .join(" ");
    let code = code
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
        .to_uppercase();
    if sql.trim_start().starts_with("-- no-transaction") {
        return Some("it runs outside a transaction".into());
    }
    code.split(';').map(str::trim).find_map(|statement| {
        let has = |words: &str| statement.contains(words);
        let wrong = match () {
            () if [
                "UPDATE EVENT",
                "DELETE FROM EVENT",
                "TRUNCATE",
                "DROP TABLE EVENT",
                "RENAME",
            ]
            .iter()
            .any(|words| has(words)) =>
            {
                "rows and columns stay as they are"
            }
            () if database == "postgres" && has("ADD CONSTRAINT") && !has("NOT VALID") => {
                "a constraint is added NOT VALID"
            }
            () if database == "postgres"
                && has("INDEX")
                && has("CREATE")
                && has(" EVENT ")
                && !has("ON ONLY EVENT") =>
            {
                "an index is made ON ONLY the table"
            }
            () if ["VALIDATE", "SET NOT NULL", "SET DATA TYPE", "CONCURRENTLY"]
                .iter()
                .any(|words| has(words)) =>
            {
                "what reads every row is left to the program"
            }
            () if has("ADD COLUMN")
                && (has("DEFAULT") || has("NOT NULL") || has("CHECK") || has("REFERENCES")) =>
            {
                "a column is added without a default and may be null"
            }
            () if database == "sqlite" && has("CREATE") && has("INDEX") && !has("WHERE") => {
                "an index on a file is made at a daemon's start, and is of few rows"
            }
            () => return None,
        };
        Some(format!("{wrong}: {statement}"))
    })
}

#[test]
fn every_later_migration_keeps_the_rule_by_which_no_writer_waits() {
    assert_eq!(objection("postgres", LATER), None);
    for (database, wrong) in [
        (
            "postgres",
            "ALTER TABLE event ADD CONSTRAINT a CHECK (seq > 0);",
        ),
        ("postgres", "CREATE INDEX event_when ON event (time);"),
        (
            "postgres",
            "CREATE UNIQUE INDEX CONCURRENTLY event_when ON ONLY event (time);",
        ),
        ("postgres", "ALTER TABLE event VALIDATE CONSTRAINT a;"),
        (
            "postgres",
            "ALTER TABLE event ALTER COLUMN kind SET NOT NULL;",
        ),
        ("postgres", "-- no-transaction\nSELECT 1;"),
        (
            "postgres",
            "ALTER TABLE event ADD COLUMN note text NOT NULL DEFAULT now();",
        ),
        ("sqlite", "UPDATE event SET kind = 'x';"),
        ("sqlite", "CREATE INDEX event_when ON event (time);"),
        (
            "sqlite",
            "CREATE TABLE other (a INTEGER); DROP TABLE event; ALTER TABLE other RENAME TO event;",
        ),
    ] {
        assert!(objection(database, wrong).is_some(), "{wrong}");
    }
    for database in ["postgres", "sqlite"] {
        let directory = format!("{}/../migrations/{database}", env!("CARGO_MANIFEST_DIR"));
        let mut files: Vec<_> = std::fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        files.sort();
        assert!(
            files[0]
                .file_name()
                .unwrap()
                .to_string_lossy()
                .starts_with("0001_")
        );
        for file in &files[1..] {
            assert_eq!(
                objection(database, &std::fs::read_to_string(file).unwrap()),
                None,
                "{}",
                file.display()
            );
        }
    }
}
