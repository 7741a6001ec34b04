//! What CPUID tells the guest: the host's answer cut down to what is known to work here, and KVM's paravirtual leaves. Features are allowed
//! one by one, so that nothing new on a CPU or emulator reaches the guest by itself. A pure function.

use core::arch::x86_64::CpuidResult;

/// First hypervisor leaf: "KVMKVMKVM" (Documentation/virt/kvm/x86/cpuid.rst).
pub const KVM_BASE: u32 = 0x4000_0000;

/// Bits of leaf 40000001h EAX.
mod kvm_feature {
    /// No delay between port accesses.
    pub const NO_IO_DELAY: u32 = 1 << 1;
    /// MSRs 4B564D00h and 4B564D01h.
    pub const CLOCK: u32 = 1 << 3;
    /// MSR 4B564D03h: the time that others had the CPU.
    pub const STEAL_TIME: u32 = 1 << 5;
    /// MSR 4B564D04h: the end of an interrupt without an exit.
    pub const END_OF_INTERRUPT: u32 = 1 << 6;
    /// KVM_HC_KICK_CPU wakes a halted vCPU: waiters for a lock need not spin.
    pub const UNHALT: u32 = 1 << 7;
    /// A vCPU that is not running is told by its steal time structure to flush its TLB.
    pub const TLB_FLUSH: u32 = 1 << 9;
    /// KVM_HC_SEND_IPI sends one interrupt to many.
    pub const SEND_IPI: u32 = 1 << 11;
    /// MSR 4B564D05h: whether the host polls at a halt.
    pub const POLL_CONTROL: u32 = 1 << 12;
    /// The clock never goes backwards, on any vCPU.
    pub const CLOCK_STABLE: u32 = 1 << 24;
}

/// What an answer depends on beside the CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Topology {
    /// Number of the asking vCPU; also its local APIC's identifier.
    pub vcpu: u32,
    /// How many the guest has.
    pub vcpus: u32,
}

/// Leaf 1 ECX: SSE3, PCLMULQDQ, SSSE3, CX16, SSE4.1, SSE4.2, MOVBE, POPCNT, AES, RDRAND. Not here: MONITOR, FMA, PCID, XSAVE, AVX, F16C.
const ECX_1: u32 = bits(&[0, 1, 9, 13, 19, 20, 22, 23, 25, 30]);
/// x2APIC, TSC-deadline timer, "there is a hypervisor".
const ECX_1_OURS: u32 = bits(&[21, 24, 31]);
/// Leaf 1 EDX: everything from FPU to PSE-36 that is not reserved, CLFLUSH, MMX, FXSR, SSE, SSE2. Not here: debug store, ACPI clock control.
const EDX_1: u32 = bits(&[
    0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15, 16, 17, 19, 23, 24, 25, 26,
]);
/// Leaf 1 ECX: there is a hypervisor, and leaf 40000000h names it.
const HYPERVISOR: u32 = 1 << 31;
/// More than one logical processor.
const EDX_1_HTT: u32 = 1 << 28;
/// Leaf 7 EBX: FSGSBASE, BMI1, SMEP, BMI2, ERMS, RDSEED, ADX, SMAP, CLFLUSHOPT, CLWB, SHA. Not here: TSC_ADJUST, AVX2, INVPCID, MPX, AVX-512.
const EBX_7: u32 = bits(&[0, 3, 7, 8, 9, 18, 19, 20, 23, 24, 29]);
/// Leaf 7 ECX: UMIP, RDPID. Not here: protection keys (PKRU is not exchanged), LA57.
const ECX_7: u32 = bits(&[2, 22]);
/// Leaf 7 EDX: fast short REP MOV.
const EDX_7: u32 = bits(&[4]);
/// Of these, what makes Linux copy and clear memory by REP MOVSB and REP STOSB: leaf 7 EBX and EDX.
const BYTE_STRINGS: (u32, u32) = (bits(&[9]), bits(&[4]));
/// Leaf 80000001h ECX: LAHF, LZCNT, SSE4A, misaligned SSE, PREFETCHW. Not here: SVM, and what depends on XSAVE.
const ECX_8_1: u32 = bits(&[0, 5, 6, 7, 8]);
/// Leaf 80000001h EDX: as leaf 1, and SYSCALL, NX, MMX extensions, FXSR, 1 GiB pages, RDTSCP, long mode.
const EDX_8_1: u32 = bits(&[
    0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15, 16, 17, 20, 22, 23, 24, 26, 27, 29,
]);
/// Leaf 80000008h EBX: CLZERO.
const EBX_8_8: u32 = bits(&[0]);
/// Leaf 80000007h EDX: the TSC runs at one rate in every state.
const INVARIANT_TSC: u32 = 1 << 8;

