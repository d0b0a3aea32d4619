//! `verify` finds what is broken, and names it.

use rcgen::{KeyUsagePurpose, SanType};

use crate::store::ledger::event::Event;
use crate::store::ledger::fixture::{Ca, Made, NOON, World};

async fn story() -> World {
    let world = World::new();
    for _ in 0..2 {
        let ledger = world.start().await;
        world.issue(&ledger).await;
        drop(world.open(&ledger).await);
        world.issue(&ledger).await;
        ledger.shutdown().await;
    }
    world.holds().await;
    world
}

/// Does to a good ledger what its triggers forbid, and returns what `verify` says.
async fn after(sql: &str) -> Vec<String> {
    let world = story().await;
    world.execute("DROP TRIGGER event_is_never_updated; DROP TRIGGER event_is_never_deleted").await.unwrap();
    world.execute(sql).await.unwrap();
    world.findings().await
}

#[tokio::test]
async fn a_changed_body_is_found() {
    let findings = after("UPDATE event SET body = CAST(substr(body, 1, length(body) - 1) || x'00' AS BLOB) WHERE rowid = 5").await;
    assert!(findings.iter().any(|found| found.contains("seq 4") && found.contains("hash")), "{findings:?}");
}

#[tokio::test]
async fn a_changed_column_is_found() {
    for (column, value) in [
        ("identity", "'spiffe://cluster.local/ns/default/sa/other'"),
        ("serial", "x'0317130000000000000000000000000000000001'"),
        ("issuer", "NULL"),
        ("profile", "zeroblob(32)"),
        ("time", "time + 1"),
        ("kind", "'intended'"),
    ] {
        let findings = after(&format!("UPDATE event SET {column} = {value} WHERE rowid = 4")).await;
        assert_eq!(findings.len(), 1, "{findings:?}");
        assert!(findings[0].contains("seq 3") && findings[0].contains(column), "{findings:?}");
    }
}

#[tokio::test]
async fn a_changed_hash_is_found() {
    let findings = after("UPDATE event SET hash = zeroblob(32) WHERE rowid = 3").await;
    assert!(findings[0].contains("seq 2") && findings[0].contains("hash"), "{findings:?}");
}

#[tokio::test]
async fn a_missing_row_is_found() {
    let findings = after("DELETE FROM event WHERE rowid = 7").await;
    assert!(findings.iter().any(|found| found.contains("seq 7") && found.contains("rows are missing between seq 5")), "{findings:?}");
}

#[tokio::test]
async fn a_chain_that_was_cut_short_is_found_once_another_has_named_it() {
    let findings = after("DELETE FROM event WHERE rowid IN (9, 10)").await;
    assert!(findings.iter().any(|found| found.contains("it names a row that is missing")), "{findings:?}");
}

#[tokio::test]
async fn a_missing_chain_is_found() {
    let findings = after("DELETE FROM event WHERE rowid <= 10").await;
    assert_eq!(findings.len(), 1, "{findings:?}");
    assert!(findings[0].contains("it names a row that is missing"), "{findings:?}");
}

#[tokio::test]
async fn the_first_rows_of_a_chain_cannot_be_missing() {
    let findings = after("DELETE FROM event WHERE rowid <= 2").await;
    assert!(findings.iter().any(|found| found.contains("the chain does not begin here")), "{findings:?}");
}

#[tokio::test]
async fn a_second_outcome_is_found() {
    let world = World::new();
    let ledger = world.start().await;
    let first = world.open(&ledger).await;
    let intent = first.intent();
    first.issue().await.unwrap();
    let mut second = world.open(&ledger).await;
    let event = Event::Issued { intent, signature: second.draft.signature.clone(), certificate: [0; 32] };
    second.draft.serial = world.make(&ledger).serial;
    second.close_as(event).await.unwrap();
    ledger.shutdown().await;
    let findings = world.findings().await;
    assert!(findings.iter().any(|found| found.contains("two outcomes")), "{findings:?}");
}

