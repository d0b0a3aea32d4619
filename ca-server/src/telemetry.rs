//! Logging set-up: to standard error, for people or as JSON, filtered by the config.

use std::sync::{Mutex, PoisonError};

use tracing_subscriber::EnvFilter;

use crate::config::{Log, LogFormat};
use crate::output;
use crate::timestamp::Timestamp;

/// Starts logging for the life of the process. `Err` holds why the filter is not understood.
pub fn start(log: &Log) -> Result<(), String> {
    let filter = EnvFilter::try_new(&log.level)
        .map_err(|error| format!("`log.level` {:?} is not understood: {error}", log.level))?;
    let to = output::Log::open();
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(move || to)
        .log_internal_errors(false);
    let started = match log.format {
        LogFormat::Json => builder
            .json()
            .flatten_event(true)
            .with_current_span(true)
            .with_span_list(false)
            .try_init(),
        LogFormat::Text => builder.with_ansi(output::error_is_terminal()).try_init(),
    };
    // Already started is fine: a verb may start the server after its own work.
    drop(started);
    Ok(())
}

/// Refusals that are logged in one second.
const LOGGED_A_SECOND: u32 = 50;

/// How many refusals the present second may still log. The ledger and the metrics have all of them,
/// and a flood must not fill a disk.
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
            tracing::warn!(
                "more refusals in this second; they are in the ledger and on /metrics only"
            );
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
        let logged = |second| {
            (0..1000)
                .filter(|_| budget.take(Timestamp::from_seconds(second)))
                .count()
        };
        assert_eq!((logged(1), logged(2)), (49, 49));
    }
}