/// Highest basic leaf: extended topology.
const LAST_BASIC: u32 = 0xB;
/// Highest extended leaf: before SVM's.
const LAST_EXTENDED: u32 = 0x8000_0008;
/// Linear addresses: four levels.
const LINEAR_BITS: u32 = 48;

/// Whether QEMU's translator is below, by the CPU's own answers.
pub fn is_translator(host: impl Fn(u32, u32) -> CpuidResult) -> bool {
    let CpuidResult { ebx, ecx, edx, .. } = host(KVM_BASE, 0);
    let name = [ebx, ecx, edx].map(u32::to_le_bytes);
    host(1, 0).ecx & HYPERVISOR != 0 && name == [*b"TCGT", *b"CGTC", *b"GTCG"]
}

const fn bits(numbers: &[u32]) -> u32 {
    let (mut set, mut index) = (0, 0);
    while index < numbers.len() {
        set |= 1 << numbers[index];
        index += 1;
    }
    set
}

const ZERO: CpuidResult = CpuidResult {
    eax: 0,
    ebx: 0,
    ecx: 0,
    edx: 0,
};

/// The guest's answer for a leaf and subleaf; `host` gives the CPU's own.
pub fn answer(
    leaf: u32,
    subleaf: u32,
    topology: Topology,
    host: impl Fn(u32, u32) -> CpuidResult,
) -> CpuidResult {
    let last = host(leaf & 0x8000_0000, 0).eax;
    let there = leaf <= last;
    let Topology { vcpu, vcpus } = topology;
    match leaf {
        KVM_BASE => CpuidResult {
            eax: KVM_BASE + 1,
            ebx: u32::from_le_bytes(*b"KVMK"),
            ecx: u32::from_le_bytes(*b"VMKV"),
            edx: u32::from_le_bytes(*b"M\0\0\0"),
        },
        0x4000_0001 => CpuidResult {
            eax: kvm_feature::NO_IO_DELAY
                | kvm_feature::CLOCK
                | kvm_feature::STEAL_TIME
                | kvm_feature::END_OF_INTERRUPT
                | kvm_feature::UNHALT
                | kvm_feature::TLB_FLUSH
                | kvm_feature::SEND_IPI
                | kvm_feature::POLL_CONTROL
                | kvm_feature::CLOCK_STABLE,
            ..ZERO
        },
        // Made here, whether the CPU has it or not.
        0xB => topology_leaf(subleaf, topology),
        0 => CpuidResult {
            eax: LAST_BASIC,
            ..host(0, 0)
        },
        0x8000_0000 => CpuidResult {
            eax: last.min(LAST_EXTENDED),
            ..host(leaf, 0)
        },
        0x8000_0007 => CpuidResult {
            edx: INVARIANT_TSC,
            ..ZERO
        },
        // The local APIC's timer runs in every state (ARAT). Without this Linux looks for a PIT, and there is none.
        6 => CpuidResult {
            eax: 1 << 2,
            ..ZERO
        },
        _ if !there => ZERO,
        1 => {
            let cpu = host(1, 0);
            CpuidResult {
                eax: cpu.eax,
                ebx: cpu.ebx & 0xFF00 | (vcpus & 0xFF) << 16 | vcpu << 24,
                ecx: cpu.ecx & ECX_1 | ECX_1_OURS,
                edx: cpu.edx & EDX_1 | if vcpus > 1 { EDX_1_HTT } else { 0 },
            }
        }
        7 if subleaf == 0 => {
            let cpu = host(7, 0);
            // It carries out REP MOVSB a byte at a time, REP MOVSQ eight: a guest that finds fast strings of bytes would be slower for them.
            let (no_ebx, no_edx) = match is_translator(host) {
                true => BYTE_STRINGS,
                false => (0, 0),
            };
            CpuidResult {
                eax: 0,
                ebx: cpu.ebx & EBX_7 & !no_ebx,
                ecx: cpu.ecx & ECX_7,
                edx: cpu.edx & EDX_7 & !no_edx,
            }
        }
        0x8000_0001 => {
            let cpu = host(leaf, 0);
            CpuidResult {
                eax: cpu.eax,
                ebx: cpu.ebx,
                ecx: cpu.ecx & ECX_8_1,
                edx: cpu.edx & EDX_8_1,
            }
        }
        // Name, caches.
        0x8000_0002..=0x8000_0006 => host(leaf, 0),
        0x8000_0008 => {
            let cpu = host(leaf, 0);
            CpuidResult {
                eax: cpu.eax & 0xFF | LINEAR_BITS << 8,
                ebx: cpu.ebx & EBX_8_8,
                ecx: (vcpus - 1) & 0xFF | log2_ceil(vcpus) << 12,
                edx: 0,
            }
        }
        _ => ZERO,
    }
}

