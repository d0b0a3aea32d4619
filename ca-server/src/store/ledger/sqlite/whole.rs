//! Whether a ledger's file, with the log that lies beside it, is one ledger and whole. Asked before
//! a daemon writes, and by `doctor`. It reads what the log has added, and a file that is small from
//! end to end; a large file is read through by `doctor --deep` alone.

use std::path::Path;

use sqlx::{ConnectOptions, Connection, Row as _, SqliteConnection};

use super::log::{Log, path as log_path};
use super::{has_table, reading, statements};

/// Octets of a file that is read from end to end at each start: a fraction of a second.
pub(in crate::store::ledger) const SMALL: u64 = 256 << 20;

/// What is wrong with a ledger that nobody writes, and the remedy. What keeps it from being opened
/// is for whoever opens it to say.
pub(in crate::store::ledger) async fn broken(path: &Path) -> Option<String> {
    let octets = std::fs::metadata(path).map_or(0, |file| file.len());
    let log = Log::read(path).ok()?;
    if let Some(Err(why)) = log.as_ref().map(|log| log.continues(octets)) {
        return Some(foreign(path, &why));
    }
    if octets == 0 {
        return None;
    }
    let why = match contents(path, log.as_ref(), octets).await {
        Ok(why) => why?,
        // SQLITE_CORRUPT
        Err(sqlx::Error::Database(said)) if said.code().as_deref() == Some("11") => {
            said.message().to_owned()
        }
        Err(_) => return None,
    };
    Some(if log.is_some() {
        foreign(path, &why)
    } else {
        damaged(&why)
    })
}

fn foreign(path: &Path, why: &str) -> String {
    let log = log_path(path);
    format!(
        "the write-ahead log {} does not continue it: {why}. If the file was put back from a copy, remove the log that was left there; \
         if both were copied, put both back together; if nobody touched them, the file is damaged: keep both as they are and restore a copy elsewhere",
        log.display()
    )
}

fn damaged(why: &str) -> String {
    format!(
        "the file is damaged: {why}. Keep it as it is, export what can be read, and restore a copy"
    )
}

/// What is wrong with what stands in it.
async fn contents(path: &Path, log: Option<&Log>, octets: u64) -> sqlx::Result<Option<String>> {
    // A connection that only reads copies nothing of the log into the file when it closes. A row
    // that the schema would not take today is for `audit verify` to name; it is no damage of the
    // file.
    let mut connection = reading(path)
        .pragma("ignore_check_constraints", "ON")
        .connect()
        .await?;
    let judged = judge(&mut connection, path, log, octets).await;
    connection.close().await?;
    judged
}

async fn judge(
    connection: &mut SqliteConnection,
    path: &Path,
    log: Option<&Log>,
    octets: u64,
) -> sqlx::Result<Option<String>> {
    let is_ledger = has_table(connection, "event").await?;
    if let Some(log) = log {
        if let Some(why) = lost(path, is_ledger, connection).await? {
            return Ok(Some(why));
        }
        if is_ledger {
            for range in log.rows() {
                if let Some(why) = unlinked(connection, range).await? {
                    return Ok(Some(why));
                }
            }
        }
    }
    if octets > SMALL {
        return Ok(None);
    }
    let found: String = sqlx::query(statements::QUICK_CHECK)
        .fetch_one(connection)
        .await?
        .try_get(0)?;
    Ok((found != "ok").then_some(found))
}

/// Whether the file by itself has rows that are not there any more once the log is applied. A file
/// that cannot be read without its log, because a crash came while some of it was copied, tells
/// nothing.
async fn lost(
    path: &Path,
    is_ledger: bool,
    applied: &mut SqliteConnection,
) -> sqlx::Result<Option<String>> {
    let alone = reading(path).immutable(true).connect().await;
    let Ok(mut alone) = alone else {
        return Ok(None);
    };
    for order in [statements::FIRST_HASH, statements::LAST_HASH] {
        let Ok(Some(row)) = sqlx::query(order).fetch_optional(&mut alone).await else {
            continue;
        };
        let (number, hash): (i64, Vec<u8>) = (row.try_get(0)?, row.try_get(1)?);
        let there = match is_ledger {
            true => {
                sqlx::query(statements::HASH)
                    .bind(number)
                    .fetch_optional(&mut *applied)
                    .await?
            }
            false => None,
        };
        if there.map(|row| row.try_get::<Vec<u8>, _>(0)).transpose()? != Some(hash) {
            return Ok(Some(format!(
                "row {number} of the file is another or missing once the log is applied"
            )));
        }
    }
    alone.close().await?;
    Ok(None)
}

/// What is wrong with rows of the log: each has the number after the one before it, follows a row
/// of its chain, and is found by its place.
async fn unlinked(
    connection: &mut SqliteConnection,
    (first, last): (i64, i64),
) -> sqlx::Result<Option<String>> {
    let newest: Option<i64> = sqlx::query(statements::LAST_NUMBER)
        .fetch_one(&mut *connection)
        .await?
        .try_get(0)?;
    let (first, last) = (
        first.saturating_sub(1).max(1),
        last.saturating_add(1).min(newest.unwrap_or(0)),
    );
    let row = sqlx::query(statements::LINKED)
        .bind(first)
        .bind(last)
        .fetch_one(connection)
        .await?;
    let expected = (last - first + 1).max(0);
    Ok([
        (0, "are missing"),
        (1, "are not found by their places"),
        (2, "follow no row of their chain"),
    ]
    .into_iter()
    .find_map(|(column, what)| {
        let wrong = expected - row.try_get::<i64, _>(column).unwrap_or(0);
        (wrong != 0).then(|| format!("of the rows from {first} to {last}, {wrong} {what}"))
    }))
}
