//! What a process finds that looks at all chains: chains that nobody names yet, chains whose
//! process is gone without having said so, the intents they left open, and the newest time. It
//! reads the chains that have not ended and the newest that have, however many there were before.

use std::collections::{BTreeMap, HashMap};

use super::body::decode;
use super::database::Database;
use super::event::{ChainId, Event, Header, Place, RowRef, StoredRow, Why};
use super::schema::{DatabaseError, SchemaError};
use crate::evidence::RequestId;
use crate::timestamp::Timestamp;

/// What is left to a new chain by former ones, and by those beside it.
#[derive(Debug, Default)]
pub(super) struct Legacy {
    /// Last rows that no other chain names.
    pub(super) unnamed: Vec<RowRef>,
    /// Chains without an `end` row that nobody declared ended, and whose process is gone. They are
    /// claimed on the connection that was asked; what is filed about them must be committed before
    /// the claims are released.
    pub(super) dead: Vec<DeadChain>,
    /// The newest time of the chains that are not both finished and named; every later chain began
    /// no earlier than those.
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
        let unknown = |(intent, request)| {
            (
                Event::Unknown {
                    intent,
                    why: Why::process_died(),
                },
                request,
            )
        };
        self.orphans
            .into_iter()
            .map(unknown)
            .chain([(Event::ChainEnded { head: self.head }, None)])
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

/// What becomes of a chain that has not ended and whose lock is free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Free {
    /// Its process is dead.
    IsDead,
    /// Its process may be on its way back to the database; the search looks again, and then once
    /// more.
    MayComeBack,
}

/// Rows read at a time.
const PAGE: u32 = 500;

/// How many of the newest starts and ends tell what is named. Every start names what nobody named
/// before, so the ends since the last start are no more than there are processes.
const NEWEST: u32 = 256;

/// Looks at all chains before a new one begins.
pub(super) async fn survey(database: &mut Database, free: Free) -> Result<Legacy, SurveyError> {
    let mut legacy = Legacy::default();
    let newest = Newest::read(database).await?;
    for (head, time) in &newest.ends {
        if newest.named.get(&head.chain) != Some(head) {
            legacy.unnamed.push(*head);
            legacy.newest = legacy.newest.max(Some(*time));
        }
    }
    for chain in database.unended().await? {
        let claimed = free == Free::IsDead && database.claim(chain).await?;
        // Asked again with the claim: whoever held it before may have filed everything in the
        // meantime.
        if claimed && database.is_ended(chain).await? {
            continue;
        }
        let Last {
            head,
            time,
            oldest_open,
            is_end,
        } = last_row(database, chain).await?;
        legacy.newest = legacy.newest.max(Some(time));
        if newest.named.get(&chain) != Some(&head) {
            legacy.unnamed.push(head);
        }
        if claimed && !is_end {
            legacy.dead.push(DeadChain {
                head,
                orphans: orphans(database, chain, oldest_open).await?,
            });
        }
    }
    Ok(legacy)
}

/// A chain that was found without its process, as it is now that it can be claimed; nothing if it
/// cannot, or if others were first.
pub(super) async fn dead_chain(
    database: &mut Database,
    chain: ChainId,
) -> Result<Option<DeadChain>, SurveyError> {
    if !database.claim(chain).await? || database.is_ended(chain).await? {
        return Ok(None);
    }
    let Last {
        head,
        oldest_open,
        is_end,
        ..
    } = last_row(database, chain).await?;
    Ok(if is_end {
        None
    } else {
        Some(DeadChain {
            head,
            orphans: orphans(database, chain, oldest_open).await?,
        })
    })
}

/// A chain's last row.
struct Last {
    head: RowRef,
    time: Timestamp,
    oldest_open: Option<Place>,
    is_end: bool,
}

async fn last_row(database: &mut Database, chain: ChainId) -> Result<Last, SurveyError> {
    let row = database
        .last_row(chain)
        .await?
        .ok_or_else(|| SurveyError::Corrupt(format!("chain {chain} has lost its rows")))?;
    let head = reference(&row)?;
    Ok(match read(&row) {
        Some((header, event)) => Last {
            head,
            time: header.time,
            oldest_open: header.oldest_open,
            is_end: event == Event::End,
        },
        None => {
            let oldest_open = oldest_open_before(database, head).await?;
            Last {
                head,
                time: Timestamp::from_micros(row.time),
                oldest_open: Some(oldest_open),
                is_end: false,
            }
        }
    })
}

