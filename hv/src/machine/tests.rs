//! The run loop and the exit handlers, with a vCPU that plays a script.

use super::processor::SHADOW_NS;
use super::*;
use crate::cpu::{Delivery, Event, Gpr, Place, RFLAGS_ONE, Segment, System, Unavailable};
use crate::cpu::{GENERAL_PROTECTION, INVALID_OPCODE, NmiWindow, RFLAGS_IF, Registers};
use crate::exit::{Exit, ExitKind, MemoryAccess, PortAccess, Refusal};
use crate::host::{BlockDone, BlockRequest};
use crate::msr::PAT_RESET;
use crate::platform::test_host::TestHost;
use alloc::collections::VecDeque;
use alloc::string::ToString;
use alloc::vec::Vec;
use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, MutexGuard};

mod events;
mod memory;
mod smp;
mod stepping;

/// What the vCPU was told, and what it says.
#[derive(Default)]
struct Script {
    exits: VecDeque<Exit>,
    registers: Registers,
    system: System,
    xmm: [u128; 16],
    delivery: Option<Delivery>,
    injected: Vec<Event>,
    window: bool,
    nmi_window: NmiWindow,
    tsc_offset: u64,
    flushes: u32,
    /// What the tests look at: injections and windows as they were at each entry.
    entries: Vec<(Option<Event>, bool)>,
}

/// A script that the vCPU and the test have in common.
#[derive(Default)]
struct Shared(Mutex<Script>);

impl Shared {
    fn borrow(&self) -> MutexGuard<'_, Script> {
        self.0.lock().unwrap()
    }
    fn borrow_mut(&self) -> MutexGuard<'_, Script> {
        self.0.lock().unwrap()
    }
}

#[derive(Clone, Default)]
struct Player(Arc<Shared>, Registers);

impl Vcpu for Player {
    fn bind(&mut self, _: usize) -> Result<(), Unavailable> {
        self.1 = self.0.borrow().registers;
        Ok(())
    }
    fn unbind(&mut self) {
        self.0.borrow_mut().registers = self.1;
    }
    fn enter(&mut self) -> Exit {
        let mut script = self.0.borrow_mut();
        let injected = script.injected.pop();
        let window = script.window;
        script.entries.push((injected, window));
        script.exits.pop_front().unwrap_or(Exit::Shutdown)
    }
    fn registers(&self) -> &Registers {
        &self.1
    }
    fn registers_mut(&mut self) -> &mut Registers {
        &mut self.1
    }
    fn xmm(&self, index: usize) -> u128 {
        self.0.borrow().xmm[index]
    }
    fn set_xmm(&mut self, index: usize, value: u128) {
        self.0.borrow_mut().xmm[index] = value;
    }
    fn system(&self) -> System {
        self.0.borrow().system
    }
    fn set_system(&mut self, system: &System) {
        self.0.borrow_mut().system = *system;
    }
    fn next_rip(&self) -> Option<u64> {
        None
    }
    fn retire(&mut self, rip: u64) {
        self.1.rip = rip;
    }
    fn delivery(&self) -> Delivery {
        let script = self.0.borrow();
        match script.delivery {
            Some(delivery) => delivery,
            None if !script.injected.is_empty() => Delivery::Busy,
            None if self.1.rflags & RFLAGS_IF == 0 => Delivery::Masked,
            None => Delivery::Ready,
        }
    }
    fn nmi_window(&self) -> NmiWindow {
        self.0.borrow().nmi_window
    }
    fn inject(&mut self, event: Event) {
        self.0.borrow_mut().injected.push(event);
    }
    fn watch_window(&mut self, on: bool) {
        self.0.borrow_mut().window = on;
    }
    fn cancel_event(&mut self) {
        self.0.borrow_mut().injected.clear();
    }
    fn flush(&mut self) {
        self.0.borrow_mut().flushes += 1;
    }
    fn tsc_offset(&self) -> u64 {
        self.0.borrow().tsc_offset
    }
    fn set_tsc_offset(&mut self, offset: u64) {
        self.0.borrow_mut().tsc_offset = offset;
    }
    fn set_tsc_aux(&mut self, _: u32) {}
    fn raw_exit(&self) -> [u64; 3] {
        [7, 8, 9]
    }
    fn place(&self) -> Place {
        Place {
            cpus: [Some(3), None],
            cpu_save: Some(0x5000),
            is_hosts: true,
            ..Place::default()
        }
    }
}

/// The platform's test host, with a timer that idling waits for.
#[derive(Default)]
struct Box0 {
    inner: TestHost,
    kicked: AtomicU64,
    armings: AtomicU64,
    leave: AtomicBool,
    /// In so many questions, if not zero.
    leave_after: AtomicU64,
    stolen: AtomicU64,
    idled: AtomicU64,
    stop: AtomicBool,
    interrupts: AtomicU64,
}

