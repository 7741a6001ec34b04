use proptest::prelude::*;

use super::test_host::TestHost;
use super::*;
use crate::device::virtio::test_driver;
use crate::platform::layout::{IO_APIC, LOCAL_APIC, port};

fn config(apic_mode: ApicMode) -> PlatformConfig {
    PlatformConfig {
        vcpus: 2,
        apic_mode,
        mac: Some([2, 0, 0, 0, 0, 1]),
        block: Some(crate::device::virtio::block::BlockConfig {
            sectors: 64,
            block_bytes: 512,
        }),
        debug_exit: true,
        wake_micros: 10,
        collect_micros: 100,
    }
}

struct Machine<'h> {
    mem: GuestMemory,
    platform: Platform<'h>,
    host: &'h TestHost,
}

impl<'h> Machine<'h> {
    fn new(host: &'h TestHost) -> Self {
        let mut machine = Self {
            mem: GuestMemory::allocate(2 << 20).unwrap(),
            platform: Platform::new(&config(ApicMode::X2Apic), host),
            host,
        };
        machine.msr(0x80F, 0x1FF);
        machine
    }

    fn read(&mut self, port: u16, width: u8) -> u32 {
        self.platform.port_read(&self.mem, port, width)
    }

    fn write(&mut self, port: u16, width: u8, value: u32) {
        self.platform.port_write(&self.mem, port, width, value);
    }

    fn msr(&mut self, msr: u32, value: u64) {
        self.platform.apic_msr_write(0, msr, value).unwrap();
    }

    fn load(&mut self, gpa: u64) -> Option<u64> {
        self.platform.mmio_read(&self.mem, 0, gpa, 4)
    }

    fn store(&mut self, gpa: u64, value: u64) -> Option<()> {
        self.platform.mmio_write(&self.mem, 0, gpa, 4, value)
    }

    fn route(&mut self, gsi: u8, entry: u64) {
        self.store(IO_APIC, u64::from(0x10 + 2 * gsi)).unwrap();
        self.store(IO_APIC + 0x10, entry).unwrap();
    }

    fn take(&mut self) -> Option<u8> {
        let vector = self.platform.pending_interrupt(0)?;
        self.platform.accept_interrupt(0, vector);
        Some(vector)
    }
}

#[test]
fn nothing_reads_as_all_ones() {
    let host = TestHost::default();
    let mut machine = Machine::new(&host);
    assert_eq!(machine.read(0x1234, 4), 0xFFFF_FFFF);
    assert_eq!(machine.read(0x60, 1), 0xFF);
    assert_eq!(machine.read(0x3F0, 2), 0xFFFF);
    machine.write(0x1234, 2, 0);
    let counters = machine.platform.counters();
    assert_eq!(counters.unclaimed_ports, 9);
    assert_eq!(counters.last_unclaimed_port, 0x1235);
    assert_eq!(machine.load(0xC000_0000), None);
    assert_eq!(machine.load(LOCAL_APIC), None, "in x2APIC mode");
    assert_eq!(machine.store(0xFEC0_1000, 0), None);
    let counters = machine.platform.counters();
    assert_eq!((counters.unclaimed_memory, counters.lost_writes), (3, 1));
    assert_eq!(counters.last_unclaimed_address, 0xFEC0_1000);
}

#[test]
fn a_move_of_the_local_apic_is_counted_apart_from_other_refusals() {
    let host = TestHost::default();
    let mut machine = Machine::new(&host);
    (0..100).for_each(|msr| machine.platform.note_refused_msr(msr));
    let moved = machine
        .platform
        .apic_msr_write(0, IA32_APIC_BASE, 0xFEF0_0900);
    assert!(moved.is_err());
    assert_eq!(machine.platform.counters().refused_apic_bases, 1);
}

