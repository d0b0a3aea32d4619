//! A certificate that goes out again: what is kept of it meanwhile, and the durable row without
//! which it does not leave a second time.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::event::{Event, Proof, RowRef};
use super::open_intent::Issued;
use super::work::{Answer, Item, Work};
use super::{Ledger, gone, row_of};
use crate::evidence::{Evidence, RequestId};
use crate::refusal::Refusal;
use crate::timestamp::Timestamp;
use crate::x509::Serial;
use crate::x509::chain::IssuerChain;

/// What is kept of a workload's certificate, so that it can go out again: as little as an answer
/// needs. Only an `Issued` makes one.
#[derive(Debug)]
pub struct Remembered {
    certificate: Box<[u8]>,
    issuer: Arc<IssuerChain>,
    identity: String,
    serial: Serial,
    ends: Timestamp,
    intent: RowRef,
}

impl Remembered {
    /// Last second of its validity.
    pub fn ends(&self) -> Timestamp {
        self.ends
    }
}

impl Issued {
    /// What to keep of it; nothing of the daemon's own certificate, which nobody asks for twice.
    pub fn remembered(&self) -> Option<Remembered> {
        let draft = self.draft();
        Some(Remembered {
            certificate: self.certificate().der().into(),
            issuer: draft.issuer().clone(),
            identity: draft.identity()?.to_string(),
            serial: *draft.serial(),
            ends: draft.validity().1,
            intent: self.intent(),
        })
    }
}

/// A certificate that may leave once more: that it does is durable. Only `Ledger::repeat` makes
/// one.
#[derive(Clone, Debug)]
pub struct Repeated(Arc<Remembered>);

impl Repeated {
    /// The certificate, DER.
    pub fn certificate(&self) -> &[u8] {
        &self.0.certificate
    }

    /// The certificates of its issuer.
    pub fn issuer(&self) -> &IssuerChain {
        &self.0.issuer
    }

    /// Its serial number.
    pub fn serial(&self) -> &Serial {
        &self.0.serial
    }
}

impl Ledger {
    /// Records that a certificate goes to its identity again, on this evidence, and waits until
    /// that is durable.
    pub async fn repeat(
        &self,
        certificate: Arc<Remembered>,
        evidence: &Evidence,
        request: RequestId,
    ) -> Result<Repeated, Refusal> {
        self.file_repeat(
            certificate.intent,
            certificate.identity.clone(),
            evidence,
            request,
        )
        .await?;
        Ok(Repeated(certificate))
    }

    /// The row of `repeat`. It is recorded now or refused, and never later: nothing was signed that
    /// an outcome is owed for.
    pub(super) async fn file_repeat(
        &self,
        intent: RowRef,
        identity: String,
        evidence: &Evidence,
        request: RequestId,
    ) -> Result<(), Refusal> {
        self.accepting(self.clock.now())?;
        let (reply, answered) = oneshot::channel();
        let event = row_of(Event::Repeated {
            intent,
            identity,
            evidence: Proof::from(evidence),
        })?;
        let item = Item {
            event,
            request: Some(request),
            answer: Answer::Repeat(Some(reply)),
        };
        self.queue.send(Work::Record(item)).map_err(|_| gone())?;
        answered.await.unwrap_or_else(|_| Err(gone()))
    }
}
