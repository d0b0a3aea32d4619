//! Creating tokens and keys, and reading back what became of them: what only the ceremony and
//! `doctor` do. It needs sessions that may write.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use cryptoki::object::{Attribute, AttributeType, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::slot::Slot;
use cryptoki_sys::CKF_TOKEN_INITIALIZED;
use secrecy::SecretString;

use super::error::sign_error;
use super::key::{
    Attributes, KnownKey, NoPublicKey, Pkcs11Device, Wanted, named_private_keys, private_keys,
    public_key, public_keys,
};
use super::key_pair::{KeyPair, random_id};
use super::login_watch::LoginOrder;
use super::module::Module;
use super::token::{Access, OpenSession, Token};
use crate::{Device, KeyFacts, KeyKind, KeyUri, Pkcs11Uri, SignError, TokenFacts, Vault};

/// One token, open for creating and describing keys.
pub struct Pkcs11Vault {
    module: Arc<Module>,
    slot: Slot,
    token: Arc<Token>,
    session: OpenSession,
}

/// Opens the token that `uri` names, logged in, with a session that may write. That is an
/// operator's act: a PIN that was refused before gets one more try.
pub fn open_vault(uri: &KeyUri) -> Result<Pkcs11Vault, SignError> {
    open(
        pkcs11(uri)?,
        Access::ReadWrite,
        Some(LoginOrder {
            at: Instant::now(),
            by_operator: true,
        }),
    )
}

/// The same with a session that can change nothing in the token, as the daemon's are. A PIN that
/// was refused once in this process is not tried again.
pub fn open_vault_for_reading(uri: &KeyUri) -> Result<Pkcs11Vault, SignError> {
    open(pkcs11(uri)?, Access::ReadOnly, None)
}

/// What a key may be used for beside signing, and how that is taken from it.
const OTHER_USES: [(AttributeType, Attribute); 4] = [
    (AttributeType::SignRecover, Attribute::SignRecover(false)),
    (AttributeType::Decrypt, Attribute::Decrypt(false)),
    (AttributeType::Unwrap, Attribute::Unwrap(false)),
    (AttributeType::Derive, Attribute::Derive(false)),
];

fn open(
    uri: &Pkcs11Uri,
    access: Access,
    order: Option<LoginOrder>,
) -> Result<Pkcs11Vault, SignError> {
    let module = Module::load(&uri.module_path)?;
    let (slot, token, session) = module.opening(|| {
        let (slot, token) = module.token(uri)?;
        if let Some(order) = order {
            token.forget_refusal(order);
        }
        let session = token.session(module.library(), slot, uri.pin_source.as_deref(), access)?;
        Ok((slot, token, session))
    })?;
    Ok(Pkcs11Vault {
        module,
        slot,
        token,
        session,
    })
}

/// The initialised tokens of a library.
pub fn list_tokens(module: &Path) -> Result<Vec<TokenFacts>, SignError> {
    let module = Module::load(module)?;
    let _inside = module.life.enter();
    Ok(module
        .slots()?
        .into_iter()
        .map(|(_, info)| info.facts)
        .collect())
}

/// Initialises a token in a slot whose token never was (SoftHSM always offers one) and sets the
/// user's PIN. A token of that label that exists is never touched.
pub fn init_token(
    module: &Path,
    label: &str,
    so_pin: &SecretString,
    user_pin: &SecretString,
) -> Result<TokenFacts, SignError> {
    if label.is_empty() || label.len() > 32 || label.trim_end() != label {
        return Err(SignError::Rejected(format!(
            "{label:?} cannot be a token's label: it must have 1 to 32 bytes and not end in a blank"
        )));
    }
    let module = Module::load(module)?;
    let _inside = module.life.enter();
    let slots = module.all_slots()?;
    if slots
        .iter()
        .any(|(_, info)| info.has(CKF_TOKEN_INITIALIZED) && info.facts.label == label)
    {
        return Err(SignError::Rejected(format!(
            "a token with the label {label:?} exists already and is never initialised again"
        )));
    }
    let Some((slot, _)) = slots
        .into_iter()
        .find(|(_, info)| !info.has(CKF_TOKEN_INITIALIZED))
    else {
        return Err(SignError::Rejected(format!(
            "there is no slot with an uninitialised token for {label:?}"
        )));
    };
    let what = format!("initialising the token {label:?}");
    let in_token = || -> Result<TokenFacts, cryptoki::error::Error> {
        module.context.init_token(slot, so_pin, label)?;
        let session = OpenSession::open(module.library(), slot, Access::ReadWrite)?;
        session.get()?.login(UserType::So, Some(so_pin))?;
        session.get()?.init_pin(user_pin)?;
        session.get()?.logout()?;
        Ok(module.raw.token(slot)?.facts)
    };
    in_token().map_err(|e| sign_error(&what, &e))
}

fn pkcs11(uri: &KeyUri) -> Result<&Pkcs11Uri, SignError> {
    match uri {
        KeyUri::Pkcs11(uri) => Ok(uri),
        KeyUri::File(_) => Err(SignError::Rejected(format!(
            "{uri} is not in a PKCS#11 token"
        ))),
    }
}

