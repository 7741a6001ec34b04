//! The model-specific registers that the guest sees and that are not its local APIC's: what is stored, what is fixed, and what a write wants
//! done. Every other MSR raises #GP, as on a CPU that lacks it. Pure: the machine carries the effects out.

use crate::cpu::svm::check::pat_is_valid;
use crate::cpu::{EFER_LME, System};
use crate::device::lapic::GeneralProtection;
use crate::mem::walk::{CR0_PG, EFER_LMA, EFER_NXE};

/// MSR numbers: APM vol. 2, appendix A; Intel SDM vol. 4; Documentation/virt/kvm/x86/msr.rst.
#[allow(missing_docs)]
pub mod number {
    pub const TSC: u32 = 0x10;
    pub const APIC_BASE: u32 = 0x1B;
    pub const MICROCODE_UPDATE: u32 = 0x79;
    pub const MICROCODE_VERSION: u32 = 0x8B;
    pub const MTRR_CAP: u32 = 0xFE;
    pub const MCG_CAP: u32 = 0x179;
    pub const MCG_STATUS: u32 = 0x17A;
    pub const MISC_ENABLE: u32 = 0x1A0;
    pub const DEBUG_CONTROL: u32 = 0x1D9;
    pub const LAST_BRANCH_FIRST: u32 = 0x1DB;
    pub const LAST_BRANCH_LAST: u32 = 0x1DE;
    pub const MTRR_VARIABLE_FIRST: u32 = 0x200;
    pub const MTRR_VARIABLE_LAST: u32 = 0x20F;
    pub const MTRR_FIX_64K: u32 = 0x250;
    pub const MTRR_FIX_16K: u32 = 0x258;
    pub const MTRR_FIX_4K_FIRST: u32 = 0x268;
    pub const MTRR_FIX_4K_LAST: u32 = 0x26F;
    pub const PAT: u32 = 0x277;
    pub const MTRR_DEFAULT: u32 = 0x2FF;
    pub const TSC_DEADLINE: u32 = 0x6E0;
    pub const X2APIC_FIRST: u32 = 0x800;
    pub const X2APIC_LAST: u32 = 0x8FF;
    pub const KVM_WALL_CLOCK: u32 = 0x4B56_4D00;
    pub const KVM_SYSTEM_TIME: u32 = 0x4B56_4D01;
    pub const KVM_STEAL_TIME: u32 = 0x4B56_4D03;
    pub const KVM_END_OF_INTERRUPT: u32 = 0x4B56_4D04;
    pub const KVM_POLL_CONTROL: u32 = 0x4B56_4D05;
    pub const EFER: u32 = 0xC000_0080;
    pub const TSC_AUX: u32 = 0xC000_0103;
    pub const SYSTEM_CONFIGURATION: u32 = 0xC001_0010;
    pub const HARDWARE_CONFIGURATION: u32 = 0xC001_0015;
    pub const TOP_OF_MEMORY: u32 = 0xC001_001A;
    pub const TOP_OF_MEMORY_2: u32 = 0xC001_001D;
    pub const NORTHBRIDGE: u32 = 0xC001_001F;
    pub const INTERRUPT_PENDING: u32 = 0xC001_0055;
    pub const MMIO_CONFIGURATION: u32 = 0xC001_0058;
    pub const LOAD_STORE: u32 = 0xC001_1020;
    pub const DATA_CACHE: u32 = 0xC001_1022;
    pub const FLOATING_POINT: u32 = 0xC001_1028;
    pub const DECODE: u32 = 0xC001_1029;
    pub const BUS_UNIT_2: u32 = 0xC001_102A;
}
use number as msr;

/// The PAT after reset: WB, WT, UC-, UC, twice (APM vol. 2, 7.8.2).
pub const PAT_RESET: u64 = 0x0007_0406_0007_0406;

/// Eight variable ranges, fixed ranges, write combining.
const MTRR_CAP_VALUE: u64 = 8 | 1 << 8 | 1 << 10;
/// MTRRs and their fixed ranges on; what no range covers is write-back. The nested tables decide in truth, and all guest memory is write-back.
const MTRR_DEFAULT_RESET: u64 = 6 | 3 << 10;
/// What KVM shows: recent enough for every kernel.
const MICROCODE: u64 = 0x0100_0065;
/// The TSC counts at P0's frequency.
const HARDWARE_CONFIGURATION_VALUE: u64 = 1 << 24;
/// LFENCE waits for the instructions before it.
const DECODE_VALUE: u64 = 1 << 1;
/// Fast string operations.
const MISC_ENABLE_VALUE: u64 = 1;
/// EFER.SCE.
const EFER_SCE: u64 = 1;

