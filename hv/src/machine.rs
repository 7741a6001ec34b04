//! One guest on its machine: memory, platform, vCPUs. [`Machine::run`] runs one vCPU on the calling CPU ([`processor`] is the loop) until it
//! rests, the box wants its CPU back, or the guest has stopped; which vCPU runs where and when is the box's to decide.
//!
//! Shared by all CPUs. There are two kinds of locks: each vCPU's own, held while it runs, and the platform's, held for moments and
//! never while another is taken.

use crate::acpi::Tables;
use crate::cpu::Vcpu;
use crate::cpuid::Topology;
use crate::device::virtio::block::BlockConfig;
use crate::exit::ExitCounters;
use crate::host::Host;
use crate::load::bzimage::{self, LinuxImage};
use crate::load::multiboot::{self, MultibootImage};
use crate::load::{EntryState, LoadError};
use crate::mem::{GuestMemory, OutOfGuest};
use crate::msr::ClockScale;
use crate::platform::layout::MAX_VCPUS;
use crate::platform::{ApicMode, Platform, PlatformConfig, VcpuSet};
use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicBool, Ordering};
use processor::Processor;
use spin::mutex::TicketMutex;

mod handle;
mod hypercall;
mod paravirtual;
mod processor;
mod stop;
#[cfg(test)]
mod tests;

pub use stop::{Evidence, Stop, StopReason};

/// What may differ from guest to guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineConfig {
    /// Address of its network interface; none for a guest without one.
    pub mac: Option<[u8; 6]>,
    /// Its disk; none for a guest without one.
    pub block: Option<BlockConfig>,
    /// It may end itself with a status at port 0xf4.
    pub debug_exit: bool,
    /// Microseconds from a wake-up to the first instruction of a halted vCPU, as the guest is told. Linux halts only when it expects to rest for longer.
    pub wake_micros: u16,
    /// Where notifications of frames come closer together than so many microseconds, those that follow wait for that time at most, and are taken together.
    pub collect_micros: u16,
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

/// Why a vCPU left its CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// It rests: [`Host::kick`] tells when to run it again, or this time comes ([`Host::now_ns`]).
    Resting(Option<u64>),
    /// The box wants the CPU ([`Host::must_leave`]); the vCPU could go on.
    Preempted,
    /// The guest has stopped, by this vCPU or another: see [`Machine::stop`].
    Stopped,
}

/// What all vCPUs of a guest have in common.
struct Shared<'h> {
    host: &'h dyn Host,
    memory: GuestMemory,
    platform: TicketMutex<Platform<'h>>,
    clock: ClockScale,
    /// `stop` is filled in.
    has_stopped: AtomicBool,
    stop: TicketMutex<Option<Stop>>,
    vcpus: usize,
}

impl<'h> Shared<'h> {
    /// Does something with the platform for `vcpu`, then tells the other vCPUs that it concerns.
    fn with_platform<R>(&self, vcpu: usize, act: impl FnOnce(&mut Platform<'h>) -> R) -> R {
        let (result, touched) = {
            let mut platform = self.platform.lock();
            let result = act(&mut platform);
            (result, platform.take_touched())
        };
        self.kick(touched.without(VcpuSet::only(vcpu)));
        result
    }

    fn kick(&self, vcpus: VcpuSet) {
        vcpus.iter().for_each(|vcpu| self.host.kick(vcpu));
    }

    fn has_stopped(&self) -> bool {
        self.has_stopped.load(Ordering::Acquire)
    }

    /// Ends the guest, unless it has ended already; the other vCPUs are told.
    fn end(&self, vcpu: usize, stop: Stop) {
        let mut place = self.stop.lock();
        if place.is_none() {
            *place = Some(stop);
        }
        drop(place);
        self.has_stopped.store(true, Ordering::Release);
        (0..self.vcpus)
            .filter(|other| *other != vcpu)
            .for_each(|other| self.host.kick(other));
    }
}

/// A guest and its machine.
pub struct Machine<'h> {
    shared: Arc<Shared<'h>>,
    processors: Vec<TicketMutex<Processor<'h>>>,
    counters: Vec<Arc<ExitCounters>>,
}

impl<'h> Machine<'h> {
    /// A machine around vCPUs (1 to [`MAX_VCPUS`]; more are not used) that see `memory` as their physical memory. Nothing runs yet.
    pub fn new(
        config: &MachineConfig,
        memory: GuestMemory,
        mut vcpus: Vec<Box<dyn Vcpu + Send + 'h>>,
        host: &'h dyn Host,
    ) -> Self {
        // The decoder makes its tables at first use: now, since nothing is allocated while the guest runs.
        crate::decode::warm_up();
        vcpus.truncate(MAX_VCPUS);
        let count = vcpus.len();
        let platform = Platform::new(&platform_config(config, count, ApicMode::X2Apic), host);
        let shared = Arc::new(Shared {
            host,
            memory,
            platform: TicketMutex::new(platform),
            clock: ClockScale::of(host.tsc_hz()),
            has_stopped: AtomicBool::new(false),
            stop: TicketMutex::new(None),
            vcpus: count,
        });
        let counters: Vec<Arc<ExitCounters>> = vcpus.iter().map(|_| Arc::default()).collect();
        let processors = vcpus
            .into_iter()
            .zip(&counters)
            .enumerate()
            .map(|(index, (vcpu, counters))| {
                let topology = Topology {
                    vcpu: index as u32,
                    vcpus: count as u32,
                };
                let shared = Arc::clone(&shared);
                TicketMutex::new(Processor::new(shared, vcpu, topology, Arc::clone(counters)))
            })
            .collect();
        Self {
            shared,
            processors,
            counters,
        }
    }

