//! What only `audit` asks of SQLite.

use sqlx::sqlite::{SqliteArguments, SqliteRow};
use sqlx::{Arguments, Row as _};

use super::{Database, chain_of, key, seq, statements, yyyymm};
use crate::store::ledger::event::{ChainId, Hash, Place, StoredRow};
use crate::timestamp::{Period, Timestamp};

impl Database {
    /// Up to `limit` rows of one period after (chain, seq), in that order, whose time is not before
    /// the first of `times` and before the second.
    pub(in crate::store::ledger) async fn page_between(
        &mut self,
        period: Period,
        after: Option<(&[u8], i64)>,
        times: (Timestamp, Timestamp),
        limit: u32,
    ) -> sqlx::Result<Vec<StoredRow>> {
        let (chain, seq) = after.unwrap_or((&[], -1));
        let key = key(
            yyyymm(period),
            &[chain],
            &[seq, times.0.micros(), times.1.micros(), limit.into()],
        );
        self.rows(statements::PAGE_BETWEEN, key).await
    }

    /// Where the rows of one period stand that name this identity, in the order (chain, seq).
    pub(in crate::store::ledger) async fn places_of_identity(
        &mut self,
        identity: &str,
        period: Period,
    ) -> sqlx::Result<Vec<(ChainId, Place)>> {
        let query = sqlx::query(statements::PLACES_OF_IDENTITY)
            .bind(identity)
            .bind(yyyymm(period));
        let rows = query.fetch_all(&mut self.connection).await?;
        let place = |row: &SqliteRow| {
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

    /// The outcomes of a chain in one period, from `from` up to but not including `until`, whose
    /// bodies have these octets somewhere.
    pub(in crate::store::ledger) async fn outcomes_naming(
        &mut self,
        hash: &Hash,
        chain: ChainId,
        from: Place,
        until: u64,
    ) -> sqlx::Result<Vec<StoredRow>> {
        let until = i64::try_from(until).unwrap_or(i64::MAX);
        let mut key = key(yyyymm(from.period), &[&chain.0], &[seq(from), until]);
        key.add(hash.as_slice()).map_err(sqlx::Error::Encode)?;
        self.rows(statements::OUTCOMES_NAMING, key).await
    }

    /// The row with which a chain ended, or by which it was first declared ended.
    pub(in crate::store::ledger) async fn ending(
        &mut self,
        chain: ChainId,
    ) -> sqlx::Result<Option<StoredRow>> {
        let mut key = SqliteArguments::default();
        key.add(chain.0.as_slice()).map_err(sqlx::Error::Encode)?;
        Ok(self.rows(statements::ENDING, key).await?.into_iter().next())
    }

    /// The rows of kinds `start`, `end` and `chain_ended` before a time, in the order of their
    /// writing.
    pub(in crate::store::ledger) async fn marks_before(
        &mut self,
        time: Timestamp,
    ) -> sqlx::Result<Vec<StoredRow>> {
        self.rows(statements::MARKS_BEFORE, key(time.micros(), &[], &[]))
            .await
    }

    /// The last row of a chain before a time.
    pub(in crate::store::ledger) async fn last_row_before(
        &mut self,
        chain: ChainId,
        time: Timestamp,
    ) -> sqlx::Result<Option<StoredRow>> {
        let mut before = yyyymm(time.period()) + 1;
        while let Some(period) = self.period_before(before).await? {
            let rows = self
                .rows(
                    statements::LAST_ROW_BEFORE,
                    key(period, &[&chain.0], &[time.micros()]),
                )
                .await?;
            if let Some(row) = rows.into_iter().next() {
                return Ok(Some(row));
            }
            before = period;
        }
        Ok(None)
    }

    /// The `issuer` rows of a chain up to a place, in their order. Reads all of the chain's rows up
    /// to there.
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
                self.rows(statements::ISSUER_ROWS, key(period, &[&chain.0], &[until]))
                    .await?,
            );
        }
        Ok(found)
    }

    /// The first serials that stand in more than one intent of the period; none, unless the index
    /// was removed.
    pub(in crate::store::ledger) async fn repeated_serials(
        &mut self,
        period: Period,
    ) -> sqlx::Result<Vec<Vec<u8>>> {
        let rows = sqlx::query(statements::REPEATED_SERIALS)
            .bind(yyyymm(period))
            .fetch_all(&mut self.connection)
            .await?;
        rows.iter().map(|row| row.try_get(0)).collect()
    }

    /// How many rows stand in the period and later ones.
    pub(in crate::store::ledger) async fn rows_from(
        &mut self,
        period: Period,
    ) -> sqlx::Result<u64> {
        let query = sqlx::query(statements::ROWS_FROM).bind(yyyymm(period));
        let count: i64 = query.fetch_one(&mut self.connection).await?.try_get(0)?;
        Ok(u64::try_from(count).unwrap_or(0))
    }
}
