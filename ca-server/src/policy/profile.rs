//! A certificate profile: lifetimes, SAN rule and accepted keys. Its digest stands in every intent.

use std::time::Duration;

use crate::digest::sha256;
use crate::refusal::{Reason, Refusal};
use crate::x509::subject_key::KeyKind;

/// What becomes of the SANs in a CSR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SanRule {
    /// They are ignored; the caller's identity is issued.
    Overwrite,
    /// They must be the caller's identity alone; a CSR without SANs is no mismatch.
    Strict,
}

/// A kind of workload key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum KeyAllowed {
    Rsa,
    P256,
    P384,
    Ed25519,
}

impl KeyAllowed {
    /// The name in config and digest.
    fn name(self) -> &'static str {
        match self {
            Self::Rsa => "rsa",
            Self::P256 => "p256",
            Self::P384 => "p384",
            Self::Ed25519 => "ed25519",
        }
    }
}

/// What is issued. Lifetimes are whole seconds with `minimum ≤ default ≤ maximum`.
#[derive(Clone, Debug)]
pub struct Profile {
    /// Granted when none is asked for.
    pub default: Duration,
    /// Shorter wishes are raised to it.
    pub minimum: Duration,
    /// Longer wishes are refused.
    pub maximum: Duration,
    /// A granted lifetime is shortened by a random part of this, never below the minimum.
    pub jitter: Duration,
    /// SAN rule.
    pub san: SanRule,
    /// Accepted workload keys.
    pub keys: Vec<KeyAllowed>,
}

/// A profile that contradicts itself: the key to change, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadProfile {
    /// The key of `[profile]`.
    pub key: &'static str,
    /// What is wrong with it.
    pub why: &'static str,
}

impl Profile {
    /// The profile, if its limits fit together.
    pub fn checked(self) -> Result<Self, BadProfile> {
        let bad = |key, why| Err(BadProfile { key, why });
        let whole = |lifetime: Duration| lifetime.subsec_nanos() == 0 && !lifetime.is_zero();
        if !whole(self.minimum)
            || !whole(self.maximum)
            || !whole(self.default)
            || self.jitter.subsec_nanos() != 0
        {
            return bad("minimum", "lifetimes are whole seconds, above zero");
        }
        if self.minimum > self.default {
            return bad("default", "it is below `minimum`");
        }
        if self.default > self.maximum {
            return bad("default", "it is above `maximum`");
        }
        if self.maximum > Duration::from_secs(100 * 366 * 86_400) {
            return bad("maximum", "it is above 100 years");
        }
        if self.jitter > self.maximum {
            return bad("jitter", "it is above `maximum`");
        }
        if self.keys.is_empty() {
            return bad("keys", "it is empty, so nothing could be issued");
        }
        Ok(self)
    }

    /// The lifetime for `asked` seconds, before the issuer's end is looked at.
    pub(super) fn lifetime(&self, asked: i64, jitter: u64) -> Result<Duration, Refusal> {
        let granted = match u64::try_from(asked) {
            Err(_) | Ok(0) => self.default,
            Ok(seconds) if Duration::from_secs(seconds) > self.maximum => {
                let why = format_args!(
                    "a lifetime of {seconds} s was asked for, at most {} s are granted",
                    self.maximum.as_secs()
                );
                return Err(Refusal::new(Reason::Lifetime, why));
            }
            Ok(seconds) => Duration::from_secs(seconds).max(self.minimum),
        };
        let shortened_by = jitter % self.jitter.as_secs().saturating_add(1);
        Ok(granted
            .saturating_sub(Duration::from_secs(shortened_by))
            .max(self.minimum))
    }

    pub(super) fn check_key(&self, kind: KeyKind) -> Result<(), Refusal> {
        let (needed, name) = match kind {
            KeyKind::Rsa(_) => (KeyAllowed::Rsa, "RSA"),
            KeyKind::P256 => (KeyAllowed::P256, "P-256"),
            KeyKind::P384 => (KeyAllowed::P384, "P-384"),
            KeyKind::Ed25519 => (KeyAllowed::Ed25519, "Ed25519"),
        };
        if self.keys.contains(&needed) {
            return Ok(());
        }
        Err(Refusal::new(
            Reason::WeakKey,
            format_args!("{name} keys are not accepted by the profile"),
        ))
    }

    /// SHA-256 over every field in a text that `docs/ledger-format.md` gives, so that an auditor
    /// can compute it from a config.
    pub(super) fn digest(&self) -> [u8; 32] {
        let seconds = |lifetime: Duration| lifetime.as_secs();
        let san = match self.san {
            SanRule::Overwrite => "overwrite",
            SanRule::Strict => "strict",
        };
        // In one order whatever the config's, and each once.
        let all = [
            KeyAllowed::Rsa,
            KeyAllowed::P256,
            KeyAllowed::P384,
            KeyAllowed::Ed25519,
        ];
        let keys: Vec<&str> = all
            .iter()
            .filter(|key| self.keys.contains(key))
            .map(|key| key.name())
            .collect();
        let text = format!(
            "default={};minimum={};maximum={};jitter={};san={san};keys={}",
            seconds(self.default),
            seconds(self.minimum),
            seconds(self.maximum),
            seconds(self.jitter),
            keys.join(",")
        );
        sha256(text.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile(jitter: u64) -> Profile {
        let hours = |count: u64| Duration::from_secs(count * 3600);
        Profile {
            default: hours(24),
            minimum: Duration::from_secs(600),
            maximum: hours(90 * 24),
            jitter: Duration::from_secs(jitter),
            san: SanRule::Overwrite,
            keys: vec![KeyAllowed::P256],
        }
    }

    #[test]
    fn a_wish_is_defaulted_raised_or_refused() {
        let maximum = 90 * 86_400;
        let cases = [
            (0, Some(86_400)),
            (-1, Some(86_400)),
            (i64::MIN, Some(86_400)),
            (60, Some(600)),
            (maximum, Some(maximum)),
            (maximum + 1, None),
            (i64::MAX, None),
        ];
        for (asked, granted) in cases {
            assert_eq!(
                profile(0)
                    .lifetime(asked, 7)
                    .ok()
                    .map(|lifetime| lifetime.as_secs() as i64),
                granted,
                "{asked}"
            );
        }
    }

    #[test]
    fn jitter_only_shortens_and_never_below_the_minimum() {
        for random in [0, 1, 59, 60, 61, u64::MAX] {
            let lifetime = profile(60)
                .lifetime(3600, random)
                .expect("granted")
                .as_secs();
            assert!((3540..=3600).contains(&lifetime), "{lifetime}");
            assert_eq!(
                profile(60)
                    .lifetime(600, random)
                    .expect("granted")
                    .as_secs(),
                600
            );
        }
    }

    #[test]
    fn a_profile_that_contradicts_itself_is_refused_by_its_key() {
        let mut wrong = profile(0);
        wrong.default = Duration::from_secs(1);
        assert_eq!(
            wrong.checked().map_err(|bad| bad.key).err(),
            Some("default")
        );
    }
}
