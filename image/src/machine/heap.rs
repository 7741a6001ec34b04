//! The heap: one allocator for all CPUs, fed first with a piece from the firmware and then with the memory that is left. It counts what is in use,
//! and on whose behalf something is allocated: nothing should be where guests leave for the hypervisor and where frames pass.

use core::alloc::{GlobalAlloc, Layout};
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};

use talc::{ErrOnOom, Span, Talc, Talck};

use super::cpu::{self, Path};

/// The allocator, behind the counters.
struct Counting(Talck<spin::Mutex<()>, ErrOnOom>);

#[global_allocator]
static COUNTING: Counting = Counting(Talc::new(ErrOnOom).lock());

/// Bytes in use, as asked for.
static USED: AtomicU64 = AtomicU64::new(0);
/// Allocations, by [`Path`].
static ALLOCATIONS: [AtomicU64; Path::ALL.len()] = [const { AtomicU64::new(0) }; Path::ALL.len()];

impl Counting {
    fn note(&self, added: usize, freed: usize) {
        let (added, freed) = (added as u64, freed as u64);
        USED.fetch_add(added.wrapping_sub(freed), Ordering::Relaxed);
        if added > 0
            && let Some(count) = ALLOCATIONS.get(cpu::path() as usize)
        {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }
}

// SAFETY: every call goes to talc's allocator as it is, which keeps the contract; counting touches no memory of the caller's.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's contract is the same.
        let start = unsafe { self.0.alloc(layout) };
        if !start.is_null() {
            self.note(layout.size(), 0);
        }
        start
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's contract is the same.
        let start = unsafe { self.0.alloc_zeroed(layout) };
        if !start.is_null() {
            self.note(layout.size(), 0);
        }
        start
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        // SAFETY: the caller's contract is the same.
        unsafe { self.0.dealloc(start, layout) };
        self.note(0, layout.size());
    }

    unsafe fn realloc(&self, start: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        // SAFETY: the caller's contract is the same.
        let moved = unsafe { self.0.realloc(start, layout, bytes) };
        if !moved.is_null() {
            self.note(bytes, layout.size());
        }
        moved
    }
}

/// Bytes in use, as asked for.
pub fn used() -> u64 {
    USED.load(Ordering::Relaxed)
}

/// How often something was allocated (or made larger) on this path.
pub fn allocations(path: Path) -> u64 {
    ALLOCATIONS
        .get(path as usize)
        .map_or(0, |count| count.load(Ordering::Relaxed))
}

static CLAIMED: AtomicU64 = AtomicU64::new(0);

/// Gives the heap a piece of memory.
///
/// # Safety
/// `bytes` bytes at `start` are mapped, ordinary memory that nothing else uses, now or later.
pub unsafe fn claim(start: u64, bytes: u64) {
    let span = Span::from_base_size(start as *mut u8, bytes as usize);
    // SAFETY: by this function's own contract.
    if unsafe { COUNTING.0.lock().claim(span) }.is_ok() {
        CLAIMED.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// Bytes given to the heap so far.
pub fn claimed() -> u64 {
    CLAIMED.load(Ordering::Relaxed)
}

/// True while some CPU holds the heap's lock. A CPU that panics then may have left the heap broken.
pub fn is_locked() -> bool {
    COUNTING.0.try_lock().is_none()
}

/// Zeroed memory that is never given back, `bytes` long and aligned to `align` (a power of two). None if there is no room.
pub fn leak_zeroed(bytes: usize, align: usize) -> Option<NonNull<u8>> {
    let layout = Layout::from_size_align(bytes.max(1), align).ok()?;
    // SAFETY: the layout's size is not zero.
    NonNull::new(unsafe { COUNTING.alloc_zeroed(layout) })
}
