//! Refusals on their way into the ledger: after authentication one row each, as long as they are
//! few of one identity for one reason; everything else in groups. So nobody fills the ledger by
//! being refused. A full queue drops and counts; nothing here ever blocks a call.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;

use super::body::fits;
use super::event::{Event, Group, Proof, Why};
use super::work::{Answer, Item};
use crate::evidence::{Evidence, RequestId};
use crate::refusal::{Reason, Refusal};
use crate::spiffe::SpiffeId;
use crate::timestamp::Timestamp;

/// Refusals that may wait for the writer.
pub(super) const QUEUE: usize = 4096;

/// Groups of one window; what comes after is counted in `other`.
const GROUPS: usize = 1000;

/// Rows of their own that the refusals of one identity for one reason have in a window.
const ROWS: u32 = 10;

/// How long a group counts.
const WINDOW: Duration = Duration::from_secs(10);

/// Where calls leave refusals.
#[derive(Debug)]
pub(super) struct Refusals {
    queue: mpsc::Sender<Item>,
    dropped: AtomicU64,
    groups: Mutex<Groups>,
}

#[derive(Debug, Default)]
struct Groups {
    from: Option<Timestamp>,
    counts: HashMap<(Reason, Whose), u64>,
    /// Rows that identities have of their own in this window; of so many identities and reasons at
    /// most.
    rows: HashMap<(Reason, Option<SpiffeId>), u32>,
}

/// Whose refusals are counted together: an identity's that was proven, else those from one network.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Whose {
    Identity(SpiffeId),
    V4([u8; 3]),
    V6([u8; 7]),
    Unknown,
    Other,
}

impl Refusals {
    pub(super) fn new() -> (Self, mpsc::Receiver<Item>) {
        let (queue, waiting) = mpsc::channel(QUEUE);
        (
            Self {
                queue,
                dropped: AtomicU64::new(0),
                groups: Mutex::default(),
            },
            waiting,
        )
    }

    /// One authenticated caller's refusal. False if it was dropped. Overload is counted in a group:
    /// one row each would feed it. So is what an identity is refused for one reason after its first
    /// rows in each window; what is beyond its limits has one, which says whose limit it is.
    pub(super) fn one(
        &self,
        refusal: &Refusal,
        request: RequestId,
        identity: Option<&SpiffeId>,
        evidence: &Evidence,
        now: Timestamp,
    ) -> bool {
        let reason = refusal.reason();
        if matches!(reason, Reason::Overloaded | Reason::DeviceBusy) {
            self.count(reason, evidence.peer.map(|peer| peer.ip()), now);
            return true;
        }
        if !self.has_row(reason, identity, now) {
            let network = || Whose::network(evidence.peer.map(|peer| peer.ip()));
            self.add(
                reason,
                identity.map_or_else(network, |identity| Whose::Identity(identity.clone())),
                now,
            );
            return true;
        }
        let event = Event::Refused {
            why: Why::from(refusal),
            identity: identity.map(ToString::to_string),
            evidence: Proof::from(evidence),
        };
        self.keep(event, Some(request))
    }

    /// A row that nobody waits for. False if it was dropped.
    pub(super) fn row(&self, event: Event) -> bool {
        self.keep(event, None)
    }

    fn keep(&self, event: Event, request: Option<RequestId>) -> bool {
        let kept = fits(&event)
            && self
                .queue
                .try_send(Item {
                    event,
                    request,
                    answer: Answer::Nobody,
                })
                .is_ok();
        if !kept {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        kept
    }

    /// Whether this one of its identity has a row of its own; of more identities than there may be
    /// groups none has.
    fn has_row(&self, reason: Reason, identity: Option<&SpiffeId>, now: Timestamp) -> bool {
        let most = if matches!(reason, Reason::IdentityLimit | Reason::KeyLimit) {
            1
        } else {
            ROWS
        };
        let mut groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        groups.from.get_or_insert(now);
        let room = groups.rows.len() < GROUPS;
        match groups.rows.entry((reason, identity.cloned())) {
            Entry::Occupied(mut rows) => {
                *rows.get_mut() += 1;
                *rows.get() <= most
            }
            Entry::Vacant(rows) => {
                if room {
                    rows.insert(1);
                }
                room
            }
        }
    }

    /// One refusal of a caller who proved nothing, or of whom nothing is to be said.
    pub(super) fn count(&self, reason: Reason, peer: Option<IpAddr>, now: Timestamp) {
        self.add(reason, Whose::network(peer), now);
    }

    fn add(&self, reason: Reason, whose: Whose, now: Timestamp) {
        let mut groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        groups.from.get_or_insert(now);
        let mut key = (reason, whose);
        if groups.counts.len() >= GROUPS && !groups.counts.contains_key(&key) {
            key.1 = Whose::Other;
        }
        let count = groups.counts.entry(key).or_default();
        *count = count.saturating_add(1);
    }

    /// The rows of the groups whose window is over, and one for what was dropped. With `all`, of
    /// the present window too.
    pub(super) fn due(&self, now: Timestamp, all: bool) -> Vec<Item> {
        let mut events = Vec::new();
        let mut groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        // A clock that stepped back must not hold a window open for long.
        if let Some(from) = groups
            .from
            .filter(|from| all || now.since(*from) >= WINDOW || now < *from)
        {
            groups.from = None;
            groups.rows.clear();
            events.extend(groups.counts.drain().map(|((reason, whose), count)| {
                Event::RefusedGroup(group(reason, &whose, from, count))
            }));
        }
        drop(groups);
        match self.dropped.swap(0, Ordering::Relaxed) {
            0 => {}
            count => events.push(Event::Dropped { count }),
        }
        events
            .into_iter()
            .map(|event| Item {
                event,
                request: None,
                answer: Answer::Nobody,
            })
            .collect()
    }
}

fn group(reason: Reason, whose: &Whose, from: Timestamp, count: u64) -> Group {
    let identity = if let Whose::Identity(identity) = whose {
        Some(identity.to_string())
    } else {
        None
    };
    Group {
        reason: reason.as_str().into(),
        code: reason.code().as_str().into(),
        prefix: whose.prefix(),
        from,
        count,
        identity,
    }
}

impl Whose {
    fn network(peer: Option<IpAddr>) -> Self {
        match peer.map(|peer| peer.to_canonical()) {
            Some(IpAddr::V4(address)) => {
                let [a, b, c, _] = address.octets();
                Self::V4([a, b, c])
            }
            Some(IpAddr::V6(address)) => {
                let [a, b, c, d, e, f, g, ..] = address.octets();
                Self::V6([a, b, c, d, e, f, g])
            }
            None => Self::Unknown,
        }
    }

    fn prefix(&self) -> String {
        match self {
            Self::Identity(_) => "any".to_owned(),
            Self::V4([a, b, c]) => format!("{a}.{b}.{c}.0/24"),
            Self::V6(octets) => {
                let mut address = [0; 16];
                address[..7].copy_from_slice(octets);
                format!("{}/56", std::net::Ipv6Addr::from(address))
            }
            Self::Unknown => "unknown".to_owned(),
            Self::Other => "other".to_owned(),
        }
    }
}
