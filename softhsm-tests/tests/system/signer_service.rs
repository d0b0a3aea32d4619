//! A signer that is a service of its own: daemons come and go, it comes and goes, and what it signs
//! is decided by its own file alone.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use signers::pkcs11::MayTry;
use signers::process::wire::{Reply, Request, Setup as SignerSetup, VERSION, length};
use signers::{Purpose, SignError};
use softhsm_tests::daemon::{PATIENCE, Setup, begun, signal};
use softhsm_tests::{Ask, Csr, Load, Material, TestCa, tell};
use tonic::Code;

use crate::devices::signer_detail;
use crate::several_tokens::{fault_module, key_in_two_more_tokens, line};

/// What a workload of the tests may have for a day, and the daemon for its own port.
const LEAF: &str = "trust_domains = [\"cluster.local\"]\nlongest = \"24h\"\n";
const SERVING: &str =
    "names = [\"localhost\", \"127.0.0.1\", \"istiod.istio-system.svc\"]\nlongest = \"24h\"\n";

/// A daemon's config that names the service and no PIN.
pub fn by_service() -> Setup {
    Setup::default()
        .replace(
            "[device.softhsm]\n",
            "[device.softhsm]\nsocket = \"signer.sock\"\n",
        )
        .replace("&pin-source=file:issuing.pin", "")
        .replace("call_timeout = \"5s\"", "call_timeout = \"20s\"")
}

fn us() -> u32 {
    rustix::process::getuid().as_raw()
}

/// A service on the issuing key of a daemon's material. Killed when dropped.
pub struct Service {
    process: Option<Child>,
    socket: PathBuf,
    alarms: PathBuf,
    file: PathBuf,
    environment: BTreeMap<String, String>,
    log: Arc<Mutex<Vec<String>>>,
}

impl Service {
    /// Its file, and no process yet.
    fn of(material: &Material, leaf: &str, serving: &str) -> Self {
        let config: toml::Table = toml::from_str(&material.read("ca.toml")).expect("TOML");
        let text = |value: &toml::Value| value.as_str().expect("text").to_owned();
        let issuer = &config["issuer"][0];
        let rules = format!(
            "uids = [{}]\nalarms = \"alarms.jsonl\"\n\n[log]\nformat = \"json\"\n\n[[key]]\nuri = {:?}\nissuer = {:?}\ntimeout = \"500ms\"\n\n\
             [key.leaf]\n{leaf}\n[key.serving]\n{serving}",
            us(),
            text(&issuer["key"]) + "&pin-source=file:issuing.pin",
            text(&issuer["chain"]),
        );
        material.write("signer.toml", rules);
        let environment = config["device"]["softhsm"]["env"]
            .as_table()
            .expect("a table");
        Self {
            process: None,
            socket: material.file("signer.sock"),
            alarms: material.file("alarms.jsonl"),
            file: material.file("signer.toml"),
            environment: environment
                .iter()
                .map(|(name, value)| (name.clone(), text(value)))
                .collect(),
            log: Arc::default(),
        }
    }

    /// A service with the usual rules that listens.
    pub fn start(material: &Material) -> Self {
        let mut service = Self::of(material, LEAF, SERVING);
        service.begin();
        service
    }

    fn command(&self) -> Command {
        let mut command = Command::new(softhsm_tests::build::ca_server());
        command
            .arg("signer")
            .arg("--listen")
            .arg(format!("unix:{}", self.socket.display()))
            .arg("--config")
            .arg(&self.file);
        command.envs(&self.environment);
        command
    }

    fn edit(&self, from: &str, to: &str) {
        let text = std::fs::read_to_string(&self.file).expect("there");
        assert!(text.contains(from), "{text}");
        std::fs::write(&self.file, text.replace(from, to)).expect("writable");
    }

    /// Starts it.
    fn spawn(&mut self) {
        self.process = Some(begun(&mut self.command(), self.log.clone()).0);
    }

    /// Starts it, and waits until it listens.
    pub fn begin(&mut self) {
        let before = self.count_logged("the signer listens");
        self.spawn();
        self.until("listening", |service| {
            service.count_logged("the signer listens") > before
        });
    }

