//! Takes a past month out of a server's ledger, beside the daemons that write it: its rows stay
//! where they are, in a table of their own that only the ledger's owner and auditors see, as
//! unchangeable as before. Only the oldest month can go, and only when nothing that a daemon or a
//! later start must know stands in it alone.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, Row as _};

use super::brief_locks::{holders, in_one, is_taken};
use super::event::{ChainId, Event, RowRef};
use super::location::{Location, Servers};
use super::migrate::{Failed, MigrationError, SESSION, quoted, table};
use super::postgres::{self, connect, statements};
use super::query::Entry;
use super::schema::{POSTGRES, writable};
use crate::timestamp::{Period, Timestamp};

/// A daemon whose clock is behind may still write into the month that has just ended.
const OVER: Duration = Duration::from_secs(3600);

/// A certificate can be given out again for a minute, in a row that names its intent; the rest is
/// for calls that take long and clocks that differ.
const GIVEN_AGAIN: Duration = Duration::from_secs(600);

/// What was detached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Detached {
    /// The table that has the rows now.
    pub table: String,
    /// Octets, with its indexes.
    pub size: u64,
    /// From when on `audit verify --since` needs nothing of what is gone.
    pub verifiable_since: Timestamp,
}

/// Detaches the month. Refuses with the reason and the remedy; nothing is changed then.
pub async fn detach(
    location: &Location,
    period: Period,
    now: Timestamp,
) -> Result<Detached, MigrationError> {
    match location {
        Location::Sqlite(_) => Err(MigrationError::Refused(
            "a SQLite ledger is one file, of which no month can be detached".into(),
        )),
        Location::Postgres(servers) => on_postgres(servers, period, now)
            .await
            .map_err(|failed| failed.at(location)),
    }
}

async fn on_postgres(
    servers: &Servers,
    period: Period,
    now: Timestamp,
) -> Result<Detached, Failed> {
    if period >= now.minus(OVER).period() {
        return Err(Failed::Refused(format!(
            "{period} is not over: daemons write into it; detach months that have ended"
        )));
    }
    let (mut connection, _) = connect(servers, &SESSION, true).await?;
    let auditor = become_owner(&mut connection).await?;
    let table = table(period);
    is_attached(&mut connection, period, &table).await?;
    let verifiable_since = nothing_is_needed(servers, period).await?;
    let size = connection
        .fetch_one(sqlx::query(statements::TABLE_SIZE).bind(&table))
        .await?;
    let size = u64::try_from(size.try_get::<i64, _>(0)?).unwrap_or(0);
    // Locks from the leaves up, so that writers, who want the table, wait for the last of them
    // only. The table's row triggers leave a partition with it, and come back before anybody can
    // change a row.
    let changes = [
        format!("LOCK TABLE {table}, event_default IN ACCESS EXCLUSIVE MODE"),
        "LOCK TABLE ONLY event IN ACCESS EXCLUSIVE MODE".into(),
        format!("ALTER TABLE event DETACH PARTITION {table}"),
        format!(
            "CREATE TRIGGER event_is_never_changed BEFORE UPDATE OR DELETE ON {table} FOR EACH ROW EXECUTE FUNCTION event_only_grows()"
        ),
        format!("GRANT SELECT ON {table} TO {}", quoted(&auditor)),
    ];
    match in_one(&mut connection, &changes).await {
        Err(error) if is_taken(&error) => {
            let by = holders(&mut connection).await?;
            let why = format!(
                "{table} could not be detached within a minute without holding daemons up: {by} read the ledger all the time"
            );
            return Err(Failed::Refused(format!(
                "{why}; try again when they are done"
            )));
        }
        done => done?,
    }
    connection.close().await?;
    Ok(Detached {
        table,
        size,
        verifiable_since,
    })
}

/// What the owner owns is the owner's to change. Returns the auditors' role.
async fn become_owner(connection: &mut PgConnection) -> Result<String, Failed> {
    let facts = connection.fetch_one(statements::OWNER).await?;
    let (login, owner, auditor): (String, String, String) =
        (facts.try_get(0)?, facts.try_get(1)?, facts.try_get(2)?);
    if !facts.try_get::<bool, _>(3)? || writable(connection, &POSTGRES).await?.is_none() {
        return Err(Failed::Refused("the database holds no ledger, or none that this login may read; name another with --ledger".into()));
    }
    let became = connection
        .execute(AssertSqlSafe(format!("SET ROLE {}", quoted(&owner))))
        .await;
    became.map_err(|_| {
        Failed::Refused(format!("the login {login} is no member of {owner}; run this as the login that runs `ca-server migrate`"))
    })?;
    Ok(auditor)
}

