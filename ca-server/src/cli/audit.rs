//! `audit`: what the ledger says and whether it holds, read beside the running daemon or when none
//! runs. Never writes.

mod export;
mod verify;

use clap::{Args, Subcommand};

use super::ledger_url::LedgerArgs;
use super::{Exit, print};
use crate::spiffe::SpiffeId;
use crate::store::ledger::event::{Event, Proof};
use crate::store::ledger::{Entry, LedgerReader, Location, ReadError};
use crate::timestamp::Timestamp;
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
    Verify(verify::VerifyArgs),
    /// Show what was issued under a serial number, or to an identity.
    Show {
        /// A serial in hex (colons allowed), or an identity: spiffe://<trust
        /// domain>/ns/<namespace>/sa/<account>.
        #[arg(value_name = "SERIAL|IDENTITY")]
        what: String,
        /// Show at most so many entries of an identity, newest first.
        #[arg(long, default_value_t = 20)]
        limit: u32,
    },
    /// Write rows as lines of JSON or of a table: all of them, or those of a time, identity, issuer
    /// or kind.
    Export(export::ExportArgs),
}

/// Answers the question from that ledger.
pub fn run(args: AuditArgs, ledger: &Location) -> Result<(), Exit> {
    if matches!(args.question, Question::Verify(_)) {
        verify::step_back();
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Exit::missing)?;
    // Arguments are judged before the ledger is looked at.
    match args.question {
        Question::Verify(args) => {
            let options = args.options()?;
            runtime
                .block_on(async { verify::verify(&mut open(ledger).await?, &args, &options).await })
        }
        Question::Show { what, limit } => {
            let target = Target::parse(&what)?;
            runtime.block_on(async { show(&mut open(ledger).await?, &target, limit).await })
        }
        Question::Export(args) => {
            let (selection, format) = args.selection()?;
            runtime.block_on(async {
                export::export(&mut open(ledger).await?, &selection, format).await
            })
        }
    }
}

async fn open(ledger: &Location) -> Result<LedgerReader, Exit> {
    LedgerReader::open(ledger).await.map_err(unreadable)
}

/// A time on the command line: RFC 3339, or a date, which is its first moment in UTC.
fn time_of(text: &str) -> Result<Timestamp, Exit> {
    let time = Timestamp::parse_rfc3339(text)
        .or_else(|| Timestamp::parse_rfc3339(&format!("{text}T00:00:00Z")));
    time.ok_or_else(|| {
        Exit::config(format_args!(
            "{text} is no time; write 2026-11-01 or 2026-11-01T12:00:00Z"
        ))
    })
}

fn unreadable(error: ReadError) -> Exit {
    match error {
        ReadError::Row { .. } => Exit::refused(error),
        _ => Exit::missing(error),
    }
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
                None => Err(Exit::config(format_args!(
                    "{what} is not an identity of the form spiffe://…/ns/…/sa/…"
                ))),
            };
        }
        // OpenSSL prints a serial with colons or in capitals, and with a leading zero octet left
        // out.
        let digits = what.trim_start_matches("0x").replace(':', "");
        let digits = if digits.len() % 2 == 1 {
            format!("0{digits}")
        } else {
            digits
        };
        let serial = hex::decode(digits)
            .ok()
            .as_deref()
            .and_then(Serial::from_bytes);
        let wrong = || {
            Exit::config(format_args!(
                "{what} is neither a serial number of this CA (36 hex digits) nor a spiffe:// identity"
            ))
        };
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
    let text: Vec<String> = entries
        .iter()
        .map(|(entry, outcome)| describe(entry, outcome.as_ref()))
        .collect();
    print(text.join("\n"))
}

