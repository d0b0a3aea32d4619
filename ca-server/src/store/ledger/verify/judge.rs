//! What can be said of rows by themselves, the row before and the issuers that their chain has
//! named: everything that costs. Pure, so that workers do it side by side. What is left, the state
//! of all chains, is `pass`.

use std::collections::HashMap;
use std::sync::Arc;

use super::super::body::{GENESIS, decode, is_deterministic, link};
use super::super::event::{Event, Hash, Header, Place, RowRef, StoredRow};
use super::super::issuance::{Drafted, Issuers, Named, Signature, certificate_of, drafted, proven};
use super::findings::Finding;
use super::trusted::TrustedRoots;
use crate::timestamp::Timestamp;

/// Rows of one chain, one after the other. An `issuer` row can only be the last.
pub(super) struct Stretch {
    /// What the chain has named before.
    pub(super) issuers: Arc<Issuers>,
    /// The stored hash of the chain's row that was read before.
    pub(super) before: Option<Hash>,
    pub(super) rows: Vec<StoredRow>,
}

/// Rows as far as they could be judged.
#[derive(Default)]
pub(super) struct Judged {
    /// How many rows there were.
    pub(super) count: u64,
    /// Those whose columns say where they stand.
    pub(super) rows: Vec<JudgedRow>,
    pub(super) findings: Vec<Finding>,
}

/// What the state of its chain must know of a row.
pub(super) struct JudgedRow {
    /// Taken from the key columns, so that a body moved elsewhere breaks one row and not the rest.
    pub(super) row: RowRef,
    /// Whether the hash is that of the stored hash before and the body.
    pub(super) is_bound: bool,
    /// None if the body cannot be read.
    pub(super) read: Option<Read>,
}

pub(super) struct Read {
    pub(super) time: Timestamp,
    pub(super) oldest_open: Option<Place>,
    pub(super) meaning: Meaning,
}

/// A kind of row, as far as the state of chains depends on it.
pub(super) enum Meaning {
    Start {
        heads: Vec<RowRef>,
    },
    Period {
        previous: RowRef,
    },
    End,
    ChainEnded {
        head: RowRef,
    },
    Intent {
        serial: Vec<u8>,
        identity: Option<String>,
        /// None if an outcome in the same stretch was held against it.
        drafted: Option<Box<Drafted>>,
    },
    Issued {
        intent: RowRef,
        /// None if it was held against its intent.
        signature: Option<Signature>,
    },
    Failed {
        intent: RowRef,
    },
    Unknown {
        intent: RowRef,
    },
    Repeated {
        intent: RowRef,
        identity: String,
    },
    Refusal,
    /// Nothing that another row depends on.
    Statement,
}

/// An outcome whose intent stood in another stretch.
pub(super) struct Pair {
    pub(super) outcome: RowRef,
    pub(super) drafted: Box<Drafted>,
    pub(super) signature: Signature,
}

/// What of it is asked.
#[derive(Clone)]
pub(super) struct Checks {
    /// False leaves out whether signatures are the issuers'.
    pub(super) signatures: bool,
    /// What issuers must stand under; `None` leaves that out.
    pub(super) roots: Option<Arc<TrustedRoots>>,
}

/// Judges pages of rows.
pub(super) fn page(stretches: Vec<Stretch>, checks: &Checks) -> Judged {
    let mut judged = Judged::default();
    for stretch in stretches {
        judged.stretch(stretch, checks);
    }
    judged
}

/// Holds outcomes against their intents.
pub(super) fn pairs(pairs: Vec<Pair>, signatures: bool) -> Vec<Finding> {
    let finding = |pair: Pair| {
        Some(Finding::new(
            pair.outcome,
            pair.drafted.became(&pair.signature, signatures).err()?,
        ))
    };
    pairs.into_iter().filter_map(finding).collect()
}

impl Judged {
    fn stretch(&mut self, stretch: Stretch, checks: &Checks) {
        self.count += stretch.rows.len() as u64;
        let mut before = stretch.before.unwrap_or(GENESIS);
        // Where the intents of this stretch stand in `rows`, as long as no outcome was held against
        // them.
        let mut open: HashMap<Place, usize> = HashMap::new();
        for stored in &stretch.rows {
            let Some(row) = self.reference(stored) else {
                continue;
            };
            let is_bound = link(&before, &stored.body) == row.hash;
            before = row.hash;
            let read = self.read(stored).map(|(header, event)| {
                let (time, oldest_open) = (header.time, header.oldest_open);
                let meaning = self.meaning(row, &header, event, &stretch.issuers, checks);
                Read {
                    time,
                    oldest_open,
                    meaning,
                }
            });
            self.rows.push(JudgedRow {
                row,
                is_bound,
                read,
            });
            self.pair(&mut open, checks.signatures);
        }
    }

    fn reference(&mut self, row: &StoredRow) -> Option<RowRef> {
        let Ok(hash) = Hash::try_from(row.hash.as_slice()) else {
            self.findings
                .push(Finding::new(row, "the hash is not of 32 octets"));
            return None;
        };
        let place = row.place();
        if place.is_none() {
            self.findings.push(Finding::new(row, "its place is none"));
        }
        place.map(|(chain, place)| RowRef { chain, place, hash })
    }

