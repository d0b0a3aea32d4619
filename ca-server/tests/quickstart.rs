//! Quickstart through the real binary and a real SoftHSM: what a second run keeps, what a half-made
//! directory becomes, what is refused and how. A missing SoftHSM fails these tests; ./run-tests
//! installs it.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use tempfile::TempDir;

struct Var {
    parent: TempDir,
}

impl Var {
    fn new() -> Self {
        Self {
            parent: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.parent.path().join("var").join(name)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ca-server"));
        command
            .args(["quickstart", "--csr-port", "0", "--monitoring-port", "0"])
            .args(arguments)
            .current_dir(self.parent.path());
        command.stdin(Stdio::null());
        command
    }

    fn once(&self) -> String {
        let output = self.command(&["--once"]).output().unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        self.assert_whole();
        String::from_utf8(output.stdout).unwrap()
    }

    /// The exit status and the last line of a run that must fail.
    fn refused(&self, arguments: &[&str]) -> String {
        sentence(&self.command(arguments).output().unwrap())
    }

    fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    fn assert_whole(&self) {
        let verified = Command::new("openssl")
            .args([
                "verify",
                "-CAfile",
                "var/root-cert.pem",
                "-untrusted",
                "var/issuing-chain.pem",
                "var/demo/cert-chain.pem",
            ])
            .current_dir(self.parent.path())
            .output()
            .expect("openssl is installed by ./run-tests");
        assert!(
            verified.status.success(),
            "{}",
            String::from_utf8_lossy(&verified.stderr)
        );
    }
}

fn sentence(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    let ours: Vec<&str> = text
        .lines()
        .filter(|line| line.starts_with("ca-server: "))
        .collect();
    assert_eq!(ours.len(), 1, "one clear sentence: {text}");
    format!("{} {}", output.status.code().unwrap_or(-1), ours[0])
}

/// A quickstart that serves, until it is dropped.
struct Serving {
    child: Child,
    request: String,
}

impl Serving {
    fn start(var: &Var, arguments: &[&str]) -> Self {
        let mut child = var
            .command(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap())
            .lines()
            .map(Result::unwrap);
        let request = lines
            .find(|line| line.contains(" request"))
            .expect("the summary names the command");
        let request = request.trim().to_owned();
        Self { child, request }
    }

