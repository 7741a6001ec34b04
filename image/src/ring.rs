//! A ring of Ethernet frames between two CPUs: one side pushes, the other pops, neither waits. It wakes nobody.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicUsize, Ordering};

/// The longest frame a slot holds: an Ethernet frame with a VLAN tag and then some, rounded so that a slot is 2 KiB.
pub const MAX_FRAME: usize = 2048 - size_of::<usize>();

struct Slot {
    length: usize,
    bytes: [u8; MAX_FRAME],
}

/// Indices count up without end; `index % slots` is the place. On cache lines of their own.
#[repr(align(64))]
struct Index(AtomicUsize);

struct Shared {
    /// Next slot to pop; written by the consumer only.
    head: Index,
    /// Next slot to push; written by the producer only.
    tail: Index,
    slots: Box<[UnsafeCell<Slot>]>,
}

// SAFETY: a slot is reached by the producer only while `tail - head < slots` puts it outside `head..tail`, and by the
// consumer only while it is inside; the release store of an index after each access hands the slot over.
unsafe impl Sync for Shared {}
// SAFETY: nothing in it is tied to a CPU.
unsafe impl Send for Shared {}

/// The side that pushes. There is one.
pub struct Producer(Arc<Shared>);

/// The side that pops. There is one.
pub struct Consumer(Arc<Shared>);

/// A ring with room for `slots` frames (at least one).
pub fn frame_ring(slots: usize) -> (Producer, Consumer) {
    let shared = Arc::new(Shared {
        head: Index(AtomicUsize::new(0)),
        tail: Index(AtomicUsize::new(0)),
        slots: (0..slots.max(1))
            .map(|_| {
                UnsafeCell::new(Slot {
                    length: 0,
                    bytes: [0; MAX_FRAME],
                })
            })
            .collect(),
    });
    (Producer(shared.clone()), Consumer(shared))
}

impl Producer {
    /// Copies `frame` into the ring. False if it is full or the frame too long; the frame is then lost.
    pub fn push(&mut self, frame: &[u8]) -> bool {
        let ring = &*self.0;
        let tail = ring.tail.0.load(Ordering::Relaxed);
        let head = ring.head.0.load(Ordering::Acquire);
        if tail.wrapping_sub(head) >= ring.slots.len() {
            return false;
        }
        let Some(cell) = ring.slots.get(tail % ring.slots.len()) else {
            return false;
        };
        // SAFETY: the slot is outside `head..tail`, so the consumer leaves it alone until `tail` is stored below; there is
        // one producer and it is borrowed exclusively.
        let slot = unsafe { &mut *cell.get() };
        let Some(room) = slot.bytes.get_mut(..frame.len()) else {
            return false;
        };
        room.copy_from_slice(frame);
        slot.length = frame.len();
        ring.tail.0.store(tail.wrapping_add(1), Ordering::Release);
        true
    }
}

impl Consumer {
    /// True if there is nothing to pop.
    pub fn is_empty(&self) -> bool {
        let ring = &*self.0;
        ring.head.0.load(Ordering::Relaxed) == ring.tail.0.load(Ordering::Acquire)
    }

    /// Hands the oldest frame to `take` and frees its slot. None if the ring is empty.
    pub fn pop<R>(&mut self, take: impl FnOnce(&[u8]) -> R) -> Option<R> {
        let ring = &*self.0;
        let head = ring.head.0.load(Ordering::Relaxed);
        if head == ring.tail.0.load(Ordering::Acquire) {
            return None;
        }
        let cell = ring.slots.get(head % ring.slots.len())?;
        // SAFETY: the slot is inside `head..tail`, so the producer leaves it alone until `head` is stored below; there is
        // one consumer and it is borrowed exclusively.
        let slot = unsafe { &*cell.get() };
        let result = take(slot.bytes.get(..slot.length).unwrap_or_default());
        ring.head.0.store(head.wrapping_add(1), Ordering::Release);
        Some(result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_frames_in_order_and_refuses_when_full() {
        let (mut producer, mut consumer) = frame_ring(2);
        assert!(producer.push(b"one"));
        assert!(producer.push(b"two"));
        assert!(!producer.push(b"three"));
        assert_eq!(consumer.pop(<[u8]>::to_vec), Some(b"one".to_vec()));
        assert!(producer.push(b"four"));
        assert_eq!(consumer.pop(<[u8]>::to_vec), Some(b"two".to_vec()));
        assert_eq!(consumer.pop(<[u8]>::to_vec), Some(b"four".to_vec()));
        assert!(consumer.is_empty());
        assert_eq!(consumer.pop(<[u8]>::to_vec), None);
    }

    #[test]
    fn refuses_what_does_not_fit() {
        let (mut producer, mut consumer) = frame_ring(2);
        assert!(!producer.push(&[0; MAX_FRAME + 1]));
        assert!(consumer.is_empty());
        assert!(producer.push(&[7; MAX_FRAME]));
        assert_eq!(consumer.pop(<[u8]>::len), Some(MAX_FRAME));
    }

    #[test]
    fn two_threads_lose_nothing() {
        let (mut producer, mut consumer) = frame_ring(8);
        let pusher = std::thread::spawn(move || {
            for number in 0..20_000_u32 {
                while !producer.push(&number.to_le_bytes()) {
                    std::thread::yield_now();
                }
            }
        });
        for number in 0..20_000_u32 {
            loop {
                if let Some(frame) = consumer.pop(<[u8]>::to_vec) {
                    assert_eq!(frame, number.to_le_bytes());
                    break;
                }
                std::thread::yield_now();
            }
        }
        pusher.join().unwrap();
    }
}