/// Where the first open intent of a chain can stand whose last row cannot be read: the row before
/// says it, or the one before that. Where it says that none was open, what follows it may be one.
async fn oldest_open_before(database: &mut Database, last: RowRef) -> Result<Place, SurveyError> {
    let from = Place {
        seq: last.place.seq.saturating_sub(PAGE.into()),
        ..last.place
    };
    let rows = database.chain_page(last.chain, from, PAGE).await?;
    let readable = rows.iter().rev().find_map(|row| decode(&row.body).ok());
    let after = |place: Place| Place {
        seq: place.seq + 1,
        ..place
    };
    Ok(readable.map_or(
        Place {
            seq: 0,
            ..last.place
        },
        |(header, _)| header.oldest_open.unwrap_or_else(|| after(header.place)),
    ))
}

/// What the newest starts and ends say.
#[derive(Default)]
struct Newest {
    /// Last rows of chains that ended in order, with their times.
    ends: Vec<(RowRef, Timestamp)>,
    /// The furthest row of each chain that another chain's start names.
    named: HashMap<ChainId, RowRef>,
}

impl Newest {
    async fn read(database: &mut Database) -> Result<Self, SurveyError> {
        let mut newest = Self::default();
        let starts = database.newest_marks("start", NEWEST).await?;
        for row in &starts {
            let Some((_, Event::Start { heads, .. })) = read(row) else {
                continue;
            };
            for head in heads {
                let named = newest.named.entry(head.chain).or_insert(head);
                if head.place > named.place {
                    *named = head;
                }
            }
        }
        // An end before the first start that was read was named by one of those that were not.
        let from = starts
            .last()
            .filter(|_| starts.len() == NEWEST as usize)
            .map_or(i64::MIN, |row| row.time);
        for row in database
            .newest_marks("end", NEWEST)
            .await?
            .iter()
            .rev()
            .filter(|row| row.time >= from)
        {
            newest
                .ends
                .push((reference(row)?, Timestamp::from_micros(row.time)));
        }
        Ok(newest)
    }
}

/// The open intents of a dead chain whose last row names the lowest that can be open. Only a
/// chain's own process, or a batch that also declares it ended, writes its outcomes: so they all
/// stand in the chain itself. Numbers begin anew in each chain, and a chain may hold outcomes of
/// another's intents.
async fn orphans(
    database: &mut Database,
    chain: ChainId,
    oldest_open: Option<Place>,
) -> Result<Vec<(RowRef, Option<RequestId>)>, SurveyError> {
    let Some(from) = oldest_open else {
        return Ok(Vec::new());
    };
    let mut open = BTreeMap::new();
    for period in database
        .months()
        .await?
        .into_iter()
        .filter(|period| *period >= from.period)
    {
        let mut next = if period == from.period {
            from
        } else {
            Place { period, seq: 0 }
        };
        loop {
            let rows = database.chain_page(chain, next, PAGE).await?;
            let Some(end) = rows.last() else { break };
            next.seq = reference(end)?.place.seq + 1;
            for row in &rows {
                match read(row) {
                    Some((header, Event::Intent(_))) => {
                        open.insert(header.place, (reference(row)?, header.request));
                    }
                    Some((_, event)) => {
                        if let Some(intent) = event.closes().filter(|intent| intent.chain == chain)
                        {
                            open.remove(&intent.place);
                        }
                    }
                    // An intent is closed all the same, by its columns; what else it may be closes
                    // nothing that anybody could tell.
                    None if row.kind == "intent" => {
                        let intent = reference(row)?;
                        open.insert(intent.place, (intent, None));
                    }
                    None => {}
                }
            }
        }
    }
    Ok(open.into_values().collect())
}

/// The row; one that cannot be read stops nobody, and `audit verify` makes a finding of it.
fn read(row: &StoredRow) -> Option<(Header, Event)> {
    let read = decode(&row.body);
    if let Err(cause) = &read {
        tracing::error!(%row, %cause, "a row of the ledger cannot be read and is passed over; `ca-server audit verify` tells more");
    }
    read.ok()
}

/// How others name a row, by its columns.
fn reference(row: &StoredRow) -> Result<RowRef, SurveyError> {
    match (row.place(), row.hash.as_slice().try_into()) {
        (Some((chain, place)), Ok(hash)) => Ok(RowRef { chain, place, hash }),
        _ => Err(SurveyError::Corrupt(format!(
            "the row at {row} has no place or no SHA-256 hash"
        ))),
    }
}
