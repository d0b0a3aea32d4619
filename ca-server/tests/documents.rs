//! What the documents say of the sources is true: each test that a table of SECURITY.md, ARCHITECTURE.md or docs/signers.md names stands there,
//! and each message that docs/signers.md explains is said, and the other way round.

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
    for (document, at_least) in [("SECURITY.md", 80), ("ARCHITECTURE.md", 8), ("docs/signers.md", 20)] {
        let named = named(document);
        let missing: Vec<&String> = named.iter().filter(|name| !tests.contains(*name)).collect();
        assert!(missing.is_empty(), "{document} names tests that are not there: {missing:#?}");
        assert!(named.len() >= at_least, "{document}: {} names were found", named.len());
    }
}

/// Every sentence, of at least three words, in the string literals of the sources under `directory`, `…` for each value in it.
fn sentences(directory: &str, but: &[&str]) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut open = vec![Path::new(ROOT).join(directory)];
    while let Some(path) = open.pop() {
        let name = path.file_name().expect("named").to_string_lossy().into_owned();
        if path.is_dir() {
            open.extend(std::fs::read_dir(path).expect("readable").map(|entry| entry.expect("readable").path()));
        } else if name.ends_with(".rs") && name != "tests.rs" && !but.contains(&name.as_str()) {
            let text = std::fs::read_to_string(&path).expect("text");
            let code = &text[..text.find("#[cfg(test)]\nmod tests {").unwrap_or(text.len())];
            let lines: Vec<&str> = code.lines().map(|line| line.split("//").next().unwrap_or_default()).collect();
            found.extend(literals(&lines.join("\n")).map(|literal| plain(&literal)).filter(|said| said.split_whitespace().count() >= 3));
        }
    }
    found
}

/// The string literals of code, but those of bytes and those that no operator reads: what is expected never to fail, and reasons of lints.
fn literals(code: &str) -> impl Iterator<Item = String> + '_ {
    let mut rest = code;
    std::iter::from_fn(move || {
        loop {
            let begin = rest.find('"')?;
            let before = rest[..begin].trim_end();
            let (mut literal, mut escaped, mut end) = (String::new(), false, None);
            for (at, sign) in rest[begin + 1..].char_indices() {
                match sign {
                    '"' if !escaped => {
                        end = Some(begin + 1 + at + 1);
                        break;
                    }
                    '\\' if !escaped => escaped = true,
                    _ => {
                        escaped = false;
                        literal.push(sign);
                    }
                }
            }
            let unread = before.ends_with("expect(") || before.ends_with("reason =") || rest[..begin].ends_with(['b', '\'']);
            rest = &rest[end?..];
            if !unread {
                return Some(literal);
            }
        }
    })
}

/// A message as a table and as the code have it: `…` for each value, and nothing of that or of punctuation around it.
fn plain(message: &str) -> String {
    let (mut text, mut depth) = (String::new(), 0);
    for sign in message.chars() {
        match sign {
            '{' => {
                depth += 1;
                text.push('…');
            }
            '}' => depth -= 1,
            _ if depth == 0 => text.push(sign),
            _ => {}
        }
    }
    text.trim_matches(['…', ':', ';', ',', ' ']).to_owned()
}

/// Every message in backquotes in the first column of the tables whose first heading is `Message`.
fn explained(document: &str) -> BTreeSet<String> {
    let text = std::fs::read_to_string(Path::new(ROOT).join(document)).expect("text");
    let (mut messages, mut in_table) = (BTreeSet::new(), false);
    for line in text.lines() {
        let Some(cells) = line.strip_prefix('|') else {
            in_table = false;
            continue;
        };
        let first = cells.split(" | ").next().unwrap_or_default().trim();
        if in_table {
            messages.extend(first.split('`').skip(1).step_by(2).map(plain));
        } else {
            in_table = first == "Message";
        }
    }
    messages
}

#[test]
fn every_message_of_a_signer_is_explained_and_every_one_that_is_explained_is_said() {
    // Not of a device: what is wrong with a URI says so itself, and the suite of conformance is for tests.
    let said = sentences("signers/src", &["uri.rs", "conformance.rs"]);
    let explained = explained("docs/signers.md");
    let missing: Vec<&String> = said.difference(&explained).collect();
    assert!(missing.is_empty(), "docs/signers.md explains no {missing:#?}");
    let said = said.into_iter().chain(sentences("ca-server/src/cli", &[])).collect();
    let gone: Vec<&String> = explained.difference(&said).filter(|message| message.split_whitespace().count() >= 3).collect();
    assert!(gone.is_empty(), "docs/signers.md explains what nobody says: {gone:#?}");
    assert!(explained.len() > 100, "{} messages were found", explained.len());
}
