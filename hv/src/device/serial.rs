//! A 16550A serial port (National Semiconductor PC16550D datasheet), as fast as its guest: what is written has left at once.
//!
//! Output is gathered into lines before the host gets it, because each byte is an exit already. The line parameters are
//! kept and mean nothing.

use crate::host::Host;

/// Ports from the base.
mod port {
    pub const DATA: u16 = 0;
    pub const INTERRUPT_ENABLE: u16 = 1;
    /// Interrupt identification when read, FIFO control when written.
    pub const INTERRUPT_ID: u16 = 2;
    pub const LINE_CONTROL: u16 = 3;
    pub const MODEM_CONTROL: u16 = 4;
    pub const LINE_STATUS: u16 = 5;
    pub const MODEM_STATUS: u16 = 6;
    pub const SCRATCH: u16 = 7;
}

/// Interrupt enable bits.
const ENABLE_RECEIVE: u8 = 1;
const ENABLE_TRANSMIT: u8 = 2;
const ENABLE_LINE_STATUS: u8 = 4;

/// Interrupt identification values, by falling priority.
const ID_LINE_STATUS: u8 = 0x06;
const ID_RECEIVED: u8 = 0x04;
const ID_TIMEOUT: u8 = 0x0C;
const ID_TRANSMIT: u8 = 0x02;
const ID_NONE: u8 = 0x01;
const ID_FIFO: u8 = 0xC0;

const DIVISOR_LATCH: u8 = 0x80;
const FIFO_ENABLED: u8 = 1;
const FIFO_CLEAR_RECEIVE: u8 = 2;

/// Modem control: OUT2 connects the interrupt line on a PC; loop mode.
const MODEM_OUT2: u8 = 8;
const MODEM_LOOP: u8 = 0x10;

/// Line status: data, overrun, transmitter empty (both bits).
const STATUS_DATA: u8 = 1;
const STATUS_OVERRUN: u8 = 2;
const STATUS_TRANSMIT_EMPTY: u8 = 0x60;

const FIFO_SIZE: usize = 16;
const OUTPUT_SIZE: usize = 256;

/// Output without an end of line goes to the host after this long, in nanoseconds.
const FLUSH_AFTER_NS: u64 = 20_000_000;

/// The serial port.
#[derive(Debug)]
pub struct Serial {
    interrupt_enable: u8,
    fifo_control: u8,
    line_control: u8,
    modem_control: u8,
    scratch: u8,
    divisor: [u8; 2],
    received: [u8; FIFO_SIZE],
    received_start: usize,
    received_length: usize,
    overrun: bool,
    /// The transmitter has emptied since the guest last asked why it was interrupted.
    transmit_interrupt: bool,
    output: [u8; OUTPUT_SIZE],
    output_length: usize,
    output_since_ns: u64,
    bytes_written: u64,
}

impl Default for Serial {
    fn default() -> Self {
        Self {
            interrupt_enable: 0,
            fifo_control: 0,
            line_control: 0,
            modem_control: 0,
            scratch: 0,
            divisor: [12, 0],
            received: [0; FIFO_SIZE],
            received_start: 0,
            received_length: 0,
            overrun: false,
            transmit_interrupt: false,
            output: [0; OUTPUT_SIZE],
            output_length: 0,
            output_since_ns: 0,
            bytes_written: 0,
        }
    }
}

impl Serial {
    /// Reads the register at `offset` (0–7) from the base port.
    pub fn read(&mut self, offset: u16) -> u8 {
        match offset {
            port::DATA if self.is_divisor() => self.divisor[0],
            port::DATA => self.take_received(),
            port::INTERRUPT_ENABLE if self.is_divisor() => self.divisor[1],
            port::INTERRUPT_ENABLE => self.interrupt_enable,
            port::INTERRUPT_ID => {
                let id = self.interrupt_id();
                if id == ID_TRANSMIT {
                    self.transmit_interrupt = false;
                }
                if self.has_fifo() { id | ID_FIFO } else { id }
            }
            port::LINE_CONTROL => self.line_control,
            port::MODEM_CONTROL => self.modem_control,
            port::LINE_STATUS => {
                let mut status = STATUS_TRANSMIT_EMPTY;
                if self.received_length > 0 {
                    status |= STATUS_DATA;
                }
                if core::mem::take(&mut self.overrun) {
                    status |= STATUS_OVERRUN;
                }
                status
            }
            port::MODEM_STATUS if self.modem_control & MODEM_LOOP != 0 => {
                // The outputs are wired to the inputs: RTS to CTS, DTR to DSR, OUT1 to RI, OUT2 to DCD.
                let out = self.modem_control;
                (out & 2) << 3 | (out & 1) << 5 | (out & 4) << 4 | (out & 8) << 4
            }
            port::MODEM_STATUS => 0xB0, // carrier, data set ready, clear to send
            port::SCRATCH => self.scratch,
            _ => 0xFF,
        }
    }

