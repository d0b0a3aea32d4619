//! What a writer does beside its calls where several processes share a database: it compares its
//! clock with the database's, shows that it lives, and closes what dead processes left open. On
//! SQLite, where one process writes, there is nothing to do.
//!
//! Chains without a process are looked for on a connection of their own, so that no search, however
//! long, is before a call. What it finds is only where to look: a chain is claimed, read and closed
//! on the writing connection, which holds the locks, one chain between two batches. And it must
//! have been found twice: a process whose session was lost comes back to its chain in less time
//! than lies between.

use tokio::time::Instant;

use super::database::Database;
use super::due::{COMPARE, SEARCH};
use super::event::ChainId;
use super::status::State;
use super::survey::{SurveyError, dead_chain};
use super::work::{Answer, Item};
use super::writer::Writer;

impl Writer {
    /// Does what is due, between two batches.
    pub(super) async fn keep_up(&mut self) {
        if matches!(self.database, None | Some(Database::Sqlite(_)))
            || !matches!(*self.status.state(), State::Up)
        {
            return;
        }
        let began = Instant::now();
        let mut done = Ok(());
        let compares = began >= self.upkeep.compare_at;
        if compares {
            self.upkeep.compare_at = began + COMPARE;
            done = self.compare_clocks().await;
        }
        self.search(began);
        let dead = if done.is_ok() {
            self.upkeep.dead.pop_first()
        } else {
            None
        };
        if let Some(chain) = dead {
            done = self.succeed(chain).await;
        }
        if let Err(SurveyError::Corrupt(cause)) = &done {
            tracing::error!(
                cause,
                "a dead process cannot be succeeded: a row cannot be read"
            );
            // Others may be able to read it.
            done = self.release_claims().await;
        }
        if let Err(error) = done {
            self.lose_database(&error).await;
        }
        if compares || dead.is_some() {
            self.options.observer.kept_up(began.elapsed());
        }
    }

    /// Begins a search that is due, and takes in what one has found.
    fn search(&mut self, now: Instant) {
        if now >= self.upkeep.search_at {
            self.upkeep.search_at = now + SEARCH;
            // One that is still under way ends first.
            if self.upkeep.search.is_empty() {
                let location = self.options.location.clone();
                self.upkeep.search.spawn(async move {
                    let began = Instant::now();
                    let mut database = Database::searcher(&location).await?;
                    let free = database.unended_and_free().await?;
                    database.close().await?;
                    Ok((free, began.elapsed()))
                });
            }
        }
        match self.upkeep.search.try_join_next() {
            None => {}
            Some(Ok(Ok((free, time)))) => {
                self.options.observer.searched(time);
                let own = self.chain.as_ref().map(|chain| chain.id());
                self.upkeep
                    .found(free.into_iter().filter(|chain| Some(*chain) != own));
            }
            Some(ended) => {
                let cause = match ended {
                    Ok(Err(error)) => error.to_string(),
                    _ => "the search did not end in order".into(),
                };
                tracing::warn!(
                    cause,
                    "dead processes could not be looked for; tried again soon"
                );
                // Whatever kept this one from the database may keep others from it.
                self.upkeep.found([]);
            }
        }
    }

    async fn release_claims(&mut self) -> Result<(), SurveyError> {
        let Some(database) = &mut self.database else {
            return Ok(());
        };
        Ok(database.release_claims().await?)
    }

    /// Asks for the database's time.
    pub(super) async fn compare_clocks(&mut self) -> Result<(), SurveyError> {
        let Some(database) = &mut self.database else {
            return Ok(());
        };
        self.status.clock_is(database.time().await?);
        self.status
            .partitioned_until(database.last_partition().await?);
        Ok(())
    }

    /// Files *unknown* for what a dead process left open, and that its chain has ended; nothing if
    /// it is not dead, or others were first.
    async fn succeed(&mut self, chain: ChainId) -> Result<(), SurveyError> {
        let Some(database) = &mut self.database else {
            return Ok(());
        };
        let Some(dead) = dead_chain(database, chain).await? else {
            return self.release_claims().await;
        };
        tracing::warn!(%chain, orphans = dead.orphans.len(), "a process has died; what it left open is filed as unknown");
        let items = dead
            .last_words()
            .map(|(event, request)| Item {
                event,
                request,
                answer: Answer::WhileClaimed,
            })
            .collect();
        if self.record(items).await {
            self.release_claims().await
        } else {
            Ok(())
        }
    }
}
