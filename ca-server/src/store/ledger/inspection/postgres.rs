//! The facts of a ledger on PostgreSQL, as the daemon's own login sees them: server, rights,
//! schema, partitions, settings and clock. Every statement only reads, and has a limit.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use sqlx::postgres::PgRow;
use sqlx::{Connection, Executor, PgConnection, Row as _};

use super::super::location::Servers;
use super::super::migrate::FENCE;
use super::super::postgres::{SCHEMA, Session, connect, months, statements};
use super::super::schema::POSTGRES;
use super::{Difference, How, SchemaFacts, schema_facts};
use crate::clock::Clock;
use crate::timestamp::{Period, Timestamp};

const SESSION: Session = Session {
    name: "ca-server doctor",
    settings: &[
        ("search_path", SCHEMA),
        ("statement_timeout", "30s"),
        ("lock_timeout", "3s"),
    ],
    unchecked: &[],
};

/// A PostgreSQL ledger.
#[derive(Debug)]
pub struct PostgresFacts {
    /// What the server that takes writes told; else one sentence why none lets us in.
    pub server: Result<ServerFacts, String>,
    /// If none takes writes: whether one lets us in that does not, a standby.
    pub only_standby: bool,
}

/// What one server told.
#[derive(Debug)]
pub struct ServerFacts {
    /// `server_version`, such as `15.14`.
    pub version: String,
    /// The same as a number, such as 150014.
    pub version_number: i32,
    /// Who we are and what we may do.
    pub login: LoginFacts,
    /// Settings by their names, as they are for this login: fsync, synchronous_commit,
    /// full_page_writes, max_connections.
    pub settings: BTreeMap<String, String>,
    /// Sessions of all clients now.
    pub sessions: i64,
    /// Chains whose locks are held: daemons that write now.
    pub writers: i64,
    /// The version of TLS on our connection.
    pub tls: Option<String>,
    /// Whether a network lies between us.
    pub across_network: bool,
    /// Octets of the database.
    pub size: i64,
    /// The server's clock, and this machine's right after it was asked.
    pub clocks: (Timestamp, Timestamp),
    /// The schema, or one sentence why it cannot be read.
    pub schema: Result<SchemaFacts, String>,
    /// Partitions; `None` without a ledger that can be read.
    pub partitions: Option<PartitionFacts>,
    /// The time of the newest row; `None` without rows, or if they cannot be read.
    pub newest: Option<Timestamp>,
}

/// A login's rights.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoginFacts {
    /// Its name.
    pub name: String,
    /// Whether it is a superuser, whom nothing binds.
    pub superuser: bool,
    /// Which of `<database>_owner`, `<database>_application` and `<database>_auditor` there are,
    /// and whether it is a member.
    pub roles: BTreeMap<String, bool>,
    /// Whether it may add rows and read them.
    pub may_write: bool,
    /// Whether it may change, remove or truncate rows, as far as grants go.
    pub may_change: bool,
}

/// The months that have a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionFacts {
    /// The first.
    pub first: Option<Period>,
    /// The last.
    pub last: Option<Period>,
    /// How many there are.
    pub count: usize,
    /// Octets in the default partition; none if nothing ever missed its own.
    pub default_size: i64,
}

/// Inspects the first host that takes writes.
pub(super) async fn inspect(servers: &Servers, clock: &Clock) -> PostgresFacts {
    let connected = connect(servers, &SESSION, true).await;
    let only_standby = connected.is_err() && connect(servers, &SESSION, false).await.is_ok();
    let server = match connected {
        Ok((mut connection, _)) => {
            let facts = server(&mut connection, clock).await;
            // Nothing depends on a farewell.
            let _ = connection.close().await;
            facts
        }
        Err(error) => Err(error),
    };
    PostgresFacts {
        server: server.map_err(|error| error.to_string()),
        only_standby,
    }
}

async fn server(connection: &mut PgConnection, clock: &Clock) -> sqlx::Result<ServerFacts> {
    connection
        .execute("SET default_transaction_read_only = on")
        .await?;
    let row = one(connection, statements::SERVER_FACTS).await?;
    let address: Option<String> = row.try_get(2)?;
    let across_network = address
        .and_then(|address| address.parse::<IpAddr>().ok())
        .is_some_and(|address| !address.is_loopback());
    let theirs: i64 = one(connection, statements::TIME).await?.try_get(0)?;
    let clocks = (Timestamp::from_micros(theirs), clock.now());
    let schema = schema(connection).await;
    let readable = schema.as_ref().is_ok_and(|schema| schema.version.is_some());
    Ok(ServerFacts {
        version: row.try_get(0)?,
        version_number: row.try_get(1)?,
        across_network,
        tls: row.try_get(3)?,
        size: row.try_get(4)?,
        sessions: row.try_get(5)?,
        writers: row.try_get(6)?,
        clocks,
        login: login(connection).await?,
        settings: settings(connection).await?,
        partitions: if readable {
            Some(partitions(connection).await?)
        } else {
            None
        },
        // Rows that may not be read are told as a missing right.
        newest: if readable {
            newest(connection).await.unwrap_or(None)
        } else {
            None
        },
        schema: schema.map_err(|error| error.to_string()),
    })
}

