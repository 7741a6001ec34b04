//! The guest's machine beside its CPUs and memory: every device, at its place in `layout`, behind ports, MMIO and MSRs.
//!
//! It is stepped by whoever runs the vCPUs: accesses come in, [`Platform::service`] lets time and input take effect,
//! [`Platform::next_deadline_ns`] says when that is due again. Nothing here enters a guest or blocks.

mod interrupts;
pub mod layout;
mod mmio;
mod ports;
#[cfg(test)]
pub(crate) mod test_host;
#[cfg(test)]
mod tests;
mod vcpu_set;

use alloc::vec::Vec;

use crate::acpi::AcpiConfig;
use crate::device::lapic::{DeliveryMode, Destination, Effect, LocalApic, Message};
use crate::device::pci::PciConfig;
use crate::device::pic::Pic;
use crate::device::pm::PowerManagement;
use crate::device::reset::ResetControl;
use crate::device::rtc::Rtc;
use crate::device::serial::Serial;
use crate::device::virtio::block::{Block, BlockConfig, BlockCounters};
use crate::device::virtio::console::Console;
use crate::device::virtio::entropy::Entropy;
use crate::device::virtio::mmio::{MmioDevice, TransportCounters};
use crate::device::virtio::net::{Net, NetCounters};
use crate::device::watchdog::Watchdog;
use crate::host::Host;
use crate::mem::GuestMemory;
use interrupts::Interrupts;
use layout::{MAX_VCPUS, VirtioSlot, gsi};

pub use crate::device::lapic::{ApicMode, GeneralProtection, VcpuEvent};
pub use crate::device::reset::PowerEvent;
pub use vcpu_set::VcpuSet;

/// What of the machine may differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlatformConfig {
    /// Number of vCPUs, 1 to [`MAX_VCPUS`] (clamped).
    pub vcpus: usize,
    /// Microseconds from a wake-up to the first instruction of a halted vCPU, as the guest is told.
    pub wake_micros: u16,
    /// See [`crate::machine::MachineConfig::collect_micros`].
    pub collect_micros: u16,
    /// How local APICs are accessed at the start.
    pub apic_mode: ApicMode,
    /// Address of the network interface; none for a guest without one.
    pub mac: Option<[u8; 6]>,
    /// The disk; none for a guest without one.
    pub block: Option<BlockConfig>,
    /// There is a debug-exit port at 0xf4.
    pub debug_exit: bool,
}

impl PlatformConfig {
    /// What the ACPI tables must say about this machine.
    pub fn acpi(&self) -> AcpiConfig {
        AcpiConfig {
            vcpus: self.vcpus.clamp(1, MAX_VCPUS),
            wake_micros: self.wake_micros,
            virtio: VirtioSlot::ALL
                .into_iter()
                .filter(|slot| match slot {
                    VirtioSlot::Net => self.mac.is_some(),
                    VirtioSlot::Block => self.block.is_some(),
                    VirtioSlot::Console | VirtioSlot::Entropy => true,
                })
                .collect::<Vec<_>>(),
        }
    }
}

/// What has happened to the devices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PlatformCounters {
    /// Bytes written to the serial port.
    pub serial_bytes: u64,
    /// Bytes written to the paravirtual console.
    pub console_bytes: u64,
    /// Frames of the network interface.
    pub net: NetCounters,
    /// The network interface's transport.
    pub net_transport: TransportCounters,
    /// The disk.
    pub block: BlockCounters,
    /// The disk's transport.
    pub block_transport: TransportCounters,
    /// The console's transport.
    pub console_transport: TransportCounters,
    /// The entropy source's transport.
    pub entropy_transport: TransportCounters,
    /// Accesses to ports that nothing claims.
    pub unclaimed_ports: u64,
    /// The last of those ports.
    pub last_unclaimed_port: u16,
    /// Accesses to guest-physical memory where neither RAM nor a device is; a string instruction makes one for each element.
    pub unclaimed_memory: u64,
    /// Those of them that were writes.
    pub lost_writes: u64,
    /// The last such address.
    pub last_unclaimed_address: u64,
    /// Accesses to MSRs that raised a general-protection exception.
    pub refused_msrs: u64,
    /// The last such MSR.
    pub last_refused_msr: u32,
    /// Bases for a local APIC that it may not have.
    pub refused_apic_bases: u64,
    /// The last power-on self test code (port 0x80).
    pub post_code: u8,
}

