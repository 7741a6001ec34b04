//! The first instructions: note the time-stamp counter, take a stack of our own, go to Rust.

use core::arch::naked_asm;
use core::cell::UnsafeCell;

use uefi::Handle;
use uefi_raw_table::SystemTable;

/// The boot CPU's stack. Its lowest page becomes a guard page.
pub const STACK_BYTES: usize = 256 << 10;

/// A stack that only the CPU that runs on it touches.
#[repr(C, align(4096))]
pub struct Stack(UnsafeCell<[u8; STACK_BYTES]>);

// SAFETY: Rust code never reaches into it: only the boot CPU does, through its stack pointer.
unsafe impl Sync for Stack {}

/// The boot CPU's stack.
pub static BOOT_STACK: Stack = Stack(UnsafeCell::new([0; STACK_BYTES]));

/// The most bytes of the boot CPU's stack that were ever in use.
pub fn deepest_stack() -> usize {
    const GUARD: usize = 4096;
    let start = (&raw const BOOT_STACK) as usize;
    let untouched = (start + GUARD..start + STACK_BYTES)
        .step_by(8)
        // SAFETY: the stack is mapped but for its guard page; what is below the stack pointer does not change meanwhile.
        .take_while(|&at| unsafe { (at as *const u64).read_volatile() } == 0)
        .count();
    STACK_BYTES - GUARD - 8 * untouched
}

/// Where the firmware jumps to (UEFI 2.10, 4.1): image handle in `rcx`, system table in `rdx`.
#[unsafe(naked)]
#[unsafe(export_name = "efi_main")]
extern "efiapi" fn efi_main(image: Handle, table: *const SystemTable) -> ! {
    naked_asm!(
        "mov r9, rdx",
        "rdtsc",
        "shl rdx, 32",
        "mov r8, rax",
        "or r8, rdx",
        "mov rdx, r9",
        "lea rsp, [rip + {stack} + {bytes}]",
        "xor ebp, ebp",
        "sub rsp, 32", // shadow space of the Microsoft calling convention
        "call {main}",
        "ud2",
        stack = sym BOOT_STACK,
        bytes = const STACK_BYTES,
        main = sym start,
    )
}

/// `first_tsc` is the time-stamp counter at the first instruction.
extern "efiapi" fn start(image: Handle, table: *const SystemTable, first_tsc: u64) -> ! {
    super::clock::set_start(first_tsc);
    // SAFETY: both come from the firmware's call of our entry point, and are set here once, before anything uses them.
    unsafe {
        uefi::boot::set_image_handle(image);
        uefi::table::set_system_table(table.cast());
    }
    crate::appliance::run()
}

mod uefi_raw_table {
    /// Opaque here; the `uefi` crate knows its layout.
    #[repr(C)]
    pub struct SystemTable(());
}
