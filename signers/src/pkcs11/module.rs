//! PKCS#11 libraries, each loaded once in this process, and the tokens in them.
//!
//! C_Initialize is process-wide (PKCS#11 v2.40 §5.4), so a library is finalised only where that can
//! harm nobody (`life`): some find their device again only after C_Finalize and C_Initialize, and
//! nobody should have to restart the daemon for that.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use cryptoki::context::Pkcs11;
use cryptoki::error::{Error, RvError};
use cryptoki::slot::Slot;
use cryptoki_sys::{CKF_LOGIN_REQUIRED, CKF_TOKEN_INITIALIZED};

use super::error::sign_error;
use super::life::{Library, Life};
use super::raw::{Raw, TokenInfo};
use super::token::Token;
use crate::{Pkcs11Uri, SignError};

static MODULES: Mutex<BTreeMap<PathBuf, Arc<Module>>> = Mutex::new(BTreeMap::new());

/// What each library is given as `pReserved`, by the path that names it.
static INIT_STRINGS: Mutex<BTreeMap<PathBuf, CString>> = Mutex::new(BTreeMap::new());

/// From its next C_Initialize on the library at `path` is given this string as `pReserved` (NSS
/// wants its directory so). Call it before the library is used; a NUL ends the string.
pub fn set_init_string(path: &Path, text: &str) {
    let text = CString::new(text.split('\0').next().unwrap_or_default()).unwrap_or_default();
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    INIT_STRINGS
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .insert(path, text);
}

/// Closes the sessions that keep the logins, of every library. Only for a process that ends, when
/// nobody is inside a library any more: a device that counts sessions would keep them until its
/// time-out.
pub fn close_logins() {
    let modules = MODULES.lock().unwrap_or_else(PoisonError::into_inner);
    for module in modules.values() {
        module
            .tokens
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .for_each(|token| token.release_anchor());
    }
}

/// One initialised library.
pub(super) struct Module {
    pub(super) context: Pkcs11,
    pub(super) raw: Arc<Raw>,
    pub(super) life: Arc<Life>,
    path: PathBuf,
    // Tokens that were logged into. By identity, because a token that returns may sit in another
    // slot.
    tokens: Mutex<Vec<Arc<Token>>>,
}

impl Module {
    /// The library at `path`; loaded and initialised at its first use.
    pub(super) fn load(path: &Path) -> Result<Arc<Self>, SignError> {
        let canonical = path.canonicalize().map_err(|e| {
            SignError::Lost(format!(
                "the PKCS#11 library {} cannot be read: {e}",
                path.display()
            ))
        })?;
        let mut modules = MODULES.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(module) = modules.get(&canonical) {
            return Ok(module.clone());
        }
        let unusable = |e: Error| {
            SignError::Rejected(format!(
                "{} could not be loaded as a PKCS#11 library: {e}",
                canonical.display()
            ))
        };
        let raw = Arc::new(Raw::load(&canonical).map_err(unusable)?);
        let module = Arc::new(Self {
            context: raw.context().clone(),
            raw,
            life: Arc::default(),
            path: canonical.clone(),
            tokens: Mutex::default(),
        });
        module.initialize()?;
        modules.insert(canonical, module.clone());
        Ok(module)
    }

    /// C_Initialize; an initialised library is left as it is.
    fn initialize(&self) -> Result<(), SignError> {
        let _one_at_a_time = self.life.initializing();
        let init_string = INIT_STRINGS
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&self.path)
            .cloned();
        match self.raw.initialize(init_string.as_ref()) {
            Ok(()) => {
                self.life.begun();
                Ok(())
            }
            Err(Error::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => Ok(()),
            Err(e) => Err(self.error(&e)),
        }
    }

    /// An opening, from its first call of the library to its last. When openings keep failing and
    /// the library has no session left, it is finalised, initialised and asked once more.
    pub(super) fn opening<T>(
        &self,
        open: impl Fn() -> Result<T, SignError>,
    ) -> Result<T, SignError> {
        self.opening_proven(open, |_| Ok(()))
    }

    /// The same for an opening that is not over before `prove` is content with what was opened.
    pub(super) fn opening_proven<T>(
        &self,
        open: impl Fn() -> Result<T, SignError>,
        prove: impl Fn(&mut T) -> Result<(), SignError>,
    ) -> Result<T, SignError> {
        let once = || {
            let _inside = self.life.enter();
            let mut unproven = false;
            let opened = open().and_then(|mut opened| {
                unproven = true;
                prove(&mut opened)?;
                Ok(opened)
            });
            self.life.opened(opened.is_ok());
            (opened, unproven)
        };
        match once() {
            // It was our PIN that was refused, or another key that signed: the library works.
            (Err(error), unproven)
                if !matches!(error, SignError::Locked(_) | SignError::WrongKey(_))
                    && self.life.renew(
                        |sessions| self.release_anchors(sessions, unproven),
                        || self.begin_anew(&error),
                    ) =>
            {
                once().0
            }
            (opened, _) => opened,
        }
    }

