//! What a library and a token say of themselves before anybody logs in: for `doctor`, which must
//! know whether a PIN may be tried at all. Nothing here changes a token, and nothing here costs a
//! try of the PIN.

use std::path::{Path, PathBuf};

use cryptoki::error::Error;
use cryptoki::mechanism::MechanismType;
use cryptoki::slot::Slot;
use cryptoki_sys::{
    CKF_ERROR_STATE, CKF_LOGIN_REQUIRED, CKF_USER_PIN_COUNT_LOW, CKF_USER_PIN_FINAL_TRY,
    CKF_USER_PIN_INITIALIZED, CKF_USER_PIN_LOCKED, CKF_USER_PIN_TO_BE_CHANGED,
};

use super::module::Module;
use super::raw::{SessionLimit, TokenInfo};
use crate::{Algorithm, KeyKind, Pkcs11Uri, SignError, TokenFacts};

/// A PKCS#11 library (C_GetInfo, PKCS#11 v2.40 §5.4) and the tokens that it shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModuleFacts {
    /// The file, links followed.
    pub path: PathBuf,
    /// Library description.
    pub description: String,
    /// Manufacturer.
    pub manufacturer: String,
    /// The library's own version, such as `2.6`.
    pub version: String,
    /// The version of the standard that it speaks, such as `2.40`.
    pub cryptoki: String,
    /// Initialised tokens that are present.
    pub tokens: Vec<TokenFacts>,
}

/// A token as C_GetTokenInfo (PKCS#11 v2.40 §5.5) describes it, not logged in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenState {
    /// Who it is.
    pub facts: TokenFacts,
    /// The number of its slot.
    pub slot: u64,
    /// What the slot says of itself.
    pub slot_description: String,
    /// The token's firmware, such as `2.6`.
    pub firmware: String,
    /// Whether anything wants a login.
    pub login_required: bool,
    /// What its flags tell of the user's PIN.
    pub pin: PinState,
    /// Whether this process has called C_Login on it, well or not.
    pub login_tried: bool,
    /// CKF_ERROR_STATE: a self-test failed.
    pub in_error: bool,
    /// How many sessions one process may have at once.
    pub most_sessions: SessionLimit,
    /// How many sessions this process has now; `None` where the library does not tell.
    pub open_sessions: Option<u64>,
    offers: Vec<MechanismType>,
}

/// The user's PIN, by the flags of C_GetTokenInfo. Many tokens set none of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PinState {
    /// No flag: nothing is known against it.
    Good,
    /// CKF_USER_PIN_INITIALIZED is not set.
    NotSet,
    /// CKF_USER_PIN_COUNT_LOW: a wrong one was tried since the last login.
    WrongOnesTried,
    /// CKF_USER_PIN_FINAL_TRY: one more wrong one locks it.
    LastTry,
    /// CKF_USER_PIN_LOCKED.
    Locked,
    /// CKF_USER_PIN_TO_BE_CHANGED.
    MustBeChanged,
}

/// Loads the library and asks it for itself and its tokens.
pub fn inspect_module(path: &Path) -> Result<ModuleFacts, SignError> {
    let module = Module::load(path)?;
    let _inside = module.life.enter();
    let info = module.raw.library().map_err(|e| module.error(&e))?;
    let tokens = module.slots()?;
    Ok(ModuleFacts {
        path: module.path().to_owned(),
        description: info.description,
        manufacturer: info.manufacturer,
        version: info.version,
        cryptoki: info.cryptoki,
        tokens: tokens.into_iter().map(|(_, info)| info.facts).collect(),
    })
}

/// Finds the one token that `uri` names and asks it what it tells everybody. `Lost` if there is
/// none, `Rejected` if there are several.
pub fn inspect_token(uri: &Pkcs11Uri) -> Result<TokenState, SignError> {
    let module = Module::load(&uri.module_path)?;
    let _inside = module.life.enter();
    let (slot, token) = module.token(uri)?;
    let what = |e: Error| token.error(&e);
    let info = module.raw.token(slot).map_err(what)?;
    let slot_description = module.raw.slot(slot).map_err(what)?;
    let listed = module.context.get_mechanism_list(slot).map_err(what)?;
    Ok(TokenState {
        slot: slot.id(),
        slot_description,
        login_required: info.has(CKF_LOGIN_REQUIRED),
        pin: pin_state(&info),
        login_tried: token.login_was_tried(),
        in_error: info.has(CKF_ERROR_STATE),
        facts: info.facts,
        firmware: info.firmware,
        most_sessions: info.most_sessions,
        open_sessions: info.open_sessions,
        offers: NEEDED
            .into_iter()
            .filter(|needed| listed.contains(needed) && works(&module, slot, *needed))
            .collect(),
    })
}

const NEEDED: [MechanismType; 5] = [
    MechanismType::ECDSA,
    MechanismType::SHA256_RSA_PKCS,
    MechanismType::RSA_PKCS,
    MechanismType::ECC_KEY_PAIR_GEN,
    MechanismType::RSA_PKCS_KEY_PAIR_GEN,
];

fn works(module: &Module, slot: Slot, mechanism: MechanismType) -> bool {
    let generates = [
        MechanismType::ECC_KEY_PAIR_GEN,
        MechanismType::RSA_PKCS_KEY_PAIR_GEN,
    ]
    .contains(&mechanism);
    let info = module.context.get_mechanism_info(slot, mechanism);
    info.is_ok_and(|info| {
        if generates {
            info.generate_key_pair()
        } else {
            info.sign()
        }
    })
}

fn pin_state(info: &TokenInfo) -> PinState {
    match () {
        () if info.has(CKF_USER_PIN_LOCKED) => PinState::Locked,
        () if info.has(CKF_USER_PIN_FINAL_TRY) => PinState::LastTry,
        () if !info.has(CKF_USER_PIN_INITIALIZED) => PinState::NotSet,
        () if info.has(CKF_USER_PIN_COUNT_LOW) => PinState::WrongOnesTried,
        () if info.has(CKF_USER_PIN_TO_BE_CHANGED) => PinState::MustBeChanged,
        () => PinState::Good,
    }
}

impl TokenState {
    /// The mechanisms by which the token can sign with `algorithm`, by their names in the standard;
    /// the first is the one that is used.
    pub fn signs_by(&self, algorithm: Algorithm) -> Vec<&'static str> {
        let wanted: &[_] = match algorithm {
            Algorithm::EcdsaP256Sha256 | Algorithm::EcdsaP384Sha384 => {
                &[(MechanismType::ECDSA, "CKM_ECDSA")]
            }
            Algorithm::RsaPkcs1Sha256 => &[
                (MechanismType::SHA256_RSA_PKCS, "CKM_SHA256_RSA_PKCS"),
                (MechanismType::RSA_PKCS, "CKM_RSA_PKCS"),
            ],
        };
        wanted
            .iter()
            .filter(|(mechanism, _)| self.offers.contains(mechanism))
            .map(|(_, name)| *name)
            .collect()
    }

    /// Whether the token can make a key pair of this kind.
    pub fn generates(&self, kind: KeyKind) -> bool {
        let mechanism = match kind.algorithm() {
            Algorithm::RsaPkcs1Sha256 => MechanismType::RSA_PKCS_KEY_PAIR_GEN,
            Algorithm::EcdsaP256Sha256 | Algorithm::EcdsaP384Sha384 => {
                MechanismType::ECC_KEY_PAIR_GEN
            }
        };
        self.offers.contains(&mechanism)
    }
}
