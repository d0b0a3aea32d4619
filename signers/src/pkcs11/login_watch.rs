//! Who must know of each C_Login of this process: whoever would replace it if it ended. What the
//! token made of a PIN whose C_Login never returned is unknown and may have been a try, and a
//! refused one must not be tried again by the next process. And who may try a PIN at all.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// What becomes of a C_Login.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LoginEvent {
    /// It is about to be called.
    Begun,
    /// It has returned and cost no try of the PIN.
    Ended,
    /// The token may have counted a wrong PIN: why nobody tries again without an order.
    Refused(String),
}

type Watch = Arc<dyn Fn(Instant, LoginEvent) + Send + Sync>;

static WATCH: Mutex<Option<Watch>> = Mutex::new(None);

/// From now on `watch` is told of each C_Login of this process and of when its try began: orders
/// that came later are not carried out by it. It may wait until that is said, for a child has
/// nobody else to serve meanwhile and is ended by its daemon if it waits too long.
pub(crate) fn watch_logins(watch: impl Fn(Instant, LoginEvent) + Send + Sync + 'static) {
    *WATCH.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(watch));
}

/// Something has become of the C_Login whose try began at `tried_at`.
pub(super) fn tell(tried_at: Instant, event: LoginEvent) {
    let watch = WATCH.lock().unwrap_or_else(PoisonError::into_inner).clone();
    if let Some(watch) = watch {
        watch(tried_at, event);
    }
}

/// Whether a PIN may be tried where something speaks against it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MayTry {
    /// Neither where the token warns of its last try nor where an earlier process left the mark of
    /// a try.
    #[default]
    Carefully,
    /// As before, but the mark of a try that did not come back is known to whoever started this
    /// process, which takes that one's place.
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

/// What holds for the first C_Login of each token in this process. Later ones are careful, unless
/// an operator orders them.
pub fn may_try_first(may: MayTry) {
    *MAY_TRY.lock().unwrap_or_else(PoisonError::into_inner) = may;
}

/// For a token that has just been met.
pub(super) fn first_try() -> MayTry {
    *MAY_TRY.lock().unwrap_or_else(PoisonError::into_inner)
}
