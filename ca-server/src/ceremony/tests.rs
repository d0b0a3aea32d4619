//! The ceremony's rules on PEM keys; `tests/ceremony.rs` runs it on a token.

use std::cell::Cell;
use std::fs;
use std::path::Path;
use std::process::Command;

use super::*;

const SPEC: &str = r#"
    output = "."
    [root]
    subject = "CN=Test Root,O=Test"
    key = "file:root.key"
    algorithm = "p384"
    lifetime = "3650d"
    path_length = 1
    [issuing]
    subject = "CN=Test Issuing,O=Test"
    key = "file:issuing.key"
    algorithm = "p256"
    lifetime = "365d"
    path_length = 0
"#;

fn begin() -> Timestamp {
    Timestamp::parse_rfc3339("2026-11-22T12:00:00Z").unwrap()
}

fn hold(text: &str, directory: &Path, now: Timestamp) -> Result<Outcome, Failure> {
    let counter = Cell::new(0_u8);
    let random = || {
        counter.set(counter.get() + 1);
        [counter.get(); 16]
    };
    run(
        &Spec::parse(text, directory)?,
        &Surroundings {
            now: &|| now,
            random: &random,
            progress: &|_| {},
        },
    )
}

/// Every file with its bytes.
fn contents(directory: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| {
            (
                entry.file_name().into_string().unwrap(),
                fs::read(entry.path()).unwrap(),
            )
        })
        .collect();
    files.sort();
    files
}

fn openssl_verifies(directory: &Path) -> bool {
    let at = (begin().seconds() + 3600).to_string();
    let command = Command::new("openssl")
        .args([
            "verify",
            "-x509_strict",
            "-check_ss_sig",
            "-attime",
            &at,
            "-CAfile",
            ROOT_FILE,
            CHAIN_FILE,
        ])
        .current_dir(directory)
        .output()
        .expect("openssl is installed by ./run-tests");
    command.status.success()
}

/// The steps of a ceremony that nothing disturbed.
const WHOLE: [&str; 10] = [
    "begin",
    "token",
    "key_generated",
    "token",
    "key_generated",
    "to_be_signed",
    "certificate",
    "to_be_signed",
    "certificate",
    "end",
];

fn steps(transcript: &str) -> Vec<String> {
    let step = |line| {
        serde_json::from_str::<serde_json::Value>(line).unwrap()["step"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    transcript.lines().map(step).collect()
}

#[test]
fn a_ceremony_makes_a_chain_that_openssl_verifies_and_a_transcript_of_each_step() {
    let directory = tempfile::tempdir().unwrap();
    let outcome = hold(SPEC, directory.path(), begin()).unwrap();
    assert!(outcome.root.now && outcome.issuing.now);
    assert!(openssl_verifies(directory.path()));
    let text = fs::read_to_string(directory.path().join(TRANSCRIPT_FILE)).unwrap();
    assert_eq!(steps(&text), WHOLE);
    assert!(
        text.contains(&sha256_hex(SPEC.as_bytes())),
        "the spec's digest"
    );
    assert_eq!(
        transcript_digest(&outcome.transcript).unwrap(),
        sha256(text.as_bytes())
    );
}

#[test]
fn every_kind_of_key_can_sign_and_be_signed() {
    for kind in ["p256", "rsa-2048", "rsa-3072", "rsa-4096"] {
        let directory = tempfile::tempdir().unwrap();
        hold(&SPEC.replace("p384", kind), directory.path(), begin()).unwrap();
        assert!(openssl_verifies(directory.path()), "{kind}");
    }
}

#[test]
fn a_second_run_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let first = hold(SPEC, directory.path(), begin()).unwrap();
    let before = contents(directory.path());
    let second = hold(
        SPEC,
        directory.path(),
        begin().plus(Duration::from_secs(86_400)),
    )
    .unwrap();
    assert!(!second.root.now && !second.issuing.now);
    assert_eq!(
        (first.root.sha256, first.issuing.sha256),
        (second.root.sha256, second.issuing.sha256)
    );
    assert_eq!(contents(directory.path()), before);
}

#[test]
fn a_missing_issuing_certificate_of_an_unrecorded_key_is_not_made() {
    let directory = tempfile::tempdir().unwrap();
    hold(SPEC, directory.path(), begin()).unwrap();
    fs::remove_file(directory.path().join(CHAIN_FILE)).unwrap();
    fs::remove_file(directory.path().join(TRANSCRIPT_FILE)).unwrap();
    let sentence = hold(SPEC, directory.path(), begin())
        .unwrap_err()
        .to_string();
    assert!(sentence.contains("does not record"), "{sentence}");
    assert!(!directory.path().join(CHAIN_FILE).exists());
}

#[test]
fn a_key_in_a_file_is_never_adopted_because_it_could_have_been_copied() {
    let directory = tempfile::tempdir().unwrap();
    hold(SPEC, directory.path(), begin()).unwrap();
    fs::remove_file(directory.path().join(CHAIN_FILE)).unwrap();
    let sentence = hold(SPEC, directory.path(), begin())
        .unwrap_err()
        .to_string();
    assert!(sentence.contains("never extractable"), "{sentence}");
}

#[test]
fn a_removed_issuing_pair_is_made_again_under_the_same_root() {
    let directory = tempfile::tempdir().unwrap();
    let first = hold(SPEC, directory.path(), begin()).unwrap();
    fs::remove_file(directory.path().join(CHAIN_FILE)).unwrap();
    fs::remove_file(directory.path().join("issuing.key")).unwrap();
    let second = hold(SPEC, directory.path(), begin()).unwrap();
    assert!(!second.root.now && second.issuing.now && second.root.sha256 == first.root.sha256);
    assert!(openssl_verifies(directory.path()));
}

#[test]
fn what_differs_from_the_spec_is_named_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    hold(SPEC, directory.path(), begin()).unwrap();
    let before = contents(directory.path());
    for (from, to, named) in [
        ("CN=Test Issuing", "CN=Another", "subject"),
        ("\"365d\"", "\"366d\"", "lifetime"),
        ("path_length = 1", "path_length = 2", "path length"),
        ("\"p256\"", "\"p384\"", "kind"),
        ("file:issuing.key", "file:other.key", "issuing-chain.pem"),
    ] {
        let sentence = hold(&SPEC.replace(from, to), directory.path(), begin())
            .unwrap_err()
            .to_string();
        assert!(sentence.contains(named), "{sentence}");
        assert_eq!(contents(directory.path()), before);
    }
}

