//! The local APIC of one vCPU (Intel SDM vol. 3A, chapter 11): x2APIC registers by MSR, the same ones by MMIO in xAPIC mode.
//!
//! It keeps no clock and sends nothing itself: writes give an [`Effect`] that the platform carries out.

mod access;
mod ipi;
mod timer;
mod vectors;

pub use ipi::{DeliveryMode, Destination, Message};
use timer::{Timer, TimerMode};
use vectors::VectorSet;

use crate::platform::layout::LOCAL_APIC;

/// The guest did what raises #GP(0).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GeneralProtection;

/// What a write wants done outside of this local APIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Effect {
    /// Nothing.
    None,
    /// A level-triggered interrupt with this vector has ended: tell the I/O APIC.
    EndOfLevel(u8),
    /// Send this.
    Send(Message),
}

/// How a vCPU's local APIC is accessed after reset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ApicMode {
    /// By MSR. Linux is started like this, as if firmware had switched it.
    #[default]
    X2Apic,
    /// By MMIO at 0xFEE00000, as after a reset of the CPU.
    XApic,
}

/// What waits for a vCPU beside interrupt vectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VcpuEvent {
    /// INIT: reset to the wait-for-SIPI state. The local APIC has been reset already.
    Init,
    /// Startup at this page of real-mode memory; to be ignored unless the vCPU waits for it.
    Startup(u8),
    /// NMI.
    Nmi,
}

/// IA32_APIC_BASE bits.
const BASE_BOOTSTRAP: u64 = 1 << 8;
const BASE_X2APIC: u64 = 1 << 10;
const BASE_ENABLED: u64 = 1 << 11;

/// Local vectors: timer, thermal, performance, LINT0, LINT1, error.
const LOCAL_VECTORS: usize = 6;
const LVT_MASKED: u32 = 1 << 16;
const LVT_ERROR_INDEX: usize = 5;

const SPURIOUS_ENABLED: u32 = 1 << 8;

/// Error status bits.
const ERROR_SEND_VECTOR: u32 = 1 << 5;
const ERROR_RECEIVE_VECTOR: u32 = 1 << 6;
const ERROR_REGISTER: u32 = 1 << 7;

/// The local APIC of one vCPU.
#[derive(Clone, Debug)]
pub struct LocalApic {
    // Configuration.
    id: u32,
    // Volatile state.
    base: u64,
    task_priority: u32,
    logical_destination: u32,
    destination_format: u32,
    spurious: u32,
    in_service: VectorSet,
    trigger_mode: VectorSet,
    requests: VectorSet,
    error_status: u32,
    error_pending: u32,
    command: u64,
    local: [u32; LOCAL_VECTORS],
    timer: Timer,
    nmi: bool,
    init: bool,
    startup: Option<u8>,
}

impl LocalApic {
    /// The local APIC of vCPU `id` as after reset, or switched to x2APIC mode. vCPU 0 is the bootstrap processor.
    pub fn new(id: u32, mode: ApicMode) -> Self {
        let mut base = LOCAL_APIC | BASE_ENABLED;
        if id == 0 {
            base |= BASE_BOOTSTRAP;
        }
        if mode == ApicMode::X2Apic {
            base |= BASE_X2APIC;
        }
        Self {
            id,
            base,
            task_priority: 0,
            logical_destination: 0,
            destination_format: u32::MAX,
            spurious: 0xFF,
            in_service: VectorSet::default(),
            trigger_mode: VectorSet::default(),
            requests: VectorSet::default(),
            error_status: 0,
            error_pending: 0,
            command: 0,
            local: [LVT_MASKED; LOCAL_VECTORS],
            timer: Timer::default(),
            nmi: false,
            init: false,
            startup: None,
        }
    }

    /// Resets what INIT resets: everything but the identifier and IA32_APIC_BASE (11.4.7.3).
    fn reset(&mut self) {
        let startup = self.startup;
        let base = self.base;
        *self = Self::new(self.id, ApicMode::XApic);
        self.base = base;
        self.startup = startup;
    }

