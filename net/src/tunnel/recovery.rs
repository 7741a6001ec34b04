//! Packets in flight: what acknowledgements and time say about them (RFC 9002), and delivery-rate samples
//! (draft-cheng-iccrg-delivery-rate-estimation). What to do about a rate is `bbr`'s business, about a lost frame the
//! streams'.

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::time::Duration;

use super::frame::Ack;
use super::received;
use super::rtt::{GRANULARITY, Rtt};
use super::types::Violation;
use crate::time::Instant;

/// RFC 9002, section 6.1.1: kPacketThreshold; grows when the line proves to reorder more.
const PACKET_THRESHOLD: u64 = 3;
const MAX_PACKET_THRESHOLD: u64 = 512;
/// RFC 9002, section 6.1.2: 9/8 round trips; the eighths grow when the line proves to reorder more.
const TIME_EIGHTHS: u32 = 9;
const MAX_TIME_EIGHTHS: u32 = 16;
/// Reordering that has not shown again for so long is forgotten.
const REORDERING_MEMORY: Duration = Duration::from_secs(60);
/// Probe timeouts back off to this at most: an outage that ends is noticed within it.
const MAX_PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// Lost packets remembered in case they are only late.
const MAX_LATE: usize = 512;

/// Something in a packet that has to reach the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SentFrame {
    Stream {
        stream: u64,
        start: u64,
        length: u32,
        finished: bool,
    },
    Reset(u64),
    MaxData,
    MaxStreamData(u64),
    MaxStreams,
}

/// The frames of one packet: nearly always one, seldom more than two, which then need no allocation.
#[derive(Clone, Debug, Default)]
pub(super) struct SentFrames {
    few: [Option<SentFrame>; 2],
    more: Vec<SentFrame>,
}

impl SentFrames {
    pub(super) fn push(&mut self, frame: SentFrame) {
        match self.few.iter_mut().find(|place| place.is_none()) {
            Some(place) => *place = Some(frame),
            None => self.more.push(frame),
        }
    }

    fn iter(&self) -> impl Iterator<Item = SentFrame> + '_ {
        self.few.iter().flatten().chain(&self.more).copied()
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    InFlight,
    /// Acknowledged, lost, or nothing that wants an acknowledgement.
    Settled,
}

struct SentPacket {
    at: Instant,
    size: u32,
    fate: Fate,
    mtu_probe: bool,
    app_limited: bool,
    /// The sampler's state when it was sent.
    delivered: u64,
    delivered_at: Instant,
    first_sent_at: Instant,
    frames: SentFrames,
}

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Acknowledged,
    Lost,
}

/// How fast the line delivered, seen from one acknowledgement.
#[derive(Clone, Copy, Debug)]
pub(super) struct RateSample {
    /// Bytes a second; `None` when the interval is too short to say.
    pub(super) rate: Option<u64>,
    pub(super) app_limited: bool,
    /// Total delivered when the packet that the sample is of was sent.
    pub(super) prior_delivered: u64,
}

/// What one acknowledgement, or the time that passed, brought.
#[derive(Default)]
pub(super) struct Report {
    pub(super) acked_bytes: u64,
    pub(super) lost_bytes: u64,
    pub(super) lost_packets: u64,
    pub(super) late_packets: u64,
    pub(super) rtt: Option<Duration>,
    pub(super) sample: Option<RateSample>,
    /// Size of the MTU probe that arrived.
    pub(super) probe_acked: Option<u32>,
    /// Size of the MTU probe that was lost.
    pub(super) probe_lost: Option<u32>,
    /// Number and size of the largest data packet acknowledged.
    pub(super) largest_acked_size: Option<(u64, u32)>,
    /// Numbers and sizes of lost packets, MTU probes excluded.
    pub(super) lost: Vec<(u64, u32)>,
}

struct LatePacket {
    number: u64,
    /// How many packets had been sent after it and acknowledged before it.
    at: Instant,
    frames: SentFrames,
}

