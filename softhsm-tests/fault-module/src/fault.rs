//! The real module behind the rules: what each action does to a call.

use std::path::PathBuf;
use std::sync::{OnceLock, PoisonError, RwLock};
use std::time::Duration;

use cryptoki_sys::*;

use crate::counter::{Counter, Tally};
use crate::device::{Device, Named};
use crate::rules::{Action, FUNCTIONS, Rules};

/// The real module, and what we put before it.
pub(crate) struct Fault {
    // Keeps the real functions mapped.
    _library: libloading::Library,
    pub(crate) real: CK_FUNCTION_LIST,
    pub(crate) list: CK_FUNCTION_LIST,
    pub(crate) device: Device,
    pub(crate) signatures: Counter,
    pub(crate) signed: Counter,
    pub(crate) lengths: Counter,
    pub(crate) logins: Counter,
    rules: Rules,
    tally: Tally,
    // Read while a call is in the real module, written where sessions are taken away under others:
    // no module promises to bear that.
    inside: RwLock<()>,
}

/// What a library prints that nobody asked: no JSON, and a name to be found by.
const PRINTED: &str = "pkcs11-fault: a \"line\" that nobody asked for";

/// CKR_GENERAL_ERROR.
const UNCOUNTED: u64 = 5;

static FAULT: OnceLock<Option<Fault>> = OnceLock::new();

pub(crate) fn fault() -> Option<&'static Fault> {
    FAULT
        .get_or_init(|| {
            let fault = Fault::load();
            if let Err(why) = &fault {
                eprintln!("pkcs11-fault: {why}");
            }
            fault.ok()
        })
        .as_ref()
}

/// What a function is called on.
#[derive(Clone, Copy, Debug)]
pub(crate) enum On {
    Library,
    Slot(CK_SLOT_ID),
    Session(CK_SESSION_HANDLE),
}

impl Fault {
    fn load() -> Result<Self, String> {
        let variable = |name| {
            std::env::var_os(name)
                .map(PathBuf::from)
                .ok_or(format!("{name} is not set"))
        };
        let (path, directory) = (
            variable("PKCS11_FAULT_MODULE")?,
            variable("PKCS11_FAULT_DIR")?,
        );
        let said = |e: std::io::Error| format!("{}: {e}", directory.display());
        let counter = |name| Counter::open(&directory, name).map_err(said);
        let (library, real) = load_real(&path)?;
        Ok(Self {
            _library: library,
            list: crate::functions::replaced(real),
            real,
            device: Device::default(),
            signatures: counter("signatures")?,
            signed: counter("signed")?,
            lengths: counter("lengths")?,
            logins: counter("logins")?,
            rules: Rules::new(&directory),
            tally: Tally::open(&directory, &FUNCTIONS).map_err(said)?,
            inside: RwLock::default(),
        })
    }

    /// Counts a call and finds its rule. What cannot be counted fails, lest a test miss it.
    pub(crate) fn take(&self, function: &'static str) -> Option<Action> {
        let counted = self.tally.called(function);
        let rule = self.rules.take(function);
        let met = if rule.is_some() {
            self.tally.met(function)
        } else {
            Ok(())
        };
        match counted.and(met) {
            Ok(()) => rule,
            Err(_) => Some(Action::Return(UNCOUNTED)),
        }
    }

    /// Applies the rule for a call, then makes it.
    pub(crate) fn ruled(
        &self,
        function: &'static str,
        on: On,
        call: impl FnOnce() -> CK_RV,
    ) -> CK_RV {
        self.apply(self.take(function).as_ref(), on, || self.inside(call))
    }

    /// A call of the real module, unless a spell answers for it.
    pub(crate) fn inside(&self, call: impl FnOnce() -> CK_RV) -> CK_RV {
        if let Some(rv) = self.device.spell() {
            return rv;
        }
        let _inside = self.inside.read().unwrap_or_else(PoisonError::into_inner);
        call()
    }

