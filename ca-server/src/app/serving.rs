//! Keeps the daemon's own serving certificate fresh: issued by its own issuer through the pipeline,
//! recorded like any other, renewed at half life, and swapped with no connection dropped.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair};
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use super::Daemon;
use crate::issue::fresh_request_id;
use crate::refusal::{Reason, Refusal};
use crate::timestamp::Timestamp;
use crate::x509::subject_key::SubjectKey;

/// The wall clock may jump, so the half life is compared with it this often.
const LOOK_EVERY: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// NotAfter of the certificate in force, for readiness.
#[derive(Debug, Default)]
pub(super) struct Ends(AtomicI64);

impl Ends {
    pub(super) fn get(&self) -> Timestamp {
        Timestamp::from_micros(self.0.load(Ordering::Relaxed))
    }
}

/// Issues, waits for half life or a reload, and issues again; for the life of the daemon.
pub(super) async fn keep_fresh(daemon: Arc<Daemon>) {
    let mut pause = Duration::from_millis(250);
    loop {
        match renew(&daemon).await {
            Ok(half_life) => {
                pause = Duration::from_millis(250);
                wait(&daemon, half_life).await;
            }
            Err(refusal) => {
                tracing::warn!(
                    reason = refusal.reason().as_str(),
                    detail = refusal.detail(),
                    "the serving certificate cannot be renewed now"
                );
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }
}

async fn wait(daemon: &Daemon, half_life: Timestamp) {
    while daemon.clock.now() < half_life {
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY.min(half_life.since(daemon.clock.now()))) => {}
            () = daemon.renew.notified() => return,
        }
    }
}

/// One serving certificate, with a fresh key that never leaves this process. Returns when to renew
/// it.
async fn renew(daemon: &Daemon) -> Result<Timestamp, Refusal> {
    let internal = |error: &dyn std::fmt::Display| {
        Refusal::new(Reason::Internal, format_args!("serving key: {error}"))
    };
    let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING)
        .map_err(|error| internal(&error))?;
    let spki: PublicKeyX509Der<'_> = key
        .public_key()
        .as_der()
        .map_err(|error| internal(&error))?;
    let subject_key = SubjectKey::from_spki(spki.as_ref()).map_err(|error| internal(&error))?;
    let pkcs8 = key.to_pkcs8v1().map_err(|error| internal(&error))?;
    let pkcs8 = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pkcs8.as_ref().to_vec()));
    let signing_key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&pkcs8)
        .map_err(|error| internal(&error))?;

    let now = daemon.clock.now();
    let deadline = Instant::now() + daemon.call_timeout;
    let issued = daemon
        .pipeline
        .issue_serving(&daemon.names, subject_key, fresh_request_id(now), deadline)
        .await?;
    let (certificate, draft) = (issued.certificate(), issued.draft());
    let above = draft
        .issuer()
        .intermediates()
        .iter()
        .map(|der| CertificateDer::from(der.clone()));
    let chain = std::iter::once(CertificateDer::from(certificate.der().to_vec()))
        .chain(above)
        .collect();
    daemon.serving.swap(CertifiedKey::new(chain, signing_key));
    let ends = draft.validity().1;
    daemon
        .serving_ends
        .0
        .store(ends.micros(), Ordering::Relaxed);
    daemon.metrics.serving_ends(ends);
    tracing::info!(serial = %draft.serial(), %ends, "serving certificate in force");
    Ok(now.plus(ends.since(now) / 2))
}
