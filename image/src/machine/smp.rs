//! Starts the other CPUs: INIT, SIPI, SIPI through a trampoline below 1 MiB (AP start-up, APM vol. 2, 15.27.8 and Intel SDM 9.4).

use alloc::vec::Vec;
use core::arch::global_asm;
use core::sync::atomic::{AtomicUsize, Ordering};

use raw_cpuid::CpuId;
use spin::Once;
use x86_64::registers::control::{Cr0, Cr4, Cr4Flags};
use x86_64::registers::model_specific::{Efer, EferFlags};

use super::apic::Target;
use super::{apic, clock, cpu, heap, interrupts, paging};

/// Stack of each CPU but the first. Its lowest page becomes a guard page.
const STACK_BYTES: usize = 256 << 10;

/// What a CPU does for the rest of its days. Given its number.
pub type Main = fn(usize) -> !;

static MAIN: Once<Main> = Once::new();
static SEEN: AtomicUsize = AtomicUsize::new(1);

/// Filled in by the boot CPU, read by the code below. Layout and offsets are those in the assembly.
#[repr(C)]
struct Parameters {
    gdt: [u64; 4],
    gdt_limit: u16,
    gdt_base: [u16; 2],
    _pad: u16,
    protected_mode: FarPointer,
    long_mode: FarPointer,
    cr3: u64,
    cr4: u64,
    cr0: u64,
    efer: u64,
    stacks: u64,
    entry: u64,
    arrived: u32,
    limit: u32,
}

#[repr(C)]
struct FarPointer {
    offset: u32,
    selector: u16,
    _pad: u16,
}

/// Where `Parameters` lies in the trampoline.
const PARAMETERS_AT: u64 = 8;

global_asm!(
    ".section .text",
    ".balign 16",
    ".globl outpost_trampoline",
    "outpost_trampoline:",
    ".code16",
    "jmp 2f",
    ".balign 8",
    ".fill 112, 1, 0", // Parameters
    "2:",
    "cli",
    "cld",
    "xor ebx, ebx",
    "mov bx, cs",
    "mov ds, bx",
    "shl ebx, 4",                          // ebx: where the trampoline is
    ".byte 0x66, 0x0f, 0x01, 0x16, 40, 0", // lgdt, 32-bit base, from ds:[40]
    "mov eax, cr0",
    "or al, 1",
    "mov cr0, eax",
    ".byte 0x66, 0xff, 0x2e, 48, 0", // far jump, 32-bit offset, through ds:[48]
    ".code32",
    ".globl outpost_trampoline_32",
    "outpost_trampoline_32:",
    "mov ax, 16",
    "mov ds, ax",
    "mov es, ax",
    "mov ss, ax",
    "mov eax, [ebx + 72]",
    "mov cr4, eax",
    "mov eax, [ebx + 64]",
    "mov cr3, eax",
    "mov ecx, 0xc0000080", // EFER
    "mov eax, [ebx + 88]",
    "xor edx, edx",
    "wrmsr",
    "mov eax, [ebx + 80]",
    "mov cr0, eax",
    ".byte 0xff, 0xab, 56, 0, 0, 0", // far jump through [ebx + 56]
    ".code64",
    ".globl outpost_trampoline_64",
    "outpost_trampoline_64:",
    "mov ebx, ebx",
    "mov eax, 1",
    "lock xadd [rbx + 112], eax", // eax: how many came before
    "cmp eax, [rbx + 116]",
    "jae 3f",
    "mov rcx, [rbx + 96]",
    "mov rsp, [rcx + 8*rax]",
    "mov edi, eax",
    "xor ebp, ebp",
    "mov rax, [rbx + 104]",
    "call rax",
    "3:",
    "cli",
    "hlt",
    "jmp 3b",
    ".globl outpost_trampoline_end",
    "outpost_trampoline_end:",
);

unsafe extern "C" {
    static outpost_trampoline: u8;
    static outpost_trampoline_32: u8;
    static outpost_trampoline_64: u8;
    static outpost_trampoline_end: u8;
}

const _: () = assert!(size_of::<Parameters>() == 112);

