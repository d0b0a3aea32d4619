//! The one thing that cannot be done side by side: following the chains, row after row. Each keeps
//! its head and its open intents; what one chain says of another is noted until the other's rows
//! have come. Memory holds open intents and the serials of one period.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::super::event::{ChainId, Hash, Place, RowRef};
use super::super::issuance::{Drafted, Signature};
use super::Report;
use super::findings::{Finding, Findings};
use super::judge::{Judged, JudgedRow, Meaning, Pair, Read};
use super::repeated::Certificates;
use super::standing::NamedHead;
use crate::timestamp::{Period, Timestamp};
use crate::x509::Serial;

/// Outcomes without an open intent whose intents are looked up in the end; there are none in a
/// ledger that holds.
const UNEXPLAINED: usize = 10_000;

/// Serials that are remembered as found twice, so that they are not found again.
const REPEATED: usize = 1000;

/// One chain as far as it was read.
#[derive(Default)]
pub(super) struct Chain {
    pub(super) head: Option<(RowRef, Timestamp)>,
    pub(super) ended: bool,
    pub(super) declared: bool,
    pub(super) open: BTreeMap<Place, Open>,
}

/// An intent whose outcome is still to come.
pub(super) struct Open {
    pub(super) hash: Hash,
    pub(super) identity: Option<String>,
    /// None if a later row of the same page was held against it.
    pub(super) drafted: Option<Box<Drafted>>,
}

/// What becomes of an intent.
enum Outcome {
    Issued(Option<Signature>),
    Failed,
    Unknown,
}

#[derive(Default)]
pub(super) struct Pass {
    pub(super) report: Report,
    pub(super) findings: Findings,
    pub(super) chains: HashMap<ChainId, Chain>,
    /// Outcomes, by other chains, of intents that are still to come: the intent's hash, and the
    /// outcome.
    pub(super) early: HashMap<(ChainId, Place), (Hash, RowRef)>,
    pub(super) named: Vec<NamedHead>,
    /// Outcomes by (their chain, their intents' chain), until the first declares the second ended.
    pub(super) undeclared: HashMap<(ChainId, ChainId), Vec<RowRef>>,
    /// Outcomes, and the intents that they name, which were read and are not open.
    pub(super) unexplained: Vec<(RowRef, RowRef)>,
    pub(super) serials: Serials,
    pub(super) certificates: Certificates,
    pairs: Vec<Pair>,
}

impl Pass {
    pub(super) fn broken(&mut self, row: RowRef, what: impl Into<String>) {
        self.findings.add(Finding::new(row, what));
    }

    /// Takes in the next page. Returns the outcomes that are still to be held against their
    /// intents.
    pub(super) fn page(&mut self, page: Judged) -> Vec<Pair> {
        self.report.rows += page.count;
        page.findings
            .into_iter()
            .for_each(|finding| self.findings.add(finding));
        for row in page.rows {
            self.linked(&row);
            if let Some(read) = row.read {
                self.row(row.row, read);
            }
        }
        std::mem::take(&mut self.pairs)
    }

    /// Invariant 9: no gap, every row bound to the one before, time and period never going back.
    fn linked(&mut self, row: &JudgedRow) {
        let place = row.row.place;
        let meaning = row.read.as_ref().map(|read| &read.meaning);
        let chain = self.chains.entry(row.row.chain).or_default();
        let mut wrong = Vec::new();
        if chain.ended {
            wrong.push("rows follow the chain's end".to_owned());
        }
        let mut follows = true;
        match chain.head {
            None if place.seq != 0 => {
                wrong.push(
                    "the rows before it are missing: the chain does not begin here".to_owned(),
                );
                follows = false;
            }
            None => {
                if !matches!(meaning, None | Some(Meaning::Start { .. })) {
                    wrong.push("the chain does not begin with a start row".to_owned());
                }
            }
            Some((head, time)) => {
                if row.read.as_ref().is_some_and(|read| read.time < time) {
                    wrong.push("its time is before that of the row before".to_owned());
                }
                let begins_period = place.period != head.place.period;
                follows = if begins_period {
                    place.seq == 0
                } else {
                    place.seq == head.place.seq + 1
                };
                let names_head = match meaning {
                    Some(Meaning::Period { previous }) => *previous == head,
                    Some(_) => false,
                    None => true,
                };
                if !follows {
                    wrong.push(format!(
                        "rows are missing between seq {} of period {} and it",
                        head.place.seq, head.place.period
                    ));
                } else if begins_period && !names_head {
                    wrong.push(
                        "it begins a period and does not name the last row of the one before"
                            .to_owned(),
                    );
                } else if !begins_period && matches!(meaning, Some(Meaning::Period { .. })) {
                    wrong.push("a period row stands within a period".to_owned());
                } else if matches!(meaning, Some(Meaning::Start { .. })) {
                    wrong.push("a start row stands within a chain".to_owned());
                }
            }
        }
        if follows && !row.is_bound {
            wrong.push("its hash is not that of the row before and its body".to_owned());
        }
        if row
            .read
            .as_ref()
            .is_some_and(|read| read.time.period() != place.period)
        {
            wrong.push("its time is not of its period".to_owned());
        }
        let time = row
            .read
            .as_ref()
            .map(|read| read.time)
            .or(chain.head.map(|(_, time)| time));
        chain.head = Some((row.row, time.unwrap_or(Timestamp::from_micros(0))));
        chain.ended |= matches!(meaning, Some(Meaning::End));
        for what in wrong {
            self.broken(row.row, what);
        }
    }

