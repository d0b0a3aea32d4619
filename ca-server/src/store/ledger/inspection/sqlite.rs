//! The facts of a SQLite ledger: its file, its lock, and what stands in it. The file's facts are
//! there also when it cannot be opened.

use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{statfs, statvfs};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection, Row as _, SqliteConnection};

use super::super::lock::{self, Writer};
use super::super::schema::SQLITE;
use super::super::sqlite::whole::{SMALL, broken};
use super::super::sqlite::{has_table, oldest_writer, reading, statements};
use super::{Difference, How, SchemaFacts, schema_facts};
use crate::timestamp::Timestamp;

/// A SQLite ledger.
#[derive(Debug)]
pub struct SqliteFacts {
    /// The file, links followed where that was possible.
    pub path: PathBuf,
    /// The file; `None` if there is none.
    pub file: io::Result<Option<FileFacts>>,
    /// Who writes it.
    pub writer: io::Result<Writer>,
    /// Octets that may still be written to its file system.
    pub free: io::Result<u64>,
    /// Whether the file system is a network's, where SQLite's locks and shared memory cannot be
    /// relied upon.
    pub on_network: bool,
    /// What stands in it, or one sentence why that could not be read; `None` if there is no file.
    pub content: Option<Result<Content, String>>,
}

/// A file and its directory, by stat(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileFacts {
    /// Permissions, the lowest twelve bits.
    pub mode: u32,
    /// Permissions of its directory.
    pub directory_mode: u32,
    /// The owner's number.
    pub owner: u32,
    /// Octets, its write-ahead log included.
    pub size: u64,
}

/// What stands in the database.
#[derive(Debug, Default)]
pub struct Content {
    /// `PRAGMA journal_mode`.
    pub journal_mode: String,
    /// The schema.
    pub schema: SchemaFacts,
    /// The highest row number: how many rows there are, if none was ever removed.
    pub rows: u64,
    /// The time of the row that was written last.
    pub newest: Option<Timestamp>,
    /// What is wrong with its structure or with the log beside it; `None` if it is too large to be
    /// read through, and that was not asked for.
    pub damage: Option<Vec<String>>,
}

/// How long a read waits for a writer that holds the database.
const BUSY_TIMEOUT: Duration = Duration::from_secs(2);

/// f_type of NFS, SMB in three versions, 9p and Ceph (statfs(2)).
const NETWORK_FILE_SYSTEMS: [u32; 6] = [
    0x6969,
    0x517b,
    0xff53_4d42,
    0xfe53_4d42,
    0x0102_1997,
    0x00c3_6400,
];

pub(super) async fn inspect(location: &Path, deep: bool) -> SqliteFacts {
    let resolved = lock::resolve(location);
    let path = resolved
        .as_ref()
        .ok()
        .cloned()
        .unwrap_or_else(|| location.to_owned());
    let directory = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let file = stat(&path, directory);
    let writer = resolved.and_then(|path| lock::writer(&path));
    let content = match file {
        Ok(None) => None,
        _ => Some(
            content(&path, deep, matches!(writer, Ok(Writer::Nobody)))
                .await
                .map_err(|error| error.to_string()),
        ),
    };
    SqliteFacts {
        writer,
        free: statvfs(directory)
            .map(|facts| facts.f_bavail.saturating_mul(facts.f_frsize))
            .map_err(io::Error::from),
        // The kernel's type is signed on some machines; the numbers are 32 bits everywhere.
        on_network: statfs(directory)
            .is_ok_and(|facts| NETWORK_FILE_SYSTEMS.contains(&(facts.f_type as u32))),
        path,
        file,
        content,
    }
}

fn stat(path: &Path, directory: &Path) -> io::Result<Option<FileFacts>> {
    let file = match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let directory = fs::metadata(directory)?;
    let log = fs::metadata(lock::beside(path, "-wal")).map_or(0, |log| log.len());
    let mode = |metadata: &Metadata| metadata.mode() & 0o7777;
    Ok(Some(FileFacts {
        mode: mode(&file),
        directory_mode: mode(&directory),
        owner: file.uid(),
        size: file.len() + log,
    }))
}

