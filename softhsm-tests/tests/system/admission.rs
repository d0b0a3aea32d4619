//! A device that is the limit: it is kept busy, signs for nobody in vain, serves whoever has no
//! certificate before those that renew, and of these the one first whose certificate ends soonest.
//! Whoever has no chance is told so at once.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::json;
use softhsm_tests::daemon::Setup;
use softhsm_tests::{Ask, Csr, Material, TestCa, tell};
use tokio::time::MissedTickBehavior;
use tonic::{Code, Status};

/// What the device takes for a signature.
const SIGNATURE: Duration = Duration::from_millis(100);
const CALL_TIMEOUT: Duration = Duration::from_secs(2);
/// How long more is asked for than it can do.
const OVERLOAD: Duration = Duration::from_secs(8);

/// A daemon whose device has so many sessions, each of them slow.
async fn slow(sessions: u32) -> TestCa {
    softhsm_tests::crypto();
    let setup = Setup::default()
        .with_faults()
        .replace("call_timeout = \"5s\"", "call_timeout = \"2s\"");
    let mut ca = TestCa::configured(Material::in_memory(), setup);
    // One more keeps the login.
    ca.command_faults(&format!(
        "C_OpenSession limit {}\nC_Sign sleep_ms {}",
        sessions + 1,
        SIGNATURE.as_millis()
    ));
    ca.restart().await;
    ca
}

/// Signatures a second of a device that does nothing but sign.
fn raw(sessions: u32) -> u32 {
    sessions * 1000 / u32::try_from(SIGNATURE.as_millis()).expect("small")
}

/// A pod of the demo workload, with a token that is bound to it.
fn pod(ca: &TestCa, uid: &str) -> Ask {
    let minter = ca.minter();
    let mut claims = minter.claims("default", "demo");
    claims["kubernetes.io"] = json!({
        "namespace": "default",
        "serviceaccount": { "name": "demo", "uid": "of-the-account" },
        "pod": { "name": format!("demo-{uid}"), "uid": uid },
    });
    Ask::bearer(&minter.sign(&claims))
}

/// So many pods that have certificates, of this lifetime in seconds. Getting them shows the daemon
/// how slow the device is.
async fn holders(ca: &TestCa, name: &str, count: usize, lifetime: i64) -> Vec<Ask> {
    let channel = ca.connect().await;
    let mut holders = Vec::new();
    for number in 0..count {
        let ask = pod(ca, &format!("{name}-{number}")).lifetime(lifetime);
        ca.remember(&channel.call(&Csr::demo().pem, &ask).await.expect("issued"));
        holders.push(ask);
    }
    holders
}

/// The same, and they ask again so soon and so often that nobody believes any more that they have
/// lost what they hold.
async fn renewing(ca: &TestCa, name: &str, count: usize, lifetime: i64) -> Vec<Ask> {
    const BELIEVED: usize = 4;
    let (channel, holders) = (ca.connect().await, holders(ca, name, count, lifetime).await);
    for ask in holders
        .iter()
        .flat_map(|ask| std::iter::repeat_n(ask, BELIEVED))
    {
        ca.remember(&channel.call(&Csr::demo().pem, ask).await.expect("issued"));
    }
    holders
}

/// One call: whose it is, what it asks with, and what became of it.
struct Answered {
    urgent: bool,
    took: Duration,
    at: Duration,
    answer: Result<Vec<String>, Status>,
}

/// Makes these calls evenly over the time of the overload, each with a key of its own.
async fn overload(ca: &TestCa, calls: Vec<(bool, Ask)>) -> Vec<Answered> {
    let channels = join_all((0..8).map(|_| ca.connect())).await;
    let calls: Vec<(bool, Ask, String)> = calls
        .into_iter()
        .map(|(urgent, ask)| (urgent, ask, Csr::demo().pem))
        .collect();
    let mut gap = tokio::time::interval(OVERLOAD / u32::try_from(calls.len()).expect("few"));
    gap.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let (begun, mut answers) = (Instant::now(), Vec::new());
    for (number, (urgent, ask, csr)) in calls.into_iter().enumerate() {
        gap.tick().await;
        let channel = channels[number % channels.len()].clone();
        answers.push(tokio::spawn(async move {
            let asked = Instant::now();
            let answer = channel.call(&csr, &ask).await;
            Answered {
                urgent,
                took: asked.elapsed(),
                at: begun.elapsed(),
                answer,
            }
        }));
    }
    join_all(answers)
        .await
        .into_iter()
        .map(|answer| answer.expect("no client fell over"))
        .collect()
}

