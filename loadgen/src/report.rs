//! The shape of the JSON report. Times are milliseconds, CPU is microseconds an issuance, memory is
//! kB, rates are a second.

use std::collections::BTreeMap;
use std::path::Path;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::exit::Exit;
use crate::processes::Usage;
use crate::record::Record;

/// A whole run.
#[derive(Debug, Deserialize, Serialize)]
pub struct Report {
    pub label: String,
    pub version: String,
    /// RFC 3339.
    pub started: String,
    pub address: String,
    pub prepared: Prepared,
    pub idle: Option<Idle>,
    pub sections: Vec<Section>,
    /// Ended early by whoever started it.
    pub interrupted: bool,
}

/// What was made before the clock started.
#[derive(Debug, Deserialize, Serialize)]
pub struct Prepared {
    pub key: String,
    pub csrs: usize,
    pub tokens: usize,
    pub identities: usize,
    /// Calls of the whole run, warm-ups too.
    pub calls: u64,
    /// There were more calls than CSRs, so that some were sent again.
    pub csrs_reused: bool,
    /// There were more calls than tokens.
    pub tokens_reused: bool,
}

/// Connections held beside the load.
#[derive(Debug, Deserialize, Serialize)]
pub struct Idle {
    pub connections: usize,
    /// Still open at the end.
    pub open_at_end: usize,
}

/// One section of a step.
#[derive(Debug, Deserialize, Serialize)]
pub struct Section {
    pub step: String,
    /// `closed` or `open`.
    pub mode: String,
    pub in_flight: Option<usize>,
    pub offered_rate: Option<f64>,
    /// None: a fresh one for every call.
    pub connections: Option<usize>,
    pub seconds: f64,
    /// Calls that began in it.
    pub calls: u64,
    /// Certificates that arrived in it.
    pub issued: u64,
    pub rate: f64,
    pub latency: Latency,
    /// How long calls took that gave no certificate.
    pub refusal_latency: Latency,
    pub errors: BTreeMap<String, Errors>,
    pub cpu: BTreeMap<String, Cpu>,
    pub memory: BTreeMap<String, Memory>,
    pub verified: Verified,
    /// A point each 100 ms.
    pub series: Vec<Point>,
    /// Of the calls that gave a certificate: quantile and milliseconds.
    pub distribution: Vec<(f64, f64)>,
}

/// Milliseconds.
#[derive(Debug, Default, Deserialize, Serialize)]
#[allow(missing_docs, reason = "the names say it")]
pub struct Latency {
    pub count: u64,
    pub mean: f64,
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub p999: f64,
    pub max: f64,
}

/// Failures of one kind.
#[derive(Debug, Deserialize, Serialize)]
pub struct Errors {
    pub count: u64,
    pub example: String,
}

/// CPU of a process in a section.
#[derive(Debug, Deserialize, Serialize)]
pub struct Cpu {
    pub user_seconds: f64,
    pub system_seconds: f64,
    /// Both together, by certificates that arrived; none if none did.
    pub micros_per_issuance: Option<f64>,
}

/// Resident memory of a process, kB.
#[derive(Debug, Deserialize, Serialize)]
pub struct Memory {
    pub begin_kb: u64,
    pub end_kb: u64,
    /// The most in this section, looked at each 100 ms.
    pub peak_kb: u64,
    /// The most since the process started.
    pub high_water_kb: u64,
}

/// Chains verified off the clock; counted for the whole step in its first section.
#[derive(Debug, Default, Deserialize, Serialize)]
pub struct Verified {
    pub count: usize,
    pub wrong: usize,
    pub example: Option<String>,
}

/// 100 ms of a section.
#[derive(Debug, Deserialize, Serialize)]
pub struct Point {
    /// Certificates that arrived.
    pub arrived: u64,
    /// Calls that began and gave a certificate.
    pub issued: u64,
    /// Calls that began and gave none.
    pub failed: u64,
    /// The longest call that began.
    pub longest_ms: f64,
}