    /// The identifier.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// True in x2APIC mode.
    pub fn is_x2apic(&self) -> bool {
        self.base & BASE_X2APIC != 0
    }

    /// True if the registers are at [`LOCAL_APIC`].
    pub fn has_mmio(&self) -> bool {
        self.is_enabled() && !self.is_x2apic()
    }

    fn is_enabled(&self) -> bool {
        self.base & BASE_ENABLED != 0
    }

    fn is_software_enabled(&self) -> bool {
        self.is_enabled() && self.spurious & SPURIOUS_ENABLED != 0
    }

    /// IA32_APIC_BASE.
    pub fn base(&self) -> u64 {
        self.base
    }

    /// Writes IA32_APIC_BASE. The registers cannot be moved.
    ///
    /// # Errors
    /// [`GeneralProtection`] for another address, reserved bits, and changes of mode that the manual forbids (11.12.5).
    pub fn set_base(&mut self, value: u64) -> Result<(), GeneralProtection> {
        let modes = BASE_ENABLED | BASE_X2APIC;
        if (value ^ self.base) & !modes != 0 {
            return Err(GeneralProtection);
        }
        let (old, new) = (self.base & modes, value & modes);
        let allowed = new != BASE_X2APIC
            && !(old == modes && new == BASE_ENABLED)
            && !(old == 0 && new == modes);
        if !allowed {
            return Err(GeneralProtection);
        }
        if new == 0 {
            self.reset();
        }
        self.base = value;
        Ok(())
    }

    fn error(&mut self, bit: u32) {
        self.error_pending |= bit;
        let local = self.local[LVT_ERROR_INDEX];
        let vector = local as u8;
        if local & LVT_MASKED == 0 && vector >= 16 {
            self.requests.insert(vector);
            self.trigger_mode.remove(vector);
        }
    }

    /// The logical identifier: derived in x2APIC mode (11.12.10.2), as written in xAPIC mode.
    fn logical_id(&self) -> u32 {
        if self.is_x2apic() {
            (self.id >> 4) << 16 | 1 << (self.id & 15)
        } else {
            self.logical_destination
        }
    }

    /// True if this one is among the logical destinations `target`: of 32 bits in x2APIC mode; of 8 in xAPIC mode, flat or cluster
    /// model by the destination format register.
    pub fn matches_logical(&self, target: u32) -> bool {
        let id = self.logical_id();
        if self.is_x2apic() {
            return id >> 16 == target >> 16 && id & target & 0xFFFF != 0;
        }
        let id = id >> 24;
        if self.destination_format >> 28 == 0 {
            let cluster = target >> 4 & 0xF;
            (cluster == id >> 4 || cluster == 0xF) && id & target & 0xF != 0
        } else {
            id & target & 0xFF != 0
        }
    }

    /// Takes a message that is for this one. False if it takes no interrupts now.
    pub fn accept(&mut self, mode: DeliveryMode, vector: u8, level: bool) -> bool {
        match mode {
            DeliveryMode::Fixed | DeliveryMode::LowestPriority => {
                if !self.is_software_enabled() {
                    return false;
                }
                if vector < 16 {
                    self.error(ERROR_RECEIVE_VECTOR);
                    return true;
                }
                self.requests.insert(vector);
                if level {
                    self.trigger_mode.insert(vector);
                } else {
                    self.trigger_mode.remove(vector);
                }
            }
            DeliveryMode::Nmi => self.nmi = true,
            DeliveryMode::Init => {
                self.init = true;
                self.startup = None;
            }
            DeliveryMode::Startup => self.startup = Some(vector),
            DeliveryMode::Smi | DeliveryMode::External => {}
        }
        true
    }

