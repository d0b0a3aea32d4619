//! What quickstart says at its end: what runs where, the certificate, and the exact commands to go
//! on with.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;

use super::ca_toml;
use crate::ceremony::Outcome;
use crate::cli::request::left;
use crate::client::Issued;
use crate::output;
use crate::timestamp::Timestamp;

/// What the summary is about.
pub(super) struct Facts<'a> {
    /// The data directory, as it was typed.
    pub(super) directory: &'a Path,
    pub(super) csr: SocketAddr,
    /// Whether the config's `[request]` names that address.
    pub(super) csr_is_configured: bool,
    pub(super) monitoring: SocketAddr,
    pub(super) outcome: &'a Outcome,
    pub(super) issued: &'a Issued,
    pub(super) now: Timestamp,
    /// Whether the daemon serves on.
    pub(super) goes_on: bool,
}

/// Prints it in one piece; a reader that has gone away is no reason to stop serving.
pub(super) fn print(facts: &Facts<'_>) {
    let text = text(facts).expect("a String takes everything");
    let _ = output::print(text);
}

fn text(facts: &Facts<'_>) -> Result<String, std::fmt::Error> {
    let mut out = String::new();
    let Facts {
        directory,
        csr,
        monitoring,
        outcome,
        issued,
        ..
    } = facts;
    let program = format!(
        "{} --config {}",
        program(),
        shell(&directory.join(ca_toml::FILE).display().to_string())
    );
    let address = if facts.csr_is_configured {
        String::new()
    } else {
        format!(" --address {csr}")
    };
    let root = if outcome.root.now { "new" } else { "kept" };
    writeln!(out)?;
    writeln!(
        out,
        "  A workload certificate, asked for over Istio's CSR call and verified:"
    )?;
    writeln!(out)?;
    writeln!(out, "    identity    {}", issued.identity)?;
    writeln!(
        out,
        "    lifetime    {}, until {}",
        left(issued.not_after, facts.now),
        until(issued.not_after)
    )?;
    writeln!(out, "    serial      {}", issued.serial)?;
    writeln!(
        out,
        "    files       {}",
        directory
            .join("demo")
            .join("{key,cert-chain,root-cert}.pem")
            .display()
    )?;
    writeln!(out)?;
    writeln!(
        out,
        "  Its issuing key is in the SoftHSM token \"issuing\" and can never leave it."
    )?;
    writeln!(out)?;
    writeln!(
        out,
        "    root        {} ({root}), until {}",
        outcome.root.subject,
        until(outcome.root.not_after)
    )?;
    writeln!(
        out,
        "    issuing     {}, until {}",
        outcome.issuing.subject,
        until(outcome.issuing.not_after)
    )?;
    writeln!(
        out,
        "    transcript  {}",
        directory.join(crate::ceremony::TRANSCRIPT_FILE).display()
    )?;
    writeln!(
        out,
        "    PINs        {}; the security officer's were random and are thrown away",
        directory.join("{root,issuing}.pin").display()
    )?;
    writeln!(out)?;
    if facts.goes_on {
        writeln!(out, "  Serving until Ctrl-C:")?;
        writeln!(out)?;
        writeln!(out, "    CSR call    {csr}, for agents: CA_ADDR")?;
        writeln!(
            out,
            "    monitoring  http://{monitoring}/metrics, /healthz/ready, /root-cert.pem"
        )?;
        writeln!(out)?;
        writeln!(out, "  Ask for another certificate:")?;
        writeln!(out)?;
        writeln!(out, "    {program} request{address}")?;
    } else {
        writeln!(out, "  Serve it, then ask for another certificate:")?;
        writeln!(out)?;
        writeln!(out, "    {program} serve")?;
        writeln!(out, "    {program} request")?;
    }
    writeln!(out)?;
    writeln!(out, "  Look at the record of every signature:")?;
    writeln!(out)?;
    writeln!(out, "    {program} audit verify")?;
    writeln!(out, "    {program} audit export")?;
    writeln!(out)?;
    Ok(out)
}

/// A time as people read it: to the second.
fn until(at: Timestamp) -> String {
    at.rfc3339().replace(".000000Z", "Z")
}

/// This program as it was called.
fn program() -> String {
    shell(
        &std::env::args()
            .next()
            .unwrap_or_else(|| "ca-server".to_owned()),
    )
}

/// A word that a shell reads as one.
fn shell(word: &str) -> String {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "/._-+:@%".contains(letter);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}
