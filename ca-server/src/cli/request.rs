//! `request`: asks an Istio CA for a certificate, as an agent would, and verifies the answer; or
//! asks many times and measures.

mod many;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Exit;
use crate::ceremony::files;
use crate::client::{
    Ask, ClientIdentity, Connection, Expected, Issued, KeyType, Roots, Target, WorkloadKey,
    identities,
};
use crate::clock::Clock;
use crate::config::{Config, RequestDefaults};
use crate::spiffe::{ServiceAccount, SpiffeId, TrustDomain};
use crate::timestamp::Timestamp;

/// Ask an Istio CA for a workload certificate and verify the answer.
///
/// What is not given here comes from [request] in the config. The key is made before the call and
/// never leaves this machine. With --count it asks many times and prints rate and latency; keys are
/// made before the clock starts.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// host:port of the CA
    #[arg(long, value_name = "HOST:PORT")]
    address: Option<String>,
    /// The name that the CA's certificate must carry [default: the host of the address]
    #[arg(long, value_name = "NAME")]
    server_name: Option<String>,
    /// PEM file of the roots that the CA and the issued certificate must chain to
    #[arg(long, value_name = "FILE")]
    roots: Option<PathBuf>,
    /// File with a bearer token
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Client certificate chain in PEM, leaf first, instead of a token
    #[arg(
        long,
        value_name = "FILE",
        requires = "key_file",
        conflicts_with = "token_file"
    )]
    cert: Option<PathBuf>,
    /// Private key of --cert in PEM
    #[arg(long, value_name = "FILE", requires = "cert")]
    key_file: Option<PathBuf>,
    /// The clusterid header
    #[arg(long, value_name = "ID")]
    cluster_id: Option<String>,
    /// The kind of key to make
    #[arg(long, value_enum, default_value = "p256", value_name = "TYPE")]
    key_type: KeyType,
    /// Wanted lifetime, such as 24h; 0s asks for the CA's default
    #[arg(long, default_value = "0s", value_parser = humantime::parse_duration)]
    lifetime: Duration,
    /// The CertSigner to ask for
    #[arg(long, value_name = "ID")]
    signer: Option<String>,
    /// How many certificates to ask for; more than one measures and writes no files
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    count: u32,
    /// How many calls to have in flight at once
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    concurrency: u32,
    /// Directory for key.pem, cert-chain.pem and root-cert.pem [default: ./workload]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// Everything that one call needs.
pub(super) struct Plan {
    pub(super) target: Target,
    pub(super) ask: Ask,
    pub(super) expected: Expected,
    pub(super) key_type: KeyType,
}

/// Runs the verb; `config` need not exist.
pub fn run(args: &Args, config: &Path) -> Result<(), Exit> {
    let (defaults, trust_domain) = Config::request_of(config).map_err(Exit::config)?;
    let plan = Plan::new(args, &defaults, trust_domain.as_ref(), config)?;
    let runtime = super::runtime()?;
    if args.count > 1 {
        return many::run(&runtime, &plan, args.count, args.concurrency);
    }
    let out = args
        .out
        .clone()
        .or(defaults.out)
        .unwrap_or_else(|| PathBuf::from("workload"));
    let (key, issued) = runtime.block_on(plan.once())?;
    let written = write(&out, &key, &issued, &plan.target.roots)?;
    let left = left(issued.not_after, Clock::default().now());
    let mut text = format!(
        "identity  {}\nserial    {}\nlifetime  {left}, until {}\n",
        issued.identity, issued.serial, issued.not_after
    );
    for file in written {
        text += &format!("written   {}\n", file.display());
    }
    super::print(text)
}

impl Plan {
    fn new(
        args: &Args,
        defaults: &RequestDefaults,
        trust_domain: Option<&TrustDomain>,
        config: &Path,
    ) -> Result<Self, Exit> {
        let missing = |flag: &str, key: &str| {
            Exit::config(format!(
                "--{flag} is missing, and {} gives no request.{key} either",
                config.display()
            ))
        };
        let roots = args
            .roots
            .as_ref()
            .or(defaults.roots.as_ref())
            .ok_or_else(|| missing("roots", "roots"))?;
        let identity = match (&args.cert, &args.key_file) {
            (Some(cert), Some(key)) => Some(
                ClientIdentity::from_pem(&read(cert)?, &read(key)?).map_err(|error| {
                    Exit::config(format!("{} and {}: {error}", cert.display(), key.display()))
                })?,
            ),
            _ => None,
        };
        let token_file = match &identity {
            Some(_) => None,
            None => Some(
                args.token_file
                    .as_ref()
                    .or(defaults.token_file.as_ref())
                    .ok_or_else(|| missing("token-file (or --cert)", "token_file"))?,
            ),
        };
        let token = token_file
            .map(|path| read_text(path))
            .transpose()?
            .map(|token| token.trim().to_owned());
        let expected = match (&identity, &token) {
            (Some(identity), _) => match identities(identity.leaf()).ok().as_deref() {
                Some([own]) => Expected::Identity(own.clone()),
                _ => Expected::Any,
            },
            (None, Some(token)) => expected_of(token, trust_domain),
            (None, None) => Expected::Any,
        };
        Ok(Self {
            target: Target {
                address: args
                    .address
                    .clone()
                    .or(defaults.address.clone())
                    .ok_or_else(|| missing("address", "address"))?,
                server_name: args.server_name.clone().or(defaults.server_name.clone()),
                roots: Roots::from_pem(&read_text(roots)?)
                    .map_err(|error| Exit::config(format!("{}: {error}", roots.display())))?,
                identity,
            },
            ask: Ask {
                token,
                cluster_id: args.cluster_id.clone().or(defaults.cluster_id.clone()),
                lifetime: args.lifetime,
                signer: args.signer.clone(),
            },
            expected,
            key_type: args.key_type,
        })
    }

