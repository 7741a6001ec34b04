//! AMD SVM with nested paging (APM vol. 2, chapter 15), written to what QEMU's and silicon's implementations have in common: neither
//! next RIP nor decode assists nor clean bits are needed.

use super::fpu::{self, FpuState};
use super::{
    Delivery, Event, Gpr, NmiWindow, Place, RFLAGS_IF, Registers, System, Unavailable, Vcpu,
};
use super::{EFER_SVME, RFLAGS_ONE};
use crate::exit::{Exit, Refusal};
use crate::mem::GuestMemory;
use crate::mem::npt::{FlushNeeded, MapError, NestedTables, TableStatistics};
use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use check::{Entered, check_vmcb};
use core::arch::x86_64::{__cpuid, CpuidResult};
use core::fmt;
use detect::Capabilities;
use nmi::Nmi;
use tlb::Translations;
use vmcb::{Vmcb, event, first, second, virtual_interrupt};

pub mod check;
pub mod detect;
mod exits;
mod instructions;
mod nmi;
mod tlb;
pub mod vmcb;

/// MSRs that the guest reads and writes without an exit: VMSAVE and VMLOAD exchange exactly these (APM vol. 2, 15.5.2), so a
/// guest's values never meet the host's. STAR, LSTAR, CSTAR, SFMASK, FS.base, GS.base, KernelGSbase, SYSENTER_CS, _ESP, _EIP.
const DIRECT_MSRS: [u32; 10] = [
    0xC000_0081,
    0xC000_0082,
    0xC000_0083,
    0xC000_0084,
    0xC000_0100,
    0xC000_0101,
    0xC000_0102,
    0x174,
    0x175,
    0x176,
];

/// #DB and #AC are watched because a guest can make the CPU deliver them to itself for ever, out of reach of interrupts
/// (CVE-2015-8104, CVE-2015-5307); #MC because it concerns the box.
const WATCHED_EXCEPTIONS: u32 = 1 << 1 | 1 << 17 | 1 << 18;

/// Finds out whether the calling CPU can run guests.
///
/// # Errors
/// [`Unavailable`], which says why not.
///
/// # Safety
/// Runs at CPL 0.
unsafe fn detect() -> Result<Capabilities, Unavailable> {
    // SAFETY: `judge` reads VM_CR only where CPUID shows SVM, which has it; CPL 0 by the caller's promise.
    detect::judge(cpuid, || unsafe {
        instructions::read_msr(instructions::VM_CR)
    })
}

fn cpuid(leaf: u32) -> CpuidResult {
    __cpuid(leaf)
}

#[repr(C, align(4096))]
struct Pages<const BYTES: usize>([u8; BYTES]);

impl<const BYTES: usize> Pages<BYTES> {
    /// Host-physical address: memory is identity-mapped.
    fn address(&self) -> u64 {
        core::ptr::from_ref(self).expose_provenance() as u64
    }
}

/// What all vCPUs of one guest share: nested tables and permission maps.
pub struct SvmGuest {
    capabilities: Capabilities,
    nested: NestedTables,
    msrpm: Box<Pages<8192>>,
    iopm: Box<Pages<12288>>,
    /// vCPUs made so far.
    vcpus: u32,
}

/// A vCPU in a VMCB.
pub struct SvmVcpu {
    vmcb: Box<Vmcb>,
    registers: Registers,
    capabilities: Capabilities,
    fpu: FpuState,
    tsc_aux: u32,
    /// DR0 to DR3, while it is not bound: VMRUN and #VMEXIT exchange DR6 and DR7 only (APM vol. 2, 15.5.1).
    breakpoints: [u64; 4],
    nmi: Nmi,
    bound: bool,
    translations: Translations,
    /// State was changed in a way that may break a rule of VMRUN.
    unchecked: bool,
    /// What the CPU was given, to be told from what a refused entry leaves.
    #[cfg(debug_assertions)]
    entered_with: Box<Vmcb>,
    host_area: Box<Pages<4096>>,
    host_save: Box<Pages<4096>>,
    /// Kept alive for the addresses in the VMCB.
    _guest: Arc<SvmGuest>,
}

/// Why there can be no vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoVcpu {
    /// This CPU runs no guests.
    Unavailable(Unavailable),
    /// The guest's memory cannot be mapped.
    Map(MapError),
}

