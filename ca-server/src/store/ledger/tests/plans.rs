//! The plan of every statement, on a ledger with many rows, months and process lives. With few rows
//! every plan is fast; this is where a statement shows that it reads the ledger, or an index of it,
//! from end to end.

use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, Row as _, SqliteConnection};

use crate::store::ledger::database::Database;
use crate::store::ledger::fixture::World;
use crate::store::ledger::statement::{Reads, Statement};
use crate::store::ledger::{postgres, sqlite};

/// Rows that a statement may read which reads few: more than the largest page, and far less than
/// there are.
const FEW: f64 = 1000.0;

/// Two months of issuances by 20 chains, and 3,000 process lives of which four have not ended.
const FILL: [&str; 3] = [
    "INSERT INTO event SELECT 202611 + n % 2, decode(md5((n / 2 % 20)::text), 'hex'), n / 40, kind, n, \
     CASE kind WHEN 'intent' THEN decode(lpad(to_hex(n), 36, '0'), 'hex') END, \
     CASE kind WHEN 'intent' THEN 'spiffe://cluster.local/ns/a/sa/' || n / 4 % 2000 END, 'default', NULL, NULL, \
     decode(repeat('00', 32), 'hex'), decode(repeat('00', 200), 'hex') \
     FROM (SELECT n, (ARRAY['intent', 'issued'])[1 + n / 2 % 2] AS kind FROM generate_series(0, 119999) AS n) AS numbered",
    "INSERT INTO event SELECT 202611, decode(md5('life' || n), 'hex'), 0, 'start', n, NULL, NULL, NULL, NULL, NULL, \
     decode(repeat('00', 32), 'hex'), decode(repeat('00', 200), 'hex') FROM generate_series(1, 3000) AS n",
    "INSERT INTO event SELECT 202611, decode(md5('life' || n), 'hex'), 1, 'end', n, NULL, NULL, NULL, NULL, decode(md5('life' || n), 'hex'), \
     decode(repeat('00', 32), 'hex'), decode(repeat('00', 200), 'hex') FROM generate_series(1, 2996) AS n",
];

/// The plan of a statement as it is carried out, and what it reads too much.
async fn excess(connection: &mut PgConnection, statement: &Statement) -> Vec<String> {
    let Statement {
        sql, values, reads, ..
    } = statement;
    let values = if values.is_empty() {
        String::new()
    } else {
        format!("({values})")
    };
    let explain = format!("EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) EXECUTE tested{values}");
    connection
        .execute(AssertSqlSafe(format!("PREPARE tested AS {sql}")))
        .await
        .unwrap();
    connection.execute("BEGIN").await.unwrap();
    let plan: String = connection
        .fetch_one(AssertSqlSafe(explain))
        .await
        .unwrap()
        .try_get_unchecked(0)
        .unwrap();
    connection
        .execute("ROLLBACK; DEALLOCATE tested")
        .await
        .unwrap();
    let plan: Value = serde_json::from_str(&plan).unwrap();
    let mut found = Vec::new();
    judge(&plan[0]["Plan"], *reads, &mut found);
    found
}

fn judge(node: &Value, reads: Reads, found: &mut Vec<String>) {
    let number = |name: &str| node[name].as_f64().unwrap_or(0.0);
    let name = |name: &str| node[name].as_str().unwrap_or_default().to_owned();
    let (relation, index) = (name("Relation Name"), name("Index Name"));
    let of_ledger = relation.starts_with("event") || index.starts_with("event");
    let is_mark = [
        "_kind_time_chain_idx",
        "_ended_idx",
        "event_mark",
        "event_ended",
    ]
    .iter()
    .any(|end| index.ends_with(end));
    let rows = number("Actual Rows")
        + number("Rows Removed by Filter")
        + number("Rows Removed by Index Recheck");
    let (rows, loops) = (rows * number("Actual Loops"), number("Actual Loops"));
    let blocks = number("Shared Hit Blocks") + number("Shared Read Blocks");
    // An index that is read from end to end for a few rows shows by its blocks.
    let too_much = rows > FEW || blocks > 3.0 * rows + 8.0 * loops + 50.0;
    if name("Node Type").contains("Scan")
        && of_ledger
        && too_much
        && !(is_mark && reads == Reads::Marks)
    {
        found.push(format!(
            "{} of {relation} by {index:?}: {rows} rows, {blocks} blocks, {loops} times",
            name("Node Type")
        ));
    }
    for below in node["Plans"].as_array().into_iter().flatten() {
        judge(below, reads, found);
    }
}

