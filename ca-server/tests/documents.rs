//! What the documents say of the sources is true: each test that a table of a document names
//! exists, and each function and type that docs/guide/follow-one-csr.md names behind a link; each
//! message that docs/signers.md explains is said, and the other way round. What sources and
//! documents cite exists too: the cases and sections of docs/istio-contract.md, the invariants of
//! docs/invariants.md, and the file and heading to which a link leads.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

const CONTRACT: &str = "docs/istio-contract.md";
const INVARIANTS: &str = "docs/invariants.md";

/// Every file of the repository with one of these extensions, except what is hidden, built, or the
/// state of a CA to try out.
fn files(extensions: &[&str]) -> Vec<PathBuf> {
    let (mut found, mut open) = (Vec::new(), vec![PathBuf::from(ROOT)]);
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(directory).expect("readable") {
            let path = entry.expect("readable").path();
            let name = path
                .file_name()
                .expect("named")
                .to_string_lossy()
                .into_owned();
            let extension = path
                .extension()
                .and_then(|extension| extension.to_str())
                .unwrap_or_default();
            if path.is_dir()
                && !name.starts_with('.')
                && !["target", "var", "state"].contains(&name.as_str())
            {
                open.push(path);
            } else if path.is_file() && extensions.contains(&extension) {
                found.push(path);
            }
        }
    }
    found
}

/// The name of every test function in every crate of the workspace.
fn tests() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for path in files(&["rs"]) {
        let text = std::fs::read_to_string(&path).expect("text");
        // Stories that run on more than one ledger are plain functions there; elsewhere the
        // attribute says what a test is.
        let mut is_test =
            path.components().any(|part| part.as_os_str() == "tests") || path.ends_with("tests.rs");
        let everywhere = is_test;
        for line in text
            .lines()
            .map(str::trim_start)
            .filter(|line| !line.starts_with("//"))
        {
            if let Some(rest) = line.split("fn ").nth(1) {
                let name = rest.split(['(', '<']).next().unwrap_or_default();
                found.extend(is_test.then(|| name.to_owned()));
                is_test = everywhere;
            }
            is_test |= line.starts_with("#[") && (line.contains("test]") || line.contains("test("));
        }
    }
    found
}

/// Every name in backquotes in the last column of the tables whose last heading is `Test` or begins
/// so.
fn named(document: &str) -> Vec<String> {
    let text = std::fs::read_to_string(Path::new(ROOT).join(document)).expect("text");
    let (mut names, mut in_table) = (Vec::new(), false);
    for line in text.lines() {
        let Some(cells) = line
            .strip_prefix('|')
            .and_then(|line| line.strip_suffix('|'))
        else {
            in_table = false;
            continue;
        };
        let last = cells.rsplit(" | ").next().unwrap_or_default().trim();
        if in_table {
            let quoted = last.split('`').skip(1).step_by(2);
            names.extend(
                quoted
                    .filter(|name| name.contains('_') && !name.contains(['.', '/', ':']))
                    .map(str::to_owned),
            );
        } else if last == "Test" || last.starts_with("Test,") {
            in_table = true;
        }
    }
    names
}

#[test]
fn every_test_that_a_document_names_exists() {
    let tests = tests();
    let documents = [
        ("docs/threats.md", 200),
        ("ARCHITECTURE.md", 8),
        ("docs/signers.md", 20),
        (CONTRACT, 60),
        (INVARIANTS, 80),
    ];
    for (document, at_least) in documents {
        let named = named(document);
        let missing: Vec<&String> = named.iter().filter(|name| !tests.contains(*name)).collect();
        assert!(
            missing.is_empty(),
            "{document} names tests that are not there: {missing:#?}"
        );
        assert!(
            named.len() >= at_least,
            "{document}: {} names were found",
            named.len()
        );
    }
}

/// Every source and document of the workspace: its path, and its words in lower case and one blank
/// apart, without the marks of comments, so that the end of a line may divide a citation.
fn texts() -> Vec<(String, String)> {
    let read = |path: PathBuf| {
        let text = std::fs::read_to_string(&path)
            .expect("text")
            .to_ascii_lowercase();
        let words: Vec<&str> = text
            .split_whitespace()
            .filter(|word| !matches!(*word, "//" | "///" | "//!"))
            .collect();
        (path.display().to_string(), words.join(" "))
    };
    files(&["rs", "md"]).into_iter().map(read).collect()
}

