//! What the documents say of tests is true: each test that a table of SECURITY.md or ARCHITECTURE.md names stands in the sources.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// The name of every test function in every crate of the workspace.
fn tests() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut open = vec![PathBuf::from(ROOT)];
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(directory).expect("readable") {
            let path = entry.expect("readable").path();
            let name = path.file_name().expect("named").to_string_lossy().into_owned();
            if path.is_dir() && !name.starts_with('.') && name != "target" {
                open.push(path);
            } else if name.ends_with(".rs") {
                let text = std::fs::read_to_string(&path).expect("text");
                // Stories that run on more than one ledger are plain functions there; elsewhere the attribute says what a test is.
                let mut is_test = path.components().any(|part| part.as_os_str() == "tests") || name == "tests.rs";
                let everywhere = is_test;
                for line in text.lines().map(str::trim_start).filter(|line| !line.starts_with("//")) {
                    if let Some(rest) = line.split("fn ").nth(1) {
                        let name = rest.split(['(', '<']).next().unwrap_or_default();
                        found.extend(is_test.then(|| name.to_owned()));
                        is_test = everywhere;
                    }
                    is_test |= line.starts_with("#[") && (line.contains("test]") || line.contains("test("));
                }
            }
        }
    }
    found
}

/// Every name in backquotes in the last column of the tables whose last heading is `Test` or begins so.
fn named(document: &str) -> Vec<String> {
    let text = std::fs::read_to_string(Path::new(ROOT).join(document)).expect("text");
    let (mut names, mut in_table) = (Vec::new(), false);
    for line in text.lines() {
        let Some(cells) = line.strip_prefix('|').and_then(|line| line.strip_suffix('|')) else {
            in_table = false;
            continue;
        };
        let last = cells.rsplit(" | ").next().unwrap_or_default().trim();
        if in_table {
            let quoted = last.split('`').skip(1).step_by(2);
            names.extend(quoted.filter(|name| name.contains('_') && !name.contains(['.', '/', ':'])).map(str::to_owned));
        } else if last == "Test" || last.starts_with("Test,") {
            in_table = true;
        }
    }
    names
}

#[test]
fn every_test_that_a_document_names_exists() {
    let tests = tests();
    for (document, at_least) in [("SECURITY.md", 80), ("ARCHITECTURE.md", 8)] {
        let named = named(document);
        let missing: Vec<&String> = named.iter().filter(|name| !tests.contains(*name)).collect();
        assert!(missing.is_empty(), "{document} names tests that are not there: {missing:#?}");
        assert!(named.len() >= at_least, "{document}: {} names were found", named.len());
    }
}
