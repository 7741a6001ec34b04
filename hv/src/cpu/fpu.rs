//! The x87 and SSE registers. The hypervisor is compiled for a soft-float target and never touches them, so from `bind` to `unbind` a
//! vCPU's stay in the CPU while exits are handled: no save, no restore on the exit path.
//!
//! What that needs of the box: between `bind` and `unbind` nothing on this CPU uses x87, MMX or SSE registers, or saves them around
//! it (an assembly kernel). XSAVE is hidden from the guest, so its state is what FXSAVE covers.

use core::arch::asm;
use core::ops::Range;

/// CR0.EM: no x87 and no SSE instructions.
pub const CR0_EM: u64 = 1 << 2;
/// CR0.TS: the registers may be another task's.
pub const CR0_TS: u64 = 1 << 3;
/// CR4.OSFXSR: SSE instructions.
pub const CR4_OSFXSR: u64 = 1 << 9;

/// Where XMM0 is in the image; the others follow.
const XMM: usize = 160;

/// The FXSAVE image (APM vol. 2, 11.4.4): 512 bytes, 16-byte aligned.
#[derive(Clone)]
#[repr(C, align(16))]
pub struct FpuState([u8; 512]);

impl FpuState {
    /// The state after INIT: all exceptions masked, registers empty and zero.
    pub const fn reset() -> Self {
        let mut image = [0; 512];
        // FCW 037Fh, MXCSR 1F80h.
        image[0] = 0x7F;
        image[1] = 0x03;
        image[24] = 0x80;
        image[25] = 0x1F;
        Self(image)
    }

    /// One of the registers XMM0 to XMM15; zero for any other number.
    pub fn xmm(&self, index: usize) -> u128 {
        let bytes = xmm_place(index).and_then(|place| self.0.get(place)?.try_into().ok());
        bytes.map_or(0, u128::from_le_bytes)
    }

    /// Changes it.
    pub fn set_xmm(&mut self, index: usize, value: u128) {
        if let Some(bytes) = xmm_place(index).and_then(|place| self.0.get_mut(place)) {
            bytes.copy_from_slice(&value.to_le_bytes());
        }
    }

    /// Loads it into the CPU.
    ///
    /// # Safety
    /// Runs at CPL 0, and no code on this CPU relies on the x87 and SSE registers that this overwrites.
    pub unsafe fn load(&self) {
        // SAFETY: (1) CPL 0 by the caller's promise; (2) the image is 512 bytes, aligned, and its MXCSR has no reserved bits: it comes from
        // `reset` or FXSAVE; (3) CR0 and CR4 are put back.
        unsafe {
            let enabled = Enabled::new();
            asm!("fxrstor64 [{}]", in(reg) &self.0, options(nostack, readonly));
            enabled.restore();
        }
    }

    /// Saves it from the CPU.
    ///
    /// # Safety
    /// Runs at CPL 0.
    pub unsafe fn save(&mut self) {
        // SAFETY: (1) CPL 0 by the caller's promise; (2) the image is 512 bytes and aligned; (3) CR0 and CR4 are put back.
        unsafe {
            let enabled = Enabled::new();
            asm!("fxsave64 [{}]", in(reg) &mut self.0, options(nostack));
            enabled.restore();
        }
    }
}

/// Where one of the registers XMM0 to XMM15 is in the image.
fn xmm_place(index: usize) -> Option<Range<usize>> {
    (index < 16).then(|| XMM + 16 * index..XMM + 16 * (index + 1))
}

/// One MOVUPS between memory and the XMM register of this number; nothing for numbers that no register has.
macro_rules! movups {
    ($index:expr, $before:literal, $after:literal, $place:expr, $($number:literal)*) => {
        match $index {
            $($number => asm!(
                concat!("movups ", $before, $number, $after),
                in(reg) $place, options(nostack, preserves_flags)
            ),)*
            _ => {}
        }
    };
}

