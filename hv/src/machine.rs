//! One guest on its machine: memory, platform, vCPU, and the loop that runs them: let devices catch up, deliver what is pending, enter, handle
//! the exit. Whatever is not understood ends the run with evidence; the box decides what comes then.
//!
//! One vCPU, on the CPU that calls [`Machine::run`].

use crate::acpi::Tables;
use crate::cpu::{Delivery, Event, Gpr, RFLAGS_ONE, Segment, System, Vcpu, read_tsc};
use crate::cpuid::Topology;
use crate::exit::{Exit, ExitCounters, ExitRecord, ExitRing};
use crate::host::Host;
use crate::load::bzimage::{self, LinuxImage};
use crate::load::multiboot::{self, MultibootImage};
use crate::load::{self, EntryState, LoadError};
use crate::mem::{GuestMemory, OutOfGuest};
use crate::msr::{ClockScale, Msrs, PAT_RESET};
use crate::platform::{ApicMode, Platform, PlatformConfig, PowerEvent, VcpuEvent};
use alloc::boxed::Box;
use alloc::sync::Arc;
use core::fmt;

mod handle;
mod stop;
#[cfg(test)]
mod tests;

pub use stop::{Evidence, Stop, StopReason};

/// How long the guest runs before interrupts are looked at again, when the CPU cannot tell the end of an interrupt shadow.
const SHADOW_NS: u64 = 20_000;

/// The bit of KVM's PV EOI byte that the guest clears instead of writing the EOI register.
const END_NEEDS_NO_EXIT: u8 = 1;

/// What may differ from guest to guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineConfig {
    /// Address of its network interface; none for a guest without one.
    pub mac: Option<[u8; 6]>,
    /// It may end itself with a status at port 0xf4.
    pub debug_exit: bool,
}

/// What to start, whatever its kind.
#[derive(Clone, Copy, Debug)]
pub struct GuestImage<'a> {
    /// Linux `bzImage` or Multiboot kernel, the whole file.
    pub kernel: &'a [u8],
    /// Initial ramdisk, or Multiboot modules as [`multiboot::unpack`] takes them; empty for none.
    pub ramdisk: &'a [u8],
    /// The kernel's command line.
    pub command_line: &'a str,
}

/// Why a guest cannot be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartError {
    /// Its kernel cannot be loaded.
    Load(LoadError),
    /// Its memory is too small for the machine's own tables.
    Memory(OutOfGuest),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Load(error) => write!(f, "{error}"),
            Self::Memory(error) => write!(f, "the guest's memory is too small: {error}"),
        }
    }
}

/// A guest and its machine.
pub struct Machine<'h> {
    host: &'h dyn Host,
    memory: GuestMemory,
    platform: Platform<'h>,
    vcpu: Box<dyn Vcpu + 'h>,
    msrs: Msrs,
    topology: Topology,
    clock: ClockScale,
    clock_version: u32,
    /// HLT was executed and nothing has woken the vCPU yet.
    halted: bool,
    /// What the host's timer was last asked for, as far as it still stands.
    armed: Option<u64>,
    /// The guest was told that it may end the interrupt in service by clearing a bit in the byte there.
    end_offered: Option<u64>,
    counters: Arc<ExitCounters>,
    ring: ExitRing,
    unclaimed_mmio: u64,
}

impl<'h> Machine<'h> {
    /// A machine around a vCPU that sees `memory` as its physical memory. Nothing runs yet.
    pub fn new(
        config: &MachineConfig,
        memory: GuestMemory,
        vcpu: Box<dyn Vcpu + 'h>,
        host: &'h dyn Host,
    ) -> Self {
        // The decoder makes its tables at first use: now, since nothing is allocated while the guest runs.
        crate::decode::warm_up();
        Self {
            host,
            platform: Platform::new(&platform_config(config, ApicMode::X2Apic), host),
            memory,
            vcpu,
            msrs: Msrs::default(),
            topology: Topology { vcpu: 0, vcpus: 1 },
            clock: ClockScale::of(host.tsc_hz()),
            clock_version: 0,
            halted: false,
            armed: None,
            end_offered: None,
            counters: Arc::default(),
            ring: ExitRing::default(),
            unclaimed_mmio: 0,
        }
    }

