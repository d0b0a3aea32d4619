//! Signatures per second, with throw-away keys of the issuer's kind: on one session, and on as many
//! as the daemon uses.

use std::time::Duration;

use signers::PublicKey;
use signers::bench::Bench;

use super::{Case, Telling};

/// How long each of the two measurements signs.
const TIME: Duration = Duration::from_millis(300);

pub(super) fn measure(telling: &mut Telling, case: &Case, found: Option<&PublicKey>) {
    if !case.rate {
        return;
    }
    let Some(kind) = case.expected.as_ref().or(found).and_then(PublicKey::kind) else {
        telling.findings.ok(
            "rate",
            "not measured: no throw-away key of this kind is made",
        );
        return;
    };
    telling.pass_on();
    let mut bench = Bench::on(case.uri.clone(), kind, TIME);
    let one = bench.level(1);
    telling.pass_on();
    let pool = case.pool;
    match one.and_then(|one| Ok((one, bench.level(pool)?))) {
        Ok((one, many)) => {
            let (one, many) = (shown(one.per_second), shown(many.per_second));
            telling.findings.ok("rate", format!("{one} signatures a second on one session, {many} on {pool} ({kind}, throw-away keys)"));
        }
        Err(error) => {
            let what = format!(
                "the rate of signatures could not be measured with a throw-away {kind} key: {}",
                error.cause()
            );
            telling.findings.warning(
                "rate",
                what,
                "nothing, if the token allows no keys of a session; else look after the device",
            );
        }
    }
}

/// Three digits are more than a third of a second can tell.
fn shown(rate: f64) -> String {
    match rate {
        slow if slow < 10.0 => format!("{slow:.1}"),
        slow if slow < 1_000.0 => format!("{slow:.0}"),
        fast => format!("{}", (fast / 100.0).round() * 100.0),
    }
}
