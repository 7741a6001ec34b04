//! One direction of the line: a queue in front of a rate, then loss, then delay.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::Counters;
use super::config::DirectionConfig;
use super::random::Dice;

/// One direction.
pub(super) struct Direction {
    config: DirectionConfig,
    dice: Dice,
    /// Frames that wait or are being sent, with the time when their last bit will be.
    queue: VecDeque<(Duration, Vec<u8>)>,
    queued_bytes: u64,
    /// When the last bit of the last frame in the queue has been sent.
    busy_until: Duration,
    /// Frames on their way by arrival; the number keeps the order of those that arrive together.
    flying: BTreeMap<(Duration, u64), Vec<u8>>,
    flown: u64,
    /// The bad state of the Gilbert–Elliott model.
    in_burst: bool,
    counters: Counters,
}

impl Direction {
    pub(super) fn new(config: &DirectionConfig, seed: u64) -> Direction {
        Direction {
            config: config.clone(),
            dice: Dice::new(seed),
            queue: VecDeque::new(),
            queued_bytes: 0,
            busy_until: Duration::ZERO,
            flying: BTreeMap::new(),
            flown: 0,
            in_burst: false,
            counters: Counters::default(),
        }
    }

    pub(super) fn send(&mut self, now: Duration, frame: Vec<u8>, plugged: bool) {
        let bytes = frame.len() as u64;
        if !plugged {
            self.counters.cut += 1;
            return;
        }
        if !self.queue.is_empty() && self.queued_bytes + bytes > self.config.queue_bytes {
            self.counters.overflowed += 1;
            return;
        }
        self.busy_until = self.busy_until.max(now) + self.time_to_send(bytes);
        self.queued_bytes += bytes;
        self.queue.push_back((self.busy_until, frame));
    }

    fn time_to_send(&self, bytes: u64) -> Duration {
        // A rate is at least 1,000 bit/s, and a frame less than 2^32 bytes, so this fits.
        Duration::from_nanos(
            (u128::from(bytes) * 8_000_000_000 / u128::from(self.config.rate_bps)) as u64,
        )
    }

    /// Sends what the rate allows by `now`.
    pub(super) fn advance(&mut self, now: Duration, mut carried: impl FnMut(Duration, &[u8])) {
        while let Some((at, frame)) = self.queue.pop_front_if(|(at, _)| *at <= now) {
            self.queued_bytes -= frame.len() as u64;
            self.counters.frames += 1;
            self.counters.bytes += frame.len() as u64;
            carried(at, &frame);
            self.fly(at, frame);
        }
    }

    fn fly(&mut self, at: Duration, frame: Vec<u8>) {
        // All four are thrown for each frame: see `Dice::chance`.
        let lost = self.dice.chance(self.config.loss);
        let lost_in_burst = self.burst();
        let duplicated = self.dice.chance(self.config.duplicate);
        let held_back = self.dice.chance(self.config.reorder);
        if lost || lost_in_burst {
            self.counters.lost += 1;
            return;
        }
        let mut arrival = at + self.config.delay();
        if held_back {
            self.counters.held_back += 1;
            arrival += self.config.reorder_delay();
        }
        if duplicated {
            self.counters.duplicated += 1;
            self.arrive(arrival, frame.clone());
        }
        self.arrive(arrival, frame);
    }

    /// One step of the Gilbert–Elliott chain (Elliott, "Estimates of error rates for codes on burst-noise channels", 1963) with
    /// loss 0 in the good state and 1 in the bad one: mean burst `burst_length`, share of frames in bursts `burst_loss`.
    fn burst(&mut self) -> bool {
        let leave = 1.0 / self.config.burst_length;
        let enter = self.config.burst_loss * leave / (1.0 - self.config.burst_loss);
        let change = self.dice.chance(if self.in_burst { leave } else { enter });
        self.in_burst ^= change;
        self.in_burst
    }

    fn arrive(&mut self, at: Duration, frame: Vec<u8>) {
        self.flying.insert((at, self.flown), frame);
        self.flown += 1;
    }

    /// The next frame that has arrived by `now`. [`Direction::advance`] first.
    pub(super) fn arrived(&mut self, now: Duration) -> Option<Vec<u8>> {
        let first = self.flying.first_entry()?;
        if first.key().0 > now {
            return None;
        }
        Some(first.remove())
    }

    pub(super) fn next_wakeup(&self) -> Option<Duration> {
        let sent = self.queue.front().map(|(at, _)| *at);
        let arrival = self.flying.first_key_value().map(|((at, _), _)| *at);
        [sent, arrival].into_iter().flatten().min()
    }

    pub(super) fn cut(&mut self) {
        self.counters.cut += (self.queue.len() + self.flying.len()) as u64;
        self.queue.clear();
        self.flying.clear();
        self.queued_bytes = 0;
        self.busy_until = Duration::ZERO;
    }

    pub(super) fn counters(&self) -> Counters {
        self.counters
    }
}
