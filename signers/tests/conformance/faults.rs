//! What happens when a token misbehaves: SoftHSM behind the fault module.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::common::{House, PIN, in_child};
use signers::{
    HealthState, Job, KeyKind, PoolOptions, Purpose, SignError, SignFailure, Signature, Signer,
    Vault, pkcs11,
};

const PATIENCE: Duration = Duration::from_secs(60);

fn job(limit: Duration) -> Job {
    Job {
        purpose: Purpose::Leaf,
        deadline: Instant::now() + limit,
        message: b"to be signed".to_vec(),
    }
}

/// One for the whole process, as a daemon has it: what is left alone is probed there.
fn runtime() -> &'static tokio::runtime::Runtime {
    static RUNTIME: std::sync::OnceLock<tokio::runtime::Runtime> = std::sync::OnceLock::new();
    RUNTIME.get_or_init(|| {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_time()
            .build()
            .unwrap()
    })
}

pub(crate) fn sign(signer: &Signer) -> Result<Signature, SignFailure> {
    runtime().block_on(signer.sign(job(PATIENCE)))
}

pub(crate) fn signed(signer: &Signer) {
    let signature = sign(signer).unwrap();
    assert!(
        signer
            .public_key()
            .verify(b"to be signed", &signature.octets)
    );
}

