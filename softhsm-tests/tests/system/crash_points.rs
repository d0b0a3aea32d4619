//! `kill -9` at each system call of one issuance that touches ledger, device or client, before the
//! call is executed and after it.
//!
//! For each kind of call the first, second, third … is hit until an issuance comes through, which
//! proves that it made no more of them. After every kill the daemon starts on the same ledger, the
//! whole state is looked at, and one certificate is issued.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};

use softhsm_tests::check::Ledger;
use softhsm_tests::daemon::{DEMO, Setup};
use softhsm_tests::{Ask, Csr, TestCa, tell};

use crate::seen::leaf;
use crate::touches::{Kind, Lesson, Touched, countable, on_a_server, traced};

/// Calls after which something outside of the daemon is different. After the others a kill is the
/// same as before the next one.
const CHANGES: [&str; 15] = [
    "accept4",
    "fdatasync",
    "fsync",
    "ftruncate",
    "pwrite64",
    "pwritev",
    "rename",
    "renameat",
    "sendmsg",
    "sendto",
    "shutdown",
    "unlink",
    "unlinkat",
    "write",
    "writev",
];

/// An issuance that makes fewer of a kind than it made before is asked again so often, before that
/// counts as a failure of this test.
const TRIES: usize = 5;

/// No kind of call is made so often; a search that comes here does not end.
const MANY: usize = 500;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Moment {
    Before,
    After,
}

/// One kind of call at one moment: a series of points.
#[derive(Clone, Debug)]
struct Series {
    touched: Touched,
    role: String,
    call: String,
    moment: Moment,
    /// Occurrences that every issuance has.
    sure: usize,
}

/// What the kills left.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Found {
    /// By class and moment.
    points: BTreeMap<(&'static str, Moment), usize>,
    no_intent: usize,
    unknown: usize,
    issued_and_lost: usize,
    received: usize,
}

impl Found {
    fn add(&mut self, other: &Self) {
        other
            .points
            .iter()
            .for_each(|(key, count)| *self.points.entry(*key).or_default() += count);
        self.no_intent += other.no_intent;
        self.unknown += other.unknown;
        self.issued_and_lost += other.issued_and_lost;
        self.received += other.received;
    }