    fn row(&mut self, row: RowRef, read: Read) {
        match read.meaning {
            Meaning::Start { heads } => {
                self.named.extend(heads.into_iter().map(|head| NamedHead {
                    head,
                    is_last: false,
                    by: row,
                }));
            }
            Meaning::ChainEnded { head } => self.declared(row, head),
            Meaning::Intent {
                serial,
                identity,
                drafted,
            } => self.intent(row, serial, identity, drafted),
            Meaning::Issued { intent, signature } => {
                self.closed(row, intent, Outcome::Issued(signature))
            }
            Meaning::Failed { intent } => self.closed(row, intent, Outcome::Failed),
            Meaning::Unknown { intent } => self.closed(row, intent, Outcome::Unknown),
            Meaning::Repeated { intent, identity } => {
                self.report.repeated += 1;
                if let Err(what) = self.certificates.repeated(row, intent, identity) {
                    self.broken(row, what);
                }
            }
            Meaning::Refusal => self.report.refusals += 1,
            Meaning::Period { .. } | Meaning::End | Meaning::Statement => {}
        }
        self.oldest_open(row, read.oldest_open);
    }

    /// A chain declares another ended, once and for all, after it has filed what that one left
    /// open.
    fn declared(&mut self, row: RowRef, head: RowRef) {
        self.undeclared.remove(&(row.chain, head.chain));
        let chain = self.chains.entry(head.chain).or_default();
        if std::mem::replace(&mut chain.declared, true) {
            self.broken(
                row,
                format!("the chain of the row that it names was declared ended before: {head}"),
            );
        }
        self.named.push(NamedHead {
            head,
            is_last: true,
            by: row,
        });
    }

    fn intent(
        &mut self,
        row: RowRef,
        serial: Vec<u8>,
        identity: Option<String>,
        drafted: Option<Box<Drafted>>,
    ) {
        self.report.intents += 1;
        if !self.serials.is_new(row.place.period, serial) {
            self.broken(row, "its serial was used before");
        }
        match self.early.remove(&(row.chain, row.place)) {
            Some((hash, _)) if hash == row.hash => {}
            Some((_, outcome)) => self.broken(outcome, "the intent that it names has another hash"),
            None => {
                let chain = self.chains.entry(row.chain).or_default();
                chain.open.insert(
                    row.place,
                    Open {
                        hash: row.hash,
                        identity,
                        drafted,
                    },
                );
            }
        }
    }

    /// Invariant 2, and one outcome for each intent: in its own chain, or `unknown` in the one that
    /// declares that chain ended.
    fn closed(&mut self, row: RowRef, intent: RowRef, outcome: Outcome) {
        let own = intent.chain == row.chain;
        match outcome {
            Outcome::Issued(_) => self.report.issued += 1,
            Outcome::Failed => self.report.failed += 1,
            Outcome::Unknown => self.report.unknown += 1,
        }
        match outcome {
            _ if own => {}
            Outcome::Issued(_) => self.broken(
                row,
                "a certificate was recorded by another chain than its intent",
            ),
            Outcome::Failed => self.broken(
                row,
                "a failure was recorded by another chain than its intent",
            ),
            Outcome::Unknown => self
                .undeclared
                .entry((row.chain, intent.chain))
                .or_default()
                .push(row),
        }
        let chain = self.chains.get_mut(&intent.chain);
        if let Some(open) = chain.and_then(|chain| chain.open.remove(&intent.place)) {
            if open.hash != intent.hash {
                self.broken(row, "the intent that it names has another hash");
            }
            if let (Outcome::Issued(_), true) = (&outcome, own) {
                self.certificates.issued(intent, open.identity);
            }
            if let Outcome::Issued(Some(signature)) = outcome {
                match open.drafted {
                    Some(drafted) => self.pairs.push(Pair {
                        outcome: row,
                        drafted,
                        signature,
                    }),
                    None => self.broken(row, "its intent has two outcomes"),
                }
            }
            return;
        }
        let head = self.chains.get(&intent.chain).and_then(|chain| chain.head);
        if head.is_some_and(|(head, _)| head.place >= intent.place) {
            if self.unexplained.len() < UNEXPLAINED {
                self.unexplained.push((row, intent));
            } else {
                self.broken(
                    row,
                    "the intent that it names does not exist or has another outcome",
                );
            }
        } else if own {
            self.broken(row, "it stands before the intent that it names");
        } else if self
            .early
            .insert((intent.chain, intent.place), (intent.hash, row))
            .is_some()
        {
            self.broken(row, "its intent has two outcomes");
        }
    }

    /// A row must not claim that fewer intents are open than are: whoever searches for orphans
    /// begins where it says.
    fn oldest_open(&mut self, row: RowRef, claimed: Option<Place>) {
        let Some((lowest, _)) = self
            .chains
            .get(&row.chain)
            .and_then(|chain| chain.open.first_key_value())
        else {
            return;
        };
        if claimed.is_none_or(|claimed| claimed > *lowest) {
            self.broken(
                row,
                "it claims that an intent had its outcome which has none yet",
            );
        }
    }
}

/// The serials of the period that is being read.
#[derive(Default)]
pub(super) struct Serials {
    period: Option<Period>,
    ours: HashSet<[u8; Serial::LEN]>,
    others: HashSet<Vec<u8>>,
    /// All periods that were read.
    pub(super) periods: BTreeSet<Period>,
    /// Serials that were found twice.
    pub(super) repeated: HashSet<Vec<u8>>,
}

impl Serials {
    fn is_new(&mut self, period: Period, serial: Vec<u8>) -> bool {
        if self.period != Some(period) {
            self.ours.clear();
            self.others.clear();
            self.period = Some(period);
            self.periods.insert(period);
        }
        let is_new = match serial.as_slice().try_into() {
            Ok(ours) => self.ours.insert(ours),
            Err(_) => self.others.insert(serial.clone()),
        };
        if !is_new && self.repeated.len() < REPEATED {
            self.repeated.insert(serial);
        }
        is_new
    }
}
