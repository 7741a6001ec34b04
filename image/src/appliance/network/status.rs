//! What the box shows of itself: a line of telemetry each second, `status` on the console, and what `/metrics` has beside the WAN stack's own. The first two
//! are put together in memory that was taken at the start: nothing is allocated.

use alloc::boxed::Box;
use alloc::rc::Rc;
use core::cell::RefCell;
use core::fmt::Write;

use outpost::heap::Place;
use outpost::json;
use outpost_hv::exit::ExitCounts;
use outpost_net::Statistics;
use outpost_net::dedup::StoreMemory;
use outpost_net::engine::MoreMetrics;
use serde::Serialize;

use super::{Forwarder, Service, devices, ports, sharing};
use crate::appliance::budget::{Taken, Use};
use crate::appliance::cpus::Counted;
use crate::appliance::guest;
use crate::device::disk::Disk;
use crate::machine::{clock, cpu, entry};
use crate::output::telemetry;

/// A status in JSON, as large as 16 vCPUs and loads on 64 CPUs may make it: some 22 KiB.
const STATUS_BYTES: usize = 32 << 10;

/// Where reports are put together.
pub struct Reports {
    counted: Option<Counted>,
    status: Box<[u8]>,
}

impl Reports {
    /// Takes the room for them.
    pub fn new() -> Reports {
        Reports {
            counted: Counted::new(),
            status: alloc::vec![0; STATUS_BYTES].into(),
        }
    }
}

/// How things stand.
#[derive(Serialize)]
struct Status<'a> {
    ms: u64,
    #[serde(serialize_with = "json::as_text")]
    guest: guest::State,
    guest_exits: u64,
    guest_exits_by_vcpu: &'a [u64],
    memory: Use,
    sharing: Option<sharing::Report<'a>>,
    net: Counters,
}

/// What the WAN stack, the ports and the guest's devices have counted.
#[derive(Serialize)]
struct Counters {
    #[serde(flatten)]
    engine: Option<Statistics>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cable: Option<CableCounters>,
    ports: ports::Report,
    dropped_guest_full: u64,
    #[serde(flatten)]
    devices: Option<devices::Report>,
}

/// What the plain bridge has counted.
#[derive(Serialize)]
struct CableCounters {
    frames: u64,
    dropped: u64,
}

impl Service {
    /// Says in the telemetry how things stand.
    pub(super) fn report(&mut self) {
        if let Some(counted) = &mut self.reports.counted {
            counted.update();
        }
        let exits: guest::EachVcpu<u64> = guest::exits_by_vcpu()
            .iter()
            .map(ExitCounts::total)
            .collect();
        let (memory, net) = (self.memory(), self.counters());
        let Reports {
            counted,
            status: room,
        } = &mut self.reports;
        let status = Status {
            ms: clock::now_ms(),
            guest: guest::State,
            guest_exits: exits.iter().sum(),
            guest_exits_by_vcpu: &exits,
            memory,
            sharing: counted.as_ref().map(sharing::Report::new),
            net,
        };
        telemetry::status(room, status);
    }

    fn counters(&self) -> Counters {
        let (engine, cable) = match &self.forwarder {
            Forwarder::Engine(engine) => (Some(engine.statistics()), None),
            Forwarder::Cable(cable) => {
                let (frames, dropped) = (cable.frames(), cable.dropped());
                (None, Some(CableCounters { frames, dropped }))
            }
        };
        Counters {
            engine,
            cable,
            ports: self.ports.report(),
            dropped_guest_full: self.guest.dropped(),
            devices: devices::Report::now(),
        }
    }

    /// What the box has in use.
    pub(super) fn memory(&self) -> Use {
        match &self.forwarder {
            Forwarder::Engine(engine) => Use::now(engine.store_memory()),
            Forwarder::Cable(_) => Use::now(StoreMemory::default()),
        }
    }

    /// Shows the same on the console.
    pub(super) fn show_status(&mut self) {
        let (memory, counters) = (self.memory(), self.counters());
        let Reports {
            counted,
            status: room,
        } = &mut self.reports;
        if let Some(counted) = counted {
            counted.update();
        }
        let up_ms = clock::now_ms().max(1);
        self.console.print(|out| {
            let (seconds, ms) = (up_ms / 1000, up_ms % 1000);
            write!(out, "up {seconds}.{ms:03} s, CPUs asleep")?;
            for ns in cpu::asleep_ns() {
                write!(out, " {}%", (ns / 10_000 / up_ms).min(100))?;
            }
            let (deepest, stack) = (entry::deepest_stack() >> 10, entry::STACK_BYTES >> 10);
            writeln!(out, ", deepest stack {deepest} of {stack} KiB")?;
            writeln!(out, "{memory}")?;
            writeln!(out, "guest {}", guest::State)?;
            sharing::describe(out, counted.as_ref())?;
            match json::write(&counters, room) {
                Some(counters) => json::indent(counters, out),
                None => out.write_str("the counters are too many to be shown"),
            }
        });
    }
}

/// What the WAN stack does not know, for `/metrics`; `driver` is the disk's.
pub fn more_metrics(driver: Option<Rc<RefCell<Disk>>>) -> MoreMetrics {
    let mut counted = Counted::new();
    Box::new(move |engine, out| {
        let memory = Use::now(engine.store_memory());
        if let Some(counted) = &mut counted {
            counted.update();
        }
        out.gauge(
            "outpost_uptime_seconds",
            "Since the box started.",
            &[],
            clock::now_ms() / 1000,
        );
        out.gauge(
            "outpost_guest_state",
            "1 for the state that the guest is in.",
            &[("state", &guest::State)],
            1,
        );
        out.counter(
            "outpost_guest_exits_total",
            "Times that the guest left for the hypervisor.",
            &[],
            guest::exits().total(),
        );
        sharing::append(out, counted.as_ref());
        for (what, bytes) in [("index", memory.index), ("rest", memory.rest)] {
            out.gauge(
                "outpost_memory_bytes",
                "Memory that the box uses beside the guest and its files: the dictionary's index, and the rest.",
                &[("what", &what)],
                bytes,
            );
        }
        for (what, bytes) in [("set_aside", memory.pool.bytes), ("used", memory.pool.used)] {
            out.gauge(
                "outpost_connection_memory_bytes",
                "Memory for what begins and ends while the box runs, connections above all: set aside at the start, and in use.",
                &[("what", &what)],
                bytes,
            );
        }
        for (path, count) in Taken(Place::Heap).by_path() {
            out.counter(
                "outpost_allocations_total",
                "Allocations but for those from what is set aside for connections, by what the CPU was doing.",
                &[("path", &path)],
                count,
            );
        }
        devices::append(out);
        if let Some(driver) = &driver
            && let Ok(driver) = driver.try_borrow()
        {
            let disk = driver.counters;
            for (name, help, value) in [
                (
                    "outpost_disk_requests_total",
                    "Requests to the disk, flushes included.",
                    disk.requests,
                ),
                (
                    "outpost_disk_failed_requests_total",
                    "Those that the disk refused.",
                    disk.failed,
                ),
                (
                    "outpost_disk_late_requests_total",
                    "Those that the disk did not answer in time.",
                    disk.late,
                ),
                (
                    "outpost_disk_wait_milliseconds_total",
                    "How long the network's CPU waited for the disk.",
                    disk.waited_ns / 1_000_000,
                ),
            ] {
                out.counter(name, help, &[], value);
            }
        }
    })
}
