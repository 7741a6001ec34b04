//! SYNs to a served prefix that were bridged because the tunnel is down. If the line is dead too, nothing would ever answer
//! the client: after a while it is told.

use alloc::collections::BTreeSet;
use core::time::Duration;

use hashbrown::HashMap;

use crate::hash::Keyed;
use crate::switch::Port;
use crate::time::Instant;
use crate::wire::{FlowKey, Macs, Quote};

/// How long a bridged SYN may go without any answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// The most SYNs that are watched; more are bridged without.
const CAPACITY: usize = 4096;

/// What it takes to tell a client that its SYN leads nowhere.
#[derive(Clone, Copy, Debug)]
pub struct Complaint {
    /// The beginning of the SYN.
    pub quote: Quote,
    /// MAC addresses of the way back.
    pub back: Macs,
    /// The port that the SYN came from.
    pub port: Port,
}

/// The SYNs without an answer.
pub struct Unanswered {
    waiting: HashMap<FlowKey, (Instant, Complaint), Keyed>,
    due: BTreeSet<(Instant, FlowKey)>,
}

impl Unanswered {
    /// None.
    pub fn new(hash: Keyed) -> Unanswered {
        Unanswered {
            waiting: HashMap::with_hasher(hash),
            due: BTreeSet::new(),
        }
    }

    /// Whether there is none, so that no answer needs looking up.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Whether a SYN of this connection was bridged and had no answer yet.
    pub fn contains(&self, key: &FlowKey) -> bool {
        self.waiting.contains_key(key)
    }

    /// A SYN was bridged. One that is repeated keeps its first deadline.
    pub fn bridged(&mut self, now: Instant, key: FlowKey, complaint: Complaint) {
        if self.waiting.len() >= CAPACITY || self.waiting.contains_key(&key) {
            return;
        }
        let at = now + PATIENCE;
        self.waiting.insert(key, (at, complaint));
        self.due.insert((at, key));
    }

    /// Something answered.
    pub fn answered(&mut self, key: &FlowKey) {
        if let Some((at, _)) = self.waiting.remove(key) {
            self.due.remove(&(at, *key));
        }
    }

    /// Takes one SYN whose time is up.
    pub fn overdue(&mut self, now: Instant) -> Option<Complaint> {
        let &(at, key) = self.due.first()?;
        if at > now {
            return None;
        }
        self.due.pop_first();
        self.waiting.remove(&key).map(|(_, complaint)| complaint)
    }

    /// When [`Unanswered::overdue`] has something to give.
    pub fn next_wakeup(&self) -> Option<Instant> {
        self.due.first().map(|&(at, _)| at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Mac, QUOTE};
    use core::net::{Ipv4Addr, SocketAddrV4};

    fn key(port: u16) -> FlowKey {
        FlowKey {
            client: SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 1), port),
            server: SocketAddrV4::new(Ipv4Addr::new(10, 0, 1, 1), 80),
        }
    }

    fn complaint() -> Complaint {
        Complaint {
            quote: [0; QUOTE],
            back: Macs {
                source: Mac::default(),
                destination: Mac::default(),
            },
            port: Port::Lan,
        }
    }

    #[test]
    fn only_what_nothing_answered_is_complained_of_and_only_once() {
        let mut unanswered = Unanswered::new(Keyed::with_seed(3));
        unanswered.bridged(Instant::ZERO, key(1), complaint());
        unanswered.bridged(Instant::ZERO, key(2), complaint());
        unanswered.bridged(Instant::from_millis(4000), key(2), complaint());
        unanswered.answered(&key(1));
        assert!(unanswered.overdue(Instant::from_millis(4999)).is_none());
        assert!(unanswered.overdue(Instant::from_millis(5000)).is_some());
        assert!(unanswered.overdue(Instant::from_millis(60_000)).is_none());
        assert!(unanswered.is_empty() && unanswered.next_wakeup().is_none());
    }

    #[test]
    fn a_flood_of_syns_is_bounded() {
        let mut unanswered = Unanswered::new(Keyed::with_seed(3));
        for port in 0..u16::MAX {
            unanswered.bridged(Instant::ZERO, key(port), complaint());
        }
        assert_eq!(unanswered.waiting.len(), CAPACITY);
        assert_eq!(unanswered.due.len(), CAPACITY);
    }
}
