//! A 16550 serial port (National Semiconductor PC16550D), polled.

use outpost::patience::Patience;

use crate::machine::port;

/// Console.
pub const COM1: u16 = 0x3f8;
/// Telemetry.
pub const COM2: u16 = 0x2f8;
/// The guest's serial port, byte for byte, where the configuration asks for it.
pub const COM3: u16 = 0x3e8;

const DATA: u16 = 0;
const INTERRUPT_ENABLE: u16 = 1;
const FIFO_CONTROL: u16 = 2;
const LINE_CONTROL: u16 = 3;
const MODEM_CONTROL: u16 = 4;
const LINE_STATUS: u16 = 5;
const SCRATCH: u16 = 7;

const RECEIVED: u8 = 0x01;
const TRANSMITTER_EMPTY: u8 = 0x20;

/// Bytes the transmitter takes once it says that it is empty.
const FIFO_BYTES: usize = 16;

/// A port. Absent ones swallow what is written.
pub struct Serial {
    base: u16,
    present: bool,
    room: usize,
    patience: Patience,
}

impl Serial {
    /// The port at `base`, not yet looked for.
    pub const fn new(base: u16) -> Self {
        Serial {
            base,
            present: false,
            room: 0,
            patience: Patience::new(),
        }
    }

    /// Looks for the port and sets it to 115,200 baud, 8N1, FIFOs on, no interrupts.
    pub fn start(&mut self) {
        port::write_u8(self.base + SCRATCH, 0x5a);
        self.present = port::read_u8(self.base + SCRATCH) == 0x5a;
        if !self.present {
            return;
        }
        port::write_u8(self.base + INTERRUPT_ENABLE, 0);
        port::write_u8(self.base + LINE_CONTROL, 0x80);
        port::write_u8(self.base + DATA, 1);
        port::write_u8(self.base + INTERRUPT_ENABLE, 0);
        port::write_u8(self.base + LINE_CONTROL, 0x03);
        port::write_u8(self.base + FIFO_CONTROL, 0xc7);
        port::write_u8(self.base + MODEM_CONTROL, 0x0b);
    }

    /// Writes one byte if the port can take it now.
    pub fn try_write(&mut self, byte: u8) -> bool {
        if !self.present {
            return true;
        }
        if self.room == 0 {
            if port::read_u8(self.base + LINE_STATUS) & TRANSMITTER_EMPTY == 0 {
                return false;
            }
            self.room = FIFO_BYTES;
        }
        self.room -= 1;
        port::write_u8(self.base + DATA, byte);
        true
    }

    /// Writes one byte, waiting for the port for half a second or so (a read of a port takes about 1 µs), for an emulator's pauses while its machine is busy. Then the byte is
    /// lost, and so are those that follow, without a wait, until the port takes one again.
    pub fn write(&mut self, byte: u8) {
        const TRIES: u32 = 500_000;
        let mut patience = core::mem::take(&mut self.patience);
        patience.wait(TRIES, || self.try_write(byte));
        self.patience = patience;
    }

    /// The next byte received, if there is one.
    pub fn try_read(&mut self) -> Option<u8> {
        if self.present && port::read_u8(self.base + LINE_STATUS) & RECEIVED != 0 {
            Some(port::read_u8(self.base + DATA))
        } else {
            None
        }
    }
}
