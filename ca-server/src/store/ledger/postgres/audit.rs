//! What only `audit` asks of PostgreSQL.

use sqlx::postgres::PgRow;
use sqlx::{Arguments, Row as _};

use super::{Database, arguments, chain_of, seq, statements, yyyymm};
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
        let key = arguments(
            yyyymm(period),
            &[chain],
            &[seq, times.0.micros(), times.1.micros(), limit.into()],
        );
        self.rows(statements::PAGE_BETWEEN, key).await
    }

    pub(in crate::store::ledger) async fn places_of_identity(
        &mut self,
        identity: &str,
        period: Period,
    ) -> sqlx::Result<Vec<(ChainId, Place)>> {
        let mut key = arguments(yyyymm(period), &[], &[]);
        key.add(identity).map_err(sqlx::Error::Encode)?;
        let rows = self
            .all(sqlx::query_with(statements::PLACES_OF_IDENTITY, key))
            .await?;
        let place = |row: &PgRow| {
            let seq: i64 = row.try_get(1)?;
            Ok((
                chain_of(row.try_get(0)?)?,
                Place {
                    period,
                    seq: u64::try_from(seq).unwrap_or(u64::MAX),
                },
            ))
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
        self.rows(statements::OUTCOMES_NAMING, key).await
    }

    pub(in crate::store::ledger) async fn ending(
        &mut self,
        chain: ChainId,
    ) -> sqlx::Result<Option<StoredRow>> {
        let mut key = sqlx::postgres::PgArguments::default();
        key.add(chain.0.as_slice()).map_err(sqlx::Error::Encode)?;
        Ok(self.rows(statements::ENDING, key).await?.into_iter().next())
    }

    pub(in crate::store::ledger) async fn marks_before(
        &mut self,
        time: Timestamp,
    ) -> sqlx::Result<Vec<StoredRow>> {
        let mut key = sqlx::postgres::PgArguments::default();
        key.add(time.micros()).map_err(sqlx::Error::Encode)?;
        self.rows(statements::MARKS_BEFORE, key).await
    }

    pub(in crate::store::ledger) async fn last_row_before(
        &mut self,
        chain: ChainId,
        time: Timestamp,
    ) -> sqlx::Result<Option<StoredRow>> {
        for period in self
            .periods()
            .await?
            .into_iter()
            .rev()
            .filter(|period| *period <= yyyymm(time.period()))
        {
            let key = arguments(period, &[&chain.0], &[time.micros()]);
            let rows = self.rows(statements::LAST_ROW_BEFORE, key).await?;
            if let Some(row) = rows.into_iter().next() {
                return Ok(Some(row));
            }
        }
        Ok(None)
    }

    pub(in crate::store::ledger) async fn issuer_rows(
        &mut self,
        chain: ChainId,
        until: Place,
    ) -> sqlx::Result<Vec<StoredRow>> {
        let mut found = Vec::new();
        for period in self
            .periods()
            .await?
            .into_iter()
            .filter(|period| *period <= yyyymm(until.period))
        {
            let until = if period == yyyymm(until.period) {
                seq(until)
            } else {
                i64::MAX
            };
            found.extend(
                self.rows(
                    statements::ISSUER_ROWS,
                    arguments(period, &[&chain.0], &[until]),
                )
                .await?,
            );
        }
        Ok(found)
    }

    pub(in crate::store::ledger) async fn repeated_serials(
        &mut self,
        period: Period,
    ) -> sqlx::Result<Vec<Vec<u8>>> {
        let rows = self
            .all(sqlx::query_with(
                statements::REPEATED_SERIALS,
                arguments(yyyymm(period), &[], &[]),
            ))
            .await?;
        rows.iter().map(|row| row.try_get(0)).collect()
    }

    pub(in crate::store::ledger) async fn rows_from(
        &mut self,
        period: Period,
    ) -> sqlx::Result<u64> {
        let asked = sqlx::query_with(statements::ROWS_FROM, arguments(yyyymm(period), &[], &[]));
        let count: i64 = self.one(asked).await?.try_get(0)?;
        Ok(u64::try_from(count).unwrap_or(0))
    }

    /// The chains that have rows in the period, each found by the index.
    pub(in crate::store::ledger) async fn chains_in(
        &mut self,
        period: Period,
    ) -> sqlx::Result<Vec<ChainId>> {
        let rows = self
            .all(sqlx::query_with(
                statements::CHAINS_IN,
                arguments(yyyymm(period), &[], &[]),
            ))
            .await?;
        rows.iter().map(|row| chain_of(row.try_get(0)?)).collect()
    }
}
