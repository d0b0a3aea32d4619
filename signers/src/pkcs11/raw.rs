//! Calls of a library that cryptoki does not make as we need them. Facts are read without the
//! fields that nobody wants: a token whose clock shows nonsense signs as well as any. A signature
//! takes one C_Sign, because each call may be a round trip over a network. C_Initialize is given
//! the string that some libraries want as `pReserved`. No other file of this room calls a library
//! by its function list. A library that makes a new list for whoever asks, each with sessions of
//! its own, is called by cryptoki alone.

use std::ffi::{CString, c_void};
use std::path::Path;
use std::ptr::null_mut;

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Function, Pkcs11};
use cryptoki::error::{Error, Rv, RvError};
use cryptoki::mechanism::Mechanism;
use cryptoki::object::ObjectHandle;
use cryptoki::session::Session;
use cryptoki::slot::{Limit, Slot};
use cryptoki_sys::{
    CK_C_INITIALIZE_ARGS, CK_EFFECTIVELY_INFINITE, CK_FLAGS, CK_FUNCTION_LIST, CK_INFO, CK_RV,
    CK_SESSION_HANDLE, CK_SLOT_INFO, CK_TOKEN_INFO, CK_ULONG, CK_UNAVAILABLE_INFORMATION,
    CK_VERSION, CKF_ERROR_STATE, CKF_LOGIN_REQUIRED, CKF_OS_LOCKING_OK, CKF_TOKEN_INITIALIZED,
    CKF_USER_PIN_COUNT_LOW, CKF_USER_PIN_FINAL_TRY, CKF_USER_PIN_INITIALIZED, CKF_USER_PIN_LOCKED,
    CKF_USER_PIN_TO_BE_CHANGED,
};

use crate::TokenFacts;

/// Room for a signature: twice that of an RSA key of 8192 bits.
const SIGNATURE: usize = 2048;

/// What a library may ask for in its place; more is nonsense.
const LARGEST_SIGNATURE: CK_ULONG = 65_536;

/// A library, called without cryptoki where that is possible.
pub(super) struct Raw {
    context: Pkcs11,
    list: Option<List>,
}

/// A library's function list (PKCS#11 v2.40 §5.4, C_GetFunctionList).
struct List {
    // Keeps the functions mapped.
    _library: cryptoki_sys::Pkcs11,
    functions: CK_FUNCTION_LIST,
}

/// What C_GetInfo tells.
pub(super) struct LibraryInfo {
    pub(super) description: String,
    pub(super) manufacturer: String,
    pub(super) version: String,
    pub(super) cryptoki: String,
}

/// A ceiling of sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionLimit {
    /// So many.
    AtMost(u64),
    /// As many as one likes.
    Unlimited,
    /// The library does not tell.
    Untold,
}

/// What C_GetTokenInfo tells, as far as anybody wants it.
pub(super) struct TokenInfo {
    pub(super) facts: TokenFacts,
    pub(super) firmware: String,
    pub(super) most_sessions: SessionLimit,
    /// Of this process; `None` where the library does not tell.
    pub(super) open_sessions: Option<u64>,
    flags: CK_FLAGS,
}

impl TokenInfo {
    /// Whether these flags (CKF_…) are set.
    pub(super) fn has(&self, flags: CK_FLAGS) -> bool {
        self.flags & flags == flags
    }
}

impl From<&CK_TOKEN_INFO> for TokenInfo {
    fn from(info: &CK_TOKEN_INFO) -> Self {
        let facts = TokenFacts {
            label: text(&info.label),
            manufacturer: text(&info.manufacturerID),
            model: text(&info.model),
            serial: text(&info.serialNumber),
        };
        let most_sessions = match info.ulMaxSessionCount {
            CK_EFFECTIVELY_INFINITE => SessionLimit::Unlimited,
            CK_UNAVAILABLE_INFORMATION => SessionLimit::Untold,
            most => SessionLimit::AtMost(most),
        };
        let open_sessions =
            Some(info.ulSessionCount).filter(|count| *count != CK_UNAVAILABLE_INFORMATION);
        Self {
            facts,
            firmware: version(info.firmwareVersion),
            most_sessions,
            open_sessions,
            flags: info.flags,
        }
    }
}