/// What may stand between two numbers of a citation, in prose or in a test's name, and whether it
/// means those between them as well.
const BETWEEN: [(&str, bool); 8] = [
    (", and ", false),
    (", ", false),
    (" and ", false),
    ("_and_", false),
    (" to ", true),
    ("_to_", true),
    ("–", true),
    ("_", false),
];

/// The numbers that a text begins with.
fn numbers(text: &str) -> Vec<u16> {
    let mut found: Vec<u16> = Vec::new();
    let (mut rest, mut is_range) = (text, false);
    loop {
        let end = rest
            .find(|sign: char| !sign.is_ascii_digit())
            .unwrap_or(rest.len());
        let Ok(number) = rest[..end].parse::<u16>() else {
            return found;
        };
        let first = match found.last() {
            Some(last) if is_range => last + 1,
            _ => number,
        };
        found.extend(first..=number);
        rest = &rest[end..];
        let Some(&(between, range)) = BETWEEN
            .iter()
            .find(|(between, _)| rest.starts_with(*between))
        else {
            return found;
        };
        rest = &rest[between.len()..];
        is_range = range;
    }
}

/// Every number behind a word or its plural, in prose or in a test's name, and the file where it
/// is.
fn cited(word: &str) -> Vec<(String, u16)> {
    let mut found = Vec::new();
    for (path, text) in texts() {
        for (at, _) in text.match_indices(word) {
            let rest = &text[at + word.len()..];
            let rest = rest.strip_prefix('s').unwrap_or(rest);
            let is_word = !text[..at]
                .ends_with(|sign: char| sign.is_alphanumeric() || sign == '_' || sign == '-');
            if let Some(rest) = rest.strip_prefix([' ', '_']).filter(|_| is_word) {
                found.extend(
                    numbers(rest)
                        .into_iter()
                        .map(|number| (path.clone(), number)),
                );
            }
        }
    }
    found
}

/// The numbers in the first column of a document's tables, in their order.
fn rows(document: &str) -> Vec<u16> {
    let text = std::fs::read_to_string(Path::new(ROOT).join(document)).expect("text");
    text.lines()
        .filter_map(|line| line.strip_prefix("| ")?.split(" |").next()?.parse().ok())
        .collect()
}

#[test]
fn every_case_and_invariant_that_is_cited_has_its_row() {
    assert_eq!(numbers("68–70 and 74, and what else"), [68_u16, 69, 70, 74]);
    assert_eq!(numbers("2, 4 to 7, and 9 in 1 row"), [2_u16, 4, 5, 6, 7, 9]);
    assert_eq!(numbers("1_and_6_a_call"), [1_u16, 6]);
    assert_eq!(numbers("40_to_44_a_wish"), [40_u16, 41, 42, 43, 44]);
    for (word, document, last, at_least) in [
        ("case", CONTRACT, 80_u16, 250),
        ("invariant", INVARIANTS, 12, 20),
    ] {
        let rows = rows(document);
        assert!(
            rows.iter().copied().eq(1..=last),
            "the rows of {document} are {rows:?}"
        );
        let cited = cited(word);
        let missing: Vec<_> = cited
            .iter()
            .filter(|(_, number)| !rows.contains(number))
            .collect();
        assert!(missing.is_empty(), "{document} has no row for {missing:#?}");
        assert!(
            cited.len() >= at_least,
            "{word}: {} citations were found",
            cited.len()
        );
    }
}

/// What has sections. The one that is named last before a section sign is meant, if it is near.
const SECTIONED: [&str; 9] = [
    "contract",
    "rfc ",
    "pkcs#11 v",
    "x.509-svid",
    "spiffe-id",
    "x.680",
    "x.690",
    "sec 1",
    "file format",
];

/// How many octets before a section sign that may begin.
const NEAR: usize = 60;

/// Every section that is cited: the file where it is, its number, and what it is a section of if
/// that is named.
fn sections() -> Vec<(String, String, Option<&'static str>)> {
    let mut found = Vec::new();
    for (path, text) in texts() {
        for (at, sign) in text.match_indices('§') {
            let behind = text[at + sign.len()..].chars();
            let number: String = behind
                .take_while(|sign| sign.is_ascii_alphanumeric() || *sign == '.')
                .collect();
            let number = number.trim_end_matches('.');
            let named = SECTIONED
                .iter()
                .filter_map(|&of| Some((text[..at].rfind(of)?, of)))
                .max();
            let of = named
                .filter(|(begin, _)| at - begin <= NEAR)
                .map(|(_, of)| of);
            // The sign without a number is a character in the code above.
            found.extend((!number.is_empty()).then(|| (path.clone(), number.to_owned(), of)));
        }
    }
    found
}

