//! `doctor` names each fault that is made on purpose, with its remedy, and everything that is not
//! at fault all the same. A PIN is tried once, an issuer's key signs nothing that certifies, and no
//! secret is printed.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

use postgres_cluster::{Cluster, Mode, Options};
use serde_json::Value;
use softhsm_tests::authority::Authority;
use softhsm_tests::daemon::Setup;
use softhsm_tests::{Ask, Csr, LedgerDatabase, Material, TestCa};

const DAY: Duration = Duration::from_secs(86_400);

/// What the doctor said.
struct Examined {
    status: Option<i32>,
    document: Value,
    text: String,
}

impl Examined {
    /// The findings of a check that are not ok: severity, what and remedy in one text.
    fn wrong(&self, area: &str, check: &str) -> Vec<String> {
        let of = |finding: &&Value| {
            finding["area"] == area && finding["check"] == check && finding["severity"] != "ok"
        };
        let said = |finding: &Value| {
            let part = |name: &str| finding[name].as_str().unwrap_or_default().to_owned();
            format!(
                "{}: {} | {}",
                part("severity"),
                part("what"),
                part("remedy")
            )
        };
        self.findings().iter().filter(of).map(said).collect()
    }

    fn findings(&self) -> &[Value] {
        self.document["findings"].as_array().expect("a list")
    }

    fn what(&self, area: &str, check: &str) -> Vec<&str> {
        let of = |finding: &&Value| finding["area"] == area && finding["check"] == check;
        self.findings()
            .iter()
            .filter(of)
            .map(|finding| finding["what"].as_str().expect("text"))
            .collect()
    }

    /// Exactly one finding is a problem, it is in this place, and says this; the exit status tells.
    fn only_problem(&self, area: &str, check: &str, words: &[&str]) {
        self.problems(&[(area, check, words)]);
    }

    fn problems(&self, expected: &[(&str, &str, &[&str])]) {
        let problems: Vec<&Value> = self
            .findings()
            .iter()
            .filter(|finding| finding["severity"] == "problem")
            .collect();
        assert_eq!(problems.len(), expected.len(), "{:#}", self.document);
        for (area, check, words) in expected {
            let said = self
                .wrong(area, check)
                .into_iter()
                .find(|said| said.starts_with("problem: "));
            let said =
                said.unwrap_or_else(|| panic!("{area}/{check} is no problem: {:#}", self.document));
            for word in *words {
                assert!(
                    said.contains(word),
                    "{area}/{check} should say {word:?}: {said}"
                );
            }
        }
        assert_eq!(self.status, Some(1), "{:#}", self.document);
        assert_eq!(self.document["problems"], expected.len());
    }

    /// Not even a warning, but perhaps of what other tests and the machine's own state decide.
    fn unblemished(&self) {
        self.well();
        let of_ours = |finding: &&Value| {
            !["room", "connections"].contains(&finding["check"].as_str().expect("text"))
        };
        let warned: Vec<&Value> = self
            .findings()
            .iter()
            .filter(of_ours)
            .filter(|finding| finding["severity"] != "ok")
            .collect();
        assert!(warned.is_empty(), "{warned:#?}");
    }

    fn well(&self) {
        assert_eq!(
            (self.status, &self.document["problems"]),
            (Some(0), &Value::from(0)),
            "{:#}",
            self.document
        );
    }
}

fn run(mut command: Command) -> (Option<i32>, String, String) {
    let output = command.output().expect("ca-server runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    (
        output.status.code(),
        text(output.stdout),
        text(output.stderr),
    )
}

fn json(ca: &TestCa, arguments: &[&str]) -> Examined {
    json_by(ca.verb(&[&["doctor", "--output", "json"][..], arguments].concat()))
}

