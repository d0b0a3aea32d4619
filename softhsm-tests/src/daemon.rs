//! The daemon under test: its config, its process, its log.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use pkcs11_fault::Control;
use tonic::Status;

use super::client::{Ask, Channel, Csr, Identity, tls};
use super::ledger_database::LedgerDatabase;
use super::material::Material;
use super::tokens::Minter;

/// The longest that anything here may take before a test says what is missing; never a measure of
/// speed.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The keys of `[limits]` as quickstart writes them.
const LIMITS: [(&str, u32); 6] = [
    ("identity_calls_a_minute", 100_000),
    ("identity_keys_an_hour", 100_000),
    ("peer_calls_a_minute", 100_000),
    ("peer_connections_a_minute", 100_000),
    ("peer_open_connections", 10_000),
    ("peer_open_calls", 2_000),
];

/// What differs from a plain daemon.
#[derive(Default)]
pub struct Setup {
    /// Texts to replace in `ca.toml`; each must be there.
    pub replace: Vec<(String, String)>,
    /// Text to add at the end of `ca.toml`.
    pub append: String,
    /// Whether the device is reached through the fault module.
    pub faults: bool,
    /// `[limits]`; where nothing is said there is no limit, so that the load of a fast machine
    /// meets none.
    pub limits: BTreeMap<String, u32>,
    /// Environment of the process.
    pub environment: BTreeMap<String, String>,
    /// More arguments of `serve`.
    pub arguments: Vec<String>,
    /// A directory of the material that becomes a file system of 2 MiB, which only the process
    /// sees.
    pub small_file_system: Option<String>,
}

impl Setup {
    /// One more replacement in `ca.toml`.
    pub fn replace(mut self, from: &str, to: &str) -> Self {
        self.replace.push((from.to_owned(), to.to_owned()));
        self
    }

    /// A key of `[limits]`.
    pub fn limit(mut self, key: &str, limit: u32) -> Self {
        self.limits.insert(key.to_owned(), limit);
        self
    }

    /// Through the fault module.
    pub fn with_faults(mut self) -> Self {
        self.faults = true;
        self
    }

    /// With the device on threads of the daemon.
    pub fn on_threads(self) -> Self {
        self.replace(
            "[device.softhsm]",
            "[device.softhsm]\nisolation = \"thread\"",
        )
    }

    /// With the ledger in a fresh database of this test process's own PostgreSQL server.
    pub fn on_postgres(self) -> Self {
        self.on_ledger(&LedgerDatabase::new().url())
    }

    /// With the ledger at this URL.
    pub fn on_ledger(self, url: &str) -> Self {
        self.replace("url = \"sqlite:ledger.db\"", &format!("url = {url:?}"))
    }

    /// One more variable.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.insert(name.to_owned(), value.to_owned());
        self
    }
}

/// One daemon and everything it stands on. Killed when dropped.
pub struct TestCa {
    pub material: Material,
    setup: Setup,
    process: Option<Child>,
    csr: SocketAddr,
    monitoring: SocketAddr,
    log: Arc<Mutex<Vec<String>>>,
    received: Arc<Mutex<Vec<String>>>,
}

impl TestCa {
    /// A plain daemon on a SoftHSM token.
    pub async fn start() -> Self {
        Self::start_with(Setup::default()).await
    }

    /// A daemon with these differences, ready to answer.
    pub async fn start_with(setup: Setup) -> Self {
        Self::start_on(Material::new(), setup).await
    }

    /// A daemon on material that a test has prepared.
    pub async fn start_on(material: Material, setup: Setup) -> Self {
        super::crypto();
        let mut ca = Self::configured(material, setup);
        ca.restart().await;
        ca
    }

    /// Material and `ca.toml`, and no process yet.
    pub fn configured(material: Material, setup: Setup) -> Self {
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let ca = Self {
            material,
            setup,
            process: None,
            csr: nowhere,
            monitoring: nowhere,
            log: Arc::default(),
            received: Arc::default(),
        };
        ca.write_config();
        ca
    }

