//! The ledger on SQLite. What goes in and out are rows; what they mean is decided elsewhere, so
//! that another database needs another file like this and nothing more. The SQL stands in
//! `statements`.

mod audit;
mod log;
pub(super) mod statements;
pub(super) mod whole;

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::migrate::MigrateError;
use sqlx::sqlite::{
    SqliteArguments, SqliteConnectOptions, SqliteJournalMode, SqliteRow, SqliteSynchronous,
};
use sqlx::{
    Arguments, AssertSqlSafe, ConnectOptions, Connection, Executor, Row as _, SqliteConnection,
};

use super::event::{ChainId, Place, Row, StoredRow};
use super::schema::{SQLITE, SchemaError, may_write};
use crate::timestamp::Period;

/// How long a statement waits for another process that holds the database.
const BUSY_TIMEOUT: Duration = Duration::from_secs(1);

/// Pages in the write-ahead log before a commit also copies them into the database: rare enough to
/// be cheap, and bounded.
const CHECKPOINT_PAGES: &str = "8000";

/// Rows of one statement. Each number of rows is a statement of its own in the connection's cache.
const ROWS_PER_STATEMENT: usize = 64;

/// Rows that a reader's connection has ready before they are asked for.
const ROWS_AHEAD: usize = 1024;

const COLUMNS: usize = 12;

/// One connection to the ledger.
#[derive(Debug)]
pub(super) struct Database {
    connection: SqliteConnection,
    path: PathBuf,
    /// Device and inode of the file that was opened.
    file: Option<(u64, u64)>,
}

impl Database {
    /// The writer's connection. Makes the file if there is none.
    pub(super) async fn writer(path: &Path) -> sqlx::Result<Self> {
        make(path)?;
        Self::writer_again(path).await
    }

    /// The writer's connection to a ledger that must be there.
    pub(super) async fn writer_again(path: &Path) -> sqlx::Result<Self> {
        Self::connect(Self::options(path).create_if_missing(false)).await
    }

    fn options(path: &Path) -> SqliteConnectOptions {
        SqliteConnectOptions::new()
            .filename(path)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(BUSY_TIMEOUT)
            .pragma("wal_autocheckpoint", CHECKPOINT_PAGES)
            .statement_cache_capacity(2 * ROWS_PER_STATEMENT)
            .disable_statement_logging()
    }

    /// A connection that cannot write, for reading beside the writer. A missing file is an error.
    pub(super) async fn reader(path: &Path) -> sqlx::Result<Self> {
        Self::connect(reading(path).row_buffer_size(ROWS_AHEAD)).await
    }

    async fn connect(options: SqliteConnectOptions) -> sqlx::Result<Self> {
        let path = options.get_filename().to_owned();
        let connection = options.connect().await?;
        let file = inode(&path);
        Ok(Self {
            connection,
            path,
            file,
        })
    }

    /// Brings the schema up to this program's; one that asks for a later program is refused, before
    /// anything is changed.
    pub(super) async fn prepare_schema(&mut self) -> Result<(), SchemaError> {
        may_write(
            oldest_writer(&mut self.connection).await?.unwrap_or(0),
            &SQLITE,
        )?;
        SQLITE
            .run(&mut self.connection)
            .await
            .map_err(|error| match error {
                MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => {
                    SchemaError::Database(error)
                }
                other => SchemaError::Unknown(other.to_string()),
            })
    }

    /// Whether there is a ledger that this program may work on.
    pub(super) async fn schema_is_known(&mut self) -> sqlx::Result<bool> {
        Ok(oldest_writer(&mut self.connection)
            .await?
            .is_some_and(|oldest| may_write(oldest, &SQLITE).is_ok()))
    }

