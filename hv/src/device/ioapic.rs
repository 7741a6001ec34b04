//! The I/O APIC (Intel 82093AA datasheet): 24 pins, each with a redirection entry that makes messages of its line.

use super::lapic::{DeliveryMode, Destination, Message};

/// How many pins there are.
pub const PINS: u8 = 24;

/// Offsets of the registers in its page.
mod offset {
    pub const SELECT: u64 = 0x00;
    pub const WINDOW: u64 = 0x10;
    pub const EOI: u64 = 0x40;
}

/// Indirect registers.
const REGISTER_ID: u8 = 0x00;
const REGISTER_VERSION: u8 = 0x01;
const REGISTER_ARBITRATION: u8 = 0x02;
const REGISTER_REDIRECTION: u8 = 0x10;

/// Version 0x20 has the EOI register.
const VERSION: u32 = 0x20 | (PINS as u32 - 1) << 16;

/// Redirection entry (3.2.4).
#[derive(Clone, Copy, Debug)]
struct Entry(u64);

impl Entry {
    const LOGICAL: u64 = 1 << 11;
    const REMOTE_IRR: u64 = 1 << 14;
    const LEVEL: u64 = 1 << 15;
    const MASKED: u64 = 1 << 16;
    /// All but delivery status, remote IRR and the reserved bits.
    const WRITABLE: u64 = 0xFF00_0000_0001_AFFF;

    fn is(self, bit: u64) -> bool {
        self.0 & bit != 0
    }

    fn vector(self) -> u8 {
        self.0 as u8
    }

    fn message(self) -> Option<Message> {
        let target = (self.0 >> 56) as u32;
        let destination = match (self.is(Self::LOGICAL), target) {
            (true, target) => Destination::Logical(target),
            (false, 0xFF) => Destination::All,
            (false, target) => Destination::Physical(target),
        };
        Some(Message {
            destination,
            mode: DeliveryMode::of_redirection((self.0 >> 8) as u32)?,
            vector: self.vector(),
            level: self.is(Self::LEVEL),
        })
    }
}

#[derive(Clone, Copy, Debug)]
struct Pin {
    entry: Entry,
    /// The line as its device holds it, high being active.
    line: bool,
    /// An edge came while the pin was masked. Hardware loses it; kept, it costs at most one spurious interrupt and saves a lost one.
    latched: bool,
}

impl Pin {
    /// The message to send now, if there is one to send.
    fn evaluate(&mut self) -> Option<Message> {
        if self.entry.is(Entry::MASKED) {
            return None;
        }
        if self.entry.is(Entry::LEVEL) {
            self.latched = false;
            if !self.line || self.entry.is(Entry::REMOTE_IRR) {
                return None;
            }
            self.entry.0 |= Entry::REMOTE_IRR;
        } else if !core::mem::take(&mut self.latched) {
            return None;
        }
        self.entry.message()
    }
}

/// The I/O APIC.
#[derive(Clone, Debug)]
pub struct IoApic {
    id: u8,
    select: u8,
    pins: [Pin; PINS as usize],
}

impl Default for IoApic {
    fn default() -> Self {
        Self {
            id: 0,
            select: 0,
            pins: [Pin {
                entry: Entry(Entry::MASKED),
                line: false,
                latched: false,
            }; PINS as usize],
        }
    }
}

impl IoApic {
    /// Sets the line of pin `gsi`. A message, if it makes one, is the caller's to send.
    #[must_use]
    pub fn set_line(&mut self, gsi: u8, active: bool) -> Option<Message> {
        let pin = self.pins.get_mut(usize::from(gsi))?;
        let rises = active && !pin.line;
        pin.line = active;
        if rises {
            pin.latched = true;
        }
        pin.evaluate()
    }

