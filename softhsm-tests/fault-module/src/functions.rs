//! The module's face: the real module's function list with some entries replaced.

use std::ffi::c_void;

use cryptoki_sys::*;

use crate::device::Named;
use crate::fault::{On, fault};
use crate::rules::Action;

/// The list that is handed out.
pub(crate) fn replaced(real: CK_FUNCTION_LIST) -> CK_FUNCTION_LIST {
    CK_FUNCTION_LIST {
        C_GetFunctionList: Some(C_GetFunctionList),
        C_Initialize: Some(initialize),
        C_Finalize: Some(finalize),
        C_GetSlotList: Some(get_slot_list),
        C_GetSlotInfo: Some(get_slot_info),
        C_GetTokenInfo: Some(get_token_info),
        C_GetMechanismList: Some(get_mechanism_list),
        C_GetMechanismInfo: Some(get_mechanism_info),
        C_OpenSession: Some(open_session),
        C_CloseSession: Some(close_session),
        C_CloseAllSessions: Some(close_all_sessions),
        C_GetSessionInfo: Some(get_session_info),
        C_Login: Some(login),
        C_FindObjectsInit: Some(find_objects_init),
        C_FindObjects: Some(find_objects),
        C_FindObjectsFinal: Some(find_objects_final),
        C_GetAttributeValue: Some(get_attribute_value),
        C_DestroyObject: Some(destroy_object),
        C_GenerateKeyPair: Some(generate_key_pair),
        C_SignInit: Some(sign_init),
        C_Sign: Some(sign),
        C_VerifyInit: Some(verify_init),
        ..real
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
            // SAFETY: not null, and the caller vouches for it. The standard's pointer is not const,
            // but nobody may write through it.
            unsafe { *list = std::ptr::from_ref(&fault.list).cast_mut() };
            CKR_OK
        }
    }
}

/// A replaced function: what it does with the module and the real function of its name.
macro_rules! function {
    ($name:ident, $function:ident, ($($argument:ident: $kind:ty),*), |$fault:ident, $real:ident| $body:expr) => {
        #[allow(unsafe_code, reason = "has the type that the function list demands")]
        unsafe extern "C" fn $name($($argument: $kind),*) -> CK_RV {
            let Some(($fault, $real)) = fault().and_then(|fault| Some((fault, fault.real.$function?))) else {
                return CKR_FUNCTION_NOT_SUPPORTED;
            };
            $body
        }
    };
}

/// One that looks for a rule, then calls the real one with the arguments as they are.
macro_rules! ruled {
    ($name:ident, $function:ident, $on:expr, ($($argument:ident: $kind:ty),*)) => {
        function!($name, $function, ($($argument: $kind),*), |fault, real| {
            // SAFETY: the caller's arguments go to the function that they were meant for.
            fault.ruled(stringify!($function), $on, || unsafe { real($($argument),*) })
        });
    };
}

ruled!(get_slot_info, C_GetSlotInfo, On::Slot(slot), (slot: CK_SLOT_ID, info: *mut CK_SLOT_INFO));
ruled!(get_mechanism_list, C_GetMechanismList, On::Slot(slot), (slot: CK_SLOT_ID, list: *mut CK_MECHANISM_TYPE, count: *mut CK_ULONG));
ruled!(get_mechanism_info, C_GetMechanismInfo, On::Slot(slot), (slot: CK_SLOT_ID, mechanism: CK_MECHANISM_TYPE, info: *mut CK_MECHANISM_INFO));
ruled!(get_session_info, C_GetSessionInfo, On::Session(session), (session: CK_SESSION_HANDLE, info: *mut CK_SESSION_INFO));
ruled!(find_objects_init, C_FindObjectsInit, On::Session(session), (session: CK_SESSION_HANDLE, template: *mut CK_ATTRIBUTE, count: CK_ULONG));

function!(initialize, C_Initialize, (arguments: *mut c_void), |fault, real| {
    crate::attempts::answer();
    let rule = fault.take("C_Initialize");
    fault.apply(rule.as_ref(), On::Library, || {
        if fault.device.remembers() {
            return CKR_OK;
        }
        // SAFETY: the caller's arguments go to the function that they were meant for.
        unsafe { real(arguments) }
    })
});

function!(finalize, C_Finalize, (reserved: *mut c_void), |fault, real| {
    let rule = fault.take("C_Finalize");
    fault.apply(rule.as_ref(), On::Library, || {
        if !fault.device.finalized() {
            return CKR_CRYPTOKI_NOT_INITIALIZED;
        }
        // SAFETY: the caller's arguments go to the function that they were meant for.
        fault.alone(|| unsafe { real(reserved) })
    })
});

