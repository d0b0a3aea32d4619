//! What the commands do to a caller, each in a process of its own with an empty SoftHSM behind the
//! module: variables of the environment are process-wide, and some commands end the process.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::slot::Slot;
use pkcs11_fault::Control;

const CHILD: &str = "PKCS11_FAULT_TEST";
const PIN: &str = "canary-13579";
const DIGEST: [u8; 32] = [7; 32];
/// Far beyond what anything here takes: reached only by a failure.
const PATIENCE: Duration = Duration::from_secs(60);

/// This test alone, in another process.
fn spawn(test: &str, directory: &Path) -> Child {
    let softhsm = [
        "/usr/lib/softhsm",
        "/usr/lib/x86_64-linux-gnu/softhsm",
        "/usr/lib/aarch64-linux-gnu/softhsm",
        "/usr/lib64",
        "/usr/lib64/pkcs11",
    ]
    .map(|place| PathBuf::from(place).join("libsofthsm2.so"))
    .into_iter()
    .find(|path| path.is_file())
    .expect("SoftHSM 2 is not installed (package libsofthsm2)");
    let (tokens, faults) = (directory.join("tokens"), directory.join("faults"));
    fs::create_dir_all(&tokens).unwrap();
    fs::create_dir_all(&faults).unwrap();
    let config = directory.join("softhsm2.conf");
    fs::write(
        &config,
        format!(
            "directories.tokendir = {}\nobjectstore.backend = file\nlog.level = ERROR\n",
            tokens.display()
        ),
    )
    .unwrap();
    Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env(CHILD, directory)
        .env("SOFTHSM2_CONF", &config)
        .env("PKCS11_FAULT_MODULE", softhsm)
        .env("PKCS11_FAULT_DIR", &faults)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Runs `case` in a process of its own, which must end well.
fn in_child(test: &str, case: impl FnOnce(&Caller)) {
    if let Some(directory) = std::env::var_os(CHILD) {
        return case(&Caller::new(Path::new(&directory)));
    }
    let directory = tempfile::tempdir().unwrap();
    let output = spawn(test, directory.path()).wait_with_output().unwrap();
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(
        output.status.success() && out.contains("1 passed"),
        "{}\n{out}\n{err}",
        output.status
    );
}

/// A process that uses a token with one key `a`, and its hand on the faults.
struct Caller {
    module: Pkcs11,
    slot: Slot,
    control: Control,
}

fn initialize(module: &Pkcs11) -> Result<(), Error> {
    module.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK))
}

impl Caller {
    fn new(directory: &Path) -> Self {
        let module = Pkcs11::new(pkcs11_fault::library().unwrap()).unwrap();
        initialize(&module).unwrap();
        let slot = module.get_slots_with_token().unwrap()[0];
        module.init_token(slot, &"so-12345".into(), "ca").unwrap();
        let session = module.open_rw_session(slot).unwrap();
        session
            .login(UserType::So, Some(&"so-12345".into()))
            .unwrap();
        session.init_pin(&PIN.into()).unwrap();
        session.logout().unwrap();
        drop(session);
        // SoftHSM gives an initialised token another slot.
        let slot = module.get_slots_with_initialized_token().unwrap()[0];
        let caller = Self {
            module,
            slot,
            control: Control::new(directory.join("faults")),
        };
        caller.generate(b"a");
        caller
    }

    fn log_in(&self) -> Session {
        let session = self.module.open_rw_session(self.slot).unwrap();
        session.login(UserType::User, Some(&PIN.into())).unwrap();
        session
    }

    fn generate(&self, id: &[u8]) {
        // CKA_EC_PARAMS of P-256.
        let curve = Attribute::EcParams(vec![
            0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07,
        ]);
        let names = [Attribute::Token(true), Attribute::Id(id.to_vec())];
        let public = [&names[..], &[curve, Attribute::Verify(true)]].concat();
        let private = [&names[..], &[Attribute::Sign(true)]].concat();
        self.log_in()
            .generate_key_pair(&Mechanism::EccKeyPairGen, &public, &private)
            .unwrap();
    }
}

fn find(session: &Session, class: ObjectClass, id: &[u8]) -> ObjectHandle {
    session
        .find_objects(&[Attribute::Class(class), Attribute::Id(id.to_vec())])
        .unwrap()[0]
}

fn sign(session: &Session, key: ObjectHandle) -> Result<Vec<u8>, Error> {
    session.sign(&Mechanism::Ecdsa, key, &DIGEST)
}

