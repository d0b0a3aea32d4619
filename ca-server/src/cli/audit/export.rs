//! `audit export`: the command's options, and standard output.

use std::io::{BufWriter, Write};

use clap::{Args, ValueEnum};

use super::{time_of, unreadable};
use crate::cli::Exit;
use crate::output;
use crate::spiffe::SpiffeId;
use crate::store::ledger::{Format, LedgerReader, ReadError, Selection};

#[derive(Args, Debug)]
pub(super) struct ExportArgs {
    /// JSON lines, or comma-separated values with a header.
    #[arg(long, value_enum, default_value = "jsonl")]
    format: Written,
    /// Only rows of this time or later: RFC 3339, or a date (UTC).
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Only rows before this time.
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// Only what this identity asked for: spiffe://…, its intents, each followed by its outcome,
    /// its repeats and its refusals.
    #[arg(long, value_name = "IDENTITY")]
    identity: Option<String>,
    /// Only intents that name this issuer by its id, their outcomes, and the issuer's own rows.
    #[arg(long, value_name = "ID")]
    issuer: Option<String>,
    /// Only rows of this kind (intent, issued, failed, unknown, repeated, refused, …); may be given
    /// more than once.
    #[arg(long = "kind", value_name = "KIND")]
    kinds: Vec<String>,
}

/// Rows that cannot be read and are named one by one.
const NAMED: u64 = 100;

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Written {
    Jsonl,
    Csv,
}

impl ExportArgs {
    /// What is to be written, and how.
    pub(super) fn selection(self) -> Result<(Selection, Format), Exit> {
        if let Some(identity) = self
            .identity
            .as_deref()
            .filter(|identity| SpiffeId::parse(identity).is_none())
        {
            return Err(Exit::config(format_args!(
                "{identity} is not an identity of the form spiffe://…/ns/…/sa/…"
            )));
        }
        let selection = Selection {
            since: self.since.as_deref().map(time_of).transpose()?,
            until: self.until.as_deref().map(time_of).transpose()?,
            identity: self.identity,
            issuer: self.issuer,
            kinds: self.kinds,
        };
        let format = match self.format {
            Written::Jsonl => Format::JsonLines,
            Written::Csv => Format::Csv,
        };
        Ok((selection, format))
    }
}

pub(super) async fn export(
    reader: &mut LedgerReader,
    selection: &Selection,
    format: Format,
) -> Result<(), Exit> {
    let mut out = BufWriter::new(output::writer());
    let mut count = 0_u64;
    let mut passed_over = |error: ReadError| {
        count += 1;
        if count <= NAMED {
            output::complain(format_args!("ca-server: passed over: {error}"));
        }
    };
    let written = reader
        .export(selection, format, &mut out, &mut passed_over)
        .await;
    if count > NAMED {
        output::complain(format_args!(
            "ca-server: passed over: {} more rows that cannot be read",
            count - NAMED
        ));
    }
    match written.and_then(|()| out.flush().map_err(ReadError::from)) {
        Err(ReadError::Output(error)) => Err(Exit::unwritten(error)),
        other => other.map_err(unreadable),
    }
}
