//! One vCPU with what belongs to it alone, and its loop: let devices catch up, deliver what is pending, enter, handle the exit. Whatever is
//! not understood ends the guest with evidence.

use super::stop::{Evidence, Stop, StopReason};
use super::{Left, Shared};
use crate::cpu::{
    Delivery, Event, Gpr, NmiWindow, RFLAGS_ONE, Registers, Segment, System, Vcpu, read_tsc,
};
use crate::cpuid::Topology;
use crate::exit::{Exit, ExitCounters, ExitRecord, ExitRing};
use crate::load::{self, EntryState};
use crate::msr::{Msrs, PAT_RESET};
use crate::platform::{Platform, PowerEvent, Rest, VcpuEvent};
use alloc::boxed::Box;
use alloc::sync::Arc;

/// How long the guest runs before interrupts are looked at again, when the CPU cannot tell the end of an interrupt shadow.
pub(super) const SHADOW_NS: u64 = 20_000;

/// DR6 and DR7 after reset (APM vol. 2, 14.1.3).
const DR6_RESET: u64 = 0xFFFF_0FF0;
const DR7_RESET: u64 = 0x400;
/// CR0 after INIT: ET alone. CD and NW are left out, as they would have the CPU work without its caches.
const CR0_INIT: u64 = 1 << 4;

/// What a look at the platform has decided.
enum Next {
    /// Enter the guest, and look again at this time.
    Enter(Option<u64>),
    /// Nothing to do until this time.
    Rest(Option<u64>),
    Stop(StopReason),
}

/// One vCPU.
pub(super) struct Processor<'h> {
    pub(super) shared: Arc<Shared<'h>>,
    pub(super) vcpu: Box<dyn Vcpu + Send + 'h>,
    pub(super) topology: Topology,
    pub(super) msrs: Msrs,
    pub(super) clock_version: u32,
    pub(super) steal_version: u32,
    /// Why it does not run, and nothing has woken it yet.
    pub(super) rest: Option<Rest>,
    /// The host may have something for it that it has not looked at.
    pub(super) called: bool,
    /// The CPU on which it is loaded.
    loaded_on: Option<usize>,
    /// What the host's timer was last asked for; none if that stands no longer, whatever it was.
    pub(super) armed: Option<Option<u64>>,
    /// The guest was told that it may end the interrupt in service by clearing a bit in the byte there.
    pub(super) end_offered: Option<u64>,
    counters: Arc<ExitCounters>,
    ring: ExitRing,
}

impl<'h> Processor<'h> {
    pub fn new(
        shared: Arc<Shared<'h>>,
        vcpu: Box<dyn Vcpu + Send + 'h>,
        topology: Topology,
        counters: Arc<ExitCounters>,
    ) -> Self {
        Self {
            shared,
            vcpu,
            rest: (topology.vcpu > 0).then_some(Rest::WaitsForStartup),
            topology,
            msrs: Msrs::default(),
            clock_version: 0,
            steal_version: 0,
            called: true,
            loaded_on: None,
            armed: None,
            end_offered: None,
            counters,
            ring: ExitRing::default(),
        }
    }

    /// Its number.
    pub(super) fn index(&self) -> usize {
        self.topology.vcpu as usize
    }

    /// See [`super::Machine::set_entry`].
    pub fn set_entry(&mut self, entry: &EntryState) {
        let table = |from: load::TableRegister| Segment {
            limit: from.limit.into(),
            base: from.base,
            ..Segment::default()
        };
        let data = entry.data;
        self.vcpu.set_system(&System {
            cs: entry.cs,
            ss: data,
            ds: data,
            es: data,
            fs: data,
            gs: data,
            ldtr: entry.ldtr,
            tr: entry.tr,
            gdtr: table(entry.gdtr),
            idtr: table(entry.idtr),
            cr0: entry.cr0,
            cr2: 0,
            cr3: entry.cr3,
            cr4: entry.cr4,
            efer: entry.efer,
            dr6: DR6_RESET,
            dr7: DR7_RESET,
            pat: PAT_RESET,
        });
        let registers = self.vcpu.registers_mut();
        registers.gpr = [0; 16];
        registers.set(Gpr::Rax, entry.rax);
        registers.set(Gpr::Rbx, entry.rbx);
        registers.set(Gpr::Rsi, entry.rsi);
        registers.set(Gpr::Rsp, entry.rsp);
        registers.rflags = entry.rflags | RFLAGS_ONE;
        registers.rip = entry.rip;
        self.rest = None;
    }