/// Whether the private key of this id made the signature.
fn made_by(session: &Session, id: &[u8], signature: &[u8]) -> bool {
    session
        .verify(
            &Mechanism::Ecdsa,
            find(session, ObjectClass::PUBLIC_KEY, id),
            &DIGEST,
            signature,
        )
        .is_ok()
}

fn assert_rv<T: std::fmt::Debug>(result: Result<T, Error>, expected: RvError) {
    assert!(
        matches!(&result, Err(Error::Pkcs11(rv, _)) if *rv == expected),
        "{result:?} and not {expected:?}"
    );
}

#[test]
fn calls_and_met_rules_are_counted_for_each_function() {
    in_child(
        "calls_and_met_rules_are_counted_for_each_function",
        |caller| {
            let (session, control) = (caller.log_in(), &caller.control);
            let key = find(&session, ObjectClass::PRIVATE_KEY, b"a");
            let (calls, logins) = (control.calls("C_SignInit"), control.logins());
            control.set("C_SignInit rv 0x30 at 2").unwrap();
            assert_eq!(sign(&session, key).unwrap().len(), 64);
            assert_rv(sign(&session, key), RvError::DeviceError);
            sign(&session, key).unwrap();
            assert_eq!(
                (
                    control.calls("C_SignInit") - calls,
                    control.met("C_SignInit")
                ),
                (3, 1)
            );
            assert_eq!(
                (
                    control.signed(),
                    control.calls("C_Sign"),
                    control.met("C_Sign")
                ),
                (2, 2, 0)
            );
            assert_rv(
                session.login(UserType::User, Some(&"wrong".into())),
                RvError::UserAlreadyLoggedIn,
            );
            assert_eq!(control.logins() - logins, 1);
        },
    );
}

#[test]
fn a_swapped_handle_signs_with_the_other_key_until_it_is_found_again() {
    in_child(
        "a_swapped_handle_signs_with_the_other_key_until_it_is_found_again",
        |caller| {
            caller.generate(b"b");
            let session = caller.log_in();
            let key = find(&session, ObjectClass::PRIVATE_KEY, b"a");
            caller
                .control
                .set("C_SignInit swap_handles 62 count 1")
                .unwrap();
            for _ in 0..2 {
                let signature = sign(&session, key).unwrap();
                assert!(
                    made_by(&session, b"b", &signature) && !made_by(&session, b"a", &signature)
                );
            }
            let again = find(&session, ObjectClass::PRIVATE_KEY, b"a");
            assert!(again != key && made_by(&session, b"a", &sign(&session, again).unwrap()));
        },
    );
}

#[test]
fn a_signature_can_come_short() {
    in_child("a_signature_can_come_short", |caller| {
        let session = caller.log_in();
        let key = find(&session, ObjectClass::PRIVATE_KEY, b"a");
        caller.control.set("C_Sign short 2 count 1").unwrap();
        assert_eq!(
            (
                sign(&session, key).unwrap().len(),
                sign(&session, key).unwrap().len()
            ),
            (62, 64)
        );
    });
}

#[test]
fn a_removed_token_is_gone_with_its_sessions_and_comes_back_without_them() {
    in_child(
        "a_removed_token_is_gone_with_its_sessions_and_comes_back_without_them",
        |caller| {
            let session = caller.log_in();
            caller.control.set("token removed").unwrap();
            assert!(caller.module.get_slots_with_token().unwrap().is_empty());
            assert_rv(
                caller.module.get_token_info(caller.slot),
                RvError::TokenNotPresent,
            );
            assert_rv(
                caller.module.open_ro_session(caller.slot),
                RvError::TokenNotPresent,
            );
            assert_rv(session.get_session_info(), RvError::DeviceRemoved);
            caller.control.clear().unwrap();
            assert_rv(session.get_session_info(), RvError::SessionHandleInvalid);
            caller.log_in();
        },
    );
}

#[test]
fn slots_and_sessions_can_be_withheld() {
    in_child("slots_and_sessions_can_be_withheld", |caller| {
        caller
            .control
            .set("C_GetSlotList no_slots\nC_OpenSession limit 2")
            .unwrap();
        assert!(caller.module.get_slots_with_token().unwrap().is_empty());
        let (one, _other) = (
            caller.module.open_ro_session(caller.slot).unwrap(),
            caller.module.open_ro_session(caller.slot).unwrap(),
        );
        assert_rv(
            caller.module.open_ro_session(caller.slot),
            RvError::SessionCount,
        );
        one.close().unwrap();
        let again = caller.module.open_ro_session(caller.slot).unwrap();
        assert_rv(
            caller.module.open_ro_session(caller.slot),
            RvError::SessionCount,
        );
        drop(again);
    });
}

