//! What heals by itself, with no restart and no order: dead sessions under any name, libraries that
//! must be initialised anew, keys whose handles have moved, sessions that run short.

use std::time::Duration;

use crate::common::in_child;
use crate::faults::{pool, sign, signed, wait_until, whole};
use signers::{HealthState, KeyKind, PoolOptions, SignError, Signer, Vault, open_device, pkcs11};

#[test]
fn a_session_that_failed_in_an_unknown_way_is_not_used_again() {
    in_child(
        "healing::a_session_that_failed_in_an_unknown_way_is_not_used_again",
        "",
        |house| {
            let (signer, control) = (pool(house, 1), house.control());
            for code in ["0x80000001", "0x70", "0xA0"] {
                let (opened, logins) = (control.calls("C_OpenSession"), control.logins());
                control
                    .set(&format!("C_SignInit rv {code} count 1"))
                    .unwrap();
                let failure = sign(&signer).unwrap_err();
                assert!(
                    matches!(failure.error, SignError::Rejected(_)) && !failure.reached_device,
                    "{code}: {failure:?}"
                );
                signed(&signer);
                assert!(
                    control.calls("C_OpenSession") > opened,
                    "{code}: another session signs"
                );
                assert_eq!(control.logins(), logins, "{code}");
            }
        },
    );
}

#[test]
fn a_library_that_has_gone_stale_is_initialised_anew_and_nobody_restarts_anything() {
    in_child(
        "healing::a_library_that_has_gone_stale_is_initialised_anew_and_nobody_restarts_anything",
        "",
        |house| {
            let (signer, control) = (pool(house, 4), house.control());
            for code in ["0x32", "0x30", "5", "0x80000001"] {
                let finalized = control.calls("C_Finalize");
                control
                    .set(&format!("C_SignInit stale {code} count 1"))
                    .unwrap();
                wait_until("it was finalised and serves again", || {
                    let _ = sign(&signer);
                    control.calls("C_Finalize") > finalized && whole(&signer, 4)
                });
                signed(&signer);
            }
        },
    );
}

/// What libraries answer to C_Sign whose connection is broken behind open sessions:
/// CKR_GENERAL_ERROR, FUNCTION_FAILED, DEVICE_ERROR, DEVICE_MEMORY, DEVICE_REMOVED,
/// TOKEN_NOT_PRESENT, HOST_MEMORY, a vendor's.
const MUTE: [&str; 8] = ["5", "6", "0x30", "0x31", "0x32", "0xE0", "2", "0x80000001"];

#[test]
fn a_library_that_opens_sessions_and_signs_nothing_is_initialised_anew() {
    in_child(
        "healing::a_library_that_opens_sessions_and_signs_nothing_is_initialised_anew",
        "",
        |house| {
            let (signer, control) = (pool(house, 4), house.control());
            for code in MUTE {
                let (finalized, logins) = (control.calls("C_Finalize"), control.logins());
                control
                    .set(&format!("C_SignInit mute {code} count 1"))
                    .unwrap();
                assert!(sign(&signer).is_err(), "{code}");
                // One call was enough for it to be noticed.
                wait_until("it was finalised and every session signs", || {
                    control.calls("C_Finalize") > finalized && whole(&signer, 4)
                });
                (0..8).for_each(|_| signed(&signer));
                assert_eq!(
                    control.logins() - logins,
                    control.calls("C_Finalize") - finalized,
                    "{code}: one login a life"
                );
            }
        },
    );
}

#[test]
fn a_mute_library_whose_token_tells_no_public_key_is_initialised_anew() {
    in_child(
        "healing::a_mute_library_whose_token_tells_no_public_key_is_initialised_anew",
        "",
        |house| {
            house.token();
            let uri = house.key("issuing", KeyKind::P256);
            let expected = Some(open_device(&uri).unwrap().public_key().clone());
            house.pkcs11_tool(&["--delete-object", "--type", "pubkey", "--label", "issuing"]);
            let signer = Signer::start(
                uri,
                PoolOptions {
                    threads: 2,
                    expected,
                    ..PoolOptions::default()
                },
            )
            .unwrap();
            wait_until("every session is open", || whole(&signer, 2));
            let control = house.control();
            for code in MUTE {
                let finalized = control.calls("C_Finalize");
                control
                    .set(&format!("C_SignInit mute {code} count 1"))
                    .unwrap();
                assert!(sign(&signer).is_err(), "{code}");
                wait_until("it was finalised and every session signs", || {
                    control.calls("C_Finalize") > finalized && whole(&signer, 2)
                });
                (0..4).for_each(|_| signed(&signer));
            }
            let (opened, signatures) = (control.calls("C_OpenSession"), control.signed());
            control.set("C_SignInit close_sessions count 1").unwrap();
            let _ = sign(&signer);
            wait_until("every session is open again", || {
                control.calls("C_OpenSession") > opened && whole(&signer, 2)
            });
            assert!(
                control.signed() - signatures <= 4,
                "one signature proves a session's key and that it signs"
            );
        },
    );
}

