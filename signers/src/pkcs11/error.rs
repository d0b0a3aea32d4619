//! From a token's return value (CK_RV, PKCS#11 v2.40 §5.1) to who must act.

use cryptoki::context::Function;
use cryptoki::error::{Error, RvError};

use crate::{Failure, SignError};

/// `what` begins the sentence: what we were doing, or with which token.
pub(super) fn sign_error(what: &str, error: &Error) -> SignError {
    let Error::Pkcs11(rv, function) = error else {
        return SignError::Rejected(format!("{what}: {error}"));
    };
    let text = format!("{what}: C_{function:?} returned {}", name(*rv));
    match rv {
        _ if session_gone(*rv) || device_gone(*rv) => SignError::Lost(text),
        _ if pin_refused(*rv) && looks_at_a_pin(*function) => SignError::Locked(text),
        _ => SignError::Rejected(text),
    }
}

/// What a failed C_SignInit or C_Sign left behind.
pub(super) fn failure(error: &Error) -> Failure {
    match error {
        Error::Pkcs11(rv, function) => {
            let before = matches!(function, Function::SignInit) || not_begun(*rv);
            Failure {
                may_have_signed: !before,
                worth_a_retry: session_gone(*rv),
            }
        }
        _ => Failure::default(),
    }
}

/// The session, its login or its handles are gone; a fresh session may well work.
fn session_gone(rv: RvError) -> bool {
    matches!(
        rv,
        RvError::SessionClosed
            | RvError::SessionHandleInvalid
            | RvError::KeyHandleInvalid
            | RvError::ObjectHandleInvalid
            | RvError::UserNotLoggedIn
            | RvError::OperationActive
            | RvError::OperationNotInitialized
            | RvError::CryptokiNotInitialized
    )
}

/// The session handle itself means nothing any more (and may soon mean another session).
pub(super) fn handle_gone(error: &Error) -> bool {
    matches!(
        error,
        Error::Pkcs11(
            RvError::SessionClosed
                | RvError::SessionHandleInvalid
                | RvError::CryptokiNotInitialized,
            _
        )
    )
}

/// C_Sign answers these instead of working. CKR_SESSION_CLOSED is not among them: it may come in
/// the midst of signing.
fn not_begun(rv: RvError) -> bool {
    session_gone(rv) && rv != RvError::SessionClosed
}

/// The session or the device is in trouble, whatever it was asked. The two vague codes are left
/// out: some tokens have them for what they do not know.
pub(super) fn in_trouble(rv: RvError) -> bool {
    session_gone(rv)
        || (device_gone(rv) && !matches!(rv, RvError::FunctionFailed | RvError::GeneralError))
}

fn device_gone(rv: RvError) -> bool {
    matches!(
        rv,
        RvError::TokenNotPresent
            | RvError::TokenNotRecognized
            | RvError::SlotIdInvalid
            | RvError::DeviceError
            | RvError::DeviceRemoved
            | RvError::DeviceMemory
            | RvError::HostMemory
            | RvError::FunctionFailed
            | RvError::GeneralError
            | RvError::FunctionCanceled
            | RvError::SessionCount
    )
}

/// What other functions say of a PIN has cost no try of it, so they may be called again.
fn looks_at_a_pin(function: Function) -> bool {
    matches!(
        function,
        Function::Login | Function::InitToken | Function::InitPIN | Function::SetPIN
    )
}

fn pin_refused(rv: RvError) -> bool {
    matches!(
        rv,
        RvError::PinIncorrect
            | RvError::PinInvalid
            | RvError::PinLenRange
            | RvError::PinExpired
            | RvError::PinLocked
            | RvError::UserPinNotInitialized
    )
}

/// Whether a failed C_Login may have counted as a wrong PIN. Tokens answer a wrong or locked PIN
/// with vendors' codes, too, with CKR_FUNCTION_FAILED or CKR_GENERAL_ERROR, and with codes that the
/// standard does not give to C_Login; so only what surely came before the PIN was looked at is
/// free.
pub(super) fn may_have_cost_a_try(rv: RvError) -> bool {
    !matches!(
        rv,
        RvError::TokenNotPresent
            | RvError::TokenNotRecognized
            | RvError::SlotIdInvalid
            | RvError::DeviceError
            | RvError::DeviceRemoved
            | RvError::SessionClosed
            | RvError::SessionHandleInvalid
            | RvError::CryptokiNotInitialized
            | RvError::UserAlreadyLoggedIn
    )
}

