//! Who must know that this process is inside C_Login: whoever would replace it if it ended there. What the token made of the PIN is then
//! unknown, and may have been a try.

use std::sync::{Arc, Mutex, PoisonError};

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
