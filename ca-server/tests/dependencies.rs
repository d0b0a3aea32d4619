//! What the workspace may be built of: one crypto provider, and licences from a list. Both lists
//! stand in deny.toml, so that this test and cargo-deny can never disagree.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use cargo_metadata::{Metadata, MetadataCommand, Package, PackageId};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

#[derive(serde::Deserialize)]
struct Deny {
    bans: Bans,
    licenses: Licenses,
}

#[derive(serde::Deserialize)]
struct Bans {
    deny: Vec<Banned>,
}

#[derive(serde::Deserialize)]
struct Banned {
    #[serde(rename = "crate")]
    name: String,
}

#[derive(serde::Deserialize)]
struct Licenses {
    allow: BTreeSet<String>,
}

fn deny() -> Deny {
    toml::from_str(&std::fs::read_to_string(Path::new(ROOT).join("deny.toml")).unwrap()).unwrap()
}

fn metadata() -> Metadata {
    let platform = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    MetadataCommand::new()
        .manifest_path(Path::new(ROOT).join("Cargo.toml"))
        .other_options([
            "--locked".to_owned(),
            "--filter-platform".to_owned(),
            platform,
        ])
        .exec()
        .unwrap()
}

/// The packages that are really compiled. Cargo's resolution also names optional ones that only a
/// weak feature (`ring?/std`) mentions, so an optional dependency counts only if an active feature
/// turns it on.
fn compiled(metadata: &Metadata) -> Vec<&Package> {
    let packages: BTreeMap<&PackageId, &Package> = metadata
        .packages
        .iter()
        .map(|package| (&package.id, package))
        .collect();
    let resolve = metadata.resolve.as_ref().unwrap();
    let nodes: BTreeMap<&PackageId, _> =
        resolve.nodes.iter().map(|node| (&node.id, node)).collect();
    let mut seen = BTreeSet::new();
    let mut open: Vec<&PackageId> = metadata.workspace_members.iter().collect();
    while let Some(id) = open.pop() {
        if !seen.insert(id) {
            continue;
        }
        let (package, node) = (packages[id], nodes[id]);
        let active: BTreeSet<&str> = node
            .features
            .iter()
            .map(|feature| feature.as_str())
            .collect();
        for dependency in &node.deps {
            let name = packages[&dependency.pkg].name.as_str();
            let declared: Vec<_> = package
                .dependencies
                .iter()
                .filter(|declared| declared.name == name)
                .collect();
            let wanted = declared.iter().any(|declared| {
                !declared.optional
                    || is_turned_on(
                        package,
                        &active,
                        declared.rename.as_deref().unwrap_or(&declared.name),
                    )
            });
            if wanted {
                open.push(&dependency.pkg);
            }
        }
    }
    seen.into_iter().map(|id| packages[id]).collect()
}

fn is_turned_on(package: &Package, active: &BTreeSet<&str>, dependency: &str) -> bool {
    let strong = |value: &String| {
        value.strip_prefix("dep:").unwrap_or(value) == dependency
            || value
                .split_once('/')
                .is_some_and(|(name, _)| name == dependency)
    };
    package
        .features
        .iter()
        .any(|(feature, values)| active.contains(feature.as_str()) && values.iter().any(strong))
}

#[test]
fn there_is_exactly_one_crypto_provider() {
    let metadata = metadata();
    let compiled = compiled(&metadata);
    let banned: BTreeSet<String> = deny()
        .bans
        .deny
        .into_iter()
        .map(|banned| banned.name)
        .collect();
    assert!(
        banned.contains("ring") && banned.contains("openssl-sys"),
        "deny.toml lost its bans"
    );
    let found: Vec<&str> = compiled
        .iter()
        .map(|package| package.name.as_str())
        .filter(|name| banned.contains(*name))
        .collect();
    assert!(found.is_empty(), "banned, and compiled: {found:?}");
    for one in ["aws-lc-rs", "aws-lc-sys", "rustls"] {
        assert_eq!(
            compiled
                .iter()
                .filter(|package| package.name.as_str() == one)
                .count(),
            1,
            "{one}"
        );
    }
}

#[test]
fn every_licence_is_on_the_list() {
    let metadata = metadata();
    let allowed = deny().licenses.allow;
    let refused: Vec<String> = compiled(&metadata)
        .iter()
        .filter(|package| {
            !package
                .license
                .as_deref()
                .is_some_and(|license| Expression::allows(license, &allowed))
        })
        .map(|package| {
            format!(
                "{} {}: {:?}",
                package.name, package.version, package.license
            )
        })
        .collect();
    assert!(refused.is_empty(), "{refused:#?}");
}

#[test]
fn an_expression_is_allowed_only_if_every_required_part_is() {
    let allowed = BTreeSet::from(["MIT".to_owned(), "ISC".to_owned()]);
    for (expression, expected) in [
        ("MIT", true),
        ("GPL-3.0-only", false),
        ("GPL-3.0-only OR MIT", true),
        ("GPL-3.0-only AND MIT", false),
        ("MIT/GPL-3.0-only", true),
        ("(MIT OR GPL-3.0-only) AND ISC", true),
        ("(MIT OR ISC) AND GPL-3.0-only", false),
        ("MIT OR GPL-3.0-only AND BSD-2-Clause", true),
        ("MIT WITH Some-exception", false),
        ("", false),
    ] {
        assert_eq!(
            Expression::allows(expression, &allowed),
            expected,
            "{expression}"
        );
    }
}

/// An SPDX licence expression (annex D of SPDX 2.3): OR binds weaker than AND; the old `/` means
/// OR.
struct Expression<'a> {
    words: std::iter::Peekable<std::vec::IntoIter<String>>,
    allowed: &'a BTreeSet<String>,
}

impl<'a> Expression<'a> {
    fn allows(text: &str, allowed: &'a BTreeSet<String>) -> bool {
        let spaced = text
            .replace('/', " OR ")
            .replace('(', " ( ")
            .replace(')', " ) ");
        let words: Vec<String> = spaced.split_whitespace().map(str::to_owned).collect();
        let mut expression = Self {
            words: words.into_iter().peekable(),
            allowed,
        };
        expression.any() && expression.words.peek().is_none()
    }

    fn any(&mut self) -> bool {
        let mut result = self.all();
        while self.words.next_if_eq("OR").is_some() {
            result |= self.all();
        }
        result
    }

    fn all(&mut self) -> bool {
        let mut result = self.one();
        while self.words.next_if_eq("AND").is_some() {
            result &= self.one();
        }
        result
    }

    fn one(&mut self) -> bool {
        match self.words.next() {
            Some(word) if word == "(" => {
                let result = self.any();
                self.words.next_if_eq(")").is_some() && result
            }
            Some(mut license) => {
                if self.words.next_if_eq("WITH").is_some() {
                    license = format!("{license} WITH {}", self.words.next().unwrap_or_default());
                }
                self.allowed.contains(&license)
            }
            None => false,
        }
    }
}
