//! The borders between rooms (ARCHITECTURE.md, "Never"): walks the paths that the sources name and fails on a breach.
//! Comments and test modules do not count.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// One source file: its path from the crate's `src`, and its code.
struct Source {
    path: String,
    code: String,
}

impl Source {
    fn is_in(&self, places: &[&str]) -> bool {
        let path = self.path.trim_end_matches(".rs");
        places.iter().any(|place| path == *place || path.strip_prefix(place).is_some_and(|rest| rest.starts_with('/')))
    }

    /// Whether the code names this path or word, as a whole.
    fn names(&self, word: &str) -> bool {
        let part_of_word = |letter: char| letter.is_alphanumeric() || letter == '_';
        self.code.match_indices(word).any(|(at, _)| {
            let before = self.code[..at].chars().next_back();
            let after = self.code[at + word.len()..].chars().next();
            !before.is_some_and(part_of_word) && !after.is_some_and(part_of_word)
        })
    }
}

fn sources(crate_name: &str) -> Vec<Source> {
    let root = Path::new(ROOT).join(crate_name).join("src");
    let mut found = Vec::new();
    let mut open: Vec<PathBuf> = vec![root.clone()];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() && name != "tests" {
                open.push(path);
            } else if name.ends_with(".rs") && !["tests.rs", "fixture.rs", "fixtures.rs"].contains(&name.as_str()) {
                let text = fs::read_to_string(&path).unwrap();
                found.push(Source { path: path.strip_prefix(&root).unwrap().to_string_lossy().into_owned(), code: code(&text) });
            }
        }
    }
    assert!(!found.is_empty(), "{} has no sources", root.display());
    found
}

/// The text without comments and without the test module, which stands last in a file.
fn code(text: &str) -> String {
    let end = text.find("#[cfg(test)]\nmod tests {").unwrap_or(text.len());
    text[..end].lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

/// Fails with every file outside `places` that names one of the words.
fn only(crate_name: &str, places: &[&str], words: &[&str]) {
    let breaches: Vec<String> = sources(crate_name)
        .iter()
        .filter(|source| !source.is_in(places))
        .flat_map(|source| words.iter().filter(|word| source.names(word)).map(|word| format!("{} names {word}", source.path)))
        .collect();
    assert!(breaches.is_empty(), "{breaches:#?}");
}

/// Fails with every file inside `places` that names one of the words.
fn never(crate_name: &str, places: &[&str], words: &[&str]) {
    let breaches: Vec<String> = sources(crate_name)
        .iter()
        .filter(|source| source.is_in(places))
        .flat_map(|source| words.iter().filter(|word| source.names(word)).map(|word| format!("{} names {word}", source.path)))
        .collect();
    assert!(breaches.is_empty(), "{breaches:#?}");
}

#[test]
#[should_panic(expected = "names sqlx")]
fn a_breach_is_noticed() {
    only("ca-server", &[], &["sqlx"]);
}

#[test]
fn only_store_names_sqlx() {
    only("ca-server", &["store"], &["sqlx"]);
}

#[test]
fn only_the_front_and_the_client_speak_istios_wire_types() {
    only("ca-server", &["front/grpc", "client"], &["istio_api"]);
}

#[test]
fn only_metrics_names_metrics() {
    only("ca-server", &["metrics"], &["prometheus"]);
}

#[test]
fn only_the_clock_reads_the_time() {
    for crate_name in ["ca-server", "signers"] {
        only(crate_name, &["clock"], &["SystemTime::now", "OffsetDateTime::now_utc", "UnixTime::now"]);
    }
}

#[test]
fn policy_and_x509_are_pure() {
    let world = ["tokio", "async", "await", "std::fs", "std::env", "std::thread", "std::process", "TcpStream", "TcpListener", "UdpSocket"];
    never("ca-server", &["policy", "x509"], &world);
    never(
        "ca-server",
        &["policy", "x509"],
        &["crate::clock", "crate::metrics", "crate::store", "crate::config", "getrandom", "tracing", "SystemTime"],
    );
}

#[test]
fn signers_know_nothing_of_certificates_databases_and_networks() {
    only("signers", &[], &["sqlx", "tonic", "axum", "x509_cert", "istio_api", "ca_server", "rustls", "hyper"]);
}

#[test]
fn only_the_pool_of_signers_starts_threads() {
    only("signers", &["pool", "process", "conformance"], &["thread::spawn", "thread::Builder", "Command::new"]);
}

#[test]
fn nobody_below_names_the_command_line_or_the_composition_root() {
    only("ca-server", &["app", "cli", "main"], &["crate::app", "crate::cli", "ca_server::app"]);
}

#[test]
fn no_import_runs_back_up() {
    never("ca-server", &["authn", "policy", "x509", "issuer", "store"], &["crate::front", "crate::issue"]);
    never("ca-server", &["policy", "x509", "store"], &["crate::issuer", "crate::authn"]);
    never("ca-server", &["refusal", "timestamp", "spiffe", "digest"], &["crate::front", "crate::issue", "crate::store", "crate::policy"]);
}

#[test]
fn the_command_line_alone_holds_a_ceremony() {
    only("ca-server", &["ceremony", "cli", "lib"], &["crate::ceremony", "open_vault", "init_token"]);
}

#[test]
fn files_do_not_import_in_circles() {
    let sources = sources("ca-server");
    let modules: BTreeSet<String> = sources.iter().map(module).collect();
    let mut imports: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    // `cli` and `app` are one storey: `app` speaks the command line's `Exit`, and `cli` starts `app`.
    for source in sources.iter().filter(|source| !source.is_in(&["lib", "main", "app", "cli"])) {
        let from = module(source);
        let to = named_modules(&source.code, &modules);
        imports.entry(from.clone()).or_default().extend(to.into_iter().filter(|to| *to != from));
    }
    for start in imports.keys() {
        let mut seen = BTreeSet::new();
        let mut open: Vec<&String> = imports[start].iter().collect();
        while let Some(file) = open.pop() {
            assert_ne!(file, start, "{start} imports itself by way of {seen:?}");
            if seen.insert(file) {
                open.extend(imports.get(file).into_iter().flatten());
            }
        }
    }
}

/// `store::ledger` for `store/ledger/mod.rs`.
fn module(source: &Source) -> String {
    source.path.trim_end_matches(".rs").trim_end_matches("/mod").replace('/', "::")
}

/// The modules that paths beginning with `crate::` lead into: of each path the longest part that is a module.
fn named_modules(code: &str, modules: &BTreeSet<String>) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for path in code.split("crate::").skip(1) {
        let (stem, rest) = path.split_once('{').filter(|(stem, _)| stem.chars().all(is_in_path)).unwrap_or((path, ""));
        let stem: String = stem.chars().take_while(|letter| is_in_path(*letter)).collect();
        let members = rest.split('}').next().unwrap_or_default().split(',').map(str::trim);
        for member in members {
            let full = format!("{stem}{member}");
            let segments: Vec<&str> = full.split("::").collect();
            let longest = (1..=segments.len()).rev().map(|count| segments[..count].join("::")).find(|path| modules.contains(path));
            found.extend(longest);
        }
    }
    found
}

fn is_in_path(letter: char) -> bool {
    letter.is_alphanumeric() || letter == '_' || letter == ':'
}
