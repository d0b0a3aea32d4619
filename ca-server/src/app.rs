//! The composition root: config → parts → listeners → reload → orderly shutdown. Alone knows every
//! room.

mod devices;
mod reload;
mod serving;
pub(crate) mod signers;
pub(crate) mod snapshot;
mod watched;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Mutex, Notify, mpsc, watch};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;

use crate::cli::Exit;
use crate::clock::Clock;
use crate::config::Config;
use crate::fairness::CONNECTIONS;
use crate::front::call_limit::CallLimit;
use crate::front::grpc::Certificates;
use crate::front::monitoring;
use crate::front::tls::{self, Connection, ServingCertificate};
use crate::front::{Admits, OnRefusal};
use crate::issue::{PERMITS, Pipeline};
use crate::metrics::Metrics;
use crate::policy::ServingName;
use crate::store::ledger::{Ledger, LedgerObserver, LedgerOptions, LedgerStartError, Prepared};

/// Calls on one connection at a time; ztunnel multiplexes a node's workloads over few connections.
const MAX_STREAMS: u32 = 250;
/// The largest list of headers, names and values and 32 octets for each (RFC 9113 §6.5.2): tokens
/// are a few kilobytes. A list of many small ones takes several times as much while it is read;
/// `CallLimit` keeps what is used of it.
const MAX_HEADERS: u32 = 16 * 1024;
/// Our own pings find peers that are gone; those of clients are always answered.
const PING_EVERY: Duration = Duration::from_secs(60);
const PING_ANSWERED_WITHIN: Duration = Duration::from_secs(20);
/// What shutdown may take beyond the limit of a call.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(2);

/// What a start may be told beside the config.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Go on although the clock is behind the ledger.
    pub accept_clock: bool,
    /// Other ports than the config's; the config itself stays as it is in its file, so that a
    /// reload finds it unchanged.
    pub ports: Ports,
}

/// Ports that stand in for the config's; 0 takes a free one.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ports {
    /// Instead of that in `csr.listen`.
    pub csr: Option<u16>,
    /// Instead of that in `monitoring.listen`.
    pub monitoring: Option<u16>,
}

/// `address` with another port where one is given.
pub fn with_port(mut address: SocketAddr, port: Option<u16>) -> SocketAddr {
    if let Some(port) = port {
        address.set_port(port);
    }
    address
}

/// The parts that live as long as the daemon.
struct Daemon {
    config: Mutex<Config>,
    names: Vec<ServingName>,
    call_timeout: Duration,
    pipeline: Arc<Pipeline>,
    ledger: Ledger,
    metrics: Arc<Metrics>,
    clock: Clock,
    serving: Arc<ServingCertificate>,
    serving_ends: serving::Ends,
    renew: Notify,
    tls: Arc<ArcSwap<ServerConfig>>,
}

/// A running daemon.
pub struct Server {
    daemon: Arc<Daemon>,
    csr_address: SocketAddr,
    monitoring_address: SocketAddr,
    stop: watch::Sender<bool>,
    csr: JoinHandle<Result<(), tonic::transport::Error>>,
    monitoring: JoinHandle<()>,
    renewal: JoinHandle<()>,
    devices: JoinHandle<()>,
    hangup: Signal,
}

impl Server {
    /// Opens everything and serves. Ports first, so that a taken one costs nothing; the ledger's
    /// lock before any device; the ledger's first row last, so that a start that fails writes
    /// nothing.
    pub async fn start(config: Config, options: Options) -> Result<Self, Exit> {
        set_process_limits();
        // From here on a SIGHUP waits until the daemon runs; before, it would have ended the
        // process.
        let hangup = signals(SignalKind::hangup())?;
        for warning in &config.warnings {
            tracing::warn!("{warning}");
        }
        let clock = Clock::default();
        let metrics = Arc::new(Metrics::new());
        let csr_listener = listen(
            "csr.listen",
            with_port(config.csr_listen, options.ports.csr),
        )
        .await?;
        let monitoring_listener = listen(
            "monitoring.listen",
            with_port(config.monitoring_listen, options.ports.monitoring),
        )
        .await?;
        let prepared = prepare_ledger(&config, options, &metrics, clock.clone()).await?;
        let parts = snapshot::build(&config, &metrics, clock.now(), Instant::now(), None).await?;
        let serving = Arc::new(ServingCertificate::default());
        let tls_config = tls::server_config(serving.clone(), parts.verifier)
            .map_err(|error| Exit::config(format_args!("TLS: {error}")))?;
        let ledger = prepared.begin().await.map_err(unusable)?;
        let tls_config = Arc::new(ArcSwap::from_pointee(tls_config));
        snapshot::show(&metrics, &parts.snapshot);
        let daemon = Arc::new(Daemon {
            call_timeout: config.call_timeout,
            names: config.names.clone(),
            pipeline: Arc::new(Pipeline::new(
                parts.snapshot,
                ledger.clone(),
                clock.clone(),
                metrics.clone(),
            )),
            config: Mutex::new(config),
            ledger,
            metrics,
            clock,
            serving,
            serving_ends: serving::Ends::default(),
            renew: Notify::new(),
            tls: tls_config,
        });
        let (csr_address, monitoring_address) =
            (address(&csr_listener)?, address(&monitoring_listener)?);
        let stop = watch::Sender::new(false);
        let csr = tokio::spawn(serve_csr(daemon.clone(), csr_listener, stop.subscribe()));
        let watched: Arc<dyn monitoring::Watched> = Arc::new(watched::View(daemon.clone()));
        let monitoring = tokio::spawn(monitoring::serve(
            monitoring_listener,
            monitoring::router(watched.clone()),
            watched,
        ));
        let renewal = tokio::spawn(serving::keep_fresh(daemon.clone()));
        let devices = tokio::spawn(devices::file_changes(daemon.clone()));
        Ok(Self {
            daemon,
            csr_address,
            monitoring_address,
            stop,
            csr,
            monitoring,
            renewal,
            devices,
            hangup,
        })
    }