    /// Puts a kernel and what belongs to it into guest memory and the vCPU at its first instruction.
    ///
    /// # Errors
    /// [`StartError::Load`] if the file is not a kernel that can be started, [`StartError::Memory`].
    pub fn load(
        &mut self,
        config: &MachineConfig,
        image: &GuestImage<'_>,
    ) -> Result<(), StartError> {
        let linux = bzimage::is_bzimage(image.kernel);
        // Linux finds its APIC switched to x2APIC, as by firmware; a test kernel finds what a reset leaves.
        let mode = if linux {
            ApicMode::X2Apic
        } else {
            ApicMode::XApic
        };
        let platform = platform_config(config, mode);
        self.platform = Platform::new(&platform, self.host);
        let tables = Tables::new(&platform.acpi());
        let entry = if linux {
            let image = LinuxImage {
                kernel: image.kernel,
                ramdisk: image.ramdisk,
                command_line: image.command_line,
                acpi_root: tables.root(),
            };
            bzimage::load(&self.memory, &image)
        } else {
            let modules = multiboot::unpack(image.ramdisk).map_err(StartError::Load)?;
            let image = MultibootImage {
                kernel: image.kernel,
                command_line: image.command_line,
                modules: &modules,
            };
            multiboot::load(&self.memory, &image)
        }
        .map_err(StartError::Load)?;
        tables.install(&self.memory).map_err(StartError::Memory)?;
        self.set_entry(&entry);
        Ok(())
    }

    /// Puts the vCPU at a kernel's first instruction; what `entry` does not say is as after reset.
    pub fn set_entry(&mut self, entry: &EntryState) {
        let table = |from: load::TableRegister| Segment {
            limit: from.limit.into(),
            base: from.base,
            ..Segment::default()
        };
        let data = entry.data;
        self.vcpu.set_system(&System {
            cs: entry.cs,
            ss: data,
            ds: data,
            es: data,
            fs: data,
            gs: data,
            ldtr: entry.ldtr,
            tr: entry.tr,
            gdtr: table(entry.gdtr),
            idtr: table(entry.idtr),
            cr0: entry.cr0,
            cr2: 0,
            cr3: entry.cr3,
            cr4: entry.cr4,
            efer: entry.efer,
            dr6: DR6_RESET,
            dr7: DR7_RESET,
            pat: PAT_RESET,
        });
        let registers = self.vcpu.registers_mut();
        registers.gpr = [0; 16];
        registers.set(Gpr::Rax, entry.rax);
        registers.set(Gpr::Rbx, entry.rbx);
        registers.set(Gpr::Rsi, entry.rsi);
        registers.set(Gpr::Rsp, entry.rsp);
        registers.rflags = entry.rflags | RFLAGS_ONE;
        registers.rip = entry.rip;
    }

    /// Counts of exits, to be read from any CPU while the guest runs.
    pub fn counters(&self) -> Arc<ExitCounters> {
        Arc::clone(&self.counters)
    }

