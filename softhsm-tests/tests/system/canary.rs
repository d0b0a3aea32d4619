//! A private key in the wrong file is never shown. A key is put into every file that a config can
//! name, spelt in the ways in which keys get into wrong files, and nothing that the program then
//! says holds a part of it: as text, in hexadecimal, or octet by octet in decimals.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use crate::field::{Case, Serving, four_at_a_time, said};

/// Every key of a file's shape that names a file, and the files in which a canary is put for it.
/// `None` is what is not read: a directory that is only written, a socket.
const CONFIG: &[(&str, Option<&str>)] = &[
    ("Device.socket", None),
    ("File.state_dir", None),
    ("Issuer.chain", Some("chain.pem")),
    ("Issuer.roots", Some("roots.pem")),
    ("Issuer.transcript", Some("transcript.jsonl")),
    ("Jwt.jwks", Some("jwks.json")),
    ("Ledger.certificate", Some("database.pem")),
    ("Ledger.key", Some("database.key")),
    ("Ledger.password_file", Some("database.password")),
    ("Ledger.roots", Some("database-roots.pem")),
    ("RequestDefaults.out", None),
    ("RequestDefaults.roots", Some("roots.pem")),
    ("RequestDefaults.token_file", Some("demo.token")),
];

/// The keys of a signer's own file that name a file.
const SIGNER: &[&str] = &["File.alarms", "File.state_dir", "KeyFile.issuer"];

/// The same for a ceremony's spec.
const CEREMONY: &[&str] = &["File.output"];

/// The paths in the structs that a source file reads from TOML.
fn named_files(source: &str) -> BTreeSet<String> {
    let text = std::fs::read_to_string(
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../ca-server/src")
            .join(source),
    )
    .expect("there");
    let (mut found, mut name, mut is_read) = (BTreeSet::new(), String::new(), false);
    for line in text.lines().take_while(|line| !line.contains("mod tests")) {
        let line = line.trim();
        if line.starts_with("#[derive") {
            is_read = line.contains("Deserialize");
        }
        if let Some((_, rest)) = line.split_once("struct ") {
            name = rest
                .split([' ', '<', '('])
                .next()
                .unwrap_or_default()
                .to_owned();
        }
        if let Some((field, kind)) = line.split_once(": ")
            && kind.contains("Path")
            && is_read
            && kind.ends_with(',')
        {
            found.insert(format!(
                "{name}.{}",
                field
                    .trim_start_matches("pub(super) ")
                    .trim_start_matches("pub ")
            ));
        }
        if line == "}" {
            is_read = false;
        }
    }
    found
}

#[test]
fn every_file_that_a_config_can_name_has_its_canary() {
    let config: Vec<&str> = CONFIG.iter().map(|(key, _)| *key).collect();
    for (source, table) in [
        ("config/file.rs", &config[..]),
        ("cli/signer/rules_file.rs", SIGNER),
        ("ceremony/spec.rs", CEREMONY),
    ] {
        let table: BTreeSet<String> = table.iter().map(|key| (*key).to_owned()).collect();
        assert_eq!(
            named_files(source),
            table,
            "{source} and the table of canaries name the same files"
        );
    }
}

/// A private key, and what shows it.
struct Canary {
    pem: String,
    body: String,
    der: Vec<u8>,
}

impl Canary {
    fn new() -> Self {
        let key = rcgen::KeyPair::generate().expect("a key");
        let der = key.serialize_der();
        let body = BASE64_STANDARD.encode(&der);
        let lines: String = body
            .as_bytes()
            .chunks(64)
            .map(|line| String::from_utf8_lossy(line).into_owned() + "\n")
            .collect();
        Self {
            pem: format!("-----BEGIN PRIVATE KEY-----\n{lines}-----END PRIVATE KEY-----\n"),
            body,
            der,
        }
    }

    /// The ways in which it gets into a file.
    fn spellings(&self) -> Vec<(&'static str, Vec<u8>)> {
        let text = |text: String| text.into_bytes();
        vec![
            ("PEM", text(self.pem.clone())),
            (
                "PEM with literal line breaks",
                text(self.pem.replace('\n', "\\n")),
            ),
            (
                "PEM with a damaged mark",
                text(self.pem.replace("-----BEGIN", "----BEGIN")),
            ),
            (
                "PEM under a certificate's label",
                text(self.pem.replace("PRIVATE KEY", "CERTIFICATE")),
            ),
            (
                "PEM in a mark",
                text(format!(
                    "-----BEGIN {}-----\n-----END {}-----\n",
                    self.body, self.body
                )),
            ),
            ("base64", text(self.body.clone() + "\n")),
            (
                "a TOML key",
                text(format!("{} = 1\n", self.body.replace(['+', '/', '='], ""))),
            ),
            (
                "a TOML value",
                text(format!(
                    "trust_domain = [\"{0}\"]\nstate = \"{0}\"\n",
                    self.body
                )),
            ),
            ("JSON", text(format!("{{\"keys\": \"{}\"}}", self.body))),
            ("hexadecimal", text(hex::encode(&self.der))),
            ("DER", self.der.clone()),
            (
                "UTF-16",
                self.pem.encode_utf16().flat_map(u16::to_le_bytes).collect(),
            ),
        ]
    }

