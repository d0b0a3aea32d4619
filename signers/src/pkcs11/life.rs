//! The life of an initialised library: from a C_Initialize to the next. Handles belong to one life
//! and mean nothing, or another thing, in the next, so sessions of an earlier life are neither used
//! nor closed. A library is finalised only while nobody is inside it and no session of it is open
//! in this process.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

use cryptoki::context::Pkcs11;

use super::raw::Raw;

/// A library, for those who open sessions of it.
#[derive(Clone, Copy)]
pub(super) struct Library<'a> {
    pub(super) context: &'a Pkcs11,
    pub(super) raw: &'a Arc<Raw>,
    pub(super) life: &'a Arc<Life>,
}

/// What sessions share with their library.
#[derive(Debug, Default)]
pub(super) struct Life {
    number: AtomicU64,
    sessions: AtomicUsize,
    failures: AtomicU32,
    // The last probe of some session made no signature.
    in_doubt: AtomicBool,
    // Read from the first call of an opening to its last; a session that it leaves behind is
    // counted before that.
    door: RwLock<()>,
    initializing: Mutex<()>,
}

/// Openings that failed in a row, with no session left, before the library itself is doubted.
const DOUBTED_AFTER: u32 = 3;

/// A session of one life; counted until it is dropped.
#[derive(Debug)]
pub(super) struct Member {
    life: Arc<Life>,
    number: u64,
}

impl Life {
    /// For the whole of an opening, or of anything else that calls the library without a session:
    /// until it is dropped nobody finalises it.
    pub(super) fn enter(&self) -> RwLockReadGuard<'_, ()> {
        self.door.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// A session is about to be opened.
    pub(super) fn join(self: &Arc<Self>) -> Member {
        self.sessions.fetch_add(1, Ordering::AcqRel);
        Member {
            life: self.clone(),
            number: self.number.load(Ordering::Acquire),
        }
    }

    /// One C_Initialize at a time: libraries are not made for two.
    pub(super) fn initializing(&self) -> MutexGuard<'_, ()> {
        self.initializing
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// A C_Initialize has begun another life.
    pub(super) fn begun(&self) {
        self.number.fetch_add(1, Ordering::AcqRel);
    }

    /// An opening has ended.
    pub(super) fn opened(&self, well: bool) {
        if well {
            self.failures.store(0, Ordering::Release);
        } else {
            self.failures.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// Runs `again`, which may finalise the library, where openings keep failing and nobody could
    /// be harmed; `release` is told how many sessions there are and closes first what is kept for
    /// nobody. Whether it did.
    pub(super) fn renew(&self, release: impl FnOnce(usize), again: impl FnOnce()) -> bool {
        if self.failures.load(Ordering::Acquire) < DOUBTED_AFTER {
            return false;
        }
        // Somebody else is opening, perhaps stuck: who holds the door also decides what becomes of
        // a session.
        let Ok(_alone) = self.door.try_write() else {
            return false;
        };
        release(self.sessions.load(Ordering::Acquire));
        if self.sessions.load(Ordering::Acquire) > 0 {
            return false;
        }
        again();
        true
    }
}

impl Member {
    /// Whether the library still lives the life that the session was opened in.
    pub(super) fn is_alive(&self) -> bool {
        self.number == self.life.number.load(Ordering::Acquire)
    }

    /// A probe was signed, or not.
    pub(super) fn probed(&self, well: bool) {
        self.life.in_doubt.store(!well, Ordering::Release);
    }

    /// Whether the last probe of any session of the library failed.
    pub(super) fn library_is_in_doubt(&self) -> bool {
        self.life.in_doubt.load(Ordering::Acquire)
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.life.sessions.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_is_renewed_only_after_failures_and_with_nobody_inside() {
        let life = Arc::new(Life::default());
        let renewed = || life.renew(|_| {}, || life.begun());
        assert!(!renewed(), "nothing has failed");
        (0..DOUBTED_AFTER).for_each(|_| life.opened(false));
        let inside = life.enter();
        assert!(!renewed(), "somebody is opening");
        let member = life.join();
        drop(inside);
        assert!(!renewed(), "a session is open");
        assert!(member.is_alive());
        drop(member);
        let other = life.enter();
        drop(other);
        assert!(renewed());
        life.opened(true);
        assert!(!renewed(), "it opens again");
    }

    #[test]
    fn a_session_of_an_earlier_life_is_dead() {
        let life = Arc::new(Life::default());
        let before = life.join();
        life.begun();
        assert!(!before.is_alive() && life.join().is_alive());
    }
}
