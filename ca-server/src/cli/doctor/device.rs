//! An issuer's device and key, question by question, in the order in which each needs the one
//! before. All of it runs in a process of its own (`apart`), on a thread of its own: a library that
//! crashes or hangs costs the questions that are left, not the report.

pub(super) mod apart;
mod key;
mod login;
mod rate;
mod remedy;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

use signers::pkcs11::{ModuleFacts, SessionLimit, TokenState, inspect_module, inspect_token};
use signers::{
    Algorithm, KeyUri, Pkcs11Uri, PoolOptions, PublicKey, SignError, open_vault_for_reading,
};

use super::Args;
use super::finding::{Findings, span};
use crate::config::ExaminedKey;

/// A device that answers a question later is taken to hang.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// One issuer's key, and how to look at it.
struct Case {
    id: String,
    uri: KeyUri,
    /// The public key in the issuer's certificate, if that can be read.
    expected: Option<PublicKey>,
    /// Sessions on which the daemon signs with this key.
    pool: usize,
    /// Sessions that the daemon wants of the token at once, for all issuers whose keys lie in it.
    sessions: usize,
    try_pin: bool,
    rate: bool,
}

/// What has been found so far; passed on question by question.
struct Telling {
    findings: Findings,
    told: Sender<Findings>,
}

impl Telling {
    fn pass_on(&self) {
        // Nobody listens any more when it took too long.
        let _ = self.told.send(self.findings.clone());
    }
}

/// What the module of this device finds in its environment.
pub(super) fn environment(name: &str, all: &[ExaminedKey]) -> Option<BTreeMap<String, String>> {
    all.iter()
        .filter_map(|key| key.device.as_ref())
        .find(|device| device.name == name)
        .map(|device| device.environment.clone())
}

/// `NAME` of the `[device.NAME]` that a key names; empty for none.
fn section(key: &ExaminedKey) -> &str {
    key.device
        .as_ref()
        .map_or("", |device| device.name.as_str())
}

/// Examines every key's device, or those of the one device that `args` names, each section in a
/// process of its own.
pub(super) fn examine_all<'a>(
    all: &'a [ExaminedKey],
    args: &'a Args,
    path: &'a Path,
) -> impl Iterator<Item = Findings> + 'a {
    let wanted = |name: &&str| args.device.as_deref().is_none_or(|device| device == *name);
    let names: BTreeSet<&str> = all.iter().map(section).filter(wanted).collect();
    names
        .into_iter()
        .map(|name| apart::ask(name, all, args, path))
}

/// Examines the device of `key`, one of `all`; `rate` says whether its speed is measured, and
/// `tell` hears what is found by and by.
pub(super) fn examine(
    key: &ExaminedKey,
    all: &[ExaminedKey],
    try_pin: bool,
    rate: bool,
    tell: &mut dyn FnMut(&Findings),
) -> Findings {
    let mut findings = Findings::in_area("device");
    findings.about(&key.id);
    let uri = match &key.uri {
        Err(complaint) => {
            findings.problem(
                "key",
                complaint.to_string(),
                "write the URI that names module, token and key: pkcs11:token=…;object=…?module-path=…&pin-source=file:…",
            );
            return findings;
        }
        Ok(None) => return findings,
        Ok(Some(uri)) => uri,
    };
    if !key.active {
        findings.ok(
            "key",
            "it is retiring and signs nothing: its key is not looked at",
        );
        return findings;
    }
    let case = Case {
        id: key.id.clone(),
        uri: uri.clone(),
        expected: key.expected.clone(),
        pool: pool_of(key),
        sessions: wanted_sessions(uri, all),
        try_pin,
        rate,
    };
    let (told, findings_so_far) = channel();
    let mut telling = Telling {
        findings: findings.clone(),
        told,
    };
    std::thread::spawn(move || {
        match &case.uri {
            KeyUri::Pkcs11(uri) => token(&mut telling, &case, uri),
            KeyUri::File(_) => file(&mut telling, &case),
        }
        telling.pass_on();
    });
    loop {
        match findings_so_far.recv_timeout(PATIENCE) {
            Ok(so_far) => {
                tell(&so_far);
                findings = so_far;
            }
            Err(RecvTimeoutError::Disconnected) => return findings,
            Err(RecvTimeoutError::Timeout) => {
                let what = format!(
                    "the device has not answered the next question for {}",
                    span(PATIENCE)
                );
                findings.problem(
                    "answers",
                    what,
                    "look after the device and the way to it; the daemon's calls hang likewise",
                );
                return findings;
            }
        }
    }
}

