//! The stories, each with a ledger of its own on a PostgreSQL server.

use crate::store::ledger::fixture::World;

fn world() -> World {
    World::postgres()
}

#[path = "beginning.rs"]
mod beginning;
#[path = "failing.rs"]
mod failing;
#[path = "reading.rs"]
mod reading;
#[path = "resuming.rs"]
mod resuming;
#[path = "verifying.rs"]
mod verifying;
#[path = "writing.rs"]
mod writing;
