//! Measures how long `audit show` looks for a serial or an identity in a ledger that `fill_ledger`
//! has filled, without the time that a process takes to start. Each search is one of a random
//! service account, and one of the serials that it got.
//!
//! `cargo run --release --example search_ledger -- LEDGER SEARCHES`

use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, ensure};
use ca_server::store::ledger::event::Event;
use ca_server::store::ledger::{LedgerReader, Location, ServerFiles};
use ca_server::x509::Serial;
use hdrhistogram::Histogram;

/// As many as `audit show` shows without being told.
const LIMIT: u32 = 20;

fn main() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("threads");
    match runtime.block_on(run(std::env::args().skip(1).collect())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("search_ledger: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: Vec<String>) -> Result<()> {
    let [ledger, searches] = args.as_slice() else {
        return Err(anyhow!("usage: search_ledger LEDGER SEARCHES"));
    };
    let location = Location::parse(ledger, ServerFiles::default(), Path::new(""))
        .map_err(|why| anyhow!("the ledger's URL {why}"))?;
    let mut reader = LedgerReader::open(&location).await?;
    let (mut by_identity, mut by_serial) = (Histogram::<u64>::new(3)?, Histogram::<u64>::new(3)?);
    for _ in 0..searches.parse::<u32>()? {
        let account = u64::from_be_bytes(random()?) % 10_000;
        let identity = format!(
            "spiffe://cluster.local/ns/load-{}/sa/workload-{account}",
            account / 20
        );
        let begun = Instant::now();
        let entries = reader.entries_of_identity(&identity, LIMIT).await?;
        by_identity.record(u64::try_from(begun.elapsed().as_micros())?)?;
        ensure!(
            !entries.is_empty(),
            "the ledger has nothing of {identity}; fill it with fill_ledger"
        );
        ensure!(
            entries.iter().all(|(_, outcome)| outcome.is_some()),
            "an outcome of {identity} was not found"
        );
        let (entry, _) = &entries[usize::try_from(account)? % entries.len()];
        let Event::Intent(intent) = &entry.event else {
            return Err(anyhow!("an entry of {identity} is no intent"));
        };
        let serial = Serial::from_bytes(&intent.serial).context("a serial")?;
        let begun = Instant::now();
        let found = reader.issuances_of_serial(&serial).await?;
        by_serial.record(u64::try_from(begun.elapsed().as_micros())?)?;
        ensure!(
            found.len() == 1 && found[0].1.is_some(),
            "{serial} was not found with its outcome"
        );
    }
    for (what, times) in [("serial", by_serial), ("identity", by_identity)] {
        let [p50, p99, max] = [
            times.value_at_quantile(0.5),
            times.value_at_quantile(0.99),
            times.max(),
        ]
        .map(|micros| micros as f64 / 1000.0);
        println!(
            "by {what:<9}{} searches: p50 {p50:.3} ms, p99 {p99:.3} ms, max {max:.3} ms",
            times.len()
        );
    }
    Ok(())
}

fn random() -> Result<[u8; 8]> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes)
        .map_err(|error| anyhow!("the system gives no random bytes: {error}"))?;
    Ok(bytes)
}
