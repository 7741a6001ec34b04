//! The heap: one allocator for all CPUs ([`outpost::heap`]), fed first with a piece from the firmware and then with the memory that is left. It counts on whose behalf
//! something is taken from the heap, which nothing should be once the box has started, and from the pool, where frames pass and flows are seen to.

use core::alloc::{GlobalAlloc, Layout};
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};

use outpost::heap::{Heap, Place, Taken};

use super::cpu::{self, Path};

/// The allocator, behind the counters.
struct Counting(Heap);

#[global_allocator]
static COUNTING: Counting = Counting(Heap::new());

type Counts = [AtomicU64; Path::ALL.len()];

/// How often something was taken, by [`Place`] and [`Path`].
static TAKEN: [Counts; 2] = [const { [const { AtomicU64::new(0) }; Path::ALL.len()] }; 2];

fn count(place: Place, path: Path) -> Option<&'static AtomicU64> {
    TAKEN.get(place as usize)?.get(path as usize)
}

/// Where what is done on a path has its memory from.
fn place_for(path: Path) -> Place {
    match path {
        Path::Frames | Path::Flows => Place::Pool,
        Path::Other | Path::Exits => Place::Heap,
    }
}

fn note(taken: Option<Taken>, path: Path) -> *mut u8 {
    let Some((start, place)) = taken else {
        return core::ptr::null_mut();
    };
    if let Some(count) = count(place, path) {
        count.fetch_add(1, Ordering::Relaxed);
    }
    start.as_ptr()
}

// SAFETY: every call goes to the heap as it is, which keeps the contract; counting touches no memory of the caller's.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let path = cpu::path();
        // SAFETY: the caller's contract is the same.
        note(unsafe { self.0.take(layout, place_for(path)) }, path)
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        if let Some(start) = NonNull::new(start) {
            // SAFETY: the caller's contract is the same.
            unsafe { self.0.give_back(start, layout) };
        }
    }

    unsafe fn realloc(&self, start: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        let Some(start) = NonNull::new(start) else {
            return core::ptr::null_mut();
        };
        let path = cpu::path();
        // SAFETY: the caller's contract is the same.
        let moved = unsafe { self.0.resize(start, layout, bytes, place_for(path)) };
        if bytes > layout.size() {
            return note(moved, path);
        }
        moved.map_or(core::ptr::null_mut(), |(start, _)| start.as_ptr())
    }
}

/// Bytes given to the heap so far.
pub fn claimed() -> u64 {
    COUNTING.0.heap().bytes
}

/// Bytes in use, as asked for: those of the pool, but not what else was set aside for it.
pub fn used() -> u64 {
    let pool = COUNTING.0.pool();
    (COUNTING.0.heap().used + pool.used).saturating_sub(pool.bytes)
}

/// Bytes of the pool, and how many of them are in use.
pub fn pool() -> outpost::heap::Room {
    COUNTING.0.pool()
}

/// How often something was taken from a place (or made larger there) on a path.
pub fn taken(place: Place, path: Path) -> u64 {
    count(place, path).map_or(0, |count| count.load(Ordering::Relaxed))
}

/// Gives the heap a piece of memory.
///
/// # Safety
/// `bytes` bytes at `start` are mapped, ordinary memory that nothing else uses, now or later.
pub unsafe fn claim(start: u64, bytes: u64) {
    if let Some(start) = NonNull::new(start as *mut u8) {
        // SAFETY: by this function's own contract.
        unsafe { COUNTING.0.claim(start, bytes as usize) };
    }
}

/// Sets `wanted` bytes aside for what frames and flows begin, in pieces of a MiB at least; but `reserve` bytes of the heap stay free. Once only. Returns how many it is.
pub fn set_aside(wanted: u64, reserve: u64) -> u64 {
    const LEAST: usize = 1 << 20;
    let heap = COUNTING.0.heap();
    let free = heap.bytes.saturating_sub(heap.used + reserve);
    COUNTING.0.set_aside(wanted.min(free) as usize, LEAST)
}

/// True while some CPU is at work in the heap. If that one panics, the heap may be broken.
pub fn is_locked() -> bool {
    COUNTING.0.is_locked()
}

/// Zeroed memory that is never given back, `bytes` long and aligned to `align` (a power of two). None if there is no room.
pub fn leak_zeroed(bytes: usize, align: usize) -> Option<NonNull<u8>> {
    let layout = Layout::from_size_align(bytes.max(1), align).ok()?;
    // SAFETY: the layout's size is not zero.
    NonNull::new(unsafe { COUNTING.alloc_zeroed(layout) })
}
