//! What is done for each [`Exit`].

use super::processor::Processor;
use super::{Shared, StopReason};
use crate::cpu::{
    DEBUG_EXCEPTION, Delivery, Event, GENERAL_PROTECTION, Gpr, INVALID_OPCODE, RFLAGS_IF,
    RFLAGS_RF, RFLAGS_TF, Vcpu, host_cpuid, read_tsc,
};
use crate::cpuid;
use crate::decode;
use crate::emulate::{self, Bus, Trouble};
use crate::exit::{Exit, MemoryAccess, PortAccess};
use crate::mem::GuestPtr;
use crate::msr::{Effect, number};
use crate::platform::{GeneralProtection, Platform, Rest};

/// DR6.BS: single step.
const DR6_SINGLE_STEP: u64 = 1 << 14;
impl Processor<'_> {
    /// Does what the guest left for.
    ///
    /// # Errors
    /// The reason why the guest cannot go on.
    pub(super) fn handle(&mut self, exit: Exit) -> Result<(), StopReason> {
        match exit {
            Exit::HostInterrupt => {
                self.take_interrupts();
                self.halt_in_shadow();
            }
            Exit::InterruptWindow => self.vcpu.watch_window(false),
            Exit::Halt => self.halt(),
            Exit::Cpuid => self.cpuid(),
            Exit::ReadMsr => self.read_msr(),
            Exit::WriteMsr => self.write_msr(),
            Exit::Port(access) if access.string => self.emulate(access.port.into())?,
            Exit::Port(access) => self.port(access),
            Exit::Memory(access) => self.memory_access(access)?,
            Exit::TaskPriority { .. } => self.emulate(0)?,
            // All memory is coherent: there is nothing to write back, and nothing may be thrown away.
            Exit::CacheFlush => self.retire_opcode(&[0x0F, 0x08]),
            Exit::Exception(vector, code) => {
                // Delivering it may raise it again, for ever (CVE-2015-5307, CVE-2015-8104), and an event that is injected comes before the
                // box's interrupts: they get their turn here.
                self.take_interrupts();
                self.vcpu.inject(Event::Exception(vector, code));
            }
            Exit::Hypercall => self.hypercall(),
            Exit::Undefined => self.vcpu.inject(INVALID_OPCODE),
            Exit::Refused => self.vcpu.inject(GENERAL_PROTECTION),
            Exit::Shutdown => return Err(StopReason::TripleFault),
            Exit::BadState(rule) => return Err(StopReason::BadState(rule)),
            Exit::MachineCheck => return Err(StopReason::MachineCheck),
            Exit::Unknown(raw) => return Err(StopReason::UnknownExit(raw)),
        }
        Ok(())
    }

    /// Lets the box take what interrupts it.
    fn take_interrupts(&mut self) {
        self.called |= self.shared.host.take_interrupts();
        // The timer's may have been among them: what it was armed for stands no longer.
        self.armed = None;
    }

    /// Goes on at `next`. An instruction under single step traps after it, emulated or not, and ends RFLAGS.RF; one that goes on at
    /// itself is not through.
    fn retire(&mut self, next: u64) {
        if next != self.vcpu.registers().rip {
            self.vcpu.registers_mut().rflags &= !RFLAGS_RF;
        }
        self.vcpu.retire(next);
        if self.vcpu.registers().rflags & RFLAGS_TF != 0 {
            let mut system = self.vcpu.system();
            system.dr6 |= DR6_SINGLE_STEP;
            self.vcpu.set_system(&system);
            self.vcpu.inject(Event::Exception(DEBUG_EXCEPTION, None));
        }
    }

    /// Goes on after the current instruction, which is `opcode`, perhaps with prefixes.
    pub(super) fn retire_opcode(&mut self, opcode: &[u8]) {
        let next = self.vcpu.next_rip().unwrap_or_else(|| {
            decode::after_opcode(
                &self.shared.memory,
                self.vcpu.registers(),
                &self.vcpu.system(),
                opcode,
            )
        });
        self.retire(next);
    }

    fn halt(&mut self) {
        self.retire_opcode(&[0xF4]);
        // Under single step the trap comes instead of the halt.
        if self.vcpu.delivery() != Delivery::Busy {
            let masked = self.vcpu.registers().rflags & RFLAGS_IF == 0;
            self.rest = Some(if masked {
                Rest::HaltedMasked
            } else {
                Rest::Halted
            });
        }
    }

    /// STI, HLT is one step for the guest's interrupts: one that comes between the two wakes it from the HLT. The box's own can come between, and
    /// QEMU's VMRUN forgets the shadow that STI left: an interrupt for the guest would then be delivered before the HLT, and never wake it.
    fn halt_in_shadow(&mut self) {
        if self.vcpu.delivery() != Delivery::Shadow || self.vcpu.system().cpl() != 0 {
            return;
        }
        let (registers, system) = (self.vcpu.registers(), self.vcpu.system());
        let code = decode::fetch(&self.shared.memory, registers, &system);
        if code.is_ok_and(|code| code.as_slice().first() == Some(&0xF4)) {
            self.halt();
        }
    }

    fn cpuid(&mut self) {
        let registers = self.vcpu.registers();
        let (leaf, subleaf) = (
            registers.get(Gpr::Rax) as u32,
            registers.get(Gpr::Rcx) as u32,
        );
        let answer = cpuid::answer(leaf, subleaf, self.topology, host_cpuid);
        let registers = self.vcpu.registers_mut();
        registers.set(Gpr::Rax, answer.eax.into());
        registers.set(Gpr::Rbx, answer.ebx.into());
        registers.set(Gpr::Rcx, answer.ecx.into());
        registers.set(Gpr::Rdx, answer.edx.into());
        self.retire_opcode(&[0x0F, 0xA2]);
    }

    fn read_msr(&mut self) {
        let msr = self.vcpu.registers().get(Gpr::Rcx) as u32;
        let (vcpu, shared) = (self.index(), &*self.shared);
        let value = match msr {
            number::APIC_BASE | number::X2APIC_FIRST..=number::X2APIC_LAST => {
                shared.with_platform(vcpu, |platform| platform.apic_msr_read(vcpu, msr))
            }
            number::TSC_DEADLINE => {
                Ok(shared.with_platform(vcpu, |platform| platform.tsc_deadline(vcpu)))
            }
            _ => self.msrs.read(msr, &self.vcpu.system(), self.guest_tsc()),
        };
        match value {
            Ok(value) => {
                self.vcpu.registers_mut().set_edx_eax(value);
                self.retire_opcode(&[0x0F, 0x32]);
            }
            Err(GeneralProtection) => {
                log::debug!("guest reads MSR {msr:#x}, which it does not have");
                shared.with_platform(vcpu, |platform| platform.note_refused_msr(msr));
                self.vcpu.inject(GENERAL_PROTECTION);
            }
        }
    }

    fn write_msr(&mut self) {
        let registers = self.vcpu.registers();
        let (msr, value) = (registers.get(Gpr::Rcx) as u32, registers.edx_eax());
        let (vcpu, shared) = (self.index(), &*self.shared);
        let done = match msr {
            number::APIC_BASE | number::X2APIC_FIRST..=number::X2APIC_LAST => {
                shared.with_platform(vcpu, |platform| platform.apic_msr_write(vcpu, msr, value))
            }
            number::TSC_DEADLINE => {
                let tsc = self.guest_tsc();
                shared.with_platform(vcpu, |platform| {
                    platform.set_tsc_deadline(vcpu, value, tsc);
                });
                Ok(())
            }
            _ => self
                .msrs
                .write(msr, value, &self.vcpu.system())
                .map(|effect| self.carry_out(effect)),
        };
        match done {
            Ok(()) => self.retire_opcode(&[0x0F, 0x30]),
            Err(GeneralProtection) => {
                log::debug!("guest writes {value:#x} to MSR {msr:#x}, which it may not");
                let vcpu = self.index();
                self.shared
                    .with_platform(vcpu, |platform| platform.note_refused_msr(msr));
                self.vcpu.inject(GENERAL_PROTECTION);
            }
        }
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::None => {}
            Effect::Efer(efer) => {
                let mut system = self.vcpu.system();
                system.efer = efer;
                self.vcpu.set_system(&system);
            }
            Effect::Pat(pat) => {
                let mut system = self.vcpu.system();
                system.pat = pat;
                self.vcpu.set_system(&system);
            }
            Effect::Tsc(value) => {
                self.vcpu.set_tsc_offset(value.wrapping_sub(read_tsc()));
                self.publish_system_time();
                // A deadline is a value of the TSC: another TSC, another moment.
                let (vcpu, tsc) = (self.index(), self.guest_tsc());
                self.shared.with_platform(vcpu, |platform| {
                    let deadline = platform.tsc_deadline(vcpu);
                    platform.set_tsc_deadline(vcpu, deadline, tsc);
                });
            }
            Effect::TscAux(value) => self.vcpu.set_tsc_aux(value),
            Effect::WallClock(address) => self.publish_wall_clock(address),
            Effect::SystemTime(_) => self.publish_system_time(),
            Effect::StealTime => self.resume_steal_time(),
        }
    }

    fn port(&mut self, access: PortAccess) {
        let rax = self.vcpu.registers().get(Gpr::Rax);
        let mask = match access.width {
            1 => 0xFF,
            2 => 0xFFFF,
            _ => 0xFFFF_FFFF,
        };
        let PortAccess { port, width, .. } = access;
        let (vcpu, shared) = (self.index(), &*self.shared);
        if access.write {
            shared.with_platform(vcpu, |platform| {
                platform.port_write(&shared.memory, port, width, (rax & mask) as u32);
            });
        } else {
            let value = shared.with_platform(vcpu, |platform| {
                platform.port_read(&shared.memory, port, width)
            });
            let value = u64::from(value) & mask;
            let kept = if access.width == 4 { 0 } else { rax & !mask };
            self.vcpu.registers_mut().set(Gpr::Rax, kept | value);
        }
        self.retire(access.next_rip);
    }

    fn memory_access(&mut self, access: MemoryAccess) -> Result<(), StopReason> {
        let MemoryAccess { address, .. } = access;
        if access.fetch {
            return Err(StopReason::NoCode(address));
        }
        // The CPU's own access while it walked tables or delivered an event: no instruction to emulate.
        if access.table_walk || self.vcpu.delivery() == Delivery::Busy {
            return Err(StopReason::NoTables(address));
        }
        if self.shared.memory.contains(GuestPtr { address, length: 1 }) {
            return Err(StopReason::NestedFault(address));
        }
        self.emulate(address)
    }

    /// Carries out the current instruction, which touched `address`.
    fn emulate(&mut self, address: u64) -> Result<(), StopReason> {
        let system = self.vcpu.system();
        let mut registers = *self.vcpu.registers();
        let shared = &*self.shared;
        let mut wires = Wires {
            shared,
            index: self.topology.vcpu as usize,
            vcpu: &mut *self.vcpu,
        };
        let result = emulate::step(&shared.memory, &mut registers, &system, &mut wires);
        *self.vcpu.registers_mut() = registers;
        match result {
            Ok(next) => self.retire(next),
            Err(Trouble::Inject(event, cr2)) => {
                if let Some(cr2) = cr2 {
                    self.vcpu.set_system(&crate::cpu::System { cr2, ..system });
                }
                self.vcpu.inject(event);
            }
            Err(Trouble::NoCode) => return Err(StopReason::NoCode(self.vcpu.registers().rip)),
            Err(Trouble::Unsupported(bytes)) => {
                return Err(StopReason::UnknownInstruction { address, bytes });
            }
        }
        Ok(())
    }
}

