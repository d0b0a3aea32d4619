//! The ledger's SQL on PostgreSQL, all of it but the schema's, which is in `migrate`. What goes in and out are rows; what they mean is
//! decided elsewhere.
//!
//! A chain's lock is a session-level advisory lock on the connection that writes it: while a session lives nobody else can obtain it,
//! and when it has been obtained the former session can commit nothing more. Every statement has a limit, after which the connection
//! is given up: a server that does not answer is one that is down.

mod audit;

use std::collections::BTreeSet;
use std::time::Duration;

use sqlx::postgres::{PgArguments, PgConnectOptions, PgRow};
use sqlx::{Arguments, AssertSqlSafe, Connection, Executor, PgConnection, Row as _};
use tokio::time::timeout;

use super::event::{ChainId, Place, Row, StoredRow};
use super::location::Servers;
use super::lock::Lock;
use super::schema::{POSTGRES, SchemaError, applied, latest, may_write, oldest_writer};
use crate::timestamp::{Period, Timestamp};

/// The schema that holds everything.
pub(super) const SCHEMA: &str = "ca_server";

/// How long a server may take to let a connection in.
const CONNECT: Duration = Duration::from_secs(2);

/// How long the writer waits for an answer before it gives the connection up.
const ANSWER: Duration = Duration::from_secs(3);

/// A session of the writer that was silent for so long is ended by the server, and its lock is free: its process does not run, or no
/// longer reaches the server. The writer's upkeep is never silent for half as long.
const SILENCE: &str = "20s";

const INSERT: &str = "INSERT INTO event (period, chain, seq, kind, time, serial, identity, issuer, profile, hash, body) \
     SELECT * FROM unnest($1::int4[], $2::bytea[], $3::int8[], $4::text[], $5::int8[], $6::bytea[], $7::text[], $8::text[], $9::bytea[], \
     $10::bytea[], $11::bytea[])";

/// One connection to the ledger.
#[derive(Debug)]
pub(super) struct Database {
    connection: PgConnection,
    /// The server's number of this session.
    session: i32,
    claims: BTreeSet<ChainId>,
    /// Limits statements; a reader's may take as long as they need.
    limit: Option<Duration>,
}

/// Gives up after the limit. The connection must not be used again after an error of kind `TimedOut`.
async fn within<T>(limit: Option<Duration>, work: impl Future<Output = sqlx::Result<T>>) -> sqlx::Result<T> {
    let Some(limit) = limit else { return work.await };
    timeout(limit, work).await.unwrap_or_else(|_| {
        Err(std::io::Error::new(std::io::ErrorKind::TimedOut, format!("the database did not answer within {} s", limit.as_secs())).into())
    })
}

/// A session's name, as the server's operator sees it, and its settings.
pub(super) struct Session {
    pub(super) name: &'static str,
    pub(super) settings: &'static [(&'static str, &'static str)],
}

/// What waits for a lock gives up by itself. A limit on statements would not do: when it ends a commit that waits for a standby, the
/// server reports success.
const WRITER: Session = Session {
    name: "ca-server",
    settings: &[
        ("search_path", SCHEMA),
        ("idle_session_timeout", SILENCE),
        ("lock_timeout", "2s"),
        ("tcp_keepalives_idle", "5"),
        ("tcp_keepalives_interval", "2"),
        ("tcp_keepalives_count", "3"),
    ],
};

const READER: Session = Session { name: "ca-server audit", settings: &[("search_path", SCHEMA), ("default_transaction_read_only", "on")] };

/// A connection to the first host that lets it in and, if it is to write, takes writes; the error is the last host's.
pub(super) async fn connect(servers: &Servers, session: &Session, writes: bool) -> sqlx::Result<PgConnection> {
    let mut last = sqlx::Error::Configuration("no host".into());
    for options in servers.options()? {
        let options = options.application_name(session.name).options(session.settings.iter().copied());
        match within(Some(CONNECT), connect_to(options, writes)).await {
            Ok(connection) => return Ok(connection),
            Err(error) => last = error,
        }
    }
    Err(last)
}

async fn connect_to(options: PgConnectOptions, writes: bool) -> sqlx::Result<PgConnection> {
    let mut connection = PgConnection::connect_with(&options).await?;
    if writes {
        let read_only: String = connection.fetch_one(sqlx::query("SHOW transaction_read_only")).await?.try_get(0)?;
        if read_only == "on" {
            return Err(read_only_server());
        }
    }
    Ok(connection)
}

fn read_only_server() -> sqlx::Error {
    std::io::Error::other("the server takes no writes: it is a standby, or set to read-only").into()
}

impl Database {
    /// A connection that writes. Nothing is taken yet: see `lock_own`.
    pub(super) async fn writer(servers: &Servers) -> sqlx::Result<Self> {
        let connection = connect(servers, &WRITER, true).await?;
        let mut database = Self::over(connection, Some(ANSWER)).await?;
        database.never_less_durable().await?;
        Ok(database)
    }

