//! Sessions on a PostgreSQL server: their names and settings, how one is opened, and how it is
//! known again. Locks and settings belong to a session, so a connection whose statements run now on
//! one and now on another, as behind a pooler, must be found out.

use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, Row as _};

use super::{statements, within};
use crate::store::ledger::location::Servers;

/// The schema that holds everything.
pub(in crate::store::ledger) const SCHEMA: &str = "ca_server";

/// How long a server may take to let a connection in.
const CONNECT: Duration = Duration::from_secs(2);

/// A session of the writer that was silent for so long is ended by the server, and its lock is
/// free: its process does not run, or no longer reaches the server. The writer's upkeep is never
/// silent for half as long.
const SILENCE: &str = "20s";

/// Settings of every session: each statement goes to its rows by an index, in the index's order.
/// Plans are kept while tables grow, and what is right for a small one is not for a large one; no
/// statement here is worth being compiled, or shared among processes.
pub(in crate::store::ledger) const PLANS: [(&str, &str); 4] = [
    ("jit", "off"),
    ("max_parallel_workers_per_gather", "0"),
    ("enable_seqscan", "off"),
    ("enable_bitmapscan", "off"),
];

/// A session's name, as the server's operator sees it, and its settings beside those.
pub(in crate::store::ledger) struct Session {
    pub(in crate::store::ledger) name: &'static str,
    pub(in crate::store::ledger) settings: &'static [(&'static str, &'static str)],
    /// Settings that a server shows otherwise where they have no effect, as those of TCP on a
    /// socket.
    pub(in crate::store::ledger) unchecked: &'static [(&'static str, &'static str)],
}

/// What waits for a lock gives up by itself. A limit on statements would not do: when it ends a
/// commit that waits for a standby, the server reports success.
pub(super) const WRITER: Session = Session {
    name: "ca-server",
    settings: &[
        ("search_path", SCHEMA),
        ("idle_session_timeout", SILENCE),
        ("lock_timeout", "2s"),
    ],
    unchecked: &[
        ("tcp_keepalives_idle", "5"),
        ("tcp_keepalives_interval", "2"),
        ("tcp_keepalives_count", "3"),
    ],
};

/// It looks for chains of dead processes beside the writer.
pub(super) const SEARCHER: Session = Session {
    name: "ca-server search",
    settings: &[("search_path", SCHEMA), ("statement_timeout", "10s")],
    unchecked: &[],
};

pub(super) const READER: Session = Session {
    name: "ca-server audit",
    settings: &[
        ("search_path", SCHEMA),
        ("default_transaction_read_only", "on"),
    ],
    unchecked: &[],
};

/// By what a session is known again.
#[derive(Debug)]
pub(in crate::store::ledger) struct Identity {
    /// The server's number of it.
    pub(super) number: i32,
    /// Random, and set in it alone: behind a pooler several connections can have one session, each
    /// for a while.
    pub(super) token: String,
}

/// A connection to the first host that lets it in and, if it is to write, takes writes; the error
/// is the last host's.
pub(in crate::store::ledger) async fn connect(
    servers: &Servers,
    session: &Session,
    writes: bool,
) -> sqlx::Result<(PgConnection, Identity)> {
    let mut last = sqlx::Error::Configuration("no host".into());
    for options in servers.options()? {
        match within(Some(CONNECT), connect_to(options, session, writes)).await {
            Ok(connected) => return Ok(connected),
            Err(error) => last = error,
        }
    }
    Err(last)
}

async fn connect_to(
    options: PgConnectOptions,
    session: &Session,
    writes: bool,
) -> sqlx::Result<(PgConnection, Identity)> {
    let token = token();
    let settings = session
        .settings
        .iter()
        .chain(&PLANS)
        .chain(session.unchecked)
        .copied();
    let options = options
        .application_name(session.name)
        .options(settings.chain([("ca_server.session", token.as_str())]));
    let mut connection = PgConnection::connect_with(&options)
        .await
        .map_err(refused_by_pooler)?;
    if writes {
        let read_only: String = connection
            .fetch_one(statements::TAKES_NO_WRITES)
            .await?
            .try_get(0)?;
        if read_only == "on" {
            return Err(read_only_server());
        }
    }
    let number = read_back(&mut connection, session, &token).await?;
    Ok((connection, Identity { number, token }))
}

/// Asks the session for its number, and whether it has every setting that was asked for.
async fn read_back(
    connection: &mut PgConnection,
    session: &Session,
    token: &str,
) -> sqlx::Result<i32> {
    let wanted: Vec<(&str, &str)> = session
        .settings
        .iter()
        .chain(&PLANS)
        .copied()
        .chain([("ca_server.session", token)])
        .collect();
    let names: Vec<String> = wanted
        .iter()
        .map(|(name, _)| format!("current_setting('{name}', true)"))
        .collect();
    let sql = format!("SELECT pg_backend_pid(), {}", names.join(", "));
    let row = connection.fetch_one(AssertSqlSafe(sql)).await?;
    for (at, (name, value)) in wanted.iter().enumerate() {
        if row.try_get::<Option<String>, _>(at + 1)?.as_deref() != Some(*value) {
            let what = format!(
                "the session does not have its setting {name}, as behind a connection pooler"
            );
            return Err(sqlx::Error::Configuration(
                format!("{what}; {STRAIGHT}").into(),
            ));
        }
    }
    row.try_get(0)
}

const STRAIGHT: &str =
    "name the server itself in [ledger] url: the locks of chains need a session of their own";

/// What a writer's statement says that did not run on its session.
pub(super) fn another() -> sqlx::Error {
    sqlx::Error::Configuration(
        format!("a statement ran on another session than its connection's, as behind a connection pooler; {STRAIGHT}").into(),
    )
}

/// A pooler that takes no settings says so in its own words.
fn refused_by_pooler(error: sqlx::Error) -> sqlx::Error {
    match &error {
        sqlx::Error::Database(said) if said.message().contains("startup parameter") => {
            sqlx::Error::Configuration(
                format!(
                    "a connection pooler takes no settings ({}); {STRAIGHT}",
                    said.message()
                )
                .into(),
            )
        }
        _ => error,
    }
}

fn read_only_server() -> sqlx::Error {
    std::io::Error::other("the server takes no writes: it is a standby, or set to read-only").into()
}

fn token() -> String {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).expect("the system gives random bytes");
    hex::encode(bytes)
}
