//! When a flush is asked for, by the VMCBs that VMRUN would find; and that it is often enough, by a model of CPUs that keep what they cache.

use super::super::check::check_vmcb;
use super::super::tests::vcpus;
use super::super::vmcb::tlb_control::{DO_NOT_FLUSH, FLUSH_ALL};
use super::super::{SvmVcpu, System, Vcpu};
use crate::cpu::{EFER_LME, EFER_SVME};
use crate::exit::{Exit, Refusal};
use crate::mem::walk::{CR0_PE, CR0_PG, CR0_WP, CR4_PAE, CR4_PSE, EFER_LMA, EFER_NXE};
use alloc::collections::BTreeSet;
use alloc::vec;
use alloc::vec::Vec;

/// What `bind` does about translations.
fn come_to(vcpu: &mut SvmVcpu, cpu: usize) {
    vcpu.translations.come_to(cpu, &mut vcpu.vmcb.control);
}

/// What `enter` does around VMRUN. Gives TLB_CONTROL as VMRUN finds it.
fn vmrun(vcpu: &mut SvmVcpu) -> u32 {
    vcpu.load_registers();
    let found = vcpu.vmcb.control.tlb_control;
    vcpu.after_exit();
    found
}

/// Both.
fn run_on(vcpu: &mut SvmVcpu, cpu: usize) -> u32 {
    come_to(vcpu, cpu);
    vmrun(vcpu)
}

fn vcpu() -> SvmVcpu {
    vcpus(1, 16).pop().unwrap()
}

/// A vCPU that has run on CPU 0, and has nothing to flush there.
fn vcpu_at_home() -> SvmVcpu {
    let mut vcpu = vcpu();
    run_on(&mut vcpu, 0);
    vcpu
}

#[test]
fn a_vcpu_flushes_wherever_it_has_never_run() {
    for cpu in [0, 1, 7] {
        assert_eq!(run_on(&mut vcpu(), cpu), FLUSH_ALL);
    }
    let mut vcpu = vcpu_at_home();
    assert_eq!(run_on(&mut vcpu, 1), FLUSH_ALL);
    assert_eq!(run_on(&mut vcpu, 2), FLUSH_ALL);
}

#[test]
fn a_vcpu_that_stays_or_comes_back_to_its_last_cpu_flushes_nothing() {
    let mut vcpu = vcpu_at_home();
    assert_eq!(vmrun(&mut vcpu), DO_NOT_FLUSH);
    assert_eq!(run_on(&mut vcpu, 0), DO_NOT_FLUSH);
    assert_eq!(vmrun(&mut vcpu), DO_NOT_FLUSH);
}

#[test]
fn a_vcpu_that_was_elsewhere_meanwhile_flushes_again() {
    let mut vcpu = vcpu_at_home();
    assert_eq!(run_on(&mut vcpu, 1), FLUSH_ALL);
    assert_eq!(run_on(&mut vcpu, 0), FLUSH_ALL);
    assert_eq!(run_on(&mut vcpu, 0), DO_NOT_FLUSH);
    assert_eq!(vcpu.place().cpus, [Some(0), Some(1)]);
}

#[test]
fn vcpus_with_an_asid_each_share_a_cpu_without_flushes() {
    let mut two = vcpus(2, 3);
    assert_ne!(two[0].vmcb.control.asid, two[1].vmcb.control.asid);
    for expected in [FLUSH_ALL, DO_NOT_FLUSH, DO_NOT_FLUSH] {
        for vcpu in &mut two {
            assert_eq!(run_on(vcpu, 0), expected);
        }
    }
}

#[test]
fn vcpus_with_too_few_asids_flush_whenever_they_come() {
    let mut two = vcpus(2, 2);
    assert_eq!(two[0].vmcb.control.asid, two[1].vmcb.control.asid);
    for _ in 0..3 {
        for vcpu in &mut two {
            assert_eq!(run_on(vcpu, 0), FLUSH_ALL);
            // Nobody else runs there before it leaves.
            assert_eq!(vmrun(vcpu), DO_NOT_FLUSH);
        }
    }
}

#[test]
fn asids_are_never_the_hosts_and_shared_only_by_vcpus_that_know() {
    for asids in 2..9_u32 {
        for count in 1..12_usize {
            let vcpus = vcpus(count, asids);
            let used = vcpus.iter().map(|vcpu| vcpu.vmcb.control.asid);
            let used: BTreeSet<u32> = used.collect();
            assert!(used.iter().all(|asid| (1..asids).contains(asid)));
            let shared = used.len() < count;
            assert_eq!(shared, count as u32 >= asids);
            assert!(vcpus.iter().all(|it| it.translations.shares_asid == shared));
        }
    }
}