#[test]
fn serial_output_and_input_go_through_the_io_apic() {
    let host = TestHost::default();
    let mut machine = Machine::new(&host);
    machine.route(4, 0x34);
    machine.write(port::COM1 + 4, 1, 8);
    machine.write(port::COM1 + 1, 1, 1);
    for byte in b"ok\n" {
        machine.write(port::COM1, 1, u32::from(*byte));
    }
    assert_eq!(host.take_serial(), b"ok\n");
    assert_eq!(machine.take(), None);
    host.type_in(b"y");
    machine.platform.service(&machine.mem, 0, true);
    assert!(machine.platform.wakes(0, Rest::Halted, false));
    assert_eq!(machine.take(), Some(0x34));
    assert_eq!(machine.read(port::COM1, 1), u32::from(b'y'));
    machine.write(port::COM1, 1, u32::from(b'n'));
    machine.platform.flush_output();
    assert_eq!(host.take_serial(), b"n");
}

#[test]
fn power_events_are_kept() {
    for (port, width, value, event) in [
        (port::PM1_CONTROL, 2, 0x3400, PowerEvent::Off),
        (port::RESET_CONTROL, 1, 6, PowerEvent::Reset),
        (port::KEYBOARD_COMMAND, 1, 0xFE, PowerEvent::Reset),
        (port::SYSTEM_CONTROL_A, 1, 3, PowerEvent::Reset),
        (port::DEBUG_EXIT, 4, 7, PowerEvent::DebugExit(15)),
    ] {
        let host = TestHost::default();
        let mut machine = Machine::new(&host);
        assert_eq!(machine.platform.power_event(), None);
        machine.write(port, width, value);
        assert_eq!(machine.platform.power_event(), Some(event));
        machine.write(port::DEBUG_EXIT, 4, 0x1000);
        assert_eq!(
            machine.platform.power_event(),
            Some(event),
            "the first counts"
        );
    }
}

#[test]
fn the_power_button_is_a_level_interrupt() {
    let host = TestHost::default();
    let mut machine = Machine::new(&host);
    machine.route(9, 0x8031);
    machine.write(port::PM1_EVENT + 2, 2, 0x100);
    machine.platform.press_power_button();
    assert_eq!(machine.take(), Some(0x31));
    machine.msr(0x80B, 0);
    assert_eq!(machine.take(), Some(0x31), "still pressed");
    machine.write(port::PM1_EVENT, 2, 0x100);
    machine.msr(0x80B, 0);
    assert_eq!(machine.take(), None);
}

#[test]
fn what_an_acknowledgement_leaves_interrupts_again() {
    let host = TestHost::default();
    let mut machine = Machine::new(&host);
    machine.route(17, 0x44);
    let console = layout::VirtioSlot::Console.address();
    // Up to FEATURES_OK, then a queue at an odd address: the device needs a reset and says so.
    for (offset, value) in [(0x24, 1), (0x20, 1), (0x70, 0xB), (0x80, 1), (0x44, 1)] {
        machine.store(console + offset, value).unwrap();
    }
    assert_eq!(machine.load(console + 0x60), Some(2));
    assert_eq!(machine.take(), Some(0x44));
    machine.msr(0x80B, 0);
    // The driver acknowledges what it saw before that: the ring's interrupt.
    machine.store(console + 0x64, 1).unwrap();
    assert_eq!(machine.take(), Some(0x44), "it has not seen the other");
    machine.msr(0x80B, 0);
    machine.store(console + 0x64, 2).unwrap();
    assert_eq!(machine.take(), None);
}