/// How a vCPU rests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// HLT with interrupts on: an interrupt ends it.
    Halted,
    /// HLT with interrupts off: only an NMI, an INIT, or a kick through KVM's hypercall ends it.
    HaltedMasked,
    /// It waits for a startup message.
    WaitsForStartup,
}

/// Where typed input goes: to the console that the guest wrote to last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum InputTo {
    Serial,
    Console,
}

/// The machine.
pub struct Platform<'h> {
    host: &'h dyn Host,
    debug_exit: bool,
    interrupts: Interrupts,
    pic: Pic,
    pci: PciConfig,
    serial: Serial,
    rtc: Rtc,
    pm: PowerManagement,
    reset: ResetControl,
    watchdog: Watchdog,
    /// The virtio devices that there are.
    virtio: Vec<VirtioSlot>,
    net: Option<MmioDevice<Net>>,
    console: MmioDevice<Console>,
    entropy: MmioDevice<Entropy>,
    block: Option<MmioDevice<Block>>,
    /// The vCPU that had the network interface begin to collect frames: it sees to those that the interface does not want to be notified of.
    net_vcpu: usize,
    input_to: InputTo,
    power: Option<PowerEvent>,
    /// vCPUs that only another vCPU can wake.
    out_of_reach: VcpuSet,
    /// Those of them that wait for a startup message.
    starting: VcpuSet,
    /// For when [`DEVICE_VCPU`] was last told that the devices want to be looked at; `u64::MAX`: not foreseen.
    foreseen_ns: u64,
    /// When the devices want to be looked at, since they were looked at or touched last; `u64::MAX`: not by the clock.
    due_ns: u64,
    /// The guest has accessed a device since the devices were looked at.
    devices_touched: bool,
    /// vCPUs that another one kicked by hypercall (KVM's PV unhalt).
    kicked: VcpuSet,
    counters: PlatformCounters,
}

impl<'h> Platform<'h> {
    /// The machine as after power-on.
    pub fn new(config: &PlatformConfig, host: &'h dyn Host) -> Self {
        Self {
            host,
            debug_exit: config.debug_exit,
            interrupts: Interrupts::new(config.vcpus.clamp(1, MAX_VCPUS), config.apic_mode),
            pic: Pic::default(),
            pci: PciConfig::default(),
            serial: Serial::default(),
            rtc: Rtc::new(host.boot_unix_seconds()),
            pm: PowerManagement::default(),
            reset: ResetControl::default(),
            watchdog: Watchdog::default(),
            virtio: config.acpi().virtio,
            net: config
                .mac
                .map(|mac| MmioDevice::new(Net::new(mac, config.collect_micros))),
            console: MmioDevice::new(Console::default()),
            entropy: MmioDevice::new(Entropy::default()),
            block: config.block.map(|block| MmioDevice::new(Block::new(block))),
            net_vcpu: DEVICE_VCPU,
            input_to: InputTo::Serial,
            power: None,
            // All but the first wait for their startup, whether they have run yet or not.
            out_of_reach: VcpuSet::all_but_first(config.vcpus),
            starting: VcpuSet::all_but_first(config.vcpus),
            foreseen_ns: u64::MAX,
            due_ns: u64::MAX,
            devices_touched: true,
            kicked: VcpuSet::default(),
            counters: PlatformCounters::default(),
        }
    }

    /// The box's clock, in nanoseconds.
    fn now(&self) -> u64 {
        self.host.now_ns()
    }

