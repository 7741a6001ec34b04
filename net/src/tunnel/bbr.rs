//! Congestion control in BBR's way (draft-cardwell-iccrg-bbr-congestion-control): a model of the line, made of the
//! highest delivery rate and the shortest round trip of late, says how fast to send and how much may be in flight.
//! Random loss does not slow it; queues that it makes itself are drained again.

use core::time::Duration;

use super::recovery::Report;
use crate::time::Instant;

/// 2/ln 2: doubles the rate each round trip; in 1/256.
const STARTUP_GAIN: u64 = 709;
/// Drains in about one round trip what the startup queued.
const DRAIN_GAIN: u64 = 88;
const CWND_GAIN: u64 = 512;
const UNIT: u64 = 256;
/// Probe for more, drain what that queued, then six round trips at the estimated rate.
const CYCLE_PHASES: usize = 8;
/// By how much the probe exceeds the estimated rate, in 1/256: a quarter, less while probes overflow a short queue.
const MAX_EXCESS: u64 = 64;
const MIN_EXCESS: u64 = 8;
/// Loss that a probe may add, in percent, before the next one is gentler.
const PROBE_LOSS_PERCENT: u64 = 3;
/// Paces a little below the estimate, so that queues shrink.
const PACING_MARGIN_PERCENT: u64 = 99;
const BANDWIDTH_ROUNDS: usize = 10;
const MIN_RTT_WINDOW: Duration = Duration::from_secs(10);
const PROBE_RTT_TIME: Duration = Duration::from_millis(200);
const INITIAL_WINDOW_PACKETS: u64 = 16;
const MIN_WINDOW_PACKETS: u64 = 4;
/// Startup ends, too, when more than a fifth of a round is lost: a short queue overflows.
const STARTUP_LOSS_PERCENT: u64 = 20;
const STARTUP_LOSS_PACKETS: u64 = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Startup,
    Drain,
    ProbeBandwidth,
    ProbeRtt,
}

pub(super) struct Bbr {
    mode: Mode,
    packet: u64,
    /// Highest rate of each of the last rounds that were not limited by the application, bytes a second.
    rates: [u64; BANDWIDTH_ROUNDS],
    slot: usize,
    bandwidth: u64,
    round_ends_at: u64,
    round_app_limited: bool,
    /// Shortest round trip of the round.
    round_rtt: Option<Duration>,
    round_lost: u64,
    round_lost_packets: u64,
    round_acked: u64,
    full_rate: u64,
    full_rounds: u32,
    filled: bool,
    cycle: usize,
    cycle_at: Instant,
    excess: u64,
    /// Lost and all bytes while a probe's effects arrive, and otherwise.
    probe_loss: (u64, u64),
    cruise_loss: (u64, u64),
    min_rtt: Option<Duration>,
    min_rtt_at: Instant,
    probe_rtt_until: Option<Instant>,
    probe_rtt_round: bool,
    window: u64,
    window_before_probe: u64,
    initial_rtt: Duration,
}

impl Bbr {
    /// For packets of `packet` bytes; `rtt` from the handshake, if known.
    pub(super) fn new(now: Instant, packet: u64, rtt: Option<Duration>) -> Self {
        Bbr {
            mode: Mode::Startup,
            packet,
            rates: [0; BANDWIDTH_ROUNDS],
            slot: 0,
            bandwidth: 0,
            round_ends_at: 0,
            round_app_limited: false,
            round_rtt: None,
            round_lost: 0,
            round_lost_packets: 0,
            round_acked: 0,
            full_rate: 0,
            full_rounds: 0,
            filled: false,
            cycle: 2,
            cycle_at: now,
            excess: MAX_EXCESS,
            probe_loss: (0, 0),
            cruise_loss: (0, 0),
            min_rtt: None,
            min_rtt_at: now,
            probe_rtt_until: None,
            probe_rtt_round: false,
            window: INITIAL_WINDOW_PACKETS * packet,
            window_before_probe: 0,
            initial_rtt: rtt.unwrap_or(super::rtt::INITIAL),
        }
    }

    /// Bytes that may be in flight.
    pub(super) fn window(&self) -> u64 {
        self.window
    }

    /// Model of the line's rate, bytes a second; 0 before the first sample.
    pub(super) fn bandwidth(&self) -> u64 {
        self.bandwidth
    }

    pub(super) fn min_rtt(&self) -> Option<Duration> {
        self.min_rtt
    }

    pub(super) fn set_packet_size(&mut self, packet: u64) {
        self.packet = packet;
    }

