//! `verify` from a time on, or from where an earlier run stood; and what several processes write at
//! once.

use std::sync::atomic::{AtomicBool, Ordering};

use super::world;
use crate::store::ledger::event::{Event, Proof, RowRef, Why};
use crate::store::ledger::fixture::{Forged, IDENTITY, NOON, World, evidence};
use crate::store::ledger::{Begin, Checkpoint, VerifyOptions};
use crate::timestamp::Timestamp;

fn unknown(intent: RowRef) -> Event {
    Event::Unknown {
        intent,
        why: Why::process_died(),
    }
}

/// The checkpoint of a ledger that holds, written and read back.
async fn checkpoint(world: &World, begin: Begin) -> (u64, Begin) {
    let (report, checkpoint) = world
        .verify(&VerifyOptions {
            begin,
            ..VerifyOptions::default()
        })
        .await;
    assert_eq!(report.broken, []);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("checkpoint");
    let checkpoint = checkpoint.unwrap();
    checkpoint.write(&path).unwrap();
    let read = Checkpoint::read(&path).unwrap().unwrap();
    assert_eq!(read, checkpoint);
    assert_eq!(
        std::fs::read_dir(dir.path()).unwrap().count(),
        1,
        "nothing is left beside it"
    );
    (report.rows, Begin::Checkpoint(Box::new(read)))
}

#[tokio::test]
async fn a_later_run_reads_only_what_came_since() {
    let world = world();
    let mut one = world.forge(1, Vec::new());
    one.issue();
    let open = one.row(Event::Intent(world.make_now().intent()));
    one.write_so_far().await;
    let (rows, begin) = checkpoint(&world, Begin::FirstRow).await;
    assert_eq!(rows, 5);
    // A chain that stands before the first in the order of reading, one after it, and more of the
    // first, also in another month.
    world.forge(0, Vec::new()).write().await;
    world.forge(2, Vec::new()).write().await;
    one.issue();
    world.hands.set(NOON + 30 * 86_400);
    one.issue();
    let late = world.make_now();
    let unclosed = one.row(Event::Intent(late.intent()));
    one.row(Event::Failed {
        intent: open,
        why: Why::process_died(),
    });
    one.write_so_far().await;
    let (rows, begin) = checkpoint(&world, begin).await;
    assert_eq!(rows, 2 + 2 + 2 + 1 + 2 + 2);
    let (rows, begin) = checkpoint(&world, begin).await;
    assert_eq!(rows, 0, "nothing is new");
    one.row(Event::Issued {
        intent: unclosed,
        signature: late.signature.clone(),
        certificate: late.sha256(),
    });
    one.row(Event::End);
    one.write_so_far().await;
    let (rows, begin) = checkpoint(&world, begin).await;
    assert_eq!(rows, 2);
    one.row(Event::Dropped { count: 1 });
    one.write().await;
    let findings = world.findings_from(begin).await;
    assert!(
        findings.len() == 1 && findings[0].contains("rows follow the chain's end"),
        "{findings:?}"
    );
}

/// What a run says that goes on from a good ledger to which something was done.
async fn after(add: impl AsyncFnOnce(&World, &mut Forged<'_>), sql: &str) -> Vec<String> {
    let world = world();
    let mut forged = world.forge(1, Vec::new());
    forged.issue();
    forged.row(Event::Intent(world.make_now().intent()));
    forged.row(Event::Dropped { count: 1 });
    forged.write_so_far().await;
    let (_, begin) = checkpoint(&world, Begin::FirstRow).await;
    add(&world, &mut forged).await;
    forged.write().await;
    world.drop_triggers().await;
    world.execute(sql).await.unwrap();
    world.findings_from(begin).await
}

#[tokio::test]
async fn a_chain_that_is_not_what_it_was_at_the_checkpoint_is_found() {
    let more = async |_: &World, forged: &mut Forged<'_>| {
        forged.issue();
    };
    assert_eq!(after(more, "SELECT 1").await, [""; 0]);
    for (sql, found) in [
        ("DELETE FROM event", "it is missing"),
        ("DELETE FROM event WHERE seq >= 4", "it is missing"),
        (
            "UPDATE event SET hash = zeroblob(32) WHERE seq = 5",
            "not the row that the checkpoint has there",
        ),
        (
            "DELETE FROM event WHERE seq = 6",
            "rows are missing between seq 5",
        ),
        (
            "UPDATE event SET body = CAST(substr(body, 1, length(body) - 1) || x'ff' AS BLOB) WHERE seq = 4",
            "not the intent that the checkpoint",
        ),
        (
            "UPDATE event SET body = CAST(substr(body, 1, length(body) - 1) || x'ff' AS BLOB) WHERE seq = 6",
            "its hash is not",
        ),
    ] {
        let findings = after(more, sql).await;
        assert!(
            findings.iter().any(|finding| finding.contains(found)),
            "{sql}: {findings:?}"
        );
    }
}