/// Reads one of the CPU's registers XMM0 to XMM15; zero for any other number. Neither this nor [`write_xmm`] is FXSAVE or FXRSTOR: those cost more, and
/// QEMU's FXRSTOR is not to be trusted (docs/hv.md).
///
/// # Safety
/// Runs at CPL 0.
pub unsafe fn read_xmm(index: usize) -> u128 {
    let mut bytes = [0_u8; 16];
    // SAFETY: (1) CPL 0 by the caller's promise; (2) MOVUPS writes 16 bytes, which are ours; (3) CR0 and CR4 are put back.
    unsafe {
        let enabled = Enabled::new();
        movups!(index, "[{}], xmm", "", &mut bytes, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
        enabled.restore();
    }
    u128::from_le_bytes(bytes)
}

/// Changes one of the CPU's registers XMM0 to XMM15; nothing for any other number.
///
/// # Safety
/// Runs at CPL 0, and no code on this CPU relies on the register.
pub unsafe fn write_xmm(index: usize, value: u128) {
    let bytes = value.to_le_bytes();
    // SAFETY: (1) CPL 0 by the caller's promise; (2) MOVUPS reads 16 bytes, which are ours; (3) nobody relies on the register, by the caller's promise;
    // (4) CR0 and CR4 are put back.
    unsafe {
        let enabled = Enabled::new();
        movups!(index, "xmm", ", [{}]", &bytes, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
        enabled.restore();
    }
}

/// CR0 and CR4 as they were before FXSAVE and FXRSTOR were made to work.
struct Enabled {
    cr0: u64,
    cr4: u64,
}

impl Enabled {
    /// # Safety
    /// Runs at CPL 0; `restore` follows before anything that relies on CR0.TS, CR0.EM or CR4.OSFXSR.
    unsafe fn new() -> Self {
        let (cr0, cr4): (u64, u64);
        // SAFETY: reading, then setting OSFXSR and clearing EM and TS, changes only whether FPU instructions fault.
        unsafe {
            asm!("mov {}, cr0", out(reg) cr0, options(nomem, nostack, preserves_flags));
            asm!("mov {}, cr4", out(reg) cr4, options(nomem, nostack, preserves_flags));
            asm!("mov cr0, {}", in(reg) cr0 & !(CR0_EM | CR0_TS), options(nostack, preserves_flags));
            asm!("mov cr4, {}", in(reg) cr4 | CR4_OSFXSR, options(nostack, preserves_flags));
        }
        Self { cr0, cr4 }
    }

    /// # Safety
    /// Runs at CPL 0 on the CPU that `new` ran on.
    unsafe fn restore(self) {
        // SAFETY: these are the values that `new` found.
        unsafe {
            asm!("mov cr4, {}", in(reg) self.cr4, options(nostack, preserves_flags));
            asm!("mov cr0, {}", in(reg) self.cr0, options(nostack, preserves_flags));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reset_image_is_what_init_leaves() {
        let FpuState(image) = FpuState::reset();
        assert_eq!(u16::from_le_bytes([image[0], image[1]]), 0x037F);
        assert_eq!(
            u32::from_le_bytes([image[24], image[25], image[26], image[27]]),
            0x1F80
        );
        assert_eq!(image.iter().filter(|byte| **byte != 0).count(), 4);
    }

    #[test]
    fn registers_are_where_the_image_has_them() {
        let mut state = FpuState::reset();
        for index in 0..20 {
            state.set_xmm(index, 0x0102_0304 << 64 | index as u128);
        }
        // APM vol. 2, figure 11-9: XMM0 at A0h, XMM15 at 190h; what is behind is reserved.
        assert_eq!(state.0[0xA0], 0);
        assert_eq!(state.0[0xB0], 1);
        assert_eq!(state.0[0x190..0x19C], [15, 0, 0, 0, 0, 0, 0, 0, 4, 3, 2, 1]);
        assert!(state.0[0x1A0..].iter().all(|byte| *byte == 0));
        assert_eq!(state.xmm(7), 0x0102_0304 << 64 | 7);
        assert_eq!(state.xmm(16), 0);
    }
}
