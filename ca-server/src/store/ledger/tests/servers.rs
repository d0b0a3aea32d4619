//! What holds of a ledger on a server only: several processes write it, roles divide it, partitions
//! hold it.

use std::time::Duration;

use postgres_cluster::{Cluster, Pooler};
use sqlx::{Executor, PgConnection, Row as _};

use crate::refusal::Reason;
use crate::store::ledger::event::Event;
use crate::store::ledger::fixture::{Ca, NOON, World, options, start};
use crate::store::ledger::open_intent::NotOpened;
use crate::store::ledger::{Ledger, LedgerStartError};

const MONTH: i64 = 31 * 86_400;

/// What a query prints, row by row.
async fn asked(world: &World, sql: &'static str) -> Vec<String> {
    let mut connection = world.superuser().await;
    let rows = sqlx::query(sql).fetch_all(&mut connection).await.unwrap();
    rows.iter().map(|row| row.get::<String, _>(0)).collect()
}

/// The first chain's session ends, and before it is back another process finds the chain without an
/// owner.
async fn take_the_lock(world: &World) -> PgConnection {
    let mut connection = world.superuser().await;
    let chain = sqlx::query("SELECT chain FROM event LIMIT 1")
        .fetch_one(&mut connection)
        .await
        .unwrap()
        .get::<Vec<u8>, _>(0);
    let key = i64::from_be_bytes(chain[..8].try_into().unwrap());
    let end = "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' \
         AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    connection.execute(end).await.unwrap();
    sqlx::query("SELECT pg_advisory_lock($1)")
        .bind(key)
        .execute(&mut connection)
        .await
        .unwrap();
    connection
}

#[tokio::test]
async fn several_processes_write_one_ledger_each_its_own_chain() {
    let world = World::postgres();
    let (first, second, third) = (
        world.start().await,
        world.start().await,
        world.start().await,
    );
    for _ in 0..5 {
        tokio::join!(
            world.issue(&first),
            world.issue(&second),
            world.issue(&third)
        );
    }
    second.shutdown().await;
    world.issue(&first).await;
    let fourth = world.start().await;
    world.issue(&fourth).await;
    for ledger in [first, third, fourth] {
        ledger.shutdown().await;
    }
    let report = world.holds().await;
    assert_eq!((report.chains, report.issued, report.open), (4, 17, 0));
}

#[tokio::test]
async fn a_chain_that_is_alive_is_named_and_not_declared_ended() {
    let world = World::postgres();
    let first = world.start().await;
    let open = world.open(&first).await;
    let second = world.start().await;
    let events = world.events().await;
    assert!(
        matches!(events.last(), Some(Event::Issuer(_))),
        "nothing is filed about the first: {events:?}"
    );
    assert!(
        events
            .iter()
            .any(|event| matches!(event, Event::Start { heads, .. } if heads.len() == 1))
    );
    open.issue().await.unwrap();
    first.shutdown().await;
    second.shutdown().await;
    world.holds().await;
}

#[tokio::test]
async fn whoever_lost_its_session_to_another_withholds_what_was_open_and_begins_anew() {
    let world = World::postgres();
    let first = world.start().await;
    let open = world.open(&first).await;
    let connection = take_the_lock(&world).await;
    let outcome = open.issue_later();
    world
        .until("it begins a new chain", || {
            first.accepting(world.hands.now()).is_ok()
        })
        .await;
    assert_eq!(
        outcome.await.unwrap().unwrap_err().reason(),
        Reason::LedgerDown,
        "the certificate is withheld"
    );
    drop(connection);
    let second = world.start().await;
    world.issue(&first).await;
    world.issue(&second).await;
    first.shutdown().await;
    second.shutdown().await;
    let report = world.holds().await;
    assert_eq!(
        (report.chains, report.issued, report.unknown, report.open),
        (3, 2, 1, 0)
    );
}

