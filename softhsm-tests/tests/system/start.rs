//! A start and a reload with what is there: issuers in every combination, keys in several tokens of
//! which some are away, locked or wrong.

use std::path::Path;
use std::time::Duration;

use ca_server::app::{Options, Server};
use ca_server::clock::Clock;
use ca_server::config::Config;
use softhsm_tests::authority::Authority;
use softhsm_tests::daemon::{PATIENCE, Setup};
use softhsm_tests::{Ask, Csr, Load, Material, TestCa};

use crate::devices::{check, signer_detail};
use crate::lifetime::{file_issuer, write_key};
use crate::several_tokens::{
    Second, copy, fault_module, import, key_in_two_more_tokens, line, softhsm, two_tokens,
};

const DAY: Duration = Duration::from_secs(86_400);

/// What an issuer of the table is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Is {
    Active,
    Expired,
    Retiring,
}

/// An issuer's index, and that of the issuer that it stands beside.
type Siblings = [(usize, usize)];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn issuers_in_whichever_combination_issue_or_are_refused_with_a_sentence() {
    softhsm_tests::crypto();
    let material = Material::new();
    let root = Authority::root("root", DAY * 365);
    material.write("root-cert.pem", root.certificate());
    for name in ["a", "b", "c"] {
        let good = root.intermediate(name, DAY);
        let expired = root.renewed(name, Duration::ZERO, &good);
        material.write(&format!("{name}-good.pem"), good.certificate());
        material.write(&format!("{name}-expired.pem"), expired.certificate());
        write_key(&material, &format!("{name}.key"), &good.key());
    }
    let all = [Is::Active, Is::Expired, Is::Retiring];
    let groups: [&Siblings; 5] = [&[], &[(1, 0)], &[(0, 1)], &[(2, 1)], &[(1, 0), (2, 0)]];
    let mut issued = 0;
    for siblings in groups {
        for number in 0..27 {
            let is = [all[number / 9], all[number / 3 % 3], all[number % 3]];
            // Whoever is there signs for the first group that anybody is left of.
            let group = |issuer: usize| {
                siblings
                    .iter()
                    .find(|(one, _)| *one == issuer)
                    .map_or(issuer, |(_, beside)| *beside)
            };
            let members = |of: usize| {
                (0..3)
                    .filter(move |issuer| group(*issuer) == of)
                    .map(|issuer| is[issuer])
            };
            let default = (0..3).find(|of| members(*of).any(|is| is != Is::Retiring));
            let could = default.is_some_and(|of| members(of).any(|is| is == Is::Active));
            match issues(&material, is, siblings).await {
                Ok(()) => {
                    assert!(could, "{is:?} {siblings:?} issues");
                    issued += 1;
                }
                Err(sentence) => {
                    assert!(
                        !could && sentence.contains("`issuer"),
                        "{is:?} {siblings:?}: {sentence}"
                    );
                }
            }
        }
    }
    assert!(issued > 50, "the table is no sham: {issued}");
}

/// Whether a daemon with these issuers issues; if it is refused, in which words.
async fn issues(material: &Material, is: [Is; 3], siblings: &Siblings) -> Result<(), String> {
    let mut text =
        "trust_domain = \"cluster.local\"\ncluster_id = \"Kubernetes\"\n\n[csr]\nlisten = \"127.0.0.1:0\"\nnames = [\"localhost\"]\n\n\
                    [monitoring]\nlisten = \"127.0.0.1:0\"\n\n[ledger]\nurl = \"sqlite:table.db\"\n\n[profile]\n"
            .to_owned();
    for (number, (name, is)) in ["a", "b", "c"].into_iter().zip(is).enumerate() {
        let chain = if is == Is::Expired { "expired" } else { "good" };
        let state = if is == Is::Retiring {
            "retiring"
        } else {
            "active"
        };
        text += &format!(
            "\n[[issuer]]\nid = {name:?}\nkey = \"file:{name}.key\"\nchain = \"{name}-{chain}.pem\"\nroots = \"root-cert.pem\"\nstate = {state:?}\n"
        );
        if let Some((_, beside)) = siblings.iter().find(|(one, _)| *one == number) {
            text += &format!("sibling_of = {:?}\n", ["a", "b", "c"][*beside]);
        }
    }
    material.write("table.toml", text);
    let config = Config::load(&material.file("table.toml"), Clock::default().now())
        .map_err(|error| error.to_string())?;
    let server = Server::start(config, Options::default())
        .await
        .map_err(|exit| exit.to_string())?;
    // Its serving certificate is asked for like any that names no issuer.
    server
        .ready(PATIENCE)
        .await
        .unwrap_or_else(|exit| panic!("{is:?} {siblings:?} was accepted: {exit}"));
    server.shutdown().await;
    Ok(())
}