fn describe(entry: &Entry, outcome: Option<&Entry>) -> String {
    let mut lines = Vec::new();
    let evidence = match &entry.event {
        Event::Intent(intent) => {
            lines.push(("serial", hex::encode(&intent.serial)));
            lines.push((
                "identity",
                intent
                    .identity
                    .clone()
                    .unwrap_or_else(|| "none (the daemon's own certificate)".into()),
            ));
            lines.push(("issuer", format!("{} ({})", intent.issuer, intent.purpose)));
            lines.push((
                "intent",
                format!("{} at {}", entry.header.time, entry.reference()),
            ));
            lines.push((
                "outcome",
                outcome.map_or_else(|| "none yet: perhaps issued".into(), describe_outcome),
            ));
            Some(&intent.evidence)
        }
        Event::Repeated {
            intent,
            identity,
            evidence,
        } => {
            lines.push((
                "repeated",
                format!("the certificate of the intent at {intent}"),
            ));
            lines.push(("identity", identity.clone()));
            lines.push((
                "at",
                format!("{} at {}", entry.header.time, entry.reference()),
            ));
            Some(evidence)
        }
        Event::Refused {
            why,
            identity,
            evidence,
        } => {
            lines.push((
                "refused",
                format!("{} ({}): {}", why.reason, why.code, why.detail),
            ));
            lines.push((
                "identity",
                identity.clone().unwrap_or_else(|| "none".into()),
            ));
            lines.push((
                "at",
                format!("{} at {}", entry.header.time, entry.reference()),
            ));
            Some(evidence)
        }
        Event::RefusedGroup(group) => {
            lines.push((
                "refused",
                format!("{} times {} ({})", group.count, group.reason, group.code),
            ));
            lines.push((
                "identity",
                group
                    .identity
                    .clone()
                    .unwrap_or_else(|| format!("none, from {}", group.prefix)),
            ));
            lines.push(("since", group.from.to_string()));
            lines.push((
                "at",
                format!("{} at {}", entry.header.time, entry.reference()),
            ));
            None
        }
        other => {
            lines.push((
                "row",
                format!(
                    "{} {} at {}",
                    other.kind(),
                    entry.header.time,
                    entry.reference()
                ),
            ));
            None
        }
    };
    lines.extend(evidence.into_iter().flat_map(describe_evidence));
    lines.extend(
        entry
            .header
            .request
            .map(|request| ("request", request.to_string())),
    );
    lines
        .into_iter()
        .map(|(name, value)| format!("{name:<12}{value}\n"))
        .collect()
}

fn describe_outcome(outcome: &Entry) -> String {
    let what = match &outcome.event {
        Event::Issued { certificate, .. } => {
            format!("issued, SHA-256 {}", hex::encode(certificate))
        }
        Event::Failed { why, .. } => {
            format!("failed, nothing was signed: {}: {}", why.reason, why.detail)
        }
        Event::Unknown { why, .. } => format!(
            "unknown, perhaps signed, not released: {}: {}",
            why.reason, why.detail
        ),
        other => other.kind().to_owned(),
    };
    format!(
        "{what}\n{:<12}{} at {}",
        "",
        outcome.header.time,
        outcome.reference()
    )
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
    lines.extend(
        parts
            .into_iter()
            .filter_map(|(name, part)| Some((name, part.clone()?))),
    );
    lines.extend(
        proof
            .pod
            .as_ref()
            .map(|(name, uid)| ("  pod", format!("{name} ({uid})"))),
    );
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_serial_is_read_as_openssl_or_the_ledger_print_it() {
        let serial = "03177369 01fae9 0102030405060708090a0b".replace(' ', "");
        for text in [
            serial.clone(),
            serial.to_uppercase(),
            serial[1..].to_owned(),
            format!("0x{serial}"),
        ] {
            assert!(
                matches!(Target::parse(&text), Ok(Target::Serial(found)) if found.to_string().len() == 36),
                "{text}"
            );
        }
        for text in [
            "",
            "12",
            "spiffe://cluster.local",
            "hello",
            "0399999901fae9c00102030405060708090a0b",
        ] {
            assert!(
                Target::parse(text).is_err_and(|exit| exit.code() == 2),
                "{text}"
            );
        }
    }
}
