//! The memory map that loaders tell the guest: which guest-physical ranges are RAM and which are taken.

use alloc::vec::Vec;

use crate::mem::{GuestMemory, HIGH_RAM_START};
use crate::platform::layout::{
    CONVENTIONAL_END, EXTENDED_START, IO_APIC, LOCAL_APIC, TABLES, VIDEO_START,
};

/// Kind of a range, with the numbers of the BIOS call E820 (ACPI 6.5, table 15.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum RangeKind {
    /// RAM that the guest may use.
    Ram = 1,
    /// Not for the guest.
    Reserved = 2,
}

/// One range of guest-physical addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First address.
    pub start: u64,
    /// Length in bytes, not zero.
    pub length: u64,
    /// What it is.
    pub kind: RangeKind,
}

/// The map of a guest with this memory, sorted by address.
pub fn memory_map(mem: &GuestMemory) -> Vec<Range> {
    let range = |start: u64, end: u64, kind| Range {
        start,
        length: end.saturating_sub(start),
        kind,
    };
    let high = HIGH_RAM_START + mem.high_size();
    let mut map = alloc::vec![
        range(0, CONVENTIONAL_END, RangeKind::Ram),
        range(CONVENTIONAL_END, VIDEO_START, RangeKind::Reserved),
        range(TABLES, EXTENDED_START, RangeKind::Reserved),
        range(EXTENDED_START, mem.low_size(), RangeKind::Ram),
        range(IO_APIC, IO_APIC + 0x1000, RangeKind::Reserved),
        range(LOCAL_APIC, LOCAL_APIC + 0x1000, RangeKind::Reserved),
        range(HIGH_RAM_START, high, RangeKind::Ram),
    ];
    map.retain(|range| range.length > 0);
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_map_is_sorted_and_free_of_overlaps() {
        let mem = GuestMemory::allocate(64 << 20).unwrap();
        let map = memory_map(&mem);
        for pair in map.windows(2) {
            assert!(pair[0].start + pair[0].length <= pair[1].start, "{pair:?}");
        }
        let ram: u64 = map
            .iter()
            .filter(|range| range.kind == RangeKind::Ram)
            .map(|range| range.length)
            .sum();
        assert_eq!(ram, (64 << 20) - EXTENDED_START + CONVENTIONAL_END);
    }
}
