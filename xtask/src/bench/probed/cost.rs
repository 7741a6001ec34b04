//! What an exit costs, in instructions: of the hypervisor, and of the guest's few around it. The probe leaves the guest a thousand times for each of some
//! reasons, in a machine that counts instructions: the same figures on a busy machine as on a quiet one. KVM in Debian's kernel is the peer.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use super::{DISK_BYTES, NAME, PATIENCE, Stage};
use crate::accel::Accelerator;
use crate::bench::hv::ways;
use crate::bench::report::{Limit, Report, Row};
use crate::image::{self, GuestFiles};
use crate::process::{self, Scratch};
use crate::qemu::{Disk, Nic, Qemu, Serial, TICKS_PER_INSTRUCTION};

/// The probe's mode, and how often for each reason.
const MODE: &str = "exits 1000";
/// What it says before each figure.
const MARK: &str = "probe: exits: ";
/// How it ends.
const PASSED: &str = "probe: exits: passed";
/// The guest's memory in MiB.
const MEMORY: u32 = 64;

/// What the probe says of each reason, and what that is for people. The first is no exit.
const REASONS: [(&str, &str); 7] = [
    ("cpuid", "CPUID"),
    ("hypercall", "a hypercall that there is not"),
    ("msr-read", "a read of the local APIC, by MSR"),
    ("timer-write", "the local APIC's timer set, by MSR"),
    ("port-write", "a byte to port 0x80"),
    ("mmio-read", "a read of the I/O APIC"),
    ("tick", "the timer set, gone off, and ended: three exits"),
];

/// Instructions by reason.
type Costs = BTreeMap<String, f64>;

/// A row for each reason.
///
/// # Errors
/// It could not be measured.
pub fn rows(stage: &Stage, kvm: Option<&GuestFiles>, report: &mut Report) -> Result<()> {
    let ours = in_a_box(stage)?;
    let theirs = kvm.map(|host| under_kvm(stage, host)).transpose()?;
    for (reason, what) in REASONS {
        let of = |costs: &Costs| {
            let cost = costs.get(reason).copied();
            cost.with_context(|| format!("the probe does not say what {reason} costs"))
        };
        let row = Row::new(format!("instructions of an exit: {what}"), "", of(&ours)?);
        report.add(match &theirs {
            Some(theirs) => row
                .beside("KVM", of(theirs)?)
                .limited_by_ratio(Limit::AtMost(1.0)),
            None => row,
        });
    }
    Ok(())
}

fn in_a_box(stage: &Stage) -> Result<Costs> {
    let scratch = Scratch::new("cost")?;
    let folder = scratch.path();
    let (disk, port) = (folder.join("disk.img"), folder.join("guest"));
    let guest = GuestFiles {
        command_line: MODE.to_owned(),
        ..stage.probe.clone()
    };
    let config = ways::box_config("probe", 1, MEMORY, None)?;
    image::assemble(&stage.efi, &config, Some(&guest.slot()?), &disk)?;
    std::fs::File::options()
        .write(true)
        .open(&disk)?
        .set_len(DISK_BYTES)?;
    let mut machine = Qemu::new(NAME, Accelerator::Tcg, Disk::new(disk));
    machine.cpus = 1;
    machine.counts_instructions = true;
    machine.nics = Nic::unplugged();
    machine.com1 = Serial::File(folder.join("console"));
    machine.com3 = Some(port.clone());
    let mut qemu = machine.start(folder)?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let text = std::fs::read(&port).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        if text.lines().any(|line| line == PASSED) {
            return text
                .lines()
                .filter_map(|line| cost(line).transpose())
                .collect();
        }
        if text.contains("FAILED") || qemu.try_wait()?.is_some() || Instant::now() > deadline {
            bail!("the probe did not come to its end in the box; it said: {text}");
        }
        process::check_interrupted()?;
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
}

fn under_kvm(stage: &Stage, host: &GuestFiles) -> Result<Costs> {
    let guest = GuestFiles {
        command_line: MODE.to_owned(),
        ..stage.probe.clone()
    };
    let mut machine = ways::kvm_machine(host, &guest, 1, MEMORY)?;
    machine.counts_instructions = true;
    let running = machine.start(Scratch::new("cost")?)?;
    let port = &running.guest;
    port.set_read_timeout(Some(PATIENCE))?;
    let mut costs = Costs::new();
    let mut said = Vec::new();
    for line in BufReader::new(port).lines() {
        let line = line.context("the probe is silent under KVM")?;
        process::check_interrupted()?;
        if line.trim_end() == PASSED {
            return Ok(costs);
        }
        costs.extend(cost(line.trim_end())?);
        said.push(line);
    }
    bail!(
        "the probe did not come to its end under KVM; the last lines were: {}",
        said.join(" | ")
    )
}

/// What a line says that an exit costs, in instructions. None for other lines.
fn cost(line: &str) -> Result<Option<(String, f64)>> {
    let Some((reason, ticks)) = line
        .strip_prefix(MARK)
        .and_then(|said| said.split_once(' '))
    else {
        return Ok(None);
    };
    let ticks: u64 = ticks
        .parse()
        .with_context(|| format!("the probe says {line:?}"))?;
    Ok(Some((
        reason.to_owned(),
        ticks as f64 / TICKS_PER_INSTRUCTION as f64,
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cost_is_in_instructions() {
        assert_eq!(
            cost("probe: exits: cpuid 36800").unwrap(),
            Some(("cpuid".into(), 1150.0))
        );
        assert_eq!(cost(PASSED).unwrap(), None);
        assert_eq!(cost("outpost-guest: init").unwrap(), None);
        assert!(cost("probe: exits: cpuid many").is_err());
    }
}
