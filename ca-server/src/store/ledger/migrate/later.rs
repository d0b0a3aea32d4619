//! How a later migration reaches a ledger that is large and in use. Its file only begins what takes long: a constraint NOT VALID, an index ON
//! ONLY the table. What is left of it is done here, one partition at a time and beside the writers, and again after an interruption.
//! `docs/ledger-format.md` has the rule, and a test holds the files against it.

use sqlx::migrate::{MigrateError, Migrator};
use sqlx::{AssertSqlSafe, Executor, PgConnection, Row as _};

use super::super::brief_locks::{PAUSE, TRIES, WAIT, beside_writers, in_one, is_taken};
use super::super::schema::DatabaseError;

/// Runs the files that were not run yet, each in a transaction of its own that waits for no lock for long, and then what they left to do.
pub(super) async fn run(connection: &mut PgConnection, migrations: &Migrator) -> Result<(), MigrateError> {
    connection.execute(AssertSqlSafe(format!("SET lock_timeout = {}", WAIT.as_millis()))).await?;
    let mut tries = 1;
    loop {
        match migrations.run(&mut *connection).await {
            Err(MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _)) if tries < TRIES && is_taken(&error) => {
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
    let left = "SELECT c.relname::text, o.conname::text FROM pg_constraint o JOIN pg_class c ON c.oid = o.conrelid \
                WHERE o.contype = 'c' AND NOT o.convalidated AND (c.oid = to_regclass('event') \
                OR c.oid IN (SELECT inhrelid FROM pg_inherits WHERE inhparent = to_regclass('event'))) ORDER BY c.relkind <> 'r', c.relname";
    for row in connection.fetch_all(left).await? {
        // The table itself comes last: by then there is nothing left to read for it.
        let (table, constraint): (String, String) = (row.try_get(0)?, row.try_get(1)?);
        beside_writers(connection, format!("ALTER TABLE {table} VALIDATE CONSTRAINT {constraint}")).await?;
    }
    Ok(())
}

/// Indexes of the table that not every partition has yet.
async fn build(connection: &mut PgConnection) -> Result<(), DatabaseError> {
    let left = "SELECT c.relname::text, pg_get_indexdef(c.oid), i.indisunique FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid \
                WHERE i.indrelid = to_regclass('event') AND NOT i.indisvalid ORDER BY 1";
    for row in connection.fetch_all(left).await? {
        let (index, definition, unique): (String, String, bool) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
        let (_, columns) = definition.split_once(" USING ").ok_or_else(|| DatabaseError::Protocol(definition.clone()))?;
        let kind = if unique { "UNIQUE INDEX" } else { "INDEX" };
        let without = "SELECT p.relname::text, p.relname || substring($1 FROM length('event') + 1), \
                       EXISTS (SELECT FROM pg_index j JOIN pg_class n ON n.oid = j.indexrelid WHERE j.indrelid = p.oid AND NOT j.indisvalid \
                       AND n.relname = p.relname || substring($1 FROM length('event') + 1)) \
                       FROM pg_inherits h JOIN pg_class p ON p.oid = h.inhrelid WHERE h.inhparent = to_regclass('event') \
                       AND NOT EXISTS (SELECT FROM pg_inherits a JOIN pg_index j ON j.indexrelid = a.inhrelid \
                       WHERE a.inhparent = to_regclass($1) AND j.indrelid = p.oid) ORDER BY 1";
        for partition in connection.fetch_all(sqlx::query(without).bind(&index)).await? {
            let (table, name, half): (String, String, bool) = (partition.try_get(0)?, partition.try_get(1)?, partition.try_get(2)?);
            if half {
                beside_writers(connection, format!("DROP INDEX CONCURRENTLY {name}")).await?;
            }
            beside_writers(connection, format!("CREATE {kind} CONCURRENTLY IF NOT EXISTS {name} ON {table} USING {columns}")).await?;
            in_one(connection, &[format!("ALTER INDEX {index} ATTACH PARTITION {name}")]).await?;
        }
    }
    Ok(())
}