#[tokio::test]
async fn no_statement_on_postgres_reads_a_table_or_an_index_from_end_to_end() {
    let world = World::postgres();
    let mut connection = world.superuser().await;
    for sql in FILL {
        connection.execute(sql).await.unwrap();
    }
    connection.execute("VACUUM ANALYZE event").await.unwrap();
    for (name, value) in postgres::PLANS {
        connection
            .execute(AssertSqlSafe(format!("SET {name} = {value}")))
            .await
            .unwrap();
    }
    let mut found = Vec::new();
    for mode in [
        "SET plan_cache_mode = force_custom_plan",
        "SET plan_cache_mode = force_generic_plan",
    ] {
        connection.execute(mode).await.unwrap();
        for statement in postgres::statements::ALL
            .iter()
            .filter(|statement| !matches!(statement.reads, Reads::Much(_)))
        {
            let excess = excess(&mut connection, statement).await;
            found.extend(
                excess
                    .into_iter()
                    .map(|what| format!("{} ({mode}): {what}", statement.name)),
            );
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
    for sql in [
        "SELECT count(*) FROM event WHERE issuer = 'nobody'",
        "SELECT max(time) FROM event WHERE period = 202611 AND seq = 7",
        "SELECT count(*) FROM event WHERE period = 202612",
        "SELECT chain FROM event WHERE identity IS NULL AND kind = 'start'",
    ] {
        let bad = Statement {
            name: "BAD",
            sql,
            values: "",
            reads: Reads::Few,
        };
        assert!(
            !excess(&mut connection, &bad).await.is_empty(),
            "nothing is noticed of {sql}"
        );
    }
}

/// What the plan of a statement on SQLite reads too much.
async fn excess_on_sqlite(
    connection: &mut SqliteConnection,
    sql: &str,
    reads: Reads,
) -> Vec<String> {
    let plan = connection
        .fetch_all(AssertSqlSafe(format!("EXPLAIN QUERY PLAN {sql}")))
        .await
        .unwrap();
    let steps = plan.iter().map(|row| row.get::<String, _>("detail"));
    let few = |step: &str| {
        let ledgers = !["sqlite_master", "_sqlx_migrations", "CONSTANT ROW"]
            .iter()
            .any(|other| step.contains(other));
        ledgers
            && (step.starts_with("SCAN")
                || step.ends_with("(period=?)")
                || step.ends_with("(kind=?)"))
    };
    let marks = |step: &str| {
        ["COVERING INDEX event_mark", "COVERING INDEX event_ended"]
            .iter()
            .any(|index| step.contains(index))
    };
    steps
        .filter(|step| few(step) && !(reads == Reads::Marks && marks(step)))
        .collect()
}

#[tokio::test]
async fn no_statement_on_sqlite_reads_a_table_or_an_index_from_end_to_end() {
    let world = World::sqlite();
    Database::writer(&world.location)
        .await
        .unwrap()
        .prepare_schema()
        .await
        .unwrap();
    let mut connection = SqliteConnection::connect(world.path().to_str().unwrap())
        .await
        .unwrap();
    let mut found = Vec::new();
    for Statement {
        name,
        sql,
        values,
        reads,
    } in sqlite::statements::ALL
    {
        let plans = ["SELECT", "INSERT", "WITH"]
            .iter()
            .any(|verb| sql.starts_with(verb));
        if !plans || matches!(reads, Reads::Much(_)) {
            continue;
        }
        let excess = excess_on_sqlite(&mut connection, &format!("{sql}{values}"), *reads).await;
        // The newest of a kind are read in the index's order, and no more of them than are asked
        // for.
        let limited = *name == "NEWEST_MARKS"
            && excess
                .iter()
                .all(|step| step.contains("event_mark (kind=?)"));
        found.extend(
            excess
                .into_iter()
                .filter(|_| !limited)
                .map(|what| format!("{name}: {what}")),
        );
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
    for bad in [
        "SELECT count(*) FROM event WHERE issuer = 'nobody'",
        "SELECT max(time) FROM event WHERE period = 1 AND issuer = 'nobody'",
    ] {
        assert!(
            !excess_on_sqlite(&mut connection, bad, Reads::Few)
                .await
                .is_empty(),
            "nothing is noticed of {bad}"
        );
    }
}
