//! `loadgen` measures an endpoint that speaks Istio's CSR call, whichever CA stands behind it. It shares no code with the daemon, so
//! that a mistake in one is not repeated in the other. Requests are made before the clock starts and answers are verified after it stops.

mod arguments;
mod arrivals;
mod call;
mod commits;
mod csrs;
mod drive;
mod exit;
mod goals;
mod picture;
mod plan;
mod prepare;
mod processes;
mod record;
mod report;
mod requests;
mod summary;
mod target;
mod tokens;
mod verify;
mod worker;

use std::process::ExitCode;

use clap::Parser;

use crate::arguments::{Arguments, Command};

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = match (arguments.command, arguments.drive) {
        (Some(Command::Commits(commits)), _) => commits::run(&commits),
        (Some(Command::Goals(goals)), _) => goals::run(&goals),
        (None, Some(drive)) => drive::run(&drive),
        (None, None) => Err(exit::Exit::usage("nothing to do: see loadgen --help")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(exit) => {
            eprintln!("loadgen: {exit}");
            exit.code()
        }
    }
}