impl fmt::Display for NoVcpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unavailable(reason) => write!(f, "the guest cannot run: {reason}"),
            Self::Map(error) => write!(f, "the guest's memory cannot be mapped: {error}"),
        }
    }
}

impl SvmGuest {
    /// A guest on what the calling CPU offers, whose vCPUs see `memory` as their physical memory.
    ///
    /// # Errors
    /// [`NoVcpu`], which says why not.
    ///
    /// # Safety
    /// Its vCPUs are made, bound and entered at CPL 0 only, where all memory is identity-mapped, on CPUs that offer the same,
    /// and `memory` outlives them.
    pub unsafe fn of(memory: &GuestMemory) -> Result<Self, NoVcpu> {
        // SAFETY: CPL 0 by the caller's promise.
        let capabilities = unsafe { detect() }.map_err(NoVcpu::Unavailable)?;
        let (nested, needed) =
            NestedTables::of(memory, capabilities.gigabyte_pages).map_err(NoVcpu::Map)?;
        Ok(Self::new(capabilities, nested, needed))
    }

    fn new(capabilities: Capabilities, nested: NestedTables, needed: FlushNeeded) -> Self {
        // No vCPU has been on any CPU, and each flushes where it has not been (`tlb`). Nothing changes the tables once there is one.
        needed.discharge();
        let mut msrpm = Box::new(Pages([0xFF; 8192]));
        for msr in DIRECT_MSRS {
            allow_msr(&mut msrpm.0, msr);
        }
        Self {
            capabilities,
            nested,
            msrpm,
            iopm: Box::new(Pages([0xFF; 12288])),
            vcpus: 0,
        }
    }

    /// What the nested tables hold.
    pub fn tables(&self) -> TableStatistics {
        self.nested.statistics()
    }

    /// Makes `count` vCPUs. Their registers are zero: [`Vcpu::set_system`] comes next.
    pub fn vcpus(mut self, count: usize) -> Vec<SvmVcpu> {
        self.vcpus = count as u32;
        let guest = Arc::new(self);
        (0..count)
            .map(|index| SvmVcpu::new(&guest, index as u32))
            .collect()
    }

    /// ASID of a vCPU: its own, as far as there are enough.
    fn asid(&self, vcpu: u32) -> u32 {
        1 + vcpu % self.capabilities.limits.asids.saturating_sub(1).max(1)
    }

    fn has_asids(&self) -> bool {
        self.vcpus < self.capabilities.limits.asids
    }
}

impl SvmVcpu {
    fn new(guest: &Arc<SvmGuest>, index: u32) -> Self {
        let mut vmcb = Box::new(Vmcb::zeroed());
        let control = &mut vmcb.control;
        control.intercept_cr = 1 << 8 | 1 << 24;
        control.intercept_exceptions = WATCHED_EXCEPTIONS;
        control.intercept_first = first::INTR
            | first::NMI
            | first::RDPMC
            | first::CPUID
            | first::INVD
            | first::HLT
            | first::INVLPGA
            | first::IO
            | first::MSR
            | first::TASK_SWITCH
            | first::SHUTDOWN;
        control.intercept_second = second::VMRUN
            | second::VMMCALL
            | second::VMLOAD
            | second::VMSAVE
            | second::STGI
            | second::CLGI
            | second::SKINIT
            | second::WBINVD
            | second::MONITOR
            | second::MWAIT
            | second::MWAIT_ARMED
            | second::XSETBV
            | second::RDPRU;
        control.iopm = guest.iopm.address();
        control.msrpm = guest.msrpm.address();
        control.asid = guest.asid(index);
        control.virtual_interrupt = virtual_interrupt::MASKING;
        control.nested = 1;
        control.nested_cr3 = guest.nested.root();
        Self {
            #[cfg(debug_assertions)]
            entered_with: vmcb.clone(),
            vmcb,
            registers: Registers {
                rflags: RFLAGS_ONE,
                ..Registers::default()
            },
            capabilities: guest.capabilities,
            fpu: FpuState::reset(),
            tsc_aux: 0,
            breakpoints: [0; 4],
            nmi: Nmi::Open,
            bound: false,
            translations: Translations::new(!guest.has_asids()),
            unchecked: true,
            host_area: Box::new(Pages([0; 4096])),
            host_save: Box::new(Pages([0; 4096])),
            _guest: Arc::clone(guest),
        }
    }

