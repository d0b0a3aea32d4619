//! What only `audit` asks of SQLite.

use sqlx::Row as _;
use sqlx::sqlite::SqliteRow;

use super::{Database, key, select, seq, yyyymm};
use crate::store::ledger::event::{ChainId, Place, StoredRow};
use crate::timestamp::{Period, Timestamp};

impl Database {
    /// Up to `limit` rows of one period after (chain, seq), in that order, whose time is not before the first of `times` and before the second.
    pub(in crate::store::ledger) async fn page_between(
        &mut self,
        period: Period,
        after: Option<(&[u8], i64)>,
        times: (Timestamp, Timestamp),
        limit: u32,
    ) -> sqlx::Result<Vec<StoredRow>> {
        let (chain, seq) = after.unwrap_or((&[], -1));
        let key = key(yyyymm(period), &[chain], &[seq, times.0.micros(), times.1.micros(), limit.into()]);
        self.rows(select("WHERE period = ? AND (chain, seq) > (?, ?) AND time >= ? AND time < ? ORDER BY chain, seq LIMIT ?"), key).await
    }

    /// Where the rows of one period stand that name this identity, in the order (chain, seq).
    pub(in crate::store::ledger) async fn places_of_identity(
        &mut self,
        identity: &str,
        period: Period,
    ) -> sqlx::Result<Vec<(ChainId, Place)>> {
        let sql = "SELECT chain, seq FROM event WHERE identity = ? AND period = ? ORDER BY chain, seq";
        let rows = sqlx::query(sql).bind(identity).bind(yyyymm(period)).fetch_all(&mut self.connection).await?;
        let place = |row: &SqliteRow| {
            let (chain, seq): (Vec<u8>, i64) = (row.try_get(0)?, row.try_get(1)?);
            let chain = chain.try_into().map_err(|_| sqlx::Error::Decode("a chain is not of 16 octets".into()))?;
            Ok((ChainId(chain), Place { period, seq: u64::try_from(seq).unwrap_or(u64::MAX) }))
        };
        rows.iter().map(place).collect()
    }

    /// Up to `limit` rows of kind `chain_ended` from a time on, in the order of their times, after the first `passed`.
    pub(in crate::store::ledger) async fn declarations(
        &mut self,
        from: Timestamp,
        passed: u32,
        limit: u32,
    ) -> sqlx::Result<Vec<StoredRow>> {
        // The first condition is the index's own, so that it is used.
        let sql = select(
            "WHERE kind IN ('start', 'end', 'chain_ended') AND kind = 'chain_ended' AND time >= ? ORDER BY time, rowid LIMIT ? OFFSET ?",
        );
        self.rows(sql, key(from.micros(), &[], &[limit.into(), passed.into()])).await
    }

    /// The last row of a chain before a time.
    pub(in crate::store::ledger) async fn last_row_before(&mut self, chain: ChainId, time: Timestamp) -> sqlx::Result<Option<StoredRow>> {
        let mut before = yyyymm(time.period()) + 1;
        while let Some(period) = self.period_before(before).await? {
            let sql = select("WHERE period = ? AND chain = ? AND time < ? ORDER BY seq DESC LIMIT 1");
            let rows = self.rows(sql, key(period, &[&chain.0], &[time.micros()])).await?;
            if let Some(row) = rows.into_iter().next() {
                return Ok(Some(row));
            }
            before = period;
        }
        Ok(None)
    }

    /// The `issuer` rows of a chain up to a place, in their order. Reads all of the chain's rows up to there.
    pub(in crate::store::ledger) async fn issuer_rows(&mut self, chain: ChainId, until: Place) -> sqlx::Result<Vec<StoredRow>> {
        let mut found = Vec::new();
        for period in self.periods().await?.into_iter().filter(|period| *period <= yyyymm(until.period)) {
            let until = if period == yyyymm(until.period) { seq(until) } else { i64::MAX };
            let sql = select("WHERE period = ? AND chain = ? AND seq <= ? AND kind = 'issuer' ORDER BY seq");
            found.extend(self.rows(sql, key(period, &[&chain.0], &[until])).await?);
        }
        Ok(found)
    }

    /// The first serials that stand in more than one intent of the period; none, unless the index was removed.
    pub(in crate::store::ledger) async fn repeated_serials(&mut self, period: Period) -> sqlx::Result<Vec<Vec<u8>>> {
        let sql = "SELECT serial FROM event WHERE kind = 'intent' AND period = ? GROUP BY serial HAVING count(*) > 1 LIMIT 100";
        let rows = sqlx::query(sql).bind(yyyymm(period)).fetch_all(&mut self.connection).await?;
        rows.iter().map(|row| row.try_get(0)).collect()
    }

    /// How many rows stand in the period and later ones.
    pub(in crate::store::ledger) async fn rows_from(&mut self, period: Period) -> sqlx::Result<u64> {
        let query = sqlx::query("SELECT count(*) FROM event WHERE period >= ?").bind(yyyymm(period));
        let count: i64 = query.fetch_one(&mut self.connection).await?.try_get(0)?;
        Ok(u64::try_from(count).unwrap_or(0))
    }
}
