//! The composition root: what runs where, in the order of a boot (DESIGN §2).

mod budget;
mod cpus;
mod dictionary;
mod disk;
pub mod guest;
mod load;
mod network;

use alloc::string::String;

use outpost_hv::sched::CpuSet;

use crate::device::pci::Pci;
use crate::firmware::{self, Findings};
use crate::machine::{apic, cpu, entry, interrupts, paging, power, smp};
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
    name_missing("[guest] cpus", sharing.cpus, cpus);
    name_missing("[services] load", sharing.load, cpus);
    load::announce(sharing.load, cpus);
    cpus::open(cpus, &sharing);
    output::telemetry::milestone("cpus");

    // 3. Devices.
    let pci = Pci::new(findings.tables.ecam);
    let functions = pci.functions();
    let ports = network::find_ports(&findings, &pci, &functions);
    let disk = disk::open(&findings, &pci, &functions);
    let disk = disk.as_ref().map(Option::as_ref).map_err(String::as_str);
    let store = dictionary::find(&findings, disk, &shares);
    let guest_disk = guest::Disk::find(&findings, disk);
    let block = guest_disk.as_ref().map(guest::Disk::config);
    output::telemetry::milestone("devices");

    // 4. The WAN stack, 5. the guest: forwarding works before the guest starts.
    let config = findings.config.as_ref().ok();
    let disks = network::Disks {
        driver: disk.ok().flatten().map(|disk| disk.disk.clone()),
        dictionary: store,
        guest: guest_disk,
    };
    let network = network::Service::start(config, ports, disks, &shares);
    power::watch_button(findings.tables.power);
    guest::start(&findings, network.station_mac(), block);

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
        output::problem(format_args!(
            "configuration: {}: the box only bridges until it is right",
            error
        ));
    }
}

/// Says which CPUs a key of the configuration asks for that are not among the `cpus` that there are.
fn name_missing(key: &str, wanted: CpuSet, cpus: usize) {
    for cpu in wanted.without(CpuSet::below(cpus)).iter() {
        output::problem(format_args!(
            "{key}: there is no CPU {cpu}: this box has {cpus}, the first is 0"
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
