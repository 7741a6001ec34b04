//! Path MTU discovery by packets alone (RFC 8899): probes upward from a size that is safe, and falls back when large
//! packets stop arriving. ICMP is not listened to.

use core::time::Duration;

use super::types::BASE_MTU;
use crate::time::Instant;

/// RFC 8899, section 5.1.2: MAX_PROBES.
const MAX_PROBES: u8 = 3;
/// The search ends when it knows the size this well.
const PRECISION: u16 = 16;
/// RFC 8899, section 5.1.1: PMTU_RAISE_TIMER.
const RAISE: Duration = Duration::from_secs(600);
/// Large packets lost in a row, with none later arriving, that mean a black hole.
const BLACK_HOLE: u32 = 6;

#[derive(Debug)]
pub(super) struct PathMtu {
    current: u16,
    max: u16,
    /// Smallest size known not to pass, or one more than the largest.
    too_large: u16,
    failures: u8,
    outstanding: bool,
    search_at: Instant,
    largest_large_acked: Option<u64>,
    lost_in_a_row: u32,
}

impl PathMtu {
    pub(super) fn new(now: Instant, max: u16) -> Self {
        let max = max.clamp(BASE_MTU, 65_000);
        PathMtu {
            current: BASE_MTU,
            max,
            too_large: max + 1,
            failures: 0,
            outstanding: false,
            search_at: now,
            largest_large_acked: None,
            lost_in_a_row: 0,
        }
    }

    /// Largest UDP payload known to pass.
    pub(super) fn current(&self) -> u16 {
        self.current
    }

    /// When to look for a probe to send, if ever.
    pub(super) fn next_search(&self) -> Option<Instant> {
        (!self.outstanding && self.current < self.max).then_some(self.search_at)
    }

    /// Size of the probe that should go now.
    pub(super) fn probe(&mut self, now: Instant) -> Option<u16> {
        if self.next_search().is_none_or(|t| t > now) {
            return None;
        }
        if self.too_large - self.current <= PRECISION && self.too_large <= self.max {
            // Found; look again later whether the path has become better.
            self.search_at = now + RAISE;
            self.too_large = self.max + 1;
            return None;
        }
        // The largest first: it nearly always passes.
        Some(if self.too_large > self.max {
            self.max
        } else {
            self.current + (self.too_large - self.current) / 2
        })
    }

    pub(super) fn probe_sent(&mut self) {
        self.outstanding = true;
    }

    pub(super) fn probe_acked(&mut self, size: u32) {
        self.outstanding = false;
        self.failures = 0;
        self.lost_in_a_row = 0;
        if let Ok(size) = u16::try_from(size) {
            self.current = self.current.max(size.min(self.max));
            self.too_large = self.too_large.max(self.current + 1);
        }
    }

    pub(super) fn probe_lost(&mut self, size: u32) {
        self.outstanding = false;
        self.failures += 1;
        if self.failures >= MAX_PROBES {
            self.failures = 0;
            if let Ok(size) = u16::try_from(size) {
                self.too_large = self.too_large.min(size.max(self.current + 1));
            }
        }
    }

    pub(super) fn packet_acked(&mut self, number: u64, size: u32) {
        if size > u32::from(BASE_MTU) {
            self.largest_large_acked = self.largest_large_acked.max(Some(number));
            self.lost_in_a_row = 0;
        }
    }

    /// True if packets have to become smaller: large ones vanish while small ones arrive.
    pub(super) fn packet_lost(&mut self, number: u64, size: u32) -> bool {
        let later_arrived = self.largest_large_acked.is_some_and(|l| l > number);
        if self.current == BASE_MTU || size <= u32::from(BASE_MTU) || later_arrived {
            return false;
        }
        self.lost_in_a_row += 1;
        if self.lost_in_a_row < BLACK_HOLE {
            return false;
        }
        self.too_large = self.current;
        self.current = BASE_MTU;
        self.lost_in_a_row = 0;
        self.failures = 0;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Searches a path that passes `path` bytes; gives what is found and the probes it took.
    fn search(path: u16) -> (u16, u32) {
        let mut mtu = PathMtu::new(Instant::ZERO, 1472);
        let mut probes = 0;
        while let Some(size) = mtu.probe(Instant::ZERO) {
            probes += 1;
            mtu.probe_sent();
            if size <= path {
                mtu.probe_acked(size.into())
            } else {
                mtu.probe_lost(size.into())
            }
        }
        (mtu.current(), probes)
    }

    #[test]
    fn finds_what_passes() {
        assert_eq!(search(1472), (1472, 1));
        for path in 1200..1472 {
            let (found, probes) = search(path);
            assert!(found <= path && path - found < PRECISION, "{path}: {found}");
            assert!(probes <= 3 * 6, "{path}: {probes}");
        }
    }

    #[test]
    fn a_black_hole_is_left_and_a_burst_of_loss_is_not_one() {
        let mut mtu = PathMtu::new(Instant::ZERO, 1472);
        mtu.probe_sent();
        mtu.probe_acked(1472);
        mtu.packet_acked(100, 1472);
        assert!(
            (80..100).all(|n| !mtu.packet_lost(n, 1472)),
            "later ones arrived"
        );
        assert_eq!(mtu.current(), 1472);
        assert!((101..106).all(|n| !mtu.packet_lost(n, 1472)));
        assert!(mtu.packet_lost(106, 1472));
        assert_eq!(mtu.current(), BASE_MTU);
        // And what passes now is searched for below what did not.
        assert!(mtu.probe(Instant::ZERO).is_some_and(|s| s < 1472));
    }
}
