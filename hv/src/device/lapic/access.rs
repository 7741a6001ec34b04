//! The local APIC's registers as the guest reads and writes them: by MSR in x2APIC mode, by MMIO in xAPIC mode.

use super::timer::TimerMode;
use super::{
    DeliveryMode, Destination, ERROR_REGISTER, ERROR_SEND_VECTOR, Effect, GeneralProtection,
    LOCAL_VECTORS, LVT_MASKED, LocalApic, Message, SPURIOUS_ENABLED,
};

/// Register numbers: MSR minus 0x800, or MMIO offset divided by 16.
mod register {
    pub const ID: u32 = 0x02;
    pub const VERSION: u32 = 0x03;
    pub const TASK_PRIORITY: u32 = 0x08;
    pub const ARBITRATION: u32 = 0x09;
    pub const PROCESSOR_PRIORITY: u32 = 0x0A;
    pub const EOI: u32 = 0x0B;
    pub const LOGICAL_DESTINATION: u32 = 0x0D;
    pub const DESTINATION_FORMAT: u32 = 0x0E;
    pub const SPURIOUS: u32 = 0x0F;
    pub const IN_SERVICE: u32 = 0x10;
    pub const TRIGGER_MODE: u32 = 0x18;
    pub const REQUEST: u32 = 0x20;
    pub const ERROR_STATUS: u32 = 0x28;
    pub const COMMAND: u32 = 0x30;
    pub const COMMAND_HIGH: u32 = 0x31;
    pub const LVT_TIMER: u32 = 0x32;
    pub const LVT_ERROR: u32 = 0x37;
    pub const INITIAL_COUNT: u32 = 0x38;
    pub const CURRENT_COUNT: u32 = 0x39;
    pub const DIVIDE: u32 = 0x3E;
    pub const SELF_IPI: u32 = 0x3F;
}

/// Integrated local APIC, six local vectors.
const VERSION: u32 = 0x14 | 5 << 16;

/// Writable bits of each local vector.
const LVT_WRITABLE: [u32; LOCAL_VECTORS] = [
    0x7_00FF, // timer: vector, mask, mode
    0x1_07FF, // thermal: vector, delivery, mask
    0x1_07FF, // performance
    0x1_A7FF, // LINT0: vector, delivery, polarity, trigger, mask
    0x1_A7FF, // LINT1
    0x1_00FF, // error: vector, mask
];

/// Read-only bits of local vectors that may be written back as read: delivery status, remote IRR.
const LVT_READ_ONLY: u32 = 1 << 12 | 1 << 14;

/// Bits of the interrupt command register that may be written in x2APIC mode (11.12.9). Delivery status, bit 12, is ignored, as by KVM.
const COMMAND_BITS: u64 = 0xFFFF_FFFF_000C_DFFF;

/// Bits of the spurious vector register: vector, enable, and focus checking of old CPUs.
const SPURIOUS_BITS: u32 = 0x3FF;

/// Bits of the divide configuration register.
const DIVIDE_BITS: u32 = 0b1011;

impl LocalApic {
    /// Reads x2APIC register `msr` (0x800–0x83f).
    ///
    /// # Errors
    /// [`GeneralProtection`] outside x2APIC mode and for registers that do not exist or cannot be read.
    pub fn read_msr(&mut self, msr: u32, now_ns: u64) -> Result<u64, GeneralProtection> {
        let register = self.x2apic_register(msr)?;
        match register {
            register::COMMAND => Ok(self.command),
            register::EOI | register::SELF_IPI | register::ARBITRATION => Err(GeneralProtection),
            register::COMMAND_HIGH | register::DESTINATION_FORMAT => Err(GeneralProtection),
            _ => self
                .read_register(register, now_ns)
                .map(u64::from)
                .ok_or(GeneralProtection),
        }
    }

