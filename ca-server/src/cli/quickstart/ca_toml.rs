//! The two files that quickstart writes for people to read: the ceremony's spec and the daemon's
//! config. `ca.toml` comes last of all: a directory without it is half made. One that is there is
//! the operator's and is never touched.

use std::collections::BTreeMap;
use std::path::Path;

use super::demo_issuer::{AUDIENCE, ISSUER};
use super::tokens;
use crate::ceremony::{CHAIN_FILE, ROOT_FILE, TRANSCRIPT_FILE, files};
use crate::cli::Exit;

/// The config's name in the directory.
pub(super) const FILE: &str = "ca.toml";
/// The cluster id of the demonstration, ztunnel's default.
pub(super) const CLUSTER: &str = "Kubernetes";

/// Ports to write into a new config; a free one (0) and none leave the usual ones.
pub(super) struct Ports {
    pub(super) csr: Option<u16>,
    pub(super) monitoring: Option<u16>,
}

impl Ports {
    fn csr(&self) -> u16 {
        self.csr.filter(|port| *port != 0).unwrap_or(15012)
    }

    fn monitoring(&self) -> u16 {
        self.monitoring.filter(|port| *port != 0).unwrap_or(15014)
    }
}

/// The built-in ceremony: P-256 throughout, ten years and two.
pub(super) fn ceremony_spec(module: &Path) -> String {
    format!(
        r#"# The ceremony that quickstart held; `ca-server ceremony --spec` reads the same shape. What it makes is never overwritten.
output = "."

[root]
subject = "CN=Quickstart Root CA,O=ca-server"
key = "{root}"
algorithm = "p256"
lifetime = "3650d"
path_length = 1

[issuing]
subject = "CN=Quickstart Issuing CA,O=ca-server"
key = "{issuing}"
algorithm = "p256"
lifetime = "730d"
path_length = 0
"#,
        root = key_uri("root", module),
        issuing = key_uri("issuing", module),
    )
}

/// The device environment of the config that is there. Nothing else of it is looked at: what is
/// wrong with it is said when it is loaded.
pub(super) fn environment(directory: &Path) -> BTreeMap<String, String> {
    #[derive(Default, serde::Deserialize)]
    struct Only {
        #[serde(default)]
        device: BTreeMap<String, Device>,
    }
    #[derive(serde::Deserialize)]
    struct Device {
        #[serde(default)]
        env: BTreeMap<String, String>,
    }
    let text = std::fs::read_to_string(directory.join(FILE)).unwrap_or_default();
    let only: Only = toml::from_str(&text).unwrap_or_default();
    let legal = |(name, value): &(String, String)| {
        !name.is_empty() && !name.contains(['=', '\0']) && !value.contains('\0')
    };
    only.device
        .into_values()
        .flat_map(|device| device.env)
        .filter(legal)
        .collect()
}

/// Writes the config unless there is one. `ledger`: the section's keys where it is not the usual
/// file.
pub(super) fn ready(
    directory: &Path,
    module: &Path,
    ports: Ports,
    ledger: Option<&str>,
) -> Result<(), Exit> {
    let path = directory.join(FILE);
    if path.exists() {
        return Ok(());
    }
    let text = config(
        directory,
        module,
        &ports,
        ledger.unwrap_or("url = \"sqlite:ledger.db\"\n"),
    );
    files::create(&path, text.as_bytes(), files::PUBLIC)
        .map_err(|error| Exit::missing(format!("{}: {error}", path.display())))
}

/// The key of that label in the token of the same label.
fn key_uri(label: &str, module: &Path) -> String {
    format!(
        "pkcs11:token={label};object={label}?module-path={}&pin-source=file:{label}.pin",
        module.display()
    )
}