fn json_by(command: Command) -> Examined {
    let (status, out, error) = run(command);
    let document: Value =
        serde_json::from_str(&out).unwrap_or_else(|why| panic!("{why}: {out}\n{error}"));
    for finding in document["findings"].as_array().expect("a list") {
        let fields: BTreeSet<&str> = finding
            .as_object()
            .expect("an object")
            .keys()
            .map(String::as_str)
            .collect();
        assert_eq!(
            fields,
            BTreeSet::from(["area", "check", "remedy", "severity", "subject", "what"])
        );
        assert_eq!(
            finding["severity"] != "ok",
            finding["remedy"].is_string(),
            "who is told of a fault is told the remedy: {finding}"
        );
    }
    Examined {
        status,
        document,
        text: out + &error,
    }
}

/// Examined as JSON, without the measurement.
fn doctor(ca: &TestCa) -> Examined {
    json(ca, &["--no-rate"])
}

fn configured(setup: Setup) -> TestCa {
    TestCa::configured(Material::new(), setup)
}

#[tokio::test]
async fn a_healthy_ca_is_well_in_every_area_beside_the_daemon_and_after_it() {
    let mut ca = TestCa::start_with(Setup::default().with_faults()).await;
    ca.call(&Csr::demo().pem, &Ask::bearer(&ca.token()))
        .await
        .expect("issued");
    let beside = json(&ca, &["--deep"]);
    beside.unblemished();
    let seen: BTreeSet<(&str, &str)> = beside
        .findings()
        .iter()
        .map(|finding| {
            (
                finding["area"].as_str().unwrap(),
                finding["check"].as_str().unwrap(),
            )
        })
        .collect();
    for wanted in [
        ("config", "config"),
        ("certificates", "chain"),
        ("certificates", "names"),
        ("token issuers", "jwks"),
        ("ledger", "file"),
        ("ledger", "lock"),
        ("ledger", "room"),
        ("ledger", "schema"),
        ("ledger", "durability"),
        ("ledger", "structure"),
        ("clock", "ledger"),
        ("device", "module"),
        ("device", "token"),
        ("device", "slot"),
        ("device", "mechanisms"),
        ("device", "sessions"),
        ("device", "login"),
        ("device", "signs"),
        ("device", "key"),
        ("device", "protection"),
        ("device", "rate"),
    ] {
        assert!(
            seen.contains(&wanted),
            "{wanted:?} is missing: {:#}",
            beside.document
        );
    }
    assert!(
        beside.what("ledger", "lock")[0].contains("a daemon runs on it"),
        "{:#}",
        beside.document
    );
    assert!(ca.stop().success());
    let after = doctor(&ca);
    after.well();
    assert_eq!(after.what("ledger", "lock"), ["no daemon runs on it"]);
    assert_eq!(after.what("device", "rate"), [""; 0]);
}

#[tokio::test]
async fn an_issuers_key_signs_nothing_that_certifies_and_no_throw_away_key_stays() {
    let ca = TestCa::start_with(Setup::default().with_faults()).await;
    let (asked, issued) = (ca.faults().signatures(), ca.check());
    json(&ca, &[]).well();
    let made: Vec<String> = ca
        .faults()
        .signature_inputs()
        .into_iter()
        .skip(usize::try_from(asked).expect("few"))
        .collect();
    assert!(!made.is_empty(), "the rate was measured");
    let intents: BTreeSet<&str> = issued
        .kind("intent")
        .iter()
        .map(|intent| intent["to_be_signed_sha256"].as_str().expect("a digest"))
        .collect();
    assert!(made.iter().all(|input| !intents.contains(input.as_str())));
    let listed = ca.material.pkcs11_tool("issuing", &["--list-objects"]);
    let listed = String::from_utf8(listed.stdout).expect("text");
    assert!(
        listed.contains("issuing") && !listed.contains("throw-away"),
        "{listed}"
    );
    assert_eq!(listed.matches("Private Key Object").count(), 1, "{listed}");
}

