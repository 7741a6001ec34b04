//! An established connection: keys, packets in and out, timers. Handshakes are `handshake`'s.

use alloc::vec::Vec;
use core::time::Duration;

use super::bbr::Bbr;
use super::frame::{self, CloseReason, Frame};
use super::handshake::Agreed;
use super::noise::{Keys, TAG};
use super::pacer::Pacer;
use super::pmtud::PathMtu;
use super::received::Received;
use super::recovery::{Recovery, Report, SentFrames};
use super::streams::Streams;
use super::types::{BASE_MTU, Backlog, DownReason, Endpoint, TunnelConfig, TunnelStatistics};
use super::wire::{self, DATA_HEADER, Reader};
use crate::time::Instant;

/// After keys were replaced, packets under the old ones are taken so long.
const OLD_KEYS_LIVE: Duration = Duration::from_secs(10);
/// Ranges in the peer's acknowledgements from which on it is told what it need not name any more.
const SETTLE_RANGES: usize = 3;
/// Probes sent when nothing is acknowledged in time (RFC 9002, section 6.2.4).
const PROBES: u8 = 2;
/// An acknowledgement is put into a packet that has so much space left anyway.
const ACK_SPACE: usize = 64;

/// The keys of one handshake, and the names both sides know them by.
pub(super) struct Session {
    pub(super) local: u32,
    pub(super) remote: u32,
    pub(super) keys: Keys,
    pub(super) since: Instant,
}

/// What is noted of a packet that goes.
struct Outgoing {
    eliciting: bool,
    mtu_probe: bool,
    frames: SentFrames,
}

pub(super) struct Connection {
    /// Drawn by the initiator; names the connection across new keys.
    pub(super) token: u64,
    session: Session,
    old: Option<(Session, Instant)>,
    peer: Endpoint,
    pub(super) streams: Streams,
    received: Received,
    recovery: Recovery,
    bbr: Bbr,
    pacer: Pacer,
    mtu: PathMtu,
    heard_at: Instant,
    pinged_at: Instant,
    keepalive: Duration,
    dead_after: Duration,
    ping: bool,
    probes: u8,
    settle_ranges: usize,
    settled_at: Instant,
}

impl Connection {
    /// The connection that a handshake has agreed on.
    pub(super) fn new(
        now: Instant,
        config: &TunnelConfig,
        initiator: bool,
        generation: u16,
        agreed: Agreed,
    ) -> Self {
        let rtt = (agreed.rtt > Duration::ZERO).then_some(agreed.rtt);
        let mtu = PathMtu::new(now, config.mtu);
        let mut streams = Streams::new(config, initiator, generation);
        let bbr = Bbr::new(now, u64::from(mtu.current()), rtt);
        streams.set_window(bbr.window());
        Connection {
            token: agreed.token,
            session: agreed.session,
            old: None,
            peer: agreed.from,
            streams,
            received: Received::new(),
            recovery: Recovery::new(now, rtt),
            bbr,
            pacer: Pacer::new(now),
            mtu,
            heard_at: now,
            pinged_at: now,
            keepalive: config.keepalive,
            dead_after: config.dead_after,
            // The initiator's first packet confirms the keys to the responder.
            ping: initiator,
            probes: 0,
            settle_ranges: 0,
            settled_at: now,
        }
    }

    pub(super) fn session(&self) -> &Session {
        &self.session
    }

    /// Replaces the keys; everything else goes on.
    pub(super) fn install(&mut self, now: Instant, session: Session) {
        let old = core::mem::replace(&mut self.session, session);
        self.old = Some((old, now + OLD_KEYS_LIVE));
    }

    /// The keys that the peer calls `local`.
    pub(super) fn keys_of(&self, now: Instant, local: u32) -> Option<&Keys> {
        if self.session.local == local {
            return Some(&self.session.keys);
        }
        self.old
            .as_ref()
            .filter(|(s, until)| s.local == local && *until > now)
            .map(|(s, _)| &s.keys)
    }

    /// Whether `local` names keys in use.
    pub(super) fn knows(&self, local: u32) -> bool {
        self.session.local == local || self.old.as_ref().is_some_and(|(s, _)| s.local == local)
    }

    /// The packet number that is expected next.
    pub(super) fn expected(&self) -> u64 {
        self.received.expected()
    }

    pub(super) fn is_replay(&self, number: u64) -> bool {
        self.received.is_replay(number)
    }