    /// Puts a kernel and what belongs to it into guest memory and the first vCPU at its first instruction.
    ///
    /// # Errors
    /// [`StartError::Load`] if the file is not a kernel that can be started, [`StartError::Memory`].
    pub fn load(&self, config: &MachineConfig, image: &GuestImage<'_>) -> Result<(), StartError> {
        let memory = &self.shared.memory;
        let linux = bzimage::is_bzimage(image.kernel);
        // Linux finds its APIC switched to x2APIC, as by firmware; a test kernel finds what a reset leaves.
        let mode = if linux {
            ApicMode::X2Apic
        } else {
            ApicMode::XApic
        };
        let platform = platform_config(config, self.processors.len(), mode);
        *self.shared.platform.lock() = Platform::new(&platform, self.shared.host);
        let tables = Tables::new(&platform.acpi());
        let entry = if linux {
            let image = LinuxImage {
                kernel: image.kernel,
                ramdisk: image.ramdisk,
                command_line: image.command_line,
                acpi_root: tables.root(),
            };
            bzimage::load(memory, &image)
        } else {
            let modules = multiboot::unpack(image.ramdisk).map_err(StartError::Load)?;
            let image = MultibootImage {
                kernel: image.kernel,
                command_line: image.command_line,
                modules: &modules,
            };
            multiboot::load(memory, &image)
        }
        .map_err(StartError::Load)?;
        tables.install(memory).map_err(StartError::Memory)?;
        self.set_entry(&entry);
        Ok(())
    }

    /// Puts the first vCPU at a kernel's first instruction; what `entry` does not say is as after reset. The others wait for their
    /// startup.
    pub fn set_entry(&self, entry: &EntryState) {
        for (index, processor) in self.processors.iter().enumerate() {
            let mut processor = processor.lock();
            if index == 0 {
                processor.set_entry(entry);
            } else {
                processor.await_startup();
            }
        }
    }

    /// How many vCPUs it has.
    pub fn vcpus(&self) -> usize {
        self.processors.len()
    }

    /// Counts of each vCPU's exits, to be read from any CPU while the guest runs.
    pub fn counters(&self) -> Vec<Arc<ExitCounters>> {
        self.counters.clone()
    }

    /// Looks at the platform, for its counters.
    pub fn with_platform<R>(&self, act: impl FnOnce(&mut Platform<'h>) -> R) -> R {
        self.shared.with_platform(usize::MAX, act)
    }

    /// The guest's memory.
    pub fn memory(&self) -> &GuestMemory {
        &self.shared.memory
    }

    /// Runs a vCPU on the calling CPU, which is number `cpu` of the box, until it leaves it. Interrupts are off; [`Host`] says when they
    /// may be taken. The vCPU stays loaded on this CPU: [`Machine::release`] comes before the CPU runs another, and before
    /// another CPU runs this one.
    pub fn run(&self, vcpu: usize, cpu: usize) -> Left {
        let Some(processor) = self.processors.get(vcpu) else {
            return Left::Stopped;
        };
        loop {
            let mut processor = processor.lock();
            if processor.may_run_on(cpu) {
                return processor.run(cpu);
            }
            // The CPU where it ran before is about to release it.
            drop(processor);
            if self.shared.host.must_leave() {
                return Left::Preempted;
            }
            core::hint::spin_loop();
        }
    }

    /// Unloads a vCPU from the calling CPU, which is number `cpu` of the box, if it is loaded there.
    pub fn release(&self, vcpu: usize, cpu: usize) {
        if let Some(processor) = self.processors.get(vcpu) {
            processor.lock().release(cpu);
        }
    }

    /// Why the guest has stopped, once every vCPU was released.
    pub fn stop(&self) -> Option<Stop> {
        self.shared.platform.lock().flush_output();
        self.shared.stop.lock().take()
    }

    /// True if a CPU is at work on the platform at this moment.
    pub fn is_locked(&self) -> bool {
        self.shared.platform.is_locked()
    }
}

fn platform_config(config: &MachineConfig, vcpus: usize, apic_mode: ApicMode) -> PlatformConfig {
    PlatformConfig {
        vcpus,
        apic_mode,
        mac: config.mac,
        block: config.block,
        debug_exit: config.debug_exit,
        wake_micros: config.wake_micros,
        collect_micros: config.collect_micros,
    }
}
