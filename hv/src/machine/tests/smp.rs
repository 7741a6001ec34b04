//! Several vCPUs: how they start, reach and stop each other, and what the box hears of it.

use super::*;
use crate::device::virtio::test_driver;
use crate::platform::Rest;
use crate::platform::layout::{IO_APIC, VirtioSlot};

/// Two vCPUs, each with its script. The first is at `CODE`, the second waits for its startup.
struct Two<'h> {
    host: &'h Box0,
    machine: Machine<'h>,
    scripts: [Arc<Shared>; 2],
}

impl<'h> Two<'h> {
    fn new(host: &'h Box0, code: &[u8], exits: [&[Exit]; 2]) -> Self {
        let memory = GuestMemory::allocate(2 << 20).unwrap();
        memory.write(CODE, code).unwrap();
        let players = [Player::default(), Player::default()];
        let scripts = [Arc::clone(&players[0].0), Arc::clone(&players[1].0)];
        for (script, exits) in scripts.iter().zip(exits) {
            script.borrow_mut().exits = exits.iter().copied().collect();
        }
        let config = MachineConfig {
            mac: Some([2, 0, 0, 0, 0, 1]),
            block: None,
            debug_exit: true,
            wake_micros: 10,
            collect_micros: 100,
        };
        let vcpus = players
            .into_iter()
            .map(|player| Box::new(player) as Box<dyn Vcpu + Send>)
            .collect();
        let machine = Machine::new(&config, memory, vcpus, host);
        let segment = Segment {
            limit: u32::MAX,
            ..Segment::default()
        };
        {
            let mut script = scripts[0].borrow_mut();
            script.system = System {
                cs: segment,
                ss: segment,
                ds: segment,
                es: segment,
                ..System::default()
            };
            script.registers = Registers {
                rip: CODE,
                rflags: RFLAGS_ONE,
                ..Registers::default()
            };
        }
        // Both take interrupts.
        for vcpu in 0..2 {
            machine
                .with_platform(|platform| platform.apic_msr_write(vcpu, 0x80F, 0x1FF))
                .unwrap();
        }
        Self {
            host,
            machine,
            scripts,
        }
    }

    /// The second vCPU executes WRMSR to the interrupt command register or the first one does.
    fn send(&self, from: usize, command: u64) {
        self.machine
            .with_platform(|platform| platform.apic_msr_write(from, 0x830, command))
            .unwrap();
    }

    /// The first vCPU writes to a device's register.
    fn store(&self, at: u64, value: u64) {
        let memory = self.machine.memory();
        self.machine
            .with_platform(|platform| platform.mmio_write(memory, 0, at, 4, value))
            .unwrap();
    }

    /// Frames that have left the guest.
    fn sent(&self) -> u64 {
        self.machine
            .with_platform(|platform| platform.counters().net.sent)
    }

    fn kicked(&self) -> u64 {
        self.host.kicked.swap(0, Ordering::Relaxed)
    }

    fn script(&self, vcpu: usize) -> MutexGuard<'_, Script> {
        self.scripts[vcpu].borrow()
    }

    /// Starts the second vCPU at page 9 and leaves it where its script ends.
    fn start_second(&self) {
        self.send(0, 0xC_4500);
        self.send(0, 0xC_4609);
    }
}

const INIT_ALL_OTHERS: u64 = 0xC_4500;
const STARTUP_ALL_OTHERS: u64 = 0xC_4600;

#[test]
fn a_vcpu_waits_for_its_startup_and_starts_where_it_says() {
    let host = Box0::default();
    let two = Two::new(&host, &[], [&[], &[Exit::HostInterrupt]]);
    assert_eq!(two.machine.run(1, 1), Left::Resting(None));
    assert!(two.script(1).entries.is_empty());
    // INIT, SIPI, SIPI by broadcast, back to back, before it looks.
    two.send(0, INIT_ALL_OTHERS);
    two.send(0, STARTUP_ALL_OTHERS | 0x9A);
    two.send(0, STARTUP_ALL_OTHERS | 0x9A);
    assert_eq!(two.kicked() & 0b10, 0b10);
    host.leave.store(false, Ordering::Relaxed);
    assert_eq!(two.machine.run(1, 1), Left::Stopped, "its script has ended");
    let script = two.script(1);
    assert_eq!(script.entries.len(), 2);
    assert_eq!(
        (script.system.cs.selector, script.system.cs.base),
        (0x9A00, 0x9_A000)
    );
    assert_eq!(script.system.cr0 & 1, 0, "real mode");
    assert_eq!(script.system.pat, PAT_RESET);
}