    /// Reads an x2APIC MSR (0x800–0x8ff) or IA32_APIC_BASE (0x1b).
    ///
    /// # Errors
    /// [`GeneralProtection`] as the CPU would raise it.
    pub fn apic_msr_read(&mut self, vcpu: usize, msr: u32) -> Result<u64, GeneralProtection> {
        let now = self.now();
        let apic = self.interrupts.local_mut(vcpu).ok_or(GeneralProtection)?;
        match msr {
            IA32_APIC_BASE => Ok(apic.base()),
            _ => apic.read_msr(msr, now),
        }
    }

    /// Writes an x2APIC MSR (0x800–0x8ff) or IA32_APIC_BASE (0x1b).
    ///
    /// # Errors
    /// [`GeneralProtection`] as the CPU would raise it.
    pub fn apic_msr_write(
        &mut self,
        vcpu: usize,
        msr: u32,
        value: u64,
    ) -> Result<(), GeneralProtection> {
        let now = self.now();
        let apic = self.interrupts.local_mut(vcpu).ok_or(GeneralProtection)?;
        let effect = match msr {
            IA32_APIC_BASE => {
                if apic.set_base(value).is_err() {
                    self.note_refused_apic_base(value);
                    return Err(GeneralProtection);
                }
                Effect::None
            }
            _ => apic.write_msr(msr, value, now)?,
        };
        self.interrupts.apply(vcpu, effect);
        Ok(())
    }

    /// Reads IA32_TSC_DEADLINE (0x6e0).
    pub fn tsc_deadline(&self, vcpu: usize) -> u64 {
        self.interrupts
            .local(vcpu)
            .map_or(0, LocalApic::tsc_deadline)
    }

    /// Writes IA32_TSC_DEADLINE (0x6e0). `guest_tsc` is the guest's TSC now; the guest's TSC runs at [`Host::tsc_hz`].
    pub fn set_tsc_deadline(&mut self, vcpu: usize, value: u64, guest_tsc: u64) {
        let (now, hz) = (self.now(), self.host.tsc_hz());
        if let Some(apic) = self.interrupts.local_mut(vcpu) {
            apic.set_tsc_deadline(value, guest_tsc, now, hz);
            apic.service(now);
        }
    }

    /// The task priority register; its bits 4–7 are CR8.
    pub fn task_priority(&self, vcpu: usize) -> u8 {
        self.interrupts
            .local(vcpu)
            .map_or(0, LocalApic::task_priority)
    }

    /// Sets the task priority register, as a write to CR8 (times 16) does.
    pub fn set_task_priority(&mut self, vcpu: usize, value: u8) {
        if let Some(apic) = self.interrupts.local_mut(vcpu) {
            apic.set_task_priority(value);
        }
    }

    /// The interrupt vector to deliver to `vcpu` now, if any: the highest one above the processor priority.
    pub fn pending_interrupt(&self, vcpu: usize) -> Option<u8> {
        self.interrupts.local(vcpu)?.pending()
    }

    /// The vCPU has taken `vector`, which [`Platform::pending_interrupt`] gave: it is in service from now on.
    pub fn accept_interrupt(&mut self, vcpu: usize, vector: u8) {
        if let Some(apic) = self.interrupts.local_mut(vcpu) {
            apic.acknowledge(vector);
        }
    }

    /// Ends the interrupt in service, as a write of the EOI register does: for KVM's PV EOI.
    pub fn end_of_interrupt(&mut self, vcpu: usize) {
        if let Some(apic) = self.interrupts.local_mut(vcpu) {
            let effect = apic.end_of_interrupt();
            self.interrupts.apply(vcpu, effect);
        }
    }

    /// True if the guest may end the interrupt in service by itself (KVM's PV EOI); tell [`Platform::end_of_interrupt`] at the next exit
    /// after it did.
    pub fn end_needs_no_exit(&self, vcpu: usize) -> bool {
        self.interrupts
            .local(vcpu)
            .is_some_and(LocalApic::end_needs_no_exit)
    }

