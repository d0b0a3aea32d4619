//! The goals: where each one's figures come from, and what is wanted of them.

use std::collections::BTreeMap;

use super::results::{References, Results};
use crate::report::{Report, Section};

/// One line of the table.
pub struct Goal {
    pub number: &'static str,
    pub name: &'static str,
    pub part: &'static str,
    pub unit: &'static str,
    /// Target and stretch, by ledger; infinite where there is none, not a number where the goal
    /// does not concern the ledger.
    pub targets: fn(&str) -> (f64, f64),
    pub most: bool,
    /// A value for each repetition.
    pub values: fn(&Results, &str) -> Vec<f64>,
}

fn both(target: f64, stretch: f64) -> (f64, f64) {
    (target, stretch)
}

/// Figures that are at most, or at least, what the goal says. What has no figure stands in the
/// table as not measured.
pub const GOALS: [Goal; 23] = [
    Goal {
        number: "1",
        name: "daemon CPU an issuance, software key, first-seen token, P-256",
        part: "software",
        unit: "µs",
        targets: |_| both(230.0, 200.0),
        most: true,
        values: |all, ledger| cpu(all, "software", ledger, "daemon", in_flight_64),
    },
    Goal {
        number: "2",
        name: "the same with a SoftHSM key",
        part: "closed",
        unit: "µs",
        targets: |ledger| {
            if ledger == "postgres" {
                both(300.0, 250.0)
            } else {
                both(380.0, 320.0)
            }
        },
        most: true,
        values: |all, ledger| cpu(all, "closed", ledger, "daemon", in_flight_64),
    },
    Goal {
        number: "floor",
        name: "goal 2 as a multiple of two P-256 verifications and a signature by `openssl speed`",
        part: "closed",
        unit: "×",
        targets: |ledger| {
            if ledger == "postgres" {
                both(2.6, 1.8)
            } else {
                both(3.2, 2.6)
            }
        },
        most: true,
        values: ratios,
    },
    Goal {
        number: "3",
        name: "Postgres CPU an issuance at saturation",
        part: "closed",
        unit: "µs",
        targets: |ledger| {
            if ledger == "postgres" {
                both(50.0, 30.0)
            } else {
                both(f64::NAN, f64::NAN)
            }
        },
        most: true,
        values: |all, ledger| cpu(all, "closed", ledger, "database", fastest),
    },
    Goal {
        number: "4",
        name: "sustained rate over SoftHSM",
        part: "closed",
        unit: "/s",
        targets: |ledger| {
            if ledger == "postgres" {
                both(4000.0, 4800.0)
            } else {
                both(f64::INFINITY, f64::INFINITY)
            }
        },
        most: false,
        values: |all, ledger| {
            sections(all, "closed", ledger, fastest, |section| Some(section.rate))
        },
    },
    Goal {
        number: "floor",
        name: "the same, at least",
        part: "closed",
        unit: "/s",
        targets: |_| both(2500.0, 2500.0),
        most: false,
        values: |all, ledger| {
            sections(all, "closed", ledger, fastest, |section| Some(section.rate))
        },
    },
    Goal {
        number: "5",
        name: "daemon CPU, a fresh TLS connection for every CSR",
        part: "fresh",
        unit: "µs",
        targets: |_| both(480.0, 400.0),
        most: true,
        values: |all, ledger| cpu(all, "fresh", ledger, "daemon", first),
    },
    Goal {
        number: "6",
        name: "open loop at 70 %: p50 by (3 × commit p50 + 2 ms)",
        part: "open",
        unit: "×",
        targets: |_| both(1.0, 0.77),
        most: true,
        values: |all, ledger| {
            latency(all, ledger, |section, of| {
                section.latency.p50 / (3.0 * of.commit_p50_ms + 2.0)
            })
        },
    },
    Goal {
        number: "6",
        name: "open loop at 70 %: p99 by (4 × commit p99 + 5 ms)",
        part: "open",
        unit: "×",
        targets: |_| both(1.0, 0.75),
        most: true,
        values: |all, ledger| {
            latency(all, ledger, |section, of| {
                section.latency.p99 / (4.0 * of.commit_p99_ms + 5.0)
            })
        },
    },
    Goal {
        number: "6",
        name: "the same in milliseconds: p50",
        part: "open",
        unit: "ms",
        targets: |_| both(f64::INFINITY, f64::INFINITY),
        most: true,
        values: |all, ledger| {
            sections(all, "open", ledger, first, |section| {
                Some(section.latency.p50)
            })
        },
    },
    Goal {
        number: "6",
        name: "the same in milliseconds: p99",
        part: "open",
        unit: "ms",
        targets: |_| both(f64::INFINITY, f64::INFINITY),
        most: true,
        values: |all, ledger| {
            sections(all, "open", ledger, first, |section| {
                Some(section.latency.p99)
            })
        },
    },
    Goal {
        number: "9",
        name: "memory, idle",
        part: "idle",
        unit: "MB",
        targets: |_| both(40.0, 25.0),
        most: true,
        values: |all, ledger| figure(all, "idle_mb", ledger),
    },
    Goal {
        number: "9",
        name: "memory with 10,000 idle connections beside a working load",
        part: "idle",
        unit: "MB",
        targets: |_| both(400.0, 280.0),
        most: true,
        values: |all, ledger| {
            sections(all, "idle", ledger, first, |section| {
                Some(section.memory.get("daemon")?.peak_kb as f64 / 1024.0)
            })
        },
    },
    Goal {
        number: "10",
        name: "memory drift over a million issuances, after the first chunk",
        part: "million",
        unit: "%",
        targets: |_| both(5.0, 2.0),
        most: true,
        values: |all, ledger| figure(all, "drift_percent", ledger),
    },
    Goal {
        number: "11",
        name: "ledger bytes an issuance, P-256 workload key",
        part: "bytes",
        unit: "B",
        targets: |_| both(1700.0, 1400.0),
        most: true,
        values: |all, ledger| figure(all, "bytes_p256", ledger),
    },
    Goal {
        number: "11",
        name: "ledger bytes an issuance, RSA-2048 workload key",
        part: "bytes",
        unit: "B",
        targets: |_| both(1900.0, 1600.0),
        most: true,
        values: |all, ledger| figure(all, "bytes_rsa-2048", ledger),
    },
    Goal {
        number: "12",
        name: "p50 from 10⁴ to 10⁷ rows",
        part: "rows",
        unit: "%",
        targets: |_| both(5.0, 2.0),
        most: true,
        values: |all, ledger| growth(all, ledger, |section| section.latency.p50),
    },
    Goal {
        number: "12",
        name: "p99 from 10⁴ to 10⁷ rows",
        part: "rows",
        unit: "%",
        targets: |_| both(10.0, 5.0),
        most: true,
        values: |all, ledger| growth(all, ledger, |section| section.latency.p99),
    },
    Goal {
        number: "search",
        name: "`audit show SERIAL` at 10⁷ rows, the whole program",
        part: "rows",
        unit: "ms",
        targets: |_| both(10.0, 10.0),
        most: true,
        values: |all, ledger| figure(all, "show_serial_ms", ledger),
    },
    Goal {
        number: "search",
        name: "`audit show IDENTITY` at 10⁷ rows, the whole program",
        part: "rows",
        unit: "ms",
        targets: |_| both(10.0, 10.0),
        most: true,
        values: |all, ledger| figure(all, "show_identity_ms", ledger),
    },
    Goal {
        number: "13",
        name: "2 × overload: goodput by the rate at saturation",
        part: "overload",
        unit: "%",
        targets: |_| both(90.0, 95.0),
        most: false,
        values: goodput,
    },
    Goal {
        number: "13",
        name: "2 × overload: median time to a refusal",
        part: "overload",
        unit: "ms",
        targets: |_| both(5.0, 5.0),
        most: true,
        values: |all, ledger| {
            nth(all, "overload", ledger, 1, |section| {
                (section.refusal_latency.count > 0).then_some(section.refusal_latency.p50)
            })
        },
    },
    Goal {
        number: "13",
        name: "2 × overload: until no call fails any more",
        part: "overload",
        unit: "s",
        targets: |_| both(2.0, 2.0),
        most: true,
        values: |all, ledger| {
            nth(all, "overload", ledger, 2, |section| {
                Some(recovery(section))
            })
        },
    },
];

