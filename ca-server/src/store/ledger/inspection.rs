//! The facts of a ledger's database that `doctor` judges: what is there, who may do what to it, and by whose clock. Nothing here writes,
//! and nothing here decides what is good.

mod sqlite;

use std::path::Path;

pub use self::sqlite::{Content, FileFacts, SqliteFacts};
pub use super::lock::Writer;

/// What was found.
#[derive(Debug)]
pub enum Inspection {
    /// A SQLite file.
    Sqlite(SqliteFacts),
}

/// How the schema that is there differs from the one that this program makes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SchemaFacts {
    /// The newest migration that was applied; `None`: the database holds no ledger.
    pub version: Option<i64>,
    /// Migrations of this program that were not applied.
    pub missing: Vec<i64>,
    /// Migrations that were applied and that this program does not know, or knows otherwise.
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

/// Inspects the ledger at `location`. `deep` also has the database check its own structure, which reads all of it.
pub async fn inspect(location: &Path, deep: bool) -> Inspection {
    Inspection::Sqlite(sqlite::inspect(location, deep).await)
}
