//! The public keys of a token issuer (RFC 7517 §5), from a file. Read at start, and again at most
//! once an interval when the set has no key that a token may mean. The last good set stays in force
//! when a later one cannot be read. Errors name what is wrong and where, and quote nothing of the
//! file.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::Mutex;

use super::jwk::{self, TokenAlgorithm, Unusable, VerifyKey};
use crate::timestamp::Timestamp;

/// The largest file and the most keys that are accepted.
const MAX_BYTES: u64 = 1024 * 1024;
const MAX_KEYS: usize = 100;

/// How many keys of a set one token is tried with: a token that names no key must not cost a
/// verification by each of a hundred.
const MAX_TRIED: usize = 16;

/// The keys of one issuer.
#[derive(Clone, Debug)]
pub struct Jwks(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    interval: Duration,
    keys: ArcSwap<Vec<Arc<VerifyKey>>>,
    /// Held while reading, so that many tokens by unknown keys cost one read.
    last_read: Arc<Mutex<LastRead>>,
}

/// The last read for a token that no key verified: when, and why it failed if it did.
#[derive(Debug)]
struct LastRead {
    at: Timestamp,
    failed: Option<String>,
}

impl Jwks {
    /// Reads the file; `interval` is the least time between two reads for tokens that no key
    /// verifies.
    pub fn open(path: &Path, interval: Duration, now: Timestamp) -> Result<Self, String> {
        let keys = ArcSwap::from_pointee(read(path)?.keys);
        let last_read = Arc::new(Mutex::new(LastRead {
            at: now.minus(interval),
            failed: None,
        }));
        Ok(Self(Arc::new(Inner {
            path: path.to_owned(),
            interval,
            keys,
            last_read,
        })))
    }

    /// The keys that may have signed a token: those that `id` names, or all of a token that names
    /// none, as far as they are for `algorithm`; not more than `MAX_TRIED`, in the order of the
    /// set.
    pub fn candidates(&self, id: Option<&str>, algorithm: TokenAlgorithm) -> Vec<Arc<VerifyKey>> {
        let keys = self.0.keys.load();
        let named = |key: &&Arc<VerifyKey>| {
            (id.is_none() || key.id.as_deref() == id) && key.is_for(algorithm)
        };
        keys.iter().filter(named).take(MAX_TRIED).cloned().collect()
    }

    /// Reads the file again, unless that was done within the interval. Wanted when no key verified
    /// a token: its issuer may have a new one. `Err` when the file could not be read, for as long
    /// as it is not tried again.
    pub async fn refresh(&self, now: Timestamp) -> Result<(), String> {
        let mut last_read = self.0.last_read.clone().lock_owned().await;
        // A clock that was set back must not stop the refetch for ever.
        let due = now < last_read.at || now.since(last_read.at) >= self.0.interval;
        if due {
            // A task of its own: a caller who leaves must not take the result along, after the
            // interval has begun.
            let inner = self.0.clone();
            let reading = tokio::task::spawn_blocking(move || {
                last_read.at = now;
                last_read.failed = inner.read_again().err();
                last_read.failed.clone()
            });
            return reading
                .await
                .map_err(|error| error.to_string())?
                .map_or(Ok(()), Err);
        }
        last_read.failed.clone().map_or(Ok(()), Err)
    }
}

impl Inner {
    fn read_again(&self) -> Result<(), String> {
        let set = read(&self.path).inspect_err(
            |error| tracing::warn!(%error, "JWKS cannot be read; the former keys stay in force"),
        )?;
        // Anybody can have it read again, so only what is new in it is worth lines of the log.
        let ids =
            |keys: &[Arc<VerifyKey>]| keys.iter().map(|key| key.id.clone()).collect::<Vec<_>>();
        if ids(&set.keys) != ids(&self.keys.load()) {
            tracing::info!(path = %self.path.display(), keys = set.keys.len(), "JWKS read again, with other keys");
            for warning in set.warnings() {
                tracing::warn!(path = %self.path.display(), "{warning}");
            }
        }
        self.keys.store(Arc::new(set.keys));
        Ok(())
    }
}

/// Reads the file of a set as `Jwks::open` does.
pub fn read(path: &Path) -> Result<KeySet, String> {
    text(path)
        .and_then(|text| parse(&text))
        .map_err(|error| format!("{}: {error}", path.display()))
}

fn text(path: &Path) -> Result<Vec<u8>, String> {
    let size = std::fs::metadata(path)
        .map_err(|error| error.to_string())?
        .len();
    if size > MAX_BYTES {
        return Err(format!("{size} bytes, at most {MAX_BYTES} are read"));
    }
    std::fs::read(path).map_err(|error| error.to_string())
}

/// What a set holds.
#[derive(Debug, Default)]
pub struct KeySet {
    /// The keys that verify tokens; never none.
    pub keys: Vec<Arc<VerifyKey>>,
    /// The others.
    pub unusable: Vec<Unusable>,
}

impl KeySet {
    /// What the set's maker should mend, a sentence each. A key that is openly for something else
    /// is none of it.
    pub fn warnings(&self) -> Vec<String> {
        let unusable = self
            .unusable
            .iter()
            .filter(|key| !key.for_another_use)
            .map(ToString::to_string);
        let blemished = self.keys.iter().filter_map(|key| key.blemish.clone());
        unusable.chain(blemished).chain(self.crowd()).collect()
    }

    /// Keys that a token may name together must all be tried, and only so many are.
    fn crowd(&self) -> Option<String> {
        let crowded = |key: &&Arc<VerifyKey>| {
            self.keys.iter().filter(|other| other.id == key.id).count() > MAX_TRIED
        };
        let key = self.keys.iter().find(crowded)?;
        let called = key.id.as_ref().map_or("have no `kid`".to_owned(), |id| {
            format!("are called {id:?}")
        });
        Some(format!(
            "more than {MAX_TRIED} keys {called}: a token is tried with the first {MAX_TRIED} of its kind"
        ))
    }
}

/// The signature keys of a JWK Set. One that cannot be used is no reason to refuse the others (RFC
/// 7517 §5); a set without a usable key is an error that names each.
pub fn parse(text: &[u8]) -> Result<KeySet, String> {
    #[derive(Deserialize)]
    struct Members {
        keys: Vec<Value>,
    }
    let set: Members = serde_json::from_slice(text).map_err(|error| match error.classify() {
        serde_json::error::Category::Data => {
            "it is no JWK Set: RFC 7517 §5 wants an object whose member `keys` is a list".to_owned()
        }
        _ => format!(
            "it is no JSON: see line {}, column {}",
            error.line(),
            error.column()
        ),
    })?;
    if set.keys.len() > MAX_KEYS {
        return Err(format!(
            "{} keys, at most {MAX_KEYS} are read",
            set.keys.len()
        ));
    }
    let mut found = KeySet::default();
    for (value, place) in set.keys.iter().zip(1..) {
        match jwk::read(value, place) {
            Ok(key) => found.keys.push(Arc::new(key)),
            Err(unusable) => found.unusable.push(unusable),
        }
    }
    if found.keys.is_empty() {
        let each: Vec<String> = found.unusable.iter().map(ToString::to_string).collect();
        let each = if each.is_empty() {
            "it is empty".to_owned()
        } else {
            each.join("; ")
        };
        return Err(format!("no public signature key in it: {each}"));
    }
    Ok(found)
}
