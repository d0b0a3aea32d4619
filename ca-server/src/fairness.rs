//! How much one address, and one identity, may ask for: so many calls a minute, so many connections a minute, so many distinct public keys an
//! hour. Each may come all at once; what was used comes back evenly. State is bounded whatever is sent: where there is no more room, the
//! oldest half is forgotten. That allows an address or an identity more; a public key that was forgotten counts once more.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Deserialize;

use crate::recent::Recent;
use crate::refusal::{Reason, Refusal};
use crate::spiffe::SpiffeId;
use crate::timestamp::Timestamp;
use crate::x509::subject_key::SubjectKey;

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

/// Addresses, and identities, that are remembered: some 11 MiB each when all are used.
const CALLERS: usize = 131_072;

/// Public keys that are remembered over all identities: some 10 MiB.
const KEYS: usize = 524_288;

/// What is allowed, as `[limits]` has it; 0 is no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Calls of one identity in a minute.
    pub identity_calls_a_minute: u32,
    /// Distinct public keys of one identity that are certified in an hour.
    pub identity_keys_an_hour: u32,
    /// Calls from one address in a minute, before anybody has authenticated.
    pub peer_calls_a_minute: u32,
    /// Connections from one address in a minute.
    pub peer_connections_a_minute: u32,
}

impl Default for Limits {
    /// What ten thousand pods need that all start at once and try ten times each.
    fn default() -> Self {
        let all = 100_000;
        Self { identity_calls_a_minute: all, identity_keys_an_hour: all, peer_calls_a_minute: all, peer_connections_a_minute: all }
    }
}

/// What a peer sends before it is known who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// A connection, before its handshake.
    Connection,
    /// A call, before its message.
    Call,
}

/// Who has used how much, for the life of the daemon.
#[derive(Debug)]
pub struct Fairness {
    /// Its key is random, so that nobody can choose addresses or names that fall together.
    hasher: RandomState,
    peers: Mutex<Recent<Peer>>,
    identities: Mutex<Recent<Identity>>,
    keys: Mutex<Recent<()>>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Peer {
    calls: Used,
    connections: Used,
}

#[derive(Clone, Copy, Debug, Default)]
struct Identity {
    calls: Used,
    keys: Used,
}

impl Default for Fairness {
    fn default() -> Self {
        Self {
            hasher: RandomState::new(),
            peers: Mutex::new(Recent::new(CALLERS, MINUTE)),
            identities: Mutex::new(Recent::new(CALLERS, HOUR)),
            keys: Mutex::new(Recent::new(KEYS, HOUR)),
        }
    }
}

impl Fairness {
    /// Whether a peer may have one more.
    pub fn admits(&self, limits: &Limits, arrival: Arrival, peer: IpAddr, now: Timestamp) -> bool {
        let limit = match arrival {
            Arrival::Connection => limits.peer_connections_a_minute,
            Arrival::Call => limits.peer_calls_a_minute,
        };
        if limit == 0 {
            return true;
        }
        let mut peers = lock(&self.peers);
        let peer = peers.entry(self.hasher.hash_one(network(peer)), now);
        let used = match arrival {
            Arrival::Connection => &mut peer.connections,
            Arrival::Call => &mut peer.calls,
        };
        used.take(limit, MINUTE, now)
    }

    /// One call of an identity.
    pub fn call(&self, limits: &Limits, identity: &SpiffeId, now: Timestamp) -> Result<(), Refusal> {
        let limit = limits.identity_calls_a_minute;
        if limit == 0 || lock(&self.identities).entry(self.hasher.hash_one(identity), now).calls.take(limit, MINUTE, now) {
            return Ok(());
        }
        Err(Refusal::new(Reason::IdentityLimit, format_args!("{identity} has made more than {limit} calls in a minute")))
    }