#[test]
fn timers_are_foreseen_and_fire() {
    let host = TestHost::default();
    let mut machine = Machine::new(&host);
    assert_eq!(machine.platform.next_deadline_ns(0), None);
    machine.msr(0x832, 0x4_00EF);
    machine.platform.set_tsc_deadline(0, 10_000, 4_000);
    assert_eq!(machine.platform.next_deadline_ns(0), Some(3_000));
    assert_eq!(machine.platform.tsc_deadline(0), 10_000);
    host.set_now(3_000);
    machine.platform.service(&machine.mem, 0, true);
    assert_eq!(machine.take(), Some(0xEF));
    assert!(machine.platform.end_needs_no_exit(0));
    machine.platform.end_of_interrupt(0);
    machine.platform.set_tsc_deadline(0, 1, 5_000);
    assert_eq!(
        machine.take(),
        Some(0xEF),
        "a deadline in the past needs no service"
    );
    machine.write(port::COM1, 1, u32::from(b'x'));
    machine.platform.service(&machine.mem, 0, false);
    assert_eq!(machine.platform.next_deadline_ns(0), Some(20_003_000));
}

#[test]
fn devices_are_looked_at_when_they_may_have_something_to_do() {
    let host = TestHost::default();
    let mut machine = Machine::new(&host);
    let has_input = |machine: &mut Machine<'_>| machine.read(port::COM1 + 5, 1) & 1 != 0;
    machine.platform.service(&machine.mem, 0, true);
    // Input comes with a call, and is the first vCPU's to see to.
    host.type_in(b"a");
    machine.platform.service(&machine.mem, 0, false);
    machine.platform.service(&machine.mem, 1, true);
    assert!(!has_input(&mut machine), "nobody was called");
    machine.platform.service(&machine.mem, 0, true);
    assert!(has_input(&mut machine));
    // So may any access to a device, by whichever vCPU.
    assert_eq!(machine.read(port::COM1, 1), u32::from(b'a'));
    host.type_in(b"b");
    machine.platform.service(&machine.mem, 1, false);
    assert!(has_input(&mut machine), "the port was read");
    // What is due by the clock is the first vCPU's, and it is told when another has brought it about.
    machine.platform.service(&machine.mem, 0, false);
    let _ = machine.platform.next_deadline_ns(0);
    machine.write(port::COM1, 1, u32::from(b'x'));
    let touched = machine.platform.take_touched();
    assert!(touched.has(DEVICE_VCPU));
    machine.platform.service(&machine.mem, 1, false);
    let due = machine.platform.next_deadline_ns(0).unwrap();
    host.set_now(due);
    machine.platform.service(&machine.mem, 1, true);
    assert_eq!(host.take_serial(), b"");
    machine.platform.service(&machine.mem, 0, false);
    assert_eq!(host.take_serial(), b"x");
}

#[test]
fn a_line_that_no_local_apic_takes_is_told_again_without_a_device() {
    let host = TestHost::default();
    let mut machine = Machine::new(&host);
    machine.msr(0x80F, 0xFF);
    // The power button's line is level-triggered and low.
    machine.route(gsi::SCI, 0x8061);
    machine.write(port::PM1_EVENT + 2, 2, 1 << 8);
    machine.platform.press_power_button();
    machine.platform.service(&machine.mem, 0, false);
    machine.platform.service(&machine.mem, 0, false);
    assert_eq!(
        machine.platform.pending_interrupt(0),
        None,
        "it is switched off"
    );
    machine.msr(0x80F, 0x1FF);
    machine.platform.service(&machine.mem, 1, false);
    assert_eq!(machine.platform.pending_interrupt(0), Some(0x61));
}