    /// Resets what INIT resets (Intel SDM vol. 3A, table 10-1); from here on it waits for its startup message.
    pub fn await_startup(&mut self) {
        let pat = match self.vcpu.system().pat {
            0 => PAT_RESET,
            kept => kept,
        };
        let segment = |attributes| Segment {
            attributes,
            limit: 0xFFFF,
            ..Segment::default()
        };
        // Present, writable, accessed.
        let data = segment(0x93);
        self.vcpu.set_system(&System {
            cs: segment(0x9B),
            ss: data,
            ds: data,
            es: data,
            fs: data,
            gs: data,
            ldtr: segment(0x82),
            tr: segment(0x8B),
            gdtr: segment(0),
            idtr: segment(0),
            cr0: CR0_INIT,
            dr6: DR6_RESET,
            dr7: DR7_RESET,
            pat,
            ..System::default()
        });
        *self.vcpu.registers_mut() = Registers {
            rflags: RFLAGS_ONE,
            ..Registers::default()
        };
        self.vcpu.cancel_event();
        self.end_offered = None;
        self.rest = Some(Rest::WaitsForStartup);
    }

    /// The startup message: real mode, at the beginning of `page` (SDM vol. 3A, 9.4.4).
    fn start_up(&mut self, page: u8) {
        let mut system = self.vcpu.system();
        system.cs.selector = u16::from(page) << 8;
        system.cs.base = u64::from(page) << 12;
        self.vcpu.set_system(&system);
        self.vcpu.registers_mut().rip = 0;
        self.rest = None;
    }

    /// True if it is loaded on no other CPU than `cpu`.
    pub fn may_run_on(&self, cpu: usize) -> bool {
        self.loaded_on.is_none_or(|loaded| loaded == cpu)
    }

    /// See [`super::Machine::run`].
    pub fn run(&mut self, cpu: usize) -> Left {
        // Others have used the timer meanwhile, and whoever called it has not been heard.
        self.armed = None;
        self.called = true;
        if self.loaded_on.is_none() && !self.shared.has_stopped() {
            if let Err(reason) = self.vcpu.bind(cpu) {
                self.end(StopReason::Unavailable(reason));
                return Left::Stopped;
            }
            self.loaded_on = Some(cpu);
            self.resume_steal_time();
        }
        loop {
            match self.turn() {
                Ok(None) => {}
                Ok(Some(left)) => return left,
                Err(reason) => {
                    self.end(reason);
                    return Left::Stopped;
                }
            }
        }
    }

    /// See [`super::Machine::release`].
    pub fn release(&mut self, cpu: usize) {
        if self.loaded_on == Some(cpu) {
            self.loaded_on = None;
            self.vcpu.unbind();
            self.pause_steal_time();
        }
    }

    /// Ends the guest.
    pub fn end(&mut self, reason: StopReason) {
        let evidence = self.evidence();
        self.shared.end(self.index(), Stop { reason, evidence });
    }

    /// One round: devices, events, one entry, one exit. Gives why it leaves the CPU, if it does.
    pub(super) fn turn(&mut self) -> Result<Option<Left>, StopReason> {
        let shared = &*self.shared;
        if shared.has_stopped() {
            return Ok(Some(Left::Stopped));
        }
        if shared.host.stop_requested() {
            return Err(StopReason::Requested);
        }
        if shared.host.must_leave() {
            let index = self.index();
            shared.with_platform(index, |platform| platform.leaves(&shared.memory, index));
            return Ok(Some(Left::Preempted));
        }
        match self.look() {
            Next::Stop(reason) => return Err(reason),
            Next::Rest(until) => return Ok(Some(Left::Resting(until))),
            Next::Enter(until) => self.arm(until),
        }
        let exit = self.vcpu.enter();
        self.accept_end();
        self.counters.count(exit.kind());
        self.record(exit);
        self.handle(exit)?;
        Ok(None)
    }

