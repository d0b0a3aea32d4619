//! Whether a token is asked at all. After several failures in a row it is not, until a throw-away signature of it verifies: calls then go
//! elsewhere, or are refused at once, and do not each wait for the same dead device.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// Failures in a row that open a circuit.
const OPENS_AFTER: u32 = 3;

/// One token's circuit; closed is the good state.
#[derive(Debug, Default)]
pub(super) struct Circuit {
    failures: AtomicU32,
    open: AtomicBool,
}

impl Circuit {
    pub(super) fn is_open(&self) -> bool {
        self.open.load(Ordering::Acquire)
    }

    pub(super) fn succeeded(&self) {
        if self.failures.load(Ordering::Relaxed) != 0 {
            self.failures.store(0, Ordering::Relaxed);
        }
    }

    /// True for the one failure that opens it: whoever hears that probes the token.
    pub(super) fn failed(&self) -> bool {
        self.failures.fetch_add(1, Ordering::Relaxed) + 1 >= OPENS_AFTER && !self.open.swap(true, Ordering::AcqRel)
    }

    pub(super) fn close(&self) {
        self.failures.store(0, Ordering::Relaxed);
        self.open.store(false, Ordering::Release);
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
}
