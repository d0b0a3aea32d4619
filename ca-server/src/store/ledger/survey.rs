//! What a process finds that looks at all chains: chains that nobody names yet, chains whose process is gone without having said so,
//! the intents they left open, and the newest time.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::body::decode;
use super::database::Database;
use super::event::{ChainId, Event, Header, Place, RowRef, StoredRow, Why};
use super::schema::{DatabaseError, SchemaError};
use crate::evidence::RequestId;
use crate::timestamp::{Period, Timestamp};

/// What is left to a new chain by former ones, and by those beside it.
#[derive(Debug, Default)]
pub(super) struct Legacy {
    /// Last rows that no other chain names.
    pub(super) unnamed: Vec<RowRef>,
    /// Chains without an `end` row that nobody declared ended, and whose process is gone. They are claimed on the connection that was
    /// asked; what is filed about them must be committed before the claims are released.
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

impl DeadChain {
    /// What is filed about it: its orphans, and that it has ended.
    pub(super) fn last_words(self) -> impl Iterator<Item = (Event, Option<RequestId>)> {
        let unknown = |(intent, request)| (Event::Unknown { intent, why: Why::process_died() }, request);
        self.orphans.into_iter().map(unknown).chain([(Event::ChainEnded { head: self.head }, None)])
    }
}

/// Why nothing could be found out.
#[derive(Debug, thiserror::Error)]
pub(super) enum SurveyError {
    #[error(transparent)]
    Database(#[from] DatabaseError),
    #[error("{0}")]
    Corrupt(String),
}

impl From<SchemaError> for SurveyError {
    fn from(error: SchemaError) -> Self {
        match error {
            SchemaError::Database(error) => Self::Database(error),
            other => Self::Corrupt(other.to_string()),
        }
    }
}

/// Rows read at a time.
const PAGE: u32 = 500;

/// Looks at the first and last rows of all chains but the asking process's own.
pub(super) async fn survey(database: &mut Database, own: Option<ChainId>) -> Result<Legacy, SurveyError> {
    let mut claimed = HashSet::new();
    for chain in Marks::read(database).await?.unsettled(own) {
        if database.claim(chain).await? {
            claimed.insert(chain);
        }
    }
    // Read once more: whoever held a claim before may have filed everything in the meantime.
    let marks = Marks::read(database).await?;
    let mut legacy = Legacy::default();
    for chain in marks.unsettled(own) {
        let row = database.last_row(chain).await?.ok_or_else(|| SurveyError::Corrupt(format!("chain {chain} has lost its rows")))?;
        let (header, event) = read(&row)?;
        let head = reference(&header, &row)?;
        legacy.newest = legacy.newest.max(Some(header.time));
        if marks.named.get(&chain) != Some(&head) {
            legacy.unnamed.push(head);
        }
        if event != Event::End && claimed.contains(&chain) {
            let orphans = match header.oldest_open {
                Some(from) => orphans(database, chain, from).await?,
                None => Vec::new(),
            };
            legacy.dead.push(DeadChain { head, orphans });
        }
    }
    Ok(legacy)
}

/// What the first and last rows of chains say.
#[derive(Default)]
struct Marks {
    started: Vec<ChainId>,
    /// Heads by which others declared a chain ended.
    declared_ended: HashMap<ChainId, RowRef>,
    ends: HashMap<ChainId, RowRef>,
    /// The furthest row of each chain that another chain's start names.
    named: HashMap<ChainId, RowRef>,
}

impl Marks {
    async fn read(database: &mut Database) -> Result<Self, SurveyError> {
        let mut marks = Self::default();
        for row in database.marks().await? {
            let (header, event) = read(&row)?;
            match event {
                Event::Start { heads, .. } => {
                    marks.started.push(header.chain);
                    for head in heads {
                        let named = marks.named.entry(head.chain).or_insert(head);
                        if head.place > named.place {
                            *named = head;
                        }
                    }
                }
                Event::ChainEnded { head } => {
                    marks.declared_ended.insert(head.chain, head);
                }
                Event::End => {
                    marks.ends.insert(header.chain, reference(&header, &row)?);
                }
                _ => {}
            }
        }
        Ok(marks)
    }

    /// Chains that still have something to be said about them, in the order in which they started.
    fn unsettled(&self, own: Option<ChainId>) -> Vec<ChainId> {
        let ended_and_named = |chain: &ChainId| self.ends.get(chain).is_some_and(|end| self.named.get(chain) == Some(end));
        let unsettled = |chain: &ChainId| Some(*chain) != own && !self.declared_ended.contains_key(chain) && !ended_and_named(chain);
        self.started.iter().copied().filter(unsettled).collect()
    }
}

/// Whether another process declared this chain ended.
pub(super) async fn is_declared_ended(database: &mut Database, chain: ChainId) -> Result<bool, SurveyError> {
    Ok(Marks::read(database).await?.declared_ended.contains_key(&chain))
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
