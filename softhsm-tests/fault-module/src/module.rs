//! The module's face: the real module's function list with some entries replaced.

use std::ffi::c_void;
use std::path::PathBuf;
use std::sync::OnceLock;

use cryptoki_sys::*;

use crate::control::{Action, Counter, Rules};

/// The real module, and what we put before it.
struct Fault {
    // Keeps the real functions mapped.
    _library: libloading::Library,
    real: CK_FUNCTION_LIST,
    list: CK_FUNCTION_LIST,
    rules: Rules,
    signatures: Counter,
    signed: Counter,
    logins: Counter,
}

static FAULT: OnceLock<Option<Fault>> = OnceLock::new();

fn fault() -> Option<&'static Fault> {
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

impl Fault {
    fn load() -> Result<Self, String> {
        let variable = |name| std::env::var_os(name).map(PathBuf::from).ok_or(format!("{name} is not set"));
        let (path, directory) = (variable("PKCS11_FAULT_MODULE")?, variable("PKCS11_FAULT_DIR")?);
        let counter = |name| Counter::open(&directory, name).map_err(|e| format!("{}: {name}: {e}", directory.display()));
        let (library, real) = load_real(&path)?;
        let list = CK_FUNCTION_LIST {
            C_GetFunctionList: Some(C_GetFunctionList),
            C_GetSlotList: Some(get_slot_list),
            C_GetTokenInfo: Some(get_token_info),
            C_OpenSession: Some(open_session),
            C_GetSessionInfo: Some(get_session_info),
            C_Login: Some(login),
            C_FindObjectsInit: Some(find_objects_init),
            C_GenerateKeyPair: Some(generate_key_pair),
            C_SignInit: Some(sign_init),
            C_Sign: Some(sign),
            ..real
        };
        let rules = Rules::new(&directory);
        Ok(Self {
            _library: library,
            real,
            list,
            rules,
            signatures: counter("signatures")?,
            signed: counter("signed")?,
            logins: counter("logins")?,
        })
    }

    /// Applies the rule for a call, then makes it.
    fn ruled(&self, function: &str, session: Option<CK_SESSION_HANDLE>, call: impl FnOnce() -> CK_RV) -> CK_RV {
        self.apply(self.rules.take(function), session, call)
    }

    fn apply(&self, rule: Option<Action>, session: Option<CK_SESSION_HANDLE>, call: impl FnOnce() -> CK_RV) -> CK_RV {
        match rule {
            // What changes an answer, the function sees to itself.
            None | Some(Action::Corrupt | Action::Flags(_) | Action::Sessions(_)) => call(),
            Some(Action::Return(rv)) => rv as CK_RV,
            Some(Action::ReturnLate(rv)) => {
                call();
                rv as CK_RV
            }
            Some(Action::Sleep(time)) => {
                std::thread::sleep(time);
                call()
            }
            Some(action @ (Action::Logout | Action::CloseSessions)) => match session {
                Some(session) => {
                    self.disturb(action, session);
                    call()
                }
                None => CKR_ARGUMENTS_BAD,
            },
        }
    }

    #[allow(unsafe_code, reason = "calls the real module through its function list, with arguments of our own")]
    fn disturb(&self, action: Action, session: CK_SESSION_HANDLE) {
        let real = &self.real;
        if action == Action::Logout {
            if let Some(logout) = real.C_Logout {
                // SAFETY: takes a plain number.
                unsafe { logout(session) };
            }
            return;
        }
        let mut info = CK_SESSION_INFO::default();
        if let (Some(get_info), Some(close_all)) = (real.C_GetSessionInfo, real.C_CloseAllSessions) {
            // SAFETY: `info` outlives the call; the other argument is a plain number.
            unsafe {
                if get_info(session, &mut info) == CKR_OK {
                    close_all(info.slotID);
                }
            }
        }
    }