    fn write_config(&self) {
        let mut text = self.material.read("ca.toml");
        // A free port each, told in the log; JSON, so that the tests read it as a machine would.
        let listen = |line: &str| {
            line.trim_start()
                .starts_with("listen")
                .then(|| "listen = \"127.0.0.1:0\"".to_owned())
        };
        text = text
            .lines()
            .map(|line| listen(line).unwrap_or(line.to_owned()) + "\n")
            .collect();
        text = replaced(&text, "format = \"text\"", "format = \"json\"");
        for (key, default) in LIMITS {
            let limit = self.setup.limits.get(key).copied().unwrap_or(0);
            text = replaced(
                &text,
                &format!("{key} = {default}"),
                &format!("{key} = {limit}"),
            );
        }
        if self.setup.faults {
            let module =
                signers::pkcs11::find_softhsm().expect("SoftHSM is installed by ./run-tests");
            text = replaced(
                &text,
                module.to_str().expect("text"),
                pkcs11_fault::library()
                    .expect("cargo builds it beside the tests")
                    .to_str()
                    .expect("text"),
            );
            std::fs::create_dir_all(self.faults_directory()).expect("writable");
            let environment = format!(
                "env = {{ PKCS11_FAULT_MODULE = {:?}, PKCS11_FAULT_DIR = {:?}, ",
                module,
                self.faults_directory()
            );
            text = replaced(&text, "env = {", &environment);
        }
        for (from, to) in &self.setup.replace {
            text = replaced(&text, from, to);
        }
        text.push_str(&self.setup.append);
        self.material.write("ca.toml", text);
    }

    /// Changes `ca.toml`; takes effect at the next reload or start.
    pub fn edit_config(&self, from: &str, to: &str) {
        let text = replaced(&self.material.read("ca.toml"), from, to);
        self.material.write("ca.toml", text);
    }

    /// The directory through which the fault module is commanded.
    pub(crate) fn faults_directory(&self) -> std::path::PathBuf {
        self.material.file("faults")
    }

    /// The fault module's strings.
    pub fn faults(&self) -> Control {
        Control::new(self.faults_directory())
    }

    /// Commands the fault module; an empty text ends every fault.
    pub fn command_faults(&self, rules: &str) {
        self.faults().set(rules).expect("writable");
    }

    /// A verb of the real program on this config.
    pub fn verb(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(super::build::ca_server());
        command
            .args(arguments)
            .arg("--config")
            .arg(self.material.file("ca.toml"))
            .current_dir(self.material.path());
        command
    }

    /// `serve` in a mount namespace of its own. An ordinary user needs a user namespace for that,
    /// which root in a chroot may not have.
    fn verb_in_small_file_system(&self, directory: &str) -> Command {
        use std::os::unix::fs::MetadataExt;
        let root = std::fs::metadata("/proc/self")
            .expect("proc is mounted")
            .uid()
            == 0;
        let mut command = Command::new("unshare");
        command.args(if root {
            &["--mount"][..]
        } else {
            &["--user", "--map-root-user", "--mount"]
        });
        // In a chroot the root is no mount point, so that neither unshare nor mount can make it
        // private; `drop` takes away what is seen outside.
        command.args(["--propagation", "unchanged", "sh", "-c"]);
        command.arg("mount --make-rprivate / 2>/dev/null; mount -t tmpfs -o size=2m tmpfs \"$1\" && shift && exec \"$@\"").arg("sh");
        command
            .arg(self.material.file(directory))
            .arg(super::build::ca_server());
        command
            .args(["serve", "--config"])
            .arg(self.material.file("ca.toml"))
            .current_dir(self.material.path());
        command
    }

    /// One more argument of `serve`, from the next start on.
    pub fn add_argument(&mut self, argument: &str) {
        self.setup.arguments.push(argument.to_owned());
    }

    /// Starts the process (again) and waits until it is ready.
    pub async fn restart(&mut self) {
        self.spawn();
        self.until_ready().await;
    }

    /// Starts the process, and waits only until its ports are open.
    pub fn spawn(&mut self) {
        let mut command = match &self.setup.small_file_system {
            None => self.verb(&["serve"]),
            Some(directory) => self.verb_in_small_file_system(directory),
        };
        let (process, told) = begun(
            command
                .args(&self.setup.arguments)
                .envs(&self.setup.environment),
            self.log.clone(),
        );
        self.process = Some(process);
        match told.recv_timeout(PATIENCE) {
            Ok((csr, monitoring)) => (self.csr, self.monitoring) = (csr, monitoring),
            Err(error) => panic!("the daemon did not start ({error}): {}", self.log_text()),
        }
    }

