//! What `audit show` and `audit export` read.

use serde_json::Value;

use super::world;
use crate::refusal::{Reason, Refusal};
use crate::spiffe::SpiffeId;
use crate::store::ledger::event::{Event, Proof, Why};
use crate::store::ledger::fixture::{IDENTITY, NOON, evidence, request};
use crate::store::ledger::{Format, LedgerReader, Selection};

#[tokio::test]
async fn an_issuance_is_found_by_serial_and_by_identity_beside_the_running_writer() {
    let world = world();
    let ledger = world.start().await;
    let made = world.make(&ledger);
    ledger
        .open_made(made.clone())
        .await
        .unwrap()
        .issue()
        .await
        .unwrap();
    let mut reader = LedgerReader::open(&world.location).await.unwrap();
    let found = reader.issuances_of_serial(&made.serial).await.unwrap();
    assert!(
        matches!(found.as_slice(), [(_, Some(outcome))] if matches!(outcome.event, Event::Issued { certificate, .. } if certificate == made.sha256()))
    );
    let open = world.open(&ledger).await;
    let found = reader.entries_of_identity(IDENTITY, 10).await.unwrap();
    assert_eq!(
        found
            .iter()
            .map(|(_, outcome)| outcome.is_some())
            .collect::<Vec<_>>(),
        [false, true],
        "the newest first"
    );
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

/// A chain that died with two open intents before others of its chain, and the one that succeeded
/// it late, after other work.
#[tokio::test]
async fn an_outcome_is_found_however_far_from_its_intent_it_stands() {
    let world = world();
    let mut dead = world.forge(7, Vec::new());
    let first = world.make_now();
    let open = dead.row(Event::Intent(first.intent()));
    let closed = world.make_now();
    let far = dead.row(Event::Intent(closed.intent()));
    for _ in 0..600 {
        dead.issue();
    }
    let head = dead.row(Event::Failed {
        intent: far,
        why: Why::process_died(),
    });
    dead.write().await;
    let mut successor = world.forge(3, vec![head]);
    for _ in 0..10 {
        successor.issue();
    }
    successor.write_so_far().await;
    let mut reader = world.reader().await;
    let found = reader.issuances_of_serial(&first.serial).await.unwrap();
    assert!(
        matches!(found.as_slice(), [(_, None)]),
        "nobody has succeeded it yet"
    );
    let outcome = successor.row(Event::Unknown {
        intent: open,
        why: Why::process_died(),
    });
    successor.row(Event::ChainEnded { head });
    successor.issue();
    successor.write().await;
    let mut reader = world.reader().await;
    let found = reader.issuances_of_serial(&first.serial).await.unwrap();
    assert_eq!(found[0].1.as_ref().unwrap().reference(), outcome);
    let found = reader.issuances_of_serial(&closed.serial).await.unwrap();
    assert_eq!(found[0].1.as_ref().unwrap().reference(), head);
    world.holds().await;
}

/// What is written of a ledger with a certificate, a failure and a refusal of one identity, and a
/// certificate a month later.
async fn selected(selection: Selection) -> Vec<String> {
    let world = world();
    let mut forged = world.forge(1, Vec::new());
    forged.issue();
    let intent = forged.row(Event::Intent(world.make_now().intent()));
    forged.row(Event::Refused {
        why: Why::process_died(),
        identity: Some(IDENTITY.into()),
        evidence: world.make_now().intent().evidence,
    });
    world.hands.set(NOON + 3600);
    forged.row(Event::Failed {
        intent,
        why: Why::process_died(),
    });
    world.hands.set(NOON + 30 * 86_400);
    forged.issue();
    forged.row(Event::End);
    forged.write().await;
    world.holds().await;
    let json = world.export(&selection, Format::JsonLines).await;
    let kinds = json
        .lines()
        .map(|line| {
            serde_json::from_str::<Value>(line).unwrap()["kind"]
                .as_str()
                .unwrap()
                .to_owned()
        })
        .collect();
    let table = world.export(&selection, Format::Csv).await;
    let mut table = csv::Reader::from_reader(table.as_bytes());
    let columns: Vec<String> = table
        .records()
        .map(|record| record.unwrap()[0].to_owned())
        .collect();
    assert_eq!(columns, kinds, "both formats have the same rows");
    kinds
}

#[tokio::test]
async fn an_export_has_what_was_selected_and_nothing_else() {
    let at = |seconds| Some(crate::timestamp::Timestamp::from_seconds(NOON + seconds));
    let all = selected(Selection::default()).await;
    assert_eq!(
        all,
        [
            "start", "issuer", "intent", "issued", "intent", "refused", "failed", "period",
            "intent", "issued", "end"
        ]
    );
    let identity = Selection {
        identity: Some(IDENTITY.into()),
        ..Selection::default()
    };
    assert_eq!(
        selected(identity.clone()).await,
        [
            "intent", "issued", "intent", "failed", "refused", "intent", "issued"
        ]
    );
    let other = Selection {
        identity: Some("spiffe://cluster.local/ns/default/sa/other".into()),
        ..Selection::default()
    };
    assert_eq!(selected(other).await, [""; 0]);
    assert_eq!(
        selected(Selection {
            since: at(1),
            until: at(86_400),
            ..identity
        })
        .await,
        ["failed"],
        "its intent is older"
    );
    assert_eq!(
        selected(Selection {
            since: at(1),
            ..Selection::default()
        })
        .await,
        ["failed", "period", "intent", "issued", "end"]
    );
    assert_eq!(
        selected(Selection {
            until: at(0),
            ..Selection::default()
        })
        .await,
        [""; 0]
    );
    let issuer = |id: &str| Selection {
        issuer: Some(id.into()),
        ..Selection::default()
    };
    assert_eq!(
        selected(issuer("default")).await,
        [
            "issuer", "intent", "issued", "intent", "failed", "intent", "issued"
        ]
    );
    assert_eq!(selected(issuer("other")).await, [""; 0]);
    let kinds = Selection {
        kinds: vec!["failed".into(), "refused".into()],
        ..issuer("default")
    };
    assert_eq!(selected(kinds).await, ["failed"]);
}

#[tokio::test]
async fn a_table_has_the_published_columns() {
    let world = world();
    let ledger = world.start().await;
    let made = world.make(&ledger);
    ledger
        .open_made(made.clone())
        .await
        .unwrap()
        .issue()
        .await
        .unwrap();
    let refusal = Refusal::new(Reason::WeakKey, "=HYPERLINK(\"https://evil.example\")");
    ledger.refused(
        &refusal,
        request(9),
        SpiffeId::parse(IDENTITY).as_ref(),
        &evidence(),
    );
    ledger.shutdown().await;
    let text = world.export(&Selection::default(), Format::Csv).await;
    let header = "kind,time,chain,period,seq,hash,request_id,purpose,serial,identity,issuer,profile,credential,evidence_issuer,subject,token,\
         cluster,pod_name,pod_uid,peer,to_be_signed_sha256,intent_chain,intent_period,intent_seq,intent_hash,certificate_sha256,certificate,\
         reason,code,detail,more";
    assert_eq!(text.lines().next().unwrap(), header);
    let mut table = csv::Reader::from_reader(text.as_bytes());
    let rows: Vec<std::collections::HashMap<String, String>> =
        table.deserialize().map(Result::unwrap).collect();
    let (ceremony, intent, issued) = (&rows[1], &rows[3], &rows[4]);
    assert_eq!(
        ceremony["more"],
        format!("{{\"transcript\":\"{}\"}}", "03".repeat(32))
    );
    for row in [intent, issued] {
        assert_eq!(
            (row["serial"].as_str(), row["identity"].as_str()),
            (made.serial.to_string().as_str(), IDENTITY)
        );
        assert_eq!(
            (row["credential"].as_str(), row["pod_name"].as_str()),
            ("jwt", "demo-5d8f7c9b6-x2x7q")
        );
    }
    assert_eq!(
        (issued["intent_seq"].as_str(), intent["intent_seq"].as_str()),
        ("3", "")
    );
    let refused = rows.iter().find(|row| row["kind"] == "refused").unwrap();
    assert_eq!(
        (refused["identity"].as_str(), refused["subject"].as_str()),
        (IDENTITY, "system:serviceaccount:default:demo")
    );
    assert!(
        refused["detail"].starts_with("'=HYPERLINK"),
        "no spreadsheet takes it for a formula: {}",
        refused["detail"]
    );
    use base64::Engine;
    assert_eq!(
        base64::engine::general_purpose::STANDARD
            .decode(&issued["certificate"])
            .unwrap(),
        made.der
    );
}

#[tokio::test]
async fn the_export_has_the_published_fields() {
    let world = world();
    let ledger = world.start().await;
    let made = world.make(&ledger);
    ledger
        .open_made(made.clone())
        .await
        .unwrap()
        .issue()
        .await
        .unwrap();
    let lines = world.export(&Selection::default(), Format::JsonLines).await;
    ledger.shutdown().await;
    let lines: Vec<Value> = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    for line in &lines {
        for field in [
            "kind",
            "time",
            "chain",
            "period",
            "seq",
            "hash",
            "request_id",
        ] {
            assert!(line.get(field).is_some(), "{field} is missing in {line}");
        }
    }
    let (intent, issued) = (&lines[3], &lines[4]);
    assert_eq!(
        (intent["kind"].as_str(), issued["kind"].as_str()),
        (Some("intent"), Some("issued"))
    );
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
    assert_eq!(
        x509_cert::Certificate::load_pem_chain(pem.as_bytes())
            .unwrap()
            .len(),
        1
    );
    assert!(intent.get("certificate").is_none());
}

#[tokio::test]
async fn what_was_given_out_again_is_shown_and_exported_with_its_certificate_and_its_own_evidence()
{
    let world = world();
    let mut forged = world.forge(1, Vec::new());
    let intent = forged.issue();
    let again = Proof {
        token: Some("another token".into()),
        ..Proof::from(&evidence())
    };
    forged.row(Event::Repeated {
        intent,
        identity: IDENTITY.into(),
        evidence: again,
    });
    forged.row(Event::End);
    forged.write().await;
    let found = world
        .reader()
        .await
        .entries_of_identity(IDENTITY, 10)
        .await
        .unwrap();
    assert!(
        matches!(found[0].0.event, Event::Repeated { .. }) && found[0].1.is_none(),
        "the newest first"
    );
    for selection in [
        Selection::default(),
        Selection {
            identity: Some(IDENTITY.into()),
            ..Selection::default()
        },
        Selection {
            issuer: Some("default".into()),
            ..Selection::default()
        },
    ] {
        let lines = world.export(&selection, Format::JsonLines).await;
        let lines: Vec<Value> = lines
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let of = |kind: &str| lines.iter().find(|line| line["kind"] == kind).unwrap();
        let (issued, repeated) = (of("issued"), of("repeated"));
        for field in [
            "serial",
            "identity",
            "issuer",
            "purpose",
            "intent",
            "to_be_signed_sha256",
        ] {
            assert_eq!(issued[field], repeated[field], "{field}");
        }
        assert_eq!(repeated["evidence"]["token"], "another token");
        assert!(repeated.get("certificate").is_none());
        let table = world.export(&selection, Format::Csv).await;
        assert!(
            table
                .lines()
                .any(|line| line.starts_with("repeated,") && line.contains("another token")),
            "{table}"
        );
    }
}
