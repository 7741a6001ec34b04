//! What the tunnel tells: it comes and goes, and so do its streams.

use super::Engine;
use super::flow::{End, Stage};
use super::message::Code;
use super::table::Slot;
use crate::flow::link::BadControl;
use crate::flow::newcomer::{Greeting, Newcomer};
use crate::time::Instant;
use crate::tunnel::{DownReason, Event, StreamId};

impl Engine {
    /// Handles everything that the tunnel has to tell. After it, no event waits: flows may have their turns.
    pub(super) fn handle_tunnel(&mut self, now: Instant) {
        // What the control stream carries may cost the tunnel, and that is told by another event.
        while self.handle_events(now) && self.read_control().is_err() {
            if let Some(link) = &mut self.link {
                link.fail(now);
            }
        }
    }

    /// Handles what the tunnel tells; gives whether the control stream is to be read.
    fn handle_events(&mut self, now: Instant) -> bool {
        let mut control = false;
        while let Some(event) = self.link.as_mut().and_then(|link| link.tunnel.poll_event()) {
            match event {
                Event::Up => self.tunnel_up(now),
                Event::Down(reason) => self.tunnel_down(now, reason),
                Event::Opened(stream) => {
                    self.newcomers.insert(stream, Newcomer::default());
                    self.greet(now, stream);
                }
                Event::Readable(stream) => {
                    if let Some(slot) = self.flows.by_stream(stream) {
                        self.flows.wake(slot);
                    } else if self.newcomers.contains_key(&stream) {
                        self.greet(now, stream);
                    }
                    control |= self.is_control(stream);
                }
                Event::Writable(stream) => {
                    if let Some(slot) = self.flows.by_stream(stream) {
                        self.flows.wake(slot);
                    }
                    // The control stream is written in every poll.
                    self.keep_polling |= self.is_control(stream);
                }
                Event::Reset(stream, code) => self.stream_reset(now, stream, code.into()),
                // Counted and logged by the tunnel.
                Event::WrongKey(_) => {}
            }
            // A newcomer may just have turned out to be the control stream.
            control |= matches!(event, Event::Opened(stream) if self.is_control(stream));
        }
        control
    }

    fn is_control(&self, stream: StreamId) -> bool {
        self.link
            .as_ref()
            .is_some_and(|link| link.is_control(stream))
    }

    fn read_control(&mut self) -> Result<(), BadControl> {
        let Some(link) = &mut self.link else {
            return Ok(());
        };
        if link.read_control()? {
            for slot in self.awaiting_control.drain(..) {
                if let Some(flow) = self.flows.get_mut(slot) {
                    flow.is_listed = false;
                }
                self.flows.wake(slot);
            }
        }
        Ok(())
    }

    fn tunnel_up(&mut self, now: Instant) {
        log::info!("the tunnel to the peer is up");
        self.end_flows(now);
        if let Some(link) = &mut self.link {
            link.reset();
            link.open_control(now);
        }
    }

    fn tunnel_down(&mut self, now: Instant, reason: DownReason) {
        log::info!("the tunnel to the peer is down: {reason}");
        self.end_flows(now);
        if let Some(link) = &mut self.link {
            link.reset();
        }
    }

    /// The tunnel is lost: every host is told so at once.
    fn end_flows(&mut self, now: Instant) {
        self.newcomers.clear();
        self.awaiting_control.clear();
        // The next tunnel's streams may have the same names.
        self.flows.forget_streams();
        let slots: alloc::vec::Vec<Slot> = self.flows.slots().collect();
        for slot in slots {
            let Some(flow) = self.flows.get_mut(slot) else {
                continue;
            };
            match flow.stage {
                Stage::Asking => {
                    if let Some(flow) = self.flows.take(slot) {
                        self.conclude(now, *flow, End::NeverOpened(Code::Unreachable));
                    }
                }
                // A closing flow needs the tunnel no more: the host still gets what waits for it.
                Stage::Resetting | Stage::Closing => {}
                _ => {
                    flow.abort();
                    self.counters.flows.reset_by_tunnel += 1;
                    self.flows.wake(slot);
                }
            }
        }
    }

    /// The peer has reset a stream.
    fn stream_reset(&mut self, now: Instant, stream: StreamId, code: Code) {
        if self.newcomers.remove(&stream).is_some() {
            return;
        }
        if self.is_control(stream) {
            if let Some(link) = &mut self.link {
                link.fail(now);
            }
            return;
        }
        let Some(slot) = self.flows.by_stream(stream) else {
            return;
        };
        let Some(flow) = self.flows.get_mut(slot) else {
            return;
        };
        match (flow.stage, code) {
            // A refusal is mirrored as one: an RST to the client's SYN. So is a server that accepts and resets at once.
            (Stage::Asking, Code::Refused | Code::HostReset) => {
                self.counters.flows.never_opened(Code::Refused);
            }
            (Stage::Asking, code) => {
                if let Some(flow) = self.flows.take(slot) {
                    let code = match code {
                        Code::Abandoned => Code::Unreachable,
                        code => code,
                    };
                    self.conclude(now, *flow, End::NeverOpened(code));
                }
                return;
            }
            (Stage::Resetting, _) => return,
            _ => self.counters.flows.reset_by_peer += 1,
        }
        if let Some(flow) = self.flows.get_mut(slot) {
            flow.abort();
            self.flows.wake(slot);
        }
    }

    /// Reads what a new stream is for.
    fn greet(&mut self, now: Instant, stream: StreamId) {
        let (Some(newcomer), Some(link)) = (self.newcomers.get_mut(&stream), &mut self.link) else {
            return;
        };
        let Some(greeting) = newcomer.greet(link, stream) else {
            return;
        };
        self.newcomers.remove(&stream);
        let result = match greeting {
            Greeting::Control => match link.set_theirs(stream) {
                Ok(()) => return,
                Err(_) => Err(Code::Protocol),
            },
            Greeting::Open(key) => self.open_for_peer(now, stream, key),
            Greeting::Nonsense => Err(Code::Protocol),
        };
        if let Err(code) = result {
            if code == Code::Protocol {
                self.counters.drops.bad_streams += 1;
            }
            if let Some(link) = &mut self.link {
                link.tunnel.reset(stream, code.into());
            }
        }
    }
}
