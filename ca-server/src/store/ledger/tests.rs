//! The ledger's rules, each by its name.

use super::fixture::{Ca, Hands, NOON, start};
use super::options::LedgerStartError;
use super::sqlite::Database;

#[tokio::test]
async fn an_intent_and_its_outcome_are_two_rows_of_one_chain() {
    let (dir, ca, hands) = (tempfile::tempdir().unwrap(), Ca::new(), Hands::at(NOON));
    let path = dir.path().join("ledger.db");
    let ledger = start(&path, &ca, &hands).await.unwrap();
    let made = ca.make(ledger.period(hands.now()), hands.now());
    ledger.open_made(made).await.unwrap().issue().await.unwrap();
    assert!(matches!(start(&path, &ca, &hands).await, Err(LedgerStartError::Locked(_))));
    ledger.shutdown().await;
    let mut database = Database::reader(&path).await.unwrap();
    let rows = database.page(202_611, None, 100).await.unwrap();
    let kinds: Vec<_> = rows.iter().map(|row| row.kind.as_str()).collect();
    assert_eq!(kinds, ["start", "ceremony", "issuer", "intent", "issued", "end"]);
}
