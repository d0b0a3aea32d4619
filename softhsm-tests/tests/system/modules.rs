//! What a device's library does to its process: it aborts, it reads where nothing is, it never
//! returns, at its first call or a later one, while it signs or while it is opened. The daemon goes
//! on with another process, no caller gets a wrong answer, and nothing stays open.

use std::time::{Duration, Instant};

use softhsm_tests::daemon::Setup;
use softhsm_tests::{Ask, Csr, Material, TestCa, tell};
use tonic::Code;

/// The limit on how long a crash may be felt, as the middle of those that a test makes: one
/// may meet a busy machine.
const CRASH: Duration = Duration::from_secs(1);

/// Two ways in which a process dies of its library.
const CRASHES: [&str; 2] = ["abort", "segfault"];

/// Where a library is called before it has signed anything.
const OPENING: [&str; 3] = ["C_Initialize", "C_OpenSession", "C_Login"];

/// A daemon that must outlive what is done to its signer process.
struct Daemon {
    ca: TestCa,
    ask: Ask,
    pid: u32,
    times: Vec<(String, Duration)>,
}

impl Daemon {
    async fn start(setup: Setup) -> Self {
        let ca = TestCa::start_with(setup.with_faults()).await;
        let daemon = Self {
            ask: Ask::bearer(&ca.token()),
            pid: ca.pid(),
            ca,
            times: Vec::new(),
        };
        daemon.until_whole().await;
        daemon
    }

    async fn until_whole(&self) {
        self.ca
            .until("whole", || async {
                self.ca
                    .get("/healthz/ready")
                    .await
                    .1
                    .contains("4 of 4 sessions open, 0 stuck")
            })
            .await;
    }

