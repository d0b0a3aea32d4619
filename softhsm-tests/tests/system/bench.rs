//! `doctor --bench`: what a device does on more and more sessions, measured with keys that are
//! thrown away, and the pool size that follows.

use softhsm_tests::daemon::Setup;
use softhsm_tests::{Ask, Csr, Material, TestCa, tell};

/// What `doctor --bench` said.
struct Benched {
    status: Option<i32>,
    out: String,
    error: String,
    /// Sessions and signatures a second.
    levels: Vec<(usize, f64)>,
    recommended: Option<usize>,
}

fn bench(ca: &TestCa) -> Benched {
    let output = ca
        .verb(&["doctor", "--bench"])
        .output()
        .expect("ca-server runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    let (status, out, error) = (
        output.status.code(),
        text(output.stdout),
        text(output.stderr),
    );
    let rows = out
        .lines()
        .skip_while(|line| !line.contains("signatures/s"))
        .skip(1)
        .map(str::split_whitespace);
    let levels = rows
        .map_while(|mut row| Some((row.next()?.parse().ok()?, row.next()?.parse().ok()?)))
        .collect();
    let advice = out.lines().find_map(|line| {
        line.split_once(": recommended: ")?
            .1
            .split_whitespace()
            .next()?
            .parse()
            .ok()
    });
    let pin = ca.material.read("issuing.pin");
    assert!(
        pin.trim().len() >= 8 && !out.contains(pin.trim()) && !error.contains(pin.trim()),
        "the PIN is printed: {out}{error}"
    );
    Benched {
        status,
        levels,
        recommended: advice,
        out,
        error,
    }
}