    /// Takes the next INIT, startup or NMI for `vcpu`; no NMI while it `holds_nmi` back, as it does until its startup.
    pub fn take_vcpu_event(&mut self, vcpu: usize, holds_nmi: bool) -> Option<VcpuEvent> {
        self.interrupts.local_mut(vcpu)?.take_event(holds_nmi)
    }

    /// True if [`Platform::take_vcpu_event`] would give one.
    pub fn has_vcpu_event(&self, vcpu: usize, holds_nmi: bool) -> bool {
        self.interrupts
            .local(vcpu)
            .is_some_and(|apic| apic.has_event(holds_nmi))
    }

    /// Whether `vcpu`, which rests, has a reason to go on. If not, it is noted as resting: see [`Platform::is_dead`].
    pub fn wakes(&mut self, vcpu: usize, rest: Rest, holds_nmi: bool) -> bool {
        let wakes = self.has_vcpu_event(vcpu, holds_nmi || rest == Rest::WaitsForStartup)
            || match rest {
                Rest::Halted => self.pending_interrupt(vcpu).is_some() || self.take_kick(vcpu),
                Rest::HaltedMasked => self.take_kick(vcpu),
                Rest::WaitsForStartup => false,
            };
        let this = VcpuSet::only(vcpu);
        let note = |set: VcpuSet, holds: bool| {
            if holds {
                set.with(this)
            } else {
                set.without(this)
            }
        };
        self.out_of_reach = note(self.out_of_reach, !wakes && rest != Rest::Halted);
        self.starting = note(self.starting, !wakes && rest == Rest::WaitsForStartup);
        wakes
    }

    fn take_kick(&mut self, vcpu: usize) -> bool {
        let kicked = self.kicked.has(vcpu);
        self.kicked = self.kicked.without(VcpuSet::only(vcpu));
        kicked
    }

    /// True if no vCPU can ever run again: each rests, only another could wake it, and nothing is on its way to any.
    pub fn is_dead(&self) -> bool {
        self.interrupts.locals().enumerate().all(|(vcpu, apic)| {
            self.out_of_reach.has(vcpu)
                && !self.kicked.has(vcpu)
                && !apic.has_event(self.starting.has(vcpu))
        })
    }

    /// True if every vCPU waits for a startup message.
    pub fn all_wait_for_startup(&self) -> bool {
        let mut all = self.interrupts.locals().enumerate();
        all.all(|(vcpu, _)| self.starting.has(vcpu))
    }

    /// The vCPUs that were given something to look at since the last call, in whatever way.
    pub fn take_touched(&mut self) -> VcpuSet {
        let touched = self.interrupts.take_touched();
        if self.devices_touched {
            self.due_ns = self.device_deadline_ns().unwrap_or(u64::MAX);
        }
        if self.due_ns >= self.foreseen_ns {
            return touched;
        }
        // Whoever looks after the devices does not know of it yet.
        self.foreseen_ns = self.due_ns;
        touched.with(VcpuSet::only(DEVICE_VCPU))
    }

    /// Wakes the vCPU with local APIC identifier `apic_id` from a halt, whether its interrupts are on or off (KVM_HC_KICK_CPU,
    /// Documentation/virt/kvm/x86/hypercalls.rst). False if there is no such vCPU.
    pub fn kick_by_hypercall(&mut self, apic_id: u32) -> bool {
        let Some(vcpu) = self
            .interrupts
            .locals()
            .position(|apic| apic.id() == apic_id)
        else {
            return false;
        };
        self.kicked = self.kicked.with(VcpuSet::only(vcpu));
        self.interrupts.touch(vcpu);
        true
    }

