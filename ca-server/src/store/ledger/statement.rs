//! How the SQL of a database is listed: each statement once, with what it may read. The code takes
//! its SQL from the list alone (a test in `tests/rooms.rs` walks the sources), and another test
//! reads the plan of every statement on it.

/// What a statement may read of the ledger's tables and indexes.
#[cfg(test)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reads {
    /// As many rows as it returns or writes, and a page or two to find them.
    Few,
    /// The indexes of marks from end to end: a few entries for each process life, and none for an
    /// issuance.
    Marks,
    /// More, for this reason. Only readers ask such a statement, never a connection that writes.
    Much(#[allow(dead_code, reason = "for whoever reads the list")] &'static str),
}

/// One statement, and values for its parameters as SQL writes them.
#[cfg(test)]
#[derive(Clone, Copy, Debug)]
pub(super) struct Statement {
    pub(super) name: &'static str,
    pub(super) sql: &'static str,
    pub(super) values: &'static str,
    pub(super) reads: Reads,
}

/// `NAME(values): reads = sql;` for each statement makes a constant of the name, and `ALL` for the
/// tests.
macro_rules! statements {
    ($($(#[$doc:meta])* $name:ident($values:literal): $reads:expr, $sql:expr;)*) => {
        $($(#[$doc])* pub(in crate::store::ledger) const $name: &str = $sql;)*

        /// Every statement.
        #[cfg(test)]
        pub(in crate::store::ledger) const ALL: &[$crate::store::ledger::statement::Statement] = {
            use $crate::store::ledger::statement::{Reads::*, Statement};
            &[$(Statement { name: stringify!($name), sql: $sql, values: $values, reads: $reads }),*]
        };
    };
}

pub(super) use statements;
