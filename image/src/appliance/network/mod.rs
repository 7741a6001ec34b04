//! The WAN stack as CPU 0's service: frames between ports and engine, and between them the console and the telemetry.
//!
//! Nothing here waits: a turn does a bounded piece of everything, and when it found nothing to do the service rests until a
//! frame, the guest, or the next deadline.

mod devices;
mod ports;
mod sharing;
mod status;

use alloc::boxed::Box;
use alloc::rc::Rc;
use core::cell::RefCell;
use core::ops::RangeInclusive;
use core::sync::atomic::{Ordering, fence};

use outpost::cable::Cable;
use outpost_config::{ByteSize, Config};
use outpost_net::time::Instant;
use outpost_net::{Engine, EngineParts, Port};

use super::budget::{self, Shares};
use super::cpus::Turn;
use super::dictionary::{self, Dictionary};
use super::guest;
use crate::device::disk::Disk;
use crate::machine::cpu::Path;
use crate::machine::{clock, cpu, entropy, power};
use crate::output::{self, console, telemetry};

pub use ports::{NicPorts, find_ports};

/// Frames taken from a port in one pass.
const BATCH: usize = 64;
/// Between status lines.
const STATUS_NS: u64 = 1_000_000_000;
/// Keys come without an interrupt: the console is looked at this often. Each look takes the CPU from the vCPU that may run there.
const CONSOLE_NS: u64 = 50_000_000;
/// And this often, where somebody has typed not longer ago than [`TYPING_NS`].
const TYPED_NS: u64 = 5_000_000;
const TYPING_NS: u64 = 2_000_000_000;
/// While a serial port has more to send: often enough to keep its FIFO from running dry.
const OUTPUT_NS: u64 = 500_000;
/// It gets one part in so many of the time at most: to write to a port that takes all it gets, as an emulated one does, would use up the network's share of a
/// CPU, and frames would wait for the guest's slice then.
const OUTPUT_PARTS: u64 = 3;
/// Who has worked for so long without a rest has many frames.
const AT_WORK_NS: u64 = 2_000_000;
/// When a network port has no interrupt, and while frames wait for room at one.
const POLL_NS: u64 = 250_000;
/// While the disk has a request of the guest's: it is polled.
const DISK_NS: u64 = 100_000;
/// The service looks for more work before it rests, for as long as it has just worked, within these bounds: to leave the CPU and take it back costs as
/// much as the least, and who had much to do will soon have more. So it never takes more than twice the time of its work (and the least).
const LINGER_NS: RangeInclusive<u64> = 20_000..=500_000;
/// What decides where frames go.
enum Forwarder {
    /// The WAN stack.
    Engine(Box<Engine>),
    /// A plain bridge, when the configuration is broken.
    Cable(Cable),
}

impl Forwarder {
    fn new(
        config: Option<&Config>,
        mac: [u8; 6],
        shares: &Shares,
        dictionary: Option<&Dictionary>,
        now: Instant,
    ) -> Self {
        let Some(config) = config else {
            return Forwarder::Cable(Cable::new());
        };
        let mut config = config.clone();
        // What there is, which may be less than what was asked for.
        let device = dictionary.and_then(Dictionary::device);
        let memory = match (dictionary, &device) {
            (Some(dictionary), Some(_)) => dictionary.parts(),
            _ => shares.dictionary,
        };
        config.store.memory = Some(ByteSize::from_mib(memory >> 20));
        let mut seed = [0; 32];
        entropy::fill(&mut seed);
        let parts = EngineParts {
            mac,
            seed,
            store_memory: usize::try_from(memory).unwrap_or(usize::MAX),
            flow_memory: usize::try_from(shares.flows).unwrap_or(usize::MAX),
        };
        let since_ns = clock::now_ns();
        let engine = Box::new(Engine::with_store(&config, parts, device, now));
        dictionary::announce(&engine, since_ns);
        Forwarder::Engine(engine)
    }

    fn receive(&mut self, now: Instant, port: Port, frame: &[u8]) {
        match self {
            Forwarder::Engine(engine) => engine.receive(now, port, frame),
            Forwarder::Cable(cable) => cable.receive(port, frame),
        }
    }

    fn poll(&mut self, now: Instant, emit: &mut dyn FnMut(Port, &[u8])) {
        match self {
            Forwarder::Engine(engine) => engine.poll(now, emit),
            Forwarder::Cable(cable) => cable.poll(emit),
        }
    }

    fn next_wakeup(&self, now: Instant) -> Option<Instant> {
        match self {
            Forwarder::Engine(engine) => engine.next_wakeup(now),
            Forwarder::Cable(_) => None,
        }
    }
}

