//! Making connections: who may, how often, and what a replayed or foreign handshake achieves (nothing).
//!
//! Noise IK lets the responder know the initiator after one message, but that message may be a replay. So the responder
//! believes it only when a packet comes under the new keys, which needs the initiator's ephemeral secret: until then the
//! old connection, if any, stays as it is.

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::time::Duration;

use snow::HandshakeState;

use super::connection::Session;
use super::noise::{self, Keys, Random32};
use super::types::{Endpoint, TunnelConfig};
use super::wire::{self, FIRST_PAYLOAD, RejectReason, SECOND_PAYLOAD};
use crate::time::Instant;

/// Attempts whose answers are still welcome: on a line with seconds of delay they overlap.
const MAX_ATTEMPTS: usize = 4;
/// Unconfirmed connections at the responder.
const MAX_PENDING: usize = 4;
const PENDING_LIVES: Duration = Duration::from_secs(10);
/// First messages that the responder works on: so many at once, and then one each `REFILL`.
pub(super) const BUCKET: u32 = 20;
pub(super) const REFILL: Duration = Duration::from_millis(100);
/// First messages remembered, so that a replay costs no computing.
pub(super) const REMEMBERED: usize = 32;

/// So many at once, and then one each period.
pub(super) struct Bucket {
    tokens: u32,
    size: u32,
    refill: Duration,
    refilled_at: Instant,
}

impl Bucket {
    /// A full bucket of `size`; `refill` is not zero.
    pub(super) fn new(now: Instant, size: u32, refill: Duration) -> Bucket {
        Bucket {
            tokens: size,
            size,
            refill,
            refilled_at: now,
        }
    }

    /// Takes one, if there is one.
    pub(super) fn spend(&mut self, now: Instant) -> bool {
        let periods = now.since(self.refilled_at).as_micros() / self.refill.as_micros().max(1);
        if periods > 0 {
            self.tokens = self
                .tokens
                .saturating_add(u32::try_from(periods).unwrap_or(self.size))
                .min(self.size);
            self.refilled_at = now;
        }
        let some = self.tokens > 0;
        self.tokens = self.tokens.saturating_sub(1);
        some
    }
}

/// What a handshake is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// A new connection.
    Connect,
    /// New keys for the connection that the token names.
    Rekey,
}

/// A handshake's outcome: keys and what they are for.
pub(super) struct Agreed {
    pub(super) session: Session,
    pub(super) purpose: Purpose,
    pub(super) token: u64,
    pub(super) from: Endpoint,
    pub(super) rtt: Duration,
}

struct Attempt {
    local: u32,
    state: HandshakeState,
    at: Instant,
    purpose: Purpose,
    token: u64,
}

/// A handshake to be made.
pub(super) struct Request {
    /// What the new keys shall be called here.
    pub(super) local: u32,
    pub(super) purpose: Purpose,
    pub(super) token: u64,
}

/// The initiator's side.
#[derive(Default)]
pub(super) struct Attempts(VecDeque<Attempt>);

impl Attempts {
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    pub(super) fn knows(&self, local: u32) -> bool {
        self.0.iter().any(|a| a.local == local)
    }

    /// Writes a first message into `out`. False if the keys are such that none can be made.
    pub(super) fn start(
        &mut self,
        now: Instant,
        config: &TunnelConfig,
        random: &mut Random32,
        request: &Request,
        out: &mut Vec<u8>,
    ) -> bool {
        let &Request {
            local,
            purpose,
            token,
        } = request;
        let Ok(mut state) = noise::initiator(random, &config.private_key, &config.peer_public_key)
        else {
            return false;
        };
        let mut payload = [0; FIRST_PAYLOAD];
        payload[0] = match purpose {
            Purpose::Connect => 0,
            Purpose::Rekey => 1,
        };
        payload[1..].copy_from_slice(&token.to_be_bytes());
        let mut message = [0; noise::FIRST + FIRST_PAYLOAD];
        if !matches!(state.write_message(&payload, &mut message), Ok(n) if n == message.len()) {
            return false;
        }
        wire::first(
            local,
            &message,
            &noise::mac_key(&config.peer_public_key),
            out,
        );
        if self.0.len() >= MAX_ATTEMPTS {
            self.0.pop_front();
        }
        self.0.push_back(Attempt {
            local,
            state,
            at: now,
            purpose,
            token,
        });
        true
    }

    /// A second message came. `None` if it is not the answer to an attempt of ours by the pinned peer.
    pub(super) fn finish(
        &mut self,
        now: Instant,
        from: Endpoint,
        receiver: u32,
        message: &[u8],
    ) -> Option<Agreed> {
        let attempt = self.0.iter_mut().find(|a| a.local == receiver)?;
        // On failure snow leaves the state as it was: a forged answer does not spoil the real one.
        let mut payload = [0; SECOND_PAYLOAD];
        let read = attempt.state.read_message(message, &mut payload).ok()?;
        if read != SECOND_PAYLOAD {
            return None;
        }
        let remote = u32::from_be_bytes(payload);
        let index = self.0.iter().position(|a| a.local == receiver)?;
        let attempt = self.0.remove(index)?;
        let session = Session {
            local: receiver,
            remote,
            keys: Keys::new(attempt.state).ok()?,
            since: now,
        };
        Some(Agreed {
            session,
            purpose: attempt.purpose,
            token: attempt.token,
            from,
            rtt: now.since(attempt.at),
        })
    }
}