    /// Commits all rows or none. One statement commits by itself; more stand in one transaction.
    pub(super) async fn insert(&mut self, rows: &[Row]) -> sqlx::Result<()> {
        if rows.len() <= ROWS_PER_STATEMENT {
            self.insert_statement(rows).await?;
        } else {
            self.execute(statements::BEGIN_WRITING).await?;
            for chunk in rows.chunks(ROWS_PER_STATEMENT) {
                self.insert_statement(chunk).await?;
            }
            self.execute(statements::COMMIT).await?;
        }
        self.is_where_it_was()
    }

    /// A file that was removed or replaced still takes rows, which nobody would ever find: that is
    /// no commit.
    fn is_where_it_was(&self) -> sqlx::Result<()> {
        let same = self.file.is_some() && inode(&self.path) == self.file;
        if same {
            Ok(())
        } else {
            Err(io::Error::other("the database file was removed or replaced").into())
        }
    }

    async fn insert_statement(&mut self, rows: &[Row]) -> sqlx::Result<()> {
        let mut sql =
            String::with_capacity(statements::INSERT.len() + rows.len() * (2 * COLUMNS + 2));
        sql.push_str(statements::INSERT);
        let mut arguments = SqliteArguments::default();
        arguments.reserve(rows.len() * COLUMNS, 0);
        for (at, row) in rows.iter().enumerate() {
            sql.push_str(if at == 0 {
                "(?,?,?,?,?,?,?,?,?,?,?,?)"
            } else {
                ",(?,?,?,?,?,?,?,?,?,?,?,?)"
            });
            bind(&mut arguments, row).map_err(sqlx::Error::Encode)?;
        }
        self.connection
            .execute(sqlx::query_with(AssertSqlSafe(sql), arguments))
            .await
            .map(drop)
    }

    /// Whether a commit reaches the disk at present. Writes a number that means nothing, outside
    /// the ledger's table.
    pub(super) async fn probe(&mut self) -> sqlx::Result<()> {
        self.execute(statements::PROBE).await?;
        self.is_where_it_was()
    }

    /// Begins a transaction; its first read fixes the snapshot that all later ones see.
    pub(super) async fn begin_snapshot(&mut self) -> sqlx::Result<()> {
        self.execute(statements::BEGIN_READING).await
    }

    /// Ends what `begin_snapshot` began.
    pub(super) async fn end_snapshot(&mut self) -> sqlx::Result<()> {
        self.execute(statements::COMMIT).await
    }

    /// The chains that have begun and not ended.
    pub(super) async fn unended(&mut self) -> sqlx::Result<Vec<ChainId>> {
        let listed = sqlx::query(statements::UNENDED)
            .fetch_all(&mut self.connection)
            .await?;
        listed.iter().map(|row| chain_of(row.try_get(0)?)).collect()
    }

    /// Whether a chain has ended, or was declared ended.
    pub(super) async fn is_ended(&mut self, chain: ChainId) -> sqlx::Result<bool> {
        sqlx::query(statements::IS_ENDED)
            .bind(chain.0.as_slice())
            .fetch_one(&mut self.connection)
            .await?
            .try_get(0)
    }

    /// The newest `limit` rows of one of the kinds `start`, `end` and `chain_ended`, newest first.
    pub(super) async fn newest_marks(
        &mut self,
        kind: &str,
        limit: u32,
    ) -> sqlx::Result<Vec<StoredRow>> {
        let mut key = SqliteArguments::default();
        key.add(kind)
            .and_then(|()| key.add(limit))
            .map_err(sqlx::Error::Encode)?;
        self.rows(statements::NEWEST_MARKS, key).await
    }

    /// The last row of a chain.
    pub(super) async fn last_row(&mut self, chain: ChainId) -> sqlx::Result<Option<StoredRow>> {
        let mut before = i64::MAX;
        while let Some(period) = self.period_before(before).await? {
            let rows = self
                .rows(statements::LAST_ROW, key(period, &[&chain.0], &[]))
                .await?;
            if let Some(row) = rows.into_iter().next() {
                return Ok(Some(row));
            }
            before = period;
        }
        Ok(None)
    }