    /// How a text shows a part of it, if it does.
    fn is_in(&self, said: &str) -> Option<&'static str> {
        const PART: usize = 10;
        let shows = |secret: &str, said: &str| {
            secret
                .as_bytes()
                .windows(PART)
                .any(|part| said.contains(std::str::from_utf8(part).expect("ASCII")))
        };
        let squeezed: String = said
            .chars()
            .filter(|letter| !letter.is_whitespace() && !",:".contains(*letter))
            .collect();
        let numbers: Vec<u32> = said
            .split(|letter: char| !letter.is_ascii_digit())
            .filter_map(|digits| digits.parse().ok())
            .collect();
        let in_decimals = |octets: &[u8]| {
            octets.windows(PART).any(|part| {
                numbers.windows(PART).any(|shown| {
                    shown
                        .iter()
                        .zip(part)
                        .all(|(shown, octet)| *shown == u32::from(*octet))
                })
            })
        };
        // What is the same in every key of this kind is no secret, but nothing of the file should
        // be shown.
        match () {
            () if shows(&self.body, &squeezed) => Some("as base64"),
            () if shows(&hex::encode(&self.der), &squeezed.to_lowercase()) => {
                Some("in hexadecimal")
            }
            () if shows(&hex::encode(&self.body), &squeezed.to_lowercase()) => {
                Some("its base64 in hexadecimal")
            }
            () if in_decimals(&self.der) || in_decimals(self.body.as_bytes()) => {
                Some("in decimals")
            }
            () => None,
        }
    }
}

/// A good config that names every kind of file; `on_server` has the ledger on a PostgreSQL server
/// that does not answer.
fn case(on_server: bool) -> Case {
    let case = Case::new("c01-root-in-chain");
    let path = case.file("ca.toml");
    let mut text = std::fs::read_to_string(&path).expect("there");
    text = text.replace(
        "roots = \"roots.pem\"\n\n[profile]",
        "roots = \"roots.pem\"\ntranscript = \"transcript.jsonl\"\n\n[profile]",
    );
    assert!(text.contains("transcript"), "{text}");
    if on_server {
        // Nobody listens there.
        let port = postgres_cluster::free_port();
        let files = "roots = \"database-roots.pem\"\ncertificate = \"database.pem\"\nkey = \"database.key\"\npassword_file = \"database.password\"";
        text = text.replace(
            "url = \"sqlite:ledger.db\"",
            &format!(
                "url = \"postgres://ca@127.0.0.1:{port}/ledger?sslmode=verify-full\"\n{files}"
            ),
        );
    }
    std::fs::write(path, text).expect("writable");
    let chain = std::fs::read(case.file("chain.pem")).expect("there");
    for name in ["database.pem", "database-roots.pem"] {
        std::fs::write(case.file(name), &chain).expect("writable");
    }
    std::fs::write(case.file("transcript.jsonl"), "{}\n").expect("writable");
    for (name, text) in [
        (
            "database.key",
            std::fs::read(case.file("issuer.key")).expect("there"),
        ),
        ("database.password", b"x".to_vec()),
    ] {
        put(&case, name, &text);
    }
    case
}

/// Writes a file that nobody else may read, so that no rule on modes is met first.
fn put(case: &Case, name: &str, content: &[u8]) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::write(case.file(name), content).expect("writable");
    std::fs::set_permissions(case.file(name), std::fs::Permissions::from_mode(0o600))
        .expect("ours");
}

/// Everything that `serve` says until it serves or ends; it is ended then.
fn serve(case: &Case) -> String {
    match Serving::start(case) {
        Ok(serving) => serving.log_text(),
        Err(said) => said,
    }
}

/// What verbs say of the config, and of what it names.
fn all_verbs(case: &Case) -> Vec<(&'static str, String)> {
    vec![
        ("check-config", said(&case.run(&["check-config"]))),
        ("doctor", said(&case.run(&["doctor", "--no-rate"]))),
        (
            "doctor in JSON",
            said(&case.run(&["doctor", "--no-rate", "--output", "json"])),
        ),
        ("audit verify", said(&case.run(&["audit", "verify"]))),
        (
            "request",
            said(&case.run(&["request", "--address", "127.0.0.1:1"])),
        ),
        ("serve", serve(case)),
    ]
}

