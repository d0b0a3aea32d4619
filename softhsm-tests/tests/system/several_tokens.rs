//! Two tokens with one key behind one issuer, and two issuers with keys of their own under one
//! root: one of them is taken away under load and given back. Nothing but latency may tell.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use pkcs11_fault::Control;
use softhsm_tests::authority::Authority;
use softhsm_tests::check::Ledger;
use softhsm_tests::daemon::{Setup, signal};
use softhsm_tests::{Ask, Csr, Load, Material, TestCa, tell};

use crate::devices::{checks, signer_detail};
use crate::lifetime::write_key;
use crate::signer_process::signer_processes;

const DAY: Duration = Duration::from_secs(86_400);
const YEAR: Duration = Duration::from_secs(86_400 * 365);
/// The limit.
const RECOVERY: Duration = Duration::from_secs(10);

/// A second device: SoftHSM in a directory of its own, behind the fault module.
pub struct Second {
    pub directory: PathBuf,
    pub control: Control,
}

impl Second {
    pub fn beside(material: &Material) -> Self {
        Self::named(material, "second")
    }

    pub fn named(material: &Material, name: &str) -> Self {
        let directory = material.file(name);
        std::fs::create_dir_all(directory.join("faults")).expect("writable");
        let conf = format!(
            "directories.tokendir = {}\nobjectstore.backend = file\nlog.level = ERROR\n",
            directory.join("tokens").display()
        );
        std::fs::write(directory.join("softhsm2.conf"), conf).expect("writable");
        Self {
            control: Control::new(directory.join("faults")),
            directory,
        }
    }

    /// `[device.NAME]`.
    pub fn section(&self) -> String {
        let name = self
            .directory
            .file_name()
            .and_then(|name| name.to_str())
            .expect("text");
        format!(
            "\n[device.{name}]\nenv = {{ PKCS11_FAULT_MODULE = {:?}, PKCS11_FAULT_DIR = {:?}, SOFTHSM2_CONF = {:?} }}\n",
            softhsm(),
            self.directory.join("faults"),
            self.directory.join("softhsm2.conf")
        )
    }
}

pub fn softhsm() -> PathBuf {
    signers::pkcs11::find_softhsm().expect("SoftHSM is installed by ./run-tests")
}

pub fn fault_module() -> PathBuf {
    pkcs11_fault::library().expect("cargo builds it beside the tests")
}

pub fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp")
        .arg("-a")
        .args([from, to])
        .status()
        .expect("cp runs");
    assert!(status.success());
}

/// A token of this label with this key in it.
pub fn import(conf: &Path, label: &str, key: &Path, pin: &str) {
    let run = |arguments: &[&str]| {
        let output = Command::new("softhsm2-util")
            .env("SOFTHSM2_CONF", conf)
            .args(arguments)
            .output()
            .expect("comes with SoftHSM");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    };
    run(&[
        "--init-token",
        "--free",
        "--label",
        label,
        "--so-pin",
        "00000000",
        "--pin",
        pin,
    ]);
    let key = key.to_str().expect("text");
    run(&[
        "--import", key, "--token", label, "--label", "sibling", "--id", "5b", "--pin", pin,
    ]);
}

/// The one line of `ca.toml` that begins so.
pub fn line(material: &Material, begins: &str) -> String {
    let text = material.read("ca.toml");
    text.lines()
        .find(|line| line.starts_with(begins))
        .unwrap_or_else(|| panic!("no {begins}"))
        .to_owned()
}

pub fn uri(material: &Material) -> String {
    line(material, "key = ")
        .trim_start_matches("key = ")
        .trim_matches('"')
        .to_owned()
}

/// Under load: signs, is taken away, signs nothing while calls go on without a refusal, is given
/// back, signs again.
async fn taken_away_and_given_back(ca: &TestCa, second: &Second, what: &str) -> Duration {
    let mut load = Load::on(ca, 8);
    let signed = || second.control.signed();
    load.until_issued(ca, 50).await;
    ca.until("both sign", || async { signed() > 20 }).await;
    second.control.set("token removed").expect("writable");
    ca.until("seen", || async {
        signer_details(ca).await.contains("reconnecting")
    })
    .await;
    let at_rest = signed();
    load.until_issued(ca, 200).await;
    assert_eq!(
        signed(),
        at_rest,
        "{what}: a token that is away signs nothing"
    );
    assert_eq!(
        ca.get("/healthz/ready").await.0,
        200,
        "{what}: one that signs is enough"
    );
    second.control.clear().expect("writable");
    let back = Instant::now();
    ca.until("signs again", || async { signed() > at_rest + 10 })
        .await;
    let took = back.elapsed();
    assert!(took < RECOVERY, "{what}: {took:?}\n{}", ca.log_text());
    load.until_issued(ca, 50).await;
    load.stop().await;
    assert!(
        load.refused().is_empty() && load.unanswered().is_empty(),
        "{what}: {:?} {:?}",
        load.refused(),
        load.unanswered()
    );
    took
}

