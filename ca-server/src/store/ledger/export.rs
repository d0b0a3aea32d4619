//! The ledger for people and programs that do not read CBOR: JSON lines or a table, one line a row,
//! whole or what is selected. It is written while it is read; memory holds a page, the open intents
//! of one chain, and the places of one identity in one month.

mod line;
mod table;

use std::collections::BTreeMap;
use std::io::Write;

use self::line::line;
use super::event::{ChainId, Event, Intent, Place, StoredRow};
use super::query::{Entry, LedgerReader, ReadError};
use crate::timestamp::{Period, Timestamp};

/// How the rows are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A JSON object a line.
    JsonLines,
    /// Comma-separated values (RFC 4180) under a header.
    Csv,
}

/// Which rows are written; by default all.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// Rows of that time or later.
    pub since: Option<Timestamp>,
    /// Rows before that time.
    pub until: Option<Timestamp>,
    /// What an identity asked for: its intents, each followed by its outcome, its repeats and its
    /// refusals.
    pub identity: Option<String>,
    /// Intents that name this issuer, their outcomes and repeats, and the issuer's own rows and its
    /// tokens'.
    pub issuer: Option<String>,
    /// Rows of these kinds; all if empty.
    pub kinds: Vec<String>,
}

/// Rows read at a time.
const PAGE: u32 = 1000;

/// Intents whose outcomes are awaited; one beyond them is read again when its outcome comes.
const AWAITED: usize = 4096;

impl LedgerReader {
    /// Writes what is selected of one snapshot: chain by chain in each period.
    /// A row that cannot be read is passed over, and `unreadable` hears where it stands and why.
    pub async fn export(
        &mut self,
        selection: &Selection,
        format: Format,
        out: &mut impl Write,
        unreadable: &mut dyn FnMut(ReadError),
    ) -> Result<(), ReadError> {
        let mut writer = Writer::new(selection, format, out, unreadable)?;
        self.database.begin_snapshot().await?;
        let written = match &selection.identity {
            Some(identity) => self.export_identity(identity, &mut writer).await,
            None => self.export_all(&mut writer).await,
        };
        let ended = self.database.end_snapshot().await;
        written?;
        ended?;
        writer.flush()
    }

    async fn export_all(&mut self, writer: &mut Writer<'_, impl Write>) -> Result<(), ReadError> {
        let (from, until) = writer.selection.window();
        let mut awaited = Awaited::default();
        for period in self.periods_between(from, until).await? {
            let mut after: Option<(Vec<u8>, i64)> = None;
            loop {
                let place = after.as_ref().map(|(chain, seq)| (chain.as_slice(), *seq));
                let rows = self
                    .database
                    .page_between(period, place, (from, until), PAGE)
                    .await?;
                let Some(last) = rows.last() else { break };
                after = Some((last.chain.clone(), last.seq));
                for row in &rows {
                    self.export_row(row, &mut awaited, writer).await?;
                }
            }
        }
        Ok(())
    }

    async fn export_row(
        &mut self,
        row: &StoredRow,
        awaited: &mut Awaited,
        writer: &mut Writer<'_, impl Write>,
    ) -> Result<(), ReadError> {
        let Some(entry) = writer.read(row) else {
            return Ok(());
        };
        if let Event::Intent(intent) = &entry.event {
            awaited.add(entry.header.chain, entry.header.place, intent);
        }
        let intent = match (entry.event.closes(), entry.event.gives_again()) {
            (Some(reference), _) => match awaited.take(reference.chain, reference.place) {
                Some(intent) => Some(intent),
                None => self.intent(reference).await?,
            },
            (None, Some(reference)) => self.intent(reference).await?,
            (None, None) => None,
        };
        writer.write(entry, intent)
    }

    async fn export_identity(
        &mut self,
        identity: &str,
        writer: &mut Writer<'_, impl Write>,
    ) -> Result<(), ReadError> {
        let (from, until) = writer.selection.window();
        // An intent from before the time may have its outcome in it.
        for period in self
            .periods_between(Timestamp::from_micros(0), until)
            .await?
        {
            for (chain, place) in self.database.places_of_identity(identity, period).await? {
                let Some(row) = self.database.row(chain, place).await? else {
                    continue;
                };
                let Some(entry) = writer.read(&row) else {
                    continue;
                };
                if entry.header.time >= until {
                    continue;
                }
                let outcome = match &entry.event {
                    Event::Intent(intent) => self
                        .outcome_of(&entry)
                        .await?
                        .map(|outcome| (outcome, intent.clone())),
                    _ => None,
                };
                if entry.header.time >= from {
                    let intent = match entry.event.gives_again() {
                        Some(reference) => self.intent(reference).await?,
                        None => None,
                    };
                    writer.write(entry, intent)?;
                }
                if let Some((outcome, intent)) =
                    outcome.filter(|(outcome, _)| (from..until).contains(&outcome.header.time))
                {
                    writer.write(outcome, Some(intent))?;
                }
            }
        }
        Ok(())
    }