impl Pkcs11Vault {
    /// The attributes of `uri`, once it is sure that it names this token.
    fn here<'a>(&self, uri: &'a KeyUri) -> Result<&'a Pkcs11Uri, SignError> {
        let uri = pkcs11(uri)?;
        let (_, token) = Module::load(&uri.module_path)?.token(uri)?;
        if token.facts != self.token.facts {
            return Err(SignError::Rejected(format!(
                "{uri} names another token than {:?}",
                self.token.facts.label
            )));
        }
        Ok(uri)
    }

    fn raw(&self) -> Result<&Session, SignError> {
        self.session.get().map_err(|e| self.token.error(&e))
    }

    /// Takes what a new key may be used for beside signing, where the token gave it that by itself
    /// and lets it be taken. What stays is read back like everything else.
    fn narrow(&self, key: ObjectHandle) {
        let Ok(session) = self.raw() else { return };
        let Ok(read) = Attributes::all(session, key) else {
            return;
        };
        for (attribute, off) in OTHER_USES {
            if read.flag(attribute) == Some(true)
                && let Err(error) = session.update_attributes(key, &[off])
            {
                tracing::debug!(%attribute, %error, "a use of a new key could not be taken from it");
            }
        }
    }

    fn read_facts(&self, key: ObjectHandle, uri: &Pkcs11Uri) -> Result<KeyFacts, SignError> {
        let name = uri.to_string();
        let read = Attributes::all(self.raw()?, key).map_err(|e| sign_error(&name, &e))?;
        let is = |attribute| read.flag(attribute) == Some(true);
        let public_key = match public_key(self.raw()?, &read) {
            Ok(told) => Some(told),
            Err(NoPublicKey::Untold) => None,
            Err(why) => return Err(why.into_sign_error(&name)),
        };
        Ok(KeyFacts {
            public_key,
            id: read.id().to_vec(),
            label: read.label(),
            sensitive: is(AttributeType::Sensitive) && is(AttributeType::AlwaysSensitive),
            never_extractable: read.flag(AttributeType::Extractable) == Some(false)
                && is(AttributeType::NeverExtractable),
            local: is(AttributeType::Local),
            other_uses: OTHER_USES
                .into_iter()
                .filter(|(attribute, _)| is(*attribute))
                .map(|(attribute, _)| attribute.to_string())
                .collect(),
        })
    }
}

impl Vault for Pkcs11Vault {
    fn token(&self) -> Result<TokenFacts, SignError> {
        Ok(self.token.facts.clone())
    }

    fn describe(&mut self, uri: &KeyUri) -> Result<Option<KeyFacts>, SignError> {
        let uri = self.here(uri)?;
        let wanted = Wanted {
            id: uri.id.as_deref(),
            label: uri.object.as_deref(),
        };
        match named_private_keys(self.raw()?, wanted).map_err(|e| self.token.error(&e))?[..] {
            [] => Ok(None),
            [key] => self.read_facts(key, uri).map(Some),
            [_, _, ..] => Err(SignError::Rejected(format!(
                "the token holds more than one private key that {uri} names: add id=…"
            ))),
        }
    }

    fn generate(&mut self, named: &KeyUri, kind: KeyKind) -> Result<KeyFacts, SignError> {
        let uri = self.here(named)?;
        let Some(label) = &uri.object else {
            return Err(SignError::Rejected(format!(
                "{uri} gives the new key no label: add object=…"
            )));
        };
        let id = match &uri.id {
            Some(id) => id.clone(),
            None => random_id()?,
        };
        let session = self.raw()?;
        for wanted in [
            Wanted {
                id: None,
                label: Some(label),
            },
            Wanted {
                id: Some(&id),
                label: None,
            },
        ] {
            let private = private_keys(session, wanted).map_err(|e| self.token.error(&e))?;
            let public = public_keys(session, wanted).map_err(|e| self.token.error(&e))?;
            if !private.is_empty() || !public.is_empty() {
                return Err(SignError::Rejected(format!(
                    "the token holds a key that {uri} names already; it is never overwritten"
                )));
            }
        }
        let what = format!(
            "generating a {kind} key in token {:?}",
            self.token.facts.label
        );
        let (_, key) = KeyPair {
            kind,
            id: &id,
            label,
            stays: true,
        }
        .generate(session, &what)?;
        self.narrow(key);
        let left = |error: SignError| {
            let label = &self.token.facts.label;
            SignError::Rejected(format!(
                "a new key stays in token {label:?}: label {:?}, CKA_ID {}; it could not be read back: {}",
                uri.object.as_deref().unwrap_or_default(),
                hex::encode(&id),
                error.cause()
            ))
        };
        let facts = self.read_facts(key, uri).map_err(left)?;
        facts.told_public_key(named).map_err(left)?;
        Ok(facts)
    }

    fn open(&mut self, uri: &KeyUri) -> Result<Box<dyn Device>, SignError> {
        let uri = self.here(uri)?;
        let session = self.token.session(
            self.module.library(),
            self.slot,
            uri.pin_source.as_deref(),
            Access::ReadOnly,
        )?;
        Ok(Box::new(Pkcs11Device::find(
            &self.module,
            self.slot,
            session,
            uri,
            KnownKey::default(),
        )?))
    }
}
