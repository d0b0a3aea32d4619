//! Which ledger a verb works on: the config's, or one that the command line names, such as with an
//! auditor's own login.

use std::path::{Path, PathBuf};

use super::Exit;
use crate::config::Config;
use crate::store::ledger::{Location, ServerFiles};

/// The ledger, where it is not the config's.
#[derive(clap::Args, Clone, Debug)]
pub struct LedgerArgs {
    /// The ledger instead of the config's: sqlite:FILE or postgres://LOGIN@HOST/DATABASE
    #[arg(long = "ledger", global = true, value_name = "URL")]
    url: Option<String>,
    /// A file with the login's password
    #[arg(long, global = true, value_name = "FILE", requires = "url")]
    password_file: Option<PathBuf>,
    /// PEM certificates by which the database server's is judged
    #[arg(long, global = true, value_name = "FILE", requires = "url")]
    ledger_roots: Option<PathBuf>,
    /// A client certificate for the database server, PEM
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        requires = "url",
        requires = "ledger_key"
    )]
    ledger_certificate: Option<PathBuf>,
    /// Its key, PEM
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        requires = "ledger_certificate"
    )]
    ledger_key: Option<PathBuf>,
}

impl LedgerArgs {
    /// What the command line names; `None` if it names none.
    pub(super) fn named(&self) -> Result<Option<Location>, Exit> {
        let Some(url) = &self.url else {
            return Ok(None);
        };
        let files = ServerFiles {
            password: self.password_file.clone(),
            roots: self.ledger_roots.clone(),
            certificate: self.ledger_certificate.clone(),
            key: self.ledger_key.clone(),
        };
        if let Some(password) = &files.password {
            signers::read_password(password).map_err(Exit::config)?;
        }
        let here = std::env::current_dir().unwrap_or_default();
        Location::parse(url, files, &here)
            .map(Some)
            .map_err(|why| Exit::config(format_args!("the ledger's URL {why}")))
    }

    /// What the command line names, or the config at `config` does.
    pub(super) fn location(&self, config: &Path) -> Result<Location, Exit> {
        match self.named()? {
            Some(location) => Ok(location),
            None => Config::ledger_of(config).map_err(Exit::config),
        }
    }

    /// The part of a config that names the same ledger; paths are made absolute, for the config may
    /// stand elsewhere.
    pub(super) fn section(&self) -> Result<Option<String>, Exit> {
        let Some(url) = &self.url else {
            return Ok(None);
        };
        self.named()?;
        let absolute = |path: &Path| {
            std::path::absolute(path)
                .map_err(|error| Exit::config(format_args!("{}: {error}", path.display())))
        };
        let url = match url
            .strip_prefix("sqlite:")
            .map(|path| path.strip_prefix("//").unwrap_or(path))
        {
            Some(path) => format!("sqlite:{}", absolute(Path::new(path))?.display()),
            None => url.clone(),
        };
        let mut section = format!("url = {}\n", toml::Value::String(url));
        let files = [
            ("password_file", &self.password_file),
            ("roots", &self.ledger_roots),
            ("certificate", &self.ledger_certificate),
            ("key", &self.ledger_key),
        ];
        for (key, path) in files {
            if let Some(path) = path {
                section += &format!(
                    "{key} = {}\n",
                    toml::Value::String(absolute(path)?.display().to_string())
                );
            }
        }
        Ok(Some(section))
    }
}
