//! What quickstart says at its end: what runs where, the certificate, and the exact commands to go on with.

use std::net::SocketAddr;
use std::path::Path;

use super::ca_toml;
use crate::ceremony::Outcome;
use crate::cli::request::left;
use crate::client::Issued;
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

pub(super) fn print(facts: &Facts<'_>) {
    let Facts { directory, csr, monitoring, outcome, issued, .. } = facts;
    let program = format!("{} --config {}", program(), shell(&directory.join(ca_toml::FILE).display().to_string()));
    let address = if facts.csr_is_configured { String::new() } else { format!(" --address {csr}") };
    let root = if outcome.root.now { "new" } else { "kept" };
    println!();
    println!("  A workload certificate, asked for over Istio's CSR call and verified:");
    println!();
    println!("    identity    {}", issued.identity);
    println!("    lifetime    {}, until {}", left(issued.not_after, facts.now), until(issued.not_after));
    println!("    serial      {}", issued.serial);
    println!("    files       {}", directory.join("demo").join("{key,cert-chain,root-cert}.pem").display());
    println!();
    println!("  Its issuing key is in the SoftHSM token \"issuing\" and can never leave it.");
    println!();
    println!("    root        {} ({root}), until {}", outcome.root.subject, until(outcome.root.not_after));
    println!("    issuing     {}, until {}", outcome.issuing.subject, until(outcome.issuing.not_after));
    println!("    transcript  {}", directory.join(crate::ceremony::TRANSCRIPT_FILE).display());
    println!("    PINs        {}; the security officer's were random and are thrown away", directory.join("{root,issuing}.pin").display());
    println!();
    if facts.goes_on {
        println!("  Serving until Ctrl-C:");
        println!();
        println!("    CSR call    {csr}, for agents: CA_ADDR");
        println!("    monitoring  http://{monitoring}/metrics, /healthz/ready, /root-cert.pem");
        println!();
        println!("  Ask for another certificate:");
        println!();
        println!("    {program} request{address}");
    } else {
        println!("  Serve it, then ask for another certificate:");
        println!();
        println!("    {program} serve");
        println!("    {program} request");
    }
    println!();
    println!("  Look at the record of every signature:");
    println!();
    println!("    {program} audit verify");
    println!("    {program} audit export");
    println!();
}

/// A time as people read it: to the second.
fn until(at: Timestamp) -> String {
    at.rfc3339().replace(".000000Z", "Z")
}

/// This program as it was called.
fn program() -> String {
    shell(&std::env::args().next().unwrap_or_else(|| "ca-server".to_owned()))
}

/// A word that a shell reads as one.
fn shell(word: &str) -> String {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "/._-+:@%".contains(letter);
    if !word.is_empty() && word.chars().all(plain) { word.to_owned() } else { format!("'{}'", word.replace('\'', r"'\''")) }
}