#[tokio::test]
async fn what_contradicts_earlier_rows_is_found_by_a_run_that_does_not_read_them() {
    let second_outcome = async |world: &World, forged: &mut Forged<'_>| {
        let rows = world.rows().await;
        let intent = rows.iter().find(|row| row.kind == "intent").unwrap();
        let place = crate::store::ledger::event::Place {
            period: world.hands.now().period(),
            seq: 2,
        };
        let chain = crate::store::ledger::event::ChainId([1; 16]);
        forged.row(unknown(RowRef {
            chain,
            place,
            hash: intent.hash.as_slice().try_into().unwrap(),
        }));
    };
    let findings = after(second_outcome, "SELECT 1").await;
    assert!(
        findings.len() == 1 && findings[0].contains("two outcomes"),
        "{findings:?}"
    );

    let world = world();
    let mut forged = world.forge(1, Vec::new());
    let made = world.make_now();
    let intent = forged.row(Event::Intent(made.intent()));
    forged.row(unknown(intent));
    forged.write_so_far().await;
    let (_, begin) = checkpoint(&world, Begin::FirstRow).await;
    world.execute("DROP INDEX event_serial").await.unwrap();
    let intent = forged.row(Event::Intent(made.intent()));
    forged.row(unknown(intent));
    forged.write().await;
    for begin in [begin, Begin::FirstRow] {
        let findings = world.findings_from(begin).await;
        assert!(
            findings.len() == 1 && findings[0].contains("seq 4: its serial was used before"),
            "{findings:?}"
        );
    }
}

#[tokio::test]
async fn rows_before_a_time_are_taken_for_granted_and_the_links_from_them_are_not() {
    let world = world();
    let mut ended = world.forge(9, Vec::new());
    ended.issue();
    let end = ended.row(Event::End);
    ended.write().await;
    let mut one = world.forge(1, vec![end]);
    one.issue();
    let awaited = world.make_now();
    let open = one.row(Event::Intent(awaited.intent()));
    let other = one.row(Event::Intent(world.make_now().intent()));
    one.row(unknown(other));
    world.hands.set(NOON + 60);
    one.row(Event::Issued {
        intent: open,
        signature: awaited.signature.clone(),
        certificate: awaited.sha256(),
    });
    one.issue();
    world.forge(2, Vec::new()).write().await;
    one.write().await;
    let since = |seconds| Begin::Since(Timestamp::from_seconds(NOON + seconds));
    for (seconds, rows) in [(0, 17), (1, 5), (60, 5), (61, 0)] {
        let (read, begin) = checkpoint(&world, since(seconds)).await;
        assert_eq!(read, rows, "since {seconds} s");
        assert_eq!(checkpoint(&world, begin).await.0, 0);
    }
    world.drop_triggers().await;
    // The identity of an early row is believed; a late row's is not.
    world.execute("UPDATE event SET issuer = 'other' WHERE chain = x'01010101010101010101010101010101' AND seq = 4").await.unwrap();
    assert_eq!(world.findings_from(since(1)).await, [""; 0]);
    world
        .execute(
            "UPDATE event SET issuer = 'other' WHERE time > 1795348800000000 AND kind = 'intent'",
        )
        .await
        .unwrap();
    assert_eq!(world.findings_from(since(1)).await.len(), 1);
    // The last early row is where the late ones begin.
    world.execute("UPDATE event SET hash = zeroblob(32) WHERE chain = x'01010101010101010101010101010101' AND seq = 6").await.unwrap();
    let findings = world.findings_from(since(1)).await;
    assert!(
        findings
            .iter()
            .any(|found| found.contains("its hash is not that of the row before")),
        "{findings:?}"
    );
}