/// The pool of each active issuer's key in that token, and one more session that keeps the login.
/// Tokens are told apart by what the URIs say of them.
fn wanted_sessions(uri: &KeyUri, all: &[ExaminedKey]) -> usize {
    let in_it = |key: &&ExaminedKey| {
        key.active && matches!(&key.uri, Ok(Some(other)) if other.may_share_a_token_with(uri))
    };
    all.iter().filter(in_it).map(pool_of).sum::<usize>() + 1
}

/// `sessions` of its device, or the default where that section is refused.
fn pool_of(key: &ExaminedKey) -> usize {
    key.device
        .as_ref()
        .map_or(PoolOptions::default().threads, |device| device.sessions)
}

fn file(telling: &mut Telling, case: &Case) {
    let what = format!(
        "its key is a file, {}: no hardware protects it, and whoever reads the file has the key",
        case.uri
    );
    telling.findings.warning("key", what, "good for development and migration; hold a ceremony with a key inside a token for production");
    match open_vault_for_reading(&case.uri) {
        Ok(mut vault) => {
            let found = key::judge(&mut telling.findings, case, vault.as_mut());
            rate::measure(telling, case, found.as_ref());
        }
        Err(error) => telling
            .findings
            .problem("key", error.cause(), "correct `key` in the config"),
    }
}

fn token(telling: &mut Telling, case: &Case, uri: &Pkcs11Uri) {
    let Some(module) = module(&mut telling.findings, uri) else {
        return;
    };
    telling.pass_on();
    let Some(state) = slot(&mut telling.findings, case, uri, &module) else {
        return;
    };
    if let Some(expected) = &case.expected {
        mechanisms(&mut telling.findings, &state, expected.algorithm());
    }
    sessions(&mut telling.findings, case, &state);
    telling.pass_on();
    let Some(mut vault) = login::log_in(&mut telling.findings, case, uri, &state) else {
        return;
    };
    telling.pass_on();
    let found = key::judge(&mut telling.findings, case, vault.as_mut());
    telling.pass_on();
    let kind = case
        .expected
        .as_ref()
        .or(found.as_ref())
        .and_then(PublicKey::kind);
    match kind.filter(|kind| !state.generates(*kind)) {
        Some(kind) => {
            telling.findings.ok("rate", format!("not measured: the token makes no {kind} keys, and the issuer's is not used for that"))
        }
        None => rate::measure(telling, case, found.as_ref()),
    }
}

fn module(findings: &mut Findings, uri: &Pkcs11Uri) -> Option<ModuleFacts> {
    match inspect_module(&uri.module_path) {
        Ok(module) => {
            let ModuleFacts {
                description,
                manufacturer,
                version,
                cryptoki,
                path,
                ..
            } = &module;
            let what = format!(
                "{description} {version} by {manufacturer}, speaking PKCS#11 {cryptoki}: {}",
                path.display()
            );
            findings.ok("module", what);
            Some(module)
        }
        Err(error) => {
            let remedy = match &error {
                _ if !uri.module_path.exists() => {
                    "install the device's PKCS#11 library, or correct module-path in the key's URI"
                }
                SignError::Rejected(_) => {
                    "name the device's PKCS#11 library, built for this machine, with module-path in the key's URI"
                }
                _ => {
                    "see that the library's own settings are there: variables that it reads belong into [device.NAME] env"
                }
            };
            findings.problem(
                "module",
                error.cause(),
                remedy::of(&error).unwrap_or(remedy),
            );
            None
        }
    }
}