/// What a write wants done beyond being remembered here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Effect {
    /// Nothing.
    None,
    /// Set EFER, as the guest sees it.
    Efer(u64),
    /// Set the PAT.
    Pat(u64),
    /// Set the TSC that the guest reads.
    Tsc(u64),
    /// Set TSC_AUX.
    TscAux(u32),
    /// Write KVM's wall clock structure at this guest-physical address.
    WallClock(u64),
    /// Keep KVM's system time structure at this guest-physical address; none any more.
    SystemTime(Option<u64>),
    /// Keep KVM's steal time structure where [`Msrs::steal_time`] says.
    StealTime,
}

/// The stored ones, of one vCPU.
#[derive(Clone, Debug)]
pub struct Msrs {
    mtrr_default: u64,
    mtrr_variable: [u64; 16],
    /// 64K, two 16K, eight 4K.
    mtrr_fixed: [u64; 11],
    misc_enable: u64,
    tsc_aux: u32,
    wall_clock: u64,
    system_time: u64,
    steal_time: u64,
    end_of_interrupt: u64,
    poll_control: u64,
}

impl Default for Msrs {
    fn default() -> Self {
        Self {
            mtrr_default: MTRR_DEFAULT_RESET,
            mtrr_variable: [0; 16],
            mtrr_fixed: [0x0606_0606_0606_0606; 11],
            misc_enable: MISC_ENABLE_VALUE,
            tsc_aux: 0,
            wall_clock: 0,
            system_time: 0,
            steal_time: 0,
            end_of_interrupt: 0,
            poll_control: 1,
        }
    }
}

fn fixed_index(number: u32) -> Option<usize> {
    match number {
        msr::MTRR_FIX_64K => Some(0),
        msr::MTRR_FIX_16K | 0x259 => Some((number - msr::MTRR_FIX_16K) as usize + 1),
        msr::MTRR_FIX_4K_FIRST..=msr::MTRR_FIX_4K_LAST => {
            Some((number - msr::MTRR_FIX_4K_FIRST) as usize + 3)
        }
        _ => None,
    }
}

fn is_memory_type(kind: u64) -> bool {
    matches!(kind, 0 | 1 | 4 | 5 | 6)
}

impl Msrs {
    /// RDMSR. `guest_tsc` is the TSC as the guest reads it now.
    ///
    /// # Errors
    /// [`GeneralProtection`] if there is no such MSR.
    pub fn read(
        &self,
        number: u32,
        system: &System,
        guest_tsc: u64,
    ) -> Result<u64, GeneralProtection> {
        Ok(match number {
            msr::TSC => guest_tsc,
            msr::EFER => system.efer,
            msr::PAT => system.pat,
            msr::TSC_AUX => self.tsc_aux.into(),
            msr::MTRR_CAP => MTRR_CAP_VALUE,
            msr::MTRR_DEFAULT => self.mtrr_default,
            msr::MTRR_VARIABLE_FIRST..=msr::MTRR_VARIABLE_LAST => {
                let index = (number - msr::MTRR_VARIABLE_FIRST) as usize;
                self.mtrr_variable
                    .get(index)
                    .copied()
                    .ok_or(GeneralProtection)?
            }
            msr::MISC_ENABLE => self.misc_enable,
            msr::KVM_WALL_CLOCK => self.wall_clock,
            msr::KVM_SYSTEM_TIME => self.system_time,
            msr::KVM_STEAL_TIME => self.steal_time,
            msr::KVM_END_OF_INTERRUPT => self.end_of_interrupt,
            msr::KVM_POLL_CONTROL => self.poll_control,
            msr::MICROCODE_VERSION => MICROCODE,
            msr::HARDWARE_CONFIGURATION => HARDWARE_CONFIGURATION_VALUE,
            msr::DECODE => DECODE_VALUE,
            msr::MCG_CAP
            | msr::MCG_STATUS
            | msr::DEBUG_CONTROL
            | msr::LAST_BRANCH_FIRST..=msr::LAST_BRANCH_LAST
            | msr::SYSTEM_CONFIGURATION
            | msr::TOP_OF_MEMORY
            | msr::TOP_OF_MEMORY_2
            | msr::NORTHBRIDGE
            | msr::INTERRUPT_PENDING
            | msr::MMIO_CONFIGURATION
            | msr::LOAD_STORE
            | msr::DATA_CACHE
            | msr::FLOATING_POINT
            | msr::BUS_UNIT_2 => 0,
            _ => {
                let index = fixed_index(number).ok_or(GeneralProtection)?;
                self.mtrr_fixed
                    .get(index)
                    .copied()
                    .ok_or(GeneralProtection)?
            }
        })
    }

