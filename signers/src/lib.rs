//! A private key that can be asked for a signature. Knows bytes, keys and devices; knows nothing of
//! certificates, databases or networks.
//!
//! `KeyUri` names a key, a back end (`pkcs11`, `file`) opens it as a `Device`, and `pool` puts a
//! bounded queue and threads before it. A `Signer` asks one such pool, or several that hold the
//! same key, in this process or in others (`process`). `bench` measures how many threads a device
//! deserves.

mod algorithm;
mod secret_file;
mod uri;

pub mod bench;
pub mod conformance;
pub mod file;
pub mod pace;
pub mod pkcs11;
pub mod pool;
mod probe;
pub mod process;
mod signer;

use std::time::{Duration, Instant};

pub use algorithm::{Algorithm, KeyKind, PublicKey, UnknownName};
pub use pace::Pace;
pub use pool::job::Timing;
pub use pool::{Health, HealthState, Pool, PoolOptions};
pub use probe::PROBE;
pub use secret_file::{SecretFileError, check_secret_file, read_password, read_pin};
pub use signer::{Condition, Signature, Signer, SignerHealth, TokenHealth};
pub use uri::{KeyUri, Pkcs11Uri, UriError};

/// One private key inside one device. May block; knows nothing of async or of certificates.
pub trait Device: Send {
    /// The key, and the one signature algorithm that was fixed when it was opened.
    fn public_key(&self) -> &PublicKey;
    /// The signature over `message`, encoded as X.509 wants it (ECDSA: DER `Ecdsa-Sig-Value`, RFC
    /// 3279 §2.2.3; RSA: PKCS#1 v1.5).
    fn sign(&mut self, message: &[u8]) -> Result<Vec<u8>, SignError>;
    /// What the last failed `sign` left behind. Unless a device knows better, a signature may exist
    /// and the same bytes are not tried again.
    fn last_failure(&self) -> Failure {
        Failure::default()
    }
    /// Whether the session still lives and is logged in, asked of an idle device. Signs a probe
    /// only where another session of the same library has just failed to.
    fn check(&mut self) -> Result<(), SignError> {
        Ok(())
    }
}

/// What a failed `Device::sign` left behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    /// False only when the device provably made no signature.
    pub may_have_signed: bool,
    /// The session, login or handle was gone: the same bytes deserve one more try on a fresh
    /// session.
    pub worth_a_retry: bool,
}

impl Default for Failure {
    fn default() -> Self {
        Self {
            may_have_signed: true,
            worth_a_retry: false,
        }
    }
}

/// What a signature is for, so that a guard can later judge what is being signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// A workload's certificate.
    Leaf,
    /// The daemon's own serving certificate.
    Serving,
    /// A CA certificate, in a ceremony.
    CaCertificate,
    /// A certificate revocation list.
    Crl,
    /// A throw-away signature that shows whether a token is back: see `PROBE`.
    Probe,
}

impl Purpose {
    /// The name in ledger rows and metric labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Leaf => "leaf",
            Self::Serving => "serving",
            Self::CaCertificate => "ca_certificate",
            Self::Crl => "crl",
            Self::Probe => "probe",
        }
    }
}

/// One request for a signature.
#[derive(Clone, Debug)]
pub struct Job {
    /// What it is for.
    pub purpose: Purpose,
    /// The call's time limit: past it the job is dropped before signing.
    pub deadline: Instant,
    /// The to-be-signed bytes.
    pub message: Vec<u8>,
}

/// Why there is no signature, by who must act. Texts hold the full cause and never a secret.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SignError {
    /// Retry: the queue is full, or the deadline passed before or inside the device.
    #[error("the signer is busy: {0}")]
    Busy(String),
    /// Retry: the device, token or session is gone; it is being reopened.
    #[error("the device is lost: {0}")]
    Lost(String),
    /// Operator: the PIN is wrong or locked; nothing is tried again until a reload or restart.
    #[error("the token is locked to us: {0}")]
    Locked(String),
    /// Operator: the device refuses this key, mechanism or message.
    #[error("the device rejected the request: {0}")]
    Rejected(String),
    /// Operator: another key is where this one should be. It is never used, and no waiting mends
    /// it.
    #[error("it is the wrong key: {0}")]
    WrongKey(String),
    /// Operator, at once: the guard of a signer process was asked to sign what its rules forbid.
    /// Whoever asked is taken over or has a fault.
    #[error("the signer's guard forbids it: {0}")]
    Forbidden(String),
    /// The signer is shutting down.
    #[error("the signer has stopped")]
    Stopped,
}

impl SignError {
    /// The cause alone, without who must act.
    pub fn cause(&self) -> &str {
        match self {
            Self::Busy(cause) | Self::Lost(cause) | Self::Locked(cause) => cause,
            Self::Rejected(cause) | Self::WrongKey(cause) | Self::Forbidden(cause) => cause,
            Self::Stopped => "the signer has stopped",
        }
    }
}

/// A failed job, and whether its bytes may have reached the device.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{error}")]
pub struct SignFailure {
    /// Why.
    #[source]
    pub error: SignError,
    /// Whether it was the job's deadline that ended it.
    pub deadline_passed: bool,
    /// False only when the bytes provably reached no device; true means a signature may exist.
    pub reached_device: bool,
}

