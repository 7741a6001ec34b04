//! Connections that were bridged of late, and why: for who asks why his connection is not optimised.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use hashbrown::HashMap;

use super::policy::Reason;
use crate::hash::{self, Keyed};
use crate::report::{BridgedReport, MOST_FLOWS};
use crate::time::Instant;
use crate::wire::FlowKey;

/// The most connections that are remembered; the oldest give way.
const CAPACITY: usize = MOST_FLOWS;

#[derive(Clone, Copy)]
struct Entry {
    reason: Reason,
    at: Instant,
    times: u64,
}

/// The connections that were bridged of late.
pub struct Bridged {
    entries: HashMap<FlowKey, Entry, Keyed>,
    order: VecDeque<FlowKey>,
}

impl Bridged {
    /// None.
    pub fn new(hash: Keyed) -> Bridged {
        Bridged {
            entries: hash::bounded(CAPACITY, hash),
            order: VecDeque::with_capacity(CAPACITY),
        }
    }

    /// Whether a connection is remembered.
    pub fn contains(&self, key: &FlowKey) -> bool {
        self.entries.contains_key(key)
    }

    /// A connection is bridged.
    pub fn note(&mut self, now: Instant, key: FlowKey, reason: Reason) {
        if let Some(entry) = self.entries.get_mut(&key) {
            *entry = Entry {
                reason,
                at: now,
                times: entry.times + 1,
            };
            return;
        }
        if self.order.len() >= CAPACITY
            && let Some(oldest) = self.order.pop_front()
        {
            self.entries.remove(&oldest);
        }
        self.order.push_back(key);
        let entry = Entry {
            reason,
            at: now,
            times: 1,
        };
        self.entries.insert(key, entry);
    }

    /// All of them, the latest first.
    pub fn report(&self, now: Instant) -> Vec<BridgedReport<'static>> {
        let mut all: Vec<(&FlowKey, &Entry)> = self.entries.iter().collect();
        all.sort_unstable_by_key(|(key, entry)| (core::cmp::Reverse(entry.at), **key));
        all.into_iter()
            .map(|(key, entry)| BridgedReport {
                client: key.client,
                server: key.server,
                reason: entry.reason.name(),
                why: entry.reason.why(),
                age_seconds: now.since(entry.at).as_secs(),
                times: entry.times,
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::net::{Ipv4Addr, SocketAddrV4};

    fn key(port: u16) -> FlowKey {
        FlowKey {
            client: SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 1), port),
            server: SocketAddrV4::new(Ipv4Addr::new(10, 0, 1, 1), 80),
        }
    }

    #[test]
    fn a_repeated_syn_is_one_entry_with_the_latest_reason() {
        let mut bridged = Bridged::new(Keyed::with_seed(1));
        bridged.note(Instant::ZERO, key(1), Reason::TunnelDown);
        bridged.note(Instant::from_millis(500), key(2), Reason::Signed);
        bridged.note(Instant::from_millis(1000), key(1), Reason::AlreadyBridged);
        let report = bridged.report(Instant::from_millis(3000));
        let seen: Vec<_> = report
            .iter()
            .map(|it| (it.client.port(), it.reason, it.times, it.age_seconds))
            .collect();
        assert_eq!(seen, [(1, "already_bridged", 2, 2), (2, "signed", 1, 2)]);
    }

    #[test]
    fn the_list_is_bounded_and_keeps_the_latest() {
        let mut bridged = Bridged::new(Keyed::with_seed(1));
        for port in 0..5000 {
            bridged.note(
                Instant::from_millis(u64::from(port)),
                key(port),
                Reason::NoPeer,
            );
        }
        assert_eq!(bridged.entries.len(), CAPACITY);
        assert_eq!(bridged.order.len(), CAPACITY);
        assert!(bridged.contains(&key(4999)) && !bridged.contains(&key(0)));
    }
}
