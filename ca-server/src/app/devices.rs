//! Files in the ledger what becomes of the tokens: a row for each change of a token's state, so
//! that an auditor sees an outage beside the intents that it failed.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use ::signers::Condition;
use tokio::time::{MissedTickBehavior, interval};

use super::Daemon;
use crate::store::ledger::DeviceFacts;

/// How often the tokens are looked at. What is over sooner is counted by the metrics alone.
const LOOK: Duration = Duration::from_millis(200);

/// Looks in a row before a state is filed in which it signs: sessions that open one after the other
/// are no event.
const LOOKS: u32 = 5;

/// A token: its issuer, its place among that issuer's keys, the key's URI.
type Token = (String, usize, String);

#[derive(Clone, Copy)]
struct Seen {
    filed: Condition,
    last: Condition,
    /// Looks in a row that found it so.
    looks: u32,
}

impl Seen {
    /// One that has just been opened is well until it is not.
    const NEW: Self = Self {
        filed: Condition::Healthy,
        last: Condition::Healthy,
        looks: 0,
    };

    /// What is known after another look, and whether that is an event.
    fn again(self, now: Condition) -> (Self, bool) {
        let looks = if now == self.last {
            self.looks.saturating_add(1)
        } else {
            1
        };
        let event = now != self.filed && (looks >= LOOKS || !now.signs());
        (
            Self {
                filed: if event { now } else { self.filed },
                last: now,
                looks,
            },
            event,
        )
    }
}

/// Runs as long as the daemon.
pub(super) async fn file_changes(daemon: Arc<Daemon>) {
    let mut tick = interval(LOOK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut seen = HashMap::new();
    loop {
        tick.tick().await;
        seen = look(&daemon, &seen);
    }
}

fn look(daemon: &Daemon, before: &HashMap<Token, Seen>) -> HashMap<Token, Seen> {
    let snapshot = daemon.pipeline.snapshot();
    let mut seen = HashMap::new();
    for issuer in &snapshot.issuers.0 {
        let Some(signer) = &issuer.signer else {
            continue;
        };
        for (number, health) in signer.health().tokens.into_iter().enumerate() {
            let token = (issuer.chain.id().to_owned(), number, health.uri.clone());
            let (now, event) = before
                .get(&token)
                .copied()
                .unwrap_or(Seen::NEW)
                .again(health.condition);
            if event {
                daemon.ledger.device(DeviceFacts {
                    issuer: issuer.chain.id().to_owned(),
                    token: number as u64 + 1,
                    key_uri: health.uri,
                    state: health.condition.to_string(),
                    detail: health.detail,
                    probes: health.probes,
                });
            }
            seen.insert(token, now);
        }
    }
    seen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_is_an_event_at_once_and_its_end_when_it_lasts() {
        let mut seen = Seen::NEW;
        let mut look = |now: Condition| {
            let (after, event) = seen.again(now);
            seen = after;
            event
        };
        assert!(
            !look(Condition::Degraded) && !look(Condition::Healthy),
            "sessions were opening"
        );
        assert!(
            look(Condition::Reconnecting) && !look(Condition::Reconnecting),
            "once"
        );
        assert!(!look(Condition::Degraded) && !look(Condition::Healthy));
        assert_eq!(
            (0..8).filter(|_| look(Condition::Healthy)).count(),
            1,
            "it is back"
        );
        assert!(look(Condition::LockedOut));
    }
}
