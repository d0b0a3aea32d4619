//! The suite that every back end passes, on PEM files, on real SoftHSM tokens behind the fault
//! module, and on the libraries of others.

mod common;
mod faults;
mod healing;
mod modules;
mod vault;

use common::{PIN, in_child};
use signers::conformance::{Faults, Subject, run};
use signers::file::FileVault;
use signers::{KeyKind, KeyUri, Vault};

const KINDS: [KeyKind; 3] = [KeyKind::P256, KeyKind::P384, KeyKind::Rsa2048];

#[test]
fn pem_files_conform() {
    let directory = tempfile::tempdir().unwrap();
    let keys = KINDS
        .into_iter()
        .map(|kind| {
            let uri = KeyUri::File(directory.path().join(format!("{kind}.pem")));
            FileVault.generate(&uri, kind).unwrap();
            (kind, uri)
        })
        .collect();
    run(&Subject {
        name: "file",
        keys,
        unsupported: Vec::new(),
        scratch: directory.path().to_owned(),
        faults: None,
    })
    .unwrap();
}

#[test]
fn softhsm_conforms() {
    in_child("softhsm_conforms", "", |house| {
        house.token();
        let keys = KINDS
            .into_iter()
            .map(|kind| (kind, house.key(&kind.to_string(), kind)))
            .collect();
        let control = house.control();
        run(&Subject {
            name: "pkcs11",
            keys,
            unsupported: Vec::new(),
            scratch: house.directory.clone(),
            faults: Some(Faults {
                // Also ends the login, since no session is left that could keep it.
                close_sessions: &|| control.set("C_SignInit close_sessions count 1").unwrap(),
                delay_next: &|time| {
                    control
                        .set(&format!("C_Sign sleep_ms {} count 1", time.as_millis()))
                        .unwrap()
                },
                break_pin: &|broken| house.write_pin(if broken { "wrong-13579" } else { PIN }),
                logins: &|| control.logins(),
            }),
        })
        .unwrap();
    });
}

/// Keys made elsewhere, in each form that PEM files hold them in.
#[test]
fn pem_keys_of_openssl_are_read() {
    let directory = tempfile::tempdir().unwrap();
    let openssl = |arguments: &[&str]| {
        let output = std::process::Command::new("openssl")
            .args(arguments)
            .current_dir(&directory)
            .output()
            .expect("openssl is not installed");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    };
    openssl(&[
        "genpkey",
        "-algorithm",
        "EC",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-out",
        "p256.pem",
    ]);
    openssl(&[
        "ecparam",
        "-name",
        "secp384r1",
        "-genkey",
        "-noout",
        "-out",
        "p384.pem",
    ]);
    openssl(&["genrsa", "-traditional", "-out", "rsa-2048.pem", "2048"]);
    openssl(&["genpkey", "-algorithm", "ed25519", "-out", "ed25519.pem"]);
    openssl(&["genrsa", "-out", "weak.pem", "1024"]);
    for name in [
        "p256.pem",
        "p384.pem",
        "rsa-2048.pem",
        "ed25519.pem",
        "weak.pem",
    ] {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(
            directory.path().join(name),
            std::fs::Permissions::from_mode(0o600),
        )
        .unwrap();
    }
    let uri = |name: &str| KeyUri::File(directory.path().join(name));
    let keys = KINDS
        .into_iter()
        .map(|kind| (kind, uri(&format!("{kind}.pem"))))
        .collect();
    run(&Subject {
        name: "file of openssl",
        keys,
        unsupported: Vec::new(),
        scratch: directory.path().to_owned(),
        faults: None,
    })
    .unwrap();
    for refused in ["ed25519.pem", "weak.pem"] {
        assert!(
            matches!(
                signers::open_device(&uri(refused)).map(drop),
                Err(signers::SignError::Rejected(_))
            ),
            "{refused}"
        );
    }
}
