//! The composition root: what runs where, in the order of a boot (DESIGN §2).

mod budget;
mod cpus;
mod dictionary;
pub mod guest;
mod load;
mod network;

use crate::device::pci::Pci;
use crate::firmware::{self, Findings};
use crate::machine::{apic, cpu, entry, interrupts, paging, smp};
use crate::output;

use cpus::NETWORK_CPU;

/// A boot, top to bottom. Entered with the firmware's services at hand, on a stack of our own.
pub fn run() -> ! {
    // 1. Firmware phase.
    firmware::start_heap();
    output::start();
    let mut findings = firmware::leave();

    // 2. Own the machine.
    own_the_machine(&findings);
    let mut shares = budget::share_out(&findings);
    guest::lay_out(&mut findings, &mut shares);
    let cpus = smp::start_others(&findings.tables.cpus, findings.start_up, other_cpu);
    if findings.start_up.is_none() {
        output::problem("no memory is free below 1 MiB: only one CPU can run");
    }
    log::info!("cpus: {cpus} running");
    let sharing = guest::sharing(&findings);
    load::announce(sharing.load, cpus);
    cpus::open(cpus, &sharing);
    output::telemetry::milestone("cpus");

    // 3. Devices.
    let pci = Pci::new(findings.tables.ecam);
    let functions = pci.functions();
    let ports = network::find_ports(&findings, &pci, &functions);
    let store = dictionary::find(&findings, &pci, &functions, &shares);
    output::telemetry::milestone("devices");

    // 4. The WAN stack, 5. the guest: forwarding works before the guest starts.
    let network = network::Service::start(findings.config.as_ref().ok(), ports, store, &shares);
    guest::start(&findings, network.station_mac());

    // 6. Run loops.
    cpus::run(Some(network))
}

fn own_the_machine(findings: &Findings) {
    let sections = firmware::sections(findings.image_base, findings.image_bytes);
    cpu::arrive();
    paging::take_over(
        &findings.memory,
        findings.image_base,
        &sections,
        findings.start_up,
    );
    paging::guard((&raw const entry::BOOT_STACK) as u64);
    interrupts::load_tables();
    apic::detect();
    apic::enable();
    apic::calibrate_timer();
    cpu::register(NETWORK_CPU);
    if let Err(error) = &findings.config {
        output::problem(&alloc::format!(
            "configuration: {}: the box only bridges until it is right",
            error
        ));
    }
}

/// What the other CPUs do.
fn other_cpu(_index: usize) -> ! {
    cpus::run(None)
}

/// True if a CPU holds a lock at this moment without which the network cannot go on.
pub fn holds_locks() -> bool {
    cpus::is_locked() || guest::is_locked()
}
