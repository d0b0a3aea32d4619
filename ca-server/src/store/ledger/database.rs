//! One connection to a ledger, on either database. What the two must agree on stands here; their
//! SQL stands in `sqlite` and `postgres`.

use super::event::{ChainId, Place, Row, StoredRow};
use super::location::Location;
use super::lock::Lock;
use super::schema::{DatabaseError, SchemaError};
use super::{postgres, sqlite};
use crate::timestamp::{Period, Timestamp};

/// Whether a ledger that could not be opened may be had later, so that a daemon had better wait: a
/// server that does not answer, starts, stops, has no connection left, or is a standby still. A
/// file that cannot be opened waits for its operator.
pub(super) fn passes(location: &Location, error: &DatabaseError) -> bool {
    match (location, error) {
        (Location::Sqlite(_), _) => false,
        (Location::Postgres(_), DatabaseError::Io(_)) => true,
        // Class 53: no resources. Class 57: the operator or the server's own state stands against
        // it. Class 08: the connection broke.
        (Location::Postgres(_), DatabaseError::Database(said)) => said.code().is_some_and(|code| {
            ["53", "57", "08"]
                .iter()
                .any(|class| code.starts_with(class))
        }),
        _ => false,
    }
}

/// One connection to the ledger.
#[derive(Debug)]
pub(super) enum Database {
    Sqlite(sqlite::Database),
    Postgres(postgres::Database),
}

/// Calls the method on whichever database it is.
macro_rules! either {
    ($self:ident, $database:ident => $call:expr) => {
        match $self {
            Database::Sqlite($database) => $call,
            Database::Postgres($database) => $call,
        }
    };
}

mod audit;

impl Database {
    /// The writer's first connection. Makes a SQLite file if there is none.
    pub(super) async fn writer(location: &Location) -> Result<Self, DatabaseError> {
        match location {
            Location::Sqlite(path) => sqlite::Database::writer(path).await.map(Self::Sqlite),
            Location::Postgres(servers) => postgres::Database::writer(servers)
                .await
                .map(Self::Postgres),
        }
    }

    /// The writer's connection to a ledger that must be there.
    pub(super) async fn writer_again(location: &Location) -> Result<Self, DatabaseError> {
        match location {
            Location::Sqlite(path) => sqlite::Database::writer_again(path).await.map(Self::Sqlite),
            Location::Postgres(servers) => postgres::Database::writer(servers)
                .await
                .map(Self::Postgres),
        }
    }

    /// A connection that cannot write, for reading beside the writer. A missing file is an error.
    pub(super) async fn reader(location: &Location) -> Result<Self, DatabaseError> {
        match location {
            Location::Sqlite(path) => sqlite::Database::reader(path).await.map(Self::Sqlite),
            Location::Postgres(servers) => postgres::Database::reader(servers)
                .await
                .map(Self::Postgres),
        }
    }

    /// A connection that looks for dead processes beside the writer's.
    pub(super) async fn searcher(location: &Location) -> Result<Self, DatabaseError> {
        match location {
            Location::Sqlite(path) => sqlite::Database::reader(path).await.map(Self::Sqlite),
            Location::Postgres(servers) => postgres::Database::searcher(servers)
                .await
                .map(Self::Postgres),
        }
    }

    /// Brings a SQLite file up to this program's schema; one that asks for a later program is
    /// refused.
    pub(super) async fn prepare_schema(&mut self) -> Result<(), SchemaError> {
        match self {
            Self::Sqlite(database) => database.prepare_schema().await,
            Self::Postgres(_) => Ok(()),
        }
    }

    /// Whether this program may write a server's schema; making it takes another role, with
    /// `ca-server migrate`.
    pub(super) async fn check_schema(&mut self) -> Result<(), SchemaError> {
        match self {
            Self::Sqlite(_) => Ok(()),
            Self::Postgres(database) => database.check_schema().await,
        }
    }

    /// Whether there is a ledger, and this program is not older than the oldest that may work on
    /// it.
    pub(super) async fn schema_is_known(&mut self) -> Result<bool, DatabaseError> {
        either!(self, database => database.schema_is_known().await)
    }

    /// Takes the lock of a chain that this process writes, on this very connection. On SQLite the
    /// process holds the one lock already. `formers` are this process's own sessions that may still
    /// hold it.
    pub(super) async fn lock_own(
        &mut self,
        chain: ChainId,
        formers: &[i32],
    ) -> Result<Lock, DatabaseError> {
        match self {
            Self::Sqlite(_) => Ok(Lock::Held),
            Self::Postgres(database) => database.lock_own(chain, formers).await,
        }
    }

    /// Whether the process that wrote the chain is gone, which it cannot undo until
    /// `release_claims`. On SQLite whoever writes has the only lock, so every other chain's process
    /// is gone.
    pub(super) async fn claim(&mut self, chain: ChainId) -> Result<bool, DatabaseError> {
        match self {
            Self::Sqlite(_) => Ok(true),
            Self::Postgres(database) => database.claim(chain).await,
        }
    }

    /// Lets go of every chain that was claimed.
    pub(super) async fn release_claims(&mut self) -> Result<(), DatabaseError> {
        match self {
            Self::Sqlite(_) => Ok(()),
            Self::Postgres(database) => database.release_claims().await,
        }
    }

    /// The session by which the server knows this connection; none on SQLite.
    pub(super) fn session(&self) -> Option<i32> {
        match self {
            Self::Sqlite(_) => None,
            Self::Postgres(database) => Some(database.session()),
        }
    }