    /// Ends the session's signing operation without using its result: every error of C_Sign but CKR_BUFFER_TOO_SMALL does (PKCS#11 v2.40
    /// §5.11). A single-part operation ends at a C_SignUpdate; a multi-part one is finished into a buffer that nobody sees.
    #[allow(unsafe_code, reason = "calls the real module through its function list, with arguments of our own")]
    fn end_operation(&self, session: CK_SESSION_HANDLE) {
        let (mut byte, mut discarded, mut length) = (0u8, [0u8; 2048], 2048 as CK_ULONG);
        if let (Some(update), Some(finish)) = (self.real.C_SignUpdate, self.real.C_SignFinal) {
            // SAFETY: the buffers outlive the calls and are as long as they say.
            unsafe {
                if update(session, &mut byte, 1) == CKR_OK {
                    finish(session, discarded.as_mut_ptr(), &mut length);
                }
            }
        }
    }
}

#[allow(unsafe_code, reason = "loading a library and reading the function list that it hands out")]
fn load_real(path: &std::path::Path) -> Result<(libloading::Library, CK_FUNCTION_LIST), String> {
    let failed = |e: libloading::Error| format!("{}: {e}", path.display());
    // SAFETY: the test names a PKCS#11 module, whose initialisers are made to be run by dlopen; C_GetFunctionList has the type that the
    // standard gives it, and the list it points to lives as long as the library, which is never closed.
    unsafe {
        let library = libloading::Library::new(path).map_err(failed)?;
        let get_list = library.get::<unsafe extern "C" fn(*mut *mut CK_FUNCTION_LIST) -> CK_RV>(b"C_GetFunctionList\0").map_err(failed)?;
        let mut list = std::ptr::null_mut();
        match get_list(&mut list) {
            CKR_OK if !list.is_null() => {
                let list = *list;
                Ok((library, list))
            }
            rv => Err(format!("{}: C_GetFunctionList returned {rv:#x}", path.display())),
        }
    }
}

/// The only entry point (PKCS#11 v2.40 §5.4).
///
/// # Safety
///
/// `list` must be null or point to room for a pointer.
#[allow(unsafe_code, reason = "the C entry point of a PKCS#11 module")]
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn C_GetFunctionList(list: *mut *mut CK_FUNCTION_LIST) -> CK_RV {
    match fault() {
        _ if list.is_null() => CKR_ARGUMENTS_BAD,
        None => CKR_GENERAL_ERROR,
        Some(fault) => {
            // SAFETY: not null, and the caller vouches for it. The standard's pointer is not const, but nobody may write through it.
            unsafe { *list = std::ptr::from_ref(&fault.list).cast_mut() };
            CKR_OK
        }
    }
}

/// A replaced function: looks for a rule, then calls the real one with the arguments as they are.
macro_rules! ruled {
    ($name:ident, $function:ident, $session:expr, ($($argument:ident: $kind:ty),*)) => {
        #[allow(unsafe_code, reason = "has the type that the function list demands")]
        unsafe extern "C" fn $name($($argument: $kind),*) -> CK_RV {
            let Some((fault, real)) = fault().and_then(|fault| Some((fault, fault.real.$function?))) else {
                return CKR_FUNCTION_NOT_SUPPORTED;
            };
            // SAFETY: the caller's arguments go to the function that they were meant for.
            fault.ruled(stringify!($function), $session, || unsafe { real($($argument),*) })
        }
    };
}

ruled!(get_slot_list, C_GetSlotList, None, (present: CK_BBOOL, slots: *mut CK_SLOT_ID, count: *mut CK_ULONG));
ruled!(open_session, C_OpenSession, None, (slot: CK_SLOT_ID, flags: CK_FLAGS, application: *mut c_void, notify: CK_NOTIFY, session: *mut CK_SESSION_HANDLE));
ruled!(get_session_info, C_GetSessionInfo, Some(session), (session: CK_SESSION_HANDLE, info: *mut CK_SESSION_INFO));
ruled!(find_objects_init, C_FindObjectsInit, Some(session), (session: CK_SESSION_HANDLE, template: *mut CK_ATTRIBUTE, count: CK_ULONG));
ruled!(sign_init, C_SignInit, Some(session), (session: CK_SESSION_HANDLE, mechanism: *mut CK_MECHANISM, key: CK_OBJECT_HANDLE));
ruled!(generate_key_pair, C_GenerateKeyPair, Some(session), (
    session: CK_SESSION_HANDLE,
    mechanism: *mut CK_MECHANISM,
    public: *mut CK_ATTRIBUTE,
    public_count: CK_ULONG,
    private: *mut CK_ATTRIBUTE,
    private_count: CK_ULONG,
    public_key: *mut CK_OBJECT_HANDLE,
    private_key: *mut CK_OBJECT_HANDLE
));

