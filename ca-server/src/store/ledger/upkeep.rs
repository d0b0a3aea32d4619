//! What a writer does beside its calls where several processes share a database: it compares its clock with the database's, shows that
//! it lives, and closes what dead processes left open. On SQLite, where one process writes, there is nothing to do.

use tokio::time::Instant;

use super::database::Database;
use super::status::State;
use super::survey::{DeadChain, SurveyError, survey};
use super::work::{Answer, Item};
use super::writer::{COMPARE, SEARCH, Writer};

impl Writer {
    /// Does what is due, between two batches.
    pub(super) async fn keep_up(&mut self) {
        if matches!(self.database, None | Some(Database::Sqlite(_))) || !matches!(*self.status.state(), State::Up) {
            return;
        }
        let now = Instant::now();
        let mut done = Ok(());
        if now >= self.upkeep.compare_at {
            self.upkeep.compare_at = now + COMPARE;
            done = self.compare_clocks().await;
        }
        if done.is_ok() && now >= self.upkeep.search_at {
            self.upkeep.search_at = now + SEARCH;
            done = self.succeed_the_dead().await;
        }
        if let Err(SurveyError::Corrupt(cause)) = &done {
            tracing::error!(cause, "dead processes cannot be looked for: a row cannot be read");
            // Others may be able to read it.
            done = self.release_claims().await;
        }
        if let Err(error) = done {
            self.lose_database(&error).await;
        }
    }

    async fn release_claims(&mut self) -> Result<(), SurveyError> {
        let Some(database) = &mut self.database else { return Ok(()) };
        Ok(database.release_claims().await?)
    }

    /// Asks for the database's time.
    pub(super) async fn compare_clocks(&mut self) -> Result<(), SurveyError> {
        let Some(database) = &mut self.database else { return Ok(()) };
        self.status.clock_is(database.time().await?);
        self.status.partitioned_until(database.last_partition().await?);
        Ok(())
    }

    /// Files *unknown* for what dead processes left open, and that their chains have ended.
    async fn succeed_the_dead(&mut self) -> Result<(), SurveyError> {
        let own = self.chain.as_ref().map(|chain| chain.id());
        let Some(database) = &mut self.database else { return Ok(()) };
        let legacy = survey(database, own).await?;
        for chain in &legacy.dead {
            tracing::warn!(chain = %chain.head.chain, orphans = chain.orphans.len(), "a process has died; what it left open is filed as unknown");
        }
        let items = legacy.dead.into_iter().flat_map(DeadChain::last_words);
        let items: Vec<Item> = items.map(|(event, request)| Item { event, request, answer: Answer::WhileClaimed }).collect();
        if items.is_empty() || self.record(items).await { self.release_claims().await } else { Ok(()) }
    }
}
