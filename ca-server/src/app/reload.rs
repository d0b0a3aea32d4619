//! SIGHUP: read, validate everything, file what is in force from now on, then swap. A bad file
//! changes nothing.

use std::sync::Arc;
use std::time::Instant;

use super::{Daemon, snapshot};
use crate::cli::Exit;
use crate::config::Config;
use crate::front::tls;

impl Daemon {
    /// Reads the config again; on any fault the one in force stays, and one sentence says why.
    pub(super) async fn reload(&self) {
        let result = self.try_reload().await;
        self.metrics.reloaded(result.is_ok());
        match result {
            Ok(()) => tracing::info!("config reloaded"),
            Err(exit) => tracing::error!("config not reloaded, the former stays in force: {exit}"),
        }
    }

    async fn try_reload(&self) -> Result<(), Exit> {
        let mut in_force = self.config.lock().await;
        let config = Config::load(&in_force.path, self.clock.now()).map_err(Exit::config)?;
        if let Some(key) = in_force.needs_restart(&config) {
            return Err(Exit::config(format_args!(
                "`{key}` has changed, which needs a restart"
            )));
        }
        if let Some(id) = in_force.reused_issuer_id(&config) {
            return Err(Exit::config(format_args!(
                "issuer {id} has another key than before; give a new issuing key a new id"
            )));
        }
        let before = self.pipeline.snapshot();
        // One order, so that several issuers in one token cost one try of their PIN, and what is
        // started now has had its own.
        let ordered = Instant::now();
        let parts = snapshot::build(
            &config,
            &self.metrics,
            self.clock.now(),
            ordered,
            Some(&before),
        )
        .await?;
        let tls = tls::server_config(self.serving.clone(), parts.verifier)
            .map_err(|error| Exit::config(format_args!("TLS: {error}")))?;
        let recorded = self
            .ledger
            .reloaded(snapshot::facts(&config), config.digest)
            .await;
        recorded.map_err(|refusal| {
            Exit::missing(format_args!("the reload cannot be recorded: {refusal}"))
        })?;
        for warning in &config.warnings {
            tracing::warn!("{warning}");
        }
        for signer in parts
            .snapshot
            .issuers
            .0
            .iter()
            .filter_map(|issuer| issuer.signer.as_ref())
        {
            signer.retry_login_ordered_at(ordered);
        }
        snapshot::show(&self.metrics, &parts.snapshot);
        self.metrics.serving_ends(self.serving_ends.get());
        self.pipeline.swap(parts.snapshot);
        self.tls.store(Arc::new(tls));
        *in_force = config;
        // The default issuer may be another now.
        self.renew.notify_one();
        Ok(())
    }

    /// Ends every signer's threads, so that none is inside a module when the process exits.
    pub(super) async fn stop_signers(&self) {
        let snapshot = self.pipeline.snapshot();
        let signers = snapshot
            .issuers
            .0
            .iter()
            .filter_map(|issuer| issuer.signer.clone());
        let stopping = signers.map(|signer| tokio::task::spawn_blocking(move || signer.stop()));
        futures_util::future::join_all(stopping).await;
    }
}