    fn load_registers(&mut self) {
        let save = &mut self.vmcb.save;
        save.rax = self.registers.get(Gpr::Rax);
        save.rsp = self.registers.get(Gpr::Rsp);
        save.rip = self.registers.rip;
        save.rflags = self.registers.rflags | RFLAGS_ONE;
    }

    fn store_registers(&mut self) {
        let save = &mut self.vmcb.save;
        // SYSRET leaves SS.DPL as it was and sets CPL alone (APM vol. 3): from here on both say the same, for `System::cpl` and for CPUs that
        // take CPL from SS at VMRUN.
        save.ss.set_dpl(save.cpl);
        self.registers.set(Gpr::Rax, save.rax);
        self.registers.set(Gpr::Rsp, save.rsp);
        self.registers.rip = save.rip;
        self.registers.rflags = save.rflags;
    }

    /// Takes over what #VMEXIT has left in the VMCB, and back what VMRUN was asked for and has done.
    fn after_exit(&mut self) {
        self.store_registers();
        let control = &mut self.vmcb.control;
        tlb::end_flush(control);
        control.event = exits::to_deliver_again(control.exit_int_info);
        if control.event & event::VALID != 0 {
            control.shadow &= !1;
        }
        self.nmi.look(self.registers.rip, control);
    }
}

impl Vcpu for SvmVcpu {
    fn bind(&mut self, cpu: usize) -> Result<(), Unavailable> {
        // SAFETY: (1) whoever made the vCPU promised that it is bound at CPL 0; (2) `detect` found SVM before the MSRs below are touched; (3) SVME enables instructions
        // that only this module uses, NXE gives a meaning to a bit that the host's own tables either use already or leave clear; (4) the save pages are
        // ours and stay where it is while bound; (5) nothing else reads TSC_AUX or holds x87 or SSE state (module `fpu`); (6) the box watches no address: DR7
        // is as after reset, and #VMEXIT sets it so.
        unsafe {
            detect()?;
            let efer = instructions::read_msr(instructions::EFER);
            if efer & EFER_SVME != 0 {
                return Err(Unavailable::InUse);
            }
            instructions::write_msr(
                instructions::EFER,
                efer | EFER_SVME | crate::mem::walk::EFER_NXE,
            );
            instructions::write_msr(instructions::VM_HSAVE_PA, self.host_save.address());
            instructions::save_host(self.host_area.address());
            if has_tsc_aux() {
                instructions::write_msr(instructions::TSC_AUX, u64::from(self.tsc_aux));
            }
            instructions::write_breakpoints(self.breakpoints);
            self.fpu.load();
        }
        self.translations.come_to(cpu, &mut self.vmcb.control);
        self.bound = true;
        Ok(())
    }

    fn unbind(&mut self) {
        if !core::mem::take(&mut self.bound) {
            return;
        }
        // SAFETY: this CPU was bound, so it is at CPL 0 with SVM enabled by us; GIF is set outside `enter`, and DR7 is as #VMEXIT leaves it.
        unsafe {
            self.breakpoints = instructions::read_breakpoints();
            self.fpu.save();
            instructions::write_msr(instructions::VM_HSAVE_PA, 0);
            let efer = instructions::read_msr(instructions::EFER);
            instructions::write_msr(instructions::EFER, efer & !EFER_SVME);
        }
    }