    /// A connection that only reads; a standby does as well.
    pub(super) async fn reader(servers: &Servers) -> sqlx::Result<Self> {
        Self::over(connect(servers, &READER, false).await?, None).await
    }

    async fn over(mut connection: PgConnection, limit: Option<Duration>) -> sqlx::Result<Self> {
        let asked = connection.fetch_one(sqlx::query("SELECT pg_backend_pid()"));
        let session = within(Some(ANSWER), asked).await?.try_get(0)?;
        Ok(Self { connection, session, claims: BTreeSet::new(), limit })
    }

    /// A commit that is not on the disk when it is answered would break every promise; stronger settings than `on` are the operator's.
    async fn never_less_durable(&mut self) -> sqlx::Result<()> {
        // Set in any case: from then on a change of the server's own setting does not reach this session.
        let raised = "SELECT set_config('synchronous_commit', CASE current_setting('synchronous_commit') WHEN 'off' THEN 'on' \
             ELSE current_setting('synchronous_commit') END, false)";
        within(self.limit, self.connection.execute(raised)).await.map(drop)
    }

    /// Nothing is made here: that takes the migration's role. Says what is wrong.
    pub(super) async fn check_schema(&mut self) -> Result<(), SchemaError> {
        match applied(&mut self.connection).await? {
            None => Err(SchemaError::Missing("its tables are not there, or not for this login; run `ca-server migrate`".into())),
            Some(version) if version < latest(&POSTGRES) => {
                Err(SchemaError::Missing("its schema is older than this program; run `ca-server migrate`".into()))
            }
            Some(_) => may_write(oldest_writer(&mut self.connection).await?, &POSTGRES),
        }
    }

    pub(super) async fn schema_is_known(&mut self) -> sqlx::Result<bool> {
        Ok(match applied(&mut self.connection).await? {
            None => false,
            Some(_) => may_write(oldest_writer(&mut self.connection).await?, &POSTGRES).is_ok(),
        })
    }

    pub(super) fn session(&self) -> i32 {
        self.session
    }

    pub(super) async fn lock_own(&mut self, chain: ChainId, formers: &[i32]) -> sqlx::Result<Lock> {
        if self.try_lock(chain).await? {
            return Ok(Lock::Held);
        }
        // One bigint key is shown as its two halves, with objsubid 1.
        let end = "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 1 AND pid = ANY($2) \
             AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) \
             AND (classid::bigint << 32 | objid::bigint) = $1";
        let ended = self.connection.fetch_all(sqlx::query(end).bind(key(chain)).bind(formers));
        if !within(self.limit, ended).await?.is_empty() {
            return Ok(Lock::OwnFormer);
        }
        // A former one may have ended between the two questions.
        Ok(if self.try_lock(chain).await? { Lock::Held } else { Lock::Lost })
    }

    async fn try_lock(&mut self, chain: ChainId) -> sqlx::Result<bool> {
        let asked = self.connection.fetch_one(sqlx::query("SELECT pg_try_advisory_lock($1)").bind(key(chain)));
        within(self.limit, asked).await?.try_get(0)
    }

    pub(super) async fn claim(&mut self, chain: ChainId) -> sqlx::Result<bool> {
        // A session's locks are counted: one more would have to be released once more.
        if self.claims.contains(&chain) {
            return Ok(true);
        }
        let claimed = self.try_lock(chain).await?;
        if claimed {
            self.claims.insert(chain);
        }
        Ok(claimed)
    }

    pub(super) async fn release_claims(&mut self) -> sqlx::Result<()> {
        while let Some(chain) = self.claims.pop_last() {
            let released = self.connection.execute(sqlx::query("SELECT pg_advisory_unlock($1)").bind(key(chain)));
            within(self.limit, released).await?;
        }
        Ok(())
    }

    pub(super) async fn time(&mut self) -> sqlx::Result<Timestamp> {
        let asked = self.connection.fetch_one(sqlx::query("SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::int8"));
        Ok(Timestamp::from_micros(within(self.limit, asked).await?.try_get(0)?))
    }

    pub(super) async fn last_partition(&mut self) -> sqlx::Result<Option<Period>> {
        let sql = "SELECT max(substring(relname FROM '^event_([0-9]{6})$')::int) FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid \
             WHERE inhparent = to_regclass('event')";
        let asked = self.connection.fetch_one(sqlx::query(sql));
        let last: Option<i32> = within(self.limit, asked).await?.try_get(0)?;
        Ok(last.and_then(|last| Period::new(u32::try_from(last).ok()?)))
    }