    /// An authenticated packet that is no replay: takes in its frames. `Err` says why the connection ends.
    pub(super) fn receive(
        &mut self,
        now: Instant,
        from: Endpoint,
        number: u64,
        plain: &[u8],
        statistics: &mut TunnelStatistics,
    ) -> Result<(), DownReason> {
        self.heard_at = now;
        let mut eliciting = false;
        let mut reader = Reader::new(plain);
        while !reader.is_empty() {
            let frame =
                frame::parse(&mut reader).ok_or(DownReason::Violation(super::Violation::Frame))?;
            eliciting |= frame.is_eliciting();
            self.on_frame(now, frame, statistics)?;
        }
        let newest = self
            .received
            .note(now, number, eliciting, self.recovery.rtt.smoothed);
        if newest && from != self.peer {
            // The path may be another, with another MTU: black-hole detection covers that.
            log::info!("tunnel: peer moved from {} to {from}", self.peer);
            self.peer = from;
            statistics.address_changes += 1;
        }
        Ok(())
    }

    fn on_frame(
        &mut self,
        now: Instant,
        frame: Frame<'_>,
        statistics: &mut TunnelStatistics,
    ) -> Result<(), DownReason> {
        match frame {
            Frame::Padding | Frame::Ping => Ok(()),
            Frame::Ack(ack) => {
                let before = self.recovery.in_flight();
                let streams = &mut self.streams;
                let report = self
                    .recovery
                    .acknowledged(now, &ack, &mut |o, f| streams.on_outcome(o, f));
                self.settle_ranges = ack.count();
                report.map(|report| {
                    self.take_in(now, &report, before, statistics);
                    self.recovery.give_back(report);
                })
            }
            Frame::Settled(number) => {
                self.received.settle(number);
                Ok(())
            }
            Frame::Reset { stream, code, size } => self.streams.on_reset(stream, code, size),
            Frame::MaxData(limit) => {
                self.streams.on_max_data(limit);
                Ok(())
            }
            Frame::MaxStreamData { stream, limit } => {
                self.streams.on_max_stream_data(stream, limit)
            }
            Frame::MaxStreams(limit) => {
                self.streams.on_max_streams(limit);
                Ok(())
            }
            Frame::Stream {
                stream,
                offset,
                data,
                finished,
            } => self.streams.on_data(stream, offset, data, finished),
            Frame::Close(CloseReason::Finished) => return Err(DownReason::ClosedByPeer),
            Frame::Close(CloseReason::Violation) => return Err(DownReason::AccusedByPeer),
        }
        .map_err(DownReason::Violation)
    }

    /// What an acknowledgement or a loss timer brought goes to the models.
    fn take_in(
        &mut self,
        now: Instant,
        report: &Report,
        before: u64,
        statistics: &mut TunnelStatistics,
    ) {
        statistics.packets_lost += report.lost_packets;
        statistics.packets_lost_spuriously += report.late_packets;
        if let Some(size) = report.probe_acked {
            self.mtu.probe_acked(size);
        }
        if let Some(size) = report.probe_lost {
            self.mtu.probe_lost(size);
        }
        if let Some((number, size)) = report.largest_acked_size {
            self.mtu.packet_acked(number, size);
        }
        for &(number, size) in &report.lost {
            if self.mtu.packet_lost(number, size) {
                log::warn!(
                    "tunnel: packets above {BASE_MTU} bytes no longer reach {}; sending smaller ones",
                    self.peer
                );
            }
        }
        self.bbr.set_packet_size(u64::from(self.mtu.current()));
        self.bbr.acknowledged(
            now,
            report,
            self.recovery.in_flight(),
            before,
            self.recovery.delivered(),
        );
        self.streams.set_window(self.bbr.window());
    }

    /// Time has passed: losses, probes, keepalives. `Err` when the peer has been silent for too long.
    pub(super) fn on_time(
        &mut self,
        now: Instant,
        statistics: &mut TunnelStatistics,
    ) -> Result<(), DownReason> {
        if now.since(self.heard_at) >= self.dead_after {
            return Err(DownReason::Silence);
        }
        if self.old.as_ref().is_some_and(|(_, until)| *until <= now) {
            self.old = None;
        }
        if self.recovery.timer().is_some_and(|t| t <= now) {
            let before = self.recovery.in_flight();
            let mut report = self.recovery.report();
            let streams = &mut self.streams;
            if self
                .recovery
                .on_timeout(now, &mut report, &mut |o, f| streams.on_outcome(o, f))
            {
                statistics.probe_timeouts += 1;
                self.probes = PROBES;
            }
            self.take_in(now, &report, before, statistics);
            self.recovery.give_back(report);
        }
        if now >= self.keepalive_at() {
            self.pinged_at = now;
            self.ping = true;
            self.probes = self.probes.max(1);
        }
        Ok(())
    }

