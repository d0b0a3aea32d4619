//! From what a section's threads recorded and its processes used to its part of the report.

use std::collections::BTreeMap;

use crate::plan::{Pace, Step};
use crate::processes::Usage;
use crate::record::Recorder;
use crate::report::{self, Cpu, Errors, Latency, Memory, Section};
use crate::verify::Verified;

/// What one section used: readings at its begin and end, the peaks between, and how long it was.
pub struct Reading {
    pub begin: BTreeMap<String, Usage>,
    pub end: BTreeMap<String, Usage>,
    pub peaks: BTreeMap<String, u64>,
    pub seconds: f64,
}

/// The sections of a step.
pub fn told(
    step: &Step,
    recorder: &Recorder,
    readings: &[Reading],
    verified: &Verified,
) -> Vec<Section> {
    let whole = readings
        .iter()
        .zip(&recorder.sections)
        .zip(&step.sections)
        .enumerate();
    whole
        .map(|(place, ((reading, record), section))| {
            let first = place == 0;
            let both = |name: &String| Some((reading.begin.get(name)?, reading.end.get(name)?));
            // A step that is bounded by calls is over with its last answer, and not when that is
            // noticed.
            let seconds = if step.calls.is_some() && record.issued > 0 {
                record.last.as_secs_f64()
            } else {
                reading.seconds
            };
            let names: Vec<&String> = reading.begin.keys().collect();
            Section {
                step: step.name.clone(),
                mode: if matches!(step.pace, Pace::Closed { .. }) {
                    "closed"
                } else {
                    "open"
                }
                .into(),
                in_flight: if let Pace::Closed { in_flight } = step.pace {
                    Some(in_flight)
                } else {
                    None
                },
                offered_rate: section.rate,
                connections: step.connections,
                seconds,
                calls: record.latency.len() + record.refused.len(),
                issued: record.issued,
                rate: if seconds > 0.0 {
                    (record.issued as f64 / seconds * 10.0).round() / 10.0
                } else {
                    0.0
                },
                latency: Latency::of(&record.latency),
                refusal_latency: Latency::of(&record.refused),
                errors: record
                    .failures
                    .iter()
                    .map(|(name, failures)| {
                        (
                            name.clone(),
                            Errors {
                                count: failures.count,
                                example: failures.example.clone(),
                            },
                        )
                    })
                    .collect(),
                cpu: names
                    .iter()
                    .filter_map(|name| {
                        both(name).map(|(begin, end)| {
                            ((*name).clone(), Cpu::between(begin, end, record.issued))
                        })
                    })
                    .collect(),
                memory: names
                    .iter()
                    .filter_map(|name| {
                        let (begin, end) = both(name)?;
                        let peak_kb = reading
                            .peaks
                            .get(*name)
                            .copied()
                            .unwrap_or(0)
                            .max(begin.resident_kb)
                            .max(end.resident_kb);
                        let memory = Memory {
                            begin_kb: begin.resident_kb,
                            end_kb: end.resident_kb,
                            peak_kb,
                            high_water_kb: end.peak_kb,
                        };
                        Some(((*name).clone(), memory))
                    })
                    .collect(),
                verified: report::Verified {
                    count: if first { verified.count } else { 0 },
                    wrong: if first { verified.wrong.len() } else { 0 },
                    example: verified.wrong.first().filter(|_| first).cloned(),
                },
                series: report::series(record),
                distribution: report::distribution(&record.latency),
            }
        })
        .collect()
}