    /// WRMSR.
    ///
    /// # Errors
    /// [`GeneralProtection`] if there is no such MSR, it cannot be written, or the value has bits that it must not have.
    pub fn write(
        &mut self,
        number: u32,
        value: u64,
        system: &System,
    ) -> Result<Effect, GeneralProtection> {
        let must = |holds: bool| {
            if holds {
                Ok(())
            } else {
                Err(GeneralProtection)
            }
        };
        match number {
            msr::TSC => return Ok(Effect::Tsc(value)),
            msr::EFER => {
                must(value & !(EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE) == 0)?;
                // LME cannot change under paging; LMA is the CPU's.
                must(system.cr0 & CR0_PG == 0 || (value ^ system.efer) & EFER_LME == 0)?;
                return Ok(Effect::Efer(value & !EFER_LMA | system.efer & EFER_LMA));
            }
            msr::PAT => {
                must(pat_is_valid(value))?;
                return Ok(Effect::Pat(value));
            }
            msr::TSC_AUX => {
                self.tsc_aux = u32::try_from(value).map_err(|_| GeneralProtection)?;
                return Ok(Effect::TscAux(self.tsc_aux));
            }
            msr::KVM_WALL_CLOCK => {
                self.wall_clock = value;
                return Ok(Effect::WallClock(value));
            }
            msr::KVM_SYSTEM_TIME => {
                self.system_time = value;
                return Ok(Effect::SystemTime((value & 1 != 0).then_some(value & !1)));
            }
            msr::KVM_STEAL_TIME => {
                // Bit 0 enables, bits 1 to 5 are reserved; the rest is an address.
                must(value & 0x3E == 0)?;
                self.steal_time = value;
                return Ok(Effect::StealTime);
            }
            // Whether the host may poll before it lets a halted vCPU sleep. It never does.
            msr::KVM_POLL_CONTROL => {
                must(value & !1 == 0)?;
                self.poll_control = value;
            }
            msr::KVM_END_OF_INTERRUPT => {
                // Bit 0 enables, bit 1 is reserved; the rest is an address.
                must(value & 2 == 0)?;
                self.end_of_interrupt = value;
            }
            msr::MTRR_DEFAULT => {
                must(value & !(0xFF | 3 << 10) == 0 && is_memory_type(value & 0xFF))?;
                self.mtrr_default = value;
            }
            msr::MTRR_VARIABLE_FIRST..=msr::MTRR_VARIABLE_LAST => {
                let index = (number - msr::MTRR_VARIABLE_FIRST) as usize;
                let is_base = number.is_multiple_of(2);
                must(!is_base || value & 0xF00 == 0 && is_memory_type(value & 0xFF))?;
                must(is_base || value & 0x7FF == 0)?;
                *self.mtrr_variable.get_mut(index).ok_or(GeneralProtection)? = value;
            }
            msr::MISC_ENABLE => self.misc_enable = value,
            msr::DEBUG_CONTROL => must(value == 0)?,
            // Settings of the real CPU that a kernel makes for itself: taken and forgotten.
            msr::MICROCODE_UPDATE
            | msr::MICROCODE_VERSION
            | msr::MCG_STATUS
            | msr::SYSTEM_CONFIGURATION
            | msr::HARDWARE_CONFIGURATION
            | msr::NORTHBRIDGE
            | msr::INTERRUPT_PENDING
            | msr::MMIO_CONFIGURATION
            | msr::LOAD_STORE
            | msr::DATA_CACHE
            | msr::FLOATING_POINT
            | msr::DECODE
            | msr::BUS_UNIT_2 => {}
            _ => {
                let index = fixed_index(number).ok_or(GeneralProtection)?;
                must(
                    value
                        .to_le_bytes()
                        .iter()
                        .all(|kind| is_memory_type((*kind).into())),
                )?;
                *self.mtrr_fixed.get_mut(index).ok_or(GeneralProtection)? = value;
            }
        }
        Ok(Effect::None)
    }

    /// Where the byte is by which the guest may end an interrupt without an exit, if it wants that.
    pub fn end_of_interrupt(&self) -> Option<u64> {
        (self.end_of_interrupt & 1 != 0).then_some(self.end_of_interrupt & !3)
    }

