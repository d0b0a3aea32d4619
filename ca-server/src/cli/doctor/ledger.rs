//! The ledger's database, and the clocks: whether rows can be written, whether they stay as they were written, and whether now is later
//! than the newest of them.

mod sqlite;

use std::path::PathBuf;
use std::time::Duration;

use super::finding::{Findings, span};
use crate::store::ledger::inspection::{Difference, How, Inspection, SchemaFacts, inspect};
use crate::timestamp::Timestamp;

/// The times that the clock is compared with.
#[derive(Debug, Default)]
pub(super) struct Times {
    newest: Option<Timestamp>,
}

/// No issuing while the clock is further behind the newest row (the ledger's own rule).
const BEHIND_AT_MOST: Duration = Duration::from_secs(2);

/// Examines the database.
pub(super) async fn examine(location: Option<&PathBuf>, deep: bool) -> (Findings, Times) {
    let mut findings = Findings::in_area("ledger");
    let Some(location) = location else {
        findings.problem("database", "the config names no ledger that can be understood", "write [ledger] url = \"sqlite:FILE\"");
        return (findings, Times::default());
    };
    let times = match inspect(location, deep).await {
        Inspection::Sqlite(facts) => sqlite::judge(&mut findings, &facts),
    };
    (findings, times)
}

/// The clock against everything that has a time.
pub(super) fn clock(times: &Times, now: Timestamp) -> Findings {
    let mut findings = Findings::in_area("clock");
    match times.newest {
        None => findings.ok("ledger", format!("it is {now}; no row to compare it with")),
        Some(newest) if now.plus(BEHIND_AT_MOST) < newest => {
            let what = format!("it is {now}, {} behind the ledger's newest row: nothing is issued", span(newest.since(now)));
            findings.problem("ledger", what, "set the clock; or, if the row's was wrong, start once with `serve --accept-clock`");
        }
        Some(newest) => findings.ok("ledger", format!("it is {now}, {} after the ledger's newest row", span(now.since(newest)))),
    }
    findings
}

/// Whether the schema is ours and whole. True if what is in it can be judged further.
fn judge_schema(findings: &mut Findings, schema: &SchemaFacts) -> bool {
    let Some(version) = schema.version else {
        findings.problem("schema", "the database holds no ledger", "name the right one in [ledger] url, or let `serve` begin a new one");
        return false;
    };
    if !schema.unknown.is_empty() {
        let what = format!("the schema is of another version of the program: migrations {:?} are not of this one", schema.unknown);
        findings.problem("schema", what, "run the version of ca-server that was here last, or a later one");
        return false;
    }
    if !schema.missing.is_empty() {
        let what = format!("the schema is older than this program: migrations {:?} are missing", schema.missing);
        findings.warning("schema", what, "the next start of `serve` applies them");
    } else if schema.differences.is_empty() {
        findings.ok("schema", format!("version {version}; every table, index and trigger is as the program made it"));
    }
    for difference in &schema.differences {
        judge_difference(findings, difference);
    }
    !schema.differences.iter().any(|one| one.kind == "table" && one.how == How::Missing)
}

fn judge_difference(findings: &mut Findings, difference: &Difference) {
    let Difference { kind, name, how } = difference;
    let check = if kind == "trigger" { "triggers" } else { "schema" };
    let how = match how {
        How::Missing => "is missing",
        How::Changed => "is not the one that the program made",
        How::Added => "was added by somebody else",
    };
    let effect = match kind.as_str() {
        "trigger" => ": rows may have been changed, removed or kept out",
        "index" => ": a serial may stand twice, or searches are slow",
        _ => "",
    };
    let remedy = "find out who did it, run `ca-server audit verify`, compare with your exports, and make it as it stands in migrations/";
    findings.problem(check, format!("the {kind} {name} {how}{effect}"), remedy);
}
