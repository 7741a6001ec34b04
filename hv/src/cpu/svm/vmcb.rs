//! The virtual machine control block, as AMD lays it out (APM vol. 2, appendix B), and the names of its bits.

use super::super::Segment;
use core::mem::offset_of;

/// A whole VMCB: control area and state save area. 4 KiB aligned, as VMRUN wants.
#[derive(Clone)]
#[repr(C, align(4096))]
pub struct Vmcb {
    /// What the hypervisor says and what the CPU answers.
    pub control: Control,
    /// The guest's registers.
    pub save: Save,
}

/// APM vol. 2, table B-1. Fields that the CPU writes at #VMEXIT say so.
#[derive(Clone)]
#[repr(C)]
pub struct Control {
    /// CR0 to CR15 reads (bits 0 to 15) and writes (16 to 31).
    pub intercept_cr: u32,
    /// DR0 to DR15 reads and writes.
    pub intercept_dr: u32,
    /// Exceptions, one bit a vector.
    pub intercept_exceptions: u32,
    /// Bits of [`first`].
    pub intercept_first: u32,
    /// Bits of [`second`].
    pub intercept_second: u32,
    /// Bits at 014h: INVLPGB, INVPCID and later ones.
    pub intercept_third: u32,
    reserved_1: [u8; 0x3C - 0x18],
    /// PAUSE filter threshold.
    pub pause_threshold: u16,
    /// PAUSE filter count.
    pub pause_count: u16,
    /// Host-physical address of the I/O permission map (12 KiB).
    pub iopm: u64,
    /// Host-physical address of the MSR permission map (8 KiB).
    pub msrpm: u64,
    /// Added to the TSC that the guest reads.
    pub tsc_offset: u64,
    /// Address space identifier; zero is the host's.
    pub asid: u32,
    /// One of [`tlb_control`]. The CPU leaves it as it is.
    pub tlb_control: u32,
    /// Bits of [`virtual_interrupt`].
    pub virtual_interrupt: u64,
    /// Bit 0: the guest is in an interrupt shadow. Written by the CPU; not loaded by every implementation.
    pub shadow: u64,
    /// Written by the CPU: why the guest left.
    pub exit_code: u64,
    /// Written by the CPU.
    pub exit_info_1: u64,
    /// Written by the CPU.
    pub exit_info_2: u64,
    /// Written by the CPU: the event whose delivery was interrupted, as in `event`.
    pub exit_int_info: u64,
    /// Bit 0: nested paging.
    pub nested: u64,
    avic_bar: u64,
    ghcb: u64,
    /// The event to deliver at VMRUN: vector (0 to 7), type (8 to 10), error code valid (11), valid (31), error code (32 to 63).
    pub event: u64,
    /// Host-physical address of the nested page tables.
    pub nested_cr3: u64,
    lbr: u64,
    /// What the CPU may take from its cache instead of from here. Zero: nothing.
    pub clean: u64,
    /// Written by CPUs with NRIPS: the next instruction.
    pub next_rip: u64,
    /// Written by CPUs with decode assists: how many instruction bytes follow.
    pub fetched: u8,
    /// Instruction bytes.
    pub instruction: [u8; 15],
    reserved_2: [u8; 0x400 - 0xE0],
}

/// APM vol. 2, table B-2.
#[derive(Clone)]
#[repr(C)]
#[allow(missing_docs)]
pub struct Save {
    pub es: Segment,
    pub cs: Segment,
    pub ss: Segment,
    pub ds: Segment,
    pub fs: Segment,
    pub gs: Segment,
    pub gdtr: Segment,
    pub ldtr: Segment,
    pub idtr: Segment,
    pub tr: Segment,
    reserved_1: [u8; 0xCB - 0xA0],
    pub cpl: u8,
    reserved_2: u32,
    pub efer: u64,
    reserved_3: [u8; 0x148 - 0xD8],
    pub cr4: u64,
    pub cr3: u64,
    pub cr0: u64,
    pub dr7: u64,
    pub dr6: u64,
    pub rflags: u64,
    pub rip: u64,
    reserved_4: [u8; 0x1D8 - 0x180],
    pub rsp: u64,
    reserved_5: [u8; 0x1F8 - 0x1E0],
    pub rax: u64,
    pub star: u64,
    pub lstar: u64,
    pub cstar: u64,
    pub sfmask: u64,
    pub kernel_gs_base: u64,
    pub sysenter_cs: u64,
    pub sysenter_esp: u64,
    pub sysenter_eip: u64,
    pub cr2: u64,
    reserved_6: [u8; 0x268 - 0x248],
    pub pat: u64,
    pub debug_control: u64,
    reserved_7: [u8; 0xC00 - 0x278],
}

