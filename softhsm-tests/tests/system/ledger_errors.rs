//! Errors from each system call on the ledger's files: the disk that is full, the disk that is
//! broken, once and from then on.
//!
//! The daemon lives through all of them. A call is answered with a certificate that is recorded, or
//! with Unavailable, and when the disk works again service resumes by itself, or after a kill in
//! the middle of it by a start.

use std::time::{Duration, Instant};

use softhsm_tests::daemon::Setup;
use softhsm_tests::strace::Scope;
use softhsm_tests::{Ask, Csr, TestCa, tell};
use tonic::Code;

use crate::touches::{Kind, Lesson, Touched, countable, traced};

/// No kind of call is made so often; a search that comes here does not end.
const MANY: usize = 500;

/// An issuance that makes fewer of a kind than it made before is asked again so often, before that
/// counts as a failure of this test.
const TRIES: usize = 5;

/// How long an error lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lasts {
    /// One call fails, and the next is good.
    Once,
    /// Every call fails, of every connection, until the disk is repaired.
    UntilRepaired,
    /// The same, and the daemon is killed meanwhile.
    UntilKilled,
}

#[derive(Debug, Default)]
struct Found {
    points: usize,
    certificates: usize,
    unavailable: usize,
    longest: Duration,
    longest_at: String,
}

impl Found {
    fn is_longest(&mut self, time: Duration, at: &str) {
        if time > self.longest {
            (self.longest, self.longest_at) = (time, at.to_owned());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failing_disk_withholds_what_it_cannot_record_and_service_resumes_by_itself() {
    // Side by side, each on a ledger of its own.
    let workers = [
        &[Lasts::Once, Lasts::UntilRepaired][..],
        &[Lasts::UntilKilled],
    ]
    .map(|lasts| tokio::spawn(at_each_call(lasts)));
    let mut found = Found::default();
    for worker in workers {
        let one = worker.await.expect("every point holds");
        found.points += one.points;
        found.certificates += one.certificates;
        found.unavailable += one.unavailable;
        found.is_longest(one.longest, &one.longest_at);
    }
    tell(&format!(
        "error points on SQLite: {}; {} calls got a certificate, {} Unavailable; the next certificate came within {} ms ({})",
        found.points,
        found.certificates,
        found.unavailable,
        found.longest.as_millis(),
        found.longest_at
    ));
    assert!(
        found.unavailable > 0 && found.certificates > 0,
        "errors came where they should: {found:?}"
    );
}

async fn at_each_call(all: &'static [Lasts]) -> Found {
    let setup =
        countable(Setup::default()).replace("call_timeout = \"5s\"", "call_timeout = \"1s\"");
    let mut ca = TestCa::start_with(setup).await;
    let lesson = Lesson::of(&mut ca, &[Touched::Ledger]).await;
    let mut found = Found::default();
    for &lasts in all {
        for (kind, sure) in lesson.kinds() {
            let errors = errors_of(kind.call);
            // Of an error that lasts it matters less which it is.
            for error in if lasts == Lasts::Once {
                errors
            } else {
                &errors[..errors.len().min(1)]
            } {
                series(&mut ca, kind, error, lasts, sure, &mut found).await;
            }
        }
    }
    let ledger = ca.check();
    assert_eq!(ca.open_intents(&ledger), 0);
    assert!(
        found.points >= all.len() * lesson.calls(),
        "{found:?}, and an issuance makes {} calls",
        lesson.calls()
    );
    found
}

/// What a disk answers to such a call when it is full or broken; nothing for calls that cannot fail
/// so.
fn errors_of(call: &str) -> &'static [&'static str] {
    match call {
        "pwrite64" | "write" | "ftruncate" | "fallocate" => &["ENOSPC", "EIO"],
        "close" => &[],
        _ => &["EIO"],
    }
}

async fn series(
    ca: &mut TestCa,
    kind: Kind<'_>,
    error: &str,
    lasts: Lasts,
    sure: usize,
    found: &mut Found,
) {
    let (mut occurrence, mut tries) = (1, 0);
    loop {
        let (scope, when) = match lasts {
            Lasts::Once => (kind.scope(), format!("{occurrence}")),
            // Connections that are opened meanwhile have threads of their own.
            _ => (
                Scope {
                    role: String::new(),
                    ..kind.scope()
                },
                format!("{occurrence}+"),
            ),
        };
        let point = format!("{} {error} {lasts:?} {occurrence}", kind.call);
        let injection = format!("{}:error={error}:when={when}", kind.call);
        let traced = traced(ca, kind.touched, scope, Some(&injection), false).await;
        assert!(!traced.died, "{point}: the daemon lives through it");
        if traced.strace.injected() == 0 {
            if occurrence > sure {
                return;
            }
            tries += 1;
            assert!(tries < TRIES, "{point} was never reached");
            continue;
        }
        found.points += 1;
        match traced.answer {
            Ok(_) => found.certificates += 1,
            Err(status) if status.code() == Code::Unavailable => found.unavailable += 1,
            Err(status) => panic!("{point}: {status}\n{}", ca.log_text()),
        }
        resume(ca, lasts, &point, found).await;
        (occurrence, tries) = (occurrence + 1, 0);
        assert!(occurrence < MANY, "{point}: no end");
    }
}

/// Service resumes by itself, or by a start, and the ledger tells the truth.
async fn resume(ca: &mut TestCa, lasts: Lasts, point: &str, found: &mut Found) {
    let pid = ca.pid();
    if lasts == Lasts::UntilKilled {
        ca.kill();
        ca.restart().await;
    }
    let (begun, ask) = (Instant::now(), Ask::bearer(&ca.token()));
    ca.until("issues again", || async {
        ca.call(&Csr::demo().pem, &ask).await.is_ok()
    })
    .await;
    found.is_longest(begun.elapsed(), point);
    ca.until("recorded", || async { ca.open_intents(&ca.export()) == 0 })
        .await;
    assert_eq!(ca.ended(), None, "{point}: the daemon lives");
    assert!(lasts == Lasts::UntilKilled || ca.pid() == pid, "{point}");
    ca.check();
}