    async fn periods_between(
        &mut self,
        from: Timestamp,
        until: Timestamp,
    ) -> Result<Vec<Period>, ReadError> {
        Ok(self
            .database
            .months()
            .await?
            .into_iter()
            .filter(|period| (from.period()..=until.period()).contains(period))
            .collect())
    }
}

impl Selection {
    /// From when on, and before when.
    fn window(&self) -> (Timestamp, Timestamp) {
        (
            self.since.unwrap_or(Timestamp::from_micros(0)),
            self.until.unwrap_or(Timestamp::from_micros(i64::MAX)),
        )
    }

    /// Whether a row is of the kinds and of the issuer. `intent` is the one that it closes.
    fn has(&self, entry: &Entry, intent: Option<&Intent>) -> bool {
        let of_kind =
            self.kinds.is_empty() || self.kinds.iter().any(|kind| kind == entry.event.kind());
        of_kind
            && self.issuer.as_ref().is_none_or(|issuer| {
                Some(issuer.as_str())
                    == intent
                        .map(|intent| intent.issuer.as_str())
                        .or(entry.event.projection().issuer)
            })
    }
}

/// Intents of the chain that is being read.
#[derive(Default)]
struct Awaited {
    chain: Option<ChainId>,
    intents: BTreeMap<Place, Intent>,
}

impl Awaited {
    fn add(&mut self, chain: ChainId, place: Place, intent: &Intent) {
        if self.chain.replace(chain) != Some(chain) {
            self.intents.clear();
        }
        self.intents.insert(place, intent.clone());
        if self.intents.len() > AWAITED {
            self.intents.pop_first();
        }
    }

    fn take(&mut self, chain: ChainId, place: Place) -> Option<Intent> {
        if self.chain == Some(chain) {
            self.intents.remove(&place)
        } else {
            None
        }
    }
}

/// Writes what is selected.
struct Writer<'a, W: Write> {
    selection: &'a Selection,
    unreadable: &'a mut dyn FnMut(ReadError),
    out: Out<'a, W>,
}

enum Out<'a, W: Write> {
    JsonLines(&'a mut W),
    Csv(Box<csv::Writer<&'a mut W>>),
}

impl<'a, W: Write> Writer<'a, W> {
    fn new(
        selection: &'a Selection,
        format: Format,
        out: &'a mut W,
        unreadable: &'a mut dyn FnMut(ReadError),
    ) -> Result<Self, ReadError> {
        let out = match format {
            Format::JsonLines => Out::JsonLines(out),
            Format::Csv => {
                let mut table = csv::Writer::from_writer(out);
                table.write_record(table::HEADER).map_err(not_written)?;
                Out::Csv(Box::new(table))
            }
        };
        Ok(Self {
            selection,
            unreadable,
            out,
        })
    }

    /// The row, unless it cannot be read.
    fn read(&mut self, row: &StoredRow) -> Option<Entry> {
        Entry::try_from(row).map_err(&mut *self.unreadable).ok()
    }

    fn write(&mut self, entry: Entry, intent: Option<Intent>) -> Result<(), ReadError> {
        if !self.selection.has(&entry, intent.as_ref()) {
            return Ok(());
        }
        let line = line(entry, intent);
        match &mut self.out {
            Out::JsonLines(out) => {
                serde_json::to_writer(&mut **out, &line).map_err(std::io::Error::from)?;
                out.write_all(b"\n")?;
            }
            Out::Csv(table) => table
                .write_record(table::record(line).map_err(std::io::Error::from)?)
                .map_err(not_written)?,
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), ReadError> {
        match &mut self.out {
            Out::JsonLines(out) => out.flush()?,
            Out::Csv(table) => table.flush()?,
        }
        Ok(())
    }
}

/// A broken pipe stays one.
fn not_written(error: csv::Error) -> std::io::Error {
    match error.into_kind() {
        csv::ErrorKind::Io(error) => error,
        other => std::io::Error::other(format!("{other:?}")),
    }
}