    /// Commands a fault and calls until it was met and there is a certificate. What does not get
    /// one in between is told to come again, or is late.
    async fn suffers(&mut self, rules: &str) {
        let functions: Vec<&str> = rules
            .lines()
            .filter_map(|rule| rule.split_whitespace().next())
            .collect();
        let met = |ca: &TestCa| {
            functions
                .iter()
                .map(|function| ca.faults().met(function))
                .collect::<Vec<_>>()
        };
        let before = met(&self.ca);
        self.ca.command_faults(rules);
        let begun = Instant::now();
        self.ca
            .until("served", || async {
                let certificate = self.ca.call(&Csr::demo().pem, &self.ask).await;
                if let Err(status) = &certificate {
                    assert!(
                        matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded),
                        "{rules}: {status}\n{}",
                        self.ca.log_text()
                    );
                }
                certificate.is_ok()
                    && met(&self.ca)
                        .iter()
                        .zip(&before)
                        .all(|(now, before)| now > before)
            })
            .await;
        self.times
            .push((rules.replace('\n', ", "), begun.elapsed()));
    }

    /// What holds after each fault.
    async fn is_well(&mut self) {
        self.ca.command_faults("");
        self.until_whole().await;
        self.ca
            .call(&Csr::demo().pem, &self.ask)
            .await
            .unwrap_or_else(|status| panic!("{status}\n{}", self.ca.log_text()));
        assert_eq!(
            (self.ca.ended(), self.ca.pid()),
            (None, self.pid),
            "the daemon lives"
        );
    }

    /// What holds in the end.
    async fn tells(self, what: &str) {
        self.ca
            .until("closed", || async {
                self.ca.open_intents(&self.ca.export()) == 0
            })
            .await;
        let ledger = self.ca.check();
        assert_eq!(self.ca.open_intents(&ledger), 0);
        let mut lines = vec![format!("{what}: until the next certificate, of one daemon")];
        lines.extend(
            self.times
                .iter()
                .map(|(rules, took)| format!("  {:>6} ms  {rules}", took.as_millis())),
        );
        tell(&lines.join("\n"));
    }

    fn middle(&self) -> Duration {
        let mut times: Vec<Duration> = self.times.iter().map(|(_, took)| *took).collect();
        times.sort_unstable();
        times[times.len() / 2]
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_library_that_crashes_while_it_signs_costs_no_call() {
    let mut daemon = Daemon::start(Setup::default()).await;
    for crash in CRASHES {
        for function in ["C_SignInit", "C_Sign"] {
            daemon.suffers(&format!("{function} {crash} once")).await;
            daemon.is_well().await;
        }
    }
    let ledger = daemon.ca.export();
    assert_eq!(
        (ledger.count("failed"), ledger.count("unknown")),
        (0, 0),
        "each call was given to the next process, and got its certificate"
    );
    assert!(daemon.middle() <= CRASH, "{:?}", daemon.times);
    daemon.tells("a library that crashes while it signs").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_library_that_crashes_at_every_third_signature_costs_no_call() {
    let mut daemon = Daemon::start(Setup::default()).await;
    for crash in CRASHES {
        daemon.ca.command_faults(&format!("C_Sign {crash} at 3"));
        let (before, mut met) = (daemon.times.len(), daemon.ca.faults().met("C_Sign"));
        for call in 0..9 {
            let begun = Instant::now();
            let answer = daemon.ca.call(&Csr::demo().pem, &daemon.ask).await;
            let took = begun.elapsed();
            answer.unwrap_or_else(|status| panic!("{call}: {status}\n{}", daemon.ca.log_text()));
            let now = daemon.ca.faults().met("C_Sign");
            if now > met {
                daemon
                    .times
                    .push((format!("C_Sign {crash} at 3, call {call}"), took));
            }
            met = now;
        }
        assert!(
            daemon.times.len() - before >= 3,
            "every third signature of each process: {:?}",
            daemon.times
        );
        daemon.is_well().await;
    }
    assert!(daemon.middle() <= CRASH, "{:?}", daemon.times);
    daemon.tells("a library that crashes again and again").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_library_that_crashes_while_it_is_opened_is_started_until_it_does_not() {
    let mut daemon = Daemon::start(Setup::default()).await;
    let logins = daemon.ca.faults().logins();
    for crash in CRASHES {
        for function in OPENING {
            // The first crash brings the second about: the next process meets it.
            daemon
                .suffers(&format!("C_Sign {crash} once\n{function} {crash} once"))
                .await;
            daemon.is_well().await;
        }
    }
    let tries = daemon.ca.faults().logins() - logins;
    assert!(tries <= 8, "a login a process that came so far: {tries}");
    assert!(daemon.middle() <= CRASH, "{:?}", daemon.times);
    daemon
        .tells("a library that crashes while it is opened")
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_library_that_keeps_dying_inside_the_login_is_tried_twice_and_then_once_an_order() {
    let mut daemon = Daemon::start(Setup::default()).await;
    let before = daemon.ca.faults().logins();
    daemon
        .ca
        .command_faults("C_Sign abort once\nC_Login segfault");
    let refusal = daemon
        .ca
        .call(&Csr::demo().pem, &daemon.ask)
        .await
        .expect_err("no process comes through");
    assert_eq!(refusal.code(), Code::Unavailable, "{refusal}");
    for tries in 2..5 {
        let told = format!("died inside C_Login: {tries}, the last");
        daemon
            .ca
            .until("locked", || async {
                daemon.ca.get("/healthz/ready").await.1.contains(&told)
            })
            .await;
        assert_eq!(
            daemon.ca.faults().logins() - before,
            tries,
            "one login a process"
        );
        let refusal = daemon
            .ca
            .call(&Csr::demo().pem, &daemon.ask)
            .await
            .expect_err("it is locked");
        assert_eq!(refusal.code(), Code::Unavailable, "{refusal}");
        daemon.ca.reload().await;
    }
    daemon
        .ca
        .until("locked after it", || async {
            daemon
                .ca
                .get("/healthz/ready")
                .await
                .1
                .contains("died inside C_Login: 5, the last")
        })
        .await;
    daemon.ca.command_faults("");
    daemon.ca.reload().await;
    daemon.is_well().await;
    assert_eq!(
        daemon.ca.faults().logins() - before,
        6,
        "nobody tried without an order"
    );
    daemon
        .tells("a library that keeps dying inside the login")
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pin_that_nobody_has_seen_accepted_costs_one_try_also_where_the_token_was_away_at_first()
{
    let mut ca = TestCa::configured(Material::new(), Setup::default().with_faults());
    ca.command_faults("C_OpenSession rv 0xE0 once\nC_Login segfault");
    ca.spawn();
    ca.until("locked", || async {
        ca.get("/healthz/ready")
            .await
            .1
            .contains("died inside C_Login: 1, the last")
    })
    .await;
    assert_eq!(ca.faults().logins(), 1);
    ca.command_faults("");
    ca.reload().await;
    ca.until_ready().await;
    assert_eq!(ca.faults().logins(), 2, "nobody tried without an order");
    ca.call(&Csr::demo().pem, &Ask::bearer(&ca.token()))
        .await
        .expect("it is served");
    ca.check();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_library_that_hangs_while_it_signs_is_killed_and_the_call_given_to_the_next() {
    let mut daemon =
        Daemon::start(Setup::default().replace("env = {", "timeout = \"500ms\"\nenv = {")).await;
    for rules in [
        "C_Sign hang once",
        "C_SignInit hang once",
        "C_Sign hang at 3",
    ] {
        daemon.suffers(rules).await;
        daemon.is_well().await;
    }
    let ledger = daemon.ca.export();
    assert_eq!(
        (ledger.count("failed"), ledger.count("unknown")),
        (0, 0),
        "each call was given to the next process, and got its certificate"
    );
    daemon.tells("a library that hangs while it signs").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_library_that_hangs_while_it_is_opened_is_killed_and_started_anew() {
    let mut daemon = Daemon::start(Setup::default()).await;
    for function in OPENING {
        daemon
            .suffers(&format!("C_Sign abort once\n{function} hang once"))
            .await;
        assert_eq!(daemon.ca.get("/healthz/live").await.0, 200);
        daemon.is_well().await;
    }
    daemon
        .tells("a library that hangs while it is opened")
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_hangs_while_others_sign_is_not_missing_for_ever() {
    let mut daemon = Daemon::start(Setup::default()).await;
    // One session keeps the login, the first and the second sign, the third never comes.
    daemon
        .ca
        .command_faults("C_Sign abort once\nC_OpenSession hang at 4");
    daemon
        .ca
        .until("another process", || async {
            let call = daemon.ca.call(&Csr::demo().pem, &daemon.ask).await;
            call.is_ok() && daemon.ca.faults().met("C_OpenSession") > 0
        })
        .await;
    daemon
        .ca
        .call(&Csr::demo().pem, &daemon.ask)
        .await
        .expect("the others sign meanwhile");
    daemon.ca.logged("device calls have not returned").await;
    daemon.is_well().await;
    daemon.tells("a session that hangs while others sign").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_library_that_crashes_at_the_start_of_the_daemon_is_named() {
    // Inside C_Login it may have cost a try of the PIN: whoever would start the daemon again is
    // told not to.
    let ca = TestCa::configured(Material::new(), Setup::default().with_faults());
    ca.command_faults("C_Login segfault");
    let output = ca.verb(&["serve"]).output().expect("ca-server runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(
        said.contains("issuer quickstart")
            && said.contains("the signer ended at its start")
            && said.contains("signal: 11"),
        "{said}"
    );
    // Anywhere else it is started until it does not crash.
    softhsm_tests::crypto();
    let mut ca = TestCa::configured(Material::new(), Setup::default().with_faults());
    ca.command_faults("C_Initialize abort");
    ca.spawn();
    let (status, readiness) = ca.get("/healthz/ready").await;
    assert!(
        status == 503
            && readiness.contains("the signer ended at its start")
            && readiness.contains("signal: 6"),
        "{readiness}"
    );
    ca.command_faults("");
    ca.until_ready().await;
    ca.check();
}
