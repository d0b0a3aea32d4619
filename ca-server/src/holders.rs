//! Who holds a certificate, and until when, as far as this process has issued it: whoever would be
//! without one is served before those that merely renew. Whoever asks long before a renewal is due
//! has lost what it held, as a container does that restarts in its pod. So many holders are
//! remembered and no more; one that is forgotten, and everybody after a restart, counts as one that
//! has none.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::admission::Standing;
use crate::evidence::Evidence;
use crate::fairness::Used;
use crate::places::network;
use crate::recent::Recent;
use crate::spiffe::SpiffeId;
use crate::timestamp::Timestamp;

/// Holders that are remembered: some 24 MiB when all are used.
const HOLDERS: usize = 262_144;

/// The part of a certificate's life, in twentieths, before which nobody renews it: agents do at
/// half of it, give or take a little.
const NOT_DUE: u32 = 9;

/// How often a holder is believed to have lost its certificate: so many times in this time, and
/// evenly after that. A kubelet that restarts a container again and again soon waits minutes
/// between two tries.
const LOSSES: (u32, Duration) = (4, Duration::from_secs(600));

/// The holders of the life of the daemon.
#[derive(Debug)]
pub struct Holders {
    /// Its key is random, so that nobody can choose names that fall together.
    hasher: RandomState,
    known: Mutex<Recent<Known>>,
    /// Those that are asking now, each once; no more than there are calls.
    asking: Mutex<HashSet<u64>>,
}

/// What is known of one.
#[derive(Clone, Copy, Debug, Default)]
struct Known {
    certificate: Option<Held>,
    /// How often it was believed to have lost one.
    lost: Used,
}

#[derive(Clone, Copy, Debug)]
struct Held {
    until: Timestamp,
    /// From when on it may be renewing.
    due: Timestamp,
}

impl Default for Holders {
    fn default() -> Self {
        Self {
            hasher: RandomState::new(),
            known: Mutex::new(Recent::new(HOLDERS, Duration::MAX)),
            asking: Mutex::default(),
        }
    }
}

impl Holders {
    /// The one that asks. Replicas share an identity: they are told apart by the pod that the token
    /// is bound to, else by their network.
    pub fn holder(self: &Arc<Self>, identity: &SpiffeId, evidence: &Evidence) -> Holder {
        let pod = evidence.pod.as_ref().map(|pod| pod.uid.as_str());
        let address: Option<IpAddr> = if pod.is_none() {
            evidence.peer.map(|peer| network(peer.ip()))
        } else {
            None
        };
        let key = self.hasher.hash_one((identity, pod, address));
        Holder {
            holders: self.clone(),
            key,
            first: lock(&self.asking).insert(key),
        }
    }

    fn known(&self) -> MutexGuard<'_, Recent<Known>> {
        lock(&self.known)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One of them, which may hold a certificate, for the time of one call.
#[derive(Debug)]
pub struct Holder {
    holders: Arc<Holders>,
    key: u64,
    /// No other call of it is under way.
    first: bool,
}

impl Drop for Holder {
    fn drop(&mut self) {
        if self.first {
            lock(&self.holders.asking).remove(&self.key);
        }
    }
}

impl Holder {
    /// How urgent it is for it. `presented` is the end of the certificate that it proved itself
    /// with, if it did.
    pub fn standing(&self, presented: Option<Timestamp>, now: Timestamp) -> Standing {
        if !self.first {
            return Standing::Again;
        }
        let held = self
            .holders
            .known()
            .get(self.key)
            .and_then(|known| known.certificate);
        match held.map(|held| held.until).max(presented) {
            Some(until) if until > now => {
                // Who presents a certificate has one.
                let lost = presented.is_none()
                    && held.is_some_and(|held| now < held.due)
                    && self.may_have_lost_it(now);
                if lost {
                    Standing::First
                } else {
                    Standing::Renewal { until }
                }
            }
            _ => Standing::First,
        }
    }

    /// Nobody gets before others for long by saying so.
    fn may_have_lost_it(&self, now: Timestamp) -> bool {
        let (times, time) = LOSSES;
        self.holders
            .known()
            .entry(self.key, now)
            .lost
            .take(times, time, now)
    }

    /// It has been given a certificate that ends then, and uses no older one.
    pub fn holds(&self, until: Timestamp, now: Timestamp) {
        let due = now.plus(until.since(now) * NOT_DUE / 20);
        self.holders.known().entry(self.key, now).certificate = Some(Held { until, due });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evidence::Pod;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_seconds(1_795_348_800 + seconds)
    }

    fn identity(name: &str) -> SpiffeId {
        SpiffeId::parse(&format!("spiffe://cluster.local/ns/default/sa/{name}")).unwrap()
    }

    fn of(pod: Option<&str>, peer: &str) -> Evidence {
        let pod = pod.map(|uid| Pod {
            name: "pod".to_owned(),
            uid: uid.to_owned(),
        });
        Evidence {
            pod,
            peer: Some(peer.parse().unwrap()),
            ..Evidence::daemon()
        }
    }