#[test]
fn a_startup_without_init_is_ignored() {
    let host = Box0::default();
    let two = Two::new(&host, &[], [&[], &[]]);
    two.start_second();
    {
        let mut second = two.machine.processors[1].lock();
        two.machine.with_platform(|platform| {
            assert_eq!(second.deliver(platform), None);
            assert_eq!(second.deliver(platform), None);
        });
        assert_eq!(second.rest, None);
    }
    two.send(0, STARTUP_ALL_OTHERS | 0x33);
    let mut second = two.machine.processors[1].lock();
    two.machine
        .with_platform(|platform| second.deliver(platform));
    assert_eq!(second.vcpu.system().cs.selector, 0x900);
}

#[test]
fn init_stops_a_running_vcpu_and_an_nmi_waits_for_its_startup() {
    let host = Box0::default();
    let two = Two::new(&host, &[], [&[], &[Exit::HostInterrupt; 2]]);
    two.start_second();
    // Whoever is asked to leave does so before it enters.
    host.leave.store(true, Ordering::Relaxed);
    assert_eq!(two.machine.run(1, 1), Left::Preempted);
    two.send(0, INIT_ALL_OTHERS);
    assert_eq!(two.machine.run(1, 1), Left::Resting(None));
    two.send(0, 0xC_4400); // NMI to all others
    assert_eq!(two.machine.run(1, 1), Left::Resting(None), "held back");
    two.send(0, STARTUP_ALL_OTHERS | 0x10);
    assert_eq!(two.machine.run(1, 1), Left::Stopped);
    let entries = two.script(1).entries.clone();
    assert_eq!(entries[0].0, None, "the startup");
    assert_eq!(entries[1].0, Some(Event::Nmi));
}

#[test]
fn an_interrupt_for_another_vcpu_kicks_it() {
    let host = Box0::default();
    // mov ecx, 0x830; wrmsr: to the second by physical identifier, vector 41h.
    let two = Two::new(&host, &[0x0F, 0x30], [&[Exit::WriteMsr], &[]]);
    {
        let registers = &mut two.scripts[0].borrow_mut().registers;
        registers.set(Gpr::Rcx, 0x830);
        registers.set(Gpr::Rax, 0x41);
        registers.set(Gpr::Rdx, 1);
    }
    assert_eq!(two.machine.run(0, 0), Left::Stopped);
    assert_eq!(two.kicked(), 0b10);
    assert_eq!(
        two.machine
            .with_platform(|platform| platform.pending_interrupt(1)),
        Some(0x41)
    );
}

#[test]
fn a_stop_reaches_every_vcpu() {
    let host = Box0::default();
    let two = Two::new(&host, &[], [&[], &[]]);
    assert_eq!(two.machine.run(0, 0), Left::Stopped);
    assert_eq!(two.kicked(), 0b10);
    assert_eq!(two.machine.run(1, 1), Left::Stopped);
    assert!(two.script(1).entries.is_empty(), "it never ran");
    two.machine.release(0, 0);
    let stop = two.machine.stop().unwrap();
    assert_eq!(
        (stop.reason, stop.evidence.vcpu),
        (StopReason::TripleFault, 0)
    );
    assert!(two.machine.stop().is_none(), "said once");
}

#[test]
fn a_guest_is_dead_only_when_nobody_can_wake_anybody() {
    let host = Box0::default();
    // HLT with interrupts off on the first; the second halts with interrupts off too, and later.
    let two = Two::new(&host, &[0xF4], [&[Exit::Halt], &[Exit::Halt]]);
    two.start_second();
    two.machine.memory().write(0x9000, &[0xF4]).unwrap();
    assert_eq!(two.machine.run(0, 0), Left::Resting(None));
    // The second could still send it an NMI.
    two.machine.release(0, 0);
    assert_eq!(two.machine.run(1, 1), Left::Stopped);
    two.machine.release(1, 1);
    assert_eq!(
        two.machine.stop().map(|stop| stop.reason),
        Some(StopReason::HaltedForEver)
    );
    // With an NMI on its way it is not.
    let two = Two::new(&host, &[0xF4, 0xF4], [&[Exit::Halt], &[Exit::Halt]]);
    two.start_second();
    two.machine.memory().write(0x9000, &[0xF4]).unwrap();
    assert_eq!(two.machine.run(0, 0), Left::Resting(None));
    two.send(1, 0xC_4400);
    assert_eq!(two.machine.run(1, 1), Left::Resting(None));
    assert_eq!(two.machine.run(0, 0), Left::Stopped, "its script has ended");
    assert_eq!(two.script(0).entries.last().unwrap().0, Some(Event::Nmi));
}

