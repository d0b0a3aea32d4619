//! The token issuers: whether each key file can be read as the daemon reads it, and what is in it.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;

use super::finding::Findings;
use crate::authn::jwks::{self, KeySet};
use crate::config::ExaminedJwt;
use crate::timestamp::Timestamp;

pub(super) fn examine(issuers: &[ExaminedJwt]) -> Findings {
    let mut findings = Findings::in_area("token issuers");
    for issuer in issuers {
        findings.about(&issuer.issuer);
        let asked = "ask the cluster for it anew: kubectl get --raw /openid/v1/jwks";
        match jwks::read(&issuer.jwks) {
            Err(error) => {
                findings.problem("jwks", format!("no token can be verified: {error}"), asked)
            }
            Ok(set) => {
                if let Some(refused) = &issuer.refused {
                    findings.problem("config", refused.to_string(), "correct it in the config");
                }
                of_set(&mut findings, issuer, &set);
            }
        }
        if let Some(mode) = std::fs::metadata(&issuer.jwks)
            .ok()
            .map(|file| file.mode())
            .filter(|mode| mode & 0o002 != 0)
        {
            let what = format!(
                "anybody can change {} (mode {:04o}) and so be anybody",
                issuer.jwks.display(),
                mode & 0o7777
            );
            findings.problem(
                "jwks",
                what,
                format!("run: chmod o-w {}", issuer.jwks.display()),
            );
        }
    }
    findings
}

fn of_set(findings: &mut Findings, issuer: &ExaminedJwt, set: &KeySet) {
    let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
    for key in &set.keys {
        *kinds.entry(key.kind).or_default() += 1;
    }
    let kinds: Vec<String> = kinds
        .iter()
        .map(|(kind, count)| format!("{count} {kind}"))
        .collect();
    let others = match set
        .unusable
        .iter()
        .filter(|key| key.for_another_use)
        .count()
    {
        0 => String::new(),
        count => format!("; {count} more for other uses"),
    };
    findings.ok(
        "jwks",
        format!(
            "{} holds keys: {}{others}; written {}",
            issuer.jwks.display(),
            kinds.join(", "),
            written(issuer)
        ),
    );
    for warning in set.warnings() {
        findings.warning(
            "jwks",
            warning,
            "have the token issuer publish it as RFC 7517 and RFC 7518 say",
        );
    }
}

/// When the file was written, by its own date.
fn written(issuer: &ExaminedJwt) -> String {
    let modified =
        std::fs::metadata(&issuer.jwks).map(|file| Timestamp::from_seconds(file.mtime()));
    modified.map_or_else(|error| error.to_string(), |at| at.to_string())
}