    /// Starts the process with a standard error that is not ours, on ports that are known, because
    /// no log tells them.
    pub fn spawn_unheard(&mut self, stderr: Stdio) {
        let csr = postgres_cluster::free_port();
        let monitoring = std::iter::repeat_with(postgres_cluster::free_port)
            .find(|port| *port != csr)
            .expect("without end");
        let text = self.material.read("ca.toml");
        let mut parts = text.splitn(3, "127.0.0.1:0");
        let mut part = || parts.next().expect("two ports");
        self.material.write(
            "ca.toml",
            format!(
                "{}127.0.0.1:{csr}{}127.0.0.1:{monitoring}{}",
                part(),
                part(),
                part()
            ),
        );
        let address = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
        (self.csr, self.monitoring) = (address(csr), address(monitoring));
        let mut command = self.verb(&["serve"]);
        command
            .args(&self.setup.arguments)
            .envs(&self.setup.environment)
            .stdout(Stdio::null())
            .stderr(stderr);
        self.process = Some(command.spawn().expect("ca-server runs"));
    }

    /// Waits until `/healthz/ready` answers 200.
    pub async fn until_ready(&self) {
        self.until("ready", || async {
            self.get("/healthz/ready").await.0 == 200
        })
        .await;
    }

    /// Waits until `what` holds; panics with the log if it never does.
    pub async fn until<F: Future<Output = bool>>(&self, what: &str, holds: impl Fn() -> F) {
        let begun = Instant::now();
        while !holds().await {
            assert!(
                begun.elapsed() < PATIENCE,
                "never {what}: {}\n{}",
                self.get("/healthz/ready").await.1,
                self.log_text()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// GET on the monitoring port: status (0 if nothing answers) and body.
    pub async fn get(&self, path: &str) -> (u16, String) {
        http_get(self.monitoring, path).await.unwrap_or_default()
    }

    /// The value of one series on `/metrics`, named with its labels as it stands there; 0 if it is
    /// not there yet.
    pub async fn metric(&self, series: &str) -> f64 {
        let text = self.get("/metrics").await.1;
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.trim().parse().expect("a number"))
    }

    /// Where CSR calls go.
    pub fn csr_address(&self) -> SocketAddr {
        self.csr
    }

    /// Where monitoring is.
    pub fn monitoring_address(&self) -> SocketAddr {
        self.monitoring
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.process.as_ref().expect("running").id()
    }

    /// CPU time that it has used, user and system (proc_pid_stat(5), fields 14 and 15).
    pub fn cpu(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).expect("running");
        let behind_the_name = stat.rsplit(')').next().expect("a name in brackets");
        let ticks: u64 = behind_the_name
            .split_whitespace()
            .skip(11)
            .take(2)
            .map(|field| field.parse::<u64>().expect("a number"))
            .sum();
        Duration::from_secs(ticks)
            / u32::try_from(rustix::param::clock_ticks_per_second()).expect("small")
    }

    /// Its resident memory, octets.
    pub fn resident(&self) -> usize {
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("running");
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .expect("there");
        line.trim()
            .trim_end_matches(" kB")
            .parse::<usize>()
            .expect("a number")
            * 1024
    }

    /// Everything logged so far.
    pub fn log_text(&self) -> String {
        self.log.lock().expect("unpoisoned").join("\n")
    }

    /// Waits until a line with this text has been logged: it reaches us by a pipe and a thread of
    /// its own.
    pub async fn logged(&self, text: &str) {
        self.until("logged", || async { self.log_text().contains(text) })
            .await;
    }

    /// The roots that clients trust.
    pub fn roots(&self) -> String {
        self.material.read("root-cert.pem")
    }

    /// The token issuer that the daemon trusts.
    pub fn minter(&self) -> Minter {
        Minter::of(self.material.path())
    }

    /// A good token for `demo` of `default`.
    pub fn token(&self) -> String {
        self.minter().token("default", "demo")
    }

    /// A connection without client certificate.
    pub async fn connect(&self) -> Channel {
        Channel::open(self.csr, tls(&self.roots(), None))
            .await
            .unwrap_or_else(|error| panic!("{error:?}: {}", self.log_text()))
    }

    /// A connection with a client certificate.
    pub async fn connect_as(
        &self,
        identity: &Identity<'_>,
    ) -> Result<Channel, tonic::transport::Error> {
        Channel::open(self.csr, tls(&self.roots(), Some(identity))).await
    }

    /// One call on a connection of its own; the certificate received is remembered for `check`.
    pub async fn call(&self, csr: &str, ask: &Ask) -> Result<Vec<String>, Status> {
        let chain = self.connect().await.call(csr, ask).await?;
        self.remember(&chain);
        Ok(chain)
    }

    /// A certificate was received outside `call`.
    pub fn remember(&self, chain: &[String]) {
        self.received
            .lock()
            .expect("unpoisoned")
            .push(chain[0].clone());
    }

    /// Every leaf that clients received, PEM.
    pub fn received(&self) -> Vec<String> {
        self.received.lock().expect("unpoisoned").clone()
    }

    /// Where leaves that clients received are kept, for clients in tasks of their own.
    pub(crate) fn received_here(&self) -> Arc<Mutex<Vec<String>>> {
        self.received.clone()
    }

    /// Sends a signal by name, such as `HUP`.
    pub fn signal(&self, name: &str) {
        signal(self.pid(), name);
    }

    /// Reloads and waits until the daemon has said how it went; true if the config was taken.
    pub async fn reload(&self) -> bool {
        let counts = || async {
            (
                self.metric("ca_server_reloads_total{result=\"ok\"}").await,
                self.metric("ca_server_reloads_total{result=\"refused\"}")
                    .await,
            )
        };
        let before = counts().await;
        self.signal("HUP");
        self.until("reloaded", || async { counts().await != before })
            .await;
        counts().await.0 > before.0
    }

    /// Ends the process in order.
    pub fn stop(&mut self) -> ExitStatus {
        self.signal("TERM");
        self.process
            .take()
            .expect("running")
            .wait()
            .expect("waited")
    }

    /// Ends the process at once.
    pub fn kill(&mut self) {
        let mut process = self.process.take().expect("running");
        process.kill().expect("killed");
        process.wait().expect("waited");
    }

    /// How the process has ended, if it has; from then on there is none until the next start.
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

    /// Waits for a process that ends by itself.
    pub fn wait(&mut self) -> ExitStatus {
        self.process
            .take()
            .expect("running")
            .wait()
            .expect("waited")
    }
}

impl Drop for TestCa {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            // Already ended is fine.
            let _ = process.kill();
            let _ = process.wait();
        }
        if let Some(directory) = &self.setup.small_file_system {
            let directory = self.material.file(directory);
            let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
            if mounts.contains(directory.to_str().expect("text")) {
                let _ = Command::new("umount").arg(directory).status();
            }
        }
    }
}