async fn is_attached(
    connection: &mut PgConnection,
    period: Period,
    table: &str,
) -> Result<(), Failed> {
    let asked = sqlx::query(statements::IS_ATTACHED)
        .bind(table)
        .bind(i32::try_from(period.yyyymm()).unwrap_or(i32::MAX));
    let row = connection.fetch_one(asked).await?;
    let (is_there, is_attached, in_default): (bool, bool, bool) =
        (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
    match () {
        () if is_attached => Ok(()),
        () if is_there => Err(Failed::Refused(format!(
            "{period} is detached already; its rows stand in ca_server.{table}"
        ))),
        () if in_default => {
            let why = "stand in the default partition, among those of other months; they cannot be detached";
            Err(Failed::Refused(format!("the rows of {period} {why}")))
        }
        () => Err(Failed::Refused(format!(
            "there is no partition of {period}"
        ))),
    }
}

/// Whether the ledger can do without the month, as its first and last rows of chains tell. From
/// when on nothing names what is in it.
async fn nothing_is_needed(servers: &Servers, period: Period) -> Result<Timestamp, Failed> {
    let mut database = postgres::Database::reader(servers).await?;
    database.begin_snapshot().await?;
    if let Some(first) = database
        .periods()
        .await?
        .first()
        .and_then(|first| Period::new(u32::try_from(*first).ok()?))
        && first < period
    {
        return Err(Failed::Refused(format!(
            "{first} comes before {period}; months are detached from the oldest on"
        )));
    }
    let chains: BTreeSet<ChainId> = database.chains_in(period).await?.into_iter().collect();
    let marks = database
        .marks_before(Timestamp::from_micros(i64::MAX))
        .await?;
    database.close().await?;
    let mut of_chains: BTreeMap<ChainId, Chain> = chains
        .iter()
        .map(|chain| (*chain, Chain::default()))
        .collect();
    let mut last = Timestamp::from_micros(0);
    for row in &marks {
        let entry = Entry::try_from(row).map_err(|error| Failed::Refused(error.to_string()))?;
        let (chain, time) = (entry.header.chain, entry.header.time);
        let mut concerns = chains.contains(&chain);
        match &entry.event {
            Event::Start { host, heads, .. } => {
                if let Some(known) = of_chains.get_mut(&chain) {
                    known.started = Some((host.clone(), time));
                }
                for head in heads {
                    if let Some(known) = of_chains.get_mut(&head.chain) {
                        known.named = known
                            .named
                            .filter(|named| named.place >= head.place)
                            .or(Some(*head));
                        concerns = true;
                    }
                }
            }
            Event::End => {
                if let Some(known) = of_chains.get_mut(&chain) {
                    known.end = Some(entry.reference());
                }
            }
            Event::ChainEnded { head } => {
                if let Some(known) = of_chains.get_mut(&head.chain) {
                    known.declared = true;
                    concerns = true;
                }
            }
            _ => {}
        }
        if concerns {
            last = last.max(time);
        }
    }
    let needed: Vec<String> = of_chains
        .iter()
        .filter_map(|(id, chain)| Some(format!("chain {id} {}", chain.needed()?)))
        .collect();
    if !needed.is_empty() {
        return Err(Failed::Refused(format!(
            "{period} is still needed: {}",
            needed.join("; ")
        )));
    }
    Ok(last
        .plus(Duration::from_micros(1))
        .max(period.next().begins().plus(GIVEN_AGAIN)))
}

/// A chain with rows in the month.
#[derive(Default)]
struct Chain {
    /// Host and time.
    started: Option<(String, Timestamp)>,
    end: Option<RowRef>,
    declared: bool,
    /// The furthest row that another chain's start names.
    named: Option<RowRef>,
}

impl Chain {
    /// What keeps it from being forgotten, and the remedy.
    fn needed(&self) -> Option<String> {
        let of: &dyn fmt::Display = match &self.started {
            Some((host, time)) => &format!("(of {host}, begun {time})"),
            None => &"(whose beginning is not there)",
        };
        match self.end {
            _ if self.declared => None,
            Some(end) if self.named == Some(end) => None,
            Some(_) => Some(format!(
                "{of} has ended, and no later chain names its end yet; start a daemon, then run this again"
            )),
            None => Some(format!(
                "{of} has not ended; restart that daemon, or start another if it is dead, then run this again"
            )),
        }
    }
}