    /// One key, one call, one verified certificate.
    pub(super) async fn once(&self) -> Result<(WorkloadKey, Issued), Exit> {
        let (key, csr) = self.key_and_csr()?;
        let connection = Connection::open(&self.target)
            .await
            .map_err(Exit::missing)?;
        let answer = connection
            .create_certificate(&csr, &self.ask)
            .await
            .map_err(|status| {
                Exit::refused(format!(
                    "the CA refused: {:?}: {}",
                    status.code(),
                    status.message()
                ))
            })?;
        let issued = Issued::verify(
            &answer,
            &self.target.roots,
            key.spki_der(),
            &self.expected,
            Clock::default().now(),
        )
        .map_err(Exit::refused)?;
        Ok((key, issued))
    }

    fn key_and_csr(&self) -> Result<(WorkloadKey, String), Exit> {
        let failed =
            |what: &dyn std::fmt::Display| Exit::missing(format!("no key could be made: {what}"));
        let key = WorkloadKey::generate(self.key_type).map_err(|error| failed(&error))?;
        let san = match &self.expected {
            Expected::Identity(identity) => Some(identity.to_string()),
            // The trust domain is not known: a CSR without SAN is right for every CA.
            Expected::Account(_) | Expected::Any => None,
        };
        let csr = key.csr(san.as_deref()).map_err(|error| failed(&error))?;
        Ok((key, csr))
    }
}

/// What a Kubernetes token's own claims let us expect; the CA checks the token, we only read it.
pub(super) fn expected_of(token: &str, trust_domain: Option<&TrustDomain>) -> Expected {
    match (account_of(token), trust_domain) {
        (Some(account), Some(trust_domain)) => {
            Expected::Identity(SpiffeId::new(trust_domain.clone(), account))
        }
        (Some(account), None) => Expected::Account(account),
        (None, _) => Expected::Any,
    }
}

fn account_of(token: &str) -> Option<ServiceAccount> {
    use base64::Engine;
    let payload = base64::engine::general_purpose::URL_SAFE_NO_PAD
        .decode(token.split('.').nth(1)?)
        .ok()?;
    let claims: serde_json::Value = serde_json::from_slice(&payload).ok()?;
    ServiceAccount::parse_username(claims.get("sub")?.as_str()?)
}

/// Writes key.pem (0600), cert-chain.pem (leaf first, no root) and root-cert.pem: the roots that we
/// trusted before we asked.
pub(super) fn write(
    out: &Path,
    key: &WorkloadKey,
    issued: &Issued,
    roots: &Roots,
) -> Result<[PathBuf; 3], Exit> {
    let failed = |path: &Path, error: &dyn std::fmt::Display| {
        Exit::missing(format!("{}: {error}", path.display()))
    };
    fs::create_dir_all(out).map_err(|error| failed(out, &error))?;
    let paths = ["key.pem", "cert-chain.pem", "root-cert.pem"].map(|name| out.join(name));
    let pem = key.to_pem().map_err(|error| failed(&paths[0], &error))?;
    let chain = issued.chain.concat();
    for (path, (bytes, mode)) in paths.iter().zip([
        (pem.as_bytes(), files::PRIVATE),
        (chain.as_bytes(), files::PUBLIC),
        (roots.pem().as_bytes(), files::PUBLIC),
    ]) {
        files::replace(path, bytes, mode).map_err(|error| failed(path, &error))?;
    }
    Ok(paths)
}

/// What is left until `end`, as people say it: to the nearest minute, so that the second that
/// passed since does not show.
pub(super) fn left(end: Timestamp, now: Timestamp) -> String {
    let minutes = (end.since(now).as_secs() + 30) / 60;
    humantime::format_duration(Duration::from_secs(minutes * 60)).to_string()
}

fn read(path: &Path) -> Result<Vec<u8>, Exit> {
    fs::read(path).map_err(|error| Exit::config(format!("{}: {error}", path.display())))
}

fn read_text(path: &Path) -> Result<String, Exit> {
    fs::read_to_string(path).map_err(|error| Exit::config(format!("{}: {error}", path.display())))
}
