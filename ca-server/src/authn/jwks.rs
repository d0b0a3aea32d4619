//! The public keys of a token issuer (RFC 7517), from a file. Read at start, and again at most once an interval when a token names a
//! key that is not among them. The last good set stays in force when a later one cannot be read.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, JwkSet, KeyAlgorithm, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};
use tokio::sync::Mutex;

use crate::timestamp::Timestamp;

/// The largest file and the most keys that are accepted.
const MAX_BYTES: u64 = 1024 * 1024;
const MAX_KEYS: usize = 100;

/// One public key, and the algorithm that it is pinned to where the set says so.
pub struct VerifyKey {
    /// `kid`.
    pub id: Option<String>,
    /// The key.
    pub key: DecodingKey,
    /// The only algorithm it verifies.
    pub algorithm: Option<Algorithm>,
}

impl std::fmt::Debug for VerifyKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "VerifyKey {{ id: {:?}, algorithm: {:?} }}", self.id, self.algorithm)
    }
}

/// The keys of one issuer.
#[derive(Clone, Debug)]
pub struct Jwks(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    interval: Duration,
    keys: ArcSwap<Vec<Arc<VerifyKey>>>,
    /// Held while reading, so that many unknown keys cost one read.
    last_read: Arc<Mutex<LastRead>>,
}

/// The last read for an unknown key: when, and why it failed if it did.
#[derive(Debug)]
struct LastRead {
    at: Timestamp,
    failed: Option<String>,
}

impl Jwks {
    /// Reads the file; `interval` is the least time between two reads for unknown keys.
    pub fn open(path: &Path, interval: Duration, now: Timestamp) -> Result<Self, String> {
        let keys = ArcSwap::from_pointee(read(path)?);
        let last_read = Arc::new(Mutex::new(LastRead { at: now.minus(interval), failed: None }));
        Ok(Self(Arc::new(Inner { path: path.to_owned(), interval, keys, last_read })))
    }

    /// The key named `id`. A token without `kid` means the only key of the set. `Err` when the file was wanted for an unknown key and
    /// could not be read, for as long as it is not tried again.
    pub async fn key(&self, id: Option<&str>, now: Timestamp) -> Result<Option<Arc<VerifyKey>>, String> {
        if let Some(key) = self.find(id) {
            return Ok(Some(key));
        }
        let mut last_read = self.0.last_read.clone().lock_owned().await;
        if let Some(key) = self.find(id) {
            return Ok(Some(key));
        }
        // A clock that was set back must not stop the refetch for ever.
        let due = now < last_read.at || now.since(last_read.at) >= self.0.interval;
        if due {
            // A task of its own: a caller who leaves must not take the result along, after the interval has begun.
            let inner = self.0.clone();
            let reading = tokio::task::spawn_blocking(move || {
                last_read.at = now;
                last_read.failed = inner.read_again().err();
                last_read.failed.clone()
            });
            return match reading.await.map_err(|error| error.to_string())? {
                None => Ok(self.find(id)),
                Some(error) => Err(error),
            };
        }
        last_read.failed.clone().map_or(Ok(None), Err)
    }

    fn find(&self, id: Option<&str>) -> Option<Arc<VerifyKey>> {
        let keys = self.0.keys.load();
        match id {
            Some(_) => keys.iter().find(|key| key.id.as_deref() == id).cloned(),
            None => (keys.len() == 1).then(|| keys[0].clone()),
        }
    }
}

impl Inner {
    fn read_again(&self) -> Result<(), String> {
        let keys = read(&self.path).inspect_err(|error| tracing::warn!(%error, "JWKS cannot be read; the former keys stay in force"))?;
        tracing::info!(path = %self.path.display(), keys = keys.len(), "JWKS read again for an unknown key id");
        self.keys.store(Arc::new(keys));
        Ok(())
    }
}

fn read(path: &Path) -> Result<Vec<Arc<VerifyKey>>, String> {
    parse(&text(path)?).map_err(|error| format!("{}: {error}", path.display()))
}

fn text(path: &Path) -> Result<Vec<u8>, String> {
    let at = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let size = std::fs::metadata(path).map_err(|error| at(&error))?.len();
    if size > MAX_BYTES {
        return Err(at(&format_args!("{size} bytes, at most {MAX_BYTES} are read")));
    }
    std::fs::read(path).map_err(|error| at(&error))
}

