//! A config that is wrong gives one line with file, key and remedy, and status 2.

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use softhsm_tests::authority::Authority;
use softhsm_tests::daemon::Setup;
use softhsm_tests::{Material, TestCa};

const DAY: Duration = Duration::from_secs(86_400);

/// What `check-config` or `serve` says of this daemon's config: one line, status 2.
fn complaint(ca: &TestCa, verb: &str) -> String {
    let output = ca.verb(&[verb]).output().expect("ca-server runs");
    let said = String::from_utf8(output.stderr).expect("text");
    assert_eq!(output.status.code(), Some(2), "{said}");
    // Beside the log's own lines, each a JSON object.
    assert_eq!(
        said.trim_end()
            .lines()
            .filter(|line| !line.starts_with('{'))
            .count(),
        1,
        "one line: {said}"
    );
    said
}

#[test]
fn each_mistake_in_the_file_is_named_with_its_key() {
    for (from, to, expected) in [
        (
            "cluster_id = \"Kubernetes\"",
            "cluster_id = \"Kubernetes\"\ncolour = \"green\"",
            "colour",
        ),
        (
            "cluster_id = \"Kubernetes\"",
            "cluster_id = 7",
            "expected a string",
        ),
        (
            "trust_domain = \"cluster.local\"",
            "trust_domain = \"Cluster.Local\"",
            "`trust_domain`",
        ),
        ("trust_domain = \"cluster.local\"", "", "trust_domain"),
        (
            "call_timeout = \"5s\"",
            "call_timeout = \"5\"",
            "call_timeout",
        ),
        (
            "call_timeout = \"5s\"",
            "call_timeout = \"5h\"",
            "`csr.call_timeout`",
        ),
        ("sqlite:ledger.db", "mysql://ledger", "`ledger.url`"),
        (
            "state_dir = \".\"",
            "state_dir = \"nowhere\"",
            "`state_dir`",
        ),
        (
            "[device.softhsm]",
            "[device.softhsm]\nopen_timeout = \"0s\"",
            "`device.softhsm.open_timeout`",
        ),
        (
            "minimum = \"10m\"",
            "minimum = \"10d\"",
            "`profile.default`",
        ),
        (
            "keys = [\"rsa\", \"p256\", \"p384\"]",
            "keys = []",
            "`profile.keys`",
        ),
        (
            "keys = [\"rsa\", \"p256\", \"p384\"]",
            "keys = [\"dsa\"]",
            "`keys` unknown variant",
        ),
        (
            "chain = \"issuing-chain.pem\"",
            "chain = \"absent.pem\"",
            "absent.pem",
        ),
        (
            "chain = \"issuing-chain.pem\"",
            "chain = \"jwks.json\"",
            "no PEM certificate",
        ),
        (
            "roots = \"root-cert.pem\"",
            "roots = \"issuing-chain.pem\"",
            "it is no root",
        ),
        (
            "jwks = \"jwks.json\"",
            "jwks = \"absent.json\"",
            "`jwt.jwks`",
        ),
        (
            "jwks = \"jwks.json\"",
            "jwks = \"root-cert.pem\"",
            "`jwt.jwks`",
        ),
        ("state = \"active\"", "state = \"retiring\"", "active"),
        (
            "state = \"active\"",
            "state = \"asleep\"",
            "`state` unknown variant",
        ),
        ("pin-source=", "pin-value=1234&pin-source=", "pin-value"),
        (
            "audiences = [\"istio-ca\"]",
            "audiences = []",
            "`jwt.audiences`",
        ),
        ("[profile]", "[profile", "ca.toml:"),
        ("[limits]", "[limits]\npods_a_minute = 7", "pods_a_minute"),
        (
            "peer_calls_a_minute = 0",
            "peer_calls_a_minute = -1",
            "peer_calls_a_minute",
        ),
    ] {
        let ca = TestCa::configured(Material::new(), Setup::default().replace(from, to));
        for verb in ["check-config", "serve"] {
            let said = complaint(&ca, verb);
            assert!(
                said.contains(expected) && said.contains("ca.toml"),
                "{to:?} should name {expected:?}: {said}"
            );
        }
    }
}

