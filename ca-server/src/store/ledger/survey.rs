//! What a process that just obtained the lock finds: chains that nobody names yet, chains that ended without saying so, the intents
//! they left open, and the newest time.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::body::decode;
use super::event::{ChainId, Event, Header, Place, RowRef, StoredRow};
use super::sqlite::{Database, DatabaseError};
use crate::evidence::RequestId;
use crate::timestamp::{Period, Timestamp};

/// What former chains left to a new one.
#[derive(Debug, Default)]
pub(super) struct Legacy {
    /// Last rows that no other chain names.
    pub(super) unnamed: Vec<RowRef>,
    /// Chains without an `end` row that nobody declared ended.
    pub(super) dead: Vec<DeadChain>,
    /// The newest time of the chains that are not both finished and named; every later chain began no earlier than those.
    pub(super) newest: Option<Timestamp>,
}

/// A chain whose process died.
#[derive(Debug)]
pub(super) struct DeadChain {
    pub(super) head: RowRef,
    /// Its intents without outcome.
    pub(super) orphans: Vec<(RowRef, Option<RequestId>)>,
}

/// Why nothing could be found out.
#[derive(Debug, thiserror::Error)]
pub(super) enum SurveyError {
    #[error(transparent)]
    Database(#[from] DatabaseError),
    #[error("{0}")]
    Corrupt(String),
}

/// Rows read at a time.
const PAGE: u32 = 500;

/// Looks at the first and last rows of all chains. Must be called by the holder of the lock: every chain it sees is then dead or ended.
pub(super) async fn survey(database: &mut Database) -> Result<Legacy, SurveyError> {
    let mut started = Vec::new();
    let mut declared_ended = HashSet::new();
    let mut ends: HashMap<ChainId, RowRef> = HashMap::new();
    let mut named: HashMap<ChainId, RowRef> = HashMap::new();
    for row in database.marks().await? {
        let (header, event) = read(&row)?;
        match event {
            Event::Start { heads, .. } => {
                started.push(header.chain);
                named.extend(heads.into_iter().map(|head| (head.chain, head)));
            }
            Event::ChainEnded { head } => {
                declared_ended.insert(head.chain);
            }
            Event::End => {
                ends.insert(header.chain, reference(&header, &row)?);
            }
            _ => {}
        }
    }
    let settled = |chain: &ChainId| declared_ended.contains(chain) || ends.get(chain).is_some_and(|end| named.get(chain) == Some(end));
    let mut legacy = Legacy::default();
    for chain in started.into_iter().filter(|chain| !settled(chain)) {
        let row = database.last_row(chain).await?.ok_or_else(|| SurveyError::Corrupt(format!("chain {chain} has lost its rows")))?;
        let (header, event) = read(&row)?;
        let head = reference(&header, &row)?;
        legacy.newest = legacy.newest.max(Some(header.time));
        if named.get(&chain) != Some(&head) {
            legacy.unnamed.push(head);
        }
        if event != Event::End {
            let orphans = match header.oldest_open {
                Some(from) => orphans(database, chain, from).await?,
                None => Vec::new(),
            };
            legacy.dead.push(DeadChain { head, orphans });
        }
    }
    Ok(legacy)
}

/// The open intents of a dead chain; `from` is the lowest that can be open. Only a chain's own process, or a batch that also
/// declares it ended, writes its outcomes: so they all stand in the chain itself.
async fn orphans(database: &mut Database, chain: ChainId, from: Place) -> Result<Vec<(RowRef, Option<RequestId>)>, SurveyError> {
    let mut open = BTreeMap::new();
    for period in database.periods().await? {
        let Some(period) = u32::try_from(period).ok().and_then(Period::new).filter(|period| *period >= from.period) else { continue };
        let mut next = if period == from.period { from } else { Place { period, seq: 0 } };
        loop {
            let rows = database.chain_page(chain, next, PAGE).await?;
            let Some(last) = rows.last() else { break };
            next.seq = read(last)?.0.place.seq + 1;
            for row in &rows {
                let (header, event) = read(row)?;
                if let Some(intent) = event.closes() {
                    open.remove(&intent.place);
                } else if matches!(event, Event::Intent(_)) {
                    open.insert(header.place, (reference(&header, row)?, header.request));
                }
            }
        }
    }
    Ok(open.into_values().collect())
}

fn read(row: &StoredRow) -> Result<(Header, Event), SurveyError> {
    decode(&row.body).map_err(|cause| SurveyError::Corrupt(format!("the row at {row} cannot be read: {cause}")))
}

fn reference(header: &Header, row: &StoredRow) -> Result<RowRef, SurveyError> {
    let hash = row.hash.as_slice().try_into().map_err(|_| SurveyError::Corrupt(format!("the row at {row} has no SHA-256 hash")))?;
    Ok(RowRef { chain: header.chain, place: header.place, hash })
}
