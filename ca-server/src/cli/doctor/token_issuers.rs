//! The token issuers: whether each key file can be read as the daemon reads it, and what is in it.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;

use super::finding::Findings;
use crate::authn::jwks::{self, Contents};
use crate::config::ExaminedJwt;
use crate::timestamp::Timestamp;

pub(super) fn examine(issuers: &[ExaminedJwt]) -> Findings {
    let mut findings = Findings::in_area("token issuers");
    for issuer in issuers {
        findings.about(&issuer.issuer);
        let asked = "ask the cluster for it anew: kubectl get --raw /openid/v1/jwks";
        match jwks::contents(&issuer.jwks) {
            Err(error) => findings.problem("jwks", format!("no token can be verified: {error}"), asked),
            Ok(contents) => {
                if let Some(refused) = &issuer.refused {
                    findings.problem("config", refused.to_string(), "correct it in the config");
                }
                of_contents(&mut findings, issuer, &contents);
            }
        }
        if let Some(mode) = std::fs::metadata(&issuer.jwks).ok().map(|file| file.mode()).filter(|mode| mode & 0o002 != 0) {
            let what = format!("anybody can change {} (mode {:04o}) and so be anybody", issuer.jwks.display(), mode & 0o7777);
            findings.problem("jwks", what, format!("run: chmod o-w {}", issuer.jwks.display()));
        }
    }
    findings
}

fn of_contents(findings: &mut Findings, issuer: &ExaminedJwt, contents: &Contents) {
    let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
    let mut names: BTreeMap<&str, usize> = BTreeMap::new();
    for (id, kind) in &contents.keys {
        *kinds.entry(kind).or_default() += 1;
        *names.entry(id.as_deref().unwrap_or_default()).or_default() += 1;
    }
    let kinds: Vec<String> = kinds.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
    let others = match contents.passed_over {
        0 => String::new(),
        count => format!("; {count} more for other uses or of unknown kinds"),
    };
    findings.ok("jwks", format!("{} holds keys: {}{others}; written {}", issuer.jwks.display(), kinds.join(", "), written(issuer)));
    if let Some(nameless) = names.remove("").filter(|_| contents.keys.len() > 1) {
        let what = format!("{nameless} keys of several have no `kid`: no token can name them");
        findings.warning("jwks", what, "have the token issuer name its keys, and tokens by them");
    }
    for (name, count) in names.into_iter().filter(|(_, count)| *count > 1) {
        let what = format!("{count} keys are called {name:?}: only the first is ever used");
        findings.warning("jwks", what, "have the token issuer give each key a `kid` of its own");
    }
}

/// When the file was written, by its own date.
fn written(issuer: &ExaminedJwt) -> String {
    let modified = std::fs::metadata(&issuer.jwks).map(|file| Timestamp::from_seconds(file.mtime()));
    modified.map_or_else(|error| error.to_string(), |at| at.to_string())
}