async fn content(path: &Path, deep: bool, unwritten: bool) -> sqlx::Result<Content> {
    // A daemon looked at the log when it started; beside it the log moves.
    if unwritten && let Some(why) = broken(path).await {
        return Ok(Content {
            journal_mode: "wal".into(),
            damage: Some(vec![why]),
            ..Content::default()
        });
    }
    let mut connection = reading(path).busy_timeout(BUSY_TIMEOUT).connect().await?;
    let journal_mode = sqlx::query(statements::JOURNAL_MODE)
        .fetch_one(&mut connection)
        .await?
        .try_get(0)?;
    let schema = schema(&mut connection).await?;
    let (mut rows, mut newest) = (0, None);
    let is_there = |schema: &SchemaFacts| {
        !schema
            .differences
            .iter()
            .any(|object| object.kind == "table" && object.how == How::Missing)
    };
    if schema.version.is_some()
        && is_there(&schema)
        && let Some(last) = sqlx::query(statements::NEWEST)
            .fetch_optional(&mut connection)
            .await?
    {
        rows = u64::try_from(last.try_get::<i64, _>(0)?).unwrap_or(0);
        newest = Some(Timestamp::from_micros(last.try_get(1)?));
    }
    let is_small = fs::metadata(path).is_ok_and(|file| file.len() <= SMALL);
    let damage = match deep {
        true => Some(damage(&mut connection, statements::DAMAGE).await?),
        false if is_small => Some(damage(&mut connection, statements::QUICK_CHECK).await?),
        false => None,
    };
    connection.close().await?;
    Ok(Content {
        journal_mode,
        schema,
        rows,
        newest,
        damage,
    })
}

/// What a check finds beside `ok`.
async fn damage(
    connection: &mut SqliteConnection,
    check: &'static str,
) -> sqlx::Result<Vec<String>> {
    let lines = sqlx::query(check).fetch_all(connection).await?;
    let lines = lines
        .iter()
        .map(|line| line.try_get::<String, _>(0))
        .collect::<sqlx::Result<Vec<_>>>()?;
    Ok(lines.into_iter().filter(|line| line != "ok").collect())
}

async fn schema(connection: &mut SqliteConnection) -> sqlx::Result<SchemaFacts> {
    if !has_table(connection, "_sqlx_migrations").await? {
        return Ok(SchemaFacts::default());
    }
    let mut applied: BTreeMap<i64, Vec<u8>> = BTreeMap::new();
    for row in sqlx::query(statements::MIGRATIONS)
        .fetch_all(&mut *connection)
        .await?
    {
        applied.insert(row.try_get(0)?, row.try_get(1)?);
    }
    // A table that does not tell it is among the differences.
    let oldest_writer = oldest_writer(connection).await.unwrap_or(None);
    let mut facts = schema_facts(&applied, oldest_writer, &SQLITE);
    // Another version's objects are not judged by ours, but for those that ours needs.
    if facts.missing.is_empty() && facts.unknown.is_empty() {
        facts.differences = differences(&as_made().await?, &objects(connection).await?);
        facts
            .differences
            .retain(|difference| facts.later.is_empty() || difference.how == How::Missing);
    }
    Ok(facts)
}

/// By kind and name, the statement that made each object of a database.
type Objects = BTreeMap<(String, String), String>;

/// The objects that this program's migrations make, in a database that is only in memory.
async fn as_made() -> sqlx::Result<Objects> {
    let mut fresh = SqliteConnectOptions::new()
        .filename(":memory:")
        .disable_statement_logging()
        .connect()
        .await?;
    SQLITE
        .run(&mut fresh)
        .await
        .map_err(|error| sqlx::Error::Migrate(Box::new(error)))?;
    objects(&mut fresh).await
}

async fn objects(connection: &mut SqliteConnection) -> sqlx::Result<Objects> {
    let rows = sqlx::query(statements::OBJECTS)
        .fetch_all(connection)
        .await?;
    rows.iter()
        .map(|row| Ok(((row.try_get(0)?, row.try_get(1)?), row.try_get(2)?)))
        .collect()
}

