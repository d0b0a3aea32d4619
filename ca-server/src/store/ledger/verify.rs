//! Everything that the ledger alone can prove (invariants 2, 4–7, 9, and 8 by the list in `x509::lint`), row by row in one snapshot.
//!
//! Rows come in the order (period, chain, seq). Each chain keeps its head and its open intents; what one chain says of another is
//! looked up, or noted until the other's rows have come. Memory holds open intents and the serials of one period.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use super::body::{GENESIS, decode, is_deterministic, link};
use super::database::Database;
use super::event::{ChainId, Event, Hash, Header, Intent, Place, RowRef, StoredRow};
use super::issuance::{self, Drafted, Issuers};
use super::query::{Cursor, LedgerReader, ReadError};
use super::schema::DatabaseError;
use crate::digest::sha256;
use crate::timestamp::Timestamp;
use crate::x509::lint::Issuer;

/// What was counted, and what is broken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Rows.
    pub rows: u64,
    /// Chains.
    pub chains: u64,
    /// Intents.
    pub intents: u64,
    /// Certificates, each with its signature checked.
    pub issued: u64,
    /// Intents of which nothing was signed.
    pub failed: u64,
    /// Intents of which a signature may exist that was not released.
    pub unknown: u64,
    /// Intents without an outcome: in flight, or left by a dead process that no other has succeeded yet. One in a chain that
    /// has ended is broken and is not among these.
    pub open: u64,
    /// Rows of refusals.
    pub refusals: u64,
    /// The first broken rows.
    pub broken: Vec<Broken>,
    /// All broken rows, also those not listed.
    pub broken_count: u64,
}

/// A row that is not what it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// Its place: period, chain, seq.
    pub row: String,
    /// What is wrong with it.
    pub what: String,
}

/// Broken rows that are listed; a ledger that is broken throughout must not fill memory.
const LISTED: usize = 100;

impl LedgerReader {
    /// Checks one snapshot of the ledger. `progress` hears how many rows of how many are done.
    pub async fn verify(&mut self, mut progress: impl FnMut(u64, u64)) -> Result<Report, ReadError> {
        let (mut cursor, total) = Cursor::begin(&mut self.database).await?;
        let mut pass = Pass::default();
        loop {
            let rows = cursor.next(&mut self.database).await?;
            if rows.is_empty() {
                break;
            }
            for row in &rows {
                pass.row(row, &mut self.database).await?;
            }
            progress(pass.report.rows, total);
        }
        Ok(pass.finish(&mut self.database).await?)
    }
}

/// One chain as far as it was read.
#[derive(Default)]
struct Chain {
    head: Option<(RowRef, Timestamp)>,
    ended: bool,
    issuers: Issuers,
    open: BTreeMap<Place, Open>,
}

/// An intent whose outcome is still to come.
struct Open {
    hash: Hash,
    intent: Intent,
    /// Whose signature its certificate must have.
    issuer: Option<Arc<Issuer>>,
}

/// An intent's place in the order of reading.
type Key = (u32, ChainId, u64);

fn key(row: &RowRef) -> Key {
    (row.place.period.yyyymm(), row.chain, row.place.seq)
}

#[derive(Default)]
struct Pass {
    report: Report,
    chains: HashMap<ChainId, Chain>,
    /// Outcomes, by other chains, of intents that are still to come.
    early: HashMap<Key, (Hash, String)>,
    /// What chains say of the heads of others, and who says it. The flag: that chain must end there.
    named: Vec<(RowRef, bool, String)>,
    serials: HashSet<Vec<u8>>,
    serials_of: i64,
}

impl Pass {
    fn broken(&mut self, row: &str, what: impl Into<String>) {
        self.report.broken_count += 1;
        if self.report.broken.len() < LISTED {
            self.report.broken.push(Broken { row: row.to_owned(), what: what.into() });
        }
    }

    async fn row(&mut self, row: &StoredRow, database: &mut Database) -> Result<(), DatabaseError> {
        self.report.rows += 1;
        let name = row.to_string();
        if !is_deterministic(&row.body) {
            self.broken(&name, "the body is not deterministic CBOR");
        }
        let (header, event) = match decode(&row.body) {
            Ok(decoded) => decoded,
            Err(cause) => {
                self.broken(&name, format!("the body cannot be read: {cause}"));
                return Ok(());
            }
        };
        if let Some(column) = differing_column(row, &header, &event) {
            self.broken(&name, format!("the column {column} is not what the body says"));
        }
        let Ok(hash) = Hash::try_from(row.hash.as_slice()) else {
            self.broken(&name, "the hash is not of 32 octets");
            return Ok(());
        };
        // The row is taken for what its key columns say, so that a body moved elsewhere breaks one row and not the rest.
        let Some(reference) = place_of(row).map(|(chain, place)| RowRef { chain, place, hash }) else {
            self.broken(&name, "its place is none");
            return Ok(());
        };
        self.linked(&name, row, &header, &event, reference);
        self.meaning(&name, row, &header, event, reference, database).await
    }

