//! Makes the table of goals from what `loadgen/report` has left in a directory: the JSON reports of its runs, named
//! `PART.LEDGER.REPETITION.json`, the references that were taken beside them, and figures that no run of loadgen gives.
//! Writes it between two marks of a Markdown file.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use crate::arguments::Goals;
use crate::exit::Exit;
use crate::report::{Report, Section};

/// The table stands between these lines.
const BEGIN: &str = "<!-- goals: written by loadgen/report -->";
const END: &str = "<!-- end of goals -->";
const LEDGERS: [&str; 2] = ["sqlite", "postgres"];

/// What one repetition was taken beside.
#[derive(Clone, Debug, Deserialize)]
struct References {
    repetition: String,
    verify_p256_micros: f64,
    sign_p256_micros: f64,
    commit_p50_ms: f64,
    commit_p99_ms: f64,
}

impl References {
    /// What an issuance cannot do without: proof of possession, our own signature checked, and one signature.
    fn floor(&self) -> f64 {
        2.0 * self.verify_p256_micros + self.sign_p256_micros
    }
}

/// Something measured by other means than a run.
#[derive(Clone, Debug, Deserialize)]
struct Figure {
    name: String,
    ledger: String,
    value: f64,
}

/// Everything that a directory holds.
#[derive(Default)]
struct Results {
    runs: BTreeMap<(String, String, String), Report>,
    references: Vec<References>,
    figures: Vec<Figure>,
}

/// One line of the table.
struct Goal {
    number: &'static str,
    name: &'static str,
    part: &'static str,
    unit: &'static str,
    /// Target and stretch, by ledger.
    targets: fn(&str) -> (f64, f64),
    most: bool,
    /// A value for each repetition.
    values: fn(&Results, &str) -> Vec<f64>,
}

fn both(target: f64, stretch: f64) -> (f64, f64) {
    (target, stretch)
}

/// Figures that are at most, or at least, what the goal says. What has no figure stands in the table as not measured.
const GOALS: [Goal; 22] = [
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
        targets: |ledger| if ledger == "postgres" { both(300.0, 250.0) } else { both(380.0, 320.0) },
        most: true,
        values: |all, ledger| cpu(all, "closed", ledger, "daemon", in_flight_64),
    },
    Goal {
        number: "floor",
        name: "goal 2 as a multiple of two P-256 verifications and a signature by `openssl speed`",
        part: "closed",
        unit: "×",
        targets: |ledger| if ledger == "postgres" { both(2.6, 1.8) } else { both(3.2, 2.6) },
        most: true,
        values: ratios,
    },
    Goal {
        number: "3",
        name: "Postgres CPU an issuance at saturation",
        part: "closed",
        unit: "µs",
        targets: |_| both(50.0, 30.0),
        most: true,
        values: |all, ledger| cpu(all, "closed", ledger, "database", fastest),
    },
    Goal {
        number: "4",
        name: "sustained rate over SoftHSM",
        part: "closed",
        unit: "/s",
        targets: |_| both(4000.0, 4800.0),
        most: false,
        values: |all, ledger| sections(all, "closed", ledger, fastest, |section| Some(section.rate)),
    },
    Goal {
        number: "floor",
        name: "the same, at least",
        part: "closed",
        unit: "/s",
        targets: |_| both(2500.0, 2500.0),
        most: false,
        values: |all, ledger| sections(all, "closed", ledger, fastest, |section| Some(section.rate)),
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
        values: |all, ledger| latency(all, ledger, |section, of| section.latency.p50 / (3.0 * of.commit_p50_ms + 2.0)),
    },
    Goal {
        number: "6",
        name: "open loop at 70 %: p99 by (4 × commit p99 + 5 ms)",
        part: "open",
        unit: "×",
        targets: |_| both(1.0, 0.75),
        most: true,
        values: |all, ledger| latency(all, ledger, |section, of| section.latency.p99 / (4.0 * of.commit_p99_ms + 5.0)),
    },
    Goal {
        number: "6",
        name: "the same in milliseconds: p50",
        part: "open",
        unit: "ms",
        targets: |_| both(f64::INFINITY, f64::INFINITY),
        most: true,
        values: |all, ledger| sections(all, "open", ledger, first, |section| Some(section.latency.p50)),
    },
    Goal {
        number: "6",
        name: "the same in milliseconds: p99",
        part: "open",
        unit: "ms",
        targets: |_| both(f64::INFINITY, f64::INFINITY),
        most: true,
        values: |all, ledger| sections(all, "open", ledger, first, |section| Some(section.latency.p99)),
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
        values: |all, ledger| sections(all, "idle", ledger, first, |section| Some(section.memory.get("daemon")?.peak_kb as f64 / 1024.0)),
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
            nth(all, "overload", ledger, 1, |section| (section.refusal_latency.count > 0).then_some(section.refusal_latency.p50))
        },
    },
    Goal {
        number: "13",
        name: "2 × overload: until no call fails any more",
        part: "overload",
        unit: "s",
        targets: |_| both(2.0, 2.0),
        most: true,
        values: |all, ledger| nth(all, "overload", ledger, 2, |section| Some(recovery(section))),
    },
];

