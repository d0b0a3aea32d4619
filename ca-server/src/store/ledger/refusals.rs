//! Refusals on their way into the ledger: one row each after authentication, groups before it. A full queue drops and counts;
//! nothing here ever blocks a call.

use std::collections::{HashMap, HashSet};
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
    counts: HashMap<(Reason, Prefix), u64>,
    /// Identities beyond a limit that have a row of their own in this window.
    named: HashSet<(Reason, SpiffeId)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Prefix {
    V4([u8; 3]),
    V6([u8; 7]),
    Unknown,
    Other,
}

impl Refusals {
    pub(super) fn new() -> (Self, mpsc::Receiver<Item>) {
        let (queue, waiting) = mpsc::channel(QUEUE);
        (Self { queue, dropped: AtomicU64::new(0), groups: Mutex::default() }, waiting)
    }

    /// One authenticated caller's refusal. False if it was dropped. Overload is counted in a group: one row each would feed it. So is what an
    /// identity asks for beyond its limits, after a first row in each window that says whose limit it is.
    pub(super) fn one(
        &self,
        refusal: &Refusal,
        request: RequestId,
        identity: Option<&SpiffeId>,
        evidence: &Evidence,
        now: Timestamp,
    ) -> bool {
        let in_group = match refusal.reason() {
            Reason::Overloaded | Reason::DeviceBusy => true,
            Reason::IdentityLimit | Reason::KeyLimit => !self.is_first(refusal.reason(), identity, now),
            _ => false,
        };
        if in_group {
            self.count(refusal.reason(), evidence.peer.map(|peer| peer.ip()), now);
            return true;
        }
        let event =
            Event::Refused { why: Why::from(refusal), identity: identity.map(ToString::to_string), evidence: Proof::from(evidence) };
        self.keep(event, Some(request))
    }

    /// A row that nobody waits for. False if it was dropped.
    pub(super) fn row(&self, event: Event) -> bool {
        self.keep(event, None)
    }

    fn keep(&self, event: Event, request: Option<RequestId>) -> bool {
        let kept = fits(&event) && self.queue.try_send(Item { event, request, answer: Answer::Nobody }).is_ok();
        if !kept {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        kept
    }

    /// Whether this is the first of its identity in the window; of more identities than there may be groups it is not asked.
    fn is_first(&self, reason: Reason, identity: Option<&SpiffeId>, now: Timestamp) -> bool {
        let mut groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        groups.from.get_or_insert(now);
        groups.named.len() < GROUPS && identity.is_some_and(|identity| groups.named.insert((reason, identity.clone())))
    }

    /// One refusal of a caller who proved nothing.
    pub(super) fn count(&self, reason: Reason, peer: Option<IpAddr>, now: Timestamp) {
        let mut groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        groups.from.get_or_insert(now);
        let mut key = (reason, Prefix::of(peer));
        if groups.counts.len() >= GROUPS && !groups.counts.contains_key(&key) {
            key.1 = Prefix::Other;
        }
        *groups.counts.entry(key).or_default() += 1;
    }

    /// The rows of the groups whose window is over, and one for what was dropped. With `all`, of the present window too.
    pub(super) fn due(&self, now: Timestamp, all: bool) -> Vec<Item> {
        let mut events = Vec::new();
        let mut groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        // A clock that stepped back must not hold a window open for long.
        if let Some(from) = groups.from.filter(|from| all || now.since(*from) >= WINDOW || now < *from) {
            groups.from = None;
            groups.named.clear();
            events.extend(groups.counts.drain().map(|((reason, prefix), count)| Event::RefusedGroup(group(reason, prefix, from, count))));
        }
        drop(groups);
        match self.dropped.swap(0, Ordering::Relaxed) {
            0 => {}
            count => events.push(Event::Dropped { count }),
        }
        events.into_iter().map(|event| Item { event, request: None, answer: Answer::Nobody }).collect()
    }
}

fn group(reason: Reason, prefix: Prefix, from: Timestamp, count: u64) -> Group {
    Group { reason: reason.as_str().into(), code: reason.code().as_str().into(), prefix: prefix.to_string(), from, count }
}

impl Prefix {
    fn of(peer: Option<IpAddr>) -> Self {
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
}

impl std::fmt::Display for Prefix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::V4([a, b, c]) => write!(f, "{a}.{b}.{c}.0/24"),
            Self::V6(octets) => {
                let mut address = [0; 16];
                address[..7].copy_from_slice(octets);
                write!(f, "{}/56", std::net::Ipv6Addr::from(address))
            }
            Self::Unknown => f.write_str("unknown"),
            Self::Other => f.write_str("other"),
        }
    }
}
