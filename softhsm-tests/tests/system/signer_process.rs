//! A device in a process of its own: what dies or hangs there costs calls a moment, and what it is
//! asked to sign it judges for itself.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ca_server::guard::Rules;
use ca_server::x509::chain::IssuerChain;
use der::{Any, Decode, Encode, Tag, TagNumber};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use signers::pkcs11::MayTry;
use signers::process::wire::{KeySetup, Reply, Request, Setup as SignerSetup, VERSION, length};
use signers::{KeyUri, Purpose, SignError};
use softhsm_tests::daemon::{Setup, signal};
use softhsm_tests::{Ask, Csr, Load, TestCa, tell};

/// The signer process of a daemon, if it has one at present.
fn signer_of(ca: &TestCa) -> Option<u32> {
    signer_processes(ca).first().copied()
}

/// Every signer process of a daemon.
pub fn signer_processes(ca: &TestCa) -> Vec<u32> {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", ca.pid())).expect("running");
    let children =
        tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("children")).ok());
    children
        .collect::<String>()
        .split_whitespace()
        .filter_map(|pid| pid.parse().ok())
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_daemon_itself_loads_no_device_library() {
    let ca = TestCa::start().await;
    ca.call(&Csr::demo().pem, &Ask::bearer(&ca.token()))
        .await
        .expect("issued");
    let maps = |pid: u32| std::fs::read_to_string(format!("/proc/{pid}/maps")).expect("running");
    assert!(!maps(ca.pid()).contains("softhsm"), "{}", maps(ca.pid()));
    let signer = signer_of(&ca).expect("a child");
    assert!(
        maps(signer).contains("softhsm"),
        "the signer process has it"
    );
    ca.check();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signer_process_that_is_killed_a_hundred_times_costs_no_call() {
    const KILLS: usize = 100;
    let ca = TestCa::start_with(Setup::default().with_faults()).await;
    let mut load = Load::on(&ca, 8);
    let mut longest = Duration::ZERO;
    for kill in 0..KILLS {
        load.until_issued(&ca, 5 + kill % 7).await;
        ca.until("a signer process", || async { signer_of(&ca).is_some() })
            .await;
        signal(signer_of(&ca).expect("a child"), "KILL");
        let begun = Instant::now();
        load.until_issued(&ca, 1).await;
        longest = longest.max(begun.elapsed());
    }
    load.stop().await;
    assert!(
        load.refused().is_empty() && load.unanswered().is_empty(),
        "{:?} {:?}",
        load.refused(),
        load.unanswered()
    );
    assert!(longest < Duration::from_secs(10), "{longest:?}");
    ca.until("closed", || async { ca.open_intents(&ca.export()) == 0 })
        .await;
    let ledger = ca.check();
    tell(&format!(
        "{KILLS} × the signer process killed: {} certificates, no call failed, the next certificate after at most {} ms; {} intents",
        load.issued(),
        longest.as_millis(),
        ledger.count("intent")
    ));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_that_hangs_costs_its_own_call_and_is_replaced() {
    let ca = TestCa::start_with(Setup::default().with_faults()).await;
    let mut load = Load::on(&ca, 4);
    load.until_issued(&ca, 20).await;
    let before = signer_of(&ca).expect("a child");
    // Once over all processes: the next one does not hang.
    ca.command_faults("C_Sign hang once");
    ca.until("replaced", || async {
        signer_of(&ca).is_some_and(|now| now != before)
    })
    .await;
    ca.command_faults("");
    load.until_issued(&ca, 20).await;
    load.stop().await;
    assert!(
        load.unanswered().is_empty() && load.refused().is_empty(),
        "{:?} {:?}",
        load.refused(),
        load.unanswered()
    );
    ca.until("closed", || async { ca.open_intents(&ca.export()) == 0 })
        .await;
    ca.check();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_that_is_killed_takes_its_signer_along() {
    let mut ca = TestCa::start().await;
    let signer = signer_of(&ca).expect("a child");
    ca.kill();
    let begun = Instant::now();
    while std::fs::metadata(format!("/proc/{signer}")).is_ok() {
        assert!(
            begun.elapsed() < softhsm_tests::daemon::PATIENCE,
            "the signer outlives its daemon"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    ca.restart().await;
    ca.check();
}

/// A signer process that a test speaks to as a daemon would.
struct Spoken {
    process: Child,
    stream: UnixStream,
    log: File,
}

impl Spoken {
    fn to(ca: &TestCa) -> Self {
        let config: toml::Table = toml::from_str(&ca.material.read("ca.toml")).expect("TOML");
        let issuer = &config["issuer"][0];
        let file = |key: &str| {
            ca.material
                .read(issuer[key].as_str().expect("a path"))
                .into_bytes()
        };
        let chain = IssuerChain::parse("default", &file("chain"), &file("roots")).expect("a chain");
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        let mut command = Command::new(softhsm_tests::build::ca_server());
        command
            .args(["signer", "--log-json"])
            .env("SOFTHSM2_CONF", ca.material.file("softhsm2.conf"));
        // A pipe that nobody reads would fill up with alarms.
        let log = tempfile::tempfile().expect("a file");
        command
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stderr(log.try_clone().expect("a file"));
        let process = command.spawn().expect("runs");
        let rules = Rules {
            templates: vec![1],
            issuers: vec![hex::encode(&chain.chain()[0])],
            trust_domains: vec!["cluster.local".to_owned()],
            longest: 90 * 86_400 + 120,
            serving_names: vec!["localhost".to_owned()],
        };
        let uri = KeyUri::parse(issuer["key"].as_str().expect("a URI"), ca.material.path())
            .expect("a URI");
        let key = KeySetup {
            uri: uri.to_string(),
            expected: chain.public_key().spki_der().to_vec(),
            sessions: 1,
            device_limit: Duration::from_secs(5),
            open_limit: Duration::from_secs(10),
        };
        let mut spoken = Self {
            process,
            stream: ours,
            log,
        };
        spoken.say(&Request::Begin {
            version: VERSION,
            setup: Some(SignerSetup {
                keys: vec![key],
                rules: rules.to_text(),
                may_try: MayTry::Carefully,
            }),
        });
        match spoken.hear() {
            Reply::Ready { .. } => spoken,
            other => panic!("{other:?}"),
        }
    }

    fn say(&mut self, request: &Request) {
        let mut frame = Vec::new();
        request.write(&mut frame);
        self.stream.write_all(&frame).expect("it listens");
    }

    /// The next reply that is not about its C_Login.
    fn hear(&mut self) -> Reply {
        loop {
            let mut header = [0; 4];
            self.stream.read_exact(&mut header).expect("it answers");
            let mut body = vec![0; length(header).expect("a frame")];
            self.stream.read_exact(&mut body).expect("it answers");
            match Reply::read(&body).expect("a reply") {
                Reply::Login { .. } => {}
                reply => return reply,
            }
        }
    }

    fn asks(&mut self, purpose: Purpose, message: &[u8]) -> Result<Vec<u8>, SignError> {
        let time_left = Duration::from_secs(5);
        self.say(&Request::Sign {
            id: 1,
            key: 0,
            purpose,
            time_left,
            message: message.to_vec(),
        });
        match self.hear() {
            Reply::Signed { signature, .. } => Ok(signature),
            Reply::NotSigned { failure, .. } => Err(failure.error),
            other => panic!("{other:?}"),
        }
    }

    /// Ends it, and returns what it logged.
    fn end(mut self) -> String {
        drop(self.stream);
        assert!(self.process.wait().expect("it ends").success());
        let mut said = String::new();
        self.log.rewind().expect("a file");
        self.log.read_to_string(&mut said).expect("text");
        said
    }
}

/// To-be-signed bytes, cut into their fields (RFC 5280 §4.1) so that a test can change one.
struct Cut(Vec<Any>);

impl Cut {
    fn of(message: &[u8]) -> Self {
        Self(Vec::<Any>::from_der(message).expect("a SEQUENCE"))
    }

    fn write(&self) -> Vec<u8> {
        self.0.to_der().expect("DER")
    }

    /// The extensions, the last field: an explicit tag around a SEQUENCE.
    fn extensions(&self) -> Vec<Vec<Any>> {
        Vec::<Vec<Any>>::from_der(self.0.last().expect("fields").value()).expect("extensions")
    }

    fn with_extensions(mut self, extensions: &[Vec<Any>]) -> Vec<u8> {
        let content = extensions.to_vec().to_der().expect("DER");
        *self.0.last_mut().expect("fields") = Any::new(
            Tag::ContextSpecific {
                constructed: true,
                number: TagNumber(3),
            },
            content,
        )
        .expect("DER");
        self.write()
    }
}

fn extension(der: &str) -> Vec<Any> {
    Vec::<Any>::from_der(&hex::decode(der).expect("hexadecimal")).expect("an extension")
}

/// One text for another of the same length.
fn swapped(message: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let at = message
        .windows(from.len())
        .position(|window| window == from)
        .expect("it is there");
    [&message[..at], to, &message[at + from.len()..]].concat()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signer_that_is_asked_directly_signs_nothing_that_no_profile_gives() {
    const MUTATED: usize = 10_000;
    let mut ca = TestCa::start().await;
    let leaf = ca
        .call(&Csr::demo().pem, &Ask::bearer(&ca.token()))
        .await
        .expect("issued");
    ca.stop();
    let leaf = CertificateDer::from_pem_slice(leaf[0].as_bytes()).expect("PEM");
    let message = Vec::<Any>::from_der(&leaf).expect("a certificate")[0]
        .to_der()
        .expect("DER");
    let with = |der: &str| {
        let (cut, added) = (Cut::of(&message), extension(der));
        // In the place of the one of its kind, or beside the others.
        let mut extensions: Vec<_> = cut
            .extensions()
            .into_iter()
            .filter(|one| one[0] != added[0])
            .collect();
        extensions.push(added);
        cut.with_extensions(&extensions)
    };
    let mut signer = Spoken::to(&ca);
    signer
        .asks(Purpose::Leaf, &message)
        .expect("what was issued may be signed");
    assert_eq!(
        Cut::of(&message).write(),
        message,
        "cutting changes nothing"
    );
    let validity = Cut::of(&message).0[4].to_der().expect("DER");
    let (year, later) = (validity[validity.len() - 13..].to_vec(), b"360101000000Z");
    let forbidden = [
        (
            "CA:TRUE",
            Purpose::Leaf,
            with("300f0603551d130101ff040530030101ff"),
        ),
        (
            "key usage keyCertSign",
            Purpose::Leaf,
            with("300e0603551d0f0101ff040403020204"),
        ),
        (
            "a foreign trust domain",
            Purpose::Leaf,
            swapped(
                &message,
                b"spiffe://cluster.local/",
                b"spiffe://cluster.l0cal/",
            ),
        ),
        ("ten years", Purpose::Leaf, swapped(&message, &year, later)),
        (
            "a smuggled extension",
            Purpose::Leaf,
            with("300e06062b0601040101040430020500"),
        ),
        (
            "a workload as serving certificate",
            Purpose::Serving,
            message.clone(),
        ),
        ("a certificate as CRL", Purpose::Crl, message.clone()),
        (
            "a CRL under a leaf's purpose",
            Purpose::Leaf,
            hex::decode("301e020101300a06082a8648ce3d040302300d310b3009060355040313024341")
                .expect("hexadecimal"),
        ),
        ("a CA certificate", Purpose::CaCertificate, message.clone()),
        ("nothing", Purpose::Leaf, Vec::new()),
    ];
    for (what, purpose, message) in &forbidden {
        match signer.asks(*purpose, message) {
            Err(SignError::Forbidden(_)) => {}
            other => panic!("{what}: {other:?}"),
        }
    }
    let (mut random, mut refused, mut alike) = (fastrand::Rng::with_seed(20_261_122), 0, 0);
    for _ in 0..MUTATED {
        let mut mutated = message.clone();
        for _ in 0..random.usize(1..4) {
            let at = random.usize(..mutated.len());
            match random.u8(..3) {
                0 => mutated[at] ^= 1 << random.u8(..8),
                1 => drop(mutated.remove(at)),
                _ => mutated.insert(at, random.u8(..)),
            }
        }
        match signer.asks(Purpose::Leaf, &mutated) {
            Err(SignError::Forbidden(_)) => refused += 1,
            // Another serial, key or account is a certificate as good as any: what it says is
            // within the rules.
            Ok(_) => alike += 1,
            Err(error) => panic!("{error:?}"),
        }
    }
    let log = signer.end();
    let alarms = log
        .lines()
        .filter(|line| line.contains("\"alarm\":\"guard\""))
        .count();
    assert_eq!(
        alarms,
        forbidden.len() + refused,
        "each refusal is an alarm"
    );
    assert!(refused > MUTATED / 2, "{refused} refused");
    tell(&format!(
        "guard: {} forbidden kinds refused, {refused} of {MUTATED} mutated bodies refused, {alike} within the rules",
        forbidden.len()
    ));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_library_that_prints_does_not_break_the_daemons_log() {
    let ca = TestCa::start_with(Setup::default().with_faults()).await;
    ca.command_faults("C_SignInit print");
    ca.call(&Csr::demo().pem, &Ask::bearer(&ca.token()))
        .await
        .expect("issued");
    ca.logged("the library of a signer process printed a line")
        .await;
    let log = ca.log_text();
    assert!(log.contains("that nobody asked for"), "{log}");
    for line in log.lines() {
        assert!(
            serde_json::from_str::<serde_json::Value>(line).is_ok(),
            "{line}"
        );
    }
    ca.check();
}
