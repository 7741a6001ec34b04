//! The pair of 8259s, as registers only: enough that a kernel finds them, initialises and masks them. No line is connected
//! and none ever requests an interrupt: everything goes through the I/O APIC.
//!
//! Without them Linux would run with no legacy interrupts at all, a path that few machines take.

/// One 8259A (Intel datasheet, "Initialization Command Words").
#[derive(Clone, Copy, Debug, Default)]
struct Chip {
    mask: u8,
    /// Initialization command words still to come: the number of the next one, 0 for none.
    expected: u8,
    single: bool,
    wants_fourth: bool,
    edge_level: u8,
}

impl Chip {
    fn read(self, data: bool) -> u8 {
        // Request and in-service registers are empty.
        if data { self.mask } else { 0 }
    }

    fn write(&mut self, data: bool, value: u8) {
        if !data {
            if value & 0x10 != 0 {
                self.mask = 0;
                self.expected = 2;
                self.single = value & 2 != 0;
                self.wants_fourth = value & 1 != 0;
            }
            return;
        }
        self.expected = match self.expected {
            2 if !self.single => 3,
            2 | 3 if self.wants_fourth => 4,
            2..=4 => 0,
            _ => {
                self.mask = value;
                0
            }
        };
    }
}

/// Both chips with their edge/level control registers.
#[derive(Clone, Debug, Default)]
pub struct Pic {
    chips: [Chip; 2],
}

impl Pic {
    /// Reads the command (`data` false) or mask register of the master (`slave` false) or the slave.
    pub fn read(&self, slave: bool, data: bool) -> u8 {
        self.chips[usize::from(slave)].read(data)
    }

    /// Writes the same.
    pub fn write(&mut self, slave: bool, data: bool, value: u8) {
        self.chips[usize::from(slave)].write(data, value);
    }

    /// Reads the edge/level control register.
    pub fn read_edge_level(&self, slave: bool) -> u8 {
        self.chips[usize::from(slave)].edge_level
    }

    /// Writes it; lines 0–2, 8 and 13 are always edge-triggered.
    pub fn write_edge_level(&mut self, slave: bool, value: u8) {
        let writable = if slave { 0xDE } else { 0xF8 };
        self.chips[usize::from(slave)].edge_level = value & writable;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linux_finds_and_masks_it() {
        let mut pic = Pic::default();
        pic.write(true, true, 0xFF);
        pic.write(false, true, 0xFB);
        assert_eq!(pic.read(false, true), 0xFB, "the probe");
        pic.write(false, true, 0xFF);
        for word in [0x30, 0x04, 0x01] {
            pic.write(false, word != 0x11, word);
        }
        let mut pic = Pic::default();
        pic.write(false, false, 0x11);
        for word in [0x30, 0x04, 0x01] {
            pic.write(false, true, word);
        }
        assert_eq!(pic.read(false, true), 0, "initialisation clears the mask");
        pic.write(false, true, 0xFF);
        assert_eq!(pic.read(false, true), 0xFF);
        assert_eq!(pic.read(false, false), 0);
        pic.write_edge_level(true, 0xFF);
        assert_eq!(
            (pic.read_edge_level(true), pic.read_edge_level(false)),
            (0xDE, 0)
        );
    }
}