async fn one(connection: &mut PgConnection, sql: &'static str) -> sqlx::Result<PgRow> {
    connection.fetch_one(sql).await
}

async fn settings(connection: &mut PgConnection) -> sqlx::Result<BTreeMap<String, String>> {
    connection
        .fetch_all(statements::SETTINGS)
        .await?
        .iter()
        .map(|row| Ok((row.try_get(0)?, row.try_get(1)?)))
        .collect()
}

async fn login(connection: &mut PgConnection) -> sqlx::Result<LoginFacts> {
    let rights = one(connection, statements::RIGHTS).await?;
    let roles = connection.fetch_all(statements::MEMBERSHIPS).await?;
    Ok(LoginFacts {
        name: rights.try_get(0)?,
        superuser: rights.try_get(1)?,
        roles: roles
            .iter()
            .map(|row| Ok((row.try_get(0)?, row.try_get(1)?)))
            .collect::<sqlx::Result<_>>()?,
        may_write: rights.try_get(2)?,
        may_change: rights.try_get(3)?,
    })
}

async fn partitions(connection: &mut PgConnection) -> sqlx::Result<PartitionFacts> {
    let months: BTreeSet<Period> = months(&connection.fetch_all(statements::PARTITIONS).await?)?
        .into_iter()
        .collect();
    let default_size = one(connection, statements::DEFAULT_SIZE)
        .await?
        .try_get(0)?;
    Ok(PartitionFacts {
        first: months.first().copied(),
        last: months.last().copied(),
        count: months.len(),
        default_size,
    })
}

async fn newest(connection: &mut PgConnection) -> sqlx::Result<Option<Timestamp>> {
    Ok(one(connection, statements::NEWEST)
        .await?
        .try_get::<Option<i64>, _>(0)?
        .map(Timestamp::from_micros))
}

async fn schema(connection: &mut PgConnection) -> sqlx::Result<SchemaFacts> {
    if !one(connection, statements::MIGRATIONS_ARE_READABLE)
        .await?
        .try_get::<bool, _>(0)?
    {
        return Ok(SchemaFacts::default());
    }
    let applied = connection.fetch_all(statements::MIGRATIONS).await?;
    let applied = applied
        .iter()
        .map(|row| Ok((row.try_get(0)?, row.try_get(1)?)))
        .collect::<sqlx::Result<BTreeMap<i64, Vec<u8>>>>()?;
    let oldest_writer = match one(connection, statements::OLDEST_WRITER_IS_READABLE)
        .await?
        .try_get(0)?
    {
        true => one(connection, statements::OLDEST_WRITER)
            .await?
            .try_get::<Option<i64>, _>(0)?,
        false => None,
    };
    let mut facts = schema_facts(&applied, oldest_writer, &POSTGRES);
    // Another version's objects are not judged by ours, but for those that ours needs.
    if facts.missing.is_empty() && facts.unknown.is_empty() {
        facts.differences = differences(connection).await?;
        facts
            .differences
            .retain(|difference| facts.later.is_empty() || difference.how == How::Missing);
        if oldest_writer.is_none() {
            facts.differences.push(Difference {
                kind: "table".into(),
                name: "oldest_writer".into(),
                how: How::Missing,
            });
        }
    }
    Ok(facts)
}