#[test]
fn a_request_to_a_vcpu_that_does_not_run_is_carried_out_once() {
    let mut vcpu = vcpu_at_home();
    vcpu.flush();
    assert_eq!(run_on(&mut vcpu, 0), FLUSH_ALL);
    assert_eq!(vmrun(&mut vcpu), DO_NOT_FLUSH);
    assert_eq!(run_on(&mut vcpu, 0), DO_NOT_FLUSH);
    // As many as there are before it runs are one.
    vcpu.flush();
    vcpu.flush();
    assert_eq!(run_on(&mut vcpu, 0), FLUSH_ALL);
    assert_eq!(vmrun(&mut vcpu), DO_NOT_FLUSH);
    // One that comes between its entries, as from `resume_steal_time`.
    come_to(&mut vcpu, 0);
    vcpu.flush();
    assert_eq!(vmrun(&mut vcpu), FLUSH_ALL);
    assert_eq!(vmrun(&mut vcpu), DO_NOT_FLUSH);
}

#[test]
fn a_request_goes_with_the_vcpu_and_waits_for_a_vmrun() {
    // Made on one CPU, carried out on another.
    let mut vcpu = vcpu_at_home();
    come_to(&mut vcpu, 0);
    vcpu.flush();
    assert_eq!(run_on(&mut vcpu, 1), FLUSH_ALL);
    assert_eq!(vmrun(&mut vcpu), DO_NOT_FLUSH);
    assert_eq!(run_on(&mut vcpu, 0), FLUSH_ALL, "it was elsewhere");
    assert_eq!(vmrun(&mut vcpu), DO_NOT_FLUSH);
    // It comes and goes without being entered, by its own CPU and by another.
    for cpus in [&[0][..], &[1, 0]] {
        vcpu.flush();
        for cpu in cpus {
            come_to(&mut vcpu, *cpu);
        }
        assert_eq!(run_on(&mut vcpu, 0), FLUSH_ALL);
        assert_eq!(vmrun(&mut vcpu), DO_NOT_FLUSH);
    }
}

#[test]
fn one_vcpus_request_is_not_anothers() {
    let mut two = vcpus(2, 16);
    for vcpu in &mut two {
        run_on(vcpu, 0);
    }
    two[1].flush();
    assert_eq!(run_on(&mut two[0], 0), DO_NOT_FLUSH);
    assert_eq!(run_on(&mut two[1], 0), FLUSH_ALL);
}

#[test]
fn an_entry_that_does_not_come_to_vmrun_leaves_the_request() {
    let mut vcpu = vcpu_at_home();
    vcpu.flush();
    let unbound = vcpu.enter();
    let after_unbound = vcpu.vmcb.control.tlb_control;
    // EFER.SVME is missing. No assertion while it counts as bound: unbinding is for CPL 0.
    vcpu.bound = true;
    let broken = vcpu.enter();
    vcpu.bound = false;
    for exit in [unbound, broken] {
        assert!(
            matches!(exit, Exit::BadState(Refusal::Check(_))),
            "{exit:?}"
        );
    }
    assert_eq!(after_unbound, FLUSH_ALL);
    assert_eq!(run_on(&mut vcpu, 0), FLUSH_ALL);
}

#[test]
fn the_request_is_the_manuals_value_in_the_vmcb_until_the_exit() {
    let mut vcpu = vcpu();
    vcpu.vmcb.save.efer = EFER_SVME;
    assert_eq!(vcpu.vmcb.control.tlb_control, 0);
    come_to(&mut vcpu, 0);
    vcpu.load_registers();
    assert_eq!(vcpu.vmcb.control.tlb_control, 1);
    assert_eq!(check_vmcb(&vcpu.vmcb, vcpu.capabilities.limits), Ok(()));
    vcpu.after_exit();
    assert_eq!(vcpu.vmcb.control.tlb_control, 0);
    vcpu.flush();
    assert_eq!(vcpu.vmcb.control.tlb_control, 1);
}

#[test]
fn another_paging_mode_from_the_hypervisor_is_a_request() {
    /// The manual's list (15.16, "Software Rule"), and INIT.
    const CHANGES: [fn(&mut System); 13] = [
        |system| system.cr0 ^= CR0_PG,
        |system| system.cr0 ^= CR0_WP,
        |system| system.cr0 ^= 1 << 30, // CD
        |system| system.cr0 ^= 1 << 29, // NW
        |system| system.cr3 ^= 1 << 12,
        |system| system.cr3 ^= 1 << 39,
        |system| system.cr4 ^= 1 << 7, // PGE
        |system| system.cr4 ^= CR4_PAE,
        |system| system.cr4 ^= CR4_PSE,
        |system| system.efer ^= EFER_NXE,
        |system| system.efer ^= EFER_LMA,
        |system| system.efer ^= EFER_LME,
        |system| {
            *system = System {
                cr0: 1 << 4,
                ..System::default()
            }
        },
    ];
    let long = System {
        cr0: CR0_PG | CR0_PE,
        cr3: 0x1000,
        cr4: CR4_PAE,
        efer: EFER_LME | EFER_LMA,
        ..System::default()
    };
    for (index, change) in CHANGES.iter().enumerate() {
        let mut vcpu = vcpu();
        vcpu.set_system(&long);
        run_on(&mut vcpu, 0);
        let mut system = vcpu.system();
        change(&mut system);
        vcpu.set_system(&system);
        assert_eq!(run_on(&mut vcpu, 0), FLUSH_ALL, "change {index}");
        assert_eq!(vmrun(&mut vcpu), DO_NOT_FLUSH, "change {index}");
    }
}

