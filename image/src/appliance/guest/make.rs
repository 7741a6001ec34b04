//! Makes the guest's machine of its files and memory: cleared, loaded, and ready to run.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt::Write;

use outpost::memory::Run;
use outpost_config::{Config, Guest};
use outpost_hv::cpu::Vcpu;
use outpost_hv::cpu::svm::SvmGuest;
use outpost_hv::load::bzimage::is_bzimage;
use outpost_hv::machine::{GuestImage, Machine, MachineConfig};
use outpost_hv::mem::{GuestMemory, HostRange};

use super::host;
use crate::firmware::GuestFiles;
use crate::machine::emulator;

/// What the guest's CPU can make ready before it is told to start.
pub(super) struct Material {
    pub(super) files: GuestFiles,
    pub(super) memory: Vec<Run>,
}

/// The word to start.
pub(super) struct Order {
    /// What the box puts before a Linux kernel's command line.
    pub(super) words: String,
    /// What the configuration adds to a kernel's command line.
    pub(super) cmdline: String,
    pub(super) machine: MachineConfig,
    pub(super) vcpus: usize,
}

/// The box's words for the kernel's command line.
pub(super) fn words(config: &Config, guest: &Guest) -> String {
    let mut words = format!("outpost.name={}", guest.name);
    if let Some(address) = guest.address {
        let _ = write!(words, " outpost.address={address}");
    }
    if let Some(gateway) = config.management.gateway {
        let _ = write!(words, " outpost.gateway={gateway}");
    }
    words
}

/// The whole command line. The box's words come first, since Linux gives what is behind `--` to its first process; a Multiboot kernel, which may take every
/// word for its own, gets none.
fn command_line(files: &GuestFiles, order: &Order) -> String {
    let words = if is_bzimage(files.kernel()) {
        order.words.as_str()
    } else {
        ""
    };
    let parts = [words, &files.command_line, &order.cmdline];
    let parts: Vec<&str> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    parts.join(" ")
}

/// The guest's MAC address: locally administered, made from the LAN port's.
pub(super) fn mac(lan: [u8; 6]) -> [u8; 6] {
    let [_, _, a, b, c, d] = lan;
    [0x02, 0x6f, a, b, c, d]
}

/// How long frames of a guest that sends many are collected, in microseconds: long enough for some, and little beside what a LAN takes. It takes QEMU's translator
/// ten times as long as a CPU to leave a guest, and to run it until its next frame.
pub(super) fn collect_micros() -> u16 {
    if emulator::is_translator() { 500 } else { 100 }
}

/// Clears the guest's memory: what the firmware or an earlier run left there is none of the guest's business. Pages that are
/// zero already are only read: on a machine whose memory is made as it is written to, that is most of them.
pub(super) fn clear(start: u64, end: u64) {
    const PAGE: usize = 4096;
    for at in (start..end).step_by(PAGE) {
        // SAFETY: the run is the guest's alone (`budget`), and no guest runs.
        let page = unsafe { &mut *(at as *mut [u64; PAGE / 8]) };
        if page.iter().fold(0, |all, word| all | word) != 0 {
            page.fill(0);
        }
    }
}

/// The machine, with the guest at its first instruction.
///
/// # Errors
/// Why it cannot be started, in words.
pub(super) fn make(material: &Material, order: &Order) -> Result<Machine<'static>, String> {
    let ranges: Vec<HostRange> = material
        .memory
        .iter()
        .map(|run| HostRange {
            start: run.start,
            length: run.bytes(),
        })
        .collect();
    // SAFETY: the ranges are the guest's alone and mapped one to one; the only `GuestMemory` made of them before is gone.
    let memory = unsafe { GuestMemory::new(&ranges) }.map_err(|error| error.to_string())?;
    // SAFETY: this is ring 0 with all memory mapped one to one, and stays so; the CPUs of a box are alike; the machine takes memory and
    // vCPUs together.
    let guest = unsafe { SvmGuest::of(&memory) }.map_err(|error| error.to_string())?;
    let tables = guest.tables();
    let vcpus = guest
        .vcpus(order.vcpus)
        .into_iter()
        .map(|vcpu| Box::new(vcpu) as Box<dyn Vcpu + Send>)
        .collect();
    let machine = Machine::new(&order.machine, memory, vcpus, host::get());
    let command_line = command_line(&material.files, order);
    let image = GuestImage {
        kernel: material.files.kernel(),
        ramdisk: material.files.ramdisk(),
        command_line: &command_line,
    };
    machine
        .load(&order.machine, &image)
        .map_err(|error| error.to_string())?;
    log::info!(
        "guest: {} vCPUs, {} MiB in {} pages of 1 GiB and {} of 2 MiB, {} pages of nested tables",
        machine.vcpus(),
        ranges.iter().map(|range| range.length).sum::<u64>() >> 20,
        tables.leaves_1g,
        tables.leaves_2m,
        tables.table_pages
    );
    Ok(machine)
}