pub(super) struct Recovery {
    pub(super) rtt: Rtt,
    /// Number of the next packet.
    next: u64,
    /// Packets from number `next - sent.len()` on.
    sent: VecDeque<SentPacket>,
    largest_acked: Option<u64>,
    in_flight: u64,
    eliciting_in_flight: u64,
    last_eliciting_at: Instant,
    loss_at: Option<Instant>,
    timeouts: u32,
    late: VecDeque<LatePacket>,
    packet_threshold: u64,
    time_eighths: u32,
    reordering_seen_at: Instant,
    delivered: u64,
    delivered_at: Instant,
    first_sent_at: Instant,
    /// While `delivered` is below it, samples are limited by what there was to send.
    app_limited_until: u64,
    /// Room for [`Report::lost`].
    lost_room: Vec<(u64, u32)>,
}

impl Recovery {
    pub(super) fn new(now: Instant, rtt_hint: Option<Duration>) -> Self {
        Recovery {
            rtt: Rtt::new(rtt_hint),
            next: 0,
            sent: VecDeque::new(),
            largest_acked: None,
            in_flight: 0,
            eliciting_in_flight: 0,
            last_eliciting_at: now,
            loss_at: None,
            timeouts: 0,
            late: VecDeque::new(),
            packet_threshold: PACKET_THRESHOLD,
            time_eighths: TIME_EIGHTHS,
            reordering_seen_at: now,
            delivered: 0,
            delivered_at: now,
            first_sent_at: now,
            app_limited_until: 0,
            lost_room: Vec::new(),
        }
    }

    /// A report of nothing yet. Hand it to [`give_back`](Self::give_back) afterwards.
    pub(super) fn report(&mut self) -> Report {
        Report {
            lost: core::mem::take(&mut self.lost_room),
            ..Report::default()
        }
    }

    /// The report is not needed any more, but the next one needs its room.
    pub(super) fn give_back(&mut self, report: Report) {
        self.lost_room = report.lost;
        self.lost_room.clear();
    }

    pub(super) fn next_number(&self) -> u64 {
        self.next
    }

    /// Below this number nothing is in flight.
    pub(super) fn settled_below(&self) -> u64 {
        self.next - self.sent.len() as u64
    }

    /// One above the largest acknowledged number.
    pub(super) fn acked_below(&self) -> u64 {
        self.largest_acked.map_or(0, |n| n + 1)
    }

    pub(super) fn in_flight(&self) -> u64 {
        self.in_flight
    }

    pub(super) fn delivered(&self) -> u64 {
        self.delivered
    }

    /// Probe timeouts in a row.
    pub(super) fn timeouts(&self) -> u32 {
        self.timeouts
    }

    /// There is nothing to send though there might be: rates seen until all now in flight is delivered are too low.
    pub(super) fn set_app_limited(&mut self) {
        self.app_limited_until = (self.delivered + self.in_flight).max(1);
    }

    /// Notes that packet [`next_number`](Self::next_number) went, `size` bytes of UDP payload.
    pub(super) fn sent(
        &mut self,
        now: Instant,
        size: usize,
        eliciting: bool,
        mtu_probe: bool,
        frames: SentFrames,
    ) {
        let size = u32::try_from(size).unwrap_or(u32::MAX);
        if eliciting {
            if self.in_flight == 0 {
                self.first_sent_at = now;
                self.delivered_at = now;
            }
            self.in_flight += u64::from(size);
            self.eliciting_in_flight += 1;
            self.last_eliciting_at = now;
        } else if self.sent.is_empty() {
            self.next += 1;
            return;
        }
        self.sent.push_back(SentPacket {
            at: now,
            size,
            fate: if eliciting {
                Fate::InFlight
            } else {
                Fate::Settled
            },
            mtu_probe,
            app_limited: self.app_limited_until > 0,
            delivered: self.delivered,
            delivered_at: self.delivered_at,
            first_sent_at: self.first_sent_at,
            frames,
        });
        self.next += 1;
    }

