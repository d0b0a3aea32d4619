//! The reference for latencies: how long a durable append takes on a disk. A database's commit is
//! one of these, whatever else it does.

use std::fs::OpenOptions;
use std::io::Write;
use std::time::Instant;

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::arguments::Commits;
use crate::exit::Exit;
use crate::report::{self, Latency};

/// One page of a write-ahead log.
const BYTES: usize = 8192;

#[derive(Serialize)]
struct Report {
    bytes: usize,
    /// Write and fdatasync together, milliseconds.
    latency: Latency,
    commits_per_second: f64,
}

/// Appends and syncs until the time is over.
pub fn run(arguments: &Commits) -> Result<(), Exit> {
    let path = arguments
        .directory
        .join(format!("loadgen-commits-{}", std::process::id()));
    let result = measure(&path, arguments);
    // What measure could not make cannot be removed either.
    let _ = std::fs::remove_file(&path);
    let (histogram, seconds) =
        result.map_err(|error| Exit::missing(format!("{}: {error}", path.display())))?;
    let report = Report {
        bytes: BYTES,
        latency: Latency::of(&histogram),
        commits_per_second: histogram.len() as f64 / seconds,
    };
    println!(
        "{} durable appends of {BYTES} bytes: p50 {:.3} ms, p99 {:.3} ms, {:.0}/s",
        report.latency.count, report.latency.p50, report.latency.p99, report.commits_per_second
    );
    arguments
        .report
        .as_ref()
        .map_or(Ok(()), |path| report::write(path, &report))
}

fn measure(path: &std::path::Path, arguments: &Commits) -> std::io::Result<(Histogram<u64>, f64)> {
    let mut file = OpenOptions::new().create_new(true).write(true).open(path)?;
    let mut histogram = Histogram::new_with_bounds(1, 60_000_000, 3).expect("fixed bounds");
    let (begin, page) = (Instant::now(), [0x5a; BYTES]);
    while begin.elapsed() < arguments.duration || histogram.is_empty() {
        let one = Instant::now();
        file.write_all(&page)?;
        file.sync_data()?;
        histogram.saturating_record(u64::try_from(one.elapsed().as_micros()).unwrap_or(u64::MAX));
    }
    Ok((histogram, begin.elapsed().as_secs_f64()))
}
