//! `verify` finds what is broken, and names it.

use std::sync::Arc;

use rcgen::{KeyUsagePurpose, SanType};

use super::world;
use crate::refusal::{Reason, Refusal};
use crate::store::ledger::event::{ChainId, Event, Intent, Proof, RowRef, Why};
use crate::store::ledger::export::{Format, Selection};
use crate::store::ledger::fixture::{Ca, Forged, IDENTITY, Made, NOON, World, evidence, request};
use crate::store::ledger::location::Location;
use crate::store::ledger::verify::{Begin, TrustedRoots, VerifyOptions};

async fn story() -> World {
    let world = world();
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
    world.drop_triggers().await;
    world.execute(sql).await.unwrap();
    world.findings().await
}

#[tokio::test]
async fn a_changed_body_is_found() {
    let findings = after("UPDATE event SET body = CAST(substr(body, 1, length(body) - 1) || x'00' AS BLOB) WHERE rowid = 5").await;
    assert!(
        findings
            .iter()
            .any(|found| found.contains("seq 4") && found.contains("hash")),
        "{findings:?}"
    );
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
        let findings = after(&format!(
            "UPDATE event SET {column} = {value} WHERE rowid = 4"
        ))
        .await;
        assert_eq!(findings.len(), 1, "{findings:?}");
        assert!(
            findings[0].contains("seq 3") && findings[0].contains(column),
            "{findings:?}"
        );
    }
}

#[tokio::test]
async fn a_changed_hash_is_found() {
    let findings = after("UPDATE event SET hash = zeroblob(32) WHERE rowid = 3").await;
    assert!(
        findings[0].contains("seq 2") && findings[0].contains("hash"),
        "{findings:?}"
    );
}

#[tokio::test]
async fn a_missing_row_is_found() {
    let findings = after("DELETE FROM event WHERE rowid = 7").await;
    assert!(
        findings.iter().any(
            |found| found.contains("seq 7") && found.contains("rows are missing between seq 5")
        ),
        "{findings:?}"
    );
}

#[tokio::test]
async fn a_chain_that_was_cut_short_is_found_once_another_has_named_it() {
    let findings = after("DELETE FROM event WHERE rowid IN (9, 10)").await;
    assert!(
        findings
            .iter()
            .any(|found| found.contains("it names a row that is missing")),
        "{findings:?}"
    );
}

#[tokio::test]
async fn a_missing_chain_is_found() {
    let findings = after("DELETE FROM event WHERE rowid <= 10").await;
    assert_eq!(findings.len(), 1, "{findings:?}");
    assert!(
        findings[0].contains("it names a row that is missing"),
        "{findings:?}"
    );
}

#[tokio::test]
async fn the_first_rows_of_a_chain_cannot_be_missing() {
    let findings = after("DELETE FROM event WHERE rowid <= 2").await;
    assert!(
        findings
            .iter()
            .any(|found| found.contains("the chain does not begin here")),
        "{findings:?}"
    );
}

#[tokio::test]
async fn a_second_outcome_is_found() {
    let world = world();
    let ledger = world.start().await;
    let first = world.open(&ledger).await;
    let intent = first.intent();
    first.issue().await.unwrap();
    let mut second = world.open(&ledger).await;
    let event = Event::Issued {
        intent,
        signature: second.draft.signature.clone(),
        certificate: [0; 32],
    };
    second.draft.serial = world.make(&ledger).serial;
    second.close_as(event).await.unwrap();
    ledger.shutdown().await;
    let findings = world.findings().await;
    assert!(
        findings.iter().any(|found| found.contains("two outcomes")),
        "{findings:?}"
    );
}

