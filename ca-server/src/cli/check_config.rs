//! `ca-server check-config`: reads the config and every file it names, as `serve` would, and opens
//! no device.

use std::path::Path;

use crate::clock::Clock;
use crate::config::Config;

use super::{Exit, print};

/// Checks.
pub fn run(path: &Path) -> Result<(), Exit> {
    let config = Config::load(path, Clock::default().now()).map_err(Exit::config)?;
    for warning in &config.warnings {
        print(format_args!("warning: {warning}\n"))?;
    }
    print(format_args!(
        "{} is good: {} issuer(s), {} token issuer(s), CSR on {}\n",
        path.display(),
        config.issuers.len(),
        config.jwt.len(),
        config.csr_listen
    ))
}