    /// Writes the register at `offset` (0–7) from the base port.
    pub fn write(&mut self, offset: u16, value: u8, host: &dyn Host) {
        match offset {
            port::DATA if self.is_divisor() => self.divisor[0] = value,
            port::DATA => self.transmit(value, host),
            port::INTERRUPT_ENABLE if self.is_divisor() => self.divisor[1] = value,
            port::INTERRUPT_ENABLE => {
                let newly = value & !self.interrupt_enable;
                self.interrupt_enable = value & 0x0F;
                if newly & ENABLE_TRANSMIT != 0 {
                    self.transmit_interrupt = true;
                }
            }
            port::INTERRUPT_ID => {
                if (value ^ self.fifo_control) & FIFO_ENABLED != 0
                    || value & FIFO_CLEAR_RECEIVE != 0
                {
                    self.received_length = 0;
                }
                self.fifo_control = value & 0xC9;
            }
            port::LINE_CONTROL => self.line_control = value,
            port::MODEM_CONTROL => self.modem_control = value & 0x1F,
            port::SCRATCH => self.scratch = value,
            _ => {}
        }
    }

    fn is_divisor(&self) -> bool {
        self.line_control & DIVISOR_LATCH != 0
    }

    fn has_fifo(&self) -> bool {
        self.fifo_control & FIFO_ENABLED != 0
    }

    fn transmit(&mut self, byte: u8, host: &dyn Host) {
        self.transmit_interrupt = true;
        if self.modem_control & MODEM_LOOP != 0 {
            self.push_received(byte);
            return;
        }
        self.bytes_written = self.bytes_written.wrapping_add(1);
        if self.output_length == 0 {
            self.output_since_ns = host.now_ns();
        }
        if let Some(slot) = self.output.get_mut(self.output_length) {
            *slot = byte;
            self.output_length += 1;
        }
        if byte == b'\n' || self.output_length == OUTPUT_SIZE {
            self.flush(host);
        }
    }

    /// Gives the host what has been gathered.
    pub fn flush(&mut self, host: &dyn Host) {
        if let Some(bytes) = self.output.get(..self.output_length)
            && !bytes.is_empty()
        {
            host.serial_write(bytes);
        }
        self.output_length = 0;
    }

    /// Flushes output that has waited long enough.
    pub fn service(&mut self, host: &dyn Host, now_ns: u64) {
        if self.flush_at_ns().is_some_and(|at| at <= now_ns) {
            self.flush(host);
        }
    }

    /// When output that waits for its end of line is to be flushed.
    pub fn flush_at_ns(&self) -> Option<u64> {
        (self.output_length > 0).then(|| self.output_since_ns.saturating_add(FLUSH_AFTER_NS))
    }

    /// How many bytes the guest has written.
    pub fn bytes_written(&self) -> u64 {
        self.bytes_written
    }

    /// True if a received byte has room.
    pub fn can_receive(&self) -> bool {
        let room = if self.has_fifo() { FIFO_SIZE } else { 1 };
        self.modem_control & MODEM_LOOP == 0 && self.received_length < room
    }

    /// Receives a byte. Without room it is lost, and the guest can tell.
    pub fn receive(&mut self, byte: u8) {
        if self.can_receive() {
            self.push_received(byte);
        } else {
            self.overrun = true;
        }
    }

    fn push_received(&mut self, byte: u8) {
        if self.received_length >= FIFO_SIZE {
            self.overrun = true;
            return;
        }
        let at = (self.received_start + self.received_length) % FIFO_SIZE;
        self.received[at] = byte;
        self.received_length += 1;
    }

    fn take_received(&mut self) -> u8 {
        if self.received_length == 0 {
            return 0;
        }
        let byte = self.received[self.received_start % FIFO_SIZE];
        self.received_start = (self.received_start + 1) % FIFO_SIZE;
        self.received_length -= 1;
        byte
    }

    /// The most urgent enabled reason for an interrupt.
    fn interrupt_id(&self) -> u8 {
        let trigger = if self.has_fifo() {
            [1, 4, 8, 14][usize::from(self.fifo_control >> 6)]
        } else {
            1
        };
        if self.overrun && self.interrupt_enable & ENABLE_LINE_STATUS != 0 {
            ID_LINE_STATUS
        } else if self.interrupt_enable & ENABLE_RECEIVE != 0 && self.received_length >= trigger {
            ID_RECEIVED
        } else if self.interrupt_enable & ENABLE_RECEIVE != 0 && self.received_length > 0 {
            // Nothing more is on its way, so the four character times are over.
            ID_TIMEOUT
        } else if self.interrupt_enable & ENABLE_TRANSMIT != 0 && self.transmit_interrupt {
            ID_TRANSMIT
        } else {
            ID_NONE
        }
    }

