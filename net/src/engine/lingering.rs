//! 4-tuples of connections that are over. For a while the box still answers for them, as TIME-WAIT demands, without
//! holding a socket: an answer is made of nothing but the segment that it answers.

use alloc::collections::VecDeque;
use core::time::Duration;

use hashbrown::HashMap;

use crate::hash::Keyed;
use crate::tcp::Way;
use crate::time::Instant;
use crate::wire::{Answer, FlowKey, Segment};

/// How long a 4-tuple is answered for. Hosts that did not get the last segment of an orderly end repeat theirs within
/// a second or so (RFC 6298, 2.4).
const LINGER: Duration = Duration::from_secs(10);
/// The most 4-tuples that are answered for; the oldest give way.
const CAPACITY: usize = 8192;

/// What is said to segments of a connection that is over.
#[derive(Clone, Copy, Debug)]
pub struct Linger {
    /// How it ended: in order (a FIN is acknowledged again) or not (everything is answered by an RST).
    pub answer: Answer,
    /// Where the answers go.
    pub way: Way,
}

/// The 4-tuples of connections that are over.
pub struct Lingering {
    tuples: HashMap<FlowKey, (Instant, Linger), Keyed>,
    order: VecDeque<(Instant, FlowKey)>,
}

impl Lingering {
    /// None.
    pub fn new(hash: Keyed) -> Lingering {
        Lingering {
            tuples: HashMap::with_hasher(hash),
            order: VecDeque::new(),
        }
    }

    /// A connection has ended.
    pub fn insert(&mut self, now: Instant, key: FlowKey, linger: Linger) {
        self.expire(now);
        let until = now + LINGER;
        self.tuples.insert(key, (until, linger));
        self.order.push_back((until, key));
        while self.order.len() > CAPACITY {
            self.pop();
        }
    }

    fn pop(&mut self) {
        if let Some((until, key)) = self.order.pop_front()
            && self.tuples.get(&key).is_some_and(|&(at, _)| at == until)
        {
            self.tuples.remove(&key);
        }
    }

    fn expire(&mut self, now: Instant) {
        while self.order.front().is_some_and(|&(until, _)| until <= now) {
            self.pop();
        }
    }

    /// What is said for a 4-tuple.
    pub fn get(&self, now: Instant, key: &FlowKey) -> Option<Linger> {
        let (until, linger) = self.tuples.get(key)?;
        (*until > now).then_some(*linger)
    }

    /// The 4-tuple is used anew, or its host has given up too.
    pub fn remove(&mut self, key: &FlowKey) {
        self.tuples.remove(key);
    }
}

impl Linger {
    /// The answer to a segment, if it wants one.
    pub fn answer_to(&self, segment: &Segment<'_>) -> Option<Answer> {
        match self.answer {
            _ if segment.rst => None,
            Answer::Acknowledge => segment.fin.then_some(Answer::Acknowledge),
            Answer::Reset => Some(Answer::Reset),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::switch::Ports;
    use crate::wire::{Mac, Macs};
    use core::net::{Ipv4Addr, SocketAddrV4};

    fn key(number: u32) -> FlowKey {
        let address = |number| SocketAddrV4::new(Ipv4Addr::from(number), 9);
        FlowKey {
            client: address(number),
            server: address(1),
        }
    }

    fn linger() -> Linger {
        Linger {
            answer: Answer::Reset,
            way: Way {
                macs: Macs {
                    source: Mac::default(),
                    destination: Mac::default(),
                },
                ports: Ports::NONE,
            },
        }
    }

    #[test]
    fn is_bounded_in_number_and_time() {
        let mut lingering = Lingering::new(Keyed::with_seed(1));
        for number in 0..20_000 {
            lingering.insert(Instant::ZERO, key(number), linger());
        }
        assert_eq!(lingering.tuples.len(), CAPACITY);
        assert!(lingering.get(Instant::ZERO, &key(19_999)).is_some());
        assert!(lingering.get(Instant::ZERO, &key(0)).is_none());
        let later = Instant::from_millis(10_000);
        assert!(lingering.get(later, &key(19_999)).is_none());
        lingering.insert(later, key(1), linger());
        assert_eq!(lingering.tuples.len(), 1);
    }

    #[test]
    fn a_tuple_that_lingers_again_lingers_longer() {
        let mut lingering = Lingering::new(Keyed::with_seed(1));
        lingering.insert(Instant::ZERO, key(1), linger());
        lingering.insert(Instant::from_millis(5000), key(1), linger());
        lingering.insert(Instant::from_millis(11_000), key(2), linger());
        assert!(
            lingering
                .get(Instant::from_millis(11_000), &key(1))
                .is_some()
        );
    }
}
