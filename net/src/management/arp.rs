//! Who has which MAC address: a small ARP cache (RFC 826). It asks, retries and gives up; it sends nothing itself.

use alloc::vec::Vec;
use core::net::Ipv4Addr;
use core::time::Duration;

use hashbrown::HashMap;

use crate::hash::{self, Keyed};
use crate::time::Instant;
use crate::wire::Mac;

/// The most addresses remembered or asked for.
const CAPACITY: usize = 512;
/// Time between two requests for the same address (RFC 1122, 2.3.2.1: at most one each second).
const RETRY: Duration = Duration::from_secs(1);
/// How many requests go unanswered before an address counts as unreachable.
const TRIES: u8 = 3;
/// From this age on an address in use is asked for again.
const REFRESH: Duration = Duration::from_secs(30);
/// From this age on an address is not used any more.
const EXPIRE: Duration = Duration::from_secs(120);

struct Entry {
    /// The address and when it was last confirmed.
    known: Option<(Mac, Instant)>,
    /// Requests sent since it was last confirmed, and when the next is due.
    asking: Option<(u8, Instant)>,
    /// What waits for the address.
    waiters: Vec<Waiter>,
}

/// What waits for an address.
#[derive(Debug, PartialEq, Eq)]
pub enum Waiter {
    /// A flow, by its number.
    Flow(u32),
    /// A whole frame that lacks its destination address.
    Frame(Vec<u8>),
}

/// What became of an address that something waited for.
#[derive(Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The neighbour.
    pub address: Ipv4Addr,
    /// Its MAC address; `None`: nobody answers for it.
    pub mac: Option<Mac>,
    /// What waited.
    pub waiters: Vec<Waiter>,
}

/// The cache.
pub struct ArpCache {
    entries: HashMap<Ipv4Addr, Entry, Keyed>,
    /// No request is due before this.
    next: Option<Instant>,
}

impl ArpCache {
    /// An empty cache.
    pub fn new(hash: Keyed) -> ArpCache {
        ArpCache {
            entries: hash::bounded(CAPACITY, hash),
            next: None,
        }
    }

    /// The MAC address of a neighbour, which is asked for if it is not known or old.
    pub fn lookup(&mut self, now: Instant, address: Ipv4Addr) -> Option<Mac> {
        let Some(entry) = self.entries.get_mut(&address) else {
            self.ask(now, address);
            return None;
        };
        match entry.known {
            Some((mac, confirmed)) if now.since(confirmed) < EXPIRE => {
                if now.since(confirmed) >= REFRESH && entry.asking.is_none() {
                    entry.asking = Some((0, now));
                    self.wake_at(now);
                }
                Some(mac)
            }
            _ => {
                entry.known = None;
                if entry.asking.is_none() {
                    entry.asking = Some((0, now));
                    self.wake_at(now);
                }
                None
            }
        }
    }

    fn ask(&mut self, now: Instant, address: Ipv4Addr) {
        if self.entries.len() >= CAPACITY {
            // Only what waits for an answer is kept; the rest is found out again.
            self.entries.retain(|_, entry| !entry.waiters.is_empty());
        }
        if self.entries.len() < CAPACITY {
            self.entries.insert(
                address,
                Entry {
                    known: None,
                    asking: Some((0, now)),
                    waiters: Vec::new(),
                },
            );
            self.wake_at(now);
        }
    }

    fn wake_at(&mut self, at: Instant) {
        self.next = Some(self.next.map_or(at, |next| next.min(at)));
    }

    /// Has `waiter` wait for an address that [`ArpCache::lookup`] did not know. Gives it back if there is no room.
    ///
    /// # Errors
    /// The waiter, when too many addresses are asked for or too much waits for this one.
    pub fn wait(&mut self, address: Ipv4Addr, waiter: Waiter) -> Result<(), Waiter> {
        const FRAMES: usize = 4;
        let Some(entry) = self.entries.get_mut(&address) else {
            return Err(waiter);
        };
        if matches!(waiter, Waiter::Frame(_)) {
            let frames = entry
                .waiters
                .iter()
                .filter(|waiter| matches!(waiter, Waiter::Frame(_)))
                .count();
            if frames >= FRAMES {
                return Err(waiter);
            }
        }
        entry.waiters.push(waiter);
        Ok(())
    }

