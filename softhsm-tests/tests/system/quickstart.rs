//! The first command of the README, run as a newcomer would, and as somebody who presses Ctrl-C at the wrong moment would.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

struct Var {
    directory: TempDir,
}

impl Var {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().expect("a directory") }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("var")
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(softhsm_tests::build::ca_server());
        command.args(["quickstart", "--once", "--csr-port", "0", "--monitoring-port", "0", "--dir"]).arg(self.path()).args(arguments);
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("ca-server runs")
    }

    fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn openssl_is_content(var: &Path) {
    let output = Command::new("openssl")
        .args(["verify", "-CAfile", "root-cert.pem", "-untrusted", "issuing-chain.pem", "demo/cert-chain.pem"])
        .current_dir(var)
        .output()
        .expect("openssl runs");
    assert!(output.status.success(), "{}", said(&output));
}

#[test]
fn a_second_run_keeps_root_keys_and_ledger() {
    let var = Var::new();
    let first = var.run(&[]);
    assert!(first.status.success(), "{}", said(&first));
    openssl_is_content(&var.path());
    let kept: Vec<Vec<u8>> =
        ["root-cert.pem", "issuing-chain.pem", "root.pin", "issuing.pin", "jwt-issuer.key", "ca.toml"].map(|name| var.read(name)).into();
    let second = var.run(&[]);
    assert!(second.status.success(), "{}", said(&second));
    openssl_is_content(&var.path());
    let after: Vec<Vec<u8>> =
        ["root-cert.pem", "issuing-chain.pem", "root.pin", "issuing.pin", "jwt-issuer.key", "ca.toml"].map(|name| var.read(name)).into();
    assert!(kept == after);
    let verified = Command::new(softhsm_tests::build::ca_server())
        .args(["audit", "verify", "--config"])
        .arg(var.path().join("ca.toml"))
        .output()
        .expect("ca-server runs");
    assert!(verified.status.success(), "{}", said(&verified));
}

#[test]
fn reset_starts_anew_only_when_told_so() {
    let var = Var::new();
    assert!(var.run(&[]).status.success());
    let root = var.read("root-cert.pem");
    let unasked = var.run(&["--reset"]);
    assert!(!unasked.status.success(), "without a terminal it wants --yes");
    assert!(said(&unasked).contains("--yes"), "{}", said(&unasked));
    assert!(var.read("root-cert.pem") == root, "nothing was touched");
    let reset = var.run(&["--reset", "--yes"]);
    assert!(reset.status.success(), "{}", said(&reset));
    assert!(var.read("root-cert.pem") != root);
    openssl_is_content(&var.path());
}

#[test]
fn a_directory_that_is_not_ours_is_never_emptied() {
    let var = Var::new();
    std::fs::create_dir(var.path()).expect("writable");
    std::fs::write(var.path().join("thesis.txt"), "years of work").expect("writable");
    for arguments in [&[][..], &["--reset", "--yes"]] {
        let output = var.run(arguments);
        assert!(!output.status.success());
        assert_eq!(said(&output).trim_end().lines().count(), 1, "{}", said(&output));
    }
    assert_eq!(var.read("thesis.txt"), b"years of work");
    assert_eq!(std::fs::read_dir(var.path()).expect("readable").count(), 1, "and nothing was added");
}

#[test]
fn a_taken_port_is_one_clear_sentence_and_no_broken_directory() {
    let var = Var::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
    let port = taken.local_addr().expect("bound").port().to_string();
    let output = Command::new(softhsm_tests::build::ca_server())
        .args(["quickstart", "--once", "--csr-port", &port, "--monitoring-port", "0", "--dir"])
        .arg(var.path())
        .output()
        .expect("ca-server runs");
    assert_eq!(output.status.code(), Some(3), "{}", said(&output));
    assert!(said(&output).contains(&port), "{}", said(&output));
    drop(taken);
    let again = var.run(&[]);
    assert!(again.status.success(), "{}", said(&again));
    openssl_is_content(&var.path());
}

#[test]
fn a_run_cut_off_at_any_moment_is_repaired_by_the_next() {
    for after in ["tokens", "root.pin", "issuing.pin", "ceremony.jsonl", "root-cert.pem", "issuing-chain.pem", "jwks.json"] {
        let var = Var::new();
        let mut process =
            var.command(&[]).stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().expect("ca-server runs");
        // Killed as soon as this file is seen, wherever that is; a run that was quicker than we look is none the worse.
        while !var.path().join(after).exists() && process.try_wait().expect("waited").is_none() {
            std::thread::yield_now();
        }
        let _ = process.kill();
        process.wait().expect("waited");
        let repaired = var.run(&[]);
        assert!(repaired.status.success(), "cut off after {after}: {}", said(&repaired));
        openssl_is_content(&var.path());
    }
}

#[test]
fn a_var_in_use_is_left_alone() {
    let var = Var::new();
    assert!(var.run(&[]).status.success());
    let mut serving = Command::new(softhsm_tests::build::ca_server())
        .args(["quickstart", "--csr-port", "0", "--monitoring-port", "0", "--dir"])
        .arg(var.path())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("ca-server runs");
    // Its summary says that it serves.
    let mut summary = std::io::BufReader::new(serving.stdout.take().expect("piped"));
    let mut line = String::new();
    while std::io::BufRead::read_line(&mut summary, &mut line).expect("readable") > 0 && !line.contains("audit") {}
    for arguments in [&[][..], &["--reset", "--yes"]] {
        let output = var.run(arguments);
        assert_eq!(output.status.code(), Some(3), "{}", said(&output));
        assert!(said(&output).contains("in use"), "{}", said(&output));
    }
    softhsm_tests::daemon::signal(serving.id(), "TERM");
    assert!(serving.wait().expect("waited").success());
    assert!(var.run(&[]).status.success());
}