function!(get_slot_list, C_GetSlotList, (present: CK_BBOOL, slots: *mut CK_SLOT_ID, count: *mut CK_ULONG), |fault, real| {
    match fault.take("C_GetSlotList") {
        Some(Action::NoSlots | Action::Removed) if !count.is_null() => {
            // SAFETY: not null, and C_GetSlotList's contract (PKCS#11 v2.40 §5.5) is that it points
            // to a number.
            unsafe { *count = 0 };
            CKR_OK
        }
        // SAFETY: the caller's arguments go to the function that they were meant for.
        rule => fault.apply(rule.as_ref(), On::Library, || fault.inside(|| unsafe { real(present, slots, count) })),
    }
});

function!(get_token_info, C_GetTokenInfo, (slot: CK_SLOT_ID, info: *mut CK_TOKEN_INFO), |fault, real| {
    let rule = fault.take("C_GetTokenInfo");
    // SAFETY: the caller's arguments go to the function that they were meant for.
    let rv = fault.apply(rule.as_ref(), On::Slot(slot), || fault.inside(|| unsafe { real(slot, info) }));
    if rv == CKR_OK && !info.is_null() {
        // SAFETY: not null, and CKR_OK says that it has been filled.
        let info = unsafe { &mut *info };
        match rule {
            Some(Action::Flags(flags)) => info.flags |= flags as CK_FLAGS,
            Some(Action::Sessions(most)) => info.ulMaxSessionCount = most as CK_ULONG,
            Some(Action::Clock) => {
                info.flags |= CKF_CLOCK_ON_TOKEN;
                info.utcTime = *b"no time at all  ";
            }
            _ => {}
        }
    }
    rv
});

function!(
    open_session,
    C_OpenSession,
    (slot: CK_SLOT_ID, flags: CK_FLAGS, application: *mut c_void, notify: CK_NOTIFY, session: *mut CK_SESSION_HANDLE),
    |fault, real| {
        fault.ruled("C_OpenSession", On::Slot(slot), || {
            // SAFETY: the caller's arguments go to the function that they were meant for.
            let rv = unsafe { real(slot, flags, application, notify, session) };
            if rv == CKR_OK {
                // SAFETY: CKR_OK says that the handle has been written.
                fault.device.opened(unsafe { *session }, slot);
            }
            rv
        })
    }
);

function!(close_session, C_CloseSession, (session: CK_SESSION_HANDLE), |fault, real| {
    fault.ruled("C_CloseSession", On::Session(session), || {
        fault.device.closed(session);
        // SAFETY: takes a plain number.
        unsafe { real(session) }
    })
});

function!(close_all_sessions, C_CloseAllSessions, (slot: CK_SLOT_ID), |fault, real| {
    fault.ruled("C_CloseAllSessions", On::Slot(slot), || {
        fault.device.closed_all(slot);
        // SAFETY: takes a plain number.
        unsafe { real(slot) }
    })
});

function!(
    login,
    C_Login,
    (session: CK_SESSION_HANDLE, user: CK_USER_TYPE, pin: *mut CK_UTF8CHAR, length: CK_ULONG),
    |fault, real| {
        if fault.logins.add(&[]).is_err() {
            return CKR_GENERAL_ERROR;
        }
        // SAFETY: the caller's arguments go to the function that they were meant for.
        fault.ruled("C_Login", On::Session(session), || unsafe { real(session, user, pin, length) })
    }
);

function!(
    find_objects,
    C_FindObjects,
    (session: CK_SESSION_HANDLE, objects: *mut CK_OBJECT_HANDLE, most: CK_ULONG, count: *mut CK_ULONG),
    |fault, real| {
        fault.ruled("C_FindObjects", On::Session(session), || {
            // SAFETY: the caller's arguments go to the function that they were meant for.
            let rv = unsafe { real(session, objects, most, count) };
            if rv == CKR_OK {
                // SAFETY: CKR_OK says that so many handles have been written.
                let found = unsafe { std::slice::from_raw_parts_mut(objects, *count as usize) };
                found.iter_mut().for_each(|handle| *handle = fault.device.shown(*handle));
            }
            rv
        })
    }
);

function!(find_objects_final, C_FindObjectsFinal, (session: CK_SESSION_HANDLE), |fault, real| {
    // SAFETY: takes a plain number.
    fault.inside(|| unsafe { real(session) })
});

function!(
    get_attribute_value,
    C_GetAttributeValue,
    (session: CK_SESSION_HANDLE, object: CK_OBJECT_HANDLE, template: *mut CK_ATTRIBUTE, count: CK_ULONG),
    |fault, real| {
        fault.ruled("C_GetAttributeValue", On::Session(session), || {
            let object = fault.real_handle(session, object);
            // SAFETY: the caller's arguments go to the function that they were meant for.
            unsafe { real(session, object, template, count) }
        })
    }
);