    /// Takes what an ARP frame for us tells: `address` is at `mac`. What was not asked for is learned only if `expected`
    /// (the sender asks for us, so that we are about to talk).
    pub fn confirm(
        &mut self,
        now: Instant,
        address: Ipv4Addr,
        mac: Mac,
        expected: bool,
    ) -> Option<Outcome> {
        if mac.is_group() {
            return None;
        }
        if let Some(entry) = self.entries.get_mut(&address) {
            entry.known = Some((mac, now));
            entry.asking = None;
            let waiters = core::mem::take(&mut entry.waiters);
            return (!waiters.is_empty()).then_some(Outcome {
                address,
                mac: Some(mac),
                waiters,
            });
        }
        if expected && self.entries.len() < CAPACITY {
            self.entries.insert(
                address,
                Entry {
                    known: Some((mac, now)),
                    asking: None,
                    waiters: Vec::new(),
                },
            );
        }
        None
    }

    /// Gives `request` each address that is to be asked for now, and `failed` each that nobody answered for.
    pub fn poll(
        &mut self,
        now: Instant,
        mut request: impl FnMut(Ipv4Addr),
        mut failed: impl FnMut(Outcome),
    ) {
        if self.next.is_none_or(|next| next > now) {
            return;
        }
        let mut next: Option<Instant> = None;
        self.entries.retain(|&address, entry| {
            if let Some((tries, due)) = entry.asking {
                if due > now {
                    next = Some(next.map_or(due, |next| next.min(due)));
                } else if tries < TRIES {
                    request(address);
                    let due = now + RETRY;
                    entry.asking = Some((tries + 1, due));
                    next = Some(next.map_or(due, |next| next.min(due)));
                } else {
                    entry.asking = None;
                    let waiters = core::mem::take(&mut entry.waiters);
                    if entry.known.is_none() {
                        failed(Outcome {
                            address,
                            mac: None,
                            waiters,
                        });
                        return false;
                    }
                }
            }
            entry
                .known
                .is_none_or(|(_, confirmed)| now.since(confirmed) < EXPIRE)
                || entry.asking.is_some()
        });
        self.next = next;
    }

    /// When [`ArpCache::poll`] has something to do.
    pub fn next_wakeup(&self) -> Option<Instant> {
        self.next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 7);
    const MAC: Mac = Mac([2, 0, 0, 0, 0, 7]);

    fn cache() -> ArpCache {
        ArpCache::new(Keyed::with_seed(1))
    }

    fn poll(cache: &mut ArpCache, now: Instant) -> (usize, Vec<Outcome>) {
        let (mut asked, mut failed) = (0, Vec::new());
        cache.poll(now, |_| asked += 1, |outcome| failed.push(outcome));
        (asked, failed)
    }

    #[test]
    fn asks_each_second_and_gives_up_after_three() {
        let mut cache = cache();
        assert_eq!(cache.lookup(Instant::ZERO, HOST), None);
        cache.wait(HOST, Waiter::Flow(9)).expect("room");
        for second in 0..3 {
            let now = Instant::from_millis(second * 1000);
            assert_eq!(poll(&mut cache, now), (1, Vec::new()));
            assert_eq!(poll(&mut cache, now).0, 0, "one request a second");
        }
        let (asked, failed) = poll(&mut cache, Instant::from_millis(3000));
        assert_eq!(asked, 0);
        assert_eq!(failed.len(), 1);
        assert_eq!(failed[0].mac, None);
        assert_eq!(failed[0].waiters, [Waiter::Flow(9)]);
        assert_eq!(cache.next_wakeup(), None);
    }

    #[test]
    fn an_answer_releases_what_waits() {
        let mut cache = cache();
        cache.lookup(Instant::ZERO, HOST);
        cache.wait(HOST, Waiter::Flow(1)).expect("room");
        let outcome = cache.confirm(Instant::ZERO, HOST, MAC, false);
        assert_eq!(outcome.expect("waiters").mac, Some(MAC));
        assert_eq!(cache.lookup(Instant::from_millis(500), HOST), Some(MAC));
        assert_eq!(poll(&mut cache, Instant::from_millis(1000)).0, 0);
    }

    #[test]
    fn an_address_in_use_is_refreshed_and_a_silent_one_expires() {
        let mut cache = cache();
        cache.confirm(Instant::ZERO, HOST, MAC, true);
        let later = Instant::from_millis(31_000);
        assert_eq!(cache.lookup(later, HOST), Some(MAC));
        assert_eq!(poll(&mut cache, later).0, 1);
        assert_eq!(cache.lookup(Instant::from_millis(130_000), HOST), None);
    }

    #[test]
    fn gossip_is_not_learned_and_the_table_is_bounded() {
        let mut cache = cache();
        cache.confirm(Instant::ZERO, HOST, MAC, false);
        assert_eq!(cache.entries.len(), 0);
        for number in 0..2000_u32 {
            cache.confirm(Instant::ZERO, Ipv4Addr::from(number), MAC, true);
            cache.lookup(Instant::ZERO, Ipv4Addr::from(number + 5000));
        }
        assert!(cache.entries.len() <= CAPACITY);
    }
}
