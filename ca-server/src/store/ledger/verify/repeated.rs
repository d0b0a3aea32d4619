//! Rows that say that a certificate was given out again: it must have been issued before, to the
//! identity that asked again. Certificates go out again within a minute or so, therefore the newest
//! of the chain that is being read are kept; the others are looked up in the end.

use std::collections::{BTreeMap, HashMap};

use super::super::database::Database;
use super::super::event::{ChainId, Event, Hash, Place, RowRef};
use super::super::query::{Entry, ReadError, outcome_in_own_chain};

/// Certificates of one chain that are kept: more than a daemon gives out again.
const RECENT: usize = 65_536;

/// Intents that are looked up in the end: those of chains that their daemon has lost, and of rows
/// that were not read.
const ELSEWHERE: usize = 100_000;

const NOT_ISSUED: &str = "the intent that it names has not become a certificate";
const OTHER_IDENTITY: &str = "the certificate that was given out again is another identity's";

/// What may be given out again, and what was and is still to be looked up.
#[derive(Default)]
pub(super) struct Certificates {
    chain: Option<ChainId>,
    /// By their intents: hash and identity.
    recent: BTreeMap<Place, (Hash, Option<String>)>,
    /// The first row of each identity that names the intent.
    elsewhere: HashMap<(RowRef, String), RowRef>,
}

impl Certificates {
    /// An intent has become a certificate, in its own chain.
    pub(super) fn issued(&mut self, intent: RowRef, identity: Option<String>) {
        if self.chain.replace(intent.chain) != Some(intent.chain) {
            self.recent.clear();
        }
        self.recent.insert(intent.place, (intent.hash, identity));
        if self.recent.len() > RECENT {
            self.recent.pop_first();
        }
    }

    /// What is still to be looked up: intent, identity, and the row that names them.
    pub(super) fn take_elsewhere(&mut self) -> Vec<(RowRef, String, RowRef)> {
        std::mem::take(&mut self.elsewhere)
            .into_iter()
            .map(|((intent, identity), row)| (intent, identity, row))
            .collect()
    }

    /// What is wrong with a row that gives the certificate of `intent` to `identity` again, as far
    /// as that can be said now.
    pub(super) fn repeated(
        &mut self,
        row: RowRef,
        intent: RowRef,
        identity: String,
    ) -> Result<(), &'static str> {
        let kept = if self.chain == Some(intent.chain) && row.chain == intent.chain {
            self.recent.get(&intent.place)
        } else {
            None
        };
        match kept {
            Some((hash, _)) if *hash != intent.hash => {
                Err("the intent that it names has another hash")
            }
            Some((_, issued_to)) if issued_to.as_ref() != Some(&identity) => Err(OTHER_IDENTITY),
            Some(_) => Ok(()),
            None if self.elsewhere.len() < ELSEWHERE => {
                self.elsewhere.entry((intent, identity)).or_insert(row);
                Ok(())
            }
            None => Err(
                "so many rows give out certificates that were not issued just before that they cannot be looked up",
            ),
        }
    }
}

/// What is wrong with a row that was to be looked up, if anything is.
pub(super) async fn looked_up(
    row: RowRef,
    intent: RowRef,
    identity: &str,
    database: &mut Database,
) -> Result<Option<&'static str>, ReadError> {
    let stored = database.row(intent.chain, intent.place).await?;
    let Some(stored) = stored.filter(|stored| stored.hash == intent.hash) else {
        return Ok(Some("the intent that it names does not exist"));
    };
    let Event::Intent(drafted) = Entry::try_from(&stored)?.event else {
        return Ok(Some("what it names is no intent"));
    };
    if drafted.identity.as_deref() != Some(identity) {
        return Ok(Some(OTHER_IDENTITY));
    }
    let issued = outcome_in_own_chain(database, intent)
        .await?
        .filter(|outcome| matches!(outcome.event, Event::Issued { .. }));
    let Some(issued) = issued.map(|outcome| outcome.reference()) else {
        return Ok(Some(NOT_ISSUED));
    };
    let later = issued.chain == row.chain && issued.place > row.place;
    Ok(later.then_some("it stands before the certificate that it gives out again"))
}
