//! Every code at every step: 12 functions of PKCS#11, 15 return values, met at the first call, at a
//! later one, and at every one. Whatever a token answers, the daemon lives, keeps its callers'
//! deadlines, tries a PIN no more than once, gives out nothing that does not verify, leaves no
//! intent open, and serves again when the fault ends.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use softhsm_tests::daemon::{PATIENCE, Setup};
use softhsm_tests::disk::Disk;
use softhsm_tests::{Ask, Channel, Csr, TestCa, tell};
use sqlx::{Connection, SqliteConnection};
use tonic::Code;

use crate::seen::Chains;

const FUNCTIONS: [&str; 12] = [
    "C_Initialize",
    "C_GetSlotList",
    "C_GetTokenInfo",
    "C_GetMechanismList",
    "C_OpenSession",
    "C_GetSessionInfo",
    "C_Login",
    "C_FindObjectsInit",
    "C_FindObjects",
    "C_GetAttributeValue",
    "C_SignInit",
    "C_Sign",
];

/// PKCS#11 v2.40 §A, and one of a vendor's.
const CODES: [(u64, &str); 15] = [
    (0x02, "HOST_MEMORY"),
    (0x05, "GENERAL_ERROR"),
    (0x06, "FUNCTION_FAILED"),
    (0x30, "DEVICE_ERROR"),
    (0x31, "DEVICE_MEMORY"),
    (0x32, "DEVICE_REMOVED"),
    (0x60, "KEY_HANDLE_INVALID"),
    (0x91, "OPERATION_NOT_INITIALIZED"),
    (0xA0, "PIN_INCORRECT"),
    (0xB0, "SESSION_CLOSED"),
    (0xB1, "SESSION_COUNT"),
    (0xB3, "SESSION_HANDLE_INVALID"),
    (0xE0, "TOKEN_NOT_PRESENT"),
    (0x190, "CRYPTOKI_NOT_INITIALIZED"),
    (0x8000_0001, "a vendor's"),
];

/// What C_Login answers where no PIN was looked at: DEVICE_ERROR, DEVICE_REMOVED, SESSION_CLOSED,
/// SESSION_HANDLE_INVALID, TOKEN_NOT_PRESENT, CRYPTOKI_NOT_INITIALIZED. After any other the
/// operator is waited for.
const PIN_NOT_TRIED: [u64; 6] = [0x30, 0x32, 0xB0, 0xB3, 0xE0, 0x190];

const DAEMONS: usize = 3;
const CALL_TIMEOUT: Duration = Duration::from_secs(2);
/// What a busy machine may add to it before a test calls that a wait past the deadline.
const ALLOWANCE: Duration = Duration::from_secs(3);
/// A call records twice, before and after the device. Where one write takes this long, the call's
/// time may pass on that alone.
const SLOW_DISK: Duration = CALL_TIMEOUT.checked_div(4).unwrap();
/// The limit.
const RECOVERY: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    First,
    Nth,
    Persistent,
}

enum Losses {
    None,
    One,
    UntilMet,
}

/// One fault.
#[derive(Clone, Copy, Debug)]
struct Case {
    function: &'static str,
    code: u64,
    when: When,
}

/// What became of it.
#[derive(Debug)]
struct Outcome {
    case: Case,
    /// Calls of the function that the fault answered.
    met: u64,
    certificates: usize,
    unavailable: usize,
    logins: u64,
    /// Whether it took an operator's order to serve again.
    ordered: bool,
    /// From the end of the fault, or the order, to the next certificate.
    resumed: Duration,
}

impl Case {
    /// Losses of sessions or library that it takes for the fault to be met: most functions are
    /// called only when sessions are opened.
    fn losses(self) -> Losses {
        match self.function {
            "C_SignInit" | "C_Sign" => Losses::None,
            // The daemon also signs for itself: two signatures at once may meet two losses and
            // share what follows, one C_Initialize or one log-in.
            "C_Login" | "C_Initialize" if self.when == When::Nth => Losses::UntilMet,
            _ => Losses::One,
        }
    }

    fn rules(self) -> String {
        let when = match self.when {
            When::First => " at 1",
            When::Nth => " at 2",
            When::Persistent => "",
        };
        let fault = format!("{} rv {:#x}{when}\n", self.function, self.code);
        let loss = match self.function {
            "C_Initialize" => "forget",
            _ => "close_sessions",
        };
        match self.losses() {
            Losses::None => fault,
            Losses::One => format!("{fault}C_SignInit {loss} count 1\n"),
            Losses::UntilMet => format!("{fault}C_SignInit {loss}\n"),
        }
    }

