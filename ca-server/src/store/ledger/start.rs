//! How a ledger starts, in two steps. First it is looked at and its lock is taken, which writes no
//! row; then a chain begins. What lies between, such as devices that do not open, leaves nothing in
//! the ledger however often it fails.

use std::fmt::Display;
use std::sync::Arc;

use tokio::sync::{Semaphore, mpsc};

use super::begin::{Begun, begin};
use super::chain::OpenIntents;
use super::database::{self, Database};
use super::due::Upkeep;
use super::location::Location;
use super::lock::{self, WriterLock};
use super::options::{LedgerOptions, LedgerStartError, StartFact};
use super::refusals::Refusals;
use super::sqlite::whole::broken;
use super::status::{State, Status};
use super::survey::{Free, SurveyError};
use super::writer::{LOCK_IS_GONE, Writer};
use super::{Ledger, TOO_LONG};
use crate::clock::Clock;

/// A ledger that is there, or cannot be reached at present, and in which nothing was written yet.
pub struct Prepared {
    options: LedgerOptions,
    clock: Clock,
    lock: Option<WriterLock>,
    /// An open file; a server's session would end while it is silent.
    database: Option<Database>,
}

impl Ledger {
    /// Takes the lock and brings a file's schema up to date, or looks whether a server's is. A
    /// server that cannot be reached at present is no error.
    pub async fn prepare(
        mut options: LedgerOptions,
        clock: Clock,
    ) -> Result<Prepared, LedgerStartError> {
        if !options.facts.iter().all(StartFact::fits) {
            return Err(LedgerStartError::Corrupt {
                ledger: options.location.to_string(),
                cause: TOO_LONG.into(),
            });
        }
        let mut lock = None;
        if let Location::Sqlite(path) = &mut options.location {
            let ledger = path.display().to_string();
            let unavailable = |error: std::io::Error| LedgerStartError::Unavailable {
                ledger: ledger.clone(),
                cause: error.to_string(),
            };
            // The lock and the database go by the same spelling, also when a link on the way to
            // them is changed later.
            *path = lock::resolve(path).map_err(unavailable)?;
            lock = WriterLock::take(path).map_err(unavailable)?;
            if lock.is_none() {
                return Err(LedgerStartError::Locked(ledger));
            }
            // Before anything of a log that is not its own can be copied into it.
            if let Some(cause) = broken(path).await {
                return Err(LedgerStartError::Corrupt { ledger, cause });
            }
        }
        let mut prepared = Prepared {
            options,
            clock,
            lock,
            database: None,
        };
        let looked = prepared.look().await;
        if let Err(SurveyError::Database(error)) = &looked
            && database::passes(&prepared.options.location, error)
        {
            return Ok(prepared);
        }
        looked.map_err(|error| prepared.refused(error))?;
        Ok(prepared)
    }

    /// Both steps at once.
    pub async fn start(options: LedgerOptions, clock: Clock) -> Result<Self, LedgerStartError> {
        Self::prepare(options, clock).await?.begin().await
    }
}

impl Prepared {
    async fn look(&mut self) -> Result<(), SurveyError> {
        let mut database = Database::writer(&self.options.location).await?;
        database.prepare_schema().await?;
        database.check_schema().await?;
        match database {
            Database::Sqlite(_) => self.database = Some(database),
            Database::Postgres(_) => database.close().await?,
        }
        Ok(())
    }

    fn refused(&self, error: SurveyError) -> LedgerStartError {
        let ledger = self.options.location.to_string();
        match error {
            SurveyError::Corrupt(cause) => LedgerStartError::Corrupt { ledger, cause },
            SurveyError::Database(error) => LedgerStartError::Unavailable {
                ledger,
                cause: error.to_string(),
            },
        }
    }

    /// Files what dead processes left open, and begins a chain. With a clock that is wrong, or a
    /// server that cannot be reached at present, the ledger starts too, but refuses until that has
    /// passed.
    pub async fn begin(mut self) -> Result<Ledger, LedgerStartError> {
        let status = Arc::new(Status::new(self.options.clock_tolerance));
        let mut chain = None;
        match self.first_chain(&status).await {
            Ok(Begun::Chain(begun)) => {
                status.chain_stands_at(&begun);
                status.set(State::Up);
                self.options.accept_clock = false;
                chain = Some(begun);
            }
            Ok(Begun::ClockBehind(newest)) => {
                tracing::error!(%newest, "the clock is behind the ledger; nothing is issued until it has caught up or is accepted");
                status.set(State::ClockBehind(newest));
            }
            Ok(Begun::ClockApart) => {
                let cause = status
                    .clock_apart(self.clock.now())
                    .map(|refusal| refusal.detail().to_owned());
                tracing::error!(cause, "nothing is issued until the clocks agree");
                status.set(State::ClockApart);
            }
            Err(SurveyError::Database(error))
                if database::passes(&self.options.location, &error) =>
            {
                down(&status, &error)
            }
            Err(error) => return Err(self.refused(error)),
        }
        let Self {
            options,
            clock,
            lock,
            database,
        } = self;
        options.observer.up(chain.is_some());
        let (refusals, refused) = Refusals::new();
        let (queue, work) = mpsc::unbounded_channel();
        let ledger = Ledger {
            queue,
            permits: Arc::new(Semaphore::new(options.capacity)),
            status: status.clone(),
            refusals: Arc::new(refusals),
            observer: options.observer.clone(),
            clock: clock.clone(),
        };
        let writer = Writer {
            options,
            clock,
            status,
            refusals: ledger.refusals.clone(),
            work,
            refused,
            more_refused: false,
            sessions: database
                .as_ref()
                .and_then(Database::session)
                .into_iter()
                .collect(),
            upkeep: Upkeep::just_connected(),
            database,
            chain,
            open: OpenIntents::new(),
            retained: Vec::new(),
            unsettled: None,
            lock,
        };
        tokio::spawn(writer.run());
        Ok(ledger)
    }

    async fn first_chain(&mut self, status: &Status) -> Result<Begun, SurveyError> {
        let mut database = match self.database.take() {
            Some(database) => database,
            None => Database::writer(&self.options.location).await?,
        };
        // A lock file that was removed while the devices were opened keeps nobody out: then a
        // living process would be taken for dead.
        if self.lock.as_ref().is_some_and(|lock| !lock.holds()) {
            return Err(SurveyError::Database(
                std::io::Error::other(LOCK_IS_GONE).into(),
            ));
        }
        let begun = begin(
            &mut database,
            &self.options,
            status,
            &self.clock,
            Free::IsDead,
        )
        .await;
        self.database = Some(database);
        begun
    }
}

impl std::fmt::Debug for Prepared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Prepared({})", self.options.location)
    }
}

fn down(status: &Status, cause: &dyn Display) {
    tracing::error!(%cause, "the ledger cannot be reached; nothing is issued until it can");
    status.set(State::Down(cause.to_string()));
}
