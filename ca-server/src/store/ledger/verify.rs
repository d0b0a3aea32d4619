//! Everything that the ledger alone can prove (invariants 2, 4–7, 9, and 8 by the list in
//! `x509::lint`), row by row in one snapshot.
//!
//! One reader hands pages of rows, in the order (period, chain, seq), to as many threads as there
//! are cores; they do what costs (`judge`). What they answer is taken in the order of the pages,
//! and the chains are followed through it (`pass`). Queues are bounded, and memory holds a few
//! pages, open intents and the serials of one period.

mod checkpoint;
mod crew;
mod findings;
mod judge;
mod named;
mod pass;
mod reading;
mod repeated;
mod settle;
mod since;
mod standing;
mod trusted;

use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::{mpsc, oneshot};

pub use self::checkpoint::{BadCheckpoint, Checkpoint};
use self::crew::Crew;
pub use self::findings::Broken;
use self::findings::Finding;
use self::judge::{Checks, Judged};
pub use self::named::NamedIssuer;
use self::pass::Pass;
use self::reading::Reading;
use self::since::Believed;
use self::standing::Standing;
pub use self::trusted::TrustedRoots;
use super::database::Database;
use super::query::{LedgerReader, ReadError};
use super::schema::DatabaseError;
use crate::timestamp::Timestamp;

/// What is checked, and with how much of the machine.
#[derive(Clone, Debug)]
pub struct VerifyOptions {
    /// From which rows on.
    pub begin: Begin,
    /// Whether signatures are checked to be the issuers': more work than everything else together.
    pub signatures: bool,
    /// The roots that issuers must stand under; `None`: whatever a chain names is believed.
    pub roots: Option<Arc<TrustedRoots>>,
    /// Threads that judge rows, beside the one that reads.
    pub threads: NonZeroUsize,
}

/// Where a verification begins.
#[derive(Clone, Debug)]
pub enum Begin {
    /// With the first row.
    FirstRow,
    /// With the first row of each chain that is not older; those before are taken for granted.
    Since(Timestamp),
    /// Where an earlier one stood.
    Checkpoint(Box<Checkpoint>),
}

impl Default for VerifyOptions {
    /// Everything, with all cores.
    fn default() -> Self {
        Self {
            begin: Begin::FirstRow,
            signatures: true,
            roots: None,
            threads: std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
        }
    }
}

/// What was counted, and what is broken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Rows.
    pub rows: u64,
    /// Chains, also those that were read in an earlier run.
    pub chains: u64,
    /// Intents.
    pub intents: u64,
    /// Certificates, each with its signature checked unless `signatures_skipped`.
    pub issued: u64,
    /// Intents of which nothing was signed.
    pub failed: u64,
    /// Intents of which a signature may exist that was not released.
    pub unknown: u64,
    /// Intents without an outcome: in flight, or left by a dead process that no other has succeeded
    /// yet. One in a chain that has ended is broken and is not among these.
    pub open: u64,
    /// Times that a certificate was given out again.
    pub repeated: u64,
    /// Rows of refusals.
    pub refusals: u64,
    /// The first broken rows.
    pub broken: Vec<Broken>,
    /// All broken rows, also those not listed.
    pub broken_count: u64,
    /// The issuers that were named in the rows that were read.
    pub issuers: Vec<NamedIssuer>,
    /// Rows before the checkpoint that it began with.
    pub earlier: u64,
    /// Rows before this time were taken for granted.
    pub since: Option<Timestamp>,
    /// Signatures were not checked, in this run or an earlier one.
    pub signatures_skipped: bool,
    /// It was stopped before the end.
    pub interrupted: bool,
}

impl LedgerReader {
    /// Checks one snapshot of the ledger. `progress` hears how many rows of how many are done. Soon
    /// after `stop` is set it ends, with what was found by then. The checkpoint to go on from is
    /// there if nothing is broken.
    pub async fn verify(
        &mut self,
        options: &VerifyOptions,
        stop: &AtomicBool,
        progress: impl FnMut(u64, u64),
    ) -> Result<(Report, Option<Checkpoint>), ReadError> {
        self.database.begin_snapshot().await?;
        let verified = verify(&mut self.database, options, stop, progress).await;
        let ended = self.database.end_snapshot().await;
        let verified = verified?;
        ended?;
        Ok(verified)
    }
}