    fn enter(&mut self) -> Exit {
        if !self.bound {
            return Exit::BadState(Refusal::Check("the vCPU is not bound to a CPU"));
        }
        self.load_registers();
        if self.unchecked || cfg!(debug_assertions) {
            if let Err(rule) = check_vmcb(&self.vmcb, self.capabilities.limits) {
                return Exit::BadState(Refusal::Check(rule));
            }
            self.unchecked = false;
        }
        let entered = Entered::of(&self.vmcb);
        #[cfg(debug_assertions)]
        self.entered_with.clone_from(&self.vmcb);
        let vmcb = core::ptr::from_mut(&mut *self.vmcb).expose_provenance() as u64;
        let host_area = self.host_area.address();
        // SAFETY: (1) bound: CPL 0, SVME and VM_HSAVE_PA set; interrupts are off in host mode; (2) the VMCB intercepts what could touch the host: all
        // ports, all MSRs but those that VMSAVE exchanges, SVM instructions; nested tables reach guest memory only; (3) memory is identity-mapped;
        // (4) `bind` loaded the guest's x87 and SSE state, and saved the host's that VMSAVE exchanges, which does not change while a CPU runs.
        unsafe { instructions::enter(&mut self.registers, vmcb, host_area) };
        if self.vmcb.control.intercept_first & first::VINTR != 0 {
            // QEMU's VMRUN notes the virtual interrupt without its lock, and so can forget an interrupt that another CPU or a device raises at that
            // moment: docs/hv.md.
            // SAFETY: bound, so CPL 0, and out of the guest.
            unsafe { instructions::rewrite_cr8() };
        }
        self.after_exit();
        let mut exit = exits::decode(&self.vmcb);
        if exit == Exit::BadState(Refusal::Cpu(None)) {
            let rule = entered.broken_rule(&self.vmcb, self.capabilities.limits);
            exit = Exit::BadState(Refusal::Cpu(rule));
        }
        #[cfg(debug_assertions)]
        if matches!(exit, Exit::BadState(_)) {
            // What was entered with is the evidence; the state that a refused entry leaves is not the guest's.
            self.vmcb.save.clone_from(&self.entered_with.save);
            self.store_registers();
        }
        exit
    }

    fn registers(&self) -> &Registers {
        &self.registers
    }

    fn registers_mut(&mut self) -> &mut Registers {
        &mut self.registers
    }

    fn xmm(&self, index: usize) -> u128 {
        if !self.bound {
            return self.fpu.xmm(index);
        }
        // SAFETY: bound, so CPL 0, and the guest's x87 and SSE state is in the CPU.
        unsafe { fpu::read_xmm(index) }
    }

    fn set_xmm(&mut self, index: usize, value: u128) {
        if !self.bound {
            return self.fpu.set_xmm(index, value);
        }
        // SAFETY: bound, so CPL 0, and nothing but the guest uses the SSE registers (module `fpu`).
        unsafe { fpu::write_xmm(index, value) }
    }

    fn system(&self) -> System {
        let save = &self.vmcb.save;
        System {
            cs: save.cs,
            ss: save.ss,
            ds: save.ds,
            es: save.es,
            fs: save.fs,
            gs: save.gs,
            ldtr: save.ldtr,
            tr: save.tr,
            gdtr: save.gdtr,
            idtr: save.idtr,
            cr0: save.cr0,
            cr2: save.cr2,
            cr3: save.cr3,
            cr4: save.cr4,
            efer: save.efer & !EFER_SVME,
            dr6: save.dr6,
            dr7: save.dr7,
            pat: save.pat,
        }
    }

    fn set_system(&mut self, system: &System) {
        if self.system().paging() != system.paging() {
            // INIT, or a write of EFER. A CPU flushes by itself when its paging mode changes, but not when VMRUN loads another one (APM vol. 2, 15.16,
            // "Software Rule").
            self.flush();
        }
        let save = &mut self.vmcb.save;
        save.cs = system.cs;
        save.ss = system.ss;
        save.ds = system.ds;
        save.es = system.es;
        save.fs = system.fs;
        save.gs = system.gs;
        save.ldtr = system.ldtr;
        save.tr = system.tr;
        save.gdtr = system.gdtr;
        save.idtr = system.idtr;
        save.cr0 = system.cr0;
        save.cr2 = system.cr2;
        save.cr3 = system.cr3;
        save.cr4 = system.cr4;
        save.efer = system.efer | EFER_SVME;
        save.dr6 = system.dr6;
        save.dr7 = system.dr7;
        save.pat = system.pat;
        save.cpl = system.cpl();
        self.unchecked = true;
    }

    fn next_rip(&self) -> Option<u64> {
        Some(self.vmcb.control.next_rip).filter(|rip| self.capabilities.next_rip && *rip != 0)
    }

    fn retire(&mut self, rip: u64) {
        self.registers.rip = rip;
        self.vmcb.control.shadow &= !1;
    }

    fn delivery(&self) -> Delivery {
        let control = &self.vmcb.control;
        if control.event & event::VALID != 0 {
            Delivery::Busy
        } else if control.shadow & 1 != 0 {
            Delivery::Shadow
        } else if self.registers.rflags & RFLAGS_IF == 0 {
            Delivery::Masked
        } else {
            Delivery::Ready
        }
    }

