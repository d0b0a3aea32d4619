//! The beginning and the end of a pass: what it takes over from where an earlier one stood, what it
//! asks the database when all rows were read, and where it stands itself.

use super::super::body::{decode, link};
use super::super::database::Database;
use super::super::event::{ChainId, Event, Hash, Place, RowRef};
use super::super::issuance::{Drafted, drafted};
use super::super::query::{Entry, ReadError};
use super::super::schema::DatabaseError;
use super::findings::Finding;
use super::pass::{Chain, Open, Pass};
use super::reading::Reading;
use super::repeated::looked_up;
use super::standing::{ChainStanding, NamedHead, Standing};

impl Pass {
    /// A pass over what comes after `standing`, whose rows must still be there.
    pub(super) async fn after(
        standing: &Standing,
        reading: &Reading,
        database: &mut Database,
    ) -> Result<Self, ReadError> {
        let mut pass = Self::default();
        for (id, known) in &standing.chains {
            let stands = database.row(*id, known.head.place).await?;
            match stands {
                None => pass.broken(
                    known.head,
                    "the checkpoint has it as the last row of its chain, and it is missing",
                ),
                Some(row) if row.hash != known.head.hash => pass.broken(
                    known.head,
                    "it is not the row that the checkpoint has there",
                ),
                Some(_) => {}
            }
            let mut chain = Chain {
                head: Some((known.head, known.time)),
                ended: known.ended,
                declared: known.declared,
                ..Chain::default()
            };
            for (place, hash) in &known.open {
                let intent = RowRef {
                    chain: *id,
                    place: *place,
                    hash: *hash,
                };
                match read_again(intent, reading, database).await? {
                    Some((identity, drafted)) => {
                        chain.open.insert(
                            *place,
                            Open {
                                hash: *hash,
                                identity,
                                drafted: Some(Box::new(drafted)),
                            },
                        );
                    }
                    None => {
                        pass.broken(intent, "it is not the intent that the checkpoint has there")
                    }
                }
            }
            pass.chains.insert(*id, chain);
        }
        pass.early = standing
            .early
            .iter()
            .map(|(intent, outcome)| ((intent.chain, intent.place), (intent.hash, *outcome)))
            .collect();
        for named in &standing.named {
            pass.named.push(*named);
            if named.is_last {
                pass.chains.entry(named.head.chain).or_default().declared = true;
            }
        }
        for (chain, outcome) in &standing.undeclared {
            pass.undeclared
                .entry((outcome.chain, *chain))
                .or_default()
                .push(*outcome);
        }
        Ok(pass)
    }

    /// Settles what could not be judged before all rows were read. `resumed`: earlier rows of the
    /// same periods were not read.
    pub(super) async fn finish(
        &mut self,
        resumed: bool,
        database: &mut Database,
    ) -> Result<(), DatabaseError> {
        for NamedHead { head, is_last, by } in std::mem::take(&mut self.named) {
            match database.row(head.chain, head.place).await? {
                None => self.broken(by, format!("it names a row that is missing: {head}")),
                Some(row) if row.hash != head.hash => {
                    self.broken(by, format!("it names a row that is different now: {head}"))
                }
                Some(_) if is_last => {
                    let chain = self.chains.entry(head.chain).or_default();
                    chain.ended = true;
                    if chain.head.is_some_and(|(last, _)| last != head) {
                        self.broken(by, format!("rows follow the end that it names: {head}"));
                    }
                }
                Some(_) => {}
            }
        }
        for (outcome, intent) in std::mem::take(&mut self.unexplained) {
            let stands = database.row(intent.chain, intent.place).await?;
            let what = match stands.filter(|row| row.kind == "intent" && row.hash == intent.hash) {
                None => "the intent that it names does not exist",
                Some(row) if decode(&row.body).is_err() => {
                    "the intent that it names cannot be read"
                }
                Some(_) => "its intent has two outcomes",
            };
            self.broken(outcome, what);
        }
        for (_, (_, outcome)) in std::mem::take(&mut self.early) {
            self.broken(outcome, "the intent that it names does not exist");
        }
        for outcome in std::mem::take(&mut self.undeclared).into_values().flatten() {
            self.broken(
                outcome,
                "its intent is another chain's, which its own chain did not declare ended after it",
            );
        }
        if resumed {
            self.serials_of_earlier_rows(database).await?;
        }
        self.left_open();
        Ok(())
    }

