//! A CA's certificates and the signer of its key. The only room that asks a `Signer` for anything, and only for a `Recorded<Draft>`:
//! what is not in the ledger cannot be signed.

use std::sync::Arc;
use std::time::Instant;

use signers::{Job, Pace, SignError, SignFailure, Signer};

use crate::refusal::{Reason, Refusal};
use crate::store::ledger::{Recorded, Signed, Unsigned};
use crate::x509::chain::IssuerChain;
use crate::x509::template::Draft;

/// One issuer. A retiring one has no signer: its roots stay in the bundle, and nothing else of it is used.
#[derive(Clone, Debug)]
pub struct Issuer {
    /// Its certificates.
    pub chain: Arc<IssuerChain>,
    /// The key's signer; `None` when retiring.
    pub signer: Option<Signer>,
    /// What the signer was started with, so that a reload keeps one that would be started just the same.
    pub started_with: Arc<str>,
}

/// The issuers of one snapshot, in the config's order.
#[derive(Clone, Debug)]
pub struct Issuers(pub Vec<Issuer>);

impl Issuers {
    /// How fast an issuer's device signs. Of one that does not sign nothing is known.
    pub fn pace(&self, id: &str) -> Pace {
        let signer = self.0.iter().find(|issuer| issuer.chain.id() == id).and_then(|issuer| issuer.signer.as_ref());
        signer.map_or(Pace { sessions: 1, per_signature: None }, Signer::pace)
    }

    /// Signs a recorded draft with the key of its issuer and checks the signature with the issuer's certificate.
    pub async fn sign(&self, recorded: Recorded<Draft>, deadline: Instant) -> Result<Signed, Unsigned> {
        let id = recorded.draft().issuer_id();
        let Some(signer) = self.0.iter().find(|issuer| issuer.chain.id() == id).and_then(|issuer| issuer.signer.as_ref()) else {
            let refusal = Refusal::new(Reason::Internal, format_args!("issuer {id} has no signer"));
            return Err(recorded.failed(refusal));
        };
        let job = Job { purpose: recorded.draft().purpose(), deadline, message: recorded.draft().to_be_signed().to_vec() };
        match signer.sign(job).await {
            Ok(signature) => match recorded.draft().complete(signature) {
                Ok(certificate) => recorded.signed(certificate),
                Err(error) => {
                    // A handle that came to name another key would go on to sign with it.
                    signer.signature_was_wrong();
                    Err(recorded.unknown(Refusal::new(Reason::Internal, error)))
                }
            },
            Err(failure) if failure.reached_device => Err(recorded.unknown(refusal(&failure))),
            Err(failure) => Err(recorded.failed(refusal(&failure))),
        }
    }
}

fn refusal(failure: &SignFailure) -> Refusal {
    let reason = match failure.error {
        _ if failure.deadline_passed => Reason::Deadline,
        SignError::Busy(_) => Reason::Overloaded,
        SignError::Lost(_) => Reason::DeviceDown,
        SignError::Locked(_) | SignError::Rejected(_) => Reason::DeviceRefused,
        SignError::Forbidden(_) => Reason::GuardRefused,
        SignError::Stopped => Reason::Stopping,
    };
    Refusal::new(reason, failure)
}
