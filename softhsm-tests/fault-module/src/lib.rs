//! `libpkcs11_fault.so`: a PKCS#11 v2.40 module for tests that passes every call on to a real module, counts some, and fails or delays them on
//! command. It holds no key and never returns a signature of its own, though on command a spoilt one.
//!
//! # Use
//!
//! Two variables of the environment, read at the first call: `PKCS11_FAULT_MODULE`, the real module's file, and `PKCS11_FAULT_DIR`, a directory
//! for the files below. Point the `module-path` of a key URI at the module's file. A test that depends on this package has it built next to
//! itself (`library()` finds it) and drives it through `Control`.
//!
//! # The file `control`
//!
//! One rule a line: `FUNCTION ACTION [ARGUMENT] [count N]`; empty lines and lines that begin with `#` are ignored. Without `count` a rule holds
//! as long as the file says so; with it, for the next N calls of each process, counted anew whenever the file changes. The first rule for a
//! function that is not used up applies. Replace the file by renaming another over it (`Control::set` does); a line that cannot be read makes
//! every ruled call return CKR_ARGUMENTS_BAD, so that a typing error does not pass for health.
//!
//! Functions: `C_GetSlotList`, `C_GetTokenInfo`, `C_OpenSession`, `C_GetSessionInfo`, `C_Login`, `C_FindObjectsInit`, `C_GenerateKeyPair`,
//! `C_SignInit`, `C_Sign`. Actions:
//!
//! - `rv CODE` (decimal or 0x…): returns that CK_RV instead of calling the real module. On C_Sign the active operation is ended, as the
//!   standard wants it.
//! - `late_rv CODE`: calls the real module, then returns that CK_RV: the device worked and its answer was lost.
//! - `sleep_ms N`: sleeps first, then goes on. A caller's deadline passes meanwhile.
//! - `logout`: C_Logout on the session first; the real module then finds nobody logged in. Only for functions that take a session.
//! - `close_sessions`: C_CloseAllSessions on the session's slot first. Likewise.
//! - `corrupt`: calls the real module, then flips the lowest bit of the signature's last byte. Only for `C_Sign`.
//! - `flags N`: calls the real module, then sets these flags of the token, too. Only for `C_GetTokenInfo`.
//! - `sessions N`: calls the real module, then lets the token allow at most N sessions. Only for `C_GetTokenInfo`.
//!
//! A C_Sign that only asks for the signature's length (no buffer) is neither ruled nor counted.
//!
//! # The counters
//!
//! Files to which one line is appended per event, by one write(2) with O_APPEND: their lines are the count, over all processes and kills. They
//! survive a kill -9 at any point (the page cache keeps them), not a power cut.
//!
//! - `signatures`: C_Sign calls with a buffer that are about to reach the real module, after any rule: whatever the device signed is at
//!   most this. Each line is the hex of what was to be signed, so that a signature can be traced to its intent.
//! - `signed`: C_Sign calls with a buffer to which the real module answered CKR_OK: at least what the caller was given.
//! - `logins`: C_Login calls, whether a rule answered or the real module did.

mod control;
mod module;

pub use control::{Control, library};
