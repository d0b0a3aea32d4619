//! The borders between rooms (ARCHITECTURE.md, "Never"): walks the paths that the sources name and
//! fails on a breach. Comments and test modules do not count.

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
        places.iter().any(|place| {
            path == *place
                || path
                    .strip_prefix(place)
                    .is_some_and(|rest| rest.starts_with('/'))
        })
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
            } else if name.ends_with(".rs")
                && !["tests.rs", "fixture.rs", "fixtures.rs"].contains(&name.as_str())
            {
                let text = fs::read_to_string(&path).unwrap();
                found.push(Source {
                    path: path
                        .strip_prefix(&root)
                        .unwrap()
                        .to_string_lossy()
                        .into_owned(),
                    code: code(&text),
                });
            }
        }
    }
    assert!(!found.is_empty(), "{} has no sources", root.display());
    found
}

/// The text without comments and without the test module, which stands last in a file.
fn code(text: &str) -> String {
    let end = text.find("#[cfg(test)]\nmod tests {").unwrap_or(text.len());
    text[..end]
        .lines()
        .map(|line| line.split("//").next().unwrap_or_default())
        .collect::<Vec<_>>()
        .join("\n")
}

/// Fails with every file outside `places` that names one of the words.
fn only(crate_name: &str, places: &[&str], words: &[&str]) {
    let breaches: Vec<String> = sources(crate_name)
        .iter()
        .filter(|source| !source.is_in(places))
        .flat_map(|source| {
            words
                .iter()
                .filter(|word| source.names(word))
                .map(|word| format!("{} names {word}", source.path))
        })
        .collect();
    assert!(breaches.is_empty(), "{breaches:#?}");
}

