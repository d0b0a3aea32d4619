//! Where a pool's sessions come from: one key URI, opened again and again, always compared with the
//! first key.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Instant;

use crate::file::FileDevice;
use crate::pkcs11::{KnownKey, LoginOrder};
use crate::probe::{Proof, prove};
use crate::{Device, KeyUri, PublicKey, SignError, pkcs11};

/// A key that can be opened any number of times.
pub(super) struct Source {
    uri: KeyUri,
    known: Mutex<Known>,
    // The last order to log in, the start being the first.
    order: Mutex<LoginOrder>,
}

/// What must be the same at every opening.
#[derive(Clone, Default)]
struct Known {
    public_key: Option<PublicKey>,
    id: Option<Vec<u8>>,
}

impl Source {
    /// `by_operator`: an operator wants a PIN to be tried where something speaks against it.
    pub(super) fn new(uri: KeyUri, expected: Option<PublicKey>, by_operator: bool) -> Self {
        Self::as_ordered(
            uri,
            expected,
            LoginOrder {
                at: Instant::now(),
                by_operator,
            },
        )
    }

    /// The same for a start that was ordered so, the same for all that share a token.
    pub(super) fn as_ordered(uri: KeyUri, expected: Option<PublicKey>, order: LoginOrder) -> Self {
        Self {
            uri,
            known: Mutex::new(Known {
                public_key: expected,
                id: None,
            }),
            order: Mutex::new(order),
        }
    }

    pub(super) fn uri(&self) -> &KeyUri {
        &self.uri
    }

    /// One more session with the key. A key other than the known one is `WrongKey`.
    pub(super) fn open(&self, proof: Proof) -> Result<Box<dyn Device>, SignError> {
        let known = self
            .known
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let (device, id): (Box<dyn Device>, _) = match &self.uri {
            KeyUri::Pkcs11(uri) => {
                let key = KnownKey {
                    id: known.id.as_deref(),
                    public_key: known.public_key.as_ref(),
                };
                let device = pkcs11::open_device_as_ordered(uri, key, self.last_order(), proof)?;
                let id = device.id().to_vec();
                (Box::new(device), Some(id))
            }
            KeyUri::File(path) => {
                let mut device = FileDevice::open(path)?;
                if proof == Proof::Signature {
                    prove(&mut device)?;
                }
                (Box::new(device), None)
            }
        };
        let found = device.public_key();
        if let Some(expected) = known
            .public_key
            .as_ref()
            .filter(|expected| *expected != found)
        {
            return Err(SignError::WrongKey(format!(
                "{} is another key than expected: it has the fingerprint {} ({}), expected was {} ({})",
                self.uri,
                found.fingerprint(),
                found.algorithm(),
                expected.fingerprint(),
                expected.algorithm()
            )));
        }
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = Known {
            public_key: Some(found.clone()),
            id,
        };
        Ok(device)
    }

    /// An operator's act: a PIN that was refused before `at` may be tried once more, now or when
    /// the token is back.
    pub(super) fn order(&self, at: Instant) {
        let mut order = self.order.lock().unwrap_or_else(PoisonError::into_inner);
        *order = LoginOrder {
            at: at.max(order.at),
            by_operator: true,
        };
    }

    fn last_order(&self) -> LoginOrder {
        *self.order.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
