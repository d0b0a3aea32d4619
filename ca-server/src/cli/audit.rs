//! `audit`: what the ledger says and whether it holds, read beside the running daemon or when none runs. Never writes.

use std::io::{self, BufWriter, IsTerminal, Write};

use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};

use super::Exit;
use super::ledger_url::LedgerArgs;
use crate::spiffe::SpiffeId;
use crate::store::ledger::event::{Event, Proof};
use crate::store::ledger::{Entry, LedgerReader, Location, ReadError, Report};
use crate::x509::Serial;

/// Read and check the ledger, also while the daemon runs.
#[derive(Args, Debug)]
pub struct AuditArgs {
    #[command(flatten)]
    pub(super) ledger: LedgerArgs,
    #[command(subcommand)]
    question: Question,
}

#[derive(Debug, Subcommand)]
enum Question {
    /// Check every row: chains, signatures, certificates, identities. Status 1 if a row is broken.
    Verify,
    /// Show what was issued under a serial number, or to an identity.
    Show {
        /// A serial in hex (colons allowed), or an identity: spiffe://<trust domain>/ns/<namespace>/sa/<account>.
        #[arg(value_name = "SERIAL|IDENTITY")]
        what: String,
        /// Show at most so many entries of an identity, newest first.
        #[arg(long, default_value_t = 20)]
        limit: u32,
    },
    /// Write every row as a line of JSON.
    Export,
}

/// Answers the question from that ledger.
pub fn run(args: AuditArgs, ledger: &Location) -> Result<(), Exit> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Exit::missing)?;
    runtime.block_on(async {
        // Arguments are judged before the ledger is looked at.
        let target = match &args.question {
            Question::Show { what, .. } => Some(Target::parse(what)?),
            _ => None,
        };
        let mut reader = LedgerReader::open(ledger).await.map_err(unreadable)?;
        match (args.question, target) {
            (Question::Show { limit, .. }, Some(target)) => show(&mut reader, &target, limit).await,
            (Question::Export, _) => export(&mut reader).await,
            _ => verify(&mut reader).await,
        }
    })
}

fn unreadable(error: ReadError) -> Exit {
    match error {
        ReadError::Row { .. } => Exit::refused(error),
        _ => Exit::missing(error),
    }
}

async fn verify(reader: &mut LedgerReader) -> Result<(), Exit> {
    let bar = if io::stderr().is_terminal() { ProgressBar::new(0) } else { ProgressBar::hidden() };
    let style = ProgressStyle::with_template("  checking {wide_bar} {human_pos}/{human_len} rows  {per_sec}  {eta} left");
    bar.set_style(style.expect("the template is a constant"));
    let report = reader.verify(|done, total| {
        bar.set_length(total);
        bar.set_position(done);
    });
    let report = report.await;
    bar.finish_and_clear();
    let report = report.map_err(unreadable)?;
    print(&summary(&report))?;
    match report.broken_count {
        0 => Ok(()),
        1 => Err(Exit::refused("the ledger is broken: 1 finding")),
        count => Err(Exit::refused(format_args!("the ledger is broken: {count} findings"))),
    }
}

fn summary(report: &Report) -> String {
    let mut text = String::new();
    for broken in &report.broken {
        text += &format!("BROKEN  {}: {}\n", broken.row, broken.what);
    }
    let unlisted = report.broken_count - report.broken.len() as u64;
    if unlisted > 0 {
        text += &format!("        … and {unlisted} more\n");
    }
    for (count, what) in [
        (report.rows, "rows"),
        (report.chains, "chains"),
        (report.intents, "intents, of which"),
        (report.issued, "  became certificates"),
        (report.failed, "  failed before a signature"),
        (report.unknown, "  are unknown: a signature may exist, none was released"),
        (report.open, "  have no outcome yet"),
        (report.refusals, "rows of refusals"),
    ] {
        text += &format!("{count:>12}  {what}\n");
    }
    if report.broken_count == 0 {
        text += "Every chain, signature and certificate holds.\n";
    }
    text
}

enum Target {
    Serial(Serial),
    Identity(String),
}

impl Target {
    fn parse(what: &str) -> Result<Self, Exit> {
        if what.starts_with("spiffe://") {
            return match SpiffeId::parse(what) {
                Some(identity) => Ok(Self::Identity(identity.to_string())),
                None => Err(Exit::config(format_args!("{what} is not an identity of the form spiffe://…/ns/…/sa/…"))),
            };
        }
        // OpenSSL prints a serial with colons or in capitals, and with a leading zero octet left out.
        let digits = what.trim_start_matches("0x").replace(':', "");
        let digits = if digits.len() % 2 == 1 { format!("0{digits}") } else { digits };
        let serial = hex::decode(digits).ok().as_deref().and_then(Serial::from_bytes);
        let wrong = || Exit::config(format_args!("{what} is neither a serial number of this CA (36 hex digits) nor a spiffe:// identity"));
        serial.map(Self::Serial).ok_or_else(wrong)
    }
}