fn in_flight_64(report: &Report) -> Option<&Section> {
    report.sections.iter().find(|section| section.in_flight == Some(64))
}

fn fastest(report: &Report) -> Option<&Section> {
    report.sections.iter().max_by(|one, other| one.rate.total_cmp(&other.rate))
}

fn first(report: &Report) -> Option<&Section> {
    report.sections.first()
}

impl Results {
    fn read(directory: &Path) -> Result<Self, Exit> {
        let mut results = Self::default();
        let runs = directory.join("runs");
        let failed = |path: &Path, error: &dyn std::fmt::Display| Exit::missing(format!("{}: {error}", path.display()));
        for entry in std::fs::read_dir(&runs).map_err(|error| failed(&runs, &error))? {
            let path = entry.map_err(|error| failed(&runs, &error))?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let [part, ledger, repetition, "json"] = name.split('.').collect::<Vec<_>>()[..] else { continue };
            let key = (part.to_owned(), ledger.to_owned(), repetition.to_owned());
            let text = std::fs::read_to_string(&path).map_err(|error| failed(&path, &error))?;
            results.runs.insert(key, serde_json::from_str(&text).map_err(|error| failed(&path, &error))?);
        }
        results.references = lines(&directory.join("references.jsonl"))?;
        results.figures = lines(&directory.join("figures.jsonl"))?;
        Ok(results)
    }

    fn of<'a>(&'a self, part: &'a str, ledger: &'a str) -> impl Iterator<Item = (&'a str, &'a Report)> {
        let right = move |key: &(String, String, String)| key.0 == part && key.1 == ledger;
        self.runs.iter().filter(move |(key, _)| right(key)).map(|(key, report)| (key.2.as_str(), report))
    }

    fn references(&self, repetition: &str) -> Option<&References> {
        self.references.iter().rev().find(|one| one.repetition == repetition)
    }
}

fn lines<T: for<'a> Deserialize<'a>>(path: &Path) -> Result<Vec<T>, Exit> {
    let text = match std::fs::read_to_string(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(|error| Exit::missing(format!("{}: {error}", path.display())))?,
    };
    let parsed = text.lines().map(serde_json::from_str).collect::<Result<_, _>>();
    parsed.map_err(|error| Exit::usage(format!("{}: {error}", path.display())))
}

fn sections(
    all: &Results,
    part: &str,
    ledger: &str,
    which: fn(&Report) -> Option<&Section>,
    value: fn(&Section) -> Option<f64>,
) -> Vec<f64> {
    all.of(part, ledger).filter_map(|(_, report)| value(which(report)?)).collect()
}

fn cpu(all: &Results, part: &str, ledger: &str, process: &str, which: fn(&Report) -> Option<&Section>) -> Vec<f64> {
    all.of(part, ledger).filter_map(|(_, report)| which(report)?.cpu.get(process)?.micros_per_issuance).collect()
}

fn ratios(all: &Results, ledger: &str) -> Vec<f64> {
    let ratio = |(repetition, report)| {
        let micros = in_flight_64(report)?.cpu.get("daemon")?.micros_per_issuance?;
        Some(micros / all.references(repetition)?.floor())
    };
    all.of("closed", ledger).filter_map(ratio).collect()
}

fn latency(all: &Results, ledger: &str, value: fn(&Section, &References) -> f64) -> Vec<f64> {
    all.of("open", ledger).filter_map(|(repetition, report)| Some(value(first(report)?, all.references(repetition)?))).collect()
}

fn figure(all: &Results, name: &str, ledger: &str) -> Vec<f64> {
    all.figures.iter().filter(|one| one.name == name && one.ledger == ledger).map(|one| one.value).collect()
}