#[tokio::test]
async fn an_outcome_of_an_intent_with_another_hash_is_found() {
    let world = world();
    let ledger = world.start().await;
    let open = world.open(&ledger).await;
    let mut intent = open.intent();
    intent.hash = [1; 32];
    let event = Event::Issued {
        intent,
        signature: open.draft.signature.clone(),
        certificate: open.draft.sha256(),
    };
    open.close_as(event).await.unwrap();
    ledger.shutdown().await;
    let findings = world.findings().await;
    assert!(
        findings.iter().any(|found| found.contains("another hash")),
        "{findings:?}"
    );
}

/// What `verify` says of one issuance that was recorded as it is.
async fn of(made: impl FnOnce(&World) -> Made) -> String {
    let world = world();
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
        Made {
            signature: Ca::new().make(now.period(), now).signature,
            ..world.make_now()
        }
    });
    assert!(found.await.contains("the signature is not the issuer's"));
}

#[tokio::test]
async fn a_name_that_is_not_the_identity_is_found() {
    let found = of(|world| Made {
        identity: "spiffe://cluster.local/ns/default/sa/other".into(),
        ..world.make_now()
    });
    assert!(found.await.contains("not the identity"));
}

#[tokio::test]
async fn an_identity_that_the_evidence_does_not_prove_is_found() {
    let other = "spiffe://cluster.local/ns/default/sa/other";
    let found = of(|world| {
        let now = world.hands.now();
        let san = vec![SanType::URI(other.try_into().unwrap())];
        Made {
            identity: other.into(),
            ..world
                .ca
                .make_with(now.period(), now, |params| params.subject_alt_names = san)
        }
    });
    assert!(
        found
            .await
            .contains("the evidence does not prove the identity")
    );
}

#[tokio::test]
async fn a_certificate_that_breaks_a_rule_is_found() {
    type Change = fn(&mut rcgen::CertificateParams);
    let changes: [(&str, Change); 6] = [
        ("exactly one name", |params| {
            params
                .subject_alt_names
                .push(SanType::DnsName("a.example".try_into().unwrap()))
        }),
        ("no critical subject alternative name", |params| {
            params.subject_alt_names.clear()
        }),
        ("may sign certificates", |params| {
            params.key_usages.push(KeyUsagePurpose::KeyCertSign)
        }),
        ("serverAuth and clientAuth", |params| {
            params.extended_key_usages.truncate(1)
        }),
        ("authority key identifier", |params| {
            params.use_authority_key_identifier_extension = false
        }),
        ("outlives its issuer", |params| {
            params.not_after =
                crate::timestamp::Timestamp::from_seconds(NOON + 6 * 31_536_000).date_time();
        }),
    ];
    for (rule, change) in changes {
        let found = of(|world| {
            world
                .ca
                .make_with(world.hands.now().period(), world.hands.now(), change)
        })
        .await;
        assert!(found.contains(rule), "{rule}: {found}");
    }
}

#[tokio::test]
async fn a_certificate_of_an_expired_issuer_is_found() {
    let world = world();
    world.hands.set(NOON + 6 * 31_536_000);
    let ledger = world.start().await;
    let made = world
        .ca
        .make_with(world.hands.now().period(), world.hands.now(), |params| {
            params.not_before = crate::timestamp::Timestamp::from_seconds(NOON).date_time();
            params.not_after = crate::timestamp::Timestamp::from_seconds(NOON + 60).date_time();
        });
    ledger.open_made(made).await.unwrap().issue().await.unwrap();
    ledger.shutdown().await;
    assert!(
        world
            .findings()
            .await
            .join(";")
            .contains("was not valid then")
    );
}

#[tokio::test]
async fn a_certificate_is_held_against_the_issuer_that_its_bytes_name_however_often_the_id_was_named_again()
 {
    let world = world();
    let ledger = world.start().await;
    let open = world.open(&ledger).await;
    for _ in 0..2 {
        ledger
            .reloaded(vec![Ca::new().fact()], [8; 32])
            .await
            .unwrap();
    }
    open.issue().await.unwrap();
    // A call that took its issuer before the reloads and is recorded after them.
    world.issue(&ledger).await;
    ledger.shutdown().await;
    assert_eq!(world.holds().await.issued, 2);
}