#[tokio::test]
async fn a_chain_that_begins_in_the_midst_of_a_life_knows_what_was_reloaded() {
    let world = World::postgres();
    let ledger = world.start().await;
    let second = Ca::new();
    ledger.reloaded(vec![second.fact()], [9; 32]).await.unwrap();
    let connection = take_the_lock(&world).await;
    drop(ledger.open_made(world.make(&ledger)).await);
    world
        .until("it begins a new chain", || {
            ledger.accepting(world.hands.now()).is_ok()
        })
        .await;
    drop(connection);
    let made = second.make(ledger.period(world.hands.now()), world.hands.now());
    ledger.open_made(made).await.unwrap().issue().await.unwrap();
    world.issue(&ledger).await;
    let begun = world
        .events()
        .await
        .into_iter()
        .filter_map(|event| match event {
            Event::Start { config, .. } => Some(config),
            _ => None,
        });
    assert_eq!(begun.collect::<Vec<_>>(), [[5; 32], [9; 32]]);
    ledger.shutdown().await;
    world.start().await.shutdown().await;
    assert_eq!(world.holds().await.issued, 2);
}

#[tokio::test]
async fn a_session_that_ends_while_nobody_takes_over_goes_on_with_its_chain() {
    let world = World::postgres();
    let ledger = world.start().await;
    let open = world.open(&ledger).await;
    world
        .execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'ca-server' AND datname = current_database()",
        )
        .await
        .unwrap();
    open.issue().await.unwrap();
    world.recovers(&ledger).await;
    world.issue(&ledger).await;
    ledger.shutdown().await;
    let report = world.holds().await;
    assert_eq!((report.chains, report.issued, report.unknown), (1, 2, 0));
}

#[tokio::test]
async fn a_clock_that_is_not_the_databases_records_nothing_until_it_is() {
    let world = World::postgres();
    let now: i64 = asked(&world, "SELECT extract(epoch FROM now())::bigint::text").await[0]
        .parse()
        .unwrap();
    world.hands.set(now + 40);
    world.migrate().await;
    let mut options = options(&world.location, &world.ca);
    options.clock_tolerance = Duration::from_secs(30);
    let ledger = Ledger::start(options, world.hands.clock()).await.unwrap();
    let refused = ledger.open_made(world.make(&ledger)).await;
    assert!(
        matches!(&refused, Err(NotOpened::Refused(refusal)) if refusal.reason() == Reason::Clock),
        "{refused:?}"
    );
    assert!(
        world.rows().await.is_empty(),
        "no row is written with a time that is not so"
    );
    world.hands.set(now + 20);
    world.recovers(&ledger).await;
    let open = world.open(&ledger).await;
    world.hands.set(now + 3600);
    let outcome = open.issue_later();
    assert!(
        ledger.accepting(world.hands.now()).is_err()
            && ledger.open_made(world.make_now()).await.is_err()
    );
    assert!(!ledger.health(world.hands.now()).ready);
    world.hands.set(now + 21);
    world.recovers(&ledger).await;
    outcome.await.unwrap().unwrap();
    world.issue(&ledger).await;
    ledger.shutdown().await;
    assert!(
        world
            .rows()
            .await
            .iter()
            .all(|row| row.time / 1_000_000 <= now + 21)
    );
}

/// PgBouncer hands out sessions by the transaction. It takes no settings at a connection's begin,
/// unless it is told to drop them.
#[tokio::test]
async fn behind_a_pooler_that_shares_sessions_nothing_is_written_and_the_remedy_is_said() {
    for dropped in ["", "options,extra_float_digits"] {
        let cluster = Cluster::shared();
        let database = cluster.database();
        let direct = World::at_url(&cluster.url(&database));
        direct.migrate().await;
        let pooler = Pooler::start(cluster, dropped);
        let world = World::at_url(&pooler.url(&database));
        let refused = start(&world.location, &world.ca, &world.hands).await;
        let Err(LedgerStartError::Unavailable { cause, .. }) = &refused else {
            panic!("{dropped:?}: {refused:?}")
        };
        assert!(
            cause.contains("pooler") && cause.contains("name the server itself"),
            "{dropped:?}: {cause}"
        );
        assert!(direct.rows().await.is_empty());
    }
}