    /// Bytes a second.
    pub(super) fn pacing_rate(&self) -> u64 {
        let gain = match self.mode {
            Mode::Startup => STARTUP_GAIN,
            Mode::Drain => DRAIN_GAIN,
            Mode::ProbeBandwidth => self.cycle_gain(),
            Mode::ProbeRtt => UNIT,
        };
        let base = if self.bandwidth == 0 {
            per_second(INITIAL_WINDOW_PACKETS * self.packet, self.initial_rtt)
        } else if self.filled {
            self.bandwidth
        } else {
            // Never slower than the initial window each round trip before the line has shown that it is.
            self.bandwidth
                .max(per_second(INITIAL_WINDOW_PACKETS * self.packet, self.rtt()))
        };
        (scaled(base, gain) / 100 * PACING_MARGIN_PERCENT).max(self.packet)
    }

    /// Whether the line has shown its rate: it has been filled.
    pub(super) fn is_filled(&self) -> bool {
        self.filled
    }

    fn rtt(&self) -> Duration {
        self.min_rtt.unwrap_or(self.initial_rtt)
    }

    /// Bytes that the line itself holds: rate times shortest round trip, times `gain`.
    fn product(&self, gain: u64) -> u64 {
        let micros = u64::try_from(self.rtt().as_micros()).unwrap_or(u64::MAX);
        scaled(self.bandwidth.saturating_mul(micros) / 1_000_000, gain)
    }

    /// An acknowledgement came. `in_flight` is what is left in flight, `before` what was before.
    pub(super) fn acknowledged(
        &mut self,
        now: Instant,
        report: &Report,
        in_flight: u64,
        before: u64,
        delivered: u64,
    ) {
        self.round_acked += report.acked_bytes;
        self.round_lost += report.lost_bytes;
        self.round_lost_packets += report.lost_packets;
        self.round_rtt = match (self.round_rtt, report.rtt) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        let mut round_start = false;
        if let Some(sample) = &report.sample {
            if sample.prior_delivered >= self.round_ends_at {
                self.round_ends_at = delivered;
                // As the packet that ends the round was sent, so was the round.
                self.round_app_limited = sample.app_limited;
                round_start = true;
            }
            if let Some(rate) = sample.rate
                && (!sample.app_limited || rate >= self.bandwidth)
            {
                if let Some(best) = self.rates.get_mut(self.slot) {
                    *best = rate.max(*best);
                }
                self.bandwidth = self.rates.iter().copied().max().unwrap_or(0);
            }
        }
        if round_start {
            self.end_round();
        }
        if self.mode == Mode::Startup && self.filled {
            self.mode = Mode::Drain;
        }
        if self.mode == Mode::Drain && in_flight <= self.product(UNIT) {
            self.mode = Mode::ProbeBandwidth;
            // Not with the draining phase; which of the others does not matter much.
            self.cycle = 2;
            self.cycle_at = now;
        }
        self.advance_cycle(now, report, before);
        self.update_min_rtt(now, report.rtt, before, in_flight, round_start);
        self.update_window(report.acked_bytes);
    }

    fn end_round(&mut self) {
        let total = self.round_acked + self.round_lost;
        self.filled |= self.round_lost_packets >= STARTUP_LOSS_PACKETS
            && self.round_lost * 100 > total * STARTUP_LOSS_PERCENT;
        // A round shows whether the rate still grows if data was not what limited it, or if a queue stood all through it. Of a
        // few packets it was not their queue, but a peer that was slow to answer.
        let queued = self.round_acked >= MIN_WINDOW_PACKETS * self.packet
            && self
                .round_rtt
                .is_some_and(|r| r > self.rtt() + self.rtt() / 4);
        if !self.filled && (queued || !self.round_app_limited) {
            if self.bandwidth >= self.full_rate.saturating_add(self.full_rate / 4) {
                self.full_rate = self.bandwidth;
                self.full_rounds = 0;
            } else {
                self.full_rounds += 1;
                self.filled = self.full_rounds >= 3;
            }
        }
        if !self.round_app_limited {
            self.slot = (self.slot + 1) % BANDWIDTH_ROUNDS;
            if let Some(oldest) = self.rates.get_mut(self.slot) {
                *oldest = 0;
            }
        }
        self.round_rtt = None;
        self.round_acked = 0;
        self.round_lost = 0;
        self.round_lost_packets = 0;
    }

    fn cycle_gain(&self) -> u64 {
        match self.cycle {
            0 => UNIT + self.excess,
            1 => UNIT - self.excess,
            _ => UNIT,
        }
    }

