//! The ledger's database, and the clocks: whether rows can be written, whether they stay as they
//! were written, and whether now is later than the newest of them.

mod postgres;
mod sqlite;

use std::time::Duration;

use super::finding::{Findings, span};
use crate::app::DATABASE_CLOCK_TOLERANCE;
use crate::clock::Clock;
use crate::store::ledger::Location;
use crate::store::ledger::inspection::{Difference, How, Inspection, SchemaFacts, inspect};
use crate::timestamp::Timestamp;

/// The times that the clock is compared with.
#[derive(Debug, Default)]
pub(super) struct Times {
    newest: Option<Timestamp>,
    /// The database's clock, and this machine's at the same instant.
    database: Option<(Timestamp, Timestamp)>,
}

/// No issuing while the clock is further behind the newest row (the ledger's own rule).
const BEHIND_AT_MOST: Duration = Duration::from_secs(2);

/// Who brings a schema up to the program's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum MadeBy {
    /// The daemon itself, at its start.
    Serve,
    /// The operator, as another role.
    Migrate,
}

/// Examines the database.
pub(super) async fn examine(
    location: Option<&Location>,
    deep: bool,
    clock: &Clock,
) -> (Findings, Times) {
    let mut findings = Findings::in_area("ledger");
    let Some(location) = location else {
        findings.problem(
            "database",
            "the config names no ledger that can be understood",
            "correct [ledger]: sqlite:FILE or postgres://LOGIN@HOST/DATABASE",
        );
        return (findings, Times::default());
    };
    let times = match inspect(location, deep, clock).await {
        Inspection::Sqlite(facts) => sqlite::judge(&mut findings, &facts),
        Inspection::Postgres(facts) => {
            postgres::judge(&mut findings, location, &facts, clock.now())
        }
    };
    (findings, times)
}

/// The clock against everything that has a time.
pub(super) fn clock(times: &Times, now: Timestamp) -> Findings {
    let mut findings = Findings::in_area("clock");
    match times.newest {
        None => findings.ok("ledger", format!("it is {now}; no row to compare it with")),
        Some(newest) if now.plus(BEHIND_AT_MOST) < newest => {
            let what = format!(
                "it is {now}, {} behind the ledger's newest row: nothing is issued",
                span(newest.since(now))
            );
            findings.problem(
                "ledger",
                what,
                "set the clock; or, if the row's was wrong, start once with `serve --accept-clock`",
            );
        }
        Some(newest) => findings.ok(
            "ledger",
            format!(
                "it is {now}, {} after the ledger's newest row",
                span(now.since(newest))
            ),
        ),
    }
    if let Some((theirs, ours)) = times.database {
        let apart = theirs.since(ours).max(ours.since(theirs));
        let direction = if theirs > ours { "ahead of" } else { "behind" };
        let what = format!(
            "the database's clock is {} {direction} this machine's",
            span(apart)
        );
        let remedy = "set both clocks by NTP";
        match apart {
            apart if apart > DATABASE_CLOCK_TOLERANCE => {
                let limit = span(DATABASE_CLOCK_TOLERANCE);
                findings.problem(
                    "database",
                    format!("{what}: nothing is issued when they are more than {limit} apart"),
                    remedy,
                );
            }
            apart if apart > BEHIND_AT_MOST => findings.warning("database", what, remedy),
            _ => findings.ok(
                "database",
                "the database's clock agrees with this machine's",
            ),
        }
    }
    findings
}

/// Whether the schema is ours and whole. True if what is in it can be judged further.
fn judge_schema(findings: &mut Findings, schema: &SchemaFacts, made_by: MadeBy) -> bool {
    let Some(version) = schema.version else {
        let (what, remedy) = match made_by {
            MadeBy::Serve => (
                "the database holds no ledger",
                "name the right one in [ledger] url, or let `serve` begin a new one",
            ),
            MadeBy::Migrate => (
                "the database holds no ledger, or none that this login may read",
                "run `ca-server migrate --application LOGIN`",
            ),
        };
        findings.problem("schema", what, remedy);
        return false;
    };
    if !schema.unknown.is_empty() {
        let what = format!(
            "the schema is of another program beside which this one may not write: migrations {:?}",
            schema.unknown
        );
        findings.problem(
            "schema",
            what,
            "run the version of ca-server that was here last, or a later one",
        );
        return false;
    }
    if !schema.missing.is_empty() {
        let what = format!(
            "the schema is older than this program: migrations {:?} are missing",
            schema.missing
        );
        match made_by {
            MadeBy::Serve => {
                findings.warning("schema", what, "the next start of `serve` applies them")
            }
            MadeBy::Migrate => findings.problem("schema", what, "run `ca-server migrate`"),
        }
    } else if !schema.later.is_empty() {
        let what =
            format!("version {version}, a later program's, which lets this one write beside it");
        findings.warning(
            "schema",
            what,
            "finish the upgrade: install the later version here too",
        );
    } else if schema.differences.is_empty() {
        findings.ok(
            "schema",
            format!("version {version}; every table, index and trigger is as the program made it"),
        );
    }
    for difference in &schema.differences {
        judge_difference(findings, difference);
    }
    !schema
        .differences
        .iter()
        .any(|one| one.kind == "table" && one.how == How::Missing)
}

fn judge_difference(findings: &mut Findings, difference: &Difference) {
    let Difference { kind, name, how } = difference;
    if kind == "fence" {
        let what = format!(
            "a `ca-server migrate` runs now or was interrupted: {name} keeps rows of coming months out"
        );
        return findings.problem(
            "schema",
            what,
            "let it end, or run `ca-server migrate` again before the month is over",
        );
    }
    let check = if ["trigger", "function"].contains(&kind.as_str()) {
        "triggers"
    } else {
        "schema"
    };
    let how = match how {
        How::Missing => "is missing",
        How::Changed => "is not the one that the program made",
        How::Added => "was added by somebody else",
    };
    let effect = match kind.as_str() {
        "trigger" | "function" | "rule or policy" => {
            ": rows may have been changed, removed or kept out"
        }
        "index" => ": a serial may stand twice, or searches are slow",
        "constraint" => ": rows may stand where no search finds them",
        _ => "",
    };
    let remedy = "find out who did it, run `ca-server audit verify`, compare with your exports, and make it as it stands in migrations/";
    findings.problem(check, format!("the {kind} {name} {how}{effect}"), remedy);
}
