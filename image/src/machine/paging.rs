//! The box's own page tables: all of memory one to one, memory cached and not executable, devices uncached, page zero absent.

use core::sync::atomic::{AtomicU64, Ordering};

use alloc::vec::Vec;
use outpost::memory::Run;
use raw_cpuid::{CpuId, ExtendedFeatures};
use spin::Mutex;
use x86_64::PhysAddr;
use x86_64::registers::control::{Cr0, Cr0Flags, Cr3, Cr3Flags, Cr4, Cr4Flags};
use x86_64::registers::model_specific::{Efer, EferFlags};
use x86_64::structures::paging::{PhysFrame, Size4KiB};

use super::heap;

const PAGE: u64 = 4 << 10;
const LARGE: u64 = 2 << 20;
const HUGE: u64 = 1 << 30;
const FOUR_GIB: u64 = 4 << 30;

/// Entry bits (APM vol. 2, 5.4.1).
const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const WRITE_THROUGH: u64 = 1 << 3;
const CACHE_DISABLE: u64 = 1 << 4;
const PAGE_SIZE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
const ADDRESS: u64 = 0xf_ffff_ffff_f000;

/// Plain memory.
const MEMORY: u64 = PRESENT | WRITABLE | NO_EXECUTE;
/// Registers of devices.
const DEVICE: u64 = PRESENT | WRITABLE | NO_EXECUTE | CACHE_DISABLE | WRITE_THROUGH;
/// Code.
const CODE: u64 = PRESENT;
/// Constants.
const CONSTANTS: u64 = PRESENT | NO_EXECUTE;
/// Low memory in which other CPUs start: they execute it and write to it.
const START_UP: u64 = PRESENT | WRITABLE;

static IMAGE_BASE: AtomicU64 = AtomicU64::new(0);
static TABLES: Mutex<Option<Tables>> = Mutex::new(None);

/// Where the firmware put this binary, for reports.
pub fn image_base() -> u64 {
    IMAGE_BASE.load(Ordering::Relaxed)
}

struct Tables {
    /// The fourth level's table.
    root: u64,
    /// What CR3 holds.
    hardware_root: u64,
    huge_pages: bool,
    pages: u64,
}

/// Entry `index` of the table at `table`.
fn entry(table: u64, index: u64) -> *mut u64 {
    (table + (index & 511) * 8) as *mut u64
}

impl Tables {
    fn new() -> Self {
        let huge_pages = CpuId::new()
            .get_extended_processor_and_feature_identifiers()
            .is_some_and(|features| features.has_1gib_pages());
        let mut tables = Tables {
            root: 0,
            hardware_root: 0,
            huge_pages,
            pages: 0,
        };
        tables.root = tables.new_table();
        tables.hardware_root = tables.root;
        if Cr4::read().contains(Cr4Flags::L5_PAGING) {
            // Firmware that uses five levels cannot be left without leaving long mode: one more level on top of ours.
            tables.hardware_root = tables.new_table();
            // SAFETY: the new table is ours.
            unsafe {
                entry(tables.hardware_root, 0).write_volatile(tables.root | PRESENT | WRITABLE);
            }
        }
        tables
    }

    fn new_table(&mut self) -> u64 {
        self.pages += 1;
        heap::leak_zeroed(PAGE as usize, PAGE as usize)
            .expect("no memory for page tables: the box needs more memory")
            .as_ptr() as u64
    }

    /// Gives `run` (multiples of 4 KiB) the attributes `flags`; no flags at all unmaps it.
    fn map(&mut self, run: Run, flags: u64) {
        let mut address = run.start;
        while address < run.end {
            let left = run.end - address;
            let size = if self.huge_pages && address.is_multiple_of(HUGE) && left >= HUGE {
                HUGE
            } else if address.is_multiple_of(LARGE) && left >= LARGE {
                LARGE
            } else {
                PAGE
            };
            self.map_one(address, size, flags);
            address += size;
        }
    }

    fn map_one(&mut self, address: u64, size: u64, flags: u64) {
        let mut table = self.root;
        let mut span = 512 * HUGE;
        while span > size {
            let place = entry(table, address / span);
            // SAFETY: `table` is a page table of ours, and the entry lies within it.
            let old = unsafe { place.read_volatile() };
            table = if old & PRESENT == 0 {
                let table = self.new_table();
                // SAFETY: as above; a new empty table maps nothing.
                unsafe { place.write_volatile(table | PRESENT | WRITABLE) };
                table
            } else if old & PAGE_SIZE != 0 {
                // Split the large page into a table that maps the same.
                let table = self.new_table();
                let small = span / 512;
                let attributes = old & !ADDRESS;
                let attributes = if small == PAGE {
                    attributes & !PAGE_SIZE
                } else {
                    attributes
                };
                let base = old & ADDRESS & !(span - 1);
                for index in 0..512 {
                    // SAFETY: the new table is ours.
                    unsafe {
                        entry(table, index).write_volatile((base + index * small) | attributes);
                    }
                }
                // SAFETY: the table maps what the page mapped.
                unsafe { place.write_volatile(table | PRESENT | WRITABLE) };
                table
            } else {
                old & ADDRESS
            };
            span /= 512;
        }
        let leaf = if flags == 0 {
            0
        } else if size == PAGE {
            address | flags
        } else {
            address | flags | PAGE_SIZE
        };
        // SAFETY: callers map memory one to one, with attributes that fit what is there.
        unsafe { entry(table, address / size).write_volatile(leaf) };
        x86_64::instructions::tlb::flush(x86_64::VirtAddr::new_truncate(address));
    }
}

