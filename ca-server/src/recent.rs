//! What is remembered of callers: of those that were there lately, so many and no more. Where there
//! is no more room, or nothing matters any longer, the half that was not touched for longest is
//! forgotten. Told the time.

use std::collections::HashMap;
use std::time::Duration;

use crate::timestamp::Timestamp;

/// A map by digests, in two halves: when the young one is full, or has lasted for as long as
/// anything matters, it becomes the old one, and the old one is forgotten.
#[derive(Debug)]
pub struct Recent<V> {
    young: HashMap<u64, V>,
    old: HashMap<u64, V>,
    since: Timestamp,
    half: usize,
    lasts: Duration,
}

impl<V: Copy + Default> Recent<V> {
    /// So many at most, none for longer than it `lasts` untouched twice over.
    pub fn new(most: usize, lasts: Duration) -> Self {
        Self {
            young: HashMap::new(),
            old: HashMap::new(),
            since: Timestamp::from_micros(0),
            half: most / 2,
            lasts,
        }
    }

    /// What is known of it, or nothing yet.
    pub fn entry(&mut self, key: u64, now: Timestamp) -> &mut V {
        self.make_room(now);
        let known = self.old.get(&key).copied().unwrap_or_default();
        self.young.entry(key).or_insert(known)
    }

    /// What is known of it, left as it is.
    pub fn get(&self, key: u64) -> Option<V> {
        self.young.get(&key).or_else(|| self.old.get(&key)).copied()
    }

    /// Whether it was touched; touches it if so.
    pub fn knows(&mut self, key: u64, now: Timestamp) -> bool {
        let known = self.young.contains_key(&key) || self.old.contains_key(&key);
        if known {
            self.entry(key, now);
        }
        known
    }

    /// Whether it is new; it is not from here on.
    pub fn learns(&mut self, key: u64, now: Timestamp) -> bool {
        let new = !self.knows(key, now);
        self.entry(key, now);
        new
    }

    fn make_room(&mut self, now: Timestamp) {
        let apart = now.since(self.since).max(self.since.since(now));
        if self.young.len() >= self.half || apart >= self.lasts {
            self.old = std::mem::take(&mut self.young);
            self.since = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_seconds(1_795_348_800 + seconds)
    }

    #[test]
    fn so_much_is_remembered_and_no_more() {
        let mut recent: Recent<u32> = Recent::new(1000, Duration::from_secs(60));
        *recent.entry(7, at(0)) = 1;
        for key in 1000..1300 {
            recent.entry(key, at(0));
        }
        assert_eq!(
            (*recent.entry(7, at(0)), recent.get(7)),
            (1, Some(1)),
            "what is touched is kept"
        );
        for key in 2000..12_000 {
            recent.entry(key, at(0));
            assert!(recent.young.len() + recent.old.len() <= 1000);
        }
        assert!(
            !recent.knows(7, at(0)) && recent.get(7).is_none(),
            "the oldest is forgotten"
        );
        recent.entry(8, at(60));
        recent.entry(9, at(120));
        assert_eq!(
            (recent.young.len(), recent.old.len()),
            (1, 1),
            "what is over is forgotten"
        );
    }
}