#[test]
fn the_paravirtual_console_takes_the_input_it_earns() {
    let host = TestHost::default();
    let mut machine = Machine::new(&host);
    let window = VirtioSlot::Console.address();
    machine.route(VirtioSlot::Console.gsi(), 0x41);
    for (offset, value) in [
        (0x70, 3),
        (0x24, 1),
        (0x20, 1),
        (0x70, 11),
        (0x30, 0),
        (0x38, 8),
        (0x80, 0x1000),
        (0x90, 0x2000),
        (0xA0, 0x3000),
        (0x44, 1),
        (0x30, 1),
        (0x38, 8),
        (0x80, 0x4000),
        (0x90, 0x5000),
        (0xA0, 0x6000),
        (0x44, 1),
        (0x70, 15),
    ] {
        machine.store(window + offset, value).unwrap();
    }
    assert_eq!(machine.load(window + 0x70), Some(15));
    // An input buffer at 0x8000, output "hi" at 0x7000.
    let mem = &machine.mem;
    mem.write_u64(0x1000, 0x8000).unwrap();
    mem.write_u64(0x1008, 64 | 2 << 32).unwrap();
    mem.write_u16(0x2002, 1).unwrap();
    mem.write(0x7000, b"hi").unwrap();
    mem.write_u64(0x4000, 0x7000).unwrap();
    mem.write_u64(0x4008, 2).unwrap();
    mem.write_u16(0x5002, 1).unwrap();
    host.type_in(b"a");
    machine.platform.service(&machine.mem, 0, true);
    assert_eq!(machine.read(port::COM1, 1), u32::from(b'a'), "serial first");
    machine.store(window + 0x50, 1).unwrap();
    assert_eq!(machine.host.take_console(), b"hi");
    assert_eq!(
        machine.host.take_serial(),
        b"",
        "the serial port is another"
    );
    assert_eq!(machine.take(), Some(0x41));
    assert_eq!(machine.load(window + 0x60), Some(1));
    machine.store(window + 0x64, 1).unwrap();
    machine.msr(0x80B, 0);
    host.type_in(b"b");
    machine.platform.service(&machine.mem, 0, true);
    assert_eq!(machine.mem.read_u8(0x8000), Ok(b'b'));
    assert_eq!(machine.take(), Some(0x41), "a new edge");
    assert_eq!(machine.platform.counters().console_bytes, 2);
}

#[test]
fn apic_registers_answer_by_mode() {
    let host = TestHost::default();
    let mem = GuestMemory::allocate(2 << 20).unwrap();
    let mut platform = Platform::new(&config(ApicMode::XApic), &host);
    assert_eq!(
        platform.mmio_read(&mem, 1, LOCAL_APIC + 0x20, 4),
        Some(1 << 24)
    );
    assert_eq!(platform.apic_msr_read(1, 0x802), Err(GeneralProtection));
    assert_eq!(platform.apic_msr_read(0, 0x1B), Ok(0xFEE0_0900));
    assert_eq!(platform.apic_msr_write(1, 0x1B, 0xFEE0_0C00), Ok(()));
    assert_eq!(platform.mmio_read(&mem, 1, LOCAL_APIC + 0x20, 4), None);
    assert_eq!(platform.apic_msr_read(1, 0x802), Ok(1));
    assert_eq!(platform.apic_msr_read(7, 0x802), Err(GeneralProtection));
}

proptest! {
    /// Every sequence of accesses is answered; what a guest cannot do is break the machine.
    #[test]
    fn any_access_sequence_is_survived(
        ops in proptest::collection::vec((0_u8..9, any::<u16>(), any::<u64>()), 1..300),
    ) {
        let host = TestHost::default();
        let mut machine = Machine::new(&host);
        let mut now = 0_u64;
        let ports = [
            0x20, 0xA0, 0x4D0, 0x60, 0x70, 0x71, 0x80, 0x92, 0xF4, 0x3F8, 0x600, 0x608, 0x620, 0xCF8, 0xCFC,
        ];
        for (op, place, value) in ops {
            now += value & 0xFF_FFFF;
            host.set_now(now);
            let width = [1, 2, 4][usize::from(place >> 8) % 3];
            let port = match place & 1 {
                0 => place,
                _ => ports[usize::from(place >> 1 & 15) % ports.len()] + (place >> 5 & 7),
            };
            let gpa = match place & 3 {
                0 => IO_APIC + (value >> 32 & 0x4C),
                1 => VirtioSlot::ALL[usize::from(place >> 2) % 4].address() + (value >> 32 & 0x1FF),
                2 => LOCAL_APIC + (value >> 32 & 0xFFF),
                _ => value,
            };
            match op {
                0 => { let _ = machine.read(port, width); }
                1 => machine.write(port, width, value as u32),
                2 => { let _ = machine.platform.mmio_read(&machine.mem, 1, gpa, width); }
                3 => { let _ = machine.platform.mmio_write(&machine.mem, 1, gpa, width, value); }
                4 => { let _ = machine.platform.apic_msr_write(0, 0x800 + u32::from(place & 0x3F), value); }
                5 => { let _ = machine.platform.apic_msr_read(0, 0x800 + u32::from(place & 0x3F)); }
                6 => machine.platform.set_tsc_deadline(0, value, now),
                7 => {
                    host.type_in(&[value as u8]);
                    host.arrive(&[value as u8; 60]);
                    machine.platform.service(&machine.mem, 0, true);
                    if let Some(deadline) = machine.platform.next_deadline_ns(0) {
                        prop_assert!(deadline > now || deadline == 0, "{deadline} after {now}");
                    }
                }
                _ => {
                    machine.platform.press_power_button();
                    let _ = machine.take();
                    let _ = machine.platform.take_vcpu_event(1, false);
                }
            }
        }
    }
}

