//! How a chain begins: with one batch that names what was found, repeats the facts, files the orphans of dead chains and declares
//! them ended. All of it is durable or nothing, so a process that dies here leaves nothing half filed.

use super::chain::{Chain, OpenIntents};
use super::event::{ChainId, Event, Why};
use super::options::LedgerOptions;
use super::sqlite::Database;
use super::status::{State, is_behind};
use super::survey::{SurveyError, survey};
use super::writer::Writer;
use crate::timestamp::Timestamp;

/// A chain that has begun, or why it may not yet.
pub(super) enum Begun {
    Chain(Chain),
    /// The clock is behind this newest row.
    ClockBehind(Timestamp),
}

/// Begins a chain. Must be called by the holder of the lock.
pub(super) async fn begin(database: &mut Database, options: &LedgerOptions, now: Timestamp) -> Result<Begun, SurveyError> {
    let legacy = survey(database).await?;
    let overtaken = legacy.newest.filter(|newest| is_behind(now, *newest));
    if let (Some(newest), false) = (overtaken, options.accept_clock) {
        return Ok(Begun::ClockBehind(newest));
    }
    let mut events = vec![(
        Event::Start { host: options.host.clone(), version: options.version.clone(), config: options.config_digest, heads: legacy.unnamed },
        None,
    )];
    events.extend(overtaken.map(|recorded| (Event::Clock { recorded }, None)));
    events.extend(options.facts.iter().cloned().map(|fact| (Event::from(fact), None)));
    for chain in legacy.dead {
        let unknown = |intent| Event::Unknown { intent, why: Why::process_died() };
        events.extend(chain.orphans.into_iter().map(|(intent, request)| (unknown(intent), request)));
        events.push((Event::ChainEnded { head: chain.head }, None));
    }
    let not_before = if overtaken.is_some() { now } else { legacy.newest.unwrap_or(now) };
    let mut chain = Chain::new(ChainId(random()), now, not_before);
    let mut rows = Vec::with_capacity(events.len());
    for (event, request) in events {
        chain.append(event, request, now, &OpenIntents::new(), &mut rows);
    }
    database.insert(&rows).await?;
    Ok(Begun::Chain(chain))
}

fn random() -> [u8; 16] {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).expect("the system gives random bytes");
    bytes
}

impl Writer {
    /// Begins the chain that a clock behind the ledger, or a database that did not answer, has kept from beginning.
    pub(super) async fn begin_when_due(&mut self) {
        let now = self.clock.now();
        if let State::ClockBehind(newest) = &*self.status.state()
            && is_behind(now, *newest)
            && !self.options.accept_clock
        {
            return;
        }
        let Some(database) = &mut self.database else { return };
        match begin(database, &self.options, now).await {
            Ok(Begun::Chain(chain)) => {
                self.status.chain_stands_at(&chain);
                self.chain = Some(chain);
                self.go_up();
            }
            Ok(Begun::ClockBehind(newest)) => self.status.set(State::ClockBehind(newest)),
            Err(error) => {
                self.disconnect().await;
                self.go_down(&error);
            }
        }
    }
}
