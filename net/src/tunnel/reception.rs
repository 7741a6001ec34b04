//! At a core with several peers on one socket: finds out whose a datagram is. A first message says it by the static key in
//! it, everything else by the name of the keys it is sealed with.
//!
//! Work for garbage is bounded as in [`super::handshake`]: strangers cost one hash, and what passes is limited in number.

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::time::Duration;

use super::handshake::{BUCKET, Bucket, REFILL, REMEMBERED};
use super::noise::{self, Random32};
use super::types::{Endpoint, WrongKey};
use super::wire::{self, FIRST_PAYLOAD, Packet, RejectReason};
use super::{MAX_DATAGRAM, WRONG_KEY_INTERVAL};
use crate::time::Instant;

/// Wrong keys and strange addresses that are remembered, so that each is said once…
const SAID: usize = 64;
/// …and again when it still tries after so long.
const SAID_AGAIN: Duration = Duration::from_secs(3600);

/// Whose a datagram is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sorted {
    /// It is for the tunnel that has keys of this name ([`super::Tunnel::has_keys`]), if one has.
    Keys(u32),
    /// A first message of whoever has this public key; only the tunnel finds out whether it is a replay.
    Initiator([u8; 32]),
    /// A handshake with a key that no peer has.
    Refused {
        /// What is to be said; `None`: it was said before.
        wrong: Option<WrongKey>,
        /// What is to be sent back.
        answer: Option<Vec<u8>>,
    },
    /// Nobody's, or more handshakes than are looked at; counted.
    Dropped,
}

/// What was not handed on, since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReceptionStatistics {
    /// Too short, too long, of unknown type or version.
    pub malformed: u64,
    /// First messages that do not decrypt.
    pub forged: u64,
    /// First messages in excess of what is looked at in a second, or replayed.
    pub excess: u64,
    /// First messages for another key than ours, or from another than a peer's.
    pub wrong_key: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stranger {
    Key([u8; 32]),
    Address(core::net::Ipv4Addr),
}

/// The receiving end of a core's socket.
pub struct Reception {
    private_key: [u8; 32],
    mac_key: [u8; 32],
    random: Random32,
    bucket: Bucket,
    remembered: VecDeque<[u8; 16]>,
    most_remembered: usize,
    said: VecDeque<(Stranger, Instant)>,
    said_at: Option<Instant>,
    statistics: ReceptionStatistics,
}

impl Reception {
    /// For a core with this X25519 private key. `seed` must be unpredictable.
    pub fn new(private_key: [u8; 32], seed: [u8; 32], now: Instant) -> Reception {
        Reception {
            private_key,
            mac_key: noise::mac_key(&noise::public_key(&private_key)),
            random: Random32::new(seed),
            bucket: Bucket::new(now, BUCKET, REFILL),
            remembered: VecDeque::new(),
            most_remembered: REMEMBERED,
            said: VecDeque::new(),
            said_at: None,
            statistics: ReceptionStatistics::default(),
        }
    }

    /// Sets how much is allowed for: each peer that is down tries once a second.
    pub fn set_peers(&mut self, now: Instant, peers: usize) {
        let peers = u32::try_from(peers.min(1 << 16)).unwrap_or(0);
        self.bucket = Bucket::new(now, BUCKET + 2 * peers, REFILL / (1 + peers / 5));
        self.most_remembered = REMEMBERED + 4 * peers as usize;
    }

    /// Says whose a datagram is that came from `from`. `is_peer` knows the peers' public keys.
    pub fn sort(
        &mut self,
        now: Instant,
        from: Endpoint,
        datagram: &[u8],
        is_peer: impl FnOnce(&[u8; 32]) -> bool,
    ) -> Sorted {
        let packet = Packet::parse(datagram).filter(|_| datagram.len() <= MAX_DATAGRAM);
        match packet {
            None => {
                self.statistics.malformed += 1;
                Sorted::Dropped
            }
            Some(
                Packet::Data { receiver, .. }
                | Packet::Second { receiver, .. }
                | Packet::Reject { receiver, .. },
            ) => Sorted::Keys(receiver),
            Some(Packet::First {
                sender,
                noise,
                signed,
                mac,
            }) => {
                // Cheap checks first.
                if noise::mac(&self.mac_key, signed) != mac {
                    let stranger = Stranger::Address(from.address);
                    let wrong = WrongKey::NotOurs { from };
                    return self.refuse(now, sender, stranger, wrong, RejectReason::NotOurKey);
                }
                if self.remembered.contains(&mac) || !self.bucket.spend(now) {
                    self.statistics.excess += 1;
                    return Sorted::Dropped;
                }
                while self.remembered.len() >= self.most_remembered {
                    self.remembered.pop_front();
                }
                self.remembered.push_back(mac);
                let Some(key) = self.initiator(noise) else {
                    self.statistics.forged += 1;
                    return Sorted::Dropped;
                };
                if is_peer(&key) {
                    return Sorted::Initiator(key);
                }
                let wrong = WrongKey::NotPinned { from, key };
                let reason = RejectReason::NotPinned;
                self.refuse(now, sender, Stranger::Key(key), wrong, reason)
            }
        }
    }

    /// Counters.
    pub fn statistics(&self) -> ReceptionStatistics {
        self.statistics
    }

    /// Who made this Noise message; `None`: it is forged.
    fn initiator(&mut self, message: &[u8]) -> Option<[u8; 32]> {
        let mut state = noise::responder(&mut self.random, &self.private_key).ok()?;
        let mut payload = [0; FIRST_PAYLOAD];
        state.read_message(message, &mut payload).ok()?;
        state.get_remote_static()?.try_into().ok()
    }

    fn refuse(
        &mut self,
        now: Instant,
        sender: u32,
        stranger: Stranger,
        wrong: WrongKey,
        reason: RejectReason,
    ) -> Sorted {
        self.statistics.wrong_key += 1;
        let is_soon = self
            .said_at
            .is_some_and(|at| now.since(at) < WRONG_KEY_INTERVAL);
        // Each good message was paid for; those for another key cost nothing and are answered seldom.
        let answer = (reason == RejectReason::NotPinned || !is_soon).then(|| {
            let mut out = Vec::new();
            wire::reject(sender, reason, &mut out);
            out
        });
        self.said.retain(|(_, at)| now.since(*at) < SAID_AGAIN);
        let is_new = !self.said.iter().any(|(other, _)| *other == stranger);
        let wrong = (is_new && !is_soon).then(|| {
            if self.said.len() >= SAID {
                self.said.pop_front();
            }
            self.said.push_back((stranger, now));
            wrong
        });
        if wrong.is_some() || (answer.is_some() && reason == RejectReason::NotOurKey) {
            self.said_at = Some(now);
        }
        Sorted::Refused { wrong, answer }
    }
}

#[cfg(test)]
mod tests;
