//! A line to test with: rate, delay, queue, loss, reordering and more, all from one seed and in simulated time.
//!
//! For tests only (`cfg(test)` or feature `sim`). One [`Line`] is one direction; packets are opaque bytes.

use alloc::collections::BinaryHeap;
use alloc::vec::Vec;
use core::cmp::Reverse;
use core::time::Duration;

use crate::time::Instant;

/// Small seeded generator (xorshift64*): the same seed gives the same run everywhere. Not for secrets.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// Any seed will do.
    pub fn new(seed: u64) -> Self {
        // SplitMix64's finaliser: neighbouring seeds give unrelated runs, and none gives zero.
        let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Rng((z ^ (z >> 31)) | 1)
    }

    /// 64 random bits.
    pub fn u64(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `limit`; 0 if that is 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        if limit == 0 { 0 } else { self.u64() % limit }
    }

    /// True `probability` of the time.
    pub fn chance(&mut self, probability: f64) -> bool {
        ((self.u64() >> 11) as f64) < probability * (1_u64 << 53) as f64
    }

    /// Fills `out` with random bytes.
    pub fn fill(&mut self, out: &mut [u8]) {
        for chunk in out.chunks_mut(8) {
            let bytes = self.u64().to_le_bytes();
            for (o, b) in chunk.iter_mut().zip(bytes) {
                *o = b;
            }
        }
    }
}

/// How a line behaves. Probabilities are for each packet, 0 to 1.
#[derive(Clone, Debug)]
pub struct LineConfig {
    /// Bits a second; 0 is without limit.
    pub rate: u64,
    /// One way.
    pub delay: Duration,
    /// Bytes that wait at most for the line to be free; what comes beyond is dropped.
    pub queue: usize,
    /// Bytes added to each packet for headers below it, on the line and in the counters.
    pub overhead: usize,
    /// Packets longer than this vanish.
    pub mtu: usize,
    /// Lost, each for itself.
    pub loss: f64,
    /// A burst of losses begins.
    pub burst: f64,
    /// Mean packets in a burst, which ends when the line is idle for 100 ms, too.
    pub burst_length: f64,
    /// Delayed by up to `reorder_delay` more, so that others overtake.
    pub reorder: f64,
    /// See `reorder`.
    pub reorder_delay: Duration,
    /// Arrives twice.
    pub duplicate: f64,
    /// Arrives with one bit flipped.
    pub corrupt: f64,
    /// Arrives cut short.
    pub truncate: f64,
}

impl LineConfig {
    /// A perfect line of this rate (bits a second) and one-way delay, with a queue of one round trip.
    pub fn new(rate: u64, delay: Duration) -> Self {
        let round_trip = u64::try_from(delay.as_micros() * 2).unwrap_or(u64::MAX);
        let queue = rate / 8 * round_trip / 1_000_000;
        LineConfig {
            rate,
            delay,
            queue: usize::try_from(queue).unwrap_or(usize::MAX).max(30_000),
            overhead: 28,
            mtu: 1500,
            loss: 0.0,
            burst: 0.0,
            burst_length: 1.0,
            reorder: 0.0,
            reorder_delay: Duration::from_millis(10),
            duplicate: 0.0,
            corrupt: 0.0,
            truncate: 0.0,
        }
    }
}

/// What a line has carried and dropped.
#[derive(Clone, Copy, Debug, Default)]
pub struct LineCounters {
    /// Packets that took the line's time, those lost on it included.
    pub packets: u64,
    /// Their bytes, `overhead` included.
    pub bytes: u64,
    /// Dropped because the queue was full.
    pub dropped: u64,
    /// Lost on the way.
    pub lost: u64,
    /// Most bytes that ever waited.
    pub queue_peak: u64,
    /// Sum over packets of the bytes that waited when each came: divide by `packets` for what a packet meets.
    pub queue_sum: u64,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Arrival {
    at: Instant,
    order: u64,
    packet: Vec<u8>,
}

/// One direction of a line.
pub struct Line {
    config: LineConfig,
    rng: Rng,
    cut: bool,
    /// When the line is free, in nanoseconds.
    busy_until: u64,
    in_burst: bool,
    last_at: Instant,
    order: u64,
    under_way: BinaryHeap<Reverse<Arrival>>,
    /// What it has done so far.
    pub counters: LineCounters,
}

impl Line {
    /// A line that behaves so; the same seed and packets give the same arrivals.
    pub fn new(config: LineConfig, seed: u64) -> Self {
        Line {
            config,
            rng: Rng::new(seed),
            cut: false,
            busy_until: 0,
            in_burst: false,
            last_at: Instant::ZERO,
            order: 0,
            under_way: BinaryHeap::new(),
            counters: LineCounters::default(),
        }
    }

