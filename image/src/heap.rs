//! The allocator: a heap, and within it a *pool*, set aside at the start for what begins and ends while the box runs (a connection, a handshake, a page that is read).
//! What is taken from the pool takes nothing from anybody else, and leaves no holes between what stays. Only where the pool is full the heap helps out. It does not
//! know on whose behalf something is wanted; the binary beside this library does.

use core::alloc::{GlobalAlloc, Layout};
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use talc::{ErrOnOom, Span, Talc, Talck};

/// Where something lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Place {
    /// In the heap.
    Heap = 0,
    /// In the pool.
    Pool = 1,
}

/// A piece of memory, and where it lies.
pub type Taken = (NonNull<u8>, Place);

/// The most pieces of which the pool is made.
const MOST_PIECES: usize = 4;

struct Piece {
    start: AtomicUsize,
    end: AtomicUsize,
}

/// Memory in one place.
struct Arena {
    talc: Talck<spin::Mutex<()>, ErrOnOom>,
    /// Bytes given to it, and in use, as asked for.
    bytes: AtomicU64,
    used: AtomicU64,
}

impl Arena {
    const fn new() -> Arena {
        Arena {
            talc: Talc::new(ErrOnOom).lock(),
            bytes: AtomicU64::new(0),
            used: AtomicU64::new(0),
        }
    }

    /// # Safety
    /// As for [`Heap::claim`].
    unsafe fn claim(&self, start: NonNull<u8>, bytes: usize) -> bool {
        let span = Span::from_base_size(start.as_ptr(), bytes);
        // SAFETY: by this function's own contract.
        let is_claimed = unsafe { self.talc.lock().claim(span) }.is_ok();
        if is_claimed {
            self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        }
        is_claimed
    }

    fn note(&self, added: usize, freed: usize) {
        let change = (added as u64).wrapping_sub(freed as u64);
        self.used.fetch_add(change, Ordering::Relaxed);
    }

    /// # Safety
    /// The layout's size is not zero.
    unsafe fn take(&self, layout: Layout) -> Option<NonNull<u8>> {
        // SAFETY: by this function's own contract.
        let start = NonNull::new(unsafe { self.talc.alloc(layout) })?;
        self.note(layout.size(), 0);
        Some(start)
    }

    /// # Safety
    /// `start` came from this arena, with this layout.
    unsafe fn give_back(&self, start: NonNull<u8>, layout: Layout) {
        // SAFETY: by this function's own contract.
        unsafe { self.talc.dealloc(start.as_ptr(), layout) };
        self.note(0, layout.size());
    }

    /// # Safety
    /// As for [`Heap::resize`], and `start` came from this arena.
    unsafe fn resize(
        &self,
        start: NonNull<u8>,
        layout: Layout,
        bytes: usize,
    ) -> Option<NonNull<u8>> {
        // SAFETY: by this function's own contract.
        let moved = unsafe { self.talc.realloc(start.as_ptr(), layout, bytes) };
        let moved = NonNull::new(moved)?;
        self.note(bytes, layout.size());
        Some(moved)
    }
}

/// The heap with its pool. One for all CPUs.
pub struct Heap {
    heap: Arena,
    pool: Arena,
    pieces: [Piece; MOST_PIECES],
    /// How many of them there are. They stay as they are.
    count: AtomicUsize,
}

/// Bytes of a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// All that were given to it.
    pub bytes: u64,
    /// Those in use, as asked for.
    pub used: u64,
}

impl Default for Heap {
    fn default() -> Heap {
        Heap::new()
    }
}

impl Heap {
    /// With no memory at all.
    pub const fn new() -> Heap {
        Heap {
            heap: Arena::new(),
            pool: Arena::new(),
            pieces: [const {
                Piece {
                    start: AtomicUsize::new(0),
                    end: AtomicUsize::new(0),
                }
            }; MOST_PIECES],
            count: AtomicUsize::new(0),
        }
    }

    /// Gives the heap a piece of memory. False if it is too small to be of use.
    ///
    /// # Safety
    /// `bytes` bytes at `start` are mapped, ordinary memory that nothing else uses, now or later.
    pub unsafe fn claim(&self, start: NonNull<u8>, bytes: usize) -> bool {
        // SAFETY: by this function's own contract.
        unsafe { self.heap.claim(start, bytes) }
    }

