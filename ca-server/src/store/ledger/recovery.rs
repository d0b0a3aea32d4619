//! What the writer does when a commit fails: it learns from its chain's last row, on a new
//! connection, whether the batch is durable before anybody is answered, and then tries until the
//! database takes rows again. A chain whose last row is neither the last acknowledged one nor the
//! batch's was tampered with or restored from a copy: then nothing is issued ever again. A process
//! whose chain's lock another has taken was declared dead: it withholds what is open and begins a
//! new chain.

use std::fmt::Display;
use std::io;

use super::batch::{Batch, refuse_for_ever};
use super::chain::Chain;
use super::database::Database;
use super::due::Upkeep;
use super::event::{ChainId, Hash};
use super::location::Location;
use super::lock::{Lock, WriterLock};
use super::schema::DatabaseError;
use super::status::State;
use super::survey::SurveyError;
use super::writer::Writer;
use crate::refusal::{Reason, Refusal};

impl Writer {
    /// The commit of `batch` failed or was not answered. Whether the batch is durable all the same.
    pub(super) async fn recover(&mut self, batch: Batch, error: &DatabaseError) -> bool {
        tracing::warn!(%error, rows = batch.rows().len(), "a commit to the ledger failed");
        self.disconnect().await;
        let refusal = Refusal::new(
            Reason::LedgerDown,
            format_args!("the ledger cannot record: {error}"),
        );
        let expected = batch.last_hash();
        self.unsettled = Some(batch);
        match self.read_back(&refusal).await {
            Ok(()) => {
                let durable = self
                    .chain
                    .as_ref()
                    .and_then(|chain| chain.head())
                    .map(|head| head.hash)
                    == expected;
                if !durable {
                    self.go_down(error);
                }
                durable
            }
            Err(second) => {
                tracing::warn!(error = %second, "the ledger cannot be read back");
                if let Some(unsettled) = &mut self.unsettled {
                    unsettled.withhold(&refusal);
                }
                self.go_down(&second);
                false
            }
        }
    }

    /// Tries to be up again: reads back, then records what was kept, or finds out by a harmless
    /// write that rows would be taken.
    pub(super) async fn attempt(&mut self) {
        let down = Refusal::new(Reason::LedgerDown, "the ledger is down");
        self.disconnect().await;
        if let Err(error) = self.read_back(&down).await {
            return self.go_down(&error);
        }
        if matches!(*self.status.state(), State::WentBack(_)) {
            return;
        }
        if self.chain.is_none() {
            return self.begin_when_due().await;
        }
        let retained = std::mem::take(&mut self.retained);
        let works = if retained.is_empty() {
            self.probe().await
        } else {
            self.record(retained).await
        };
        if works {
            self.go_up();
        }
    }

    /// Opens a new connection, takes the chain's lock on it, and settles or fails the unsettled
    /// batch by what the chain's last row says.
    async fn read_back(&mut self, refusal: &Refusal) -> Result<(), SurveyError> {
        self.take_lock_again()?;
        let mut database = Database::writer_again(&self.options.location).await?;
        self.upkeep = Upkeep::just_connected();
        if let Some(chain) = self.chain.as_ref().map(Chain::id) {
            match database.lock_own(chain, &self.sessions).await {
                Ok(Lock::Held) => {
                    self.sessions = database.session().into_iter().collect();
                    self.settle_by(chain, &mut database, refusal).await?;
                }
                Ok(Lock::OwnFormer) => {
                    return Err(DatabaseError::from(io::Error::other(
                        "a former connection still holds the lock and is being ended",
                    ))
                    .into());
                }
                Ok(Lock::Lost) => self.was_declared_dead(refusal),
                Err(error) => {
                    // It may hold the lock and live on where nobody hears it.
                    self.sessions.extend(database.session());
                    return Err(error.into());
                }
            }
        }
        self.database = Some(database);
        Ok(())
    }

