//! Keys that are made to be measured with: they live in one session, never in the token's memory,
//! and are destroyed with it.

use cryptoki::object::ObjectHandle;

use super::error::sign_error;
use super::key::Pkcs11Device;
use super::key_pair::{KeyPair, random_id};
use super::module::Module;
use super::token::Access;
use crate::{Device, Failure, KeyKind, Pkcs11Uri, PublicKey, SignError};

/// One session with a key of its own, destroyed when dropped.
pub struct ThrowAwayDevice {
    device: Option<Pkcs11Device>,
    public: ObjectHandle,
}

/// One read-only session in the token that `uri` names, with a key pair that is made for it
/// (CKA_TOKEN false). A PIN that was refused once in this process is not tried again.
pub fn throw_away_device(uri: &Pkcs11Uri, kind: KeyKind) -> Result<ThrowAwayDevice, SignError> {
    let module = Module::load(&uri.module_path)?;
    let (slot, label, session) = module.opening(|| {
        let (slot, token) = module.token(uri)?;
        let session = token.session(
            module.library(),
            slot,
            uri.pin_source.as_deref(),
            Access::ReadOnly,
        )?;
        Ok((slot, token.facts.label.clone(), session))
    })?;
    let what = format!("a throw-away {kind} key in token {label:?}");
    // Not in the token: it goes with the session if nothing else takes it away.
    let pair = KeyPair {
        kind,
        id: &random_id()?,
        label: "ca-server throw-away",
        stays: false,
    };
    let (public, private) =
        pair.generate(session.get().map_err(|e| sign_error(&what, &e))?, &what)?;
    let device = Pkcs11Device::of(&module, slot, session, private, Some(public), None, what)?;
    Ok(ThrowAwayDevice {
        device: Some(device),
        public,
    })
}

impl ThrowAwayDevice {
    fn device(&self) -> &Pkcs11Device {
        self.device.as_ref().expect("there until it is dropped")
    }
}

impl Device for ThrowAwayDevice {
    fn public_key(&self) -> &PublicKey {
        self.device().public_key()
    }

    fn sign(&mut self, message: &[u8]) -> Result<Vec<u8>, SignError> {
        self.device
            .as_mut()
            .expect("there until it is dropped")
            .sign(message)
    }

    fn last_failure(&self) -> Failure {
        self.device().last_failure()
    }
}

impl Drop for ThrowAwayDevice {
    fn drop(&mut self) {
        if let Some(device) = self.device.take()
            && let Err(error) = device.destroy(self.public)
        {
            tracing::warn!(%error, "a throw-away key could not be destroyed: it ends with its session");
        }
    }
}
