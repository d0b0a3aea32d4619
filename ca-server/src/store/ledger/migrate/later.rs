//! How a later migration reaches a ledger that is large and in use. Its file only begins what takes
//! long: a constraint NOT VALID, an index ON ONLY the table. What is left of it is done here, one
//! partition at a time and beside the writers, and again after an interruption.
//! `docs/ledger-format.md` has the rule, and a test holds the files against it.

use sqlx::migrate::{MigrateError, Migrator};
use sqlx::{AssertSqlSafe, Executor, PgConnection, Row as _};

use super::super::brief_locks::{PAUSE, TRIES, WAIT, beside_writers, in_one, is_taken};
use super::super::postgres::statements;
use super::super::schema::DatabaseError;

/// Runs the files that were not run yet, each in a transaction of its own that waits for no lock
/// for long, and then what they left to do.
pub(super) async fn run(
    connection: &mut PgConnection,
    migrations: &Migrator,
) -> Result<(), MigrateError> {
    connection
        .execute(AssertSqlSafe(format!(
            "SET lock_timeout = {}",
            WAIT.as_millis()
        )))
        .await?;
    let mut tries = 1;
    loop {
        match migrations.run(&mut *connection).await {
            Err(MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _))
                if tries < TRIES && is_taken(&error) =>
            {
                tries += 1;
                tokio::time::sleep(PAUSE).await;
            }
            done => {
                done?;
                break;
            }
        }
    }
    validate(connection).await?;
    build(connection).await?;
    Ok(())
}

/// Constraints whose older rows nobody has held against them yet.
async fn validate(connection: &mut PgConnection) -> Result<(), DatabaseError> {
    for row in connection.fetch_all(statements::UNVALIDATED).await? {
        // The table itself comes last: by then there is nothing left to read for it.
        let (table, constraint): (String, String) = (row.try_get(0)?, row.try_get(1)?);
        beside_writers(
            connection,
            format!("ALTER TABLE {table} VALIDATE CONSTRAINT {constraint}"),
        )
        .await?;
    }
    Ok(())
}

/// Indexes of the table that not every partition has yet.
async fn build(connection: &mut PgConnection) -> Result<(), DatabaseError> {
    for row in connection.fetch_all(statements::UNBUILT).await? {
        let (index, definition, unique): (String, String, bool) =
            (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
        let (_, columns) = definition
            .split_once(" USING ")
            .ok_or_else(|| DatabaseError::Protocol(definition.clone()))?;
        let kind = if unique { "UNIQUE INDEX" } else { "INDEX" };
        for partition in connection
            .fetch_all(sqlx::query(statements::WITHOUT_INDEX).bind(&index))
            .await?
        {
            let (table, name, half): (String, String, bool) = (
                partition.try_get(0)?,
                partition.try_get(1)?,
                partition.try_get(2)?,
            );
            if half {
                beside_writers(connection, format!("DROP INDEX CONCURRENTLY {name}")).await?;
            }
            beside_writers(
                connection,
                format!(
                    "CREATE {kind} CONCURRENTLY IF NOT EXISTS {name} ON {table} USING {columns}"
                ),
            )
            .await?;
            in_one(
                connection,
                &[format!("ALTER INDEX {index} ATTACH PARTITION {name}")],
            )
            .await?;
        }
    }
    Ok(())
}