/// One section of this binary in memory.
#[derive(Clone, Copy, Debug)]
pub struct Section {
    /// Where it is.
    pub run: Run,
    /// It holds code.
    pub code: bool,
    /// It is written to.
    pub writable: bool,
}

fn pages(run: Run) -> Run {
    Run {
        start: run.start & !(PAGE - 1),
        end: run.end.next_multiple_of(PAGE),
    }
}

/// Builds the tables and switches the boot CPU to them. `memory` is every run that is memory of whatever kind, `sections` this
/// binary's own sections, `start_up` the low page in which other CPUs start.
pub fn take_over(memory: &[Run], base: u64, sections: &[Section], start_up: Option<u64>) {
    IMAGE_BASE.store(base, Ordering::Relaxed);
    let mut tables = Tables::new();
    // Below 4 GiB, whatever is not memory may be a device.
    tables.map(
        Run {
            start: 0,
            end: FOUR_GIB,
        },
        DEVICE,
    );
    // By 2 MiB: where memory and devices share such a page, the firmware's MTRRs keep the device uncached.
    let mut joined: Vec<Run> = Vec::new();
    let mut sorted = memory.to_vec();
    sorted.sort_unstable_by_key(|run| run.start);
    for run in sorted {
        let run = Run {
            start: run.start & !(LARGE - 1),
            end: run.end.next_multiple_of(LARGE),
        };
        match joined.last_mut() {
            Some(last) if run.start <= last.end => last.end = last.end.max(run.end),
            _ => joined.push(run),
        }
    }
    for run in joined {
        tables.map(run, MEMORY);
    }
    for section in sections {
        let flags = match (section.code, section.writable) {
            (true, _) => CODE,
            (false, true) => MEMORY,
            (false, false) => CONSTANTS,
        };
        tables.map(pages(section.run), flags);
    }
    if let Some(page) = start_up {
        let run = Run {
            start: page,
            end: page + PAGE,
        };
        tables.map(run, START_UP);
    }
    tables.map(
        Run {
            start: 0,
            end: PAGE,
        },
        0,
    );
    // SAFETY: NXE only gives bit 63 of an entry its meaning. The new tables map all memory and this binary one to one, so
    // that execution goes on where it is.
    unsafe {
        Efer::update(|efer| *efer |= EferFlags::NO_EXECUTE_ENABLE);
        load_root(tables.hardware_root);
    }
    protect();
    *TABLES.lock() = Some(tables);
}

/// Keeps the CPU off user pages, of which the box has none. The other CPUs take over these registers when they start.
///
/// Global and large pages (PGE and PSE; long mode has the latter anyway) are on because guests have them on: where CR4 is the same before and after VMRUN and #VMEXIT, QEMU's translator
/// empties its caches once less each time.
fn protect() {
    let leaf = CpuId::new().get_extended_feature_info();
    let mut wanted = Cr4Flags::PAGE_GLOBAL | Cr4Flags::PAGE_SIZE_EXTENSION;
    if leaf.as_ref().is_some_and(ExtendedFeatures::has_smep) {
        wanted |= Cr4Flags::SUPERVISOR_MODE_EXECUTION_PROTECTION;
    }
    if leaf.as_ref().is_some_and(ExtendedFeatures::has_smap) {
        wanted |= Cr4Flags::SUPERVISOR_MODE_ACCESS_PREVENTION;
    }
    // SAFETY: no entry of the tables has the user bit or the global bit, so that none of these changes what an access does.
    unsafe {
        Cr0::update(|cr0| cr0.insert(Cr0Flags::WRITE_PROTECT));
        Cr4::update(|cr4| cr4.insert(wanted));
    }
}

/// # Safety
/// `root` is the root of tables that map all memory and this binary one to one.
unsafe fn load_root(root: u64) {
    let frame = PhysFrame::<Size4KiB>::containing_address(PhysAddr::new_truncate(root));
    // SAFETY: by this function's contract.
    unsafe { Cr3::write(frame, Cr3Flags::empty()) };
}

/// Physical address of the root table.
pub fn root() -> u64 {
    TABLES
        .lock()
        .as_ref()
        .map_or(0, |tables| tables.hardware_root)
}

/// Pages that the tables take.
pub fn table_pages() -> u64 {
    TABLES.lock().as_ref().map_or(0, |tables| tables.pages)
}

/// Switches a CPU that has just started to the tables.
pub fn join() {
    // SAFETY: `take_over` made them so.
    unsafe { load_root(root()) };
}

/// Makes a device's registers reachable, uncached. Does nothing before [`take_over`]: the firmware's tables map them.
///
/// Meant for start-up: other CPUs that already use a mapping there would have to flush it.
pub fn map_device(address: u64, bytes: u64) {
    if let Some(tables) = TABLES.lock().as_mut() {
        let run = Run {
            start: address,
            end: address + bytes.max(1),
        };
        tables.map(pages(run), DEVICE);
    }
}

/// Takes the page at `address` away, so that running over the end of a stack faults.
pub fn guard(address: u64) {
    if let Some(tables) = TABLES.lock().as_mut() {
        let run = Run {
            start: address,
            end: address + PAGE,
        };
        tables.map(run, 0);
    }
}