#[test]
fn text_and_json_say_the_same_and_marks_need_no_colour() {
    let ca = configured(Setup::default().replace("jwks = \"jwks.json\"", "jwks = \"absent.json\""));
    let (status, text, error) = run(ca.verb(&["doctor", "--no-rate"]));
    let examined = doctor(&ca);
    assert_eq!((status, examined.status), (Some(1), Some(1)));
    for finding in examined.findings() {
        // Two runs are at two times, and other tests use the disk.
        if finding["area"] != "clock" && finding["check"] != "room" {
            assert!(
                text.contains(finding["what"].as_str().expect("text")),
                "{finding} is not in\n{text}"
            );
        }
    }
    assert!(
        text.contains("\ntoken issuers\n  PROBLEM  ")
            && text.contains("\n  ok       ")
            && text.contains("           remedy: "),
        "{text}"
    );
    assert!(!text.contains('\u{1b}'), "{text}");
    assert!(error.contains("problems were found"), "{error}");
}

#[test]
fn a_wrong_pin_is_tried_once_and_then_no_more_until_it_is_ordered() {
    let ca = configured(Setup::default().with_faults());
    let right = ca.material.read("issuing.pin");
    write_pin(&ca, "13579-canary");
    let first = doctor(&ca);
    first.only_problem(
        "device",
        "login",
        &[
            "CKR_PIN_INCORRECT",
            "issuing.pin",
            "tried once",
            "CKF_USER_PIN_COUNT_LOW",
            "--try-pin",
        ],
    );
    assert_eq!(ca.faults().logins(), 1);
    let second = doctor(&ca);
    second.only_problem(
        "device",
        "login",
        &["CKF_USER_PIN_COUNT_LOW", "was not tried", "--try-pin"],
    );
    assert_eq!(ca.faults().logins(), 1, "not again");
    for said in [&first, &second] {
        assert!(!said.text.contains("13579"), "{}", said.text);
        assert_eq!(
            said.what("device", "mechanisms"),
            ["it signs with ecdsa-p256-sha256 by CKM_ECDSA"],
            "what needs no PIN is examined all the same"
        );
    }
    write_pin(&ca, right.trim());
    json(&ca, &["--no-rate", "--try-pin"]).well();
    doctor(&ca).well();
}

fn write_pin(ca: &TestCa, pin: &str) {
    // In the place of the old one, whose mode it keeps.
    std::fs::write(ca.material.file("issuing.pin"), pin).expect("writable");
}

#[test]
fn a_pin_that_is_locked_or_about_to_be_is_never_tried() {
    let ca = configured(Setup::default().with_faults());
    // CKF_USER_PIN_LOCKED, CKF_USER_PIN_FINAL_TRY.
    for (flag, words) in [
        ("0x40000", "CKF_USER_PIN_LOCKED"),
        ("0x20000", "CKF_USER_PIN_FINAL_TRY"),
    ] {
        ca.command_faults(&format!("C_GetTokenInfo flags {flag}"));
        doctor(&ca).only_problem("device", "login", &[words, "was not tried"]);
        assert_eq!(ca.faults().logins(), 0);
    }
    ca.command_faults("C_GetTokenInfo flags 0x40000");
    json(&ca, &["--no-rate", "--try-pin"]).only_problem(
        "device",
        "login",
        &["CKF_USER_PIN_LOCKED"],
    );
    assert_eq!(ca.faults().logins(), 0, "not by an order either");
    ca.command_faults("C_GetTokenInfo flags 0x20000");
    json(&ca, &["--no-rate", "--try-pin"]).well();
    assert_eq!(ca.faults().logins(), 1);
}

#[test]
fn a_session_ceiling_below_what_the_daemon_wants_is_a_problem() {
    let ca = configured(Setup::default().with_faults());
    ca.command_faults("C_GetTokenInfo sessions 4");
    doctor(&ca).only_problem("device", "sessions", &["allows 4 sessions", "wants 5"]);
    ca.command_faults("C_GetTokenInfo sessions 5");
    doctor(&ca).well();
}

