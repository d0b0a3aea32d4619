//! The progress bar.

use indicatif::{ProgressBar, ProgressStyle};

/// A progress bar at a terminal, nothing elsewhere.
pub fn bar(what: &str, length: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg} {bar:40} {percent}% {elapsed}")
        .expect("a fixed template");
    ProgressBar::new(length)
        .with_style(style)
        .with_message(what.to_owned())
}