    /// Takes in an acknowledgement. `tell` hears of each frame's fate.
    pub(super) fn acknowledged(
        &mut self,
        now: Instant,
        ack: &Ack<'_>,
        tell: &mut dyn FnMut(Outcome, SentFrame),
    ) -> Result<Report, Violation> {
        if ack.largest >= self.next {
            return Err(Violation::Acknowledgement);
        }
        let mut report = self.report();
        let base = self.settled_below();
        // The newest packet that this acknowledges gives the rate sample.
        let mut newest: Option<(u64, u64, Instant, Instant, Instant, bool)> = None;
        for (low, high) in ack.ranges() {
            if high < base {
                break;
            }
            for number in low.max(base)..=high {
                let Some(packet) = usize::try_from(number - base)
                    .ok()
                    .and_then(|i| self.sent.get_mut(i))
                else {
                    break;
                };
                if packet.fate != Fate::InFlight {
                    continue;
                }
                packet.fate = Fate::Settled;
                let size = u64::from(packet.size);
                self.in_flight = self.in_flight.saturating_sub(size);
                self.eliciting_in_flight = self.eliciting_in_flight.saturating_sub(1);
                self.delivered += size;
                report.acked_bytes += size;
                for frame in packet.frames.iter() {
                    tell(Outcome::Acknowledged, frame);
                }
                if packet.mtu_probe {
                    report.probe_acked = Some(packet.size);
                }
                if report
                    .largest_acked_size
                    .is_none_or(|(_, s)| packet.size >= s)
                {
                    report.largest_acked_size = Some((number, packet.size));
                }
                if newest.is_none_or(|n| number > n.0) {
                    let p = &*packet;
                    newest = Some((
                        number,
                        p.delivered,
                        p.delivered_at,
                        p.at,
                        p.first_sent_at,
                        p.app_limited,
                    ));
                }
            }
        }
        self.recognise_late(now, ack, &mut report, tell);
        if self.largest_acked.is_none_or(|l| ack.largest > l) {
            self.largest_acked = Some(ack.largest);
        }
        if let Some((number, prior_delivered, prior_at, sent_at, first_sent_at, app_limited)) =
            newest
        {
            self.timeouts = 0;
            if number == ack.largest {
                let delay = Duration::from_micros(ack.delay_micros);
                report.rtt = Some(self.rtt.sample(now.since(sent_at), delay));
            }
            self.delivered_at = now;
            self.first_sent_at = sent_at;
            let interval = sent_at.since(first_sent_at).max(now.since(prior_at));
            let micros = u64::try_from(interval.as_micros()).unwrap_or(u64::MAX);
            let bytes = self.delivered - prior_delivered;
            report.sample = Some(RateSample {
                rate: bytes.saturating_mul(1_000_000).checked_div(micros),
                app_limited,
                prior_delivered,
            });
            if self.app_limited_until > 0 && self.delivered > self.app_limited_until {
                self.app_limited_until = 0;
            }
            self.detect_lost(now, &mut report, tell);
        }
        self.trim();
        Ok(report)
    }

    /// Lost packets that `ack` names were only late: the line reorders more than was thought.
    fn recognise_late(
        &mut self,
        now: Instant,
        ack: &Ack<'_>,
        report: &mut Report,
        tell: &mut dyn FnMut(Outcome, SentFrame),
    ) {
        let memory = self.rtt.smoothed * 4;
        while self
            .late
            .front()
            .is_some_and(|l| self.late.len() > MAX_LATE || now.since(l.at) > memory)
        {
            self.late.pop_front();
        }
        if self.late.is_empty() {
            return;
        }
        let largest = self.largest_acked.unwrap_or(0);
        let mut distance = 0;
        for (low, high) in ack.ranges() {
            // `late` is in the order of loss: numbers mostly ascend, but not strictly.
            self.late.retain(|l| {
                let arrived = (low..=high).contains(&l.number);
                if arrived {
                    distance = distance.max(largest.saturating_sub(l.number));
                    report.late_packets += 1;
                    for frame in l.frames.iter() {
                        tell(Outcome::Acknowledged, frame);
                    }
                }
                !arrived
            });
            if self.late.is_empty() {
                break;
            }
        }
        if report.late_packets > 0 {
            self.packet_threshold = self
                .packet_threshold
                .max(distance + 1)
                .min(MAX_PACKET_THRESHOLD);
            self.time_eighths = (self.time_eighths + 1).min(MAX_TIME_EIGHTHS);
            self.reordering_seen_at = now;
        }
    }

