//! Sessions of one token, and its login.
//!
//! A login belongs to the application and the token, not to a session (PKCS#11 v2.40 §5.6), and
//! ends with the last session. So one idle session per token stays open as an anchor, and one lock
//! lets exactly one thread log in while the others wait for its result. A refused PIN is remembered
//! with the time of its try: nobody tries again until an operator gives a later order, and an order
//! that many give on to the same token costs one try.

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use cryptoki::error::{Error, RvError};
use cryptoki::session::{Session, SessionState, UserType};
use cryptoki::slot::Slot;
use cryptoki_sys::CKF_USER_PIN_FINAL_TRY;

use super::error::{handle_gone, may_have_cost_a_try, name, sign_error};
use super::life::{Library, Member};
use super::login_mark::LoginMark;
use super::login_watch::{LoginEvent, LoginOrder, MayTry, first_try, tell};
use crate::{SignError, TokenFacts, read_pin};

/// One token, wherever it sits.
pub(super) struct Token {
    pub(super) facts: TokenFacts,
    login_required: bool,
    login: Mutex<Login>,
}

struct Login {
    anchor: Option<OpenSession>,
    refused: Option<Refusal>,
    may: MayTry,
    /// Whether C_Login was ever called.
    was_tried: bool,
}

struct Refusal {
    /// When the try began: what the PIN's file held before that is what was refused.
    tried_at: Instant,
    text: String,
}

impl Login {
    /// The PIN is not tried again before an order.
    fn refuse(&mut self, tried_at: Instant, text: String) -> SignError {
        tell(tried_at, LoginEvent::Refused(text.clone()));
        self.refused = Some(Refusal {
            tried_at,
            text: text.clone(),
        });
        SignError::Locked(text)
    }
}

/// Whether a session may change the token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    ReadOnly,
    ReadWrite,
}

/// A session that is closed when dropped, unless the token has dropped it first.
pub(super) struct OpenSession {
    session: Option<Session>,
    member: Member,
}

impl OpenSession {
    pub(super) fn open(library: Library<'_>, slot: Slot, access: Access) -> Result<Self, Error> {
        let member = library.life.join();
        let session = match access {
            Access::ReadOnly => library.context.open_ro_session_no_drop(slot),
            Access::ReadWrite => library.context.open_rw_session_no_drop(slot),
        }?;
        Ok(Self {
            session: Some(session),
            member,
        })
    }

    /// After an error: a handle that the token no longer knows must not be closed, since by then it
    /// may name another thread's session.
    pub(super) fn after(&mut self, error: &Error) {
        if handle_gone(error) {
            self.session = None;
        }
    }

    pub(super) fn logged_in(&mut self) -> Result<bool, Error> {
        let info = self.get()?.get_session_info();
        let info = info.inspect_err(|e| self.after(e))?;
        Ok(matches!(
            info.session_state(),
            SessionState::RoUser | SessionState::RwUser
        ))
    }

    /// What it shares with the other sessions of its library.
    pub(super) fn member(&self) -> &Member {
        &self.member
    }

    /// The session; `CKR_SESSION_HANDLE_INVALID` once it is known to be gone.
    pub(super) fn get(&self) -> Result<&Session, Error> {
        let gone = Error::Pkcs11(
            RvError::SessionHandleInvalid,
            cryptoki::context::Function::GetSessionInfo,
        );
        self.session
            .as_ref()
            .filter(|_| self.member.is_alive())
            .ok_or(gone)
    }
}

impl Drop for OpenSession {
    fn drop(&mut self) {
        if let Some(session) = self.session.take().filter(|_| self.member.is_alive()) {
            // Nothing depends on the answer: a token that is away has closed it already.
            let _ = session.close();
        }
    }
}

impl Token {
    pub(super) fn new(facts: TokenFacts, login_required: bool) -> Self {
        Self {
            facts,
            login_required,
            login: Mutex::new(Login {
                anchor: None,
                refused: None,
                may: first_try(),
                was_tried: false,
            }),
        }
    }

    /// A session that is logged in as the user.
    pub(super) fn session(
        &self,
        library: Library<'_>,
        slot: Slot,
        pin_source: Option<&Path>,
        access: Access,
    ) -> Result<OpenSession, SignError> {
        self.log_in(library, slot, pin_source)?;
        OpenSession::open(library, slot, access).map_err(|e| self.error(&e))
    }

    /// One more login is wanted. A refusal of a later try stands: the order has been carried out.
    pub(super) fn forget_refusal(&self, order: LoginOrder) {
        let mut login = self.lock();
        let was_refused = login
            .refused
            .take_if(|refusal| refusal.tried_at < order.at)
            .is_some();
        if was_refused && order.by_operator {
            login.may = MayTry::Ordered;
        }
    }

