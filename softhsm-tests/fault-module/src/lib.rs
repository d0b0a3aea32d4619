//! `libpkcs11_fault.so`: a PKCS#11 v2.40 module for tests that passes every call on to a real
//! module, counts them, and fails, delays or betrays them on command. It holds no key and never
//! returns a signature of its own, though on command a spoilt one.
//!
//! # Use
//!
//! Two variables of the environment, read at the first call: `PKCS11_FAULT_MODULE`, the real
//! module's file, and `PKCS11_FAULT_DIR`, a directory for the files below. Point the `module-path`
//! of a key URI at the module's file. A test that depends on this package has it built next to
//! itself (`library()` finds it) and drives it through `Control`.
//!
//! # The file `control`
//!
//! One rule a line: `FUNCTION ACTION [ARGUMENT] [count N | at N | once]`; empty lines and lines
//! that begin with `#` are ignored. Without a last word a rule holds as long as the file says so;
//! with `count` for the next N calls, with `at` for the Nth call alone (the first is 1), each
//! counted by each process anew whenever the file changes; with `once` for one call of all
//! processes together, so that a process that takes the place of one that was killed is spared. The
//! first rule for a function that is not used up applies. Replace the file by renaming another over
//! it (`Control::set` does); a line that cannot be read makes every ruled call return
//! CKR_ARGUMENTS_BAD, so that a typing error does not pass for health.
//!
//! Functions: `C_Initialize`, `C_Finalize`, `C_GetSlotList`, `C_GetSlotInfo`, `C_GetTokenInfo`,
//! `C_GetMechanismList`, `C_GetMechanismInfo`, `C_OpenSession`, `C_CloseSession`,
//! `C_CloseAllSessions`, `C_GetSessionInfo`, `C_Login`, `C_FindObjectsInit`, `C_FindObjects`,
//! `C_GetAttributeValue`, `C_GenerateKeyPair`, `C_SignInit`, `C_Sign`. Actions on the call:
//!
//! - `rv CODE` (decimal or 0x…): returns that CK_RV instead of calling the real module. On C_Sign
//!   the active operation is ended, as the standard wants it.
//! - `late_rv CODE`: calls the real module, then returns that CK_RV: the device worked and its
//!   answer was lost.
//! - `sleep_ms N`: sleeps first, then goes on. A caller's deadline passes meanwhile.
//! - `hang`: never returns, whatever becomes of the file: only the end of the process ends it.
//! - `print`: prints a line to standard output and to standard error, then goes on.
//! - `abort`, `segfault`: the process dies of SIGABRT, or by an access to memory that is not there.
//!
//! Actions on the device, before the call goes on to whatever the device has become:
//!
//! - `logout`: C_Logout on the session; the real module then finds nobody logged in. Only for
//!   functions that take a session.
//! - `close_sessions`: C_CloseAllSessions on the session's slot. Likewise.
//! - `forget`: as libraries do whose device was away: all sessions are closed, and every function
//!   answers CKR_CRYPTOKI_NOT_INITIALIZED until C_Initialize is called.
//! - `stale CODE`: as libraries do that never find their device again: every function answers this
//!   until C_Finalize is called.
//! - `mute CODE`: as libraries do whose connection broke behind open sessions: everything goes well
//!   but C_Sign, which answers this until C_Finalize is called. `mute_for_good CODE`: until the
//!   process ends.
//! - `swap_handles ID`: as after a reset of the device: every object handle that was given out
//!   until now names from now on the private key with this CKA_ID (hex). Those that C_FindObjects
//!   gives out afterwards are right.
//!
//! Actions of one function:
//!
//! - `C_GetSlotList no_slots`: there is none.
//! - `C_GetTokenInfo flags N`: calls the real module, then sets these flags of the token, too.
//! - `C_GetTokenInfo sessions N`: calls the real module, then lets the token allow at most N
//!   sessions.
//! - `C_GetTokenInfo clock`: calls the real module, then lets the token have a clock that shows
//!   nonsense.
//! - `C_GenerateKeyPair refuses TYPE`: returns CKR_ATTRIBUTE_VALUE_INVALID where a template has the
//!   attribute of this number.
//! - `C_OpenSession limit N`: returns CKR_SESSION_COUNT where N sessions are open on the slot.
//! - `C_Sign corrupt`: calls the real module, then flips the lowest bit of the signature's last
//!   byte.
//! - `C_Sign short N`: calls the real module, then answers the signature N bytes shorter.
//!
//! And a rule for all functions at once, `token removed`: there is no slot, calls on a slot return
//! CKR_TOKEN_NOT_PRESENT and calls on a session CKR_DEVICE_REMOVED, and every session that is met
//! is closed. The token is back when the file no longer says so.
//!
//! A C_Sign that only asks for the signature's length (no buffer) is not ruled, and counted by
//! itself.
//!
//! # The counters
//!
//! Files to which one line is appended per event, by one write(2) with O_APPEND: their lines are
//! the count, over all processes and kills. They survive a kill -9 at any point (the page cache
//! keeps them), not a power cut.
//!
//! - `signatures`: C_Sign calls with a buffer that are about to reach the real module, after any
//!   rule: whatever the device signed is at most this. Each line is the hex of what was to be
//!   signed, so that a signature can be traced to its intent.
//! - `signed`: C_Sign calls with a buffer to which the real module answered CKR_OK: at least what
//!   the caller was given.
//! - `lengths`: C_Sign calls that only ask for the signature's length.
//! - `logins`: C_Login calls, whether a rule answered or the real module did: what may have been a
//!   try of the PIN.
//! - `calls/FUNCTION`: calls of each function above.
//! - `met/FUNCTION`: those of them that a rule applied to, counted before anything is done, so that
//!   a process that hangs or dies is counted.
//!
//! # The sandbox
//!
//! If there is a file `attempt`, each C_Initialize first makes the system calls that a sandboxed
//! process must be refused, and writes into `attempts` how each ended: `NAME ERRNO` a line, 0 for
//! success; then `dumpable` and `core` as the process has them.

mod attempts;
mod control;
mod counter;
mod device;
mod fault;
mod functions;
mod rules;

pub use control::{Control, library};