    /// Ends level-triggered interrupts with `vector`. Pins whose line is still active send again: `send` gets their messages.
    pub fn end_of_interrupt(&mut self, vector: u8, mut send: impl FnMut(Message)) {
        for pin in &mut self.pins {
            if pin.entry.is(Entry::LEVEL)
                && pin.entry.is(Entry::REMOTE_IRR)
                && pin.entry.vector() == vector
            {
                pin.entry.0 &= !Entry::REMOTE_IRR;
                if let Some(message) = pin.evaluate() {
                    send(message);
                }
            }
        }
    }

    /// No local APIC took the level-triggered interrupt with `vector` that was sent last: it is sent again when the line is next looked at, as hardware
    /// goes on sending it.
    pub fn refused(&mut self, vector: u8) {
        for pin in &mut self.pins {
            if pin.entry.is(Entry::LEVEL) && pin.entry.vector() == vector {
                pin.entry.0 &= !Entry::REMOTE_IRR;
            }
        }
    }

    /// Reads the register at `offset` of the page.
    pub fn read(&self, offset: u64) -> u32 {
        match offset {
            offset::SELECT => u32::from(self.select),
            offset::WINDOW => match self.select {
                REGISTER_ID | REGISTER_ARBITRATION => u32::from(self.id) << 24,
                REGISTER_VERSION => VERSION,
                select => self
                    .selected_pin(select)
                    .map_or(0, |(pin, high)| (pin.entry.0 >> (32 * high)) as u32),
            },
            _ => 0,
        }
    }

    /// Writes the register at `offset` of the page; `send` gets the messages that come of it.
    pub fn write(&mut self, offset: u64, value: u32, mut send: impl FnMut(Message)) {
        match offset {
            offset::SELECT => self.select = value as u8,
            offset::EOI => self.end_of_interrupt(value as u8, send),
            offset::WINDOW if self.select == REGISTER_ID => self.id = (value >> 24 & 0xF) as u8,
            offset::WINDOW => {
                let Some((pin, high)) = self.selected_pin_index(self.select) else {
                    return;
                };
                let Some(pin) = self.pins.get_mut(pin) else {
                    return;
                };
                let shift = 32 * high;
                let writable = Entry::WRITABLE & (0xFFFF_FFFF << shift);
                let old = pin.entry.0 & !writable;
                pin.entry.0 = old | u64::from(value) << shift & writable;
                if !pin.entry.is(Entry::LEVEL) {
                    // Linux clears a stuck remote IRR by switching to edge and back.
                    pin.entry.0 &= !Entry::REMOTE_IRR;
                }
                if let Some(message) = pin.evaluate() {
                    send(message);
                }
            }
            _ => {}
        }
    }

    fn selected_pin_index(&self, select: u8) -> Option<(usize, u32)> {
        let index = select.checked_sub(REGISTER_REDIRECTION)?;
        Some((usize::from(index / 2), u32::from(index % 2)))
    }

    fn selected_pin(&self, select: u8) -> Option<(&Pin, u32)> {
        let (pin, high) = self.selected_pin_index(select)?;
        Some((self.pins.get(pin)?, high))
    }
}

