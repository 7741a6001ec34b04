//! The guest's devices. Each is a plain state machine stepped by its caller: time, memory and the host are handed in, an
//! interrupt line is a value that the platform reads after each access. No guest input makes one of them panic.

pub mod ioapic;
pub mod lapic;
pub mod pci;
pub mod pic;
pub mod pm;
pub mod reset;
pub mod rtc;
pub mod serial;
pub mod virtio;
pub mod watchdog;

/// Lets a register of several bytes be read byte by byte: the `width` bytes of `value` (little-endian) from `offset`.
/// Bytes that it does not have read as all ones.
fn bytes_of(value: u32, length: u8, offset: u16, width: u8) -> u32 {
    let mut result = 0;
    for index in 0..u16::from(width.min(4)) {
        let byte = match offset.checked_add(index) {
            Some(at) if at < u16::from(length) => value >> (8 * at) & 0xFF,
            _ => 0xFF,
        };
        result |= byte << (8 * index);
    }
    result
}

/// The counterpart of [`bytes_of`]: `value` with the `width` bytes from `offset` replaced.
fn merge_bytes(value: u32, length: u8, offset: u16, width: u8, new: u32) -> u32 {
    let mut result = value;
    for index in 0..u16::from(width.min(4)) {
        if let Some(at) = offset.checked_add(index)
            && at < u16::from(length.min(4))
        {
            let shift = 8 * at;
            result = result & !(0xFF << shift) | (new >> (8 * index) & 0xFF) << shift;
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_registers() {
        assert_eq!(bytes_of(0x1234_5678, 4, 0, 4), 0x1234_5678);
        assert_eq!(bytes_of(0x1234_5678, 4, 1, 2), 0x3456);
        assert_eq!(bytes_of(0x5678, 2, 1, 4), 0xFFFF_FF56);
        assert_eq!(merge_bytes(0x1234_5678, 4, 1, 2, 0xABCD), 0x12AB_CD78);
        assert_eq!(merge_bytes(0x5678, 2, 1, 4, 0x1111_11AB), 0xAB78);
    }
}
