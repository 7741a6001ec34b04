//! The UEFI program: a heap like the box's, two files, the serial port, and the counter.

use alloc::format;
use alloc::vec::Vec;
use core::arch::x86_64::_rdtsc;
use core::fmt::Display;
use core::hint::black_box;
use core::panic::PanicInfo;

use outpost_engine_bench::MARK;
use outpost_mem as _;
use talc::{ErrOnOom, Span, Talc, Talck};
use uefi::boot::{self, AllocateType};
use uefi::fs::FileSystem;
use uefi::mem::memory_map::{MemoryMap, MemoryType};
use uefi::proto::console::serial::Serial;
use uefi::runtime::{self, ResetType};
use uefi::{CStr16, Status, cstr16, entry};

/// The heap that the box has, so that allocations cost the same.
#[global_allocator]
static HEAP: Talck<spin::Mutex<()>, ErrOnOom> = Talc::new(ErrOnOom).lock();

/// Pages that stay with the firmware.
const FIRMWARE_PAGES: u64 = 16 << 20 >> 12;
/// Rounds of the loop of known length.
const ROUNDS: u64 = 1_000_000;
/// Instructions of a round.
const ROUND: u64 = 2;

#[entry]
fn main() -> Status {
    // The firmware would reset the machine after five minutes.
    let _ = boot::set_watchdog_timer(0, 0x1_0000, None);
    match start_heap().and_then(|()| measure()) {
        Ok(()) => say("end"),
        Err(error) => say(format_args!("error: {error}")),
    }
    runtime::reset(ResetType::SHUTDOWN, Status::SUCCESS, None)
}

fn measure() -> Result<(), &'static str> {
    let old = read(cstr16!("\\OLD")).ok_or("cannot read OLD")?;
    let new = read(cstr16!("\\NEW")).ok_or("cannot read NEW")?;
    // No handler of the firmware's is counted.
    let result = x86_64::instructions::interrupts::without_interrupts(|| {
        let calibration = calibrate();
        let mut all = Vec::with_capacity(4);
        let result =
            outpost_engine_bench::run(&old, &new, &mut counter, &mut |figures| all.push(figures));
        result.map(|()| (calibration, all))
    });
    match result {
        Ok((ticks, all)) => {
            say(format_args!("ticks {ticks} {}", ROUNDS * ROUND));
            all.iter().for_each(say);
            Ok(())
        }
        Err(error) => {
            say(error);
            Err("the engine broke its promise: see above")
        }
    }
}

/// Takes the largest free piece of memory for the heap.
fn start_heap() -> Result<(), &'static str> {
    let map = boot::memory_map(MemoryType::LOADER_DATA).map_err(|_| "no memory map")?;
    let pages = map
        .entries()
        .filter(|entry| entry.ty == MemoryType::CONVENTIONAL)
        .map(|entry| entry.page_count)
        .max()
        .and_then(|pages| pages.checked_sub(FIRMWARE_PAGES))
        .and_then(|pages| usize::try_from(pages).ok())
        .ok_or("too little memory")?;
    let start = boot::allocate_pages(AllocateType::AnyPages, MemoryType::LOADER_DATA, pages)
        .map_err(|_| "the firmware does not give its free memory")?;
    let span = Span::from_base_size(start.as_ptr(), pages << 12);
    // SAFETY: the firmware has just given us these pages, and they are never given back.
    unsafe { HEAP.lock().claim(span) }.map_err(|()| "the heap does not take its memory")?;
    Ok(())
}

fn read(path: &CStr16) -> Option<Vec<u8>> {
    let volume = boot::get_image_file_system(boot::image_handle()).ok()?;
    FileSystem::new(volume).read(path).ok()
}

fn counter() -> u64 {
    // SAFETY: every CPU that this target is for has it, and nothing switches it off in firmware.
    unsafe { _rdtsc() }
}

/// Ticks of the counter for `ROUNDS` rounds of `ROUND` instructions each, and for few around them.
fn calibrate() -> u64 {
    let start = counter();
    // SAFETY: it counts a register down and does nothing else.
    unsafe {
        core::arch::asm!(
            "2: dec {rounds}",
            "jnz 2b",
            rounds = inout(reg) black_box(ROUNDS) => _,
            options(nomem, nostack)
        );
    }
    counter() - start
}

/// Writes a line to the first serial port.
fn say(what: impl Display) {
    let Ok(handle) = boot::get_handle_for_protocol::<Serial>() else {
        return;
    };
    // Exclusively: the firmware's console goes elsewhere meanwhile.
    if let Ok(mut port) = boot::open_protocol_exclusive::<Serial>(handle) {
        let _ = port.write_exact(format!("\r\n{MARK} {what}\r\n").as_bytes());
    }
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    say(format_args!("panic: {info}"));
    runtime::reset(ResetType::SHUTDOWN, Status::ABORTED, None)
}