/// A hypercall by the first vCPU; gives its answer.
fn hypercall(two: &Two<'_>, cpl: u16, arguments: [u64; 5]) -> i64 {
    let mut processor = two.machine.processors[0].lock();
    let mut system = processor.vcpu.system();
    system.ss.attributes = cpl << 5;
    system.efer = 0x500;
    system.cs.attributes = 1 << 9;
    processor.vcpu.set_system(&system);
    let registers = processor.vcpu.registers_mut();
    let names = [Gpr::Rax, Gpr::Rbx, Gpr::Rcx, Gpr::Rdx, Gpr::Rsi];
    for (name, value) in names.into_iter().zip(arguments) {
        registers.set(name, value);
    }
    processor.hypercall();
    processor.vcpu.registers().get(Gpr::Rax) as i64
}

#[test]
fn one_hypercall_interrupts_many() {
    let host = Box0::default();
    let two = Two::new(&host, &[], [&[], &[]]);
    assert_eq!(
        hypercall(&two, 0, [10, 0b111, 0, 0, 0xFD]),
        2,
        "there are two"
    );
    assert_eq!(two.kicked(), 0b10, "nobody kicks itself");
    let pending = two
        .machine
        .with_platform(|platform| [0, 1].map(|vcpu| platform.pending_interrupt(vcpu)));
    assert_eq!(pending, [Some(0xFD), Some(0xFD)]);
    // The bitmap begins at an identifier, and its second word is for those from 64 on.
    assert_eq!(hypercall(&two, 0, [10, 1, 0, 1, 0xFC]), 1);
    assert_eq!(hypercall(&two, 0, [10, 0, 1, 0, 0xFC]), 0);
    assert_eq!(hypercall(&two, 0, [10, 1, 0, u64::MAX, 0xFC]), 0);
    // Lowest priority, INIT and the like are not for it; users may not; other numbers are unknown.
    assert_eq!(hypercall(&two, 0, [10, 1, 0, 0, 0x1FC]), -22);
    assert_eq!(hypercall(&two, 3, [10, 1, 0, 0, 0xFC]), -1);
    assert_eq!(hypercall(&two, 0, [11, 0, 0, 0, 0]), -1000);
}

#[test]
fn a_kick_by_hypercall_ends_a_halt_with_interrupts_off() {
    let host = Box0::default();
    let two = Two::new(&host, &[0xF4], [&[], &[Exit::Halt]]);
    two.start_second();
    two.machine.memory().write(0x9000, &[0xF4]).unwrap();
    assert_eq!(two.machine.run(1, 1), Left::Resting(None));
    assert_eq!(hypercall(&two, 0, [5, 0, 1, 0, 0]), 0);
    assert_eq!(two.kicked() & 0b10, 0b10);
    assert_eq!(two.machine.run(1, 1), Left::Stopped, "its script has ended");
    assert_eq!(two.script(1).entries.len(), 2);
    // Nobody has that identifier.
    assert_eq!(hypercall(&two, 0, [5, 0, 77, 0, 0]), 0);
}

#[test]
fn steal_time_tells_what_others_had_and_asks_for_flushes() {
    let host = Box0::default();
    let scene = Scene::new(&host, &[0x0F, 0x30], &[Exit::WriteMsr]);
    scene.set(|registers| {
        registers.set(Gpr::Rcx, 0x4B56_4D03);
        registers.set(Gpr::Rax, 0x9001);
    });
    host.stolen.store(1234, Ordering::Relaxed);
    let _ = scene.machine.run(0, 0);
    let memory = scene.machine.memory();
    assert_eq!(memory.read_u64(0x9000), Ok(1234));
    assert_eq!(memory.read_u32(0x9008), Ok(2), "even: complete");
    assert_eq!(memory.read_u8(0x9010), Ok(0), "running");
    scene.machine.release(0, 0);
    assert_eq!(memory.read_u8(0x9010), Ok(1), "not running");
    // Another vCPU asks for a flush instead of an interrupt.
    memory.write_u8(0x9010, 3).unwrap();
    scene.processor().resume_steal_time();
    assert_eq!(scene.script.borrow().flushes, 1);
    assert_eq!(memory.read_u8(0x9010), Ok(0));
    scene.processor().resume_steal_time();
    assert_eq!(scene.script.borrow().flushes, 1);
}

