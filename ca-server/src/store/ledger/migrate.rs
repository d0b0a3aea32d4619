//! What `ca-server migrate` does to a PostgreSQL database, as a role that may: the three roles, the
//! schema, its migrations, and the partitions of the coming months. Running it again does what is
//! missing and nothing else; daemons may run meanwhile.

mod later;
mod partitions;

use std::fmt;

use sqlx::migrate::{MigrateError, Migrator};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, Row as _};

pub(super) use self::partitions::{FENCE, table};
use super::location::{Location, Servers};
use super::lock::{self, WriterLock};
use super::postgres::{SCHEMA, Session, connect, statements};
use super::schema::{DatabaseError, POSTGRES, SQLITE, SchemaError, applied, latest, writable};
use super::sqlite;
use super::sqlite::whole::broken;
use crate::timestamp::{Period, Timestamp};

/// Of `migrate` and `detach`: nobody else's lock is waited for without end; what writers wait for
/// has a shorter limit of its own.
pub(super) const SESSION: Session = Session {
    name: "ca-server migrate",
    settings: &[("search_path", SCHEMA), ("lock_timeout", "10s")],
    unchecked: &[],
};

/// The oldest server that ends silent sessions by itself, which the locks need.
const OLDEST_SERVER: i32 = 140_000;

/// Octets of a role's name; the server cuts what is longer.
const LONGEST_NAME: usize = 63;

/// Logins that are to become members of the roles.
#[derive(Clone, Debug, Default)]
pub struct Logins {
    /// Those of daemons.
    pub application: Vec<String>,
    /// Those of auditors.
    pub auditor: Vec<String>,
}

/// What was done.
#[derive(Clone, Debug, Default)]
pub struct Migrated {
    /// The roles' names: owner, application, auditor. None for a file.
    pub roles: Option<[String; 3]>,
    /// Roles that were made now.
    pub roles_made: Vec<String>,
    /// The last migration that is applied.
    pub version: i64,
    /// Partitions that were made now.
    pub partitions_made: Vec<Period>,
    /// The last month that has a partition.
    pub last_partition: Option<Period>,
    /// Months whose rows stand in the default partition, and stay there.
    pub in_default: Vec<Period>,
}

/// Why it was not done, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum MigrationError {
    /// The database cannot be reached or does not work.
    #[error("{0} cannot be migrated: {1}")]
    Unavailable(String, String),
    /// The operator must change something first.
    #[error("{0}")]
    Refused(String),
}

/// Brings the ledger at `location` up to this program's schema, and its partitions up to two years
/// after `now`.
pub async fn migrate(
    location: &Location,
    logins: &Logins,
    now: Timestamp,
) -> Result<Migrated, MigrationError> {
    let unavailable = |error: &dyn fmt::Display| {
        MigrationError::Unavailable(location.to_string(), error.to_string())
    };
    match location {
        Location::Sqlite(path) => {
            let path = &lock::resolve(path).map_err(|error| unavailable(&error))?;
            let held = WriterLock::take(path).map_err(|error| unavailable(&error))?;
            let _held = held.ok_or_else(|| {
                MigrationError::Refused(format!("{location} is written by a daemon; stop it first"))
            })?;
            // Closing it would copy a log that is not its own into it.
            if let Some(cause) = broken(path).await {
                return Err(MigrationError::Refused(format!(
                    "{location} is left as it is: {cause}"
                )));
            }
            let mut database = sqlite::Database::writer(path)
                .await
                .map_err(|error| unavailable(&error))?;
            database
                .prepare_schema()
                .await
                .map_err(|error| MigrationError::Refused(error.to_string()))?;
            let version = latest(&SQLITE);
            database
                .close()
                .await
                .map_err(|error| unavailable(&error))?;
            Ok(Migrated {
                version,
                ..Migrated::default()
            })
        }
        Location::Postgres(servers) => on_postgres(servers, logins, now, &POSTGRES)
            .await
            .map_err(|failed| failed.at(location)),
    }
}

/// Why a server's schema is left as it is.
pub(super) enum Failed {
    Database(DatabaseError),
    Refused(String),
}

impl Failed {
    pub(super) fn at(self, location: &Location) -> MigrationError {
        match self {
            Self::Database(error) => {
                MigrationError::Unavailable(location.to_string(), error.to_string())
            }
            Self::Refused(text) => MigrationError::Refused(text),
        }
    }
}

impl From<DatabaseError> for Failed {
    fn from(error: DatabaseError) -> Self {
        Self::Database(error)
    }
}

impl From<SchemaError> for Failed {
    fn from(error: SchemaError) -> Self {
        match error {
            SchemaError::Database(error) => Self::Database(error),
            other => Self::Refused(other.to_string()),
        }
    }
}