impl Host for Box0 {
    fn now_ns(&self) -> u64 {
        self.inner.now_ns()
    }
    fn tsc_hz(&self) -> u64 {
        self.inner.tsc_hz()
    }
    fn boot_unix_seconds(&self) -> u64 {
        self.inner.boot_unix_seconds()
    }
    fn serial_write(&self, bytes: &[u8]) {
        self.inner.serial_write(bytes);
    }
    fn console_write(&self, bytes: &[u8]) {
        self.inner.console_write(bytes);
    }
    fn console_read(&self) -> Option<u8> {
        self.inner.console_read()
    }
    fn net_transmit(&self, frame: &[u8]) -> bool {
        self.inner.net_transmit(frame)
    }
    fn net_receive(&self, buffer: &mut [u8]) -> Option<usize> {
        self.inner.net_receive(buffer)
    }
    fn block_begin(&self, request: BlockRequest, buffer: Box<[u8]>) -> Result<u64, Box<[u8]>> {
        self.inner.block_begin(request, buffer)
    }
    fn block_end(&self) -> Option<BlockDone> {
        self.inner.block_end()
    }
    fn entropy(&self, buffer: &mut [u8]) {
        self.inner.entropy(buffer);
    }
    fn arm_timer(&self, _: Option<u64>) {
        self.armings.fetch_add(1, Ordering::Relaxed);
    }
    fn take_interrupts(&self) -> bool {
        self.interrupts.fetch_add(1, Ordering::Relaxed);
        true
    }
    fn must_leave(&self) -> bool {
        let left = self.leave_after.load(Ordering::Relaxed);
        self.leave_after
            .store(left.saturating_sub(1), Ordering::Relaxed);
        self.leave.swap(false, Ordering::Relaxed) || left == 1
    }
    fn kick(&self, vcpu: usize) {
        self.kicked.fetch_or(1 << vcpu, Ordering::Relaxed);
    }
    fn stolen_ns(&self, _: usize) -> u64 {
        self.stolen.load(Ordering::Relaxed)
    }
    fn stop_requested(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

const CODE: u64 = 0x1000;

struct Scene<'h> {
    host: &'h Box0,
    machine: Machine<'h>,
    script: Arc<Shared>,
}

impl<'h> Scene<'h> {
    /// A guest at `CODE` in real mode, with `code` there, that leaves as `exits` say and then triple-faults.
    fn new(host: &'h Box0, code: &[u8], exits: &[Exit]) -> Self {
        let memory = GuestMemory::allocate(2 << 20).unwrap();
        memory.write(CODE, code).unwrap();
        let player = Player::default();
        let script = Arc::clone(&player.0);
        {
            let mut script = script.borrow_mut();
            script.exits = exits.iter().copied().collect();
            let segment = Segment {
                limit: u32::MAX,
                ..Segment::default()
            };
            let system = &mut script.system;
            (system.cs, system.ss) = (segment, segment);
            (system.ds, system.es) = (segment, segment);
            script.registers = Registers {
                rip: CODE,
                rflags: RFLAGS_ONE,
                ..Registers::default()
            };
        }
        let config = MachineConfig {
            mac: None,
            block: None,
            debug_exit: true,
            wake_micros: 10,
            collect_micros: 100,
        };
        let machine = Machine::new(&config, memory, alloc::vec![Box::new(player)], host);
        Self {
            host,
            machine,
            script,
        }
    }

    fn set(&self, change: impl FnOnce(&mut Registers)) {
        change(&mut self.script.borrow_mut().registers);
    }

    fn run(&mut self) -> StopReason {
        self.run_to_stop().reason
    }

    /// Runs the vCPU as a box does that has nothing else to do.
    fn run_to_stop(&mut self) -> Stop {
        loop {
            match self.machine.run(0, 0) {
                Left::Stopped => break,
                Left::Preempted => {}
                Left::Resting(until) => {
                    self.machine.release(0, 0);
                    self.host.idled.fetch_add(1, Ordering::Relaxed);
                    match until {
                        // Nothing would ever wake it: the box stops the guest.
                        None => self.host.stop.store(true, Ordering::Relaxed),
                        Some(deadline) => self.host.inner.set_now(deadline),
                    }
                }
            }
        }
        self.machine.release(0, 0);
        self.machine.stop().unwrap()
    }

    fn write_apic(&self, msr: u32, value: u64) {
        self.machine
            .with_platform(|platform| platform.apic_msr_write(0, msr, value))
            .unwrap();
    }

    /// The vCPU by itself.
    fn processor(&self) -> impl core::ops::DerefMut<Target = Processor<'h>> {
        self.machine.processors[0].lock()
    }

