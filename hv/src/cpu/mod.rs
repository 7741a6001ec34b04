//! The face that every CPU back end shows to the rest of the hypervisor: enter the guest, learn why it left, look at and change its
//! registers, inject an event. Above it nobody knows of VMCBs. Today there is AMD's ([`svm`]); Intel's goes beside it.

use crate::exit::Exit;
use crate::mem::walk::Paging;
use core::arch::x86_64::CpuidResult;
use core::fmt;
use core::ops::RangeInclusive;

pub(crate) mod alu;
pub mod fpu;
pub mod svm;

/// The time-stamp counter.
pub fn read_tsc() -> u64 {
    // SAFETY: every x86-64 CPU has it; it has no effect, and CR4.TSD is not set by anything here.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// The CPU's own CPUID.
pub fn host_cpuid(leaf: u32, subleaf: u32) -> CpuidResult {
    core::arch::x86_64::__cpuid_count(leaf, subleaf)
}

/// Whether the CPU, and so a guest on it, has LZCNT. Without it the same bytes are BSR (APM vol. 3, LZCNT).
pub fn has_lzcnt() -> bool {
    host_cpuid(0x8000_0001, 0).ecx & 1 << 5 != 0
}

/// Whether the CPU, and so a guest on it, has TZCNT. Without it the same bytes are BSF (APM vol. 3, TZCNT).
pub fn has_tzcnt() -> bool {
    host_cpuid(7, 0).ebx & 1 << 3 != 0
}

/// RFLAGS bit 1, always set.
pub const RFLAGS_ONE: u64 = 1 << 1;
/// RFLAGS.TF: single step.
pub const RFLAGS_TF: u64 = 1 << 8;
/// RFLAGS.IF: maskable interrupts.
pub const RFLAGS_IF: u64 = 1 << 9;
/// RFLAGS.DF: string instructions go down.
pub const RFLAGS_DF: u64 = 1 << 10;
/// RFLAGS.RF: no instruction breakpoint at the next instruction.
pub const RFLAGS_RF: u64 = 1 << 16;
/// EFER.LME: long mode enabled.
pub const EFER_LME: u64 = 1 << 8;
/// EFER.SVME: SVM enabled.
pub const EFER_SVME: u64 = 1 << 12;

/// Number of a general-purpose register in instruction encodings, and index in [`Registers::gpr`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
#[allow(missing_docs)]
pub enum Gpr {
    Rax,
    Rcx,
    Rdx,
    Rbx,
    Rsp,
    Rbp,
    Rsi,
    Rdi,
    R8,
    R9,
    R10,
    R11,
    R12,
    R13,
    R14,
    R15,
}

/// The registers that instructions use all the time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Registers {
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15: the order of instruction encodings.
    pub gpr: [u64; 16],
    /// Instruction pointer.
    pub rip: u64,
    /// Flags.
    pub rflags: u64,
}

impl Registers {
    /// One register.
    pub fn get(&self, register: Gpr) -> u64 {
        self.gpr[register as usize]
    }

    /// Changes one register.
    pub fn set(&mut self, register: Gpr, value: u64) {
        self.gpr[register as usize] = value;
    }

    /// EDX:EAX, as MSR instructions use it.
    pub fn edx_eax(&self) -> u64 {
        self.get(Gpr::Rdx) << 32 | self.get(Gpr::Rax) & 0xFFFF_FFFF
    }

    /// Sets EDX:EAX; the upper halves of RDX and RAX become zero.
    pub fn set_edx_eax(&mut self, value: u64) {
        self.set(Gpr::Rdx, value >> 32);
        self.set(Gpr::Rax, value & 0xFFFF_FFFF);
    }
}

/// A segment register with what the CPU keeps hidden beside it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Segment {
    /// Selector.
    pub selector: u16,
    /// Type (bits 0 to 3), S (4), DPL (5, 6), P (7), AVL (8), L (9), D/B (10), G (11).
    pub attributes: u16,
    /// Limit in bytes, granularity already applied.
    pub limit: u32,
    /// Linear address of its first byte.
    pub base: u64,
}

impl Segment {
    /// Descriptor privilege level.
    pub fn dpl(&self) -> u8 {
        (self.attributes >> 5 & 3) as u8
    }

    /// Changes the descriptor privilege level.
    pub fn set_dpl(&mut self, level: u8) {
        self.attributes = self.attributes & !(3 << 5) | u16::from(level & 3) << 5;
    }

    /// The offsets that lie in it, outside 64-bit code: up to the limit, or beyond it if it expands down.
    pub fn offsets(&self) -> RangeInclusive<u64> {
        const CODE: u16 = 1 << 3;
        const EXPANDS_DOWN: u16 = 1 << 2;
        let limit = u64::from(self.limit);
        if self.attributes & (CODE | EXPANDS_DOWN) == EXPANDS_DOWN {
            let highest = if self.is_big() { 0xFFFF_FFFF } else { 0xFFFF };
            limit + 1..=highest
        } else {
            0..=limit
        }
    }