#[test]
fn a_watchdog_that_is_not_answered_ends_the_guest() {
    let host = TestHost::default();
    let mut machine = Machine::new(&host);
    let second = 1_000_000_000;
    machine.write(port::WATCHDOG + 4, 4, 10);
    machine.write(port::WATCHDOG, 4, 1);
    machine.platform.service(&machine.mem, 0, false);
    assert_eq!(machine.platform.next_deadline_ns(0), Some(10 * second));
    host.set_now(9 * second);
    machine.platform.service(&machine.mem, 0, true);
    machine.write(port::WATCHDOG + 12, 4, 1);
    machine.platform.service(&machine.mem, 0, false);
    assert_eq!(machine.platform.next_deadline_ns(0), Some(19 * second));
    host.set_now(18 * second);
    machine.platform.service(&machine.mem, 0, true);
    assert_eq!(machine.platform.power_event(), None);
    host.set_now(19 * second);
    machine.platform.service(&machine.mem, 1, true);
    assert_eq!(
        machine.platform.power_event(),
        None,
        "devices are the first vCPU's"
    );
    machine.platform.service(&machine.mem, 0, false);
    let event = machine.platform.power_event();
    assert_eq!(event, Some(PowerEvent::Watchdog(10)));
}

#[test]
fn another_vcpu_starting_the_watchdog_tells_the_one_that_looks_after_devices() {
    let host = TestHost::default();
    let mut machine = Machine::new(&host);
    let _ = machine.platform.next_deadline_ns(DEVICE_VCPU);
    let _ = machine.platform.take_touched();
    machine.write(port::WATCHDOG, 4, 1);
    assert!(machine.platform.take_touched().has(DEVICE_VCPU));
}

#[test]
fn there_is_a_disk_only_where_there_is_one() {
    let host = TestHost::default();
    let mut machine = Machine::new(&host);
    let window = VirtioSlot::Block.address();
    assert_eq!(machine.load(window + 8), Some(2));
    assert_eq!(machine.load(window + 0x100), Some(64), "sectors");
    let mut without = config(ApicMode::X2Apic);
    without.block = None;
    machine.platform = Platform::new(&without, &host);
    assert_eq!(machine.load(window), None);
    assert!(!without.acpi().virtio.contains(&VirtioSlot::Block));
}