    /// One public key of an identity. It counts if it is new, and only once it is certified: an outage must not use up what is allowed.
    pub fn key(self: &Arc<Self>, limits: &Limits, identity: &SpiffeId, key: &SubjectKey, now: Timestamp) -> Result<NewKey, Refusal> {
        let limit = limits.identity_keys_an_hour;
        let (key, identity_hash) = (self.hasher.hash_one((identity, key.spki())), self.hasher.hash_one(identity));
        if limit == 0 || lock(&self.keys).knows(key, now) {
            return Ok(NewKey(None));
        }
        if lock(&self.identities).entry(identity_hash, now).keys.take(limit, HOUR, now) {
            return Ok(NewKey(Some(Taken { fairness: self.clone(), identity: identity_hash, key, at: now })));
        }
        Err(Refusal::new(Reason::KeyLimit, format_args!("{identity} has had more than {limit} distinct public keys certified in an hour")))
    }
}

/// A public key that is about to be certified. Dropped, it has not counted.
#[derive(Debug)]
pub struct NewKey(Option<Taken>);

#[derive(Debug)]
struct Taken {
    fairness: Arc<Fairness>,
    identity: u64,
    key: u64,
    at: Timestamp,
}

impl NewKey {
    /// It is certified: from here on it counts, and is known.
    pub fn certified(mut self) {
        // Of two calls with one new key, which have taken twice, the second gives back.
        if self.0.as_ref().is_some_and(|taken| lock(&taken.fairness.keys).learns(taken.key, taken.at)) {
            self.0 = None;
        }
    }
}

impl Drop for NewKey {
    fn drop(&mut self) {
        if let Some(taken) = self.0.take() {
            lock(&taken.fairness.identities).entry(taken.identity, taken.at).keys.give_back(HOUR);
        }
    }
}

/// An IPv4 address, or the /64 that an IPv6 host may choose its addresses from.
pub(crate) fn network(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => {
            let mut octets = address.octets();
            octets[8..].fill(0);
            octets.into()
        }
    }
}

/// By how much a call may be judged after another that began later, µs: longer than a call can last.
const LATE: i64 = 120_000_000;

/// What was used of a limit, draining evenly. In units of which one use is as many as its period has microseconds, so that a limit of so many
/// a period drains so many a microsecond.
#[derive(Clone, Copy, Debug, Default)]
struct Used {
    units: u64,
    at: i64,
}

impl Used {
    /// Uses one of `limit` in `period`, unless all are used.
    fn take(&mut self, limit: u32, period: Duration, now: Timestamp) -> bool {
        let (one, limit) = (units(period), u64::from(limit));
        // Calls are not judged in the order in which they read the time: one that is late drains nothing. A clock that was set back drains
        // nothing either, and goes on from there.
        let passed = u64::try_from(now.micros() - self.at).unwrap_or(0);
        self.units = self.units.saturating_sub(passed.saturating_mul(limit));
        let set_back = self.at - now.micros() > LATE;
        self.at = if set_back { now.micros() } else { self.at.max(now.micros()) };
        let after = self.units.saturating_add(one);
        let allowed = after <= limit.saturating_mul(one);
        if allowed {
            self.units = after;
        }
        allowed
    }

    fn give_back(&mut self, period: Duration) {
        self.units = self.units.saturating_sub(units(period));
    }
}

