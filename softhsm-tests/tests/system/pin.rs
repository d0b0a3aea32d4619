//! What becomes of a PIN over several starts of a daemon, as a unit or a container makes them: no
//! start spends a try that an earlier one may have spent, until an operator orders it or writes the
//! PIN's file anew.

use softhsm_tests::daemon::Setup;
use softhsm_tests::{Ask, Csr, Material, TestCa};

/// A daemon on the fault module that is started again and again.
struct Unit {
    ca: TestCa,
}

impl Unit {
    fn new(setup: Setup) -> Self {
        Self {
            ca: TestCa::configured(
                Material::new(),
                setup
                    .with_faults()
                    .replace("env = {", "open_timeout = \"2s\"\nenv = {"),
            ),
        }
    }

    /// How many tries of the PIN one start makes that ends by itself, and what it says.
    fn start(&self, rules: &str) -> (u64, String) {
        self.ca.command_faults(rules);
        let before = self.ca.faults().logins();
        let output = self.ca.verb(&["serve"]).output().expect("ca-server runs");
        (
            self.ca.faults().logins() - before,
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    }

    /// What holds of every start that must not try.
    fn stays_away(&self, sentence: &str) {
        let (tries, log) = self.start("");
        assert_eq!(tries, 0, "{log}");
        assert!(
            log.contains(sentence) && log.contains("not tried again until the next reload"),
            "{log}"
        );
    }

    fn doctor_tries(&self) {
        let output = self
            .ca
            .verb(&["doctor", "--no-rate"])
            .output()
            .expect("ca-server runs");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            said.contains("not tried again until"),
            "doctor heeds the mark, too: {said}"
        );
        let output = self
            .ca
            .verb(&["doctor", "--no-rate", "--try-pin"])
            .output()
            .expect("ca-server runs");
        assert!(
            String::from_utf8_lossy(&output.stdout).contains("logged in with the PIN"),
            "{output:?}"
        );
    }

    async fn serves(mut self) {
        self.ca.command_faults("");
        self.ca.restart().await;
        self.ca
            .call(&Csr::demo().pem, &Ask::bearer(&self.ca.token()))
            .await
            .expect("it is served");
        self.ca.check();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pin_whose_try_did_not_come_back_is_not_tried_by_the_next_start() {
    for rules in ["C_Login segfault", "C_Login hang"] {
        let unit = Unit::new(Setup::default());
        let (tries, log) = unit.start(rules);
        assert_eq!(tries, 1, "{rules}: {log}");
        unit.stays_away("ended inside C_Login");
        unit.stays_away("ended inside C_Login");
        unit.doctor_tries();
        unit.serves().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_pin_is_not_tried_by_the_next_start_but_another_one_is() {
    for setup in [Setup::default(), Setup::default().on_threads()] {
        let unit = Unit::new(setup);
        let (tries, log) = unit.start("C_Login rv 0xA0");
        assert_eq!(tries, 1, "{log}");
        unit.stays_away("has refused the PIN");
        // The operator writes the file anew.
        unit.ca
            .material
            .write("issuing.pin", unit.ca.material.read("issuing.pin"));
        unit.serves().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_that_is_slow_to_open_starts_and_is_replaced_within_one_limit() {
    // Longer than a limit that had been fixed.
    let setup = Setup::default()
        .with_faults()
        .replace("env = {", "open_timeout = \"40s\"\nenv = {");
    let mut ca = TestCa::configured(Material::new(), setup);
    ca.command_faults("C_Initialize sleep_ms 11000");
    ca.restart().await;
    let met = ca.faults().met("C_Initialize");
    ca.command_faults("C_Initialize sleep_ms 11000\nC_Sign abort once");
    let ask = Ask::bearer(&ca.token());
    let _lost_with_its_process = ca.call(&Csr::demo().pem, &ask).await;
    ca.until("replaced", || async {
        ca.call(&Csr::demo().pem, &ask).await.is_ok()
    })
    .await;
    assert_eq!(
        ca.faults().met("C_Initialize") - met,
        1,
        "the first process that took its place came through"
    );
    ca.check();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_pin_is_not_tried_again_because_another_session_hangs() {
    // The idle session is looked after within five seconds, the one that hangs is given up later.
    let setup = Setup::default()
        .with_faults()
        .replace("env = {", "sessions = 2\ntimeout = \"9s\"\nenv = {");
    let ca =
        TestCa::start_with(setup.replace("call_timeout = \"5s\"", "call_timeout = \"2s\"")).await;
    ca.until("whole", || async {
        ca.get("/healthz/ready")
            .await
            .1
            .contains("2 of 2 sessions open, 0 stuck")
    })
    .await;
    let logins = ca.faults().logins();
    ca.command_faults("C_Sign hang once");
    let _late = ca.call(&Csr::demo().pem, &Ask::bearer(&ca.token())).await;
    ca.command_faults("C_GetSessionInfo close_sessions count 1\nC_Login rv 0xA0");
    ca.logged("the signer process is killed and another started")
        .await;
    ca.until("locked", || async {
        ca.get("/healthz/ready")
            .await
            .1
            .contains("not tried again until the next reload")
    })
    .await;
    assert_eq!(ca.faults().logins() - logins, 1, "{}", ca.log_text());
    ca.command_faults("");
    assert!(ca.reload().await);
    ca.until("served", || async {
        ca.call(&Csr::demo().pem, &Ask::bearer(&ca.token()))
            .await
            .is_ok()
    })
    .await;
    assert_eq!(ca.faults().logins() - logins, 2, "one an order");
    ca.check();
}
