//! Files as people have them, after bug reports of other CAs: each directory of `tests/field` is a
//! row with the right answer beside it. What is good is served: a certificate by token, its renewal
//! by itself, both as our own client verifies them, and a ledger that verifies.
//! `tests/field-common` has what a directory lacks: the config, the issuer's keys and the token.
//! The keys there are for these tests alone. The certificates and tokens end in May 2029 and later:
//! whoever runs this then makes them anew.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use std::sync::{Arc, Mutex};

use softhsm_tests::client::{Channel, tls};
use softhsm_tests::daemon::{PATIENCE, begun};
use softhsm_tests::{Ask, Csr};

/// The right answer to a config.
enum Answer {
    /// It serves, with so many roots in its bundle.
    Good(usize),
    /// It serves, and a warning says this.
    Warned(usize, &'static str),
    /// It is refused, and the one line says all of this.
    Refused(&'static [&'static str]),
}

use Answer::{Good, Refused, Warned};

const ROWS: &[(&str, Answer)] = &[
    ("c01-root-in-chain", Good(1)),
    ("c04-bom-roots", Good(2)),
    ("c06-glued-roots", Good(2)),
    ("c07-glued-chain", Good(1)),
    ("c08-bag-attributes", Good(1)),
    ("c10b-indented-second-root", Good(2)),
    (
        "c11-trusted-label",
        Refused(&["`roots`: line 12: a TRUSTED CERTIFICATE", "openssl x509"]),
    ),
    (
        "c12d-der",
        Refused(&["`chain`: it is DER", "openssl x509 -inform der"]),
    ),
    (
        "c12e-p7b",
        Refused(&["`chain`: line 1: PKCS7", "openssl pkcs7 -print_certs"]),
    ),
    ("c13-ec-parameters", Good(1)),
    (
        "c17-cross-in-roots",
        Warned(
            2,
            "`roots`, certificate 3 (line 23), CN=New Root,O=Field: it is a cross-certificate",
        ),
    ),
    ("c18c-issuing-twice", Good(2)),
    (
        "c19-expired-other-root",
        Warned(
            2,
            "`roots`, certificate 2 (line 12), CN=Dead Root,O=Field: it ended at 2026-10-29",
        ),
    ),
    (
        "c20b-only-expired-root",
        Refused(&[
            "`roots`, certificate 1 (line 1), CN=Field Root,O=Field: it ended at 2026-11-26",
            "renew it",
        ]),
    ),
    ("c23-gentime-before-2050", Good(1)),
    ("c26b-21-octet-serial", Good(1)),
    (
        "c26n-negative-serial-root",
        Warned(1, "its serial number is negative, so that programs in Go"),
    ),
    ("c27-no-ski-aki", Good(1)),
    (
        "c28-nc-dns-only",
        Refused(&[
            "daemon's own certificate for localhost",
            "`chain`, certificate 1",
            "name constraints",
        ]),
    ),
    (
        "c29-nc-uri-other",
        Refused(&[
            "workload's certificate",
            "`chain`, certificate 1",
            "name constraints",
        ]),
    ),
    (
        "c30b-latin1-in-printable",
        Warned(1, "programs in Go, such as pilot-agent, cannot read it"),
    ),
    (
        "c30c-empty-subject-issuing",
        Refused(&["`chain`, certificate 1", "its subject is empty"]),
    ),
    (
        "c31c-issuing-eku-server-only",
        Refused(&[
            "`chain`, certificate 1",
            "extended key usage does not include clientAuth",
        ]),
    ),
    ("c32-pss", Good(1)),
    ("c33-sha1-root", Good(1)),
    (
        "c34-rsa-1024-root",
        Warned(1, "its RSA key has less than 2048 bits"),
    ),
    ("c35-p521-root", Good(1)),
    ("c36-v1-root", Good(1)),
    ("c37b-issuing-bc-not-critical", Good(1)),
    (
        "c39-name-encoding-differs",
        Refused(&[
            "`chain`, certificate 1",
            "is signed by `roots`, certificate 1",
            "with other octets",
        ]),
    ),
    ("c41c-nc-uri-host", Warned(1, "it constrains URIs")),
    (
        "c42e-aki-with-issuer-serial",
        Warned(1, "authority key identifier does not fit its issuer"),
    ),
    ("c44b-certmanager-selfsigned", Good(1)),
    ("c45b-multi-rdn-unsorted", Good(1)),
    ("r01-forms", Good(1)),
    ("t01-aud", Good(1)),
    ("t03-no-kid-two-keys", Good(1)),
    ("t07-trailing-slash", Good(1)),
    (
        "t12e-jwks-n-leading-zero",
        Warned(
            1,
            "key \"k1\" is used, but its `n` begins with a zero octet",
        ),
    ),
    (
        "t12f-jwks-padded",
        Refused(&["key \"k1\" verifies no token", "base64url without padding"]),
    ),
    ("t13-dates", Good(1)),
    ("t18-only-p521", Good(1)),
];

