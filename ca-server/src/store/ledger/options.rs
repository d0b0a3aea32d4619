//! What the ledger is started with, and what it says of itself: facts, the observer's hook, health,
//! and why it did not start.

use std::sync::Arc;
use std::time::Duration;

use super::body::fits;
use super::event::{Event, Hash, IssuerFacts};
use super::location::Location;

/// How a ledger is opened.
#[derive(Clone)]
pub struct LedgerOptions {
    /// Where it is kept.
    pub location: Location,
    /// The machine's name.
    pub host: String,
    /// The program's version.
    pub version: String,
    /// What the first rows say about keys and certificates.
    pub facts: Vec<StartFact>,
    /// SHA-256 of the configuration.
    pub config_digest: Hash,
    /// Go on although the clock is behind the ledger; files a `clock` row.
    pub accept_clock: bool,
    /// How far the clock may be from the database's, where that has one.
    pub clock_tolerance: Duration,
    /// How many intents may be open at once.
    pub capacity: usize,
    /// Who watches.
    pub observer: Arc<dyn LedgerObserver>,
}

impl LedgerOptions {
    /// What was recorded since the start is what a chain that begins later must say first. Issuers
    /// are added and never left out: a certificate drafted for a former one may still be recorded
    /// in the new chain.
    pub(super) fn keep(&mut self, event: &Event) {
        let fact = match event {
            Event::Reload { config } => {
                self.config_digest = *config;
                return;
            }
            Event::Ceremony { transcript } => StartFact::Ceremony {
                digest: *transcript,
            },
            Event::Issuer(facts) => StartFact::Issuer {
                id: facts.id.clone(),
                chain: facts.chain.clone(),
                roots: facts.roots.clone(),
                key_uri: facts.key_uri.clone(),
            },
            _ => return,
        };
        if !self.facts.contains(&fact) {
            self.facts.push(fact);
        }
    }
}

/// A fact that the ledger keeps to be self-contained.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StartFact {
    /// The ceremony that made the keys.
    Ceremony {
        /// SHA-256 of its transcript.
        digest: Hash,
    },
    /// An issuer that may sign.
    Issuer {
        /// Its id in the configuration.
        id: String,
        /// Its certificate and those above it, DER, issuing certificate first, no root.
        chain: Vec<Vec<u8>>,
        /// The roots, DER.
        roots: Vec<Vec<u8>>,
        /// The key's URI without secrets.
        key_uri: String,
    },
}

impl StartFact {
    /// Whether it fits into a row, which has 65,535 octets at most. An issuer with very many
    /// certificates does not.
    pub fn fits(&self) -> bool {
        fits(&Event::from(self.clone()))
    }
}

impl From<StartFact> for Event {
    fn from(fact: StartFact) -> Self {
        match fact {
            StartFact::Ceremony { digest } => Self::Ceremony { transcript: digest },
            StartFact::Issuer {
                id,
                chain,
                roots,
                key_uri,
            } => Self::Issuer(IssuerFacts {
                id,
                chain,
                roots,
                key_uri,
            }),
        }
    }
}

/// What the ledger tells of itself while it works; wired to metrics by the daemon. Called from the
/// writer: must not block.
pub trait LedgerObserver: Send + Sync + 'static {
    /// A batch of so many rows became durable in that time.
    fn committed(&self, rows: usize, time: Duration);
    /// Calls now waiting for the next batch.
    fn queue_depth(&self, calls: usize);
    /// So many refusals found the queue full and have no row of their own.
    fn dropped(&self, refusals: u64);
    /// The ledger began or ceased to record.
    fn up(&self, up: bool);
    /// A search for dead processes took so long, beside the writing connection.
    fn searched(&self, time: Duration);
    /// The writing connection was kept from calls for so long, by what is done beside them.
    fn kept_up(&self, time: Duration);
}

/// Nobody watches.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unobserved;

impl LedgerObserver for Unobserved {
    fn committed(&self, _: usize, _: Duration) {}
    fn queue_depth(&self, _: usize) {}
    fn dropped(&self, _: u64) {}
    fn up(&self, _: bool) {}
    fn searched(&self, _: Duration) {}
    fn kept_up(&self, _: Duration) {}
}

/// Why the ledger did not start. Each says it in one sentence.
#[derive(Debug, thiserror::Error)]
pub enum LedgerStartError {
    /// Another process holds the lock.
    #[error("the ledger {0} is in use by another process")]
    Locked(String),
    /// The file or its directory cannot be opened, read or written, or the server does not let this
    /// login in.
    #[error("the ledger {ledger} cannot be opened: {cause}")]
    Unavailable {
        /// The database file, or the server's URL.
        ledger: String,
        /// What the system said.
        cause: String,
    },
    /// It is no ledger that this program can continue.
    #[error("the ledger {ledger} cannot be continued: {cause}")]
    Corrupt {
        /// The database file, or the server's URL.
        ledger: String,
        /// What is wrong.
        cause: String,
    },
}

/// Whether the ledger records, for readiness.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LedgerHealth {
    /// Intents are being accepted.
    pub ready: bool,
    /// One sentence.
    pub detail: String,
}