    /// A call of the real module while no other is in it.
    pub(crate) fn alone<T>(&self, call: impl FnOnce() -> T) -> T {
        let _alone = self.inside.write().unwrap_or_else(PoisonError::into_inner);
        call()
    }

    pub(crate) fn apply(
        &self,
        rule: Option<&Action>,
        on: On,
        call: impl FnOnce() -> CK_RV,
    ) -> CK_RV {
        match rule {
            // What changes an answer, the function sees to itself.
            None
            | Some(
                Action::Corrupt
                | Action::Short(_)
                | Action::Flags(_)
                | Action::Sessions(_)
                | Action::Clock
                | Action::Refuses(_),
            ) => {
                return call();
            }
            Some(Action::Return(rv)) => return *rv as CK_RV,
            Some(Action::ReturnLate(rv)) => {
                call();
                return *rv as CK_RV;
            }
            Some(Action::Sleep(time)) => std::thread::sleep(*time),
            Some(Action::Hang) => loop {
                std::thread::sleep(Duration::from_secs(3600));
            },
            Some(Action::Print) => {
                println!("{PRINTED}");
                eprintln!("{PRINTED}");
            }
            Some(Action::Abort) => std::process::abort(),
            Some(Action::Segfault) => segfault(),
            Some(Action::Limit(most)) => match on {
                On::Slot(slot) if self.device.sessions(slot) < *most => {}
                _ => return CKR_SESSION_COUNT,
            },
            Some(Action::NoSlots | Action::Removed) => match on {
                On::Library => return call(),
                On::Slot(slot) => {
                    self.close_all(slot);
                    return CKR_TOKEN_NOT_PRESENT;
                }
                On::Session(session) => {
                    self.close_beside(session);
                    return CKR_DEVICE_REMOVED;
                }
            },
            Some(Action::Forget) => {
                self.device
                    .slots()
                    .into_iter()
                    .for_each(|slot| self.close_all(slot));
                self.device.forget();
            }
            Some(Action::Stale(rv)) => self.device.go_stale(*rv as CK_RV),
            Some(Action::Mute { code, for_good }) => {
                self.device.fall_mute(*code as CK_RV, *for_good)
            }
            Some(Action::SwapHandles(id)) => self.device.swap_handles(id),
            Some(action @ (Action::Logout | Action::CloseSessions)) => match on {
                On::Session(session) if *action == Action::Logout => self.log_out(session),
                On::Session(session) => self.close_beside(session),
                On::Library | On::Slot(_) => return CKR_ARGUMENTS_BAD,
            },
        }
        call()
    }

