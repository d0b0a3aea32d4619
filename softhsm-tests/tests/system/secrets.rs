//! Where keys, PINs and tokens must never be seen.

use softhsm_tests::daemon::Setup;
use softhsm_tests::{Ask, Csr, TestCa};

#[tokio::test]
async fn the_issuing_key_cannot_leave_the_token() {
    let ca = TestCa::start().await;
    for (token, label) in [("root", "root"), ("issuing", "issuing")] {
        let tool = |arguments: &[&str]| ca.material.pkcs11_tool(token, arguments);
        let listed =
            String::from_utf8(tool(&["--list-objects", "--type", "privkey"]).stdout).expect("text");
        assert_eq!(listed.matches("Private Key Object").count(), 1, "{listed}");
        assert!(listed.contains(&format!("label:      {label}")), "{listed}");
        let access = listed
            .lines()
            .find(|line| line.contains("Access:"))
            .unwrap_or_else(|| panic!("{listed}"));
        for attribute in [
            "sensitive",
            "always sensitive",
            "never extractable",
            "local",
        ] {
            assert!(
                access.contains(attribute),
                "{attribute} is missing: {access}"
            );
        }
        let out = ca.material.file("stolen.key");
        let read = tool(&[
            "--read-object",
            "--type",
            "privkey",
            "--label",
            label,
            "--output-file",
            out.to_str().expect("text"),
        ]);
        // pkcs11-tool ends with status 0 even when it has nothing to write.
        assert!(
            !out.exists(),
            "the key was read out: {}",
            String::from_utf8_lossy(&read.stderr)
        );
    }
    ca.check();
}

#[tokio::test]
async fn no_pin_and_no_token_appears_in_a_log_an_environment_an_argument_or_a_row() {
    let setup = Setup::default()
        .replace("level = \"info\"", "level = \"trace\"")
        .with_faults();
    let mut ca = TestCa::start_with(setup).await;
    let (good, bad) = (ca.token(), ca.minter().token("default", "demo") + "AAAA");
    ca.call(&Csr::demo().pem, &Ask::bearer(&good))
        .await
        .expect("issued");
    let _ = ca
        .call(&Csr::demo().pem, &Ask::bearer(&bad))
        .await
        .expect_err("a broken signature");
    let _ = ca
        .call("junk", &Ask::bearer(&good))
        .await
        .expect_err("no CSR");
    ca.command_faults("C_SignInit logout count 1");
    ca.call(&Csr::demo().pem, &Ask::bearer(&good))
        .await
        .expect("after another log-in");
    assert!(ca.reload().await);

    let process =
        |file: &str| std::fs::read(format!("/proc/{}/{file}", ca.pid())).expect("readable");
    let mut places = vec![
        ("environment", process("environ")),
        ("arguments", process("cmdline")),
        ("metrics", ca.get("/metrics").await.1.into_bytes()),
        ("readiness", ca.get("/healthz/ready").await.1.into_bytes()),
    ];
    let limits = String::from_utf8(process("limits")).expect("text");
    let core = limits
        .lines()
        .find(|line| line.starts_with("Max core file size"))
        .expect("told");
    assert_eq!(
        core.split_whitespace().nth(4),
        Some("0"),
        "no core file: {core}"
    );
    assert!(ca.stop().success());
    places.push(("log", ca.log_text().into_bytes()));
    for file in ["ledger.db", "ledger.db-wal", "ledger.db-shm"] {
        // After an orderly stop the write-ahead log may be gone.
        places.push((
            file,
            std::fs::read(ca.material.file(file)).unwrap_or_default(),
        ));
    }
    assert!(
        places
            .iter()
            .any(|(name, bytes)| *name == "log" && bytes.len() > 10_000),
        "trace is on"
    );
    assert!(
        places
            .iter()
            .any(|(name, bytes)| *name == "ledger.db" && bytes.len() > 4_096)
    );

    let issuing_pin = ca.material.read("issuing.pin").trim().to_owned();
    let secrets = [
        ("PIN", issuing_pin),
        ("token", good.clone()),
        ("token's signature", last_part(&good)),
        ("bad token's signature", last_part(&bad)),
    ];
    for (place, bytes) in &places {
        for (what, secret) in &secrets {
            assert!(secret.len() >= 8);
            assert!(
                !bytes
                    .windows(secret.len())
                    .any(|window| window == secret.as_bytes()),
                "the {what} stands in the {place}"
            );
        }
    }
    ca.check();
}

fn last_part(token: &str) -> String {
    token.rsplit('.').next().expect("three parts").to_owned()
}
