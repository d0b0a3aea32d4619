//! What is broken, in the order of the rows, whichever worker found it first.

use std::collections::BTreeMap;
use std::fmt;

use super::super::event::{RowRef, StoredRow};

/// A row that is not what it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// Its place: period, chain, seq; or `the ledger`, of rows that no search finds.
    pub row: String,
    /// What is wrong with it.
    pub what: String,
}

/// Broken rows that are listed; a ledger that is broken throughout must not fill memory.
const LISTED: usize = 100;

/// Where a row stands by its columns, whatever they hold.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct At {
    period: i64,
    chain: Vec<u8>,
    seq: i64,
}

impl From<&StoredRow> for At {
    fn from(row: &StoredRow) -> Self {
        Self {
            period: row.period,
            chain: row.chain.clone(),
            seq: row.seq,
        }
    }
}

impl From<RowRef> for At {
    fn from(row: RowRef) -> Self {
        let seq = i64::try_from(row.place.seq).unwrap_or(i64::MAX);
        Self {
            period: row.place.period.yyyymm().into(),
            chain: row.chain.0.to_vec(),
            seq,
        }
    }
}

impl At {
    /// What is wrong with no row that anybody could name.
    const LEDGER: Self = Self {
        period: i64::MAX,
        chain: Vec::new(),
        seq: i64::MAX,
    };
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::LEDGER {
            return f.write_str("the ledger");
        }
        write!(
            f,
            "period {} chain {} seq {}",
            self.period,
            hex::encode(&self.chain),
            self.seq
        )
    }
}

/// One row and what is wrong with it.
pub(super) struct Finding {
    pub(super) row: At,
    pub(super) what: String,
}

impl Finding {
    /// Of rows that nobody can name.
    pub(super) fn of_ledger(what: impl Into<String>) -> Self {
        Self {
            row: At::LEDGER,
            what: what.into(),
        }
    }

    pub(super) fn new(row: impl Into<At>, what: impl Into<String>) -> Self {
        Self {
            row: row.into(),
            what: what.into(),
        }
    }
}

/// The first findings by their rows' places, and the count of all.
#[derive(Default)]
pub(super) struct Findings {
    listed: BTreeMap<(At, u64), String>,
    count: u64,
}

impl Findings {
    pub(super) fn add(&mut self, finding: Finding) {
        self.count += 1;
        self.listed.insert((finding.row, self.count), finding.what);
        if self.listed.len() > LISTED {
            self.listed.pop_last();
        }
    }

    pub(super) fn count(&self) -> u64 {
        self.count
    }

    pub(super) fn into_listed(self) -> Vec<Broken> {
        self.listed
            .into_iter()
            .map(|((row, _), what)| Broken {
                row: row.to_string(),
                what,
            })
            .collect()
    }
}