#[test]
fn a_token_that_makes_no_session_keys_is_not_measured_and_that_is_a_warning() {
    let ca = configured(Setup::default().with_faults());
    // CKR_SESSION_READ_ONLY.
    ca.command_faults("C_GenerateKeyPair rv 0xb5");
    let examined = json(&ca, &[]);
    examined.well();
    assert!(
        examined.wrong("device", "rate")[0].contains("CKR_SESSION_READ_ONLY"),
        "{:#}",
        examined.document
    );
    assert_eq!(
        ca.faults().signatures(),
        1,
        "the text that certifies nothing"
    );
}

#[test]
fn a_missing_module_a_missing_token_and_a_missing_key_are_told_apart() {
    for (from, to, check, words) in [
        (
            "module-path=",
            "module-path=/nowhere",
            "module",
            &["/nowhere/", "install"][..],
        ),
        (
            "token=issuing",
            "token=elsewhere",
            "token",
            &["token=elsewhere", "\"issuing\"", "\"root\""][..],
        ),
        (
            "object=issuing",
            "object=other",
            "key",
            &["object=other", "ceremony"][..],
        ),
    ] {
        let ca = configured(Setup::default().replace(from, to));
        let examined = doctor(&ca);
        examined.only_problem("device", check, words);
        assert!(
            examined.wrong("certificates", "chain").is_empty()
                && examined.wrong("ledger", "room").is_empty()
        );
    }
    let ca = configured(Setup::default());
    std::fs::remove_dir_all(ca.material.file("tokens")).expect("removed");
    std::fs::create_dir(ca.material.file("tokens")).expect("made");
    doctor(&ca).only_problem("device", "token", &["shows no token at all"]);
}

#[test]
fn a_key_whose_public_half_the_token_does_not_tell_is_shown_by_a_signature_and_its_protection_judged()
 {
    let ca = configured(Setup::default());
    let deleted = ca.material.pkcs11_tool(
        "issuing",
        &["--delete-object", "--type", "pubkey", "--label", "issuing"],
    );
    assert!(
        deleted.status.success(),
        "{}",
        String::from_utf8_lossy(&deleted.stderr)
    );
    let examined = doctor(&ca);
    examined.well();
    assert!(
        examined.what("device", "key")[0].contains("a signature has shown it"),
        "{:#}",
        examined.document
    );
    assert!(
        examined.what("device", "protection")[0].contains("can never leave it"),
        "{:#}",
        examined.document
    );

    let material = Material::new();
    let root = Authority::root("root", DAY * 365);
    material.write(
        "issuing-chain.pem",
        root.intermediate("other", DAY * 364).certificate(),
    );
    material.write("root-cert.pem", root.certificate());
    material.pkcs11_tool(
        "issuing",
        &["--delete-object", "--type", "pubkey", "--label", "issuing"],
    );
    let ca = TestCa::configured(material, Setup::default());
    doctor(&ca).only_problem("device", "signs", &["another key than expected"]);
}

#[test]
fn a_certificate_of_another_key_is_named_by_both_fingerprints() {
    let material = Material::new();
    let root = Authority::root("root", DAY * 365);
    material.write(
        "issuing-chain.pem",
        root.intermediate("other", DAY * 364).certificate(),
    );
    material.write("root-cert.pem", root.certificate());
    let ca = TestCa::configured(material, Setup::default());
    doctor(&ca).only_problem(
        "device",
        "key",
        &["not the certificate's", "ecdsa-p256-sha256"],
    );
}

#[test]
fn a_missing_certificate_hides_nothing_of_the_token() {
    let ca = configured(
        Setup::default().replace("chain = \"issuing-chain.pem\"", "chain = \"absent.pem\""),
    );
    let examined = doctor(&ca);
    examined.problems(&[
        ("config", "config", &["absent.pem"]),
        ("certificates", "chain", &["absent.pem", "ceremony"]),
    ]);
    assert_eq!(examined.what("device", "login").len(), 1);
    assert!(
        examined.wrong("device", "key")[0].starts_with("warning: "),
        "{:#}",
        examined.document
    );
}

