//! Who must know that this process is inside C_Login: whoever would replace it if it ended there. What the token made of the PIN is then
//! unknown, and may have been a try.

use std::sync::{Arc, Mutex, PoisonError};

type Watch = Arc<dyn Fn(bool) + Send + Sync>;

static WATCH: Mutex<Option<Watch>> = Mutex::new(None);

/// From now on `watch` is told of each C_Login of this process: true before the call, false when it has returned. It must not wait.
pub(crate) fn watch_logins(watch: impl Fn(bool) + Send + Sync + 'static) {
    *WATCH.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(watch));
}

/// One C_Login, until it is dropped.
pub(super) struct LoginUnderWay(Option<Watch>);

impl LoginUnderWay {
    pub(super) fn begin() -> Self {
        let watch = WATCH.lock().unwrap_or_else(PoisonError::into_inner).clone();
        watch.iter().for_each(|watch| watch(true));
        Self(watch)
    }
}

impl Drop for LoginUnderWay {
    fn drop(&mut self) {
        self.0.iter().for_each(|watch| watch(false));
    }
}
