//! What an auditor does with the real binary beside the running daemon.

use softhsm_tests::{Ask, Csr, TestCa};

/// Standard output of a question that is answered.
fn audit(ca: &TestCa, question: &[&str]) -> String {
    let output = ca
        .verb(&[&["audit"], question].concat())
        .output()
        .expect("ca-server runs");
    assert!(
        output.status.success(),
        "{question:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("text")
}

#[tokio::test]
async fn an_auditor_reads_only_what_is_new_and_takes_away_what_was_asked_for() {
    let ca = TestCa::start().await;
    ca.call(&Csr::demo().pem, &Ask::bearer(&ca.token()))
        .await
        .expect("issued");
    let verify = ["verify", "--checkpoint", "checkpoint.json"];
    let said = audit(&ca, &verify);
    assert!(
        said.contains("2    became certificates")
            && said.contains("Every chain, signature and certificate holds."),
        "{said}"
    );
    ca.call(&Csr::demo().pem, &Ask::bearer(&ca.token()))
        .await
        .expect("issued");
    let said = audit(&ca, &verify);
    assert!(
        said.contains("1    became certificates")
            && said.contains("rows come before the checkpoint"),
        "{said}"
    );
    let said = audit(
        &ca,
        &[
            "verify",
            "--since",
            "2020-01-01",
            "--signatures",
            "none",
            "--threads",
            "1",
        ],
    );
    assert!(
        said.contains("3    became certificates")
            && said.contains("Rows before 2020-01-01T00:00:00.000000Z"),
        "{said}"
    );
    assert!(said.contains("SIGNATURES WERE NOT CHECKED"), "{said}");
    let refused = ca
        .verb(&[
            "audit",
            "verify",
            "--checkpoint",
            "checkpoint.json",
            "--since",
            "2020-01-01",
        ])
        .output()
        .expect("runs");
    assert_eq!(
        refused.status.code(),
        Some(2),
        "where to begin is said twice"
    );

    let workload = "spiffe://cluster.local/ns/default/sa/demo";
    let table = audit(
        &ca,
        &[
            "export",
            "--format",
            "csv",
            "--identity",
            workload,
            "--kind",
            "issued",
        ],
    );
    assert_eq!(
        table.lines().count(),
        1 + 2,
        "a header and two certificates: {table}"
    );
    assert!(
        table
            .lines()
            .skip(1)
            .all(|line| line.starts_with("issued,") && line.contains(workload)),
        "{table}"
    );
    let lines = audit(&ca, &["export", "--until", "2020-01-01"]);
    assert_eq!(lines, "");
    ca.check();
}