    /// Where KVM's steal time structure is, if the guest wants it.
    pub fn steal_time(&self) -> Option<u64> {
        (self.steal_time & 1 != 0).then_some(self.steal_time & !0x3F)
    }

    /// Where KVM's system time structure is, if the guest wants it.
    pub fn system_time(&self) -> Option<u64> {
        (self.system_time & 1 != 0).then_some(self.system_time & !1)
    }
}

/// The numbers by which a guest turns TSC ticks into nanoseconds: `(ticks << shift, or >> -shift) * multiplier >> 32`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockScale {
    /// Fraction of 2³².
    pub multiplier: u32,
    /// Shift before it; negative is to the right.
    pub shift: i8,
}

impl ClockScale {
    /// For a TSC of `hz` (1 if zero).
    pub fn of(hz: u64) -> Self {
        const SECOND: u128 = 1_000_000_000;
        let mut hz = u128::from(hz.max(1));
        let mut shift = 0;
        // ns per tick = SECOND / hz must be at least 1/2 and below 1 after shifting the ticks.
        while hz > 2 * SECOND {
            hz >>= 1;
            shift -= 1;
        }
        while hz <= SECOND {
            hz <<= 1;
            shift += 1;
        }
        Self {
            multiplier: u32::try_from((SECOND << 32) / hz).unwrap_or(u32::MAX),
            shift,
        }
    }
}

