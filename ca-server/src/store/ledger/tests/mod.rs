//! The ledger's rules, each by its name. What holds on both databases is told once and run on each.

#![allow(
    clippy::duplicate_mod,
    reason = "each story is told once and compiled for each database"
)]

mod copies;
mod detaching;
mod files;
mod format;
mod migrating;
mod on_postgres;
mod on_sqlite;
mod plans;
mod processes;
mod servers;
