//! What `audit show` and `audit export` read.

use serde_json::Value;

use super::world;
use crate::store::ledger::LedgerReader;
use crate::store::ledger::event::Event;
use crate::store::ledger::fixture::IDENTITY;

#[tokio::test]
async fn an_issuance_is_found_by_serial_and_by_identity_beside_the_running_writer() {
    let world = world();
    let ledger = world.start().await;
    let made = world.make(&ledger);
    ledger.open_made(made.clone()).await.unwrap().issue().await.unwrap();
    let mut reader = LedgerReader::open(&world.location).await.unwrap();
    let found = reader.issuances_of_serial(&made.serial).await.unwrap();
    assert!(
        matches!(found.as_slice(), [(_, Some(outcome))] if matches!(outcome.event, Event::Issued { certificate, .. } if certificate == made.sha256()))
    );
    let open = world.open(&ledger).await;
    let found = reader.entries_of_identity(IDENTITY, 10).await.unwrap();
    assert_eq!(found.iter().map(|(_, outcome)| outcome.is_some()).collect::<Vec<_>>(), [false, true], "the newest first");
    drop(open);
    ledger.shutdown().await;
}

#[test]
fn the_outcome_of_an_orphan_is_found_in_the_chain_that_filed_it() {
    let world = world();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let serial = runtime.block_on(async {
        let ledger = world.start().await;
        let made = world.make(&ledger);
        std::mem::forget(ledger.open_made(made.clone()).await.unwrap());
        made.serial
    });
    runtime.shutdown_timeout(std::time::Duration::from_secs(5));
    world.block_on(async {
        world.start().await.shutdown().await;
        let mut reader = LedgerReader::open(&world.location).await.unwrap();
        let found = reader.issuances_of_serial(&serial).await.unwrap();
        assert!(matches!(found.as_slice(), [(_, Some(outcome))] if matches!(outcome.event, Event::Unknown { .. })));
    });
}

#[tokio::test]
async fn the_export_has_the_published_fields() {
    let world = world();
    let ledger = world.start().await;
    let made = world.make(&ledger);
    ledger.open_made(made.clone()).await.unwrap().issue().await.unwrap();
    let mut lines = Vec::new();
    LedgerReader::open(&world.location).await.unwrap().export(&mut lines).await.unwrap();
    ledger.shutdown().await;
    let lines: Vec<Value> = String::from_utf8(lines).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for line in &lines {
        for field in ["kind", "time", "chain", "period", "seq", "hash", "request_id"] {
            assert!(line.get(field).is_some(), "{field} is missing in {line}");
        }
    }
    let (intent, issued) = (&lines[3], &lines[4]);
    assert_eq!((intent["kind"].as_str(), issued["kind"].as_str()), (Some("intent"), Some("issued")));
    for line in [intent, issued] {
        assert_eq!(line["time"], "2026-11-22T12:00:00.000000Z");
        assert_eq!(line["purpose"], "leaf");
        assert_eq!(line["serial"], made.serial.to_string());
        assert_eq!(line["identity"], IDENTITY);
        assert_eq!(line["issuer"], "default");
        assert_eq!(line["profile"], "07".repeat(32));
        assert_eq!(line["evidence"]["credential"], "jwt");
        assert_eq!(line["evidence"]["pod"]["name"], "demo-5d8f7c9b6-x2x7q");
        assert_eq!(line["request_id"], "01".repeat(16));
    }
    assert_eq!(issued["certificate_sha256"], hex::encode(made.sha256()));
    let pem = issued["certificate"].as_str().unwrap();
    assert_eq!(x509_cert::Certificate::load_pem_chain(pem.as_bytes()).unwrap().len(), 1);
    assert!(intent.get("certificate").is_none());
}
