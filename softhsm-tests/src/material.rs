//! Keys, tokens and certificates of a CA, made once per test process by the real quickstart and
//! copied for each test.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use tempfile::TempDir;

/// A directory like the quickstart's `var/`, with tokens of its own and an empty ledger.
pub struct Material {
    directory: TempDir,
}

impl Material {
    /// A fresh copy.
    pub fn new() -> Self {
        Self::copied_to(tempfile::tempdir().expect("a temporary directory"))
    }

    /// A fresh copy in memory, where the machine has such a file system: for stories in which only
    /// the device is slow, while a disk that others write to may take seconds for a commit.
    pub fn in_memory() -> Self {
        Self::copied_to(
            tempfile::tempdir_in("/dev/shm")
                .unwrap_or_else(|_| tempfile::tempdir().expect("a temporary directory")),
        )
    }

    fn copied_to(directory: TempDir) -> Self {
        static TEMPLATE: OnceLock<TempDir> = OnceLock::new();
        let template = TEMPLATE.get_or_init(make_template).path();
        copy(template, directory.path());
        let rewritten = |name: &str| {
            let path = directory.path().join(name);
            let text = fs::read_to_string(&path).expect("quickstart wrote it");
            fs::write(
                &path,
                text.replace(text_of(template), text_of(directory.path())),
            )
            .expect("writable");
        };
        rewritten("softhsm2.conf");
        rewritten("ca.toml");
        Self { directory }
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// A file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// A file's text.
    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.file(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// What another program sees in a token, or does to it, logged in as the user.
    pub fn pkcs11_tool(&self, token: &str, arguments: &[&str]) -> Output {
        Command::new("pkcs11-tool")
            .arg("--module")
            .arg(signers::pkcs11::find_softhsm().expect("SoftHSM is installed by ./run-tests"))
            .args([
                "--token-label",
                token,
                "--login",
                "--pin",
                "env:CA_TEST_PIN",
            ])
            .args(arguments)
            .env("CA_TEST_PIN", self.read(&format!("{token}.pin")).trim())
            .env("SOFTHSM2_CONF", self.file("softhsm2.conf"))
            .output()
            .expect("pkcs11-tool is installed by ./run-tests")
    }

    /// Adds or replaces a file.
    pub fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        fs::write(self.file(name), text).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}

impl Default for Material {
    fn default() -> Self {
        Self::new()
    }
}

fn make_template() -> TempDir {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let output = Command::new(super::build::ca_server())
        .args([
            "quickstart",
            "--once",
            "--csr-port",
            "0",
            "--monitoring-port",
            "0",
            "--dir",
        ])
        .arg(directory.path().join("var"))
        .output()
        .expect("ca-server runs");
    assert!(
        output.status.success(),
        "quickstart: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let var = directory.path().join("var");
    for name in fs::read_dir(&var)
        .expect("there")
        .map(|entry| entry.expect("readable").path())
    {
        if name
            .file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with("ledger.db"))
        {
            fs::remove_file(name).expect("removable");
        }
    }
    // The files are moved up, so that a copy's path takes the place of the template's as a whole.
    let flat = tempfile::tempdir().expect("a temporary directory");
    copy(&var, flat.path());
    for name in ["softhsm2.conf", "ca.toml"] {
        let path = flat.path().join(name);
        let text = fs::read_to_string(&path).expect("quickstart wrote it");
        fs::write(&path, text.replace(text_of(&var), text_of(flat.path()))).expect("writable");
    }
    flat
}

fn text_of(path: &Path) -> &str {
    path.to_str().expect("temporary paths are text")
}

fn copy(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).expect("readable") {
        let entry = entry.expect("readable");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("known").is_dir() {
            fs::create_dir_all(&target).expect("writable");
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), &target).expect("copied");
        }
    }
}