impl Latency {
    /// Of a histogram of microseconds.
    pub fn of(histogram: &Histogram<u64>) -> Self {
        if histogram.is_empty() {
            return Self::default();
        }
        let at = |quantile| millis(histogram.value_at_quantile(quantile));
        Self {
            count: histogram.len(),
            mean: (histogram.mean() / 10.0).round() / 100.0,
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: at(1.0),
        }
    }
}

fn millis(micros: u64) -> f64 {
    micros as f64 / 1000.0
}

impl Cpu {
    /// Between two readings, by so many issuances.
    pub fn between(begin: &Usage, end: &Usage, issued: u64) -> Self {
        let (user, system) = (end.user - begin.user, end.system - begin.system);
        let round = |seconds: f64| (seconds * 100.0).round() / 100.0;
        let micros = (issued > 0).then(|| ((user + system) * 1e7 / issued as f64).round() / 10.0);
        Self {
            user_seconds: round(user),
            system_seconds: round(system),
            micros_per_issuance: micros,
        }
    }
}

/// The points of a record.
pub fn series(record: &Record) -> Vec<Point> {
    let ticks = record.arrived.len().max(record.begun.len());
    let point = |tick: usize| {
        let begun = record.begun.get(tick).copied().unwrap_or_default();
        let arrived = record.arrived.get(tick).copied().unwrap_or_default();
        Point {
            arrived,
            issued: begun.issued,
            failed: begun.failed,
            longest_ms: millis(begun.longest_micros),
        }
    };
    (0..ticks).map(point).collect()
}

/// Quantiles that come nearer to one in equal steps of a logarithm.
pub fn distribution(histogram: &Histogram<u64>) -> Vec<(f64, f64)> {
    if histogram.is_empty() {
        return Vec::new();
    }
    let last = (histogram.len() as f64).log10();
    let quantiles = (0..=100).map(|step| 1.0 - 10_f64.powf(-last * f64::from(step) / 100.0));
    quantiles
        .map(|quantile| (quantile, millis(histogram.value_at_quantile(quantile))))
        .collect()
}

/// Writes any report as JSON.
pub fn write(path: &Path, report: &impl Serialize) -> Result<(), Exit> {
    let failed =
        |error: &dyn std::fmt::Display| Exit::missing(format!("{}: {error}", path.display()));
    let text = serde_json::to_string_pretty(report).map_err(|error| failed(&error))?;
    std::fs::write(path, text + "\n").map_err(|error| failed(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_latency_is_told_in_milliseconds() {
        let mut histogram = Histogram::new_with_bounds(1, 300_000_000, 3).unwrap();
        for micros in 1..=1000_u64 {
            histogram.record(micros * 10).unwrap();
        }
        let latency = Latency::of(&histogram);
        assert_eq!(
            (
                latency.count,
                latency.p50.round(),
                latency.p99.round(),
                latency.max.round()
            ),
            (1000, 5.0, 10.0, 10.0)
        );
        let distribution = distribution(&histogram);
        assert!(distribution.is_sorted_by(|one, next| one.0 <= next.0 && one.1 <= next.1));
        assert_eq!(distribution.last().unwrap().1.round(), 10.0);
        assert_eq!(Latency::of(&Histogram::new(3).unwrap()).count, 0);
    }

    #[test]
    fn cpu_is_told_by_issuance() {
        let begin = Usage {
            user: 1.0,
            system: 1.0,
            ..Usage::default()
        };
        let end = Usage {
            user: 2.0,
            system: 1.5,
            ..Usage::default()
        };
        assert_eq!(
            Cpu::between(&begin, &end, 10_000).micros_per_issuance,
            Some(150.0)
        );
        assert_eq!(Cpu::between(&begin, &end, 0).micros_per_issuance, None);
    }
}