#[tokio::test]
async fn an_interrupted_run_goes_on_where_it_was() {
    let world = world();
    let mut heads = Vec::new();
    // Outcomes and ends are read before the chains that they speak of.
    for id in (1..=40).rev() {
        let mut forged = world.forge(id, Vec::new());
        for _ in 0..200 {
            forged.issue();
        }
        let open = forged.row(Event::Intent(world.make_now().intent()));
        for (intent, head) in std::mem::take(&mut heads) {
            forged.row(unknown(intent));
            forged.row(Event::ChainEnded { head });
        }
        let head = forged.row(Event::Dropped { count: 1 });
        forged.write().await;
        heads.push((open, head));
    }
    let whole = world.holds().await;
    let (mut rows, mut runs, mut begin) = (0, 0, Begin::FirstRow);
    loop {
        // Stopped as soon as one page was judged; a few more may have been read ahead by then, and
        // not all of them.
        let stop = AtomicBool::new(false);
        let options = VerifyOptions {
            begin,
            threads: std::num::NonZeroUsize::MIN,
            ..VerifyOptions::default()
        };
        let mut reader = world.reader().await;
        let verified = reader
            .verify(&options, &stop, |_, _| stop.store(true, Ordering::Relaxed))
            .await
            .unwrap();
        let (report, Some(checkpoint)) = verified else {
            panic!("{verified:?}")
        };
        (rows, runs) = (rows + report.rows, runs + 1);
        if !report.interrupted {
            assert_eq!((report.chains, report.open), (whole.chains, whole.open));
            break;
        }
        assert!(report.rows > 0, "every run gets on");
        begin = Begin::Checkpoint(Box::new(checkpoint));
    }
    assert_eq!(rows, whole.rows);
    assert!(runs > 1, "it was never interrupted");
}

#[tokio::test]
async fn signatures_that_were_left_out_are_said_to_be() {
    let world = world();
    let mut forged = world.forge(1, Vec::new());
    let made = world.make_now();
    let intent = forged.row(Event::Intent(made.intent()));
    let signature = world.make_now().signature;
    let der = crate::x509::lint::certificate(&made.to_be_signed, &signature).unwrap();
    forged.row(Event::Issued {
        intent,
        signature,
        certificate: crate::digest::sha256(&der),
    });
    forged.write().await;
    let findings = world.findings().await;
    assert!(
        findings.len() == 1 && findings[0].contains("the signature is not the issuer's"),
        "{findings:?}"
    );
    let (report, checkpoint) = world
        .verify(&VerifyOptions {
            signatures: false,
            ..VerifyOptions::default()
        })
        .await;
    assert!(
        report.broken.is_empty()
            && report.signatures_skipped
            && !checkpoint.unwrap().has_signatures()
    );
}

#[tokio::test]
async fn a_file_that_is_no_checkpoint_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("checkpoint");
    assert!(Checkpoint::read(&path).unwrap().is_none());
    for text in [
        "",
        "{}",
        r#"{"version": 2}"#,
        r#"{"version": 1, "rows": 1}"#,
    ] {
        std::fs::write(&path, text).unwrap();
        assert!(
            Checkpoint::read(&path)
                .unwrap_err()
                .to_string()
                .contains("no checkpoint"),
            "{text}"
        );
    }
}

