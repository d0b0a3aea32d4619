//! What happens when the database does not take rows.

use super::world;
use crate::refusal::Reason;
use crate::store::ledger::open_intent::NotOpened;

#[tokio::test]
async fn while_another_process_holds_the_database_calls_are_refused_and_outcomes_wait() {
    let world = world();
    let ledger = world.start().await;
    let signed = world.open(&ledger).await;
    let mut other = world.hold().await;
    let outcome = signed.issue_later();
    let refused = ledger.open_made(world.make(&ledger)).await;
    assert!(
        matches!(&refused, Err(NotOpened::Refused(refusal)) if refusal.reason() == Reason::LedgerDown),
        "{refused:?}"
    );
    world.goes_down(&ledger).await;
    assert!(
        ledger.accepting(world.hands.now()).is_err(),
        "known to be down: nobody needs to ask the database"
    );
    assert!(ledger.open_made(world.make(&ledger)).await.is_err());
    assert!(
        !outcome.is_finished(),
        "a certificate without a durable outcome is withheld"
    );
    other.run("ROLLBACK").await;
    world.recovers(&ledger).await;
    outcome
        .await
        .unwrap()
        .expect("the outcome was kept and recorded");
    world.issue(&ledger).await;
    ledger.shutdown().await;
    let report = world.holds().await;
    assert_eq!((report.intents, report.issued, report.open), (2, 2, 0));
}

#[tokio::test]
async fn a_reload_that_cannot_be_recorded_is_refused_and_leaves_no_row() {
    let world = world();
    let ledger = world.start().await;
    let mut other = world.hold().await;
    assert_eq!(
        ledger
            .reloaded(vec![world.ca.fact()], [9; 32])
            .await
            .unwrap_err()
            .reason(),
        Reason::LedgerDown
    );
    other.run("ROLLBACK").await;
    world.recovers(&ledger).await;
    ledger.shutdown().await;
    assert_eq!(world.kinds().await, ["start", "ceremony", "issuer", "end"]);
}

#[tokio::test]
async fn a_ledger_that_went_back_is_never_written_to_again() {
    let world = world();
    let ledger = world.start().await;
    world.issue(&ledger).await;
    let mut other = world.hold().await;
    let waiting = ledger.open_made(world.make(&ledger)).await;
    assert!(waiting.is_err());
    other.drop_triggers().await;
    other
        .run("DELETE FROM event WHERE kind = 'issued'; COMMIT")
        .await;
    world
        .until("it knows that rows were lost", || {
            ledger
                .health(world.hands.now())
                .detail
                .contains("went back")
        })
        .await;
    let refused = ledger.open_made(world.make(&ledger)).await;
    assert!(
        matches!(refused, Err(NotOpened::Refused(refusal)) if refusal.reason() == Reason::LedgerDown)
    );
    let rows = world.rows().await.len();
    ledger.shutdown().await;
    assert_eq!(world.rows().await.len(), rows);
}