/// What a pool tells of itself while it works; wired to metrics by the daemon.
pub trait Observer: Send + Sync + 'static {
    /// Jobs now waiting in the queue.
    fn queue_depth(&self, jobs: usize);
    /// A job left the queue after `wait`.
    fn waited(&self, wait: Duration);
    /// The device answered a job after `time`.
    fn signed(&self, purpose: Purpose, time: Duration, ok: bool);
    /// Threads whose device call is past its deadline and has not returned.
    fn stuck_threads(&self, threads: usize);
    /// A session was opened again after a loss.
    fn reopened(&self);
}

/// Nobody watches.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unobserved;

impl Observer for Unobserved {
    fn queue_depth(&self, _: usize) {}
    fn waited(&self, _: Duration) {}
    fn signed(&self, _: Purpose, _: Duration, _: bool) {}
    fn stuck_threads(&self, _: usize) {}
    fn reopened(&self) {}
}

/// Facts about a key, read back from its token (PKCS#11 v2.40 §4.9 and §4.10) or known of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyFacts {
    /// The public key; `None` where the token tells none.
    pub public_key: Option<PublicKey>,
    /// CKA_ID.
    pub id: Vec<u8>,
    /// CKA_LABEL.
    pub label: String,
    /// CKA_SENSITIVE and CKA_ALWAYS_SENSITIVE.
    pub sensitive: bool,
    /// CKA_EXTRACTABLE is false and CKA_NEVER_EXTRACTABLE is true.
    pub never_extractable: bool,
    /// CKA_LOCAL: generated inside the token.
    pub local: bool,
    /// What it may be used for beside signing, as `CKA_DECRYPT`; empty for a file.
    pub other_uses: Vec<String>,
}

impl KeyFacts {
    /// The public key of the key that `uri` names; `Rejected`, with the remedy, where the token
    /// tells none.
    pub fn told_public_key(&self, uri: &KeyUri) -> Result<&PublicKey, SignError> {
        self.public_key
            .as_ref()
            .ok_or_else(|| pkcs11::untold(&uri.to_string()))
    }
}

/// Facts about a token, from C_GetTokenInfo.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenFacts {
    /// Token label.
    pub label: String,
    /// Manufacturer.
    pub manufacturer: String,
    /// Model.
    pub model: String,
    /// Serial number.
    pub serial: String,
}

/// Creating and describing keys: the second, separate seam, which only the ceremony and `doctor`
/// use.
pub trait Vault {
    /// The token that holds, or will hold, the key.
    fn token(&self) -> Result<TokenFacts, SignError>;
    /// The key that `uri` names, `None` if there is none; two keys of that name are `Rejected`.
    fn describe(&mut self, uri: &KeyUri) -> Result<Option<KeyFacts>, SignError>;
    /// Generates a key pair inside the device under the URI's label and a fresh random CKA_ID:
    /// sensitive, never extractable, sign only. Refuses if one is there. What comes back has a
    /// public key.
    fn generate(&mut self, uri: &KeyUri, kind: KeyKind) -> Result<KeyFacts, SignError>;
    /// Opens the key for signing.
    fn open(&mut self, uri: &KeyUri) -> Result<Box<dyn Device>, SignError>;
}

/// The vault that holds, or will hold, the key that `uri` names: its token, or a directory for PEM
/// files.
pub fn open_vault(uri: &KeyUri) -> Result<Box<dyn Vault>, SignError> {
    match uri {
        KeyUri::Pkcs11(_) => Ok(Box::new(pkcs11::open_vault(uri)?)),
        KeyUri::File(_) => Ok(Box::new(file::FileVault)),
    }
}

/// The same, able to change nothing: for `doctor`.
pub fn open_vault_for_reading(uri: &KeyUri) -> Result<Box<dyn Vault>, SignError> {
    match uri {
        KeyUri::Pkcs11(_) => Ok(Box::new(pkcs11::open_vault_for_reading(uri)?)),
        KeyUri::File(_) => Ok(Box::new(file::FileVault)),
    }
}

/// Opens one session with the key that `uri` names, for signing.
pub fn open_device(uri: &KeyUri) -> Result<Box<dyn Device>, SignError> {
    match uri {
        KeyUri::Pkcs11(uri) => Ok(Box::new(pkcs11::open_device(
            uri,
            pkcs11::KnownKey::default(),
        )?)),
        KeyUri::File(path) => Ok(Box::new(file::FileDevice::open(path)?)),
    }
}

/// The same for a key that must have this public key, if one is known: where the token tells none
/// it is believed, after one signature.
pub fn open_device_of(
    uri: &KeyUri,
    expected: Option<&PublicKey>,
) -> Result<Box<dyn Device>, SignError> {
    match uri {
        KeyUri::Pkcs11(uri) => Ok(Box::new(pkcs11::open_device(
            uri,
            pkcs11::KnownKey {
                id: None,
                public_key: expected,
            },
        )?)),
        KeyUri::File(_) => open_device(uri),
    }
}

/// One session with a key pair of this kind that is made for it alone, where the key that `uri`
/// names is, and ends with it: neither in the memory of a token nor in a file. No other key can be
/// asked by it. `Rejected` by a token that makes no such keys.
pub fn throw_away_device(uri: &KeyUri, kind: KeyKind) -> Result<Box<dyn Device>, SignError> {
    match uri {
        KeyUri::Pkcs11(uri) => Ok(Box::new(pkcs11::throw_away_device(uri, kind)?)),
        KeyUri::File(_) => Ok(Box::new(file::FileDevice::generate(kind)?)),
    }
}