#[test]
fn a_key_that_nobody_asks_does_not_keep_a_mute_library_from_being_initialised_anew() {
    in_child(
        "healing::a_key_that_nobody_asks_does_not_keep_a_mute_library_from_being_initialised_anew",
        "",
        |house| {
            house.token();
            let options = || PoolOptions {
                threads: 2,
                idle_check: Duration::from_millis(50),
                ..PoolOptions::default()
            };
            let [asked, idle] = ["asked", "idle"]
                .map(|name| Signer::start(house.key(name, KeyKind::P256), options()).unwrap());
            let control = house.control();
            control.set("C_SignInit mute 5 count 1").unwrap();
            assert!(sign(&asked).is_err());
            wait_until("both sign", || {
                control.calls("C_Finalize") > 0 && whole(&asked, 2) && whole(&idle, 2)
            });
            signed(&asked);
            signed(&idle);
        },
    );
}

#[test]
fn a_session_that_opens_and_does_not_sign_is_not_counted_as_open() {
    in_child(
        "healing::a_session_that_opens_and_does_not_sign_is_not_counted_as_open",
        "",
        |house| {
            let (signer, control) = (pool(house, 4), house.control());
            control
                .set("C_SignInit mute_for_good 0x30 count 1")
                .unwrap();
            assert!(sign(&signer).is_err());
            wait_until("it is lost without another job", || {
                signer.health().state == HealthState::Lost
            });
            assert!(
                signer.health().detail.contains("CKR_DEVICE_ERROR"),
                "{}",
                signer.health().detail
            );
            // Initialising it anew helps nothing: it stays lost, and every attempt has looked at a
            // signature.
            let finalized = control.calls("C_Finalize");
            wait_until("it was tried again", || {
                assert_eq!(signer.health().state, HealthState::Lost);
                control.calls("C_Finalize") > finalized + 1
            });
        },
    );
}

#[test]
fn a_session_that_signs_stays_when_another_does_not() {
    in_child(
        "healing::a_session_that_signs_stays_when_another_does_not",
        "",
        |house| {
            let (signer, control) = (pool(house, 2), house.control());
            // One job and the probe of the session in its place.
            control.set("C_Sign rv 0x31 count 2").unwrap();
            assert!(sign(&signer).is_err());
            wait_until("both are open", || {
                control.met("C_Sign") == 2 && whole(&signer, 2)
            });
            assert_eq!(control.calls("C_Finalize"), 0);
            signed(&signer);
        },
    );
}

#[test]
fn a_library_that_forgot_everything_is_initialised_again() {
    in_child(
        "healing::a_library_that_forgot_everything_is_initialised_again",
        "",
        |house| {
            let (signer, control) = (pool(house, 4), house.control());
            let initialized = control.calls("C_Initialize");
            control.set("C_SignInit forget count 1").unwrap();
            signed(&signer);
            wait_until("every session is open", || {
                signed(&signer);
                whole(&signer, 4)
            });
            assert_eq!(
                (
                    control.calls("C_Initialize") - initialized,
                    control.calls("C_Finalize")
                ),
                (1, 0)
            );
            // While it cannot be initialised, it is tried again and again.
            control
                .set("C_SignInit forget count 1\nC_Initialize rv 5")
                .unwrap();
            wait_until("it is lost", || {
                assert!(!sign(&signer).is_err_and(|failure| failure.reached_device));
                signer.health().state == HealthState::Lost
            });
            control.clear().unwrap();
            wait_until("every session is open", || whole(&signer, 4));
            signed(&signer);
        },
    );
}

#[test]
fn what_other_functions_say_of_a_pin_locks_nobody_out() {
    in_child(
        "healing::what_other_functions_say_of_a_pin_locks_nobody_out",
        "",
        |house| {
            let (signer, control) = (pool(house, 2), house.control());
            for rule in [
                "C_OpenSession rv 0xA4",
                "C_FindObjectsInit rv 0xA0",
                "C_GetTokenInfo rv 0xA0",
            ] {
                let logins = control.logins();
                control
                    .set(&format!("C_SignInit close_sessions count 1\n{rule}"))
                    .unwrap();
                wait_until("it is lost", || {
                    assert!(!sign(&signer).unwrap_err().reached_device, "{rule}");
                    signer.health().state == HealthState::Lost
                });
                control.clear().unwrap();
                wait_until("every session is open without an order", || {
                    whole(&signer, 2)
                });
                signed(&signer);
                assert_eq!(
                    control.logins() - logins,
                    1,
                    "{rule}: the one login that the lost sessions cost"
                );
            }
        },
    );
}

