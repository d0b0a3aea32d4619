//! Standard error and standard output that are full, closed, or read by nobody: the daemon serves
//! and files all the same, and a verb whose output is not heard ends as Unix tools do.

use std::fs::File;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use softhsm_tests::daemon::{PATIENCE, Setup};
use softhsm_tests::{Ask, Csr, LedgerDatabase, Material, TestCa};
use tonic::Code;

/// What has become of a descriptor.
#[derive(Clone, Copy, Debug)]
enum Sink {
    /// A disk without room.
    Full,
    /// A pipe whose reader has gone.
    Closed,
    /// A pipe that is full, and whose reader does nothing.
    Stalled,
}

impl Sink {
    /// The descriptor for a process, and what must live as long.
    fn open(self) -> (Stdio, Option<std::io::PipeReader>) {
        match self {
            Self::Full => (
                File::options()
                    .write(true)
                    .open("/dev/full")
                    .expect("a device")
                    .into(),
                None,
            ),
            Self::Closed => (std::io::pipe().expect("a pipe").1.into(), None),
            Self::Stalled => {
                let (reader, writer) = std::io::pipe().expect("a pipe");
                (writer.into(), Some(reader))
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_cannot_be_written_costs_no_call_and_no_row() {
    softhsm_tests::crypto();
    for sink in [Sink::Full, Sink::Closed, Sink::Stalled] {
        // So much is said at this level, by the daemon and by its signer process, that a pipe is
        // full soon.
        let mut ca = TestCa::configured(
            Material::new(),
            Setup::default().replace("level = \"info\"", "level = \"trace\""),
        );
        let (stderr, _reader) = sink.open();
        ca.spawn_unheard(stderr);
        ca.until_ready().await;
        let ask = Ask::bearer(&ca.token());
        let refused = ca.call("junk", &ask).await.expect_err("no CSR");
        assert_eq!(
            refused.code(),
            Code::InvalidArgument,
            "{sink:?}: {refused:?}"
        );
        ca.call(&Csr::demo().pem, &ask)
            .await
            .unwrap_or_else(|refused| panic!("{sink:?}: {refused:?}"));
        assert!(ca.reload().await, "{sink:?}");
        ca.call(&Csr::demo().pem, &ask)
            .await
            .unwrap_or_else(|refused| panic!("{sink:?}: {refused:?}"));
        ca.until("counted", || async {
            ca.metric("ca_server_log_lines_lost_total").await > 0.0
        })
        .await;
        ca.signal("TERM");
        let begun = Instant::now();
        let status = loop {
            if let Some(status) = ca.ended() {
                break status;
            }
            assert!(
                begun.elapsed() < PATIENCE,
                "{sink:?}: the daemon has not ended"
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        assert_eq!(status.code(), Some(0), "{sink:?}");
        assert_eq!(ca.check().count("refused"), 1, "{sink:?}");
    }
}

/// Every verb that reports, with its name.
fn reporting(ca: &TestCa, ledger: &LedgerDatabase<'_>) -> Vec<(&'static str, Command)> {
    let address = ca.csr_address().to_string();
    let serial = ca.export().kind("issued")[0]["serial"]
        .as_str()
        .expect("text")
        .to_owned();
    let mut signer = Command::new(softhsm_tests::build::ca_server());
    signer
        .args([
            "signer",
            "--check",
            "--listen",
            "unix:/nonexistent/socket",
            "--config",
        ])
        .arg(ca.material.file("signer.toml"));
    let mut ceremony = Command::new(softhsm_tests::build::ca_server());
    ceremony
        .args(["ceremony", "--spec"])
        .arg(ca.material.file("ceremony.toml"))
        .current_dir(ca.material.path());
    ceremony.env("SOFTHSM2_CONF", ca.material.file("softhsm2.conf"));
    let mut migrate = Command::new(softhsm_tests::build::ca_server());
    migrate.args(["migrate", "--ledger", &ledger.superuser_url()]);
    vec![
        (
            "request",
            ca.verb(&["request", "--address", &address, "--out", "out"]),
        ),
        (
            "request many",
            ca.verb(&["request", "--address", &address, "--count", "3"]),
        ),
        ("audit show", ca.verb(&["audit", "show", &serial])),
        ("audit export", ca.verb(&["audit", "export"])),
        ("audit verify", ca.verb(&["audit", "verify"])),
        ("check-config", ca.verb(&["check-config"])),
        ("doctor", ca.verb(&["doctor", "--no-rate"])),
        (
            "doctor for machines",
            ca.verb(&["doctor", "--no-rate", "--output", "json"]),
        ),
        ("migrate", migrate),
        ("ceremony", ceremony),
        ("signer --check", signer),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_verb_whose_output_is_not_heard_ends_quietly_and_one_that_cannot_write_says_so() {
    let ca = TestCa::start().await;
    ca.call(&Csr::demo().pem, &Ask::bearer(&ca.token()))
        .await
        .expect("issued");
    let key = ca.material.read("ca.toml");
    let key: toml::Table = toml::from_str(&key).expect("TOML");
    let of = |name: &str| key["issuer"][0][name].as_str().expect("text").to_owned();
    let signer = format!(
        "uids = [0]\nalarms = \"alarms.jsonl\"\n[[key]]\nuri = {:?}\nissuer = {:?}\n[key.serving]\nnames = [\"localhost\"]\nlongest = \"24h\"\n",
        of("key"),
        of("chain")
    );
    ca.material.write("signer.toml", signer);
    let ledger = LedgerDatabase::new();
    let run = |verb: &mut Command, stdout: Stdio, stderr: Stdio| -> Output {
        verb.stdin(Stdio::null())
            .stdout(stdout)
            .stderr(stderr)
            .spawn()
            .and_then(Child::wait_with_output)
            .expect("runs")
    };
    let (closed, full) = (|| Sink::Closed.open().0, || Sink::Full.open().0);
    for (name, mut verb) in reporting(&ca, &ledger) {
        let unheard = run(&mut verb, closed(), Stdio::piped());
        let said = String::from_utf8_lossy(&unheard.stderr).into_owned();
        assert_eq!(
            (unheard.status.code(), said.as_str()),
            (Some(141), ""),
            "{name}"
        );
        let unwritten = run(&mut verb, full(), Stdio::piped());
        let said = String::from_utf8_lossy(&unwritten.stderr).into_owned();
        assert_eq!(unwritten.status.code(), Some(3), "{name}: {said}");
        assert!(
            said.contains("the output cannot be written: No space left"),
            "{name}: {said}"
        );
        let heard = run(&mut verb, Stdio::piped(), full());
        assert_eq!(
            heard.status.code(),
            Some(0),
            "{name}: {}",
            String::from_utf8_lossy(&heard.stdout)
        );
    }
    // What a verb has to say of its failure is not heard, its status is.
    let failed = run(
        &mut ca.verb(&["audit", "show", "spiffe://nobody/ns/a/sa/b"]),
        Stdio::piped(),
        closed(),
    );
    assert_eq!(failed.status.code(), Some(1));
    ca.check();
}
