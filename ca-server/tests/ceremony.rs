//! The ceremony on a real SoftHSM token, through the real binary: what keys became, what is
//! adopted, what is refused. A missing SoftHSM fails these tests; ./run-tests installs it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

const PIN: &str = "482913";

/// A directory with one token `ca` and a spec for keys `root` and `issuing` in it.
struct Bench {
    directory: TempDir,
    module: PathBuf,
}

impl Bench {
    fn new(algorithm: &str) -> Self {
        let module =
            signers::pkcs11::find_softhsm().expect("SoftHSM 2 is installed by ./run-tests");
        let bench = Self {
            directory: tempfile::tempdir().unwrap(),
            module,
        };
        fs::create_dir(bench.path("tokens")).unwrap();
        fs::write(
            bench.path("softhsm2.conf"),
            format!(
                "directories.tokendir = {}\nlog.level = ERROR\n",
                bench.path("tokens").display()
            ),
        )
        .unwrap();
        fs::write(bench.path("ca.pin"), PIN).unwrap();
        fs::set_permissions(bench.path("ca.pin"), fs::Permissions::from_mode(0o600)).unwrap();
        let made = bench
            .command("softhsm2-util")
            .args([
                "--init-token",
                "--free",
                "--label",
                "ca",
                "--so-pin",
                "0000",
                "--pin",
                PIN,
            ])
            .output();
        assert!(
            made.expect("softhsm2-util comes with SoftHSM")
                .status
                .success()
        );
        fs::write(bench.path("spec.toml"), bench.spec(algorithm)).unwrap();
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .env("SOFTHSM2_CONF", self.path("softhsm2.conf"))
            .current_dir(self.directory.path());
        command
    }

    fn spec(&self, algorithm: &str) -> String {
        let entry = |name: &str, subject: &str, length: u8| {
            format!(
                "[{name}]\nsubject = \"{subject}\"\nkey = \"pkcs11:token=ca;object={name}?module-path={}&pin-source=file:ca.pin\"\n\
                 algorithm = \"{algorithm}\"\nlifetime = \"3650d\"\npath_length = {length}\n",
                self.module.display()
            )
        };
        format!(
            "output = \"out\"\n[device]\nenv = {{ SOFTHSM2_CONF = \"{}\" }}\n{}{}",
            self.path("softhsm2.conf").display(),
            entry("root", "CN=Token Root, O=Test", 1),
            entry("issuing", "CN=Token Issuing, O=Test", 0)
        )
    }

    /// Runs the ceremony; without the environment, which the spec's own `env` must bring.
    fn hold(&self) -> Output {
        Command::new(env!("CARGO_BIN_EXE_ca-server"))
            .args(["ceremony", "--spec"])
            .arg(self.path("spec.toml"))
            .env_remove("SOFTHSM2_CONF")
            .output()
            .unwrap()
    }