    /// The database's own time; none on SQLite, which has no clock but this machine's.
    pub(super) async fn time(&mut self) -> Result<Option<Timestamp>, DatabaseError> {
        match self {
            Self::Sqlite(_) => Ok(None),
            Self::Postgres(database) => database.time().await.map(Some),
        }
    }

    /// The last month for which there is a partition; none on SQLite, which has none.
    pub(super) async fn last_partition(&mut self) -> Result<Option<Period>, DatabaseError> {
        match self {
            Self::Sqlite(_) => Ok(None),
            Self::Postgres(database) => database.last_partition().await,
        }
    }

    /// Commits all rows or none.
    pub(super) async fn insert(&mut self, rows: &[Row]) -> Result<(), DatabaseError> {
        either!(self, database => database.insert(rows).await)
    }

    /// Whether a commit reaches the disk at present. What was committed before is then as durable
    /// as the database makes anything.
    pub(super) async fn probe(&mut self) -> Result<(), DatabaseError> {
        either!(self, database => database.probe().await)
    }

    /// Begins a transaction; its first read fixes the snapshot that all later ones see.
    pub(super) async fn begin_snapshot(&mut self) -> Result<(), DatabaseError> {
        either!(self, database => database.begin_snapshot().await)
    }

    /// Ends what `begin_snapshot` began.
    pub(super) async fn end_snapshot(&mut self) -> Result<(), DatabaseError> {
        either!(self, database => database.end_snapshot().await)
    }

    /// The chains that have begun and not ended.
    pub(super) async fn unended(&mut self) -> Result<Vec<ChainId>, DatabaseError> {
        either!(self, database => database.unended().await)
    }

    /// Chains that have not ended and whose locks nobody holds at present. On SQLite one process
    /// writes, so there is none to be found.
    pub(super) async fn unended_and_free(&mut self) -> Result<Vec<ChainId>, DatabaseError> {
        match self {
            Self::Sqlite(_) => Ok(Vec::new()),
            Self::Postgres(database) => database.unended_and_free().await,
        }
    }

    /// Whether a chain has ended, or was declared ended.
    pub(super) async fn is_ended(&mut self, chain: ChainId) -> Result<bool, DatabaseError> {
        either!(self, database => database.is_ended(chain).await)
    }

    /// The newest `limit` rows of one of the kinds `start`, `end` and `chain_ended`, newest first.
    pub(super) async fn newest_marks(
        &mut self,
        kind: &str,
        limit: u32,
    ) -> Result<Vec<StoredRow>, DatabaseError> {
        either!(self, database => database.newest_marks(kind, limit).await)
    }

    /// The last row of a chain.
    pub(super) async fn last_row(
        &mut self,
        chain: ChainId,
    ) -> Result<Option<StoredRow>, DatabaseError> {
        either!(self, database => database.last_row(chain).await)
    }

    /// The periods that hold rows, in order.
    pub(super) async fn periods(&mut self) -> Result<Vec<i64>, DatabaseError> {
        either!(self, database => database.periods().await)
    }

    /// Those of them that are months, as all are that a writer has written.
    pub(super) async fn months(&mut self) -> Result<Vec<Period>, DatabaseError> {
        Ok(self
            .periods()
            .await?
            .into_iter()
            .filter_map(|period| Period::new(u32::try_from(period).ok()?))
            .collect())
    }

    /// One row by its place.
    pub(super) async fn row(
        &mut self,
        chain: ChainId,
        place: Place,
    ) -> Result<Option<StoredRow>, DatabaseError> {
        either!(self, database => database.row(chain, place).await)
    }

    /// Up to `limit` rows of a chain in one period, from `from` on.
    pub(super) async fn chain_page(
        &mut self,
        chain: ChainId,
        from: Place,
        limit: u32,
    ) -> Result<Vec<StoredRow>, DatabaseError> {
        either!(self, database => database.chain_page(chain, from, limit).await)
    }

    /// Up to `limit` rows of one period after (chain, seq), in that order; from the period's first
    /// row if `after` is `None`.
    pub(super) async fn page(
        &mut self,
        period: i64,
        after: Option<(&[u8], i64)>,
        limit: u32,
    ) -> Result<Vec<StoredRow>, DatabaseError> {
        either!(self, database => database.page(period, after, limit).await)
    }

    /// The intents with this serial (at most one, unless the index was removed).
    pub(super) async fn intents_of_serial(
        &mut self,
        period: Period,
        serial: &[u8],
    ) -> Result<Vec<StoredRow>, DatabaseError> {
        either!(self, database => database.intents_of_serial(period, serial).await)
    }

    /// The newest `limit` rows that name this identity, newest first.
    pub(super) async fn rows_of_identity(
        &mut self,
        identity: &str,
        limit: u32,
    ) -> Result<Vec<StoredRow>, DatabaseError> {
        either!(self, database => database.rows_of_identity(identity, limit).await)
    }

    /// How many rows there are.
    pub(super) async fn row_count(&mut self) -> Result<u64, DatabaseError> {
        either!(self, database => database.row_count().await)
    }

    #[cfg(test)]
    pub(super) async fn in_order_of_writing(&mut self) -> Result<Vec<StoredRow>, DatabaseError> {
        either!(self, database => database.in_order_of_writing().await)
    }

    /// Ends the connection. On SQLite the last one to close copies the write-ahead log into the
    /// database, and nothing of it can be committed afterwards; on Postgres only the lock says so
    /// much.
    pub(super) async fn close(self) -> Result<(), DatabaseError> {
        either!(self, database => database.close().await)
    }
}
