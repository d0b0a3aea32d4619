//! What calls rely on while the ledger works.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::world;
use crate::refusal::{Reason, Refusal};
use crate::spiffe::SpiffeId;
use crate::store::ledger::Ledger;
use crate::store::ledger::event::Event;
use crate::store::ledger::export::{Format, Selection};
use crate::store::ledger::fixture::{Ca, IDENTITY, NOON, World, evidence, options, request};
use crate::store::ledger::open_intent::NotOpened;
use crate::store::ledger::options::LedgerObserver;

#[tokio::test]
async fn an_intent_and_its_outcome_are_two_rows_of_one_chain() {
    let world = world();
    let ledger = world.start().await;
    world.issue(&ledger).await;
    ledger.shutdown().await;
    assert_eq!(
        world.kinds().await,
        ["start", "ceremony", "issuer", "intent", "issued", "end"]
    );
    world.holds().await;
}

#[tokio::test]
async fn an_intent_that_is_dropped_is_filed_unknown() {
    let world = world();
    let ledger = world.start().await;
    drop(world.open(&ledger).await);
    // The next intent's rows come after the dropped one's in the same chain.
    world.issue(&ledger).await;
    ledger.shutdown().await;
    assert_eq!(
        world.kinds().await,
        [
            "start", "ceremony", "issuer", "intent", "unknown", "intent", "issued", "end"
        ]
    );
    world.holds().await;
}

#[tokio::test]
async fn a_caller_that_goes_away_while_its_intent_is_queued_leaves_none_open() {
    let world = world();
    let ledger = world.start().await;
    for _ in 0..50 {
        let call = tokio::spawn({
            let (ledger, made) = (ledger.clone(), world.make(&ledger));
            async move { ledger.open_made(made).await.map(drop) }
        });
        tokio::task::yield_now().await;
        call.abort();
    }
    world.issue(&ledger).await;
    ledger.shutdown().await;
    let report = world.holds().await;
    assert_eq!(
        (report.open, report.intents),
        (0, report.issued + report.unknown)
    );
}

#[tokio::test]
async fn a_failed_or_unknown_intent_gives_its_refusal_back_when_it_is_recorded() {
    let world = world();
    let ledger = world.start().await;
    for (refusal, unknown) in [(Reason::DeviceDown, false), (Reason::Deadline, true)] {
        let recorded = world.open(&ledger).await;
        let refusal = Refusal::new(refusal, "as told");
        let unsigned = if unknown {
            recorded.unknown(refusal.clone())
        } else {
            recorded.failed(refusal.clone())
        };
        assert_eq!(
            ledger.close(Err(unsigned)).await.unwrap_err().reason(),
            refusal.reason()
        );
    }
    assert_eq!(
        world.kinds().await[3..],
        ["intent", "failed", "intent", "unknown"]
    );
    ledger.shutdown().await;
    world.holds().await;
}

#[tokio::test]
async fn a_shutdown_files_what_is_open_and_ends_the_chain() {
    let world = world();
    let ledger = world.start().await;
    let stuck = world.open(&ledger).await;
    ledger.shutdown().await;
    assert_eq!(world.kinds().await[3..], ["intent", "unknown", "end"]);
    assert_eq!(
        stuck.issue().await.unwrap_err().reason(),
        Reason::Stopping,
        "a late certificate is withheld"
    );
    let refused = ledger.open_made(world.make(&ledger)).await;
    assert!(
        matches!(refused, Err(NotOpened::Refused(refusal)) if refusal.reason() == Reason::Stopping)
    );
    world.holds().await;
}

#[tokio::test]
async fn a_serial_is_never_recorded_twice() {
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
    assert!(matches!(
        ledger.open_made(made).await,
        Err(NotOpened::Refused(_))
    ));
    world.recovers(&ledger).await;
    world.issue(&ledger).await;
    ledger.shutdown().await;
    world.holds().await;
}