impl From<&cryptoki::slot::TokenInfo> for TokenInfo {
    fn from(info: &cryptoki::slot::TokenInfo) -> Self {
        let owned = str::to_owned;
        let facts = TokenFacts {
            label: owned(info.label()),
            manufacturer: owned(info.manufacturer_id()),
            model: owned(info.model()),
            serial: owned(info.serial_number()),
        };
        let flags = [
            (CKF_TOKEN_INITIALIZED, info.token_initialized()),
            (CKF_LOGIN_REQUIRED, info.login_required()),
            (CKF_USER_PIN_INITIALIZED, info.user_pin_initialized()),
            (CKF_USER_PIN_COUNT_LOW, info.user_pin_count_low()),
            (CKF_USER_PIN_FINAL_TRY, info.user_pin_final_try()),
            (CKF_USER_PIN_LOCKED, info.user_pin_locked()),
            (CKF_USER_PIN_TO_BE_CHANGED, info.user_pin_to_be_changed()),
            (CKF_ERROR_STATE, info.error_state()),
        ];
        let flags = flags
            .into_iter()
            .filter(|(_, is)| *is)
            .fold(0, |all, (flag, _)| all | flag);
        let most_sessions = match info.max_session_count() {
            Limit::Max(most) => SessionLimit::AtMost(most),
            Limit::Infinite => SessionLimit::Unlimited,
            Limit::Unavailable => SessionLimit::Untold,
        };
        Self {
            facts,
            firmware: info.firmware_version().to_string(),
            most_sessions,
            open_sessions: info.session_count(),
            flags,
        }
    }
}

/// NSS reads one word more than the standard's structure has, where a string is given.
#[repr(C)]
struct InitializeArguments {
    standard: CK_C_INITIALIZE_ARGS,
    behind: *mut c_void,
}

impl Raw {
    /// Loads a library; it is mapped once however often it is loaded.
    pub(super) fn load(path: &Path) -> Result<Self, Error> {
        let context = Pkcs11::new(path)?;
        // A library that failed to initialise may have left threads behind: it must stay mapped.
        std::mem::forget(context.clone());
        Ok(Self {
            context,
            list: List::load(path)?,
        })
    }

    /// As cryptoki knows it.
    pub(super) fn context(&self) -> &Pkcs11 {
        &self.context
    }

    /// C_Initialize for several threads; `reserved` is what the library wants as `pReserved`.
    pub(super) fn initialize(&self, reserved: Option<&CString>) -> Result<(), Error> {
        match &self.list {
            Some(list) => list.initialize(reserved),
            // No library is known that wants both.
            None => self
                .context
                .initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)),
        }
    }

    /// C_GetInfo.
    pub(super) fn library(&self) -> Result<LibraryInfo, Error> {
        match &self.list {
            Some(list) => list.library(),
            None => self.context.get_library_info().map(|info| LibraryInfo {
                description: info.library_description().to_owned(),
                manufacturer: info.manufacturer_id().to_owned(),
                version: info.library_version().to_string(),
                cryptoki: info.cryptoki_version().to_string(),
            }),
        }
    }

    /// C_GetSlotInfo: what the slot says of itself.
    pub(super) fn slot(&self, slot: Slot) -> Result<String, Error> {
        match &self.list {
            Some(list) => list.slot(slot),
            None => self
                .context
                .get_slot_info(slot)
                .map(|info| info.slot_description().trim().to_owned()),
        }
    }

    /// C_GetTokenInfo.
    pub(super) fn token(&self, slot: Slot) -> Result<TokenInfo, Error> {
        match &self.list {
            Some(list) => list.token(slot),
            None => self
                .context
                .get_token_info(slot)
                .map(|info| TokenInfo::from(&info)),
        }
    }

    /// C_SignInit and C_Sign.
    pub(super) fn sign(
        &self,
        session: &Session,
        mechanism: &Mechanism<'_>,
        key: ObjectHandle,
        data: &[u8],
    ) -> Result<Vec<u8>, Error> {
        match &self.list {
            Some(list) => session
                .sign_init(mechanism, key)
                .and_then(|()| list.sign(session.handle(), data)),
            None => session.sign(mechanism, key, data),
        }
    }
}

#[expect(
    unsafe_code,
    reason = "a library's functions are called through its own list"
)]
impl List {
    /// The library's list; `None` where it makes another one for each who asks, for then cryptoki's
    /// is not this one.
    fn load(path: &Path) -> Result<Option<Self>, Error> {
        // SAFETY: whatever a library does when it is loaded, it does for whoever has named it as
        // the device's.
        let library = unsafe { cryptoki_sys::Pkcs11::new(path) }.map_err(Error::LibraryLoading)?;
        let get = library
            .C_GetFunctionList
            .as_ref()
            .map_err(|_| Error::MissingSymbol("C_GetFunctionList"))?;
        let mut lists = [null_mut(); 2];
        for list in &mut lists {
            // SAFETY: the pointer is to room for a pointer.
            answer(unsafe { get(list) }, Function::GetFunctionList)?;
        }
        if lists[0].is_null() || lists[0] != lists[1] {
            return Ok(None);
        }
        // SAFETY: not null, and CKR_OK says that a list stands there. The standard lets it be
        // copied.
        let functions = unsafe { *lists[0] };
        Ok(Some(Self {
            _library: library,
            functions,
        }))
    }

