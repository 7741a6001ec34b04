//! The dictionaries on a device, as the engine's owner sees them: when they are written, and what was found at the start.
//! What is written, and how, is the store's business ([`crate::store`]).

use core::time::Duration;

use super::Engine;
use crate::dedup::StoreMemory;
use crate::flow::StoreTicket;
use crate::flow::link::Link;
use crate::time::Instant;

/// How often it is seen whether there is something to write.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// While data keeps coming it is written after so many looks; at a pause at once.
const LOOKS: u32 = 5;

/// When to write.
#[derive(Debug, Default)]
pub(super) struct Rhythm {
    next: Option<Instant>,
    looks: u32,
    stored: u64,
}

impl Rhythm {
    /// Whether it is time to write; `stored` counts the bytes that have come so far.
    fn is_time(&mut self, now: Instant, stored: u64) -> bool {
        if self.next.is_some_and(|next| now < next) {
            return false;
        }
        self.next = Some(now + LOOK_EVERY);
        self.looks += 1;
        let has_paused = core::mem::replace(&mut self.stored, stored) == stored;
        has_paused || self.looks >= LOOKS
    }

    fn written(&mut self) {
        self.looks = 0;
    }
}

impl Engine {
    /// Writes what of the dictionaries is in memory only, when it is time to: at a pause, and every ten seconds while data
    /// flows. Call it at least every few seconds. It takes as long as the device does for some megabytes at most.
    ///
    /// If it gives a ticket, flush the device, and when that is done hand the ticket to [`Engine::store_flushed`].
    pub fn keep_store(&mut self, now: Instant) -> Option<StoreTicket> {
        let link = self.link.as_mut()?;
        let stored =
            link.sender.statistics().stored_bytes + link.receiver.statistics().stored_bytes;
        if !self.rhythm.is_time(now, stored) || !link.store_is_dirty() {
            return None;
        }
        self.rhythm.written();
        Some(link.sync_store())
    }

    /// The device has been flushed since the ticket was given.
    pub fn store_flushed(&mut self, ticket: StoreTicket) {
        if let Some(link) = &mut self.link {
            link.store_flushed(ticket);
        }
    }

    /// Writes all of the dictionaries and flushes their device: for an orderly stop.
    pub fn close_store(&mut self) {
        if let Some(link) = &mut self.link {
            link.close_store();
        }
    }

    /// Whether the dictionaries are on a device.
    pub fn has_store(&self) -> bool {
        self.link
            .as_ref()
            .is_some_and(|link| link.store_statistics().store_capacity_bytes > 0)
    }

    /// What the dictionaries of both directions have taken.
    pub fn store_memory(&self) -> StoreMemory {
        let link = self.link.as_ref();
        link.map(Link::store_memory).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_at_a_pause_and_every_ten_seconds_without_one() {
        let mut rhythm = Rhythm::default();
        let at = |seconds| Instant::from_millis(seconds * 1000);
        let mut written = alloc::vec::Vec::new();
        // Something comes in every second until the 31st.
        for second in 1..40 {
            if rhythm.is_time(at(second), second.min(31)) {
                rhythm.written();
                written.push(second);
            }
        }
        assert_eq!(written, [9, 19, 29, 33, 35, 37, 39]);
    }

    #[test]
    fn is_quick_to_write_what_came_before_a_pause() {
        let mut rhythm = Rhythm::default();
        assert!(!rhythm.is_time(Instant::from_millis(1), 100));
        assert!(!rhythm.is_time(Instant::from_millis(1999), 100));
        assert!(rhythm.is_time(Instant::from_millis(2001), 100));
    }
}
