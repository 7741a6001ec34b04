//! What VMRUN would refuse, found out before it does (APM vol. 2, 15.5.1, "Canonicalization and Consistency Checks").
//!
//! A pure function: silicon only says "invalid", the emulator accepts some of what silicon rejects, and its early failures overwrite the
//! evidence.

use super::vmcb::{Vmcb, event, second, virtual_interrupt};
use crate::cpu::{EFER_LME, EFER_SVME, Segment};
use crate::mem::walk::{CR0_PE, CR0_PG, CR4_PAE, EFER_LMA};
use alloc::boxed::Box;

const CR0_NW: u64 = 1 << 29;
const CR0_CD: u64 = 1 << 30;
/// SCE, LME, LMA, NXE, SVME, LMSLE, FFXSR, TCE.
const EFER_KNOWN: u64 = 0xFD01;
/// VME to SMXE as far as AMD has them, FSGSBASE, PCIDE, OSXSAVE, SMEP, SMAP, PKE, CET; LA57 and UMIP too.
const CR4_KNOWN: u64 = 0x00F7_1FFF;

/// How wide the CPU's addresses are, in bits, and how many address spaces it tells apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// CPUID 80000008h EAX bits 0 to 7.
    pub physical_bits: u32,
    /// CPUID 8000000Ah EBX.
    pub asids: u32,
}

/// Finds the first rule that `vmcb` breaks.
///
/// # Errors
/// The rule, in words.
pub fn check_vmcb(vmcb: &Vmcb, limits: Limits) -> Result<(), &'static str> {
    match rules(vmcb, limits).iter().find(|(broken, _)| *broken) {
        Some((_, rule)) => Err(rule),
        None => Ok(()),
    }
}

/// Whether each rule is broken, and the rule in words.
fn rules(vmcb: &Vmcb, limits: Limits) -> [(bool, &'static str); 27] {
    let (control, save) = (&vmcb.control, &vmcb.save);
    let too_far = |address: u64, bytes: u64| {
        address
            .checked_add(bytes)
            .is_none_or(|end| end > 1 << limits.physical_bits)
    };
    let long = save.efer & EFER_LME != 0 && save.cr0 & CR0_PG != 0;
    let kind = control.event & event::TYPE;
    let vector = control.event & 0xFF;
    [
        (save.efer & EFER_SVME == 0, "EFER.SVME is clear"),
        (save.efer & !EFER_KNOWN != 0, "EFER has reserved bits"),
        (
            save.cr0 & CR0_CD == 0 && save.cr0 & CR0_NW != 0,
            "CR0.NW is set without CR0.CD",
        ),
        (save.cr0 >> 32 != 0, "CR0 has bits above 31"),
        (
            save.cr3 >> limits.physical_bits != 0 && long,
            "CR3 is beyond the physical address width",
        ),
        (save.cr4 & !CR4_KNOWN != 0, "CR4 has reserved bits"),
        (save.dr6 >> 32 != 0, "DR6 has bits above 31"),
        (save.dr7 >> 32 != 0, "DR7 has bits above 31"),
        (
            save.cr0 & CR0_PG != 0 && save.cr0 & CR0_PE == 0,
            "CR0.PG is set without CR0.PE",
        ),
        (
            long && save.cr4 & CR4_PAE == 0,
            "long mode is on without CR4.PAE",
        ),
        (
            long && save.cs.is_long() && save.cs.is_big(),
            "CS.L and CS.D are both set in long mode",
        ),
        (
            long != (save.efer & EFER_LMA != 0),
            "EFER.LMA differs from EFER.LME and CR0.PG",
        ),
        (
            control.intercept_second & second::VMRUN == 0,
            "VMRUN is not intercepted",
        ),
        (
            too_far(control.msrpm, 8 << 10),
            "the MSR permission map is beyond the physical address width",
        ),
        (
            too_far(control.iopm, 12 << 10),
            "the I/O permission map is beyond the physical address width",
        ),
        (
            (control.msrpm | control.iopm) & 0xFFF != 0,
            "a permission map is not aligned to 4 KiB",
        ),
        (control.asid == 0, "the ASID is zero, which is the host's"),
        (
            control.asid >= limits.asids,
            "the ASID is beyond what the CPU has",
        ),
        (
            !matches!(control.tlb_control, 0 | 1 | 3 | 7),
            "TLB_CONTROL is reserved",
        ),
        (
            control.nested & 1 != 0 && control.nested_cr3 & 0xFFF != 0,
            "the nested CR3 is not aligned to 4 KiB",
        ),
        (
            control.nested & 1 != 0 && too_far(control.nested_cr3, 4096),
            "the nested CR3 is beyond the physical address width",
        ),
        (
            control.nested & 1 != 0 && !pat_is_valid(save.pat),
            "G_PAT has a reserved memory type",
        ),
        (
            control.event & event::VALID != 0
                && !matches!(
                    kind,
                    event::EXTERNAL | event::NMI | event::EXCEPTION | event::SOFTWARE
                ),
            "the event to inject has a reserved type",
        ),
        (
            control.event & event::VALID != 0
                && kind == event::EXCEPTION
                && (vector > 31 || vector == 2),
            "the exception to inject has a vector that no exception has",
        ),
        (
            save.rflags & crate::cpu::RFLAGS_ONE == 0,
            "RFLAGS bit 1 is clear",
        ),
        // Not rules of silicon, but of ours.
        (
            control.shadow & 1 != 0
                && (control.event & event::VALID != 0
                    || control.virtual_interrupt & virtual_interrupt::V_IRQ != 0),
            "an interrupt is armed in an interrupt shadow, which not every CPU loads",
        ),
        (
            save.cpl != save.ss.dpl() && save.cr0 & CR0_PE != 0,
            "CPL differs from SS.DPL",
        ),
    ]
}

/// What a VMCB held at VMRUN of the fields that [`check_vmcb`] looks at and that are something else once the guest has been left, even if it was never
/// in it: the emulator's refused VMRUN leaves the hypervisor's state in the save area, and the exit path takes back what it asked for.
#[derive(Clone, Copy, Debug)]
pub struct Entered {
    cs: Segment,
    ss: Segment,
    cpl: u8,
    efer: u64,
    cr0: u64,
    cr3: u64,
    cr4: u64,
    dr6: u64,
    dr7: u64,
    rflags: u64,
    pat: u64,
    tlb_control: u32,
    virtual_interrupt: u64,
    shadow: u64,
    event: u64,
}

impl Entered {
    /// Taken right before VMRUN.
    pub fn of(Vmcb { control, save }: &Vmcb) -> Self {
        Self {
            cs: save.cs,
            ss: save.ss,
            cpl: save.cpl,
            efer: save.efer,
            cr0: save.cr0,
            cr3: save.cr3,
            cr4: save.cr4,
            dr6: save.dr6,
            dr7: save.dr7,
            rflags: save.rflags,
            pat: save.pat,
            tlb_control: control.tlb_control,
            virtual_interrupt: control.virtual_interrupt,
            shadow: control.shadow,
            event: control.event,
        }
    }

    /// The first rule that the VMCB broke at VMRUN, of those that are checked here; `vmcb` is the same one after the exit.
    pub fn broken_rule(&self, vmcb: &Vmcb, limits: Limits) -> Option<&'static str> {
        let mut entered = Box::new(vmcb.clone());
        let Vmcb { control, save } = &mut *entered;
        save.cs = self.cs;
        save.ss = self.ss;
        save.cpl = self.cpl;
        save.efer = self.efer;
        save.cr0 = self.cr0;
        save.cr3 = self.cr3;
        save.cr4 = self.cr4;
        save.dr6 = self.dr6;
        save.dr7 = self.dr7;
        save.rflags = self.rflags;
        save.pat = self.pat;
        control.tlb_control = self.tlb_control;
        control.virtual_interrupt = self.virtual_interrupt;
        control.shadow = self.shadow;
        control.event = self.event;
        check_vmcb(&entered, limits).err()
    }
}

