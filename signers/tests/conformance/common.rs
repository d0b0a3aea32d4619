//! SoftHSM tokens behind the fault module, each case in a process of its own: SOFTHSM2_CONF and the
//! fault module's variables are process-wide, so they are given to the process when it is started
//! and never set later.

use std::fs;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use pkcs11_fault::Control;
use secrecy::SecretString;
use signers::{KeyKind, KeyUri, Vault, pkcs11};

const CHILD: &str = "SIGNERS_TEST_DIRECTORY";
pub(crate) const PIN: &str = "canary-24680";

/// Runs `case` in a child process that is this test alone, with a directory, an empty SoftHSM and
/// the fault module before it. `extra` is added to softhsm2.conf.
pub(crate) fn in_child(test: &str, extra: &str, case: impl FnOnce(&House)) {
    if let Some(directory) = inside() {
        return case(&House { directory });
    }
    let softhsm = pkcs11::find_softhsm().expect("SoftHSM 2 is not installed (package libsofthsm2)");
    let directory = tempfile::tempdir().unwrap();
    let (tokens, faults) = (
        directory.path().join("tokens"),
        directory.path().join("faults"),
    );
    fs::create_dir(&tokens).unwrap();
    fs::create_dir(&faults).unwrap();
    let config = directory.path().join("softhsm2.conf");
    fs::write(
        &config,
        format!(
            "directories.tokendir = {}\nobjectstore.backend = file\nlog.level = ERROR\n{extra}\n",
            tokens.display()
        ),
    )
    .unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .env("SOFTHSM2_CONF", &config)
        .env("PKCS11_FAULT_MODULE", softhsm)
        .env("PKCS11_FAULT_DIR", &faults);
    run_alone(&mut command, test, directory.path());
}

/// In a child: its directory; `None` in the parent.
pub(crate) fn inside() -> Option<PathBuf> {
    std::env::var_os(CHILD).map(PathBuf::from)
}

/// Runs this test alone in a child process; `command` is this program, or what ends by starting it
/// with the arguments that follow.
pub(crate) fn run_alone(command: &mut Command, test: &str, directory: &Path) {
    let output = command
        .args([
            test,
            "--include-ignored",
            "--exact",
            "--nocapture",
            "--test-threads=1",
        ])
        .env(CHILD, directory)
        .output()
        .unwrap();
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(output.status.success(), "{}\n{out}\n{err}", output.status);
    assert!(
        out.contains("1 passed"),
        "the child ran no test\n{out}\n{err}"
    );
}

/// The file of the PIN in that directory, replaced as a whole.
pub(crate) fn write_pin(directory: &Path, pin: &str) {
    let new = directory.join("new.pin");
    let _ = fs::remove_file(&new);
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&new)
        .unwrap();
    std::io::Write::write_all(&mut file, pin.as_bytes()).unwrap();
    fs::rename(new, directory.join("user.pin")).unwrap();
}

/// What a child process has.
pub(crate) struct House {
    pub(crate) directory: PathBuf,
}

impl House {
    pub(crate) fn control(&self) -> Control {
        Control::new(self.directory.join("faults"))
    }

    /// The fault module, or SoftHSM itself.
    pub(crate) fn module(&self) -> PathBuf {
        pkcs11_fault::library().unwrap()
    }

    pub(crate) fn pin_file(&self) -> PathBuf {
        self.directory.join("user.pin")
    }

    pub(crate) fn write_pin(&self, pin: &str) {
        write_pin(&self.directory, pin);
    }

    /// A new token `ca`.
    pub(crate) fn token(&self) {
        self.write_pin(&format!("{PIN}\n"));
        pkcs11::init_token(
            &self.module(),
            "ca",
            &SecretString::from("so-12345"),
            &SecretString::from(PIN),
        )
        .unwrap();
    }

    pub(crate) fn uri(&self, object: &str) -> KeyUri {
        let text = format!(
            "pkcs11:token=ca;object={object}?module-path={}&pin-source=file:user.pin",
            self.module().display()
        );
        KeyUri::parse(&text, &self.directory).unwrap()
    }

    /// A new key in the token `ca`.
    pub(crate) fn key(&self, object: &str, kind: KeyKind) -> KeyUri {
        let uri = self.uri(object);
        pkcs11::open_vault(&uri)
            .unwrap()
            .generate(&uri, kind)
            .unwrap();
        uri
    }

    /// `pkcs11-tool` on the token `ca`, past the fault module.
    pub(crate) fn pkcs11_tool(&self, arguments: &[&str]) -> String {
        let output = Command::new("pkcs11-tool")
            .arg("--module")
            .arg(pkcs11::find_softhsm().unwrap())
            .args(["--token-label", "ca", "--login", "--pin", PIN])
            .args(arguments)
            .output()
            .expect("pkcs11-tool is not installed (package opensc)");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}