#[test]
fn a_key_whose_attributes_cannot_be_read_is_in_trouble_and_not_of_another_kind() {
    in_child(
        "healing::a_key_whose_attributes_cannot_be_read_is_in_trouble_and_not_of_another_kind",
        "",
        |house| {
            let (signer, control) = (pool(house, 1), house.control());
            for (code, name) in [
                ("0x30", "CKR_DEVICE_ERROR"),
                ("5", "CKR_GENERAL_ERROR"),
                ("0x80000001", "the vendor's code 0x80000001"),
            ] {
                control
                    .set(&format!(
                        "C_SignInit close_sessions count 1\nC_GetAttributeValue rv {code}"
                    ))
                    .unwrap();
                let failure = sign(&signer).unwrap_err();
                assert!(failure.to_string().contains(name), "{failure:?}");
                control.clear().unwrap();
                wait_until("it is ready again", || signer.health().is_ready());
                signed(&signer);
            }
        },
    );
}

#[test]
fn a_handle_that_came_to_name_another_key_is_found_again_after_one_wrong_signature() {
    in_child(
        "healing::a_handle_that_came_to_name_another_key_is_found_again_after_one_wrong_signature",
        "",
        |house| {
            let (signer, control) = (pool(house, 1), house.control());
            let uri = house.uri("other");
            let other = pkcs11::open_vault(&uri)
                .unwrap()
                .generate(&uri, KeyKind::P256)
                .unwrap();
            control
                .set(&format!(
                    "C_SignInit swap_handles {} count 1",
                    hex::encode(&other.id)
                ))
                .unwrap();
            // The session lives. The first bytes after it are signed by the other key, and nothing
            // but the signature tells.
            let wrong = sign(&signer).unwrap();
            assert!(!signer.public_key().verify(b"to be signed", &wrong.octets));
            assert!(
                other
                    .told_public_key(&uri)
                    .unwrap()
                    .verify(b"to be signed", &wrong.octets)
            );
            assert!(
                !signer.signature_was_wrong(&wrong),
                "there is no other token"
            );
            (0..8).for_each(|_| signed(&signer));
        },
    );
}

#[test]
fn bytes_that_one_try_may_have_signed_stay_so_when_the_next_provably_signs_nothing() {
    in_child(
        "healing::bytes_that_one_try_may_have_signed_stay_so_when_the_next_provably_signs_nothing",
        "",
        |house| {
            let (signer, control) = (pool(house, 1), house.control());
            // CKR_SESSION_CLOSED out of C_Sign, and CKR_DEVICE_REMOVED when the same bytes are
            // tried once more.
            control
                .set("C_Sign rv 0xB0 at 1\nC_SignInit rv 0x32 at 2")
                .unwrap();
            let failure = sign(&signer).unwrap_err();
            assert_eq!((control.met("C_Sign"), control.met("C_SignInit")), (1, 1));
            assert!(failure.reached_device, "{failure:?}");
            control.clear().unwrap();
            wait_until("it serves", || sign(&signer).is_ok());
        },
    );
}

#[test]
fn a_token_that_runs_short_of_sessions_serves_with_those_it_gives() {
    in_child(
        "healing::a_token_that_runs_short_of_sessions_serves_with_those_it_gives",
        "",
        |house| {
            house.token();
            let uri = house.key("issuing", KeyKind::P256);
            // One of the two keeps the login.
            house.control().set("C_OpenSession limit 2").unwrap();
            let signer = Signer::start(
                uri,
                PoolOptions {
                    threads: 4,
                    ..PoolOptions::default()
                },
            )
            .unwrap();
            wait_until("the others were refused", || {
                house.control().met("C_OpenSession") >= 5
            });
            assert_eq!(signer.health().open, 1);
            (0..20).for_each(|_| signed(&signer));
            // The one that serves loses its session: it or another gets the place back.
            house
                .control()
                .set("C_OpenSession limit 2\nC_SignInit logout count 1")
                .unwrap();
            wait_until("it serves", || sign(&signer).is_ok());
            house.control().clear().unwrap();
            wait_until("every session is open", || whole(&signer, 4));
        },
    );
}
