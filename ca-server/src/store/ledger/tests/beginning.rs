//! What a process finds that takes the ledger over.

use super::world;
use crate::evidence::Evidence;
use crate::refusal::{Reason, Refusal};
use crate::store::ledger::body::decode;
use crate::store::ledger::database::Database;
use crate::store::ledger::event::{ChainId, Event, RowRef, Why};
use crate::store::ledger::fixture::{NOON, evidence, options, request, start};
use crate::store::ledger::migrate::migrate;
use crate::store::ledger::open_intent::NotOpened;
use crate::store::ledger::{
    Begin, Ledger, LedgerReader, LedgerStartError, Logins, MigrationError, StartFact,
};
use crate::timestamp::Timestamp;

#[test]
fn what_a_killed_process_left_open_is_filed_unknown_once() {
    let world = world();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let ledger = world.start().await;
        world.issue(&ledger).await;
        let (first, second) = (world.open(&ledger).await, world.open(&ledger).await);
        world.issue(&ledger).await;
        // What a killed process holds is not dropped.
        std::mem::forget((first, second));
    });
    runtime.shutdown_timeout(std::time::Duration::from_secs(5));
    world.block_on(async {
        assert_eq!(
            world.holds().await.open,
            2,
            "they are counted, and are no failure"
        );
        let ledger = world.start().await;
        let kinds = world.kinds_of_last_chain().await;
        assert_eq!(
            kinds,
            [
                "start",
                "ceremony",
                "issuer",
                "unknown",
                "unknown",
                "chain_ended"
            ]
        );
        ledger.shutdown().await;
        assert_eq!(
            (world.holds().await.open, world.holds().await.unknown),
            (0, 2)
        );
        world.start().await.shutdown().await;
        assert_eq!(
            world.kinds_of_last_chain().await,
            ["start", "ceremony", "issuer", "end"],
            "nothing is filed twice"
        );
        world.holds().await;
    });
}

/// Numbers begin anew in each chain, so two chains have intents at equal places; a successor's
/// chain has outcomes of both.
#[tokio::test]
async fn an_outcome_closes_the_intent_of_its_own_chain_and_no_other_at_the_same_place() {
    let world = world();
    let mut dead = world.forge(1, Vec::new());
    let orphan = dead.row(Event::Intent(world.make_now().intent()));
    dead.write().await;
    let mut heir = world.forge(2, vec![orphan]);
    let open = heir.row(Event::Intent(world.make_now().intent()));
    assert_eq!(open.place, orphan.place);
    heir.row(Event::Unknown {
        intent: orphan,
        why: Why::process_died(),
    });
    heir.row(Event::ChainEnded { head: orphan });
    heir.write().await;
    world.hands.set(NOON + 60);
    world.start().await.shutdown().await;
    let closed = world
        .events()
        .await
        .into_iter()
        .filter_map(|event| event.closes());
    assert_eq!(closed.collect::<Vec<_>>(), [orphan, open]);
    assert_eq!(
        (world.holds().await.open, world.holds().await.unknown),
        (0, 2)
    );
    let since = Timestamp::from_seconds(NOON + 30);
    assert_eq!(
        world.findings_from(Begin::Since(since)).await,
        Vec::<String>::new()
    );
}

#[tokio::test]
async fn an_intent_that_cannot_be_read_is_closed_also_as_the_last_row_of_a_dead_chain() {
    let world = world();
    let mut dead = world.forge(1, Vec::new());
    let orphan = dead.row(Event::Intent(world.make_now().intent()));
    dead.write().await;
    world.drop_triggers().await;
    world
        .execute("UPDATE event SET body = x'ff' WHERE kind = 'intent'")
        .await
        .unwrap();
    world.start().await.shutdown().await;
    let rows = world.rows().await;
    let closed = rows
        .iter()
        .filter_map(|row| decode(&row.body).ok()?.1.closes());
    assert_eq!(
        closed
            .map(|intent| (intent.chain, intent.place))
            .collect::<Vec<_>>(),
        [(orphan.chain, orphan.place)]
    );
}