async fn verify(
    database: &mut Database,
    options: &VerifyOptions,
    stop: &AtomicBool,
    mut progress: impl FnMut(u64, u64),
) -> Result<(Report, Option<Checkpoint>), ReadError> {
    let mut believed = Believed::default();
    let row_count = database.row_count().await?;
    let mut before = match &options.begin {
        Begin::FirstRow => Standing::default(),
        Begin::Since(since) => Standing::at(*since, row_count, database, &mut believed).await?,
        Begin::Checkpoint(checkpoint) => checkpoint.standing.clone(),
    };
    before.roots = options.roots.as_ref().map(|roots| roots.digest());
    let resumed = !before.chains.is_empty();
    let total = row_count.saturating_sub(before.rows);
    let mut reading = Reading::after(&before, database).await?;
    let mut pass = Pass::after(&before, &reading, database).await?;
    believed
        .findings(options.roots.as_deref())
        .for_each(|finding| pass.findings.add(finding));
    let checks = Checks {
        signatures: options.signatures,
        roots: options.roots.clone(),
    };
    let crew = Crew::start(options.threads, &checks)?;
    let waiting = 2 * options.threads.get() + 2;
    let (hand_over, mut pages) = mpsc::channel(waiting);
    let read = async {
        let interrupted = hand_out(&mut reading, database, &crew, hand_over, stop).await?;
        Ok::<_, ReadError>(interrupted)
    };
    let judge = async {
        let mut pairs: VecDeque<oneshot::Receiver<Vec<Finding>>> = VecDeque::new();
        while let Some(page) = pages.recv().await {
            let left = pass.page(answered(page).await);
            if !left.is_empty() {
                pairs.push_back(crew.check(left));
            }
            if pairs.len() > waiting {
                add(&mut pass, pairs.pop_front()).await;
            }
            progress(pass.report.rows, total);
        }
        while !pairs.is_empty() {
            add(&mut pass, pairs.pop_front()).await;
        }
        Ok::<_, ReadError>(())
    };
    let (interrupted, ()) = tokio::try_join!(read, judge)?;
    drop(crew);
    pass.look_up_repeats(database).await?;
    if !interrupted {
        if pass.report.rows != total {
            let what = format!(
                "it holds {total} rows that are to be read, of which {} are found by their months and chains",
                pass.report.rows
            );
            pass.findings.add(Finding::of_ledger(what));
        }
        pass.finish(resumed, database).await?;
    }
    let standing = pass.standing(&before, options.signatures, &reading);
    let broken_count = pass.findings.count();
    let report = Report {
        chains: standing.chains.len() as u64,
        broken: pass.findings.into_listed(),
        broken_count,
        issuers: reading.take_named(),
        earlier: if matches!(options.begin, Begin::Checkpoint(_)) {
            before.rows
        } else {
            0
        },
        since: standing.since,
        signatures_skipped: standing.signatures_skipped,
        interrupted,
        ..pass.report
    };
    Ok((
        report,
        (broken_count == 0).then_some(Checkpoint { standing }),
    ))
}

/// Reads pages and has them judged, not more at once than `hand_over` holds. Whether it was
/// stopped.
async fn hand_out(
    reading: &mut Reading,
    database: &mut Database,
    crew: &Crew,
    hand_over: mpsc::Sender<oneshot::Receiver<Judged>>,
    stop: &AtomicBool,
) -> Result<bool, DatabaseError> {
    loop {
        if stop.load(Ordering::Relaxed) {
            return Ok(true);
        }
        let Some(page) = reading.next(database).await? else {
            return Ok(false);
        };
        if hand_over.send(crew.judge(page)).await.is_err() {
            return Ok(false);
        }
    }
}

async fn answered<T>(answer: oneshot::Receiver<T>) -> T {
    answer
        .await
        .expect("a thread that judges rows does not end before it has answered")
}

async fn add(pass: &mut Pass, findings: Option<oneshot::Receiver<Vec<Finding>>>) {
    if let Some(findings) = findings {
        answered(findings)
            .await
            .into_iter()
            .for_each(|finding| pass.findings.add(finding));
    }
}
