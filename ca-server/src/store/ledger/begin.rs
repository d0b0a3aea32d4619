//! How a chain begins: with one batch that names what was found, repeats the facts, files the
//! orphans of dead chains and declares them ended. All of it is durable or nothing, so a process
//! that dies here leaves nothing half filed.

use super::chain::{Chain, OpenIntents};
use super::database::Database;
use super::event::{ChainId, Event};
use super::lock::Lock;
use super::options::LedgerOptions;
use super::schema::DatabaseError;
use super::status::{State, Status, is_behind};
use super::survey::{DeadChain, Free, SurveyError, survey};
use super::writer::{LOCK_IS_GONE, Writer};
use crate::clock::Clock;
use crate::timestamp::Timestamp;

/// Heads that a start names, the oldest chains' first: 66 octets each, so that the row fits.
const NAMED: usize = 500;

/// A chain that has begun, or why it may not yet.
pub(super) enum Begun {
    Chain(Chain),
    /// The clock is behind this newest row.
    ClockBehind(Timestamp),
    /// The clock is not the database's.
    ClockApart,
}

/// Begins a chain: takes its lock, and everything that dead chains left. `free` says what a chain
/// is whose lock is free.
pub(super) async fn begin(
    database: &mut Database,
    options: &LedgerOptions,
    status: &Status,
    clock: &Clock,
    free: Free,
) -> Result<Begun, SurveyError> {
    database.check_schema().await?;
    if database.session().is_some() {
        status.partitioned_until(database.last_partition().await?);
    }
    status.clock_is(database.time().await?);
    let now = clock.now();
    if status.clock_apart(now).is_some() {
        return Ok(Begun::ClockApart);
    }
    let legacy = survey(database, free).await?;
    let overtaken = legacy.newest.filter(|newest| is_behind(now, *newest));
    if let (Some(newest), false) = (overtaken, options.accept_clock) {
        database.release_claims().await?;
        return Ok(Begun::ClockBehind(newest));
    }
    let id = ChainId(random());
    if database.lock_own(id, &[]).await? != Lock::Held {
        return Err(DatabaseError::Protocol("the lock of a new chain is taken".into()).into());
    }
    let mut heads = legacy.unnamed;
    // What one row cannot hold the next start names.
    heads.truncate(NAMED);
    let mut events = vec![(
        Event::Start {
            host: options.host.clone(),
            version: options.version.clone(),
            config: options.config_digest,
            heads,
        },
        None,
    )];
    events.extend(overtaken.map(|recorded| (Event::Clock { recorded }, None)));
    events.extend(
        options
            .facts
            .iter()
            .cloned()
            .map(|fact| (Event::from(fact), None)),
    );
    events.extend(legacy.dead.into_iter().flat_map(DeadChain::last_words));
    let not_before = if overtaken.is_some() {
        now
    } else {
        legacy.newest.unwrap_or(now)
    };
    let mut chain = Chain::new(id, now, not_before);
    let mut rows = Vec::with_capacity(events.len());
    for (event, request) in events {
        chain.append(event, request, now, &OpenIntents::new(), &mut rows);
    }
    database.insert(&rows).await?;
    database.release_claims().await?;
    Ok(Begun::Chain(chain))
}

fn random() -> [u8; 16] {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).expect("the system gives random bytes");
    bytes
}

impl Writer {
    /// Begins the chain that a clock, or a database that did not answer, has kept from beginning.
    pub(super) async fn begin_when_due(&mut self) {
        if let State::ClockBehind(newest) = &*self.status.state()
            && is_behind(self.clock.now(), *newest)
            && !self.options.accept_clock
        {
            return;
        }
        if !self.keeps_others_out() {
            self.lose_database(&LOCK_IS_GONE).await;
        }
        let Some(database) = &mut self.database else {
            return;
        };
        // Where several processes write, those beside this one may have lost the database with it.
        let free = if database.session().is_some() {
            Free::MayComeBack
        } else {
            Free::IsDead
        };
        match begin(database, &self.options, &self.status, &self.clock, free).await {
            Ok(Begun::Chain(chain)) => {
                self.sessions = database.session().into_iter().collect();
                self.status.chain_stands_at(&chain);
                self.chain = Some(chain);
                // It was accepted for this one beginning.
                self.options.accept_clock = false;
                self.go_up();
            }
            Ok(Begun::ClockBehind(newest)) => self.status.set(State::ClockBehind(newest)),
            Ok(Begun::ClockApart) => self.clock_is_apart(),
            Err(error) => self.lose_database(&error).await,
        }
    }
}