    /// Sends an interrupt to each vCPU whose local APIC identifier is `first` plus the number of a bit that is set in `bitmap`
    /// (KVM_HC_SEND_IPI). `command` is the lower half of an interrupt command register. Gives how many took it; none if the
    /// delivery mode is not one for this.
    pub fn send_by_hypercall(&mut self, bitmap: u128, first: u32, command: u32) -> Option<u64> {
        let mode = match command >> 8 & 7 {
            0 => DeliveryMode::Fixed,
            4 => DeliveryMode::Nmi,
            _ => return None,
        };
        let targets = (0..128).filter(|bit| bitmap >> bit & 1 != 0);
        let taken = targets.filter(|bit| {
            let Some(id) = first.checked_add(*bit) else {
                return false;
            };
            let message = Message {
                destination: Destination::Physical(id),
                mode,
                vector: command as u8,
                level: false,
            };
            self.interrupts.send(None, message)
        });
        Some(taken.count() as u64)
    }

    /// Lets time and the host's input take effect: `vcpu`'s timer if it is due, and where devices may have something to do, frames and typed bytes for
    /// the guest, and output that has waited. They may when the guest has accessed one, when it is their time, and when `vcpu` was `called`: the
    /// host may have something for it since the last time ([`Host::kick`]). Both of these are [`DEVICE_VCPU`]'s to see to. Frames that the guest does not notify of
    /// are seen to by the vCPU whose notification was the last that was wanted.
    pub fn service(&mut self, mem: &GuestMemory, vcpu: usize, called: bool) {
        let now = self.now();
        if let Some(apic) = self.interrupts.local_mut(vcpu) {
            apic.service(now);
        }
        let by_host = vcpu == DEVICE_VCPU && (called || self.due_ns <= now);
        let by_net = self.net_deadline_ns(vcpu).is_some_and(|due| due <= now);
        if by_host || by_net || self.devices_touched || self.interrupts.has_refused() {
            self.service_devices(mem, now);
            self.devices_touched = false;
            self.due_ns = self.device_deadline_ns().unwrap_or(u64::MAX);
        }
    }

    fn service_devices(&mut self, mem: &GuestMemory, now: u64) {
        self.rtc.service(now);
        if let Some(seconds) = self.watchdog.has_run_out(now) {
            self.note_power(Some(PowerEvent::Watchdog(seconds)));
        }
        self.serial.service(self.host, now);
        self.console
            .backend_mut()
            .set_takes_input(self.input_to == InputTo::Console);
        if let Some(net) = &mut self.net {
            net.service(mem, self.host);
        }
        if let Some(block) = &mut self.block {
            block.service(mem, self.host);
        }
        self.console.service(mem, self.host);
        self.entropy.service(mem, self.host);
        if self.input_to == InputTo::Serial || !self.console.is_running() {
            while self.serial.can_receive()
                && let Some(byte) = self.host.console_read()
            {
                self.serial.receive(byte);
            }
        }
        self.update_lines();
    }

    /// When [`Platform::service`], which comes before this, is due again for `vcpu`, as [`Host::now_ns`] counts; 0 means at once. Devices are
    /// [`DEVICE_VCPU`]'s to look after, but for frames that the guest does not notify of. Input from the host is not foreseen: it needs a call of its own.
    pub fn next_deadline_ns(&mut self, vcpu: usize) -> Option<u64> {
        let timer = self.interrupts.local(vcpu).and_then(LocalApic::deadline_ns);
        let own = timer.into_iter().chain(self.net_deadline_ns(vcpu)).min();
        if vcpu != DEVICE_VCPU {
            return own;
        }
        self.foreseen_ns = self.due_ns;
        let devices = Some(self.due_ns).filter(|due| *due != u64::MAX);
        own.into_iter().chain(devices).min()
    }

    /// When frames have to be looked for that `vcpu` sees to.
    fn net_deadline_ns(&self, vcpu: usize) -> Option<u64> {
        let net = self.net.as_ref().filter(|_| vcpu == self.net_vcpu)?;
        net.deadline_ns()
    }