fn config(directory: &Path, module: &Path, ports: &Ports, ledger: &str) -> String {
    let softhsm = &tokens::environment(directory)["SOFTHSM2_CONF"];
    let softhsm = toml::Value::String(softhsm.clone());
    format!(
        r#"# The daemon's config, made by `ca-server quickstart` and yours from now on. Unknown keys are refused; relative paths count from
# this file's directory. `ca-server --config THIS check-config` says what is wrong; SIGHUP reloads what can change while it serves.

# The trust domain of every identity that is issued: spiffe://<trust_domain>/ns/<namespace>/sa/<account>.
trust_domain = "cluster.local"
# Other trust domains that client certificates may still carry.
trust_domain_aliases = []
# The cluster that a call without a clusterid header means.
cluster_id = "{CLUSTER}"
# Where a try of a PIN leaves its mark, so that no restart repeats one that did not come back.
state_dir = "."

# The Istio CSR call, over TLS. Agents reach it as CA_ADDR.
[csr]
listen = "127.0.0.1:{csr}"
# What the daemon's own serving certificate carries: every name that agents dial.
names = ["localhost", "127.0.0.1", "istiod.istio-system.svc"]
# The limit on a whole call, device and ledger included.
call_timeout = "5s"

# /metrics, /healthz/live, /healthz/ready, /root-cert.pem, in plain HTTP.
[monitoring]
listen = "127.0.0.1:{monitoring}"

# Every signature's intent is durable here before the device is asked, and its outcome before the answer leaves.
[ledger]
{ledger}
[log]
level = "info"
# "text" for people, "json" for machines.
format = "text"

# Defaults of `ca-server request`.
[request]
address = "127.0.0.1:{csr}"
roots = "{ROOT_FILE}"
token_file = "demo.token"
cluster_id = "{CLUSTER}"
out = "demo"

# What the PKCS#11 module finds in its environment. Each key signs on 4 sessions unless `sessions` says otherwise; `ca-server doctor --bench`
# measures how many the device deserves. A signature may take `timeout` (2s), opening the device `open_timeout` (10s).
[device.softhsm]
env = {{ SOFTHSM2_CONF = {softhsm} }}

# The first issuer with an active one in its group is the default; a retiring one stays in the bundle and signs nothing. The PIN is read from a file that
# nobody else may read; the root's key is not named here, because serving does not need it.
[[issuer]]
id = "quickstart"
key = "{key}"
chain = "{CHAIN_FILE}"
roots = "{ROOT_FILE}"
state = "active"
transcript = "{TRANSCRIPT_FILE}"
device = "softhsm"

# What workloads get.
[profile]
default = "24h"
minimum = "10m"
maximum = "90d"
# Only shortens; 0s is off.
jitter = "0s"
# "overwrite" gives the caller's own identity whatever the CSR names; "strict" refuses a CSR that names another.
san = "overwrite"
keys = ["rsa", "p256", "p384"]

# How much one identity, and one address before anybody has proved an identity, may ask for. 0 is no limit. These are the defaults: ten
# thousand pods that start at once and try ten times each, also through one gateway. An IPv6 address counts as its /64, and one address never
# has more open than are still free of 20,000 connections and 4,096 calls.
[limits]
identity_calls_a_minute = 100000
identity_keys_an_hour = 100000
peer_calls_a_minute = 100000
peer_connections_a_minute = 100000
peer_open_connections = 10000
peer_open_calls = 2000

# Who may vouch for callers. This one is a demonstration: whoever has jwt-issuer.key can be anybody. For a real cluster put its
# issuer here, and its keys in a file: kubectl get --raw /openid/v1/jwks > cluster-jwks.json
[[jwt]]
issuer = "{ISSUER}"
audiences = ["{AUDIENCE}"]
cluster_id = "{CLUSTER}"
jwks = "jwks.json"
# An unknown key id reads the file anew, at most this often.
refresh = "10s"
"#,
        csr = ports.csr(),
        monitoring = ports.monitoring(),
        key = key_uri("issuing", module),
    )
}