/// What an emulated instruction reaches.
struct Wires<'a, 'h> {
    shared: &'a Shared<'h>,
    /// The vCPU's number.
    index: usize,
    vcpu: &'a mut dyn Vcpu,
}

impl<'h> Wires<'_, 'h> {
    fn platform<R>(&self, act: impl FnOnce(&mut Platform<'h>) -> R) -> R {
        self.shared.with_platform(self.index, act)
    }
}

impl Bus for Wires<'_, '_> {
    fn read(&mut self, address: u64, width: u8) -> u64 {
        let memory = &self.shared.memory;
        let ram = match width {
            1 => memory.read_u8(address).map(u64::from),
            2 => memory.read_u16(address).map(u64::from),
            4 => memory.read_u32(address).map(u64::from),
            _ => memory.read_u64(address),
        };
        ram.ok()
            .or_else(|| {
                self.platform(|platform| platform.mmio_read(memory, self.index, address, width))
            })
            .unwrap_or(u64::MAX)
    }

    fn write(&mut self, address: u64, width: u8, value: u64) {
        let memory = &self.shared.memory;
        let ram = match width {
            1 => memory.write_u8(address, value as u8),
            2 => memory.write_u16(address, value as u16),
            4 => memory.write_u32(address, value as u32),
            _ => memory.write_u64(address, value),
        };
        if ram.is_err() {
            // Where nothing is, the write is lost, and counted there.
            let _ = self.platform(|platform| {
                platform.mmio_write(memory, self.index, address, width, value)
            });
        }
    }

    fn port_read(&mut self, port: u16, width: u8) -> u32 {
        self.platform(|platform| platform.port_read(&self.shared.memory, port, width))
    }

    fn port_write(&mut self, port: u16, width: u8, value: u32) {
        self.platform(|platform| platform.port_write(&self.shared.memory, port, width, value));
    }

    fn task_priority(&mut self) -> u64 {
        u64::from(self.platform(|platform| platform.task_priority(self.index)) >> 4)
    }

    fn set_task_priority(&mut self, value: u64) {
        self.platform(|platform| {
            platform.set_task_priority(self.index, (value as u8 & 0xF) << 4);
        });
    }

    fn xmm(&mut self, index: usize) -> u128 {
        self.vcpu.xmm(index)
    }

    fn set_xmm(&mut self, index: usize, value: u128) {
        self.vcpu.set_xmm(index, value);
    }
}
