//! What commands have made of the device beyond the call that met them: a library that forgot
//! everything or has gone stale, sessions that are open, handles that were given out anew.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use cryptoki_sys::*;

/// The device as its callers have come to see it.
#[derive(Default)]
pub(crate) struct Device(Mutex<State>);

#[derive(Default)]
struct State {
    spell: Spell,
    mute: Option<Mute>,
    sessions: BTreeMap<CK_SESSION_HANDLE, CK_SLOT_ID>,
    /// Of object handles: how often they were given out anew.
    generation: CK_ULONG,
    /// CKA_ID of the private key that those of former generations name.
    swapped_to: Vec<u8>,
}

/// What every function answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Spell {
    /// What the real module says.
    #[default]
    None,
    /// CKR_CRYPTOKI_NOT_INITIALIZED, until C_Initialize.
    Forgotten,
    /// This, until C_Finalize.
    Stale(CK_RV),
}

/// What C_Sign answers while all else goes well.
#[derive(Clone, Copy, Debug)]
struct Mute {
    answer: CK_RV,
    /// C_Finalize does not end it.
    for_good: bool,
}

/// An object handle of a caller.
pub(crate) enum Named {
    /// The real module's handle.
    Real(CK_OBJECT_HANDLE),
    /// From before the last swap: the private key of this CKA_ID.
    Swapped(Vec<u8>),
}

/// Real handles are small numbers: the generation stands above them.
const GENERATION_SHIFT: u32 = CK_ULONG::BITS / 2;

impl Device {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What every function answers now in place of the real module, if it is under a spell.
    pub(crate) fn spell(&self) -> Option<CK_RV> {
        match self.lock().spell {
            Spell::None => None,
            Spell::Forgotten => Some(CKR_CRYPTOKI_NOT_INITIALIZED),
            Spell::Stale(rv) => Some(rv),
        }
    }

    pub(crate) fn forget(&self) {
        self.lock().spell = Spell::Forgotten;
    }

    pub(crate) fn go_stale(&self, rv: CK_RV) {
        self.lock().spell = Spell::Stale(rv);
    }

    pub(crate) fn fall_mute(&self, answer: CK_RV, for_good: bool) {
        self.lock().mute = Some(Mute { answer, for_good });
    }

    /// What C_Sign answers now in place of the real module, if it is mute.
    pub(crate) fn mute(&self) -> Option<CK_RV> {
        self.lock().mute.map(|mute| mute.answer)
    }

    /// C_Initialize was called. True if that is all there is to do: the real module never was
    /// finalised.
    pub(crate) fn remembers(&self) -> bool {
        let mut state = self.lock();
        let forgotten = state.spell == Spell::Forgotten;
        if forgotten {
            state.spell = Spell::None;
        }
        forgotten
    }

    /// C_Finalize was called. False if the caller must be told that nothing is initialised.
    pub(crate) fn finalized(&self) -> bool {
        let mut state = self.lock();
        if state.spell == Spell::Forgotten {
            return false;
        }
        state.spell = Spell::None;
        state.mute = state.mute.filter(|mute| mute.for_good);
        state.sessions.clear();
        true
    }

    pub(crate) fn opened(&self, session: CK_SESSION_HANDLE, slot: CK_SLOT_ID) {
        self.lock().sessions.insert(session, slot);
    }

    pub(crate) fn closed(&self, session: CK_SESSION_HANDLE) {
        self.lock().sessions.remove(&session);
    }

    pub(crate) fn closed_all(&self, slot: CK_SLOT_ID) {
        self.lock().sessions.retain(|_, of| *of != slot);
    }

    pub(crate) fn sessions(&self, slot: CK_SLOT_ID) -> u64 {
        self.lock()
            .sessions
            .values()
            .filter(|of| **of == slot)
            .count() as u64
    }

    pub(crate) fn slot_of(&self, session: CK_SESSION_HANDLE) -> Option<CK_SLOT_ID> {
        self.lock().sessions.get(&session).copied()
    }

    /// Slots with open sessions.
    pub(crate) fn slots(&self) -> Vec<CK_SLOT_ID> {
        self.lock().sessions.values().copied().collect()
    }

    /// Every handle that was given out until now names the private key of that CKA_ID from here on.
    pub(crate) fn swap_handles(&self, id: &[u8]) {
        let mut state = self.lock();
        state.generation += 1;
        state.swapped_to = id.to_vec();
    }

    /// The handle to give out for one of the real module's.
    pub(crate) fn shown(&self, real: CK_OBJECT_HANDLE) -> CK_OBJECT_HANDLE {
        real | (self.lock().generation << GENERATION_SHIFT)
    }

    pub(crate) fn named(&self, shown: CK_OBJECT_HANDLE) -> Named {
        let state = self.lock();
        if shown >> GENERATION_SHIFT == state.generation {
            Named::Real(shown ^ (state.generation << GENERATION_SHIFT))
        } else {
            Named::Swapped(state.swapped_to.clone())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handles_given_out_before_a_swap_name_the_other_key_and_later_ones_are_right() {
        let device = Device::default();
        let before = device.shown(7);
        assert!(before == 7 && matches!(device.named(7), Named::Real(7)));
        device.swap_handles(&[1]);
        let after = device.shown(7);
        assert!(after != before && matches!(device.named(after), Named::Real(7)));
        assert!(matches!(device.named(before), Named::Swapped(id) if id == [1]));
        device.swap_handles(&[2]);
        assert!(matches!(device.named(after), Named::Swapped(id) if id == [2]));
    }

    #[test]
    fn a_spell_ends_with_the_call_that_ends_it_and_no_other() {
        let device = Device::default();
        assert!(!device.remembers() && device.finalized() && device.spell().is_none());
        device.forget();
        assert!(!device.finalized() && device.spell() == Some(CKR_CRYPTOKI_NOT_INITIALIZED));
        assert!(device.remembers() && device.spell().is_none());
        device.go_stale(CKR_DEVICE_REMOVED);
        assert!(!device.remembers() && device.spell() == Some(CKR_DEVICE_REMOVED));
        assert!(device.finalized() && device.spell().is_none());
    }

    #[test]
    fn a_mute_device_signs_again_after_c_finalize_unless_it_is_mute_for_good() {
        let device = Device::default();
        device.fall_mute(CKR_GENERAL_ERROR, false);
        assert!(device.mute() == Some(CKR_GENERAL_ERROR) && device.spell().is_none());
        assert!(device.finalized() && device.mute().is_none());
        device.fall_mute(CKR_DEVICE_ERROR, true);
        assert!(device.finalized() && device.mute() == Some(CKR_DEVICE_ERROR));
    }

    #[test]
    fn sessions_are_counted_by_slot() {
        let device = Device::default();
        for (session, slot) in [(1, 10), (2, 10), (3, 20)] {
            device.opened(session, slot);
        }
        assert_eq!(
            (device.sessions(10), device.sessions(20), device.slot_of(3)),
            (2, 1, Some(20))
        );
        device.closed(1);
        assert_eq!(device.sessions(10), 1);
        device.closed_all(20);
        assert_eq!((device.sessions(20), device.slots()), (0, vec![10]));
    }
}
