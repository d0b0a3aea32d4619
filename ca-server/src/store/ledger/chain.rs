//! One chain as its writer holds it: where it stands, and what the next row will be. Pure; the
//! writer replaces its chain by the advanced copy only when the rows are known to be committed.

use std::collections::BTreeMap;

use super::body::{GENESIS, encode, link};
use super::event::{ChainId, Event, Hash, Header, Place, Row, RowRef};
use crate::evidence::RequestId;
use crate::timestamp::{Period, Timestamp};

/// The end of a chain.
#[derive(Clone, Debug)]
pub(super) struct Chain {
    id: ChainId,
    /// Before the first row: the place that row will take.
    next: Place,
    hash: Hash,
    time: Timestamp,
}

impl Chain {
    /// A chain without rows. No row's time will be before `not_before`, the newest time of the
    /// chains that this one follows.
    pub(super) fn new(id: ChainId, now: Timestamp, not_before: Timestamp) -> Self {
        let time = now.max(not_before);
        Self {
            id,
            next: Place {
                period: time.period(),
                seq: 0,
            },
            hash: GENESIS,
            time,
        }
    }

    /// Its id.
    pub(super) fn id(&self) -> ChainId {
        self.id
    }

    /// The period in which a row written now would stand.
    pub(super) fn period(&self, now: Timestamp) -> Period {
        self.next.period.max(now.period())
    }

    /// The time of the last row.
    pub(super) fn time(&self) -> Timestamp {
        self.time
    }

    /// The last row; `None` before the first.
    pub(super) fn head(&self) -> Option<RowRef> {
        let seq = self.next.seq.checked_sub(1)?;
        Some(RowRef {
            chain: self.id,
            place: Place {
                period: self.next.period,
                seq,
            },
            hash: self.hash,
        })
    }

    /// Appends what a batch holds to `rows`; a new month is begun with its `period` row. `open` are
    /// the committed open intents.
    pub(super) fn append(
        &mut self,
        event: Event,
        request: Option<RequestId>,
        now: Timestamp,
        open: &OpenIntents,
        rows: &mut Vec<Row>,
    ) {
        let period = self.period(now);
        if period > self.next.period {
            let previous = self.head();
            self.next = Place { period, seq: 0 };
            if let Some(previous) = previous {
                self.push(Event::Period { previous }, None, now, open, rows);
            }
        }
        self.push(event, request, now, open, rows);
    }

    fn push(
        &mut self,
        event: Event,
        request: Option<RequestId>,
        now: Timestamp,
        open: &OpenIntents,
        rows: &mut Vec<Row>,
    ) {
        self.time = self.time.max(now);
        let place = self.next;
        let of_this_batch = rows
            .iter()
            .find(|row| matches!(row.event, Event::Intent(_)))
            .map(|row| row.header.place);
        let itself = matches!(event, Event::Intent(_)).then_some(place);
        let oldest_open = open
            .first_key_value()
            .map(|(place, _)| *place)
            .or(of_this_batch)
            .or(itself);
        let header = Header {
            chain: self.id,
            place,
            time: self.time,
            request,
            oldest_open,
        };
        let body = encode(&header, &event);
        self.hash = link(&self.hash, &body);
        self.next.seq += 1;
        rows.push(Row {
            header,
            event,
            body: body.into(),
            hash: self.hash,
        });
    }
}

/// The committed intents of a chain that have no committed outcome, with their hashes.
pub(super) type OpenIntents = BTreeMap<Place, Hash>;