/// Joins the ports like a cable.
fn bridge(ports: &mut NicPorts, cable: &mut Cable) {
    let mut taken = 0;
    for (port, nic) in ports.iter_mut() {
        taken += nic.receive(BATCH, |frame| cable.receive(port, frame));
    }
    if taken > 0 {
        cable.poll(&mut |port, frame| ports.send(port, frame));
        ports.flush();
    }
}

fn now() -> Instant {
    Instant::from_micros(clock::now_ns() / 1000)
}

/// What there is on the disk, and its driver.
pub struct Disks {
    /// The driver, for its counters.
    pub driver: Option<Rc<RefCell<Disk>>>,
    /// Where the dictionary lies, if it is on the disk.
    pub dictionary: Option<Dictionary>,
    /// The guest's part.
    pub guest: Option<guest::Disk>,
}

/// How the box's run ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Reset,
    Off,
}

impl core::fmt::Display for End {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            End::Reset => "resets",
            End::Off => "switches itself off",
        })
    }
}

/// The service.
pub struct Service {
    ports: NicPorts,
    forwarder: Forwarder,
    disks: Disks,
    guest: guest::Wire,
    console: console::Service,
    reports: status::Reports,
    next_status_ns: u64,
    next_console_ns: u64,
    typing_until_ns: u64,
    last_work_ns: u64,
    /// How long it has worked since it last rested.
    worked_ns: u64,
    /// A serial port has more to send.
    busy_outputs: bool,
    /// Frames wait for room at a port.
    waiting: bool,
    /// The box is to be reset or switched off when the guest has shut down, or then.
    leaving: Option<(End, u64)>,
}

impl Service {
    /// Starts forwarding.
    pub fn start(
        config: Option<&Config>,
        ports: NicPorts,
        disks: Disks,
        shares: &Shares,
    ) -> Box<Self> {
        let mac = ports.station_mac();
        // Until a large store has been opened the box is a cable.
        let ports = Rc::new(RefCell::new(ports));
        if let Some(dictionary) = &disks.dictionary {
            let (ports, mut cable) = (ports.clone(), Cable::new());
            dictionary.set_meanwhile(Some(Box::new(move || {
                bridge(&mut ports.borrow_mut(), &mut cable);
            })));
        }
        let mut forwarder = Forwarder::new(config, mac, shares, disks.dictionary.as_ref(), now());
        if let Some(dictionary) = &disks.dictionary {
            dictionary.set_meanwhile(None);
        }
        budget::set_aside(shares.flows);
        if let Forwarder::Engine(engine) = &mut forwarder {
            engine.set_more_metrics(status::more_metrics(disks.driver.clone()));
        }
        let ports = ports.take();
        let mut service = Box::new(Service {
            ports,
            forwarder,
            disks,
            guest: guest::Wire::take(),
            console: console::Service::start(),
            reports: status::Reports::new(),
            next_status_ns: 0,
            next_console_ns: 0,
            typing_until_ns: 0,
            last_work_ns: 0,
            worked_ns: 0,
            busy_outputs: true,
            waiting: false,
            leaving: None,
        });
        // One pass, so that what came while the box started is on its way.
        service.pass();
        telemetry::milestone("forwarding");
        service.memory().announce();
        service
    }

    /// The MAC address of the box's own station.
    pub fn station_mac(&self) -> [u8; 6] {
        self.ports.station_mac()
    }

    /// One bounded piece of work.
    pub fn turn(&mut self) -> Turn {
        let begin_ns = clock::now_ns();
        let worked = self.pass() | self.disks.guest.as_mut().is_some_and(guest::Disk::tend);
        let now_ns = clock::now_ns();
        if worked {
            self.worked_ns += now_ns.saturating_sub(begin_ns);
            self.last_work_ns = now_ns;
        }
        self.housekeeping(now_ns);
        let linger_ns = self.worked_ns.clamp(*LINGER_NS.start(), *LINGER_NS.end());
        if worked || now_ns.saturating_sub(self.last_work_ns) < linger_ns {
            return Turn::Busy;
        }
        let rest = self.rest();
        if matches!(rest, Turn::Idle(_)) {
            self.worked_ns = 0;
        }
        rest
    }

    /// One bounded piece of packet work. True if there was any.
    fn pass(&mut self) -> bool {
        let now = now();
        let forwarder = &mut self.forwarder;
        let mut taken = 0;
        let (ports, guest) = (&mut self.ports, &mut self.guest);
        cpu::on_path(Path::Frames, || {
            for (port, nic) in ports.iter_mut() {
                taken += nic.receive(BATCH, |frame| forwarder.receive(now, port, frame));
            }
            taken += guest.receive(BATCH, |frame| forwarder.receive(now, Port::Guest, frame));
        });
        let due = forwarder.next_wakeup(now).is_some_and(|due| due <= now);
        if taken == 0 && !due {
            if self.waiting {
                self.waiting = self.ports.flush();
            }
            return false;
        }
        cpu::on_path(Path::Flows, || {
            forwarder.poll(now, &mut |port, frame| match port {
                Port::Guest => guest.send(frame),
                _ => ports.send(port, frame),
            });
            self.waiting = ports.flush();
            guest.flush();
        });
        true
    }