#[test]
fn a_config_of_the_wrong_shape_is_examined_as_far_as_it_goes() {
    let ca = configured(Setup::default().replace(
        "cluster_id = \"Kubernetes\"",
        "cluster_id = \"Kubernetes\"\ncolour = \"green\"",
    ));
    let examined = doctor(&ca);
    examined.only_problem("config", "config", &["colour"]);
    assert_eq!(examined.what("device", "login").len(), 1);
    for broken in ["[profile", "no TOML at all"] {
        ca.material.write("ca.toml", broken);
        let (status, out, error) = run(ca.verb(&["doctor"]));
        assert_eq!((status, out.as_str()), (Some(2), ""), "{error}");
        assert!(error.contains("ca.toml"), "{error}");
    }
}

#[test]
fn several_mistakes_are_all_said_at_once() {
    let setup = Setup::default()
        .replace("call_timeout = \"5s\"", "call_timeout = \"5h\"")
        .replace("minimum = \"10m\"", "minimum = \"10d\"")
        .replace("jwks = \"jwks.json\"", "jwks = \"absent.json\"");
    let ca = configured(setup);
    let said = doctor(&ca).wrong("config", "config").join("\n");
    assert!(
        said.contains("csr.call_timeout") && said.contains("profile.default"),
        "{said}"
    );
    assert!(doctor(&ca).wrong("token issuers", "jwks")[0].contains("absent.json"));
}

#[test]
fn an_issuer_that_ends_soon_is_a_warning_and_one_that_has_ended_a_problem() {
    let material = Material::new();
    let root = Authority::root("root", DAY * 365);
    let soon = root.intermediate("soon", DAY * 20);
    material.write("file-chain.pem", soon.certificate());
    material.write("root-cert.pem", root.certificate());
    crate::lifetime::write_key(&material, "soon.key", &soon.key());
    let setup = Setup::default().replace(
        "chain = \"issuing-chain.pem\"",
        "chain = \"file-chain.pem\"",
    );
    let setup = crate::lifetime::file_issuer(&material, setup, "soon.key");
    let ca = TestCa::configured(material, setup);
    let examined = json(&ca, &[]);
    examined.well();
    assert!(
        examined.wrong("certificates", "chain")[0].contains("19 days left"),
        "{:#}",
        examined.document
    );
    assert!(
        examined.wrong("certificates", "lifetime")[0].contains("profile.maximum"),
        "{:#}",
        examined.document
    );
    assert!(
        examined.wrong("device", "key")[0].contains("is a file"),
        "{:#}",
        examined.document
    );
    assert_eq!(
        examined.what("device", "rate").len(),
        1,
        "also of a file's kind"
    );

    let mut later = ca.verb(&["doctor", "--output", "json", "--no-rate"]);
    later
        .envs(crate::clocks::faketime())
        .env("FAKETIME", "+21d");
    let examined = json_by(later);
    examined.problems(&[
        ("config", "config", &["renew it"]),
        (
            "certificates",
            "chain",
            &["nothing can be issued", "ceremony"],
        ),
    ]);
}

#[tokio::test]
async fn a_clock_behind_the_newest_row_is_a_problem() {
    let ahead = crate::clocks::faketime()
        .into_iter()
        .fold(Setup::default(), |setup, (name, value)| {
            setup.env(name, value)
        });
    let mut ca = TestCa::start_with(ahead.env("FAKETIME", "+50m")).await;
    assert!(ca.stop().success());
    doctor(&ca).only_problem("clock", "ledger", &["minutes behind", "--accept-clock"]);
}