    /// The session that keeps the login is given up if it is dead.
    pub(super) fn release_dead_anchor(&self) {
        self.lock()
            .anchor
            .take_if(|anchor| anchor.logged_in().is_err());
    }

    /// Whether this process has called C_Login on it, well or not.
    pub(super) fn login_was_tried(&self) -> bool {
        self.lock().was_tried
    }

    /// Whether a session keeps the login.
    pub(super) fn has_anchor(&self) -> bool {
        self.lock().anchor.is_some()
    }

    /// The session that keeps the login is closed.
    pub(super) fn release_anchor(&self) {
        self.lock().anchor = None;
    }

    pub(super) fn error(&self, error: &Error) -> SignError {
        sign_error(&format!("token {:?}", self.facts.label), error)
    }

    fn lock(&self) -> MutexGuard<'_, Login> {
        self.login.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Held locked from the question to the answer, so that any number of threads costs one try.
    fn log_in(
        &self,
        library: Library<'_>,
        slot: Slot,
        pin_source: Option<&Path>,
    ) -> Result<(), SignError> {
        let mut login = self.lock();
        let kept = login.anchor.as_mut().map(OpenSession::logged_in);
        let logged_in = match kept {
            Some(Ok(logged_in)) => logged_in,
            Some(Err(_)) | None => {
                login.anchor = None;
                let mut anchor = OpenSession::open(library, slot, Access::ReadOnly)
                    .map_err(|e| self.error(&e))?;
                let logged_in = anchor.logged_in().map_err(|e| self.error(&e))?;
                login.anchor = Some(anchor);
                logged_in
            }
        };
        if logged_in || (!self.login_required && pin_source.is_none()) {
            return Ok(());
        }
        if let Some(refused) = &login.refused {
            return Err(SignError::Locked(refused.text.clone()));
        }
        let Some(pin_source) = pin_source else {
            return Err(SignError::Rejected(format!(
                "token {:?} wants a PIN: add pin-source=file:/… to the key URI",
                self.facts.label
            )));
        };
        let tried_at = Instant::now();
        let pin = read_pin(pin_source)?;
        let mark = match self.not_in_vain(library, slot, pin_source, login.may) {
            Err(SignError::Locked(text)) => return Err(login.refuse(tried_at, text)),
            answer => answer?,
        };
        login.may = MayTry::Carefully;
        let mut was_tried = login.was_tried;
        let answer = match &login.anchor {
            Some(anchor) => anchor.get().and_then(|session| {
                was_tried = true;
                tell(tried_at, LoginEvent::Begun);
                session.login(UserType::User, Some(&pin))
            }),
            None => {
                return Err(SignError::Lost(format!(
                    "token {:?} has no session",
                    self.facts.label
                )));
            }
        };
        login.was_tried = was_tried;
        let refused = matches!(&answer, Err(Error::Pkcs11(rv, _)) if may_have_cost_a_try(*rv));
        if let Some(mark) = mark {
            if refused {
                mark.refused()
            } else {
                mark.remove()
            }
        }
        match answer {
            Ok(()) | Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => {
                tell(tried_at, LoginEvent::Ended);
                Ok(())
            }
            Err(Error::Pkcs11(rv, _)) if refused => {
                let text = format!(
                    "token {:?} answered {} to the PIN in {}; it is not tried again until the next reload",
                    self.facts.label,
                    name(rv),
                    pin_source.display()
                );
                Err(login.refuse(tried_at, text))
            }
            Err(e) => {
                tell(tried_at, LoginEvent::Ended);
                if let Some(anchor) = &mut login.anchor {
                    anchor.after(&e);
                }
                Err(self.error(&e))
            }
        }
    }

    /// What speaks against a try is heard first; `Locked` where something does. The mark of the
    /// try, where marks are kept.
    fn not_in_vain(
        &self,
        library: Library<'_>,
        slot: Slot,
        pin_source: &Path,
        may: MayTry,
    ) -> Result<Option<LoginMark>, SignError> {
        if may != MayTry::Ordered {
            let info = library.raw.token(slot).map_err(|e| self.error(&e))?;
            if info.has(CKF_USER_PIN_FINAL_TRY) {
                return Err(SignError::Locked(format!(
                    "token {:?} warns that one try of its PIN is left (CKF_USER_PIN_FINAL_TRY); the PIN in {} is not tried before a reload",
                    self.facts.label,
                    pin_source.display()
                )));
            }
        }
        LoginMark::make(&self.facts, pin_source, may)
    }
}