fn nth(all: &Results, part: &str, ledger: &str, place: usize, value: fn(&Section) -> Option<f64>) -> Vec<f64> {
    all.of(part, ledger).filter_map(|(_, report)| value(report.sections.get(place)?)).collect()
}

/// From few rows to many: percent of the medians over the repetitions, because the two are not measured side by side.
fn growth(all: &Results, ledger: &str, value: fn(&Section) -> f64) -> Vec<f64> {
    let of = |part: &str| median(&all.of(part, ledger).filter_map(|(_, report)| Some(value(first(report)?))).collect::<Vec<_>>());
    match (of("rows-few"), of("rows-many")) {
        (Some(few), Some(many)) => vec![(many / few - 1.0) * 100.0],
        _ => Vec::new(),
    }
}

fn goodput(all: &Results, ledger: &str) -> Vec<f64> {
    let saturation: BTreeMap<&str, f64> =
        all.of("saturation", ledger).filter_map(|(repetition, report)| Some((repetition, fastest(report)?.rate))).collect();
    let percent = |(repetition, report): (&str, &Report)| Some(report.sections.get(1)?.rate / saturation.get(repetition)? * 100.0);
    all.of("overload", ledger).filter_map(percent).collect()
}

/// Seconds until the last tick in which a call began that failed.
fn recovery(section: &Section) -> f64 {
    section.series.iter().rposition(|point| point.failed > 0).map_or(0.0, |tick| (tick + 1) as f64 / 10.0)
}

fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        odd if odd % 2 == 1 => Some(sorted[middle]),
        _ => Some((sorted[middle - 1] + sorted[middle]) / 2.0),
    }
}