// The layout is the manual's: offsets of table B-1, and of B-2 from 400h.
const _: () = {
    assert!(
        size_of::<Vmcb>() == 0x1000
            && align_of::<Vmcb>() == 0x1000
            && offset_of!(Vmcb, save) == 0x400
    );
    assert!(offset_of!(Control, pause_threshold) == 0x3C && offset_of!(Control, iopm) == 0x40);
    assert!(offset_of!(Control, asid) == 0x58 && offset_of!(Control, tlb_control) == 0x5C);
    assert!(
        offset_of!(Control, virtual_interrupt) == 0x60 && offset_of!(Control, exit_code) == 0x70
    );
    assert!(offset_of!(Control, exit_int_info) == 0x88 && offset_of!(Control, nested) == 0x90);
    assert!(offset_of!(Control, event) == 0xA8 && offset_of!(Control, nested_cr3) == 0xB0);
    assert!(offset_of!(Control, clean) == 0xC0 && offset_of!(Control, next_rip) == 0xC8);
    assert!(offset_of!(Control, instruction) == 0xD1 && size_of::<Control>() == 0x400);
    assert!(offset_of!(Save, gdtr) == 0x60 && offset_of!(Save, tr) == 0x90);
    assert!(offset_of!(Save, cpl) == 0xCB && offset_of!(Save, efer) == 0xD0);
    assert!(
        offset_of!(Save, cr4) == 0x148
            && offset_of!(Save, dr7) == 0x160
            && offset_of!(Save, rip) == 0x178
    );
    assert!(
        offset_of!(Save, rsp) == 0x1D8
            && offset_of!(Save, rax) == 0x1F8
            && offset_of!(Save, star) == 0x200
    );
    assert!(offset_of!(Save, cr2) == 0x240 && offset_of!(Save, pat) == 0x268);
};

impl Vmcb {
    /// A VMCB of zeros.
    pub const fn zeroed() -> Self {
        const SEGMENT: Segment = Segment {
            selector: 0,
            attributes: 0,
            limit: 0,
            base: 0,
        };
        Self {
            control: Control {
                intercept_cr: 0,
                intercept_dr: 0,
                intercept_exceptions: 0,
                intercept_first: 0,
                intercept_second: 0,
                intercept_third: 0,
                reserved_1: [0; _],
                pause_threshold: 0,
                pause_count: 0,
                iopm: 0,
                msrpm: 0,
                tsc_offset: 0,
                asid: 0,
                tlb_control: 0,
                virtual_interrupt: 0,
                shadow: 0,
                exit_code: 0,
                exit_info_1: 0,
                exit_info_2: 0,
                exit_int_info: 0,
                nested: 0,
                avic_bar: 0,
                ghcb: 0,
                event: 0,
                nested_cr3: 0,
                lbr: 0,
                clean: 0,
                next_rip: 0,
                fetched: 0,
                instruction: [0; _],
                reserved_2: [0; _],
            },
            save: Save {
                es: SEGMENT,
                cs: SEGMENT,
                ss: SEGMENT,
                ds: SEGMENT,
                fs: SEGMENT,
                gs: SEGMENT,
                gdtr: SEGMENT,
                ldtr: SEGMENT,
                idtr: SEGMENT,
                tr: SEGMENT,
                reserved_1: [0; _],
                cpl: 0,
                reserved_2: 0,
                efer: 0,
                reserved_3: [0; _],
                cr4: 0,
                cr3: 0,
                cr0: 0,
                dr7: 0,
                dr6: 0,
                rflags: 0,
                rip: 0,
                reserved_4: [0; _],
                rsp: 0,
                reserved_5: [0; _],
                rax: 0,
                star: 0,
                lstar: 0,
                cstar: 0,
                sfmask: 0,
                kernel_gs_base: 0,
                sysenter_cs: 0,
                sysenter_esp: 0,
                sysenter_eip: 0,
                cr2: 0,
                reserved_6: [0; _],
                pat: 0,
                debug_control: 0,
                reserved_7: [0; _],
            },
        }
    }
}