    fn advance_cycle(&mut self, now: Instant, report: &Report, in_flight: u64) {
        if self.mode != Mode::ProbeBandwidth {
            return;
        }
        // What a probe did is told a round trip later.
        let loss = if matches!(self.cycle, 1 | 2) {
            &mut self.probe_loss
        } else {
            &mut self.cruise_loss
        };
        loss.0 += report.lost_bytes;
        loss.1 += report.lost_bytes + report.acked_bytes;
        let elapsed = now.since(self.cycle_at) > self.rtt();
        let lost = report.lost_packets > 0;
        let next = match self.cycle {
            0 => elapsed && (lost || in_flight >= self.product(self.cycle_gain())),
            1 => elapsed || in_flight <= self.product(UNIT),
            _ => elapsed,
        };
        if next {
            self.cycle = (self.cycle + 1) % CYCLE_PHASES;
            self.cycle_at = now;
            if self.cycle == 3 {
                self.judge_probe();
            }
        }
    }

    /// Whether the last probe overflowed a queue, that is, lost more than the line loses anyway.
    fn judge_probe(&mut self) {
        let percent = |(lost, all): (u64, u64)| (lost * 100).checked_div(all).unwrap_or(0);
        if percent(self.probe_loss) > percent(self.cruise_loss) + PROBE_LOSS_PERCENT {
            self.excess = (self.excess / 2).max(MIN_EXCESS);
        } else {
            self.excess = (self.excess + MIN_EXCESS).min(MAX_EXCESS);
        }
        self.probe_loss = (0, 0);
        self.cruise_loss = (self.cruise_loss.0 / 2, self.cruise_loss.1 / 2);
    }

    /// Bytes in flight below which the line is not busy for want of data. Startup needs more to see whether it grows.
    pub(super) fn busy(&self) -> u64 {
        self.product(if self.filled { UNIT } else { UNIT + UNIT / 2 })
    }

    fn update_min_rtt(
        &mut self,
        now: Instant,
        rtt: Option<Duration>,
        before: u64,
        in_flight: u64,
        round_start: bool,
    ) {
        let expired = now.since(self.min_rtt_at) > MIN_RTT_WINDOW;
        if let Some(rtt) = rtt
            && (expired || self.min_rtt.is_none_or(|m| rtt <= m))
        {
            self.min_rtt = Some(rtt);
            self.min_rtt_at = now;
        }
        // With little in flight the sample itself saw an empty queue: nothing to probe for.
        if expired
            && self.mode != Mode::ProbeRtt
            && self.bandwidth > 0
            && before > self.probe_rtt_window()
        {
            self.mode = Mode::ProbeRtt;
            self.window_before_probe = self.window;
            self.probe_rtt_until = None;
        }
        if self.mode != Mode::ProbeRtt {
            return;
        }
        match self.probe_rtt_until {
            None if in_flight <= self.probe_rtt_window() => {
                self.probe_rtt_until = Some(now + PROBE_RTT_TIME.max(self.rtt()));
                self.probe_rtt_round = false;
            }
            None => {}
            Some(until) => {
                self.probe_rtt_round |= round_start;
                if self.probe_rtt_round && now >= until {
                    self.min_rtt_at = now;
                    self.window = self.window.max(self.window_before_probe);
                    self.mode = if self.filled {
                        Mode::ProbeBandwidth
                    } else {
                        Mode::Startup
                    };
                    self.cycle = 2;
                    self.cycle_at = now;
                }
            }
        }
    }

    fn probe_rtt_window(&self) -> u64 {
        self.product(UNIT / 2).max(MIN_WINDOW_PACKETS * self.packet)
    }

    fn update_window(&mut self, acked: u64) {
        // Acknowledgements come late and for several packets at once, and sending goes in small bursts.
        let late = (self.bandwidth / 50).min(8 * self.packet);
        let slack = late + self.bandwidth / 200 + 3 * self.packet;
        let target = self.product(CWND_GAIN) + slack;
        self.window = if self.filled {
            self.window.saturating_add(acked).min(target)
        } else {
            // While it searches, the window never shrinks.
            if self.window < target {
                self.window.saturating_add(acked)
            } else {
                self.window
            }
        };
        self.window = self.window.max(MIN_WINDOW_PACKETS * self.packet);
        if self.mode == Mode::ProbeRtt {
            self.window = self.window.min(self.probe_rtt_window());
        }
    }
}

#[cfg(test)]
impl Bbr {
    pub(super) fn trace(&self) -> alloc::string::String {
        alloc::format!(
            "{:?} {} excess {} filled {}",
            self.mode,
            self.cycle,
            self.excess,
            self.filled
        )
    }
}

fn scaled(value: u64, gain: u64) -> u64 {
    value.saturating_mul(gain) / UNIT
}

fn per_second(bytes: u64, time: Duration) -> u64 {
    let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX).max(1);
    bytes.saturating_mul(1_000_000) / micros
}
