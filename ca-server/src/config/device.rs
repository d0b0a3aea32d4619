//! Defaults and limits of the settings by which a device is opened and a key signs on it. They are
//! the same in the config as in the file of a signer that is a service of its own.

use std::time::Duration;

/// Limits on `timeout`.
const TIMEOUT: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(100)..=Duration::from_secs(60);

/// Limits on `open_timeout`.
const OPEN_TIMEOUT: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(600);

/// Limits on `sessions`.
const SESSIONS: std::ops::RangeInclusive<u16> = 1..=64;

/// The default of `timeout`.
pub(crate) fn timeout() -> Duration {
    Duration::from_secs(2)
}

/// The default of `open_timeout`.
pub(crate) fn open_timeout() -> Duration {
    Duration::from_secs(10)
}

/// The default of `sessions`.
pub(crate) fn sessions() -> u16 {
    4
}

/// The first of these settings that cannot be, by its key, and why.
pub(crate) fn unfit(
    timeout: Duration,
    open_timeout: Duration,
    init_string: Option<&str>,
    sessions: u16,
) -> Option<(&'static str, &'static str)> {
    let judged = [
        (
            "timeout",
            TIMEOUT.contains(&timeout),
            "lies outside 100ms–60s",
        ),
        (
            "open_timeout",
            OPEN_TIMEOUT.contains(&open_timeout),
            "lies outside 1s–10m",
        ),
        (
            "init_string",
            !init_string.is_some_and(|text| text.contains('\0')),
            "holds a NUL",
        ),
        (
            "sessions",
            SESSIONS.contains(&sessions),
            "lies outside 1–64",
        ),
    ];
    judged
        .into_iter()
        .find(|(_, fits, _)| !fits)
        .map(|(key, _, why)| (key, why))
}