/// Mixes a few into many, evenly.
fn mixed(few: Vec<Ask>, many: Vec<Ask>) -> Vec<(bool, Ask)> {
    let every = (few.len() + many.len()) as f64 / few.len() as f64;
    let mut calls: Vec<(bool, Ask)> = many.into_iter().map(|ask| (false, ask)).collect();
    for (number, ask) in few.into_iter().enumerate() {
        calls.insert(
            ((number as f64 * every) as usize).min(calls.len()),
            (true, ask),
        );
    }
    calls
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

/// What an overload must look like, whoever was in it: see the module. The share of what the device
/// could have signed.
async fn judge(ca: &TestCa, sessions: u32, signatures: u64, answers: Vec<Answered>) -> f64 {
    let (mut served, mut refused, mut urgent, mut last) =
        (Vec::new(), Vec::new(), 0, Duration::ZERO);
    for Answered {
        urgent: is_urgent,
        took,
        at,
        answer,
    } in answers
    {
        match answer {
            Ok(chain) => {
                ca.remember(&chain);
                urgent += usize::from(is_urgent);
                served.push(took);
                last = last.max(at);
            }
            Err(status) => {
                assert_eq!(
                    (status.code(), is_urgent),
                    (Code::ResourceExhausted, false),
                    "after {took:?}: {status}\n{}",
                    ca.log_text()
                );
                assert_eq!(status.message(), "the CA is at its limit, try again later");
                refused.push(took);
            }
        }
    }
    let share = served.len() as f64 / (f64::from(raw(sessions)) * last.as_secs_f64());
    assert!(
        !refused.is_empty() && served.len() > urgent,
        "{} served, {} refused",
        served.len(),
        refused.len()
    );
    let (late, at_once) = (median(served.clone()), median(refused.clone()));
    tell(&format!(
        "{sessions} slow sessions of {} signatures a second: {} certificates, {urgent} of them urgent, after {} ms in the median, {} calls refused \
         after {} ms in the median; {:.1} % of what the device can do",
        raw(sessions),
        served.len(),
        late.as_millis(),
        refused.len(),
        at_once.as_millis(),
        100.0 * share,
    ));
    assert!(
        4 * at_once < late,
        "a refusal does not wait: {at_once:?}, and a certificate {late:?}"
    );
    ca.until("idle", || async {
        ca.metric("ca_server_calls_in_flight").await == 0.0
    })
    .await;
    assert_eq!(
        ca.metric("ca_server_admission_waiting_calls{issuer=\"quickstart\"}")
            .await,
        0.0
    );
    assert_eq!(
        ca.metric("ca_server_refusals_total{reason=\"device_busy\"}")
            .await,
        refused.len() as f64
    );
    // No call past its limit was signed, and no intent was opened for one that was not.
    assert_eq!(
        usize::try_from(ca.faults().signatures() - signatures).expect("few"),
        served.len()
    );
    let ledger = ca.check();
    assert_eq!(
        (
            ledger.count("failed"),
            ledger.count("unknown"),
            ca.open_intents(&ledger)
        ),
        (0, 0, 0)
    );
    share
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_device_is_kept_busy_and_whoever_has_no_certificate_is_served_before_those_that_renew()
 {
    for sessions in [1, 2, 4] {
        let ca = slow(sessions).await;
        let (holders, restarted) = (
            renewing(&ca, "holder", 12, 86_400).await,
            holders(&ca, "restarted", 8, 86_400).await,
        );
        let signatures = ca.faults().signatures();
        let calls = (raw(sessions) * u32::try_from(OVERLOAD.as_secs()).expect("small")) as usize;
        // Two fifths of what it can do is for pods that have just started, some of which had a
        // certificate before their container restarted, and beside them twice as much as it can do.
        let new = (restarted.len()..2 * calls / 5).map(|number| pod(&ca, &format!("new-{number}")));
        let first = restarted.iter().cloned().chain(new).collect();
        let renewals = (0..2 * calls)
            .map(|number| holders[number % holders.len()].clone())
            .collect();
        let answers = overload(&ca, mixed(first, renewals)).await;
        let share = judge(&ca, sessions, signatures, answers).await;
        assert!(
            share >= 0.95,
            "{sessions} sessions: {share:.3} of what the device can do"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_those_that_renew_the_one_whose_certificate_ends_soonest_goes_first() {
    let ca = slow(2).await;
    let (soon, late) = (
        renewing(&ca, "soon", 12, 3600).await,
        renewing(&ca, "late", 12, 86_400).await,
    );
    let signatures = ca.faults().signatures();
    let calls = (raw(2) * u32::try_from(OVERLOAD.as_secs()).expect("small")) as usize;
    let soon = (0..2 * calls / 5)
        .map(|number| soon[number % soon.len()].clone())
        .collect();
    let late = (0..2 * calls)
        .map(|number| late[number % late.len()].clone())
        .collect();
    let answers = overload(&ca, mixed(soon, late)).await;
    judge(&ca, 2, signatures, answers).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_daemons_own_certificate_is_renewed_while_the_device_is_the_limit() {
    let ca = slow(1).await;
    let holders = holders(&ca, "holder", 24, 86_400).await;
    let (over, calls) = (
        AtomicBool::new(false),
        3 * raw(1) * u32::try_from(OVERLOAD.as_secs()).expect("small"),
    );
    let renewals = (0..calls as usize)
        .map(|number| (false, holders[number % holders.len()].clone()))
        .collect();
    let own = async || {
        ca.metric("ca_server_certificates_issued_total{issuer=\"quickstart\",purpose=\"serving\"}")
            .await
    };
    let renewal = async {
        ca.until("at its limit", || async {
            ca.metric("ca_server_refusals_total{reason=\"device_busy\"}")
                .await
                > 0.0
        })
        .await;
        let before = own().await;
        assert!(ca.reload().await, "{}", ca.log_text());
        ca.until("renewed", || async { own().await > before }).await;
        assert!(!over.load(Ordering::Relaxed), "calls still come");
    };
    let load = async {
        let answers = overload(&ca, renewals).await;
        over.store(true, Ordering::Relaxed);
        answers
    };
    let (answers, ()) = tokio::join!(load, renewal);
    answers
        .iter()
        .filter_map(|answered| answered.answer.as_ref().ok())
        .for_each(|chain| ca.remember(chain));
    ca.until("idle", || async {
        ca.metric("ca_server_calls_in_flight").await == 0.0
    })
    .await;
    assert_eq!(ca.open_intents(&ca.check()), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_hangs_up_while_it_waits_costs_no_signature_and_no_intent() {
    const CALLS: usize = 30;
    let ca = slow(1).await;
    let holders = holders(&ca, "holder", 1, 86_400).await;
    let calls: Vec<(String, Ask)> = (0..CALLS)
        .map(|number| (Csr::demo().pem, pod(&ca, &format!("new-{number}"))))
        .collect();
    let channel = ca.connect().await;
    let waiting = async || {
        ca.metric("ca_server_admission_waiting_calls{issuer=\"quickstart\"}")
            .await
    };
    let gone = AtomicBool::new(false);
    let callers = async {
        let calls = join_all(calls.iter().map(|(csr, ask)| channel.call(csr, ask)));
        // All of them hang up as soon as some wait.
        tokio::select! {
            answers = calls => panic!("none waits any more: {answers:?}"),
            () = ca.until("waiting", || async { waiting().await > 2.0 }) => gone.store(true, Ordering::Relaxed),
        }
    };
    callers.await;
    assert!(gone.load(Ordering::Relaxed));
    ca.until("idle", || async {
        ca.metric("ca_server_calls_in_flight").await == 0.0
    })
    .await;
    assert_eq!(waiting().await, 0.0);
    let ledger = ca.check();
    let signed = ca.faults().signatures();
    assert!((signed as usize) < CALLS, "{signed} signatures");
    assert_eq!(
        (ledger.count("intent") as u64, ledger.count("issued") as u64),
        (signed, signed)
    );
    let begun = Instant::now();
    ca.call(&Csr::demo().pem, &holders[0])
        .await
        .expect("the device is free");
    assert!(begun.elapsed() < CALL_TIMEOUT);
    ca.check();
}
