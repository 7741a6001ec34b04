//! The privileged instructions that the SVM back end needs, each in the smallest function that holds it.

use crate::cpu::Registers;
use core::arch::{asm, naked_asm};
use core::mem::offset_of;

/// Extended feature enables.
pub const EFER: u32 = 0xC000_0080;
/// TSC_AUX, read by RDTSCP and RDPID.
pub const TSC_AUX: u32 = 0xC000_0103;
/// SVM's own switches (APM vol. 2, 15.30.1).
pub const VM_CR: u32 = 0xC001_0114;
/// Host-physical address of the page where VMRUN keeps the host's state.
pub const VM_HSAVE_PA: u32 = 0xC001_0117;

/// Reads an MSR.
///
/// # Safety
/// Runs at CPL 0 on a CPU that has this MSR.
pub unsafe fn read_msr(msr: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: by the caller's promise it does not fault; it changes nothing else.
    unsafe {
        asm!("rdmsr", in("ecx") msr, out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags))
    };
    u64::from(high) << 32 | u64::from(low)
}

/// Writes an MSR.
///
/// # Safety
/// Runs at CPL 0 on a CPU that has this MSR; the value is valid for it and changes nothing that other code relies on.
pub unsafe fn write_msr(msr: u32, value: u64) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("wrmsr", in("ecx") msr, in("eax") value as u32, in("edx") (value >> 32) as u32, options(nostack, preserves_flags));
    }
}

/// Reads DR0 to DR3.
///
/// # Safety
/// Runs at CPL 0, with DR7.GD clear.
pub unsafe fn read_breakpoints() -> [u64; 4] {
    let (zero, one, two, three): (u64, u64, u64, u64);
    // SAFETY: by the caller's promise it does not fault; it changes nothing else.
    unsafe {
        asm!(
            "mov {}, dr0", "mov {}, dr1", "mov {}, dr2", "mov {}, dr3",
            out(reg) zero, out(reg) one, out(reg) two, out(reg) three, options(nomem, nostack, preserves_flags)
        );
    }
    [zero, one, two, three]
}

/// Writes DR0 to DR3.
///
/// # Safety
/// Runs at CPL 0, with no breakpoint enabled in DR7, and GD clear.
pub unsafe fn write_breakpoints([zero, one, two, three]: [u64; 4]) {
    // SAFETY: by the caller's promise it does not fault, and no address is watched.
    unsafe {
        asm!(
            "mov dr0, {}", "mov dr1, {}", "mov dr2, {}", "mov dr3, {}",
            in(reg) zero, in(reg) one, in(reg) two, in(reg) three, options(nomem, nostack, preserves_flags)
        );
    }
}

/// Reads the root of the page tables.
///
/// # Safety
/// Runs at CPL 0.
pub unsafe fn read_cr3() -> u64 {
    let cr3: u64;
    // SAFETY: CPL 0 by the caller's promise; it changes nothing.
    unsafe { asm!("mov {}, cr3", out(reg) cr3, options(nomem, nostack, preserves_flags)) };
    cr3
}

/// Writes CR8, the priority below which interrupts wait, as it is: the local APIC looks again at what is pending.
///
/// # Safety
/// Runs at CPL 0, outside any guest.
pub unsafe fn rewrite_cr8() {
    // SAFETY: CPL 0 by the caller's promise; nothing is changed.
    unsafe {
        asm!("mov {priority}, cr8", "mov cr8, {priority}", priority = out(reg) _, options(nomem, nostack, preserves_flags));
    }
}

/// Whether an address is in [`enter`], or right behind it.
pub fn is_in_enter(address: u64) -> bool {
    const MOST: u64 = 512;
    address.wrapping_sub(enter as *const () as u64) < MOST
}

/// Stores FS, GS, TR, LDTR and the system-call MSRs, all of the CPU's state that [`enter`] exchanges and VMRUN does not (APM vol. 2, 15.5.2).
///
/// # Safety
/// Runs at CPL 0 with EFER.SVME set; `area` is the physical address of a page for it.
pub unsafe fn save_host(area: u64) {
    // SAFETY: by the caller's promise it does not fault, and writes to that page only.
    unsafe { asm!("vmsave rax", in("rax") area, options(nostack, preserves_flags)) };
}

/// Enters the guest until #VMEXIT: exchanges the general-purpose registers (RAX and RSP are in the VMCB) and, with VMSAVE and VMLOAD, FS, GS, TR,
/// LDTR and the system-call MSRs. The host's of these are taken from where [`save_host`] put them.
///
/// Interrupts: with GIF clear, RFLAGS.IF is set only so that an interrupt that comes while the guest runs (V_INTR_MASKING) is
/// taken as an exit; it is clear again before STGI, so the interrupt stays pending in the host.
///
/// # Safety
/// (1) CPL 0, interrupts off, EFER.SVME set, VM_HSAVE_PA set to a page of its own. (2) `vmcb` is the physical address of a VMCB that confines the guest
/// to its own memory; `host_area` that of the page that [`save_host`] filled on this CPU, on which that state has not changed since. (3) Memory is identity-mapped. (4) The x87 and SSE registers are the
/// guest's.
#[unsafe(naked)]
pub unsafe extern "sysv64" fn enter(registers: *mut Registers, vmcb: u64, host_area: u64) {
    naked_asm!(
        "push rbx",
        "push rbp",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "push rdi",
        "push rdx",
        "mov rax, rsi",
        "mov rcx, [rdi + {gpr} + 8]",
        "mov rdx, [rdi + {gpr} + 16]",
        "mov rbx, [rdi + {gpr} + 24]",
        "mov rbp, [rdi + {gpr} + 40]",
        "mov rsi, [rdi + {gpr} + 48]",
        "mov r8, [rdi + {gpr} + 64]",
        "mov r9, [rdi + {gpr} + 72]",
        "mov r10, [rdi + {gpr} + 80]",
        "mov r11, [rdi + {gpr} + 88]",
        "mov r12, [rdi + {gpr} + 96]",
        "mov r13, [rdi + {gpr} + 104]",
        "mov r14, [rdi + {gpr} + 112]",
        "mov r15, [rdi + {gpr} + 120]",
        "mov rdi, [rdi + {gpr} + 56]",
        "clgi",
        "sti",
        "vmload rax",
        "vmrun rax",
        "vmsave rax",
        "cli",
        "mov rax, [rsp]",
        "vmload rax",
        "stgi",
        "mov rax, [rsp + 8]",
        "mov [rax + {gpr} + 8], rcx",
        "mov [rax + {gpr} + 16], rdx",
        "mov [rax + {gpr} + 24], rbx",
        "mov [rax + {gpr} + 40], rbp",
        "mov [rax + {gpr} + 48], rsi",
        "mov [rax + {gpr} + 56], rdi",
        "mov [rax + {gpr} + 64], r8",
        "mov [rax + {gpr} + 72], r9",
        "mov [rax + {gpr} + 80], r10",
        "mov [rax + {gpr} + 88], r11",
        "mov [rax + {gpr} + 96], r12",
        "mov [rax + {gpr} + 104], r13",
        "mov [rax + {gpr} + 112], r14",
        "mov [rax + {gpr} + 120], r15",
        "pop rdx",
        "pop rdi",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbp",
        "pop rbx",
        "ret",
        gpr = const offset_of!(Registers, gpr),
    )
}
