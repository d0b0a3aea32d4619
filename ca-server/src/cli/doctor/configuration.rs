//! The config itself: whether `serve` would take it, and what else is wrong with it.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::finding::Findings;
use crate::config::Examination;

const REMEDY: &str = "correct it; `ca-server check-config` says when it is good";

/// What `check-config` says, and more.
pub(super) fn examine(path: &Path, examined: &Examination) -> Findings {
    let mut findings = Findings::in_area("config");
    match &examined.refused {
        None => findings.ok(
            "config",
            format!("{} is good: `serve` would take it", path.display()),
        ),
        Some(refused) => findings.problem(
            "config",
            format!("`serve` would refuse it: {refused}"),
            REMEDY,
        ),
    }
    for complaint in &examined.complaints {
        findings.problem("config", complaint.to_string(), REMEDY);
    }
    for warning in &examined.warnings {
        findings.warning("config", warning, "nothing, if that is meant");
    }
    for issuer in &examined.issuers {
        if let Some(complaint) = issuer
            .transcript
            .as_ref()
            .filter(|complaint| !examined.said(complaint))
        {
            findings.problem(
                "transcript",
                complaint.to_string(),
                "put the ceremony's transcript back, or take `transcript` out",
            );
        }
    }
    if let Some(mode) = std::fs::metadata(path)
        .ok()
        .map(|file| file.mode())
        .filter(|mode| mode & 0o022 != 0)
    {
        let what = format!(
            "others than its owner can change {} (mode {:04o})",
            path.display(),
            mode & 0o7777
        );
        findings.warning(
            "config",
            what,
            format!("run: chmod go-w {}", path.display()),
        );
    }
    findings
}
