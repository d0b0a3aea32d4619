//! What a process finds that takes the ledger over.

use super::world;
use crate::refusal::Reason;
use crate::store::ledger::event::Event;
use crate::store::ledger::fixture::{NOON, options, start};
use crate::store::ledger::open_intent::NotOpened;
use crate::store::ledger::{Ledger, LedgerStartError};

#[test]
fn what_a_killed_process_left_open_is_filed_unknown_once() {
    let world = world();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
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
        assert_eq!(world.holds().await.open, 2, "they are counted, and are no failure");
        let ledger = world.start().await;
        let kinds = world.kinds_of_last_chain().await;
        assert_eq!(kinds, ["start", "ceremony", "issuer", "unknown", "unknown", "chain_ended"]);
        ledger.shutdown().await;
        assert_eq!((world.holds().await.open, world.holds().await.unknown), (0, 2));
        world.start().await.shutdown().await;
        assert_eq!(world.kinds_of_last_chain().await, ["start", "ceremony", "issuer", "end"], "nothing is filed twice");
        world.holds().await;
    });
}

#[tokio::test]
async fn every_finished_chain_is_named_once() {
    let world = world();
    for _ in 0..4 {
        let ledger = world.start().await;
        world.issue(&ledger).await;
        ledger.shutdown().await;
    }
    let heads = world.events().await.into_iter().filter_map(|event| match event {
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
    assert!(matches!(refused, Err(NotOpened::Refused(refusal)) if refusal.reason() == Reason::Clock));
    let health = ledger.health(world.hands.now());
    assert!(!health.ready && health.detail.contains("--accept-clock"), "{health:?}");
    assert_eq!(world.kinds().await.len(), 4, "no row is written with a time that is not so");
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
    assert!(world.events().await.iter().any(|event| matches!(event, Event::Clock { recorded } if recorded.seconds() == NOON)));
    let ledger = world.start().await;
    world.issue(&ledger).await;
    ledger.shutdown().await;
    world.holds().await;
}

#[tokio::test]
async fn a_schema_of_a_later_version_is_left_alone() {
    let world = world();
    world.start().await.shutdown().await;
    let later =
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) VALUES (9999, 'later', TRUE, x'00', 0)";
    world.execute(later).await.unwrap();
    let refused = start(&world.location, &world.ca, &world.hands).await;
    assert!(matches!(&refused, Err(LedgerStartError::Corrupt { .. })), "{refused:?}");
}