    fn of_class(&self, wanted: &str) -> usize {
        self.points
            .iter()
            .filter(|((class, _), _)| *class == wanted)
            .map(|(_, count)| count)
            .sum()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_nine_at_each_system_call_of_an_issuance_loses_and_invents_nothing() {
    // Two commits, each with its locks, its pages and its fsync.
    at_each_system_call("SQLite", Setup::default, 20).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_nine_at_each_system_call_of_an_issuance_on_postgres_loses_and_invents_nothing() {
    // Two commits, each of them one statement: before it is sent, after that, and before its answer
    // is read.
    at_each_system_call("Postgres", || Setup::default().on_postgres(), 6).await;
}

/// `commits` is the least number of points on the ledger that two commits can have.
async fn at_each_system_call(ledger: &str, setup: fn() -> Setup, commits: usize) {
    let mut first = TestCa::start_with(countable(setup())).await;
    let lesson = Lesson::of(&mut first, &Touched::ALL).await;
    let series: VecDeque<Series> = lesson
        .kinds()
        .flat_map(|(kind, sure)| series_of(kind, sure))
        .collect();
    let series = Arc::new(Mutex::new(series));
    let (learnt, second) = (lesson.calls(), TestCa::start_with(countable(setup())).await);
    let workers = [first, second].map(|ca| tokio::spawn(work(ca, series.clone())));
    let mut found = Found::default();
    for worker in workers {
        found.add(&worker.await.expect("every point holds"));
    }
    let count = |class, moment| found.points.get(&(class, moment)).copied().unwrap_or(0);
    let classes = ["ledger", "device", "client"].map(|class| {
        let (before, after) = (count(class, Moment::Before), count(class, Moment::After));
        format!(
            "{class} {} ({before} before, {after} after the call)",
            before + after
        )
    });
    tell(&format!(
        "crash points on {ledger}: {}; {learnt} calls learnt; afterwards {} without intent, {} unknown, {} issued and not received, {} received",
        classes.join(", "),
        found.no_intent,
        found.unknown,
        found.issued_and_lost,
        found.received
    ));
    let before: usize = ["ledger", "device", "client"]
        .map(|class| count(class, Moment::Before))
        .iter()
        .sum();
    assert!(
        before >= learnt,
        "{before} kills before a call, and an issuance makes {learnt}"
    );
    for (class, least) in [("ledger", commits), ("device", 10), ("client", 12)] {
        assert!(
            found.of_class(class) >= least,
            "{class}: only {}",
            found.of_class(class)
        );
    }
    for (what, count) in [
        ("no intent", found.no_intent),
        ("unknown", found.unknown),
        ("issued and not received", found.issued_and_lost),
    ] {
        assert!(
            count > 0,
            "no kill left {what}: they did not come where they should"
        );
    }
    assert!(found.received > 0, "no kill came after the answer");
}

fn series_of(kind: Kind<'_>, sure: usize) -> impl Iterator<Item = Series> {
    let series = move |moment| Series {
        touched: kind.touched,
        role: kind.role.to_owned(),
        call: kind.call.to_owned(),
        moment,
        sure,
    };
    let changes = CHANGES.contains(&kind.call);
    [
        Some(series(Moment::Before)),
        changes.then(|| series(Moment::After)),
    ]
    .into_iter()
    .flatten()
}

/// Takes series until there is none; ends with a look at everything.
async fn work(mut ca: TestCa, all: Arc<Mutex<VecDeque<Series>>>) -> Found {
    let (mut found, mut known) = (Found::default(), Demo::of(&ca.export()));
    known.add(&issue(&ca).await);
    loop {
        let Some(series) = all.lock().expect("unpoisoned").pop_front() else {
            break;
        };
        run(&mut ca, &series, &mut known, &mut found).await;
    }
    let ledger = ca.check();
    assert_eq!(ca.open_intents(&ledger), 0);
    assert_eq!(ledger.count("failed"), 0);
    found
}

async fn run(ca: &mut TestCa, series: &Series, known: &mut Demo, found: &mut Found) {
    let kind = Kind {
        touched: series.touched,
        role: &series.role,
        call: &series.call,
    };
    let (mut occurrence, mut tries) = (1, 0);
    loop {
        let point = format!("{series:?} {occurrence}");
        let injection = match series.moment {
            // The kernel leaves a call out when its thread is killed at the entry.
            Moment::Before => format!("{}:signal=KILL:when={occurrence}", series.call),
            Moment::After => format!("{}:delay_exit=60s:when={occurrence}", series.call),
        };
        let traced = traced(
            ca,
            series.touched,
            kind.scope(),
            Some(&injection),
            series.moment == Moment::After,
        )
        .await;
        if traced.died {
            settle(ca, &point, known, traced.answer.is_ok(), found).await;
            *found
                .points
                .entry((series.touched.class(), series.moment))
                .or_default() += 1;
            (occurrence, tries) = (occurrence + 1, 0);
        } else {
            known.add(&traced.answer.unwrap_or_else(|status| {
                panic!("{point}: it lives, and says {status}\n{}", ca.log_text())
            }));
            if occurrence > series.sure {
                return;
            }
            tries += 1;
            assert!(tries < TRIES, "{point} was never reached");
        }
        assert!(occurrence < MANY, "{point}: no end");
    }
}

/// Starts again, and holds what the kill left against what the client knows.
async fn settle(ca: &mut TestCa, point: &str, known: &mut Demo, received: bool, found: &mut Found) {
    ca.restart().await;
    if on_a_server(ca) {
        // A server may notice the death after the start; then the next look finds what was open.
        ca.until("named", || async { ca.open_intents(&ca.export()) == 0 })
            .await;
    }
    let ledger = ca.check();
    let now = Demo::of(&ledger);
    assert_eq!(
        ca.open_intents(&ledger),
        0,
        "{point}: what was open is named"
    );
    assert!(
        known.intents.is_subset(&now.intents) && known.issued.is_subset(&now.issued),
        "{point}: rows are lost"
    );
    let new = |now: &BTreeSet<String>, then: &BTreeSet<String>| now.difference(then).count();
    let found_here = (
        new(&now.intents, &known.intents),
        new(&now.issued, &known.issued),
        new(&now.unknown, &known.unknown),
        received,
    );
    match found_here {
        (0, 0, 0, false) => found.no_intent += 1,
        (1, 0, 1, false) => found.unknown += 1,
        (1, 1, 0, false) => found.issued_and_lost += 1,
        (1, 1, 0, true) => found.received += 1,
        other => panic!("{point}: intents, issued, unknown, received are {other:?}"),
    }
    *known = now;
    // Service resumes; and nothing has read the ledger between this commit and the next, which
    // would spare that one some locks.
    known.add(&issue(ca).await);
}

async fn issue(ca: &TestCa) -> Vec<String> {
    ca.call(&Csr::demo().pem, &Ask::bearer(&ca.token()))
        .await
        .unwrap_or_else(|status| panic!("{status}\n{}", ca.log_text()))
}

/// The serials of the demo workload, by what became of them.
struct Demo {
    intents: BTreeSet<String>,
    issued: BTreeSet<String>,
    unknown: BTreeSet<String>,
}

impl Demo {
    fn of(ledger: &Ledger) -> Self {
        let serials = |kind: &str| {
            ledger
                .kind(kind)
                .into_iter()
                .map(|row| (row["serial"].as_str().expect("serial").to_owned(), row))
        };
        let intents: BTreeSet<String> = serials("intent")
            .filter(|(_, row)| row["identity"] == DEMO)
            .map(|(serial, _)| serial)
            .collect();
        let those = |kind| {
            serials(kind)
                .map(|(serial, _)| serial)
                .filter(|serial| intents.contains(serial))
                .collect()
        };
        Self {
            issued: those("issued"),
            unknown: those("unknown"),
            intents,
        }
    }

    /// One that the client received.
    fn add(&mut self, chain: &[String]) {
        let serial = hex::encode(leaf(chain).tbs_certificate().serial_number().as_bytes());
        self.intents.insert(serial.clone());
        self.issued.insert(serial);
    }
}
