//! The command line. A run is given by its options alone; subcommands take references and make the
//! table of goals.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, FromArgMatches, Subcommand, ValueEnum};

const ABOUT: &str = "Drives an endpoint that speaks Istio's CSR call (istio.v1.auth.IstioCertificateService/CreateCertificate) and measures it";
const AFTER: &str = "Exit status: 0 done; 1 the endpoint issued nothing, or an answer does not hold; 2 wrong arguments; 3 something is missing.";

/// What is to be done.
#[derive(Debug)]
pub enum Arguments {
    Drive(Box<Drive>),
    Other(Command),
}

impl Arguments {
    /// Reads a command line; its first word is the program's name.
    pub fn read(words: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        let matches = Self::command().try_get_matches_from(words)?;
        match matches.subcommand_name() {
            Some(_) => Command::from_arg_matches(&matches).map(Self::Other),
            None => Drive::from_arg_matches(&matches).map(|drive| Self::Drive(Box::new(drive))),
        }
    }

    /// A run's options stand for themselves: what a subcommand needs none of is required only
    /// without one.
    fn command() -> clap::Command {
        let program = clap::Command::new("loadgen").version(env!("CARGO_PKG_VERSION"));
        Command::augment_subcommands(Drive::augment_args(program))
            .about(ABOUT)
            .long_about(ABOUT)
            .after_help(AFTER)
            .subcommand_required(false)
            .arg_required_else_help(true)
            .args_conflicts_with_subcommands(true)
            .subcommand_negates_reqs(true)
    }
}

/// What is not a run.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Measures how long a durable append of 8 kB takes in a directory: what one commit costs on
    /// that disk.
    Commits(Commits),
    /// Prints the table of goals from the results of loadgen/report.
    Goals(Goals),
}

/// `loadgen goals`.
#[derive(Args, Debug)]
pub struct Goals {
    /// The output directory of loadgen/report.
    pub directory: PathBuf,
    /// A Markdown file with the two marks between which the table stands.
    #[arg(long, value_name = "FILE")]
    pub write: Option<PathBuf>,
}

/// `loadgen commits`.
#[derive(Args, Debug)]
pub struct Commits {
    /// The directory whose disk is measured; a file is made in it and removed again.
    pub directory: PathBuf,
    /// For how long.
    #[arg(long, default_value = "3s", value_parser = humantime::parse_duration)]
    pub duration: Duration,
    /// Where to write the result as JSON.
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
}

/// A run.
#[derive(Args, Debug)]
pub struct Drive {
    #[command(flatten)]
    pub endpoint: Endpoint,
    #[command(flatten)]
    pub callers: Callers,
    #[command(flatten)]
    pub load: Load,

    /// Verify every Nth chain, after the clock has stopped; 0 verifies none. Of very many, fewer
    /// are kept, and the report says how many.
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub verify_every: u64,
    /// Processes to account for, such as daemon=123,database=456: CPU of each with its children,
    /// and memory.
    #[arg(long, value_name = "NAME=PID", value_delimiter = ',')]
    pub pid: Vec<String>,
    /// A text that the report carries.
    #[arg(long, default_value = "")]
    pub label: String,
    /// Where to write the report as JSON.
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// Where to write the picture as SVG: latency distribution, and rate over time.
    #[arg(long, value_name = "FILE")]
    pub picture: Option<PathBuf>,
}

/// Where calls go and whom to trust.
#[derive(Args, Debug)]
pub struct Endpoint {
    /// The endpoint, host:port.
    #[arg(long)]
    pub address: String,
    /// The name that its certificate must carry, where it differs from the address's host.
    #[arg(long)]
    pub server_name: Option<String>,
    /// The roots, PEM, of its certificate and of the chains that it issues.
    #[arg(long, value_name = "FILE")]
    pub roots: PathBuf,
    /// The roots of issued chains, where they are others.
    #[arg(long, value_name = "FILE")]
    pub chain_roots: Option<PathBuf>,
    /// The longest that connecting or one call may take.
    #[arg(long, default_value = "30s", value_parser = humantime::parse_duration)]
    pub call_timeout: Duration,
}