    /// One statement, which commits by itself.
    pub(super) async fn insert(&mut self, rows: &[Row]) -> sqlx::Result<()> {
        let query = sqlx::query_with(INSERT, columns(rows).map_err(sqlx::Error::Encode)?);
        let done = within(self.limit, self.connection.execute(query)).await?;
        if done.rows_affected() == rows.len() as u64 { Ok(()) } else { Err(sqlx::Error::Protocol("not every row was taken".into())) }
    }

    /// Rows that are taken back tell whether there is room for some; their chain is nobody's, so that no other probe waits for them. A message that nobody reads is then logged and committed: everything
    /// before it is on the disk, and on a synchronous standby.
    pub(super) async fn probe(&mut self) -> sqlx::Result<()> {
        let room = "BEGIN; INSERT INTO event (period, chain, seq, kind, time, hash, body) \
             SELECT 999912, decode(md5(random()::text), 'hex'), number, 'probe', 0, decode(repeat('00', 32), 'hex'), \
             decode(repeat('00', 1000), 'hex') FROM generate_series(1, 16) AS number; ROLLBACK";
        within(self.limit, self.connection.execute(room)).await?;
        let written = self.connection.execute("SELECT pg_logical_emit_message(true, 'ca-server', 'probe')");
        within(self.limit, written).await.map(drop)
    }

    pub(super) async fn begin_snapshot(&mut self) -> sqlx::Result<()> {
        self.connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await.map(drop)
    }

    pub(super) async fn end_snapshot(&mut self) -> sqlx::Result<()> {
        self.connection.execute("COMMIT").await.map(drop)
    }

    pub(super) async fn marks(&mut self) -> sqlx::Result<Vec<StoredRow>> {
        let sql = select("WHERE identity IS NULL AND kind IN ('start', 'end', 'chain_ended') ORDER BY time, period, chain, seq");
        self.rows(sql, PgArguments::default()).await
    }

    pub(super) async fn last_row(&mut self, chain: ChainId) -> sqlx::Result<Option<StoredRow>> {
        let mut before = i64::from(i32::MAX);
        while let Some(period) = self.period_before(before).await? {
            let sql = select("WHERE period = $1 AND chain = $2 ORDER BY seq DESC LIMIT 1");
            let rows = self.rows(sql, arguments(period, &[&chain.0], &[])).await?;
            if let Some(row) = rows.into_iter().next() {
                return Ok(Some(row));
            }
            before = period;
        }
        Ok(None)
    }

    async fn period_before(&mut self, period: i64) -> sqlx::Result<Option<i64>> {
        let sql = "SELECT max(period)::int8 FROM event WHERE period < $1";
        let asked = self.connection.fetch_one(sqlx::query_with(sql, arguments(period, &[], &[])));
        within(self.limit, asked).await?.try_get(0)
    }

    pub(super) async fn periods(&mut self) -> sqlx::Result<Vec<i64>> {
        let mut periods = Vec::new();
        let mut before = i64::from(i32::MAX);
        while let Some(period) = self.period_before(before).await? {
            periods.push(period);
            before = period;
        }
        periods.reverse();
        Ok(periods)
    }

    pub(super) async fn row(&mut self, chain: ChainId, place: Place) -> sqlx::Result<Option<StoredRow>> {
        let key = arguments(yyyymm(place.period), &[&chain.0], &[seq(place)]);
        let rows = self.rows(select("WHERE period = $1 AND chain = $2 AND seq = $3"), key).await?;
        Ok(rows.into_iter().next())
    }

    pub(super) async fn chain_page(&mut self, chain: ChainId, from: Place, limit: u32) -> sqlx::Result<Vec<StoredRow>> {
        let key = arguments(yyyymm(from.period), &[&chain.0], &[seq(from), limit.into()]);
        self.rows(select("WHERE period = $1 AND chain = $2 AND seq >= $3 ORDER BY seq LIMIT $4"), key).await
    }

    pub(super) async fn page(&mut self, period: i64, after: Option<(&[u8], i64)>, limit: u32) -> sqlx::Result<Vec<StoredRow>> {
        let (chain, seq) = after.unwrap_or((&[], -1));
        let key = arguments(period, &[chain], &[seq, limit.into()]);
        self.rows(select("WHERE period = $1 AND (chain, seq) > ($2, $3) ORDER BY chain, seq LIMIT $4"), key).await
    }

    pub(super) async fn intents_of_serial(&mut self, period: Period, serial: &[u8]) -> sqlx::Result<Vec<StoredRow>> {
        let key = arguments(yyyymm(period), &[serial], &[]);
        self.rows(select("WHERE kind = 'intent' AND period = $1 AND serial = $2"), key).await
    }

