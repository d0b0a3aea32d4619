//! Reading the ledger beside the daemon that writes it, or when none runs. A reader cannot write;
//! what it reads is decoded, and checked only by `verify`.

use std::path::PathBuf;

use super::body::{BadBody, decode};
use super::database::Database;
use super::event::{Event, Hash, Header, Intent, Place, RowRef, StoredRow};
use super::location::Location;
use super::schema::DatabaseError;
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
        RowRef {
            chain: self.header.chain,
            place: self.header.place,
            hash: self.hash,
        }
    }
}

impl TryFrom<&StoredRow> for Entry {
    type Error = ReadError;

    fn try_from(row: &StoredRow) -> Result<Self, ReadError> {
        let (header, event) = decode(&row.body).map_err(|cause| ReadError::Row {
            row: row.to_string(),
            cause,
        })?;
        Ok(Self {
            header,
            event,
            hash: row.hash.as_slice().try_into().unwrap_or_default(),
        })
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

/// Rows among which an outcome is looked for first: it stands soon after its intent, mostly.
const FIRST_ROWS: u64 = 128;

/// Rows among which it is looked for at a time when it does not.
const MOST_ROWS: u64 = 8192;

/// Rows read at a time of those that a chain's successor filed.
const PAGE: u32 = 64;

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
            Err(DatabaseError::Database(error))
                if matches!(error.code().as_deref(), Some("1" | "26")) =>
            {
                Err(ReadError::Unknown(location.to_string()))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// What was issued under a serial, or refused, or left open.
    pub async fn issuances_of_serial(&mut self, serial: &Serial) -> Result<Vec<Found>, ReadError> {
        self.found(Sought::Serial(serial)).await
    }

    /// The newest `limit` intents, repeats and refusals of an identity, newest first; intents with
    /// their outcomes.
    pub async fn entries_of_identity(
        &mut self,
        identity: &str,
        limit: u32,
    ) -> Result<Vec<Found>, ReadError> {
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
            Sought::Serial(serial) => {
                self.database
                    .intents_of_serial(serial.period(), serial.as_bytes())
                    .await?
            }
            Sought::Identity(identity, limit) => {
                self.database.rows_of_identity(identity, limit).await?
            }
        };
        let mut entries = Vec::with_capacity(rows.len());
        for row in &rows {
            let entry = Entry::try_from(row)?;
            let outcome = match entry.event {
                Event::Intent(_) => self.outcome_of(&entry).await?,
                _ => None,
            };
            entries.push((entry, outcome));
        }
        Ok(entries)
    }

    /// The outcome of an intent. It follows in the intent's own chain, soon; or, if that chain was
    /// found dead, in the chain that declared it ended.
    pub(super) async fn outcome_of(&mut self, intent: &Entry) -> Result<Option<Entry>, ReadError> {
        if let Some(outcome) = outcome_in_own_chain(&mut self.database, intent.reference()).await? {
            return Ok(Some(outcome));
        }
        let Some(ending) = self.database.ending(intent.header.chain).await? else {
            return Ok(None);
        };
        let Ok(ending) = Entry::try_from(&ending) else {
            return Ok(None);
        };
        match ending.event {
            Event::ChainEnded { .. } => {
                self.outcome_before(ending.reference(), intent.reference())
                    .await
            }
            _ => Ok(None),
        }
    }

    /// The outcome of an intent of the chain that is declared ended there: these stand just before,
    /// one after the other.
    async fn outcome_before(
        &mut self,
        declaration: RowRef,
        intent: RowRef,
    ) -> Result<Option<Entry>, ReadError> {
        let mut before = declaration.place;
        while before.seq > 0 {
            let from = Place {
                seq: before.seq.saturating_sub(PAGE.into()),
                ..before
            };
            let limit = u32::try_from(before.seq - from.seq).unwrap_or(PAGE);
            for row in self
                .database
                .chain_page(declaration.chain, from, limit)
                .await?
                .iter()
                .rev()
            {
                let Ok(entry) = Entry::try_from(row) else {
                    continue;
                };
                match entry.event.closes() {
                    Some(closed) if closed == intent => return Ok(Some(entry)),
                    Some(closed) if closed.chain == intent.chain => {}
                    _ => return Ok(None),
                }
            }
            before = from;
        }
        Ok(None)
    }

    /// The intent that an outcome or a repeat names.
    pub(super) async fn intent(&mut self, reference: RowRef) -> Result<Option<Intent>, ReadError> {
        let Some(row) = self.database.row(reference.chain, reference.place).await? else {
            return Ok(None);
        };
        match Entry::try_from(&row).map(|row| row.event) {
            Ok(Event::Intent(intent)) => Ok(Some(intent)),
            _ => Ok(None),
        }
    }
}

/// The outcome of an intent, if it stands in the intent's own chain.
pub(super) async fn outcome_in_own_chain(
    database: &mut Database,
    intent: RowRef,
) -> Result<Option<Entry>, ReadError> {
    let mut rows = FIRST_ROWS;
    let mut next = Place {
        seq: intent.place.seq + 1,
        ..intent.place
    };
    loop {
        let until = next.seq.saturating_add(rows);
        for row in database
            .outcomes_naming(&intent.hash, intent.chain, next, until)
            .await?
        {
            // What cannot be read is said where that row is asked for.
            let Ok(entry) = Entry::try_from(&row) else {
                continue;
            };
            if entry.event.closes() == Some(intent) {
                return Ok(Some(entry));
            }
        }
        match database
            .chain_page(intent.chain, Place { seq: until, ..next }, 1)
            .await?
            .first()
        {
            // A later row that does not count it as open says that its outcome stands before: it
            // was passed, or is missing.
            Some(row)
                if Entry::try_from(row).is_ok_and(|row| {
                    row.header
                        .oldest_open
                        .is_none_or(|oldest| oldest > intent.place)
                }) =>
            {
                return Ok(None);
            }
            Some(_) => next.seq = until,
            None => match database
                .months()
                .await?
                .into_iter()
                .find(|period| *period > next.period)
            {
                Some(period) => next = Place { period, seq: 0 },
                None => return Ok(None),
            },
        }
        // Before many rows are read: the chain's last one may say that it is the oldest without an
        // outcome.
        if rows == FIRST_ROWS && is_left_open(database, intent).await? {
            return Ok(None);
        }
        rows = MOST_ROWS.min(rows * 8);
    }
}

async fn is_left_open(database: &mut Database, intent: RowRef) -> Result<bool, ReadError> {
    let Some(last) = database.last_row(intent.chain).await? else {
        return Ok(false);
    };
    let Ok(last) = Entry::try_from(&last) else {
        return Ok(false);
    };
    Ok(last.header.oldest_open == Some(intent.place) && last.event.closes() != Some(intent))
}
