//! PKCS#11 libraries, each loaded once in this process, and the tokens in them.
//!
//! C_Initialize is process-wide (PKCS#11 v2.40 §5.4), so a library is finalised only where that can harm nobody (`life`): some find their
//! device again only after C_Finalize and C_Initialize, and nobody should have to restart the daemon for that.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error, RvError};
use cryptoki::slot::{Slot, TokenInfo};

use super::error::sign_error;
use super::life::{Library, Life};
use super::token::Token;
use crate::{Pkcs11Uri, SignError, TokenFacts};

static MODULES: Mutex<BTreeMap<PathBuf, Arc<Module>>> = Mutex::new(BTreeMap::new());

/// Closes the sessions that keep the logins, of every library. Only for a process that ends, when nobody is inside a library any more: a
/// device that counts sessions would keep them until its time-out.
pub fn close_logins() {
    let modules = MODULES.lock().unwrap_or_else(PoisonError::into_inner);
    for module in modules.values() {
        module.tokens.lock().unwrap_or_else(PoisonError::into_inner).iter().for_each(|token| token.release_anchor());
    }
}

/// One initialised library.
pub(super) struct Module {
    pub(super) context: Pkcs11,
    pub(super) life: Arc<Life>,
    path: PathBuf,
    // Tokens that were logged into. By identity, because a token that returns may sit in another slot.
    tokens: Mutex<Vec<Arc<Token>>>,
}

impl Module {
    /// The library at `path`; loaded and initialised at its first use.
    pub(super) fn load(path: &Path) -> Result<Arc<Self>, SignError> {
        let canonical =
            path.canonicalize().map_err(|e| SignError::Lost(format!("the PKCS#11 library {} cannot be read: {e}", path.display())))?;
        let mut modules = MODULES.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(module) = modules.get(&canonical) {
            return Ok(module.clone());
        }
        let context = Pkcs11::new(&canonical)
            .map_err(|e| SignError::Rejected(format!("{} could not be loaded as a PKCS#11 library: {e}", canonical.display())))?;
        // A library that failed to initialise may have left threads behind: it must stay mapped.
        std::mem::forget(context.clone());
        let module = Arc::new(Self { context, life: Arc::default(), path: canonical.clone(), tokens: Mutex::default() });
        module.initialize()?;
        modules.insert(canonical, module.clone());
        Ok(module)
    }

    /// C_Initialize; an initialised library is left as it is.
    fn initialize(&self) -> Result<(), SignError> {
        let _one_at_a_time = self.life.initializing();
        match self.context.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)) {
            Ok(()) => {
                self.life.begun();
                Ok(())
            }
            Err(Error::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => Ok(()),
            Err(e) => Err(self.error(&e)),
        }
    }

    /// An opening, from its first call of the library to its last. When openings keep failing and the library has no session left, it is
    /// finalised, initialised and asked once more.
    pub(super) fn opening<T>(&self, open: impl Fn() -> Result<T, SignError>) -> Result<T, SignError> {
        let once = || {
            let _inside = self.life.enter();
            let opened = open();
            self.life.opened(opened.is_ok());
            opened
        };
        match once() {
            // It was our PIN that was refused: the library works.
            Err(error)
                if !matches!(error, SignError::Locked(_)) && self.life.renew(|| self.release_anchors(), || self.begin_anew(&error)) =>
            {
                once()
            }
            opened => opened,
        }
    }

    /// An anchor that still answers shows that the library works.
    fn release_anchors(&self) {
        let tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        tokens.iter().for_each(|token| token.release_dead_anchor());
    }

    fn begin_anew(&self, because: &SignError) {
        tracing::warn!(library = %self.path.display(), error = %because, "no session can be opened: the PKCS#11 library is initialised anew");
        // Whatever it answers, C_Initialize tells whether it can be used.
        let _ = self.context.clone().finalize();
        if let Err(error) = self.initialize() {
            tracing::warn!(library = %self.path.display(), %error, "the PKCS#11 library could not be initialised");
        }
    }

    /// For those who open sessions.
    pub(super) fn library(&self) -> Library<'_> {
        Library { context: &self.context, life: &self.life }
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
        Ok(all.into_iter().filter(|(_, info)| info.token_initialized()).collect())
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
            match self.context.get_token_info(slot) {
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
        let mut matching = self.slots()?.into_iter().filter(|(slot, info)| matches(uri, *slot, info));
        let Some((slot, info)) = matching.next() else {
            return Err(SignError::Lost(format!("no token in {} is the one that {uri} names", self.path.display())));
        };
        if matching.next().is_some() {
            return Err(SignError::Rejected(format!("more than one token in {} is named by {uri}: add serial=…", self.path.display())));
        }
        Ok((slot, self.known(&info)))
    }

    fn known(&self, info: &TokenInfo) -> Arc<Token> {
        let facts = facts(info);
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(token) = tokens.iter().find(|token| token.facts == facts) {
            return token.clone();
        }
        let token = Arc::new(Token::new(facts, info.login_required()));
        tokens.push(token.clone());
        token
    }
}

pub(super) fn facts(info: &TokenInfo) -> TokenFacts {
    TokenFacts {
        label: info.label().to_owned(),
        manufacturer: info.manufacturer_id().to_owned(),
        model: info.model().to_owned(),
        serial: info.serial_number().to_owned(),
    }
}

fn matches(uri: &Pkcs11Uri, slot: Slot, info: &TokenInfo) -> bool {
    let same = |wanted: &Option<String>, is: &str| wanted.as_deref().is_none_or(|wanted| wanted == is);
    same(&uri.token, info.label())
        && same(&uri.manufacturer, info.manufacturer_id())
        && same(&uri.model, info.model())
        && same(&uri.serial, info.serial_number())
        && uri.slot_id.is_none_or(|id| id == slot.id())
}
