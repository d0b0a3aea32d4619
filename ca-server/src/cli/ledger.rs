//! `ca-server ledger`: what an operator does to the ledger's database once in a while, beside the
//! daemons.

use std::path::Path;

use clap::Subcommand;

use super::Exit;
use super::ledger_url::LedgerArgs;
use crate::clock::Clock;
use crate::store::ledger::{self, Detached, MigrationError};
use crate::timestamp::Period;

/// Look after the ledger's database.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    ledger: LedgerArgs,
    #[command(subcommand)]
    deed: Deed,
}

#[derive(Debug, Subcommand)]
enum Deed {
    /// Take the oldest month out of a PostgreSQL ledger, into a table of its own; daemons may run
    /// meanwhile.
    ///
    /// The rows stay where they are, append-only as before, in ca_server.event_<month>. Export and
    /// verify first. Run it as the login that runs `ca-server migrate`. A month that is still
    /// needed is refused: one that is not over, or in which a chain has rows that has not ended or
    /// whose end no later chain names.
    Detach {
        /// The month, such as 202611
        #[arg(value_name = "YYYYMM", value_parser = period)]
        month: Period,
    },
}

fn period(text: &str) -> Result<Period, String> {
    let digits = text.replace('-', "");
    let period = digits
        .parse()
        .ok()
        .filter(|_| digits.len() == 6)
        .and_then(Period::new);
    period.ok_or_else(|| "write a month as 202611".to_owned())
}

/// Does the deed, and says what was done.
pub fn run(args: &Args, config: &Path) -> Result<(), Exit> {
    let location = args.ledger.location(config)?;
    match &args.deed {
        Deed::Detach { month } => {
            let done = super::block_on(async {
                ledger::detach(&location, *month, Clock::default().now())
                    .await
                    .map_err(|error| match error {
                        MigrationError::Refused(_) => Exit::refused(error),
                        MigrationError::Unavailable(..) => Exit::missing(error),
                    })
            })?;
            super::print(report(*month, &done))
        }
    }
}

fn report(month: Period, done: &Detached) -> String {
    let Detached {
        table,
        size,
        verifiable_since,
    } = done;
    format!(
        "{month} is detached: its rows stand in ca_server.{table} ({size} octets), append-only, and no more in the ledger.\n\
         Check what is left with: ca-server audit verify --since {verifiable_since}\n\
         Keep the rows elsewhere with: pg_dump --table=ca_server.{table}\n"
    )
}
