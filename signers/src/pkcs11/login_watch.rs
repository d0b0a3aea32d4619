//! Who must know that this process is inside C_Login: whoever would replace it if it ended there. What the token made of the PIN is then
//! unknown, and may have been a try. And who may try a PIN at all.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

type Watch = Arc<dyn Fn(bool) + Send + Sync>;

static WATCH: Mutex<Option<Watch>> = Mutex::new(None);

/// From now on `watch` is told of each C_Login of this process: true before the call, false when it has returned and was not refused. It must
/// not wait.
pub(crate) fn watch_logins(watch: impl Fn(bool) + Send + Sync + 'static) {
    *WATCH.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(watch));
}

/// A C_Login is about to be called, or has returned and cost no try of the PIN. One that was refused is told of in another way, and stays
/// under way until then: this process could end before.
pub(super) fn login_is_under_way(now: bool) {
    let watch = WATCH.lock().unwrap_or_else(PoisonError::into_inner).clone();
    watch.iter().for_each(|watch| watch(now));
}

/// Whether a PIN may be tried where something speaks against it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MayTry {
    /// Neither where the token warns of its last try nor where an earlier process left the mark of a try.
    #[default]
    Carefully,
    /// As before, but the mark of a try that did not come back is known to whoever started this process, which takes that one's place.
    Again,
    /// In any case, once: an operator has ordered it.
    Ordered,
}

/// One more login is wanted, though the token may have refused an earlier one in this process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LoginOrder {
    /// Since when.
    pub(crate) at: Instant,
    /// An operator wants it, whatever speaks against it; otherwise it is a signer that starts.
    pub(crate) by_operator: bool,
}

static MAY_TRY: Mutex<MayTry> = Mutex::new(MayTry::Carefully);

/// What holds for the first C_Login of each token in this process. Later ones are careful, unless an operator orders them.
pub fn may_try_first(may: MayTry) {
    *MAY_TRY.lock().unwrap_or_else(PoisonError::into_inner) = may;
}

/// For a token that has just been met.
pub(super) fn first_try() -> MayTry {
    *MAY_TRY.lock().unwrap_or_else(PoisonError::into_inner)
}