    fn until(&mut self, what: &str, holds: impl Fn(&mut Self) -> bool) {
        let begun = Instant::now();
        while !holds(self) {
            assert!(
                begun.elapsed() < PATIENCE,
                "never {what}: {}",
                self.log_text()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn log_text(&self) -> String {
        self.log.lock().expect("unpoisoned").join("\n")
    }

    fn count_logged(&self, text: &str) -> usize {
        self.log
            .lock()
            .expect("unpoisoned")
            .iter()
            .filter(|line| line.contains(text))
            .count()
    }

    fn pid(&self) -> u32 {
        self.process.as_ref().expect("running").id()
    }

    fn kill(&mut self) {
        let mut process = self.process.take().expect("running");
        process.kill().expect("killed");
        process.wait().expect("waited");
    }

    /// Ends it in order.
    fn stop(&mut self) -> ExitStatus {
        signal(self.pid(), "TERM");
        self.process
            .take()
            .expect("running")
            .wait()
            .expect("waited")
    }

    /// How it has ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        let status = self
            .process
            .as_mut()
            .expect("running")
            .try_wait()
            .expect("waited")?;
        self.process = None;
        Some(status)
    }

    fn alarms(&self) -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(&self.alarms).expect("there since the start");
        text.lines()
            .map(|line| serde_json::from_str(line).expect("a JSON object a line"))
            .collect()
    }

    fn connect(&self) -> Spoken {
        let stream = UnixStream::connect(&self.socket).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
        Spoken(stream)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            // Already ended is fine.
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// What a test says to the service in a daemon's place.
struct Spoken(UnixStream);

impl Spoken {
    fn say(&mut self, request: &Request) {
        let mut frame = Vec::new();
        request.write(&mut frame);
        self.0.write_all(&frame).expect("it listens");
    }

    /// The next reply; `None` at the end.
    fn hear(&mut self) -> Option<Reply> {
        let mut header = [0; 4];
        match self.0.read_exact(&mut header) {
            Ok(()) => {}
            // It left unread what we sent, or did not.
            Err(error)
                if [
                    std::io::ErrorKind::UnexpectedEof,
                    std::io::ErrorKind::ConnectionReset,
                ]
                .contains(&error.kind()) =>
            {
                return None;
            }
            Err(error) => panic!("{error}"),
        }
        let mut body = vec![0; length(header).expect("a frame")];
        self.0.read_exact(&mut body).expect("the whole frame");
        Some(Reply::read(&body).expect("a reply"))
    }

    fn begin(&mut self) -> Option<Reply> {
        self.say(&Request::Begin {
            version: VERSION,
            setup: None,
        });
        self.hear()
    }
}

/// A daemon that is configured for a service, both with these faults or none, and not started.
pub fn material(setup: Setup) -> TestCa {
    softhsm_tests::crypto();
    TestCa::configured(Material::new(), setup)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn daemons_issue_through_one_signer_that_is_a_service_of_its_own() {
    let mut ca = material(by_service());
    let mut service = Service::of(&ca.material, LEAF, SERVING);
    let manager = UnixDatagram::bind(ca.material.file("notify.sock")).expect("a socket");
    manager.set_read_timeout(Some(PATIENCE)).expect("a socket");
    service.environment.insert(
        "NOTIFY_SOCKET".to_owned(),
        ca.material
            .file("notify.sock")
            .to_str()
            .expect("text")
            .to_owned(),
    );
    service.begin();
    let mut told = [0; 64];
    let length = manager.recv(&mut told).expect("a service manager is told");
    assert!(told[..length].starts_with(b"READY=1"), "{told:?}");
    ca.restart().await;
    let socket = format!("socket = {:?}", service.socket);
    let other = TestCa::start_with(by_service().replace("socket = \"signer.sock\"", &socket)).await;
    for daemon in [&ca, &other] {
        daemon
            .call(&Csr::demo().pem, &Ask::bearer(&daemon.token()))
            .await
            .expect("issued");
        let maps =
            std::fs::read_to_string(format!("/proc/{}/maps", daemon.pid())).expect("running");
        assert!(!maps.contains("softhsm"), "no daemon has the module");
        let tasks = std::fs::read_dir(format!("/proc/{}/task", daemon.pid())).expect("running");
        let children: String = tasks
            .filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("children")).ok())
            .collect();
        assert_eq!(children, "", "no daemon has a child");
    }
    assert!(
        std::fs::read_to_string(format!("/proc/{}/maps", service.pid()))
            .expect("running")
            .contains("softhsm")
    );
    let status =
        std::fs::read_to_string(format!("/proc/{}/status", service.pid())).expect("running");
    let of = |key: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(key))
            .map(str::trim)
            .map(str::to_owned)
    };
    assert_eq!(
        (of("NoNewPrivs:"), of("Seccomp:")),
        (Some("1".to_owned()), Some("2".to_owned())),
        "{status}"
    );
    assert!(
        of("CapEff:").is_some_and(|held| held.trim_matches('0').is_empty()),
        "{status}"
    );
    assert_eq!(
        std::fs::metadata(&service.socket).expect("there").mode() & 0o777,
        0o660
    );
    assert_eq!(service.alarms(), Vec::<serde_json::Value>::new());
    ca.check();
    other.check();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signer_that_is_killed_or_stopped_and_started_again_under_load_costs_no_call() {
    const TIMES: usize = 10;
    let mut ca = material(by_service().with_faults());
    let mut service = Service::start(&ca.material);
    ca.restart().await;
    let (mut load, mut longest) = (Load::on(&ca, 8), Duration::ZERO);
    for time in 0..2 * TIMES {
        load.until_issued(&ca, 10 + time % 7).await;
        if time % 2 == 0 {
            service.kill();
        } else {
            assert!(service.stop().success(), "{}", service.log_text());
            assert!(!service.socket.exists(), "it takes its socket along");
        }
        let begun = Instant::now();
        service.begin();
        load.until_issued(&ca, 1).await;
        longest = longest.max(begun.elapsed());
    }
    load.stop().await;
    let why = || {
        format!(
            "{:?} {:?}, longest {longest:?}\n{}",
            load.refused(),
            load.unanswered(),
            ca.log_text()
        )
    };
    assert!(
        load.refused().is_empty() && load.unanswered().is_empty(),
        "{}",
        why()
    );
    assert!(longest < Duration::from_secs(10), "{longest:?}");
    let ledger = ca.check();
    assert_eq!(ca.open_intents(&ledger), 0);
    tell(&format!(
        "a signer service killed {TIMES} times and stopped {TIMES} times: {} certificates, no call failed, the next certificate at most {} ms \
         after its start",
        load.issued(),
        longest.as_millis()
    ));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signer_that_stays_away_is_waited_for_so_long_and_found_when_it_returns() {
    let mut ca = material(by_service());
    let mut service = Service::start(&ca.material);
    ca.restart().await;
    let mut load = Load::on(&ca, 4);
    load.until_issued(&ca, 5).await;
    assert!(service.stop().success());
    // Then calls are answered at once, and readiness says so.
    ca.until("without a signer", || async {
        load.all_in_vain(5) && ca.get("/healthz/ready").await.0 == 503
    })
    .await;
    assert!(
        ca.get("/healthz/ready")
            .await
            .1
            .contains("no signer answers at"),
        "{}",
        ca.get("/healthz/ready").await.1
    );
    let issued = load.issued();
    service.begin();
    let begun = Instant::now();
    ca.until("served again", || async { load.issued() > issued })
        .await;
    assert!(
        begun.elapsed() < Duration::from_secs(10),
        "{:?}",
        begun.elapsed()
    );
    load.stop().await;
    assert!(
        load.unanswered().is_empty() && load.refused().keys().all(|code| code == "Unavailable"),
        "{:?}",
        load.refused()
    );
    ca.check();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_signer_refuses_what_its_own_file_forbids_although_the_daemon_allows_it() {
    let mut ca = material(by_service());
    let leaf = "trust_domains = [\"cluster.local\"]\nidentities = [\"spiffe://cluster.local/ns/default/sa/*\"]\nlongest = \"2h\"\n";
    let mut service = Service::of(&ca.material, leaf, SERVING);
    service.begin();
    ca.restart().await;
    let hour = |token: &str| Ask::bearer(token).lifetime(3600);
    ca.call(&Csr::demo().pem, &hour(&ca.token()))
        .await
        .expect("within both rules");
    let neighbour = ca.minter().token("payments", "demo");
    let forbidden = [
        (
            Ask::bearer(&ca.token()).lifetime(3 * 3600),
            "it is valid for",
        ),
        (
            hour(&neighbour),
            "is none of the workloads that may have a certificate",
        ),
    ];
    for (ask, why) in &forbidden {
        let status = ca.call(&Csr::demo().pem, ask).await.expect_err("forbidden");
        assert_eq!(
            (status.code(), status.message()),
            (Code::Internal, "internal error of the CA")
        );
        assert!(
            service
                .alarms()
                .last()
                .is_some_and(|alarm| alarm["why"].as_str().expect("text").contains(why)),
            "{why}"
        );
    }
    let alarms = service.alarms();
    assert_eq!(alarms.len(), forbidden.len(), "{alarms:?}");
    let ledger = ca.check();
    let failed = ledger.kind("failed");
    assert_eq!(failed.len(), forbidden.len());
    for (alarm, row) in alarms.iter().zip(failed) {
        assert_eq!(
            alarm["to_be_signed_sha256"], row["to_be_signed_sha256"],
            "an alarm leads to its intent"
        );
        assert_eq!(
            (&alarm["alarm"], &alarm["purpose"], &alarm["uid"]),
            (&"guard".into(), &"leaf".into(), &us().into())
        );
        assert_eq!(alarm["pid"], ca.pid());
        assert!(row.to_string().contains("guard_refused"), "{row}");
    }
    assert_eq!(service.count_logged("\"alarm\":\"guard\""), forbidden.len());
    assert_eq!(
        std::fs::metadata(&service.alarms).expect("there").mode() & 0o777,
        0o600
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_purpose_without_rules_is_not_signed() {
    let ca = material(by_service());
    let mut service = Service::of(&ca.material, LEAF, SERVING);
    service.edit(&format!("[key.serving]\n{SERVING}"), "");
    service.begin();
    let mut spoken = service.connect();
    assert!(matches!(spoken.begin(), Some(Reply::Ready { .. })));
    for purpose in [
        Purpose::Serving,
        Purpose::Crl,
        Purpose::CaCertificate,
        Purpose::Probe,
    ] {
        spoken.say(&Request::Sign {
            id: 1,
            key: 0,
            purpose,
            time_left: PATIENCE,
            message: vec![0x30, 0],
        });
        match spoken.hear() {
            Some(Reply::NotSigned { failure, .. }) => {
                assert!(
                    !failure.reached_device && matches!(failure.error, SignError::Forbidden(_)),
                    "{failure:?}"
                );
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(service.alarms().len(), 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signer_answers_to_the_users_in_its_file_and_to_nobody_else() {
    let mut ca = material(by_service());
    let mut service = Service::of(&ca.material, LEAF, SERVING);
    service.edit(
        &format!("uids = [{}]", us()),
        &format!("uids = [{}]", us() + 1),
    );
    service.begin();
    assert!(service.connect().hear().is_none(), "closed without a word");
    ca.spawn();
    assert_eq!(ca.get("/healthz/ready").await.0, 503);
    ca.stop();
    let alarms = service.alarms();
    assert!(alarms.len() >= 2, "{alarms:?}");
    for alarm in &alarms {
        assert_eq!(
            (&alarm["alarm"], &alarm["uid"]),
            (&"peer".into(), &us().into()),
            "{alarm}"
        );
        assert_eq!(
            alarm["why"], "neither its user is in `uids` nor its group in `gids`",
            "{alarm}"
        );
    }
    assert!(service.stop().success());
    let group = rustix::process::getgid().as_raw();
    service.edit("uids = ", &format!("gids = [{group}]\nuids = "));
    service.begin();
    ca.restart().await;
    ca.call(&Csr::demo().pem, &Ask::bearer(&ca.token()))
        .await
        .expect("a group may, too");
    ca.check();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_daemon_says_beside_its_wishes_changes_nothing_and_nonsense_costs_only_its_own_connection()
 {
    let mut ca = material(by_service().with_faults());
    let service = Service::start(&ca.material);
    ca.restart().await;
    let mut load = Load::on(&ca, 4);
    load.until_issued(&ca, 5).await;
    // Rules and keys of its own.
    let mut brings_rules = service.connect();
    brings_rules.say(&Request::Begin {
        version: VERSION,
        setup: Some(SignerSetup {
            keys: Vec::new(),
            rules: b"{}".to_vec(),
            may_try: MayTry::Carefully,
        }),
    });
    assert!(matches!(
        brings_rules.hear(),
        Some(Reply::NotReady(SignError::Rejected(_)))
    ));
    assert!(brings_rules.hear().is_none(), "it is shown the door");
    // Orders of an operator who is not this service's.
    let (mut orders, logins) = (service.connect(), ca.faults().logins());
    assert!(matches!(orders.begin(), Some(Reply::Ready { .. })));
    (1..=10).for_each(|order| orders.say(&Request::LogIn { order }));
    orders.say(&Request::Ask);
    assert!(matches!(orders.hear(), Some(Reply::Health(_))));
    assert_eq!(ca.faults().logins(), logins);
    // No frame, a frame too long, one of an unknown kind, one that begins twice.
    let mut twice = Vec::new();
    (0..2).for_each(|_| {
        Request::Begin {
            version: VERSION,
            setup: None,
        }
        .write(&mut twice)
    });
    for nonsense in [
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        vec![0xff; 64],
        vec![0, 0, 0, 1, 99],
        twice,
    ] {
        let mut stream = service.connect();
        stream.0.write_all(&nonsense).expect("it listens");
        while stream.hear().is_some() {}
    }
    let count = |alarm: &str| {
        service
            .alarms()
            .iter()
            .filter(|one| one["alarm"] == alarm)
            .count()
    };
    ca.until("raised", || async { count("protocol") == 4 })
        .await;
    assert_eq!(count("setup"), 1);
    // More connections than there are places; those that are served stay.
    let mut held: Vec<Spoken> = (0..20).map(|_| service.connect()).collect();
    let served = held.iter_mut().filter_map(|one| {
        let begin = {
            let mut frame = Vec::new();
            Request::Begin {
                version: VERSION,
                setup: None,
            }
            .write(&mut frame);
            frame
        };
        // One that was closed at once may not even take it.
        one.0.write_all(&begin).ok()?;
        one.hear()
    });
    assert_eq!(
        served.count(),
        14,
        "sixteen with the daemon and the one that orders"
    );
    drop((held, orders));
    load.until_issued(&ca, 20).await;
    load.stop().await;
    assert!(
        load.refused().is_empty() && load.unanswered().is_empty(),
        "{:?} {:?}",
        load.refused(),
        load.unanswered()
    );
    ca.check();
}

/// What every signer's guard lets pass and its device signs.
fn probe(id: u64, time_left: Duration) -> Request {
    Request::Sign {
        id,
        key: 0,
        purpose: Purpose::Probe,
        time_left,
        message: signers::PROBE.to_vec(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_that_hardly_reads_costs_the_others_nothing() {
    let mut ca = material(by_service());
    let service = Service::start(&ca.material);
    ca.restart().await;
    let mut slow = service.connect();
    assert!(matches!(slow.begin(), Some(Reply::Ready { .. })));
    let mut writing = Spoken(slow.0.try_clone().expect("a descriptor"));
    // Soon more than the socket holds, and never so many at a time that the queue has no room for
    // others.
    let asking = std::thread::spawn(move || {
        for id in 0..20_000 {
            let mut frame = Vec::new();
            probe(id, PATIENCE).write(&mut frame);
            if writing.0.write_all(&frame).is_err() {
                return;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    });
    // A little now and then: each time a writer that waits goes on, and is not given up.
    let reading = std::thread::spawn(move || {
        while slow.0.read(&mut [0; 512]).is_ok_and(|read| read > 0) {
            std::thread::sleep(Duration::from_millis(200));
        }
    });
    let mut load = Load::on(&ca, 4);
    load.until_issued(&ca, 300).await;
    load.stop().await;
    assert!(
        load.refused().is_empty() && load.unanswered().is_empty(),
        "{:?} {:?}",
        load.refused(),
        load.unanswered()
    );
    drop(service);
    asking.join().expect("ended with the service");
    reading.join().expect("ended with the service");
    ca.check();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_daemon_asked_for_goes_with_it_however_long_it_would_have_waited() {
    const ASKED: u64 = 500;
    let mut ca = material(by_service().with_faults());
    let mut service = Service::start(&ca.material);
    ca.restart().await;
    let descriptors = |service: &Service| {
        std::fs::read_dir(format!("/proc/{}/fd", service.pid()))
            .expect("running")
            .count()
    };
    let before = descriptors(&service);
    // Four sessions would sign for half a minute.
    ca.command_faults("C_Sign sleep_ms 300");
    let (mut gone, asked_before) = (service.connect(), ca.faults().calls("C_Sign"));
    assert!(matches!(gone.begin(), Some(Reply::Ready { .. })));
    (0..ASKED).for_each(|id| gone.say(&probe(id, Duration::from_secs(49 * 86_400))));
    ca.until("under way", || async {
        ca.faults().calls("C_Sign") > asked_before
    })
    .await;
    drop(gone);
    ca.call(&Csr::demo().pem, &Ask::bearer(&ca.token()))
        .await
        .expect("issued: nobody waits for who has gone");
    let signed = ca.faults().calls("C_Sign") - asked_before;
    assert!(signed < ASKED / 2, "{signed} of what nobody wants any more");
    service.until("free of it", |service| descriptors(service) <= before);
    ca.command_faults("");
    ca.check();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_whose_log_cannot_be_written_refuses_signs_and_raises_its_alarms() {
    let mut ca = material(by_service());
    let mut service = Service::of(&ca.material, LEAF, SERVING);
    let full = std::fs::File::options()
        .write(true)
        .open("/dev/full")
        .expect("a device");
    service.process = Some(
        service
            .command()
            .stdout(Stdio::null())
            .stderr(full)
            .spawn()
            .expect("runs"),
    );
    service.until("listening", |service| {
        UnixStream::connect(&service.socket).is_ok()
    });
    ca.restart().await;
    ca.call(&Csr::demo().pem, &Ask::bearer(&ca.token()))
        .await
        .expect("issued");
    let mut spoken = service.connect();
    assert!(matches!(spoken.begin(), Some(Reply::Ready { .. })));
    spoken.say(&Request::Sign {
        id: 1,
        key: 0,
        purpose: Purpose::Crl,
        time_left: PATIENCE,
        message: vec![0x30, 0],
    });
    assert!(matches!(spoken.hear(), Some(Reply::NotSigned { .. })));
    assert_eq!(
        service
            .alarms()
            .iter()
            .filter(|alarm| alarm["alarm"] == "guard")
            .count(),
        1
    );
    ca.call(&Csr::demo().pem, &Ask::bearer(&ca.token()))
        .await
        .expect("issued");
    assert!(service.stop().success());
    ca.check();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signer_whose_device_hangs_or_stays_lost_ends_by_itself_and_the_next_one_goes_on() {
    let mut ca = material(by_service().with_faults());
    let mut service = Service::start(&ca.material);
    ca.restart().await;
    let mut load = Load::on(&ca, 4);
    load.until_issued(&ca, 10).await;
    ca.command_faults("C_Sign hang once");
    let begun = Instant::now();
    let mut status = None;
    while status.is_none() {
        assert!(begun.elapsed() < PATIENCE, "{}", service.log_text());
        tokio::time::sleep(Duration::from_millis(20)).await;
        status = service.ended();
    }
    assert_eq!(
        status.and_then(|status| status.code()),
        Some(3),
        "{}",
        service.log_text()
    );
    assert_eq!(
        service.count_logged("has not returned long after its limit of 0.5 s"),
        2,
        "{}",
        service.log_text()
    );
    service.begin();
    load.until_issued(&ca, 10).await;
    assert!(
        load.refused().is_empty() && load.unanswered().is_empty(),
        "{:?} {:?}",
        load.refused(),
        load.unanswered()
    );
    ca.command_faults("token removed");
    service.until("ended", |service| service.ended().is_some());
    assert_eq!(
        service.count_logged("every key is lost"),
        2,
        "{}",
        service.log_text()
    );
    let output = service.command().output().expect("runs");
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    ca.command_faults("");
    service.begin();
    load.until_issued(&ca, 10).await;
    load.stop().await;
    assert!(
        load.unanswered().is_empty() && load.refused().keys().all(|code| code == "Unavailable"),
        "{:?}",
        load.refused()
    );
    ca.until("closed", || async { ca.open_intents(&ca.export()) == 0 })
        .await;
    ca.check();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_pin_costs_one_try_and_waits_for_this_signers_own_operator() {
    let mut ca = material(by_service().with_faults());
    let pin = ca.material.read("issuing.pin");
    ca.material.write("issuing.pin", "wrong");
    let mut service = Service::start(&ca.material);
    for _ in 0..3 {
        assert!(
            matches!(
                service.connect().begin(),
                Some(Reply::NotReady(SignError::Locked(_)))
            ),
            "{}",
            service.log_text()
        );
    }
    let output = ca.verb(&["serve"]).output().expect("runs");
    assert_eq!(
        output.status.code(),
        Some(3),
        "connecting tries no PIN, so the daemon may be started again: {output:?}"
    );
    assert_eq!(
        ca.faults().logins(),
        1,
        "whoever comes, the PIN is tried once"
    );
    ca.material.write("issuing.pin", &pin);
    signal(service.pid(), "HUP");
    service.until("open", |service| {
        matches!(service.connect().begin(), Some(Reply::Ready { .. }))
    });
    assert_eq!(ca.faults().logins(), 2);
    ca.restart().await;
    ca.call(&Csr::demo().pem, &Ask::bearer(&ca.token()))
        .await
        .expect("issued");
    ca.check();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signer_starts_only_on_a_file_a_socket_and_a_directory_that_are_its_own() {
    let ca = material(by_service());
    let mut service = Service::start(&ca.material);
    let refused = |output: Output, code: i32, why: &str| {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            output.status.code() == Some(code) && said.contains(why),
            "{why}: {output:?}"
        );
    };
    refused(
        service.command().output().expect("runs"),
        3,
        "somebody answers there already",
    );
    service.kill();
    assert!(service.socket.exists(), "what was killed leaves its socket");
    service.begin();
    assert!(service.stop().success() && !service.socket.exists());
    let signer = |arguments: &[&str]| {
        let mut command = Command::new(softhsm_tests::build::ca_server());
        command
            .arg("signer")
            .args(arguments)
            .output()
            .expect("runs")
    };
    let file = service.file.to_str().expect("text");
    refused(
        signer(&["--listen", "unix:/nowhere/at/all/socket", "--config", file]),
        3,
        "make it with: install -d",
    );
    refused(
        signer(&["--listen", "/run/socket", "--config", file]),
        2,
        "write such as unix:",
    );
    refused(
        signer(&["--listen", "unix:/run/socket"]),
        2,
        "name it with --config",
    );
    refused(
        signer(&["--listen", "unix:/run/socket", "--config", "/nowhere"]),
        2,
        "/nowhere cannot be read",
    );
    refused(
        signer(&[
            "--listen",
            "unix:/run/socket",
            "--config",
            file,
            "--log-json",
        ]),
        2,
        "cannot be used with",
    );
    let checked = service.command().arg("--check").output().expect("runs");
    assert!(
        checked.status.success()
            && String::from_utf8_lossy(&checked.stdout).contains("is good: 1 key(s)"),
        "{checked:?}"
    );
    let good = ca.material.read("signer.toml");
    for (from, to, why) in [
        ("uids = [", "uid = [", "unknown field `uid`"),
        (
            "longest = \"24h\"\n\n[key.serving]",
            "[key.serving]",
            "missing field `longest`",
        ),
        ("[\"cluster.local\"]", "[]", "`trust_domains` is empty"),
        (
            "[\"cluster.local\"]",
            "[\"cluster.local\"]\nidentities = [\"spiffe://other/ns/*\"]",
            "of none of its `trust_domains`",
        ),
        (
            "[\"cluster.local\"]",
            "[\"cluster.local\"]\nidentities = [\"spiffe://cluster.local/**\"]",
            "no pattern of identities",
        ),
        (
            "[\"cluster.local\"]",
            "[\"cluster.local\"]\nextensions = [\"key_usage\"]",
            "`extensions` is no setting any more",
        ),
        (
            "[\"cluster.local\"]",
            "[\"cluster.local\"]\nkey_usages = [\"key_cert_sign\"]",
            "`key_usages` is no setting any more",
        ),
        (
            "uids = [",
            "templates = [1, 9]\nuids = [",
            "there is no template 9",
        ),
        (
            "\"localhost\"",
            "\"*.local host\"",
            "no DNS name and no IP address",
        ),
        ("timeout = \"500ms\"", "timeout = \"2h\"", "lies outside"),
        (
            "timeout = \"500ms\"",
            "timeout = \"500ms\"\ninit_string = \"a\\u0000b\"",
            "holds a NUL",
        ),
        (
            &format!("uids = [{}]", us()),
            "uids = []",
            "nobody could connect",
        ),
        ("pin-source=file:issuing.pin", "pin-value=1234", "pin-value"),
    ] {
        service.edit(from, to);
        refused(
            service.command().arg("--check").output().expect("runs"),
            2,
            why,
        );
        ca.material.write("signer.toml", &good);
    }
    std::fs::set_permissions(&service.file, std::fs::Permissions::from_mode(0o664)).expect("ours");
    refused(
        service.command().output().expect("runs"),
        2,
        "it decides what is signed",
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_starts_with_the_keys_that_it_can_open_and_its_operator_heals_the_others() {
    let mut ca = material(by_service().with_faults());
    key_in_two_more_tokens(&ca.material);
    let uri = |label: &str| {
        format!(
            "pkcs11:token={label};object=sibling?module-path={}",
            fault_module().display()
        )
    };
    ca.edit_config(
        &line(&ca.material, "key = "),
        &format!("key = {:?}", uri("one")),
    );
    let mut service = Service::of(&ca.material, LEAF, SERVING);
    let rules = ca.material.read("signer.toml");
    let (_, key) = rules.split_once("[[key]]").expect("one key");
    ca.material.write(
        "signer.toml",
        format!("{rules}\n[[key]]{}", key.replace("token=one", "token=two")),
    );
    ca.edit_config(
        &line(&ca.material, "key = "),
        &format!("key = {:?}", [uri("one"), uri("two")]),
    );
    // CKR_PIN_INCORRECT, once: whichever token is first.
    ca.command_faults("C_Login rv 0xA0 count 1");
    service.begin();
    assert_eq!(
        service.count_logged("this key cannot sign yet; the others do"),
        1,
        "{}",
        service.log_text()
    );
    ca.restart().await;
    ca.call(&Csr::demo().pem, &Ask::bearer(&ca.token()))
        .await
        .expect("the other token signs");
    let detail = signer_detail(&ca).await;
    assert!(
        detail.contains("degraded") && detail.contains("locked_out"),
        "{detail}"
    );
    assert_eq!(ca.faults().logins(), 2, "one try a token");
    signal(service.pid(), "HUP");
    ca.until("whole", || async {
        signer_detail(&ca)
            .await
            .contains("healthy: token 1 is healthy")
    })
    .await;
    assert_eq!(ca.faults().logins(), 3);
    ca.call(&Csr::demo().pem, &Ask::bearer(&ca.token()))
        .await
        .expect("issued");
    ca.check();
}
