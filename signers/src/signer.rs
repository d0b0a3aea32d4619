//! An issuer's key as the daemon sees it: asked for signatures, wherever its device was opened, in
//! one token or in several that hold the same key. Each job goes to the token with the least to do;
//! what one cannot sign another does, within the job's deadline. A token that fails again and again
//! is left alone, and probed until it is back.

mod circuit;
mod condition;
mod token;

use std::sync::Arc;
use std::time::Instant;

use crate::pace::{Pace, PaceMeter};
use crate::pool::PoolOptions;
use crate::process::RemoteKey;
use crate::{Job, KeyUri, Pool, PublicKey, SignError, SignFailure};

pub use condition::{Condition, SignerHealth, TokenHealth};
use token::{Place, Token};

/// A key that signs jobs. Clones share the same devices, which are closed when the last clone is
/// dropped.
#[derive(Clone, Debug)]
pub struct Signer(Arc<[Arc<Token>]>);

/// A signature, as X.509 wants it, and which of the signer's tokens made it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Signature {
    /// ECDSA: DER `Ecdsa-Sig-Value` (RFC 3279 §2.2.3); RSA: PKCS#1 v1.5.
    pub octets: Vec<u8>,
    token: usize,
}

impl Signer {
    /// A key in a device that this process opens, on threads of its own: see `Pool::start`. Blocks
    /// meanwhile.
    pub fn start(key: KeyUri, mut options: PoolOptions) -> Result<Self, SignError> {
        let meter = Arc::new(PaceMeter::default());
        options.observer = meter.before(options.observer);
        Ok(Self::alone(
            Place::Threads(Pool::start(key, options)?),
            meter,
        ))
    }

    /// The same without a session yet: see `Pool::begin`. The pool tells when the first try is
    /// over.
    pub fn begin(
        key: KeyUri,
        expected: PublicKey,
        mut options: PoolOptions,
        ordered_at: Instant,
    ) -> Result<(Self, Pool), SignError> {
        let meter = Arc::new(PaceMeter::default());
        options.observer = meter.before(options.observer);
        let pool = Pool::begin(key, expected, options, ordered_at)?;
        Ok((Self::alone(Place::Threads(pool.clone()), meter), pool))
    }

    /// A key in a device that another process has opened, and who measures it.
    pub(crate) fn remote(key: RemoteKey, meter: Arc<PaceMeter>) -> Self {
        Self::alone(Place::Process(Box::new(key)), meter)
    }

    fn alone(place: Place, meter: Arc<PaceMeter>) -> Self {
        Self(Arc::new([Arc::new(Token::new(place, meter))]))
    }

    /// One signer of several for the same key; `None` if they hold different keys, or if there are
    /// none.
    pub fn together(signers: &[Signer]) -> Option<Self> {
        let tokens: Arc<[_]> = signers
            .iter()
            .flat_map(|signer| signer.0.iter().cloned())
            .collect();
        let key = tokens.first()?.public_key();
        tokens
            .iter()
            .all(|token| token.public_key() == key)
            .then(|| Self(tokens.clone()))
    }

    /// Signs a job before its deadline. Once begun the job runs whether or not the caller still
    /// waits. A failure counts every token that was asked: `reached_device` is false only if none
    /// can have signed.
    pub async fn sign(&self, job: Job) -> Result<Signature, SignFailure> {
        if Instant::now() >= job.deadline {
            let error = SignError::Busy("the deadline had passed before the job was queued".into());
            return Err(SignFailure {
                error,
                deadline_passed: true,
                reached_device: false,
            });
        }
        let mut asked = Vec::new();
        let mut before: Option<SignFailure> = None;
        loop {
            let Some(number) = self.choose(&asked) else {
                return Err(before.unwrap_or_else(|| self.out_of_order()));
            };
            asked.push(number);
            // Whoever has nowhere else to go is worth more patience with a token whose process is
            // replaced.
            let only = self.choose(&asked).is_none();
            let mut failure = match self.0[number].sign(job.clone(), only).await {
                Ok(octets) => {
                    return Ok(Signature {
                        octets,
                        token: number,
                    });
                }
                Err(failure) => failure,
            };
            failure.reached_device |= before.is_some_and(|before| before.reached_device);
            let elsewhere = !matches!(failure.error, SignError::Forbidden(_) | SignError::Stopped);
            if failure.deadline_passed || !elsewhere || Instant::now() >= job.deadline {
                return Err(failure);
            }
            before = Some(failure);
        }
    }

