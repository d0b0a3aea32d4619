//! `audit verify`: the command's options, its progress, and what it says in the end.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};

use super::{print, time_of, unreadable};
use crate::cli::Exit;
use crate::output;
use crate::store::ledger::{Begin, Checkpoint, LedgerReader, Report, TrustedRoots, VerifyOptions};

/// How much lower than usual the priority of `audit verify` is: beside a daemon it takes what is
/// left over.
const NICE: i32 = 10;

#[derive(Args, Debug)]
pub(super) struct VerifyArgs {
    /// Take for granted every row before this time: RFC 3339, or a date (UTC). The links from those
    /// rows on are still checked.
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Go on where this file says; write it when nothing is broken, also when interrupted.
    ///
    /// The next run checks that the last row it has of each chain is still there, and everything
    /// after it. Nothing protects the file: who can write it can say that rows were checked which
    /// never were. Keep it where the ledger's writers cannot reach.
    #[arg(long, value_name = "FILE")]
    checkpoint: Option<PathBuf>,
    /// The roots that you trust, PEM: an issuer that a chain names and that does not stand under
    /// one of them is a finding.
    ///
    /// Without it every issuer that the ledger names is believed: compare the fingerprints that are
    /// printed in the end with your own.
    #[arg(long, value_name = "FILE")]
    roots: Option<PathBuf>,
    /// `none` leaves out whether signatures are the issuers', which takes longer than everything
    /// else together.
    #[arg(long, value_enum, default_value = "all")]
    signatures: Signatures,
    /// Threads that check, beside the one that reads [default: as many as there are cores]. They
    /// run at a lower priority than others.
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Signatures {
    All,
    None,
}

impl VerifyArgs {
    /// What is to be done. Reads the checkpoint, and not yet the ledger.
    pub(super) fn options(&self) -> Result<VerifyOptions, Exit> {
        let signatures = self.signatures == Signatures::All;
        let since = self.since.as_deref().map(time_of).transpose()?;
        let checkpoint = self
            .checkpoint
            .as_deref()
            .map(Checkpoint::read)
            .transpose()
            .map_err(Exit::config)?
            .flatten();
        let roots = self.roots.as_deref().map(trusted).transpose()?;
        let begin = match (checkpoint, since) {
            (Some(_), Some(_)) => {
                return Err(Exit::config(
                    "the checkpoint says where to go on; leave out --since, or remove the file",
                ));
            }
            (Some(checkpoint), None) if signatures && !checkpoint.has_signatures() => {
                let why = "the checkpoint was made without checking signatures; add --signatures none, or remove the file to begin anew";
                return Err(Exit::config(why));
            }
            (Some(checkpoint), None) if !checkpoint.is_by(roots.as_ref()) => {
                let why = "the checkpoint was made with other --roots, or without; give the same, or remove the file to begin anew";
                return Err(Exit::config(why));
            }
            (Some(checkpoint), None) => Begin::Checkpoint(Box::new(checkpoint)),
            (None, Some(since)) => Begin::Since(since),
            (None, None) => Begin::FirstRow,
        };
        let usual = VerifyOptions::default();
        Ok(VerifyOptions {
            begin,
            signatures,
            roots: roots.map(Arc::new),
            threads: self.threads.unwrap_or(usual.threads),
        })
    }
}

fn trusted(path: &Path) -> Result<TrustedRoots, Exit> {
    let pem = std::fs::read(path)
        .map_err(|error| Exit::config(format_args!("--roots {}: {error}", path.display())))?;
    TrustedRoots::parse(&pem)
        .map_err(|why| Exit::config(format_args!("--roots {} {why}", path.display())))
}

/// Lowers the priority of this thread and of those that it starts. Where that is not possible the
/// work is done all the same.
pub(super) fn step_back() {
    if let Err(error) = rustix::process::nice(NICE) {
        tracing::debug!(%error, "the priority stays as it is");
    }
}

pub(super) async fn verify(
    reader: &mut LedgerReader,
    args: &VerifyArgs,
    options: &VerifyOptions,
) -> Result<(), Exit> {
    let bar = if output::error_is_terminal() {
        ProgressBar::new(0)
    } else {
        ProgressBar::hidden()
    };
    let style = ProgressStyle::with_template(
        "  checking {wide_bar} {human_pos}/{human_len} rows  {per_sec}  {eta} left",
    );
    bar.set_style(style.expect("the template is a constant"));
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    let interrupt = tokio::spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            stopped.store(true, Ordering::Relaxed);
        }
    });
    let verified = reader.verify(options, &stop, |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    });
    let verified = verified.await;
    interrupt.abort();
    bar.finish_and_clear();
    let (report, checkpoint) = verified.map_err(unreadable)?;
    if let (Some(path), Some(checkpoint)) = (&args.checkpoint, checkpoint) {
        checkpoint.write(path).map_err(Exit::missing)?;
    }
    print(summary(&report, options.roots.as_deref()))?;
    match report.broken_count {
        0 if report.interrupted && args.checkpoint.is_some() => Err(Exit::missing(
            "interrupted; the same command goes on from here",
        )),
        0 if report.interrupted => Err(Exit::missing(
            "interrupted; with --checkpoint a later run could go on from here",
        )),
        0 => Ok(()),
        1 => Err(Exit::refused("the ledger is broken: 1 finding")),
        count => Err(Exit::refused(format_args!(
            "the ledger is broken: {count} findings"
        ))),
    }
}

