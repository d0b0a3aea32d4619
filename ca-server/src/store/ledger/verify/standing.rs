//! Where a verification stands: what it must know of the rows that it has read to go on with those
//! that come later.

use std::collections::BTreeMap;

use super::super::event::{ChainId, Hash, Place, RowRef};
use crate::timestamp::Timestamp;

/// What is known of all rows up to each chain's head.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Standing {
    /// How many rows that is.
    pub(super) rows: u64,
    /// Rows before this time were taken for granted.
    pub(super) since: Option<Timestamp>,
    /// By which roots issuers were judged: `TrustedRoots::digest`; `None`: they were believed.
    pub(super) roots: Option<Hash>,
    /// Signatures were not checked.
    pub(super) signatures_skipped: bool,
    pub(super) chains: BTreeMap<ChainId, ChainStanding>,
    /// Outcomes, by other chains, of intents that were not read yet: intent, outcome.
    pub(super) early: Vec<(RowRef, RowRef)>,
    /// What was not held against the named chains yet.
    pub(super) named: Vec<NamedHead>,
    /// Outcomes in other chains than their intents', whose chain has not declared that chain ended
    /// yet: intent's chain, outcome.
    pub(super) undeclared: Vec<(ChainId, RowRef)>,
}

/// One chain up to its head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ChainStanding {
    pub(super) head: RowRef,
    pub(super) time: Timestamp,
    /// No row may follow.
    pub(super) ended: bool,
    /// Another chain has declared it ended.
    pub(super) declared: bool,
    /// Id and certificate of every issuer that it has named, those of one id in the order in which
    /// they were named.
    pub(super) issuers: Vec<(String, Vec<u8>)>,
    /// Its intents without an outcome.
    pub(super) open: Vec<(Place, Hash)>,
}

/// What one chain says of another's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NamedHead {
    pub(super) head: RowRef,
    /// No row may follow it.
    pub(super) is_last: bool,
    /// The row that says so.
    pub(super) by: RowRef,
}