pub(crate) fn wait_until(what: &str, is: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is() {
        assert!(Instant::now() < end, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// So many sessions are open, and none of its tokens is left alone.
pub(crate) fn whole(signer: &Signer, sessions: usize) -> bool {
    let health = signer.health();
    health.open == sessions && health.is_ready()
}

/// A token with one P-256 key and a pool of `threads` sessions, all open.
pub(crate) fn pool(house: &House, threads: usize) -> Signer {
    house.token();
    let uri = house.key("issuing", KeyKind::P256);
    let signer = Signer::start(
        uri,
        PoolOptions {
            threads,
            ..PoolOptions::default()
        },
    )
    .unwrap();
    wait_until("every session is open", || whole(&signer, threads));
    signer
}

#[test]
fn a_token_that_logged_us_out_is_logged_into_once_and_silently() {
    in_child(
        "faults::a_token_that_logged_us_out_is_logged_into_once_and_silently",
        "",
        |house| {
            let signer = pool(house, 4);
            let before = house.control().logins();
            house.control().set("C_SignInit logout count 1").unwrap();
            let runtime = runtime();
            runtime.block_on(async {
                let tasks: Vec<_> = (0..64)
                    .map(|_| {
                        let signer = signer.clone();
                        tokio::spawn(async move { signer.sign(job(PATIENCE)).await })
                    })
                    .collect();
                for task in tasks {
                    task.await.unwrap().unwrap();
                }
            });
            assert_eq!(house.control().logins() - before, 1);
        },
    );
}

#[test]
fn while_the_login_fails_jobs_fail_fast_and_it_recovers_by_itself() {
    in_child(
        "faults::while_the_login_fails_jobs_fail_fast_and_it_recovers_by_itself",
        "",
        |house| {
            let signer = pool(house, 2);
            // Login is refused because the token is away: not a refusal of the PIN, so it is tried
            // again.
            house
                .control()
                .set("C_SignInit logout count 1\nC_Login rv 0xE0")
                .unwrap();
            let first = sign(&signer).unwrap_err();
            assert!(
                matches!(first.error, SignError::Lost(_)) && !first.reached_device,
                "{first:?}"
            );
            wait_until("nobody has a session", || {
                let failure = sign(&signer).unwrap_err();
                assert!(
                    matches!(failure.error, SignError::Lost(_))
                        && !failure.reached_device
                        && !failure.deadline_passed,
                    "{failure:?}"
                );
                signer.health().state == HealthState::Lost
            });
            assert!(
                signer.health().detail.contains("CKR_TOKEN_NOT_PRESENT"),
                "{}",
                signer.health().detail
            );
            house.control().clear().unwrap();
            wait_until("it is ready again", || signer.health().is_ready());
            signed(&signer);
            wait_until("every session is open", || whole(&signer, 2));
        },
    );
}

#[test]
fn a_login_that_fails_in_an_unknown_way_costs_one_try() {
    in_child(
        "faults::a_login_that_fails_in_an_unknown_way_costs_one_try",
        "",
        |house| {
            let signer = pool(house, 2);
            // A vendor's code, CKR_FUNCTION_FAILED, CKR_GENERAL_ERROR: the token may have counted a
            // wrong PIN.
            for code in ["0x80000001", "6", "5"] {
                let before = house.control().logins();
                house
                    .control()
                    .set(&format!(
                        "C_SignInit close_sessions count 1\nC_Login rv {code}"
                    ))
                    .unwrap();
                wait_until("it is locked", || {
                    let failure = sign(&signer).unwrap_err();
                    assert!(
                        matches!(failure.error, SignError::Locked(_)) && !failure.reached_device,
                        "{code}: {failure:?}"
                    );
                    signer.health().state == HealthState::Locked
                });
                std::thread::sleep(Duration::from_millis(300));
                assert_eq!(house.control().logins() - before, 1, "{code}");
                house.control().clear().unwrap();
                signer.retry_login();
                wait_until("every session is open", || whole(&signer, 2));
                signed(&signer);
            }
        },
    );
}

#[test]
fn a_wrong_signature_is_the_last_of_its_session() {
    in_child(
        "faults::a_wrong_signature_is_the_last_of_its_session",
        "",
        |house| {
            let signer = pool(house, 1);
            house.control().set("C_Sign corrupt count 1").unwrap();
            let wrong = sign(&signer).unwrap();
            assert!(!signer.public_key().verify(b"to be signed", &wrong.octets));
            signer.signature_was_wrong(&wrong);
            signed(&signer);
            // The new session's key is looked at before it signs: a token that holds it no more is
            // not asked.
            for kind in ["privkey", "pubkey"] {
                house.pkcs11_tool(&["--delete-object", "--type", kind, "--label", "issuing"]);
            }
            signer.signature_was_wrong(&wrong);
            let failure = sign(&signer).unwrap_err();
            // Its session may have been opened anew, in vain, before the call came.
            assert!(
                matches!(failure.error, SignError::Rejected(_) | SignError::Lost(_))
                    && !failure.reached_device,
                "{failure:?}"
            );
            assert!(
                failure.to_string().contains("holds no private key"),
                "{failure:?}"
            );
            // The wrong one, the probe of the new session, and the good one.
            assert_eq!(house.control().signed(), 3);
        },
    );
}

#[test]
fn a_token_that_was_removed_is_used_again_when_it_returns() {
    in_child(
        "faults::a_token_that_was_removed_is_used_again_when_it_returns",
        "",
        |house| {
            let signer = pool(house, 2);
            house
                .control()
                .set("C_SignInit rv 0x32\nC_OpenSession rv 0xE0\nC_GetTokenInfo rv 0xE0")
                .unwrap();
            assert!(!sign(&signer).unwrap_err().reached_device);
            wait_until("nobody has a session", || {
                assert!(!sign(&signer).unwrap_err().reached_device);
                signer.health().state == HealthState::Lost
            });
            assert_eq!(house.control().signatures(), 0);
            house.control().clear().unwrap();
            wait_until("it is ready again", || signer.health().is_ready());
            signed(&signer);
        },
    );
}

#[test]
fn an_idle_pool_notices_that_its_sessions_are_gone() {
    in_child(
        "faults::an_idle_pool_notices_that_its_sessions_are_gone",
        "",
        |house| {
            house.token();
            let uri = house.key("issuing", KeyKind::P256);
            let options = PoolOptions {
                threads: 2,
                idle_check: Duration::from_millis(20),
                longest_pause: Duration::from_millis(50),
                ..PoolOptions::default()
            };
            let signer = Signer::start(uri, options).unwrap();
            house
                .control()
                .set("C_GetSessionInfo rv 0x32\nC_OpenSession rv 0xE0")
                .unwrap();
            wait_until("it is lost without a job", || {
                signer.health().state == HealthState::Lost
            });
            house.control().clear().unwrap();
            wait_until("it is ready again without a job", || whole(&signer, 2));
        },
    );
}

#[test]
fn an_error_inside_the_device_may_have_signed() {
    in_child(
        "faults::an_error_inside_the_device_may_have_signed",
        "",
        |house| {
            let signer = pool(house, 1);
            for rule in [
                "C_Sign rv 0x30 count 1",
                "C_Sign late_rv 0x30 count 1",
                "C_Sign rv 0x21 count 1",
                "C_Sign late_rv 0x80000001 count 1",
            ] {
                house.control().set(rule).unwrap();
                let failure = sign(&signer).unwrap_err();
                assert!(
                    failure.reached_device && !failure.deadline_passed,
                    "{rule}: {failure:?}"
                );
                wait_until("it is ready again", || signer.health().is_ready());
                signed(&signer);
            }
            // The two late ones, four probes and the four good ones; what a rule answered never
            // reached the device.
            assert_eq!(
                (house.control().signatures(), house.control().signed()),
                (10, 10)
            );
        },
    );
}

#[test]
fn a_lost_session_costs_no_second_signature() {
    in_child(
        "faults::a_lost_session_costs_no_second_signature",
        "",
        |house| {
            let signer = pool(house, 1);
            for (good, code) in [0x101u64, 0xB3, 0x60, 0x82, 0x91].into_iter().enumerate() {
                for function in ["C_SignInit", "C_Sign"] {
                    house
                        .control()
                        .set(&format!("{function} rv {code} count 1"))
                        .unwrap();
                    signed(&signer);
                }
                assert_eq!(house.control().signed(), 2 * (good as u64 + 1));
            }
            house.control().set("C_SignInit rv 0xB3 count 2").unwrap();
            let failure = sign(&signer).unwrap_err();
            assert!(
                matches!(failure.error, SignError::Lost(_)) && !failure.reached_device,
                "one retry and no more: {failure:?}"
            );
        },
    );
}

#[test]
fn a_full_queue_is_busy_and_a_caller_who_left_is_still_served() {
    in_child(
        "faults::a_full_queue_is_busy_and_a_caller_who_left_is_still_served",
        "",
        |house| {
            house.token();
            let uri = house.key("issuing", KeyKind::P256);
            let signer = Signer::start(
                uri,
                PoolOptions {
                    threads: 1,
                    queue: 3,
                    ..PoolOptions::default()
                },
            )
            .unwrap();
            house.control().set("C_Sign sleep_ms 2000 count 1").unwrap();
            runtime().block_on(async {
                let mut first = Box::pin(signer.sign(job(PATIENCE)));
                // Polled once: queued, then left to itself.
                assert!(
                    std::future::poll_fn(|context| std::task::Poll::Ready(
                        first.as_mut().poll(context).is_pending()
                    ))
                    .await
                );
                wait_until("the thread has taken it", || signer.health().queued == 0);
                let mut waiting: Vec<_> = (0..3)
                    .map(|_| Box::pin(signer.sign(job(PATIENCE))))
                    .collect();
                for future in &mut waiting {
                    assert!(
                        std::future::poll_fn(|context| std::task::Poll::Ready(
                            future.as_mut().poll(context).is_pending()
                        ))
                        .await
                    );
                }
                let fourth = signer.sign(job(PATIENCE)).await.unwrap_err();
                assert!(
                    matches!(fourth.error, SignError::Busy(_))
                        && !fourth.reached_device
                        && !fourth.deadline_passed,
                    "{fourth:?}"
                );
                drop((first, waiting));
            });
            wait_until("all four were signed", || house.control().signed() == 4);
            signed(&signer);
        },
    );
}

#[test]
fn another_key_under_the_same_name_is_not_used() {
    in_child(
        "faults::another_key_under_the_same_name_is_not_used",
        "",
        |house| {
            house.token();
            let named = signers::KeyUri::parse(
                &format!("{};id=%07", "pkcs11:token=ca;object=issuing"),
                &house.directory,
            );
            assert!(named.is_err(), "a URI without a module");
            let text = house
                .uri("issuing")
                .to_string()
                .replace("object=issuing", "object=issuing;id=%07");
            let uri = signers::KeyUri::parse(&text, &house.directory).unwrap();
            let mut vault = pkcs11::open_vault(&uri).unwrap();
            let right = vault.generate(&uri, KeyKind::P256).unwrap();
            let signer = Signer::start(
                uri.clone(),
                PoolOptions {
                    threads: 2,
                    longest_pause: Duration::from_millis(50),
                    ..PoolOptions::default()
                },
            )
            .unwrap();
            wait_until("every session is open", || whole(&signer, 2));

            house.pkcs11_tool(&["--delete-object", "--type", "privkey", "--id", "07"]);
            house.pkcs11_tool(&["--delete-object", "--type", "pubkey", "--id", "07"]);
            let wrong = vault.generate(&uri, KeyKind::P256).unwrap();
            assert_ne!(right.public_key, wrong.public_key);

            let failure = sign(&signer).unwrap_err();
            assert!(
                matches!(failure.error, SignError::WrongKey(_)) && !failure.reached_device,
                "{failure:?}"
            );
            wait_until("nobody has a session", || {
                assert!(sign(&signer).is_err());
                signer.health().state == HealthState::Lost
            });
            let detail = signer.health().detail;
            for facts in [right, wrong] {
                assert!(
                    detail.contains(&facts.told_public_key(&uri).unwrap().fingerprint()),
                    "{detail}"
                );
            }
            assert_eq!(house.control().signed(), 0);
        },
    );
}

#[test]
fn the_last_clone_takes_its_threads_along_and_the_login_stays() {
    in_child(
        "faults::the_last_clone_takes_its_threads_along_and_the_login_stays",
        "",
        |house| {
            let signer = pool(house, 3);
            let clone = signer.clone();
            drop(signer);
            signed(&clone);
            assert!(clone.stop());
            drop(clone);
            let before = house.control().logins();
            let again = Signer::start(house.uri("issuing"), PoolOptions::default()).unwrap();
            signed(&again);
            assert_eq!(
                house.control().logins(),
                before,
                "the anchor session keeps the login"
            );
        },
    );
}

#[test]
fn an_unreadable_pin_file_is_not_a_wrong_pin() {
    in_child(
        "faults::an_unreadable_pin_file_is_not_a_wrong_pin",
        "",
        |house| {
            let signer = Arc::new(pool(house, 2));
            std::fs::remove_file(house.pin_file()).unwrap();
            house.control().set("C_SignInit logout count 1").unwrap();
            let failure = sign(&signer).unwrap_err();
            assert!(
                failure.to_string().contains("user.pin") && !failure.reached_device,
                "{failure:?}"
            );
            house.write_pin(PIN);
            wait_until("it is ready again without being asked", || {
                whole(&signer, 2)
            });
            signed(&signer);
        },
    );
}

#[test]
fn a_signature_is_one_call_of_c_sign() {
    in_child("faults::a_signature_is_one_call_of_c_sign", "", |house| {
        house.token();
        for kind in [
            KeyKind::P256,
            KeyKind::P384,
            KeyKind::Rsa2048,
            KeyKind::Rsa4096,
        ] {
            let signer = Signer::start(
                house.key(&kind.to_string(), kind),
                PoolOptions {
                    threads: 1,
                    ..PoolOptions::default()
                },
            )
            .unwrap();
            let before = house.control().calls("C_Sign");
            signed(&signer);
            assert_eq!(
                (
                    house.control().calls("C_Sign") - before,
                    house.control().lengths()
                ),
                (1, 0),
                "{kind}"
            );
        }
    });
}

/// CKF_USER_PIN_FINAL_TRY.
const LAST_TRY: &str = "C_GetTokenInfo flags 0x20000";

#[test]
fn the_last_try_of_a_pin_is_not_made_without_an_order() {
    in_child(
        "faults::the_last_try_of_a_pin_is_not_made_without_an_order",
        "",
        |house| {
            let signer = pool(house, 2);
            let logins = house.control().logins();
            house
                .control()
                .set(&format!("{LAST_TRY}\nC_SignInit logout count 1"))
                .unwrap();
            wait_until("it is locked", || {
                let failure = sign(&signer).unwrap_err();
                assert!(
                    matches!(failure.error, SignError::Locked(_)) && !failure.reached_device,
                    "{failure:?}"
                );
                signer.health().state == HealthState::Locked
            });
            assert!(
                signer.health().detail.contains("CKF_USER_PIN_FINAL_TRY"),
                "{}",
                signer.health().detail
            );
            // Neither time nor another start is an order.
            let another = Signer::start(house.uri("issuing"), PoolOptions::default()).map(drop);
            assert!(matches!(another, Err(SignError::Locked(_))), "{another:?}");
            assert_eq!(house.control().logins(), logins, "no PIN was tried");
            signer.retry_login();
            wait_until("every session is open", || whole(&signer, 2));
            assert_eq!(
                house.control().logins() - logins,
                1,
                "an operator has ordered one"
            );
            signed(&signer);
        },
    );
}