    /// The interrupt line.
    pub fn interrupt(&self) -> bool {
        self.modem_control & (MODEM_OUT2 | MODEM_LOOP) == MODEM_OUT2
            && self.interrupt_id() != ID_NONE
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::platform::test_host::TestHost;

    #[test]
    fn output_goes_to_the_host_by_lines() {
        let host = TestHost::default();
        let mut serial = Serial::default();
        for byte in b"one\ntw" {
            serial.write(0, *byte, &host);
        }
        assert_eq!(host.take_serial(), b"one\n");
        let at = serial.flush_at_ns().unwrap();
        serial.service(&host, at - 1);
        assert_eq!(host.take_serial(), b"");
        serial.service(&host, at);
        assert_eq!(host.take_serial(), b"tw");
        assert_eq!(serial.flush_at_ns(), None);
        for _ in 0..300 {
            serial.write(0, b'x', &host);
        }
        assert_eq!(host.take_serial().len(), 256);
        assert_eq!(serial.bytes_written(), 306);
    }

    #[test]
    fn the_transmit_interrupt_is_as_linux_tests_it() {
        let host = TestHost::default();
        let mut serial = Serial::default();
        serial.write(4, 0x0B, &host);
        for _ in 0..2 {
            // serial8250_do_startup: enabling must raise it, again after being disabled.
            serial.write(1, 2, &host);
            assert!(serial.interrupt());
            assert_eq!(serial.read(2) & 0xF, ID_TRANSMIT);
            assert!(!serial.interrupt(), "reading the reason clears it");
            assert_eq!(serial.read(2) & 0xF, ID_NONE);
            serial.write(1, 0, &host);
        }
        serial.write(1, 2, &host);
        let _ = serial.read(2);
        serial.write(0, b'a', &host);
        assert!(serial.interrupt(), "empty again after each byte");
        serial.write(4, 0, &host);
        assert!(!serial.interrupt(), "OUT2 connects the line");
    }

    #[test]
    fn input_interrupts_at_the_trigger_or_as_a_timeout() {
        let host = TestHost::default();
        let mut serial = Serial::default();
        serial.write(4, 8, &host);
        serial.write(2, 0x81, &host);
        serial.write(1, 1, &host);
        serial.receive(b'a');
        assert_eq!(serial.read(2), ID_FIFO | ID_TIMEOUT);
        for _ in 0..7 {
            serial.receive(b'b');
        }
        assert_eq!(serial.read(2), ID_FIFO | ID_RECEIVED);
        assert_eq!(serial.read(5) & 1, 1);
        assert_eq!(serial.read(0), b'a');
        for _ in 0..9 {
            assert!(serial.can_receive());
            serial.receive(b'c');
        }
        assert!(!serial.can_receive());
        serial.receive(b'd');
        assert_eq!(serial.read(5) & 2, 2, "overrun");
        assert_eq!(serial.read(5) & 2, 0);
        for _ in 0..16 {
            let _ = serial.read(0);
        }
        assert!(!serial.interrupt());
        assert_eq!(serial.read(5), 0x60);
    }

    #[test]
    fn loop_mode_is_what_linux_probes() {
        let host = TestHost::default();
        let mut serial = Serial::default();
        serial.write(4, 0x1A, &host);
        assert_eq!(serial.read(6) & 0xF0, 0x90);
        serial.write(0, 0x42, &host);
        assert_eq!(serial.read(0), 0x42);
        assert_eq!(host.take_serial(), b"");
        serial.write(7, 0xA5, &host);
        assert_eq!(serial.read(7), 0xA5);
        serial.write(1, 0xFF, &host);
        assert_eq!(serial.read(1), 0x0F);
        serial.write(3, 0x83, &host);
        serial.write(0, 1, &host);
        serial.write(1, 0, &host);
        assert_eq!((serial.read(0), serial.read(1)), (1, 0), "divisor");
    }

    proptest! {
        #[test]
        fn any_access_is_survived(ops in proptest::collection::vec(any::<(u8, u16, u8)>(), 1..400)) {
            let host = TestHost::default();
            let mut serial = Serial::default();
            for (op, offset, value) in ops {
                match op % 3 {
                    0 => serial.write(offset % 9, value, &host),
                    1 => { let _ = serial.read(offset % 9); }
                    _ => serial.receive(value),
                }
                let _ = serial.interrupt();
            }
        }
    }
}
