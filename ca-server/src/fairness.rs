//! How much one address, and one identity, may ask for: so many calls a minute, so many connections
//! a minute, so many distinct public keys an hour; and so many connections and calls that are open
//! at a time. Each may come all at once; what was used comes back evenly. State is bounded whatever
//! is sent: where there is no more room, the oldest half is forgotten. That allows an address or an
//! identity more; a public key that was forgotten counts once more.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Deserialize;

use crate::places::{NoPlace, Place, Places, network};
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

/// Connections that are open at a time, over all addresses.
pub const CONNECTIONS: usize = 20_000;

/// Calls that are open at a time, over all addresses: from their headers to their answer. Several
/// times what may be under way with a permit, because a call has none while its body arrives; each
/// may hold its headers and a small body until then.
pub const CALLS: usize = 4_096;

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
    /// Connections of one address that are open at a time; never more than are still free.
    pub peer_open_connections: u32,
    /// Calls from one address that are open at a time; never more than are still free.
    pub peer_open_calls: u32,
}

impl Default for Limits {
    /// What ten thousand pods need that all start at once and try ten times each, also when they
    /// come through one gateway and each keeps its connection. Of the calls that they have open at
    /// a time, no more could be under way anyway.
    fn default() -> Self {
        let all = 100_000;
        Self {
            identity_calls_a_minute: all,
            identity_keys_an_hour: all,
            peer_calls_a_minute: all,
            peer_connections_a_minute: all,
            peer_open_connections: 10_000,
            peer_open_calls: 2_000,
        }
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

/// Why a peer may not have one more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotAdmitted {
    /// As many are open as may be, over all addresses.
    Full,
    /// As many of this address are open as may be.
    Share,
    /// This address has had as many in a minute as it may.
    Rate,
}

/// Who has used how much, for the life of the daemon.
#[derive(Debug)]
pub struct Fairness {
    /// Its key is random, so that nobody can choose addresses or names that fall together.
    hasher: RandomState,
    peers: Mutex<Recent<Peer>>,
    identities: Mutex<Recent<Identity>>,
    keys: Mutex<Recent<()>>,
    connections: Arc<Places>,
    calls: Arc<Places>,
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
            connections: Places::new(CONNECTIONS),
            calls: Places::new(CALLS),
        }
    }
}

impl Fairness {
    /// One more of a peer, which is open until the place is dropped; or why not.
    pub fn admits(
        &self,
        limits: &Limits,
        arrival: Arrival,
        peer: IpAddr,
        now: Timestamp,
    ) -> Result<Place, NotAdmitted> {
        let (places, share, limit) = match arrival {
            Arrival::Connection => (
                &self.connections,
                limits.peer_open_connections,
                limits.peer_connections_a_minute,
            ),
            Arrival::Call => (
                &self.calls,
                limits.peer_open_calls,
                limits.peer_calls_a_minute,
            ),
        };
        let place = places.take(peer, share).map_err(|none| match none {
            NoPlace::Full => NotAdmitted::Full,
            NoPlace::Share => NotAdmitted::Share,
        })?;
        if limit == 0 {
            return Ok(place);
        }
        let mut peers = lock(&self.peers);
        let peer = peers.entry(self.hasher.hash_one(network(peer)), now);
        let used = match arrival {
            Arrival::Connection => &mut peer.connections,
            Arrival::Call => &mut peer.calls,
        };
        if used.take(limit, MINUTE, now) {
            Ok(place)
        } else {
            Err(NotAdmitted::Rate)
        }
    }

    /// One call of an identity.
    pub fn call(
        &self,
        limits: &Limits,
        identity: &SpiffeId,
        now: Timestamp,
    ) -> Result<(), Refusal> {
        let limit = limits.identity_calls_a_minute;
        if limit == 0
            || lock(&self.identities)
                .entry(self.hasher.hash_one(identity), now)
                .calls
                .take(limit, MINUTE, now)
        {
            return Ok(());
        }
        Err(Refusal::new(
            Reason::IdentityLimit,
            format_args!("{identity} has made more than {limit} calls in a minute"),
        ))
    }

    /// One public key of an identity. It counts if it is new, and only once it is certified: an
    /// outage must not use up what is allowed.
    pub fn key(
        self: &Arc<Self>,
        limits: &Limits,
        identity: &SpiffeId,
        key: &SubjectKey,
        now: Timestamp,
    ) -> Result<NewKey, Refusal> {
        let limit = limits.identity_keys_an_hour;
        let (key, identity_hash) = (
            self.hasher.hash_one((identity, key.spki())),
            self.hasher.hash_one(identity),
        );
        if limit == 0 || lock(&self.keys).knows(key, now) {
            return Ok(NewKey(None));
        }
        if lock(&self.identities)
            .entry(identity_hash, now)
            .keys
            .take(limit, HOUR, now)
        {
            return Ok(NewKey(Some(Taken {
                fairness: self.clone(),
                identity: identity_hash,
                key,
                at: now,
            })));
        }
        Err(Refusal::new(
            Reason::KeyLimit,
            format_args!(
                "{identity} has had more than {limit} distinct public keys certified in an hour"
            ),
        ))
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
        if self
            .0
            .as_ref()
            .is_some_and(|taken| lock(&taken.fairness.keys).learns(taken.key, taken.at))
        {
            self.0 = None;
        }
    }
}

