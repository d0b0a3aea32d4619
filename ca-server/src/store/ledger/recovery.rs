//! What the writer does when a commit fails: it learns from its chain's last row, on a new connection, whether the batch is durable
//! before anybody is answered, and then tries until the database takes rows again. A chain whose last row is neither the last
//! acknowledged one nor the batch's was tampered with or restored from a copy: then nothing is issued ever again.

use std::fmt::Display;

use super::batch::{Batch, refuse_for_ever};
use super::sqlite::{Database, DatabaseError};
use super::status::State;
use super::writer::Writer;
use crate::refusal::{Reason, Refusal};

impl Writer {
    /// The commit of `batch` failed or was not answered. Whether the batch is durable all the same.
    pub(super) async fn recover(&mut self, batch: Batch, error: &DatabaseError) -> bool {
        tracing::warn!(%error, rows = batch.rows().len(), "a commit to the ledger failed");
        self.disconnect().await;
        let refusal = Refusal::new(Reason::LedgerDown, format_args!("the ledger cannot record: {error}"));
        let expected = batch.last_hash();
        self.unsettled = Some(batch);
        match self.read_back(&refusal).await {
            Ok(()) => {
                let durable = self.chain.as_ref().and_then(|chain| chain.head()).map(|head| head.hash) == expected;
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

    /// Tries to be up again: reads back, then records what was kept, or finds out by a harmless write that rows would be taken.
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
        let works = if retained.is_empty() { self.probe().await } else { self.record(retained).await };
        if works {
            self.go_up();
        }
    }

    /// Opens a new connection and settles or fails the unsettled batch by what the chain's last row says.
    async fn read_back(&mut self, refusal: &Refusal) -> Result<(), DatabaseError> {
        let mut database = Database::writer_again(&self.options.path).await?;
        if let Some(chain) = &self.chain {
            let last = database.last_row(chain.id()).await?.map(|row| row.hash);
            let acknowledged = chain.head().map(|head| head.hash.to_vec());
            let expected = self.unsettled.as_ref().and_then(Batch::last_hash).map(|hash| hash.to_vec());
            let unsettled = self.unsettled.take();
            match unsettled {
                Some(batch) if last == expected => self.settle(batch),
                unsettled => {
                    self.retained.extend(unsettled.map(|batch| batch.fail(refusal)).unwrap_or_default());
                    if last != acknowledged {
                        self.went_back(refusal);
                    }
                }
            }
        }
        self.database = Some(database);
        Ok(())
    }

    async fn probe(&mut self) -> bool {
        let Some(database) = &mut self.database else { return false };
        match database.probe().await {
            Ok(()) => true,
            Err(error) => {
                self.disconnect().await;
                self.go_down(&error);
                false
            }
        }
    }

    /// Closes the connection before another is opened: nothing of it may be committed later.
    pub(super) async fn disconnect(&mut self) {
        if let Some(database) = self.database.take() {
            let _ = database.close().await;
        }
    }

    pub(super) fn go_down(&mut self, cause: &dyn Display) {
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