    /// Console and telemetry, when they are due.
    fn housekeeping(&mut self, now_ns: u64) {
        if now_ns >= self.next_status_ns {
            self.next_status_ns = now_ns - now_ns % STATUS_NS + STATUS_NS;
            self.report();
            if power::button_was_pressed() {
                log::info!("the box's power button was pressed");
                self.leave(End::Off, now_ns);
            }
            self.next_console_ns = now_ns;
        }
        if now_ns >= self.next_console_ns {
            let outcome = self.console.poll();
            if let (Forwarder::Engine(engine), Some(dictionary)) =
                (&mut self.forwarder, &mut self.disks.dictionary)
            {
                dictionary.tend(engine, now());
            }
            if outcome.wants_status {
                self.show_status();
            }
            if outcome.wants_reset {
                self.leave(End::Reset, now_ns);
            }
            if let Some((end, at)) = self.leaving
                && (now_ns >= at || !guest::is_running())
            {
                self.end(end);
            }
            if let Some(says) = outcome.guest_says {
                guest::note(says);
            }
            let most = if self.worked_ns > AT_WORK_NS {
                telemetry::LONG_PASS
            } else {
                telemetry::SHORT_PASS
            };
            self.busy_outputs = telemetry::poll(most) | outcome.busy;
            if outcome.typed {
                self.typing_until_ns = now_ns + TYPING_NS;
            }
            let pause = if self.busy_outputs {
                let took_ns = clock::now_ns().saturating_sub(now_ns);
                OUTPUT_NS.max(OUTPUT_PARTS * took_ns)
            } else if now_ns < self.typing_until_ns {
                TYPED_NS
            } else {
                CONSOLE_NS
            };
            self.next_console_ns = now_ns + pause;
        }
    }

    /// Ends the box's run once the guest has shut down; asked again, at once.
    fn leave(&mut self, end: End, now_ns: u64) {
        /// The guest's keeper says first that it was waited for in vain.
        const MORE_NS: u64 = 1_000_000_000;
        if self.leaving.is_some() || !guest::shut_down() {
            self.end(end);
        }
        log::info!("the box {end} when the guest has shut down; asked again, it does not wait");
        self.leaving = Some((end, now_ns + guest::BUTTON_PATIENCE_NS + MORE_NS));
    }

    /// Ends the box's run, with the dictionary closed and all said.
    fn end(&mut self, end: End) -> ! {
        if let Forwarder::Engine(engine) = &mut self.forwarder {
            engine.close_store();
        }
        self.finish_outputs();
        match end {
            End::Reset => power::reset(),
            End::Off => power::off(),
        }
    }

    /// Lets the serial ports have what waits for them; a port that takes nothing does not keep the box.
    fn finish_outputs(&mut self) {
        const PATIENCE_NS: u64 = 2_000_000_000;
        /// The 16 bytes of a transmitter, at 115,200 baud.
        const TRANSMITTER_US: u64 = 1_500;
        let until_ns = clock::now_ns() + PATIENCE_NS;
        while clock::now_ns() < until_ns
            && (telemetry::poll(telemetry::LONG_PASS) | self.console.poll().busy
                || output::has_lines(&self.console))
        {
            core::hint::spin_loop();
        }
        clock::spin_us(TRANSMITTER_US);
    }

    /// Until when there may be no work. What comes after this last look calls for the service.
    fn rest(&mut self) -> Turn {
        let now = now();
        let now_ns = clock::now_ns();
        let mut deadline = self.next_status_ns.min(self.next_console_ns);
        if let Some(due) = self.forwarder.next_wakeup(now) {
            deadline = deadline.min(due.as_micros().saturating_mul(1000));
        }
        if !self.busy_outputs && output::has_lines(&self.console) {
            deadline = deadline.min(now_ns + OUTPUT_NS);
            self.next_console_ns = self.next_console_ns.min(deadline);
        }
        if self.waiting || !self.ports.all_interrupt() {
            deadline = deadline.min(now_ns + POLL_NS);
        }
        if self.disks.guest.as_ref().is_some_and(guest::Disk::is_busy) {
            deadline = deadline.min(now_ns + DISK_NS);
        }
        // The devices must see where the drivers want to be told next before the drivers look for the last time.
        fence(Ordering::SeqCst);
        if self.ports.has_received() || self.guest.has_received() || guest::Disk::is_asked() {
            return Turn::Busy;
        }
        Turn::Idle(Some(deadline))
    }
}