/// The serial number of the token with this label.
fn serial(conf: &Path, label: &str) -> String {
    let output = std::process::Command::new("softhsm2-util")
        .env("SOFTHSM2_CONF", conf)
        .arg("--show-slots")
        .output()
        .expect("comes with SoftHSM");
    let said = String::from_utf8(output.stdout).expect("text");
    let mut last = "";
    for line in said.lines().map(str::trim) {
        if let Some(serial) = line.strip_prefix("Serial number:") {
            last = serial.trim();
        }
        if line
            .strip_prefix("Label:")
            .is_some_and(|is| is.trim() == label)
        {
            return last.to_owned();
        }
    }
    panic!("no token {label:?}: {said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_leaves_each_of_several_keys_behind_one_process_its_own_token() {
    let material = Material::new();
    key_in_two_more_tokens(&material);
    let two = serial(&material.file("softhsm2.conf"), "two");
    // Nothing that both say differs, so they may be one token and share a process.
    let query = format!(
        "object=sibling?module-path={}&pin-source=file:{}",
        softhsm().display(),
        material.file("issuing.pin").display()
    );
    let keys = [
        format!("pkcs11:token=one;{query}"),
        format!("pkcs11:serial={two};{query}"),
    ];
    let key = line(&material, "key = ");
    let ca = TestCa::start_on(
        material,
        Setup::default().replace(&key, &format!("key = {keys:?}")),
    )
    .await;
    assert_eq!(
        crate::signer_process::signer_processes(&ca).len(),
        1,
        "one process has both"
    );
    let signed = |token: usize| {
        let series = format!(
            "ca_server_signer_sign_seconds_count{{issuer=\"quickstart\",purpose=\"leaf\",token=\"{token}\"}}"
        );
        let ca = &ca;
        async move { ca.metric(&series).await }
    };
    let mut load = Load::on(&ca, 8);
    for reloads in 0..2 {
        let before = (signed(1).await, signed(2).await);
        load.until_issued(&ca, 50).await;
        let after = (signed(1).await, signed(2).await);
        assert!(
            after.0 > before.0 && after.1 > before.1,
            "after {reloads} reloads both sign: {before:?} {after:?}"
        );
        assert!(ca.reload().await, "{}", ca.log_text());
    }
    load.stop().await;
    assert_eq!(
        crate::signer_process::signer_processes(&ca).len(),
        1,
        "and it is still the same"
    );
    ca.check();
}

/// The exit status of `serve` and what it says; for configs with which it does not start.
fn refused(ca: &TestCa) -> (Option<i32>, String) {
    let output = ca.verb(&["serve"]).output().expect("ca-server runs");
    (
        output.status.code(),
        String::from_utf8(output.stderr).expect("text"),
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_goes_on_with_the_tokens_that_are_there() {
    // What is wrong with the second token, what its state says, and whether it comes back by itself
    // when that is over.
    for (fault, said, by_itself) in [
        ("token removed", "token 2 is reconnecting", true),
        ("C_Initialize hang", "token 2 is reconnecting", true),
        ("C_Initialize abort", "token 2 is reconnecting", true),
        ("C_Login rv 0xA0", "token 2 is locked_out", false),
    ] {
        let (material, setup, second) = two_tokens();
        second.control.set(fault).expect("writable");
        let begun = std::time::Instant::now();
        let ca = TestCa::start_on(material, setup).await;
        assert!(
            begun.elapsed() < PATIENCE / 2,
            "{fault}: nobody waits for what does not answer"
        );
        ca.call(&Csr::demo().pem, &Ask::bearer(&ca.token()))
            .await
            .unwrap_or_else(|status| panic!("{fault}: {status}"));
        ca.until(said, || async {
            let detail = signer_detail(&ca).await;
            detail.starts_with("degraded") && detail.contains(said)
        })
        .await;
        let logins = second.control.logins();
        second.control.clear().expect("writable");
        if !by_itself {
            assert_eq!(logins, 1, "a start is one order");
            ca.call(&Csr::demo().pem, &Ask::bearer(&ca.token()))
                .await
                .expect("issued");
            assert_eq!(
                second.control.logins(),
                1,
                "and nobody tries without another"
            );
            assert!(ca.reload().await);
        }
        ca.until("whole", || async {
            signer_detail(&ca).await.starts_with("healthy")
        })
        .await;
        let mut load = Load::on(&ca, 4);
        ca.until("both sign", || async { second.control.signed() > 0 })
            .await;
        load.stop().await;
        ca.check();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_only_token_may_be_away_at_the_start_and_is_used_when_it_is_back() {
    for setup in [
        Setup::default().with_faults(),
        Setup::default().with_faults().on_threads(),
    ] {
        let mut ca = TestCa::configured(Material::new(), setup);
        ca.command_faults("token removed");
        ca.spawn();
        assert_eq!(
            (
                ca.get("/healthz/live").await.0,
                ca.get("/healthz/ready").await.0
            ),
            (200, 503)
        );
        let (ready, required, detail) = check(&ca, "default_issuer").await;
        assert!(
            !ready && required && detail.contains("no token in"),
            "{detail}"
        );
        assert!(
            ca.reload().await,
            "a reload asks no more of a device than a start"
        );
        ca.command_faults("");
        ca.until_ready().await;
        ca.call(&Csr::demo().pem, &Ask::bearer(&ca.token()))
            .await
            .expect("issued");
        ca.check();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_waiting_mends_is_refused_where_nobody_else_signs_and_said_where_somebody_does() {
    // What is wrong with the key, the status where it is the only one, and the sentence.
    for (from, to, status, said) in [
        ("module-path=", "module-path=/nowhere", 3, "cannot be read"),
        ("object=issuing", "object=absent", 2, "holds no private key"),
        ("issuing.pin", "wrong.pin", 2, "CKR_PIN_INCORRECT"),
    ] {
        let material = Material::new();
        write_key(&material, "wrong.pin", "000000");
        let ca = TestCa::configured(material, Setup::default().replace(from, to));
        let (is, sentence) = refused(&ca);
        assert!(
            is == Some(status) && sentence.contains(said) && sentence.contains("issuer quickstart"),
            "{to}: {is:?} {sentence}"
        );

        let (material, setup, _second) = two_tokens();
        write_key(&material, "wrong.pin", "000000");
        let mut ca = TestCa::configured(material, setup);
        let keys = ca.material.read("ca.toml");
        // Of the second token's URI alone.
        let at = keys.rfind("pkcs11:").expect("a list of two");
        let (before, other) = keys.split_at(at);
        let from = if from == "issuing.pin" {
            "second.pin"
        } else {
            from
        };
        ca.material.write(
            "ca.toml",
            format!("{before}{}", other.replacen(from, to, 1)),
        );
        ca.restart().await;
        ca.call(&Csr::demo().pem, &Ask::bearer(&ca.token()))
            .await
            .unwrap_or_else(|status| panic!("{to}: {status}"));
        ca.until(said, || async {
            let detail = signer_detail(&ca).await;
            detail.starts_with("degraded") && detail.contains(said)
        })
        .await;
        ca.check();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_key_in_any_token_refuses_a_start_and_a_reload() {
    let (material, setup, second) = two_tokens();
    let ca = TestCa::start_on(material, setup).await;
    let root = Authority::root("root", DAY * 365);
    let other = root.intermediate("other", DAY);
    write_key(&ca.material, "other.key", &other.key());
    let pin = ca.material.read("issuing.pin").trim_end().to_owned();
    import(
        &second.directory.join("softhsm2.conf"),
        "wrong",
        &ca.material.file("other.key"),
        &pin,
    );
    let text = ca.material.read("ca.toml");
    let (before, after) = text.split_at(text.rfind("pkcs11:").expect("a list of two"));
    ca.material.write(
        "ca.toml",
        format!(
            "{before}{}",
            after.replacen(
                "token=issuing;object=issuing",
                "token=wrong;object=sibling",
                1
            )
        ),
    );
    assert!(!ca.reload().await);
    assert!(
        ca.log_text().contains("another key than expected"),
        "{}",
        ca.log_text()
    );
    ca.call(&Csr::demo().pem, &Ask::bearer(&ca.token()))
        .await
        .expect("what was in force stays");
    let mut ca = ca;
    ca.stop();
    let (status, sentence) = refused(&ca);
    assert!(
        status == Some(2) && sentence.contains("another key than expected"),
        "{status:?} {sentence}"
    );
    ca.check();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readiness_is_the_default_issuers_and_tells_of_the_others() {
    let material = Material::new();
    let second = Second::beside(&material);
    copy(&material.file("tokens"), &second.directory.join("tokens"));
    let root = Authority::root("other", DAY * 365);
    let (mesh, expired) = (
        root.intermediate("mesh", DAY),
        root.intermediate("expired", Duration::ZERO),
    );
    material.write("other-root.pem", root.certificate());
    for (name, issuer) in [("mesh", &mesh), ("expired", &expired)] {
        material.write(&format!("{name}.pem"), issuer.certificate());
        write_key(&material, &format!("{name}.key"), &issuer.key());
    }
    let pin = material.read("issuing.pin").trim_end().to_owned();
    import(
        &second.directory.join("softhsm2.conf"),
        "other",
        &material.file("mesh.key"),
        &pin,
    );
    let key = format!(
        "pkcs11:token=other;object=sibling?module-path={}&pin-source=file:issuing.pin",
        fault_module().display()
    );
    let issuer = |id: &str, key: &str, more: &str| {
        format!(
            "\n[[issuer]]\nid = {id:?}\nkey = {key:?}\nchain = \"{id}.pem\"\nroots = \"other-root.pem\"\n{more}"
        )
    };
    let others =
        issuer("mesh", &key, "device = \"second\"\n") + &issuer("expired", "file:expired.key", "");
    let setup = Setup {
        append: others + &second.section(),
        ..Setup::default()
    };
    second.control.set("token removed").expect("writable");
    let ca = TestCa::start_on(material, setup).await;
    ca.call(&Csr::demo().pem, &Ask::bearer(&ca.token()))
        .await
        .expect("issued");
    for (name, is) in [
        ("default_issuer", (true, true)),
        ("signer:mesh", (false, false)),
        ("issuer:expired", (false, false)),
    ] {
        let (ready, required, detail) = check(&ca, name).await;
        assert_eq!((ready, required), is, "{name}: {detail}");
        assert_eq!(
            ca.metric(&format!("ca_server_ready{{check=\"{name}\"}}"))
                .await,
            f64::from(u8::from(ready)),
            "{name}"
        );
    }
    second.control.clear().expect("writable");
    ca.until("found", || async { check(&ca, "signer:mesh").await.0 })
        .await;
    ca.check();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sibling_that_is_locked_since_the_start_is_not_asked_again_and_again() {
    let material = Material::new();
    let second = Second::beside(&material);
    let root = Authority::root("siblings", DAY * 365);
    let (one, other) = (
        root.intermediate("one", DAY),
        root.intermediate("other", DAY),
    );
    material.write("root-cert.pem", root.certificate());
    for (name, issuer) in [("one", &one), ("other", &other)] {
        material.write(&format!("{name}.pem"), issuer.certificate());
        write_key(&material, &format!("{name}.key"), &issuer.key());
    }
    std::fs::create_dir_all(second.directory.join("tokens")).expect("writable");
    let pin = material.read("issuing.pin").trim_end().to_owned();
    import(
        &second.directory.join("softhsm2.conf"),
        "other",
        &material.file("other.key"),
        &pin,
    );
    let key = format!(
        "pkcs11:token=other;object=sibling?module-path={}&pin-source=file:issuing.pin",
        fault_module().display()
    );
    let sibling = format!(
        "\n[[issuer]]\nid = \"other\"\nkey = {key:?}\nchain = \"other.pem\"\nroots = \"root-cert.pem\"\ndevice = \"second\"\n\
         sibling_of = \"quickstart\"\n"
    );
    let setup = Setup {
        append: sibling + &second.section(),
        ..Setup::default()
    }
    .replace("\"issuing-chain.pem\"", "\"one.pem\"");
    let setup = file_issuer(&material, setup, "one.key");
    // CKR_PIN_INCORRECT.
    second.control.set("C_Login rv 0xA0").expect("writable");
    let ca = TestCa::start_on(material, setup).await;
    ca.until("locked", || async {
        check(&ca, "signer:other").await.2.contains("locked_out")
    })
    .await;
    for _ in 0..20 {
        ca.call(&Csr::demo().pem, &Ask::bearer(&ca.token()))
            .await
            .expect("the other issues");
    }
    let ledger = ca.check();
    assert!(
        ledger.count("failed") <= 3,
        "each is an intent for nothing: {}",
        ledger.count("failed")
    );
    assert_eq!(second.control.logins(), 1);
    second.control.clear().expect("writable");
    assert!(ca.reload().await);
    ca.until("healed", || async { check(&ca, "signer:other").await.0 })
        .await;
    ca.check();
}
