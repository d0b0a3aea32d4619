//! The command line: one file a verb. A verb returns `Exit`, whose code says who must act (0 done,
//! 1 the answer is no, 2 usage or config, 3 something is missing or taken, 141 nobody reads the
//! output) and whose text is one clear sentence.

pub mod audit;
pub mod ceremony;
pub mod check_config;
pub mod doctor;
pub mod environment;
pub mod ledger;
pub mod ledger_url;
pub mod migrate;
pub mod quickstart;
pub mod request;
pub mod serve;
pub mod signer;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::{hardening, output};

/// Why a verb ends without success: the exit status and one sentence for the operator, or none.
#[derive(Debug)]
pub struct Exit {
    code: u8,
    sentence: String,
}

impl Exit {
    /// Status 1: the answer is no (a broken row, a refused call).
    pub fn refused(sentence: impl fmt::Display) -> Self {
        Self {
            code: 1,
            sentence: sentence.to_string(),
        }
    }

    /// Status 2: the command line or the config is wrong.
    pub fn config(sentence: impl fmt::Display) -> Self {
        Self {
            code: 2,
            sentence: sentence.to_string(),
        }
    }

    /// Status 3: something is missing or taken (SoftHSM, port, lock, ledger).
    pub fn missing(sentence: impl fmt::Display) -> Self {
        Self {
            code: 3,
            sentence: sentence.to_string(),
        }
    }

    /// Whoever read the output has gone: nothing is left to say, and the status is that of a Unix
    /// tool which SIGPIPE ends (128 + 13). The verb's own answer was not heard, so it is not 0.
    fn unheard() -> Self {
        Self {
            code: 141,
            sentence: String::new(),
        }
    }

    /// Why the output could not be written.
    pub(crate) fn unwritten(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::unheard(),
            _ => Self::missing(format_args!("the output cannot be written: {error}")),
        }
    }

    /// The exit status.
    pub fn code(&self) -> u8 {
        self.code
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.sentence)
    }
}

/// A certificate authority for Istio meshes whose keys live in hardware.
///
/// It answers Istio's CSR call, proves who asks by JWT or client certificate, records every
/// issuance durably before the device is asked to sign, and serves metrics and the root bundle.
/// Start with `ca-server quickstart`.
#[derive(Debug, Parser)]
#[command(
    name = "ca-server",
    version,
    after_help = "Exit status: 0 done; 1 the answer is no; 2 usage or config; 3 something is missing or taken; 141 nobody reads the output."
)]
struct CommandLine {
    /// The config file [default: ./var/ca.toml, then /etc/ca-server/ca.toml]
    #[arg(long, short, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run the daemon
    Serve(serve::Args),
    /// Open devices and sign for a daemon, which starts it by itself; or for several, as a service
    /// of its own
    Signer(signer::Args),
    /// Make a complete CA to try out, serve, and ask it for a first certificate
    Quickstart(quickstart::Args),
    /// Make a root and an issuing certificate from a reviewed spec
    Ceremony(ceremony::Args),
    /// Ask an Istio CA for a certificate, or for many
    Request(Box<request::Args>),
    /// Read and check the ledger, also while the daemon runs
    Audit(audit::AuditArgs),
    /// Make or extend the ledger's database: roles, tables, partitions
    Migrate(migrate::Args),
    /// Look after the ledger's database: detach its oldest month
    Ledger(ledger::Args),
    /// Check the config and every file that it names
    CheckConfig,
    /// Examine device, key, certificates, ledger and clock, and say what is wrong and what to do
    ///
    /// Every finding stands in plain words, with the remedy where something is wrong. Nothing is
    /// changed, and it may run beside the daemon. An issuer's key signs one text that certifies
    /// nothing. A PIN is tried once; not at all if the token says that a wrong one was tried
    /// before.
    Doctor(doctor::Args),
}

/// Runs the program.
pub fn main() -> ExitCode {
    let line = CommandLine::parse();
    for missing in hardening::hide() {
        output::complain(format_args!(
            "ca-server: the process could not be hardened in one way: {missing}"
        ));
    }
    ExitCode::from(told(run(line)))
}

/// The exit status of a verb, whose last sentence is printed.
fn told(result: Result<(), Exit>) -> u8 {
    let Err(exit) = result else { return 0 };
    if !exit.sentence.is_empty() {
        output::complain(format_args!("ca-server: {exit}"));
    }
    exit.code()
}

/// Writes to standard output.
pub(crate) fn print(text: impl fmt::Display) -> Result<(), Exit> {
    output::print(text).map_err(Exit::unwritten)
}

/// Ends the process as `main` would, but without any clean-up of the device libraries that are
/// loaded: where one of their calls has not returned it would crash or hang.
pub(crate) fn end_at_once(result: Result<(), Exit>) -> ! {
    signers::pkcs11::end_process(told(result))
}

fn run(line: CommandLine) -> Result<(), Exit> {
    let config = line.config.clone().unwrap_or_else(default_config);
    match line.verb {
        Verb::Serve(args) => serve::run(&args, &config),
        // Its file is its own: it never takes the daemon's for want of another.
        Verb::Signer(args) => signer::run(&args, line.config.as_deref()),
        Verb::Quickstart(args) => quickstart::run(&args),
        Verb::Ceremony(args) => ceremony::run(&args),
        Verb::Request(args) => request::run(&args, &config),
        Verb::Audit(args) => {
            let ledger = args.ledger.location(&config)?;
            audit::run(args, &ledger)
        }
        Verb::Migrate(args) => migrate::run(&args, &config),
        Verb::Ledger(args) => ledger::run(&args, &config),
        Verb::CheckConfig => check_config::run(&config),
        Verb::Doctor(args) => doctor::run(&args, &config),
    }
}

/// `./var/ca.toml` where it is, else the system's.
fn default_config() -> PathBuf {
    let near = Path::new("var/ca.toml");
    if near.exists() {
        near.to_owned()
    } else {
        PathBuf::from("/etc/ca-server/ca.toml")
    }
}

/// The async runtime that a verb works in.
pub(crate) fn runtime() -> Result<tokio::runtime::Runtime, Exit> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Exit::missing(format_args!("cannot start threads: {error}")))
}

/// Runs a verb's asynchronous part. What still blocks when it is done, such as a device that hangs,
/// does not keep the process.
pub(crate) fn block_on<T>(work: impl Future<Output = Result<T, Exit>>) -> Result<T, Exit> {
    let runtime = runtime()?;
    let result = runtime.block_on(work);
    runtime.shutdown_background();
    result
}
