//! `quickstart`: from nothing to a verified workload certificate. It makes a data directory
//! (tokens, a ceremony with a built-in spec, a demonstration token issuer, `ca.toml`), serves from
//! it, and asks itself for one certificate through the real call.
//!
//! Every step first looks whether its work is done, so that running it again keeps what is whole
//! and repairs what is half made.

mod ca_toml;
mod demo_issuer;
mod directory;
mod summary;
mod tokens;

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::ledger_url::LedgerArgs;
use super::request::{self, Plan};
use super::{Exit, ceremony, environment};
use crate::app::{Options, Ports, Server, with_port};
use crate::ceremony::{Outcome, Spec, files};
use crate::client::{Ask, Issued, KeyType, Roots, Target};
use crate::clock::Clock;
use crate::config::Config;
use crate::spiffe::TrustDomain;
use crate::store::ledger::{Location, Logins};
use crate::telemetry;
use demo_issuer::DemoIssuer;
use directory::Directory;

/// Make a complete CA in a directory of its own and serve: SoftHSM tokens, root and issuing
/// certificate, demonstration tokens, config.
///
/// It then asks itself for a certificate, verifies it and prints where everything is. A second run
/// keeps root, keys and ledger.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The data directory
    #[arg(long, default_value = "./var", value_name = "DIR")]
    dir: PathBuf,
    /// Port of the CSR call on 127.0.0.1; 0 takes a free one [default: the config's, at first
    /// 15012]
    #[arg(long, value_name = "PORT")]
    csr_port: Option<u16>,
    /// Port of metrics and health on 127.0.0.1; 0 takes a free one [default: the config's, at first
    /// 15014]
    #[arg(long, value_name = "PORT")]
    monitoring_port: Option<u16>,
    /// Stop after the first certificate
    #[arg(long)]
    once: bool,
    /// Delete everything that quickstart made in the directory, root and keys included, and start
    /// anew
    #[arg(long)]
    reset: bool,
    /// Do not ask before --reset deletes
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    ledger: LedgerArgs,
}

/// How often the demonstration token is looked at while the daemon serves.
const TOKEN_WATCH: Duration = Duration::from_secs(600);

/// How long the daemon may take until every check of readiness is well.
const READY_WITHIN: Duration = Duration::from_secs(10);

/// Runs the verb.
pub fn run(args: &Args) -> Result<(), Exit> {
    let module = signers::pkcs11::find_softhsm().ok_or_else(|| {
        Exit::missing("SoftHSM 2 is not installed; install it (Debian and Ubuntu: apt-get install softhsm2) and run this again")
    })?;
    let mut directory = Directory::claim(&args.dir)?;
    let path = directory.path().to_owned();
    let mut variables = tokens::environment(&path);
    if !args.reset {
        // What a reset deletes has no say in where the new tokens go.
        variables.extend(ca_toml::environment(&path));
    }
    // May execute the program anew, which gives up the directory for a moment.
    environment::enter(&variables)?;
    if args.reset {
        directory.reset(args.yes)?;
    }
    tokens::ready(&path, &module)?;
    let outcome = hold_ceremony(&path, &module)?;
    tokens::keep(&path)?;
    let issuer = DemoIssuer::ready(&path)?;
    issuer.token(Clock::default().now())?;
    let first = ca_toml::Ports {
        csr: args.csr_port,
        monitoring: args.monitoring_port,
    };
    ca_toml::ready(&path, &module, first, args.ledger.section()?.as_deref())?;
    if let Some(named) = args.ledger.named()? {
        migrate_and_compare(&named, &path)?;
    }
    serve(args, &mut directory, &outcome, &issuer)
}

/// A ledger that the command line names is made ready, and must be the one that the config of an
/// earlier run names.
fn migrate_and_compare(named: &Location, path: &Path) -> Result<(), Exit> {
    let file = path.join(ca_toml::FILE);
    let configured = Config::ledger_of(&file).map_err(Exit::config)?;
    if !configured.is_same_place(named) {
        return Err(Exit::config(format_args!(
            "{} names the ledger {configured}; change it there, or take another --dir",
            file.display()
        )));
    }
    super::block_on(async { super::migrate::migrate(named, &Logins::default()).await }).map(drop)
}