    fn initialize(&self, reserved: Option<&CString>) -> Result<(), Error> {
        let call = self
            .functions
            .C_Initialize
            .ok_or(Error::NullFunctionPointer)?;
        let standard = CK_C_INITIALIZE_ARGS {
            CreateMutex: None,
            DestroyMutex: None,
            LockMutex: None,
            UnlockMutex: None,
            flags: CKF_OS_LOCKING_OK,
            pReserved: reserved.map_or(null_mut(), |text| text.as_ptr().cast_mut().cast()),
        };
        let mut arguments = InitializeArguments {
            standard,
            behind: null_mut(),
        };
        // SAFETY: the structure and the string outlive the call.
        answer(
            unsafe { call((&raw mut arguments).cast()) },
            Function::Initialize,
        )
    }

    fn library(&self) -> Result<LibraryInfo, Error> {
        let call = self.functions.C_GetInfo.ok_or(Error::NullFunctionPointer)?;
        let mut info = CK_INFO::default();
        // SAFETY: the pointer is to such a structure.
        answer(unsafe { call(&mut info) }, Function::GetInfo)?;
        Ok(LibraryInfo {
            description: text(&info.libraryDescription),
            manufacturer: text(&info.manufacturerID),
            version: version(info.libraryVersion),
            cryptoki: version(info.cryptokiVersion),
        })
    }

    fn slot(&self, slot: Slot) -> Result<String, Error> {
        let call = self
            .functions
            .C_GetSlotInfo
            .ok_or(Error::NullFunctionPointer)?;
        let mut info = CK_SLOT_INFO::default();
        // SAFETY: the pointer is to such a structure.
        answer(
            unsafe { call(slot.into(), &mut info) },
            Function::GetSlotInfo,
        )?;
        Ok(text(&info.slotDescription))
    }

    fn token(&self, slot: Slot) -> Result<TokenInfo, Error> {
        let call = self
            .functions
            .C_GetTokenInfo
            .ok_or(Error::NullFunctionPointer)?;
        let mut info = CK_TOKEN_INFO::default();
        // SAFETY: the pointer is to such a structure.
        answer(
            unsafe { call(slot.into(), &mut info) },
            Function::GetTokenInfo,
        )?;
        Ok(TokenInfo::from(&info))
    }

    /// C_Sign, after a C_SignInit: one call, unless the signature is larger than any that we know.
    fn sign(&self, session: CK_SESSION_HANDLE, data: &[u8]) -> Result<Vec<u8>, Error> {
        let call = self.functions.C_Sign.ok_or(Error::NullFunctionPointer)?;
        let mut signature = vec![0u8; SIGNATURE];
        let mut length = SIGNATURE as CK_ULONG;
        let mut once = |signature: &mut Vec<u8>| {
            // SAFETY: both buffers outlive the call and are as long as it is told; `data` is only
            // read, though the standard's pointer is not const.
            let rv = unsafe {
                call(
                    session,
                    data.as_ptr().cast_mut(),
                    data.len() as CK_ULONG,
                    signature.as_mut_ptr(),
                    &mut length,
                )
            };
            (answer(rv, Function::Sign), length)
        };
        let (mut answered, mut told) = once(&mut signature);
        // The operation is still active then (PKCS#11 v2.40 §5.2).
        if matches!(answered, Err(Error::Pkcs11(RvError::BufferTooSmall, _)))
            && told <= LARGEST_SIGNATURE
        {
            signature.resize(told as usize, 0);
            (answered, told) = once(&mut signature);
        }
        answered?;
        signature.truncate(told as usize);
        Ok(signature)
    }
}

fn answer(rv: CK_RV, function: Function) -> Result<(), Error> {
    Rv::from(rv).into_result(function)
}

/// Padded with blanks as the standard wants it, or with NULs as some do.
fn text(padded: &[u8]) -> String {
    String::from_utf8_lossy(padded)
        .trim_end_matches([' ', '\0'])
        .to_owned()
}

fn version(version: CK_VERSION) -> String {
    format!("{}.{}", version.major, version.minor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_read_whatever_they_are_padded_with() {
        assert_eq!(
            [
                text(b"ca      "),
                text(b"ca\0\0 \0"),
                text(b"    "),
                text(b"a\xffb")
            ],
            ["ca", "ca", "", "a\u{fffd}b"]
        );
    }
}