#[test]
fn broken_keys_of_a_token_issuer_are_told() {
    let ca = configured(Setup::default());
    let set: Value = serde_json::from_str(&ca.material.read("jwks.json")).expect("JSON");
    let key = &set["keys"][0];
    ca.material.write(
        "jwks.json",
        serde_json::json!({ "keys": [key, {"kty": "EC", "crv": "P-256", "kid": "odd", "x": "AA", "y": "AA"}] }).to_string(),
    );
    let examined = doctor(&ca);
    examined.well();
    assert!(
        examined.wrong("token issuers", "jwks")[0].contains("key \"odd\" verifies no token"),
        "{:#}",
        examined.document
    );
    for broken in ["", "{}", "{\"keys\":[]}"] {
        ca.material.write("jwks.json", broken);
        let examined = doctor(&ca);
        examined.problems(&[
            ("config", "config", &["jwks"]),
            ("token issuers", "jwks", &["jwks.json", "/openid/v1/jwks"]),
        ]);
    }
}

#[tokio::test]
async fn a_ledger_without_its_triggers_or_open_to_others_is_told() {
    use sqlx::{Connection, Executor};
    use std::os::unix::fs::PermissionsExt;
    let mut ca = TestCa::start().await;
    assert!(ca.stop().success());
    let file = ca.material.file("ledger.db");
    let mut connection = sqlx::SqliteConnection::connect(&format!("sqlite:{}", file.display()))
        .await
        .expect("opened");
    connection
        .execute("DROP TRIGGER event_is_never_deleted")
        .await
        .expect("dropped");
    connection.close().await.expect("closed");
    doctor(&ca).only_problem(
        "ledger",
        "triggers",
        &["event_is_never_deleted is missing", "audit verify"],
    );

    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).expect("permitted");
    assert!(doctor(&ca).wrong("ledger", "file")[0].contains("chmod 600"));
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o666)).expect("permitted");
    assert!(
        doctor(&ca).wrong("ledger", "file")[0]
            .starts_with("problem: others than its owner can change")
    );

    ca.material.write(
        "ledger.db",
        "no database at all, but long enough to be looked at as one. ".repeat(9),
    );
    let examined = doctor(&ca);
    assert!(
        examined.wrong("ledger", "database")[0].contains("not a database"),
        "{:#}",
        examined.document
    );
    assert_eq!(
        examined.what("device", "login").len(),
        1,
        "and hides nothing of the token"
    );
}

#[tokio::test]
async fn a_ledger_on_postgres_is_well_beside_its_daemons() {
    let database = LedgerDatabase::new();
    let mut ca = TestCa::start_with(Setup::default().on_ledger(&database.url())).await;
    ca.call(&Csr::demo().pem, &Ask::bearer(&ca.token()))
        .await
        .expect("issued");
    let beside = doctor(&ca);
    beside.unblemished();
    for check in [
        "database",
        "tls",
        "connections",
        "roles",
        "durability",
        "schema",
        "partitions",
        "lock",
    ] {
        assert_eq!(
            beside.what("ledger", check).len(),
            1,
            "{check}: {:#}",
            beside.document
        );
    }
    assert_eq!(beside.what("ledger", "lock"), ["one daemon writes now"]);
    assert!(
        beside.what("clock", "ledger")[0].contains("after the ledger's newest row"),
        "{:#}",
        beside.document
    );
    assert_eq!(
        beside.what("clock", "database"),
        ["the database's clock agrees with this machine's"]
    );
    assert!(ca.stop().success());
    let after = doctor(&ca);
    after.well();
    assert_eq!(after.what("ledger", "lock"), ["no daemon writes now"]);
}

/// A CA that was never started, with its ledger in this database.
fn on(database: &LedgerDatabase<'_>, login: &str) -> TestCa {
    configured(Setup::default().on_ledger(&database.url_as(login)))
}

