//! What there is to say of a ledger on PostgreSQL.

use super::{MadeBy, Times, judge_schema};
use crate::cli::doctor::finding::{Findings, size};
use crate::store::ledger::Location;
use crate::store::ledger::inspection::{
    FEW_MONTHS, LoginFacts, PartitionFacts, PostgresFacts, ServerFacts,
};
use crate::timestamp::Timestamp;

/// The oldest server that ends silent sessions by itself, which the chains' locks need.
const OLDEST_SERVER: i32 = 140_000;

/// Sessions that should be free: a daemon that reconnects, `audit`, and the operator's own.
const FREE_SESSIONS: i64 = 5;

pub(super) fn judge(
    findings: &mut Findings,
    location: &Location,
    facts: &PostgresFacts,
    now: Timestamp,
) -> Times {
    let server = match &facts.server {
        Ok(server) => server,
        Err(error) if facts.only_standby => {
            let what = format!(
                "{location} lets us in only where nothing can be written, a standby: {error}"
            );
            findings.problem(
                "database",
                what,
                "name the primary, too, in [ledger] url, or promote the standby",
            );
            return Times::default();
        }
        Err(error) => {
            let remedy = "start the server, let the login in (pg_hba.conf), or correct [ledger]: url, password_file, roots, certificate, key";
            findings.problem(
                "database",
                format!("{location} does not let us in: {error}"),
                remedy,
            );
            return Times::default();
        }
    };
    let what = format!(
        "{location}: PostgreSQL {}, {}",
        server.version,
        size(u64::try_from(server.size).unwrap_or(0))
    );
    match server.version_number {
        old if old < OLDEST_SERVER => findings.problem(
            "database",
            what,
            "the ledger needs PostgreSQL 14 or newer: upgrade the server",
        ),
        _ => findings.ok("database", what),
    }
    judge_connection(findings, server);
    judge_login(findings, &server.login);
    durability(findings, server);
    match &server.schema {
        Ok(schema) => {
            judge_schema(findings, schema, MadeBy::Migrate);
        }
        Err(error) => findings.problem(
            "schema",
            format!("it cannot be read: {error}"),
            "look after the server, and run `ca-server migrate`",
        ),
    }
    if let Some(partitions) = &server.partitions {
        judge_partitions(findings, partitions, now);
    }
    match server.writers {
        0 => findings.ok("lock", "no daemon writes now"),
        1 => findings.ok("lock", "one daemon writes now"),
        count => findings.ok("lock", format!("{count} daemons write now")),
    }
    Times {
        newest: server.newest,
        database: Some(server.clocks),
    }
}

fn judge_connection(findings: &mut Findings, server: &ServerFacts) {
    match &server.tls {
        Some(version) => findings.ok("tls", format!("the connection speaks {version}")),
        None if server.across_network => {
            let remedy =
                "turn TLS on in the server, and write sslmode=verify-full and `roots` in [ledger]";
            findings.warning("tls", "the connection crosses a network in plain", remedy);
        }
        None => findings.ok(
            "tls",
            "none, and none needed: the server is on this machine",
        ),
    }
    let number = |name: &str| {
        server
            .settings
            .get(name)
            .and_then(|value| value.parse::<i64>().ok())
            .unwrap_or(0)
    };
    let most = number("max_connections") - number("superuser_reserved_connections");
    let what = format!("{} of {most} connections are in use", server.sessions);
    match most - server.sessions {
        few if few < FREE_SESSIONS => findings.warning(
            "connections",
            what,
            "raise max_connections, or find out who holds them",
        ),
        _ => findings.ok("connections", what),
    }
}

fn judge_login(findings: &mut Findings, login: &LoginFacts) {
    let name = &login.name;
    let lesser = "let daemons log in as a member of <database>_application and of nothing else: `ca-server migrate --application LOGIN`";
    let owner = login
        .roles
        .iter()
        .any(|(role, member)| role.ends_with("_owner") && *member);
    match () {
        () if login.superuser => {
            findings.warning(
                "roles",
                format!("the login {name} is a superuser: the ledger's triggers do not bind it"),
                lesser,
            );
        }
        () if !login.may_write => {
            findings.problem(
                "roles",
                format!("the login {name} may not add rows to the ledger and read them"),
                lesser,
            );
        }
        () if owner => {
            let what = format!(
                "the login {name} is a member of the owner's role: it could take the ledger's triggers away"
            );
            findings.warning("roles", what, lesser);
        }
        () if login.may_change => {
            let what = format!(
                "the login {name} has grants to change or remove rows; only the triggers stand against it"
            );
            findings.warning("roles", what, lesser);
        }
        () => findings.ok(
            "roles",
            format!("the login {name} may add rows and read them, and nothing else"),
        ),
    }
}

fn durability(findings: &mut Findings, server: &ServerFacts) {
    let is_off = |name: &str| {
        server
            .settings
            .get(name)
            .is_some_and(|value| value == "off")
    };
    let mut all_on = true;
    for (name, effect) in [
        (
            "fsync",
            "when the machine fails, rows that were acknowledged may be lost, and the database with them",
        ),
        (
            "full_page_writes",
            "when the machine fails, the database may be damaged",
        ),
        (
            "synchronous_commit",
            "rows may be lost when the server fails; the daemon turns it on for its own sessions, other writers do not",
        ),
    ] {
        if is_off(name) {
            all_on = false;
            findings.warning(
                "durability",
                format!("{name} is off: {effect}"),
                format!("set {name} = on and reload the server"),
            );
        }
    }
    let shown = |name: &str| {
        server
            .settings
            .get(name)
            .map(String::as_str)
            .unwrap_or_default()
    };
    if all_on {
        let standbys = match shown("synchronous_standby_names") {
            "" => "no synchronous standby".to_owned(),
            names => format!("synchronous standbys {names}"),
        };
        let commit = shown("synchronous_commit");
        findings.ok(
            "durability",
            format!(
                "fsync and full_page_writes are on, synchronous_commit is {commit}; {standbys}"
            ),
        );
    }
}

fn judge_partitions(findings: &mut Findings, partitions: &PartitionFacts, now: Timestamp) {
    let extend = "run `ca-server migrate`: it makes those of the coming two years";
    match (partitions.first, partitions.last) {
        (Some(first), Some(last)) => {
            let left = last.months_after(now.period());
            let what = format!("{} months from {first} to {last}", partitions.count);
            if left >= FEW_MONTHS {
                findings.ok("partitions", what);
            } else {
                findings.warning(
                    "partitions",
                    format!("{what}: {left} after this month; later rows go to the default one"),
                    extend,
                );
            }
        }
        _ => findings.warning(
            "partitions",
            "no month has one: all rows go to the default one",
            extend,
        ),
    }
    if partitions.default_size > 0 {
        let what = format!(
            "{} stand in the default partition, of months that had none in time",
            size(u64::try_from(partitions.default_size).unwrap_or(0))
        );
        findings.warning(
            "partitions",
            what,
            "nothing can be done about them, they stay there and count; `ca-server migrate` names the months",
        );
    }
}