    pub(super) async fn rows_of_identity(&mut self, identity: &str, limit: u32) -> sqlx::Result<Vec<StoredRow>> {
        let mut found = Vec::new();
        for period in self.periods().await?.into_iter().rev() {
            let wanted = (limit as usize).saturating_sub(found.len());
            if wanted == 0 {
                break;
            }
            let mut key = arguments(period, &[], &[]);
            key.add(identity).and_then(|()| key.add(i64::try_from(wanted).unwrap_or(i64::MAX))).map_err(sqlx::Error::Encode)?;
            let sql = select("WHERE period = $1 AND identity = $2 ORDER BY time DESC, chain DESC, seq DESC LIMIT $3");
            found.extend(self.rows(sql, key).await?);
        }
        Ok(found)
    }

    pub(super) async fn row_count(&mut self) -> sqlx::Result<u64> {
        let count: i64 = self.connection.fetch_one(sqlx::query("SELECT count(*) FROM event")).await?.try_get(0)?;
        Ok(u64::try_from(count).unwrap_or(0))
    }

    #[cfg(test)]
    pub(super) async fn in_order_of_writing(&mut self) -> sqlx::Result<Vec<StoredRow>> {
        self.rows(select("ORDER BY period, ctid"), PgArguments::default()).await
    }

    async fn rows(&mut self, sql: String, arguments: PgArguments) -> sqlx::Result<Vec<StoredRow>> {
        let asked = self.connection.fetch_all(sqlx::query_with(AssertSqlSafe(sql), arguments));
        within(self.limit, asked).await?.iter().map(stored).collect()
    }

    /// Ends the session without a word where the server may be one that does not listen.
    pub(super) async fn close(self) -> sqlx::Result<()> {
        match self.limit {
            Some(_) => within(Some(Duration::from_millis(200)), self.connection.close()).await,
            None => self.connection.close().await,
        }
    }
}

/// A chain's number among the server's advisory locks.
fn key(chain: ChainId) -> i64 {
    i64::from_be_bytes(chain.0[..8].try_into().expect("a chain's id has 16 octets"))
}

fn select(rest: &str) -> String {
    let mut sql = String::from("SELECT period, chain, seq, kind, time, serial, identity, issuer, profile, hash, body FROM event ");
    sql.push_str(rest);
    sql
}

/// The values of a key in their order: period, octets, numbers.
fn arguments(period: i64, octets: &[&[u8]], numbers: &[i64]) -> PgArguments {
    let mut arguments = PgArguments::default();
    let added = arguments.add(i32::try_from(period).unwrap_or(i32::MAX));
    let added = added.and_then(|()| octets.iter().try_for_each(|octets| arguments.add(*octets)));
    added.and_then(|()| numbers.iter().try_for_each(|number| arguments.add(*number))).expect("numbers and octets always encode");
    arguments
}

fn columns(rows: &[Row]) -> Result<PgArguments, sqlx::error::BoxDynError> {
    let projections: Vec<_> = rows.iter().map(|row| row.event.projection()).collect();
    let mut arguments = PgArguments::default();
    arguments.add(rows.iter().map(|row| i32::try_from(row.header.place.period.yyyymm()).unwrap_or(i32::MAX)).collect::<Vec<_>>())?;
    arguments.add(rows.iter().map(|row| row.header.chain.0.as_slice()).collect::<Vec<_>>())?;
    arguments.add(rows.iter().map(|row| seq(row.header.place)).collect::<Vec<_>>())?;
    arguments.add(rows.iter().map(|row| row.event.kind()).collect::<Vec<_>>())?;
    arguments.add(rows.iter().map(|row| row.header.time.micros()).collect::<Vec<_>>())?;
    arguments.add(projections.iter().map(|projection| projection.serial).collect::<Vec<_>>())?;
    arguments.add(projections.iter().map(|projection| projection.identity).collect::<Vec<_>>())?;
    arguments.add(projections.iter().map(|projection| projection.issuer).collect::<Vec<_>>())?;
    arguments.add(projections.iter().map(|projection| projection.profile).collect::<Vec<_>>())?;
    arguments.add(rows.iter().map(|row| row.hash.as_slice()).collect::<Vec<_>>())?;
    arguments.add(rows.iter().map(|row| row.body.as_ref()).collect::<Vec<_>>())?;
    Ok(arguments)
}

fn yyyymm(period: Period) -> i64 {
    period.yyyymm().into()
}

fn seq(place: Place) -> i64 {
    i64::try_from(place.seq).unwrap_or(i64::MAX)
}

fn stored(row: &PgRow) -> sqlx::Result<StoredRow> {
    Ok(StoredRow {
        period: row.try_get::<i32, _>(0)?.into(),
        chain: row.try_get(1)?,
        seq: row.try_get(2)?,
        kind: row.try_get(3)?,
        time: row.try_get(4)?,
        serial: row.try_get(5)?,
        identity: row.try_get(6)?,
        issuer: row.try_get(7)?,
        profile: row.try_get(8)?,
        hash: row.try_get(9)?,
        body: row.try_get(10)?,
    })
}