    fn detect_lost(
        &mut self,
        now: Instant,
        report: &mut Report,
        tell: &mut dyn FnMut(Outcome, SentFrame),
    ) {
        self.loss_at = None;
        let Some(largest) = self.largest_acked else {
            return;
        };
        if now.since(self.reordering_seen_at) > REORDERING_MEMORY {
            self.packet_threshold = PACKET_THRESHOLD;
            self.time_eighths = TIME_EIGHTHS;
        }
        let wait =
            (self.rtt.smoothed.max(self.rtt.latest) * self.time_eighths / 8).max(GRANULARITY);
        let base = self.settled_below();
        let below = usize::try_from(largest.saturating_sub(base))
            .unwrap_or(0)
            .min(self.sent.len());
        for (number, packet) in (base..).zip(self.sent.iter_mut().take(below)) {
            if packet.fate != Fate::InFlight {
                continue;
            }
            let overdue = packet.at + wait;
            if overdue > now && largest - number < self.packet_threshold {
                self.loss_at = Some(self.loss_at.map_or(overdue, |t| t.min(overdue)));
                continue;
            }
            packet.fate = Fate::Settled;
            let size = u64::from(packet.size);
            self.in_flight = self.in_flight.saturating_sub(size);
            self.eliciting_in_flight = self.eliciting_in_flight.saturating_sub(1);
            for frame in packet.frames.iter() {
                tell(Outcome::Lost, frame);
            }
            if packet.mtu_probe {
                report.probe_lost = Some(packet.size);
            } else {
                report.lost_bytes += size;
                report.lost_packets += 1;
                report.lost.push((number, packet.size));
            }
            let frames = core::mem::take(&mut packet.frames);
            self.late.push_back(LatePacket {
                number,
                at: now,
                frames,
            });
        }
    }

    fn trim(&mut self) {
        while self.sent.front().is_some_and(|p| p.fate == Fate::Settled) {
            self.sent.pop_front();
        }
    }

    /// When [`on_timeout`](Self::on_timeout) has something to do.
    pub(super) fn timer(&self) -> Option<Instant> {
        if self.loss_at.is_some() {
            return self.loss_at;
        }
        if self.eliciting_in_flight == 0 {
            return None;
        }
        let base = self.rtt.probe_timeout(received::MAX_DELAY);
        let backed_off = base.saturating_mul(1 << self.timeouts.min(10));
        Some(self.last_eliciting_at + backed_off.min(MAX_PROBE_INTERVAL.max(base)))
    }

    /// Time has passed. True if probes should go: nothing was acknowledged in time, and the frames of the oldest
    /// packet in flight are told as lost, so that the probe carries something useful.
    pub(super) fn on_timeout(
        &mut self,
        now: Instant,
        report: &mut Report,
        tell: &mut dyn FnMut(Outcome, SentFrame),
    ) -> bool {
        if self.timer().is_none_or(|t| t > now) {
            return false;
        }
        if self.loss_at.is_some() {
            self.detect_lost(now, report, tell);
            self.trim();
            return false;
        }
        self.timeouts += 1;
        self.last_eliciting_at = now;
        if let Some(oldest) = self
            .sent
            .iter()
            .find(|p| p.fate == Fate::InFlight && !p.mtu_probe)
        {
            for frame in oldest.frames.iter() {
                tell(Outcome::Lost, frame);
            }
        }
        true
    }
}