fn in_flight_64(report: &Report) -> Option<&Section> {
    report
        .sections
        .iter()
        .find(|section| section.in_flight == Some(64))
}

fn fastest(report: &Report) -> Option<&Section> {
    report
        .sections
        .iter()
        .max_by(|one, other| one.rate.total_cmp(&other.rate))
}

fn first(report: &Report) -> Option<&Section> {
    report.sections.first()
}

fn sections(
    all: &Results,
    part: &str,
    ledger: &str,
    which: fn(&Report) -> Option<&Section>,
    value: fn(&Section) -> Option<f64>,
) -> Vec<f64> {
    all.of(part, ledger)
        .filter_map(|(_, report)| value(which(report)?))
        .collect()
}

fn cpu(
    all: &Results,
    part: &str,
    ledger: &str,
    process: &str,
    which: fn(&Report) -> Option<&Section>,
) -> Vec<f64> {
    all.of(part, ledger)
        .filter_map(|(_, report)| which(report)?.cpu.get(process)?.micros_per_issuance)
        .collect()
}

fn ratios(all: &Results, ledger: &str) -> Vec<f64> {
    let ratio = |(repetition, report)| {
        let micros = in_flight_64(report)?
            .cpu
            .get("daemon")?
            .micros_per_issuance?;
        Some(micros / all.references(repetition)?.floor())
    };
    all.of("closed", ledger).filter_map(ratio).collect()
}

