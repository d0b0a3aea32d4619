//! The keys of a signer that is a service of its own: opened for all daemons together, looked
//! after, and stopped. Nobody outside kills a call that hangs, so this says when the process should
//! end for another to take its place.

use std::time::{Duration, Instant};

use signers::pkcs11::{close_logins, set_init_string};
use signers::process::why_none_serves;
use signers::{HealthState, KeyUri, Pool, PoolOptions, SignError};

use super::rules_file::Key;
use crate::cli::Exit;
use crate::issue::PERMITS;

/// What a device call may take beyond twice its limit.
const GRACE: Duration = Duration::from_secs(1);

/// When all keys are lost for so long, a library that is loaded anew finds a token that came back.
const LOST: Duration = Duration::from_secs(3);

/// The longest pause between two attempts to find a lost device.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Begins to open every key, and waits until one is open or none can be now. What cannot be opened
/// is tried again by itself, or waits for the operator. An error where another start would do
/// better, or where only another file or token would. A token that refuses the PIN is no reason to
/// end: whoever starts the process again would try the PIN again, and no token bears that often.
pub(super) async fn open(keys: &[Key]) -> Result<Vec<Pool>, Exit> {
    let (ordered, limit) = (
        Instant::now(),
        keys.iter()
            .map(|key| key.open_limit)
            .max()
            .unwrap_or_default(),
    );
    let pools = keys
        .iter()
        .map(|key| pool(key, ordered))
        .collect::<Result<Vec<_>, _>>()
        .map_err(Exit::missing)?;
    let waiting = pools.clone();
    let opened = tokio::task::spawn_blocking(move || Pool::first_tries(&waiting, limit))
        .await
        .map_err(Exit::missing)?;
    for pool in pools.iter().filter(|pool| pool.uri().is_file()) {
        tracing::warn!(uri = %pool.uri(), "its key is a file: good for development and migration, no hardware protects it");
    }
    match why_none_serves(&opened) {
        Some(error @ SignError::Locked(_)) => {
            tracing::error!(%error, "nothing is signed; put the right PIN into its file, then send SIGHUP");
        }
        Some(error @ (SignError::Lost(_) | SignError::Busy(_) | SignError::Stopped)) => {
            return Err(Exit::missing(error));
        }
        Some(
            error @ (SignError::Rejected(_) | SignError::WrongKey(_) | SignError::Forbidden(_)),
        ) => return Err(Exit::config(error)),
        None => {
            for (pool, error) in pools
                .iter()
                .zip(&opened)
                .filter_map(|(pool, opened)| Some((pool, opened.as_ref().err()?)))
            {
                tracing::error!(uri = %pool.uri(), %error, "this key cannot sign yet; the others do");
            }
        }
    }
    Ok(pools)
}

fn pool(key: &Key, ordered: Instant) -> Result<Pool, SignError> {
    if let (KeyUri::Pkcs11(uri), Some(text)) = (&key.uri, &key.init_string) {
        set_init_string(&uri.module_path, text);
    }
    let options = PoolOptions {
        threads: key.sessions,
        queue: PERMITS,
        device_limit: Some(key.device_limit),
        open_limit: key.open_limit,
        longest_pause: LONGEST_PAUSE,
        ..PoolOptions::default()
    };
    Pool::begin(key.uri.clone(), key.expected.clone(), options, ordered)
}

/// The operator's order.
pub(super) fn again(pools: &[Pool]) {
    let ordered = Instant::now();
    pools
        .iter()
        .for_each(|pool| pool.retry_login_ordered_at(ordered));
}

/// Whether it is worth another process.
#[derive(Default)]
pub(super) struct Watch {
    /// Since when every key is lost.
    lost_since: Option<Instant>,
}

impl Watch {
    /// Why the process should end, as far as is known now.
    pub(super) fn look(&mut self, pools: &[Pool], keys: &[Key]) -> Option<String> {
        let health: Vec<_> = pools.iter().map(Pool::health).collect();
        let lost = health
            .iter()
            .all(|health| health.state == HealthState::Lost);
        self.lost_since = if lost {
            self.lost_since.or_else(|| Some(Instant::now()))
        } else {
            None
        };
        let hangs = |(pool, key): (&Pool, &Key)| pool.longest_overdue() > key.device_limit + GRACE;
        if let Some((pool, key)) = pools.iter().zip(keys).find(|pair| hangs(*pair)) {
            let limit = key.device_limit.as_secs_f32();
            return Some(format!(
                "a device call for {} has not returned long after its limit of {limit} s",
                pool.uri()
            ));
        }
        // For what is merely lost nobody should try a refused PIN once more.
        if health
            .iter()
            .any(|health| health.state == HealthState::Locked)
        {
            return None;
        }
        let detail = || {
            health
                .first()
                .map(|health| health.detail.clone())
                .unwrap_or_default()
        };
        self.lost_since
            .is_some_and(|since| since.elapsed() > LOST)
            .then(|| format!("every key is lost: {}", detail()))
    }
}

/// Ends what waits, and waits at most two seconds for what is inside the device; each key's threads
/// beside those of the others. Whether all have ended, and with them every session.
pub(super) fn stop(pools: &[Pool]) -> bool {
    let all = std::thread::scope(|scope| {
        let stopping: Vec<_> = pools
            .iter()
            .map(|pool| scope.spawn(|| pool.stop()))
            .collect();
        let ended = stopping.into_iter().map(|one| one.join().unwrap_or(false));
        ended.filter(|ended| !ended).count() == 0
    });
    if all {
        close_logins();
    }
    all
}
