//! The programs under test, built once per test process with the profile of the tests themselves.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The `ca-server` binary.
pub fn ca_server() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        cargo_build("ca-server");
        profile_directory().join("ca-server")
    })
}

/// The `loadgen` binary.
pub fn loadgen() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        cargo_build("loadgen");
        profile_directory().join("loadgen")
    })
}

/// `<target>/<profile>`, two above the test's own program.
fn profile_directory() -> PathBuf {
    let own = std::env::current_exe().expect("a running program has a path");
    own.ancestors()
        .nth(2)
        .expect("cargo puts tests into <target>/<profile>/deps")
        .to_owned()
}

fn cargo_build(package: &str) {
    let profile = if profile_directory().ends_with("release") {
        "release"
    } else {
        "dev"
    };
    let status = Command::new(env!("CARGO"))
        .args([
            "build",
            "--quiet",
            "--locked",
            "--profile",
            profile,
            "--package",
            package,
        ])
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))
        .env(
            "CARGO_TARGET_DIR",
            profile_directory().parent().expect("the target directory"),
        )
        .status()
        .expect("cargo runs");
    assert!(status.success(), "cargo build --package {package} failed");
}