fn latency(all: &Results, ledger: &str, value: fn(&Section, &References) -> f64) -> Vec<f64> {
    all.of("open", ledger)
        .filter_map(|(repetition, report)| Some(value(first(report)?, all.references(repetition)?)))
        .collect()
}

fn figure(all: &Results, name: &str, ledger: &str) -> Vec<f64> {
    all.figures
        .iter()
        .filter(|one| one.name == name && one.ledger == ledger)
        .map(|one| one.value)
        .collect()
}

fn nth(
    all: &Results,
    part: &str,
    ledger: &str,
    place: usize,
    value: fn(&Section) -> Option<f64>,
) -> Vec<f64> {
    all.of(part, ledger)
        .filter_map(|(_, report)| value(report.sections.get(place)?))
        .collect()
}

/// From few rows to many: percent of the medians over the repetitions, because the two are not
/// measured side by side.
fn growth(all: &Results, ledger: &str, value: fn(&Section) -> f64) -> Vec<f64> {
    let of = |part: &str| {
        median(
            &all.of(part, ledger)
                .filter_map(|(_, report)| Some(value(first(report)?)))
                .collect::<Vec<_>>(),
        )
    };
    match (of("rows-few"), of("rows-many")) {
        (Some(few), Some(many)) => vec![(many / few - 1.0) * 100.0],
        _ => Vec::new(),
    }
}

fn goodput(all: &Results, ledger: &str) -> Vec<f64> {
    let saturation: BTreeMap<&str, f64> = all
        .of("saturation", ledger)
        .filter_map(|(repetition, report)| Some((repetition, fastest(report)?.rate)))
        .collect();
    let percent = |(repetition, report): (&str, &Report)| {
        Some(report.sections.get(1)?.rate / saturation.get(repetition)? * 100.0)
    };
    all.of("overload", ledger).filter_map(percent).collect()
}

/// Seconds until the last tick in which a call began that failed.
pub fn recovery(section: &Section) -> f64 {
    section
        .series
        .iter()
        .rposition(|point| point.failed > 0)
        .map_or(0.0, |tick| (tick + 1) as f64 / 10.0)
}

/// The middle one; the mean of the two in the middle of an even number.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        odd if odd % 2 == 1 => Some(sorted[middle]),
        _ => Some((sorted[middle - 1] + sorted[middle]) / 2.0),
    }
}