/// Two chains of which the second succeeds the first; `write` says what else the second does.
async fn succession(
    order: (u8, u8),
    write: impl Fn(&mut Forged<'_>, RowRef, RowRef),
) -> Vec<String> {
    let world = world();
    let mut dead = world.forge(order.0, Vec::new());
    let open = dead.row(Event::Intent(world.make_now().intent()));
    let head = dead.row(Event::Dropped { count: 1 });
    dead.write().await;
    let mut successor = world.forge(order.1, vec![head]);
    write(&mut successor, open, head);
    successor.write().await;
    world.findings().await
}

#[tokio::test]
async fn only_who_declares_a_chain_ended_may_file_its_intents_and_only_as_unknown() {
    for order in [(1, 2), (2, 1)] {
        let good = succession(order, |chain, open, head| {
            chain.row(unknown(open));
            chain.row(Event::ChainEnded { head });
        });
        assert_eq!(good.await, [""; 0]);
        let failed = succession(order, |chain, open, head| {
            chain.row(Event::Failed {
                intent: open,
                why: Why::process_died(),
            });
            chain.row(Event::ChainEnded { head });
        });
        let failed = failed.await;
        assert!(
            failed.len() == 1 && failed[0].contains("a failure was recorded by another chain"),
            "{failed:?}"
        );
        let undeclared = succession(order, |chain, open, _| {
            chain.row(unknown(open));
        });
        let undeclared = undeclared.await;
        assert!(
            undeclared.len() == 1 && undeclared[0].contains("did not declare ended"),
            "{undeclared:?}"
        );
        let late = succession(order, |chain, open, head| {
            chain.row(Event::ChainEnded { head });
            chain.row(unknown(open));
        });
        let late = late.await;
        assert!(
            late.len() == 1 && late[0].contains("did not declare ended after it"),
            "{late:?}"
        );
        let twice = succession(order, |chain, open, head| {
            chain.row(unknown(open));
            chain.row(unknown(open));
            chain.row(Event::ChainEnded { head });
        });
        let twice = twice.await;
        assert!(
            twice.len() == 1 && twice[0].contains("two outcomes"),
            "{twice:?}"
        );
    }
}

#[tokio::test]
async fn a_chain_is_declared_ended_once_and_its_outcomes_are_not_filed_again() {
    for order in [
        [1, 2, 3],
        [3, 2, 1],
        [2, 1, 3],
        [2, 3, 1],
        [1, 3, 2],
        [3, 1, 2],
    ] {
        let world = world();
        let mut dead = world.forge(order[0], Vec::new());
        let open = dead.row(Event::Intent(world.make_now().intent()));
        let head = dead.row(Event::Dropped { count: 1 });
        dead.write().await;
        for id in &order[1..] {
            let mut successor = world.forge(*id, Vec::new());
            successor.row(unknown(open));
            successor.row(Event::ChainEnded { head });
            successor.write().await;
        }
        let findings = world.findings().await;
        assert_eq!(findings.len(), 2, "{findings:?}");
        assert!(
            findings
                .iter()
                .any(|found| found.contains("its intent has two outcomes")),
            "{findings:?}"
        );
        assert!(
            findings
                .iter()
                .any(|found| found.contains("was declared ended before")),
            "{findings:?}"
        );
    }
}

#[tokio::test]
async fn a_chain_that_is_alive_goes_on_growing_after_it_was_named_and_a_dead_one_does_not() {
    for order in [(1, 2), (2, 1)] {
        let world = world();
        let mut alive = world.forge(order.0, Vec::new());
        alive.issue();
        let head = alive.row(Event::Dropped { count: 1 });
        alive.write_so_far().await;
        let mut other = world.forge(order.1, vec![head]);
        other.write_so_far().await;
        alive.issue();
        let head = alive.row(Event::Dropped { count: 1 });
        alive.write_so_far().await;
        world.holds().await;
        other.row(Event::ChainEnded { head });
        other.write().await;
        let (_, begin) = checkpoint(&world, Begin::FirstRow).await;
        alive.issue();
        alive.write().await;
        let findings = world.findings().await;
        assert!(
            findings.len() == 1 && findings[0].contains("rows follow the end that it names"),
            "{findings:?}"
        );
        let findings = world.findings_from(begin).await;
        assert!(
            findings
                .iter()
                .all(|found| found.contains("rows follow the chain's end"))
                && !findings.is_empty(),
            "{findings:?}"
        );
    }
}

#[tokio::test]
async fn an_outcome_and_the_intents_own_outcome_are_two() {
    for order in [(1, 2), (2, 1)] {
        let world = world();
        let mut paused = world.forge(order.0, Vec::new());
        let made = world.make_now();
        let intent = paused.row(Event::Intent(made.intent()));
        paused.write_so_far().await;
        let mut successor = world.forge(order.1, Vec::new());
        successor.row(unknown(intent));
        successor.row(Event::ChainEnded { head: intent });
        successor.write().await;
        world.holds().await;
        paused.row(Event::Issued {
            intent,
            signature: made.signature.clone(),
            certificate: made.sha256(),
        });
        paused.write().await;
        let findings = world.findings().await;
        assert!(
            findings.iter().any(|found| found.contains("two outcomes")),
            "{findings:?}"
        );
    }
}

#[tokio::test]
async fn a_later_run_looks_up_what_was_issued_before_and_given_out_again_since() {
    let world = world();
    let mut one = world.forge(1, Vec::new());
    let made = world.make_now();
    let (issued, open) = (one.issue(), one.row(Event::Intent(made.intent())));
    one.write_so_far().await;
    let (_, begin) = checkpoint(&world, Begin::FirstRow).await;
    one.row(Event::Issued {
        intent: open,
        signature: made.signature.clone(),
        certificate: made.sha256(),
    });
    for intent in [issued, open] {
        one.row(Event::Repeated {
            intent,
            identity: IDENTITY.into(),
            evidence: Proof::from(&evidence()),
        });
    }
    one.write_so_far().await;
    let (rows, begin) = checkpoint(&world, begin).await;
    assert_eq!(rows, 3);
    let unissued = one.row(Event::Intent(world.make_now().intent()));
    one.row(Event::Repeated {
        intent: unissued,
        identity: IDENTITY.into(),
        evidence: Proof::from(&evidence()),
    });
    one.write().await;
    let findings = world.findings_from(begin).await;
    assert!(
        findings.len() == 1 && findings[0].contains("has not become a certificate"),
        "{findings:?}"
    );
}