/// `struct pvclock_vcpu_time_info` (Documentation/virt/kvm/x86/msr.rst): system time is `now_ns` when the guest's TSC is `tsc`. `version` is even.
pub fn system_time_bytes(version: u32, tsc: u64, now_ns: u64, scale: ClockScale) -> [u8; 32] {
    const STABLE: u8 = 1;
    let mut bytes = [0; 32];
    let mut put = |offset: usize, part: &[u8]| {
        if let Some(place) = bytes.get_mut(offset..offset + part.len()) {
            place.copy_from_slice(part);
        }
    };
    put(0, &version.to_le_bytes());
    put(8, &tsc.to_le_bytes());
    put(16, &now_ns.to_le_bytes());
    put(24, &scale.multiplier.to_le_bytes());
    put(28, &[scale.shift.to_le_bytes()[0], STABLE]);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paged() -> System {
        System {
            cr0: CR0_PG,
            efer: EFER_LME | EFER_LMA,
            pat: PAT_RESET,
            ..System::default()
        }
    }

    #[test]
    fn unknown_msrs_fault() {
        let mut msrs = Msrs::default();
        // TSC_ADJUST, SPEC_CTRL, performance counters, XSS, SVM's own, Hyper-V's, and KVM's async page faults.
        for number in [
            0x3B,
            0x48,
            0xC1,
            0x186,
            0xDA0,
            0xC001_0114,
            0xC001_0117,
            0x4000_0000,
            0x4B56_4D02,
            u32::MAX,
        ] {
            assert_eq!(
                msrs.read(number, &paged(), 0),
                Err(GeneralProtection),
                "{number:#x}"
            );
            assert_eq!(
                msrs.write(number, 0, &paged()),
                Err(GeneralProtection),
                "{number:#x}"
            );
        }
    }

    #[test]
    fn efer_keeps_what_is_the_cpus() {
        let mut msrs = Msrs::default();
        let scenario = [
            (
                EFER_LME | EFER_NXE | EFER_SCE,
                Ok(Effect::Efer(EFER_LME | EFER_LMA | EFER_NXE | EFER_SCE)),
            ),
            (EFER_NXE, Err(GeneralProtection)),
            (EFER_LME | 1 << 12, Err(GeneralProtection)),
            (EFER_LME | 1 << 40, Err(GeneralProtection)),
        ];
        for (value, result) in scenario {
            assert_eq!(msrs.write(msr::EFER, value, &paged()), result, "{value:#x}");
        }
        let unpaged = System::default();
        assert_eq!(
            msrs.write(msr::EFER, EFER_LME | EFER_LMA, &unpaged),
            Ok(Effect::Efer(EFER_LME))
        );
    }

    #[test]
    fn memory_types_are_checked_and_kept() {
        let mut msrs = Msrs::default();
        assert_eq!(
            msrs.write(msr::PAT, 0x0007_0106_0007_0106, &paged()),
            Ok(Effect::Pat(0x0007_0106_0007_0106))
        );
        assert_eq!(msrs.write(msr::PAT, 2, &paged()), Err(GeneralProtection));
        for (number, value) in [
            (0x200, 0xC000_0000),
            (0x201, 0x3FFF_C000_0800),
            (0x250, 0),
            (0x259, 6),
            (0x26F, 5),
            (0x2FF, 0xC06),
        ] {
            assert_eq!(
                msrs.write(number, value, &paged()),
                Ok(Effect::None),
                "{number:#x}"
            );
            assert_eq!(msrs.read(number, &paged(), 0), Ok(value), "{number:#x}");
        }
        for (number, value) in [
            (0x200, 2),
            (0x201, 1),
            (0x250, 3),
            (0x2FF, 0x106),
            (0x210, 0),
            (0x25A, 0),
        ] {
            assert_eq!(
                msrs.write(number, value, &paged()),
                Err(GeneralProtection),
                "{number:#x}"
            );
        }
    }

    #[test]
    fn clock_msrs_ask_for_their_structures() {
        let mut msrs = Msrs::default();
        assert_eq!(
            msrs.write(msr::KVM_SYSTEM_TIME, 0x5001, &paged()),
            Ok(Effect::SystemTime(Some(0x5000)))
        );
        assert_eq!(
            (
                msrs.system_time(),
                msrs.read(msr::KVM_SYSTEM_TIME, &paged(), 0)
            ),
            (Some(0x5000), Ok(0x5001))
        );
        assert_eq!(
            msrs.write(msr::KVM_SYSTEM_TIME, 0x5000, &paged()),
            Ok(Effect::SystemTime(None))
        );
        assert_eq!(msrs.system_time(), None);
        assert_eq!(
            msrs.write(msr::KVM_WALL_CLOCK, 0x6000, &paged()),
            Ok(Effect::WallClock(0x6000))
        );
        assert_eq!(
            msrs.write(msr::KVM_END_OF_INTERRUPT, 0x7005, &paged()),
            Ok(Effect::None)
        );
        assert_eq!(msrs.end_of_interrupt(), Some(0x7004));
        assert_eq!(
            msrs.write(msr::KVM_END_OF_INTERRUPT, 0x7006, &paged()),
            Err(GeneralProtection)
        );
        for (value, answer) in [
            (0x8041, Ok(Effect::StealTime)),
            (0x8021, Err(GeneralProtection)),
        ] {
            assert_eq!(msrs.write(msr::KVM_STEAL_TIME, value, &paged()), answer);
        }
        assert_eq!(
            msrs.steal_time(),
            Some(0x8040),
            "the refused one is not kept"
        );
        for (value, answer) in [(0, Ok(Effect::None)), (2, Err(GeneralProtection))] {
            assert_eq!(msrs.write(msr::KVM_POLL_CONTROL, value, &paged()), answer);
        }
        assert_eq!(msrs.read(msr::KVM_POLL_CONTROL, &paged(), 0), Ok(0));
        assert_eq!(msrs.read(msr::TSC, &paged(), 77), Ok(77));
        assert_eq!(msrs.write(msr::TSC_AUX, 3, &paged()), Ok(Effect::TscAux(3)));
        assert_eq!(
            msrs.write(msr::TSC_AUX, 1 << 32, &paged()),
            Err(GeneralProtection)
        );
    }

    #[test]
    fn the_scale_keeps_time() {
        for hz in [
            1_000_000,
            999_999_999,
            1_000_000_000,
            1_000_000_001,
            2_000_000_000,
            2_893_202_000,
            5_700_000_001,
        ] {
            let ClockScale { multiplier, shift } = ClockScale::of(hz);
            let second = if shift < 0 { hz >> -shift } else { hz << shift };
            let ns = ((u128::from(second) * u128::from(multiplier)) >> 32) as u64;
            assert!(
                ns.abs_diff(1_000_000_000) <= 4 + 1_000_000_000 / hz,
                "{hz} Hz: {ns} ns in a second"
            );
            assert!(
                multiplier >= 1 << 31,
                "{hz} Hz: all bits of the multiplier are used"
            );
        }
    }

    #[test]
    fn the_structure_is_laid_out_as_documented() {
        let scale = ClockScale {
            multiplier: 0x8000_0000,
            shift: -1,
        };
        let bytes = system_time_bytes(2, 0x1122, 0x3344, scale);
        assert_eq!(bytes[..4], 2_u32.to_le_bytes());
        assert_eq!(
            (bytes[8], bytes[9], bytes[16], bytes[17]),
            (0x22, 0x11, 0x44, 0x33)
        );
        assert_eq!(bytes[24..30], [0, 0, 0, 0x80, 0xFF, 1]);
    }
}