    /// An anchor that still answers shows that the library works, unless sessions open and do not
    /// sign: then all are closed, if there are no other sessions.
    fn release_anchors(&self, sessions: usize, none_signs: bool) {
        let tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        let anchors = tokens.iter().filter(|token| token.has_anchor()).count();
        if none_signs && anchors == sessions {
            tokens.iter().for_each(|token| token.release_anchor());
        } else {
            tokens.iter().for_each(|token| token.release_dead_anchor());
        }
    }

    fn begin_anew(&self, because: &SignError) {
        tracing::warn!(library = %self.path.display(), error = %because, "no session can be opened that signs: the PKCS#11 library is initialised anew");
        // Whatever it answers, C_Initialize tells whether it can be used.
        let _ = self.context.clone().finalize();
        if let Err(error) = self.initialize() {
            tracing::warn!(library = %self.path.display(), %error, "the PKCS#11 library could not be initialised");
        }
    }

    /// For those who open sessions.
    pub(super) fn library(&self) -> Library<'_> {
        Library {
            context: &self.context,
            raw: &self.raw,
            life: &self.life,
        }
    }

    /// The library's file, links followed.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn error(&self, error: &Error) -> SignError {
        sign_error(&format!("PKCS#11 library {}", self.path.display()), error)
    }

    /// Slots with an initialised token, and what each says of itself.
    pub(super) fn slots(&self) -> Result<Vec<(Slot, TokenInfo)>, SignError> {
        let all = self.all_slots()?;
        Ok(all
            .into_iter()
            .filter(|(_, info)| info.has(CKF_TOKEN_INITIALIZED))
            .collect())
    }

    /// Slots with any token, initialised or not. A token that disappears meanwhile is left out.
    pub(super) fn all_slots(&self) -> Result<Vec<(Slot, TokenInfo)>, SignError> {
        let slots = match self.context.get_slots_with_token() {
            // Some libraries forget everything when their device was away.
            Err(Error::Pkcs11(RvError::CryptokiNotInitialized, _)) => {
                self.initialize()?;
                self.context.get_slots_with_token()
            }
            answer => answer,
        };
        let slots = slots.map_err(|e| self.error(&e))?;
        let mut found = Vec::with_capacity(slots.len());
        let mut problem = None;
        for slot in slots {
            match self.raw.token(slot) {
                Ok(info) => found.push((slot, info)),
                Err(e) => problem = Some(self.error(&e)),
            }
        }
        match problem {
            Some(problem) if found.is_empty() => Err(problem),
            _ => Ok(found),
        }
    }

    /// The one token that `uri` names.
    pub(super) fn token(&self, uri: &Pkcs11Uri) -> Result<(Slot, Arc<Token>), SignError> {
        let mut matching = self
            .slots()?
            .into_iter()
            .filter(|(slot, info)| matches(uri, *slot, info));
        let Some((slot, info)) = matching.next() else {
            return Err(SignError::Lost(format!(
                "no token in {} is the one that {uri} names",
                self.path.display()
            )));
        };
        if matching.next().is_some() {
            return Err(SignError::Rejected(format!(
                "more than one token in {} is named by {uri}: add serial=…",
                self.path.display()
            )));
        }
        Ok((slot, self.known(&info)))
    }

    fn known(&self, info: &TokenInfo) -> Arc<Token> {
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(token) = tokens.iter().find(|token| token.facts == info.facts) {
            return token.clone();
        }
        let token = Arc::new(Token::new(info.facts.clone(), info.has(CKF_LOGIN_REQUIRED)));
        tokens.push(token.clone());
        token
    }
}

fn matches(uri: &Pkcs11Uri, slot: Slot, info: &TokenInfo) -> bool {
    let same =
        |wanted: &Option<String>, is: &str| wanted.as_deref().is_none_or(|wanted| wanted == is);
    let facts = &info.facts;
    same(&uri.token, &facts.label)
        && same(&uri.manufacturer, &facts.manufacturer)
        && same(&uri.model, &facts.model)
        && same(&uri.serial, &facts.serial)
        && uri.slot_id.is_none_or(|id| id == slot.id())
}