    /// The L bit: 64-bit code.
    pub fn is_long(&self) -> bool {
        self.attributes & 1 << 9 != 0
    }

    /// The D/B bit: 32-bit code or stack.
    pub fn is_big(&self) -> bool {
        self.attributes & 1 << 10 != 0
    }
}

/// Everything else that decides how the guest runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct System {
    pub cs: Segment,
    pub ss: Segment,
    pub ds: Segment,
    pub es: Segment,
    pub fs: Segment,
    pub gs: Segment,
    pub ldtr: Segment,
    pub tr: Segment,
    /// Only base and limit count.
    pub gdtr: Segment,
    /// Only base and limit count.
    pub idtr: Segment,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    /// As the guest sees it.
    pub efer: u64,
    pub dr6: u64,
    pub dr7: u64,
    pub pat: u64,
}

impl System {
    /// The registers that decide address translation.
    pub fn paging(&self) -> Paging {
        Paging {
            cr0: self.cr0,
            cr3: self.cr3,
            cr4: self.cr4,
            efer: self.efer,
        }
    }

    /// Current privilege level: the stack segment's. A back end whose CPU can have them differ makes that true after each exit.
    pub fn cpl(&self) -> u8 {
        self.ss.dpl()
    }

    /// Width of the code that runs, in bits: 16, 32 or 64.
    pub fn code_bits(&self) -> u32 {
        if self.efer & crate::mem::walk::EFER_LMA != 0 && self.cs.is_long() {
            64
        } else if self.cs.is_big() {
            32
        } else {
            16
        }
    }
}

/// Something to deliver through the guest's interrupt table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// An external interrupt with its vector.
    Interrupt(u8),
    /// A non-maskable interrupt.
    Nmi,
    /// An exception with its vector and, where it has one, its error code.
    Exception(u8, Option<u32>),
}

/// Vector of #DB.
pub const DEBUG_EXCEPTION: u8 = 1;
/// #DE.
pub const DIVIDE_ERROR: Event = Event::Exception(0, None);
/// #NM.
pub const DEVICE_NOT_AVAILABLE: Event = Event::Exception(7, None);
/// #UD.
pub const INVALID_OPCODE: Event = Event::Exception(6, None);
/// #GP(0).
pub const GENERAL_PROTECTION: Event = Event::Exception(13, Some(0));
/// #SS(0).
pub const STACK_FAULT: Event = Event::Exception(12, Some(0));
/// Vector of #PF.
pub const PAGE_FAULT: u8 = 14;

/// How far the handling of the last NMI is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NmiWindow {
    /// It has ended, or there was none.
    #[default]
    Open,
    /// It is being handled. When its end begins, the guest is left ([`Exit::InterruptWindow`]).
    Closed,
    /// Its end has begun; nothing tells when it is over.
    Opening,
}

/// Whether the guest would take an external interrupt at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// Yes.
    Ready,
    /// No: RFLAGS.IF is clear. [`Vcpu::watch_window`] tells when it is set.
    Masked,
    /// No: the instruction after STI or MOV SS comes first.
    Shadow,
    /// No: another event is about to be delivered.
    Busy,
}

/// Where a vCPU runs and what its back end uses there: evidence for a stop that the guest cannot have caused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// The CPU that it was bound to last, and the one before that.
    pub cpus: [Option<usize>; 2],
    /// Host-physical address of its control block.
    pub control: u64,
    /// Host-physical address of its page for the host's state.
    pub save: u64,
    /// What the CPU has for that address; none where it is not bound.
    pub cpu_save: Option<u64>,
    /// Whether nested paging is on, and the address of its tables.
    pub nested: (bool, u64),
    /// Its tag of cached translations.
    pub asid: u32,
    /// Its RIP and CR3 are the hypervisor's own: the CPU took an exit outside the guest.
    pub is_hosts: bool,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cpu = |cpu: Option<usize>| cpu.map_or(-1, |cpu| cpu as isize);
        let Self {
            cpus: [now, before],
            control,
            save,
            asid,
            nested: (nested, tables),
            ..
        } = *self;
        write!(
            f,
            "CPU {} (before: {}) control {control:#x} save {save:#x}, ",
            cpu(now),
            cpu(before)
        )?;
        match self.cpu_save {
            Some(address) => write!(f, "the CPU's {address:#x}, ")?,
            None => write!(f, "not bound, ")?,
        }
        write!(f, "asid {asid} nested {} {tables:#x}", u8::from(nested))?;
        if self.is_hosts {
            write!(f, "; RIP and CR3 ARE THE HYPERVISOR'S")?;
        }
        Ok(())
    }
}