function!(destroy_object, C_DestroyObject, (session: CK_SESSION_HANDLE, object: CK_OBJECT_HANDLE), |fault, real| {
    fault.inside(|| match fault.device.named(object) {
        // SAFETY: takes plain numbers.
        Named::Real(object) => unsafe { real(session, object) },
        // A command may make us sign with another key, not destroy it.
        Named::Swapped(_) => CKR_OBJECT_HANDLE_INVALID,
    })
});

function!(
    generate_key_pair,
    C_GenerateKeyPair,
    (
        session: CK_SESSION_HANDLE,
        mechanism: *mut CK_MECHANISM,
        public: *mut CK_ATTRIBUTE,
        public_count: CK_ULONG,
        private: *mut CK_ATTRIBUTE,
        private_count: CK_ULONG,
        public_key: *mut CK_OBJECT_HANDLE,
        private_key: *mut CK_OBJECT_HANDLE
    ),
    |fault, real| {
        let rule = fault.take("C_GenerateKeyPair");
        if let Some(Action::Refuses(attribute)) = rule {
            let has = |template: *const CK_ATTRIBUTE, count: CK_ULONG| {
                // SAFETY: the contract of C_GenerateKeyPair (PKCS#11 v2.40 §5.13) is that a
                // template has `count` attributes.
                let template = unsafe { std::slice::from_raw_parts(template, count as usize) };
                template.iter().any(|one| one.type_ == attribute as CK_ATTRIBUTE_TYPE)
            };
            if has(public, public_count) || has(private, private_count) {
                return CKR_ATTRIBUTE_VALUE_INVALID;
            }
        }
        fault.apply(rule.as_ref(), On::Session(session), || fault.inside(|| {
            // SAFETY: the caller's arguments go to the function that they were meant for.
            let rv = unsafe { real(session, mechanism, public, public_count, private, private_count, public_key, private_key) };
            if rv == CKR_OK {
                for handle in [public_key, private_key] {
                    // SAFETY: CKR_OK says that both handles have been written.
                    unsafe { *handle = fault.device.shown(*handle) };
                }
            }
            rv
        }))
    }
);

function!(
    sign_init,
    C_SignInit,
    (session: CK_SESSION_HANDLE, mechanism: *mut CK_MECHANISM, key: CK_OBJECT_HANDLE),
    |fault, real| {
        fault.ruled("C_SignInit", On::Session(session), || {
            let key = fault.real_handle(session, key);
            // SAFETY: the caller's arguments go to the function that they were meant for.
            unsafe { real(session, mechanism, key) }
        })
    }
);

function!(
    verify_init,
    C_VerifyInit,
    (session: CK_SESSION_HANDLE, mechanism: *mut CK_MECHANISM, key: CK_OBJECT_HANDLE),
    |fault, real| {
        fault.inside(|| {
            let key = fault.real_handle(session, key);
            // SAFETY: the caller's arguments go to the function that they were meant for.
            unsafe { real(session, mechanism, key) }
        })
    }
);

function!(
    sign,
    C_Sign,
    (session: CK_SESSION_HANDLE, data: *mut CK_BYTE, length: CK_ULONG, signature: *mut CK_BYTE, room: *mut CK_ULONG),
    |fault, real| {
        // SAFETY: the caller's arguments go to the function that they were meant for.
        let call = || fault.inside(|| unsafe { real(session, data, length, signature, room) });
        if signature.is_null() {
            return if fault.lengths.add(&[]).is_ok() { call() } else { CKR_GENERAL_ERROR };
        }
        let mut reached = false;
        let rule = fault.take("C_Sign");
        let rv = fault.apply(rule.as_ref(), On::Session(session), || {
            if let Some(rv) = fault.device.mute() {
                return rv;
            }
            // SAFETY: C_Sign's contract (PKCS#11 v2.40 §5.11) is that `data` points to `length`
            // bytes.
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
        if rv == CKR_OK {
            // SAFETY: CKR_OK says that `room` holds the length of the signature that was written to
            // `signature`.
            unsafe { spoil(rule.as_ref(), signature, room) };
        }
        if !reached {
            fault.end_operation(session);
        }
        rv
    }
);

/// What a rule makes of a good signature.
///
/// # Safety
///
/// `room` must hold the length of the signature that `signature` points to.
#[allow(unsafe_code, reason = "changes what the caller's pointers point to")]
unsafe fn spoil(rule: Option<&Action>, signature: *mut CK_BYTE, room: *mut CK_ULONG) {
    // SAFETY: the caller vouches for both.
    unsafe {
        match rule {
            Some(Action::Corrupt) => {
                if let Some(last) = (*room as usize).checked_sub(1) {
                    *signature.add(last) ^= 1;
                }
            }
            Some(Action::Short(by)) => *room = (*room).saturating_sub(*by as CK_ULONG),
            _ => {}
        }
    }
}
