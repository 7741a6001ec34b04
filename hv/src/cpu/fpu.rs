//! The x87 and SSE registers. The hypervisor is compiled for a soft-float target and never touches them, so from `bind` to `unbind` a
//! vCPU's stay in the CPU while exits are handled: no save, no restore on the exit path.
//!
//! What that needs of the box: between `bind` and `unbind` nothing on this CPU uses x87, MMX or SSE registers, or saves them around
//! it (an assembly kernel). XSAVE is hidden from the guest, so its state is what FXSAVE covers.

use core::arch::asm;

const CR0_EM: u64 = 1 << 2;
const CR0_TS: u64 = 1 << 3;
const CR4_OSFXSR: u64 = 1 << 9;

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
}
