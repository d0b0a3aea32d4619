//! The ledger on PostgreSQL. What goes in and out are rows; what they mean is decided elsewhere.
//! The SQL stands in `statements`, and that of the schema in `migrate`.
//!
//! A chain's lock is a session-level advisory lock on the connection that writes it: while a
//! session lives nobody else can obtain it, and when it has been obtained the former session can
//! commit nothing more. So a session must be one, and nobody else's: what a writer asks for a lock,
//! and every row, takes effect only on the session that it has opened (`Identity`). Every statement
//! has a limit, after which the connection is given up: a server that does not answer is one that
//! is down.

mod audit;
mod session;
pub(super) mod statements;

use std::collections::{BTreeSet, HashSet};
use std::time::Duration;

use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::Query;
use sqlx::{Arguments, Connection, Executor, PgConnection, Postgres, Row as _};
use tokio::time::timeout;

#[cfg(test)]
pub(super) use self::session::PLANS;
use self::session::{Identity, READER, SEARCHER, WRITER};
pub(super) use self::session::{SCHEMA, Session, connect};
use super::event::{ChainId, Place, Row, StoredRow};
use super::location::Servers;
use super::lock::Lock;
use super::schema::{POSTGRES, SchemaError, latest, writable};
use crate::timestamp::{Period, Timestamp};

/// How long the writer waits for an answer before it gives the connection up.
const ANSWER: Duration = Duration::from_secs(3);

/// How long a search beside the writer may take; it keeps nobody waiting.
const SEARCH: Duration = Duration::from_secs(10);

/// One connection to the ledger.
#[derive(Debug)]
pub(super) struct Database {
    connection: PgConnection,
    identity: Identity,
    claims: BTreeSet<ChainId>,
    /// Limits statements; a reader's may take as long as they need.
    limit: Option<Duration>,
}

/// A statement with its values.
type Asked = Query<'static, Postgres, PgArguments>;

/// Gives up after the limit. The connection must not be used again after an error of kind
/// `TimedOut`.
async fn within<T, E: From<sqlx::Error>>(
    limit: Option<Duration>,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    let Some(limit) = limit else {
        return work.await;
    };
    timeout(limit, work).await.unwrap_or_else(|_| {
        let what = format!("the database did not answer within {} s", limit.as_secs());
        Err(sqlx::Error::from(std::io::Error::new(std::io::ErrorKind::TimedOut, what)).into())
    })
}

impl Database {
    /// A connection that writes. Nothing is taken yet: see `lock_own`.
    pub(super) async fn writer(servers: &Servers) -> sqlx::Result<Self> {
        let mut database = Self::over(servers, &WRITER, true, Some(ANSWER)).await?;
        // A commit that is not on the disk when it is answered would break every promise; stronger
        // settings than `on` are the operator's.
        let raised = database.connection.execute(statements::NEVER_LESS_DURABLE);
        within(database.limit, raised).await?;
        Ok(database)
    }

    /// A connection that only reads; a standby does as well.
    pub(super) async fn reader(servers: &Servers) -> sqlx::Result<Self> {
        Self::over(servers, &READER, false, None).await
    }

    /// A connection beside the writer's, to the server that takes writes: it alone knows who holds
    /// locks.
    pub(super) async fn searcher(servers: &Servers) -> sqlx::Result<Self> {
        Self::over(servers, &SEARCHER, true, Some(SEARCH)).await
    }

    async fn over(
        servers: &Servers,
        session: &Session,
        writes: bool,
        limit: Option<Duration>,
    ) -> sqlx::Result<Self> {
        let (connection, identity) = connect(servers, session, writes).await?;
        Ok(Self {
            connection,
            identity,
            claims: BTreeSet::new(),
            limit,
        })
    }

    /// Nothing is made here: that takes the migration's role. Says what is wrong.
    pub(super) async fn check_schema(&mut self) -> Result<(), SchemaError> {
        match within(self.limit, writable(&mut self.connection, &POSTGRES)).await? {
            None => Err(SchemaError::Missing(
                "its tables are not there, or not for this login; run `ca-server migrate`".into(),
            )),
            Some(version) if version < latest(&POSTGRES) => Err(SchemaError::Missing(
                "its schema is older than this program; run `ca-server migrate`".into(),
            )),
            Some(_) => Ok(()),
        }
    }

    pub(super) async fn schema_is_known(&mut self) -> sqlx::Result<bool> {
        match within(self.limit, writable(&mut self.connection, &POSTGRES)).await {
            Ok(version) => Ok(version.is_some()),
            Err(SchemaError::Database(error)) => Err(error),
            Err(_) => Ok(false),
        }
    }

    pub(super) fn session(&self) -> i32 {
        self.identity.number
    }