#[test]
fn every_section_that_is_cited_says_of_what_and_the_contract_has_its_own() {
    let text = std::fs::read_to_string(Path::new(ROOT).join(CONTRACT)).expect("text");
    let headings: BTreeSet<&str> = text
        .lines()
        .filter_map(|line| Some(line.strip_prefix("## ")?.split_once(". ")?.0))
        .collect();
    let cited = sections();
    let unclear: Vec<_> = cited.iter().filter(|(_, _, of)| of.is_none()).collect();
    assert!(unclear.is_empty(), "sections of what? {unclear:#?}");
    let ours: Vec<_> = cited
        .iter()
        .filter(|(_, _, of)| *of == Some("contract"))
        .collect();
    let missing: Vec<_> = ours
        .iter()
        .filter(|(_, number, _)| !headings.contains(number.as_str()))
        .collect();
    assert!(
        missing.is_empty(),
        "{CONTRACT} has no section for {missing:#?}"
    );
    assert!(
        ours.len() >= 12 && cited.len() >= 150,
        "{} sections were found, {} of the contract",
        cited.len(),
        ours.len()
    );
}

/// Every sentence, of at least three words, in the string literals of the sources under
/// `directory`, `…` for each value in it.
fn sentences(directory: &str, but: &[&str]) -> BTreeSet<String> {
    let directory = Path::new(ROOT).join(directory);
    let mut found = BTreeSet::new();
    for path in files(&["rs"]) {
        let passed_by = path.ends_with("tests.rs") || but.iter().any(|name| path.ends_with(name));
        if passed_by || !path.starts_with(&directory) {
            continue;
        }
        let text = std::fs::read_to_string(&path).expect("text");
        let code = &text[..text.find("#[cfg(test)]\nmod tests {").unwrap_or(text.len())];
        let lines: Vec<&str> = code
            .lines()
            .map(|line| line.split("//").next().unwrap_or_default())
            .collect();
        found.extend(
            literals(&lines.join("\n"))
                .map(|literal| plain(&literal))
                .filter(|said| said.split_whitespace().count() >= 3),
        );
    }
    found
}

/// The string literals of code, but those of bytes and those that no operator reads: what is
/// expected never to fail, and reasons of lints.
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
            let unread = before.ends_with("expect(")
                || before.ends_with("reason =")
                || rest[..begin].ends_with(['b', '\'']);
            rest = &rest[end?..];
            if !unread {
                return Some(literal);
            }
        }
    })
}

/// A message as a table and as the code have it: `…` for each value, and nothing of that or of
/// punctuation around it.
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
    // Not of a device: what is wrong with a URI says so itself, and the suite of conformance is for
    // tests.
    let said = sentences("signers/src", &["uri.rs", "conformance.rs"]);
    let explained = explained("docs/signers.md");
    let missing: Vec<&String> = said.difference(&explained).collect();
    assert!(
        missing.is_empty(),
        "docs/signers.md explains no {missing:#?}"
    );
    let said = said
        .into_iter()
        .chain(sentences("ca-server/src/cli", &[]))
        .collect();
    let gone: Vec<&String> = explained
        .difference(&said)
        .filter(|message| message.split_whitespace().count() >= 3)
        .collect();
    assert!(
        gone.is_empty(),
        "docs/signers.md explains what nobody says: {gone:#?}"
    );
    assert!(
        explained.len() > 100,
        "{} messages were found",
        explained.len()
    );
}

/// The lines of a document outside its blocks of code.
fn prose(document: &str) -> Vec<&str> {
    let mut in_code = false;
    let outside = document.lines().filter(|line| {
        let fence = line.trim_start().starts_with("```");
        in_code ^= fence;
        !fence && !in_code
    });
    outside.collect()
}

/// The anchors of a document's headings, as GitHub makes them: letters in lower case, a hyphen for
/// each space, no punctuation, and a number where a heading is repeated.
fn anchors(document: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for line in prose(document) {
        let Some(heading) = line
            .strip_prefix('#')
            .and_then(|line| line.trim_start_matches('#').strip_prefix(' '))
        else {
            continue;
        };
        let kept = heading
            .trim()
            .chars()
            .filter(|sign| sign.is_alphanumeric() || [' ', '-', '_'].contains(sign));
        let anchor: String = kept
            .flat_map(char::to_lowercase)
            .map(|sign| if sign == ' ' { '-' } else { sign })
            .collect();
        let mut unique = anchor.clone();
        for count in 1.. {
            if found.insert(unique) {
                break;
            }
            unique = format!("{anchor}-{count}");
        }
    }
    found
}

