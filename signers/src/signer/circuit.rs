//! Whether a token is asked at all. After several failures in a row, or wrong signatures, it is
//! not, until a throw-away signature of it verifies: calls then go elsewhere, or are refused at
//! once, and do not each wait for the same dead device.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// Failures in a row that open a circuit.
const OPENS_AFTER: u32 = 3;

/// One token's circuit; closed is the good state.
#[derive(Debug, Default)]
pub(super) struct Circuit {
    failures: AtomicU32,
    /// Signatures in a row that did not verify. Whoever gets one has taken it for a success first,
    /// so they are counted apart.
    wrong: AtomicU32,
    open: AtomicBool,
}

impl Circuit {
    pub(super) fn is_open(&self) -> bool {
        self.open.load(Ordering::Acquire)
    }

    /// The token gave a signature.
    pub(super) fn succeeded(&self) {
        reset(&self.failures);
    }

    /// The signature verifies.
    pub(super) fn verified(&self) {
        reset(&self.wrong);
    }

    /// True for the one failure that opens it: whoever hears that probes the token.
    pub(super) fn failed(&self) -> bool {
        count(&self.failures) >= OPENS_AFTER && self.open()
    }

    /// The same for a signature that does not verify. Where another token can sign, one is enough.
    pub(super) fn was_wrong(&self, another_signs: bool) -> bool {
        let wrong = count(&self.wrong);
        (another_signs || wrong >= OPENS_AFTER) && self.open()
    }

    fn open(&self) -> bool {
        !self.open.swap(true, Ordering::AcqRel)
    }

    pub(super) fn close(&self) {
        reset(&self.failures);
        reset(&self.wrong);
        self.open.store(false, Ordering::Release);
    }
}

fn count(counter: &AtomicU32) -> u32 {
    counter.fetch_add(1, Ordering::Relaxed).saturating_add(1)
}

/// Read first: every signature does this, and writing is dear where many threads do.
fn reset(counter: &AtomicU32) {
    if counter.load(Ordering::Relaxed) != 0 {
        counter.store(0, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_in_a_row_open_it_and_a_success_between_them_does_not() {
        let circuit = Circuit::default();
        assert!(!circuit.failed() && !circuit.failed());
        circuit.succeeded();
        assert!(!circuit.failed() && !circuit.failed() && !circuit.is_open());
        assert!(circuit.failed() && circuit.is_open(), "the third in a row");
        assert!(!circuit.failed(), "only one failure opens it");
        circuit.close();
        assert!(!circuit.is_open() && !circuit.failed(), "it begins anew");
    }

    #[test]
    fn wrong_signatures_open_it_although_each_was_a_success_at_first() {
        let circuit = Circuit::default();
        let wrong = |another_signs| {
            circuit.succeeded();
            circuit.was_wrong(another_signs)
        };
        assert!(!wrong(false) && !wrong(false));
        circuit.verified();
        assert!(
            !wrong(false) && !wrong(false) && wrong(false),
            "the third in a row"
        );
        assert!(circuit.is_open() && !wrong(false), "only one opens it");
        circuit.close();
        assert!(
            wrong(true) && circuit.is_open(),
            "one is enough where another token signs"
        );
    }
}
