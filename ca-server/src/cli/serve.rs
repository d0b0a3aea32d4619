//! `ca-server serve`: the daemon, until a signal ends it.

use std::path::Path;

use crate::app::{Options, Server};
use crate::clock::Clock;
use crate::config::Config;
use crate::{cli, telemetry};

use super::Exit;

/// Runs the daemon until SIGINT or SIGTERM; SIGHUP reloads the config.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Go on although the clock is behind the ledger's newest row; the step is recorded.
    #[arg(long)]
    accept_clock: bool,
}

/// Serves.
pub fn run(args: &Args, config: &Path) -> Result<(), Exit> {
    let config = Config::load(config, Clock::default().now()).map_err(Exit::config)?;
    cli::environment::enter(&config.environment)?;
    telemetry::start(&config.log).map_err(Exit::config)?;
    super::block_on(async {
        let server = Server::start(
            config,
            Options {
                accept_clock: args.accept_clock,
                ..Options::default()
            },
        )
        .await?;
        tracing::info!(csr = %server.csr_address(), monitoring = %server.monitoring_address(), version = env!("CARGO_PKG_VERSION"), "serving");
        server.run().await
    })
}