    /// The platform, for its counters and its power button.
    pub fn platform(&mut self) -> &mut Platform<'h> {
        &mut self.platform
    }

    /// The guest's memory.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// Accesses to addresses where neither RAM nor a device is.
    pub fn unclaimed_mmio(&self) -> u64 {
        self.unclaimed_mmio
    }

    /// Runs the guest on the calling CPU until it stops. Interrupts are off; [`Host`] says when they may be taken.
    pub fn run(&mut self) -> Stop {
        let reason = match self.vcpu.bind() {
            Ok(()) => loop {
                if let Err(reason) = self.turn() {
                    break reason;
                }
            },
            Err(reason) => StopReason::Unavailable(reason),
        };
        self.vcpu.unbind();
        self.host.arm_timer(None);
        self.armed = None;
        self.platform.flush_output();
        Stop {
            reason,
            evidence: self.evidence(),
        }
    }

    /// One round: devices, events, one entry, one exit.
    fn turn(&mut self) -> Result<(), StopReason> {
        if self.host.stop_requested() {
            return Err(StopReason::Requested);
        }
        self.platform.service(&self.memory);
        match self.platform.power_event() {
            Some(PowerEvent::Off) => return Err(StopReason::PowerOff),
            Some(PowerEvent::Reset) => return Err(StopReason::Reset),
            Some(PowerEvent::DebugExit(status)) => return Err(StopReason::DebugExit(status)),
            None => {}
        }
        let vcpu = self.topology.vcpu as usize;
        if self.halted {
            if !self.platform.wakes(vcpu) {
                self.arm(self.platform.next_deadline_ns());
                self.host.idle();
                self.armed = None;
                return Ok(());
            }
            self.halted = false;
        }
        let soon = self.deliver(vcpu)?;
        let deadline = self.platform.next_deadline_ns();
        self.arm(match (soon, deadline) {
            (Some(soon), Some(deadline)) => Some(soon.min(deadline)),
            (soon, deadline) => soon.or(deadline),
        });
        self.offer_end(vcpu);
        let exit = self.vcpu.enter();
        self.accept_end(vcpu);
        self.counters.count(exit.kind());
        self.record(exit);
        self.handle(exit)
    }

    /// Lets the guest end the interrupt in service without an exit, if nobody needs to know at once (KVM's PV EOI).
    fn offer_end(&mut self, vcpu: usize) {
        if let Some(address) = self.msrs.end_of_interrupt()
            && self.platform.end_needs_no_exit(vcpu)
            && self.memory.write_u8(address, END_NEEDS_NO_EXIT).is_ok()
        {
            self.end_offered = Some(address);
        }
    }

    /// Takes the offer back; if the guest has used it, the interrupt has ended.
    fn accept_end(&mut self, vcpu: usize) {
        if let Some(address) = self.end_offered.take() {
            let standing = self.memory.read_u8(address).unwrap_or(0) & END_NEEDS_NO_EXIT != 0;
            if !standing {
                self.platform.end_of_interrupt(vcpu);
            } else {
                // It could be written when the offer was made.
                let _ = self.memory.write_u8(address, 0);
            }
        }
    }

    /// Hands the vCPU what is pending for it, or has it say when it can take that. Gives the time at which to look again, where the CPU cannot say.
    fn deliver(&mut self, vcpu: usize) -> Result<Option<u64>, StopReason> {
        let host = self.host;
        let soon = || Some(host.now_ns().saturating_add(SHADOW_NS));
        let mut again = None;
        if matches!(self.vcpu.delivery(), Delivery::Shadow | Delivery::Busy) {
            // No window tells when an NMI can be taken.
            if self.platform.has_vcpu_event(vcpu) {
                again = soon();
            }
        } else {
            match self.platform.take_vcpu_event(vcpu) {
                Some(VcpuEvent::Nmi) => self.vcpu.inject(Event::Nmi),
                // The only vCPU has reset itself: there is nobody to send it a startup.
                Some(VcpuEvent::Init) => return Err(StopReason::SelfInit),
                Some(VcpuEvent::Startup(_)) | None => {}
            }
        }
        let Some(vector) = self.platform.pending_interrupt(vcpu) else {
            self.vcpu.watch_window(false);
            return Ok(again);
        };
        match self.vcpu.delivery() {
            Delivery::Ready => {
                self.platform.accept_interrupt(vcpu, vector);
                self.vcpu.inject(Event::Interrupt(vector));
                self.vcpu
                    .watch_window(self.platform.pending_interrupt(vcpu).is_some());
                Ok(again)
            }
            Delivery::Masked | Delivery::Busy => {
                self.vcpu.watch_window(true);
                Ok(again)
            }
            Delivery::Shadow => {
                self.vcpu.watch_window(false);
                Ok(soon())
            }
        }
    }

    /// Asks for the host's timer, unless it stands already.
    fn arm(&mut self, deadline: Option<u64>) {
        if self.armed != deadline {
            self.host.arm_timer(deadline);
            self.armed = deadline;
        }
    }

    fn record(&mut self, exit: Exit) {
        let registers = self.vcpu.registers();
        let register = match exit {
            Exit::ReadMsr | Exit::WriteMsr => registers.get(Gpr::Rcx) & 0xFFFF_FFFF,
            _ => registers.get(Gpr::Rax),
        };
        self.ring.push(ExitRecord {
            exit,
            rip: registers.rip,
            register,
        });
    }

    fn guest_tsc(&self) -> u64 {
        read_tsc().wrapping_add(self.vcpu.tsc_offset())
    }

    fn evidence(&self) -> Evidence {
        let (registers, system) = (*self.vcpu.registers(), self.vcpu.system());
        Evidence {
            code: crate::decode::fetch(&self.memory, &registers, &system).unwrap_or_default(),
            registers,
            system,
            raw: self.vcpu.raw_exit(),
            ring: self.ring.clone(),
            counts: self.counters.snapshot(),
        }
    }
}

/// DR6 and DR7 after reset (APM vol. 2, 14.1.3).
const DR6_RESET: u64 = 0xFFFF_0FF0;
const DR7_RESET: u64 = 0x400;

fn platform_config(config: &MachineConfig, apic_mode: ApicMode) -> PlatformConfig {
    PlatformConfig {
        vcpus: 1,
        apic_mode,
        mac: config.mac,
        debug_exit: config.debug_exit,
    }
}
