//! A CA's certificates and the signer of its key. The only room that asks a `Signer` for anything,
//! and only for a `Recorded<Draft>`: what is not in the ledger cannot be signed.

use std::sync::Arc;
use std::time::Instant;

use signers::{Job, Pace, SignError, SignFailure, Signer};

use crate::refusal::{Reason, Refusal};
use crate::store::ledger::{Recorded, Signed, Unsigned};
use crate::timestamp::Timestamp;
use crate::x509::chain::IssuerChain;
use crate::x509::template::Draft;

/// One issuer. A retiring one has no signer: its roots stay in the bundle, and nothing else of it
/// is used.
#[derive(Clone, Debug)]
pub struct Issuer {
    /// Its certificates.
    pub chain: Arc<IssuerChain>,
    /// The key's signer, over all places of the key; `None` when retiring.
    pub signer: Option<Signer>,
    /// The places of the key, one by one.
    pub keys: Vec<OpenedKey>,
}

impl Issuer {
    /// Whether it signs at `now`, as far as is known.
    pub fn signs_at(&self, now: Timestamp) -> bool {
        self.chain.may_sign_at(now)
            && self
                .signer
                .as_ref()
                .is_some_and(|signer| signer.health().is_ready())
    }
}

/// One place of an issuer's key.
#[derive(Clone, Debug)]
pub struct OpenedKey {
    /// Signs there alone.
    pub signer: Signer,
    /// What it was started with, together with others, so that a reload keeps one that would be
    /// started just the same.
    pub started_with: Arc<str>,
    /// Which of the keys in `started_with` it is.
    pub place: usize,
}

/// The issuers of one snapshot, in the config's order.
#[derive(Clone, Debug)]
pub struct Issuers(pub Vec<Issuer>);

impl Issuers {
    /// The issuer with this chain.
    pub fn of(&self, chain: &IssuerChain) -> Option<&Issuer> {
        self.0.iter().find(|issuer| issuer.chain.id() == chain.id())
    }

    /// How fast the devices of these issuers sign together. Of one that does not sign nothing is
    /// known.
    pub fn pace(&self, of: &[Arc<IssuerChain>]) -> Pace {
        let usable = || {
            of.iter()
                .filter_map(|chain| self.signer(chain.id()))
                .filter(|signer| signer.is_usable())
        };
        Pace::together(usable().map(Signer::pace))
    }

    /// Whether one of these issuers can sign now, as far as is known; if not, why not.
    pub fn able(&self, allowed: &[Arc<IssuerChain>]) -> Result<(), Refusal> {
        let mut troubles = allowed
            .iter()
            .filter_map(|chain| self.signer(chain.id()))
            .map(Signer::trouble);
        match troubles.next() {
            Some(Some(first)) if troubles.all(|trouble| trouble.is_some()) => Err(refusal(&first)),
            _ => Ok(()),
        }
    }

    /// Which of several issuers, all of them allowed, is to sign next: of those whose signers can,
    /// the one with the least to do, and of equals one by `chance`; where none can, the first,
    /// whose failure then says why. `None` only of none.
    pub fn choose<'a>(
        &self,
        allowed: &'a [Arc<IssuerChain>],
        chance: u64,
    ) -> Option<&'a Arc<IssuerChain>> {
        let load = |chain: &Arc<IssuerChain>| {
            self.signer(chain.id())
                .filter(|signer| signer.is_usable())
                .map(Signer::outstanding)
        };
        let (before, after) = allowed.split_at(chance as usize % allowed.len().max(1));
        let able = after
            .iter()
            .chain(before)
            .filter_map(|chain| load(chain).map(|load| (load, chain)));
        able.min_by_key(|(load, _)| *load)
            .map(|(_, chain)| chain)
            .or(allowed.first())
    }

    fn signer(&self, id: &str) -> Option<&Signer> {
        self.0
            .iter()
            .find(|issuer| issuer.chain.id() == id)
            .and_then(|issuer| issuer.signer.as_ref())
    }

    /// In how many tokens the key of an issuer is.
    pub fn tokens(&self, id: &str) -> usize {
        self.signer(id).map_or(0, Signer::tokens)
    }

    /// Signs a recorded draft with the key of its issuer and checks the signature with the issuer's
    /// certificate.
    pub async fn sign(&self, recorded: Recorded<Draft>, deadline: Instant) -> Attempt {
        let id = recorded.draft().issuer_id();
        let Some(signer) = self.signer(id) else {
            let refusal = Refusal::new(Reason::Internal, format_args!("issuer {id} has no signer"));
            return Attempt::last(Err(recorded.failed(refusal)));
        };
        let job = Job {
            purpose: recorded.draft().purpose(),
            deadline,
            message: recorded.draft().to_be_signed().to_vec(),
        };
        match signer.sign(job).await {
            Ok(signature) => match recorded.draft().complete(signature.octets.clone()) {
                Ok(certificate) => {
                    signer.signature_was_good(&signature);
                    Attempt::last(recorded.signed(certificate))
                }
                Err(error) => {
                    // A handle that came to name another key would go on to sign with it.
                    let another_token = signer.signature_was_wrong(&signature);
                    Attempt {
                        outcome: Err(recorded.unknown(Refusal::new(Reason::Internal, error))),
                        another_token,
                    }
                }
            },
            Err(failure) if failure.reached_device => {
                Attempt::last(Err(recorded.unknown(refusal(&failure))))
            }
            Err(failure) => Attempt::last(Err(recorded.failed(refusal(&failure)))),
        }
    }
}

/// What became of a recorded draft.
#[derive(Debug)]
pub struct Attempt {
    /// The certificate, or why there is none.
    pub outcome: Result<Signed, Unsigned>,
    /// The signature was wrong, and another token with the same key may be asked for one of another
    /// draft.
    pub another_token: bool,
}

impl Attempt {
    /// Every token that could be asked for this draft's signature was.
    fn last(outcome: Result<Signed, Unsigned>) -> Self {
        Self {
            outcome,
            another_token: false,
        }
    }
}

/// Whether another issuer may do what one could not: its device failed, is full, or gave a
/// signature that does not verify.
pub fn is_the_issuers(refusal: &Refusal) -> bool {
    matches!(
        refusal.reason(),
        Reason::DeviceDown | Reason::DeviceRefused | Reason::Overloaded | Reason::Internal
    )
}

fn refusal(failure: &SignFailure) -> Refusal {
    let reason = match failure.error {
        _ if failure.deadline_passed => Reason::Deadline,
        SignError::Busy(_) => Reason::Overloaded,
        SignError::Lost(_) => Reason::DeviceDown,
        SignError::Locked(_) | SignError::Rejected(_) | SignError::WrongKey(_) => {
            Reason::DeviceRefused
        }
        SignError::Forbidden(_) => Reason::GuardRefused,
        SignError::Stopped => Reason::Stopping,
    };
    Refusal::new(reason, failure)
}