#[tokio::test]
async fn more_intents_than_permits_are_refused_as_overload() {
    let world = world();
    let mut options = options(&world.location, &world.ca);
    options.capacity = 2;
    let ledger = Ledger::start(options, world.hands.clock()).await.unwrap();
    let (first, second) = (world.open(&ledger).await, world.open(&ledger).await);
    let third = ledger.open_made(world.make(&ledger)).await;
    assert!(
        matches!(third, Err(NotOpened::Refused(refusal)) if refusal.reason() == Reason::Overloaded)
    );
    first.issue().await.unwrap();
    second.issue().await.unwrap();
    world.issue(&ledger).await;
}

#[tokio::test]
async fn a_new_month_begins_with_a_row_that_names_the_last_of_the_old_one() {
    let world = world();
    let ledger = world.start().await;
    world.issue(&ledger).await;
    let over = world.open(&ledger).await;
    let late = world.make(&ledger);
    world.hands.set(NOON + 9 * 86_400);
    let moved = ledger.open_made(late).await;
    assert!(
        matches!(moved, Err(NotOpened::PeriodMoved(_, period)) if period.yyyymm() == 202_612),
        "it must be drafted again"
    );
    over.issue().await.unwrap();
    world.issue(&ledger).await;
    ledger.shutdown().await;
    let kinds = world.kinds().await;
    assert_eq!(
        kinds[5..],
        ["intent", "period", "issued", "intent", "issued", "end"],
        "the outcome stands in the period of its writing"
    );
    world.holds().await;
}

#[tokio::test]
async fn nothing_is_issued_while_the_clock_is_more_than_two_seconds_behind_the_chain() {
    let world = world();
    let ledger = world.start().await;
    let open = world.open(&ledger).await;
    world.hands.set(NOON - 3);
    let refused = ledger.open_made(world.make(&ledger)).await;
    assert!(
        matches!(refused, Err(NotOpened::Refused(refusal)) if refusal.reason() == Reason::Clock)
    );
    assert!(!ledger.health(world.hands.now()).ready);
    open.issue()
        .await
        .expect("what was signed is recorded all the same");
    world.hands.set(NOON - 2);
    world.issue(&ledger).await;
    ledger.shutdown().await;
    world.holds().await;
}

struct Counting(AtomicUsize, AtomicUsize);

impl LedgerObserver for Counting {
    fn committed(&self, rows: usize, _: Duration) {
        self.0.fetch_add(1, Ordering::Relaxed);
        self.1.fetch_add(rows, Ordering::Relaxed);
    }
    fn queue_depth(&self, _: usize) {}
    fn dropped(&self, _: u64) {}
    fn up(&self, _: bool) {}
    fn searched(&self, _: Duration) {}
    fn kept_up(&self, _: Duration) {}
}

/// One that falls over when a commit is told to it.
struct Falling;

impl LedgerObserver for Falling {
    fn committed(&self, _: usize, _: Duration) {
        panic!("an observer that falls over");
    }
    fn queue_depth(&self, _: usize) {}
    fn dropped(&self, _: u64) {}
    fn up(&self, _: bool) {}
    fn searched(&self, _: Duration) {}
    fn kept_up(&self, _: Duration) {}
}