    async fn period_before(&mut self, period: i64) -> sqlx::Result<Option<i64>> {
        sqlx::query(statements::PERIOD_BEFORE)
            .bind(period)
            .fetch_one(&mut self.connection)
            .await?
            .try_get(0)
    }

    /// The periods that hold rows, in order.
    pub(super) async fn periods(&mut self) -> sqlx::Result<Vec<i64>> {
        let mut periods = Vec::new();
        let mut before = i64::MAX;
        while let Some(period) = self.period_before(before).await? {
            periods.push(period);
            before = period;
        }
        periods.reverse();
        Ok(periods)
    }

    /// One row by its place.
    pub(super) async fn row(
        &mut self,
        chain: ChainId,
        place: Place,
    ) -> sqlx::Result<Option<StoredRow>> {
        let key = key(yyyymm(place.period), &[&chain.0], &[seq(place)]);
        let rows = self.rows(statements::ROW, key).await?;
        Ok(rows.into_iter().next())
    }

    /// Up to `limit` rows of a chain in one period, from `from` on.
    pub(super) async fn chain_page(
        &mut self,
        chain: ChainId,
        from: Place,
        limit: u32,
    ) -> sqlx::Result<Vec<StoredRow>> {
        let key = key(yyyymm(from.period), &[&chain.0], &[seq(from), limit.into()]);
        self.rows(statements::CHAIN_PAGE, key).await
    }

    /// Up to `limit` rows of one period after (chain, seq), in that order; from the period's first
    /// row if `after` is `None`.
    pub(super) async fn page(
        &mut self,
        period: i64,
        after: Option<(&[u8], i64)>,
        limit: u32,
    ) -> sqlx::Result<Vec<StoredRow>> {
        let (chain, seq) = after.unwrap_or((&[], i64::MIN));
        let key = key(period, &[chain], &[seq, limit.into()]);
        self.rows(statements::PAGE, key).await
    }

    /// The intents with this serial (at most one, unless the index was removed).
    pub(super) async fn intents_of_serial(
        &mut self,
        period: Period,
        serial: &[u8],
    ) -> sqlx::Result<Vec<StoredRow>> {
        let key = key(yyyymm(period), &[serial], &[]);
        self.rows(statements::INTENTS_OF_SERIAL, key).await
    }

    /// The newest `limit` rows that name this identity, newest first.
    pub(super) async fn rows_of_identity(
        &mut self,
        identity: &str,
        limit: u32,
    ) -> sqlx::Result<Vec<StoredRow>> {
        let mut key = SqliteArguments::default();
        key.add(identity)
            .and_then(|()| key.add(limit))
            .map_err(sqlx::Error::Encode)?;
        self.rows(statements::ROWS_OF_IDENTITY, key).await
    }

    /// How many rows there are.
    pub(super) async fn row_count(&mut self) -> sqlx::Result<u64> {
        let count: i64 = sqlx::query(statements::ROW_COUNT)
            .fetch_one(&mut self.connection)
            .await?
            .try_get(0)?;
        Ok(u64::try_from(count).unwrap_or(0))
    }

    #[cfg(test)]
    pub(super) async fn in_order_of_writing(&mut self) -> sqlx::Result<Vec<StoredRow>> {
        self.rows(statements::IN_ORDER_OF_WRITING, SqliteArguments::default())
            .await
    }

    async fn execute(&mut self, sql: &'static str) -> sqlx::Result<()> {
        self.connection.execute(sql).await.map(drop)
    }

    async fn rows(
        &mut self,
        sql: &'static str,
        arguments: SqliteArguments,
    ) -> sqlx::Result<Vec<StoredRow>> {
        let rows = sqlx::query_with(sql, arguments)
            .fetch_all(&mut self.connection)
            .await?;
        rows.iter().map(stored).collect()
    }

    /// Closes the connection; the last one to close copies the write-ahead log into the database.
    pub(super) async fn close(self) -> sqlx::Result<()> {
        self.connection.close().await
    }
}