    /// Writes x2APIC register `msr` (0x800–0x83f).
    ///
    /// # Errors
    /// [`GeneralProtection`] outside x2APIC mode, for registers that do not exist or cannot be written, and for reserved bits.
    pub fn write_msr(
        &mut self,
        msr: u32,
        value: u64,
        now_ns: u64,
    ) -> Result<Effect, GeneralProtection> {
        let register = self.x2apic_register(msr)?;
        if register == register::COMMAND {
            if value & !COMMAND_BITS != 0 {
                return Err(GeneralProtection);
            }
            self.command = value & !(1 << 12);
            return Ok(self.send_command());
        }
        let value = u32::try_from(value).map_err(|_| GeneralProtection)?;
        // Reserved bits fault here, where xAPIC mode ignores them (11.12.1.3).
        let known = match register {
            register::SPURIOUS => SPURIOUS_BITS,
            register::DIVIDE => DIVIDE_BITS,
            register::LVT_TIMER..=register::LVT_ERROR => {
                LVT_WRITABLE[(register - register::LVT_TIMER) as usize] | LVT_READ_ONLY
            }
            _ => u32::MAX,
        };
        if value & !known != 0 {
            return Err(GeneralProtection);
        }
        match register {
            register::SELF_IPI if value < 16 => {
                self.error(ERROR_SEND_VECTOR);
                Ok(Effect::None)
            }
            register::SELF_IPI if value <= 0xFF => Ok(Effect::Send(Message {
                destination: Destination::Myself,
                mode: DeliveryMode::Fixed,
                vector: value as u8,
                level: false,
            })),
            register::EOI | register::ERROR_STATUS if value != 0 => Err(GeneralProtection),
            register::TASK_PRIORITY if value > 0xFF => Err(GeneralProtection),
            register::SELF_IPI
            | register::ID
            | register::LOGICAL_DESTINATION
            | register::COMMAND_HIGH
            | register::DESTINATION_FORMAT => Err(GeneralProtection),
            _ => self
                .write_register(register, value, now_ns)
                .ok_or(GeneralProtection),
        }
    }

    fn x2apic_register(&self, msr: u32) -> Result<u32, GeneralProtection> {
        match msr.checked_sub(0x800) {
            Some(register @ 0..=0x3F) if self.is_enabled() && self.is_x2apic() => Ok(register),
            _ => Err(GeneralProtection),
        }
    }

    /// Reads the xAPIC register at `offset` of the page. Registers that do not exist read 0 and are noted as errors.
    pub fn read_mmio(&mut self, offset: u64, now_ns: u64) -> u32 {
        let register = (offset >> 4) as u32;
        // Only the first word of each 16 bytes is a register.
        let value = if offset & 0xC == 0 {
            self.read_register(register, now_ns)
        } else {
            None
        };
        value.unwrap_or_else(|| {
            self.error(ERROR_REGISTER);
            0
        })
    }

    /// Writes the xAPIC register at `offset` of the page.
    pub fn write_mmio(&mut self, offset: u64, value: u32, now_ns: u64) -> Effect {
        let register = (offset >> 4) as u32;
        if offset & 0xC != 0 {
            self.error(ERROR_REGISTER);
            return Effect::None;
        }
        match register {
            register::COMMAND => {
                self.command = self.command & !0xFFFF_FFFF | u64::from(value & !(1 << 12));
                self.send_command()
            }
            register::COMMAND_HIGH => {
                self.command = self.command & 0xFFFF_FFFF | u64::from(value) << 32;
                Effect::None
            }
            register::ID => Effect::None, // read-only on current CPUs
            _ => self
                .write_register(register, value, now_ns)
                .unwrap_or_else(|| {
                    self.error(ERROR_REGISTER);
                    Effect::None
                }),
        }
    }