    fn keepalive_at(&self) -> Instant {
        self.heard_at.max(self.pinged_at) + self.keepalive
    }

    fn window_is_open(&self) -> bool {
        self.recovery.in_flight() + u64::from(self.mtu.current()) <= self.bbr.window()
    }

    fn has_data(&self) -> bool {
        self.ping || self.streams.has_pending()
    }

    /// When [`on_time`](Self::on_time) or [`transmit`](Self::transmit) has something to do.
    pub(super) fn next_wakeup(&self, now: Instant) -> Instant {
        let mut next = self.keepalive_at().min(self.heard_at + self.dead_after);
        let mut consider = |at: Option<Instant>| {
            if let Some(at) = at {
                next = next.min(at);
            }
        };
        consider(self.recovery.timer());
        consider(self.received.deadline());
        if self.probes > 0 {
            consider(Some(now));
        }
        if self.window_is_open() {
            if self.has_data() {
                consider(Some(self.pacer.next()));
            }
            consider(self.mtu.next_search().map(|t| t.max(self.pacer.next())));
        }
        next.max(now)
    }

    /// Writes the next packet into `out` if one may go now.
    pub(super) fn transmit(
        &mut self,
        now: Instant,
        plain: &mut Vec<u8>,
        out: &mut Vec<u8>,
        statistics: &mut TunnelStatistics,
    ) -> Option<Endpoint> {
        plain.clear();
        let ack_due = self.received.deadline().is_some_and(|t| t <= now);
        let may_send = self.window_is_open() && self.pacer.next() <= now;
        if may_send
            && self.probes == 0
            && let Some(size) = self.mtu.probe(now)
        {
            frame::put(&Frame::Ping, plain);
            plain.resize(self.capacity(usize::from(size)), 0);
            self.mtu.probe_sent();
            return self.seal(
                now,
                Outgoing {
                    eliciting: true,
                    mtu_probe: true,
                    frames: SentFrames::default(),
                },
                plain,
                out,
                statistics,
            );
        }
        if self.probes > 0 || (may_send && self.has_data()) {
            // After two time-outs in a row, large packets may be what does not pass.
            let size = if self.probes > 0 && self.recovery.timeouts() > 1 {
                BASE_MTU
            } else {
                self.mtu.current()
            };
            let mut frames = SentFrames::default();
            let eliciting = self.fill(now, usize::from(size), ack_due, plain, &mut frames);
            if eliciting {
                self.probes = self.probes.saturating_sub(1);
            }
            if !plain.is_empty() {
                return self.seal(
                    now,
                    Outgoing {
                        eliciting,
                        mtu_probe: false,
                        frames,
                    },
                    plain,
                    out,
                    statistics,
                );
            }
        }
        if self.window_is_open()
            && !self.streams.has_pending()
            && self.recovery.in_flight() < self.bbr.busy().max(u64::from(self.mtu.current()))
        {
            self.recovery.set_app_limited();
        }
        if ack_due {
            plain.clear();
            let capacity = self.capacity(usize::from(BASE_MTU));
            if self.received.put_ack(now, capacity, plain) {
                return self.seal(
                    now,
                    Outgoing {
                        eliciting: false,
                        mtu_probe: false,
                        frames: SentFrames::default(),
                    },
                    plain,
                    out,
                    statistics,
                );
            }
        }
        None
    }

    /// Frames that fit into a packet of `size` bytes of UDP payload.
    fn capacity(&self, size: usize) -> usize {
        let number = wire::number_length(self.recovery.next_number(), self.recovery.acked_below());
        size.saturating_sub(DATA_HEADER + usize::from(number) + TAG)
    }