#[test]
fn other_registers_from_the_hypervisor_are_none() {
    let mut vcpu = vcpu_at_home();
    // The guest has changed these itself, and its CPU has flushed what that takes.
    vcpu.vmcb.save.cr0 = CR0_PG | CR0_PE;
    vcpu.vmcb.save.cr3 = 0x5000;
    vcpu.vmcb.save.cr4 = CR4_PAE;
    vcpu.vmcb.save.efer = EFER_SVME | EFER_LME | EFER_LMA;
    let mut system = vcpu.system();
    system.cr2 = 0x1234;
    system.dr6 = 1 << 14;
    system.pat = 6;
    system.cs.base = 0x9_A000;
    vcpu.set_system(&system);
    assert_eq!(run_on(&mut vcpu, 0), DO_NOT_FLUSH);
}

/// What a CPU has cached: under an ASID, by a vCPU, out of some version of the page tables that this vCPU uses.
#[derive(Clone, Copy)]
struct Entry {
    asid: u32,
    vcpu: usize,
    version: u32,
}

/// What happens to one vCPU.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// It comes to a CPU and leaves it again.
    Pass(usize),
    /// The same, and is entered there meanwhile.
    Run(usize),
    /// The same, and invalidates there what it has changed in its page tables.
    Invalidate(usize),
    /// It does not run, and another asks it to forget what has changed in its page tables.
    Request,
}

const STEPS: [Step; 7] = [
    Step::Pass(0),
    Step::Pass(1),
    Step::Run(0),
    Step::Run(1),
    Step::Invalidate(0),
    Step::Invalidate(1),
    Step::Request,
];

/// Two CPUs that forget nothing unless they are told to (QEMU's translator flushes at every VMRUN), and vCPUs on them.
struct Model {
    vcpus: Vec<SvmVcpu>,
    /// Which versions of the page tables each may still use: this one and later ones.
    versions: Vec<u32>,
    tlbs: [Vec<Entry>; 2],
}

impl Model {
    fn new(vcpus: Vec<SvmVcpu>) -> Self {
        // Somebody has used every ASID everywhere.
        let stranger = |asid| Entry {
            asid,
            vcpu: usize::MAX,
            version: 0,
        };
        let left: Vec<Entry> = (1..=vcpus.len() as u32).map(stranger).collect();
        Self {
            versions: vec![1; vcpus.len()],
            vcpus,
            tlbs: [left.clone(), left],
        }
    }

    /// False if the vCPU could use what is stale or another's.
    fn step(&mut self, index: usize, step: Step) -> bool {
        let vcpu = &mut self.vcpus[index];
        let asid = vcpu.vmcb.control.asid;
        let cpu = match step {
            Step::Request => {
                self.versions[index] += 1;
                vcpu.flush();
                return true;
            }
            Step::Pass(cpu) | Step::Run(cpu) | Step::Invalidate(cpu) => cpu,
        };
        come_to(vcpu, cpu);
        if matches!(step, Step::Pass(_)) {
            return true;
        }
        let tlb = &mut self.tlbs[cpu];
        if vmrun(vcpu) == FLUSH_ALL {
            tlb.clear();
        }
        let version = &mut self.versions[index];
        let good = tlb
            .iter()
            .filter(|entry| entry.asid == asid)
            .all(|entry| entry.vcpu == index && entry.version >= *version);
        if matches!(step, Step::Invalidate(_)) {
            *version += 1;
            tlb.retain(|entry| entry.asid != asid);
        }
        tlb.push(Entry {
            asid,
            vcpu: index,
            version: *version,
        });
        good
    }

    /// Takes every way of `depth` more steps. `way` is the one to here.
    fn explore(&mut self, depth: usize, way: &mut Vec<(usize, Step)>) {
        if depth == 0 {
            return;
        }
        for index in 0..self.vcpus.len() {
            for step in STEPS {
                let (versions, tlbs) = (self.versions.clone(), self.tlbs.clone());
                let (translations, control) = {
                    let vcpu = &self.vcpus[index];
                    (vcpu.translations, vcpu.vmcb.control.tlb_control)
                };
                way.push((index, step));
                assert!(self.step(index, step), "stale after {way:?}");
                self.explore(depth - 1, way);
                way.pop();
                let vcpu = &mut self.vcpus[index];
                vcpu.translations = translations;
                vcpu.vmcb.control.tlb_control = control;
                (self.versions, self.tlbs) = (versions, tlbs);
            }
        }
    }
}

#[test]
fn no_vcpu_ever_uses_a_translation_that_is_stale_or_anothers() {
    // An ASID each; one for both; one for the first and the last of three.
    for (count, asids, depth) in [(2, 3, 5), (2, 2, 5), (3, 3, 4)] {
        Model::new(vcpus(count, asids)).explore(depth, &mut Vec::new());
    }
}
