//! Whether a config's keys are good enough to start with, or to go over to: a wrong key is refused,
//! and so is a config by which no call that names no issuer could ever be signed. What is merely
//! away comes back by itself, what is locked waits for the operator beside the others; both are
//! said in the log.

use ::signers::{KeyUri, SignError, Signer};

use super::Place;
use crate::cli::Exit;
use crate::config::{Config, IssuerConfig};
use crate::policy::default_group;
use crate::timestamp::Timestamp;
use crate::x509::chain::IssuerChain;

/// What is known of the keys so far.
pub(super) struct Outlook<'a> {
    config: &'a Config,
    now: Timestamp,
    /// The config's issuers that sign for calls which name none.
    default: Vec<usize>,
    known: Vec<(Place<'a>, Known)>,
}

enum Known {
    /// It signs.
    Open,
    /// It does not sign now, and did not before either.
    Kept,
    Trouble(SignError),
}

impl<'a> Outlook<'a> {
    pub(super) fn of(config: &'a Config, now: Timestamp) -> Self {
        Self {
            config,
            now,
            default: default_group(config.issuers.iter().map(IssuerConfig::member)),
            known: Vec::new(),
        }
    }

    /// A signer was taken over.
    pub(super) fn kept(&mut self, place: Place<'a>, signer: &Signer) {
        self.known.push((
            place,
            if signer.health().is_ready() {
                Known::Open
            } else {
                Known::Kept
            },
        ));
    }

    /// A key's first try is over.
    pub(super) fn first(&mut self, place: Place<'a>, trouble: Option<SignError>) {
        self.known
            .push((place, trouble.map_or(Known::Open, Known::Trouble)));
    }

    /// Whether a call that names no issuer would be signed now.
    pub(super) fn signs(&self) -> bool {
        self.known.iter().any(|(place, known)| {
            matches!(known, Known::Open)
                && self.default.contains(&place.issuer)
                && self.chain(place).may_sign_at(self.now)
        })
    }

    /// Says in the log what cannot sign yet. An error is why to refuse.
    pub(super) fn judge(self) -> Result<(), Exit> {
        let troubles = || {
            self.known.iter().filter_map(|(place, known)| {
                if let Known::Trouble(error) = known {
                    Some((place, error))
                } else {
                    None
                }
            })
        };
        let about = |(place, error): (&Place<'a>, &SignError)| {
            format!("issuer {}: {error}", self.chain(place).id())
        };
        if let Some(wrong) = troubles().find(|(_, error)| matches!(error, SignError::WrongKey(_))) {
            return Err(Exit::config(about(wrong)));
        }
        // What has not been heard of yet may come, too.
        let keys = |issuer: usize| self.config.issuers[issuer].keys.len();
        let hopeless = |issuer: usize| {
            troubles()
                .filter(|(place, error)| place.issuer == issuer && !comes_back(place, error))
                .count()
                == keys(issuer)
        };
        let over = |issuer: usize| self.config.issuers[issuer].chain.is_over_at(self.now);
        if self
            .default
            .iter()
            .all(|issuer| over(*issuer) || hopeless(*issuer))
        {
            let of: Vec<_> = troubles()
                .filter(|(place, _)| self.default.contains(&place.issuer))
                .collect();
            let sentence = of
                .iter()
                .map(|trouble| about(*trouble))
                .collect::<Vec<_>>()
                .join("; ");
            // Whoever starts the daemon again would try a PIN again that was refused. What is wrong
            // elsewhere may be mended there meanwhile.
            let tried = of
                .iter()
                .any(|(place, error)| matches!(error, SignError::Locked(_)) && !elsewhere(place));
            let wrong = of.iter().all(|(_, error)| {
                matches!(error, SignError::Rejected(_) | SignError::Forbidden(_))
            });
            return Err(if tried || wrong {
                Exit::config(sentence)
            } else {
                Exit::missing(sentence)
            });
        }
        for (place, error) in troubles() {
            let (issuer, uri) = (self.chain(place).id(), place.key.uri.without_secrets());
            match error {
                SignError::Locked(_) if elsewhere(place) => {
                    tracing::error!(issuer, uri, %error, "this key cannot sign: it waits for the operator of its signer");
                }
                SignError::Locked(_) => {
                    tracing::error!(issuer, uri, %error, "this key cannot sign: put the right PIN into its file, then send SIGHUP");
                }
                _ if comes_back(place, error) => {
                    tracing::warn!(issuer, uri, %error, "this key cannot sign yet; its device is looked for")
                }
                _ => {
                    tracing::error!(issuer, uri, %error, "this key cannot sign: correct the config or the token")
                }
            }
        }
        Ok(())
    }

    fn chain(&self, place: &Place<'_>) -> &'a IssuerChain {
        &self.config.issuers[place.issuer].chain
    }
}

/// Whether the signer is run by somebody else, who has the PIN.
fn elsewhere(place: &Place<'_>) -> bool {
    place.key.device.socket.is_some()
}

/// Whether waiting may mend it.
fn comes_back(place: &Place<'_>, error: &SignError) -> bool {
    let no_library = || matches!(&place.key.uri, KeyUri::Pkcs11(uri) if !elsewhere(place) && !uri.module_path.exists());
    matches!(
        error,
        SignError::Lost(_) | SignError::Busy(_) | SignError::Stopped
    ) && !no_library()
}