    /// Of a file whose lock keeps nobody out any more. Whoever took the ledger over meanwhile has
    /// declared this chain ended.
    fn take_lock_again(&mut self) -> Result<(), DatabaseError> {
        let Location::Sqlite(path) = &self.options.location else {
            return Ok(());
        };
        if !self.keeps_others_out() {
            let taken = WriterLock::take(path)?;
            let taken = taken
                .ok_or_else(|| io::Error::other("its lock file was removed, and another process has taken it over; stop one of them"))?;
            self.lock = Some(taken);
        }
        Ok(())
    }

    async fn settle_by(
        &mut self,
        chain: ChainId,
        database: &mut Database,
        refusal: &Refusal,
    ) -> Result<(), SurveyError> {
        let declared_dead = database.is_ended(chain).await?;
        let last = database
            .last_row(chain)
            .await?
            .and_then(|row| Hash::try_from(row.hash.as_slice()).ok());
        let acknowledged = self
            .chain
            .as_ref()
            .and_then(Chain::head)
            .map(|head| head.hash);
        let expected = self.unsettled.as_ref().and_then(Batch::last_hash);
        if expected.is_some() && last == expected && !declared_dead {
            // A row that can be read may still be on its way to a standby; a commit after it says
            // that it has arrived.
            database.probe().await?;
            if let Some(batch) = self.unsettled.take() {
                self.settle(batch);
            }
            return Ok(());
        }
        if declared_dead && (last == acknowledged || last == expected) {
            self.was_declared_dead(refusal);
            return Ok(());
        }
        self.retained.extend(
            self.unsettled
                .take()
                .map(|batch| batch.fail(refusal))
                .unwrap_or_default(),
        );
        if last != acknowledged {
            self.went_back(refusal);
        }
        Ok(())
    }

    /// Another process has closed, or will close, what is open here. Outcomes of the lost chain are
    /// refused where they would be recorded; a new chain begins at the next attempt.
    fn was_declared_dead(&mut self, refusal: &Refusal) {
        tracing::warn!(
            "another process took this one for dead: what was open is withheld, and a new chain begins"
        );
        self.retained.extend(
            self.unsettled
                .take()
                .map(|batch| batch.fail(refusal))
                .unwrap_or_default(),
        );
        self.open.clear();
        self.chain = None;
    }

    async fn probe(&mut self) -> bool {
        let Some(database) = &mut self.database else {
            return false;
        };
        match database.probe().await {
            Ok(()) => true,
            Err(error) => {
                self.lose_database(&error).await;
                false
            }
        }
    }

    /// The connection is of no use any more.
    pub(super) async fn lose_database(&mut self, cause: &(dyn Display + Sync)) {
        self.disconnect().await;
        self.go_down(cause);
    }

    /// Closes the connection before another is opened: nothing of it may be committed later.
    async fn disconnect(&mut self) {
        if let Some(database) = self.database.take() {
            let _ = database.close().await;
        }
    }

    fn go_down(&mut self, cause: &dyn Display) {
        match &*self.status.state() {
            State::WentBack(_) => return,
            State::Down(_) => {}
            _ => {
                tracing::error!(%cause, "the ledger is down");
                self.options.observer.up(false);
            }
        }
        self.status.set(State::Down(cause.to_string()));
    }

    /// The clock is too far from the database's: no row is written with a time that is not so.
    pub(super) fn clock_is_apart(&self) {
        if !matches!(*self.status.state(), State::ClockApart) {
            if let Some(refusal) = self.status.clock_apart(self.clock.now()) {
                tracing::error!(cause = refusal.detail(), "nothing is recorded");
            }
            self.options.observer.up(false);
        }
        self.status.set(State::ClockApart);
    }

    pub(super) fn go_up(&mut self) {
        tracing::info!("the ledger is recording");
        self.status.set(State::Up);
        self.options.observer.up(true);
    }

    fn went_back(&mut self, refusal: &Refusal) {
        let cause = "its last acknowledged row is not the chain's last row; restore it and restart";
        tracing::error!(cause, "the ledger went back");
        self.status.set(State::WentBack(cause.into()));
        self.options.observer.up(false);
        refuse_for_ever(std::mem::take(&mut self.retained), refusal);
    }
}