/// What every connection has that only reads.
pub(super) fn reading(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .read_only(true)
        .busy_timeout(BUSY_TIMEOUT)
        .disable_statement_logging()
}

pub(super) async fn has_table(connection: &mut SqliteConnection, name: &str) -> sqlx::Result<bool> {
    Ok(sqlx::query(statements::HAS_TABLE)
        .bind(name)
        .fetch_one(connection)
        .await?
        .try_get::<i64, _>(0)?
        > 0)
}

/// The oldest program that may write; `None` in a file that holds no ledger.
pub(super) async fn oldest_writer(connection: &mut SqliteConnection) -> sqlx::Result<Option<i64>> {
    if !has_table(connection, "oldest_writer").await? {
        return Ok(None);
    }
    sqlx::query(statements::OLDEST_WRITER)
        .fetch_one(connection)
        .await?
        .try_get(0)
}

/// Makes an empty file, which SQLite takes for a new database, if there is none. What was issued to
/// whom is for its owner alone; SQLite gives the files beside it the same mode.
fn make(path: &Path) -> io::Result<()> {
    match OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
    {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

fn inode(path: &Path) -> Option<(u64, u64)> {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

fn chain_of(octets: &[u8]) -> sqlx::Result<ChainId> {
    octets
        .try_into()
        .map(ChainId)
        .map_err(|_| sqlx::Error::Decode("a chain is not of 16 octets".into()))
}

/// The values of a key in their order: period, octets, numbers.
fn key(period: i64, octets: &[&[u8]], numbers: &[i64]) -> SqliteArguments {
    let mut arguments = SqliteArguments::default();
    let added = arguments.add(period);
    let added = added.and_then(|()| octets.iter().try_for_each(|octets| arguments.add(*octets)));
    added
        .and_then(|()| numbers.iter().try_for_each(|number| arguments.add(*number)))
        .expect("numbers and octets always encode");
    arguments
}

fn yyyymm(period: Period) -> i64 {
    period.yyyymm().into()
}

fn seq(place: Place) -> i64 {
    i64::try_from(place.seq).unwrap_or(i64::MAX)
}

fn bind(arguments: &mut SqliteArguments, row: &Row) -> Result<(), sqlx::error::BoxDynError> {
    let projection = row.event.projection();
    arguments.add(yyyymm(row.header.place.period))?;
    arguments.add(row.header.chain.0.as_slice())?;
    arguments.add(seq(row.header.place))?;
    arguments.add(row.event.kind())?;
    arguments.add(row.header.time.micros())?;
    arguments.add(projection.serial)?;
    arguments.add(projection.identity)?;
    arguments.add(projection.issuer)?;
    arguments.add(projection.profile)?;
    arguments.add(
        row.event
            .ends(row.header.chain)
            .map(|chain| chain.0.to_vec()),
    )?;
    arguments.add(row.hash.as_slice())?;
    arguments.add(row.body.as_ref())
}

/// Text as it stands there, which may be none: that is for whoever judges the row to say.
fn text(row: &SqliteRow, column: usize) -> sqlx::Result<Option<String>> {
    let octets: Option<&[u8]> = row.try_get_unchecked(column)?;
    Ok(octets.map(|octets| String::from_utf8_lossy(octets).into_owned()))
}

fn stored(row: &SqliteRow) -> sqlx::Result<StoredRow> {
    Ok(StoredRow {
        period: row.try_get(0)?,
        chain: row.try_get(1)?,
        seq: row.try_get(2)?,
        kind: text(row, 3)?.unwrap_or_default(),
        time: row.try_get(4)?,
        serial: row.try_get(5)?,
        identity: text(row, 6)?,
        issuer: text(row, 7)?,
        profile: row.try_get(8)?,
        ended: row.try_get(9)?,
        hash: row.try_get(10)?,
        body: row.try_get(11)?,
    })
}