impl Drop for NewKey {
    fn drop(&mut self) {
        if let Some(taken) = self.0.take() {
            lock(&taken.fairness.identities)
                .entry(taken.identity, taken.at)
                .keys
                .give_back(HOUR);
        }
    }
}

/// By how much a call may be judged after another that began later, µs: longer than a call can
/// last.
const LATE: i64 = 120_000_000;

/// What was used of a limit: the generic cell rate algorithm, kept as its leaky bucket. In units of
/// which one use is as many as its period has microseconds, so that a limit of so many a period
/// drains so many a microsecond.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Used {
    units: u64,
    at: i64,
}

impl Used {
    /// Uses one of `limit` in `period`, unless all are used.
    pub(crate) fn take(&mut self, limit: u32, period: Duration, now: Timestamp) -> bool {
        let (one, limit) = (units(period), u64::from(limit));
        // What a higher limit allowed before counts as all of this one and no more: a limit that
        // was lowered shuts nobody out for longer than its own pace.
        self.units = self.units.min(limit.saturating_mul(one));
        // Calls are not judged in the order in which they read the time: one that is late drains
        // nothing. A clock that was set back drains nothing either, and goes on from there.
        let passed = u64::try_from(now.micros() - self.at).unwrap_or(0);
        self.units = self.units.saturating_sub(passed.saturating_mul(limit));
        let set_back = self.at - now.micros() > LATE;
        self.at = if set_back {
            now.micros()
        } else {
            self.at.max(now.micros())
        };
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

    const FIVE: Limits = Limits {
        identity_calls_a_minute: 5,
        identity_keys_an_hour: 5,
        peer_calls_a_minute: 5,
        peer_connections_a_minute: 5,
        peer_open_connections: 5,
        peer_open_calls: 5,
    };

    #[test]
    fn a_limit_may_be_used_at_once_and_comes_back_evenly() {
        let fairness = Fairness::default();
        let calls = |seconds| {
            (0..9)
                .filter(|_| fairness.call(&FIVE, &identity("a"), at(seconds)).is_ok())
                .count()
        };
        assert_eq!(
            [calls(0), calls(11), calls(12), calls(36), calls(400)],
            [5, 0, 1, 2, 5]
        );
        assert_eq!(calls(0), 0, "a clock that was set back drains nothing");
        assert_eq!(calls(12), 1, "and drains from there on");
        let refused = fairness.call(&FIVE, &identity("a"), at(12)).unwrap_err();
        assert_eq!(
            (refused.reason(), refused.code()),
            (Reason::IdentityLimit, Code::ResourceExhausted)
        );
        fairness
            .call(&FIVE, &identity("b"), at(12))
            .expect("others are not touched");
    }

    #[test]
    fn a_limit_of_0_is_none_and_a_new_limit_counts_at_once() {
        let fairness = Fairness::default();
        let none = Limits {
            identity_calls_a_minute: 0,
            ..FIVE
        };
        let calls = |limits: &Limits| {
            (0..200)
                .filter(|_| fairness.call(limits, &identity("a"), at(0)).is_ok())
                .count()
        };
        assert_eq!(calls(&none), 200);
        assert_eq!(calls(&FIVE), 5);
        assert_eq!(
            calls(&Limits {
                identity_calls_a_minute: 50,
                ..FIVE
            }),
            45
        );
        assert_eq!(
            calls(&Limits {
                identity_calls_a_minute: u32::MAX,
                ..FIVE
            }),
            200
        );
    }

    #[test]
    fn a_limit_that_is_lowered_shuts_nobody_out_for_longer_than_its_own_pace() {
        let fairness = Arc::new(Fairness::default());
        let (generous, lower) = (
            Limits::default(),
            Limits {
                identity_calls_a_minute: 10,
                identity_keys_an_hour: 10,
                ..FIVE
            },
        );
        for _ in 0..100_000 {
            fairness
                .call(&generous, &identity("a"), at(0))
                .expect("within the limit");
        }
        let calls = |seconds| {
            (0..99)
                .filter(|_| fairness.call(&lower, &identity("a"), at(seconds)).is_ok())
                .count()
        };
        assert_eq!(
            [calls(0), calls(5), calls(6), calls(66), calls(200)],
            [0, 0, 1, 10, 10]
        );
        let keys: Vec<SubjectKey> = (0..1_000).map(|_| key()).collect();
        let certified = |limits: &Limits, keys: &[SubjectKey], seconds| {
            let known = keys
                .iter()
                .filter_map(|key| fairness.key(limits, &identity("a"), key, at(seconds)).ok());
            known.map(NewKey::certified).count()
        };
        assert_eq!(certified(&generous, &keys[..900], 0), 900);
        assert_eq!(
            [
                certified(&lower, &keys[900..950], 300),
                certified(&lower, &keys[950..], 720)
            ],
            [0, 2],
            "one in six minutes"
        );
    }

    #[test]
    fn connections_and_calls_of_an_address_are_counted_apart_and_an_ipv6_host_is_its_network() {
        let fairness = Fairness::default();
        let admitted = |arrival, address: &str| {
            (0..9)
                .filter(|_| {
                    fairness
                        .admits(&FIVE, arrival, peer(address), at(0))
                        .is_ok()
                })
                .count()
        };
        assert_eq!(admitted(Arrival::Connection, "10.0.0.1"), 5);
        assert_eq!(admitted(Arrival::Call, "10.0.0.1"), 5);
        assert_eq!(
            admitted(Arrival::Call, "::ffff:10.0.0.1"),
            0,
            "the same address"
        );
        assert_eq!(admitted(Arrival::Call, "10.0.0.2"), 5);
        assert_eq!(admitted(Arrival::Call, "2001:db8::1"), 5);
        assert_eq!(
            admitted(Arrival::Call, "2001:db8::ffff:2"),
            0,
            "an IPv6 host has a whole /64"
        );
        assert_eq!(admitted(Arrival::Call, "2001:db8:0:1::1"), 5);
    }

    #[test]
    fn what_an_address_has_open_is_limited_apart_from_how_much_it_sends() {
        let (fairness, often) = (
            Fairness::default(),
            Limits {
                peer_calls_a_minute: 0,
                peer_connections_a_minute: 0,
                ..FIVE
            },
        );
        for arrival in [Arrival::Connection, Arrival::Call] {
            let admit = |limits: &Limits, address: &str| {
                fairness.admits(limits, arrival, peer(address), at(0))
            };
            let mut open: Vec<Place> = (0..5)
                .map(|_| admit(&often, "10.0.0.1").expect("within the limit"))
                .collect();
            assert_eq!(admit(&often, "10.0.0.1").unwrap_err(), NotAdmitted::Share);
            admit(&often, "10.0.0.2").expect("another address");
            open.pop();
            admit(&often, "10.0.0.1").expect("one has ended");
            drop(open);
            let spent = (0..9)
                .filter_map(|_| admit(&FIVE, "10.0.0.3").err())
                .next_back();
            assert_eq!(spent, Some(NotAdmitted::Rate));
        }
    }

    #[test]
    fn one_address_leaves_half_of_all_connections_and_calls_to_others() {
        let (fairness, limits) = (
            Fairness::default(),
            Limits {
                peer_open_connections: u32::MAX,
                peer_open_calls: u32::MAX,
                ..Limits::default()
            },
        );
        for (arrival, most) in [(Arrival::Connection, CONNECTIONS), (Arrival::Call, CALLS)] {
            let open: Vec<Place> = std::iter::from_fn(|| {
                fairness
                    .admits(&limits, arrival, peer("10.0.0.1"), at(0))
                    .ok()
            })
            .collect();
            assert_eq!(open.len(), most / 2);
            fairness
                .admits(&limits, arrival, peer("10.0.0.2"), at(0))
                .expect("there is room");
        }
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
        assert_eq!(
            of("a", &keys[5]).expect_err("a sixth").reason(),
            Reason::KeyLimit
        );
        of("a", &keys[4]).expect("a key that is known").certified();
        of("b", &keys[5]).expect("another identity").certified();
        fairness
            .key(&FIVE, &identity("a"), &keys[5], at(720))
            .expect("a fifth of an hour later");
    }

    #[test]
    fn ten_thousand_pods_that_start_at_once_with_six_tries_each_meet_no_default_limit() {
        const PODS: usize = 10_000;
        let (fairness, limits) = (Arc::new(Fairness::default()), Limits::default());
        let (gateway, account) = (peer("10.0.0.1"), identity("a"));
        for _ in 0..6 * PODS {
            drop(
                fairness
                    .admits(&limits, Arrival::Connection, gateway, at(0))
                    .expect("within the limit"),
            );
            drop(
                fairness
                    .admits(&limits, Arrival::Call, gateway, at(0))
                    .expect("within the limit"),
            );
            fairness
                .call(&limits, &account, at(0))
                .expect("within the limit");
        }
        for _ in 0..PODS {
            fairness
                .key(&limits, &account, &key(), at(0))
                .expect("within the limit")
                .certified();
        }
        let connection = |_| {
            fairness
                .admits(&limits, Arrival::Connection, gateway, at(0))
                .expect("each keeps its own")
        };
        assert_eq!(
            (0..PODS).map(connection).collect::<Vec<Place>>().len(),
            PODS
        );
    }
}