    /// Invariant 9: no gap, every row bound to the one before, time and period never going back.
    fn linked(&mut self, name: &str, row: &StoredRow, header: &Header, event: &Event, reference: RowRef) {
        let chain = self.chains.entry(reference.chain).or_default();
        let mut wrong = Vec::new();
        let place = reference.place;
        if chain.ended {
            wrong.push("rows follow the chain's end".to_owned());
        }
        let previous = match chain.head {
            None if place.seq != 0 => {
                wrong.push("the rows before it are missing: the chain does not begin here".to_owned());
                None
            }
            None => {
                if !matches!(event, Event::Start { .. }) {
                    wrong.push("the chain does not begin with a start row".to_owned());
                }
                Some(GENESIS)
            }
            Some((head, time)) => {
                if header.time < time {
                    wrong.push("its time is before that of the row before".to_owned());
                }
                let follows = if place.period == head.place.period { place.seq == head.place.seq + 1 } else { place.seq == 0 };
                let begins_period = place.period != head.place.period;
                if !follows {
                    wrong.push(format!("rows are missing between seq {} of period {} and it", head.place.seq, head.place.period));
                } else if begins_period && *event != (Event::Period { previous: head }) {
                    wrong.push("it begins a period and does not name the last row of the one before".to_owned());
                } else if !begins_period && matches!(event, Event::Period { .. }) {
                    wrong.push("a period row stands within a period".to_owned());
                } else if matches!(event, Event::Start { .. }) {
                    wrong.push("a start row stands within a chain".to_owned());
                }
                follows.then_some(head.hash)
            }
        };
        if previous.is_some_and(|previous| link(&previous, &row.body) != reference.hash) {
            wrong.push("its hash is not that of the row before and its body".to_owned());
        }
        if header.time.period() != place.period {
            wrong.push("its time is not of its period".to_owned());
        }
        chain.head = Some((reference, header.time));
        chain.ended = matches!(event, Event::End);
        for what in wrong {
            self.broken(name, what);
        }
    }

    async fn meaning(
        &mut self,
        name: &str,
        row: &StoredRow,
        header: &Header,
        event: Event,
        reference: RowRef,
        database: &mut Database,
    ) -> Result<(), DatabaseError> {
        match event {
            Event::Start { heads, .. } => self.named.extend(heads.into_iter().map(|head| (head, false, name.to_owned()))),
            Event::ChainEnded { head } => self.named.push((head, true, name.to_owned())),
            Event::Issuer(facts) => {
                if let Err(what) = self.chains.entry(reference.chain).or_default().issuers.add(&facts) {
                    self.broken(name, what);
                }
            }
            Event::Intent(intent) => self.intent(name, row, header, intent, reference),
            Event::Issued { intent, signature, certificate } => {
                self.report.issued += 1;
                if let Some(open) = self.closed(name, intent, reference, true, database).await? {
                    match issuance::signed(&open.intent, open.issuer.as_deref(), &signature) {
                        Ok(der) if sha256(&der) != certificate => self.broken(name, "the certificate's SHA-256 is another"),
                        Ok(_) => {}
                        Err(what) => self.broken(name, what),
                    }
                }
            }
            Event::Failed { intent, .. } => {
                self.report.failed += 1;
                self.closed(name, intent, reference, false, database).await?;
            }
            Event::Unknown { intent, .. } => {
                self.report.unknown += 1;
                self.closed(name, intent, reference, false, database).await?;
            }
            Event::Refused { .. } | Event::RefusedGroup(_) | Event::Dropped { .. } => self.report.refusals += 1,
            _ => {}
        }
        self.oldest_open(name, header, reference);
        Ok(())
    }

    fn intent(&mut self, name: &str, row: &StoredRow, header: &Header, intent: Intent, reference: RowRef) {
        self.report.intents += 1;
        if self.serials_of != row.period {
            self.serials_of = row.period;
            self.serials.clear();
        }
        // A serial that begins with its row's period can be used again in that period alone, where it is looked for.
        if leading_period(&intent.serial) != u64::try_from(row.period).ok() {
            self.broken(name, "its serial does not begin with its period");
        }
        if !self.serials.insert(intent.serial.clone()) {
            self.broken(name, "its serial was used before");
        }
        let chain = self.chains.entry(reference.chain).or_default();
        let Drafted { issuer, objection } = issuance::drafted(&intent, &chain.issuers, header);
        if let Some(what) = objection {
            self.broken(name, what);
        }
        match self.early.remove(&key(&reference)) {
            Some((hash, _)) if hash == reference.hash => {}
            Some((_, outcome)) => self.broken(&outcome, "the intent that it names has another hash"),
            None => {
                let chain = self.chains.entry(reference.chain).or_default();
                chain.open.insert(reference.place, Open { hash: reference.hash, intent, issuer });
            }
        }
    }