    /// The next event for the vCPU beside vectors, taken: INIT before startup before NMI. An NMI is held back where
    /// the vCPU cannot take it: while it waits for its startup, or handles another.
    pub fn take_event(&mut self, holds_nmi: bool) -> Option<VcpuEvent> {
        if self.init {
            self.reset();
            return Some(VcpuEvent::Init);
        }
        if let Some(page) = self.startup.take() {
            return Some(VcpuEvent::Startup(page));
        }
        (!holds_nmi && core::mem::take(&mut self.nmi)).then_some(VcpuEvent::Nmi)
    }

    /// True if [`LocalApic::take_event`] would give one.
    pub fn has_event(&self, holds_nmi: bool) -> bool {
        self.init || self.startup.is_some() || self.nmi && !holds_nmi
    }

    /// The processor priority register (11.8.3.1): the higher of the task's and the interrupts in service.
    fn priority(&self) -> u8 {
        let task = self.task_priority as u8;
        let service = self.in_service.highest().unwrap_or(0);
        if task & 0xF0 >= service & 0xF0 {
            task
        } else {
            service & 0xF0
        }
    }

    /// The task priority register, CR8's other form: bits 4–7 are CR8.
    pub fn task_priority(&self) -> u8 {
        self.task_priority as u8
    }

    /// Sets the task priority register.
    pub fn set_task_priority(&mut self, value: u8) {
        self.task_priority = u32::from(value);
    }

    /// How busy this one is, for lowest-priority delivery.
    pub fn arbitration_priority(&self) -> u8 {
        self.priority()
    }

    /// True if fixed interrupts are taken at all.
    pub fn takes_interrupts(&self) -> bool {
        self.is_software_enabled()
    }

    /// The highest vector that may be delivered now: requested, and above the processor priority.
    pub fn pending(&self) -> Option<u8> {
        if !self.is_enabled() {
            return None;
        }
        let vector = self.requests.highest()?;
        (vector & 0xF0 > self.priority() & 0xF0).then_some(vector)
    }

    /// The CPU has taken `vector`: it is in service from now on.
    pub fn acknowledge(&mut self, vector: u8) {
        if self.requests.contains(vector) {
            self.requests.remove(vector);
            self.in_service.insert(vector);
        }
    }

    /// The interrupt in service has ended.
    pub fn end_of_interrupt(&mut self) -> Effect {
        let Some(vector) = self.in_service.highest() else {
            return Effect::None;
        };
        self.in_service.remove(vector);
        if self.trigger_mode.contains(vector) {
            Effect::EndOfLevel(vector)
        } else {
            Effect::None
        }
    }

    /// True if ending the interrupt in service needs no exit (KVM's PV EOI): it is the only one, nobody waits for its end, and no other
    /// is requested.
    pub fn end_needs_no_exit(&self) -> bool {
        self.in_service.count() == 1
            && self.requests.highest().is_none()
            && self
                .in_service
                .highest()
                .is_some_and(|vector| !self.trigger_mode.contains(vector))
    }

    /// IA32_TSC_DEADLINE: 0 when disarmed or in another mode.
    pub fn tsc_deadline(&self) -> u64 {
        self.timer.tsc_deadline()
    }

    /// Writes IA32_TSC_DEADLINE. `tsc_now` is the guest's TSC at `now_ns`, `tsc_hz` its frequency.
    pub fn set_tsc_deadline(&mut self, value: u64, tsc_now: u64, now_ns: u64, tsc_hz: u64) {
        self.timer.set_tsc_deadline(value, tsc_now, now_ns, tsc_hz);
    }

    /// When the timer fires.
    pub fn deadline_ns(&self) -> Option<u64> {
        self.timer.deadline_ns()
    }

    /// Lets the timer fire if it is due.
    pub fn service(&mut self, now_ns: u64) {
        if !self.timer.expire(now_ns) {
            return;
        }
        let local = self.local[0];
        let vector = local as u8;
        if local & LVT_MASKED == 0 {
            self.accept(DeliveryMode::Fixed, vector, false);
        }
    }

    /// True if the timer is in TSC-deadline mode.
    pub fn is_tsc_deadline(&self) -> bool {
        self.timer.mode() == TimerMode::TscDeadline
    }
}

#[cfg(test)]
mod tests;
