//! The schema's migrations, and whether a program may work on what it finds. During an upgrade the
//! program before a migration and the one after it work side by side: the ledger itself says which
//! oldest program may write, and a program refuses only if it is older than that, or if something
//! is missing that it needs. On a server the schema is made by `migrate`, as a role that daemons do
//! not have.

use std::sync::LazyLock;

use sqlx::migrate::Migrator;
use sqlx::{Executor, PgConnection, Row as _};

use super::postgres::statements;

pub(super) static POSTGRES: LazyLock<Migrator> =
    LazyLock::new(|| beside_later_ones(sqlx::migrate!("../migrations/postgres")));
pub(super) static SQLITE: LazyLock<Migrator> =
    LazyLock::new(|| beside_later_ones(sqlx::migrate!("../migrations/sqlite")));

/// Migrations that were applied and that this program does not know are a later program's; `judge`
/// says whether that matters.
fn beside_later_ones(mut migrations: Migrator) -> Migrator {
    migrations.set_ignore_missing(true);
    migrations
}

/// The last migration that a program knows.
pub(super) fn latest(migrations: &Migrator) -> i64 {
    migrations
        .iter()
        .map(|migration| migration.version)
        .max()
        .unwrap_or(0)
}

/// Whether the program with these migrations may write a ledger that asks for `oldest_writer`.
pub(super) fn may_write(oldest_writer: i64, migrations: &Migrator) -> Result<(), SchemaError> {
    let known = latest(migrations);
    if oldest_writer > known {
        Err(SchemaError::Newer {
            asked: oldest_writer,
            known,
        })
    } else {
        Ok(())
    }
}

/// What the database said.
pub(super) type DatabaseError = sqlx::Error;

/// Why the schema is not the one that this program writes.
#[derive(Debug, thiserror::Error)]
pub(super) enum SchemaError {
    /// A later program was here, beside which this one may not work.
    #[error(
        "this program is too old for the ledger, which asks for one that knows schema version {asked}; this one knows {known}"
    )]
    Newer {
        /// The oldest that may write.
        asked: i64,
        /// This program's.
        known: i64,
    },
    /// A migration was applied in another form than this program has it.
    #[error("the ledger's schema is not one that this program can continue: {0}")]
    Unknown(String),
    /// Nobody has made it, or it is older than this program.
    #[error("{0}")]
    Missing(String),
    /// The database does not work.
    #[error(transparent)]
    Database(#[from] DatabaseError),
}

/// The last migration that was applied; `None` if nobody has made the schema, or it cannot be read.
pub(super) async fn applied(connection: &mut PgConnection) -> Result<Option<i64>, DatabaseError> {
    let there: bool = connection
        .fetch_one(sqlx::query(statements::MIGRATIONS_ARE_READABLE))
        .await?
        .try_get(0)?;
    if !there {
        return Ok(None);
    }
    connection
        .fetch_one(sqlx::query(statements::LAST_MIGRATION))
        .await?
        .try_get(0)
}

/// The last migration that was applied, as `applied` has it, if the program with these migrations
/// may write there.
pub(super) async fn writable(
    connection: &mut PgConnection,
    migrations: &Migrator,
) -> Result<Option<i64>, SchemaError> {
    let version = applied(connection).await?;
    if version.is_some() {
        may_write(oldest_writer(connection).await?, migrations)?;
    }
    Ok(version)
}

/// The oldest program that may write, by the last migration that it knows.
async fn oldest_writer(connection: &mut PgConnection) -> Result<i64, DatabaseError> {
    Ok(connection
        .fetch_one(sqlx::query(statements::OLDEST_WRITER))
        .await?
        .try_get::<Option<i64>, _>(0)?
        .unwrap_or(0))
}