    fn end_needs_no_exit(&self) -> bool {
        self.machine
            .with_platform(|platform| platform.end_needs_no_exit(0))
    }

    fn deliver(&self) -> Option<u64> {
        let mut processor = self.processor();
        self.machine
            .with_platform(|platform| processor.deliver(platform))
    }

    fn register(&self, register: Gpr) -> u64 {
        self.script.borrow().registers.get(register)
    }

    fn rip(&self) -> u64 {
        self.script.borrow().registers.rip
    }

    fn injected(&self) -> Vec<Event> {
        self.script
            .borrow()
            .entries
            .iter()
            .filter_map(|(event, _)| *event)
            .collect()
    }
}

fn out(port: u16, width: u8, next_rip: u64) -> Exit {
    Exit::Port(PortAccess {
        port,
        width,
        write: true,
        string: false,
        next_rip,
    })
}

fn memory_exit(address: u64) -> MemoryAccess {
    MemoryAccess {
        address,
        write: false,
        fetch: false,
        table_walk: false,
    }
}

#[test]
fn ports_reach_their_devices() {
    let host = Box0::default();
    let inb = Exit::Port(PortAccess {
        port: 0x3FD,
        width: 1,
        write: false,
        string: false,
        next_rip: CODE + 2,
    });
    let mut scene = Scene::new(&host, &[], &[inb, out(0x3F8, 1, CODE + 3)]);
    scene.set(|registers| registers.set(Gpr::Rax, 0x1122_3344_5566_7741));
    assert_eq!(scene.run(), StopReason::TripleFault);
    assert_eq!(
        scene.register(Gpr::Rax),
        0x1122_3344_5566_7760,
        "the line status, and the rest as before"
    );
    assert_eq!(host.inner.take_serial(), [0x60]);
    assert_eq!(scene.rip(), CODE + 3);
    // A 32-bit IN clears the upper half.
    let inl = Exit::Port(PortAccess {
        port: 0x5000,
        width: 4,
        write: false,
        string: false,
        next_rip: CODE,
    });
    let mut scene = Scene::new(&host, &[], &[inl]);
    scene.set(|registers| registers.set(Gpr::Rax, u64::MAX));
    scene.run();
    assert_eq!(scene.register(Gpr::Rax), 0xFFFF_FFFF);
}

#[test]
fn the_guest_ends_itself() {
    let host = Box0::default();
    let mut scene = Scene::new(&host, &[], &[out(0xF4, 4, CODE)]);
    scene.set(|registers| registers.set(Gpr::Rax, 5));
    assert_eq!(scene.run(), StopReason::DebugExit(11));
    let mut scene = Scene::new(&host, &[], &[out(0xCF9, 1, CODE)]);
    scene.set(|registers| registers.set(Gpr::Rax, 6));
    assert_eq!(scene.run(), StopReason::Reset);
}

#[test]
fn a_halt_that_nothing_can_end_stops_the_guest() {
    let host = Box0::default();
    assert_eq!(
        Scene::new(&host, &[0xF4], &[Exit::Halt]).run(),
        StopReason::HaltedForEver
    );
    // With interrupts on it sleeps, without entering the guest, until the box wants it to stop.
    let mut scene = Scene::new(&host, &[0xF4], &[Exit::Halt, Exit::Halt]);
    scene.set(|registers| registers.rflags |= RFLAGS_IF);
    assert_eq!(scene.run(), StopReason::Requested);
    assert_eq!(scene.script.borrow().entries.len(), 1);
    assert_eq!(scene.rip(), CODE + 1);
}

#[test]
fn cpuid_and_msrs_answer() {
    let host = Box0::default();
    let mut scene = Scene::new(
        &host,
        &[0x0F, 0xA2, 0x0F, 0x32],
        &[Exit::Cpuid, Exit::ReadMsr],
    );
    scene.set(|registers| registers.set(Gpr::Rax, 0x4000_0000));
    scene.run();
    assert_eq!(
        scene.register(Gpr::Rbx),
        u64::from(u32::from_le_bytes(*b"KVMK"))
    );
    // RCX was "VMKV" by then: no such MSR.
    assert_eq!(scene.injected(), [GENERAL_PROTECTION]);
    let counters = scene.machine.with_platform(|platform| platform.counters());
    assert_eq!(
        (counters.refused_msrs, counters.last_refused_msr),
        (1, u32::from_le_bytes(*b"VMKV"))
    );
    assert_eq!(scene.rip(), CODE + 2);

    let mut scene = Scene::new(&host, &[0x0F, 0x32], &[Exit::ReadMsr]);
    scene.set(|registers| registers.set(Gpr::Rcx, 0x1B));
    scene.run();
    assert_eq!(scene.register(Gpr::Rax), 0xFEE0_0D00);
    assert_eq!(scene.rip(), CODE + 2);
}