    fn nmi_window(&self) -> NmiWindow {
        self.nmi.window()
    }

    fn inject(&mut self, injected: Event) {
        // An exception ends the shadow that its instruction stood in. Nothing else is injected in one.
        self.vmcb.control.shadow &= !1;
        if injected == Event::Nmi {
            self.nmi.begin(&mut self.vmcb.control);
        }
        self.vmcb.control.event = event::VALID
            | match injected {
                Event::Interrupt(vector) => event::EXTERNAL | u64::from(vector),
                Event::Nmi => event::NMI | 2,
                Event::Exception(vector, None) => event::EXCEPTION | u64::from(vector),
                Event::Exception(vector, Some(code)) => {
                    event::EXCEPTION | event::HAS_ERROR | u64::from(vector) | u64::from(code) << 32
                }
            };
    }

    fn watch_window(&mut self, on: bool) {
        let control = &mut self.vmcb.control;
        // A virtual interrupt that never arrives: its intercept comes first. Its vector is of no account.
        let bits =
            virtual_interrupt::V_IRQ | virtual_interrupt::PRIORITY | virtual_interrupt::IGNORE_TPR;
        if on {
            control.virtual_interrupt |= bits;
            control.intercept_first |= first::VINTR;
        } else {
            control.virtual_interrupt &= !bits;
            control.intercept_first &= !first::VINTR;
        }
    }

    fn cancel_event(&mut self) {
        self.vmcb.control.event = 0;
        self.vmcb.control.shadow &= !1;
        self.nmi.forget(&mut self.vmcb.control);
    }

    fn flush(&mut self) {
        tlb::request_flush(&mut self.vmcb.control);
    }

    fn tsc_offset(&self) -> u64 {
        self.vmcb.control.tsc_offset
    }

    fn set_tsc_offset(&mut self, offset: u64) {
        self.vmcb.control.tsc_offset = offset;
    }

    fn set_tsc_aux(&mut self, value: u32) {
        self.tsc_aux = value;
        if self.bound && has_tsc_aux() {
            // SAFETY: bound, so CPL 0; the CPU has the MSR; the hypervisor reads TSC_AUX nowhere.
            unsafe { instructions::write_msr(instructions::TSC_AUX, u64::from(value)) };
        }
    }

    fn raw_exit(&self) -> [u64; 3] {
        let control = &self.vmcb.control;
        [control.exit_code, control.exit_info_1, control.exit_info_2]
    }

    fn place(&self) -> Place {
        let (control, save) = (&self.vmcb.control, &self.vmcb.save);
        // SAFETY: bound, so CPL 0, and the CPU has the MSR.
        let cpu_save = self
            .bound
            .then(|| unsafe { instructions::read_msr(instructions::VM_HSAVE_PA) });
        // SAFETY: bound, so CPL 0.
        let is_hosts = self.bound && save.cr3 == unsafe { instructions::read_cr3() };
        Place {
            cpus: self.translations.cpus(),
            control: core::ptr::from_ref(&*self.vmcb).expose_provenance() as u64,
            save: self.host_save.address(),
            cpu_save,
            nested: (control.nested & 1 != 0, control.nested_cr3),
            asid: control.asid,
            is_hosts: is_hosts && instructions::is_in_enter(save.rip),
        }
    }
}

impl Drop for SvmVcpu {
    fn drop(&mut self) {
        self.unbind();
    }
}

/// RDTSCP, or RDPID, which reads the same MSR.
fn has_tsc_aux() -> bool {
    cpuid(0x8000_0001).edx & 1 << 27 != 0
}

/// Clears the read and write bits of one MSR (APM vol. 2, 15.11).
fn allow_msr(map: &mut [u8; 8192], msr: u32) {
    let bit = match msr {
        0..=0x1FFF => msr,
        0xC000_0000..=0xC000_1FFF => 0x2000 + (msr - 0xC000_0000),
        0xC001_0000..=0xC001_1FFF => 0x4000 + (msr - 0xC001_0000),
        _ => return,
    } * 2;
    if let Some(byte) = map.get_mut(bit as usize / 8) {
        *byte &= !(3 << (bit % 8));
    }
}

#[cfg(test)]
mod tests;