/// Why this CPU cannot run guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unavailable {
    /// Neither vendor's extension is there.
    NoVirtualisation,
    /// Intel VMX is there; there is no back end for it yet.
    NoVmxYet,
    /// SVM without nested paging.
    NoNestedPaging,
    /// VM_CR.SVMDIS is set, and may be changed in firmware setup.
    DisabledByFirmware,
    /// VM_CR.SVMDIS is set and locked with a key.
    LockedByFirmware,
    /// Another hypervisor on this CPU has SVM in use.
    InUse,
}

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoVirtualisation => "this CPU has no virtualisation extension (CPUID shows neither SVM nor VMX)",
            Self::NoVmxYet => "this CPU has Intel VMX, which this version cannot use yet (it needs AMD-V)",
            Self::NoNestedPaging => "this CPU has AMD-V without nested paging (CPUID 8000000Ah EDX.NP), which the guest needs",
            Self::DisabledByFirmware => "AMD-V is switched off in firmware setup (VM_CR.SVMDIS)",
            Self::LockedByFirmware => "AMD-V is switched off and locked by the firmware (VM_CR.SVMDIS with SVM_LOCK)",
            Self::InUse => "AMD-V is already in use on this CPU (EFER.SVME is set)",
        })
    }
}

/// A virtual CPU on some back end. It runs on the CPU that last called [`Vcpu::bind`].
pub trait Vcpu {
    /// Makes the calling CPU, number `cpu` of the box, ready to run it and loads what entering does not. No other vCPU is bound there.
    ///
    /// # Errors
    /// [`Unavailable`] if this CPU cannot run guests.
    fn bind(&mut self, cpu: usize) -> Result<(), Unavailable>;

    /// Takes back from the calling CPU what `bind` loaded. The guest's state is then in memory only.
    fn unbind(&mut self);

    /// Runs the guest until something needs the hypervisor. Only between `bind` and `unbind`.
    fn enter(&mut self) -> Exit;

    /// General-purpose registers, RIP, RFLAGS.
    fn registers(&self) -> &Registers;

    /// The same to change them.
    fn registers_mut(&mut self) -> &mut Registers;

    /// One of the registers XMM0 to XMM15; zero for any other number.
    fn xmm(&self, index: usize) -> u128;

    /// Changes it.
    fn set_xmm(&mut self, index: usize, value: u128);

    /// A copy of the system registers.
    fn system(&self) -> System;

    /// Replaces the system registers. Where that changes how the guest's addresses are translated, it is a [`Vcpu::flush`] as well.
    fn set_system(&mut self, system: &System);

    /// Address of the next instruction, if the CPU told it for the last exit.
    fn next_rip(&self) -> Option<u64>;

    /// Ends the current instruction: continues at `rip`, and the interrupt shadow is over.
    fn retire(&mut self, rip: u64);

    /// Whether an external interrupt could be delivered now.
    fn delivery(&self) -> Delivery;

    /// Whether the last NMI lets another be delivered, once [`Vcpu::delivery`] allows.
    fn nmi_window(&self) -> NmiWindow;

    /// Delivers `event` on the next entry. It replaces one that was to be delivered.
    fn inject(&mut self, event: Event);

    /// Whether to leave the guest as soon as it would take an interrupt ([`Exit::InterruptWindow`]).
    fn watch_window(&mut self, on: bool);

    /// Forgets what was to be delivered, and an NMI that has not ended.
    fn cancel_event(&mut self);

    /// Flushes the guest's cached translations at the next entry.
    fn flush(&mut self);

    /// Guest TSC minus host TSC.
    fn tsc_offset(&self) -> u64;

    /// Changes that difference.
    fn set_tsc_offset(&mut self, offset: u64);

    /// Changes TSC_AUX, which RDTSCP and RDPID read.
    fn set_tsc_aux(&mut self, value: u32);

    /// The back end's own words for the last exit: code and two details.
    fn raw_exit(&self) -> [u64; 3];

    /// Where it runs, as evidence. Called on the CPU that it is bound to, if it is.
    fn place(&self) -> Place;
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn what_firmware_has_done_to_virtualisation_is_said_in_words() {
        for (reason, text) in [
            (
                Unavailable::LockedByFirmware,
                "AMD-V is switched off and locked by the firmware (VM_CR.SVMDIS with SVM_LOCK)",
            ),
            (
                Unavailable::DisabledByFirmware,
                "AMD-V is switched off in firmware setup (VM_CR.SVMDIS)",
            ),
            (
                Unavailable::NoVirtualisation,
                "this CPU has no virtualisation extension (CPUID shows neither SVM nor VMX)",
            ),
            (
                Unavailable::NoNestedPaging,
                "this CPU has AMD-V without nested paging (CPUID 8000000Ah EDX.NP), which the guest needs",
            ),
        ] {
            assert_eq!(reason.to_string(), text);
        }
    }
}