/// Why a first message was not answered with a second.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// Too many, or seen before: dropped.
    Dropped,
    /// It is for a box with another public key.
    NotOurKey,
    /// Its sender has another key than the pinned one.
    NotPinned([u8; 32]),
    /// It does not decrypt.
    Forged,
}

struct Pending {
    agreed: Agreed,
    at: Instant,
}

/// The responder's side.
pub(super) struct Responder {
    mac_key: [u8; 32],
    pending: VecDeque<Pending>,
    remembered: VecDeque<[u8; 16]>,
    bucket: Bucket,
}

impl Responder {
    pub(super) fn new(now: Instant, config: &TunnelConfig) -> Self {
        Responder {
            mac_key: noise::mac_key(&noise::public_key(&config.private_key)),
            pending: VecDeque::new(),
            remembered: VecDeque::new(),
            bucket: Bucket::new(now, BUCKET, REFILL),
        }
    }

    pub(super) fn knows(&self, local: u32) -> bool {
        self.pending.iter().any(|p| p.agreed.session.local == local)
    }

    /// A first message came: writes the second into `out`.
    pub(super) fn answer(
        &mut self,
        now: Instant,
        config: &TunnelConfig,
        random: &mut Random32,
        first: &FirstMessage<'_>,
        local: u32,
        out: &mut Vec<u8>,
    ) -> Result<(), Refusal> {
        // Cheap checks first.
        if noise::mac(&self.mac_key, first.signed) != first.mac {
            return Err(Refusal::NotOurKey);
        }
        if self.remembered.contains(&first.mac) || !self.bucket.spend(now) {
            return Err(Refusal::Dropped);
        }
        if self.remembered.len() >= REMEMBERED {
            self.remembered.pop_front();
        }
        self.remembered.push_back(first.mac);
        let mut state =
            noise::responder(random, &config.private_key).map_err(|_| Refusal::Forged)?;
        let mut payload = [0; FIRST_PAYLOAD];
        if !matches!(
            state.read_message(first.noise, &mut payload),
            Ok(FIRST_PAYLOAD)
        ) {
            return Err(Refusal::Forged);
        }
        let key: [u8; 32] = state
            .get_remote_static()
            .and_then(|k| k.try_into().ok())
            .ok_or(Refusal::Forged)?;
        if key != config.peer_public_key {
            return Err(Refusal::NotPinned(key));
        }
        let purpose = match payload[0] {
            0 => Purpose::Connect,
            1 => Purpose::Rekey,
            _ => return Err(Refusal::Forged),
        };
        let mut token = [0; 8];
        token.copy_from_slice(&payload[1..]);
        let mut message = [0; noise::SECOND + SECOND_PAYLOAD];
        let written = state.write_message(&local.to_be_bytes(), &mut message);
        if !matches!(written, Ok(n) if n == message.len()) {
            return Err(Refusal::Forged);
        }
        let keys = Keys::new(state).map_err(|_| Refusal::Forged)?;
        wire::second(first.sender, &message, out);
        if self.pending.len() >= MAX_PENDING {
            self.pending.pop_front();
        }
        let session = Session {
            local,
            remote: first.sender,
            keys,
            since: now,
        };
        let agreed = Agreed {
            session,
            purpose,
            token: u64::from_be_bytes(token),
            from: first.from,
            rtt: Duration::ZERO,
        };
        self.pending.push_back(Pending { agreed, at: now });
        Ok(())
    }

    /// The keys of an unconfirmed handshake.
    pub(super) fn pending(&self, now: Instant, local: u32) -> Option<&Agreed> {
        let pending = self
            .pending
            .iter()
            .find(|p| p.agreed.session.local == local)?;
        (now.since(pending.at) < PENDING_LIVES).then_some(&pending.agreed)
    }

    /// A packet came under these keys: the handshake is no replay.
    pub(super) fn confirm(&mut self, now: Instant, local: u32) -> Option<Agreed> {
        let index = self
            .pending
            .iter()
            .position(|p| p.agreed.session.local == local)?;
        let pending = self.pending.remove(index)?;
        Some(Agreed {
            rtt: now.since(pending.at),
            ..pending.agreed
        })
    }

    /// Forgets unconfirmed handshakes, all but the newest being older than the one just confirmed.
    pub(super) fn clear(&mut self) {
        self.pending.clear();
    }
}

/// The parts of a first message.
pub(super) struct FirstMessage<'a> {
    pub(super) from: Endpoint,
    pub(super) sender: u32,
    pub(super) noise: &'a [u8],
    pub(super) signed: &'a [u8],
    pub(super) mac: [u8; 16],
}

impl Refusal {
    /// What the sender is told, if anything.
    pub(super) fn reject_reason(&self) -> Option<RejectReason> {
        match self {
            Refusal::NotOurKey => Some(RejectReason::NotOurKey),
            Refusal::NotPinned(_) => Some(RejectReason::NotPinned),
            Refusal::Dropped | Refusal::Forged => None,
        }
    }
}
