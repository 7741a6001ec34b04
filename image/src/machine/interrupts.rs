//! Descriptor tables and what happens at an interrupt: GDT and TSS for each CPU, one IDT for all, every vector on an IST stack.
//!
//! Host code runs with interrupts off; they are taken only where a CPU sleeps or asks for them ([`super::cpu`]). A handler
//! notes what came, tells the APIC, and returns.

use alloc::boxed::Box;
use core::arch::global_asm;
use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use spin::Once;
use x86_64::VirtAddr;
use x86_64::instructions::segmentation::{CS, DS, ES, SS, Segment};
use x86_64::instructions::tables::{lidt, load_tss};
use x86_64::structures::DescriptorTablePointer;
use x86_64::structures::gdt::{Descriptor, GlobalDescriptorTable};
use x86_64::structures::tss::TaskStateSegment;

use super::{apic, cpu, heap};

/// The CPU's own timer.
pub const TIMER: u8 = 0x40;
/// Another CPU has something for this one.
pub const KICK: u8 = 0x41;
/// A device has something.
pub const DEVICE: u8 = 0x42;
/// The APIC's spurious vector.
pub const SPURIOUS: u8 = 0xff;

const NMI: u64 = 2;
const DOUBLE_FAULT: u64 = 8;
const PAGE_FAULT: u64 = 14;
const MACHINE_CHECK: u64 = 18;
const EXCEPTIONS: u64 = 32;

/// Index in the TSS plus one, as a gate names it.
const IST_EXCEPTION: u8 = 1;
const IST_DOUBLE_FAULT: u8 = 2;
const IST_NMI: u8 = 3;
const IST_MACHINE_CHECK: u8 = 4;
const IST_INTERRUPT: u8 = 5;
const IST_STACKS: usize = 5;
const IST_STACK_BYTES: usize = 16 << 10;

/// What the entry code leaves on the stack.
#[repr(C)]
pub struct Frame {
    /// r15, r14, … r8, rdi, rsi, rbp, rbx, rdx, rcx, rax.
    registers: [u64; 15],
    vector: u64,
    error: u64,
    rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
}

impl fmt::Display for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NAMES: [&str; 15] = [
            "r15", "r14", "r13", "r12", "r11", "r10", "r9", "r8", "rdi", "rsi", "rbp", "rbx",
            "rdx", "rcx", "rax",
        ];
        write!(
            f,
            "rip={:#x} (image {:+#x}) rsp={:#x} rflags={:#x} error={:#x}",
            self.rip,
            self.rip.wrapping_sub(super::paging::image_base()),
            self.rsp,
            self.rflags,
            self.error
        )?;
        for (name, value) in NAMES.iter().zip(self.registers).rev() {
            write!(f, " {name}={value:#x}")?;
        }
        Ok(())
    }
}

global_asm!(
    ".section .text",
    ".balign 16",
    ".globl outpost_interrupt_stubs",
    "outpost_interrupt_stubs:",
    ".set outpost_vector, 0",
    ".rept 256",
    ".balign 16",
    // Vectors for which the CPU pushes an error code (APM vol. 2, table 8-1).
    ".if (outpost_vector == 8) || (outpost_vector >= 10 && outpost_vector <= 14) || (outpost_vector == 17) || (outpost_vector == 21) || (outpost_vector == 29) || (outpost_vector == 30)",
    ".else",
    "push 0",
    ".endif",
    "push outpost_vector",
    "jmp outpost_interrupt_common",
    ".set outpost_vector, outpost_vector + 1",
    ".endr",
    "outpost_interrupt_common:",
    "push rax",
    "push rcx",
    "push rdx",
    "push rbx",
    "push rbp",
    "push rsi",
    "push rdi",
    "push r8",
    "push r9",
    "push r10",
    "push r11",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "cld",
    "mov rdi, rsp",
    "call {handler}",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop r11",
    "pop r10",
    "pop r9",
    "pop r8",
    "pop rdi",
    "pop rsi",
    "pop rbp",
    "pop rbx",
    "pop rdx",
    "pop rcx",
    "pop rax",
    "add rsp, 16",
    "iretq",
    handler = sym interrupt,
);

unsafe extern "C" {
    static outpost_interrupt_stubs: [[u8; 16]; 256];
}

/// One gate of the IDT (APM vol. 2, 4.8.4).
#[derive(Clone, Copy)]
#[repr(C, align(16))]
struct Gate {
    offset_low: u16,
    selector: u16,
    ist: u8,
    kind: u8,
    offset_middle: u16,
    offset_high: u32,
    reserved: u32,
}