/// `migrations` are the program's own, or those of a later one that is tried out.
pub(super) async fn on_postgres(
    servers: &Servers,
    logins: &Logins,
    now: Timestamp,
    migrations: &Migrator,
) -> Result<Migrated, Failed> {
    let (mut connection, _) = connect(servers, &SESSION, true).await?;
    let facts = connection.fetch_one(statements::MIGRATOR).await?;
    let (number, version, database): (i32, String, String) =
        (facts.try_get(0)?, facts.try_get(1)?, facts.try_get(2)?);
    let (login, makes_roles): (String, bool) = (facts.try_get(3)?, facts.try_get(4)?);
    if number < OLDEST_SERVER {
        return Err(Failed::Refused(format!(
            "the server is PostgreSQL {version}; the ledger needs 14 or newer"
        )));
    }
    let roles = ["owner", "application", "auditor"].map(|role| format!("{database}_{role}"));
    if roles.iter().any(|role| role.len() > LONGEST_NAME) {
        return Err(Failed::Refused(
            "the database's name is too long for its roles' names; 51 octets at most".into(),
        ));
    }
    let mut done = Migrated::default();
    for role in &roles {
        if make_role(&mut connection, role, &login, makes_roles).await? {
            done.roles_made.push(role.clone());
        }
    }
    let [owner, application, auditor] = &roles;
    become_member(&mut connection, owner, &login, number).await?;
    make_schema(&mut connection, owner, &login).await?;
    for (role, members) in [
        (application, &logins.application),
        (auditor, &logins.auditor),
    ] {
        for member in members {
            run(
                &mut connection,
                format!("GRANT {} TO {}", quoted(role), quoted(member)),
            )
            .await
            .map_err(|error| refused_by(error, member))?;
        }
    }
    run(&mut connection, format!("SET ROLE {}", quoted(owner))).await?;
    writable(&mut connection, migrations).await?;
    later::run(&mut connection, migrations)
        .await
        .map_err(|error| match error {
            MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => {
                Failed::Database(error)
            }
            other => Failed::Refused(format!(
                "the ledger's schema is not one that this program can continue: {other}"
            )),
        })?;
    done.version = applied(&mut connection).await?.unwrap_or(0);
    let extended = partitions::extend(&mut connection, now).await?;
    (done.partitions_made, done.last_partition, done.in_default) =
        (extended.made, extended.last, extended.in_default);
    done.roles = Some(roles);
    connection.close().await?;
    Ok(done)
}

/// Makes a role that cannot log in, unless it is there. Whether it was made.
async fn make_role(
    connection: &mut PgConnection,
    role: &str,
    login: &str,
    makes_roles: bool,
) -> Result<bool, Failed> {
    if let Some(found) = connection
        .fetch_optional(sqlx::query(statements::ROLE_CAN_LOG_IN).bind(role))
        .await?
    {
        let refused = || {
            Failed::Refused(format!(
                "the role {role} is there and can log in or is a superuser; it must be a group that cannot"
            ))
        };
        return if found.try_get(0)? {
            Err(refused())
        } else {
            Ok(false)
        };
    }
    if !makes_roles {
        let remedy = format!(
            "run it as a role with CREATEROLE, or have one run: CREATE ROLE {} NOLOGIN",
            quoted(role)
        );
        return Err(Failed::Refused(format!(
            "the login {login} may not make the role {role}; {remedy}"
        )));
    }
    run(connection, format!("CREATE ROLE {} NOLOGIN", quoted(role))).await?;
    Ok(true)
}

/// What the owner owns must be made as the owner.
async fn become_member(
    connection: &mut PgConnection,
    owner: &str,
    login: &str,
    server: i32,
) -> Result<(), Failed> {
    // From 16 on whoever makes a role is its member, but may not become it.
    let privilege = if server >= 160_000 { "SET" } else { "MEMBER" };
    let asked = sqlx::query(statements::HAS_ROLE)
        .bind(owner)
        .bind(privilege);
    if connection.fetch_one(asked).await?.try_get::<bool, _>(0)? {
        return Ok(());
    }
    run(
        connection,
        format!("GRANT {} TO {}", quoted(owner), quoted(login)),
    )
    .await
    .map_err(|error| refused_by(error, owner))
}

async fn make_schema(
    connection: &mut PgConnection,
    owner: &str,
    login: &str,
) -> Result<(), Failed> {
    let asked = sqlx::query(statements::SCHEMA_OWNER).bind(SCHEMA);
    if let Some(found) = connection.fetch_optional(asked).await? {
        let of: String = found.try_get(0)?;
        let refused = || {
            Failed::Refused(format!(
                "the schema {SCHEMA} belongs to {of}, who could drop the ledger; it must belong to {owner}"
            ))
        };
        return if of == owner { Ok(()) } else { Err(refused()) };
    }
    let made = run(
        connection,
        format!("CREATE SCHEMA {SCHEMA} AUTHORIZATION {}", quoted(owner)),
    )
    .await;
    made.map_err(|error| {
        Failed::Refused(format!("the login {login} may not make the schema {SCHEMA} ({error}); run it as the database's owner"))
    })
}

fn refused_by(error: DatabaseError, role: &str) -> Failed {
    match error {
        DatabaseError::Database(said) => Failed::Refused(format!(
            "membership of or in {role} cannot be granted: {}",
            said.message()
        )),
        other => Failed::Database(other),
    }
}

async fn run(connection: &mut PgConnection, sql: String) -> Result<(), DatabaseError> {
    connection.execute(AssertSqlSafe(sql)).await.map(drop)
}

/// A name as SQL writes it.
pub(super) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
