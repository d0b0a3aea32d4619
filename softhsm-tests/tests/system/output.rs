//! Standard error and standard output that are full, closed, or read by nobody: the daemon serves and files all the same, and a verb whose
//! output is not heard ends as Unix tools do.

use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Output, Stdio};
use std::time::Instant;

use softhsm_tests::client::tls;
use softhsm_tests::daemon::{PATIENCE, Setup, http_get, signal};
use softhsm_tests::{Ask, Channel, Csr, LedgerDatabase, Material, TestCa};
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
            Self::Full => (File::options().write(true).open("/dev/full").expect("a device").into(), None),
            Self::Closed => (std::io::pipe().expect("a pipe").1.into(), None),
            Self::Stalled => {
                let (reader, writer) = std::io::pipe().expect("a pipe");
                (writer.into(), Some(reader))
            }
        }
    }
}

fn ended(child: &mut Child, what: &str) -> std::process::ExitStatus {
    let begun = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("waited") {
            return status;
        }
        assert!(begun.elapsed() < PATIENCE, "{what} has not ended");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

/// A daemon whose log nobody gets. Killed when dropped.
struct Mute {
    process: Child,
    csr: SocketAddr,
    monitoring: SocketAddr,
    _reader: Option<std::io::PipeReader>,
}

impl Drop for Mute {
    fn drop(&mut self) {
        // Already ended is fine.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Mute {
    /// On the config of `ca`, with ports that are known, because no log tells them.
    async fn start(ca: &TestCa, sink: Sink) -> Self {
        let free = || TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound");
        let ports = (free(), free());
        let text = ca.material.read("ca.toml");
        let mut parts = text.splitn(3, "127.0.0.1:0");
        let mut part = || parts.next().expect("two ports");
        ca.material.write("ca.toml", format!("{}{}{}{}{}", part(), ports.0, part(), ports.1, part()));
        let (stderr, reader) = sink.open();
        let process = ca.verb(&["serve"]).stdout(Stdio::null()).stderr(stderr).spawn().expect("runs");
        let mut mute = Self { process, csr: ports.0, monitoring: ports.1, _reader: reader };
        mute.until("ready", async |mute| mute.get("/healthz/ready").await.0 == 200).await;
        mute
    }

    async fn get(&self, path: &str) -> (u16, String) {
        http_get(self.monitoring, path).await.unwrap_or_default()
    }

    async fn until(&mut self, what: &str, holds: impl AsyncFn(&Self) -> bool) {
        let begun = Instant::now();
        while !holds(self).await {
            let ended = self.process.try_wait().expect("waited");
            assert!(ended.is_none() && begun.elapsed() < PATIENCE, "never {what}: {ended:?} {}", self.get("/healthz/ready").await.1);
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }

    async fn metric_is(&self, series: &str) -> bool {
        self.get("/metrics").await.1.lines().any(|line| line.strip_prefix(series).is_some_and(|value| value.trim() != "0"))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_cannot_be_written_costs_no_call_and_no_row() {
    softhsm_tests::crypto();
    for sink in [Sink::Full, Sink::Closed, Sink::Stalled] {
        // So much is said at this level, by the daemon and by its signer process, that a pipe is full soon.
        let ca = TestCa::configured(Material::new(), Setup::default().replace("level = \"info\"", "level = \"trace\""));
        let mut mute = Mute::start(&ca, sink).await;
        let address = mute.csr;
        let call = async |csr: &str| {
            let channel = Channel::open(address, tls(&ca.roots(), None)).await.expect("connected");
            channel.call(csr, &Ask::bearer(&ca.token())).await
        };
        let refused = call("junk").await.expect_err("no CSR");
        assert_eq!(refused.code(), Code::InvalidArgument, "{sink:?}: {refused:?}");
        let chain = call(&Csr::demo().pem).await.unwrap_or_else(|refused| panic!("{sink:?}: {refused:?}"));
        ca.remember(&chain);
        signal(mute.process.id(), "HUP");
        mute.until("reloaded", async |mute| mute.metric_is("ca_server_reloads_total{result=\"ok\"}").await).await;
        let chain = call(&Csr::demo().pem).await.unwrap_or_else(|refused| panic!("{sink:?}: {refused:?}"));
        ca.remember(&chain);
        mute.until("counted", async |mute| mute.metric_is("ca_server_log_lines_lost_total").await).await;
        signal(mute.process.id(), "TERM");
        assert_eq!(ended(&mut mute.process, "the daemon").code(), Some(0), "{sink:?}");
        assert_eq!(ca.check().count("refused"), 1, "{sink:?}");
    }
}

/// Every verb that reports, with its name.
fn reporting(ca: &TestCa, ledger: &LedgerDatabase<'_>) -> Vec<(&'static str, Command)> {
    let address = ca.csr_address().to_string();
    let serial = ca.export().kind("issued")[0]["serial"].as_str().expect("text").to_owned();
    let mut signer = Command::new(softhsm_tests::build::ca_server());
    signer.args(["signer", "--check", "--listen", "unix:/nonexistent/socket", "--config"]).arg(ca.material.file("signer.toml"));
    let mut ceremony = Command::new(softhsm_tests::build::ca_server());
    ceremony.args(["ceremony", "--spec"]).arg(ca.material.file("ceremony.toml")).current_dir(ca.material.path());
    ceremony.env("SOFTHSM2_CONF", ca.material.file("softhsm2.conf"));
    let mut migrate = Command::new(softhsm_tests::build::ca_server());
    migrate.args(["migrate", "--ledger", &ledger.superuser_url()]);
    vec![
        ("request", ca.verb(&["request", "--address", &address, "--out", "out"])),
        ("request many", ca.verb(&["request", "--address", &address, "--count", "3"])),
        ("audit show", ca.verb(&["audit", "show", &serial])),
        ("audit export", ca.verb(&["audit", "export"])),
        ("audit verify", ca.verb(&["audit", "verify"])),
        ("check-config", ca.verb(&["check-config"])),
        ("doctor", ca.verb(&["doctor", "--no-rate"])),
        ("doctor for machines", ca.verb(&["doctor", "--no-rate", "--output", "json"])),
        ("migrate", migrate),
        ("ceremony", ceremony),
        ("signer --check", signer),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_verb_whose_output_is_not_heard_ends_quietly_and_one_that_cannot_write_says_so() {
    let ca = TestCa::start().await;
    ca.call(&Csr::demo().pem, &Ask::bearer(&ca.token())).await.expect("issued");
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
    let run = |mut verb: Command, stdout: Stdio, stderr: Stdio| -> Output {
        verb.stdin(Stdio::null()).stdout(stdout).stderr(stderr).spawn().and_then(Child::wait_with_output).expect("runs")
    };
    let (closed, full) = (|| Sink::Closed.open().0, || Sink::Full.open().0);
    for (name, verb) in reporting(&ca, &ledger) {
        let unheard = run(verb, closed(), Stdio::piped());
        let said = String::from_utf8_lossy(&unheard.stderr).into_owned();
        assert_eq!((unheard.status.code(), said.as_str()), (Some(141), ""), "{name}");
    }
    for (name, verb) in reporting(&ca, &ledger) {
        let unwritten = run(verb, full(), Stdio::piped());
        let said = String::from_utf8_lossy(&unwritten.stderr).into_owned();
        assert_eq!(unwritten.status.code(), Some(3), "{name}: {said}");
        assert!(said.contains("the output cannot be written: No space left"), "{name}: {said}");
    }
    for (name, verb) in reporting(&ca, &ledger) {
        let heard = run(verb, Stdio::piped(), full());
        assert_eq!(heard.status.code(), Some(0), "{name}: {}", String::from_utf8_lossy(&heard.stdout));
    }
    // What a verb has to say of its failure is not heard, its status is.
    let failed = run(ca.verb(&["audit", "show", "spiffe://nobody/ns/a/sa/b"]), Stdio::piped(), closed());
    assert_eq!(failed.status.code(), Some(1));
    ca.check();
}