async fn show(reader: &mut LedgerReader, target: &Target, limit: u32) -> Result<(), Exit> {
    let entries = match target {
        Target::Serial(serial) => reader.issuances_of_serial(serial).await,
        Target::Identity(identity) => reader.entries_of_identity(identity, limit).await,
    };
    let entries = entries.map_err(unreadable)?;
    if entries.is_empty() {
        return Err(Exit::refused("the ledger has nothing of it"));
    }
    let text: Vec<String> = entries.iter().map(|(entry, outcome)| describe(entry, outcome.as_ref())).collect();
    print(&text.join("\n"))
}

fn describe(entry: &Entry, outcome: Option<&Entry>) -> String {
    let mut lines = Vec::new();
    let evidence = match &entry.event {
        Event::Intent(intent) => {
            lines.push(("serial", hex::encode(&intent.serial)));
            lines.push(("identity", intent.identity.clone().unwrap_or_else(|| "none (the daemon's own certificate)".into())));
            lines.push(("issuer", format!("{} ({})", intent.issuer, intent.purpose)));
            lines.push(("intent", format!("{} at {}", entry.header.time, entry.reference())));
            lines.push(("outcome", outcome.map_or_else(|| "none yet: perhaps issued".into(), describe_outcome)));
            Some(&intent.evidence)
        }
        Event::Refused { why, identity, evidence } => {
            lines.push(("refused", format!("{} ({}): {}", why.reason, why.code, why.detail)));
            lines.push(("identity", identity.clone().unwrap_or_else(|| "none".into())));
            lines.push(("at", format!("{} at {}", entry.header.time, entry.reference())));
            Some(evidence)
        }
        other => {
            lines.push(("row", format!("{} {} at {}", other.kind(), entry.header.time, entry.reference())));
            None
        }
    };
    lines.extend(evidence.into_iter().flat_map(describe_evidence));
    lines.extend(entry.header.request.map(|request| ("request", request.to_string())));
    lines.into_iter().map(|(name, value)| format!("{name:<12}{value}\n")).collect()
}

fn describe_outcome(outcome: &Entry) -> String {
    let what = match &outcome.event {
        Event::Issued { certificate, .. } => format!("issued, SHA-256 {}", hex::encode(certificate)),
        Event::Failed { why, .. } => format!("failed, nothing was signed: {}: {}", why.reason, why.detail),
        Event::Unknown { why, .. } => format!("unknown, perhaps signed, not released: {}: {}", why.reason, why.detail),
        other => other.kind().to_owned(),
    };
    format!("{what}\n{:<12}{} at {}", "", outcome.header.time, outcome.reference())
}

fn describe_evidence(proof: &Proof) -> Vec<(&'static str, String)> {
    let mut lines = vec![("credential", proof.credential.clone())];
    let parts = [
        ("  issuer", &proof.issuer),
        ("  subject", &proof.subject),
        ("  token", &proof.token),
        ("  cluster", &proof.cluster),
        ("  peer", &proof.peer),
    ];
    lines.extend(parts.into_iter().filter_map(|(name, part)| Some((name, part.clone()?))));
    lines.extend(proof.pod.as_ref().map(|(name, uid)| ("  pod", format!("{name} ({uid})"))));
    lines
}

async fn export(reader: &mut LedgerReader) -> Result<(), Exit> {
    let mut out = BufWriter::new(io::stdout().lock());
    let written = reader.export(&mut out).await;
    match written.and_then(|()| out.flush().map_err(ReadError::from)) {
        // Whoever reads the lines may stop when they have seen enough.
        Err(ReadError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other.map_err(unreadable),
    }
}

fn print(text: &str) -> Result<(), Exit> {
    match io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Exit::missing(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_serial_is_read_as_openssl_or_the_ledger_print_it() {
        let serial = "03177369 01fae9 0102030405060708090a0b".replace(' ', "");
        for text in [serial.clone(), serial.to_uppercase(), serial[1..].to_owned(), format!("0x{serial}")] {
            assert!(matches!(Target::parse(&text), Ok(Target::Serial(found)) if found.to_string().len() == 36), "{text}");
        }
        for text in ["", "12", "spiffe://cluster.local", "hello", "0399999901fae9c00102030405060708090a0b"] {
            assert!(Target::parse(text).is_err_and(|exit| exit.code() == 2), "{text}");
        }
    }

    #[test]
    fn a_broken_ledger_names_its_rows_and_how_many_more_there_are() {
        let broken = crate::store::ledger::Broken { row: "period 202611 chain ab seq 7".into(), what: "its hash is another".into() };
        let report = Report { broken: vec![broken], broken_count: 3, ..Report::default() };
        let text = summary(&report);
        assert!(text.contains("BROKEN  period 202611 chain ab seq 7: its hash is another") && text.contains("and 2 more"), "{text}");
        assert!(summary(&Report::default()).contains("holds"));
    }
}
