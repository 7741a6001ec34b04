//! The WAN line: a pure model of rate, queue, delay and loss, in both directions.
//!
//! Sans-IO: frames and times are handed in and frames come out when they are due, so tests run hours of it in no time. Times
//! are durations since any fixed start. It knows nothing of sockets ([`super::wires`]) nor of what frames hold.

mod config;
mod direction;
mod random;

use std::time::Duration;

use serde::Serialize;

pub use config::LineConfig;
use direction::Direction;
pub use random::Dice;

/// An end of the line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Site {
    /// The branch office.
    Branch,
    /// The head office.
    Core,
}

impl Site {
    /// Both.
    pub const ALL: [Site; 2] = [Site::Branch, Site::Core];

    /// The other end.
    pub fn other(self) -> Site {
        match self {
            Site::Branch => Site::Core,
            Site::Core => Site::Branch,
        }
    }

    /// For names of files, machines and namespaces.
    pub fn name(self) -> &'static str {
        match self {
            Site::Branch => "branch",
            Site::Core => "core",
        }
    }
}

/// What one direction of the line did, since the start. Bytes are those of Ethernet frames without preamble and checksum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counters {
    /// Frames that the line carried: put on it bit by bit, whether or not they were lost on the way.
    pub frames: u64,
    /// Bytes in them.
    pub bytes: u64,
    /// Of the carried frames, those lost at random or in a burst.
    pub lost: u64,
    /// Frames that found the queue full.
    pub overflowed: u64,
    /// Frames that found the line unplugged, or were on it when it was.
    pub cut: u64,
    /// Frames that arrived twice.
    pub duplicated: u64,
    /// Frames that were held back.
    pub held_back: u64,
}

/// Sees each frame that the line carries, at the time when its last bit was sent, lost or not.
pub trait Observer {
    /// One frame from `from`.
    fn carried(&mut self, at: Duration, from: Site, frame: &[u8]);
}

/// Sees nothing.
#[cfg(test)]
impl Observer for () {
    fn carried(&mut self, _: Duration, _: Site, _: &[u8]) {}
}

/// The line.
pub struct Line {
    up: Direction,
    down: Direction,
    plugged: bool,
}

impl Line {
    /// A plugged line.
    pub fn new(config: &LineConfig) -> Line {
        Line {
            up: Direction::new(&config.up, config.seed),
            // Another sequence for the other direction; any odd constant does.
            down: Direction::new(&config.down, config.seed ^ 0xd1b5_4a32_d192_ed03),
            plugged: true,
        }
    }

    fn from(&mut self, site: Site) -> &mut Direction {
        match site {
            Site::Branch => &mut self.up,
            Site::Core => &mut self.down,
        }
    }

    /// A frame from `site` at `now`. Call [`Line::poll`] until it gives nothing first, so that the queue is as it is at `now`.
    pub fn send(&mut self, now: Duration, site: Site, frame: Vec<u8>) {
        let plugged = self.plugged;
        self.from(site).send(now, frame, plugged);
    }

    /// The next frame that has arrived by `now`, with the site at which it has.
    pub fn poll(&mut self, now: Duration, observer: &mut dyn Observer) -> Option<(Site, Vec<u8>)> {
        for site in Site::ALL {
            let direction = self.from(site);
            direction.advance(now, |at, frame| observer.carried(at, site, frame));
            if let Some(frame) = direction.arrived(now) {
                return Some((site.other(), frame));
            }
        }
        None
    }

    /// When [`Line::poll`] has something to do.
    pub fn next_wakeup(&self) -> Option<Duration> {
        [self.up.next_wakeup(), self.down.next_wakeup()]
            .into_iter()
            .flatten()
            .min()
    }

    /// Pulls the plug, or puts it in again. What is queued or on its way when it is pulled is lost.
    pub fn set_plugged(&mut self, plugged: bool) {
        self.plugged = plugged;
        if !plugged {
            self.up.cut();
            self.down.cut();
        }
    }

    /// What the direction from `site` did.
    pub fn counters(&self, site: Site) -> Counters {
        match site {
            Site::Branch => self.up.counters(),
            Site::Core => self.down.counters(),
        }
    }
}

#[cfg(test)]
mod tests;