    #[test]
    fn whoever_was_given_a_certificate_renews_until_it_ends() {
        let holders = Arc::new(Holders::default());
        let (a, pod) = (identity("a"), of(Some("1"), "10.0.0.1:1"));
        assert_eq!(
            holders.holder(&a, &pod).standing(None, at(0)),
            Standing::First
        );
        holders.holder(&a, &pod).holds(at(100), at(0));
        let standing = |now| holders.holder(&a, &pod).standing(None, now);
        assert_eq!(
            [45, 99].map(|now| standing(at(now))),
            [Standing::Renewal { until: at(100) }; 2]
        );
        assert_eq!(
            standing(at(100)),
            Standing::First,
            "one that has ended is none"
        );
        holders.holder(&a, &pod).holds(at(50), at(10));
        assert_eq!(
            standing(at(28)),
            Standing::Renewal { until: at(50) },
            "the newest is the one in use"
        );
    }

    #[test]
    fn a_container_that_restarts_in_its_pod_is_not_put_last() {
        const DAY: i64 = 86_400;
        let holders = Arc::new(Holders::default());
        let ask = |now: i64| {
            let holder = holders.holder(&identity("a"), &of(Some("1"), "10.0.0.1:1"));
            let standing = holder.standing(None, at(now));
            holder.holds(at(now + DAY), at(now));
            standing
        };
        let first = |times: &[i64]| {
            times
                .iter()
                .filter(|now| ask(**now) == Standing::First)
                .count()
        };
        // As a kubelet waits between restarts.
        assert_eq!(
            first(&[0, 1, 11, 31, 71]),
            5,
            "a certificate in memory is lost with the container"
        );
        assert_eq!(
            first(&[80, 90, 100, 110]),
            0,
            "nobody stays before the others by asking again and again"
        );
        assert_eq!(first(&[231, 531, 831]), 3);
        let holder = holders.holder(&identity("a"), &of(Some("1"), "10.0.0.1:1"));
        assert_eq!(
            holder.standing(Some(at(831 + DAY)), at(3_000)),
            Standing::Renewal {
                until: at(831 + DAY)
            },
            "what is presented is there"
        );
    }

    #[test]
    fn a_certificate_that_is_presented_counts_although_we_do_not_remember_it() {
        let holder = Arc::new(Holders::default()).holder(&identity("a"), &of(None, "10.0.0.1:1"));
        assert_eq!(
            holder.standing(Some(at(7)), at(0)),
            Standing::Renewal { until: at(7) }
        );
        assert_eq!(holder.standing(Some(at(7)), at(8)), Standing::First);
        holder.holds(at(20), at(0));
        assert_eq!(
            holder.standing(Some(at(7)), at(0)),
            Standing::Renewal { until: at(20) },
            "an older one"
        );
    }

    #[test]
    fn whoever_has_another_call_under_way_goes_behind_everybody() {
        let holders = Arc::new(Holders::default());
        let ask = || holders.holder(&identity("a"), &of(Some("1"), "10.0.0.1:1"));
        let first = ask();
        let second = ask();
        assert_eq!(
            (first.standing(None, at(0)), second.standing(None, at(0))),
            (Standing::First, Standing::Again)
        );
        drop(second);
        assert_eq!(
            ask().standing(None, at(0)),
            Standing::Again,
            "the first is still under way"
        );
        drop(first);
        assert_eq!(ask().standing(None, at(0)), Standing::First);
        assert!(
            Standing::Renewal {
                until: at(i64::from(u32::MAX))
            } < Standing::Again
        );
    }

    #[test]
    fn replicas_are_told_apart_by_their_pods_and_else_by_their_addresses() {
        let holders = Arc::new(Holders::default());
        let renews = |name: &str, evidence: &Evidence| {
            holders
                .holder(&identity(name), evidence)
                .standing(None, at(8))
                != Standing::First
        };
        holders
            .holder(&identity("a"), &of(Some("1"), "10.0.0.1:1"))
            .holds(at(9), at(0));
        assert!(
            renews("a", &of(Some("1"), "10.0.0.2:7")),
            "a pod, from wherever it comes"
        );
        assert!(
            !renews("a", &of(Some("2"), "10.0.0.1:1"))
                && !renews("b", &of(Some("1"), "10.0.0.1:1"))
        );
        assert!(
            !renews("a", &of(None, "10.0.0.1:1")),
            "not known to be that pod"
        );
        holders
            .holder(&identity("b"), &of(None, "10.0.0.1:1"))
            .holds(at(9), at(0));
        assert!(
            renews("b", &of(None, "10.0.0.1:2")),
            "on another connection"
        );
        assert!(
            renews("b", &of(None, "[::ffff:10.0.0.1]:2")),
            "the same address"
        );
        assert!(!renews("b", &of(None, "10.0.0.2:1")));
    }

    #[test]
    fn so_many_are_remembered_and_no_more() {
        let holders = Arc::new(Holders::default());
        let holder = |number: usize| {
            holders.holder(&identity("a"), &of(Some(&number.to_string()), "10.0.0.1:1"))
        };
        for number in 0..2 * HOLDERS {
            holder(number).holds(at(9), at(0));
        }
        assert_eq!(holder(0).standing(None, at(8)), Standing::First);
        assert_eq!(
            holder(2 * HOLDERS - 1).standing(None, at(8)),
            Standing::Renewal { until: at(9) }
        );
    }
}
