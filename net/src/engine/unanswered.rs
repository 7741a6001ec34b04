//! SYNs to a served prefix that were bridged because the tunnel is down. If the line is dead too, nothing would ever answer
//! the client: after a while it is told.

use alloc::collections::VecDeque;
use core::time::Duration;

use hashbrown::HashMap;

use crate::hash::{self, Keyed};
use crate::switch::Port;
use crate::time::Instant;
use crate::wire::{FlowKey, Macs, Quote};

/// How long a bridged SYN may go without any answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// The most SYNs that are watched, answered ones behind others included; more are bridged without.
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

struct Watched {
    until: Instant,
    key: FlowKey,
    /// Absent when something has answered.
    complaint: Option<Complaint>,
}

/// The SYNs without an answer. All have the same patience, so that the first one in is the first one due.
pub struct Unanswered {
    queue: VecDeque<Watched>,
    /// How many have left the queue: the number of its first one.
    gone: u64,
    /// The number of each that waits.
    numbers: HashMap<FlowKey, u64, Keyed>,
}

impl Unanswered {
    /// None.
    pub fn new(hash: Keyed) -> Unanswered {
        Unanswered {
            queue: VecDeque::with_capacity(CAPACITY),
            gone: 0,
            numbers: hash::bounded(CAPACITY, hash),
        }
    }

    /// Whether there is none, so that no answer needs looking up.
    pub fn is_empty(&self) -> bool {
        self.numbers.is_empty()
    }

    /// Whether a SYN of this connection was bridged and had no answer yet.
    pub fn contains(&self, key: &FlowKey) -> bool {
        self.numbers.contains_key(key)
    }

    /// A SYN was bridged. One that is repeated keeps its first deadline.
    pub fn bridged(&mut self, now: Instant, key: FlowKey, complaint: Complaint) {
        if self.queue.len() >= CAPACITY || self.contains(&key) {
            return;
        }
        self.numbers
            .insert(key, self.gone + self.queue.len() as u64);
        self.queue.push_back(Watched {
            until: now + PATIENCE,
            key,
            complaint: Some(complaint),
        });
    }

    /// Something answered.
    pub fn answered(&mut self, key: &FlowKey) {
        let Some(number) = self.numbers.remove(key) else {
            return;
        };
        let place = usize::try_from(number - self.gone).unwrap_or(usize::MAX);
        if let Some(watched) = self.queue.get_mut(place) {
            watched.complaint = None;
        }
        self.drop_answered();
    }

    /// Takes one SYN whose time is up.
    pub fn overdue(&mut self, now: Instant) -> Option<Complaint> {
        self.queue.front().filter(|first| first.until <= now)?;
        let first = self.pop()?;
        self.numbers.remove(&first.key);
        self.drop_answered();
        first.complaint
    }

    /// When [`Unanswered::overdue`] has something to give.
    pub fn next_wakeup(&self) -> Option<Instant> {
        self.queue.front().map(|first| first.until)
    }

    /// The first of the queue is one that waits, always.
    fn drop_answered(&mut self) {
        while self
            .queue
            .front()
            .is_some_and(|first| first.complaint.is_none())
        {
            self.pop();
        }
    }

    fn pop(&mut self) -> Option<Watched> {
        let first = self.queue.pop_front()?;
        self.gone += 1;
        Some(first)
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
        assert_eq!(unanswered.queue.len(), CAPACITY);
        assert_eq!(unanswered.numbers.len(), CAPACITY);
    }

    #[test]
    fn answers_in_any_order_leave_the_others_due_in_theirs() {
        let mut unanswered = Unanswered::new(Keyed::with_seed(3));
        for port in 1..=5 {
            unanswered.bridged(
                Instant::from_millis(u64::from(port)),
                key(port),
                complaint(),
            );
        }
        for port in [3, 1, 5] {
            unanswered.answered(&key(port));
        }
        assert_eq!(unanswered.next_wakeup(), Some(Instant::from_millis(5002)));
        // One that comes again is watched anew.
        unanswered.bridged(Instant::from_millis(6), key(3), complaint());
        assert!(unanswered.overdue(Instant::from_millis(5002)).is_some());
        assert!(!unanswered.contains(&key(2)) && unanswered.contains(&key(4)));
        assert!(unanswered.overdue(Instant::from_millis(5004)).is_some());
        assert_eq!(unanswered.next_wakeup(), Some(Instant::from_millis(5006)));
        unanswered.answered(&key(3));
        assert!(unanswered.is_empty() && unanswered.next_wakeup().is_none());
    }
}