    /// Whether the token may have counted a wrong PIN.
    fn may_have_cost_a_try(self) -> bool {
        self.function == "C_Login" && !PIN_NOT_TRIED.contains(&self.code)
    }
}

/// A daemon that is put through one case after the other.
struct Patient<'a> {
    disk: &'a Disk,
    ca: TestCa,
    channel: Channel,
    ask: Ask,
    chains: Chains,
    ledger: SqliteConnection,
}

impl<'a> Patient<'a> {
    async fn start(disk: &'a Disk) -> Self {
        let setup = Setup::default()
            .with_faults()
            .replace("call_timeout = \"5s\"", "call_timeout = \"2s\"");
        let ca = TestCa::start_with(setup).await;
        let (channel, ask) = (ca.connect().await, Ask::bearer(&ca.token()));
        let url = format!("sqlite:{}?mode=ro", ca.material.file("ledger.db").display());
        let ledger = SqliteConnection::connect(&url).await.expect("opened");
        Self {
            disk,
            chains: Chains::under(&ca.roots()),
            ca,
            channel,
            ask,
            ledger,
        }
    }

    /// One call; true if it got a certificate, which verifies. A refusal is Unavailable, and
    /// neither is late, unless the ledger's disk made it so.
    async fn call(&self, case: Case) -> bool {
        let begun = Instant::now();
        // Another one each time: the same would be given out again, and the device not asked.
        let answer = self.channel.call(&Csr::demo().pem, &self.ask).await;
        let took = begun.elapsed();
        let disk = self.disk.longest_wait_since(begun);
        assert!(
            took < CALL_TIMEOUT + ALLOWANCE + disk,
            "{case:?}: {took:?} for {answer:?}\n{}",
            self.ca.log_text()
        );
        match answer {
            Ok(chain) => {
                self.chains.assert_verified(&chain);
                self.ca.remember(&chain);
                true
            }
            Err(status) => {
                let code = if status.code() == Code::DeadlineExceeded && disk > SLOW_DISK {
                    Code::Unavailable
                } else {
                    status.code()
                };
                assert_eq!(
                    code,
                    Code::Unavailable,
                    "{case:?}: {status}, the disk took {disk:?}\n{}",
                    self.ca.log_text()
                );
                tokio::time::sleep(Duration::from_millis(5)).await;
                false
            }
        }
    }

    async fn endure(&mut self, case: Case) -> Outcome {
        let faults = self.ca.faults();
        let (met, lost) = (faults.met(case.function), faults.met("C_SignInit"));
        let (logins, pid) = (faults.logins(), self.ca.pid());
        let (mut certificates, mut unavailable) = (0, 0);
        let begun = Instant::now();
        self.ca.command_faults(&case.rules());
        while faults.met(case.function) == met || certificates + unavailable < 3 {
            assert!(
                begun.elapsed() < PATIENCE,
                "{case:?} was never met\n{}",
                self.ca.log_text()
            );
            if self.call(case).await {
                certificates += 1
            } else {
                unavailable += 1
            }
        }
        self.ca.command_faults("");
        let ordered = case.may_have_cost_a_try();
        if ordered {
            assert_eq!(
                faults.met(case.function) - met,
                1,
                "{case:?}: tries of a PIN that may have been wrong"
            );
            assert!(
                !self.call(case).await,
                "{case:?}: it logged in without being asked"
            );
            assert!(self.ca.reload().await, "{case:?}: {}", self.ca.log_text());
        }
        let ended = Instant::now();
        while !self.call(case).await {
            assert!(
                ended.elapsed() < PATIENCE,
                "{case:?}: never resumed\n{}",
                self.ca.log_text()
            );
        }
        let resumed = ended.elapsed();
        let disk = self.disk.longest_wait_since(ended);
        assert!(
            resumed < RECOVERY + 2 * disk,
            "{case:?}: resumed after {resumed:?}, the disk took {disk:?}\n{}",
            self.ca.log_text()
        );
        // The next case finds every session open and every intent closed.
        self.ca
            .until("whole again", || async {
                self.ca
                    .get("/healthz/ready")
                    .await
                    .1
                    .contains("healthy: 4 of 4 sessions open, 0 stuck")
            })
            .await;
        self.no_open_intent(case).await;
        assert_eq!(
            (self.ca.ended(), self.ca.pid()),
            (None, pid),
            "{case:?}: the daemon lives"
        );
        let logins = faults.logins() - logins;
        let losses = match case.losses() {
            Losses::None => 0,
            Losses::One => 1,
            Losses::UntilMet => faults.met("C_SignInit") - lost,
        };
        if case.function != "C_Login" {
            assert!(
                logins <= losses + 1,
                "{case:?}: {logins} logins, {losses} losses"
            );
        }
        Outcome {
            case,
            met: faults.met(case.function) - met,
            certificates,
            unavailable,
            logins,
            ordered,
            resumed,
        }
    }

