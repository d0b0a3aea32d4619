//! What an operator can do about a code that a token or its library has answered (PKCS#11 v2.40
//! §5.1). Where nothing fits the code, whoever asked knows better.

use signers::SignError;

const REMEDIES: [(&str, &str); 19] = [
    (
        "CKR_PIN_LOCKED",
        "its security officer must set a new PIN, as `pkcs11-tool --init-pin` does; then put that into the file",
    ),
    (
        "CKR_USER_PIN_NOT_INITIALIZED",
        "its security officer must set a PIN, as `pkcs11-tool --init-pin` does",
    ),
    (
        "CKR_PIN_EXPIRED",
        "change the PIN with the maker's tool, and in the PIN's file",
    ),
    (
        "CKR_PIN_LEN_RANGE",
        "the PIN is shorter or longer than the token takes: put the right one into the file, then `ca-server doctor --try-pin`",
    ),
    (
        "CKR_PIN_INVALID",
        "the PIN has signs that the token does not take: put the right one into the file, then `ca-server doctor --try-pin`",
    ),
    (
        "CKR_SESSION_COUNT",
        "close other programs' sessions in the token, allow more in its settings, or lower `sessions` in [device.NAME]",
    ),
    ("CKR_TOKEN_NOT_PRESENT", "connect the token"),
    (
        "CKR_TOKEN_NOT_RECOGNIZED",
        "initialise the token with its maker's tool, or name another",
    ),
    (
        "CKR_DEVICE_REMOVED",
        "connect the device, and look at its cable or network",
    ),
    (
        "CKR_DEVICE_MEMORY",
        "the token has no room: remove objects or sessions that nobody needs, with its maker's tool",
    ),
    (
        "CKR_DEVICE_ERROR",
        "look at the device's own log and self-test; restart it, or the daemon that serves it",
    ),
    (
        "CKR_HOST_MEMORY",
        "look at the memory of this host, and at `MemoryMax` or the container's limit",
    ),
    (
        "CKR_MECHANISM_INVALID",
        "allow the mechanism in the token's policy, or use a key of another kind",
    ),
    (
        "CKR_KEY_FUNCTION_NOT_PERMITTED",
        "use a key that may sign (CKA_SIGN)",
    ),
    (
        "CKR_KEY_TYPE_INCONSISTENT",
        "name the key that the certificate was made for",
    ),
    (
        "CKR_ARGUMENTS_BAD",
        "the library may want a string in C_Initialize: write it as `init_string` into [device.NAME]",
    ),
    (
        "CKR_CANT_LOCK",
        "the library is not made for threads: ask its maker for one that is",
    ),
    (
        "CKR_GENERAL_ERROR",
        "look at the library's own log, its config file, and the daemon that it speaks to",
    ),
    (
        "CKR_FUNCTION_FAILED",
        "look at the library's own log, its config file, and the daemon that it speaks to",
    ),
];

/// The remedy that fits the code in the error's text.
pub(super) fn of(error: &SignError) -> Option<&'static str> {
    let code = |text: &str| {
        error
            .cause()
            .split(|sign: char| !(sign.is_ascii_alphanumeric() || sign == '_'))
            .any(|word| word == text)
    };
    REMEDIES
        .iter()
        .find(|(name, _)| code(name))
        .map(|(_, remedy)| *remedy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_remedy_fits_the_code_and_no_code_that_only_begins_like_it() {
        let of = |text: &str| super::of(&SignError::Lost(text.to_owned()));
        assert!(
            of("token \"a\": C_OpenSession returned CKR_SESSION_COUNT")
                .is_some_and(|remedy| remedy.contains("sessions"))
        );
        assert_eq!(
            (of("CKR_SESSION_COUNTED"), of("no code at all")),
            (None, None)
        );
    }
}
