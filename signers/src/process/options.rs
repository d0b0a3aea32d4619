//! What the owner of a signer process decides.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::pkcs11::MayTry;
use crate::{KeyUri, Observer, PublicKey};

/// How the signer is reached.
#[derive(Clone, Debug)]
pub enum Way {
    /// A child of this process, with the socket as its standard input.
    Spawn {
        /// The program.
        program: PathBuf,
        /// Its arguments.
        arguments: Vec<OsString>,
        /// What is added to its environment; no secrets.
        environment: BTreeMap<String, String>,
    },
    /// A service at this socket, with a config of its own.
    Connect(PathBuf),
}

impl Way {
    /// Whether somebody else runs the signer: it heals itself, and only he can start or end it.
    pub(super) fn is_service(&self) -> bool {
        matches!(self, Self::Connect(_))
    }
}

/// A key that is wanted of the process.
#[derive(Clone)]
pub struct KeyOfProcess {
    /// Its URI.
    pub uri: KeyUri,
    /// The key that must be found there.
    pub expected: PublicKey,
    /// Sessions.
    pub sessions: usize,
    /// Who is told what happens.
    pub observer: Arc<dyn Observer>,
}

impl fmt::Debug for KeyOfProcess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyOfProcess({})", self.uri)
    }
}

/// What the owner of a signer process decides.
#[derive(Clone, Debug)]
pub struct ProcessOptions {
    /// How it is reached.
    pub way: Way,
    /// Its keys.
    pub keys: Vec<KeyOfProcess>,
    /// The guard's rules, for a process that is spawned.
    pub rules: Vec<u8>,
    /// How long the device may take for one signature.
    pub device_limit: Duration,
    /// How long a process may take until it says of each key whether it is open, the first and each
    /// that takes its place.
    pub opened_within: Duration,
    /// Whether the first process may try a PIN where something speaks against it.
    pub may_try: MayTry,
    /// The longest pause between two attempts to replace it.
    pub longest_pause: Duration,
}
