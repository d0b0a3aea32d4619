//! All rows of one snapshot, in the order (period, chain, seq), some at a time. Rows that somebody
//! has read before can be passed over.

use std::collections::HashMap;

use super::database::Database;
use super::event::{ChainId, Place, StoredRow};
use super::schema::DatabaseError;

/// Rows read at a time.
const PAGE: u32 = 2048;

/// Rows read at a time where it is not known whether they are wanted.
const PROBE: u32 = 32;

/// Where the reading stands.
#[derive(Debug)]
pub(super) struct Cursor {
    periods: std::vec::IntoIter<i64>,
    period: Option<i64>,
    after: Option<(Vec<u8>, i64)>,
    /// The last row of each chain that is passed over.
    read_before: HashMap<ChainId, Place>,
    limit: u32,
}

impl Cursor {
    /// Of the rows after those places, and of all chains that are not among them. The snapshot must
    /// have begun.
    pub(super) async fn after(
        database: &mut Database,
        read_before: HashMap<ChainId, Place>,
    ) -> Result<Self, DatabaseError> {
        let mut periods = database.periods().await?.into_iter();
        Ok(Self {
            period: periods.next(),
            periods,
            after: None,
            limit: if read_before.is_empty() { PAGE } else { PROBE },
            read_before,
        })
    }

    /// The next rows; none at the end.
    pub(super) async fn next(
        &mut self,
        database: &mut Database,
    ) -> Result<Vec<StoredRow>, DatabaseError> {
        while let Some(period) = self.period {
            let after = self
                .after
                .as_ref()
                .map(|(chain, seq)| (chain.as_slice(), *seq));
            let mut rows = database.page(period, after, self.limit).await?;
            let Some(last) = rows.last() else {
                (self.period, self.after) = (self.periods.next(), None);
                continue;
            };
            let (chain, seq) = (last.chain.clone(), last.seq);
            match rows
                .iter()
                .enumerate()
                .find_map(|(at, row)| Some((at, self.passed_over(row)?)))
            {
                None => (self.after, self.limit) = (Some((chain, seq)), PAGE.min(self.limit * 2)),
                Some((at, to)) => {
                    (self.after, self.limit) = (Some((rows[at].chain.clone(), to)), PROBE);
                    rows.truncate(at);
                }
            }
            if !rows.is_empty() {
                return Ok(rows);
            }
        }
        Ok(Vec::new())
    }

    /// Up to which seq the row's chain was read before in this period, if the row was.
    fn passed_over(&self, row: &StoredRow) -> Option<i64> {
        if self.read_before.is_empty() {
            return None;
        }
        let read = self
            .read_before
            .get(&ChainId(row.chain.as_slice().try_into().ok()?))?;
        let seq = i64::try_from(read.seq).unwrap_or(i64::MAX);
        match row.period.cmp(&i64::from(read.period.yyyymm())) {
            std::cmp::Ordering::Less => Some(i64::MAX),
            std::cmp::Ordering::Equal => (row.seq <= seq).then_some(seq),
            std::cmp::Ordering::Greater => None,
        }
    }
}
