//! When the parts of the upkeep are due, and what the searches for dead processes have found so
//! far. A chain must have been found without a session by two searches in a row: a process whose
//! session was lost comes back to its chain in less time than lies between.

use std::collections::BTreeSet;

use tokio::task::JoinSet;
use tokio::time::{Duration, Instant};

use super::event::ChainId;
use super::schema::DatabaseError;

/// How often the clocks are compared; far below the silence after which the server ends the
/// session.
pub(super) const COMPARE: Duration = Duration::from_secs(5);

/// How often dead processes are looked for.
pub(super) const SEARCH: Duration = Duration::from_secs(15);

/// When the next parts of the upkeep are due, and what a search has found.
pub(super) struct Upkeep {
    pub(super) compare_at: Instant,
    pub(super) search_at: Instant,
    /// The search that is under way; it ends when this is dropped.
    pub(super) search: JoinSet<Result<(Vec<ChainId>, Duration), DatabaseError>>,
    /// The chains that the last search found free.
    seen: BTreeSet<ChainId>,
    /// Those that were found free twice.
    pub(super) dead: BTreeSet<ChainId>,
}

impl Upkeep {
    /// Everything in its full time: a connection was just opened. Those who lost theirs at the same
    /// moment may come back later.
    pub(super) fn just_connected() -> Self {
        let now = Instant::now();
        Self {
            compare_at: now + COMPARE,
            search_at: now + SEARCH,
            search: JoinSet::new(),
            seen: BTreeSet::new(),
            dead: BTreeSet::new(),
        }
    }

    /// A search has ended.
    pub(super) fn found(&mut self, free: impl IntoIterator<Item = ChainId>) {
        let free: BTreeSet<ChainId> = free.into_iter().collect();
        self.dead = free.intersection(&self.seen).copied().collect();
        self.seen = free;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_chain_is_taken_for_dead_when_two_searches_in_a_row_find_it_free() {
        let mut upkeep = Upkeep::just_connected();
        let [one, two] = [ChainId([1; 16]), ChainId([2; 16])];
        upkeep.found([one]);
        assert!(upkeep.dead.is_empty(), "its process may be on its way back");
        upkeep.found([two]);
        assert!(
            upkeep.dead.is_empty(),
            "one was back, two is seen for the first time"
        );
        upkeep.found([one, two]);
        assert_eq!(upkeep.dead, BTreeSet::from([two]));
        upkeep.found([]);
        upkeep.found([one, two]);
        assert!(
            upkeep.dead.is_empty(),
            "a search that failed is no sighting"
        );
    }
}