#[tokio::test]
async fn an_outcome_of_an_intent_with_another_hash_is_found() {
    let world = World::new();
    let ledger = world.start().await;
    let open = world.open(&ledger).await;
    let mut intent = open.intent();
    intent.hash = [1; 32];
    let event = Event::Issued { intent, signature: open.draft.signature.clone(), certificate: open.draft.sha256() };
    open.close_as(event).await.unwrap();
    ledger.shutdown().await;
    let findings = world.findings().await;
    assert!(findings.iter().any(|found| found.contains("another hash")), "{findings:?}");
}

/// What `verify` says of one issuance that was recorded as it is.
async fn of(made: impl FnOnce(&World) -> Made) -> String {
    let world = World::new();
    let ledger = world.start().await;
    let made = made(&world);
    ledger.open_made(made).await.unwrap().issue().await.unwrap();
    ledger.shutdown().await;
    world.findings().await.join("; ")
}

#[tokio::test]
async fn a_good_certificate_keeps_every_rule() {
    assert_eq!(of(|world| world.make_now()).await, "");
}

#[tokio::test]
async fn a_signature_of_another_issuer_is_found() {
    let found = of(|world| {
        let now = world.hands.now();
        Made { signature: Ca::new().make(now.period(), now).signature, ..world.make_now() }
    });
    assert!(found.await.contains("the signature is not the issuer's"));
}

#[tokio::test]
async fn a_name_that_is_not_the_identity_is_found() {
    let found = of(|world| Made { identity: "spiffe://cluster.local/ns/default/sa/other".into(), ..world.make_now() });
    assert!(found.await.contains("not the identity"));
}

#[tokio::test]
async fn an_identity_that_the_evidence_does_not_prove_is_found() {
    let other = "spiffe://cluster.local/ns/default/sa/other";
    let found = of(|world| {
        let now = world.hands.now();
        let san = vec![SanType::URI(other.try_into().unwrap())];
        Made { identity: other.into(), ..world.ca.make_with(now.period(), now, |params| params.subject_alt_names = san) }
    });
    assert!(found.await.contains("the evidence does not prove the identity"));
}

#[tokio::test]
async fn a_certificate_that_breaks_a_rule_is_found() {
    type Change = fn(&mut rcgen::CertificateParams);
    let changes: [(&str, Change); 6] = [
        ("exactly one name", |params| params.subject_alt_names.push(SanType::DnsName("a.example".try_into().unwrap()))),
        ("no critical subject alternative name", |params| params.subject_alt_names.clear()),
        ("may sign certificates", |params| params.key_usages.push(KeyUsagePurpose::KeyCertSign)),
        ("serverAuth and clientAuth", |params| params.extended_key_usages.truncate(1)),
        ("authority key identifier", |params| params.use_authority_key_identifier_extension = false),
        ("outlives its issuer", |params| {
            params.not_after = crate::timestamp::Timestamp::from_seconds(NOON + 6 * 31_536_000).date_time();
        }),
    ];
    for (rule, change) in changes {
        let found = of(|world| world.ca.make_with(world.hands.now().period(), world.hands.now(), change)).await;
        assert!(found.contains(rule), "{rule}: {found}");
    }
}

#[tokio::test]
async fn a_certificate_of_an_expired_issuer_is_found() {
    let world = World::new();
    world.hands.set(NOON + 6 * 31_536_000);
    let ledger = world.start().await;
    let made = world.ca.make_with(world.hands.now().period(), world.hands.now(), |params| {
        params.not_before = crate::timestamp::Timestamp::from_seconds(NOON).date_time();
        params.not_after = crate::timestamp::Timestamp::from_seconds(NOON + 60).date_time();
    });
    ledger.open_made(made).await.unwrap().issue().await.unwrap();
    ledger.shutdown().await;
    assert!(world.findings().await.join(";").contains("was not valid then"));
}