    fn signal(&self, name: &str) {
        // The shell's own: a bare Debian has no kill(1).
        let status = Command::new("sh")
            .args([
                "-c",
                "kill \"$1\" \"$2\"",
                "sh",
                name,
                &self.child.id().to_string(),
            ])
            .status()
            .unwrap();
        assert!(status.success());
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn one_command_leads_to_a_verified_certificate_and_closed_secrets() {
    let var = Var::new();
    let said = var.once();
    assert!(
        said.contains("spiffe://cluster.local/ns/default/sa/demo") && said.contains("(new)"),
        "{said}"
    );
    for secret in [
        "root.pin",
        "issuing.pin",
        "jwt-issuer.key",
        "demo.token",
        "demo/key.pem",
    ] {
        let mode = fs::metadata(var.path(secret)).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{secret}");
    }
    for pin in ["root.pin", "issuing.pin"] {
        assert!(!said.contains(String::from_utf8(var.read(pin)).unwrap().trim()));
    }
    let checked = Command::new(env!("CARGO_BIN_EXE_ca-server"))
        .arg("check-config")
        .current_dir(var.parent.path())
        .status()
        .unwrap();
    assert!(checked.success());
}

#[test]
fn a_second_run_keeps_root_keys_and_token() {
    let kept = [
        "root-cert.pem",
        "issuing-chain.pem",
        "ceremony.jsonl",
        "ca.toml",
        "jwks.json",
        "demo.token",
        "issuing.pin",
    ];
    let var = Var::new();
    var.once();
    let before = kept.map(|name| var.read(name));
    assert!(var.once().contains("(kept)"));
    assert_eq!(kept.map(|name| var.read(name)), before);
}

#[test]
fn a_half_made_directory_is_repaired_whatever_is_missing() {
    let var = Var::new();
    var.once();
    let root = var.read("root-cert.pem");
    for missing in [
        vec!["ca.toml"],
        vec!["issuing-chain.pem", "ca.toml"],
        vec!["jwks.json", "demo.token", "ca.toml"],
        vec![
            "softhsm2.conf",
            "ledger.db",
            "ledger.db-wal",
            "ledger.db-shm",
        ],
        vec!["demo/key.pem", "demo/cert-chain.pem"],
    ] {
        for name in &missing {
            let _ = fs::remove_file(var.path(name));
        }
        var.once();
        assert_eq!(var.read("root-cert.pem"), root, "{missing:?}");
    }
    // Nothing hangs on the root yet: its recorded key is adopted.
    for name in ["root-cert.pem", "issuing-chain.pem", "ca.toml"] {
        fs::remove_file(var.path(name)).unwrap();
    }
    var.once();
}

#[test]
fn a_run_that_is_killed_at_any_moment_is_finished_by_the_next() {
    let moments = [
        ".tokens-are-being-made",
        "root-cert.pem",
        "issuing-chain.pem",
        "jwt-issuer.key",
        "ca.toml",
        "ledger.db",
    ];
    let mut seen = Vec::new();
    for moment in moments {
        let var = Var::new();
        let mut child = var
            .command(&["--once"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let file = var.path(moment);
        while !file.exists() && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_micros(100));
        }
        child.kill().unwrap();
        let killed = child.wait().unwrap().code().is_none();
        seen.extend((killed && file.exists()).then_some(moment));
        var.once();
        let transcript = String::from_utf8(var.read("ceremony.jsonl")).unwrap();
        assert_eq!(
            transcript.matches("\"step\":\"certificate\"").count(),
            2,
            "{moment}: {transcript}"
        );
        assert!(
            transcript
                .lines()
                .last()
                .unwrap()
                .contains("\"step\":\"end\""),
            "{moment}: {transcript}"
        );
        assert!(var.once().contains("(kept)"), "{moment}");
    }
    assert!(
        seen.len() >= 4,
        "of {moments:?} only {seen:?} could be awaited"
    );
}

#[test]
fn an_edited_device_environment_is_entered() {
    let var = Var::new();
    var.once();
    let config = fs::read_to_string(var.path("ca.toml")).unwrap();
    fs::write(
        var.path("ca.toml"),
        config.replace("env = { ", "env = { QUICKSTART_TEST_MODULE = \"verbose\", "),
    )
    .unwrap();
    assert!(var.once().contains("(kept)"));
}

#[test]
fn a_directory_may_be_named_with_a_slash_at_its_end() {
    let var = Var::new();
    var.once();
    let output = var.command(&["--once", "--dir", "var/"]).output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn a_key_that_the_transcript_does_not_know_is_named_and_not_used() {
    let var = Var::new();
    var.once();
    for name in ["issuing-chain.pem", "ca.toml", "ceremony.jsonl"] {
        fs::remove_file(var.path(name)).unwrap();
    }
    let sentence = var.refused(&["--once"]);
    assert!(
        sentence.starts_with("3 ") && sentence.contains("does not record"),
        "{sentence}"
    );
    assert!(!var.path("issuing-chain.pem").exists());
}

#[test]
fn the_printed_command_gives_another_certificate_while_it_serves() {
    let var = Var::new();
    let serving = Serving::start(&var, &[]);
    let output = Command::new("sh")
        .args(["-c", &serving.request])
        .current_dir(var.parent.path())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}: {}",
        serving.request,
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(
        String::from_utf8_lossy(&output.stdout)
            .contains("spiffe://cluster.local/ns/default/sa/demo")
    );
    let many = format!(
        "{} --count 100 --concurrency 8 --key-type p384",
        serving.request
    );
    let output = Command::new("sh")
        .args(["-c", &many])
        .current_dir(var.parent.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.contains("100 of 100") && said.contains("p99"),
        "{said}"
    );
    let unknown = format!("{} --signer nobody", serving.request);
    let output = Command::new("sh")
        .args(["-c", &unknown])
        .current_dir(var.parent.path())
        .output()
        .unwrap();
    let sentence = sentence(&output);
    assert!(
        sentence.starts_with("1 ") && sentence.contains("InvalidArgument"),
        "{sentence}"
    );
}

#[test]
fn a_directory_in_use_is_named_and_left_alone() {
    let var = Var::new();
    let mut serving = Serving::start(&var, &[]);
    let root = var.read("root-cert.pem");
    for arguments in [vec!["--once"], vec!["--reset", "--yes"]] {
        let sentence = var.refused(&arguments);
        assert!(
            sentence.starts_with("3 ") && sentence.contains("in use"),
            "{sentence}"
        );
    }
    assert_eq!(var.read("root-cert.pem"), root);
    serving.signal("-TERM");
    assert_eq!(serving.child.wait().unwrap().code(), Some(0));
    var.once();
}

#[test]
fn a_directory_that_a_daemon_serves_from_is_in_use() {
    let var = Var::new();
    var.once();
    let config = fs::read_to_string(var.path("ca.toml")).unwrap();
    fs::write(
        var.path("ca.toml"),
        config
            .replace("127.0.0.1:15012", "127.0.0.1:0")
            .replace("127.0.0.1:15014", "127.0.0.1:0"),
    )
    .unwrap();
    let mut daemon = Command::new(env!("CARGO_BIN_EXE_ca-server"))
        .args(["serve"])
        .current_dir(var.parent.path())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let log = BufReader::new(daemon.stderr.take().unwrap()).lines();
    assert!(log.map(Result::unwrap).any(|line| line.contains("serving")));
    let sentence = var.refused(&["--reset", "--yes"]);
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    assert!(
        sentence.starts_with("3 ") && sentence.contains("running daemon"),
        "{sentence}"
    );
    assert!(var.path("ca.toml").exists());
}

#[test]
fn a_port_in_use_costs_one_sentence_and_breaks_nothing() {
    let var = Var::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    for flag in ["--csr-port", "--monitoring-port"] {
        let output = Command::new(env!("CARGO_BIN_EXE_ca-server"))
            .args(["quickstart", "--once", flag, &port])
            .args(if flag == "--csr-port" {
                ["--monitoring-port", "0"]
            } else {
                ["--csr-port", "0"]
            })
            .current_dir(var.parent.path())
            .output()
            .unwrap();
        let sentence = sentence(&output);
        assert!(
            sentence.starts_with("3 ") && sentence.contains("in use") && sentence.contains(flag),
            "{sentence}"
        );
    }
    var.once();
}

#[test]
fn a_reset_starts_anew_and_must_be_meant() {
    let var = Var::new();
    var.once();
    let root = var.read("root-cert.pem");
    let sentence = var.refused(&["--reset", "--once"]);
    assert!(
        sentence.starts_with("2 ") && sentence.contains("--yes"),
        "{sentence}"
    );
    assert_eq!(var.read("root-cert.pem"), root);
    assert!(
        var.command(&["--reset", "--yes", "--once"])
            .status()
            .unwrap()
            .success()
    );
    assert_ne!(var.read("root-cert.pem"), root);
}

#[test]
fn a_directory_that_is_not_ours_is_never_emptied() {
    let var = Var::new();
    fs::create_dir(var.path("")).unwrap();
    fs::write(var.path("ca.toml"), "mine").unwrap();
    let sentence = var.refused(&["--reset", "--yes", "--once"]);
    assert!(
        sentence.starts_with("3 ") && sentence.contains("not made by quickstart"),
        "{sentence}"
    );
    assert_eq!(var.read("ca.toml"), b"mine");
    assert_eq!(fs::read_dir(var.path("")).unwrap().count(), 1);
}

#[test]
fn lost_tokens_are_named_and_not_replaced() {
    let var = Var::new();
    var.once();
    fs::remove_dir_all(var.path("tokens")).unwrap();
    let sentence = var.refused(&["--once"]);
    assert!(
        sentence.starts_with("3 ") && sentence.contains("tokens is gone"),
        "{sentence}"
    );
    assert!(!Path::new(&var.path("tokens")).exists());
}