/// What a set holds, for people.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// The keys that verify tokens: `kid`, and the kind, such as `RSA` or `P-256`.
    pub keys: Vec<(Option<String>, String)>,
    /// Keys that are for something else, or of a kind that is not known here.
    pub passed_over: usize,
}

/// Reads the file as `Jwks::open` does and says what is in it.
pub fn contents(path: &Path) -> Result<Contents, String> {
    let text = text(path)?;
    parse(&text).map_err(|error| format!("{}: {error}", path.display()))?;
    let set: JwkSet = serde_json::from_slice(&text).map_err(|error| error.to_string())?;
    let keys: Vec<_> = set.keys.iter().filter(|jwk| is_usable(jwk)).map(|jwk| (jwk.common.key_id.clone(), kind(jwk))).collect();
    Ok(Contents { passed_over: set.keys.len() - keys.len(), keys })
}

fn kind(jwk: &Jwk) -> String {
    match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => "RSA".to_owned(),
        AlgorithmParameters::EllipticCurve(curve) => match curve.curve {
            EllipticCurve::P256 => "P-256".to_owned(),
            EllipticCurve::P384 => "P-384".to_owned(),
            ref other => format!("{other:?}"),
        },
        AlgorithmParameters::OctetKeyPair(_) => "Ed25519".to_owned(),
        _ => "other".to_owned(),
    }
}

fn is_usable(jwk: &Jwk) -> bool {
    is_for_signatures(jwk) && DecodingKey::from_jwk(jwk).is_ok()
}

fn is_for_signatures(jwk: &Jwk) -> bool {
    matches!(jwk.common.public_key_use, None | Some(PublicKeyUse::Signature)) && !matches!(jwk.algorithm, AlgorithmParameters::OctetKey(_))
}

/// The signature keys of a JWK Set. Keys for other uses are passed over; a set without a usable key is an error.
pub fn parse(text: &[u8]) -> Result<Vec<Arc<VerifyKey>>, String> {
    let set: JwkSet = serde_json::from_slice(text).map_err(|error| format!("not a JWK Set: {error}"))?;
    if set.keys.len() > MAX_KEYS {
        return Err(format!("{} keys, at most {MAX_KEYS} are read", set.keys.len()));
    }
    let mut keys = Vec::new();
    for jwk in &set.keys {
        if is_for_signatures(jwk) {
            // A key of a kind that is not known here is no reason to refuse the others (RFC 7517 §5).
            match DecodingKey::from_jwk(jwk) {
                Ok(key) => keys.push(Arc::new(VerifyKey { id: jwk.common.key_id.clone(), key, algorithm: pinned(jwk) })),
                Err(error) => tracing::warn!(key = ?jwk.common.key_id, %error, "a key of a JWK Set cannot be used"),
            }
        }
    }
    if keys.is_empty() { Err("no public signature key in it".to_owned()) } else { Ok(keys) }
}

/// The algorithm that `alg` or the curve leaves no choice about.
fn pinned(jwk: &Jwk) -> Option<Algorithm> {
    match (jwk.common.key_algorithm, &jwk.algorithm) {
        (Some(KeyAlgorithm::RS256), _) => Some(Algorithm::RS256),
        (Some(KeyAlgorithm::RS384), _) => Some(Algorithm::RS384),
        (Some(KeyAlgorithm::RS512), _) => Some(Algorithm::RS512),
        (Some(KeyAlgorithm::PS256), _) => Some(Algorithm::PS256),
        (Some(KeyAlgorithm::PS384), _) => Some(Algorithm::PS384),
        (Some(KeyAlgorithm::PS512), _) => Some(Algorithm::PS512),
        (_, AlgorithmParameters::EllipticCurve(curve)) => match curve.curve {
            EllipticCurve::P256 => Some(Algorithm::ES256),
            EllipticCurve::P384 => Some(Algorithm::ES384),
            _ => None,
        },
        (_, AlgorithmParameters::OctetKeyPair(_)) => Some(Algorithm::EdDSA),
        _ => None,
    }
}