    /// Sets memory aside in the pool: as much of `wanted` bytes as the heap has in a few pieces of at least `least` bytes each. Once, by one CPU; others may use the heap
    /// meanwhile. Returns what the pool has.
    pub fn set_aside(&self, wanted: usize, least: usize) -> u64 {
        const ALIGN: usize = 4096;
        let mut missing = wanted;
        let mut bytes = wanted;
        let mut count = self.count.load(Ordering::Relaxed);
        while let Some(piece) = self.pieces.get(count)
            && bytes >= least.max(ALIGN)
        {
            // SAFETY: the size is not zero.
            let start = Layout::from_size_align(bytes, ALIGN)
                .ok()
                .and_then(|layout| unsafe { self.heap.take(layout) });
            let Some(start) = start else {
                bytes -= bytes / 8;
                continue;
            };
            let first = start.as_ptr() as usize;
            piece.start.store(first, Ordering::Relaxed);
            piece.end.store(first + bytes, Ordering::Relaxed);
            // Whoever gives something back that came from the piece must know it: only then something may be taken from it.
            count += 1;
            self.count.store(count, Ordering::Release);
            // SAFETY: it was just taken from the heap, for good.
            if !unsafe { self.pool.claim(start, bytes) } {
                break;
            }
            missing -= bytes;
            bytes = missing;
        }
        self.pool().bytes
    }

    /// Where something lies that was taken.
    fn place(&self, start: NonNull<u8>) -> Place {
        let at = start.as_ptr() as usize;
        let pieces = self.pieces.iter().take(self.count.load(Ordering::Acquire));
        let mut ranges =
            pieces.map(|it| it.start.load(Ordering::Relaxed)..it.end.load(Ordering::Relaxed));
        match ranges.any(|range| range.contains(&at)) {
            true => Place::Pool,
            false => Place::Heap,
        }
    }

    fn arena(&self, place: Place) -> &Arena {
        match place {
            Place::Heap => &self.heap,
            Place::Pool => &self.pool,
        }
    }

    /// Takes memory from `place`; from the heap if the pool has none.
    ///
    /// # Safety
    /// The layout's size is not zero.
    pub unsafe fn take(&self, layout: Layout, place: Place) -> Option<Taken> {
        if place == Place::Pool {
            // SAFETY: by this function's own contract.
            let start = unsafe { self.pool.take(layout) };
            if let Some(start) = start {
                return Some((start, Place::Pool));
            }
        }
        // SAFETY: by this function's own contract.
        let start = unsafe { self.heap.take(layout) };
        Some((start?, Place::Heap))
    }

    /// Gives memory back to where it came from.
    ///
    /// # Safety
    /// `start` came from this heap, with this layout.
    pub unsafe fn give_back(&self, start: NonNull<u8>, layout: Layout) {
        // SAFETY: what lies in the pool's pieces was given by the pool, for the heap has given those away for good.
        unsafe { self.arena(self.place(start)).give_back(start, layout) };
    }

    /// Makes a piece of memory larger or smaller. From the heap it goes to `place` if it grows; from the pool to the heap if the pool has no room for it; else it stays
    /// where it is. Without memory it is left as it was.
    ///
    /// # Safety
    /// `start` came from this heap, with this layout; `bytes` is not zero, and does not overflow when rounded up to the layout's alignment.
    pub unsafe fn resize(
        &self,
        start: NonNull<u8>,
        layout: Layout,
        bytes: usize,
        place: Place,
    ) -> Option<Taken> {
        let has = self.place(start);
        let wanted = match has {
            Place::Heap if bytes > layout.size() => place,
            has => has,
        };
        // SAFETY: by this function's own contract, and it lies in `has`.
        let mut moved = unsafe { self.resize_into(start, layout, bytes, has, wanted) };
        if moved.is_none() && wanted == Place::Pool {
            // SAFETY: as before; nothing has happened.
            moved = unsafe { self.resize_into(start, layout, bytes, has, Place::Heap) };
        }
        moved
    }

    /// # Safety
    /// As for [`Heap::resize`], and `start` lies in `has`.
    unsafe fn resize_into(
        &self,
        start: NonNull<u8>,
        layout: Layout,
        bytes: usize,
        has: Place,
        into: Place,
    ) -> Option<Taken> {
        if has == into {
            // SAFETY: by this function's own contract.
            let moved = unsafe { self.arena(has).resize(start, layout, bytes) };
            return Some((moved?, into));
        }
        // SAFETY: by this function's own contract, its size is not zero.
        let moved = unsafe {
            let layout = Layout::from_size_align_unchecked(bytes, layout.align());
            self.arena(into).take(layout)?
        };
        // SAFETY: it is another piece, and both are at least this long; nobody uses the old one any more.
        unsafe {
            start.copy_to_nonoverlapping(moved, bytes.min(layout.size()));
            self.arena(has).give_back(start, layout);
        }
        Some((moved, into))
    }