    /// How it behaves from now on; packets under way are not affected.
    pub fn config_mut(&mut self) -> &mut LineConfig {
        &mut self.config
    }

    /// Unplugs the line (what is under way is lost) or plugs it in again.
    pub fn set_cut(&mut self, cut: bool) {
        self.cut = cut;
        if cut {
            self.under_way.clear();
            self.busy_until = 0;
        }
    }

    /// Bytes waiting for the line to be free.
    pub fn queued(&self, now: Instant) -> u64 {
        let wait = self.busy_until.saturating_sub(now.as_micros() * 1000);
        (u128::from(wait) * u128::from(self.config.rate) / 8_000_000_000) as u64
    }

    /// A packet enters.
    pub fn push(&mut self, now: Instant, packet: &[u8]) {
        if self.cut || packet.len() + self.config.overhead > self.config.mtu {
            self.counters.lost += 1;
            return;
        }
        let size = (packet.len() + self.config.overhead) as u64;
        let queued = self.queued(now);
        let now_nanos = now.as_micros() * 1000;
        match (size * 8_000_000_000).checked_div(self.config.rate) {
            None => self.busy_until = now_nanos,
            Some(_) if queued + size > self.config.queue as u64 => {
                self.counters.dropped += 1;
                return;
            }
            Some(takes) => self.busy_until = self.busy_until.max(now_nanos) + takes,
        }
        self.counters.packets += 1;
        self.counters.bytes += size;
        self.counters.queue_peak = self.counters.queue_peak.max(queued);
        self.counters.queue_sum += queued;
        if now.since(self.last_at) > Duration::from_millis(100) {
            self.in_burst = false;
        }
        self.last_at = now;
        if self.is_lost() {
            self.counters.lost += 1;
            return;
        }
        let mut at = Instant::from_micros(self.busy_until / 1000) + self.config.delay;
        if self.rng.chance(self.config.reorder) {
            let most = u64::try_from(self.config.reorder_delay.as_micros()).unwrap_or(u64::MAX);
            at += Duration::from_micros(self.rng.below(most.saturating_add(1)));
        }
        let mut packet = packet.to_vec();
        if self.rng.chance(self.config.corrupt) && !packet.is_empty() {
            let at = self.rng.below(packet.len() as u64) as usize;
            let bit = self.rng.below(8);
            if let Some(byte) = packet.get_mut(at) {
                *byte ^= 1 << bit;
            }
        }
        if self.rng.chance(self.config.truncate) {
            let length = self.rng.below(packet.len() as u64) as usize;
            packet.truncate(length);
        }
        if self.rng.chance(self.config.duplicate) {
            self.arrive(at + self.config.delay / 8, packet.clone());
        }
        self.arrive(at, packet);
    }

    fn is_lost(&mut self) -> bool {
        if self.in_burst {
            self.in_burst = !self.rng.chance(1.0 / self.config.burst_length.max(1.0));
            return true;
        }
        self.in_burst = self.rng.chance(self.config.burst);
        self.in_burst || self.rng.chance(self.config.loss)
    }

    fn arrive(&mut self, at: Instant, packet: Vec<u8>) {
        self.order += 1;
        self.under_way.push(Reverse(Arrival {
            at,
            order: self.order,
            packet,
        }));
    }

    /// When the next packet leaves at the other end.
    pub fn next(&self) -> Option<Instant> {
        self.under_way.peek().map(|a| a.0.at)
    }

    /// A packet that has left at the other end by `now`.
    pub fn pop(&mut self, now: Instant) -> Option<Vec<u8>> {
        if self.next()? > now {
            return None;
        }
        self.under_way.pop().map(|a| a.0.packet)
    }
}