#[tokio::test]
async fn an_issuer_that_is_named_only_after_the_intent_is_found() {
    let world = world();
    let ledger = world.start().await;
    let (later, now) = (Ca::new(), world.hands.now());
    let open = ledger
        .open_made(later.make(now.period(), now))
        .await
        .unwrap();
    ledger.reloaded(vec![later.fact()], [8; 32]).await.unwrap();
    open.issue().await.unwrap();
    ledger
        .open_made(later.make(now.period(), now))
        .await
        .unwrap()
        .issue()
        .await
        .unwrap();
    ledger.shutdown().await;
    let findings = world.findings().await;
    assert_eq!(
        findings.len(),
        2,
        "the intent and its certificate, not those that follow: {findings:?}"
    );
    assert!(
        findings[0].contains("named no issuer") && findings[1].contains("cannot be checked"),
        "{findings:?}"
    );
}

#[tokio::test]
async fn an_issuer_renewed_with_its_key_is_the_one_whose_certificate_fits() {
    let world = world();
    let (year, now) = (31_536_000, world.hands.now());
    let ledger = world.start().await;
    let longer = world.ca.renewed(NOON - 60, NOON + 9 * year);
    ledger.reloaded(vec![longer.fact()], [8; 32]).await.unwrap();
    ledger
        .reloaded(
            vec![world.ca.renewed(NOON + year, NOON + 9 * year).fact()],
            [8; 32],
        )
        .await
        .unwrap();
    // The last one named is not valid yet, and the first is outlived.
    let made = longer.make_with(now.period(), now, |params| {
        params.not_after = crate::timestamp::Timestamp::from_seconds(NOON + 6 * year).date_time();
    });
    ledger.open_made(made).await.unwrap().issue().await.unwrap();
    world.issue(&ledger).await;
    ledger.shutdown().await;
    world.holds().await;
}

#[tokio::test]
async fn a_serial_that_is_used_again_in_another_period_is_found() {
    let world = world();
    let made = world.make_now();
    let mut forged = world.forge(1, Vec::new());
    let first = forged.row(Event::Intent(made.intent()));
    forged.row(Event::Issued {
        intent: first,
        signature: made.signature.clone(),
        certificate: made.sha256(),
    });
    world.hands.set(NOON + 9 * 86_400);
    let second = forged.row(Event::Intent(made.intent()));
    forged.row(Event::Issued {
        intent: second,
        signature: made.signature.clone(),
        certificate: made.sha256(),
    });
    forged.row(Event::End);
    forged.write().await;
    let findings = world.findings().await;
    assert_eq!(findings.len(), 1, "{findings:?}");
    assert!(
        findings[0].contains("period 202612")
            && findings[0].contains("does not begin with its period"),
        "{findings:?}"
    );
}

/// What `verify` says of one issuance whose intent is changed.
async fn of_intent(change: impl FnOnce(&mut Intent)) -> String {
    let world = world();
    let ledger = world.start().await;
    let made = world.make_now();
    let mut intent = made.intent();
    change(&mut intent);
    ledger
        .record(made, intent, request(1))
        .await
        .unwrap()
        .issue()
        .await
        .unwrap();
    ledger.shutdown().await;
    world.findings().await.join("; ")
}

#[tokio::test]
async fn what_this_program_cannot_check_is_broken() {
    let found = of_intent(|intent| intent.purpose = "smime".into()).await;
    assert!(
        found.contains("\"smime\" cannot be checked by this program"),
        "{found}"
    );
    let found = of_intent(|intent| {
        intent.evidence = Proof {
            credential: "kerberos".into(),
            ..intent.evidence.clone()
        }
    })
    .await;
    assert!(
        found.contains("\"kerberos\", cannot be checked by this program"),
        "{found}"
    );
}