    /// The token to ask next: of those not yet asked and not left alone, the one with the least to
    /// do.
    fn choose(&self, asked: &[usize]) -> Option<usize> {
        let able =
            |(number, token): &(usize, &Arc<Token>)| !asked.contains(number) && token.is_usable();
        self.0
            .iter()
            .enumerate()
            .filter(able)
            .min_by_key(|(_, token)| token.outstanding())
            .map(|(number, _)| number)
    }

    fn out_of_order(&self) -> SignFailure {
        let error = self
            .0
            .iter()
            .find_map(|token| token.trouble())
            .unwrap_or_else(|| SignError::Lost("no token can sign".into()));
        SignFailure {
            error,
            deadline_passed: false,
            reached_device: false,
        }
    }

    /// Why no job would be tried now; `None` if one would.
    pub fn trouble(&self) -> Option<SignFailure> {
        (!self.is_usable()).then(|| self.out_of_order())
    }

    /// Whether a job would be tried now.
    pub fn is_usable(&self) -> bool {
        self.0.iter().any(|token| token.is_usable())
    }

    /// Jobs that are under way.
    pub fn outstanding(&self) -> usize {
        self.0.iter().map(|token| token.outstanding()).sum()
    }

    /// The key, fixed since the start: a device that comes back with another one is not used.
    pub fn public_key(&self) -> &PublicKey {
        self.0[0].public_key()
    }

    /// The back end: `pkcs11` or `file`.
    pub fn kind(&self) -> &'static str {
        self.0[0].uri().kind()
    }

    /// Whether the key is a mere PEM file, which logs, metrics and readiness must say.
    pub fn is_file(&self) -> bool {
        self.0.iter().any(|token| token.uri().is_file())
    }

    /// How it is now. Never waits for a device.
    pub fn health(&self) -> SignerHealth {
        SignerHealth::of(self.0.iter().map(|token| token.health()).collect())
    }

    /// How fast it signs, as far as is known: all tokens that are asked, together.
    pub fn pace(&self) -> Pace {
        let asked = self
            .0
            .iter()
            .filter(|token| token.is_usable())
            .map(|token| token.pace());
        Pace::together(asked)
    }

    /// An operator asks (SIGHUP): one more login is tried if a token refused our PIN, and a lost
    /// device is tried at once. Never waits.
    pub fn retry_login(&self) {
        self.retry_login_ordered_at(Instant::now());
    }

    /// The same for an order that many signers are given: `ordered_at` is when the operator gave
    /// it, the same for all. Those that share a token share the one try.
    pub fn retry_login_ordered_at(&self, ordered_at: Instant) {
        self.0
            .iter()
            .for_each(|token| token.retry_login_ordered_at(ordered_at));
    }

    /// A caller verified a signature. Never waits.
    pub fn signature_was_good(&self, signature: &Signature) {
        if let Some(token) = self.0.get(signature.token) {
            token.signature_was_good();
        }
    }

    /// A caller found that a signature is not this key's, which is a failure of its token. A handle
    /// that came to name another key looks just like that, so no session of that token signs again
    /// before it was opened anew and its key compared; and where other tokens can sign it is left
    /// alone from now on, until a probe verifies. Never waits. Whether another token can be asked,
    /// for bytes of its own: of these a signature exists.
    pub fn signature_was_wrong(&self, signature: &Signature) -> bool {
        let another_signs = self.choose(&[signature.token]).is_some();
        if let Some(token) = self.0.get(signature.token) {
            token.signature_was_wrong(another_signs);
        }
        another_signs
    }

    /// How many tokens hold the key.
    pub fn tokens(&self) -> usize {
        self.0.len()
    }

    /// Refuses new jobs, fails the queued ones with `Stopped`, and waits at most two seconds for
    /// those inside the device. True if everything has ended. Blocks.
    pub fn stop(&self) -> bool {
        std::thread::scope(|scope| {
            let stopping: Vec<_> = self
                .0
                .iter()
                .map(|token| scope.spawn(|| token.stop()))
                .collect();
            // Each is waited for, whatever became of the others.
            let ended: Vec<bool> = stopping
                .into_iter()
                .map(|one| one.join().unwrap_or(false))
                .collect();
            ended.into_iter().all(|ended| ended)
        })
    }
}
