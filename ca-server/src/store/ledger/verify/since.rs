//! Where a verification stands that takes for granted every row before a time: the last such row of
//! each chain, the issuers that the chain had named by then, and what it had left open.

use std::collections::BTreeMap;

use super::super::database::Database;
use super::super::event::{ChainId, Event, Hash, IssuerFacts, Place, RowRef, StoredRow};
use super::super::issuance::certificate_of;
use super::super::query::{Entry, ReadError};
use super::findings::Finding;
use super::standing::{ChainStanding, Standing};
use super::trusted::TrustedRoots;
use crate::timestamp::Timestamp;

/// Rows read at a time.
const PAGE: u32 = 500;

/// What was read of the rows that are taken for granted.
#[derive(Default)]
pub(super) struct Believed {
    issuers: Vec<(RowRef, IssuerFacts)>,
    unreadable: Vec<Finding>,
}

impl Believed {
    /// The row, unless it cannot be read, which is noted.
    fn read(&mut self, row: &StoredRow) -> Option<Entry> {
        let read = Entry::try_from(row);
        if let Err(ReadError::Row { cause, .. }) = &read {
            self.unreadable.push(Finding::new(
                row,
                format!("the body cannot be read: {cause}"),
            ));
        }
        read.ok()
    }

    /// What is wrong with it all the same.
    pub(super) fn findings(self, roots: Option<&TrustedRoots>) -> impl Iterator<Item = Finding> {
        let stranger = move |(row, facts): (RowRef, IssuerFacts)| {
            Some(Finding::new(row, roots?.lead_to(&facts).err()?))
        };
        self.unreadable
            .into_iter()
            .chain(self.issuers.into_iter().filter_map(stranger))
    }
}

impl Standing {
    /// Before the first row of that time or later, in a ledger of so many rows. The snapshot must
    /// have begun.
    pub(super) async fn at(
        since: Timestamp,
        row_count: u64,
        database: &mut Database,
        believed: &mut Believed,
    ) -> Result<Self, ReadError> {
        let mut standing = Self {
            since: Some(since),
            ..Self::default()
        };
        let mut begun = Vec::new();
        let first = database.months().await?.first().copied();
        for row in &database.marks_before(since).await? {
            let Some(entry) = believed.read(row) else {
                continue;
            };
            let time = entry.header.time;
            match &entry.event {
                Event::Start { .. } => begun.push(entry.header.chain),
                Event::End => {
                    standing
                        .chains
                        .entry(entry.header.chain)
                        .or_insert_with(|| settled(entry.reference(), time, false));
                }
                Event::ChainEnded { head } => {
                    standing
                        .chains
                        .entry(head.chain)
                        .or_insert_with(|| settled(*head, time, true));
                }
                _ => {}
            }
        }
        for chain in begun {
            if !standing.chains.contains_key(&chain)
                && let Some(row) = database.last_row_before(chain, since).await?
                // One whose last row cannot be read is read from its beginning.
                && let Ok(head) = Entry::try_from(&row)
            {
                standing
                    .chains
                    .insert(chain, unfinished(&head, database, believed).await?);
            }
        }
        // Nothing is left to read of what ended in a month that is not there any more.
        standing
            .chains
            .retain(|_, chain| first.is_none_or(|first| chain.head.place.period >= first));
        let period = since.period();
        let of_period = standing
            .chains
            .values()
            .filter(|chain| chain.head.place.period == period);
        let taken_for_granted: u64 = of_period.map(|chain| chain.head.place.seq + 1).sum();
        standing.rows =
            (row_count + taken_for_granted).saturating_sub(database.rows_from(period).await?);
        Ok(standing)
    }
}

fn settled(head: RowRef, time: Timestamp, declared: bool) -> ChainStanding {
    ChainStanding {
        head,
        time,
        ended: true,
        declared,
        issuers: Vec::new(),
        open: Vec::new(),
    }
}

/// A chain that had not ended by then.
async fn unfinished(
    head: &Entry,
    database: &mut Database,
    believed: &mut Believed,
) -> Result<ChainStanding, ReadError> {
    let (chain, until) = (head.header.chain, head.header.place);
    let mut issuers = Vec::new();
    for row in database.issuer_rows(chain, until).await? {
        let Some(entry) = believed.read(&row) else {
            continue;
        };
        let place = entry.reference();
        if let Event::Issuer(facts) = entry.event {
            issuers.extend(
                certificate_of(&facts)
                    .ok()
                    .map(|certificate| (facts.id.clone(), certificate.to_owned())),
            );
            believed.issuers.push((place, facts));
        }
    }
    let open = match head.header.oldest_open {
        Some(from) => open_between(chain, from, until, database, believed)
            .await?
            .into_iter()
            .collect(),
        None => Vec::new(),
    };
    Ok(ChainStanding {
        head: head.reference(),
        time: head.header.time,
        ended: false,
        declared: false,
        issuers,
        open,
    })
}

/// The intents of a chain from `from` to `until` that have no outcome there.
async fn open_between(
    chain: ChainId,
    from: Place,
    until: Place,
    database: &mut Database,
    believed: &mut Believed,
) -> Result<BTreeMap<Place, Hash>, ReadError> {
    let mut open = BTreeMap::new();
    for period in database.months().await? {
        if period < from.period || period > until.period {
            continue;
        }
        let mut next = if period == from.period {
            from
        } else {
            Place { period, seq: 0 }
        };
        loop {
            let rows = database.chain_page(chain, next, PAGE).await?;
            let Some(last) = rows.last() else { break };
            next.seq = u64::try_from(last.seq)
                .unwrap_or(u64::MAX)
                .saturating_add(1);
            for row in &rows {
                let Some(entry) = believed.read(row) else {
                    continue;
                };
                if entry.header.place > until {
                    return Ok(open);
                }
                match (&entry.event, entry.event.closes()) {
                    (Event::Intent(_), _) => open.insert(entry.header.place, entry.hash),
                    // Numbers begin anew in each chain: an outcome of another chain's intent says
                    // nothing of this one's.
                    (_, Some(intent)) if intent.chain == chain => open.remove(&intent.place),
                    _ => None,
                };
            }
        }
    }
    Ok(open)
}
