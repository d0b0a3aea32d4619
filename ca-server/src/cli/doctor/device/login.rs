//! The PIN: its file, what the token's flags tell of it, and at most one try.

use signers::pkcs11::{PinState, TokenState, inspect_token};
use signers::{Pkcs11Uri, SignError, Vault, check_secret_file, open_vault_for_reading};

use super::{Case, remedy};
use crate::cli::doctor::finding::Findings;

const AGAIN: &str = "put the right PIN into the file, then run `ca-server doctor --try-pin`";

/// Logs in, if that costs nothing that is dear. `None` when there is no session.
pub(super) fn log_in(
    findings: &mut Findings,
    case: &Case,
    uri: &Pkcs11Uri,
    state: &TokenState,
) -> Option<Box<dyn Vault>> {
    let pin = uri.pin_source.as_deref();
    if let Some(error) = pin.and_then(|pin| check_secret_file(pin, "PIN").err()) {
        findings.problem(
            "login",
            error.to_string(),
            "the daemon needs the PIN in a file of its own, with mode 0600",
        );
        return None;
    }
    if (state.login_required || pin.is_some()) && !may_try(findings, state.pin, case.try_pin) {
        return None;
    }
    match open_vault_for_reading(&case.uri) {
        Ok(vault) => {
            match pin {
                Some(pin) => findings.ok(
                    "login",
                    format!("logged in with the PIN in {}", pin.display()),
                ),
                None => findings.ok("login", "the token wants no PIN"),
            }
            Some(vault)
        }
        Err(error @ SignError::Locked(_)) => {
            // The flags are asked again: the try has changed them.
            let after = inspect_token(uri);
            let left = after
                .as_ref()
                .map_or("the token does not tell how many tries are left", |state| {
                    tries_left(state.pin)
                });
            match after.map_or(true, |state| state.login_tried) {
                true => {
                    let what = format!("{}. It was tried once; {left}", error.cause());
                    findings.problem("login", what, remedy::of(&error).unwrap_or(AGAIN));
                }
                // An earlier try speaks against another.
                false => findings.problem(
                    "login",
                    format!("{}: the PIN was not tried; {left}", error.cause()),
                    AGAIN,
                ),
            }
            None
        }
        Err(error @ SignError::Rejected(_)) => {
            findings.problem(
                "login",
                error.cause(),
                "name the file that holds the PIN with pin-source=file:… in the key's URI",
            );
            None
        }
        Err(error) => {
            findings.problem(
                "login",
                error.cause(),
                remedy::of(&error).unwrap_or("look after the device and the way to it"),
            );
            None
        }
    }
}

fn may_try(findings: &mut Findings, state: PinState, ordered: bool) -> bool {
    let not_tried = "the PIN was not tried, and nothing behind it could be looked at";
    match state {
        PinState::Good => true,
        PinState::MustBeChanged => {
            let what = "the token wants its PIN changed (CKF_USER_PIN_TO_BE_CHANGED)";
            findings.warning(
                "login",
                what,
                "change it with the maker's tool, and in the PIN's file",
            );
            true
        }
        PinState::NotSet => {
            let remedy = "its security officer must set one, as `pkcs11-tool --init-pin` does";
            findings.problem(
                "login",
                "the token has no user PIN yet (CKF_USER_PIN_INITIALIZED is not set)",
                remedy,
            );
            false
        }
        PinState::Locked => {
            let remedy = "its security officer must set a new one, as `pkcs11-tool --init-pin` does; then put that into the file";
            findings.problem(
                "login",
                format!("{}: {not_tried}", tries_left(state)),
                remedy,
            );
            false
        }
        PinState::WrongOnesTried | PinState::LastTry if ordered => true,
        PinState::WrongOnesTried | PinState::LastTry => {
            findings.problem(
                "login",
                format!("{}: {not_tried}", tries_left(state)),
                AGAIN,
            );
            false
        }
    }
}

/// In words, by the flags of C_GetTokenInfo.
fn tries_left(state: PinState) -> &'static str {
    match state {
        PinState::Good | PinState::NotSet | PinState::MustBeChanged => {
            "the token does not tell how many tries are left"
        }
        PinState::WrongOnesTried => {
            "the token says that a wrong PIN was tried since the last login (CKF_USER_PIN_COUNT_LOW), not how many tries are left"
        }
        PinState::LastTry => {
            "the token says that one try is left before it locks the PIN (CKF_USER_PIN_FINAL_TRY)"
        }
        PinState::Locked => "the token has locked the PIN (CKF_USER_PIN_LOCKED): no try is left",
    }
}