#[test]
fn a_missing_config_is_said_with_the_way_to_make_one() {
    let directory = tempfile::tempdir().expect("a directory");
    let output = std::process::Command::new(softhsm_tests::build::ca_server())
        .args(["serve", "--config", "absent.toml"])
        .current_dir(directory.path())
        .output()
        .expect("ca-server runs");
    let said = String::from_utf8(output.stderr).expect("text");
    assert_eq!(output.status.code(), Some(2));
    assert!(
        said.contains("absent.toml") && said.contains("quickstart"),
        "{said}"
    );
}

#[test]
fn a_pin_file_that_others_can_read_or_that_we_cannot_is_refused() {
    let ca = TestCa::configured(Material::new(), Setup::default());
    let pin = ca.material.file("issuing.pin");
    for mode in [0o644, 0o660, 0o604] {
        std::fs::set_permissions(&pin, std::fs::Permissions::from_mode(mode)).expect("permitted");
        let said = complaint(&ca, "serve");
        assert!(
            said.contains("issuing.pin") && said.contains("chmod 600"),
            "{said}"
        );
    }
    std::fs::remove_file(&pin).expect("removed");
    let said = complaint(&ca, "serve");
    assert!(said.contains("issuing.pin"), "{said}");
}

#[test]
fn an_expired_issuer_is_a_warning_beside_a_good_one_and_refused_where_nobody_else_signs() {
    let material = Material::new();
    let root = Authority::root("root", DAY * 365);
    let expired = root.intermediate("expired", Duration::ZERO);
    material.write("old-chain.pem", expired.certificate());
    material.write("old-root.pem", root.certificate());
    crate::lifetime::write_key(&material, "old.key", &expired.key());
    let issuer = "\n[[issuer]]\nid = \"old\"\nkey = \"file:old.key\"\nchain = \"old-chain.pem\"\nroots = \"old-root.pem\"\nstate = \"active\"\n";
    let ca = TestCa::configured(
        material,
        Setup {
            append: issuer.to_owned(),
            ..Setup::default()
        },
    );
    let warned = |warning: &str| {
        let output = ca.verb(&["check-config"]).output().expect("ca-server runs");
        assert!(
            output.status.success() && String::from_utf8_lossy(&output.stdout).contains(warning),
            "{warning}: {output:?}"
        );
    };
    warned(
        "warning: active issuer old is out of date: `chain`, certificate 1 (line 1), CN=expired: it ended at",
    );
    ca.edit_config(
        "roots = \"root-cert.pem\"\nstate = \"active\"",
        "roots = \"root-cert.pem\"\nstate = \"retiring\"",
    );
    for verb in ["check-config", "serve"] {
        let said = complaint(&ca, verb);
        assert!(
            said.contains("`issuer.old.chain`") && said.contains("renew it"),
            "{said}"
        );
    }
    ca.edit_config(
        "roots = \"root-cert.pem\"\nstate = \"retiring\"",
        "roots = \"root-cert.pem\"\nstate = \"active\"",
    );
    ca.edit_config(
        "roots = \"old-root.pem\"\nstate = \"active\"",
        "roots = \"old-root.pem\"\nstate = \"retiring\"",
    );
    warned("warning: retiring issuer old");
}

#[test]
fn a_key_that_is_not_the_certificates_refuses_to_start() {
    let material = Material::new();
    let root = Authority::root("root", DAY * 365);
    let (ours, other) = (
        root.intermediate("ours", DAY),
        root.intermediate("other", DAY),
    );
    material.write("file-chain.pem", ours.certificate());
    material.write("root-cert.pem", root.certificate());
    crate::lifetime::write_key(&material, "other.key", &other.key());
    let setup = Setup::default().replace(
        "chain = \"issuing-chain.pem\"",
        "chain = \"file-chain.pem\"",
    );
    let setup = crate::lifetime::file_issuer(&material, setup, "other.key");
    let said = complaint(&TestCa::configured(material, setup), "serve");
    assert!(said.contains("another key than expected"), "{said}");
}

#[test]
fn a_wrong_pin_refuses_to_start_with_one_clear_line() {
    let ca = TestCa::configured(Material::new(), Setup::default());
    let pin = ca.material.file("issuing.pin");
    std::fs::write(&pin, "000000").expect("writable");
    let said = complaint(&ca, "serve");
    assert!(said.to_lowercase().contains("pin"), "{said}");
    assert!(!said.contains("000000"));
}
