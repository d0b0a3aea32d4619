//! What `request` takes from the config: `[request]` and the trust domain, and nothing else of it. A client must work where the
//! daemon's PINs and certificates are out of reach.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::cli::Exit;
use crate::spiffe::TrustDomain;

/// Values for options that are not on the command line; paths already count from the config's directory.
#[derive(Default)]
pub(super) struct Defaults {
    pub(super) address: Option<String>,
    pub(super) server_name: Option<String>,
    pub(super) roots: Option<PathBuf>,
    pub(super) token_file: Option<PathBuf>,
    pub(super) cluster_id: Option<String>,
    pub(super) out: Option<PathBuf>,
    pub(super) trust_domain: Option<TrustDomain>,
}

#[derive(Deserialize)]
struct File {
    trust_domain: Option<String>,
    #[serde(default)]
    request: Section,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Section {
    address: Option<String>,
    server_name: Option<String>,
    roots: Option<PathBuf>,
    token_file: Option<PathBuf>,
    cluster_id: Option<String>,
    out: Option<PathBuf>,
}

impl Defaults {
    /// Reads them; a config that is not there gives none.
    pub(super) fn read(config: &Path) -> Result<Self, Exit> {
        let text = match std::fs::read_to_string(config) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(Exit::config(format!("{}: {error}", config.display()))),
        };
        let file: File = toml::from_str(&text).map_err(|error| Exit::config(format!("{}: {}", config.display(), error.message())))?;
        let directory = config.parent().unwrap_or(Path::new("."));
        let path = |path: Option<PathBuf>| path.map(|path| directory.join(path));
        Ok(Self {
            address: file.request.address,
            server_name: file.request.server_name,
            roots: path(file.request.roots),
            token_file: path(file.request.token_file),
            cluster_id: file.request.cluster_id,
            out: path(file.request.out),
            trust_domain: file.trust_domain.as_deref().and_then(TrustDomain::parse),
        })
    }
}
