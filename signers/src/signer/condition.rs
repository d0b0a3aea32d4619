//! How a signer is, in the four words that readiness, metrics, the ledger and operators use.

use std::fmt;

use crate::{Health, HealthState};

/// How a signer, or one of its tokens, is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Condition {
    /// Every session of every token can sign.
    Healthy,
    /// It signs with a part of what it has.
    Degraded,
    /// It cannot sign now, and tries again by itself.
    Reconnecting,
    /// A token refused our PIN: an operator must act.
    LockedOut,
}

impl Condition {
    /// All of them, the best first.
    pub const ALL: [Self; 4] = [
        Self::Healthy,
        Self::Degraded,
        Self::Reconnecting,
        Self::LockedOut,
    ];

    /// The name in metrics, rows and readiness.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Degraded => "degraded",
            Self::Reconnecting => "reconnecting",
            Self::LockedOut => "locked_out",
        }
    }

    /// Whether it can sign.
    pub fn signs(self) -> bool {
        matches!(self, Self::Healthy | Self::Degraded)
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How one token is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenHealth {
    /// The key's URI there, without secrets.
    pub uri: String,
    /// Its sessions, as last heard.
    pub sessions: Health,
    /// In one word.
    pub condition: Condition,
    /// Whether it is left alone until a probe succeeds.
    pub circuit_open: bool,
    /// Throw-away signatures that probes have made of it since the start.
    pub probes: u64,
    /// One sentence for people.
    pub detail: String,
}

impl TokenHealth {
    pub(super) fn of(uri: String, sessions: Health, trouble: Option<String>, probes: u64) -> Self {
        let condition = match sessions.state {
            HealthState::Locked => Condition::LockedOut,
            HealthState::Lost
            | HealthState::Stuck
            | HealthState::Stopped
            | HealthState::Restarting => Condition::Reconnecting,
            HealthState::Ready if trouble.is_some() => Condition::Reconnecting,
            HealthState::Ready if sessions.open < sessions.threads || sessions.stuck > 0 => {
                Condition::Degraded
            }
            HealthState::Ready => Condition::Healthy,
        };
        let detail = match &trouble {
            Some(trouble) => format!(
                "signatures fail ({trouble}), it is probed; {}",
                sessions.detail
            ),
            None => sessions.detail.clone(),
        };
        Self {
            uri,
            sessions,
            condition,
            circuit_open: trouble.is_some(),
            probes,
            detail,
        }
    }

    /// A process that is replaced at once costs calls a moment and is no reason to send them
    /// elsewhere.
    fn is_ready(&self) -> bool {
        !self.circuit_open && self.sessions.is_ready()
    }
}

/// How a signer is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignerHealth {
    /// In one word.
    pub condition: Condition,
    /// The sessions of the token that is best off.
    pub state: HealthState,
    /// Sessions of all tokens, open or not.
    pub threads: usize,
    /// Sessions that are open.
    pub open: usize,
    /// Sessions whose device call is past its deadline.
    pub stuck: usize,
    /// Jobs that wait.
    pub queued: usize,
    /// Each of its tokens, in the config's order.
    pub tokens: Vec<TokenHealth>,
    /// One sentence for people.
    pub detail: String,
}

impl SignerHealth {
    pub(super) fn of(tokens: Vec<TokenHealth>) -> Self {
        let worst = tokens
            .iter()
            .map(|token| token.condition)
            .max()
            .unwrap_or(Condition::Reconnecting);
        let best = tokens
            .iter()
            .map(|token| token.condition)
            .min()
            .unwrap_or(Condition::Reconnecting);
        let condition = match (best, worst) {
            (Condition::Healthy, Condition::Healthy) => Condition::Healthy,
            (best, _) if best.signs() => Condition::Degraded,
            (best, _) => best,
        };
        let detail = match tokens.as_slice() {
            [alone] => alone.detail.clone(),
            several => {
                let of = several.iter().enumerate();
                of.map(|(number, token)| {
                    format!(
                        "token {} is {}: {}",
                        number + 1,
                        token.condition,
                        token.detail
                    )
                })
                .collect::<Vec<_>>()
                .join("; ")
            }
        };
        let state = tokens
            .iter()
            .min_by_key(|token| token.condition)
            .map_or(HealthState::Stopped, |token| token.sessions.state);
        let sum = |of: fn(&Health) -> usize| tokens.iter().map(|token| of(&token.sessions)).sum();
        let (threads, open) = (sum(|health| health.threads), sum(|health| health.open));
        let (stuck, queued) = (sum(|health| health.stuck), sum(|health| health.queued));
        Self {
            condition,
            state,
            threads,
            open,
            stuck,
            queued,
            tokens,
            detail,
        }
    }

    /// Whether calls should come: something signs, or will in a moment.
    pub fn is_ready(&self) -> bool {
        self.tokens.iter().any(TokenHealth::is_ready)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(state: HealthState, open: usize, trouble: Option<&str>) -> TokenHealth {
        let sessions = Health {
            state,
            threads: 4,
            open,
            stuck: 0,
            queued: 0,
            detail: "so it is".into(),
        };
        TokenHealth::of("pkcs11:".into(), sessions, trouble.map(str::to_owned), 0)
    }

    #[test]
    fn one_token_that_signs_is_enough_and_every_other_is_said() {
        let (well, lost, locked) = (
            token(HealthState::Ready, 4, None),
            token(HealthState::Lost, 0, None),
            token(HealthState::Locked, 0, None),
        );
        let failing = token(HealthState::Ready, 4, Some("CKR_FUNCTION_FAILED"));
        let few = token(HealthState::Ready, 2, None);
        let condition = |tokens: &[&TokenHealth]| {
            let health = SignerHealth::of(tokens.iter().map(|token| (*token).clone()).collect());
            (health.condition, health.is_ready())
        };
        assert_eq!(condition(&[&well]), (Condition::Healthy, true));
        assert_eq!(condition(&[&few]), (Condition::Degraded, true));
        assert_eq!(condition(&[&lost]), (Condition::Reconnecting, false));
        assert_eq!(
            condition(&[&failing]),
            (Condition::Reconnecting, false),
            "open sessions that do not sign are no comfort"
        );
        assert_eq!(condition(&[&locked]), (Condition::LockedOut, false));
        assert_eq!(condition(&[&well, &lost]), (Condition::Degraded, true));
        assert_eq!(condition(&[&locked, &well]), (Condition::Degraded, true));
        assert_eq!(
            condition(&[&locked, &lost]),
            (Condition::Reconnecting, false),
            "one of them may come back by itself"
        );
        assert_eq!(
            condition(&[&locked, &locked]),
            (Condition::LockedOut, false)
        );
        assert_eq!(
            condition(&[&token(HealthState::Restarting, 0, None)]),
            (Condition::Reconnecting, true),
            "for a moment"
        );
    }
}