/// Starts the CPUs with the APIC identifiers `ids` (the boot CPU's own among them), or, if that is empty, every CPU that
/// answers. `page` is a free page below 1 MiB, mapped executable, and the one after it is free too; without it no CPU can start. Each CPU ends in `main`.
/// Returns how many CPUs run, the boot CPU among them.
pub fn start_others(ids: &[u32], page: Option<u64>, main: Main) -> usize {
    MAIN.call_once(|| main);
    let Some(page) = page else {
        return 1;
    };
    let own = apic::id();
    let targets: Vec<Target> = if ids.is_empty() {
        alloc::vec![Target::Others]
    } else {
        ids.iter()
            .filter(|&&id| id != own)
            .take(cpu::MAX_CPUS - 1)
            .map(|&id| Target::One(id))
            .collect()
    };
    let wanted = if ids.is_empty() {
        logical_cpus().clamp(1, cpu::MAX_CPUS) - 1
    } else {
        targets.len()
    };
    if wanted == 0 {
        return 1;
    }
    let Some(stacks) = make_stacks(wanted) else {
        return 1;
    };
    let arrived = lay_trampoline(page, &stacks);
    let startup_page = (page >> 12) as u8;
    for &target in &targets {
        apic::send_init(target);
    }
    clock::spin_us(10_000);
    for _ in 0..2 {
        for &target in &targets {
            apic::send_startup(target, startup_page);
        }
        wait_for(wanted + 1, 200);
        if SEEN.load(Ordering::Acquire) > wanted {
            break;
        }
    }
    wait_for(wanted + 1, 200_000);
    // SAFETY: the counter lies in the trampoline's page. Whoever comes from now on finds the limit reached, and halts.
    unsafe { arrived.write_volatile(u32::MAX / 2) };
    // The stacks' addresses are needed until the last CPU that counted itself in has loaded its own.
    core::mem::forget(stacks);
    SEEN.load(Ordering::Acquire)
}

fn wait_for(count: usize, micros: u64) {
    let end = clock::now_ns() + micros * 1000;
    while SEEN.load(Ordering::Acquire) < count && clock::now_ns() < end {
        core::hint::spin_loop();
    }
}

fn logical_cpus() -> usize {
    CpuId::new()
        .get_feature_info()
        .map_or(1, |info| usize::from(info.max_logical_processor_ids()))
}

/// Tops of new stacks.
fn make_stacks(count: usize) -> Option<Vec<u64>> {
    (0..count)
        .map(|_| {
            let stack = heap::leak_zeroed(STACK_BYTES, 4096)?.as_ptr() as u64;
            paging::guard(stack);
            Some(stack + STACK_BYTES as u64)
        })
        .collect()
}

/// Copies the trampoline to `page` and fills it in. Returns where it counts the CPUs that came.
fn lay_trampoline(page: u64, stacks: &[u64]) -> *mut u32 {
    let start = &raw const outpost_trampoline as u64;
    let length = &raw const outpost_trampoline_end as u64 - start;
    let offset_32 = &raw const outpost_trampoline_32 as u64 - start;
    let offset_64 = &raw const outpost_trampoline_64 as u64 - start;
    // CR3 has 32 bits until long mode is on: the second low page holds a copy of the root table.
    let root_copy = page + 4096;
    let refused = Cr4Flags::PCID | Cr4Flags::VIRTUAL_MACHINE_EXTENSIONS;
    let efer = Efer::read()
        & (EferFlags::LONG_MODE_ENABLE
            | EferFlags::NO_EXECUTE_ENABLE
            | EferFlags::SYSTEM_CALL_EXTENSIONS);
    let gdt_base = (page + PARAMETERS_AT) as u32;
    let parameters = Parameters {
        gdt: [
            0,
            0x00cf_9a00_0000_ffff, // 32-bit code
            0x00cf_9200_0000_ffff, // data
            0x00af_9a00_0000_ffff, // 64-bit code
        ],
        gdt_limit: 31,
        gdt_base: [gdt_base as u16, (gdt_base >> 16) as u16],
        _pad: 0,
        protected_mode: FarPointer {
            offset: (page + offset_32) as u32,
            selector: 8,
            _pad: 0,
        },
        long_mode: FarPointer {
            offset: (page + offset_64) as u32,
            selector: 24,
            _pad: 0,
        },
        cr3: root_copy,
        cr4: (Cr4::read() - refused).bits(),
        cr0: Cr0::read().bits(),
        efer: efer.bits(),
        stacks: stacks.as_ptr() as u64,
        entry: other_cpu as *const () as u64,
        arrived: 0,
        limit: stacks.len() as u32,
    };
    // SAFETY: the caller gives two free low pages; the trampoline is position-independent and shorter than a page.
    unsafe {
        core::ptr::copy_nonoverlapping(start as *const u8, page as *mut u8, length as usize);
        core::ptr::copy_nonoverlapping(paging::root() as *const u8, root_copy as *mut u8, 4096);
        ((page + PARAMETERS_AT) as *mut Parameters).write(parameters);
    }
    (page + PARAMETERS_AT + core::mem::offset_of!(Parameters, arrived) as u64) as *mut u32
}

/// First Rust code on another CPU; `order` counts from 0.
extern "sysv64" fn other_cpu(order: u32) -> ! {
    cpu::arrive();
    paging::join();
    interrupts::load_tables();
    apic::enable();
    cpu::register(order as usize + 1);
    SEEN.fetch_add(1, Ordering::AcqRel);
    match MAIN.get() {
        Some(main) => main(order as usize + 1),
        None => cpu::halt_for_ever(),
    }
}
