//! The line between two sites: rate, delay, a queue, loss, reordering, all from one seed.

use std::time::Duration;

/// A small seeded generator (SplitMix64), so that a failing seed replays anywhere.
#[derive(Clone)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.number() % limit.max(1)
    }

    pub fn chance(&mut self, per_million: u64) -> bool {
        self.below(1_000_000) < per_million
    }

    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len + 8);
        while bytes.len() < len {
            bytes.extend_from_slice(&self.number().to_le_bytes());
        }
        bytes.truncate(len);
        bytes
    }

    pub fn seed(&mut self) -> [u8; 32] {
        self.bytes(32).try_into().unwrap()
    }
}

#[derive(Clone, Copy, Debug)]
pub struct LineConfig {
    /// Bits a second each way.
    pub rate: u64,
    /// One way.
    pub delay: Duration,
    /// Lost at random, per million.
    pub loss_ppm: u64,
    /// Delivered late enough to be overtaken, per million.
    pub reorder_ppm: u64,
    /// Delivered twice, per million.
    pub duplicate_ppm: u64,
    /// Bytes that wait at most.
    pub queue: u64,
}

impl LineConfig {
    pub const CLEAN: LineConfig = LineConfig {
        rate: 100_000_000,
        delay: Duration::from_millis(5),
        loss_ppm: 0,
        reorder_ppm: 0,
        duplicate_ppm: 0,
        queue: 1 << 20,
    };

    /// The project's default line.
    pub const DEFAULT: LineConfig = LineConfig {
        rate: 10_000_000,
        delay: Duration::from_millis(50),
        loss_ppm: 5_000,
        reorder_ppm: 0,
        duplicate_ppm: 0,
        queue: 256 << 10,
    };

    pub fn random(random: &mut Random) -> LineConfig {
        LineConfig {
            rate: 2_000_000 + random.below(60_000_000),
            delay: Duration::from_micros(200 + random.below(120_000)),
            loss_ppm: [0, 5_000, 20_000, 50_000][random.below(4) as usize],
            reorder_ppm: [0, 0, 10_000][random.below(3) as usize],
            duplicate_ppm: [0, 0, 5_000][random.below(3) as usize],
            queue: 32_000 + random.below(400_000),
        }
    }
}

#[derive(Clone, Copy, Debug, Default)]
pub struct LineCounters {
    pub frames: u64,
    /// Bytes put on the line: IP packets, headers included.
    pub bytes: u64,
    pub lost: u64,
    pub queue_full: u64,
}

/// One direction of the line.
pub struct Line {
    pub config: LineConfig,
    pub up: bool,
    pub counters: LineCounters,
    random: Random,
    free_at: u64,
}

impl Line {
    pub fn new(config: LineConfig, seed: u64) -> Line {
        Line {
            config,
            up: true,
            counters: LineCounters::default(),
            random: Random::new(seed),
            free_at: 0,
        }
    }

    /// Sends a frame at `now` (µs); gives when it arrives, zero, one or two times.
    pub fn send(&mut self, now: u64, len: usize) -> Vec<u64> {
        // Ethernet framing is not part of what the line carries.
        let bytes = len.saturating_sub(14) as u64;
        self.counters.frames += 1;
        self.counters.bytes += bytes;
        if !self.up {
            self.counters.lost += 1;
            return vec![];
        }
        let config = self.config;
        let per_byte = |bytes: u64| bytes * 8 * 1_000_000 / config.rate;
        let backlog = self.free_at.saturating_sub(now);
        if backlog > per_byte(config.queue) {
            self.counters.queue_full += 1;
            return vec![];
        }
        self.free_at = self.free_at.max(now) + per_byte(bytes).max(1);
        if self.random.chance(config.loss_ppm) {
            self.counters.lost += 1;
            return vec![];
        }
        let mut at = self.free_at + config.delay.as_micros() as u64;
        if self.random.chance(config.reorder_ppm) {
            at += self.random.below(20_000);
        }
        let mut arrivals = vec![at];
        if self.random.chance(config.duplicate_ppm) {
            arrivals.push(at + self.random.below(5_000));
        }
        arrivals
    }
}