fn differences(made: &Objects, found: &Objects) -> Vec<Difference> {
    let difference = |key: &(String, String), how| Difference {
        kind: key.0.clone(),
        name: key.1.clone(),
        how,
    };
    let of_ours = made.iter().filter_map(|(key, sql)| match found.get(key) {
        None => Some(difference(key, How::Missing)),
        Some(there) if there != sql => Some(difference(key, How::Changed)),
        Some(_) => None,
    });
    let added = found
        .keys()
        .filter(|key| !made.contains_key(key))
        .map(|key| difference(key, How::Added));
    of_ours.chain(added).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::ledger::sqlite::Database;

    async fn facts_after(sql: &'static str) -> SqliteFacts {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ledger.db");
        Database::writer(&path)
            .await
            .unwrap()
            .prepare_schema()
            .await
            .unwrap();
        let mut outside = SqliteConnectOptions::new()
            .filename(&path)
            .connect()
            .await
            .unwrap();
        sqlx::raw_sql(sql).execute(&mut outside).await.unwrap();
        outside.close().await.unwrap();
        inspect(&path, true).await
    }

    async fn schema_after(sql: &'static str) -> SchemaFacts {
        facts_after(sql).await.content.unwrap().unwrap().schema
    }

    fn only(kind: &str, name: &str, how: How) -> Vec<Difference> {
        vec![Difference {
            kind: kind.into(),
            name: name.into(),
            how,
        }]
    }

    #[tokio::test]
    async fn a_new_ledger_is_as_it_was_made() {
        let facts = facts_after("SELECT 1").await;
        let file = facts.file.unwrap().unwrap();
        assert_eq!(
            (file.mode, facts.writer.unwrap(), facts.on_network),
            (0o600, Writer::Nobody, false)
        );
        let content = facts.content.unwrap().unwrap();
        assert_eq!(
            (
                content.journal_mode.as_str(),
                content.rows,
                content.newest,
                content.damage
            ),
            ("wal", 0, None, Some(Vec::new()))
        );
        assert_eq!(
            content.schema,
            SchemaFacts {
                version: Some(1),
                ..SchemaFacts::default()
            }
        );
    }

    #[tokio::test]
    async fn a_trigger_that_was_dropped_changed_or_added_is_told() {
        let dropped = schema_after("DROP TRIGGER event_is_never_deleted").await;
        assert_eq!(
            dropped.differences,
            only("trigger", "event_is_never_deleted", How::Missing)
        );
        let changed = "DROP TRIGGER event_is_never_updated; CREATE TRIGGER event_is_never_updated BEFORE UPDATE ON event BEGIN SELECT 1; END";
        assert_eq!(
            schema_after(changed).await.differences,
            only("trigger", "event_is_never_updated", How::Changed)
        );
        let added = schema_after(
            "CREATE TRIGGER other BEFORE INSERT ON event BEGIN SELECT RAISE(IGNORE); END",
        )
        .await;
        assert_eq!(added.differences, only("trigger", "other", How::Added));
    }

    #[tokio::test]
    async fn a_schema_of_a_later_program_is_told_and_only_what_this_one_needs_is_judged() {
        let later = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) VALUES (9, 'later', 1, x'00', 0); \
                     CREATE INDEX later ON event (time); ";
        let beside = schema_after(later).await;
        assert_eq!(
            (
                beside.version,
                beside.later,
                beside.unknown,
                beside.differences
            ),
            (Some(9), vec![9], vec![], vec![])
        );
        let needed = schema_after(
            "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
                                   VALUES (9, 'later', 1, x'00', 0); DROP TRIGGER event_is_never_deleted",
        );
        assert_eq!(
            needed.await.differences,
            only("trigger", "event_is_never_deleted", How::Missing)
        );
        let too_new = schema_after(
            "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
                                    VALUES (9, 'later', 1, x'00', 0); INSERT INTO oldest_writer VALUES (9); DROP TRIGGER event_is_never_deleted",
        );
        let too_new = too_new.await;
        assert_eq!(
            (too_new.version, too_new.unknown, too_new.differences),
            (Some(9), vec![9], Vec::new())
        );
    }

    #[tokio::test]
    async fn what_is_no_database_is_said_and_its_file_described_all_the_same() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ledger.db");
        assert!(inspect(&path, false).await.content.is_none());
        fs::write(
            &path,
            "no database at all, but long enough for one: ".repeat(20),
        )
        .unwrap();
        let facts = inspect(&path, false).await;
        assert!(
            facts
                .content
                .unwrap()
                .unwrap_err()
                .contains("not a database")
        );
        assert!(facts.file.unwrap().is_some());
    }
}