/// Fails with every file inside `places` that names one of the words.
fn never(crate_name: &str, places: &[&str], words: &[&str]) {
    let breaches: Vec<String> = sources(crate_name)
        .iter()
        .filter(|source| source.is_in(places))
        .flat_map(|source| {
            words
                .iter()
                .filter(|word| source.names(word))
                .map(|word| format!("{} names {word}", source.path))
        })
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

/// What is not in a list is in no test that reads plans.
#[test]
fn sql_stands_in_the_lists_of_statements() {
    let lists = [
        "store/ledger/postgres/statements",
        "store/ledger/sqlite/statements",
    ];
    // Names of settings, which are no rows' business.
    let excused = ["store/ledger/postgres/session"];
    let found: Vec<String> = sources("ca-server")
        .iter()
        .filter(|source| !source.is_in(&lists) && !source.is_in(&excused))
        .filter(|source| {
            [
                "\"SELECT ",
                "\"INSERT ",
                "\"UPDATE ",
                "\"DELETE ",
                "\"WITH ",
                "\"VALUES ",
                "\"MERGE ",
                "\"COPY ",
                "\"PRAGMA ",
            ]
            .iter()
            .any(|verb| source.code.contains(verb))
        })
        .map(|source| source.path.clone())
        .collect();
    assert!(
        found.is_empty(),
        "SQL outside the lists of statements: {found:?}"
    );
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
fn only_output_writes_to_standard_output_and_error() {
    let macros = [
        "print!",
        "println!",
        "eprint!",
        "eprintln!",
        "dbg!",
        "stdout()",
        "stderr()",
    ];
    only("ca-server", &["output"], &macros);
    only("signers", &[], &macros);
}

#[test]
fn only_the_clock_reads_the_time() {
    for crate_name in ["ca-server", "signers"] {
        only(
            crate_name,
            &["clock"],
            &[
                "SystemTime::now",
                "OffsetDateTime::now_utc",
                "UnixTime::now",
            ],
        );
    }
}

#[test]
fn policy_and_x509_are_pure() {
    let world = [
        "tokio",
        "async",
        "await",
        "std::fs",
        "std::env",
        "std::thread",
        "std::process",
        "TcpStream",
        "TcpListener",
        "UdpSocket",
    ];
    never("ca-server", &["policy", "x509"], &world);
    never(
        "ca-server",
        &["policy", "x509"],
        &[
            "crate::clock",
            "crate::metrics",
            "crate::store",
            "crate::config",
            "getrandom",
            "tracing",
            "SystemTime",
        ],
    );
}

#[test]
fn the_guard_shares_no_code_with_what_it_judges() {
    never(
        "ca-server",
        &["guard"],
        &[
            "crate::x509",
            "crate::policy",
            "crate::config",
            "x509_cert",
            "const_oid",
            "use spki",
            "use der",
        ],
    );
}

#[test]
fn signers_know_nothing_of_certificates_databases_and_networks() {
    only(
        "signers",
        &[],
        &[
            "sqlx",
            "tonic",
            "axum",
            "x509_cert",
            "istio_api",
            "ca_server",
            "rustls",
            "hyper",
        ],
    );
}

#[test]
fn only_the_pool_of_signers_starts_threads() {
    only(
        "signers",
        &["pool", "process", "conformance"],
        &["thread::spawn", "thread::Builder", "Command::new"],
    );
}

#[test]
fn nobody_below_names_the_command_line_or_the_composition_root() {
    only(
        "ca-server",
        &["app", "cli", "main"],
        &["crate::app", "crate::cli", "ca_server::app"],
    );
}

#[test]
fn no_import_runs_back_up() {
    never(
        "ca-server",
        &["authn", "policy", "x509", "issuer", "store"],
        &["crate::front", "crate::issue"],
    );
    never(
        "ca-server",
        &["policy", "x509", "store"],
        &["crate::issuer", "crate::authn"],
    );
    never(
        "ca-server",
        &["fairness", "repeats"],
        &[
            "crate::front",
            "crate::issue",
            "crate::config",
            "crate::clock",
        ],
    );
    never(
        "ca-server",
        &["refusal", "timestamp", "spiffe", "digest"],
        &[
            "crate::front",
            "crate::issue",
            "crate::store",
            "crate::policy",
        ],
    );
}

#[test]
fn the_command_line_alone_holds_a_ceremony() {
    only(
        "ca-server",
        &["ceremony", "cli", "lib"],
        &["crate::ceremony", "open_vault", "init_token"],
    );
}

#[test]
fn the_load_generator_shares_no_code_with_the_daemon() {
    only("loadgen", &[], &["ca_server", "signers"]);
}

#[test]
fn files_do_not_import_in_circles() {
    for crate_name in ["ca-server", "signers", "loadgen"] {
        let mut sources = sources(crate_name);
        // `cli` and `app` are one storey: `app` speaks the command line's `Exit`, and `cli` starts
        // `app`.
        sources.retain(|source| crate_name != "ca-server" || !source.is_in(&["app", "cli"]));
        assert_eq!(circle(&sources), None, "{crate_name}");
    }
}

/// A circle of imports, each module once and the first one again at the end. A module and what is
/// inside of it are one storey: a file may name what it is a part of.
fn circle(sources: &[Source]) -> Option<Vec<String>> {
    let modules: BTreeSet<String> = sources
        .iter()
        .map(module)
        .filter(|name| !["lib", "main"].contains(&name.as_str()))
        .collect();
    let mut imports: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for source in sources {
        let from = module(source);
        if modules.contains(&from) {
            imports.insert(from.clone(), imported(&source.code, &from, &modules));
        }
    }
    imports.keys().find_map(|start| {
        let mut came_from: BTreeMap<&String, &String> = BTreeMap::new();
        let mut open = vec![start];
        while let Some(file) = open.pop() {
            for next in &imports[file] {
                if next == start {
                    let mut path = vec![start.clone()];
                    path.extend(
                        std::iter::successors(Some(file), |file| came_from.get(file).copied())
                            .cloned(),
                    );
                    path.reverse();
                    return Some(path);
                }
                if !came_from.contains_key(next) {
                    came_from.insert(next, file);
                    open.push(next);
                }
            }
        }
        None
    })
}

/// `store::ledger` for `store/ledger/mod.rs`.
fn module(source: &Source) -> String {
    source
        .path
        .trim_end_matches(".rs")
        .trim_end_matches("/mod")
        .replace('/', "::")
}

/// The modules that the code of `from` names: of each path the longest part that is a module.
fn imported(code: &str, from: &str, modules: &BTreeSet<String>) -> BTreeSet<String> {
    let is_part_of = |to: &str| {
        from == to
            || from
                .strip_prefix(to)
                .is_some_and(|rest| rest.starts_with("::"))
    };
    let longest = |path: &[String]| {
        (1..=path.len())
            .rev()
            .map(|count| path[..count].join("::"))
            .find(|path| modules.contains(path))
    };
    paths(code, from)
        .iter()
        .filter_map(|path| longest(path))
        .filter(|to| !is_part_of(to))
        .collect()
}

/// Every path of the code that begins with `crate`, `super` or `self`, from the crate's root;
/// braces are spread.
fn paths(code: &str, from: &str) -> Vec<Vec<String>> {
    let words = words(code);
    let mut found = Vec::new();
    for (at, word) in words.iter().enumerate() {
        let begins = ["crate", "super", "self"].contains(&word.as_str())
            && words.get(at + 1).is_some_and(|next| next == "::");
        if begins && (at == 0 || words[at - 1] != "::") {
            spread(
                &words,
                at,
                &from.split("::").map(str::to_owned).collect::<Vec<_>>(),
                &mut found,
            );
        }
    }
    found
}

/// Follows one path, or one member of a group, from the word at `at`; answers where it ends.
fn spread(words: &[String], mut at: usize, base: &[String], found: &mut Vec<Vec<String>>) -> usize {
    let mut path = base.to_vec();
    while let Some(word) = words.get(at) {
        match word.as_str() {
            "crate" => path.clear(),
            "super" => drop(path.pop()),
            "self" => {}
            "{" => {
                at += 1;
                while words.get(at).is_some_and(|word| word != "}") {
                    at = spread(words, at, &path, found);
                    // Past `as Name`, to the next member.
                    while words.get(at).is_some_and(|word| word != "," && word != "}") {
                        at += 1;
                    }
                    at += usize::from(words.get(at).is_some_and(|word| word == ","));
                }
                return at + 1;
            }
            name if name.starts_with(is_in_name) => path.push(name.to_owned()),
            _ => break,
        }
        at += 1;
        if words.get(at).is_none_or(|next| next != "::") {
            break;
        }
        at += 1;
    }
    found.push(path);
    at
}

/// Names, `::`, and every other sign by itself.
fn words(code: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut rest = code.trim_start();
    while let Some(first) = rest.chars().next() {
        let length = match first {
            _ if is_in_name(first) => rest
                .find(|letter| !is_in_name(letter))
                .unwrap_or(rest.len()),
            ':' if rest.starts_with("::") => 2,
            _ => first.len_utf8(),
        };
        words.push(rest[..length].to_owned());
        rest = rest[length..].trim_start();
    }
    words
}

fn is_in_name(letter: char) -> bool {
    letter.is_alphanumeric() || letter == '_'
}

mod finder {
    use super::*;

    fn crate_of(files: &[(&str, &str)]) -> Vec<Source> {
        files
            .iter()
            .map(|(path, text)| Source {
                path: (*path).to_owned(),
                code: code(text),
            })
            .collect()
    }

    fn circle_of(files: &[(&str, &str)]) -> Option<String> {
        circle(&crate_of(files)).map(|circle| circle.join(" -> "))
    }

    #[test]
    fn paths_are_followed_through_braces_and_upwards() {
        let code = "use crate::{a::{self, b::{C, D as E}}, f};\nuse super::g::h;\nfn i(&self) { self::j::k(super::super::l) }";
        let found: Vec<String> = paths(code, "m::n")
            .iter()
            .map(|path| path.join("::"))
            .collect();
        assert_eq!(
            found,
            ["a", "a::b::C", "a::b::D", "f", "m::g::h", "m::n::j::k", "l"]
        );
    }

    #[test]
    fn a_circle_is_found_however_it_is_written() {
        let found = |one: &str, two: &str| {
            circle_of(&[
                ("lib.rs", "mod r;"),
                ("r/mod.rs", "mod a; mod b;"),
                ("r/a.rs", one),
                ("r/b.rs", two),
            ])
        };
        let circle = Some("r::a -> r::b -> r::a".to_owned());
        assert_eq!(found("use super::b::B;", "use super::a::A;"), circle);
        assert_eq!(
            found("use crate::r::{b::{B}};", "use super::{a::A, c};"),
            circle
        );
        assert_eq!(
            found("fn f() { super::b::g() }", "fn g() { crate::r::a::f() }"),
            circle
        );
        assert_eq!(
            found("use super::b::B;", "use crate::other::{self, r::a::A};"),
            None
        );
        assert_eq!(found("use super::b::B;", "// use super::a::A;"), None);
    }

    #[test]
    fn a_circle_through_other_rooms_is_found_and_a_part_may_name_its_whole() {
        let part = ("store/ledger.rs", "use super::Failure; use crate::store;");
        assert_eq!(
            circle_of(&[
                ("store.rs", "mod ledger; pub use self::ledger::Ledger;"),
                part
            ]),
            None
        );
        let around = [
            ("a.rs", "use crate::b::c::C;"),
            ("b/c.rs", "use crate::d::D;"),
            ("d.rs", "use crate::{a::A};"),
        ];
        assert_eq!(circle_of(&around).as_deref(), Some("a -> b::c -> d -> a"));
    }
}