#[test]
fn the_paravirtual_clock_is_published() {
    let host = Box0::default();
    host.inner.set_now(5_000);
    let mut scene = Scene::new(&host, &[0x0F, 0x30], &[Exit::WriteMsr]);
    scene.set(|registers| {
        registers.set(Gpr::Rcx, 0x4B56_4D01);
        registers.set(Gpr::Rax, 0x8001);
    });
    scene.run();
    let memory = scene.machine.memory();
    assert_eq!(memory.read_u32(0x8000), Ok(2));
    assert_eq!(memory.read_u64(0x8010), Ok(5_000));
    assert_eq!(memory.read_u8(0x801D), Ok(1), "stable");
    assert_ne!(memory.read_u64(0x8008), Ok(0));
    // Outside its memory: the guest's own loss.
    let mut scene = Scene::new(&host, &[0x0F, 0x30], &[Exit::WriteMsr]);
    scene.set(|registers| {
        registers.set(Gpr::Rcx, 0x4B56_4D01);
        registers.set(Gpr::Rdx, 0xFFFF_FFFF);
        registers.set(Gpr::Rax, 0xFFFF_FFFD);
    });
    assert_eq!(scene.run(), StopReason::TripleFault);
    assert_eq!(scene.rip(), CODE + 2);
}

#[test]
fn efer_is_set_where_the_cpu_has_it() {
    let host = Box0::default();
    let mut scene = Scene::new(
        &host,
        &[0x0F, 0x30, 0x0F, 0x30],
        &[Exit::WriteMsr, Exit::WriteMsr],
    );
    scene.set(|registers| {
        registers.set(Gpr::Rcx, 0xC000_0080);
        registers.set(Gpr::Rax, 0x901);
    });
    scene.run();
    assert_eq!(scene.script.borrow().system.efer, 0x901);
}

#[test]
fn string_ports_are_emulated() {
    let host = Box0::default();
    let outsb = Exit::Port(PortAccess {
        port: 0x3F8,
        width: 1,
        write: true,
        string: true,
        next_rip: 0,
    });
    let mut scene = Scene::new(&host, &[0xF3, 0x6E], &[outsb]);
    scene.machine.memory().write(0x3000, b"hello\n").unwrap();
    scene.set(|registers| {
        registers.set(Gpr::Rdx, 0x3F8);
        registers.set(Gpr::Rsi, 0x3000);
        registers.set(Gpr::Rcx, 6);
    });
    scene.run();
    assert_eq!(host.inner.take_serial(), b"hello\n");
    assert_eq!((scene.register(Gpr::Rcx), scene.rip()), (0, CODE + 2));
}

#[test]
fn what_the_machine_does_not_have_faults() {
    let host = Box0::default();
    let code = [0x0F, 0x09, 0x0F, 0x01, 0xD9];
    let exits = [
        Exit::CacheFlush,
        Exit::Hypercall,
        Exit::Undefined,
        Exit::Refused,
        Exit::Exception(17, Some(0)),
    ];
    let mut scene = Scene::new(&host, &code, &exits);
    scene.run();
    assert_eq!(
        scene.injected(),
        [
            INVALID_OPCODE,
            GENERAL_PROTECTION,
            Event::Exception(17, Some(0))
        ]
    );
    assert_eq!(
        (scene.register(Gpr::Rax) as i64, scene.rip()),
        (-1000, CODE + 5)
    );
}

#[test]
fn exits_that_are_not_understood_stop_with_evidence() {
    let host = Box0::default();
    let raw = [0x7D, 1, 2];
    let mut scene = Scene::new(&host, &[0xF4], &[Exit::HostInterrupt, Exit::Unknown(raw)]);
    let stop = scene.run_to_stop();
    assert_eq!(stop.reason, StopReason::UnknownExit(raw));
    assert!(!stop.reason.is_orderly());
    let text = stop.evidence.to_string();
    for words in [
        "rip 0:0x1000",
        "code f4",
        "last exit: code 0x7",
        "CPU 3 (before: -1)",
        "the CPU's 0x5000",
        "THE HYPERVISOR'S",
        "host-interrupt",
        "unknown code 0x7d",
        "2 exits",
    ] {
        assert!(text.contains(words), "{words:?} is not in:\n{text}");
    }
    assert_eq!(
        scene.machine.counters()[0].snapshot().of(ExitKind::Unknown),
        1
    );
    let refused = Scene::new(
        &host,
        &[],
        &[Exit::BadState(Refusal::Cpu(Some(
            "CR0.NW is set without CR0.CD",
        )))],
    )
    .run();
    assert_eq!(
        refused.to_string(),
        "the guest's CPU state is refused: by the CPU: CR0.NW is set without CR0.CD"
    );
}