/// Who calls, and with what.
#[derive(Args, Debug)]
#[command(group = clap::ArgGroup::new("token_source").required(true))]
pub struct Callers {
    /// Tokens: a file with one a line, or a directory with one a file.
    #[arg(long, value_name = "PATH", group = "token_source")]
    pub token_file: Option<PathBuf>,
    /// An RSA key, PKCS#8 PEM, that the endpoint trusts as a token issuer's: distinct tokens are
    /// minted with it.
    #[arg(
        long,
        value_name = "FILE",
        group = "token_source",
        requires = "token_issuer",
        requires = "token_key_id"
    )]
    pub token_issuer_key: Option<PathBuf>,
    /// The `iss` of minted tokens.
    #[arg(long, value_name = "ISS")]
    pub token_issuer: Option<String>,
    /// The `kid` of minted tokens.
    #[arg(long, value_name = "KID")]
    pub token_key_id: Option<String>,
    /// The `aud` of minted tokens.
    #[arg(long, value_name = "AUD", default_value = "istio-ca")]
    pub token_audience: String,
    /// How many tokens to mint; a run with more calls uses them in turn, and the report says so.
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    pub tokens: usize,
    /// How many service accounts minted tokens are for.
    #[arg(long, value_name = "N", default_value_t = 1_000)]
    pub accounts: usize,
    /// The trust domain of the identities that the endpoint is expected to issue.
    #[arg(long, default_value = "cluster.local")]
    pub trust_domain: String,
    /// The `clusterid` header.
    #[arg(long, default_value = "Kubernetes")]
    pub cluster_id: String,
    /// The workloads' kind of key.
    #[arg(long, value_enum, default_value = "p256")]
    pub key: KeyKind,
    /// How many distinct CSRs to make; a run with more calls uses them in turn, and the report says
    /// so.
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    pub csrs: usize,
}

/// A workload's kind of key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum KeyKind {
    /// ztunnel's.
    P256,
    /// ECDSA on P-384.
    P384,
    /// pilot-agent's default. Such keys take long to make, so there are at most 64 of them, each in
    /// many distinct CSRs.
    #[value(name = "rsa-2048")]
    Rsa2048,
}

/// How many calls, and when.
#[derive(Args, Debug)]
#[command(group = clap::ArgGroup::new("pace").required(true))]
pub struct Load {
    /// Closed loop: so many calls in flight, each followed by the next. Several are steps, one
    /// after the other.
    #[arg(long, value_name = "N,…", value_delimiter = ',', group = "pace")]
    pub closed: Vec<usize>,
    /// Open loop: Poisson arrivals at this rate a second, whatever the answers take; latency counts
    /// from the intended start. Several are steps.
    #[arg(long, value_name = "RATE,…", value_delimiter = ',', group = "pace")]
    pub open: Vec<f64>,
    /// Open loop in one go without a pause between: such as 2000:10s,6000:60s,2000:20s. The report
    /// has a section for each.
    #[arg(long, value_name = "RATE:TIME,…", value_delimiter = ',', group = "pace", conflicts_with_all = ["duration", "calls"])]
    pub open_sequence: Vec<String>,
    /// HTTP/2 connections that calls share. Default: one for 16 calls in flight; 32 in an open
    /// loop.
    #[arg(long, value_name = "N", conflicts_with = "fresh_connections")]
    pub connections: Option<usize>,
    /// A new TLS connection for every call, without session resumption.
    #[arg(long)]
    pub fresh_connections: bool,
    /// Connections to open beside the load and hold.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub idle_connections: usize,
    /// How long each step is measured.
    #[arg(long, default_value = "10s", value_parser = humantime::parse_duration, conflicts_with = "calls")]
    pub duration: Duration,
    /// How many calls each step measures, instead of a duration.
    #[arg(long, value_name = "N")]
    pub calls: Option<u64>,
    /// Load before the clock starts, for each step.
    #[arg(long, default_value = "2s", value_parser = humantime::parse_duration)]
    pub warm_up: Duration,
    /// The most calls in flight in an open loop; arrivals above it count as errors of this client.
    #[arg(long, value_name = "N", default_value_t = 20_000)]
    pub most_in_flight: usize,
    /// Client threads. One drives several thousand calls a second.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub threads: usize,
    /// The seed of the arrivals.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

/// A command line as a shell would split it, for tests.
#[cfg(test)]
pub fn words(arguments: &str) -> Vec<OsString> {
    std::iter::once("loadgen")
        .chain(arguments.split_whitespace())
        .map(OsString::from)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(arguments: &str) -> Result<Drive, String> {
        match Arguments::read(words(arguments)) {
            Ok(Arguments::Drive(drive)) => Ok(*drive),
            other => Err(format!("{other:?}")),
        }
    }

    #[test]
    fn the_command_line_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn steps_are_lists() {
        let drive = parsed("--address a:1 --roots r --token-file t --closed 1,8,64").unwrap();
        assert_eq!(drive.load.closed, [1, 8, 64]);
        assert_eq!(drive.load.duration, Duration::from_secs(10));
    }

    #[test]
    fn a_run_needs_tokens_and_one_kind_of_loop() {
        assert!(
            parsed("--address a:1 --roots r --closed 1")
                .unwrap_err()
                .contains("--token-file")
        );
        assert!(
            parsed("--address a:1 --roots r --token-file t")
                .unwrap_err()
                .contains("--closed")
        );
        assert!(parsed("--address a:1 --roots r --token-file t --closed 1 --open 5").is_err());
    }

    #[test]
    fn a_reference_needs_nothing_of_a_run() {
        assert!(matches!(
            Arguments::read(words("commits /tmp")).unwrap(),
            Arguments::Other(Command::Commits(_))
        ));
        assert!(Arguments::read(words("commits /tmp --closed 1")).is_err());
    }
}
