//! Changes of a server's tables beside daemons that write them. A lock that writers have to wait
//! for is asked for so briefly that they do not notice, and again after a pause: a reader that
//! holds the table for an hour then keeps us waiting, and nobody behind us.

use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, Row as _};

use super::postgres::statements;
use super::schema::DatabaseError;

/// How long a lock is waited for. Whoever writes may have to wait as long, and for the change
/// itself.
pub(super) const WAIT: Duration = Duration::from_millis(100);

/// What writers have for themselves between two tries.
pub(super) const PAUSE: Duration = Duration::from_secs(1);

/// Tries before we give up and say who stands in the way.
pub(super) const TRIES: usize = 60;

/// Whether a lock was not to be had in time: `lock_not_available`, or `deadlock_detected`.
pub(super) fn is_taken(error: &DatabaseError) -> bool {
    matches!(error, DatabaseError::Database(said) if matches!(said.code().as_deref(), Some("55P03" | "40P01")))
}

/// Does all of it in one transaction, or nothing.
pub(super) async fn in_one(
    connection: &mut PgConnection,
    statements: &[String],
) -> Result<(), DatabaseError> {
    for _ in 1..TRIES {
        match attempt(connection, statements).await {
            Err(error) if is_taken(&error) => tokio::time::sleep(PAUSE).await,
            done => return done,
        }
    }
    attempt(connection, statements).await
}

async fn attempt(
    connection: &mut PgConnection,
    statements: &[String],
) -> Result<(), DatabaseError> {
    let mut transaction = connection.begin().await?;
    transaction
        .execute(AssertSqlSafe(format!(
            "SET LOCAL lock_timeout = {}",
            WAIT.as_millis()
        )))
        .await?;
    for sql in statements {
        transaction.execute(AssertSqlSafe(sql.clone())).await?;
    }
    transaction.commit().await
}

/// Does what keeps no writer waiting, however long it takes itself.
pub(super) async fn beside_writers(
    connection: &mut PgConnection,
    sql: String,
) -> Result<(), DatabaseError> {
    connection.execute("SET lock_timeout = 0").await?;
    connection.execute(AssertSqlSafe(sql)).await.map(drop)
}

/// Other sessions that hold the ledger's table, as an operator finds them in pg_stat_activity.
pub(super) async fn holders(connection: &mut PgConnection) -> Result<String, DatabaseError> {
    let rows = connection.fetch_all(statements::HOLDERS).await?;
    let names = rows
        .iter()
        .map(|row| row.try_get(0))
        .collect::<Result<Vec<String>, _>>()?;
    Ok(if names.is_empty() {
        "sessions that have ended meanwhile".into()
    } else {
        names.join(", ")
    })
}