/// The token that proves who we are, where it is not `demo.token`: the key of that one is not
/// there.
const TOKENS: &[(&str, &str)] = &[("t18-only-p521", "es512.token")];

/// The right answers to single requests: the directory, the file, and what the daemon's log says of
/// a refused one.
const CALLS: &[(&str, &str, Result<(), &str>)] = &[
    ("r01-forms", "plain.csr", Ok(())),
    ("r01-forms", "bom.csr", Ok(())),
    ("r01-forms", "crlf.csr", Ok(())),
    ("r01-forms", "indented.csr", Ok(())),
    ("r01-forms", "leading-text.csr", Ok(())),
    ("r01-forms", "new-header.csr", Ok(())),
    ("r01-forms", "no-newline-at-end.csr", Ok(())),
    ("r01-forms", "one-line.csr", Ok(())),
    (
        "r01-forms",
        "cert-instead.csr",
        Err("line 1: a block CERTIFICATE"),
    ),
    ("r01-forms", "key-first.csr", Err("line 1: a PRIVATE KEY")),
    ("r01-forms", "two.csr", Err("line 7: a second request")),
    (
        "r01-forms",
        "trailing-der.csr",
        Err("no PKCS#10 request in DER"),
    ),
    // What is no text cannot be sent as the string that the call has; what comes nearest is no PEM.
    ("r01-forms", "der.csr", Err("no PEM CERTIFICATE REQUEST")),
    ("t01-aud", "list.token", Ok(())),
    ("t01-aud", "several.token", Ok(())),
    ("t01-aud", "text.token", Ok(())),
    ("t01-aud", "apiserver-only.token", Err("it is for audience")),
    ("t01-aud", "empty-list.token", Err("it is for audience")),
    ("t01-aud", "missing.token", Err("it has no claim `aud`")),
    (
        "t01-aud",
        "null-in-list.token",
        Err("its claim `aud` is not a text or a list of texts"),
    ),
    ("t03-no-kid-two-keys", "kid.token", Ok(())),
    ("t03-no-kid-two-keys", "no-kid.token", Ok(())),
    ("t07-trailing-slash", "demo.token", Ok(())),
    (
        "t07-trailing-slash",
        "with-slash.token",
        Err("the nearest configured one is"),
    ),
    ("t12e-jwks-n-leading-zero", "good.token", Ok(())),
    ("t13-dates", "exp-float.token", Ok(())),
    ("t13-dates", "exp-float-zero.token", Ok(())),
    ("t13-dates", "iat-float.token", Ok(())),
    ("t13-dates", "nbf-float.token", Ok(())),
    ("t13-dates", "exp-1e12-ms.token", Ok(())),
    ("t13-dates", "exp-exp.token", Err("expired at")),
    (
        "t13-dates",
        "exp-text.token",
        Err("its claim `exp` is not a number"),
    ),
    ("t18-only-p521", "es512.token", Ok(())),
    ("t18-only-p521", "demo.token", Err("its issuer has no key")),
];

fn field() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/field")
}

/// A copy of one directory of `tests/field`, over what all have in common.
pub struct Case {
    directory: tempfile::TempDir,
}

impl Case {
    /// A copy of the directory of this name.
    pub fn new(name: &str) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        for source in [field().with_file_name("field-common"), field().join(name)] {
            for entry in std::fs::read_dir(source).expect("there") {
                let entry = entry.expect("readable");
                std::fs::copy(entry.path(), directory.path().join(entry.file_name()))
                    .expect("copied");
            }
        }
        let case = Self { directory };
        // As git keeps no modes.
        std::fs::set_permissions(
            case.file("issuer.key"),
            std::fs::Permissions::from_mode(0o600),
        )
        .expect("ours");
        case
    }

    /// A file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn verb(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(softhsm_tests::build::ca_server());
        command
            .args(arguments)
            .arg("--config")
            .arg(self.file("ca.toml"))
            .current_dir(self.directory.path());
        command
    }

    /// A verb on its config, to its end.
    pub fn run(&self, arguments: &[&str]) -> Output {
        self.verb(arguments).output().expect("ca-server runs")
    }
}