#[tokio::test]
async fn a_writer_that_panics_is_noticed_and_nobody_waits_for_it() {
    let world = world();
    let mut options = options(&world.location, &world.ca);
    options.observer = Arc::new(Falling);
    let ledger = Ledger::start(options, world.hands.clock()).await.unwrap();
    let refused = ledger.open_made(world.make(&ledger)).await;
    assert!(
        matches!(refused, Err(NotOpened::Refused(refusal)) if refusal.reason() == Reason::Stopping)
    );
    tokio::time::timeout(Duration::from_secs(60), ledger.ended())
        .await
        .expect("it is told");
    assert!(!ledger.health(world.hands.now()).ready);
    ledger.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_calls_share_batches() {
    let world = Arc::new(world());
    let counting = Arc::new(Counting(AtomicUsize::new(0), AtomicUsize::new(0)));
    let mut options = options(&world.location, &world.ca);
    options.observer = counting.clone();
    let ledger = Ledger::start(options, world.hands.clock()).await.unwrap();
    let made: Vec<_> = (0..1000).map(|_| world.make(&ledger)).collect();
    let calls = made.into_iter().map(|made| {
        let ledger = ledger.clone();
        tokio::spawn(async move { ledger.open_made(made).await.unwrap().issue().await.unwrap() })
    });
    for call in calls.collect::<Vec<_>>() {
        call.await.unwrap();
    }
    ledger.shutdown().await;
    let (batches, rows) = (
        counting.0.load(Ordering::Relaxed),
        counting.1.load(Ordering::Relaxed),
    );
    assert_eq!(rows, 2001);
    assert!(batches <= 200, "{rows} rows took {batches} commits");
    assert_eq!(world.holds().await.issued, 1000);
}

#[tokio::test]
async fn an_authenticated_callers_refusal_has_a_row_soon() {
    let world = world();
    let ledger = world.start().await;
    let identity = SpiffeId::parse(IDENTITY);
    ledger.refused(
        &Refusal::new(Reason::WeakKey, "RSA with 1024 bits"),
        request(9),
        identity.as_ref(),
        &evidence(),
    );
    tokio::time::timeout(Duration::from_secs(60), async {
        while world.kinds().await.last().map(String::as_str) != Some("refused") {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .expect("the row is there, and nothing else happened to bring it");
    ledger.shutdown().await;
    world.holds().await;
}

#[tokio::test]
async fn a_burst_of_refusals_does_not_wait_for_a_tick_each_batch() {
    let world = world();
    let (ledger, accounts) = (world.start().await, AtomicUsize::new(0));
    let refusal = Refusal::new(Reason::Lifetime, "too long");
    let filed = async |count: usize, rows: usize| {
        for _ in 0..count {
            ledger.refused(
                &refusal,
                request(1),
                Some(&account(accounts.fetch_add(1, Ordering::Relaxed) / 10)),
                &evidence(),
            );
        }
        let began = Instant::now();
        while world.rows().await.len() < rows {
            assert!(
                began.elapsed() < Duration::from_secs(60),
                "they are never filed"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        began.elapsed()
    };
    // One batch, which may wait for one tick; then as many as fill twelve.
    let one = filed(200, 200).await.max(Duration::from_millis(250));
    let twelve = filed(3000, 3200).await;
    assert!(twelve < one * 8, "{twelve:?}, one batch took {one:?}");
    ledger.shutdown().await;
    assert_eq!(world.holds().await.refusals, 3200);
}

#[tokio::test]
async fn a_full_queue_drops_refusals_and_a_row_counts_them() {
    let world = world();
    let ledger = world.start().await;
    let refusal = Refusal::new(Reason::Lifetime, "too long");
    // On one thread the writer cannot drain between these.
    for number in 0..5000 {
        ledger.refused(
            &refusal,
            request(1),
            Some(&account(number / 10)),
            &evidence(),
        );
    }
    ledger.shutdown().await;
    let events = world.events().await;
    let kept = events
        .iter()
        .filter(|event| matches!(event, Event::Refused { .. }))
        .count();
    let dropped: u64 = events
        .iter()
        .map(|event| {
            if let Event::Dropped { count } = event {
                *count
            } else {
                0
            }
        })
        .sum();
    assert_eq!((kept, dropped), (4096, 904));
}

#[tokio::test]
async fn refusals_before_authentication_are_counted_by_reason_and_network() {
    let world = world();
    let ledger = world.start().await;
    let count = |reason, peer: &str| {
        ledger.refused_before_authentication(reason, Some(peer.parse::<IpAddr>().unwrap()))
    };
    count(Reason::BadCredentials, "10.1.2.3");
    count(Reason::BadCredentials, "10.1.2.250");
    count(Reason::NoCredentials, "10.1.2.250");
    count(Reason::BadCredentials, "::ffff:10.1.2.9");
    count(Reason::BadCredentials, "2001:db8:1:2ff::1");
    count(Reason::BadCredentials, "2001:db8:1:200::2");
    ledger.refused_before_authentication(Reason::BadCredentials, None);
    world.hands.set(NOON + 10);
    world.issue(&ledger).await;
    let mut groups: Vec<_> = world
        .groups()
        .await
        .into_iter()
        .map(|group| (group.prefix, group.reason, group.count))
        .collect();
    groups.sort();
    let expected = [
        ("10.1.2.0/24", "bad_credentials", 3),
        ("10.1.2.0/24", "no_credentials", 1),
        ("2001:db8:1:200::/56", "bad_credentials", 2),
        ("unknown", "bad_credentials", 1),
    ];
    assert_eq!(
        groups,
        expected.map(|(prefix, reason, count)| (prefix.to_owned(), reason.to_owned(), count))
    );
    ledger.shutdown().await;
}

#[tokio::test]
async fn a_thousand_groups_are_kept_and_the_rest_is_other() {
    let world = world();
    let ledger = world.start().await;
    for number in 0..1500_u32 {
        ledger.refused_before_authentication(
            Reason::BadCredentials,
            Some(IpAddr::from((number << 8).to_be_bytes())),
        );
    }
    ledger.shutdown().await;
    let groups = world.groups().await;
    assert_eq!(groups.len(), 1001);
    assert_eq!(
        groups
            .iter()
            .filter(|group| group.prefix == "other")
            .map(|group| group.count)
            .sum::<u64>(),
        500
    );
}

#[tokio::test]
async fn a_reload_is_recorded_with_its_facts() {
    let world = world();
    let ledger = world.start().await;
    ledger
        .reloaded(vec![Ca::new().fact()], [8; 32])
        .await
        .unwrap();
    ledger.shutdown().await;
    assert_eq!(world.kinds().await[3..], ["reload", "issuer", "end"]);
    world.holds().await;
}

#[tokio::test]
async fn a_row_can_be_neither_changed_nor_removed() {
    let world = world();
    let ledger = world.start().await;
    world.issue(&ledger).await;
    for sql in [
        "UPDATE event SET time = 0",
        "DELETE FROM event",
        "DELETE FROM event WHERE kind = 'issued'",
    ] {
        let error = world.execute(sql).await.unwrap_err().to_string();
        assert!(error.contains("append-only"), "{error}");
    }
    ledger.shutdown().await;
    world.holds().await;
}

#[tokio::test]
async fn rows_are_stamped_by_the_clock_that_was_given() {
    let world = world();
    let ledger = world.start().await;
    world.hands.set(NOON + 60);
    world.issue(&ledger).await;
    let times: Vec<i64> = world
        .rows()
        .await
        .iter()
        .map(|row| row.time / 1_000_000 - NOON)
        .collect();
    assert_eq!(times, [0, 0, 0, 60, 60]);
}

#[tokio::test]
async fn a_certificate_goes_out_again_when_that_is_durable_and_not_otherwise() {
    let world = world();
    let ledger = world.start().await;
    let open = world.open(&ledger).await;
    let intent = open.intent();
    open.issue().await.unwrap();
    ledger
        .file_repeat(intent, IDENTITY.into(), &evidence(), request(2))
        .await
        .unwrap();
    assert_eq!(world.kinds().await[3..], ["intent", "issued", "repeated"]);
    world.hands.set(NOON - 3);
    let refused = ledger
        .file_repeat(intent, IDENTITY.into(), &evidence(), request(3))
        .await;
    assert_eq!(refused.unwrap_err().reason(), Reason::Clock);
    world.hands.set(NOON);
    ledger.shutdown().await;
    let refused = ledger
        .file_repeat(intent, IDENTITY.into(), &evidence(), request(4))
        .await;
    assert_eq!(refused.unwrap_err().reason(), Reason::Stopping);
    assert_eq!(world.kinds().await[6..], ["end"]);
    assert_eq!(world.holds().await.repeated, 1);
}

/// One of many identities.
fn account(number: usize) -> SpiffeId {
    SpiffeId::parse(&format!("spiffe://cluster.local/ns/default/sa/{number}")).unwrap()
}

/// Rows of their own, and what groups count, of an identity for a reason.
async fn filed(world: &World, identity: &SpiffeId, reason: Reason) -> (usize, u64) {
    let (identity, reason) = (Some(identity.to_string()), reason.as_str());
    let (mut rows, mut counted) = (0, 0);
    for event in world.events().await {
        match event {
            Event::Refused {
                identity: whose,
                why,
                ..
            } if whose == identity && why.reason == reason => rows += 1,
            Event::RefusedGroup(group) if group.identity == identity && group.reason == reason => {
                counted += group.count
            }
            _ => {}
        }
    }
    (rows, counted)
}

#[tokio::test]
async fn an_identity_that_is_refused_again_and_again_has_ten_rows_in_ten_seconds_and_a_count() {
    let world = world();
    let ledger = world.start().await;
    let (greedy, other) = (account(1), account(2));
    let (lifetime, weak) = (
        Refusal::new(Reason::Lifetime, "too long"),
        Refusal::new(Reason::WeakKey, "RSA with 1024 bits"),
    );
    for _ in 0..5000 {
        ledger.refused(&lifetime, request(1), Some(&greedy), &evidence());
    }
    for refusal in [&lifetime, &weak] {
        ledger.refused(refusal, request(2), Some(&other), &evidence());
    }
    ledger.refused(&weak, request(3), Some(&greedy), &evidence());
    world.hands.set(NOON + 10);
    world.issue(&ledger).await;
    ledger.refused(&lifetime, request(4), Some(&greedy), &evidence());
    ledger.shutdown().await;
    assert_eq!(
        filed(&world, &greedy, Reason::Lifetime).await,
        (11, 4990),
        "the next window begins anew"
    );
    assert_eq!(
        filed(&world, &greedy, Reason::WeakKey).await,
        (1, 0),
        "another reason"
    );
    assert_eq!(
        (
            filed(&world, &other, Reason::Lifetime).await,
            filed(&world, &other, Reason::WeakKey).await
        ),
        ((1, 0), (1, 0))
    );
    let shown = world
        .export(
            &Selection {
                identity: Some(greedy.to_string()),
                ..Selection::default()
            },
            Format::JsonLines,
        )
        .await;
    assert!(
        shown.contains("\"count\":4990") && !shown.contains(&other.to_string()),
        "{shown}"
    );
    world.holds().await;
}

#[tokio::test]
async fn identities_beyond_number_are_counted_together_and_fill_nothing() {
    let world = world();
    let ledger = world.start().await;
    let refusal = Refusal::new(Reason::Lifetime, "too long");
    for number in 0..2500 {
        ledger.refused(&refusal, request(1), Some(&account(number)), &evidence());
    }
    ledger.shutdown().await;
    let groups = world.groups().await;
    let rows = world
        .kinds()
        .await
        .iter()
        .filter(|kind| *kind == "refused")
        .count();
    assert_eq!(
        (
            rows,
            groups.len(),
            groups.iter().map(|group| group.count).sum::<u64>()
        ),
        (1000, 1001, 1500)
    );
    assert_eq!(
        groups
            .iter()
            .filter(|group| group.prefix == "other")
            .map(|group| group.count)
            .sum::<u64>(),
        500
    );
    world.holds().await;
}

#[tokio::test]
async fn an_identity_beyond_its_limit_has_a_row_in_ten_seconds_and_a_count() {
    let world = world();
    let ledger = world.start().await;
    let refusal = Refusal::new(Reason::IdentityLimit, "more than 5 calls in a minute");
    let names = ["a", "b"].map(|name| {
        SpiffeId::parse(&format!("spiffe://cluster.local/ns/default/sa/{name}")).unwrap()
    });
    for _ in 0..50 {
        names
            .iter()
            .for_each(|identity| ledger.refused(&refusal, request(1), Some(identity), &evidence()));
    }
    world.hands.set(NOON + 10);
    world.issue(&ledger).await;
    ledger.refused(&refusal, request(1), Some(&names[0]), &evidence());
    ledger.shutdown().await;
    let events = world.events().await;
    let named = events.iter().filter_map(|event| {
        if let Event::Refused { identity, .. } = event {
            identity.clone()
        } else {
            None
        }
    });
    let (mut named, counted): (Vec<String>, u64) = (
        named.collect(),
        world.groups().await.iter().map(|group| group.count).sum(),
    );
    named.sort();
    assert_eq!(
        named,
        [
            names[0].to_string(),
            names[0].to_string(),
            names[1].to_string()
        ]
    );
    assert_eq!(counted, 98);
    world.holds().await;
}