#[test]
fn a_private_key_in_any_file_that_a_config_names_is_never_shown() {
    let canary = Canary::new();
    let mut all = Vec::new();
    for file in CONFIG
        .iter()
        .filter_map(|(_, file)| *file)
        .chain(["issuer.key", "ca.toml"])
        .collect::<BTreeSet<_>>()
    {
        all.extend(
            canary
                .spellings()
                .into_iter()
                .map(|(spelling, content)| (file, spelling, content)),
        );
    }
    let wrong = four_at_a_time(all.into_iter(), |(file, spelling, content)| {
        let case = case(file.starts_with("database"));
        put(&case, file, &content);
        let shown = all_verbs(&case).into_iter().filter_map(|(verb, said)| {
            assert!(!said.is_empty(), "{verb} says nothing");
            canary
                .is_in(&said)
                .map(|how| format!("{verb} shows the {spelling} in {file} {how}: {said}"))
        });
        shown.collect()
    });
    assert!(
        wrong.is_empty(),
        "{} cases, such as {}",
        wrong.len(),
        wrong[0]
    );
}

#[test]
fn a_private_key_in_a_file_that_is_read_again_is_never_logged() {
    let canary = Canary::new();
    let case = case(false);
    let mut serving = Serving::start(&case).unwrap_or_else(|why| panic!("{why}"));
    for file in [
        "chain.pem",
        "roots.pem",
        "jwks.json",
        "issuer.key",
        "ca.toml",
    ] {
        let good = std::fs::read(case.file(file)).expect("there");
        for (spelling, content) in canary.spellings() {
            let before = serving.log_text().len();
            put(&case, file, &content);
            serving.reload();
            // A key file is not read again while the device is open.
            let said = serving.log_text()[before..].to_owned();
            assert_eq!(canary.is_in(&said), None, "{spelling} in {file}: {said}");
            assert!(
                file == "issuer.key" || said.contains("not reloaded"),
                "{spelling} in {file}: {said}"
            );
        }
        put(&case, file, &good);
    }
}

#[test]
fn a_private_key_in_the_files_of_a_signer_and_a_ceremony_is_never_shown() {
    let canary = Canary::new();
    let rules = "uids = [0]\nalarms = \"alarms.jsonl\"\n[[key]]\nuri = \"file:issuer.key\"\nissuer = \"chain.pem\"\nsessions = 1\n";
    for (spelling, content) in canary.spellings() {
        for file in ["chain.pem", "signer.toml"] {
            let case = Case::new("c01-root-in-chain");
            put(&case, "signer.toml", rules.as_bytes());
            put(&case, file, &content);
            let mut signer = Command::new(softhsm_tests::build::ca_server());
            let listen = format!("unix:{}", case.file("socket").display());
            let signer = signer
                .args(["signer", "--check", "--listen", &listen, "--config"])
                .arg(case.file("signer.toml"));
            let said = said(&signer.output().expect("ca-server runs"));
            assert!(
                !said.is_empty() && canary.is_in(&said).is_none(),
                "signer: {spelling} in {file}: {said}"
            );
        }
        let case = Case::new("c01-root-in-chain");
        put(&case, "ceremony.toml", &content);
        let mut ceremony = Command::new(softhsm_tests::build::ca_server());
        let said = said(
            &ceremony
                .args(["ceremony", "--spec"])
                .arg(case.file("ceremony.toml"))
                .output()
                .expect("ca-server runs"),
        );
        assert!(
            !said.is_empty() && canary.is_in(&said).is_none(),
            "ceremony: {spelling}: {said}"
        );
    }
}

#[test]
fn a_canary_is_found_however_it_is_shown() {
    let canary = Canary::new();
    let decimals = |octets: &[u8]| format!("{octets:?}");
    for shown in [
        canary.pem.clone(),
        hex::encode(&canary.der),
        hex::encode_upper(&canary.der[40..]),
        decimals(&canary.der),
        decimals(&canary.body.as_bytes()[64..128]),
        canary.body[100..120].to_owned(),
    ] {
        assert!(
            canary.is_in(&format!("it says {shown} there")).is_some(),
            "{shown}"
        );
    }
    assert_eq!(
        canary.is_in("line 1: a PRIVATE KEY, 2026-11-29T04:00:00Z 1 2 3 4 5"),
        None
    );
}