    #[allow(
        unsafe_code,
        reason = "calls the real module through its function list, with arguments of our own"
    )]
    fn log_out(&self, session: CK_SESSION_HANDLE) {
        if let Some(logout) = self.real.C_Logout {
            // SAFETY: takes a plain number.
            self.alone(|| unsafe { logout(session) });
        }
    }

    /// Closes every session on the slot of this one.
    fn close_beside(&self, session: CK_SESSION_HANDLE) {
        if let Some(slot) = self.device.slot_of(session) {
            self.close_all(slot);
        }
    }

    #[allow(
        unsafe_code,
        reason = "calls the real module through its function list, with arguments of our own"
    )]
    fn close_all(&self, slot: CK_SLOT_ID) {
        if let Some(close_all) = self.real.C_CloseAllSessions {
            // SAFETY: takes a plain number.
            self.alone(|| unsafe { close_all(slot) });
            self.device.closed_all(slot);
        }
    }

    /// The real module's handle for one of the caller's; 0, which is none, where a swapped one
    /// names a key that is not there. Called from within `inside`.
    pub(crate) fn real_handle(
        &self,
        session: CK_SESSION_HANDLE,
        shown: CK_OBJECT_HANDLE,
    ) -> CK_OBJECT_HANDLE {
        match self.device.named(shown) {
            Named::Real(handle) => handle,
            Named::Swapped(id) => self.private_key(session, &id).unwrap_or(0),
        }
    }

    #[allow(
        unsafe_code,
        reason = "calls the real module through its function list, with arguments of our own"
    )]
    fn private_key(&self, session: CK_SESSION_HANDLE, id: &[u8]) -> Option<CK_OBJECT_HANDLE> {
        let (begin, find, end) = (
            self.real.C_FindObjectsInit?,
            self.real.C_FindObjects?,
            self.real.C_FindObjectsFinal?,
        );
        let (mut class, mut id) = (CKO_PRIVATE_KEY, id.to_vec());
        let mut template = [
            CK_ATTRIBUTE {
                type_: CKA_CLASS,
                pValue: (&raw mut class).cast(),
                ulValueLen: size_of_val(&class) as CK_ULONG,
            },
            CK_ATTRIBUTE {
                type_: CKA_ID,
                pValue: id.as_mut_ptr().cast(),
                ulValueLen: id.len() as CK_ULONG,
            },
        ];
        let (mut found, mut count) = (0, 0);
        // SAFETY: template, values and results outlive the calls and are as long as they say.
        unsafe {
            if begin(session, template.as_mut_ptr(), template.len() as CK_ULONG) != CKR_OK {
                return None;
            }
            let rv = find(session, &mut found, 1, &mut count);
            end(session);
            (rv == CKR_OK && count == 1).then_some(found)
        }
    }

    /// Ends the session's signing operation without using its result: every error of C_Sign but
    /// CKR_BUFFER_TOO_SMALL does (PKCS#11 v2.40 §5.11). A single-part operation ends at a
    /// C_SignUpdate; a multi-part one is finished into a buffer that nobody sees.
    #[allow(
        unsafe_code,
        reason = "calls the real module through its function list, with arguments of our own"
    )]
    pub(crate) fn end_operation(&self, session: CK_SESSION_HANDLE) {
        let (mut byte, mut discarded, mut length) = (0u8, [0u8; 2048], 2048 as CK_ULONG);
        if let (Some(update), Some(finish)) = (self.real.C_SignUpdate, self.real.C_SignFinal) {
            self.inside(|| {
                // SAFETY: the buffers outlive the calls and are as long as they say.
                unsafe {
                    if update(session, &mut byte, 1) == CKR_OK {
                        finish(session, discarded.as_mut_ptr(), &mut length);
                    }
                }
                CKR_OK
            });
        }
    }
}

/// A real one: what raises the signal must be the process's own access to memory.
#[allow(unsafe_code, reason = "writes where nothing is mapped, on command")]
fn segfault() {
    // SAFETY: none; the first page is never mapped, and the process ends here as it was commanded
    // to.
    unsafe { std::ptr::without_provenance_mut::<u64>(8).write_volatile(0) };
}

#[allow(
    unsafe_code,
    reason = "loading a library and reading the function list that it hands out"
)]
fn load_real(path: &std::path::Path) -> Result<(libloading::Library, CK_FUNCTION_LIST), String> {
    let failed = |e: libloading::Error| format!("{}: {e}", path.display());
    // SAFETY: the test names a PKCS#11 module, whose initialisers are made to be run by dlopen;
    // C_GetFunctionList has the type that the standard gives it, and the list it points to lives as
    // long as the library, which is never closed.
    unsafe {
        let library = libloading::Library::new(path).map_err(failed)?;
        let get_list = library
            .get::<unsafe extern "C" fn(*mut *mut CK_FUNCTION_LIST) -> CK_RV>(
                b"C_GetFunctionList\0",
            )
            .map_err(failed)?;
        let mut list = std::ptr::null_mut();
        match get_list(&mut list) {
            CKR_OK if !list.is_null() => {
                let list = *list;
                Ok((library, list))
            }
            rv => Err(format!(
                "{}: C_GetFunctionList returned {rv:#x}",
                path.display()
            )),
        }
    }
}