    /// The registers common to both modes; none if there is no such register or it cannot be read.
    fn read_register(&self, register: u32, now_ns: u64) -> Option<u32> {
        Some(match register {
            register::ID if self.is_x2apic() => self.id,
            register::ID => self.id << 24,
            register::VERSION => VERSION,
            register::TASK_PRIORITY => self.task_priority,
            register::ARBITRATION | register::PROCESSOR_PRIORITY => u32::from(self.priority()),
            register::LOGICAL_DESTINATION => self.logical_id(),
            register::DESTINATION_FORMAT => self.destination_format,
            register::SPURIOUS => self.spurious,
            register::IN_SERVICE..register::TRIGGER_MODE => self.in_service.word(register),
            register::TRIGGER_MODE..register::REQUEST => self.trigger_mode.word(register),
            register::REQUEST..register::ERROR_STATUS => self.requests.word(register),
            register::ERROR_STATUS => self.error_status,
            register::COMMAND => self.command as u32,
            register::COMMAND_HIGH => (self.command >> 32) as u32,
            register::LVT_TIMER..=register::LVT_ERROR => {
                self.local[(register - register::LVT_TIMER) as usize]
            }
            register::INITIAL_COUNT => self.timer.initial(),
            register::CURRENT_COUNT => self.timer.current(now_ns),
            register::DIVIDE => self.timer.divide(),
            _ => return None,
        })
    }

    /// The registers common to both modes; none if there is no such register or it cannot be written.
    fn write_register(&mut self, register: u32, value: u32, now_ns: u64) -> Option<Effect> {
        match register {
            register::TASK_PRIORITY => self.task_priority = value & 0xFF,
            register::EOI => return Some(self.end_of_interrupt()),
            register::LOGICAL_DESTINATION => self.logical_destination = value & 0xFF00_0000,
            register::DESTINATION_FORMAT => self.destination_format = value | 0x0FFF_FFFF,
            register::SPURIOUS => {
                self.spurious = value & 0x1FF;
                if value & SPURIOUS_ENABLED == 0 {
                    self.local = self.local.map(|local| local | LVT_MASKED);
                }
            }
            register::ERROR_STATUS => {
                self.error_status = self.error_pending;
                self.error_pending = 0;
            }
            register::LVT_TIMER..=register::LVT_ERROR => {
                self.write_local_vector((register - register::LVT_TIMER) as usize, value);
            }
            register::INITIAL_COUNT => self.timer.set_initial(value, now_ns),
            register::DIVIDE => self.timer.set_divide(value, now_ns),
            _ => return None,
        }
        Some(Effect::None)
    }

    fn write_local_vector(&mut self, index: usize, value: u32) {
        let mut value = value & LVT_WRITABLE[index];
        if !self.is_software_enabled() {
            value |= LVT_MASKED;
        }
        self.local[index] = value;
        if index == 0 {
            self.timer.set_mode(match value >> 17 & 3 {
                1 => TimerMode::Periodic,
                2 => TimerMode::TscDeadline,
                _ => TimerMode::OneShot,
            });
        }
    }

    /// What the interrupt command register asks for (11.6.1).
    fn send_command(&mut self) -> Effect {
        let low = self.command as u32;
        let vector = low as u8;
        let Some(mode) = DeliveryMode::of_command(low >> 8) else {
            return Effect::None;
        };
        // An INIT level de-assert only synchronised arbitration identifiers, on CPUs long gone.
        if mode == DeliveryMode::Init && low & (1 << 15) != 0 && low & (1 << 14) == 0 {
            return Effect::None;
        }
        if vector < 16 && matches!(mode, DeliveryMode::Fixed | DeliveryMode::LowestPriority) {
            self.error(ERROR_SEND_VECTOR);
            return Effect::None;
        }
        let target = if self.is_x2apic() {
            (self.command >> 32) as u32
        } else {
            (self.command >> 56) as u32
        };
        let broadcast = if self.is_x2apic() { u32::MAX } else { 0xFF };
        let destination = match low >> 18 & 3 {
            1 => Destination::Myself,
            2 => Destination::All,
            3 => Destination::Others,
            _ if target == broadcast => Destination::All,
            _ if low & (1 << 11) != 0 => Destination::Logical(target),
            _ => Destination::Physical(target),
        };
        Effect::Send(Message {
            destination,
            mode,
            vector,
            level: false,
        })
    }
}