/// A running `serve`; killed when dropped.
pub struct Serving {
    process: Child,
    address: SocketAddr,
    monitoring: SocketAddr,
    log: Arc<Mutex<Vec<String>>>,
}

impl Serving {
    /// Starts it; the error is all that it said before it ended.
    pub fn start(case: &Case) -> Result<Self, String> {
        let log: Arc<Mutex<Vec<String>>> = Arc::default();
        let (process, told) = begun(&mut case.verb(&["serve"]), log.clone());
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut serving = Self {
            process,
            address: nowhere,
            monitoring: nowhere,
            log,
        };
        let told = told
            .recv_timeout(PATIENCE)
            .map_err(|_| format!("it does not serve: {}", serving.log_text()))?;
        (serving.address, serving.monitoring) = told;
        Ok(serving)
    }

    /// Has it read its config again, and waits until it has said how that went.
    pub fn reload(&mut self) {
        let told = |log: &str| {
            log.matches("config reloaded").count() + log.matches("config not reloaded").count()
        };
        let before = told(&self.log_text());
        softhsm_tests::daemon::signal(self.process.id(), "HUP");
        let begun = std::time::Instant::now();
        while told(&self.log_text()) == before {
            assert!(
                begun.elapsed() < PATIENCE,
                "it does not reload: {}",
                self.log_text()
            );
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }

    /// Waits until it is ready: it may have no certificate of its own before, and until then
    /// handshakes fail.
    fn until_ready(&self) -> Result<(), String> {
        let begun = std::time::Instant::now();
        loop {
            let answer = self
                .get("/healthz/ready")
                .unwrap_or_else(|error| error.to_string());
            if answer.starts_with("HTTP/1.1 200 ") {
                return Ok(());
            }
            if begun.elapsed() > PATIENCE {
                return Err(format!("never ready: {answer}\n{}", self.log_text()));
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }

    /// The whole answer of its monitoring port.
    fn get(&self, path: &str) -> std::io::Result<String> {
        let mut stream = std::net::TcpStream::connect(self.monitoring)?;
        stream.write_all(
            format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                .as_bytes(),
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }

    /// What it has logged so far.
    pub fn log_text(&self) -> String {
        self.log.lock().expect("unpoisoned").join("\n")
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        // Already ended is fine.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Everything that a verb has printed.
pub fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// What is wrong with all of them, four judged at a time.
pub fn four_at_a_time<T>(
    all: impl Iterator<Item = T> + Send,
    judge: impl Fn(T) -> Vec<String> + Sync,
) -> Vec<String> {
    let (open, wrong) = (Mutex::new(all), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                loop {
                    let Some(one) = open.lock().expect("unpoisoned").next() else {
                        break;
                    };
                    let found = judge(one);
                    wrong.lock().expect("unpoisoned").extend(found);
                }
            });
        }
    });
    wrong.into_inner().expect("unpoisoned")
}

fn succeeded(what: &str, output: &Output) -> Result<(), String> {
    if output.status.success() {
        Ok(())
    } else {
        Err(format!("{what}: {}", said(output)))
    }
}

fn request(case: &Case, address: SocketAddr, more: &[&str]) -> Result<(), String> {
    let address = address.to_string();
    succeeded(
        "request",
        &case.run(
            &[
                &[
                    "request",
                    "--address",
                    &address,
                    "--server-name",
                    "localhost",
                ],
                more,
            ]
            .concat(),
        ),
    )
}

/// A certificate by token, another by the first, and the whole record.
fn serves(name: &str, roots: usize) -> Result<(), String> {
    let case = Case::new(name);
    let serving = Serving::start(&case)?;
    serving.until_ready()?;
    let with_log = |why: String| format!("{why}\n{}", serving.log_text());
    let token = TOKENS
        .iter()
        .find(|(of, _)| *of == name)
        .map_or("demo.token", |(_, token)| *token);
    request(
        &case,
        serving.address,
        &["--token-file", token, "--out", "first"],
    )
    .map_err(with_log)?;
    let renewal = [
        "--cert",
        "first/cert-chain.pem",
        "--key-file",
        "first/key.pem",
        "--out",
        "second",
    ];
    request(&case, serving.address, &renewal)
        .map_err(|why| format!("renewal: {why}\n{}", serving.log_text()))?;
    let found = serving
        .get("/root-cert.pem")
        .map_err(|error| error.to_string())?
        .matches("BEGIN CERTIFICATE")
        .count();
    if found != roots {
        return Err(format!("{found} roots in the bundle instead of {roots}"));
    }
    succeeded("audit verify", &case.run(&["audit", "verify"]))
}

fn judged(name: &str, answer: &Answer) -> Result<(), String> {
    let case = Case::new(name);
    let output = case.run(&["check-config"]);
    let said = said(&output);
    match answer {
        Good(roots) => {
            succeeded("check-config", &output)?;
            if said.contains("warning") {
                return Err(format!("a warning that nobody wants: {said}"));
            }
            serves(name, *roots)
        }
        Warned(roots, warning) => {
            succeeded("check-config", &output)?;
            if !said.contains("warning: ") || !said.contains(warning) {
                return Err(format!("no warning {warning:?}: {said}"));
            }
            serves(name, *roots)
        }
        Refused(parts) => {
            if output.status.code() != Some(2) || said.trim_end().lines().count() != 1 {
                return Err(format!(
                    "not one line and status 2 but {:?}: {said}",
                    output.status.code()
                ));
            }
            match parts.iter().find(|part| !said.contains(**part)) {
                Some(part) => Err(format!("it does not say {part:?}: {said}")),
                None => Ok(()),
            }
        }
    }
}

#[test]
fn every_directory_has_the_answer_that_stands_beside_it() {
    let mut there: Vec<String> = std::fs::read_dir(field())
        .expect("there")
        .map(|entry| {
            entry
                .expect("readable")
                .file_name()
                .into_string()
                .expect("text")
        })
        .collect();
    there.sort();
    let rows: Vec<&str> = ROWS.iter().map(|(name, _)| *name).collect();
    assert_eq!(there, rows, "each directory is one row, in order");
    let wrong = four_at_a_time(ROWS.iter(), |(name, answer)| {
        judged(name, answer)
            .err()
            .map(|why| format!("{name}: {why}"))
            .into_iter()
            .collect()
    });
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn doctor_says_of_an_issuer_what_serve_would_refuse() {
    for (name, why) in [
        (
            "c28-nc-dns-only",
            "the daemon's own certificate for localhost would not be accepted",
        ),
        (
            "c29-nc-uri-other",
            "a workload's certificate would not be accepted",
        ),
        (
            "c31c-issuing-eku-server-only",
            "extended key usage does not include clientAuth",
        ),
    ] {
        let output = Case::new(name).run(&["doctor", "--no-rate", "--output", "json"]);
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let chain = report["findings"]
            .as_array()
            .expect("a list")
            .iter()
            .find(|one| one["area"] == "certificates" && one["check"] == "chain");
        let chain = chain.unwrap_or_else(|| panic!("{name}: {report}"));
        assert_eq!(chain["severity"], "problem", "{name}: {chain}");
        assert!(
            chain["what"]
                .as_str()
                .is_some_and(|what| what.contains(why)),
            "{name}: {chain}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_request_has_the_answer_that_stands_beside_it() {
    softhsm_tests::crypto();
    let directories: std::collections::BTreeSet<&str> =
        CALLS.iter().map(|(directory, ..)| *directory).collect();
    for directory in directories {
        let case = Case::new(directory);
        let serving = Serving::start(&case).unwrap_or_else(|why| panic!("{why}"));
        let roots = std::fs::read_to_string(case.file("roots.pem")).expect("text");
        serving
            .until_ready()
            .unwrap_or_else(|why| panic!("{directory}: {why}"));
        let token = std::fs::read_to_string(case.file("demo.token")).expect("text");
        for (_, file, answer) in CALLS.iter().filter(|(of, ..)| *of == directory) {
            let content = String::from_utf8_lossy(&std::fs::read(case.file(file)).expect("there"))
                .into_owned();
            let (csr, token) = match file.ends_with(".token") {
                true => (Csr::demo().pem, content.trim().to_owned()),
                false => (content, token.trim().to_owned()),
            };
            let before = serving.log_text().len();
            let channel = Channel::open(serving.address, tls(&roots, None))
                .await
                .expect("connected");
            let answered = channel.call(&csr, &Ask::bearer(&token)).await;
            match answer {
                Ok(()) => assert!(
                    answered.is_ok(),
                    "{directory}/{file}: {answered:?}\n{}",
                    &serving.log_text()[before..]
                ),
                Err(why) => {
                    assert!(answered.is_err(), "{directory}/{file} is issued");
                    let begun = std::time::Instant::now();
                    // The log reaches us by a pipe and a thread of its own.
                    while !serving.log_text()[before..].contains(why) {
                        assert!(
                            begun.elapsed() < PATIENCE,
                            "{directory}/{file}: {}",
                            &serving.log_text()[before..]
                        );
                        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
                    }
                }
            }
        }
        succeeded("audit verify", &case.run(&["audit", "verify"]))
            .unwrap_or_else(|why| panic!("{why}"));
    }
}