/// Who signs, by fingerprints as `openssl x509 -fingerprint -sha256` prints them.
fn issuers(report: &Report, roots: Option<&TrustedRoots>) -> String {
    let mut text = String::new();
    for issuer in &report.issuers {
        text += &format!(
            "Issuer {}, SHA-256 {}\n",
            issuer.id,
            fingerprint(&issuer.certificate)
        );
        for root in &issuer.roots {
            let judged = match roots {
                Some(roots) if roots.has(root) => ", trusted",
                Some(_) => ", which is none of those that are trusted",
                None => "",
            };
            text += &format!("  under the root {}{judged}\n", fingerprint(root));
        }
    }
    if roots.is_none() && !report.issuers.is_empty() {
        text += "These issuers are believed because the ledger names them; --roots FILE holds them against roots that you trust.\n";
    }
    text
}

fn fingerprint(sha256: &[u8]) -> String {
    sha256
        .iter()
        .map(|octet| format!("{octet:02X}"))
        .collect::<Vec<_>>()
        .join(":")
}

fn summary(report: &Report, roots: Option<&TrustedRoots>) -> String {
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
        (
            report.unknown,
            "  are unknown: a signature may exist, none was released",
        ),
        (report.open, "  have no outcome yet"),
        (report.repeated, "times a certificate was given out again"),
        (report.refusals, "rows of refusals"),
    ] {
        text += &format!("{count:>12}  {what}\n");
    }
    text += &issuers(report, roots);
    if report.earlier > 0 {
        text += &format!(
            "{:>12}  rows come before the checkpoint and were not read again\n",
            report.earlier
        );
    }
    if let Some(since) = report.since {
        text += &format!("Rows before {since} were taken for granted.\n");
    }
    if report.signatures_skipped {
        text += "SIGNATURES WERE NOT CHECKED: certificates may have been signed by others than their issuers.\n";
    }
    text += match (
        report.broken_count,
        report.interrupted,
        report.signatures_skipped,
    ) {
        (0, false, false) => "Every chain, signature and certificate holds.\n",
        (0, false, true) => "Every chain holds, and every certificate but for its signature.\n",
        (0, true, _) => "Nothing is broken as far as it was read.\n",
        _ => "",
    };
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_ledger_names_its_rows_and_how_many_more_there_are() {
        let broken = crate::store::ledger::Broken {
            row: "period 202611 chain ab seq 7".into(),
            what: "its hash is another".into(),
        };
        let report = Report {
            broken: vec![broken],
            broken_count: 3,
            ..Report::default()
        };
        let text = summary(&report, None);
        assert!(
            text.contains("BROKEN  period 202611 chain ab seq 7: its hash is another")
                && text.contains("and 2 more"),
            "{text}"
        );
        assert!(!text.contains("holds"), "{text}");
        assert!(
            summary(&Report::default(), None)
                .contains("Every chain, signature and certificate holds")
        );
    }

    #[test]
    fn a_checkpoint_is_taken_up_as_it_was_made() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("checkpoint");
        let args = |since: Option<&str>, signatures| VerifyArgs {
            roots: None,
            since: since.map(str::to_owned),
            checkpoint: Some(path.clone()),
            signatures,
            threads: None,
        };
        assert!(
            matches!(
                args(None, Signatures::All).options().unwrap().begin,
                Begin::FirstRow
            ),
            "there is none yet"
        );
        assert!(matches!(
            args(Some("2026-11-01"), Signatures::All)
                .options()
                .unwrap()
                .begin,
            Begin::Since(_)
        ));
        let lists = r#""issuers": [], "chains": [], "early": [], "named": [], "undeclared": []"#;
        std::fs::write(
            &path,
            format!(r#"{{"version": 1, "rows": 7, "since": null, "signatures": false, {lists}}}"#),
        )
        .unwrap();
        let options = args(None, Signatures::None).options().unwrap();
        assert!(
            matches!(&options.begin, Begin::Checkpoint(checkpoint) if checkpoint.rows() == 7)
                && !options.signatures
        );
        for (args, why) in [
            (args(None, Signatures::All), "without checking signatures"),
            (args(Some("2026-11-01"), Signatures::None), "--since"),
        ] {
            let exit = args.options().unwrap_err();
            assert!(exit.code() == 2 && exit.to_string().contains(why), "{exit}");
        }
        std::fs::write(&path, "something else").unwrap();
        assert_eq!(
            args(None, Signatures::None).options().unwrap_err().code(),
            2
        );
    }

    #[test]
    fn a_time_is_a_date_or_rfc_3339() {
        assert_eq!(
            time_of("2026-11-22").unwrap().rfc3339(),
            "2026-11-22T00:00:00.000000Z"
        );
        assert_eq!(
            time_of("2026-11-22T13:00:00+01:00").unwrap().rfc3339(),
            "2026-11-22T12:00:00.000000Z"
        );
        assert_eq!(time_of("yesterday").unwrap_err().code(), 2);
    }

    #[test]
    fn what_was_not_checked_is_said_plainly() {
        let text = summary(
            &Report {
                signatures_skipped: true,
                ..Report::default()
            },
            None,
        );
        assert!(
            text.contains("SIGNATURES WERE NOT CHECKED")
                && !text.contains("signature and certificate holds"),
            "{text}"
        );
        let since = crate::timestamp::Timestamp::from_seconds(1_795_348_800);
        let text = summary(
            &Report {
                since: Some(since),
                ..Report::default()
            },
            None,
        );
        assert!(
            text.contains("before 2026-11-22T12:00:00.000000Z were taken for granted"),
            "{text}"
        );
        let text = summary(
            &Report {
                interrupted: true,
                ..Report::default()
            },
            None,
        );
        assert!(
            text.contains("as far as it was read") && !text.contains("holds"),
            "{text}"
        );
    }
}
