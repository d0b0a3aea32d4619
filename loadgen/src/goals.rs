//! Makes the table of goals from what `loadgen/report` has left in a directory: the JSON reports of
//! its runs, named `PART.LEDGER.REPETITION.json`, the references that were taken beside them, and
//! figures that no run of loadgen gives. Writes it between two marks of a Markdown file.

mod list;
mod results;

use crate::arguments::Goals;
use crate::exit::Exit;
use list::{GOALS, Goal, median};
use results::{References, Results};

/// The table stands between these lines.
const BEGIN: &str = "<!-- goals: written by loadgen/report -->";
const END: &str = "<!-- end of goals -->";
const LEDGERS: [&str; 2] = ["sqlite", "postgres"];

fn number(value: f64) -> String {
    match value.abs() {
        size if size < 10.0 => format!("{value:.2}"),
        size if size < 100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

fn row(goal: &Goal, all: &Results) -> String {
    let sign = if goal.most { "≤" } else { "≥" };
    let (sqlite, postgres) = ((goal.targets)("sqlite"), (goal.targets)("postgres"));
    let text = |(target, stretch): (f64, f64)| {
        format!(
            "{sign} {} {} ({})",
            number(target),
            goal.unit,
            number(stretch)
        )
    };
    let target = match () {
        () if !postgres.0.is_finite() => "–".into(),
        () if !sqlite.0.is_finite() => format!("Postgres {}", text(postgres)),
        () if sqlite == postgres => text(postgres),
        () => format!("SQLite {}, Postgres {}", text(sqlite), text(postgres)),
    };
    let cells = LEDGERS.map(|ledger| cell(goal, ledger, &(goal.values)(all, ledger)));
    format!(
        "| {} | {} | {target} | {} | {} | `--only {}` |",
        goal.number, goal.name, cells[0], cells[1], goal.part
    )
}

fn cell(goal: &Goal, ledger: &str, values: &[f64]) -> String {
    let (target, stretch) = (goal.targets)(ledger);
    if target.is_nan() {
        return "–".into();
    }
    let Some(middle) = median(values) else {
        return "not measured".into();
    };
    let (least, most) = values.iter().fold(
        (f64::INFINITY, f64::NEG_INFINITY),
        |(least, most), value| (least.min(*value), most.max(*value)),
    );
    let spread = if values.len() > 1 {
        format!(" ({}–{})", number(least), number(most))
    } else {
        String::new()
    };
    let reaches = |limit: f64| {
        if goal.most {
            middle <= limit
        } else {
            middle >= limit
        }
    };
    let verdict = match () {
        () if target.is_infinite() => "",
        () if reaches(stretch) => ", stretch met",
        () if reaches(target) => ", met",
        () => ", **not met**",
    };
    format!("{}{spread}{verdict}", number(middle))
}

fn table(all: &Results) -> String {
    let mut text = String::from(
        "| # | Goal | Target (stretch) | SQLite | Postgres | Part |\n|---|---|---|---|---|---|\n",
    );
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
        text.push_str(&format!(
            "\nReferences of the same run (medians over its repetitions): {}.\n",
            told.join(", ")
        ));
    }
    if let Some(started) = all
        .runs
        .values()
        .map(|report| report.started.as_str())
        .min()
    {
        text.push_str(&format!("First run {started}.\n"));
    }
    text
}

/// Prints the table, and writes it into a file if one is named.
pub fn run(arguments: &Goals) -> Result<(), Exit> {
    let table = table(&Results::read(&arguments.directory)?);
    print!("{table}");
    let Some(path) = &arguments.write else {
        return Ok(());
    };
    let failed =
        |error: &dyn std::fmt::Display| Exit::missing(format!("{}: {error}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|error| failed(&error))?;
    let written = between_marks(&text, &table).ok_or_else(|| {
        Exit::usage(format!(
            "{} has not the lines {BEGIN} and {END}",
            path.display()
        ))
    })?;
    std::fs::write(path, written).map_err(|error| failed(&error))
}

fn between_marks(text: &str, table: &str) -> Option<String> {
    let (before, rest) = text.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}\n\n{table}\n{END}{after}"))
}

#[cfg(test)]
mod tests {
    use super::list::recovery;
    use super::*;
    use crate::report::Report;

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
        for (repetition, rate, daemon) in
            [(1, 3000.0, 310.0), (2, 4000.0, 290.0), (3, 5000.0, 295.0)]
        {
            let path = directory
                .path()
                .join(format!("runs/closed.postgres.{repetition}.json"));
            std::fs::write(path, report(rate, daemon).to_string()).unwrap();
        }
        let reference = |repetition| serde_json::json!({"repetition": repetition, "verify_p256_micros": 60.0, "sign_p256_micros": 20.0, "commit_p50_ms": 1.0, "commit_p99_ms": 2.0});
        let references = ["1", "2", "3"]
            .map(|repetition| reference(repetition).to_string())
            .join("\n");
        std::fs::write(directory.path().join("references.jsonl"), references).unwrap();
        std::fs::write(
            directory.path().join("figures.jsonl"),
            "{\"name\":\"idle_mb\",\"ledger\":\"sqlite\",\"value\":41.5}\n",
        )
        .unwrap();
        directory
    }

    #[test]
    fn medians_and_spreads_are_judged_and_what_was_not_measured_is_said() {
        let directory = directory();
        let table = table(&Results::read(directory.path()).unwrap());
        let row = |begin: &str| {
            table
                .lines()
                .find(|line| line.starts_with(begin))
                .unwrap_or_else(|| panic!("{begin}: {table}"))
                .to_owned()
        };
        assert!(
            row("| 2 |").contains("| not measured | 295 (290–310), met |"),
            "{table}"
        );
        assert!(row("| 4 |").contains("4000 (3000–5000), met"), "{table}");
        assert!(
            row("| floor | goal 2").contains("2.11 (2.07–2.21), met"),
            "{table}"
        );
        assert!(
            row("| 9 | memory, idle").contains("41.5, **not met**"),
            "{table}"
        );
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
        assert_eq!(
            between_marks(&text, "new\n").unwrap(),
            format!("before\n{BEGIN}\n\nnew\n\n{END}\nafter\n")
        );
        assert_eq!(between_marks("no marks", "new"), None);
    }
}
