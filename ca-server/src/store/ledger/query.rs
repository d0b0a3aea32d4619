//! Reading the ledger beside the daemon that writes it, or when none runs. A reader cannot write; what it reads is decoded, and
//! checked only by `verify`.

use std::collections::HashMap;
use std::path::PathBuf;

use super::body::{BadBody, decode};
use super::database::Database;
use super::event::{ChainId, Event, Hash, Header, Intent, Place, RowRef, StoredRow};
use super::location::Location;
use super::schema::DatabaseError;
use crate::timestamp::Period;
use crate::x509::Serial;

/// Why the ledger cannot be read. Each says it in one sentence.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// There is no file.
    #[error("there is no ledger at {0}")]
    Missing(PathBuf),
    /// The file or database is there and is not a ledger that this program knows.
    #[error("{0} is not a ledger that this version of the program can read")]
    Unknown(String),
    /// The database does not work.
    #[error("the ledger cannot be read: {0}")]
    Database(#[from] DatabaseError),
    /// A row's body is not one.
    #[error("the row at {row} cannot be read ({cause}); `audit verify` tells more")]
    Row {
        /// Where it stands.
        row: String,
        /// What is wrong.
        cause: BadBody,
    },
    /// What was read could not be passed on.
    #[error("{0}")]
    Output(#[from] std::io::Error),
}

/// One row, decoded.
#[derive(Clone, Debug)]
pub struct Entry {
    /// What every body begins with.
    pub header: Header,
    /// The rest.
    pub event: Event,
    /// The row's hash.
    pub hash: Hash,
}

impl Entry {
    /// How other rows name this one.
    pub fn reference(&self) -> RowRef {
        RowRef { chain: self.header.chain, place: self.header.place, hash: self.hash }
    }
}

impl TryFrom<&StoredRow> for Entry {
    type Error = ReadError;

    fn try_from(row: &StoredRow) -> Result<Self, ReadError> {
        let (header, event) = decode(&row.body).map_err(|cause| ReadError::Row { row: row.to_string(), cause })?;
        Ok(Self { header, event, hash: row.hash.as_slice().try_into().unwrap_or_default() })
    }
}

/// A read-only view of a ledger.
#[derive(Debug)]
pub struct LedgerReader {
    pub(super) database: Database,
}

/// A row, and the outcome if it is an intent that has one.
pub type Found = (Entry, Option<Entry>);

/// What is looked for: an issuance by its serial, or so many entries of an identity.
enum Sought<'a> {
    Serial(&'a Serial),
    Identity(&'a str, u32),
}

type Successors = HashMap<ChainId, (ChainId, Place)>;

/// Rows read at a time.
const PAGE: u32 = 500;

impl LedgerReader {
    /// Opens a ledger for reading.
    pub async fn open(location: &Location) -> Result<Self, ReadError> {
        if let Location::Sqlite(path) = location
            && !path.exists()
        {
            return Err(ReadError::Missing(path.clone()));
        }
        let mut database = Database::reader(location).await?;
        match database.schema_is_known().await {
            Ok(true) => Ok(Self { database }),
            Ok(false) => Err(ReadError::Unknown(location.to_string())),
            // Of SQLite. Code 1: there is no such table. Code 26: the file is no database.
            Err(DatabaseError::Database(error)) if matches!(error.code().as_deref(), Some("1" | "26")) => {
                Err(ReadError::Unknown(location.to_string()))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// What was issued under a serial, or refused, or left open.
    pub async fn issuances_of_serial(&mut self, serial: &Serial) -> Result<Vec<Found>, ReadError> {
        self.found(Sought::Serial(serial)).await
    }

    /// The newest `limit` intents and refusals of an identity, newest first; intents with their outcomes.
    pub async fn entries_of_identity(&mut self, identity: &str, limit: u32) -> Result<Vec<Found>, ReadError> {
        self.found(Sought::Identity(identity, limit)).await
    }

    /// What is sought, and all outcomes, in one snapshot.
    async fn found(&mut self, sought: Sought<'_>) -> Result<Vec<Found>, ReadError> {
        self.database.begin_snapshot().await?;
        let found = self.with_outcomes(sought).await;
        let ended = self.database.end_snapshot().await;
        let found = found?;
        ended?;
        Ok(found)
    }

    async fn with_outcomes(&mut self, sought: Sought<'_>) -> Result<Vec<Found>, ReadError> {
        let rows = match sought {
            Sought::Serial(serial) => self.database.intents_of_serial(serial.period(), serial.as_bytes()).await?,
            Sought::Identity(identity, limit) => self.database.rows_of_identity(identity, limit).await?,
        };
        let successors = self.successors().await?;
        let mut entries = Vec::with_capacity(rows.len());
        for row in &rows {
            let entry = Entry::try_from(row)?;
            let outcome = match entry.event {
                Event::Intent(_) => self.outcome_of(entry.reference(), &successors).await?,
                _ => None,
            };
            entries.push((entry, outcome));
        }
        Ok(entries)
    }

    /// For each chain that was found dead, the one that declared it ended, and the place of that row.
    async fn successors(&mut self) -> Result<Successors, ReadError> {
        let mut successors = Successors::new();
        for row in self.database.marks().await? {
            let entry = Entry::try_from(&row)?;
            if let Event::ChainEnded { head } = entry.event {
                successors.entry(head.chain).or_insert((entry.header.chain, entry.header.place));
            }
        }
        Ok(successors)
    }

    /// The outcome of an intent. It follows in the intent's own chain, soon; or, if that chain was found dead, in the chain that
    /// declared it ended.
    async fn outcome_of(&mut self, intent: RowRef, successors: &Successors) -> Result<Option<Entry>, ReadError> {
        let next = Place { seq: intent.place.seq + 1, ..intent.place };
        if let Some(outcome) = self.find_outcome(intent, intent.chain, next).await? {
            return Ok(Some(outcome));
        }
        match successors.get(&intent.chain) {
            Some((chain, ended)) => self.find_outcome(intent, *chain, Place { seq: 0, ..*ended }).await,
            None => Ok(None),
        }
    }

    async fn find_outcome(&mut self, intent: RowRef, chain: ChainId, from: Place) -> Result<Option<Entry>, ReadError> {
        for period in self.periods().await?.into_iter().filter(|period| *period >= from.period) {
            let mut next = if period == from.period { from } else { Place { period, seq: 0 } };
            loop {
                let rows = self.database.chain_page(chain, next, PAGE).await?;
                let Some(last) = rows.last() else { break };
                next.seq = u64::try_from(last.seq).unwrap_or(u64::MAX).saturating_add(1);
                for row in &rows {
                    let entry = Entry::try_from(row)?;
                    if entry.event.closes() == Some(intent) {
                        return Ok(Some(entry));
                    }
                    // A later row that does not count it as open says that its outcome stands before: it was passed, or is missing.
                    if chain == intent.chain && entry.header.oldest_open.is_none_or(|oldest| oldest > intent.place) {
                        return Ok(None);
                    }
                }
            }
        }
        Ok(None)
    }

    /// The intent that an outcome names.
    pub async fn intent(&mut self, reference: RowRef) -> Result<Option<Intent>, ReadError> {
        let Some(row) = self.database.row(reference.chain, reference.place).await? else { return Ok(None) };
        match Entry::try_from(&row)?.event {
            Event::Intent(intent) => Ok(Some(intent)),
            _ => Ok(None),
        }
    }

    async fn periods(&mut self) -> Result<Vec<Period>, ReadError> {
        let periods = self.database.periods().await?;
        Ok(periods.into_iter().filter_map(|period| Period::new(u32::try_from(period).ok()?)).collect())
    }
}

/// All rows of one snapshot, in the order (period, chain, seq), some at a time.
#[derive(Debug)]
pub(super) struct Cursor {
    periods: std::vec::IntoIter<i64>,
    period: Option<i64>,
    after: Option<(Vec<u8>, i64)>,
}

impl Cursor {
    /// Begins the snapshot. Returns how many rows it has, too.
    pub(super) async fn begin(database: &mut Database) -> Result<(Self, u64), DatabaseError> {
        database.begin_snapshot().await?;
        let mut periods = database.periods().await?.into_iter();
        let total = database.row_count().await?;
        Ok((Self { period: periods.next(), periods, after: None }, total))
    }

    /// The next rows; none at the end.
    pub(super) async fn next(&mut self, database: &mut Database) -> Result<Vec<StoredRow>, DatabaseError> {
        while let Some(period) = self.period {
            let after = self.after.as_ref().map(|(chain, seq)| (chain.as_slice(), *seq));
            let rows = database.page(period, after, PAGE).await?;
            if let Some(last) = rows.last() {
                self.after = Some((last.chain.clone(), last.seq));
                return Ok(rows);
            }
            (self.period, self.after) = (self.periods.next(), None);
        }
        Ok(Vec::new())
    }
}