/// Bits of [`Control::intercept_first`] (offset 00Ch).
#[allow(missing_docs)]
pub mod first {
    pub const INTR: u32 = 1 << 0;
    pub const NMI: u32 = 1 << 1;
    pub const VINTR: u32 = 1 << 4;
    pub const RDPMC: u32 = 1 << 15;
    pub const CPUID: u32 = 1 << 18;
    pub const IRET: u32 = 1 << 20;
    pub const INVD: u32 = 1 << 22;
    pub const HLT: u32 = 1 << 24;
    pub const INVLPGA: u32 = 1 << 26;
    pub const IO: u32 = 1 << 27;
    pub const MSR: u32 = 1 << 28;
    pub const TASK_SWITCH: u32 = 1 << 29;
    pub const SHUTDOWN: u32 = 1 << 31;
}

/// Bits of [`Control::intercept_second`] (offset 010h).
#[allow(missing_docs)]
pub mod second {
    pub const VMRUN: u32 = 1 << 0;
    pub const VMMCALL: u32 = 1 << 1;
    pub const VMLOAD: u32 = 1 << 2;
    pub const VMSAVE: u32 = 1 << 3;
    pub const STGI: u32 = 1 << 4;
    pub const CLGI: u32 = 1 << 5;
    pub const SKINIT: u32 = 1 << 6;
    pub const WBINVD: u32 = 1 << 9;
    pub const MONITOR: u32 = 1 << 10;
    pub const MWAIT: u32 = 1 << 11;
    pub const MWAIT_ARMED: u32 = 1 << 12;
    pub const XSETBV: u32 = 1 << 13;
    pub const RDPRU: u32 = 1 << 14;
}

/// Values of [`Control::tlb_control`] (APM vol. 2, table 15-9), of which every CPU has these.
pub mod tlb_control {
    /// VMRUN flushes nothing.
    pub const DO_NOT_FLUSH: u32 = 0;
    /// VMRUN flushes all entries of all ASIDs, global ones too.
    pub const FLUSH_ALL: u32 = 1;
}

/// Bits of [`Control::virtual_interrupt`] (offset 060h).
#[allow(missing_docs)]
pub mod virtual_interrupt {
    pub const V_IRQ: u64 = 1 << 8;
    pub const PRIORITY: u64 = 0xF << 16;
    pub const IGNORE_TPR: u64 = 1 << 20;
    pub const MASKING: u64 = 1 << 24;
}

/// Fields of [`Control::event`] and [`Control::exit_int_info`] (APM vol. 2, 15.20).
#[allow(missing_docs)]
pub mod event {
    pub const TYPE: u64 = 7 << 8;
    pub const EXTERNAL: u64 = 0 << 8;
    pub const NMI: u64 = 2 << 8;
    pub const EXCEPTION: u64 = 3 << 8;
    pub const SOFTWARE: u64 = 4 << 8;
    pub const HAS_ERROR: u64 = 1 << 11;
    pub const VALID: u64 = 1 << 31;
}

/// Exit codes (APM vol. 2, appendix C).
#[allow(missing_docs)]
pub mod code {
    pub const CR8_READ: u32 = 0x08;
    pub const CR8_WRITE: u32 = 0x18;
    pub const EXCEPTION: u32 = 0x40;
    pub const LAST_EXCEPTION: u32 = 0x5F;
    pub const INTR: u32 = 0x60;
    pub const NMI: u32 = 0x61;
    pub const VINTR: u32 = 0x64;
    pub const RDPMC: u32 = 0x6F;
    pub const CPUID: u32 = 0x72;
    pub const IRET: u32 = 0x74;
    pub const INVD: u32 = 0x76;
    pub const HLT: u32 = 0x78;
    pub const INVLPGA: u32 = 0x7A;
    pub const IO: u32 = 0x7B;
    pub const MSR: u32 = 0x7C;
    pub const SHUTDOWN: u32 = 0x7F;
    pub const VMRUN: u32 = 0x80;
    pub const VMMCALL: u32 = 0x81;
    pub const VMLOAD: u32 = 0x82;
    pub const VMSAVE: u32 = 0x83;
    pub const STGI: u32 = 0x84;
    pub const CLGI: u32 = 0x85;
    pub const SKINIT: u32 = 0x86;
    pub const WBINVD: u32 = 0x89;
    pub const MONITOR: u32 = 0x8A;
    pub const MWAIT: u32 = 0x8B;
    pub const MWAIT_ARMED: u32 = 0x8C;
    pub const XSETBV: u32 = 0x8D;
    pub const RDPRU: u32 = 0x8E;
    pub const NESTED_FAULT: u32 = 0x400;
    /// The state was refused (-1; some implementations extend it with zeros).
    pub const INVALID: u32 = 0xFFFF_FFFF;
}
