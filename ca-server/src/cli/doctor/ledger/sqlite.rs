//! What there is to say of a SQLite ledger.

use super::{MadeBy, Times, judge_schema};
use crate::cli::doctor::finding::{Findings, size};
use crate::store::ledger::inspection::{Content, FileFacts, SqliteFacts, Writer};

/// A ledger needs this much room left, or soon commits nothing.
const LITTLE_ROOM: u64 = 1 << 30;
const NO_ROOM: u64 = 64 << 20;

pub(super) fn judge(findings: &mut Findings, facts: &SqliteFacts) -> Times {
    let path = facts.path.display();
    match &facts.file {
        Ok(Some(file)) => judge_file(findings, facts, file),
        Ok(None) => {
            let remedy = "nothing, if this CA has never served: `serve` makes it; else name the right file in [ledger] url";
            findings.warning(
                "database",
                format!("there is no ledger at {path} yet"),
                remedy,
            );
        }
        Err(error) => findings.problem(
            "database",
            format!("{path} cannot be looked at: {error}"),
            "run the doctor as the daemon's user",
        ),
    }
    match &facts.writer {
        Ok(Writer::Nobody) => findings.ok("lock", "no daemon runs on it"),
        Ok(Writer::Process(Some(process))) => {
            findings.ok("lock", format!("a daemon runs on it, process {process}"))
        }
        Ok(Writer::Process(None)) => findings.ok("lock", "a daemon runs on it"),
        Err(error) => {
            let what = format!("nobody can tell whether a daemon runs on it: {error}");
            findings.warning("lock", what, "run the doctor as the daemon's user");
        }
    }
    if facts.on_network {
        let what = format!(
            "{path} lies on a network's file system, where SQLite's locks and shared memory cannot be relied upon"
        );
        findings.problem(
            "file system",
            what,
            "put the ledger on a disk of the machine, or on PostgreSQL",
        );
    }
    match &facts.free {
        Ok(free) if *free < NO_ROOM => {
            findings.problem(
                "room",
                format!("{} are free on its file system", size(*free)),
                "make room: soon no row can be written",
            );
        }
        Ok(free) if *free < LITTLE_ROOM => {
            findings.warning(
                "room",
                format!("{} are free on its file system", size(*free)),
                "make room before it is full",
            );
        }
        Ok(free) => findings.ok(
            "room",
            format!("{} are free on its file system", size(*free)),
        ),
        Err(error) => {
            findings.problem(
                "room",
                format!("its file system cannot be asked: {error}"),
                "make the directory of [ledger] url",
            );
        }
    }
    match &facts.content {
        None => Times::default(),
        Some(Ok(content)) => judge_content(findings, content),
        Some(Err(error)) => {
            let remedy = "run the doctor as the daemon's user; if it is no database, put a copy of the ledger there";
            findings.problem(
                "database",
                format!("{path} cannot be read: {error}"),
                remedy,
            );
            Times::default()
        }
    }
}

fn judge_file(findings: &mut Findings, facts: &SqliteFacts, file: &FileFacts) {
    let path = facts.path.display();
    let (mode, chmod) = (
        format!("{:04o}", file.mode),
        format!("run: chmod 600 {path}"),
    );
    match file.mode {
        open if open & 0o022 != 0 => findings.problem(
            "file",
            format!("others than its owner can change {path} (mode {mode})"),
            chmod,
        ),
        open if open & 0o055 != 0 => {
            let what = format!(
                "others than its owner can read {path} (mode {mode}): who got which certificate"
            );
            findings.warning("file", what, chmod);
        }
        _ => findings.ok(
            "file",
            format!(
                "{path}, {}, its owner's alone (mode {mode})",
                size(file.size)
            ),
        ),
    }
    // Where the sticky bit is set, as on /tmp, others cannot put another file in its place.
    if file.directory_mode & 0o002 != 0 && file.directory_mode & 0o1000 == 0 {
        let what = format!(
            "anybody can put another file in the place of {path} (its directory has mode {:04o})",
            file.directory_mode
        );
        findings.problem("file", what, "run: chmod o-w on the directory");
    }
}

fn judge_content(findings: &mut Findings, content: &Content) -> Times {
    if let Some(damage) = content.damage.as_ref().filter(|damage| !damage.is_empty()) {
        let remedy = "stop the daemon, keep the files as they are, export what can be read, and restore a copy: docs/ledger.md";
        findings.problem(
            "structure",
            format!("the ledger is not whole: {}", damage.join("; ")),
            remedy,
        );
        if content.schema.version.is_none() {
            return Times::default();
        }
    }
    let judged = judge_schema(findings, &content.schema, MadeBy::Serve);
    if content.journal_mode == "wal" {
        findings.ok(
            "durability",
            "a write-ahead log, synced to the disk at each commit (synchronous = FULL)",
        );
    } else {
        let what = format!(
            "its journal is {:?} instead of a write-ahead log",
            content.journal_mode
        );
        findings.warning(
            "durability",
            what,
            "nothing: the next start of `serve` sets it; find out who changed it",
        );
    }
    if judged {
        findings.ok("rows", format!("about {} rows", content.rows));
    }
    match &content.damage {
        None => findings.ok(
            "structure",
            "what was looked at is whole; --deep reads all of it",
        ),
        Some(damage) if damage.is_empty() => {
            findings.ok("structure", "the database finds its own structure whole")
        }
        Some(_) => {}
    }
    Times {
        newest: content.newest,
        ..Times::default()
    }
}
