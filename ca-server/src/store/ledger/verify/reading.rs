//! Reading pages of rows for the workers. Whatever a worker needs of earlier rows, which is little,
//! is kept here: for each chain its last hash and the issuers that it has named.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::super::body::{decode, kind_of};
use super::super::cursor::Cursor;
use super::super::database::Database;
use super::super::event::{ChainId, Event, Hash, StoredRow};
use super::super::issuance::{Issuers, Named, certificate_of};
use super::super::schema::DatabaseError;
use super::judge::Stretch;
use super::named::NamedIssuer;
use super::standing::Standing;
use crate::digest::sha256;

/// Issuers that are told in the end; a ledger of a lifetime has fewer.
const NAMED: usize = 1000;

/// The rows that are still to be judged.
pub(super) struct Reading {
    cursor: Cursor,
    chains: HashMap<ChainId, Known>,
    certificates: HashMap<Vec<u8>, Arc<Named>>,
    named: BTreeSet<NamedIssuer>,
}

#[derive(Clone, Default)]
struct Known {
    last: Option<Hash>,
    issuers: Arc<Issuers>,
}

impl Reading {
    /// Of what comes after `standing`. The snapshot must have begun.
    pub(super) async fn after(
        standing: &Standing,
        database: &mut Database,
    ) -> Result<Self, DatabaseError> {
        let heads = standing
            .chains
            .iter()
            .map(|(id, chain)| (*id, chain.head.place))
            .collect();
        let cursor = Cursor::after(database, heads).await?;
        let mut reading = Self {
            cursor,
            chains: HashMap::new(),
            certificates: HashMap::new(),
            named: BTreeSet::new(),
        };
        for (id, chain) in &standing.chains {
            let mut issuers = Issuers::default();
            for (name, certificate) in &chain.issuers {
                if let Some(named) = reading.named(certificate) {
                    issuers.add(name, &named);
                }
            }
            reading.chains.insert(
                *id,
                Known {
                    last: Some(chain.head.hash),
                    issuers: Arc::new(issuers),
                },
            );
        }
        Ok(reading)
    }

    /// The issuers that a chain has named so far.
    pub(super) fn issuers(&self, chain: &ChainId) -> Arc<Issuers> {
        self.chains
            .get(chain)
            .map(|known| known.issuers.clone())
            .unwrap_or_default()
    }

    /// The issuers that were named in what was read.
    pub(super) fn take_named(&mut self) -> Vec<NamedIssuer> {
        std::mem::take(&mut self.named).into_iter().collect()
    }

    /// The next page; none at the end.
    pub(super) async fn next(
        &mut self,
        database: &mut Database,
    ) -> Result<Option<Vec<Stretch>>, DatabaseError> {
        let rows = self.cursor.next(database).await?;
        Ok((!rows.is_empty()).then(|| self.stretches(rows)))
    }

    fn stretches(&mut self, rows: Vec<StoredRow>) -> Vec<Stretch> {
        let mut stretches: Vec<Stretch> = Vec::new();
        let mut whole = true;
        for row in rows {
            let place = row.place();
            if whole
                || stretches
                    .last()
                    .and_then(|stretch| stretch.rows.last())
                    .is_none_or(|last| last.chain != row.chain)
            {
                let known = place
                    .and_then(|(chain, _)| self.chains.get(&chain).cloned())
                    .unwrap_or_default();
                stretches.push(Stretch {
                    issuers: known.issuers,
                    before: known.last,
                    rows: Vec::new(),
                });
            }
            // By the body, which is the truth: the column may be wrong.
            whole = kind_of(&row.body) == Some("issuer");
            if let (Some((chain, _)), Ok(hash)) = (place, Hash::try_from(row.hash.as_slice())) {
                let issuer = if whole { self.issuer(&row) } else { None };
                let known = self.chains.entry(chain).or_default();
                known.last = Some(hash);
                if let Some((id, named)) = issuer {
                    Arc::make_mut(&mut known.issuers).add(&id, &named);
                }
            }
            stretches
                .last_mut()
                .expect("the first row begins one")
                .rows
                .push(row);
        }
        stretches
    }

    /// The issuer that a row names. One that cannot be read is a finding of whoever judges the row.
    fn issuer(&mut self, row: &StoredRow) -> Option<(String, Arc<Named>)> {
        let Ok((_, Event::Issuer(facts))) = decode(&row.body) else {
            return None;
        };
        let certificate = certificate_of(&facts).ok()?;
        if self.named.len() < NAMED {
            let roots = facts.roots.iter().map(|root| sha256(root)).collect();
            self.named.insert(NamedIssuer {
                id: facts.id.clone(),
                certificate: sha256(certificate),
                roots,
            });
        }
        let named = self.named(certificate)?;
        Some((facts.id, named))
    }

    /// Chains mostly name the same issuers; each certificate is read once.
    fn named(&mut self, certificate: &[u8]) -> Option<Arc<Named>> {
        if let Some(known) = self.certificates.get(certificate) {
            return Some(known.clone());
        }
        let named = Named::read(certificate).ok()?;
        self.certificates
            .insert(certificate.to_owned(), named.clone());
        Some(named)
    }
}