    /// `vcpu` leaves its CPU: what the guest does not notify of must not wait until it runs again. True if there may have been something, by which `vcpu` may have
    /// been given an interrupt.
    pub fn leaves(&mut self, mem: &GuestMemory, vcpu: usize) -> bool {
        let Some(net) = &mut self.net else {
            return false;
        };
        if vcpu != self.net_vcpu || net.deadline_ns().is_none() {
            return false;
        }
        net.settle(mem, self.host);
        self.update_lines();
        // More than one call may take is left to whoever looks after the devices.
        self.due_ns = self.device_deadline_ns().unwrap_or(u64::MAX);
        true
    }

    fn device_deadline_ns(&self) -> Option<u64> {
        let backlog = self.net.as_ref().is_some_and(MmioDevice::has_backlog)
            || self.block.as_ref().is_some_and(MmioDevice::has_backlog)
            || self.console.has_backlog()
            || self.entropy.has_backlog();
        if backlog {
            return Some(0);
        }
        [
            self.rtc.deadline_ns(),
            self.serial.flush_at_ns(),
            self.watchdog.deadline_ns(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// What the guest wants of the machine's power, from its first such wish on.
    pub fn power_event(&self) -> Option<PowerEvent> {
        self.power
    }

    /// Presses the power button: a guest with ACPI shuts down.
    pub fn press_power_button(&mut self) {
        self.pm.press_power_button();
        self.update_lines();
    }

    /// Gives the host all output that still waits for its end of line: for when the guest has stopped.
    pub fn flush_output(&mut self) {
        self.serial.flush(self.host);
    }

    /// An access to `msr` has raised a general-protection exception.
    pub fn note_refused_msr(&mut self, msr: u32) {
        self.counters.refused_msrs = self.counters.refused_msrs.wrapping_add(1);
        self.counters.last_refused_msr = msr;
    }

    fn note_refused_apic_base(&mut self, value: u64) {
        if self.counters.refused_apic_bases < LOG_LIMIT {
            log::warn!(
                "guest: it may not give its local APIC base {value:#x}: the registers stay at {:#x}, and modes change as the manual has it",
                layout::LOCAL_APIC
            );
        }
        self.counters.refused_apic_bases = self.counters.refused_apic_bases.saturating_add(1);
    }

    /// True if the guest has a disk.
    pub fn has_block(&self) -> bool {
        self.block.is_some()
    }

    /// What has happened so far.
    pub fn counters(&self) -> PlatformCounters {
        let mut counters = self.counters;
        counters.serial_bytes = self.serial.bytes_written();
        counters.console_bytes = self.console.backend().bytes_written();
        counters.console_transport = self.console.counters();
        counters.entropy_transport = self.entropy.counters();
        if let Some(net) = &self.net {
            counters.net = net.backend().counters();
            counters.net_transport = net.counters();
        }
        if let Some(block) = &self.block {
            counters.block = block.backend().counters();
            counters.block_transport = block.counters();
        }
        counters
    }

    /// Tells the I/O APIC how every device holds its line.
    fn update_lines(&mut self) {
        self.interrupts.forget_refused();
        let net = self.net.as_ref().is_some_and(MmioDevice::interrupt);
        let block = self.block.as_ref().is_some_and(MmioDevice::interrupt);
        for (gsi, active) in [
            (gsi::COM1, self.serial.interrupt()),
            (gsi::RTC, self.rtc.interrupt()),
            (gsi::SCI, self.pm.interrupt()),
            (VirtioSlot::Net.gsi(), net),
            (VirtioSlot::Console.gsi(), self.console.interrupt()),
            (VirtioSlot::Entropy.gsi(), self.entropy.interrupt()),
            (VirtioSlot::Block.gsi(), block),
        ] {
            self.interrupts.set_line(gsi, active);
        }
    }
}

/// The vCPU that looks after the devices: it is the one to wake when the host has input for the guest.
pub const DEVICE_VCPU: usize = 0;

/// After this many log lines about one kind of mistake, the counter alone goes on.
const LOG_LIMIT: u64 = 8;

/// MSR of the local APIC's base address and mode.
const IA32_APIC_BASE: u32 = 0x1B;