#[test]
fn a_foreign_root_certificate_is_noticed() {
    let (directory, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    hold(SPEC, directory.path(), begin()).unwrap();
    hold(SPEC, other.path(), begin()).unwrap();
    fs::copy(
        other.path().join(ROOT_FILE),
        directory.path().join(ROOT_FILE),
    )
    .unwrap();
    let sentence = hold(SPEC, directory.path(), begin())
        .unwrap_err()
        .to_string();
    assert!(sentence.contains("public key"), "{sentence}");
    fs::remove_file(directory.path().join(ROOT_FILE)).unwrap();
    let sentence = hold(SPEC, directory.path(), begin())
        .unwrap_err()
        .to_string();
    assert!(
        sentence.contains("put the root certificate back"),
        "{sentence}"
    );
}

#[test]
fn an_issuing_certificate_never_outlives_its_root() {
    let directory = tempfile::tempdir().unwrap();
    let outcome = hold(
        &SPEC.replace("\"365d\"", "\"7300d\""),
        directory.path(),
        begin(),
    )
    .unwrap();
    assert_eq!(outcome.issuing.not_after, outcome.root.not_after);
    hold(
        &SPEC.replace("\"365d\"", "\"7300d\""),
        directory.path(),
        begin(),
    )
    .unwrap();
}

#[test]
fn a_crash_between_intent_and_signature_leaves_the_intent() {
    let directory = tempfile::tempdir().unwrap();
    // A directory in the certificate's place: signing succeeds, writing cannot.
    fs::create_dir_all(directory.path().join("out")).unwrap();
    let text = SPEC.replace("output = \".\"", "output = \"out\"");
    let beside = directory
        .path()
        .join("out")
        .join(format!(".{ROOT_FILE}.new"));
    fs::create_dir(&beside).unwrap();
    hold(&text, directory.path(), begin()).unwrap_err();
    let transcript =
        fs::read_to_string(directory.path().join("out").join(TRANSCRIPT_FILE)).unwrap();
    assert!(
        transcript.lines().last().unwrap().contains("to_be_signed"),
        "{transcript}"
    );
}

#[test]
fn what_a_kill_kept_out_of_the_transcript_is_recorded_by_the_next_run() {
    let directory = tempfile::tempdir().unwrap();
    let outcome = hold(SPEC, directory.path(), begin()).unwrap();
    let whole = fs::read_to_string(&outcome.transcript).unwrap();
    let lines: Vec<&str> = whole.lines().collect();
    // Killed before the last line or two: all files stand.
    for (kept, missing) in [
        (9, &["begin", "end"][..]),
        (8, &["begin", "certificate", "end"]),
    ] {
        fs::write(
            &outcome.transcript,
            lines[..kept]
                .iter()
                .map(|line| format!("{line}\n"))
                .collect::<String>(),
        )
        .unwrap();
        let again = hold(SPEC, directory.path(), begin()).unwrap();
        assert!(!again.root.now && !again.issuing.now);
        let text = fs::read_to_string(&outcome.transcript).unwrap();
        assert_eq!(steps(&text), [&WHOLE[..kept], missing].concat());
        assert!(
            text.contains(&format!(
                "\"file\":\"{CHAIN_FILE}\",\"sha256\":\"{}\"",
                outcome.issuing.sha256
            )),
            "{text}"
        );
        hold(SPEC, directory.path(), begin()).unwrap();
        assert_eq!(
            fs::read_to_string(&outcome.transcript).unwrap(),
            text,
            "once is enough"
        );
    }
    // Killed before the root's line: the issuing certificate is not there yet.
    let directory = tempfile::tempdir().unwrap();
    hold(SPEC, directory.path(), begin()).unwrap();
    let transcript = directory.path().join(TRANSCRIPT_FILE);
    let intents: String = fs::read_to_string(&transcript)
        .unwrap()
        .lines()
        .take(6)
        .map(|line| format!("{line}\n"))
        .collect();
    fs::write(&transcript, intents).unwrap();
    for name in [CHAIN_FILE, "issuing.key"] {
        fs::remove_file(directory.path().join(name)).unwrap();
    }
    hold(SPEC, directory.path(), begin()).unwrap();
    let text = fs::read_to_string(&transcript).unwrap();
    let added = [
        "begin",
        "token",
        "key_generated",
        "certificate",
        "to_be_signed",
        "certificate",
        "end",
    ];
    assert_eq!(steps(&text), [&WHOLE[..6], &added].concat());
}

#[test]
fn a_certificate_that_no_intent_speaks_of_is_not_recorded_as_made_here() {
    let directory = tempfile::tempdir().unwrap();
    let outcome = hold(SPEC, directory.path(), begin()).unwrap();
    fs::remove_file(&outcome.transcript).unwrap();
    hold(SPEC, directory.path(), begin()).unwrap();
    assert!(!outcome.transcript.exists());
}