fn slot(
    findings: &mut Findings,
    case: &Case,
    uri: &Pkcs11Uri,
    module: &ModuleFacts,
) -> Option<TokenState> {
    let state = match inspect_token(uri) {
        Ok(state) => state,
        Err(error) => {
            let labels: Vec<String> = module
                .tokens
                .iter()
                .map(|token| format!("{:?}", token.label))
                .collect();
            let remedy = match (&error, labels.is_empty()) {
                (SignError::Rejected(_), _) => format!("name one token alone, by serial={} in the key's URI", serials(uri, module)),
                (_, true) => {
                    "the library shows no token at all: connect it, or set the variables that it reads in [device.NAME] env".to_owned()
                }
                (_, false) => format!("connect it, or correct the key's URI: the library shows {}", labels.join(", ")),
            };
            findings.problem("token", error.cause(), remedy);
            return None;
        }
    };
    let facts = &state.facts;
    let maker = format!(
        "{} by {}, serial {}, firmware {}",
        facts.model, facts.manufacturer, facts.serial, state.firmware
    );
    match state.in_error {
        false => findings.ok("token", format!("token {:?}, {maker}", facts.label)),
        true => {
            let what = format!(
                "token {:?}, {maker}, is in its error state (CKF_ERROR_STATE): a self-test failed",
                facts.label
            );
            findings.problem(
                "token",
                what,
                "take it out of service and follow its maker's manual",
            );
        }
    }
    match uri.slot_id {
        None => findings.ok(
            "slot",
            format!("in slot {}: {}", state.slot, state.slot_description),
        ),
        Some(_) => {
            let what = format!(
                "in slot {}, {}: the URI names the slot, whose number may change",
                state.slot, state.slot_description
            );
            findings.warning(
                "slot",
                what,
                format!(
                    "name the token of issuer {} by token=… or serial=… instead of slot-id",
                    case.id
                ),
            );
        }
    }
    Some(state)
}

/// Of the tokens whose label the URI names: what tells them apart.
fn serials(uri: &Pkcs11Uri, module: &ModuleFacts) -> String {
    let alike = module
        .tokens
        .iter()
        .filter(|token| uri.token.as_ref().is_none_or(|label| *label == token.label));
    alike
        .map(|token| token.serial.as_str())
        .collect::<Vec<_>>()
        .join(" or serial=")
}

fn mechanisms(findings: &mut Findings, state: &TokenState, algorithm: Algorithm) {
    match state.signs_by(algorithm).first() {
        Some(mechanism) => findings.ok(
            "mechanisms",
            format!("it signs with {algorithm} by {mechanism}"),
        ),
        None => {
            let needed = match algorithm {
                Algorithm::RsaPkcs1Sha256 => "CKM_SHA256_RSA_PKCS or CKM_RSA_PKCS",
                Algorithm::EcdsaP256Sha256 | Algorithm::EcdsaP384Sha384 => "CKM_ECDSA",
            };
            let what = format!(
                "the token does not sign with {algorithm}: it offers no {needed} for signing"
            );
            findings.problem(
                "mechanisms",
                what,
                "enable it in the token's policy, or use a key of another kind",
            );
        }
    }
}

fn sessions(findings: &mut Findings, case: &Case, state: &TokenState) {
    let open = state
        .open_sessions
        .map(|open| format!("; {open} open in this process"))
        .unwrap_or_default();
    let wanted = case.sessions;
    match state.most_sessions {
        SessionLimit::AtMost(most) if most < wanted as u64 => {
            let what = format!("the token allows {most} sessions, the daemon wants {wanted}{open}");
            findings.problem(
                "sessions",
                what,
                "allow more in the token's settings, or put fewer issuers into one token",
            );
        }
        SessionLimit::AtMost(most) => findings.ok(
            "sessions",
            format!("the daemon wants {wanted} of at most {most}{open}"),
        ),
        SessionLimit::Unlimited => findings.ok(
            "sessions",
            format!("the daemon wants {wanted}, the token sets no limit{open}"),
        ),
        SessionLimit::Untold => findings.ok(
            "sessions",
            format!("the daemon wants {wanted}, the token tells no limit{open}"),
        ),
    }
}