    /// Lets the platform catch up and takes what it has for this vCPU.
    fn look(&mut self) -> Next {
        let shared = Arc::clone(&self.shared);
        let index = self.index();
        let called = core::mem::take(&mut self.called);
        shared.with_platform(index, |platform| {
            platform.service(&shared.memory, index, called);
            match platform.power_event() {
                Some(PowerEvent::Off) => return Next::Stop(StopReason::PowerOff),
                Some(PowerEvent::Reset) => return Next::Stop(StopReason::Reset),
                Some(PowerEvent::DebugExit(status)) => {
                    return Next::Stop(StopReason::DebugExit(status));
                }
                Some(PowerEvent::Watchdog(seconds)) => {
                    return Next::Stop(StopReason::Watchdog(seconds));
                }
                None => {}
            }
            // INIT and startup may follow each other.
            loop {
                if let Some(rest) = self.rest {
                    let holds_nmi = self.vcpu.nmi_window() != NmiWindow::Open;
                    if !platform.wakes(index, rest, holds_nmi) {
                        if platform.leaves(&shared.memory, index) {
                            continue;
                        }
                        return match self.dead(platform) {
                            Some(reason) => Next::Stop(reason),
                            None => Next::Rest(platform.next_deadline_ns(index)),
                        };
                    }
                    if rest != Rest::WaitsForStartup {
                        self.rest = None;
                    }
                }
                let soon = self.deliver(platform);
                if self.rest.is_none() {
                    let deadline = platform.next_deadline_ns(index);
                    self.offer_end(platform);
                    return Next::Enter(soon.into_iter().chain(deadline).min());
                }
            }
        })
    }

    /// Why the guest can never go on, if that is so.
    fn dead(&self, platform: &Platform<'_>) -> Option<StopReason> {
        platform.is_dead().then(|| {
            if platform.all_wait_for_startup() {
                StopReason::SelfInit
            } else {
                StopReason::HaltedForEver
            }
        })
    }

    /// Hands the vCPU what is pending for it, or has it say when it can take that. Gives the time at which to look again, where the CPU cannot say.
    pub(super) fn deliver(&mut self, platform: &mut Platform<'_>) -> Option<u64> {
        let (host, index) = (self.shared.host, self.index());
        let soon = || Some(host.now_ns().saturating_add(SHADOW_NS));
        let waits = self.rest == Some(Rest::WaitsForStartup);
        let nmi = self.vcpu.nmi_window();
        let holds_nmi = waits || nmi != NmiWindow::Open;
        let mut again = None;
        if nmi == NmiWindow::Opening && !waits && platform.has_vcpu_event(index, false) {
            again = soon();
        }
        if !waits && matches!(self.vcpu.delivery(), Delivery::Shadow | Delivery::Busy) {
            // No window tells when an NMI can be taken.
            if platform.has_vcpu_event(index, holds_nmi) {
                again = soon();
            }
        } else {
            match platform.take_vcpu_event(index, holds_nmi) {
                Some(VcpuEvent::Nmi) => self.vcpu.inject(Event::Nmi),
                Some(VcpuEvent::Init) => {
                    self.await_startup();
                    return None;
                }
                Some(VcpuEvent::Startup(page)) if waits => self.start_up(page),
                Some(VcpuEvent::Startup(_)) | None => {}
            }
        }
        let Some(vector) = platform.pending_interrupt(index) else {
            self.vcpu.watch_window(false);
            return again;
        };
        match self.vcpu.delivery() {
            Delivery::Ready => {
                platform.accept_interrupt(index, vector);
                self.vcpu.inject(Event::Interrupt(vector));
                self.vcpu
                    .watch_window(platform.pending_interrupt(index).is_some());
                again
            }
            Delivery::Masked | Delivery::Busy => {
                self.vcpu.watch_window(true);
                again
            }
            Delivery::Shadow => {
                self.vcpu.watch_window(false);
                soon()
            }
        }
    }

    /// Asks for the host's timer, unless it stands already.
    fn arm(&mut self, deadline: Option<u64>) {
        if self.armed != Some(deadline) {
            self.shared.host.arm_timer(deadline);
            self.armed = Some(deadline);
        }
    }

    fn record(&mut self, exit: Exit) {
        let registers = self.vcpu.registers();
        let register = match exit {
            Exit::ReadMsr | Exit::WriteMsr => registers.get(Gpr::Rcx) & 0xFFFF_FFFF,
            _ => registers.get(Gpr::Rax),
        };
        self.ring.push(ExitRecord {
            exit,
            rip: registers.rip,
            register,
        });
    }

    pub(super) fn guest_tsc(&self) -> u64 {
        read_tsc().wrapping_add(self.vcpu.tsc_offset())
    }

    fn evidence(&self) -> Evidence {
        let (registers, system) = (*self.vcpu.registers(), self.vcpu.system());
        Evidence {
            vcpu: self.topology.vcpu,
            code: crate::decode::fetch(&self.shared.memory, &registers, &system)
                .unwrap_or_default(),
            registers,
            system,
            raw: self.vcpu.raw_exit(),
            place: self.vcpu.place(),
            ring: self.ring.clone(),
            counts: self.counters.snapshot(),
        }
    }
}
