//! The environment that device modules read (`SOFTHSM2_CONF` and the like) is the process's own and
//! must be there before any thread starts, so the program executes itself once more with it.

use std::collections::BTreeMap;
use std::os::unix::process::CommandExt;
use std::process::Command;

use super::Exit;

/// Set in the second life, so that there is never a third.
const ENTERED: &str = "CA_SERVER_ENVIRONMENT_ENTERED";

/// Returns if every variable already has its value; else replaces this process by itself with them.
/// Call before any thread starts.
pub fn enter(variables: &BTreeMap<String, String>) -> Result<(), Exit> {
    let differs = |(name, value): (&String, &String)| {
        std::env::var_os(name).is_none_or(|present| present != value.as_str())
    };
    if !variables.iter().any(differs) {
        return Ok(());
    }
    if std::env::var_os(ENTERED).is_some() {
        return Err(Exit::config(
            "the environment of [device] does not stay set in a process started with it",
        ));
    }
    let mut arguments = std::env::args_os();
    let name = arguments.next();
    let mut command = Command::new("/proc/self/exe");
    if let Some(name) = name {
        command.arg0(name);
    }
    let error = command
        .args(arguments)
        .envs(variables)
        .env(ENTERED, "1")
        .exec();
    Err(Exit::missing(format_args!(
        "cannot execute itself again with the environment of [device]: {error}"
    )))
}
