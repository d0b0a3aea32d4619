//! Signatures per second, with throw-away keys of the issuer's kind: on one session, and on as many as the daemon uses.

use std::time::Duration;

use signers::{KeyKind, KeyUri, PublicKey, SignError, SigningRate, open_vault_for_reading};

use super::{Case, Telling};
use crate::app::signers::SESSIONS;

/// How long each of the two measurements signs.
const TIME: Duration = Duration::from_millis(300);

pub(super) fn measure(telling: &mut Telling, case: &Case, found: Option<&PublicKey>) {
    if !case.rate {
        return;
    }
    let Some(kind) = case.expected.as_ref().or(found).and_then(PublicKey::kind) else {
        telling.findings.ok("rate", "not measured: no throw-away key of this kind is made");
        return;
    };
    telling.pass_on();
    let one = on_sessions(&case.uri, kind, 1);
    telling.pass_on();
    match one.and_then(|one| Ok((one, on_sessions(&case.uri, kind, SESSIONS)?))) {
        Ok((one, many)) => {
            let what =
                format!("{} signatures a second on one session, {} on {SESSIONS} ({kind}, throw-away keys)", shown(one), shown(many));
            telling.findings.ok("rate", what);
        }
        Err(error) => {
            let what = format!("the rate of signatures could not be measured with a throw-away {kind} key: {}", error.cause());
            telling.findings.warning("rate", what, "nothing, if the token allows no keys of a session; else look after the device");
        }
    }
}

/// The rates of so many sessions at once, each with a key of its own, together.
fn on_sessions(uri: &KeyUri, kind: KeyKind, sessions: usize) -> Result<f64, SignError> {
    std::thread::scope(|scope| {
        let one = || open_vault_for_reading(uri)?.signing_rate(kind, TIME).map(SigningRate::per_second);
        let threads: Vec<_> = (0..sessions).map(|_| scope.spawn(one)).collect();
        let rates = threads.into_iter().map(|thread| thread.join().unwrap_or(Err(SignError::Stopped)));
        rates.sum()
    })
}

/// Three digits are more than a third of a second can tell.
fn shown(rate: f64) -> String {
    match rate {
        slow if slow < 10.0 => format!("{slow:.1}"),
        slow if slow < 1_000.0 => format!("{slow:.0}"),
        fast => format!("{}", (fast / 100.0).round() * 100.0),
    }
}
