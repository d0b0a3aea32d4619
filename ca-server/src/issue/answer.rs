//! What a call gets that succeeds. Both of its kinds are made by the ledger alone, once a row is
//! durable.

use std::sync::Arc;

use crate::authn::Caller;
use crate::store::ledger::{Issued, Repeated};
use crate::x509::pem;

/// A recorded certificate and the roots to send with it.
#[derive(Debug)]
pub struct Answer {
    released: Released,
    bundle: Arc<str>,
}

/// What alone may leave: a certificate whose outcome is durable, or one that is durably given out
/// again.
#[derive(Debug)]
enum Released {
    Issued(Box<Issued>),
    Repeated(Repeated),
}

impl Answer {
    pub(super) fn issued(issued: Issued, bundle: Arc<str>) -> Self {
        Self {
            released: Released::Issued(Box::new(issued)),
            bundle,
        }
    }

    pub(super) fn repeated(repeated: Repeated, bundle: Arc<str>) -> Self {
        Self {
            released: Released::Repeated(repeated),
            bundle,
        }
    }

    /// As Istio's clients read it (contract §1): leaf, intermediates one a string, all roots
    /// together in the last.
    pub fn chain(&self) -> Vec<String> {
        let (leaf, issuer) = match &self.released {
            Released::Issued(issued) => (issued.certificate().der(), &**issued.draft().issuer()),
            Released::Repeated(repeated) => (repeated.certificate(), repeated.issuer()),
        };
        let mut chain = vec![pem::certificate(leaf)];
        chain.extend_from_slice(issuer.intermediates_pem());
        chain.push(self.bundle.to_string());
        chain
    }

    /// The ledger is the record of issuances; the log is for what an operator must see.
    pub(super) fn log(&self, caller: Option<&Caller>) {
        let credential = caller.map(|caller| caller.evidence().credential.as_str());
        match &self.released {
            Released::Issued(issued) => {
                let draft = issued.draft();
                tracing::debug!(serial = %draft.serial(), identity = draft.identity().map(tracing::field::display),
                    issuer = draft.issuer_id(), credential, not_after = %draft.validity().1, "issued");
            }
            Released::Repeated(repeated) => {
                tracing::debug!(serial = %repeated.serial(), identity = caller.map(|caller| tracing::field::display(caller.identity())),
                    issuer = repeated.issuer().id(), credential, "given out again");
            }
        }
    }
}
