//! The corpora of `fuzz/`, run through the same functions that fuzzing drives. A file's name says
//! what must become of it: `good-` is accepted, `bad-` is refused, `found-` was found by fuzzing
//! and must only leave the checks inside those functions content.

use std::path::Path;

#[path = "../../fuzz/parsers.rs"]
mod parsers;

fn run(target: &str, accepted: fn(&[u8]) -> bool, also: Option<&str>) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut files: Vec<_> = std::fs::read_dir(root.join("fuzz/corpus").join(target))
        .expect("committed")
        .collect();
    assert!(files.len() >= 24, "{target}: the corpus is there");
    if let Some(also) = also {
        files.extend(
            std::fs::read_dir(root.join("ca-server/tests/corpus").join(also)).expect("committed"),
        );
    }
    let (mut good, mut bad) = (0, 0);
    for file in files {
        let path = file.expect("readable").path();
        let name = path
            .file_name()
            .expect("named")
            .to_string_lossy()
            .into_owned();
        let accepted = accepted(&std::fs::read(&path).expect("readable"));
        match name.split('-').next() {
            Some("good") => good += usize::from(accepted),
            Some("bad") => bad += usize::from(!accepted),
            Some("found") => continue,
            _ => {
                assert_eq!(
                    path.extension().and_then(|extension| extension.to_str()),
                    Some("json"),
                    "{name} does not say what must become of it"
                );
                continue;
            }
        }
        assert_eq!(accepted, name.starts_with("good"), "{}", path.display());
    }
    assert!(good > 0 && bad > 0, "{target}: {good} good, {bad} bad");
}

#[test]
fn every_csr_that_fuzzing_starts_from_becomes_what_its_name_says() {
    run("csr", parsers::csr, Some("csr"));
}

#[test]
fn every_token_that_fuzzing_starts_from_becomes_what_its_name_says() {
    run(
        "token",
        |data| parsers::token(data.trim_ascii_end()),
        Some("token"),
    );
}

#[test]
fn every_key_uri_that_fuzzing_starts_from_becomes_what_its_name_says() {
    run("key_uri", parsers::key_uri, None);
}

#[test]
fn every_ceremony_spec_that_fuzzing_starts_from_becomes_what_its_name_says() {
    run("ceremony_spec", parsers::ceremony_spec, None);
}

#[test]
fn every_config_that_fuzzing_starts_from_becomes_what_its_name_says() {
    run("config", parsers::config, None);
}

#[test]
fn every_request_to_a_signer_that_fuzzing_starts_from_becomes_what_its_name_says() {
    run("signer_request", parsers::signer_request, None);
}

#[test]
fn every_reply_of_a_signer_that_fuzzing_starts_from_becomes_what_its_name_says() {
    run("signer_reply", parsers::signer_reply, None);
}

#[test]
fn everything_to_be_signed_that_fuzzing_starts_from_becomes_what_its_name_says() {
    run("guard", parsers::guard, None);
}

#[test]
fn all_rules_of_a_guard_that_fuzzing_starts_from_become_what_their_names_say() {
    run("guard_rules", parsers::guard_rules, None);
}

/// Of each target of the signer's.
const MUTATIONS: usize = 20_000;

/// Runs the target over mutations of its corpus, by turns of each file; how many were accepted.
fn mutate(target: &str, accepted: fn(&[u8]) -> bool) -> usize {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../fuzz/corpus")
        .join(target);
    let mut files: Vec<_> = std::fs::read_dir(directory)
        .expect("committed")
        .map(|file| file.expect("readable").path())
        .collect();
    files.sort();
    let bodies: Vec<Vec<u8>> = files
        .iter()
        .map(|path| std::fs::read(path).expect("readable"))
        .collect();
    let (mut random, mut count) = (fastrand::Rng::with_seed(20_261_122), 0);
    for number in 0..MUTATIONS {
        let mutated = mutated(&mut random, &bodies, number % bodies.len());
        // A panic must say what caused it.
        let outcome = std::panic::catch_unwind(|| accepted(&mutated));
        let by_name = || {
            format!(
                "{target}, mutation {number} of {}: {}",
                files[number % files.len()].display(),
                hex::encode(&mutated)
            )
        };
        count += usize::from(outcome.unwrap_or_else(|_| panic!("{}", by_name())));
    }
    count
}

/// One to four changes: a bit, an octet, one more, one less, a length's worth of high bits, the
/// end, a stretch of another body.
fn mutated(random: &mut fastrand::Rng, bodies: &[Vec<u8>], of: usize) -> Vec<u8> {
    let mut body = bodies[of].clone();
    for _ in 0..random.usize(1..=4) {
        let at = random.usize(..=body.len());
        let end = (at + random.usize(1..=4)).min(body.len());
        match random.u8(..8) {
            0 if at < body.len() => body[at] ^= 1 << random.u8(..8),
            1 if at < body.len() => body[at] = random.u8(..),
            2 => body.insert(at, random.u8(..)),
            3 => drop(body.drain(at..end)),
            4 => body[at..end].fill(0xff),
            5 => body[at..end].fill(0),
            6 => body.truncate(at),
            _ => {
                let other = &bodies[random.usize(..bodies.len())];
                let from = random.usize(..=other.len());
                let stretch = other[from..(from + random.usize(..64)).min(other.len())].to_vec();
                body.splice(at..end, stretch);
            }
        }
    }
    body
}

#[test]
fn no_request_near_a_good_one_is_read_as_something_else() {
    let read = mutate("signer_request", parsers::signer_request);
    assert!(
        read > MUTATIONS / 100,
        "only {read} were read: the mutations are too wild"
    );
}

#[test]
fn no_reply_near_a_good_one_is_read_as_something_else() {
    let read = mutate("signer_reply", parsers::signer_reply);
    assert!(
        read > MUTATIONS / 100,
        "only {read} were read: the mutations are too wild"
    );
}

#[test]
fn nothing_near_a_good_certificate_passes_the_guard_and_breaks_its_rules() {
    let passed = mutate("guard", parsers::guard);
    // A serial, a time and an account are free; all else is written anew and compared.
    assert!(
        passed > MUTATIONS / 2000,
        "only {passed} passed: the mutations are too wild"
    );
}

#[test]
fn no_rules_near_good_ones_are_read_as_others() {
    let read = mutate("guard_rules", parsers::guard_rules);
    // Nearly all of a text is the issuer in hexadecimal, of which no octet may change.
    assert!(
        read > MUTATIONS / 1000,
        "only {read} were read: the mutations are too wild"
    );
}