#[test]
fn what_was_done_to_a_ledger_on_postgres_is_told_partition_by_partition() {
    let database = LedgerDatabase::new();
    let ca = on(&database, &database.login());
    doctor(&ca).well();
    let first = database.psql(
        "SELECT min(relname) FROM pg_class WHERE relname ~ '^event_[0-9]{6}$' AND relkind = 'r' AND relnamespace = 'ca_server'::regnamespace",
    );
    database.psql(&format!(
        "DROP TRIGGER event_is_never_truncated ON ca_server.{first}"
    ));
    let name = format!("event_is_never_truncated on {first} is missing");
    doctor(&ca).only_problem("ledger", "triggers", &[&name, "audit verify"]);

    database.psql(&format!(
        "ALTER TABLE ca_server.{first} DISABLE TRIGGER event_is_never_changed"
    ));
    let said = doctor(&ca).wrong("ledger", "triggers").join("\n");
    assert!(
        said.contains(&format!("event_is_never_changed on {first} is not the one")),
        "{said}"
    );
    database.psql("CREATE OR REPLACE FUNCTION ca_server.event_only_grows() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'");
    database.psql("CREATE RULE away AS ON INSERT TO ca_server.event DO INSTEAD NOTHING");
    database.psql("DROP INDEX ca_server.event_serial");
    let examined = doctor(&ca);
    let said = examined.wrong("ledger", "triggers").join("\n")
        + &examined.wrong("ledger", "schema").join("\n");
    for word in [
        "function event_only_grows is not the one",
        "rule or policy on event was added",
        "index event_serial is missing",
    ] {
        assert!(said.contains(word), "{word:?}: {said}");
    }
}

#[test]
fn partitions_that_run_out_are_a_warning() {
    let database = LedgerDatabase::new();
    let ca = on(&database, &database.login());
    // All but this month's and the next one's.
    database.psql(
        "DO $$ DECLARE name text; BEGIN FOR name IN SELECT relname FROM pg_class WHERE relname ~ '^event_[0-9]{6}$' AND relkind = 'r' \
         AND relnamespace = 'ca_server'::regnamespace ORDER BY relname OFFSET 2 LOOP EXECUTE 'DROP TABLE ca_server.' || name; END LOOP; END $$",
    );
    let examined = doctor(&ca);
    examined.well();
    let said = examined.wrong("ledger", "partitions");
    assert!(
        said[0].starts_with("warning: 2 months from") && said[0].contains("ca-server migrate"),
        "{said:?}"
    );
    database.migrate();
    assert!(doctor(&ca).wrong("ledger", "partitions").is_empty());
}

#[test]
fn a_login_that_may_too_much_or_too_little_is_told() {
    let database = LedgerDatabase::new();
    let examined = doctor(&on(&database, "postgres"));
    examined.well();
    assert!(
        examined.wrong("ledger", "roles")[0].contains("is a superuser"),
        "{:#}",
        examined.document
    );

    let login = database.login();
    database.psql(&format!("GRANT {}_owner TO {login}", database.name()));
    assert!(doctor(&on(&database, &login)).wrong("ledger", "roles")[0].contains("owner's role"));
    let login = database.login();
    database.psql(&format!("GRANT DELETE ON ca_server.event TO {login}"));
    assert!(
        doctor(&on(&database, &login)).wrong("ledger", "roles")[0]
            .contains("change or remove rows")
    );
    let login = database.login();
    database.psql(&format!(
        "REVOKE {}_application FROM {login}",
        database.name()
    ));
    let examined = doctor(&on(&database, &login));
    examined.problems(&[
        ("ledger", "roles", &["may not add rows", "--application"]),
        ("ledger", "schema", &["ca-server migrate"]),
    ]);
}

#[test]
fn durability_that_is_off_is_a_warning_and_a_server_that_is_down_a_problem() {
    let cluster = Cluster::start_with(
        &Options::default()
            .setting("fsync", "off")
            .setting("synchronous_commit", "off"),
    );
    let database = LedgerDatabase::on(&cluster);
    let ca = on(&database, &database.login());
    let examined = doctor(&ca);
    examined.well();
    let said = examined.wrong("ledger", "durability");
    assert_eq!(said.len(), 2, "{said:?}");
    assert!(
        said[0].starts_with("warning: fsync is off")
            && said[1].starts_with("warning: synchronous_commit is off"),
        "{said:?}"
    );
    cluster.stop(Mode::Fast);
    let examined = doctor(&ca);
    examined.only_problem(
        "ledger",
        "database",
        &["does not let us in", "start the server"],
    );
    assert_eq!(
        examined.what("device", "login").len(),
        1,
        "and hides nothing of the token"
    );
}