    /// Where CSR calls are answered.
    pub fn csr_address(&self) -> SocketAddr {
        self.csr_address
    }

    /// Where monitoring is answered.
    pub fn monitoring_address(&self) -> SocketAddr {
        self.monitoring_address
    }

    /// Waits until every required check of readiness is well; after `limit`, says what is not.
    pub async fn ready(&self, limit: Duration) -> Result<(), Exit> {
        let until = tokio::time::Instant::now() + limit;
        loop {
            let unwell = self
                .daemon
                .checks()
                .into_iter()
                .find(|check| check.required && !check.ready);
            match unwell {
                None => return Ok(()),
                Some(check) if tokio::time::Instant::now() >= until => {
                    return Err(Exit::missing(format_args!(
                        "not ready: {}: {}",
                        check.name, check.detail
                    )));
                }
                Some(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    }

    /// Serves until SIGINT or SIGTERM, then stops in order; SIGHUP reloads the config, a second
    /// ending signal ends at once. Whatever it is made of lasts as long as it does: when a part
    /// ends before, this ends too, with a status after which its unit starts it again.
    pub async fn run(mut self) -> Result<(), Exit> {
        let mut interrupt = signals(SignalKind::interrupt())?;
        let mut terminate = signals(SignalKind::terminate())?;
        // In turn and beside the loop: a device that hangs in a reload must not keep the ending
        // signals from being heard.
        let (reloads, mut asked) = watch::channel(());
        let daemon = self.daemon.clone();
        let mut reloading = tokio::spawn(async move {
            while asked.changed().await.is_ok() {
                daemon.reload().await;
            }
        });
        let ended = loop {
            tokio::select! {
                _ = self.hangup.recv() => reloads.send_replace(()),
                _ = interrupt.recv() => break None,
                _ = terminate.recv() => break None,
                () = self.daemon.ledger.ended() => break Some("the ledger's writer has ended, and nothing more can be recorded"),
                _ = &mut self.csr => break Some("the CSR listener has ended"),
                _ = &mut self.monitoring => break Some("the monitoring listener has ended"),
                _ = &mut self.renewal => break Some("the renewal of the serving certificate has ended"),
                _ = &mut self.devices => break Some("the watch over the devices has ended"),
                _ = &mut reloading => break Some("a reload has ended before its time"),
            }
        };
        reloading.abort();
        if let Some(why) = ended {
            tracing::error!("{why}; the daemon ends, and its unit should start it again");
        }
        tracing::info!(
            "stopping: no new connections, calls under way are finished; a second signal ends at once"
        );
        tokio::select! {
            () = self.shutdown() => ended.map_or(Ok(()), |why| Err(Exit::missing(why))),
            _ = interrupt.recv() => std::process::exit(130),
            _ = terminate.recv() => std::process::exit(143),
        }
    }

    /// Stops in order: accepting, connections, calls, their tasks, the ledger with its `end` row
    /// and lock. Within the limit of a call and 2 s.
    pub async fn shutdown(mut self) {
        let until = tokio::time::Instant::now() + self.daemon.call_timeout + SHUTDOWN_GRACE;
        let calls_until = until - SHUTDOWN_GRACE / 2;
        self.renewal.abort();
        self.stop.send_replace(true);
        // A finished task must not be asked again.
        if !self.csr.is_finished()
            && tokio::time::timeout_at(calls_until, &mut self.csr)
                .await
                .is_err()
        {
            self.csr.abort();
        }
        if tokio::time::timeout_at(calls_until, self.daemon.pipeline.drain())
            .await
            .is_err()
        {
            tracing::warn!("calls are still in the device; their intents are filed as unknown");
        }
        self.daemon.pipeline.close();
        if tokio::time::timeout_at(until, self.daemon.ledger.shutdown())
            .await
            .is_err()
        {
            tracing::error!(
                "the ledger did not take the last rows in time; the next start files what is open as unknown"
            );
        }
        if tokio::time::timeout_at(until, self.daemon.stop_signers())
            .await
            .is_err()
        {
            tracing::warn!("a device call has not returned; the process ends with it");
        }
        tracing::info!("stopped");
    }
}

async fn serve_csr(
    daemon: Arc<Daemon>,
    listener: TcpListener,
    stop: watch::Receiver<bool>,
) -> Result<(), tonic::transport::Error> {
    let (connections, incoming) = mpsc::channel::<io::Result<Connection>>(64);
    let (metrics, mut stopped) = (daemon.metrics.clone(), stop.clone());
    let pipeline = daemon.pipeline.clone();
    let refused: OnRefusal = Arc::new(move |reason, peer| pipeline.refused_outside(reason, peer));
    let pipeline = daemon.pipeline.clone();
    let admits: Admits = Arc::new(move |arrival, peer| pipeline.admits(arrival, peer));
    let accept = tls::accept(
        listener,
        daemon.tls.clone(),
        metrics.clone(),
        admits.clone(),
        refused.clone(),
        connections,
        stop,
    );
    let accepting = tokio::spawn(accept);
    let service = Certificates::service(
        daemon.pipeline.clone(),
        metrics.clone(),
        daemon.clock.clone(),
    );
    let result = tonic::transport::Server::builder()
        .layer(CallLimit::new(
            daemon.call_timeout,
            metrics,
            admits,
            refused,
        ))
        .max_concurrent_streams(MAX_STREAMS)
        .http2_max_header_list_size(MAX_HEADERS)
        .http2_keepalive_interval(Some(PING_EVERY))
        .http2_keepalive_timeout(Some(PING_ANSWERED_WITHIN))
        .add_service(service)
        .serve_with_incoming_shutdown(ReceiverStream::new(incoming), async move {
            // The sender is gone only with the daemon itself.
            let _ = stopped.wait_for(|stop| *stop).await;
        })
        .await;
    accepting.abort();
    result
}

/// How far the clock may be from the database's: certificates of ten minutes must still make sense.
pub(crate) const DATABASE_CLOCK_TOLERANCE: Duration = Duration::from_secs(30);

async fn prepare_ledger(
    config: &Config,
    options: Options,
    metrics: &Arc<Metrics>,
    clock: Clock,
) -> Result<Prepared, Exit> {
    let options = LedgerOptions {
        location: config.ledger.clone(),
        host: gethostname::gethostname().to_string_lossy().into_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        facts: snapshot::facts(config),
        config_digest: config.digest,
        accept_clock: options.accept_clock,
        clock_tolerance: DATABASE_CLOCK_TOLERANCE,
        capacity: PERMITS,
        observer: Arc::new(Watching(metrics.clone())),
    };
    Ledger::prepare(options, clock).await.map_err(unusable)
}

fn unusable(error: LedgerStartError) -> Exit {
    match error {
        LedgerStartError::Locked(_)
        | LedgerStartError::Unavailable { .. }
        | LedgerStartError::Corrupt { .. } => Exit::missing(error),
    }
}

/// The ledger's hook, wired to the metrics.
struct Watching(Arc<Metrics>);

impl LedgerObserver for Watching {
    fn committed(&self, rows: usize, time: Duration) {
        self.0.ledger_committed(rows, time);
    }

    fn queue_depth(&self, calls: usize) {
        self.0.ledger_queue(calls);
    }

    fn dropped(&self, refusals: u64) {
        self.0.ledger_dropped(refusals);
    }

    fn up(&self, up: bool) {
        self.0.ledger_up(up);
    }

    fn searched(&self, time: Duration) {
        self.0.ledger_searched(time);
    }

    fn kept_up(&self, time: Duration) {
        self.0.ledger_kept_up(time);
    }
}

async fn listen(key: &str, address: SocketAddr) -> Result<TcpListener, Exit> {
    TcpListener::bind(address)
        .await
        .map_err(|error| match error.kind() {
            io::ErrorKind::AddrInUse => Exit::missing(format_args!(
                "{address} ({key}) is in use by another process; stop it or choose another port"
            )),
            _ => Exit::missing(format_args!("cannot listen on {address} ({key}): {error}")),
        })
}

fn address(listener: &TcpListener) -> Result<SocketAddr, Exit> {
    listener
        .local_addr()
        .map_err(|error| Exit::missing(format_args!("a listener has no address: {error}")))
}

fn signals(kind: SignalKind) -> Result<Signal, Exit> {
    signal(kind).map_err(|error| Exit::missing(format_args!("cannot watch for signals: {error}")))
}

/// Twenty thousand connections need as many files.
fn set_process_limits() {
    match rlimit::increase_nofile_limit(u64::MAX) {
        Ok(limit) if limit < CONNECTIONS as u64 => {
            tracing::warn!(
                limit,
                "the hard limit on open files is below what {CONNECTIONS} connections need"
            );
        }
        Ok(_) => {}
        Err(error) => tracing::warn!(%error, "the limit on open files cannot be raised"),
    }
}

#[cfg(test)]
mod tests;