    /// Invariants 2 and one outcome per intent. Returns the intent if it was read before.
    async fn closed(
        &mut self,
        name: &str,
        intent: RowRef,
        outcome: RowRef,
        issued: bool,
        database: &mut Database,
    ) -> Result<Option<Open>, DatabaseError> {
        if issued && intent.chain != outcome.chain {
            self.broken(name, "a certificate was recorded by another chain than its intent");
        }
        let open = self.chains.get_mut(&intent.chain).and_then(|chain| chain.open.remove(&intent.place));
        if let Some(open) = open {
            if open.hash != intent.hash {
                self.broken(name, "the intent that it names has another hash");
            }
            return Ok(Some(open));
        }
        if key(&intent) > key(&outcome) {
            if intent.chain == outcome.chain {
                self.broken(name, "it stands before the intent that it names");
            } else if self.early.insert(key(&intent), (intent.hash, name.to_owned())).is_some() {
                self.broken(name, "its intent has two outcomes");
            }
            return Ok(None);
        }
        let stands = database.row(intent.chain, intent.place).await?;
        let was_intent = stands.is_some_and(|row| row.kind == "intent" && row.hash == intent.hash);
        self.broken(name, if was_intent { "its intent has two outcomes" } else { "the intent that it names does not exist" });
        Ok(None)
    }

    /// A row must not claim that fewer intents are open than are: whoever searches for orphans begins where it says.
    fn oldest_open(&mut self, name: &str, header: &Header, reference: RowRef) {
        let chain = self.chains.entry(reference.chain).or_default();
        let Some((lowest, _)) = chain.open.first_key_value() else { return };
        if header.oldest_open.is_none_or(|claimed| claimed > *lowest) {
            self.broken(name, "it claims that an intent had its outcome which has none yet");
        }
    }

    async fn finish(mut self, database: &mut Database) -> Result<Report, DatabaseError> {
        for (head, is_last, name) in std::mem::take(&mut self.named) {
            let stands = database.row(head.chain, head.place).await?;
            match stands {
                None => self.broken(&name, format!("it names a row that is missing: {head}")),
                Some(row) if row.hash != head.hash => self.broken(&name, format!("it names a row that is different now: {head}")),
                Some(_) => {
                    let Some(chain) = self.chains.get_mut(&head.chain).filter(|_| is_last) else { continue };
                    chain.ended = true;
                    if chain.head.is_some_and(|(last, _)| last != head) {
                        self.broken(&name, format!("rows follow the end that it names: {head}"));
                    }
                }
            }
        }
        self.left_open();
        let early: Vec<String> = self.early.drain().map(|(_, (_, outcome))| outcome).collect();
        for outcome in early {
            self.broken(&outcome, "the intent that it names does not exist");
        }
        self.report.chains = self.chains.len() as u64;
        Ok(self.report)
    }

    /// Counts the intents without an outcome. In a chain that has ended none can be in flight, and none was found by the process
    /// that declared it ended: somebody left them out.
    fn left_open(&mut self) {
        let mut left = Vec::new();
        for (id, chain) in &self.chains {
            if chain.ended {
                left.extend(chain.open.iter().map(|(place, open)| RowRef { chain: *id, place: *place, hash: open.hash }));
            } else {
                self.report.open += chain.open.len() as u64;
            }
        }
        left.sort_by_key(key);
        for intent in left {
            self.broken(&intent.to_string(), "its chain has ended and it has no outcome");
        }
    }
}

/// The period that stands in a serial's first three octets.
fn leading_period(serial: &[u8]) -> Option<u64> {
    let [a, b, c] = serial.first_chunk::<3>()?;
    Some(u32::from_be_bytes([0, *a, *b, *c]).into())
}

fn place_of(row: &StoredRow) -> Option<(ChainId, Place)> {
    let chain = ChainId(row.chain.as_slice().try_into().ok()?);
    let period = crate::timestamp::Period::new(u32::try_from(row.period).ok()?)?;
    Some((chain, Place { period, seq: u64::try_from(row.seq).ok()? }))
}

fn differing_column(row: &StoredRow, header: &Header, event: &Event) -> Option<&'static str> {
    let projection = event.projection();
    // A later version's kind may project what this one does not know.
    let known = !matches!(event, Event::Other { .. });
    [
        ("period", row.period == i64::from(header.place.period.yyyymm())),
        ("chain", row.chain == header.chain.0),
        ("seq", u64::try_from(row.seq) == Ok(header.place.seq)),
        ("kind", row.kind == event.kind()),
        ("time", row.time == header.time.micros()),
        ("serial", !known || row.serial.as_deref() == projection.serial),
        ("identity", !known || row.identity.as_deref() == projection.identity),
        ("issuer", !known || row.issuer.as_deref() == projection.issuer),
        ("profile", !known || row.profile.as_deref() == projection.profile),
    ]
    .into_iter()
    .find_map(|(column, same)| (!same).then_some(column))
}