/// The targets of a document's inline links.
fn links(document: &str) -> Vec<String> {
    let prose = prose(document).join("\n");
    let outside_code: String = prose.split('`').step_by(2).collect();
    let targets = outside_code
        .split("](")
        .skip(1)
        .filter_map(|rest| rest.split([')', ' ', '\n']).next());
    targets.map(str::to_owned).collect()
}

#[test]
fn every_link_of_a_document_leads_to_a_file_and_a_heading() {
    let (mut looked_at, mut dead) = (0, Vec::<String>::new());
    for path in files(&["md"]) {
        let text = std::fs::read_to_string(&path).expect("text");
        for link in links(&text)
            .into_iter()
            .filter(|link| !link.contains("://") && !link.starts_with("mailto:"))
        {
            let (file, anchor) = link
                .split_once('#')
                .map_or((link.as_str(), None), |(file, anchor)| (file, Some(anchor)));
            let target = if file.is_empty() {
                path.clone()
            } else {
                path.parent().expect("a directory").join(file)
            };
            let leads = target.exists()
                && anchor.is_none_or(|anchor| {
                    std::fs::read_to_string(&target)
                        .is_ok_and(|text| anchors(&text).contains(anchor))
                });
            if !leads {
                dead.push(format!("{}: {link}", path.display()));
            }
            looked_at += 1;
        }
    }
    assert!(dead.is_empty(), "links that lead nowhere: {dead:#?}");
    assert!(looked_at > 50, "{looked_at} links were found");
}

#[test]
fn every_document_that_a_file_names_exists() {
    let (mut looked_at, mut missing) = (0, Vec::<String>::new());
    for path in files(&["md", "rs", "sql", "toml", "yaml"]) {
        let bytes = std::fs::read(&path).expect("readable");
        let text = String::from_utf8_lossy(&bytes);
        for rest in text.split("docs/").skip(1) {
            let name = rest
                .split(|sign: char| {
                    !sign.is_ascii_alphanumeric() && !['-', '_', '.', '/'].contains(&sign)
                })
                .next()
                .unwrap_or_default();
            let name = name.trim_end_matches('.');
            if name.ends_with(".md") {
                looked_at += 1;
                missing.extend(
                    (!Path::new(ROOT).join("docs").join(name).is_file())
                        .then(|| format!("{}: docs/{name}", path.display())),
                );
            }
        }
    }
    assert!(
        missing.is_empty(),
        "documents that are not there: {missing:#?}"
    );
    assert!(looked_at > 50, "{looked_at} names were found");
}

/// Whether a source declares a function or a type of this name.
fn declares(source: &str, name: &str) -> bool {
    source
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .any(|line| {
            let words: Vec<&str> = line
                .split(|sign: char| !sign.is_alphanumeric() && sign != '_')
                .collect();
            words.windows(2).any(|pair| {
                ["fn", "struct", "enum", "trait", "type"].contains(&pair[0]) && pair[1] == name
            })
        })
}

#[test]
fn what_the_path_of_a_csr_names_behind_a_link_to_a_source_is_declared_there() {
    let page = Path::new(ROOT).join("docs/guide/follow-one-csr.md");
    let text = std::fs::read_to_string(&page).expect("text");
    let (mut looked_at, mut gone) = (0, Vec::<String>::new());
    for link in text.split("](").skip(1) {
        let Some((path, mut rest)) = link
            .split_once(')')
            .filter(|(path, _)| path.ends_with(".rs"))
        else {
            continue;
        };
        let source = page.parent().expect("a directory").join(path);
        let source = std::fs::read_to_string(source).expect("a source");
        // One name or several: `a`, `b`.
        while let Some((name, behind)) = rest
            .trim_start_matches([' ', '\n', ','])
            .strip_prefix('`')
            .and_then(|rest| rest.split_once('`'))
        {
            looked_at += 1;
            gone.extend((!declares(&source, name)).then(|| format!("{path}: {name}")));
            rest = behind;
        }
    }
    assert!(
        gone.is_empty(),
        "names that are not declared there: {gone:#?}"
    );
    assert!(looked_at >= 12, "{looked_at} names were found");
}
