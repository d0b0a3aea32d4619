//! The facts of a ledger's database that `doctor` judges: what is there, who may do what to it, and
//! by whose clock. Nothing here writes, and nothing here decides what is good.

mod postgres;
mod sqlite;

use std::collections::BTreeMap;

use sqlx::migrate::Migrator;

pub use self::postgres::{LoginFacts, PartitionFacts, PostgresFacts, ServerFacts};
pub use self::sqlite::{Content, FileFacts, SqliteFacts};
use super::location::Location;
pub use super::lock::Writer;
use super::schema::{latest, may_write};
pub use super::status::FEW_MONTHS;
use crate::clock::Clock;

/// What was found.
#[derive(Debug)]
pub enum Inspection {
    /// A SQLite file.
    Sqlite(Box<SqliteFacts>),
    /// A database on a server.
    Postgres(Box<PostgresFacts>),
}

/// How the schema that is there differs from the one that this program makes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SchemaFacts {
    /// The newest migration that was applied; `None`: the database holds no ledger.
    pub version: Option<i64>,
    /// Migrations of this program that were not applied.
    pub missing: Vec<i64>,
    /// Migrations of a later program beside which this one may work.
    pub later: Vec<i64>,
    /// Migrations of a later program that does not let this one write, and those that this program
    /// knows otherwise.
    pub unknown: Vec<i64>,
    /// Objects that are not as the migrations made them.
    pub differences: Vec<Difference>,
}

/// One object of the schema that is not as it was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// `trigger`, `index`, `table` or `view`.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// What is wrong with it.
    pub how: How,
}

/// The way in which an object differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// It should be there and is not.
    Missing,
    /// It is there and does something else.
    Changed,
    /// Somebody else has made it.
    Added,
}

/// Inspects the ledger at `location`. `deep` also has a SQLite file checked for damage, which reads
/// all of it.
pub async fn inspect(location: &Location, deep: bool, clock: &Clock) -> Inspection {
    match location {
        Location::Sqlite(path) => Inspection::Sqlite(Box::new(sqlite::inspect(path, deep).await)),
        Location::Postgres(servers) => {
            Inspection::Postgres(Box::new(postgres::inspect(servers, clock).await))
        }
    }
}

/// The migrations that were applied, by version and checksum, and the oldest program that may
/// write, against those of this program.
fn schema_facts(
    applied: &BTreeMap<i64, Vec<u8>>,
    oldest_writer: Option<i64>,
    program: &Migrator,
) -> SchemaFacts {
    let ours: BTreeMap<i64, &[u8]> = program
        .iter()
        .map(|migration| (migration.version, migration.checksum.as_ref()))
        .collect();
    let missing = ours
        .keys()
        .filter(|version| !applied.contains_key(version))
        .copied()
        .collect();
    let foreign = |(version, sum): &(&i64, &Vec<u8>)| {
        ours.get(version)
            .is_none_or(|known| known != &sum.as_slice())
    };
    let may_write = may_write(oldest_writer.unwrap_or(0), program).is_ok();
    let is_later = |version: &i64| may_write && *version > latest(program);
    let (later, unknown) = applied
        .iter()
        .filter(foreign)
        .map(|(version, _)| *version)
        .partition(is_later);
    SchemaFacts {
        version: applied.keys().max().copied(),
        missing,
        later,
        unknown,
        differences: Vec::new(),
    }
}