    fn succeed(&self) -> String {
        let output = self.hold();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs it expecting a refusal: its one sentence, with the exit status in front.
    fn refused(&self) -> String {
        let output = self.hold();
        let sentence = String::from_utf8(output.stderr).unwrap();
        assert_eq!(sentence.trim_end().lines().count(), 1, "{sentence}");
        format!("{} {sentence}", output.status.code().unwrap())
    }

    fn pkcs11_tool(&self, arguments: &[&str]) -> String {
        let output = self
            .command("pkcs11-tool")
            .arg("--module")
            .arg(&self.module)
            .args(["--token-label", "ca", "--login", "--pin", PIN])
            .args(arguments)
            .output();
        let output = output.expect("pkcs11-tool is installed by ./run-tests");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    fn delete_key(&self, label: &str) {
        for kind in ["privkey", "pubkey"] {
            self.pkcs11_tool(&["--delete-object", "--type", kind, "--label", label]);
        }
    }

    fn chain_verifies(&self) -> bool {
        let command = self
            .command("openssl")
            .args([
                "verify",
                "-x509_strict",
                "-check_ss_sig",
                "-CAfile",
                "out/root-cert.pem",
                "out/issuing-chain.pem",
            ])
            .output();
        command
            .expect("openssl is installed by ./run-tests")
            .status
            .success()
    }
}

fn lines(path: &Path) -> Vec<serde_json::Value> {
    fs::read_to_string(path)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn keys_are_generated_in_the_token_and_can_never_leave_it() {
    for algorithm in ["p256", "p384", "rsa-2048"] {
        let bench = Bench::new(algorithm);
        bench.succeed();
        assert!(bench.chain_verifies(), "{algorithm}");
        let keys = bench.pkcs11_tool(&["--list-objects", "--type", "privkey"]);
        assert_eq!(
            keys.matches("sensitive, always sensitive, never extractable, local")
                .count(),
            2,
            "{keys}"
        );
        let transcript = lines(&bench.path("out/ceremony.jsonl"));
        for key in transcript
            .iter()
            .filter(|line| line["step"] == "key_generated")
        {
            assert!(
                key["sensitive"] == true
                    && key["never_extractable"] == true
                    && key["local"] == true,
                "{key}"
            );
        }
        let token = transcript
            .iter()
            .find(|line| line["step"] == "token")
            .unwrap();
        assert!(
            token["label"] == "ca"
                && !token["serial"].as_str().unwrap().is_empty()
                && token["model"] == "SoftHSM v2",
            "{token}"
        );
    }
}

#[test]
fn no_pin_is_ever_written_down() {
    let bench = Bench::new("p256");
    let said = bench.succeed();
    assert!(!said.contains(PIN));
    assert!(
        !fs::read_to_string(bench.path("out/ceremony.jsonl"))
            .unwrap()
            .contains(PIN)
    );
}

#[test]
fn a_second_ceremony_leaves_everything_as_it_is() {
    let bench = Bench::new("p256");
    bench.succeed();
    let read = || {
        ["root-cert.pem", "issuing-chain.pem", "ceremony.jsonl"]
            .map(|name| fs::read(bench.path("out").join(name)).unwrap())
    };
    let before = read();
    assert_eq!(
        bench.succeed().matches("already there, unchanged").count(),
        2
    );
    assert_eq!(read(), before);
    assert_eq!(
        bench
            .pkcs11_tool(&["--list-objects", "--type", "privkey"])
            .matches("Private Key Object")
            .count(),
        2
    );
}

#[test]
fn an_interrupted_ceremony_is_finished_with_the_keys_it_recorded() {
    let bench = Bench::new("p256");
    bench.succeed();
    let key = |lines: &[serde_json::Value], step: &str| {
        lines
            .iter()
            .rfind(|line| line["step"] == step && line["entry"] == "issuing")
            .map(|line| line["public_key_sha256"].clone())
    };
    fs::remove_file(bench.path("out/issuing-chain.pem")).unwrap();
    bench.succeed();
    assert!(bench.chain_verifies());
    let transcript = lines(&bench.path("out/ceremony.jsonl"));
    assert_eq!(
        key(&transcript, "key_adopted"),
        key(&transcript, "key_generated")
    );
    // The root too, while nothing hangs on it.
    fs::remove_file(bench.path("out/issuing-chain.pem")).unwrap();
    fs::remove_file(bench.path("out/root-cert.pem")).unwrap();
    bench.succeed();
    assert!(bench.chain_verifies());
}

#[test]
fn a_key_of_unknown_origin_is_never_certified() {
    let bench = Bench::new("p256");
    bench.pkcs11_tool(&[
        "--keypairgen",
        "--key-type",
        "EC:prime256v1",
        "--label",
        "root",
        "--id",
        "01",
        "--sensitive",
    ]);
    let sentence = bench.refused();
    assert!(
        sentence.starts_with("3 ") && sentence.contains("does not record"),
        "{sentence}"
    );
    assert!(!bench.path("out/root-cert.pem").exists());
}

#[test]
fn an_extractable_key_is_never_adopted_even_if_the_transcript_names_it() {
    let bench = Bench::new("p256");
    bench.succeed();
    fs::remove_file(bench.path("out/issuing-chain.pem")).unwrap();
    bench.delete_key("issuing");
    bench.pkcs11_tool(&[
        "--keypairgen",
        "--key-type",
        "EC:prime256v1",
        "--label",
        "issuing",
        "--id",
        "01",
        "--sensitive",
        "--extractable",
    ]);
    let public = bench.pkcs11_tool(&[
        "--read-object",
        "--type",
        "pubkey",
        "--label",
        "issuing",
        "--output-file",
        "issuing.der",
    ]);
    let digest = bench
        .command("openssl")
        .args(["dgst", "-sha256", "-r", "issuing.der"])
        .output()
        .unwrap();
    let digest = String::from_utf8(digest.stdout).unwrap()[..64].to_owned();
    let forged = serde_json::json!({
        "time": "2026-01-01T00:00:00.000000Z", "step": "key_generated", "entry": "issuing", "uri": "", "label": "issuing", "id": "01",
        "public_key_sha256": digest, "sensitive": true, "never_extractable": true, "local": true,
    });
    let transcript = bench.path("out/ceremony.jsonl");
    fs::write(
        &transcript,
        format!("{}{forged}\n", fs::read_to_string(&transcript).unwrap()),
    )
    .unwrap();
    let sentence = bench.refused();
    assert!(
        sentence.starts_with("3 ") && sentence.contains("never extractable"),
        "{public}{sentence}"
    );
}

#[test]
fn a_certificate_whose_key_is_gone_is_not_replaced() {
    let bench = Bench::new("p256");
    bench.succeed();
    bench.delete_key("issuing");
    let sentence = bench.refused();
    assert!(
        sentence.starts_with("3 ") && sentence.contains("restore the token"),
        "{sentence}"
    );
}

#[test]
fn a_wrong_pin_costs_one_sentence() {
    let bench = Bench::new("p256");
    fs::write(bench.path("ca.pin"), "999999").unwrap();
    let sentence = bench.refused();
    assert!(
        sentence.starts_with("3 ") && !sentence.contains("999999"),
        "{sentence}"
    );
}

#[test]
fn a_spec_with_an_unknown_key_is_a_usage_error() {
    let bench = Bench::new("p256");
    fs::write(
        bench.path("spec.toml"),
        bench
            .spec("p256")
            .replace("path_length = 1", "path_length = 1\npathlen = 2"),
    )
    .unwrap();
    let sentence = bench.refused();
    assert!(
        sentence.starts_with("2 ") && sentence.contains("pathlen"),
        "{sentence}"
    );
}

#[test]
fn a_ceremony_that_fails_names_what_it_has_left_in_the_token() {
    let bench = Bench::new("p256");
    // The root's key can be made, the issuing one cannot: its directory is not there.
    let spec = fs::read_to_string(bench.path("spec.toml")).unwrap();
    let (root, issuing) = spec.split_once("[issuing]").unwrap();
    let in_a_file = |line: &str| {
        if line.starts_with("key = ") {
            "key = \"file:keys/issuing.key\"".to_owned()
        } else {
            line.to_owned()
        }
    };
    let issuing: Vec<String> = issuing.lines().map(in_a_file).collect();
    fs::write(
        bench.path("spec.toml"),
        format!("{root}[issuing]{}\n", issuing.join("\n")),
    )
    .unwrap();
    let said = bench.refused();
    assert!(
        said.contains("the root key pkcs11:token=ca;object=root") && said.contains("(CKA_ID "),
        "{said}"
    );
    assert!(
        said.contains("stays: another run with this spec takes it up"),
        "{said}"
    );
    // What was in the way is gone.
    fs::create_dir(bench.path("keys")).unwrap();
    bench.succeed();
    assert!(bench.chain_verifies());
}