/// One thread a core, all cores in one package (Intel SDM vol. 2A, CPUID leaf 0Bh; AMD has the same).
fn topology_leaf(level: u32, Topology { vcpu, vcpus }: Topology) -> CpuidResult {
    let (eax, ebx, kind) = match level {
        0 => (0, 1, 1),
        1 => (log2_ceil(vcpus), vcpus, 2),
        _ => (0, 0, 0),
    };
    CpuidResult {
        eax,
        ebx,
        ecx: kind << 8 | level & 0xFF,
        edx: vcpu,
    }
}

fn log2_ceil(number: u32) -> u32 {
    number.next_power_of_two().trailing_zeros()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Topology = Topology { vcpu: 0, vcpus: 1 };

    /// A CPU that has everything.
    fn all(leaf: u32, _: u32) -> CpuidResult {
        let eax = match leaf {
            0 => 0x20,
            0x8000_0000 => 0x8000_0021,
            _ => u32::MAX,
        };
        CpuidResult {
            eax,
            ebx: u32::MAX,
            ecx: u32::MAX,
            edx: u32::MAX,
        }
    }

    #[test]
    fn what_is_not_emulated_is_hidden() {
        let one = answer(1, 0, ONE, all);
        for (name, bit) in [
            ("MONITOR", 3),
            ("VMX", 5),
            ("FMA", 12),
            ("PCID", 17),
            ("XSAVE", 26),
            ("OSXSAVE", 27),
            ("AVX", 28),
        ] {
            assert_eq!(one.ecx & 1 << bit, 0, "{name}");
        }
        for (name, bit) in [("x2APIC", 21), ("TSC-deadline", 24), ("hypervisor", 31)] {
            assert_ne!(one.ecx & 1 << bit, 0, "{name}");
        }
        let seven = answer(7, 0, ONE, all);
        for (name, bit) in [
            ("TSC_ADJUST", 1),
            ("INVPCID", 10),
            ("MPX", 14),
            ("AVX512F", 16),
        ] {
            assert_eq!(seven.ebx & 1 << bit, 0, "{name}");
        }
        for (name, bit) in [("PKU", 3), ("LA57", 16)] {
            assert_eq!(seven.ecx & 1 << bit, 0, "{name}");
        }
        assert_eq!(answer(0x8000_0001, 0, ONE, all).ecx & 1 << 2, 0, "SVM");
        assert_eq!(answer(0x8000_000A, 0, ONE, all), ZERO);
        assert_eq!(answer(0xD, 0, ONE, all), ZERO);
        assert_eq!(answer(7, 1, ONE, all), ZERO);
        assert_eq!(answer(0x8000_0008, 0, ONE, all).eax >> 8, 48);
    }

    #[test]
    fn the_translator_is_not_made_to_copy_by_bytes() {
        let named = |name: &'static [u8; 12], hypervisor| {
            move |leaf: u32, subleaf| match leaf {
                KVM_BASE => {
                    let part = |at| u32::from_le_bytes(name[at..at + 4].try_into().unwrap());
                    CpuidResult {
                        eax: KVM_BASE,
                        ebx: part(0),
                        ecx: part(4),
                        edx: part(8),
                    }
                }
                1 => CpuidResult {
                    ecx: if hypervisor { HYPERVISOR } else { 0 },
                    ..ZERO
                },
                _ => all(leaf, subleaf),
            }
        };
        let shown = |name, hypervisor| {
            let seven = answer(7, 0, ONE, named(name, hypervisor));
            (seven.ebx & 1 << 9 != 0, seven.edx & 1 << 4 != 0)
        };
        assert_eq!(shown(b"TCGTCGTCGTCG", true), (false, false));
        // Without a hypervisor these leaves are those of another one.
        assert_eq!(shown(b"TCGTCGTCGTCG", false), (true, true));
        assert_eq!(shown(b"KVMKVMKVM\0\0\0", true), (true, true));
        // All else is as before.
        let hidden = answer(7, 0, ONE, named(b"TCGTCGTCGTCG", true));
        let plain = answer(7, 0, ONE, all);
        assert_eq!(
            (hidden.ebx ^ plain.ebx, hidden.ecx, hidden.edx ^ plain.edx),
            (1 << 9, plain.ecx, 1 << 4)
        );
    }

    #[test]
    fn a_poor_cpu_gains_only_what_is_made_here() {
        let poor = |leaf: u32, _| CpuidResult {
            eax: if leaf == 0 { 1 } else { 0 },
            ..ZERO
        };
        assert_eq!(answer(7, 0, ONE, poor), ZERO);
        assert_eq!(answer(1, 0, ONE, poor).ecx, ECX_1_OURS);
        assert_eq!(answer(0x8000_0008, 0, ONE, poor), ZERO);
        assert_eq!(answer(0x8000_0007, 0, ONE, poor).edx, INVARIANT_TSC);
        assert_eq!(answer(0xB, 0, ONE, poor).ebx, 1);
    }

    #[test]
    fn the_hypervisor_says_kvm() {
        let base = answer(KVM_BASE, 0, ONE, all);
        let name = [base.ebx, base.ecx, base.edx]
            .map(u32::to_le_bytes)
            .concat();
        assert_eq!(
            (base.eax, name.as_slice()),
            (0x4000_0001, &b"KVMKVMKVM\0\0\0"[..])
        );
        assert_eq!(answer(0x4000_0001, 0, ONE, all).eax, 0x0100_1AEA);
        assert_eq!(answer(0x4000_0002, 0, ONE, all), ZERO);
    }

    #[test]
    fn topology_is_one_package_of_single_threaded_cores() {
        let third = Topology { vcpu: 2, vcpus: 3 };
        assert_eq!(answer(1, 0, third, all).ebx, 0x0203_FF00);
        let cores = answer(0xB, 1, third, all);
        assert_eq!(
            (cores.eax, cores.ebx, cores.ecx, cores.edx),
            (2, 3, 0x201, 2)
        );
        assert_eq!(answer(0xB, 2, third, all).ebx, 0);
        assert_eq!(answer(0x8000_0008, 0, third, all).ecx, 2 | 2 << 12);
    }
}
