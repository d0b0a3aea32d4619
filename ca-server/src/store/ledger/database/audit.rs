//! What only `audit` asks of a ledger.

use super::{Database, DatabaseError};
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
    ) -> Result<Vec<StoredRow>, DatabaseError> {
        either!(self, database => database.page_between(period, after, times, limit).await)
    }

    /// Where the rows of one period stand that name this identity, in the order (chain, seq).
    pub(in crate::store::ledger) async fn places_of_identity(
        &mut self,
        identity: &str,
        period: Period,
    ) -> Result<Vec<(ChainId, Place)>, DatabaseError> {
        either!(self, database => database.places_of_identity(identity, period).await)
    }

    /// The outcomes of a chain in one period, from `from` up to but not including `until`, whose
    /// bodies have these octets somewhere.
    pub(in crate::store::ledger) async fn outcomes_naming(
        &mut self,
        hash: &Hash,
        chain: ChainId,
        from: Place,
        until: u64,
    ) -> Result<Vec<StoredRow>, DatabaseError> {
        either!(self, database => database.outcomes_naming(hash, chain, from, until).await)
    }

    /// The row with which a chain ended, or by which it was first declared ended.
    pub(in crate::store::ledger) async fn ending(
        &mut self,
        chain: ChainId,
    ) -> Result<Option<StoredRow>, DatabaseError> {
        either!(self, database => database.ending(chain).await)
    }

    /// The rows of kinds `start`, `end` and `chain_ended` before a time, the older first; of one
    /// chain in order.
    pub(in crate::store::ledger) async fn marks_before(
        &mut self,
        time: Timestamp,
    ) -> Result<Vec<StoredRow>, DatabaseError> {
        either!(self, database => database.marks_before(time).await)
    }

    /// The last row of a chain before a time.
    pub(in crate::store::ledger) async fn last_row_before(
        &mut self,
        chain: ChainId,
        time: Timestamp,
    ) -> Result<Option<StoredRow>, DatabaseError> {
        either!(self, database => database.last_row_before(chain, time).await)
    }

    /// The `issuer` rows of a chain up to a place, in their order. Reads all of the chain's rows up
    /// to there.
    pub(in crate::store::ledger) async fn issuer_rows(
        &mut self,
        chain: ChainId,
        until: Place,
    ) -> Result<Vec<StoredRow>, DatabaseError> {
        either!(self, database => database.issuer_rows(chain, until).await)
    }

    /// The first serials that stand in more than one intent of the period; none, unless the index
    /// was removed.
    pub(in crate::store::ledger) async fn repeated_serials(
        &mut self,
        period: Period,
    ) -> Result<Vec<Vec<u8>>, DatabaseError> {
        either!(self, database => database.repeated_serials(period).await)
    }

    /// How many rows stand in the period and later ones.
    pub(in crate::store::ledger) async fn rows_from(
        &mut self,
        period: Period,
    ) -> Result<u64, DatabaseError> {
        either!(self, database => database.rows_from(period).await)
    }
}