    /// Bytes of the heap, what was set aside for the pool included, which is in use there.
    pub fn heap(&self) -> Room {
        Heap::room(&self.heap)
    }

    /// Bytes of the pool.
    pub fn pool(&self) -> Room {
        Heap::room(&self.pool)
    }

    fn room(arena: &Arena) -> Room {
        Room {
            bytes: arena.bytes.load(Ordering::Relaxed),
            used: arena.used.load(Ordering::Relaxed),
        }
    }

    /// True while some CPU is at work in it. If that one panics, it may be broken.
    pub fn is_locked(&self) -> bool {
        [&self.heap, &self.pool]
            .iter()
            .any(|arena| arena.talc.try_lock().is_none())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: usize = 1 << 20;

    /// A heap of so many pieces, which stay for good.
    fn heap(pieces: &[usize]) -> Heap {
        let heap = Heap::new();
        for &bytes in pieces {
            let memory = vec![0xaa_u8; bytes].leak();
            // SAFETY: it is ordinary memory that nobody else has.
            assert!(unsafe { heap.claim(NonNull::from(memory).cast(), bytes) });
        }
        heap
    }

    fn layout(bytes: usize) -> Layout {
        Layout::from_size_align(bytes, 16).unwrap()
    }

    fn take(heap: &Heap, bytes: usize, place: Place) -> Option<Taken> {
        // SAFETY: no size here is zero.
        unsafe { heap.take(layout(bytes), place) }
    }

    fn used(heap: &Heap) -> (u64, u64) {
        (heap.heap().used, heap.pool().used)
    }

    #[test]
    fn what_begins_and_ends_takes_nothing_from_the_heap() {
        let heap = heap(&[4 * MIB]);
        // Without a pool the heap gives everything.
        let (early, place) = take(&heap, 100, Place::Pool).unwrap();
        assert_eq!(place, Place::Heap);
        assert_eq!(heap.set_aside(MIB, MIB), MIB as u64);
        assert_eq!(used(&heap), (MIB as u64 + 100, 0));
        let (start, place) = take(&heap, 5000, Place::Pool).unwrap();
        assert_eq!(place, Place::Pool);
        let (other, place) = take(&heap, 300, Place::Heap).unwrap();
        assert_eq!(place, Place::Heap);
        assert_eq!(used(&heap), (MIB as u64 + 400, 5000));
        // Each goes back to where it came from.
        // SAFETY: they came from there, with these layouts.
        unsafe {
            heap.give_back(start, layout(5000));
            heap.give_back(other, layout(300));
            heap.give_back(early, layout(100));
        }
        assert_eq!(used(&heap), (MIB as u64, 0));
        assert!(!heap.is_locked());
    }

    #[test]
    fn the_heap_helps_out_where_the_pool_is_full() {
        let heap = heap(&[4 * MIB]);
        heap.set_aside(MIB, MIB);
        let (most, place) = take(&heap, MIB - 10_000, Place::Pool).unwrap();
        assert_eq!(place, Place::Pool);
        assert_eq!(take(&heap, 20_000, Place::Pool).unwrap().1, Place::Heap);
        // Nor is there room to grow.
        // SAFETY: it came from there, with this layout.
        let grown = unsafe { heap.resize(most, layout(MIB - 10_000), MIB, Place::Pool) };
        assert_eq!(grown.unwrap().1, Place::Heap);
        assert_eq!(used(&heap), (2 * MIB as u64 + 20_000, 0));
        // And where nobody has memory, all is left as it was.
        let (small, _) = take(&heap, 16, Place::Pool).unwrap();
        for place in [Place::Heap, Place::Pool] {
            assert_eq!(take(&heap, 4 * MIB, place), None);
            // SAFETY: as above.
            let grown = unsafe { heap.resize(small, layout(16), 4 * MIB, place) };
            assert_eq!(grown, None);
        }
        assert_eq!(heap.pool().used, 16);
    }

    #[test]
    fn what_grows_goes_to_the_pool_and_what_shrinks_stays() {
        let heap = heap(&[4 * MIB]);
        let (start, _) = take(&heap, 1000, Place::Heap).unwrap();
        heap.set_aside(MIB, MIB);
        // SAFETY: each time it is the piece with its last layout, and has so many bytes.
        unsafe {
            start.write_bytes(7, 1000);
            let (start, place) = heap.resize(start, layout(1000), 500, Place::Pool).unwrap();
            assert_eq!(place, Place::Heap);
            let (start, place) = heap.resize(start, layout(500), 6000, Place::Pool).unwrap();
            assert_eq!(place, Place::Pool);
            let bytes = core::slice::from_raw_parts(start.as_ptr(), 500);
            assert!(bytes.iter().all(|&byte| byte == 7));
            // There it stays, whoever makes it larger.
            let (start, place) = heap.resize(start, layout(6000), 9000, Place::Heap).unwrap();
            assert_eq!(place, Place::Pool);
            assert_eq!(used(&heap), (MIB as u64, 9000));
            heap.give_back(start, layout(9000));
        }
        assert_eq!(used(&heap), (MIB as u64, 0));
    }

    #[test]
    fn a_heap_in_pieces_gives_the_pool_a_few_of_them() {
        let pieces = heap(&[MIB; 3]);
        let bytes = pieces.set_aside(2 * MIB, MIB / 4);
        assert!((MIB..=2 * MIB).contains(&(bytes as usize)), "{bytes}");
        assert!(pieces.count.load(Ordering::Relaxed) > 1);
        // Both pieces are known for what they are.
        let mut taken = Vec::new();
        while let Some((start, Place::Pool)) = take(&pieces, MIB / 8, Place::Pool) {
            taken.push(start);
        }
        assert!(taken.len() > 8, "{}", taken.len());
        for start in taken {
            // SAFETY: it came from there, with this layout.
            unsafe { pieces.give_back(start, layout(MIB / 8)) };
        }
        assert_eq!(pieces.pool().used, 0);
        // Crumbs are not taken, and where there is nothing there is no pool.
        assert_eq!(heap(&[MIB / 2]).set_aside(2 * MIB, MIB), 0);
        assert_eq!(Heap::new().set_aside(MIB, 1), 0);
    }

    proptest! {
        /// Whatever is taken, resized and given back from here and there: no two pieces share a byte, and none loses what is in it.
        #[test]
        fn no_byte_is_lost(steps in prop::collection::vec((any::<bool>(), 0_u8..3, 1_usize..60_000, any::<u16>()), 1..200)) {
            let heap = heap(&[MIB, MIB]);
            let mut pieces: Vec<(NonNull<u8>, usize, u8)> = Vec::new();
            for (number, (pool, step, bytes, which)) in steps.into_iter().enumerate() {
                if number == 20 {
                    heap.set_aside(MIB / 2, MIB / 8);
                }
                let place = if pool { Place::Pool } else { Place::Heap };
                let mark = number as u8;
                if pieces.is_empty() || step == 0 {
                    if let Some((start, _)) = take(&heap, bytes, place) {
                        // SAFETY: so many bytes were given.
                        unsafe { start.write_bytes(mark, bytes) };
                        pieces.push((start, bytes, mark));
                    }
                    continue;
                }
                let index = usize::from(which) % pieces.len();
                let (start, has, mark) = pieces.swap_remove(index);
                // SAFETY: it was given with so many bytes, all of them written.
                let bytes_of = |start: NonNull<u8>, has| unsafe { core::slice::from_raw_parts(start.as_ptr(), has) };
                prop_assert!(bytes_of(start, has).iter().all(|&byte| byte == mark));
                if step == 1 {
                    // SAFETY: it came from there, with this layout.
                    unsafe { heap.give_back(start, layout(has)) };
                    continue;
                }
                // SAFETY: as above.
                match unsafe { heap.resize(start, layout(has), bytes, place) } {
                    Some((start, _)) => {
                        prop_assert!(bytes_of(start, has.min(bytes)).iter().all(|&byte| byte == mark));
                        // SAFETY: so many bytes were given.
                        unsafe { start.write_bytes(mark, bytes) };
                        pieces.push((start, bytes, mark));
                    }
                    None => pieces.push((start, has, mark)),
                }
            }
            let set_aside = heap.pool().bytes;
            for (start, bytes, _) in pieces {
                // SAFETY: it came from there, with this layout.
                unsafe { heap.give_back(start, layout(bytes)) };
            }
            prop_assert_eq!(used(&heap), (set_aside, 0));
        }
    }
}
