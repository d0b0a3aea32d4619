//! The corpora of `fuzz/`, run through the same functions that fuzzing drives. A file's name says what must become of it: `good-` is accepted,
//! `bad-` is refused, `found-` was found by fuzzing and must only leave the checks inside those functions content.

use std::path::Path;

#[path = "../../fuzz/parsers.rs"]
mod parsers;

fn run(target: &str, accepted: fn(&[u8]) -> bool, also: Option<&str>) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut files: Vec<_> = std::fs::read_dir(root.join("fuzz/corpus").join(target)).expect("committed").collect();
    assert!(files.len() >= 24, "{target}: the corpus is there");
    if let Some(also) = also {
        files.extend(std::fs::read_dir(root.join("ca-server/tests/corpus").join(also)).expect("committed"));
    }
    let (mut good, mut bad) = (0, 0);
    for file in files {
        let path = file.expect("readable").path();
        let name = path.file_name().expect("named").to_string_lossy().into_owned();
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
    run("token", |data| parsers::token(data.trim_ascii_end()), Some("token"));
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
