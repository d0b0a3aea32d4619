//! What only `audit` asks of PostgreSQL.

use sqlx::postgres::PgRow;
use sqlx::{Arguments, Row as _};

use super::{Database, arguments, select, seq, yyyymm};
use crate::store::ledger::event::{ChainId, Hash, Place, StoredRow};
use crate::timestamp::{Period, Timestamp};

impl Database {
    pub(in crate::store::ledger) async fn page_between(
        &mut self,
        period: Period,
        after: Option<(&[u8], i64)>,
        times: (Timestamp, Timestamp),
        limit: u32,
    ) -> sqlx::Result<Vec<StoredRow>> {
        let (chain, seq) = after.unwrap_or((&[], -1));
        let key = arguments(yyyymm(period), &[chain], &[seq, times.0.micros(), times.1.micros(), limit.into()]);
        let sql = "WHERE period = $1 AND (chain, seq) > ($2, $3) AND time >= $4 AND time < $5 ORDER BY chain, seq LIMIT $6";
        self.rows(select(sql), key).await
    }

    pub(in crate::store::ledger) async fn places_of_identity(
        &mut self,
        identity: &str,
        period: Period,
    ) -> sqlx::Result<Vec<(ChainId, Place)>> {
        let mut key = arguments(yyyymm(period), &[], &[]);
        key.add(identity).map_err(sqlx::Error::Encode)?;
        let sql = "SELECT chain, seq FROM event WHERE period = $1 AND identity = $2 ORDER BY chain, seq";
        let rows = sqlx::query_with(sql, key).fetch_all(&mut self.connection).await?;
        let place = |row: &PgRow| {
            let (chain, seq): (Vec<u8>, i64) = (row.try_get(0)?, row.try_get(1)?);
            let chain = chain.try_into().map_err(|_| sqlx::Error::Decode("a chain is not of 16 octets".into()))?;
            Ok((ChainId(chain), Place { period, seq: u64::try_from(seq).unwrap_or(u64::MAX) }))
        };
        rows.iter().map(place).collect()
    }

    pub(in crate::store::ledger) async fn outcomes_naming(
        &mut self,
        hash: &Hash,
        chain: ChainId,
        from: Place,
        until: u64,
    ) -> sqlx::Result<Vec<StoredRow>> {
        let until = i64::try_from(until).unwrap_or(i64::MAX);
        let mut key = arguments(yyyymm(from.period), &[&chain.0], &[seq(from), until]);
        key.add(hash.as_slice()).map_err(sqlx::Error::Encode)?;
        let sql = "WHERE period = $1 AND chain = $2 AND seq >= $3 AND seq < $4 AND kind IN ('issued', 'failed', 'unknown') \
                   AND position($5 IN body) > 0 ORDER BY seq";
        self.rows(select(sql), key).await
    }

    pub(in crate::store::ledger) async fn declarations(
        &mut self,
        from: Timestamp,
        passed: u32,
        limit: u32,
    ) -> sqlx::Result<Vec<StoredRow>> {
        let mut key = sqlx::postgres::PgArguments::default();
        let added = [from.micros(), limit.into(), passed.into()].into_iter().try_for_each(|number| key.add(number));
        added.map_err(sqlx::Error::Encode)?;
        // The first conditions are the index's own, so that it is used.
        let sql = "WHERE identity IS NULL AND kind IN ('start', 'end', 'chain_ended') AND kind = 'chain_ended' AND time >= $1 \
                   ORDER BY time, period, chain, seq LIMIT $2 OFFSET $3";
        self.rows(select(sql), key).await
    }

    pub(in crate::store::ledger) async fn last_row_before(&mut self, chain: ChainId, time: Timestamp) -> sqlx::Result<Option<StoredRow>> {
        for period in self.periods().await?.into_iter().rev().filter(|period| *period <= yyyymm(time.period())) {
            let key = arguments(period, &[&chain.0], &[time.micros()]);
            let rows = self.rows(select("WHERE period = $1 AND chain = $2 AND time < $3 ORDER BY seq DESC LIMIT 1"), key).await?;
            if let Some(row) = rows.into_iter().next() {
                return Ok(Some(row));
            }
        }
        Ok(None)
    }

    pub(in crate::store::ledger) async fn issuer_rows(&mut self, chain: ChainId, until: Place) -> sqlx::Result<Vec<StoredRow>> {
        let mut found = Vec::new();
        for period in self.periods().await?.into_iter().filter(|period| *period <= yyyymm(until.period)) {
            let until = if period == yyyymm(until.period) { seq(until) } else { i64::MAX };
            let sql = "WHERE period = $1 AND chain = $2 AND seq <= $3 AND kind = 'issuer' ORDER BY seq";
            found.extend(self.rows(select(sql), arguments(period, &[&chain.0], &[until])).await?);
        }
        Ok(found)
    }

    pub(in crate::store::ledger) async fn repeated_serials(&mut self, period: Period) -> sqlx::Result<Vec<Vec<u8>>> {
        let sql = "SELECT serial FROM event WHERE kind = 'intent' AND period = $1 GROUP BY serial HAVING count(*) > 1 LIMIT 100";
        let rows = sqlx::query_with(sql, arguments(yyyymm(period), &[], &[])).fetch_all(&mut self.connection).await?;
        rows.iter().map(|row| row.try_get(0)).collect()
    }

    pub(in crate::store::ledger) async fn rows_from(&mut self, period: Period) -> sqlx::Result<u64> {
        let sql = "SELECT count(*) FROM event WHERE period >= $1";
        let count: i64 = sqlx::query_with(sql, arguments(yyyymm(period), &[], &[])).fetch_one(&mut self.connection).await?.try_get(0)?;
        Ok(u64::try_from(count).unwrap_or(0))
    }

    /// The chains that have rows in the period, each found by the index.
    pub(in crate::store::ledger) async fn chains_in(&mut self, period: Period) -> sqlx::Result<Vec<ChainId>> {
        let sql = "WITH RECURSIVE found AS ((SELECT chain FROM event WHERE period = $1 ORDER BY chain LIMIT 1) UNION ALL \
                   SELECT (SELECT chain FROM event WHERE period = $1 AND chain > found.chain ORDER BY chain LIMIT 1) FROM found \
                   WHERE found.chain IS NOT NULL) SELECT chain FROM found WHERE chain IS NOT NULL";
        let rows = sqlx::query_with(sql, arguments(yyyymm(period), &[], &[])).fetch_all(&mut self.connection).await?;
        let chain = |row: &PgRow| {
            let chain: Vec<u8> = row.try_get(0)?;
            chain.try_into().map(ChainId).map_err(|_| sqlx::Error::Decode("a chain is not of 16 octets".into()))
        };
        rows.iter().map(chain).collect()
    }
}
