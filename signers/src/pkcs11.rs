//! Private keys in PKCS#11 tokens (v2.40), over `cryptoki`.
//!
//! A module is loaded and initialised once in the process, a token is logged into once for all its
//! sessions, and each device owns one session. What a token answers is grouped by who must act
//! (`SignError`). A key is found by its URI, never by a remembered handle alone.

mod ending;
mod error;
mod inspection;
mod key;
mod key_pair;
mod life;
mod login_mark;
mod login_watch;
mod module;
mod raw;
mod throw_away;
mod token;
mod vault;

use std::path::{Path, PathBuf};

pub use ending::end_process;
pub use inspection::{ModuleFacts, PinState, TokenState, inspect_module, inspect_token};
pub use key::{KnownKey, Pkcs11Device};
pub use login_mark::keep_login_marks;
pub use login_watch::{MayTry, may_try_first};
pub use module::{close_logins, set_init_string};
pub use raw::SessionLimit;
pub use throw_away::{ThrowAwayDevice, throw_away_device};
pub use vault::{Pkcs11Vault, init_token, list_tokens, open_vault, open_vault_for_reading};

pub use login_watch::LoginEvent;

pub(crate) use key::untold;
pub(crate) use login_watch::{LoginOrder, watch_logins};

use crate::probe::Proof;
use crate::{Pkcs11Uri, SignError};
use module::Module;
use token::Access;

/// Opens one read-only session with the key that `uri` names.
pub fn open_device(uri: &Pkcs11Uri, known: KnownKey<'_>) -> Result<Pkcs11Device, SignError> {
    open(uri, known, None, Proof::None)
}

/// The same, after an order: a token that refused our PIN before that is tried once more.
pub(crate) fn open_device_as_ordered(
    uri: &Pkcs11Uri,
    known: KnownKey<'_>,
    order: LoginOrder,
    proof: Proof,
) -> Result<Pkcs11Device, SignError> {
    open(uri, known, Some(order), proof)
}

fn open(
    uri: &Pkcs11Uri,
    known: KnownKey<'_>,
    order: Option<LoginOrder>,
    proof: Proof,
) -> Result<Pkcs11Device, SignError> {
    let module = Module::load(&uri.module_path)?;
    let find = || {
        let (slot, token) = module.token(uri)?;
        if let Some(order) = order {
            token.forget_refusal(order);
        }
        let session = token.session(
            module.library(),
            slot,
            uri.pin_source.as_deref(),
            Access::ReadOnly,
        )?;
        Pkcs11Device::find(&module, slot, session, uri, known)
    };
    module.opening_proven(find, |device| device.prove(proof))
}

/// SoftHSM 2 where distributions install it.
pub fn find_softhsm() -> Option<PathBuf> {
    const PLACES: [&str; 8] = [
        "/usr/lib/softhsm/libsofthsm2.so",
        "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
        "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
        "/usr/lib64/softhsm/libsofthsm2.so",
        "/usr/lib64/pkcs11/libsofthsm2.so",
        "/usr/lib64/libsofthsm2.so",
        "/usr/local/lib/softhsm/libsofthsm2.so",
        "/opt/homebrew/lib/softhsm/libsofthsm2.so",
    ];
    PLACES
        .iter()
        .map(Path::new)
        .find(|path| path.is_file())
        .map(Path::to_owned)
}