#[allow(unsafe_code, reason = "has the type that the function list demands")]
unsafe extern "C" fn get_token_info(slot: CK_SLOT_ID, info: *mut CK_TOKEN_INFO) -> CK_RV {
    let Some((fault, real)) = fault().and_then(|fault| Some((fault, fault.real.C_GetTokenInfo?))) else {
        return CKR_FUNCTION_NOT_SUPPORTED;
    };
    let rule = fault.rules.take("C_GetTokenInfo");
    // SAFETY: the caller's arguments go to the function that they were meant for.
    let rv = fault.apply(rule, None, || unsafe { real(slot, info) });
    if rv == CKR_OK && !info.is_null() {
        // SAFETY: not null, and CKR_OK says that it has been filled.
        let info = unsafe { &mut *info };
        match rule {
            Some(Action::Flags(flags)) => info.flags |= flags as CK_FLAGS,
            Some(Action::Sessions(most)) => info.ulMaxSessionCount = most as CK_ULONG,
            _ => {}
        }
    }
    rv
}

#[allow(unsafe_code, reason = "has the type that the function list demands")]
unsafe extern "C" fn login(session: CK_SESSION_HANDLE, user: CK_USER_TYPE, pin: *mut CK_UTF8CHAR, length: CK_ULONG) -> CK_RV {
    let Some((fault, real)) = fault().and_then(|fault| Some((fault, fault.real.C_Login?))) else {
        return CKR_FUNCTION_NOT_SUPPORTED;
    };
    if fault.logins.add(&[]).is_err() {
        return CKR_GENERAL_ERROR;
    }
    // SAFETY: the caller's arguments go to the function that they were meant for.
    fault.ruled("C_Login", Some(session), || unsafe { real(session, user, pin, length) })
}

#[allow(unsafe_code, reason = "has the type that the function list demands")]
unsafe extern "C" fn sign(
    session: CK_SESSION_HANDLE,
    data: *mut CK_BYTE,
    length: CK_ULONG,
    signature: *mut CK_BYTE,
    room: *mut CK_ULONG,
) -> CK_RV {
    let Some((fault, real)) = fault().and_then(|fault| Some((fault, fault.real.C_Sign?))) else {
        return CKR_FUNCTION_NOT_SUPPORTED;
    };
    // SAFETY: the caller's arguments go to the function that they were meant for.
    let call = || unsafe { real(session, data, length, signature, room) };
    if signature.is_null() {
        return call();
    }
    let mut reached = false;
    let rule = fault.rules.take("C_Sign");
    let rv = fault.apply(rule, Some(session), || {
        // SAFETY: C_Sign's contract (PKCS#11 v2.40 §5.11) is that `data` points to `length` bytes.
        let input = unsafe { std::slice::from_raw_parts(data, length as usize) };
        // A signature that could not be counted must not be made.
        if fault.signatures.add(input).is_err() {
            return CKR_GENERAL_ERROR;
        }
        reached = true;
        let rv = call();
        if rv == CKR_OK && fault.signed.add(&[]).is_err() {
            return CKR_GENERAL_ERROR;
        }
        rv
    });
    if rule == Some(Action::Corrupt) && rv == CKR_OK {
        // SAFETY: CKR_OK says that `room` holds the length of the signature that was written to `signature`.
        unsafe {
            if let Some(last) = (*room as usize).checked_sub(1) {
                *signature.add(last) ^= 1;
            }
        }
    }
    if !reached {
        fault.end_operation(session);
    }
    rv
}
