//! The values that prove the order of an issuance: an intent that is durable (`Recorded`), what
//! became of it (`Signed`, `Unsigned`), and a certificate whose outcome is durable (`Issued`). Each
//! has one maker. Whatever is dropped on the way is filed *unknown*, through a place that was
//! reserved when the intent was opened.

use super::event::{Event, Intent, RowRef, Why};
use super::work::OpenIntent;
use crate::evidence::Evidence;
use crate::refusal::{Reason, Refusal};
use crate::timestamp::Period;
use crate::x509::Serial;
use crate::x509::template::{Certificate, Draft};

/// A draft whose intent is durable: the only thing an issuer signs. Dropped, its intent is filed
/// *unknown*.
#[derive(Debug)]
pub struct Recorded<T = Draft> {
    pub(super) draft: T,
    pub(super) intent: OpenIntent,
}

impl<T> Recorded<T> {
    /// What is to be signed.
    pub fn draft(&self) -> &T {
        &self.draft
    }

    /// The intent's row.
    pub fn intent(&self) -> RowRef {
        self.intent.row()
    }

    /// The bytes provably reached no device.
    pub fn failed(self, refusal: Refusal) -> Unsigned {
        Unsigned {
            intent: self.intent,
            refusal,
            reached_device: false,
        }
    }

    /// A signature may exist; none will be released.
    pub fn unknown(self, refusal: Refusal) -> Unsigned {
        Unsigned {
            intent: self.intent,
            refusal,
            reached_device: true,
        }
    }
}

impl Recorded<Draft> {
    /// The draft as a certificate. One whose to-be-signed bytes are not the draft's is withheld as
    /// *unknown*.
    #[allow(
        clippy::result_large_err,
        reason = "what comes back is moved on, not handed up a stack"
    )]
    pub fn signed(self, certificate: Certificate) -> Result<Signed, Unsigned> {
        if certificate.to_be_signed() != self.draft.to_be_signed() {
            return Err(self.unknown(Refusal::new(
                Reason::Internal,
                "the certificate is not the one that was recorded",
            )));
        }
        Ok(Signed {
            draft: self.draft,
            certificate,
            intent: self.intent,
        })
    }
}

/// A certificate that exists and must not leave before its outcome is durable.
#[derive(Debug)]
pub struct Signed {
    draft: Draft,
    certificate: Certificate,
    intent: OpenIntent,
}

impl Signed {
    pub(super) fn into_parts(self) -> (OpenIntent, Event, Issued) {
        let event = Event::Issued {
            intent: self.intent.row(),
            signature: self.certificate.signature().to_vec(),
            certificate: self.certificate.sha256(),
        };
        let intent = self.intent.row();
        (
            self.intent,
            event,
            Issued {
                draft: self.draft,
                certificate: self.certificate,
                intent,
            },
        )
    }
}

/// An intent that ends without a certificate, and why.
#[derive(Debug)]
pub struct Unsigned {
    intent: OpenIntent,
    refusal: Refusal,
    reached_device: bool,
}

impl Unsigned {
    /// Why there is no certificate.
    pub fn refusal(&self) -> &Refusal {
        &self.refusal
    }

    pub(super) fn into_parts(self) -> (OpenIntent, Event, Refusal) {
        let (intent, why) = (self.intent.row(), Why::from(&self.refusal));
        let event = if self.reached_device {
            Event::Unknown { intent, why }
        } else {
            Event::Failed { intent, why }
        };
        (self.intent, event, self.refusal)
    }
}

/// A certificate whose intent and outcome are both durable: the only thing that may be released.
#[derive(Debug)]
pub struct Issued {
    draft: Draft,
    certificate: Certificate,
    intent: RowRef,
}

impl Issued {
    /// The certificate.
    pub fn certificate(&self) -> &Certificate {
        &self.certificate
    }

    /// What it was drafted from.
    pub fn draft(&self) -> &Draft {
        &self.draft
    }

    /// Its serial number.
    pub fn serial(&self) -> &Serial {
        self.draft.serial()
    }

    /// Its intent's row.
    pub(super) fn intent(&self) -> RowRef {
        self.intent
    }
}

/// Why no intent was recorded. Nothing may be signed.
#[derive(Debug)]
pub enum NotOpened<T = Draft> {
    /// The ledger has moved to this period; draft again with a serial of it.
    PeriodMoved(Box<T>, Period),
    /// It cannot be recorded.
    Refused(Refusal),
}

/// The intent row of a draft.
pub(super) fn intent_of(draft: &Draft, evidence: &Evidence) -> Intent {
    Intent {
        purpose: draft.purpose().as_str().into(),
        serial: draft.serial().as_bytes().to_vec(),
        identity: draft.identity().map(ToString::to_string),
        issuer: draft.issuer_id().into(),
        profile: *draft.profile(),
        evidence: evidence.into(),
        to_be_signed: draft.to_be_signed().to_vec(),
    }
}
