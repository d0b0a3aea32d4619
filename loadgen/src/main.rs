//! `loadgen` measures an endpoint that speaks Istio's CSR call, whichever CA stands behind it. It
//! shares no code with the daemon, so that a mistake in one is not repeated in the other. Requests
//! are made before the clock starts and answers are verified after it stops.

mod arguments;
mod arrivals;
mod call;
mod commits;
mod csrs;
mod drive;
mod exit;
mod goals;
mod idle;
mod picture;
mod plan;
mod prepare;
mod processes;
mod progress;
mod record;
mod report;
mod requests;
mod section;
mod summary;
mod target;
mod tokens;
mod verify;
mod worker;

use std::process::ExitCode;

use crate::arguments::{Arguments, Command};

fn main() -> ExitCode {
    let arguments = match Arguments::read(std::env::args_os()) {
        Ok(arguments) => arguments,
        // Help and version come this way too, with a status of their own.
        Err(error) => error.exit(),
    };
    let result = match arguments {
        Arguments::Drive(drive) => drive::run(&drive),
        Arguments::Other(Command::Commits(commits)) => commits::run(&commits),
        Arguments::Other(Command::Goals(goals)) => goals::run(&goals),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(exit) => {
            eprintln!("loadgen: {exit}");
            exit.code()
        }
    }
}