fn units(period: Duration) -> u64 {
    u64::try_from(period.as_micros()).unwrap_or(u64::MAX)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::refusal::Code;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_seconds(1_795_348_800 + seconds)
    }

    fn peer(address: &str) -> IpAddr {
        address.parse().unwrap()
    }

    fn identity(name: &str) -> SpiffeId {
        SpiffeId::parse(&format!("spiffe://cluster.local/ns/default/sa/{name}")).unwrap()
    }

    fn key() -> SubjectKey {
        let key = rcgen::KeyPair::generate().unwrap();
        SubjectKey::from_spki(&rcgen::PublicKeyData::subject_public_key_info(&key)).unwrap()
    }

    const FIVE: Limits =
        Limits { identity_calls_a_minute: 5, identity_keys_an_hour: 5, peer_calls_a_minute: 5, peer_connections_a_minute: 5 };

    #[test]
    fn a_limit_may_be_used_at_once_and_comes_back_evenly() {
        let fairness = Fairness::default();
        let calls = |seconds| (0..9).filter(|_| fairness.call(&FIVE, &identity("a"), at(seconds)).is_ok()).count();
        assert_eq!([calls(0), calls(11), calls(12), calls(36), calls(400)], [5, 0, 1, 2, 5]);
        assert_eq!(calls(0), 0, "a clock that was set back drains nothing");
        assert_eq!(calls(12), 1, "and drains from there on");
        let refused = fairness.call(&FIVE, &identity("a"), at(12)).unwrap_err();
        assert_eq!((refused.reason(), refused.code()), (Reason::IdentityLimit, Code::ResourceExhausted));
        fairness.call(&FIVE, &identity("b"), at(12)).expect("others are not touched");
    }

    #[test]
    fn a_limit_of_0_is_none_and_a_new_limit_counts_at_once() {
        let fairness = Fairness::default();
        let none = Limits { identity_calls_a_minute: 0, identity_keys_an_hour: 0, peer_calls_a_minute: 0, peer_connections_a_minute: 0 };
        let calls = |limits: &Limits| (0..200).filter(|_| fairness.call(limits, &identity("a"), at(0)).is_ok()).count();
        assert_eq!(calls(&none), 200);
        assert_eq!(calls(&FIVE), 5);
        assert_eq!(calls(&Limits { identity_calls_a_minute: 50, ..FIVE }), 45);
        assert_eq!(calls(&Limits { identity_calls_a_minute: u32::MAX, ..FIVE }), 200);
    }

    #[test]
    fn connections_and_calls_of_an_address_are_counted_apart_and_an_ipv6_host_is_its_network() {
        let fairness = Fairness::default();
        let admitted = |arrival, address: &str| (0..9).filter(|_| fairness.admits(&FIVE, arrival, peer(address), at(0))).count();
        assert_eq!(admitted(Arrival::Connection, "10.0.0.1"), 5);
        assert_eq!(admitted(Arrival::Call, "10.0.0.1"), 5);
        assert_eq!(admitted(Arrival::Call, "::ffff:10.0.0.1"), 0, "the same address");
        assert_eq!(admitted(Arrival::Call, "10.0.0.2"), 5);
        assert_eq!(admitted(Arrival::Call, "2001:db8::1"), 5);
        assert_eq!(admitted(Arrival::Call, "2001:db8::ffff:2"), 0, "an IPv6 host has a whole /64");
        assert_eq!(admitted(Arrival::Call, "2001:db8:0:1::1"), 5);
    }

    #[test]
    fn a_key_counts_once_and_only_when_it_is_certified() {
        let fairness = Arc::new(Fairness::default());
        let of = |name: &str, key: &SubjectKey| fairness.key(&FIVE, &identity(name), key, at(0));
        let keys: Vec<SubjectKey> = (0..6).map(|_| key()).collect();
        for _ in 0..9 {
            drop(of("a", &keys[0]).expect("nothing was certified"));
        }
        for key in &keys[..5] {
            let (one, other) = (of("a", key), of("a", key));
            one.expect("new").certified();
            if let Ok(other) = other {
                other.certified();
            }
        }
        assert_eq!(of("a", &keys[5]).expect_err("a sixth").reason(), Reason::KeyLimit);
        of("a", &keys[4]).expect("a key that is known").certified();
        of("b", &keys[5]).expect("another identity").certified();
        fairness.key(&FIVE, &identity("a"), &keys[5], at(720)).expect("a fifth of an hour later");
    }

    #[test]
    fn ten_thousand_pods_that_start_at_once_with_six_tries_each_meet_no_default_limit() {
        const PODS: usize = 10_000;
        let (fairness, limits) = (Arc::new(Fairness::default()), Limits::default());
        let (gateway, account) = (peer("10.0.0.1"), identity("a"));
        for _ in 0..6 * PODS {
            assert!(fairness.admits(&limits, Arrival::Connection, gateway, at(0)));
            assert!(fairness.admits(&limits, Arrival::Call, gateway, at(0)));
            fairness.call(&limits, &account, at(0)).expect("within the limit");
        }
        for _ in 0..PODS {
            fairness.key(&limits, &account, &key(), at(0)).expect("within the limit").certified();
        }
    }
}