/// The built-in spec, written down so that it can be read, then carried out.
fn hold_ceremony(path: &Path, module: &Path) -> Result<Outcome, Exit> {
    let file = path.join("ceremony.toml");
    if !file.exists() {
        let text = ca_toml::ceremony_spec(module);
        files::create(&file, text.as_bytes(), files::PUBLIC)
            .map_err(|error| Exit::missing(format!("{}: {error}", file.display())))?;
    }
    ceremony::hold(&Spec::read(&file).map_err(ceremony::exit)?)
}

fn serve(
    args: &Args,
    directory: &mut Directory,
    outcome: &Outcome,
    issuer: &DemoIssuer,
) -> Result<(), Exit> {
    let path = directory.path().to_owned();
    let config =
        Config::load(&path.join(ca_toml::FILE), Clock::default().now()).map_err(Exit::config)?;
    let ports = Ports {
        csr: args.csr_port,
        monitoring: args.monitoring_port,
    };
    check_free(with_port(config.csr_listen, ports.csr), "csr-port")?;
    check_free(
        with_port(config.monitoring_listen, ports.monitoring),
        "monitoring-port",
    )?;
    let mut log = config.log.clone();
    if log.level == "info" {
        // The summary is what people came for; `serve` logs every call.
        "warn".clone_into(&mut log.level);
    }
    telemetry::start(&log).map_err(Exit::config)?;
    let (configured, trust_domain) = (
        config.request.address.clone(),
        config.trust_domains.own.clone(),
    );
    super::block_on(async {
        directory.release_ledger();
        let server = Server::start(
            config,
            Options {
                ports,
                ..Options::default()
            },
        )
        .await?;
        let first = async {
            server.ready(READY_WITHIN).await?;
            first_certificate(&path, server.csr_address(), trust_domain, issuer).await
        };
        let issued = match first.await {
            Ok(issued) => issued,
            Err(exit) => {
                server.shutdown().await;
                return Err(exit);
            }
        };
        let (csr, monitoring) = (server.csr_address(), server.monitoring_address());
        let summary = summary::Facts {
            directory: &args.dir,
            csr,
            csr_is_configured: configured.as_deref() == Some(&csr.to_string()),
            monitoring,
            outcome,
            issued: &issued,
            now: Clock::default().now(),
            goes_on: !args.once,
        };
        if args.once {
            summary::print(&summary);
            server.shutdown().await;
            return Ok(());
        }
        // Polled first, so that it listens for signals before anyone is told that it serves.
        tokio::select! {
            biased;
            ended = server.run() => ended,
            never = async {
                summary::print(&summary);
                keep_token(issuer).await
            } => match never {},
        }
    })
}

/// Says in one sentence if a port is taken, with the flag that chooses another.
fn check_free(address: SocketAddr, flag: &str) -> Result<(), Exit> {
    match TcpListener::bind(address) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => Err(Exit::missing(format!(
            "{address} is in use by another program; stop it, or choose another port with --{flag} (0 takes a free one)"
        ))),
        Err(error) => Err(Exit::missing(format!(
            "cannot listen on {address}: {error}; choose another port with --{flag}"
        ))),
    }
}

/// The real call, as an agent makes it.
async fn first_certificate(
    path: &Path,
    address: SocketAddr,
    trust_domain: TrustDomain,
    issuer: &DemoIssuer,
) -> Result<Issued, Exit> {
    let file = path.join(crate::ceremony::ROOT_FILE);
    let read =
        |error: &dyn std::fmt::Display| Exit::missing(format!("{}: {error}", file.display()));
    let roots = Roots::from_pem(&std::fs::read_to_string(&file).map_err(|error| read(&error))?)
        .map_err(|error| read(&error))?;
    let token = issuer.token(Clock::default().now())?;
    let plan = Plan {
        expected: request::expected_of(&token, Some(&trust_domain)),
        target: Target {
            address: address.to_string(),
            server_name: None,
            roots,
            identity: None,
        },
        ask: Ask {
            token: Some(token),
            cluster_id: Some(ca_toml::CLUSTER.to_owned()),
            lifetime: Duration::ZERO,
            signer: None,
        },
        key_type: KeyType::P256,
    };
    let (key, issued) = plan.once().await?;
    request::write(&path.join("demo"), &key, &issued, &plan.target.roots)?;
    Ok(issued)
}

/// Renews the demonstration token for as long as the daemon serves.
async fn keep_token(issuer: &DemoIssuer) -> std::convert::Infallible {
    loop {
        tokio::time::sleep(TOKEN_WATCH).await;
        if let Err(exit) = issuer.token(Clock::default().now()) {
            tracing::warn!("the demonstration token could not be renewed: {exit}");
        }
    }
}