impl Gate {
    fn new(handler: u64, selector: u16, ist: u8) -> Self {
        /// Present, ring 0, 64-bit interrupt gate.
        const INTERRUPT_GATE: u8 = 0x8e;
        Gate {
            offset_low: handler as u16,
            selector,
            ist,
            kind: INTERRUPT_GATE,
            offset_middle: (handler >> 16) as u16,
            offset_high: (handler >> 32) as u32,
            reserved: 0,
        }
    }
}

static IDT: Once<Box<[Gate; 256]>> = Once::new();
static NMIS: AtomicU64 = AtomicU64::new(0);

/// Loads this CPU's own GDT and TSS and the common IDT. Called once on each CPU.
pub fn load_tables() {
    let tss = Box::leak(Box::new(TaskStateSegment::new()));
    // The structure is packed: it is filled in a copy.
    let mut stacks = tss.interrupt_stack_table;
    for slot in stacks.iter_mut().take(IST_STACKS) {
        let stack = heap::leak_zeroed(IST_STACK_BYTES, 4096)
            .expect("no memory for interrupt stacks: the box needs more memory");
        *slot = VirtAddr::from_ptr(stack.as_ptr()) + IST_STACK_BYTES as u64;
    }
    tss.interrupt_stack_table = stacks;
    let gdt = Box::leak(Box::new(GlobalDescriptorTable::new()));
    let code = gdt.append(Descriptor::kernel_code_segment());
    let data = gdt.append(Descriptor::kernel_data_segment());
    let task = gdt.append(Descriptor::tss_segment(tss));
    gdt.load();
    let idt = IDT.call_once(|| {
        let mut gates = Box::new([Gate::new(0, 0, 0); 256]);
        for (vector, gate) in gates.iter_mut().enumerate() {
            let ist = match vector as u64 {
                DOUBLE_FAULT => IST_DOUBLE_FAULT,
                NMI => IST_NMI,
                MACHINE_CHECK => IST_MACHINE_CHECK,
                0..EXCEPTIONS => IST_EXCEPTION,
                _ => IST_INTERRUPT,
            };
            let stub = (&raw const outpost_interrupt_stubs) as u64 + 16 * vector as u64;
            *gate = Gate::new(stub, code.0, ist);
        }
        gates
    });
    let pointer = DescriptorTablePointer {
        limit: (size_of::<[Gate; 256]>() - 1) as u16,
        base: VirtAddr::from_ptr(idt.as_ptr()),
    };
    // SAFETY: the GDT just loaded has these selectors and lives for ever, as do TSS and IDT; every gate leads to a stub.
    unsafe {
        CS::set_reg(code);
        SS::set_reg(data);
        DS::set_reg(data);
        ES::set_reg(data);
        load_tss(task);
        lidt(&pointer);
    }
}

extern "sysv64" fn interrupt(frame: &mut Frame) {
    match frame.vector {
        NMI => {
            if super::panic::is_panicking() {
                cpu::halt_for_ever();
            }
            NMIS.fetch_add(1, Ordering::Relaxed);
        }
        0..EXCEPTIONS => exception(frame),
        vector => {
            match vector as u8 {
                TIMER => cpu::note_wake(cpu::WAKE_TIMER),
                KICK => cpu::note_wake(cpu::WAKE_KICK),
                SPURIOUS => return,
                _ => cpu::note_wake(cpu::WAKE_DEVICE),
            }
            apic::end_of_interrupt();
        }
    }
}

fn exception(frame: &Frame) -> ! {
    const NAMES: [&str; 22] = [
        "divide error",
        "debug",
        "NMI",
        "breakpoint",
        "overflow",
        "bound range",
        "invalid opcode",
        "device not available",
        "double fault",
        "coprocessor overrun",
        "invalid TSS",
        "segment not present",
        "stack fault",
        "general protection",
        "page fault",
        "reserved",
        "x87 error",
        "alignment check",
        "machine check",
        "SIMD error",
        "virtualization",
        "control protection",
    ];
    let name = NAMES.get(frame.vector as usize).unwrap_or(&"reserved");
    if frame.vector == PAGE_FAULT {
        let address = x86_64::registers::control::Cr2::read_raw();
        panic!("CPU exception: {name} at address {address:#x}: {frame}");
    }
    panic!("CPU exception: {name}: {frame}");
}