/// The constant's name in the standard, from cryptoki's: `DeviceError` → `CKR_DEVICE_ERROR`.
pub(super) fn name(rv: RvError) -> String {
    let camel = match rv {
        RvError::VendorDefined(code) => return format!("the vendor's code {code:#x}"),
        RvError::UnknownErrorCode(code) => return format!("the unknown code {code:#x}"),
        known => format!("{known:?}"),
    };
    let mut text = "CKR".to_owned();
    for c in camel.chars() {
        if c.is_ascii_uppercase() {
            text.push('_');
        }
        text.push(c.to_ascii_uppercase());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn return_values_are_grouped_by_who_must_act() {
        let of = |rv| sign_error("signing", &Error::Pkcs11(rv, Function::Sign));
        for rv in [
            RvError::SessionClosed,
            RvError::DeviceRemoved,
            RvError::TokenNotPresent,
            RvError::HostMemory,
            RvError::UserNotLoggedIn,
        ] {
            assert!(matches!(of(rv), SignError::Lost(_)), "{rv:?}");
        }
        for rv in [
            RvError::PinIncorrect,
            RvError::PinLocked,
            RvError::PinExpired,
        ] {
            assert!(
                matches!(
                    sign_error("logging in", &Error::Pkcs11(rv, Function::Login)),
                    SignError::Locked(_)
                ),
                "{rv:?}"
            );
            assert!(
                matches!(of(rv), SignError::Rejected(_)),
                "{rv:?} cost no try of the PIN"
            );
        }
        for rv in [
            RvError::MechanismInvalid,
            RvError::KeyFunctionNotPermitted,
            RvError::VendorDefined(1),
        ] {
            assert!(matches!(of(rv), SignError::Rejected(_)), "{rv:?}");
        }
        assert_eq!(
            of(RvError::DeviceError).to_string(),
            "the device is lost: signing: C_Sign returned CKR_DEVICE_ERROR"
        );
    }

    #[test]
    fn a_login_is_free_only_where_the_token_was_surely_away() {
        for rv in [
            RvError::PinIncorrect,
            RvError::VendorDefined(1),
            RvError::FunctionFailed,
            RvError::GeneralError,
            RvError::HostMemory,
        ] {
            assert!(may_have_cost_a_try(rv), "{rv:?}");
        }
        // What C_Login never answers by the standard says nothing of the PIN.
        for rv in [
            RvError::UserNotLoggedIn,
            RvError::KeyHandleInvalid,
            RvError::OperationNotInitialized,
        ] {
            assert!(may_have_cost_a_try(rv), "{rv:?}");
        }
        for rv in [
            RvError::TokenNotPresent,
            RvError::DeviceRemoved,
            RvError::DeviceError,
            RvError::SessionClosed,
            RvError::UserAlreadyLoggedIn,
        ] {
            assert!(!may_have_cost_a_try(rv), "{rv:?}");
        }
    }

    #[test]
    fn only_a_lost_session_is_worth_a_retry() {
        let of = |rv, function| failure(&Error::Pkcs11(rv, function));
        let fresh = Failure {
            may_have_signed: false,
            worth_a_retry: true,
        };
        assert_eq!(of(RvError::KeyHandleInvalid, Function::SignInit), fresh);
        assert_eq!(of(RvError::UserNotLoggedIn, Function::Sign), fresh);
        assert_eq!(
            of(RvError::SessionClosed, Function::Sign),
            Failure {
                may_have_signed: true,
                worth_a_retry: true
            }
        );
        assert_eq!(
            of(RvError::DeviceError, Function::Sign),
            Failure {
                may_have_signed: true,
                worth_a_retry: false
            }
        );
        assert_eq!(
            of(RvError::DeviceError, Function::SignInit),
            Failure {
                may_have_signed: false,
                worth_a_retry: false
            }
        );
    }
}