#[test]
fn collected_frames_are_seen_to_by_the_vcpu_that_notified_and_do_not_wait_for_it() {
    let host = TestHost::default();
    let mut machine = Machine::new(&host);
    let window = VirtioSlot::Net.address();
    for (register, value) in test_driver::START_TRANSMIT {
        machine.store(window + register, value).unwrap();
    }
    test_driver::fill_transmit(&machine.mem);
    let notify = window + 0x50;
    let send = |machine: &mut Machine<'_>, count| test_driver::send_up_to(&machine.mem, count);
    let at = |machine: &mut Machine<'_>, micros: u64| {
        host.set_now(micros * 1_000);
        machine.platform.service(&machine.mem, 0, false);
        machine.platform.service(&machine.mem, 1, false);
        let due = [0, 1].map(|vcpu| machine.platform.next_deadline_ns(vcpu));
        (
            host.take_sent().len(),
            due.map(|due| due.map(|at| at / 1_000)),
        )
    };
    for count in [1, 2] {
        send(&mut machine, count);
        machine
            .platform
            .mmio_write(&machine.mem, 1, notify, 4, 1)
            .unwrap();
    }
    assert_eq!(at(&mut machine, 10), (2, [None, Some(100)]));
    send(&mut machine, 4);
    assert_eq!(at(&mut machine, 90), (0, [None, Some(100)]), "not yet");
    assert_eq!(at(&mut machine, 100), (2, [None, Some(200)]));
    send(&mut machine, 5);
    // It gives up its CPU.
    machine.platform.leaves(&machine.mem, 0);
    assert_eq!(at(&mut machine, 110), (0, [None, Some(200)]));
    machine.platform.leaves(&machine.mem, 1);
    assert_eq!(at(&mut machine, 120), (1, [None, None]));
    // And the other one notifies.
    for count in [6, 7] {
        send(&mut machine, count);
        machine.store(notify, 1).unwrap();
    }
    assert_eq!(at(&mut machine, 130), (2, [Some(220), None]));
}

/// Whoever leaves takes no more than one call may; the rest is seen to at once, by the vCPU that looks after the devices.
#[test]
fn more_frames_than_one_call_may_take_do_not_wait_either() {
    const CHAIN: u16 = 256;
    let host = TestHost::default();
    let mut machine = Machine::new(&host);
    let window = VirtioSlot::Net.address();
    for (register, value) in test_driver::START_TRANSMIT {
        let value = if register == 0x38 {
            CHAIN.into()
        } else {
            value
        };
        machine.store(window + register, value).unwrap();
    }
    // Each entry of the ring is the head of one chain of 256 buffers: two of them are a call's work.
    for index in 0..u64::from(CHAIN) {
        let descriptor = 0x1_0000 + 16 * index;
        machine.mem.write_u64(descriptor, 0x2_0000).unwrap();
        machine.mem.write_u32(descriptor + 8, 1).unwrap();
        let linked = u16::from(index + 1 < CHAIN.into());
        machine.mem.write_u16(descriptor + 12, linked).unwrap();
        let next = if linked == 1 { index as u16 + 1 } else { 0 };
        machine.mem.write_u16(descriptor + 14, next).unwrap();
    }
    for count in [1, 2] {
        test_driver::send_up_to(&machine.mem, count);
        let notified = machine
            .platform
            .mmio_write(&machine.mem, 1, window + 0x50, 4, 1);
        notified.unwrap();
    }
    let _ = machine.platform.next_deadline_ns(DEVICE_VCPU);
    let _ = machine.platform.take_touched();
    machine.platform.service(&machine.mem, 0, true);
    test_driver::send_up_to(&machine.mem, 7);
    assert!(machine.platform.leaves(&machine.mem, 1));
    assert!(machine.platform.take_touched().has(DEVICE_VCPU));
    let sent = |machine: &Machine<'_>| machine.platform.counters().net.sent;
    assert_eq!(sent(&machine), 4);
    for frames in [6, 7] {
        assert_eq!(machine.platform.next_deadline_ns(DEVICE_VCPU), Some(0));
        machine.platform.service(&machine.mem, DEVICE_VCPU, false);
        assert_eq!(sent(&machine), frames);
    }
    assert_eq!(machine.platform.next_deadline_ns(DEVICE_VCPU), None);
}