/// Everything in the issuing token, as another program sees it.
fn objects(ca: &TestCa) -> String {
    let listed = ca.material.pkcs11_tool("issuing", &["--list-objects"]);
    assert!(
        listed.status.success(),
        "{}",
        String::from_utf8_lossy(&listed.stderr)
    );
    String::from_utf8(listed.stdout).expect("text")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_pool_size_that_is_measured_beside_the_daemon_is_the_one_that_it_takes_from_its_config()
{
    let ca = TestCa::start().await;
    let before = (objects(&ca), ca.export().rows.len());
    let benched = bench(&ca);
    assert_eq!(benched.status, Some(0), "{}{}", benched.out, benched.error);
    assert!(
        benched.out.contains("no speed left for others") && benched.out.contains("p99 ms"),
        "{}",
        benched.out
    );
    let sessions: Vec<usize> = benched
        .levels
        .iter()
        .map(|(sessions, _)| *sessions)
        .collect();
    assert!(
        sessions.len() >= 2
            && sessions
                .iter()
                .enumerate()
                .all(|(at, sessions)| *sessions == 1 << at),
        "{}",
        benched.out
    );
    assert!(
        benched.levels.iter().all(|(_, rate)| *rate > 1.0),
        "{}",
        benched.out
    );
    let recommended = benched
        .recommended
        .unwrap_or_else(|| panic!("{}", benched.out));
    assert!(sessions.contains(&recommended), "{}", benched.out);
    assert_eq!(
        (objects(&ca), ca.export().rows.len()),
        before,
        "no key stays in the token, and nothing is recorded"
    );

    // One more, so that it differs from the default, whatever this machine is.
    let wanted = recommended + 1;
    ca.edit_config("env = {", &format!("sessions = {wanted}\nenv = {{"));
    assert!(ca.reload().await);
    let open = format!("{wanted} of {wanted} sessions open");
    ca.until("on so many sessions", || async {
        ca.get("/healthz/ready").await.1.contains(&open)
    })
    .await;
    ca.call(&Csr::demo().pem, &Ask::bearer(&ca.token()))
        .await
        .expect("issued");
    ca.check();
    tell(&format!("doctor --bench on SoftHSM:\n{}", benched.out));
}

#[test]
fn a_device_that_is_slow_and_not_busy_is_given_more_sessions() {
    let ca = TestCa::configured(Material::new(), Setup::default().with_faults());
    // So slow that what a busy machine adds does not count; one more of the nine sessions keeps the
    // login.
    ca.command_faults("C_Sign sleep_ms 40\nC_GetTokenInfo sessions 9");
    let benched = bench(&ca);
    assert_eq!(benched.status, Some(0), "{}{}", benched.out, benched.error);
    let (one, two) = (benched.levels[0].1, benched.levels[1].1);
    assert!((1.6..2.4).contains(&(two / one)), "{}", benched.out);
    assert!(
        one <= 25.0 && benched.levels.iter().all(|(sessions, _)| *sessions <= 8),
        "{}",
        benched.out
    );
    assert!(
        benched.recommended.is_some_and(|sessions| sessions > 1),
        "{}",
        benched.out
    );
    assert!(benched.out.contains("[device.softhsm]"), "{}", benched.out);
    assert_eq!(ca.faults().logins(), 1);
    assert!(!objects(&ca).contains("throw-away"));
    tell(&format!(
        "doctor --bench on a token that takes 40 ms:\n{}",
        benched.out
    ));
}

#[test]
fn devices_that_want_different_environments_are_measured_each_in_its_own() {
    let material = Material::new();
    material.write("other.conf", material.read("softhsm2.conf"));
    let config: toml::Table = toml::from_str(&material.read("ca.toml")).expect("TOML");
    let issuer = |key: &str| config["issuer"][0][key].as_str().expect("text").to_owned();
    let (key, chain, roots) = (issuer("key"), issuer("chain"), issuer("roots"));
    let conf = material.file("other.conf");
    let append = format!(
        "[[issuer]]\nid = \"second\"\nkey = {key:?}\nchain = {chain:?}\nroots = {roots:?}\ndevice = \"other\"\n\
         [device.other]\nenv = {{ SOFTHSM2_CONF = {conf:?} }}\n"
    );
    let ca = TestCa::configured(
        material,
        Setup {
            append,
            ..Setup::default()
        },
    );
    let benched = bench(&ca);
    assert_eq!(benched.status, Some(0), "{}{}", benched.out, benched.error);
    for id in ["quickstart", "second"] {
        assert!(
            benched.out.contains(&format!("{id}: recommended: ")),
            "{}",
            benched.out
        );
    }
    let output = ca
        .verb(&["doctor", "--bench", "--device", "other"])
        .output()
        .expect("ca-server runs");
    let alone = String::from_utf8(output.stdout).expect("text");
    assert!(
        alone.contains("second: recommended: ") && !alone.contains("quickstart"),
        "{alone}"
    );
    let none = ca
        .verb(&["doctor", "--bench", "--device", "nowhere"])
        .output()
        .expect("ca-server runs");
    assert_eq!(
        none.status.code(),
        Some(2),
        "{}",
        String::from_utf8_lossy(&none.stderr)
    );
}

#[test]
fn a_token_that_gives_fewer_sessions_than_it_says_is_measured_up_to_them() {
    let ca = TestCa::configured(Material::new(), Setup::default().with_faults());
    // One for the login, two that sign.
    ca.command_faults("C_Sign sleep_ms 40\nC_OpenSession limit 3");
    let benched = bench(&ca);
    assert_eq!(
        (benched.status, benched.levels.len(), benched.recommended),
        (Some(0), 2, Some(2)),
        "{}{}",
        benched.out,
        benched.error
    );
    assert!(
        benched.out.contains("4 sessions could not be measured")
            && benched.out.contains("CKR_SESSION_COUNT"),
        "{}",
        benched.out
    );
}

#[test]
fn a_token_that_makes_no_keys_of_a_session_is_not_measured_with_another() {
    let ca = TestCa::configured(Material::new(), Setup::default().with_faults());
    // CKR_SESSION_READ_ONLY.
    ca.command_faults("C_GenerateKeyPair rv 0xb5");
    let benched = bench(&ca);
    assert_eq!(
        (benched.status, benched.levels.len()),
        (Some(1), 0),
        "{}",
        benched.out
    );
    assert!(
        benched.out.contains("not measured") && benched.out.contains("CKR_SESSION_READ_ONLY"),
        "{}",
        benched.out
    );
    assert!(
        benched.error.contains("1 device could not be measured"),
        "{}",
        benched.error
    );
    assert_eq!(
        ca.faults().signatures(),
        1,
        "the text that doctor has the issuer's own key sign, and nothing else"
    );
    assert!(!objects(&ca).contains("throw-away"));
}

#[test]
fn a_pin_that_the_token_warns_of_is_not_tried_to_measure() {
    let ca = TestCa::configured(Material::new(), Setup::default().with_faults());
    // CKF_USER_PIN_FINAL_TRY.
    ca.command_faults("C_GetTokenInfo flags 0x20000");
    let benched = bench(&ca);
    assert_eq!(
        (benched.status, benched.levels.len()),
        (Some(1), 0),
        "{}",
        benched.out
    );
    assert!(
        benched.out.contains("CKF_USER_PIN_FINAL_TRY") && benched.out.contains("not measured"),
        "{}",
        benched.out
    );
    assert_eq!(ca.faults().logins(), 0);
}

#[test]
fn sessions_beyond_what_a_config_may_ask_for_are_refused_by_name() {
    for sessions in ["0", "65", "-1", "\"4\""] {
        let ca = TestCa::configured(
            Material::new(),
            Setup::default().replace("env = {", &format!("sessions = {sessions}\nenv = {{")),
        );
        let output = ca.verb(&["check-config"]).output().expect("ca-server runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains("sessions"), "{said}");
    }
}
