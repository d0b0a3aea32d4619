//! Libraries whose connection to their device broke behind open sessions: everything goes well but
//! C_Sign. tpm2-pkcs11 is one, when its broker is started again. Health is whether a token signs,
//! wherever its library is loaded, and what does not sign is renewed without anybody's help.

use std::time::{Duration, Instant};

use softhsm_tests::daemon::Setup;
use softhsm_tests::{Ask, Csr, TestCa, tell};
use tonic::Code;

use crate::devices::signer_detail;
use crate::signer_process::signer_processes;
use crate::signer_service::{Service, by_service, material};

/// CKR_GENERAL_ERROR, FUNCTION_FAILED, DEVICE_ERROR, DEVICE_MEMORY, TOKEN_NOT_PRESENT, and a
/// vendor's.
const CODES: [u64; 6] = [0x05, 0x06, 0x30, 0x31, 0xE0, 0x8000_0001];

/// The limit on how long a token may stay unused.
const RECOVERY: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Where {
    /// In the daemon: the library is finalised and initialised.
    Thread,
    /// In a child of the daemon: it is killed and another started.
    Process,
    /// In a service: it ends, and whoever runs it starts it again.
    Service,
}

impl Where {
    /// A fault that only the remedy of this place mends.
    fn fault(self) -> &'static str {
        match self {
            Self::Thread => "mute",
            Self::Process | Self::Service => "mute_for_good",
        }
    }
}

/// The longest time without a certificate.
async fn renewed(place: Where) -> Duration {
    let faults = Setup::default().with_faults();
    let (ca, mut service) = match place {
        Where::Thread => (TestCa::start_with(faults.on_threads()).await, None),
        Where::Process => (TestCa::start_with(faults).await, None),
        Where::Service => {
            let mut ca = material(by_service().with_faults());
            let service = Service::start(&ca.material);
            ca.restart().await;
            (ca, Some(service))
        }
    };
    let (ask, faults, pid) = (Ask::bearer(&ca.token()), ca.faults(), ca.pid());
    let mut longest = Duration::ZERO;
    for code in CODES {
        let (finalized, child) = (faults.calls("C_Finalize"), signer_processes(&ca));
        ca.command_faults(&format!("C_SignInit {} {code:#x} once", place.fault()));
        let begun = Instant::now();
        let status = ca
            .call(&Csr::demo().pem, &ask)
            .await
            .expect_err("the device signs nothing");
        assert_eq!(
            status.code(),
            Code::Unavailable,
            "{place:?} {code:#x}: {status}"
        );
        if place != Where::Thread {
            ca.until("not ready", || async {
                ca.get("/healthz/ready").await.0 == 503
            })
            .await;
        }
        loop {
            assert!(
                begun.elapsed() < 2 * RECOVERY,
                "{place:?} {code:#x}: {}\n{}",
                signer_detail(&ca).await,
                ca.log_text()
            );
            if let Some(service) = &mut service
                && let Some(status) = service.ended()
            {
                assert_eq!(status.code(), Some(3), "{}", service.log_text());
                service.begin();
            }
            match ca.call(&Csr::demo().pem, &ask).await {
                Ok(_) => break,
                Err(status) => assert_eq!(
                    status.code(),
                    Code::Unavailable,
                    "{place:?} {code:#x}: {status}"
                ),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(
            begun.elapsed() < RECOVERY,
            "{place:?} {code:#x}: {:?}\n{}",
            begun.elapsed(),
            ca.log_text()
        );
        longest = longest.max(begun.elapsed());
        ca.until("whole", || async {
            signer_detail(&ca)
                .await
                .starts_with("healthy: 4 of 4 sessions open")
        })
        .await;
        match place {
            Where::Thread => assert!(faults.calls("C_Finalize") > finalized, "{code:#x}"),
            Where::Process => assert_ne!(signer_processes(&ca), child, "{code:#x}"),
            Where::Service => {}
        }
        assert_eq!(ca.pid(), pid);
    }
    let ledger = ca.check();
    assert_eq!(ca.open_intents(&ledger), 0);
    longest
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_library_that_opens_sessions_and_signs_nothing_is_renewed_wherever_it_is_loaded() {
    let (thread, process, service) = tokio::join!(
        renewed(Where::Thread),
        renewed(Where::Process),
        renewed(Where::Service)
    );
    tell(&format!(
        "a library that opened sessions and signed nothing, {} codes: without a certificate at most {} ms on threads, {} ms in a process, {} ms in a service",
        CODES.len(),
        thread.as_millis(),
        process.as_millis(),
        service.as_millis()
    ));
}