#[test]
fn a_library_can_forget_that_it_was_initialised() {
    in_child("a_library_can_forget_that_it_was_initialised", |caller| {
        let session = caller.log_in();
        caller
            .control
            .set("C_GetSessionInfo forget count 1")
            .unwrap();
        assert_rv(session.get_session_info(), RvError::CryptokiNotInitialized);
        assert_rv(
            caller.module.get_slots_with_token(),
            RvError::CryptokiNotInitialized,
        );
        initialize(&caller.module).unwrap();
        assert_rv(session.get_session_info(), RvError::SessionHandleInvalid);
        caller.log_in();
    });
}

#[test]
fn a_stale_library_wants_to_be_finalised() {
    in_child("a_stale_library_wants_to_be_finalised", |caller| {
        let session = caller.log_in();
        caller
            .control
            .set("C_GetSessionInfo stale 0x32 count 1")
            .unwrap();
        assert_rv(session.get_session_info(), RvError::DeviceRemoved);
        caller.control.clear().unwrap();
        assert_rv(caller.module.get_slots_with_token(), RvError::DeviceRemoved);
        assert_rv(
            initialize(&caller.module),
            RvError::CryptokiAlreadyInitialized,
        );
        assert_rv(caller.module.get_slots_with_token(), RvError::DeviceRemoved);
        std::mem::forget(session);
        caller.module.clone().finalize().unwrap();
        initialize(&caller.module).unwrap();
        let slot = caller.module.get_slots_with_initialized_token().unwrap()[0];
        caller
            .module
            .open_ro_session(slot)
            .unwrap()
            .login(UserType::User, Some(&PIN.into()))
            .unwrap();
    });
}

/// A process whose next C_GetSlotList is `rule`d; it says "lived" if that returns.
fn doomed(test: &str, rule: &str) -> (tempfile::TempDir, Child) {
    let directory = tempfile::tempdir().unwrap();
    fs::create_dir_all(directory.path().join("faults")).unwrap();
    fs::write(directory.path().join("rule"), rule).unwrap();
    let child = spawn(test, directory.path());
    (directory, child)
}

/// The other side of it.
fn meets_its_doom() -> bool {
    let Some(directory) = std::env::var_os(CHILD).map(PathBuf::from) else {
        return false;
    };
    let caller = Caller::new(&directory);
    caller
        .control
        .set(&fs::read_to_string(directory.join("rule")).unwrap())
        .unwrap();
    let _ = caller.module.get_slots_with_token();
    println!("lived");
    true
}

#[test]
fn a_process_can_be_made_to_abort_or_to_touch_memory_that_is_not_there() {
    const TEST: &str = "a_process_can_be_made_to_abort_or_to_touch_memory_that_is_not_there";
    if meets_its_doom() {
        return;
    }
    for (rule, signal) in [("C_GetSlotList abort", 6), ("C_GetSlotList segfault", 11)] {
        let (directory, child) = doomed(TEST, rule);
        let output = child.wait_with_output().unwrap();
        let said =
            String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert_eq!(
            output.status.signal(),
            Some(signal),
            "{rule}: {}\n{said}",
            output.status
        );
        assert!(!said.contains("lived"), "{said}");
        assert_eq!(
            Control::new(directory.path().join("faults")).met("C_GetSlotList"),
            1,
            "counted before it dies"
        );
    }
}

#[test]
fn a_hanging_call_ends_with_its_process_alone() {
    if meets_its_doom() {
        return;
    }
    let (directory, mut child) = doomed(
        "a_hanging_call_ends_with_its_process_alone",
        "C_GetSlotList hang",
    );
    let control = Control::new(directory.path().join("faults"));
    let begun = Instant::now();
    while control.met("C_GetSlotList") == 0 {
        assert!(
            begun.elapsed() < PATIENCE && child.try_wait().unwrap().is_none(),
            "it never hung"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
    control.clear().unwrap();
    assert_eq!(
        child.try_wait().unwrap(),
        None,
        "the end of the rule does not free it"
    );
    child.kill().unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.signal(), Some(9));
    assert!(!String::from_utf8_lossy(&output.stdout).contains("lived"));
}
