//! `ca-server migrate`: makes or extends the ledger's database, as a role that may. Daemons log in
//! as lesser roles and never do this.

use std::path::Path;

use super::Exit;
use super::ledger_url::LedgerArgs;
use crate::clock::Clock;
use crate::store::ledger::{self, Location, Logins, Migrated, MigrationError};

/// Make or extend the ledger's database.
///
/// Makes the roles <database>_owner, <database>_application and <database>_auditor, the schema
/// ca_server, and a partition for each of the coming 24 months. Run it as a login that may create
/// roles, first and then once a year; daemons may run meanwhile. A SQLite ledger needs none of
/// this: the daemon makes it.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    ledger: LedgerArgs,
    /// A login of daemons, made a member of <database>_application; may be repeated
    #[arg(long, value_name = "LOGIN")]
    application: Vec<String>,
    /// A login of auditors, made a member of <database>_auditor; may be repeated
    #[arg(long, value_name = "LOGIN")]
    auditor: Vec<String>,
}

/// Migrates, and says what was done.
pub fn run(args: &Args, config: &Path) -> Result<(), Exit> {
    let location = args.ledger.location(config)?;
    let logins = Logins {
        application: args.application.clone(),
        auditor: args.auditor.clone(),
    };
    let done = super::block_on(async { migrate(&location, &logins).await })?;
    super::print(report(&location, &done))
}

/// The migration itself; its errors as exits.
pub(super) async fn migrate(location: &Location, logins: &Logins) -> Result<Migrated, Exit> {
    ledger::migrate(location, logins, Clock::default().now())
        .await
        .map_err(|error| match error {
            MigrationError::Refused(_) => Exit::refused(error),
            MigrationError::Unavailable(..) => Exit::missing(error),
        })
}

fn report(location: &Location, done: &Migrated) -> String {
    let mut text = format!("{location}: the schema is at version {}\n", done.version);
    let Some([owner, application, auditor]) = &done.roles else {
        return text;
    };
    for role in &done.roles_made {
        text += &format!("made the role {role}\n");
    }
    let list = |periods: &[crate::timestamp::Period]| {
        periods
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(", ")
    };
    if !done.partitions_made.is_empty() {
        text += &format!("made the partitions {}\n", list(&done.partitions_made));
    }
    if let Some(last) = done.last_partition {
        text += &format!("there are partitions until {last}\n");
    }
    if !done.in_default.is_empty() {
        text += &format!(
            "rows of {} stand in the default partition and stay there\n",
            list(&done.in_default)
        );
    }
    text += &format!(
        "Everything belongs to {owner}. Grant {application} to the daemons' login and {auditor} to the auditors', or run this\n"
    );
    text += "again with --application LOGIN and --auditor LOGIN.\n";
    text
}