#[test]
fn device_work_that_one_vcpu_makes_is_told_to_the_one_that_does_it() {
    let host = Box0::default();
    let two = Two::new(&host, &[], [&[], &[]]);
    two.machine
        .with_platform(|platform| platform.next_deadline_ns(0));
    // A byte without an end of line waits for the next ones, or for its time.
    let shared = Arc::clone(&two.machine.shared);
    shared.with_platform(1, |platform| {
        platform.port_write(&shared.memory, 0x3F8, 1, b'x'.into());
    });
    assert_eq!(two.kicked(), 0b01);
    let due = two
        .machine
        .with_platform(|platform| platform.next_deadline_ns(0));
    assert!(due.is_some());
    // It knows now.
    shared.with_platform(1, |platform| {
        platform.port_write(&shared.memory, 0x3F8, 1, b'y'.into());
    });
    assert_eq!(two.kicked(), 0);
}

/// The network interface, which collects what it is given from now on, and has sent two frames.
fn collecting<'h>(host: &'h Box0, exits: &[Exit]) -> Two<'h> {
    let two = Two::new(host, &[], [exits, &[]]);
    let memory = two.machine.memory();
    for (register, value) in test_driver::START_TRANSMIT {
        two.store(VirtioSlot::Net.address() + register, value);
    }
    test_driver::fill_transmit(memory);
    for count in [1, 2] {
        test_driver::send_up_to(memory, count);
        two.store(VirtioSlot::Net.address() + 0x50, 1);
    }
    assert_eq!(two.sent(), 2);
    two
}

#[test]
fn frames_do_not_wait_for_a_vcpu_that_must_leave() {
    let host = Box0::default();
    let two = collecting(&host, &[]);
    test_driver::send_up_to(two.machine.memory(), 3);
    assert_eq!(two.sent(), 2);
    host.leave.store(true, Ordering::Relaxed);
    assert_eq!(two.machine.run(0, 0), Left::Preempted);
    assert_eq!(two.sent(), 3);
    let due = two
        .machine
        .with_platform(|platform| platform.next_deadline_ns(0));
    assert_eq!(due, None);
}

/// What a vCPU is told of frames that it leaves behind when it halts ends that halt.
#[test]
fn frames_that_a_halting_vcpu_leaves_behind_are_sent_and_wake_it() {
    const VECTOR: u8 = 0x50;
    let host = Box0::default();
    let two = collecting(&host, &[Exit::HostInterrupt]);
    let memory = two.machine.memory();
    let pin = 0x10 + 2 * u64::from(VirtioSlot::Net.gsi());
    two.store(IO_APIC, pin);
    two.store(IO_APIC + 0x10, VECTOR.into());
    // It has seen what was sent so far.
    two.store(VirtioSlot::Net.address() + 0x64, 1);
    two.machine.with_platform(|platform| {
        platform.service(memory, 0, false);
        assert_eq!(platform.pending_interrupt(0), Some(VECTOR));
        platform.accept_interrupt(0, VECTOR);
        platform.end_of_interrupt(0);
        assert_eq!(platform.pending_interrupt(0), None);
    });
    test_driver::send_up_to(memory, 3);
    let mut processor = two.machine.processors[0].lock();
    (processor.called, processor.rest) = (false, Some(Rest::Halted));
    processor.vcpu.registers_mut().rflags |= RFLAGS_IF;
    assert!(matches!(processor.turn(), Ok(None)), "it does not rest");
    assert_eq!(two.sent(), 3);
    let entries = two.script(0).entries.clone();
    assert_eq!(entries, [(Some(Event::Interrupt(VECTOR)), false)]);
}

#[test]
fn a_vcpu_is_unloaded_only_from_the_cpu_that_has_it() {
    let host = Box0::default();
    let two = Two::new(&host, &[], [&[Exit::HostInterrupt], &[]]);
    let loaded_on = || two.machine.processors[0].lock().may_run_on(7);
    // It stays on CPU 3 when that is wanted for something else.
    two.script(0).exits.push_back(Exit::HostInterrupt);
    host.leave_after.store(2, Ordering::Relaxed);
    assert_eq!(two.machine.run(0, 3), Left::Preempted);
    assert!(!loaded_on());
    // CPU 7 waits for that, until it is wanted itself; that it gives up does not unload it elsewhere.
    host.leave.store(true, Ordering::Relaxed);
    assert_eq!(two.machine.run(0, 7), Left::Preempted);
    two.machine.release(0, 7);
    assert!(!loaded_on());
    two.machine.release(0, 3);
    assert!(loaded_on());
}

#[test]
fn a_vcpu_that_was_never_started_wakes_nobody() {
    let host = Box0::default();
    // The first sends INIT to itself; the second has not even been looked at.
    let two = Two::new(&host, &[], [&[], &[]]);
    two.send(0, 0x4500);
    assert_eq!(two.machine.run(0, 0), Left::Stopped);
    two.machine.release(0, 0);
    assert_eq!(
        two.machine.stop().map(|stop| stop.reason),
        Some(StopReason::SelfInit)
    );
}
