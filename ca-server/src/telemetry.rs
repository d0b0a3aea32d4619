//! Logging set-up: to standard error, for people or as JSON, filtered by the config.

use std::fs::File;
use std::io::Write;
use std::sync::{Mutex, OnceLock, PoisonError};

use tracing_subscriber::EnvFilter;

use crate::config::{Log, LogFormat};
use crate::timestamp::Timestamp;

/// Starts logging for the life of the process. `Err` holds why the filter is not understood.
pub fn start(log: &Log) -> Result<(), String> {
    let filter = EnvFilter::try_new(&log.level).map_err(|error| format!("`log.level` {:?} is not understood: {error}", log.level))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer);
    let started = match log.format {
        LogFormat::Json => builder.json().flatten_event(true).with_current_span(true).with_span_list(false).try_init(),
        LogFormat::Text => builder.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).try_init(),
    };
    // Already started is fine: a verb may start the server after its own work.
    drop(started);
    Ok(())
}

/// From here on the log has a way of its own to standard error, and what anybody else writes there goes to standard output. For a process in
/// which a device's library may print; call it before `start`.
pub fn keep_apart_from_a_library() -> std::io::Result<()> {
    let log = rustix::io::fcntl_dupfd_cloexec(std::io::stderr(), 3)?;
    rustix::stdio::dup2_stderr(std::io::stdout())?;
    // Only the first way counts: a second would be standard output.
    let _ = LOG.set(log.into());
    Ok(())
}

/// Where the log goes, where that is not standard error.
static LOG: OnceLock<File> = OnceLock::new();

/// The log's way out.
fn writer() -> Box<dyn Write> {
    match LOG.get() {
        Some(log) => Box::new(log),
        None => Box::new(std::io::stderr()),
    }
}

/// Refusals that are logged in one second.
const LOGGED_A_SECOND: u32 = 50;

/// How many refusals the present second may still log. The ledger and the metrics have all of them, and a flood must not fill a disk.
#[derive(Debug, Default)]
pub struct LogBudget(Mutex<(i64, u32)>);

impl LogBudget {
    /// Whether one more may be logged at `now`. The last of a second says that there are more.
    pub fn take(&self, now: Timestamp) -> bool {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.0 != now.seconds() {
            *state = (now.seconds(), 0);
        }
        state.1 = state.1.saturating_add(1);
        if state.1 == LOGGED_A_SECOND {
            tracing::warn!("more refusals in this second; they are in the ledger and on /metrics only");
        }
        state.1 < LOGGED_A_SECOND
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_logs_so_many_refusals_a_second_and_no_more() {
        let budget = LogBudget::default();
        let logged = |second| (0..1000).filter(|_| budget.take(Timestamp::from_seconds(second))).count();
        assert_eq!((logged(1), logged(2)), (49, 49));
    }
}