    async fn no_open_intent(&mut self, case: Case) {
        const OPEN: &str = "SELECT (SELECT count(*) FROM event WHERE kind = 'intent') \
            - (SELECT count(*) FROM event WHERE kind IN ('issued', 'failed', 'unknown'))";
        let begun = Instant::now();
        loop {
            let open: i64 = sqlx::query_scalar(OPEN)
                .fetch_one(&mut self.ledger)
                .await
                .expect("readable");
            if open == 0 {
                return;
            }
            assert!(
                begun.elapsed() < PATIENCE,
                "{case:?}: {open} open intents\n{}",
                self.ca.log_text()
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

#[test]
fn five_hundred_and_forty_faults_of_a_token_each_end_with_a_daemon_that_serves() {
    let begun = Instant::now();
    // By function and moment, so that the ledger is looked at as a whole after every fifteen.
    let moments = [When::First, When::Nth, When::Persistent];
    let groups: Vec<(&str, When)> = FUNCTIONS
        .iter()
        .flat_map(|function| moments.map(|when| (*function, when)))
        .collect();
    let (next, outcomes, disk) = (AtomicUsize::new(0), Mutex::new(Vec::new()), Disk::watched());
    let work = async || {
        let mut patient = Patient::start(&disk).await;
        while let Some((function, when)) = groups.get(next.fetch_add(1, Ordering::Relaxed)) {
            for (code, _) in CODES {
                let outcome = patient
                    .endure(Case {
                        function,
                        code,
                        when: *when,
                    })
                    .await;
                outcomes.lock().expect("unpoisoned").push(outcome);
            }
            let ledger = patient.ca.check();
            assert_eq!(patient.ca.open_intents(&ledger), 0);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..DAEMONS {
            scope.spawn(|| {
                tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .expect("a runtime")
                    .block_on(work())
            });
        }
    });
    let outcomes = outcomes.into_inner().expect("unpoisoned");
    tell(&table(&outcomes, begun.elapsed()));
    assert_eq!(outcomes.len(), 540);
    assert!(outcomes.iter().all(|outcome| outcome.met > 0));
}

fn table(outcomes: &[Outcome], took: Duration) -> String {
    let mut lines = vec![format!(
        "{:<26}{:>6}{:>6}{:>14}{:>13}{:>9}{:>8}{:>13}",
        "faults of a token",
        "cases",
        "met",
        "certificates",
        "Unavailable",
        "ordered",
        "logins",
        "resumed ms"
    )];
    let mut line = |name: &str, of: &dyn Fn(&Case) -> bool| {
        let chosen: Vec<&Outcome> = outcomes
            .iter()
            .filter(|outcome| of(&outcome.case))
            .collect();
        let sum = |value: fn(&Outcome) -> usize| {
            chosen.iter().map(|outcome| value(outcome)).sum::<usize>()
        };
        lines.push(format!(
            "{name:<26}{:>6}{:>6}{:>14}{:>13}{:>9}{:>8}{:>13}",
            chosen.len(),
            sum(|outcome| usize::from(outcome.met > 0)),
            sum(|outcome| outcome.certificates),
            sum(|outcome| outcome.unavailable),
            sum(|outcome| usize::from(outcome.ordered)),
            chosen
                .iter()
                .map(|outcome| outcome.logins)
                .max()
                .unwrap_or(0),
            chosen
                .iter()
                .map(|outcome| outcome.resumed.as_millis())
                .max()
                .unwrap_or(0),
        ));
    };
    for function in FUNCTIONS {
        line(function, &|case| case.function == function);
    }
    for (code, name) in CODES {
        line(name, &|case| case.code == code);
    }
    for (when, name) in [
        (When::First, "at the first call"),
        (When::Nth, "at the second"),
        (When::Persistent, "at every call"),
    ] {
        line(name, &|case| case.when == when);
    }
    line("all", &|_| true);
    lines.push(format!(
        "logins and resumed: the most of any case; {DAEMONS} daemons, {} s",
        took.as_secs()
    ));
    lines.join("\n")
}
