//! What a process that has a device's library in it can still do. The library itself tries
//! (`fault-module`), in the real process.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;

use softhsm_tests::{Ask, Csr, Setup, TestCa};

const EPERM: i64 = 1;
const EACCES: i64 = 13;

/// A CA whose module tries what should be refused wherever it is loaded, and a file there that
/// nobody may read.
fn trying(setup: Setup) -> TestCa {
    softhsm_tests::crypto();
    let ca = TestCa::configured(softhsm_tests::Material::new(), setup.with_faults());
    ca.faults().attempt().expect("writable");
    let closed = ca.material.file("faults/closed");
    std::fs::write(&closed, "closed").expect("writable");
    std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o000)).expect("ours");
    ca
}

/// What was allowed, but for what is not for a sandbox to refuse.
fn allowed(attempts: &BTreeMap<String, i64>) -> Vec<&str> {
    assert!(attempts.len() > 20, "everything was tried: {attempts:?}");
    let tried = attempts
        .iter()
        .filter(|(name, _)| !["dumpable", "core", "socket-unix"].contains(&name.as_str()));
    tried
        .filter(|(_, errno)| ![EPERM, EACCES].contains(errno))
        .map(|(name, _)| name.as_str())
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_library_in_a_signer_process_can_do_nothing_of_what_was_given_up() {
    let mut ca = trying(Setup::default());
    ca.restart().await;
    let attempts = ca.faults().take_attempts();
    assert_eq!(allowed(&attempts), [""; 0], "{attempts:?}");
    assert_eq!(
        attempts["socket-unix"], 0,
        "libraries speak to their brokers"
    );
    ca.call(&Csr::demo().pem, &Ask::bearer(&ca.token()))
        .await
        .expect("and it signs");
    ca.check();

    let mut ca =
        trying(Setup::default().replace("[device.softhsm]", "[device.softhsm]\nnetwork = true"));
    ca.restart().await;
    let attempts = ca.faults().take_attempts();
    assert!(
        attempts["socket-inet"] == 0 && attempts["socket-inet6"] == 0,
        "the network alone: {attempts:?}"
    );
    assert!(
        allowed(&attempts)
            .iter()
            .all(|name| name.starts_with("socket-")),
        "{attempts:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_verb_that_loads_a_library_leaves_a_core_file_or_can_be_read_by_others_of_its_user() {
    let hidden = |ca: &TestCa, verb: &str| {
        let attempts = ca.faults().take_attempts();
        let of = |name: &str| attempts.get(name).copied();
        assert_eq!(
            (of("dumpable"), of("core")),
            (Some(0), Some(0)),
            "{verb}: {attempts:?}"
        );
    };
    let mut ca = trying(Setup::default());
    ca.restart().await;
    hidden(&ca, "serve");
    ca.stop();
    let doctor = ca.verb(&["doctor", "--no-rate"]).output().expect("runs");
    assert!(
        doctor.status.success(),
        "{}",
        String::from_utf8_lossy(&doctor.stdout)
    );
    hidden(&ca, "doctor");
    let module = signers::pkcs11::find_softhsm().expect("SoftHSM is installed by ./run-tests");
    let module = module.to_str().expect("text");
    let faults = pkcs11_fault::library().expect("cargo builds it beside the tests");
    let spec = ca
        .material
        .read("ceremony.toml")
        .replace(module, faults.to_str().expect("text"));
    ca.material.write("ceremony.toml", spec);
    let mut ceremony = std::process::Command::new(softhsm_tests::build::ca_server());
    ceremony
        .arg("ceremony")
        .arg("--spec")
        .arg(ca.material.file("ceremony.toml"))
        .current_dir(ca.material.path());
    ceremony
        .env("PKCS11_FAULT_MODULE", module)
        .env("PKCS11_FAULT_DIR", ca.material.file("faults"));
    let ceremony = ceremony
        .env("SOFTHSM2_CONF", ca.material.file("softhsm2.conf"))
        .output()
        .expect("runs");
    // Whatever it finds there: the library was loaded.
    hidden(&ca, &format!("ceremony: {ceremony:?}"));
    let mut on_threads = trying(Setup::default().on_threads());
    on_threads.restart().await;
    hidden(&on_threads, "serve on threads");
}
