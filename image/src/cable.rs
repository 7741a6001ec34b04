//! A cable: what goes in at LAN comes out at WAN and the other way round. What the box is when its configuration is broken.

use outpost_net::Port;

use crate::fifo::FrameFifo;

/// Frames that wait between two polls at most.
const FRAMES: usize = 128;

/// The cable. Allocates when it is made, never after.
pub struct Cable {
    waiting: FrameFifo<Port>,
    frames: u64,
    dropped: u64,
}

impl Cable {
    /// A cable with nothing in it.
    pub fn new() -> Self {
        Cable {
            waiting: FrameFifo::new(FRAMES, Port::Lan),
            frames: 0,
            dropped: 0,
        }
    }

    /// Takes a frame. One from the guest goes nowhere: which wire it belongs to is up to the configuration.
    pub fn receive(&mut self, from: Port, frame: &[u8]) {
        let to = match from {
            Port::Lan => Some(Port::Wan),
            Port::Wan => Some(Port::Lan),
            Port::Guest => None,
        };
        if to.is_some_and(|to| self.waiting.push(to, frame)) {
            self.frames += 1;
        } else {
            self.dropped += 1;
        }
    }

    /// Hands out what waits.
    pub fn poll(&mut self, emit: &mut dyn FnMut(Port, &[u8])) {
        while self.waiting.pop_if(|port, frame| {
            emit(port, frame);
            true
        }) {}
    }

    /// Frames that went through.
    pub fn frames(&self) -> u64 {
        self.frames
    }

    /// Frames that did not.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }
}

impl Default for Cable {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::MAX_FRAME;

    fn out(cable: &mut Cable) -> Vec<(Port, Vec<u8>)> {
        let mut out = Vec::new();
        cable.poll(&mut |port, frame| out.push((port, frame.to_vec())));
        out
    }

    #[test]
    fn joins_lan_and_wan() {
        let mut cable = Cable::new();
        cable.receive(Port::Lan, b"up");
        cable.receive(Port::Wan, b"down");
        assert_eq!(
            out(&mut cable),
            [(Port::Wan, b"up".to_vec()), (Port::Lan, b"down".to_vec())]
        );
        assert!(out(&mut cable).is_empty());
    }

    #[test]
    fn drops_what_does_not_fit_and_counts_it() {
        let mut cable = Cable::new();
        cable.receive(Port::Lan, &[0; MAX_FRAME + 1]);
        cable.receive(Port::Guest, b"?");
        for _ in 0..=FRAMES {
            cable.receive(Port::Lan, b"x");
        }
        assert_eq!(cable.dropped(), 3);
        assert_eq!(out(&mut cable).len(), FRAMES);
    }
}