/// Whether a message of this mode is an interrupt that a local APIC queues by vector.
pub fn is_vectored(mode: DeliveryMode) -> bool {
    matches!(mode, DeliveryMode::Fixed | DeliveryMode::LowestPriority)
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    fn set_entry(ioapic: &mut IoApic, pin: u8, entry: u64) -> Vec<Message> {
        let mut sent = Vec::new();
        for half in [1, 0] {
            ioapic.write(0, u32::from(0x10 + 2 * pin + half), |_| panic!());
            let word = (entry >> (32 * half)) as u32;
            ioapic.write(0x10, word, |message| sent.push(message));
        }
        sent
    }

    fn fixed(vector: u8, target: u32, level: bool) -> Message {
        Message {
            destination: Destination::Physical(target),
            mode: DeliveryMode::Fixed,
            vector,
            level,
        }
    }

    #[test]
    fn an_edge_is_sent_once() {
        let mut ioapic = IoApic::default();
        assert!(set_entry(&mut ioapic, 4, 2 << 56 | 0x34).is_empty());
        assert_eq!(ioapic.set_line(4, true), Some(fixed(0x34, 2, false)));
        assert_eq!(ioapic.set_line(4, true), None);
        assert_eq!(ioapic.set_line(4, false), None);
        assert_eq!(ioapic.set_line(4, true), Some(fixed(0x34, 2, false)));
    }

    #[test]
    fn an_edge_during_the_mask_comes_afterwards() {
        let mut ioapic = IoApic::default();
        assert_eq!(ioapic.set_line(17, true), None);
        assert_eq!(ioapic.set_line(17, false), None);
        assert_eq!(set_entry(&mut ioapic, 17, 0x40), [fixed(0x40, 0, false)]);
        assert!(set_entry(&mut ioapic, 17, 0x41).is_empty());
    }

    #[test]
    fn a_level_is_sent_again_after_its_end() {
        let mut ioapic = IoApic::default();
        let entry = 0x8000 | 0x51;
        assert!(set_entry(&mut ioapic, 9, entry).is_empty());
        assert_eq!(ioapic.set_line(9, true), Some(fixed(0x51, 0, true)));
        ioapic.write(0, 0x22, |_| panic!());
        assert_eq!(ioapic.read(0x10), 0xC051, "remote IRR");
        assert_eq!(ioapic.set_line(9, false), None);
        assert_eq!(ioapic.set_line(9, true), None);
        let mut sent = Vec::new();
        ioapic.end_of_interrupt(0x50, |message| sent.push(message));
        assert!(sent.is_empty());
        ioapic.end_of_interrupt(0x51, |message| sent.push(message));
        assert_eq!(sent, [fixed(0x51, 0, true)]);
        assert_eq!(ioapic.set_line(9, false), None);
        ioapic.write(0x40, 0x51, |_| panic!());
        assert_eq!(ioapic.read(0x10), 0x8051);
    }

    #[test]
    fn switching_to_edge_clears_a_stuck_remote_irr() {
        let mut ioapic = IoApic::default();
        assert!(set_entry(&mut ioapic, 9, 0x8051).is_empty());
        assert!(ioapic.set_line(9, true).is_some());
        assert!(set_entry(&mut ioapic, 9, 0x1_0051).is_empty());
        assert_eq!(
            set_entry(&mut ioapic, 9, 0x8051),
            [fixed(0x51, 0, true)],
            "the line is still active"
        );
    }

    #[test]
    fn registers_read_as_linux_expects() {
        let mut ioapic = IoApic::default();
        ioapic.write(0, 1, |_| panic!());
        assert_eq!(ioapic.read(0x10), 0x0017_0020);
        ioapic.write(0, 0, |_| panic!());
        ioapic.write(0x10, 0x0F00_0000, |_| panic!());
        assert_eq!(ioapic.read(0x10), 0x0F00_0000);
        ioapic.write(0, 0x10, |_| panic!());
        assert_eq!(ioapic.read(0x10), 0x1_0000, "masked after reset");
        ioapic.write(0, 0x40, |_| panic!());
        ioapic.write(0x10, 0xFFFF_FFFF, |_| panic!());
        assert_eq!(ioapic.read(0x10), 0, "no such pin");
        assert_eq!(ioapic.set_line(24, true), None);
    }

    proptest! {
        #[test]
        fn any_access_is_survived(
            ops in proptest::collection::vec((0_u8..4, any::<u8>(), any::<u32>()), 1..300),
        ) {
            let mut ioapic = IoApic::default();
            for (op, small, value) in ops {
                match op {
                    0 => ioapic.write(0, u32::from(small), |_| {}),
                    1 => ioapic.write(u64::from(small), value, |_| {}),
                    2 => { let _ = ioapic.set_line(small & 31, value & 1 != 0); }
                    _ => ioapic.end_of_interrupt(small, |_| {}),
                }
                let _ = ioapic.read(u64::from(small));
            }
        }
    }
}