#[tokio::test]
async fn a_start_that_goes_no_further_than_its_devices_writes_nothing() {
    let world = world();
    world.start().await.shutdown().await;
    let before = world.rows().await.len();
    for _ in 0..3 {
        drop(
            Ledger::prepare(options(&world.location, &world.ca), world.hands.clock())
                .await
                .unwrap(),
        );
    }
    assert_eq!(world.rows().await.len(), before);
    world.start().await.shutdown().await;
    world.holds().await;
}

/// A ledger is named in whole however many chains there were before: a start that named nothing
/// would leave what ended before it unbound.
#[tokio::test]
async fn what_ended_after_many_starts_that_never_ended_is_named_once() {
    let world = world();
    world.start().await.shutdown().await;
    world.start().await.shutdown().await;
    let mut database = Database::writer(&world.location).await.unwrap();
    let mut named: Option<RowRef> = None;
    for number in 0..300_u32 {
        let mut id = [9; 16];
        id[..4].copy_from_slice(&number.to_be_bytes());
        let forged = world.forge_as(ChainId(id), named.into_iter().collect());
        let mut rows = forged.into_rows();
        rows.truncate(1);
        database.insert(&rows).await.unwrap();
        named = Some(rows[0].reference());
    }
    database.close().await.unwrap();
    world.start().await.shutdown().await;
    let heads = world
        .events()
        .await
        .into_iter()
        .rev()
        .find_map(|event| match event {
            Event::Start { heads, .. } => Some(heads),
            _ => None,
        });
    let heads = heads.unwrap();
    assert!(
        heads.contains(&named.unwrap()),
        "the last that nobody named"
    );
    let declared = world
        .events()
        .await
        .into_iter()
        .filter(|event| matches!(event, Event::ChainEnded { .. }))
        .count();
    assert_eq!(declared, 300, "every one of them is dead");
    world.start().await.shutdown().await;
    assert_eq!(
        world.kinds_of_last_chain().await,
        ["start", "ceremony", "issuer", "end"],
        "nothing is filed twice"
    );
}

#[tokio::test]
async fn every_finished_chain_is_named_once() {
    let world = world();
    for _ in 0..4 {
        let ledger = world.start().await;
        world.issue(&ledger).await;
        ledger.shutdown().await;
    }
    let heads = world
        .events()
        .await
        .into_iter()
        .filter_map(|event| match event {
            Event::Start { heads, .. } => Some(heads.len()),
            _ => None,
        });
    assert_eq!(heads.collect::<Vec<_>>(), [0, 1, 1, 1]);
    world.holds().await;
}

#[tokio::test]
async fn a_clock_behind_the_newest_row_starts_and_refuses_until_it_has_caught_up() {
    let world = world();
    world.start().await.shutdown().await;
    world.hands.set(NOON - 60);
    let ledger = world.start().await;
    let refused = ledger.open_made(world.make(&ledger)).await;
    assert!(
        matches!(refused, Err(NotOpened::Refused(refusal)) if refusal.reason() == Reason::Clock)
    );
    let health = ledger.health(world.hands.now());
    assert!(
        !health.ready && health.detail.contains("--accept-clock"),
        "{health:?}"
    );
    assert_eq!(
        world.kinds().await.len(),
        4,
        "no row is written with a time that is not so"
    );
    world.hands.set(NOON - 1);
    world.recovers(&ledger).await;
    world.issue(&ledger).await;
    ledger.shutdown().await;
    world.holds().await;
}

#[tokio::test]
async fn an_accepted_clock_is_recorded_and_need_not_be_accepted_again() {
    let world = world();
    world.start().await.shutdown().await;
    world.hands.set(NOON - 40 * 86_400);
    let mut options = options(&world.location, &world.ca);
    options.accept_clock = true;
    let ledger = Ledger::start(options, world.hands.clock()).await.unwrap();
    world.issue(&ledger).await;
    ledger.shutdown().await;
    assert!(
        world
            .events()
            .await
            .iter()
            .any(|event| matches!(event, Event::Clock { recorded } if recorded.seconds() == NOON))
    );
    let ledger = world.start().await;
    world.issue(&ledger).await;
    ledger.shutdown().await;
    world.holds().await;
}