/// What readiness says of every signer.
async fn signer_details(ca: &TestCa) -> String {
    let checks = checks(ca).await.into_iter();
    checks
        .filter(|check| {
            check["name"]
                .as_str()
                .is_some_and(|name| name.starts_with("signer:"))
        })
        .map(|check| check.to_string())
        .collect()
}

/// A key in two tokens, the second a copy of the first behind the fault module with a PIN file of
/// its own.
pub fn two_tokens() -> (Material, Setup, Second) {
    let material = Material::new();
    let second = Second::beside(&material);
    copy(&material.file("tokens"), &second.directory.join("tokens"));
    write_key(&material, "second.pin", &material.read("issuing.pin"));
    let (key, first) = (line(&material, "key = "), uri(&material));
    let other = first.replace(
        softhsm().to_str().expect("text"),
        fault_module().to_str().expect("text"),
    );
    let other = other.replace("issuing.pin", "second.pin");
    let setup = Setup {
        append: second.section(),
        ..Setup::default()
    }
    .replace(&key, &format!("key = [{first:?}, {other:?}]"))
    .replace("device = \"softhsm\"", "device = [\"softhsm\", \"second\"]");
    (material, setup, second)
}

/// A daemon whose one issuer has its key in two tokens.
async fn with_two_tokens() -> (TestCa, Second) {
    let (material, setup, second) = two_tokens();
    (TestCa::start_on(material, setup).await, second)
}

