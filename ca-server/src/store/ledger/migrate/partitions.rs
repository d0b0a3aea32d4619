//! The partitions of the coming months: made beside the daemons, and never by reading what stands
//! in the default partition while writers wait.

use std::time::Duration;

use sqlx::{Executor, PgConnection, Row as _};

use super::super::brief_locks::{beside_writers, in_one};
use super::super::postgres::{months, statements};
use super::super::schema::DatabaseError;
use crate::timestamp::{Period, Timestamp};

/// Months after the present one for which partitions are made.
const MONTHS_AHEAD: usize = 24;

/// How soon a daemon may write into the next month: its clock may be ahead, and reading the default
/// partition takes a while.
const SOON: Duration = Duration::from_secs(3600);

/// Whatever the default partition does not hold, as the server must know before it attaches another
/// without reading it through.
pub(in crate::store::ledger) const FENCE: &str = "event_default_is_of_other_months";

/// What there is then.
#[derive(Default)]
pub(super) struct Extended {
    pub(super) made: Vec<Period>,
    pub(super) last: Option<Period>,
    pub(super) in_default: Vec<Period>,
}

/// Makes the partitions that are missing. A month whose rows stand in the default partition is
/// named and left there: moving them would mean to delete them. So is, where the default partition
/// holds rows at all, a month that daemons may be writing now: they would be kept waiting, or
/// turned away, while its rows are read.
pub(super) async fn extend(
    connection: &mut PgConnection,
    now: Timestamp,
) -> Result<Extended, DatabaseError> {
    let mut done = Extended::default();
    // One that an interrupted run has left would turn rows away.
    drop_fence(connection).await?;
    done.in_default = months(&connection.fetch_all(statements::IN_DEFAULT).await?)?;
    let behind_a_fence = !done.in_default.is_empty();
    let mut missing = Vec::new();
    let mut period = now.period();
    for _ in 0..=MONTHS_AHEAD {
        let there = connection
            .fetch_one(sqlx::query(statements::TABLE_IS_THERE).bind(table(period)))
            .await?;
        let is_written =
            behind_a_fence && [now.period(), now.plus(SOON).period()].contains(&period);
        match there.try_get::<bool, _>(0)? {
            true => done.last = Some(period),
            false if done.in_default.contains(&period) => {}
            false if is_written => done.in_default.push(period),
            false => missing.push(period),
        }
        period = period.next();
    }
    done.in_default.sort_unstable();
    let made = make_all(connection, missing, behind_a_fence, &mut done).await;
    // After a failure, too: what is left of a fence turns rows away once their month has come.
    let dropped = if behind_a_fence {
        drop_fence(connection).await
    } else {
        Ok(())
    };
    made.and(dropped).map(|()| done)
}

async fn make_all(
    connection: &mut PgConnection,
    missing: Vec<Period>,
    behind_a_fence: bool,
    done: &mut Extended,
) -> Result<(), DatabaseError> {
    if behind_a_fence && !missing.is_empty() {
        fence(connection, &missing).await?;
    }
    for period in missing {
        make(connection, period).await?;
        done.made.push(period);
        done.last = done.last.max(Some(period));
    }
    Ok(())
}

/// The name of a month's partition.
pub(in crate::store::ledger) fn table(period: Period) -> String {
    format!("event_{period}")
}

/// Has the server learn, beside the writers, that no row of these months stands in the default
/// partition, and let none in.
async fn fence(connection: &mut PgConnection, months: &[Period]) -> Result<(), DatabaseError> {
    let none_of = months
        .iter()
        .map(|month| format!("period <> {month}"))
        .collect::<Vec<_>>()
        .join(" AND ");
    in_one(
        connection,
        &[format!(
            "ALTER TABLE event_default ADD CONSTRAINT {FENCE} CHECK ({none_of}) NOT VALID"
        )],
    )
    .await?;
    beside_writers(
        connection,
        format!("ALTER TABLE event_default VALIDATE CONSTRAINT {FENCE}"),
    )
    .await
}

async fn drop_fence(connection: &mut PgConnection) -> Result<(), DatabaseError> {
    if connection
        .fetch_one(sqlx::query(statements::FENCE_IS_THERE).bind(FENCE))
        .await?
        .try_get(0)?
    {
        in_one(
            connection,
            &[format!("ALTER TABLE event_default DROP CONSTRAINT {FENCE}")],
        )
        .await?;
    }
    Ok(())
}

/// Made beside the table and then attached: that keeps nobody from writing for longer than the wait
/// for a lock.
async fn make(connection: &mut PgConnection, period: Period) -> Result<(), DatabaseError> {
    let name = table(period);
    let changes = [
        format!("CREATE TABLE {name} (LIKE event INCLUDING CONSTRAINTS)"),
        format!("ALTER TABLE event ATTACH PARTITION {name} FOR VALUES IN ({period})"),
        format!(
            "CREATE TRIGGER event_is_never_truncated BEFORE TRUNCATE ON {name} FOR EACH STATEMENT EXECUTE FUNCTION event_only_grows()"
        ),
    ];
    in_one(connection, &changes).await
}