#[tokio::test]
async fn an_intent_without_outcome_in_a_chain_that_ended_is_found() {
    let world = world();
    let mut forged = world.forge(1, Vec::new());
    forged.row(Event::Intent(world.make_now().intent()));
    forged.row(Event::Intent(world.make_now().intent()));
    forged.row(Event::End);
    forged.write().await;
    let findings = world.findings().await;
    assert_eq!(findings.len(), 2, "each of them: {findings:?}");
    assert!(
        findings[0].contains("seq 2: its chain has ended and it has no outcome"),
        "{findings:?}"
    );
    assert!(
        findings[1].contains("seq 3: its chain has ended and it has no outcome"),
        "{findings:?}"
    );
}

#[tokio::test]
async fn whoever_declares_a_chain_ended_files_its_open_intents() {
    // The dead chain's rows are read before or after those of its successor.
    for (dead, successor) in [(1, 2), (2, 1)] {
        for files in [true, false] {
            let world = world();
            let mut forged = world.forge(dead, Vec::new());
            let head = forged.row(Event::Intent(world.make_now().intent()));
            forged.write().await;
            assert_eq!(world.holds().await.open, 1, "nobody has succeeded it yet");
            let mut forged = world.forge(successor, vec![head]);
            if files {
                let why = Why::from(&Refusal::new(Reason::Stopping, "the process ended"));
                forged.row(Event::Unknown { intent: head, why });
            }
            forged.row(Event::ChainEnded { head });
            forged.write().await;
            let findings = world.findings().await;
            let found = findings
                .iter()
                .filter(|found| found.contains("has ended and it has no outcome"))
                .count();
            assert_eq!(
                (found, findings.len()),
                if files { (0, 0) } else { (1, 1) },
                "{findings:?}"
            );
        }
    }
}