#[test]
fn no_secret_is_printed_whatever_is_broken() {
    for setup in [
        Setup::default(),
        Setup::default().replace("pin-source=", "pin-value=canary-9753&pin-source="),
        Setup::default().replace("object=issuing", "object=other"),
    ] {
        let ca = configured(setup);
        let pins = [
            ca.material.read("issuing.pin").trim().to_owned(),
            "canary-9753".to_owned(),
        ];
        for arguments in [&["doctor"][..], &["doctor", "--output", "json"]] {
            let (_, out, error) = run(ca.verb(arguments));
            assert!(!out.is_empty());
            for pin in &pins {
                assert!(
                    pin.len() >= 8 && !out.contains(pin.as_str()) && !error.contains(pin.as_str()),
                    "{out}{error}"
                );
            }
        }
    }
}

#[test]
fn a_library_that_crashes_hides_nothing_that_was_found_before() {
    let ca = configured(Setup::default().with_faults());
    for (rules, signal, found) in [
        (
            "C_FindObjectsInit abort",
            "signal: 6",
            &["module", "token", "slot", "mechanisms", "sessions", "login"][..],
        ),
        ("C_Initialize segfault", "signal: 11", &[][..]),
    ] {
        ca.command_faults(rules);
        let examined = doctor(&ca);
        examined.only_problem("device", "answers", &[signal]);
        for check in found {
            assert!(
                !examined.what("device", check).is_empty(),
                "{check}: {:#}",
                examined.document
            );
        }
    }
}

#[test]
fn a_library_that_prints_spoils_no_document() {
    let ca = configured(Setup::default().with_faults());
    ca.command_faults("C_OpenSession print\nC_SignInit print");
    let examined = doctor(&ca);
    examined.well();
    assert!(
        examined.text.contains("that nobody asked for"),
        "it is on standard error: {}",
        examined.text
    );
}

#[test]
fn tokens_of_one_label_are_told_apart_by_their_serials() {
    let ca = configured(Setup::default());
    let made = Command::new("softhsm2-util")
        .args([
            "--init-token",
            "--free",
            "--label",
            "issuing",
            "--so-pin",
            "so-12345",
            "--pin",
            "13579-other",
        ])
        .env("SOFTHSM2_CONF", ca.material.file("softhsm2.conf"))
        .output()
        .expect("softhsm2-util runs");
    assert!(made.status.success(), "{made:?}");
    doctor(&ca).only_problem(
        "device",
        "token",
        &["more than one token", "by serial=", " or serial="],
    );
}

#[test]
fn a_code_of_the_token_has_the_remedy_that_fits() {
    let ca = configured(Setup::default().with_faults());
    for (rules, check, words) in [
        (
            "C_Login rv 0xA4",
            "login",
            &["CKR_PIN_LOCKED", "security officer"][..],
        ),
        (
            "C_Login rv 0x80000001",
            "login",
            &["the vendor's code", "It was tried once"],
        ),
        (
            "C_OpenSession rv 0xB1",
            "login",
            &["CKR_SESSION_COUNT", "sessions"][..],
        ),
        (
            "C_SignInit rv 0x68",
            "signs",
            &["CKR_KEY_FUNCTION_NOT_PERMITTED", "CKA_SIGN"][..],
        ),
        (
            "C_Sign rv 0x30",
            "signs",
            &["CKR_DEVICE_ERROR", "self-test"][..],
        ),
    ] {
        ca.command_faults(rules);
        json(&ca, &["--no-rate", "--try-pin"]).only_problem("device", check, words);
    }
    ca.command_faults("C_Sign corrupt");
    json(&ca, &["--no-rate", "--try-pin"]).only_problem(
        "device",
        "signs",
        &["does not verify", "out of service"],
    );
}