fn number(value: f64) -> String {
    match value.abs() {
        size if size < 10.0 => format!("{value:.2}"),
        size if size < 100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

fn row(goal: &Goal, all: &Results) -> String {
    let sign = if goal.most { "≤" } else { "≥" };
    let ((sqlite, _), (postgres, stretch)) = ((goal.targets)("sqlite"), (goal.targets)("postgres"));
    let target = match (sqlite, postgres) {
        (one, _) if one.is_infinite() => "–".into(),
        (one, other) if one == other => format!("{sign} {} {} ({})", number(one), goal.unit, number(stretch)),
        (one, other) => format!("{sign} {} / {} {}", number(one), number(other), goal.unit),
    };
    let cells = LEDGERS.map(|ledger| cell(goal, ledger, &(goal.values)(all, ledger)));
    format!("| {} | {} | {target} | {} | {} | `--only {}` |", goal.number, goal.name, cells[0], cells[1], goal.part)
}

fn cell(goal: &Goal, ledger: &str, values: &[f64]) -> String {
    let Some(middle) = median(values) else { return "not measured".into() };
    let (least, most) =
        values.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(least, most), value| (least.min(*value), most.max(*value)));
    let spread = if values.len() > 1 { format!(" ({}–{})", number(least), number(most)) } else { String::new() };
    let reaches = |limit: f64| if goal.most { middle <= limit } else { middle >= limit };
    let (target, stretch) = (goal.targets)(ledger);
    let verdict = match () {
        () if target.is_infinite() => "",
        () if reaches(stretch) => ", stretch met",
        () if reaches(target) => ", met",
        () => ", **not met**",
    };
    format!("{}{spread}{verdict}", number(middle))
}

fn table(all: &Results) -> String {
    let mut text = String::from("| # | Goal | Target (stretch) | SQLite | Postgres | Part |\n|---|---|---|---|---|---|\n");
    for goal in &GOALS {
        text.push_str(&row(goal, all));
        text.push('\n');
    }
    let reference = |name: &str, unit: &str, value: fn(&References) -> f64| {
        let values: Vec<f64> = all.references.iter().map(value).collect();
        median(&values).map(|middle| format!("{name} {} {unit}", number(middle)))
    };
    let told: Vec<String> = [
        reference("P-256 verification", "µs", |of| of.verify_p256_micros),
        reference("P-256 signature", "µs", |of| of.sign_p256_micros),
        reference("durable append of 8 kB p50", "ms", |of| of.commit_p50_ms),
        reference("p99", "ms", |of| of.commit_p99_ms),
    ]
    .into_iter()
    .flatten()
    .collect();
    if !told.is_empty() {
        text.push_str(&format!("\nReferences of the same run (medians over its repetitions): {}.\n", told.join(", ")));
    }
    if let Some(started) = all.runs.values().map(|report| report.started.as_str()).min() {
        text.push_str(&format!("First run {started}.\n"));
    }
    text
}

/// Prints the table, and writes it into a file if one is named.
pub fn run(arguments: &Goals) -> Result<(), Exit> {
    let table = table(&Results::read(&arguments.directory)?);
    print!("{table}");
    let Some(path) = &arguments.write else { return Ok(()) };
    let failed = |error: &dyn std::fmt::Display| Exit::missing(format!("{}: {error}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|error| failed(&error))?;
    let written =
        between_marks(&text, &table).ok_or_else(|| Exit::usage(format!("{} has not the lines {BEGIN} and {END}", path.display())))?;
    std::fs::write(path, written).map_err(|error| failed(&error))
}

fn between_marks(text: &str, table: &str) -> Option<String> {
    let (before, rest) = text.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}\n\n{table}\n{END}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(rate: f64, daemon: f64) -> serde_json::Value {
        let latency = serde_json::json!({"count": 1, "mean": 1.0, "p50": 5.0, "p90": 6.0, "p99": 9.0, "p999": 9.0, "max": 9.0});
        serde_json::json!({
            "label": "", "version": "", "started": "2026-11-22T12:00:00Z", "address": "a:1", "idle": null, "interrupted": false,
            "prepared": {"key": "p256", "csrs": 1, "tokens": 1, "identities": 1, "calls": 1, "csrs_reused": false, "tokens_reused": false},
            "sections": [{
                "step": "64 in flight", "mode": "closed", "in_flight": 64, "offered_rate": null, "connections": 4, "seconds": 1.0,
                "calls": 1, "issued": 1, "rate": rate, "latency": latency, "refusal_latency": latency, "errors": {},
                "cpu": {"daemon": {"user_seconds": 1.0, "system_seconds": 0.0, "micros_per_issuance": daemon}}, "memory": {},
                "verified": {"count": 0, "wrong": 0, "example": null}, "distribution": [],
                "series": [
                    {"arrived": 1, "issued": 1, "failed": 1, "longest_ms": 1.0},
                    {"arrived": 1, "issued": 1, "failed": 0, "longest_ms": 1.0},
                ],
            }],
        })
    }

    fn directory() -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("runs")).unwrap();
        for (repetition, rate, daemon) in [(1, 3000.0, 310.0), (2, 4000.0, 290.0), (3, 5000.0, 295.0)] {
            let path = directory.path().join(format!("runs/closed.postgres.{repetition}.json"));
            std::fs::write(path, report(rate, daemon).to_string()).unwrap();
        }
        let reference = |repetition| serde_json::json!({"repetition": repetition, "verify_p256_micros": 60.0, "sign_p256_micros": 20.0, "commit_p50_ms": 1.0, "commit_p99_ms": 2.0});
        let references = ["1", "2", "3"].map(|repetition| reference(repetition).to_string()).join("\n");
        std::fs::write(directory.path().join("references.jsonl"), references).unwrap();
        std::fs::write(directory.path().join("figures.jsonl"), "{\"name\":\"idle_mb\",\"ledger\":\"sqlite\",\"value\":41.5}\n").unwrap();
        directory
    }

    #[test]
    fn medians_and_spreads_are_judged_and_what_was_not_measured_is_said() {
        let directory = directory();
        let table = table(&Results::read(directory.path()).unwrap());
        let row = |begin: &str| table.lines().find(|line| line.starts_with(begin)).unwrap_or_else(|| panic!("{begin}: {table}")).to_owned();
        assert!(row("| 2 |").contains("| not measured | 295 (290–310), met |"), "{table}");
        assert!(row("| 4 |").contains("4000 (3000–5000), met"), "{table}");
        assert!(row("| floor | goal 2").contains("2.11 (2.07–2.21), met"), "{table}");
        assert!(row("| 9 | memory, idle").contains("41.5, **not met**"), "{table}");
        assert!(table.contains("P-256 verification 60.0 µs"));
    }

    #[test]
    fn recovery_ends_with_the_last_tick_that_failed() {
        let report: Report = serde_json::from_value(report(1.0, 1.0)).unwrap();
        assert_eq!(recovery(&report.sections[0]), 0.1);
    }

    #[test]
    fn the_table_replaces_what_stood_between_the_marks() {
        let text = format!("before\n{BEGIN}\nold\n{END}\nafter\n");
        assert_eq!(between_marks(&text, "new\n").unwrap(), format!("before\n{BEGIN}\n\nnew\n\n{END}\nafter\n"));
        assert_eq!(between_marks("no marks", "new"), None);
    }
}