/// What `verify` says of a chain with an issuance, an intent that failed and one that is open, and
/// a row that gives out one of them again.
async fn of_repeat(repeat: impl FnOnce(&mut Forged<'_>, [RowRef; 3]) -> Event) -> String {
    let world = world();
    let mut forged = world.forge(1, Vec::new());
    let issued = forged.issue();
    let failed = forged.row(Event::Intent(world.make_now().intent()));
    forged.row(Event::Failed {
        intent: failed,
        why: Why::process_died(),
    });
    let open = forged.row(Event::Intent(world.make_now().intent()));
    let event = repeat(&mut forged, [issued, failed, open]);
    forged.row(event);
    forged.write().await;
    world.findings().await.join("; ")
}

fn repeated(intent: RowRef) -> Event {
    Event::Repeated {
        intent,
        identity: IDENTITY.into(),
        evidence: Proof::from(&evidence()),
    }
}

#[tokio::test]
async fn a_certificate_may_be_given_out_again_to_its_identity() {
    assert_eq!(of_repeat(|_, [issued, ..]| repeated(issued)).await, "");
}

#[tokio::test]
async fn a_repeat_of_what_was_not_issued_before_is_found() {
    let not_issued = "the intent that it names has not become a certificate";
    assert!(
        of_repeat(|_, [_, failed, _]| repeated(failed))
            .await
            .contains(not_issued)
    );
    assert!(
        of_repeat(|_, [_, _, open]| repeated(open))
            .await
            .contains(not_issued)
    );
    let found = of_repeat(|forged, _| {
        let made = forged.world.make_now();
        let intent = forged.row(Event::Intent(made.intent()));
        forged.row(repeated(intent));
        Event::Issued {
            intent,
            signature: made.signature.clone(),
            certificate: made.sha256(),
        }
    });
    assert!(
        found
            .await
            .contains("before the certificate that it gives out again")
    );
    let found = of_repeat(|_, [issued, ..]| {
        repeated(RowRef {
            hash: [1; 32],
            ..issued
        })
    })
    .await;
    assert!(found.contains("has another hash"), "{found}");
    let found = of_repeat(|_, [issued, ..]| {
        repeated(RowRef {
            chain: ChainId([9; 16]),
            ..issued
        })
    })
    .await;
    assert!(found.contains("does not exist"), "{found}");
}

#[tokio::test]
async fn a_repeat_to_another_identity_is_found() {
    let other = "spiffe://cluster.local/ns/default/sa/other";
    let found = of_repeat(|_, [intent, ..]| Event::Repeated {
        intent,
        identity: other.into(),
        evidence: Proof::from(&evidence()),
    })
    .await;
    assert!(
        found.contains("does not prove the identity") && found.contains("is another identity's"),
        "{found}"
    );
    let theirs = Proof {
        subject: Some("system:serviceaccount:default:other".into()),
        ..Proof::from(&evidence())
    };
    let found = of_repeat(|_, [intent, ..]| Event::Repeated {
        intent,
        identity: other.into(),
        evidence: theirs,
    })
    .await;
    assert!(
        found.contains("is another identity's") && !found.contains("does not prove"),
        "{found}"
    );
}

#[tokio::test]
async fn a_daemon_that_has_lost_its_chain_may_give_out_what_that_chain_recorded() {
    // The lost chain's rows are read before or after those of the new one.
    for (lost, new) in [(1, 2), (2, 1)] {
        let world = world();
        let mut forged = world.forge(lost, Vec::new());
        let issued = forged.issue();
        let head = forged.row(Event::Intent(world.make_now().intent()));
        forged.write().await;
        let mut forged = world.forge(new, vec![head]);
        forged.row(repeated(issued));
        forged.write().await;
        assert_eq!(world.holds().await.repeated, 1);
        let mut forged = world.forge(3, vec![head]);
        forged.row(repeated(head));
        forged.write().await;
        let findings = world.findings().await;
        assert!(
            findings.len() == 1 && findings[0].contains("has not become a certificate"),
            "{findings:?}"
        );
    }
}

/// Whether a row of this ledger that cannot be read keeps anybody from the others.
async fn passed_over(which: &str) -> (World, Vec<String>) {
    let world = story().await;
    world.drop_triggers().await;
    world
        .execute(&format!(
            "UPDATE event SET body = x'ff' WHERE rowid = {which}"
        ))
        .await
        .unwrap();
    let rows = world.rows().await;
    let broken: Vec<String> = rows
        .iter()
        .filter(|row| row.body == [0xff])
        .map(ToString::to_string)
        .collect();
    assert_eq!(broken.len(), 1);
    let (report, _) = world.verify(&VerifyOptions::default()).await;
    assert_eq!(report.rows, rows.len() as u64, "the others are visited");
    assert!(
        report
            .broken
            .iter()
            .any(|found| found.row == broken[0] && found.what.contains("cannot be read")),
        "{:?}",
        report.broken
    );
    let (mut written, mut named) = (Vec::new(), Vec::new());
    let exported = world
        .reader()
        .await
        .export(
            &Selection::default(),
            Format::JsonLines,
            &mut written,
            &mut |error| named.push(error.to_string()),
        )
        .await;
    exported.unwrap();
    assert_eq!(
        (
            written.iter().filter(|octet| **octet == b'\n').count(),
            named.len()
        ),
        (rows.len() - 1, 1)
    );
    assert!(named[0].contains(&broken[0]), "{named:?}");
    (world, broken)
}

#[tokio::test]
async fn a_row_that_cannot_be_read_is_named_and_stops_neither_a_start_nor_an_export_nor_a_verification()
 {
    // Of the first chain: its first row, an intent, an outcome, the unknown one, and its end; and
    // the end of the second, its last row.
    for which in ["1", "4", "5", "7", "10", "20"] {
        let (world, broken) = passed_over(which).await;
        let ledger = world.start().await;
        world.issue(&ledger).await;
        ledger.shutdown().await;
        world.start().await.shutdown().await;
        let since = Begin::Since(world.hands.now());
        for begin in [Begin::FirstRow, since] {
            let findings = world.findings_from(begin).await;
            assert!(
                findings.iter().all(|found| !found.contains("two outcomes")),
                "{which}: {findings:?}"
            );
        }
        let findings = world.findings().await;
        assert!(
            findings.iter().any(|found| found.starts_with(&broken[0])),
            "{which}: {findings:?}"
        );
    }
}

#[tokio::test]
async fn rows_that_no_search_finds_are_counted_and_those_without_a_place_named() {
    let world = story().await;
    let far = if matches!(world.location, Location::Sqlite(_)) {
        i64::MAX
    } else {
        i32::MAX.into()
    };
    let row = |period: i64, chain: &str, seq: i64| {
        format!(
            "INSERT INTO event (period, chain, seq, kind, time, hash, body) SELECT {period}, {chain}, {seq}, kind, time, hash, body FROM event WHERE kind = 'start' ORDER BY body LIMIT 1"
        )
    };
    world
        .execute_without_constraints(&[row(202_611, "x''", i64::MIN)])
        .await;
    assert_eq!(
        world.findings().await,
        [
            "the ledger: it holds 21 rows that are to be read, of which 20 are found by their months and chains"
        ]
    );
    // Of these the search finds the last two, and on one of the databases the first as well.
    world
        .execute_without_constraints(&[
            row(far, "x'01'", 0),
            row(202_611, "x'01'", 5),
            row(202_611, "x''", -1),
        ])
        .await;
    let findings = world.findings().await;
    assert!(
        findings
            .iter()
            .filter(|found| found.contains("its place is none"))
            .count()
            >= 2,
        "{findings:?}"
    );
    assert!(
        findings
            .iter()
            .any(|found| found.starts_with("the ledger: it holds 24 rows")),
        "{findings:?}"
    );
}

#[tokio::test]
async fn an_issuer_is_believed_only_under_a_root_that_is_trusted() {
    let world = story().await;
    let trusted = |ca: &Ca| Some(Arc::new(TrustedRoots::parse(ca.pem().as_bytes()).unwrap()));
    let other = Ca::new();
    let found = async |roots, begin| {
        world
            .verify(&VerifyOptions {
                roots,
                begin,
                ..VerifyOptions::default()
            })
            .await
    };
    let (report, checkpoint) = found(trusted(&world.ca), Begin::FirstRow).await;
    assert_eq!(report.broken, []);
    let [named] = report.issuers.as_slice() else {
        panic!("{:?}", report.issuers)
    };
    assert!(named.id == "default" && trusted(&world.ca).unwrap().has(&named.roots[0]));
    let checkpoint = checkpoint.unwrap();
    assert!(
        checkpoint.is_by(trusted(&world.ca).as_deref())
            && !checkpoint.is_by(trusted(&other).as_deref())
            && !checkpoint.is_by(None)
    );
    let (report, _) = found(trusted(&other), Begin::FirstRow).await;
    assert_eq!(
        report.broken_count, 2,
        "each chain names it: {:?}",
        report.broken
    );
    assert!(
        report.broken.iter().all(|found| found
            .what
            .contains("does not stand under a root that is trusted")),
        "{:?}",
        report.broken
    );
    // Somebody who can write rows names an issuer of his own, and signs with it; also before the
    // time that is taken for granted.
    let mut stranger = World::at(world.location.clone());
    stranger.ca = other;
    let mut forged = stranger.forge(1, Vec::new());
    forged.issue();
    forged.write().await;
    assert_eq!(
        world.findings().await,
        [""; 0],
        "without roots that he has not made"
    );
    world.hands.set(NOON + 3600);
    for begin in [Begin::FirstRow, Begin::Since(world.hands.now())] {
        let (report, _) = found(trusted(&world.ca), begin).await;
        assert_eq!(report.broken_count, 1, "{:?}", report.broken);
    }
    assert!(
        TrustedRoots::parse(b"").is_err()
            && TrustedRoots::parse(b"-----BEGIN CERTIFICATE-----\n!!").is_err()
    );
}
