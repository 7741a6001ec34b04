//! Whether this CPU can run guests with SVM, and if not, exactly why.

use super::check::Limits;
use crate::cpu::Unavailable;
use core::arch::x86_64::CpuidResult;

const SVM: u32 = 1 << 2;
const VMX: u32 = 1 << 5;
const GIGABYTE_PAGES: u32 = 1 << 26;
const NESTED_PAGING: u32 = 1 << 0;
const NEXT_RIP: u32 = 1 << 3;
const SVM_DISABLED: u64 = 1 << 4;
const SVM_LOCKED: u64 = 1 << 3;

/// What an SVM CPU offers beyond the least.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Widths and numbers that a VMCB must keep to.
    pub limits: Limits,
    /// The CPU tells the next RIP at exits.
    pub next_rip: bool,
    /// The CPU has 1 GiB pages.
    pub gigabyte_pages: bool,
}

/// Judges by CPUID and, only where SVM exists, by VM_CR.
///
/// # Errors
/// The first reason why not.
pub fn judge(
    cpuid: impl Fn(u32) -> CpuidResult,
    vm_cr: impl FnOnce() -> u64,
) -> Result<Capabilities, Unavailable> {
    let has = |leaf: u32| cpuid(leaf & 0x8000_0000).eax >= leaf;
    if !has(0x8000_0001) || cpuid(0x8000_0001).ecx & SVM == 0 {
        let vmx = has(1) && cpuid(1).ecx & VMX != 0;
        return Err(if vmx {
            Unavailable::NoVmxYet
        } else {
            Unavailable::NoVirtualisation
        });
    }
    let vm_cr = vm_cr();
    if vm_cr & SVM_DISABLED != 0 {
        return Err(if vm_cr & SVM_LOCKED != 0 {
            Unavailable::LockedByFirmware
        } else {
            Unavailable::DisabledByFirmware
        });
    }
    if !has(0x8000_000A) || cpuid(0x8000_000A).edx & NESTED_PAGING == 0 {
        return Err(Unavailable::NoNestedPaging);
    }
    let svm = cpuid(0x8000_000A);
    let physical_bits = if has(0x8000_0008) {
        cpuid(0x8000_0008).eax & 0xFF
    } else {
        36
    };
    Ok(Capabilities {
        limits: Limits {
            physical_bits: physical_bits.min(52),
            asids: svm.ebx,
        },
        next_rip: svm.edx & NEXT_RIP != 0,
        gigabyte_pages: cpuid(0x8000_0001).edx & GIGABYTE_PAGES != 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cpu(svm: bool, vmx: bool, features: u32) -> impl Fn(u32) -> CpuidResult {
        move |leaf| {
            let (eax, ebx, ecx, edx) = match leaf {
                0 => (0xD, 0, 0, 0),
                1 => (0, 0, u32::from(vmx) << 5, 0),
                0x8000_0000 => (0x8000_000A, 0, 0, 0),
                0x8000_0001 => (0, 0, u32::from(svm) << 2, GIGABYTE_PAGES),
                0x8000_0008 => (40, 0, 0, 0),
                0x8000_000A => (1, 16, 0, features),
                _ => (0, 0, 0, 0),
            };
            CpuidResult { eax, ebx, ecx, edx }
        }
    }

    #[test]
    fn every_reason_is_told_apart() {
        let never = || -> u64 { panic!("VM_CR does not exist without SVM") };
        assert_eq!(
            judge(cpu(false, false, 0), never),
            Err(Unavailable::NoVirtualisation)
        );
        assert_eq!(
            judge(cpu(false, true, 0), never),
            Err(Unavailable::NoVmxYet)
        );
        assert_eq!(
            judge(cpu(true, false, 0), || 0),
            Err(Unavailable::NoNestedPaging)
        );
        assert_eq!(
            judge(cpu(true, false, 1), || SVM_DISABLED),
            Err(Unavailable::DisabledByFirmware)
        );
        assert_eq!(
            judge(cpu(true, false, 1), || SVM_DISABLED | SVM_LOCKED),
            Err(Unavailable::LockedByFirmware)
        );
        let limits = Limits {
            physical_bits: 40,
            asids: 16,
        };
        let plain = Capabilities {
            limits,
            next_rip: false,
            gigabyte_pages: true,
        };
        assert_eq!(judge(cpu(true, false, 1), || SVM_LOCKED), Ok(plain));
        assert_eq!(
            judge(cpu(true, false, 9), || 0),
            Ok(Capabilities {
                next_rip: true,
                ..plain
            })
        );
    }

    #[test]
    fn an_old_cpu_has_no_extended_leaves() {
        let old = |_| CpuidResult {
            eax: 1,
            ebx: 0,
            ecx: 0,
            edx: 0,
        };
        assert_eq!(judge(old, || 0), Err(Unavailable::NoVirtualisation));
    }
}
