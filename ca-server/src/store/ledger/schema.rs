//! The schema on a server and the ways in which one can be wrong. It is made by `migrate`, as a role that daemons do not have.

use sqlx::migrate::Migrator;
use sqlx::{Executor, PgConnection, Row as _};

pub(super) static POSTGRES: Migrator = sqlx::migrate!("../migrations/postgres");

/// What the database said.
pub(super) type DatabaseError = sqlx::Error;

/// Why the schema is not the one that this program writes.
#[derive(Debug, thiserror::Error)]
pub(super) enum SchemaError {
    /// Another version of the program was here.
    #[error("the ledger's schema is newer than this program: {0}")]
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
        .fetch_one(sqlx::query("SELECT coalesce(has_table_privilege(to_regclass('_sqlx_migrations'), 'SELECT'), false)"))
        .await?
        .try_get(0)?;
    if !there {
        return Ok(None);
    }
    connection.fetch_one(sqlx::query("SELECT max(version) FROM _sqlx_migrations WHERE success")).await?.try_get(0)
}
