//! I/O ports.

use core::arch::asm;

/// Reads a byte from `port`.
pub fn read_u8(port: u16) -> u8 {
    let value;
    // SAFETY: reading a port touches no memory; drivers in this binary are the only ones that use ports.
    unsafe {
        asm!("in al, dx", out("al") value, in("dx") port, options(nomem, nostack, preserves_flags))
    };
    value
}

/// Writes a byte to `port`.
pub fn write_u8(port: u16, value: u8) {
    // SAFETY: as `read_u8`; no port written here makes a device write to memory.
    unsafe {
        asm!("out dx, al", in("al") value, in("dx") port, options(nomem, nostack, preserves_flags))
    };
}

/// Reads 16 bits from `port`.
pub fn read_u16(port: u16) -> u16 {
    let value;
    // SAFETY: as `read_u8`.
    unsafe {
        asm!("in ax, dx", out("ax") value, in("dx") port, options(nomem, nostack, preserves_flags))
    };
    value
}

/// Writes 16 bits to `port`.
pub fn write_u16(port: u16, value: u16) {
    // SAFETY: as `write_u8`.
    unsafe {
        asm!("out dx, ax", in("ax") value, in("dx") port, options(nomem, nostack, preserves_flags))
    };
}

/// Reads 32 bits from `port`.
pub fn read_u32(port: u16) -> u32 {
    let value;
    // SAFETY: as `read_u8`.
    unsafe {
        asm!("in eax, dx", out("eax") value, in("dx") port, options(nomem, nostack, preserves_flags))
    };
    value
}

/// Writes 32 bits to `port`.
pub fn write_u32(port: u16, value: u32) {
    // SAFETY: as `write_u8`.
    unsafe {
        asm!("out dx, eax", in("eax") value, in("dx") port, options(nomem, nostack, preserves_flags))
    };
}
