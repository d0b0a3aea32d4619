//! Places that are held for a time: so many in all, and so many for each address. Nobody ever waits
//! for one. An address holds no more than are still free, so that of any number of hosts that take
//! all they can get, none shuts a newcomer out. Knows no time and no network beyond the address;
//! memory is bounded by the places that are held.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// So many places.
#[derive(Debug)]
pub struct Places {
    most: usize,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    all: usize,
    /// Of each network that holds any.
    by_network: HashMap<IpAddr, usize>,
}

/// One of them, given back when it is dropped.
#[derive(Debug)]
pub struct Place {
    places: Arc<Places>,
    network: IpAddr,
}

/// Why there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoPlace {
    /// All are held.
    Full,
    /// This address holds its share.
    Share,
}

impl Places {
    /// So many in all.
    pub fn new(most: usize) -> Arc<Self> {
        Arc::new(Self {
            most,
            held: Mutex::default(),
        })
    }

    /// One for this address, which may hold `share` of them; with 0 there is no share, and one
    /// address may hold all.
    pub fn take(self: &Arc<Self>, peer: IpAddr, share: u32) -> Result<Place, NoPlace> {
        let network = network(peer);
        let mut held = self.lock();
        let free = self.most.saturating_sub(held.all);
        if free == 0 {
            return Err(NoPlace::Full);
        }
        let own = held.by_network.get(&network).copied().unwrap_or(0);
        if share != 0 && own >= free.min(share as usize) {
            return Err(NoPlace::Share);
        }
        held.all += 1;
        held.by_network.insert(network, own + 1);
        Ok(Place {
            places: self.clone(),
            network,
        })
    }

    /// How many are held.
    pub fn held(&self) -> usize {
        self.lock().all
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut held = self.places.lock();
        held.all -= 1;
        if let Some(own) = held.by_network.get_mut(&self.network) {
            *own -= 1;
            if *own == 0 {
                held.by_network.remove(&self.network);
            }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(address: &str) -> IpAddr {
        address.parse().unwrap()
    }

    fn take_all(places: &Arc<Places>, address: &str, share: u32) -> (Vec<Place>, NoPlace) {
        let mut taken = Vec::new();
        loop {
            match places.take(peer(address), share) {
                Ok(place) => taken.push(place),
                Err(none) => return (taken, none),
            }
        }
    }

    #[test]
    fn an_address_holds_its_share_and_no_more_than_are_free() {
        let places = Places::new(100);
        let (first, why) = take_all(&places, "10.0.0.1", 1000);
        assert_eq!(
            (first.len(), why),
            (50, NoPlace::Share),
            "one host leaves half"
        );
        let (second, _) = take_all(&places, "10.0.0.2", 1000);
        let (third, _) = take_all(&places, "10.0.0.3", 10);
        assert_eq!((second.len(), third.len(), places.held()), (25, 10, 85));
        assert_eq!(
            take_all(&places, "::ffff:10.0.0.1", 1000).0.len(),
            0,
            "the same address"
        );
        drop(first);
        assert_eq!(take_all(&places, "2001:db8::1", 20).0.len(), 20);
        let _held = take_all(&places, "2001:db8::1", 20);
        assert_eq!(
            take_all(&places, "2001:db8::ffff:2", 20).0.len(),
            0,
            "an IPv6 host has a whole /64"
        );
    }

    #[test]
    fn every_place_comes_back_and_nothing_is_kept_of_who_had_it() {
        let places = Places::new(10);
        let (all, why) = take_all(&places, "10.0.0.1", 0);
        assert_eq!(
            (all.len(), why, places.held()),
            (10, NoPlace::Full, 10),
            "without a share one may hold all"
        );
        assert_eq!(places.take(peer("10.0.0.2"), 5).unwrap_err(), NoPlace::Full);
        drop(all);
        assert_eq!((places.held(), places.lock().by_network.len()), (0, 0));
    }
}
