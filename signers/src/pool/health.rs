//! What a pool tells of itself when asked.

use super::state::{Seat, Shared};

/// Whether a pool can sign now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HealthState {
    /// At least one thread has a session and is not stuck.
    Ready,
    /// Every thread with a session is inside a device call that is past its deadline.
    Stuck,
    /// No thread has a session; reopening is tried again and again.
    Lost,
    /// No thread has a session, because the token refused the PIN; nothing is tried until
    /// `retry_login` or a restart.
    Locked,
    /// Its process has ended a moment ago and is being replaced; jobs wait for that.
    Restarting,
    /// It has been stopped.
    Stopped,
}

/// How a pool is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// Whether it can sign now.
    pub state: HealthState,
    /// Threads, with a session or without.
    pub threads: usize,
    /// Threads that have a session.
    pub open: usize,
    /// Threads whose device call, for a signature or a session, is past its limit and has not
    /// returned.
    pub stuck: usize,
    /// Jobs that wait.
    pub queued: usize,
    /// One sentence for people.
    pub detail: String,
}

impl Health {
    /// Whether it can sign now.
    pub fn is_ready(&self) -> bool {
        // A process that is replaced at once costs calls a moment and is no reason to send them
        // elsewhere.
        matches!(self.state, HealthState::Ready | HealthState::Restarting)
    }
}

impl Shared {
    pub(super) fn health(&self) -> Health {
        let stuck = self.stuck_now();
        let state = self.lock();
        let threads = self.seats();
        let open = state
            .seats
            .iter()
            .filter(|seat| **seat == Seat::Serving)
            .count();
        // One that is stuck while it opens a session keeps nobody else from signing.
        let stuck_open = state
            .seats
            .iter()
            .enumerate()
            .filter(|(at, seat)| **seat == Seat::Serving && self.is_stuck(*at))
            .count();
        let trouble = || {
            state
                .trouble
                .as_ref()
                .map_or_else(|| "no session is open yet".to_owned(), ToString::to_string)
        };
        let (health, detail) = if state.closed {
            (HealthState::Stopped, "stopped".to_owned())
        } else if open > stuck_open {
            let kind = if self.source.uri().is_file() {
                "; the key is a PEM file, not in a device"
            } else {
                ""
            };
            (
                HealthState::Ready,
                format!("{open} of {threads} sessions open, {stuck} stuck{kind}"),
            )
        } else if stuck_open > 0 {
            (
                HealthState::Stuck,
                format!("all {stuck_open} open sessions are stuck inside the device"),
            )
        } else if state.locked {
            (HealthState::Locked, trouble())
        } else {
            (HealthState::Lost, trouble())
        };
        Health {
            state: health,
            threads,
            open,
            stuck,
            queued: state.jobs.len(),
            detail,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::file::FileDevice;
    use crate::pool::PoolOptions;
    use crate::pool::source::Source;
    use crate::{Device, KeyKind, KeyUri};

    #[test]
    fn a_session_that_hangs_while_it_is_opened_keeps_nobody_else_from_signing() {
        let key = FileDevice::generate(KeyKind::P256).unwrap();
        let source = Source::new(KeyUri::File("/nowhere/key.pem".into()), None, false);
        // The first seat has the session that the start has opened, the other opens its own.
        let shared = Shared::new(
            source,
            key.public_key().clone(),
            PoolOptions {
                threads: 2,
                ..PoolOptions::default()
            },
        );
        let is = || {
            let health = shared.health();
            (health.state, health.open, health.stuck)
        };
        assert_eq!(is(), (HealthState::Ready, 1, 0));
        shared.enter(1, Instant::now() + Duration::from_secs(60));
        assert_eq!(is(), (HealthState::Ready, 1, 0), "it has time");
        shared.enter(1, Instant::now());
        assert_eq!(is(), (HealthState::Ready, 1, 1));
        shared.enter(0, Instant::now());
        assert_eq!(is(), (HealthState::Stuck, 1, 2), "now nobody signs");
        shared.leave(0);
        assert_eq!(is(), (HealthState::Ready, 1, 1));
    }
}