#[tokio::test]
async fn a_month_without_a_partition_never_stops_issuing() {
    let world = World::postgres();
    let ledger = world.start().await;
    world.issue(&ledger).await;
    assert!(!ledger.health(world.hands.now()).detail.contains("migrate"));
    world.hands.set(NOON + 24 * MONTH - 20 * 86_400);
    let health = ledger.health(world.hands.now());
    assert!(
        health.ready && health.detail.contains("ca-server migrate"),
        "{health:?}"
    );
    world.hands.set(NOON + 26 * MONTH);
    world.issue(&ledger).await;
    let migrated = world.migrate().await;
    assert_eq!(
        migrated.in_default,
        [world.hands.now().period()],
        "they are named and left there"
    );
    assert!(
        !migrated
            .partitions_made
            .contains(&world.hands.now().period())
            && migrated.partitions_made.len() > 20
    );
    world.issue(&ledger).await;
    world.hands.set(NOON + 28 * MONTH);
    world.issue(&ledger).await;
    ledger.shutdown().await;
    let partitions = asked(
        &world,
        "SELECT DISTINCT tableoid::regclass::text FROM event ORDER BY 1",
    )
    .await;
    assert_eq!(
        partitions,
        ["event_202611", "event_202904", "event_default"]
    );
    assert_eq!(world.holds().await.issued, 4);
}

#[tokio::test]
async fn migrating_again_changes_nothing() {
    let world = World::postgres();
    let again = world.migrate().await;
    assert!(
        again.partitions_made.is_empty() && again.roles_made.is_empty(),
        "{again:?}"
    );
    assert_eq!(
        again.last_partition.map(|period| period.yyyymm()),
        Some(202_811)
    );
}

#[tokio::test]
async fn the_application_adds_and_reads_and_the_auditor_reads() {
    let world = World::postgres();
    let ledger = world.start().await;
    world.issue(&ledger).await;
    ledger.shutdown().await;
    let insert = "INSERT INTO event SELECT period, chain, 1000, kind, time, NULL, NULL, NULL, NULL, NULL, hash, body FROM event LIMIT 1";
    let tries = [
        ("application", "SELECT count(*) FROM event", true),
        ("application", insert, true),
        ("application", "UPDATE event SET time = 0", false),
        ("application", "DELETE FROM event", false),
        ("application", "TRUNCATE event", false),
        ("application", "TRUNCATE event_202611", false),
        (
            "application",
            "INSERT INTO event_202611 SELECT * FROM event",
            false,
        ),
        ("application", "DROP TABLE event", false),
        (
            "application",
            "ALTER TABLE event DISABLE TRIGGER ALL",
            false,
        ),
        ("application", "CREATE TABLE ca_server.other ()", false),
        ("auditor", "SELECT count(*) FROM event", true),
        ("auditor", insert, false),
        ("auditor", "DELETE FROM event", false),
        ("owner", "UPDATE event SET time = 0", false),
        ("owner", "DELETE FROM event", false),
        ("owner", "DELETE FROM event_202611", false),
        ("owner", "TRUNCATE event", false),
        ("owner", "TRUNCATE event_202612", false),
        ("owner", "TRUNCATE event_default", false),
    ];
    for (role, sql, allowed) in tries {
        let done = world.execute_as(role, sql).await;
        assert_eq!(done.is_ok(), allowed, "{role}: {sql}: {done:?}");
    }
}

#[tokio::test]
async fn a_daemon_logs_in_as_less_than_the_owner() {
    let world = World::postgres();
    let lesser = world.as_member_of("application").await;
    let ledger = start(&lesser.location, &world.ca, &world.hands)
        .await
        .unwrap();
    world.issue(&ledger).await;
    ledger.shutdown().await;
    world.holds().await;
    lesser.holds().await;
}

#[tokio::test]
async fn a_database_without_the_schema_says_what_to_run() {
    let world = World::unmigrated();
    let refused = start(&world.location, &world.ca, &world.hands).await;
    assert!(
        matches!(&refused, Err(LedgerStartError::Corrupt { cause, .. }) if cause.contains("ca-server migrate")),
        "{refused:?}"
    );
    let missing = World::at_url(&world.url().replace("?host", "_not_there?host"));
    let refused = start(&missing.location, &world.ca, &world.hands).await;
    assert!(
        matches!(&refused, Err(LedgerStartError::Unavailable { cause, .. }) if cause.contains("does not exist")),
        "{refused:?}"
    );
}