    /// Settles what could not be said of repeats by the rows just before them. The rows that they
    /// name stand in the snapshot, whether they were read or not.
    pub(super) async fn look_up_repeats(
        &mut self,
        database: &mut Database,
    ) -> Result<(), DatabaseError> {
        for (intent, identity, row) in self.certificates.take_elsewhere() {
            match looked_up(row, intent, &identity, database).await {
                Ok(None) => {}
                Ok(Some(what)) => self.broken(row, what),
                Err(ReadError::Database(error)) => return Err(error),
                Err(error) => {
                    self.broken(row, format!("what it names cannot be looked up: {error}"))
                }
            }
        }
        Ok(())
    }

    /// Serials of rows that were just read may stand in earlier ones, which the database alone
    /// remembers.
    async fn serials_of_earlier_rows(
        &mut self,
        database: &mut Database,
    ) -> Result<(), DatabaseError> {
        for period in std::mem::take(&mut self.serials.periods) {
            for serial in database.repeated_serials(period).await? {
                if self.serials.repeated.contains(&serial) {
                    continue;
                }
                let rows = database.intents_of_serial(period, &serial).await?;
                let latest = rows
                    .iter()
                    .max_by_key(|row| (row.time, row.chain.clone(), row.seq));
                if let Some(row) = latest {
                    self.findings
                        .add(Finding::new(row, "its serial was used before"));
                }
            }
        }
        Ok(())
    }

    /// Counts the intents without an outcome. In a chain that has ended none can be in flight, and
    /// none was found by the process that declared it ended: somebody left them out.
    fn left_open(&mut self) {
        let mut left = Vec::new();
        for (id, chain) in &self.chains {
            if chain.ended {
                left.extend(chain.open.iter().map(|(place, open)| RowRef {
                    chain: *id,
                    place: *place,
                    hash: open.hash,
                }));
            } else {
                self.report.open += chain.open.len() as u64;
            }
        }
        for intent in left {
            self.broken(intent, "its chain has ended and it has no outcome");
        }
    }

    /// Where it stands after so many rows more than `before`.
    pub(super) fn standing(
        &self,
        before: &Standing,
        signatures: bool,
        reading: &Reading,
    ) -> Standing {
        let chain = |(id, chain): (&ChainId, &Chain)| {
            let (head, time) = chain.head?;
            let issuers = reading.issuers(id);
            let issuers = issuers
                .all()
                .map(|(id, named)| (id.to_owned(), named.certificate().to_owned()))
                .collect();
            let open = chain
                .open
                .iter()
                .map(|(place, open)| (*place, open.hash))
                .collect();
            Some((
                *id,
                ChainStanding {
                    head,
                    time,
                    ended: chain.ended,
                    declared: chain.declared,
                    issuers,
                    open,
                },
            ))
        };
        let early = self.early.iter().map(|((chain, place), (hash, outcome))| {
            let intent = RowRef {
                chain: *chain,
                place: *place,
                hash: *hash,
            };
            (intent, *outcome)
        });
        Standing {
            rows: before.rows + self.report.rows,
            since: before.since,
            roots: before.roots,
            signatures_skipped: before.signatures_skipped || !signatures,
            chains: self.chains.iter().filter_map(chain).collect(),
            early: early.collect(),
            named: self.named.clone(),
            undeclared: self
                .undeclared
                .iter()
                .flat_map(|((_, chain), outcomes)| {
                    outcomes.iter().map(|outcome| (*chain, *outcome))
                })
                .collect(),
        }
    }
}

/// An open intent of an earlier run, if its row is still the one that was judged then.
async fn read_again(
    intent: RowRef,
    reading: &Reading,
    database: &mut Database,
) -> Result<Option<(Option<String>, Drafted)>, ReadError> {
    let Some(seq) = intent.place.seq.checked_sub(1) else {
        return Ok(None);
    };
    let before = database
        .row(
            intent.chain,
            Place {
                seq,
                ..intent.place
            },
        )
        .await?;
    let before = before.and_then(|row| Hash::try_from(row.hash.as_slice()).ok());
    let (Some(before), Some(row)) = (before, database.row(intent.chain, intent.place).await?)
    else {
        return Ok(None);
    };
    if row.hash != intent.hash || link(&before, &row.body) != intent.hash {
        return Ok(None);
    }
    let Ok(Entry { header, event, .. }) = Entry::try_from(&row) else {
        return Ok(None);
    };
    let Event::Intent(event) = event else {
        return Ok(None);
    };
    // What is wrong with it was found when it was read first.
    Ok(Some((
        event.identity.clone(),
        drafted(event, &reading.issuers(&intent.chain), &header).0,
    )))
}