/// Starts a process whose log goes to `log`, line by line. The addresses are told as soon as a line
/// says them; when it ends before, the sender is gone after its last line.
pub fn begun(
    command: &mut Command,
    log: Arc<Mutex<Vec<String>>>,
) -> (Child, Receiver<(SocketAddr, SocketAddr)>) {
    let mut process = command
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("ca-server runs");
    let stderr = process.stderr.take().expect("piped");
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            if let Some(addresses) = addresses(&line) {
                // Nobody listens after the first.
                let _ = tell.send(addresses);
            }
            log.lock().expect("unpoisoned").push(line);
        }
    });
    (process, told)
}

/// Sends a signal by name to a process that we started.
pub fn signal(pid: u32, name: &str) {
    // The shell's own kill: a small Debian has no other.
    let status = Command::new("sh")
        .args(["-c", "kill -\"$1\" \"$2\"", "sh", name, &pid.to_string()])
        .status()
        .expect("sh runs");
    assert!(status.success(), "kill -{name} {pid}");
}

/// The identity of a demo workload.
pub const DEMO: &str = "spiffe://cluster.local/ns/default/sa/demo";

impl Csr {
    /// ztunnel's CSR of the demo workload.
    pub fn demo() -> Self {
        Self::ztunnel(DEMO)
    }
}

fn replaced(text: &str, from: &str, to: &str) -> String {
    assert!(text.contains(from), "{from:?} is not in ca.toml:\n{text}");
    text.replace(from, to)
}

/// Both addresses, from the line that says them.
fn addresses(line: &str) -> Option<(SocketAddr, SocketAddr)> {
    let line: serde_json::Value = serde_json::from_str(line).ok()?;
    (line["message"] == "serving").then(|| {
        let address = |key: &str| {
            line[key]
                .as_str()
                .expect("an address")
                .parse()
                .expect("an address")
        };
        (address("csr"), address("monitoring"))
    })
}

/// GET: status and body.
pub async fn http_get(address: SocketAddr, path: &str) -> std::io::Result<(u16, String)> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(address).await?;
    stream
        .write_all(
            format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                .as_bytes(),
        )
        .await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .ok_or(std::io::ErrorKind::InvalidData)?;
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|code| code.parse().ok())
        .ok_or(std::io::ErrorKind::InvalidData)?;
    Ok((status, body.to_owned()))
}