#[tokio::test]
async fn the_program_before_a_migration_writes_beside_the_one_after_it_unless_the_ledger_says_otherwise()
 {
    let world = world();
    world.start().await.shutdown().await;
    let later = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) VALUES (9999, 'later', TRUE, x'00', 0)";
    world.execute(later).await.unwrap();
    let ledger = world.start().await;
    world.issue(&ledger).await;
    ledger.shutdown().await;
    world.holds().await;
    world
        .execute("INSERT INTO oldest_writer VALUES (9999)")
        .await
        .unwrap();
    let refused = start(&world.location, &world.ca, &world.hands).await;
    let names_both =
        |cause: &str| cause.contains("schema version 9999") && cause.contains("knows 1");
    assert!(
        matches!(&refused, Err(LedgerStartError::Corrupt { cause, .. }) if names_both(cause)),
        "{refused:?}"
    );
    assert!(LedgerReader::open(&world.location).await.is_err());
    let migrated = migrate(&world.location, &Logins::default(), world.hands.now()).await;
    assert!(
        matches!(&migrated, Err(MigrationError::Refused(why)) if names_both(why)),
        "{migrated:?}"
    );
}

#[tokio::test]
async fn what_is_longer_than_a_row_may_be_is_refused_before_and_the_ledger_goes_on() {
    let world = world();
    let ledger = world.start().await;
    let mut intent = world.make_now().intent();
    intent.to_be_signed = vec![0; 65_400];
    assert!(
        ledger
            .record((), intent.clone(), request(1))
            .await
            .is_err_and(|refused| format!("{refused:?}").contains("65,535"))
    );
    let mut facts = vec![world.ca.fact()];
    let StartFact::Issuer { roots, .. } = &mut facts[0] else {
        panic!("an issuer's")
    };
    *roots = vec![vec![0; 1000]; 66];
    assert!(ledger.reloaded(facts.clone(), [9; 32]).await.is_err());
    let evidence = Evidence {
        subject: Some("s".repeat(70_000)),
        ..evidence()
    };
    ledger.refused(
        &Refusal::new(Reason::Lifetime, "too long"),
        request(2),
        None,
        &evidence,
    );
    world.issue(&ledger).await;
    ledger.shutdown().await;
    let mut options = options(&world.location, &world.ca);
    options.facts.extend(facts);
    assert!(matches!(
        Ledger::start(options, world.hands.clock()).await,
        Err(LedgerStartError::Corrupt { .. })
    ));
    let kinds = world.kinds().await;
    assert!(
        kinds.contains(&"dropped".to_owned()) && !kinds.contains(&"refused".to_owned()),
        "what has no row is counted: {kinds:?}"
    );
    assert_eq!(world.holds().await.issued, 1);
}

#[tokio::test]
async fn a_row_that_no_search_would_find_is_refused_by_the_database() {
    let world = world();
    world.start().await.shutdown().await;
    for (column, value) in [
        ("seq", "-1"),
        ("seq", "-9223372036854775808"),
        ("chain", "x''"),
        ("chain", "x'0101'"),
        ("period", "0"),
        ("period", "202613"),
        ("period", "2147483647"),
        ("time", "-1"),
        ("time", "9223372036854775807"),
        ("hash", "x'00'"),
        ("body", "x''"),
        ("body", &format!("x'{}'", "00".repeat(65_536))),
    ] {
        let columns = ["period", "chain", "seq", "kind", "time", "hash", "body"];
        let values = columns.map(|name| match name {
            name if name == column => value,
            "seq" => "1000",
            name => name,
        });
        let insert = format!(
            "INSERT INTO event ({}) SELECT {} FROM event WHERE kind = 'start'",
            columns.join(", "),
            values.join(", ")
        );
        let refused = world.execute(&insert).await.unwrap_err().to_string();
        assert!(
            refused.contains(&format!("event_{column}_")),
            "{column} = {value:.40}: {refused}"
        );
    }
    let longest = format!("x'{}'", "00".repeat(65_535));
    let insert = format!(
        "INSERT INTO event (period, chain, seq, kind, time, hash, body) SELECT period, chain, 1000, kind, time, hash, {longest} FROM event WHERE kind = 'start'"
    );
    world.execute(&insert).await.unwrap();
}