/// True if all eight memory types exist (APM vol. 2, 7.8.1).
pub fn pat_is_valid(pat: u64) -> bool {
    pat.to_le_bytes()
        .iter()
        .all(|kind| matches!(kind, 0 | 1 | 4..=7))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::svm::vmcb::first;
    use crate::exit::Refusal;
    use alloc::string::ToString;

    const LIMITS: Limits = Limits {
        physical_bits: 40,
        asids: 16,
    };

    fn good() -> Vmcb {
        let mut vmcb = Vmcb::zeroed();
        vmcb.control.intercept_first = first::INTR;
        vmcb.control.intercept_second = second::VMRUN;
        vmcb.control.asid = 1;
        vmcb.control.nested = 1;
        vmcb.save.efer = EFER_SVME;
        vmcb.save.rflags = 2;
        vmcb.save.pat = 0x0007_0406_0007_0406;
        vmcb
    }

    fn long() -> Vmcb {
        let mut vmcb = good();
        vmcb.save.efer |= EFER_LME | EFER_LMA;
        vmcb.save.cr0 = CR0_PE | CR0_PG;
        vmcb.save.cr4 = CR4_PAE;
        vmcb.save.cs.attributes = 1 << 9;
        vmcb
    }

    #[test]
    fn good_states_pass() {
        assert_eq!(check_vmcb(&good(), LIMITS), Ok(()));
        assert_eq!(check_vmcb(&long(), LIMITS), Ok(()));
    }

    type Case = (fn() -> Vmcb, fn(&mut Vmcb), &'static str);

    /// A good state, what spoils it, and words of the rule that finds it.
    const CASES: [Case; 27] = [
        (good, |v| v.save.efer = 0, "EFER.SVME"),
        (good, |v| v.save.efer |= 1 << 20, "EFER has reserved"),
        (good, |v| v.save.cr0 = CR0_NW, "CR0.NW"),
        (good, |v| v.save.cr0 = 1 << 32, "CR0 has bits"),
        (long, |v| v.save.cr3 = 1 << 40, "CR3 is beyond"),
        (good, |v| v.save.cr4 = 1 << 31, "CR4 has"),
        (good, |v| v.save.dr6 = 1 << 32, "DR6"),
        (good, |v| v.save.dr7 = 1 << 32, "DR7"),
        (good, |v| v.save.cr0 = CR0_PG, "CR0.PG is set without"),
        (long, |v| v.save.cr4 = 0, "without CR4.PAE"),
        (long, |v| v.save.cs.attributes |= 1 << 10, "CS.L and CS.D"),
        (long, |v| v.save.efer &= !EFER_LMA, "EFER.LMA differs"),
        (good, |v| v.control.intercept_second = 0, "VMRUN is not"),
        (good, |v| v.control.msrpm = 1 << 40, "MSR permission map"),
        (
            good,
            |v| v.control.iopm = (1 << 40) - 0x2000,
            "I/O permission map",
        ),
        (good, |v| v.control.iopm = 0x800, "not aligned"),
        (good, |v| v.control.asid = 0, "ASID is zero"),
        (good, |v| v.control.asid = 16, "ASID is beyond"),
        (good, |v| v.control.tlb_control = 2, "TLB_CONTROL"),
        (
            good,
            |v| v.control.nested_cr3 = 8,
            "nested CR3 is not aligned",
        ),
        (
            good,
            |v| v.control.nested_cr3 = 1 << 41,
            "nested CR3 is beyond",
        ),
        (good, |v| v.save.pat = 2, "G_PAT"),
        (
            good,
            |v| v.control.event = event::VALID | 1 << 8,
            "reserved type",
        ),
        (
            good,
            |v| v.control.event = event::VALID | event::EXCEPTION | 32,
            "no exception has",
        ),
        (good, |v| v.save.rflags = 0, "RFLAGS"),
        (
            good,
            |v| {
                v.control.shadow = 1;
                v.control.event = event::VALID | event::EXTERNAL | 32;
            },
            "interrupt shadow",
        ),
        (long, |v| v.save.cpl = 3, "CPL differs"),
    ];

    #[test]
    fn each_rule_is_found_by_its_own_words() {
        let found = CASES.map(|(base, spoil, words)| {
            let mut vmcb = base();
            spoil(&mut vmcb);
            let rule = check_vmcb(&vmcb, LIMITS).expect_err(words);
            assert!(rule.contains(words), "{rule:?} does not speak of {words:?}");
            rule
        });
        for (_, rule) in rules(&good(), LIMITS) {
            assert!(found.contains(&rule), "nothing breaks {rule:?}");
        }
    }

    #[test]
    fn a_refusal_of_the_cpus_names_the_rule_that_was_broken_at_entry() {
        let text = |spoil: fn(&mut Vmcb)| {
            let mut vmcb = long();
            spoil(&mut vmcb);
            let entered = Entered::of(&vmcb);
            // What is there afterwards: a state that is as good as the hypervisor's, and nothing to deliver.
            vmcb.save = long().save;
            vmcb.control.event = 0;
            vmcb.control.tlb_control = 0;
            Refusal::Cpu(entered.broken_rule(&vmcb, LIMITS)).to_string()
        };
        assert_eq!(
            text(|vmcb| vmcb.save.cr0 |= CR0_NW),
            "by the CPU: CR0.NW is set without CR0.CD"
        );
        assert_eq!(
            text(|vmcb| vmcb.control.tlb_control = 2),
            "by the CPU: TLB_CONTROL is reserved"
        );
        assert_eq!(
            text(|vmcb| vmcb.control.event = event::VALID | 1 << 8),
            "by the CPU: the event to inject has a reserved type"
        );
        assert_eq!(
            text(|_| ()),
            "by the CPU, and none of the rules in APM 15.5.1 that we check is broken"
        );
    }

    /// A field that [`Entered`] forgot would let its rule pass here.
    #[test]
    fn every_rule_is_found_after_the_state_is_gone() {
        for (base, spoil, words) in CASES {
            let mut vmcb = base();
            spoil(&mut vmcb);
            let entered = Entered::of(&vmcb);
            vmcb.save = base().save;
            vmcb.control.event = 0;
            vmcb.control.tlb_control = 0;
            let rule = entered.broken_rule(&vmcb, LIMITS).expect(words);
            assert!(rule.contains(words), "{rule:?} does not speak of {words:?}");
        }
    }

    #[test]
    fn nothing_is_armed_in_a_shadow() {
        let mut vmcb = good();
        vmcb.control.shadow = 1;
        assert_eq!(check_vmcb(&vmcb, LIMITS), Ok(()));
        vmcb.control.event = event::VALID | 0x20;
        assert!(check_vmcb(&vmcb, LIMITS).is_err());
    }
}
