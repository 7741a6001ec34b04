//! What machines below the box get wrong and the box can keep out of the way of.

use outpost_hv::cpu::host_cpuid;
use outpost_hv::cpuid;

/// Whether QEMU's translator is below the box. Its boot CPU loses SVM's switches when another CPU loads x87 state at the same moment, and exits cost it
/// some hundred microseconds.
///
/// QEMU's translator (7.2.22, as Debian 12 has it; still there in commit 32222dc3bbd1), `-accel tcg,thread=multi`: whatever CPU executes FXRSTOR, FRSTOR, FLDENV or XRSTOR clears the
/// IGNNE# bit in `hflags2` *of the first CPU*, by a plain read, change and write from its own thread (`cpu_clear_ignne`, called by `cpu_set_fpus`). What the first
/// CPU's thread changes in the same word meanwhile is undone: nested paging, which stays on after a #VMEXIT or off after VMRUN, the global interrupt
/// flag, the masking of interrupts. A guest on another CPU cannot be kept from FXRSTOR, so two vCPUs at once must both stay off the boot CPU.
pub fn is_translator() -> bool {
    cpuid::is_translator(host_cpuid)
}
