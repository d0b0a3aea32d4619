//! Figures, not rules: `cargo test --release -p ca-server measuring -- --ignored --nocapture`.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::store::ledger::body::sha256;
use crate::store::ledger::fixture::{Made, World, options};
use crate::store::ledger::options::LedgerObserver;
use crate::store::ledger::{Ledger, LedgerReader};
use crate::x509::Serial;

#[derive(Default)]
struct Commits {
    count: AtomicUsize,
    rows: AtomicUsize,
    micros: AtomicUsize,
}

impl LedgerObserver for Commits {
    fn committed(&self, rows: usize, time: Duration) {
        self.count.fetch_add(1, Ordering::Relaxed);
        self.rows.fetch_add(rows, Ordering::Relaxed);
        self.micros.fetch_add(usize::try_from(time.as_micros()).unwrap(), Ordering::Relaxed);
    }
    fn queue_depth(&self, _: usize) {}
    fn dropped(&self, _: u64) {}
    fn up(&self, _: bool) {}
}

/// User and system time of this process so far.
fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    Duration::from_millis(10 * (fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()))
}

async fn measure(in_flight: usize, seconds: u64) {
    let world = World::new();
    let commits = Arc::new(Commits::default());
    let mut options = options(&world.path, &world.ca);
    options.observer = commits.clone();
    let ledger = Ledger::start(options, world.hands.clock()).await.unwrap();
    let pattern = world.make_now();
    let serials = Arc::new(AtomicUsize::new(0));
    let (began, before) = (Instant::now(), cpu());
    let loops: Vec<_> = (0..in_flight)
        .map(|_| {
            let (ledger, pattern, serials) = (ledger.clone(), pattern.clone(), serials.clone());
            tokio::spawn(async move {
                let mut times = Vec::new();
                while began.elapsed() < Duration::from_secs(seconds) {
                    let mut random = [0; 11];
                    random[3..].copy_from_slice(&serials.fetch_add(1, Ordering::Relaxed).to_be_bytes());
                    let digest = sha256(&random);
                    random[..11].copy_from_slice(&digest[..11]);
                    let serial = Serial::new(pattern.serial.period(), crate::timestamp::Timestamp::from_seconds(1_795_348_800), random);
                    let asked = Instant::now();
                    let recorded = ledger.open_made(Made { serial, ..pattern.clone() }).await.unwrap();
                    recorded.issue().await.unwrap();
                    times.push(asked.elapsed());
                }
                times
            })
        })
        .collect();
    let mut times = Vec::new();
    for task in loops {
        times.extend(task.await.unwrap());
    }
    let (elapsed, used) = (began.elapsed(), cpu() - before);
    times.sort();
    let issuances = times.len();
    let count = commits.count.load(Ordering::Relaxed);
    ledger.shutdown().await;
    let size = std::fs::metadata(&world.path).unwrap().len();
    println!(
        "{in_flight:>4} in flight: {:>6.0} issuances/s ({:>6.0} rows/s), {:>4.0} µs CPU each, call p50 {:.1} ms p99 {:.1} ms; commit mean {:.2} ms, {:.0} rows; {} B an issuance on disk",
        issuances as f64 / elapsed.as_secs_f64(),
        2.0 * issuances as f64 / elapsed.as_secs_f64(),
        used.as_secs_f64() * 1e6 / issuances as f64,
        times[issuances / 2].as_secs_f64() * 1e3,
        times[issuances * 99 / 100].as_secs_f64() * 1e3,
        commits.micros.load(Ordering::Relaxed) as f64 / count as f64 / 1e3,
        commits.rows.load(Ordering::Relaxed) as f64 / count as f64,
        size / issuances as u64,
    );
    let began = Instant::now();
    let report = LedgerReader::open(&world.path).await.unwrap().verify(|_, _| {}).await.unwrap();
    println!("      verify: {:.0} rows/s", report.rows as f64 / began.elapsed().as_secs_f64());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "measures"]
async fn open_and_close_in_a_loop() {
    for in_flight in [1, 64, 256, 1000, 64, 256] {
        measure(in_flight, 5).await;
    }
}
