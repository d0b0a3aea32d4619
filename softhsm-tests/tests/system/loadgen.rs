//! The load generator against a real daemon: what it reports is what the ledger holds, and it says
//! in a sentence why it cannot begin.

use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::Value;
use softhsm_tests::{TestCa, build};

fn loadgen(ca: &TestCa, key: &str, more: &[&str]) -> Output {
    let minter = ca.minter();
    Command::new(build::loadgen())
        .args([
            "--address",
            &format!("localhost:{}", ca.csr_address().port()),
        ])
        .args([
            "--token-issuer",
            minter.issuer(),
            "--token-key-id",
            minter.key_id(),
            "--tokens",
            "160",
            "--accounts",
            "20",
            "--csrs",
            "160",
        ])
        .arg("--token-issuer-key")
        .arg(ca.material.file(key))
        .arg("--roots")
        .arg(ca.material.file("root-cert.pem"))
        .args(more)
        .output()
        .expect("loadgen runs")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A run whose every chain is verified, and its report.
fn run(ca: &TestCa, more: &[&str]) -> Value {
    let (report, picture): (PathBuf, PathBuf) =
        (ca.material.file("load.json"), ca.material.file("load.svg"));
    let text = |path: &PathBuf| path.to_str().expect("temporary paths are text").to_owned();
    let (pid, report_file, picture_file) = (
        format!("daemon={}", ca.pid()),
        text(&report),
        text(&picture),
    );
    let common = [
        "--warm-up",
        "0s",
        "--verify-every",
        "1",
        "--pid",
        &pid,
        "--report",
        &report_file,
        "--picture",
        &picture_file,
    ];
    let output = loadgen(ca, "jwt-issuer.key", &[&common, more].concat());
    assert!(
        output.status.success(),
        "{}\n{}",
        said(&output),
        ca.log_text()
    );
    assert!(
        std::fs::read_to_string(picture)
            .expect("drawn")
            .starts_with("<svg")
    );
    serde_json::from_slice(&std::fs::read(report).expect("written")).expect("JSON")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_load_generator_counts_is_what_the_ledger_holds() {
    let ca = TestCa::start().await;
    let issued_before = ca.export().count("issued");
    let ways: [&[&str]; 3] = [
        &["--closed", "8", "--calls", "150"],
        &["--closed", "4", "--calls", "20", "--fresh-connections"],
        &[
            "--open",
            "200",
            "--calls",
            "50",
            "--idle-connections",
            "30",
            "--threads",
            "2",
        ],
    ];
    for (way, calls) in ways.into_iter().zip([150, 20, 50]) {
        let report = run(&ca, way);
        let section = &report["sections"][0];
        assert_eq!(
            (&section["calls"], &section["issued"]),
            (&calls.into(), &calls.into()),
            "{way:?}: {section}"
        );
        assert_eq!(
            (&section["verified"]["count"], &section["verified"]["wrong"]),
            (&calls.into(), &0.into()),
            "{way:?}: {section}"
        );
        assert_eq!(section["errors"], serde_json::json!({}), "{way:?}");
        assert_eq!(section["latency"]["count"], calls, "{way:?}");
        assert!(
            section["memory"]["daemon"]["end_kb"]
                .as_u64()
                .expect("a number")
                > 0
        );
        assert_eq!(
            (
                &report["prepared"]["csrs_reused"],
                &report["prepared"]["tokens_reused"]
            ),
            (&false.into(), &false.into()),
            "{way:?}"
        );
        if let Some(idle) = report["idle"].as_object() {
            assert_eq!(
                (&idle["connections"], &idle["open_at_end"]),
                (&30.into(), &30.into())
            );
        }
    }
    // Each run asks once before it begins.
    assert_eq!(
        ca.check().count("issued"),
        issued_before + 150 + 20 + 50 + 3
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_load_generator_says_why_it_cannot_begin() {
    let mut ca = TestCa::start().await;
    let strangers =
        rcgen::KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048)
            .expect("a key");
    ca.material.write("stranger.key", strangers.serialize_pem());
    let refused = loadgen(&ca, "stranger.key", &["--closed", "1", "--calls", "1"]);
    assert_eq!(refused.status.code(), Some(1), "{}", said(&refused));
    assert!(
        said(&refused).contains("refuses the first call: Unauthenticated"),
        "{}",
        said(&refused)
    );

    let other_name = loadgen(
        &ca,
        "jwt-issuer.key",
        &[
            "--server-name",
            "other.example",
            "--closed",
            "1",
            "--calls",
            "1",
        ],
    );
    assert_eq!(other_name.status.code(), Some(3), "{}", said(&other_name));
    assert!(said(&other_name).contains("TLS"), "{}", said(&other_name));

    ca.stop();
    let nobody = loadgen(&ca, "jwt-issuer.key", &["--closed", "1", "--calls", "1"]);
    assert_eq!(nobody.status.code(), Some(3), "{}", said(&nobody));
    assert!(
        said(&nobody).contains("cannot be reached: connect"),
        "{}",
        said(&nobody)
    );
}
