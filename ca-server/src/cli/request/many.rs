//! Many calls at once, measured. Keys, CSRs and connections are made before the clock starts, and
//! answers are verified after it stops, so that the figures are the CA's and not this client's.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::runtime::Runtime;

use super::{Exit, Plan};
use crate::cli;
use crate::client::{Connection, Issued, KeyType, WorkloadKey};
use crate::clock::Clock;

/// RSA keys take long to make, so at most this many are made and used in turn.
const RSA_KEYS: usize = 64;
/// Calls that share a connection: a server may cap the streams of one.
const CALLS_PER_CONNECTION: usize = 16;

/// What one call came to.
struct Call {
    /// Which CSR it carried.
    csr: usize,
    time: Duration,
    answer: Result<Vec<String>, tonic::Status>,
}

pub(super) fn run(
    runtime: &Runtime,
    plan: &Plan,
    count: u32,
    concurrency: u32,
) -> Result<(), Exit> {
    let (count, concurrency) = (count as usize, concurrency.min(count) as usize);
    let requests = Arc::new(requests(plan, count)?);
    if requests.len() < count {
        let keys = requests.len();
        cli::print(format_args!(
            "{keys} keys are used in turn; a CSR that a CA has just answered may get the same certificate again\n"
        ))?;
    }
    let connections = runtime.block_on(dial(plan, concurrency.div_ceil(CALLS_PER_CONNECTION)))?;
    let bar = bar(count, "calling");
    let begin = Instant::now();
    let calls = runtime.block_on(all(plan, &requests, &connections, count, concurrency, &bar));
    let took = begin.elapsed();
    bar.finish_and_clear();
    report(
        plan,
        &requests,
        &calls,
        took,
        concurrency,
        connections.len(),
    )
}

fn requests(plan: &Plan, count: usize) -> Result<Vec<(WorkloadKey, String)>, Exit> {
    let wanted = match plan.key_type {
        KeyType::P256 | KeyType::P384 => count,
        KeyType::Rsa2048 | KeyType::Rsa4096 => count.min(RSA_KEYS),
    };
    let bar = bar(wanted, "making keys");
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let share = wanted.div_ceil(threads);
    let made: Result<Vec<Vec<_>>, Exit> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|thread| {
                let (own, bar) = (share.min(wanted.saturating_sub(thread * share)), &bar);
                scope.spawn(move || {
                    (0..own)
                        .map(|_| plan.key_and_csr().inspect(|_| bar.inc(1)))
                        .collect()
                })
            })
            .collect();
        workers
            .into_iter()
            .map(|worker| worker.join().expect("making a key does not panic"))
            .collect()
    });
    bar.finish_and_clear();
    Ok(made?.into_iter().flatten().collect())
}

async fn dial(plan: &Plan, count: usize) -> Result<Vec<Connection>, Exit> {
    let mut connections = Vec::with_capacity(count);
    for _ in 0..count {
        connections.push(
            Connection::open(&plan.target)
                .await
                .map_err(Exit::missing)?,
        );
    }
    Ok(connections)
}

async fn all(
    plan: &Plan,
    requests: &Arc<Vec<(WorkloadKey, String)>>,
    connections: &[Connection],
    count: usize,
    concurrency: usize,
    bar: &ProgressBar,
) -> Vec<Call> {
    let next = Arc::new(AtomicUsize::new(0));
    let workers: Vec<_> = (0..concurrency)
        .map(|worker| {
            let (next, requests, bar) = (Arc::clone(&next), Arc::clone(requests), bar.clone());
            let (connection, ask) = (
                connections[worker % connections.len()].clone(),
                plan.ask.clone(),
            );
            tokio::spawn(async move {
                let mut calls = Vec::new();
                loop {
                    let turn = next.fetch_add(1, Ordering::Relaxed);
                    if turn >= count {
                        return calls;
                    }
                    let csr = turn % requests.len();
                    let begin = Instant::now();
                    let answer = connection.create_certificate(&requests[csr].1, &ask).await;
                    calls.push(Call {
                        csr,
                        time: begin.elapsed(),
                        answer,
                    });
                    bar.inc(1);
                }
            })
        })
        .collect();
    let mut calls = Vec::with_capacity(count);
    for worker in workers {
        calls.extend(worker.await.expect("a worker does not panic"));
    }
    calls
}

fn report(
    plan: &Plan,
    requests: &[(WorkloadKey, String)],
    calls: &[Call],
    took: Duration,
    concurrency: usize,
    connections: usize,
) -> Result<(), Exit> {
    let mut latency = Histogram::<u64>::new(3).expect("three digits are allowed");
    let mut errors: BTreeMap<String, (usize, String)> = BTreeMap::new();
    let mut issued = 0;
    let now = Clock::default().now();
    for call in calls {
        // A histogram with automatic resizing takes any value.
        let _ = latency.record(u64::try_from(call.time.as_micros()).unwrap_or(u64::MAX));
        let failure = match &call.answer {
            Err(status) => Some((format!("{:?}", status.code()), status.message().to_owned())),
            Ok(answer) => Issued::verify(
                answer,
                &plan.target.roots,
                requests[call.csr].0.spki_der(),
                &plan.expected,
                now,
            )
            .err()
            .map(|error| ("wrong answer".to_owned(), error.to_string())),
        };
        match failure {
            None => issued += 1,
            Some((code, text)) => errors.entry(code).or_insert((0, text)).0 += 1,
        }
    }
    let millis = |quantile: f64| {
        Duration::from_micros(latency.value_at_quantile(quantile)).as_secs_f64() * 1000.0
    };
    let all = calls.len();
    let mut text = format!(
        "{issued} of {all} certificates issued and verified, {concurrency} calls at once on {connections} connections\n"
    );
    text += &format!(
        "rate      {:.0}/s over {:.2} s\n",
        all as f64 / took.as_secs_f64(),
        took.as_secs_f64()
    );
    let [p50, p90, p99, max] = [0.5, 0.9, 0.99, 1.0].map(millis);
    text +=
        &format!("latency   p50 {p50:.2} ms, p90 {p90:.2} ms, p99 {p99:.2} ms, max {max:.2} ms\n");
    for (code, (times, example)) in &errors {
        text += &format!("errors    {times} × {code}, such as: {example}\n");
    }
    cli::print(text)?;
    match all - issued {
        0 => Ok(()),
        failed => Err(Exit::refused(format!(
            "{failed} of {all} calls gave no certificate"
        ))),
    }
}

/// A bar at a terminal, nothing elsewhere.
fn bar(length: usize, what: &str) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg} {bar:40} {pos}/{len} {per_sec}")
        .expect("a fixed template");
    ProgressBar::new(length as u64)
        .with_style(style)
        .with_message(what.to_owned())
}