    pub(super) async fn lock_own(&mut self, chain: ChainId, formers: &[i32]) -> sqlx::Result<Lock> {
        if self.try_lock(chain).await? {
            return Ok(Lock::Held);
        }
        let ended = sqlx::query(statements::END_FORMER_SESSIONS)
            .bind(key(chain))
            .bind(formers);
        if !self.all(ended).await?.is_empty() {
            return Ok(Lock::OwnFormer);
        }
        // A former one may have ended between the two questions.
        Ok(if self.try_lock(chain).await? {
            Lock::Held
        } else {
            Lock::Lost
        })
    }

    async fn try_lock(&mut self, chain: ChainId) -> sqlx::Result<bool> {
        let asked = sqlx::query(statements::TRY_LOCK)
            .bind(key(chain))
            .bind(self.identity.number)
            .bind(&self.identity.token);
        let taken: Option<bool> = self.one(asked).await?.try_get(0)?;
        taken.ok_or_else(session::another)
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
            let released = self
                .connection
                .execute(sqlx::query(statements::UNLOCK).bind(key(chain)));
            within(self.limit, released).await?;
        }
        Ok(())
    }

    pub(super) async fn time(&mut self) -> sqlx::Result<Timestamp> {
        Ok(Timestamp::from_micros(
            self.one(sqlx::query(statements::TIME)).await?.try_get(0)?,
        ))
    }

    pub(super) async fn last_partition(&mut self) -> sqlx::Result<Option<Period>> {
        let listed = self.all(sqlx::query(statements::PARTITIONS)).await?;
        Ok(months(&listed)?.into_iter().max())
    }

    /// One statement, which commits by itself.
    pub(super) async fn insert(&mut self, rows: &[Row]) -> sqlx::Result<()> {
        let query = sqlx::query_with(
            statements::INSERT,
            self.columns(rows).map_err(sqlx::Error::Encode)?,
        );
        match within(self.limit, self.connection.execute(query))
            .await?
            .rows_affected()
        {
            taken if taken == rows.len() as u64 => Ok(()),
            0 => Err(session::another()),
            _ => Err(sqlx::Error::Protocol("not every row was taken".into())),
        }
    }

    /// Rows that are taken back tell whether there is room for some; their chain is nobody's, so
    /// that no other probe waits for them. A message that nobody reads is then logged and
    /// committed: everything before it is on the disk, and on a synchronous standby.
    pub(super) async fn probe(&mut self) -> sqlx::Result<()> {
        for statement in ["BEGIN", statements::ROOM, "ROLLBACK", statements::EMIT] {
            within(self.limit, self.connection.execute(statement)).await?;
        }
        Ok(())
    }

    pub(super) async fn begin_snapshot(&mut self) -> sqlx::Result<()> {
        self.connection
            .execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            .await
            .map(drop)
    }

    pub(super) async fn end_snapshot(&mut self) -> sqlx::Result<()> {
        self.connection.execute("COMMIT").await.map(drop)
    }

    pub(super) async fn unended(&mut self) -> sqlx::Result<Vec<ChainId>> {
        let listed = self.all(sqlx::query(statements::UNENDED)).await?;
        listed.iter().map(|row| chain_of(row.try_get(0)?)).collect()
    }

    /// Chains that have not ended and whose locks nobody holds at present.
    pub(super) async fn unended_and_free(&mut self) -> sqlx::Result<Vec<ChainId>> {
        let unended = self.unended().await?;
        // Asked afterwards: a chain's lock is taken before its first row is written.
        let held = self.all(sqlx::query(statements::HELD_LOCKS)).await?;
        let held = held
            .iter()
            .map(|row| row.try_get(0))
            .collect::<sqlx::Result<HashSet<i64>>>()?;
        Ok(unended
            .into_iter()
            .filter(|chain| !held.contains(&key(*chain)))
            .collect())
    }

    pub(super) async fn is_ended(&mut self, chain: ChainId) -> sqlx::Result<bool> {
        self.one(sqlx::query(statements::IS_ENDED).bind(chain.0.as_slice()))
            .await?
            .try_get(0)
    }

    pub(super) async fn newest_marks(
        &mut self,
        kind: &str,
        limit: u32,
    ) -> sqlx::Result<Vec<StoredRow>> {
        let mut key = PgArguments::default();
        key.add(kind)
            .and_then(|()| key.add(i64::from(limit)))
            .map_err(sqlx::Error::Encode)?;
        self.rows(statements::NEWEST_MARKS, key).await
    }

    pub(super) async fn last_row(&mut self, chain: ChainId) -> sqlx::Result<Option<StoredRow>> {
        for period in self.periods().await?.into_iter().rev() {
            let rows = self
                .rows(statements::LAST_ROW, arguments(period, &[&chain.0], &[]))
                .await?;
            if let Some(row) = rows.into_iter().next() {
                return Ok(Some(row));
            }
        }
        Ok(None)
    }

    pub(super) async fn periods(&mut self) -> sqlx::Result<Vec<i64>> {
        let listed = self.all(sqlx::query(statements::PERIODS)).await?;
        listed.iter().map(|row| row.try_get(0)).collect()
    }

    pub(super) async fn row(
        &mut self,
        chain: ChainId,
        place: Place,
    ) -> sqlx::Result<Option<StoredRow>> {
        let key = arguments(yyyymm(place.period), &[&chain.0], &[seq(place)]);
        let rows = self.rows(statements::ROW, key).await?;
        Ok(rows.into_iter().next())
    }

    pub(super) async fn chain_page(
        &mut self,
        chain: ChainId,
        from: Place,
        limit: u32,
    ) -> sqlx::Result<Vec<StoredRow>> {
        let key = arguments(yyyymm(from.period), &[&chain.0], &[seq(from), limit.into()]);
        self.rows(statements::CHAIN_PAGE, key).await
    }

    pub(super) async fn page(
        &mut self,
        period: i64,
        after: Option<(&[u8], i64)>,
        limit: u32,
    ) -> sqlx::Result<Vec<StoredRow>> {
        let (chain, seq) = after.unwrap_or((&[], i64::MIN));
        let key = arguments(period, &[chain], &[seq, limit.into()]);
        self.rows(statements::PAGE, key).await
    }

    pub(super) async fn intents_of_serial(
        &mut self,
        period: Period,
        serial: &[u8],
    ) -> sqlx::Result<Vec<StoredRow>> {
        let key = arguments(yyyymm(period), &[serial], &[]);
        self.rows(statements::INTENTS_OF_SERIAL, key).await
    }

    pub(super) async fn rows_of_identity(
        &mut self,
        identity: &str,
        limit: u32,
    ) -> sqlx::Result<Vec<StoredRow>> {
        let mut found = Vec::new();
        for period in self.periods().await?.into_iter().rev() {
            let wanted = (limit as usize).saturating_sub(found.len());
            if wanted == 0 {
                break;
            }
            let mut key = arguments(period, &[], &[]);
            key.add(identity)
                .and_then(|()| key.add(i64::try_from(wanted).unwrap_or(i64::MAX)))
                .map_err(sqlx::Error::Encode)?;
            found.extend(self.rows(statements::ROWS_OF_IDENTITY, key).await?);
        }
        Ok(found)
    }

    pub(super) async fn row_count(&mut self) -> sqlx::Result<u64> {
        let count: i64 = self
            .one(sqlx::query(statements::ROW_COUNT))
            .await?
            .try_get(0)?;
        Ok(u64::try_from(count).unwrap_or(0))
    }

    #[cfg(test)]
    pub(super) async fn in_order_of_writing(&mut self) -> sqlx::Result<Vec<StoredRow>> {
        self.rows(statements::IN_ORDER_OF_WRITING, PgArguments::default())
            .await
    }

    async fn rows(
        &mut self,
        sql: &'static str,
        arguments: PgArguments,
    ) -> sqlx::Result<Vec<StoredRow>> {
        self.all(sqlx::query_with(sql, arguments))
            .await?
            .iter()
            .map(stored)
            .collect()
    }

    async fn all(&mut self, asked: Asked) -> sqlx::Result<Vec<PgRow>> {
        within(self.limit, self.connection.fetch_all(asked)).await
    }

    async fn one(&mut self, asked: Asked) -> sqlx::Result<PgRow> {
        within(self.limit, self.connection.fetch_one(asked)).await
    }

    fn columns(&self, rows: &[Row]) -> Result<PgArguments, sqlx::error::BoxDynError> {
        let projections: Vec<_> = rows.iter().map(|row| row.event.projection()).collect();
        let ended: Vec<_> = rows
            .iter()
            .map(|row| row.event.ends(row.header.chain))
            .collect();
        let mut arguments = PgArguments::default();
        arguments.add(
            rows.iter()
                .map(|row| i32::try_from(row.header.place.period.yyyymm()).unwrap_or(i32::MAX))
                .collect::<Vec<_>>(),
        )?;
        arguments.add(
            rows.iter()
                .map(|row| row.header.chain.0.as_slice())
                .collect::<Vec<_>>(),
        )?;
        arguments.add(
            rows.iter()
                .map(|row| seq(row.header.place))
                .collect::<Vec<_>>(),
        )?;
        arguments.add(rows.iter().map(|row| row.event.kind()).collect::<Vec<_>>())?;
        arguments.add(
            rows.iter()
                .map(|row| row.header.time.micros())
                .collect::<Vec<_>>(),
        )?;
        arguments.add(
            projections
                .iter()
                .map(|projection| projection.serial)
                .collect::<Vec<_>>(),
        )?;
        arguments.add(
            projections
                .iter()
                .map(|projection| projection.identity)
                .collect::<Vec<_>>(),
        )?;
        arguments.add(
            projections
                .iter()
                .map(|projection| projection.issuer)
                .collect::<Vec<_>>(),
        )?;
        arguments.add(
            projections
                .iter()
                .map(|projection| projection.profile)
                .collect::<Vec<_>>(),
        )?;
        arguments.add(
            ended
                .iter()
                .map(|chain| chain.as_ref().map(|chain| chain.0.as_slice()))
                .collect::<Vec<_>>(),
        )?;
        arguments.add(
            rows.iter()
                .map(|row| row.hash.as_slice())
                .collect::<Vec<_>>(),
        )?;
        arguments.add(rows.iter().map(|row| row.body.as_ref()).collect::<Vec<_>>())?;
        arguments.add(self.identity.number)?;
        arguments.add(&self.identity.token)?;
        Ok(arguments)
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

fn chain_of(octets: &[u8]) -> sqlx::Result<ChainId> {
    octets
        .try_into()
        .map(ChainId)
        .map_err(|_| sqlx::Error::Decode("a chain is not of 16 octets".into()))
}

/// The values of a key in their order: period, octets, numbers.
fn arguments(period: i64, octets: &[&[u8]], numbers: &[i64]) -> PgArguments {
    let mut arguments = PgArguments::default();
    let added = arguments.add(i32::try_from(period).unwrap_or(i32::MAX));
    let added = added.and_then(|()| octets.iter().try_for_each(|octets| arguments.add(*octets)));
    added
        .and_then(|()| numbers.iter().try_for_each(|number| arguments.add(*number)))
        .expect("numbers and octets always encode");
    arguments
}

fn yyyymm(period: Period) -> i64 {
    period.yyyymm().into()
}

fn seq(place: Place) -> i64 {
    i64::try_from(place.seq).unwrap_or(i64::MAX)
}

/// The months that the rows' first column names.
pub(super) fn months(rows: &[PgRow]) -> sqlx::Result<Vec<Period>> {
    let months = rows
        .iter()
        .map(|row| row.try_get(0))
        .collect::<sqlx::Result<Vec<Option<i32>>>>()?;
    Ok(months
        .into_iter()
        .flatten()
        .filter_map(|month| Period::new(u32::try_from(month).ok()?))
        .collect())
}

/// Text as it stands there, which may be none: that is for whoever judges the row to say.
fn text(row: &PgRow, column: usize) -> sqlx::Result<Option<String>> {
    let octets: Option<&[u8]> = row.try_get_unchecked(column)?;
    Ok(octets.map(|octets| String::from_utf8_lossy(octets).into_owned()))
}

fn stored(row: &PgRow) -> sqlx::Result<StoredRow> {
    Ok(StoredRow {
        period: row.try_get::<i32, _>(0)?.into(),
        chain: row.try_get(1)?,
        seq: row.try_get(2)?,
        kind: text(row, 3)?.unwrap_or_default(),
        time: row.try_get(4)?,
        serial: row.try_get(5)?,
        identity: text(row, 6)?,
        issuer: text(row, 7)?,
        profile: row.try_get(8)?,
        ended: row.try_get(9)?,
        hash: row.try_get(10)?,
        body: row.try_get(11)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::ledger::fixture::World;
    use crate::store::ledger::location::Location;

    /// As when a pooler has given the session to somebody else for a while: to a client that says
    /// who it is, or to one that resets it.
    #[tokio::test]
    async fn a_session_that_somebody_else_has_had_takes_no_row_and_no_lock() {
        let world = World::postgres();
        let Location::Postgres(servers) = &world.location else {
            panic!("no server")
        };
        let chain = ChainId([1; 16]);
        for meanwhile in [
            "SELECT set_config('ca_server.session', 'theirs', false)",
            "SET ca_server.session = ''",
        ] {
            let mut database = Database::writer(servers).await.unwrap();
            assert_eq!(database.lock_own(chain, &[]).await.unwrap(), Lock::Held);
            database.connection.execute(meanwhile).await.unwrap();
            let rows = world.forge(1, Vec::new()).into_rows();
            let error = database.insert(&rows).await.unwrap_err().to_string();
            assert!(
                error.contains("pooler") && world.rows().await.is_empty(),
                "{error}"
            );
            assert!(
                database
                    .claim(ChainId([2; 16]))
                    .await
                    .unwrap_err()
                    .to_string()
                    .contains("pooler")
            );
            database.close().await.unwrap();
        }
    }
}