    fn read(&mut self, row: &StoredRow) -> Option<(Header, Event)> {
        if !is_deterministic(&row.body) {
            self.findings
                .push(Finding::new(row, "the body is not deterministic CBOR"));
        }
        match decode(&row.body) {
            Ok((header, event)) => {
                if let Some(column) = differing_column(row, &header, &event) {
                    self.findings.push(Finding::new(
                        row,
                        format!("the column {column} is not what the body says"),
                    ));
                }
                Some((header, event))
            }
            Err(cause) => {
                self.findings.push(Finding::new(
                    row,
                    format!("the body cannot be read: {cause}"),
                ));
                None
            }
        }
    }

    fn meaning(
        &mut self,
        row: RowRef,
        header: &Header,
        event: Event,
        issuers: &Issuers,
        checks: &Checks,
    ) -> Meaning {
        match event {
            Event::Start { heads, .. } => Meaning::Start { heads },
            Event::Period { previous } => Meaning::Period { previous },
            Event::End => Meaning::End,
            Event::ChainEnded { head } => Meaning::ChainEnded { head },
            Event::Issuer(facts) => {
                if let Err(what) = certificate_of(&facts).and_then(Named::read) {
                    self.findings.push(Finding::new(row, what));
                } else if let Some(Err(what)) =
                    checks.roots.as_ref().map(|roots| roots.lead_to(&facts))
                {
                    self.findings.push(Finding::new(row, what));
                }
                Meaning::Statement
            }
            Event::Intent(intent) => {
                let (serial, identity) = (intent.serial.clone(), intent.identity.clone());
                // A serial that begins with its row's period can be used again in that period
                // alone, where it is looked for.
                if leading_period(&serial) != Some(row.place.period.yyyymm()) {
                    self.findings.push(Finding::new(
                        row,
                        "its serial does not begin with its period",
                    ));
                }
                let (drafted, objection) = drafted(intent, issuers, header);
                self.findings
                    .extend(objection.map(|what| Finding::new(row, what)));
                Meaning::Intent {
                    serial,
                    identity,
                    drafted: Some(Box::new(drafted)),
                }
            }
            Event::Issued {
                intent,
                signature,
                certificate,
            } => Meaning::Issued {
                intent,
                signature: Some(Signature {
                    signature,
                    certificate,
                }),
            },
            Event::Failed { intent, .. } => Meaning::Failed { intent },
            Event::Unknown { intent, .. } => Meaning::Unknown { intent },
            Event::Repeated {
                intent,
                identity,
                evidence,
            } => {
                self.findings.extend(
                    proven(Some(&identity), &evidence)
                        .err()
                        .map(|what| Finding::new(row, what)),
                );
                Meaning::Repeated { intent, identity }
            }
            Event::Refused { .. } | Event::RefusedGroup(_) | Event::Dropped { .. } => {
                Meaning::Refusal
            }
            Event::Ceremony { .. }
            | Event::Reload { .. }
            | Event::Clock { .. }
            | Event::Device(_)
            | Event::Other { .. } => Meaning::Statement,
        }
    }

    /// Holds the last row, if it is an outcome, against its intent, if that stands in the same
    /// stretch.
    fn pair(&mut self, open: &mut HashMap<Place, usize>, signatures: bool) {
        let (last, earlier) = self.rows.split_last_mut().expect("a row was just added");
        let outcome = last.row;
        let Some(read) = &mut last.read else { return };
        let (named, signature) = match &mut read.meaning {
            Meaning::Intent { .. } => {
                open.insert(outcome.place, earlier.len());
                return;
            }
            Meaning::Issued { intent, signature } => (*intent, Some(signature)),
            Meaning::Failed { intent } | Meaning::Unknown { intent } => (*intent, None),
            _ => return,
        };
        if named.chain != outcome.chain {
            return;
        }
        let Some(intent) = open.get(&named.place).map(|at| &mut earlier[*at]) else {
            return;
        };
        let Some(Read {
            meaning: Meaning::Intent { drafted, .. },
            ..
        }) = &mut intent.read
        else {
            return;
        };
        if intent.row.hash != named.hash {
            return;
        }
        open.remove(&named.place);
        if let (Some(drafted), Some(signature)) = (drafted.take(), signature.and_then(Option::take))
            && let Err(what) = drafted.became(&signature, signatures)
        {
            self.findings.push(Finding::new(outcome, what));
        }
    }
}

/// The period that stands in a serial's first three octets.
fn leading_period(serial: &[u8]) -> Option<u32> {
    let [a, b, c] = serial.first_chunk::<3>()?;
    Some(u32::from_be_bytes([0, *a, *b, *c]))
}

fn differing_column(row: &StoredRow, header: &Header, event: &Event) -> Option<&'static str> {
    let projection = event.projection();
    // A later version's kind may project what this one does not know.
    let known = !matches!(event, Event::Other { .. });
    [
        (
            "period",
            row.period == i64::from(header.place.period.yyyymm()),
        ),
        ("chain", row.chain == header.chain.0),
        ("seq", u64::try_from(row.seq) == Ok(header.place.seq)),
        ("kind", row.kind == event.kind()),
        ("time", row.time == header.time.micros()),
        (
            "serial",
            !known || row.serial.as_deref() == projection.serial,
        ),
        (
            "identity",
            !known || row.identity.as_deref() == projection.identity,
        ),
        (
            "issuer",
            !known || row.issuer.as_deref() == projection.issuer,
        ),
        (
            "ended",
            !known
                || row.ended.as_deref()
                    == event
                        .ends(header.chain)
                        .as_ref()
                        .map(|chain| chain.0.as_slice()),
        ),
        (
            "profile",
            !known || row.profile.as_deref() == projection.profile,
        ),
    ]
    .into_iter()
    .find_map(|(column, same)| (!same).then_some(column))
}