/// What keeps rows from being changed, and finds them: triggers on the table and on every
/// partition, the function that they call, indexes; and what could divert rows, rules and policies.
async fn differences(connection: &mut PgConnection) -> sqlx::Result<Vec<Difference>> {
    let tables: Vec<(String, bool)> = connection
        .fetch_all(statements::TABLES)
        .await?
        .iter()
        .map(|row| Ok((row.try_get(0)?, row.try_get(1)?)))
        .collect::<sqlx::Result<_>>()?;
    if tables.is_empty() {
        return Ok(vec![Difference {
            kind: "table".into(),
            name: "event".into(),
            how: How::Missing,
        }]);
    }
    let mut found = triggers(connection, &tables).await?;
    let diverted = tables.iter().filter(|(_, diverted)| *diverted);
    found.extend(diverted.map(|(table, _)| Difference {
        kind: "rule or policy".into(),
        name: format!("on {table}"),
        how: How::Added,
    }));
    let body = connection
        .fetch_optional(statements::FUNCTION_BODY)
        .await?
        .map(|row| row.try_get::<String, _>(0))
        .transpose()?;
    let how = match body {
        None => Some(How::Missing),
        Some(body) => (!POSTGRES
            .iter()
            .any(|migration| migration.sql.as_str().contains(&body)))
        .then_some(How::Changed),
    };
    found.extend(how.map(|how| Difference {
        kind: "function".into(),
        name: "event_only_grows".into(),
        how,
    }));
    // What partitions inherit cannot be taken from them alone.
    let there: BTreeSet<String> = connection
        .fetch_all(statements::CONSTRAINTS)
        .await?
        .iter()
        .map(|row| row.try_get(0))
        .collect::<sqlx::Result<_>>()?;
    if connection
        .fetch_one(sqlx::query(statements::FENCE_IS_THERE).bind(FENCE))
        .await?
        .try_get(0)?
    {
        found.push(Difference {
            kind: "fence".into(),
            name: format!("{FENCE} on event_default"),
            how: How::Added,
        });
    }
    let missing = named_in_migrations("CONSTRAINT", "CHECK")
        .into_iter()
        .filter(|constraint| !there.contains(constraint));
    found.extend(missing.map(|name| Difference {
        kind: "constraint".into(),
        name,
        how: How::Missing,
    }));
    let indexes: BTreeSet<String> = connection
        .fetch_all(statements::INDEXES)
        .await?
        .iter()
        .map(|row| row.try_get(0))
        .collect::<sqlx::Result<_>>()?;
    let missing = named_in_migrations("INDEX", "ON")
        .into_iter()
        .filter(|index| !indexes.contains(index));
    found.extend(missing.map(|name| Difference {
        kind: "index".into(),
        name,
        how: How::Missing,
    }));
    Ok(found)
}

/// BEFORE UPDATE OR DELETE for each row, and BEFORE TRUNCATE, as pg_trigger.tgtype writes them.
const TRIGGERS: [(&str, i16); 2] = [
    ("event_is_never_changed", 1 | 2 | 8 | 16),
    ("event_is_never_truncated", 2 | 32),
];

async fn triggers(
    connection: &mut PgConnection,
    tables: &[(String, bool)],
) -> sqlx::Result<Vec<Difference>> {
    let mut there = BTreeMap::new();
    for row in connection.fetch_all(statements::TRIGGERS).await? {
        let key: (String, String) = (row.try_get(0)?, row.try_get(1)?);
        there.insert(key, (row.try_get::<i16, _>(2)?, row.try_get::<bool, _>(3)?));
    }
    let difference = |table: &str, trigger: &str, how| Difference {
        kind: "trigger".into(),
        name: format!("{trigger} on {table}"),
        how,
    };
    let mut found = Vec::new();
    for (table, _) in tables {
        for (trigger, kind) in TRIGGERS {
            match there.remove(&(table.clone(), trigger.to_owned())) {
                None => found.push(difference(table, trigger, How::Missing)),
                Some((is, works)) if is != kind || !works => {
                    found.push(difference(table, trigger, How::Changed))
                }
                Some(_) => {}
            }
        }
    }
    found.extend(
        there
            .keys()
            .map(|(table, trigger)| difference(table, trigger, How::Added)),
    );
    Ok(found)
}

/// The objects of a kind that the migrations leave behind, by their names: of `INDEX name ON`, or
/// of `CONSTRAINT name CHECK`.
fn named_in_migrations(kind: &str, before: &str) -> BTreeSet<String> {
    let mut left = BTreeSet::new();
    for migration in POSTGRES.iter() {
        let words: Vec<&str> = migration.sql.as_str().split_whitespace().collect();
        for three in words.windows(3) {
            match *three {
                [word, name, then] if word == kind && then == before => {
                    left.insert(name.to_owned())
                }
                ["DROP", word, name] if word == kind => left.remove(name.trim_end_matches(';')),
                _ => false,
            };
        }
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indexes_and_constraints_are_read_from_the_migrations() {
        let indexes = named_in_migrations("INDEX", "ON");
        assert!(
            indexes.contains("event_place") && indexes.contains("event_serial"),
            "{indexes:?}"
        );
        let constraints = named_in_migrations("CONSTRAINT", "CHECK");
        assert!(
            constraints.len() == 6 && constraints.contains("event_seq_counts_from_0"),
            "{constraints:?}"
        );
    }
}
