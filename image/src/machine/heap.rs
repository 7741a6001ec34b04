//! The heap: one allocator for both CPUs, fed first with a piece from the firmware and then with the memory that is left.

use core::alloc::{GlobalAlloc, Layout};
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};

use talc::{ErrOnOom, Span, Talc, Talck};

#[global_allocator]
static HEAP: Talck<spin::Mutex<()>, ErrOnOom> = Talc::new(ErrOnOom).lock();

static CLAIMED: AtomicU64 = AtomicU64::new(0);

/// Gives the heap a piece of memory.
///
/// # Safety
/// `bytes` bytes at `start` are mapped, ordinary memory that nothing else uses, now or later.
pub unsafe fn claim(start: u64, bytes: u64) {
    let span = Span::from_base_size(start as *mut u8, bytes as usize);
    // SAFETY: by this function's own contract.
    if unsafe { HEAP.lock().claim(span) }.is_ok() {
        CLAIMED.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// Bytes given to the heap so far.
pub fn claimed() -> u64 {
    CLAIMED.load(Ordering::Relaxed)
}

/// True while some CPU holds the heap's lock. A CPU that panics then may have left the heap broken.
pub fn is_locked() -> bool {
    HEAP.try_lock().is_none()
}

/// Zeroed memory that is never given back, `bytes` long and aligned to `align` (a power of two). None if there is no room.
pub fn leak_zeroed(bytes: usize, align: usize) -> Option<NonNull<u8>> {
    let layout = Layout::from_size_align(bytes.max(1), align).ok()?;
    // SAFETY: the layout's size is not zero.
    NonNull::new(unsafe { HEAP.alloc_zeroed(layout) })
}