    /// Fills `plain` with frames; true if the packet wants an acknowledgement.
    fn fill(
        &mut self,
        now: Instant,
        size: usize,
        ack_due: bool,
        plain: &mut Vec<u8>,
        frames: &mut SentFrames,
    ) -> bool {
        let capacity = self.capacity(size);
        if ack_due {
            self.received.put_ack(now, capacity / 2, plain);
        }
        let rtt = self.recovery.rtt.smoothed;
        if self.settle_ranges >= SETTLE_RANGES && now.since(self.settled_at) > rtt {
            self.settled_at = now;
            frame::put(&Frame::Settled(self.recovery.settled_below()), plain);
        }
        let before = plain.len();
        let more = self.streams.put_frames(now, rtt, capacity, plain, frames);
        let mut eliciting = plain.len() > before;
        // A probe has to be answered whatever it carries.
        if more && capacity > plain.len() && (self.ping || (self.probes > 0 && !eliciting)) {
            frame::put(&Frame::Ping, plain);
            eliciting = true;
        }
        self.ping &= !eliciting;
        let space = capacity.saturating_sub(plain.len());
        if eliciting && more && !ack_due && space >= ACK_SPACE && self.received.is_wanted() {
            self.received.put_ack(now, space, plain);
        }
        eliciting
    }

    /// Encrypts `plain` into a packet and notes that it goes.
    fn seal(
        &mut self,
        now: Instant,
        outgoing: Outgoing,
        plain: &[u8],
        out: &mut Vec<u8>,
        statistics: &mut TunnelStatistics,
    ) -> Option<Endpoint> {
        let number = self.recovery.next_number();
        let length = wire::number_length(number, self.recovery.acked_below());
        wire::data_header(self.session.remote, number, length, out);
        let header = out.len();
        out.resize(header + plain.len() + TAG, 0);
        let sealed = out.get_mut(header..)?;
        // Only an exhausted nonce fails, after 2⁶⁴ packets.
        if self.session.keys.seal(number, plain, sealed).is_err() {
            out.clear();
            return None;
        }
        let Outgoing {
            eliciting,
            mtu_probe,
            frames,
        } = outgoing;
        self.recovery
            .sent(now, out.len(), eliciting, mtu_probe, frames);
        if eliciting {
            self.pacer.sent(now, out.len(), self.bbr.pacing_rate());
        }
        statistics.packets_sent += 1;
        statistics.bytes_sent += out.len() as u64;
        Some(self.peer)
    }

    /// A last packet that tells the peer that it is over.
    pub(super) fn farewell(
        &mut self,
        now: Instant,
        reason: CloseReason,
        statistics: &mut TunnelStatistics,
    ) -> Option<(Endpoint, Vec<u8>)> {
        let mut plain = Vec::new();
        frame::put(&Frame::Close(reason), &mut plain);
        let mut out = Vec::new();
        let to = self.seal(
            now,
            Outgoing {
                eliciting: false,
                mtu_probe: false,
                frames: SentFrames::default(),
            },
            &plain,
            &mut out,
            statistics,
        )?;
        Some((to, out))
    }

    /// What all streams hold and the line's rate, if it has shown that.
    pub(super) fn backlog(&self) -> Option<Backlog> {
        self.bbr.is_filled().then(|| Backlog {
            bytes: self.streams.held() as u64,
            rate: self.bbr.bandwidth(),
        })
    }

    /// The present state of the line.
    pub(super) fn describe(&self, statistics: &mut TunnelStatistics) {
        let micros = |d: Duration| u64::try_from(d.as_micros()).unwrap_or(u64::MAX);
        statistics.rtt_micros = if self.recovery.rtt.sampled {
            micros(self.recovery.rtt.smoothed)
        } else {
            0
        };
        statistics.min_rtt_micros = self.bbr.min_rtt().map_or(0, micros);
        statistics.bandwidth = self.bbr.bandwidth();
        statistics.pacing_rate = self.bbr.pacing_rate();
        statistics.congestion_window = self.bbr.window();
        statistics.in_flight = self.recovery.in_flight();
        statistics.mtu = self.mtu.current();
        statistics.streams = u32::try_from(self.streams.open_streams()).unwrap_or(u32::MAX);
        statistics.stream_bytes_sent += self.streams.counters.sent;
        statistics.stream_bytes_retransmitted += self.streams.counters.again;
        statistics.stream_bytes_received += self.streams.counters.received;
    }

    /// Whom packets go to.
    pub(super) fn peer(&self) -> Endpoint {
        self.peer
    }

    #[cfg(test)]
    pub(super) fn trace(&self) -> alloc::string::String {
        alloc::format!("{} {:?}", self.bbr.trace(), self.mtu)
    }
}