/// A new issuing key under a new root, in two more of the daemon's tokens: `one` and `two`.
pub fn key_in_two_more_tokens(material: &Material) {
    let root = Authority::root("root", YEAR);
    let issuer = root.intermediate("issuing", DAY);
    material.write("root-cert.pem", root.certificate());
    material.write("issuing-chain.pem", issuer.certificate());
    write_key(material, "issuing.key", &issuer.key());
    let (conf, pin) = (
        material.file("softhsm2.conf"),
        material.read("issuing.pin").trim_end().to_owned(),
    );
    for label in ["one", "two"] {
        import(&conf, label, &material.file("issuing.key"), &pin);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_is_taken_away_from_beside_another_costs_nothing_but_time() {
    let (ca, second) = with_two_tokens().await;
    ca.until("whole", || async {
        signer_detail(&ca)
            .await
            .starts_with("healthy: token 1 is healthy: ")
    })
    .await;
    let took = taken_away_and_given_back(&ca, &second, "two tokens").await;
    ca.until("healthy", || async {
        signer_detail(&ca).await.starts_with("healthy")
    })
    .await;
    let states = |state: &str| {
        format!("ca_server_token_state{{issuer=\"quickstart\",state=\"{state}\",token=\"2\"}}")
    };
    assert_eq!(
        (
            ca.metric(&states("healthy")).await,
            ca.metric(&states("reconnecting")).await
        ),
        (1.0, 0.0)
    );
    // Filed when it has lasted.
    let second = |ledger: &Ledger| -> Vec<String> {
        let rows = ledger
            .kind("device")
            .into_iter()
            .filter(|row| row["token"] == 2);
        rows.filter_map(|row| row["state"].as_str().map(str::to_owned))
            .collect()
    };
    ca.until("filed", || async {
        second(&ca.export())
            .last()
            .is_some_and(|state| state == "healthy")
    })
    .await;
    let ledger = ca.check();
    assert_eq!(
        (
            ledger.count("failed"),
            ledger.count("unknown"),
            ca.open_intents(&ledger)
        ),
        (0, 0, 0),
        "the same intent, the other token"
    );
    assert!(
        second(&ledger).contains(&"reconnecting".to_owned()),
        "{:?}",
        second(&ledger)
    );
    tell(&format!(
        "two tokens with one key: one was taken away under load, no call failed; given back it signed again after {} ms",
        took.as_millis()
    ));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_two_tokens_that_signs_wrongly_costs_no_call_and_is_left_alone() {
    let (ca, second) = with_two_tokens().await;
    ca.until("whole", || async {
        signer_detail(&ca)
            .await
            .starts_with("healthy: token 1 is healthy: ")
    })
    .await;
    let mut load = Load::on(&ca, 8);
    load.until_issued(&ca, 50).await;
    second.control.set("C_Sign corrupt").expect("writable");
    let state = "ca_server_token_state{issuer=\"quickstart\",state=\"reconnecting\",token=\"2\"}";
    ca.until("seen", || async {
        ca.metric(state).await == 1.0
            && signer_detail(&ca).await.contains("token 2 is reconnecting")
    })
    .await;
    load.until_issued(&ca, 200).await;
    assert_eq!(
        ca.get("/healthz/ready").await.0,
        200,
        "one that signs is enough"
    );
    second.control.clear().expect("writable");
    ca.until("healthy", || async {
        signer_detail(&ca).await.starts_with("healthy")
    })
    .await;
    let unknown = ca.export().count("unknown");
    assert!(
        (1..=16).contains(&unknown),
        "{unknown} intents were signed wrongly"
    );
    // One that signs wrongly now and then is told by each time.
    second.control.set("C_Sign corrupt at 3").expect("writable");
    ca.until("met", || async {
        second.control.met("C_Sign") > 0 && ca.export().count("unknown") > unknown
    })
    .await;
    ca.until("healthy", || async {
        signer_detail(&ca).await.starts_with("healthy")
    })
    .await;
    load.until_issued(&ca, 50).await;
    load.stop().await;
    assert!(
        load.refused().is_empty() && load.unanswered().is_empty(),
        "{:?} {:?}",
        load.refused(),
        load.unanswered()
    );
    ca.until("closed", || async { ca.open_intents(&ca.export()) == 0 })
        .await;
    let ledger = ca.check();
    assert_eq!(
        ledger.count("intent"),
        ledger.count("issued") + ledger.count("unknown"),
        "each try has an intent of its own"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_two_tokens_whose_process_is_killed_fifty_times_costs_no_call() {
    let (ca, second) = with_two_tokens().await;
    let mut load = Load::on(&ca, 4);
    load.until_issued(&ca, 20).await;
    for _ in 0..50 {
        // That of the second token holds its fault directory's module.
        let holds_it = |pid: &u32| {
            std::fs::read_to_string(format!("/proc/{pid}/maps"))
                .is_ok_and(|maps| maps.contains("pkcs11_fault"))
        };
        let process = signer_processes(&ca)
            .into_iter()
            .find(holds_it)
            .expect("it has just signed");
        signal(process, "KILL");
        // What is signed from here on, another process signs.
        ca.until("gone", || async { !holds_it(&process) }).await;
        let before = second.control.signed();
        ca.until("signs again", || async { second.control.signed() > before })
            .await;
    }
    load.stop().await;
    assert!(
        load.refused().is_empty() && load.unanswered().is_empty(),
        "{:?} {:?}",
        load.refused(),
        load.unanswered()
    );
    ca.check();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sibling_takes_the_calls_of_an_issuer_that_fails_with_serials_of_its_own() {
    let material = Material::new();
    let second = Second::beside(&material);
    let root = Authority::root("siblings", YEAR);
    let (one, other) = (
        root.intermediate("one", YEAR),
        root.intermediate("other", YEAR),
    );
    material.write("root-cert.pem", root.certificate());
    for (name, issuer) in [("one", &one), ("other", &other)] {
        material.write(&format!("{name}.pem"), issuer.certificate());
        material.write(&format!("{name}.key"), issuer.key());
    }
    let pin = material.read("issuing.pin").trim_end().to_owned();
    std::fs::create_dir_all(second.directory.join("tokens")).expect("writable");
    import(
        &material.file("softhsm2.conf"),
        "sibling",
        &material.file("one.key"),
        &pin,
    );
    import(
        &second.directory.join("softhsm2.conf"),
        "sibling",
        &material.file("other.key"),
        &pin,
    );
    let uri = |module: &Path| {
        let pin = material.file("issuing.pin");
        format!(
            "pkcs11:token=sibling;object=sibling?module-path={}&pin-source=file:{}",
            module.display(),
            pin.display()
        )
    };
    let issuer = |id: &str, name: &str, key: &str, device: &str, more: &str| {
        format!(
            "[[issuer]]\nid = {id:?}\nkey = {key:?}\nchain = \"{name}.pem\"\nroots = \"root-cert.pem\"\ndevice = {device:?}\n{more}\n"
        )
    };
    let text = material.read("ca.toml");
    let block = &text[text.find("[[issuer]]").expect("an issuer")
        ..text.find("# What workloads get.").expect("a profile")];
    let siblings = issuer("mesh", "one", &uri(&softhsm()), "softhsm", "")
        + &issuer(
            "mesh-2",
            "other",
            &uri(&fault_module()),
            "second",
            "sibling_of = \"mesh\"",
        );
    let setup = Setup {
        append: second.section(),
        ..Setup::default()
    }
    .replace(block, &siblings);
    let ca = TestCa::start_on(material, setup).await;
    let took = taken_away_and_given_back(&ca, &second, "siblings").await;
    // One wrong signature is withheld, and its caller served by the other issuer.
    second
        .control
        .set("C_Sign corrupt count 1")
        .expect("writable");
    let ask = Ask::bearer(&ca.token());
    ca.until("met", || async {
        ca.call(&Csr::demo().pem, &ask)
            .await
            .expect("one of them issues");
        second.control.met("C_Sign") > 0
    })
    .await;
    ca.until("closed", || async { ca.open_intents(&ca.export()) == 0 })
        .await;
    let ledger = ca.check();
    let by = |id: &str| {
        ledger
            .kind("issued")
            .iter()
            .filter(|row| row["issuer"] == id)
            .count()
    };
    assert!(by("mesh") > 0 && by("mesh-2") > 0, "both issue");
    let closed = ledger.count("failed") + ledger.count("unknown");
    assert!(
        ledger.count("unknown") >= 1 && closed > 1,
        "each intent that failed is closed, and another was opened in its place"
    );
    assert_eq!(ledger.count("intent"), ledger.count("issued") + closed);
    tell(&format!(
        "sibling issuers: one was taken away under load, no call failed, {closed} intents were closed and opened anew; back after {} ms; {} and {} certificates",
        took.as_millis(),
        by("mesh"),
        by("mesh-2")
    ));
}

/// How long a slow token takes for a signature.
const SLOW: Duration = Duration::from_millis(50);
/// What of the tokens' own rate must become certificates.
const SHARE: f64 = 0.95;

/// Certificates a second of an issuer whose key is in so many slow tokens of one session each.
async fn rate_of_slow_tokens(count: usize) -> f64 {
    let material = Material::new();
    let (key, first) = (line(&material, "key = "), uri(&material));
    let other = first.replace(
        softhsm().to_str().expect("text"),
        fault_module().to_str().expect("text"),
    );
    let devices: Vec<Second> = (0..count)
        .map(|number| Second::named(&material, &format!("slow{number}")))
        .collect();
    let mut append = String::new();
    for device in &devices {
        copy(&material.file("tokens"), &device.directory.join("tokens"));
        append += &(device.section() + "sessions = 1\n");
    }
    let names: Vec<String> = (0..count).map(|number| format!("slow{number}")).collect();
    let setup = Setup {
        append,
        ..Setup::default()
    }
    .replace(&key, &format!("key = {:?}", vec![other; count]))
    .replace("device = \"softhsm\"", &format!("device = {names:?}"));
    let ca = TestCa::start_on(material, setup).await;
    devices.iter().for_each(|device| {
        device
            .control
            .set(&format!("C_Sign sleep_ms {}", SLOW.as_millis()))
            .expect("writable")
    });
    let mut load = Load::on(&ca, 8 * count);
    // Until the pace is known and the line has formed.
    load.until_issued(&ca, 20 * count).await;
    let (before, begun) = (load.issued(), Instant::now());
    load.until_issued(&ca, 100 * count).await;
    let rate = (load.issued() - before) as f64 / begun.elapsed().as_secs_f64();
    load.stop().await;
    devices
        .iter()
        .for_each(|device| device.control.clear().expect("writable"));
    assert!(load.unanswered().is_empty(), "{:?}", load.unanswered());
    ca.check();
    rate
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_slow_tokens_sign_twice_as_much_and_four_four_times() {
    let mut rates = Vec::new();
    for count in [1, 2, 4] {
        rates.push((count, rate_of_slow_tokens(count).await));
    }
    let raw = |count: usize| count as f64 / SLOW.as_secs_f64();
    let text = rates.iter().map(|(count, rate)| {
        format!(
            "{count}: {rate:.1}/s, {:.1} % of the raw rate",
            100.0 * rate / raw(*count)
        )
    });
    tell(&format!(
        "slow tokens behind one issuer, {} ms a signature: {}",
        SLOW.as_millis(),
        text.collect::<Vec<_>>().join("; ")
    ));
    let one = rates[0].1;
    for (count, rate) in rates {
        assert!(
            rate >= SHARE * raw(count),
            "{count} tokens: {rate} of {}",
            raw(count)
        );
        assert!(
            rate >= SHARE * count as f64 * one,
            "{count} tokens: {rate} of {count} × {one}"
        );
    }
}
