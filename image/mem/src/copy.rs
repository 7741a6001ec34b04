//! Copying and filling: what is short with a few loads and stores that may overlap, what is long with one `rep` instruction.
#![cfg_attr(not(target_os = "uefi"), allow(dead_code))]

use core::arch::asm;

/// From here on one `rep` instruction is worth its start.
const LONG: usize = 512;

/// Copies `bytes` bytes.
///
/// # Safety
/// As [`core::ptr::copy_nonoverlapping`]. `to` may also lie before `from` and overlap it.
#[inline(always)]
pub unsafe fn copy(to: *mut u8, from: *const u8, bytes: usize) {
    // SAFETY: by this function's own contract.
    unsafe {
        if bytes < 16 {
            short(to, from, bytes);
        } else {
            forward(to, from, bytes);
        }
    }
}

/// Copies `bytes` bytes that may overlap in any way.
///
/// # Safety
/// As [`core::ptr::copy`].
#[inline(always)]
pub unsafe fn copy_overlapping(to: *mut u8, from: *const u8, bytes: usize) {
    // SAFETY: by this function's own contract; forward only where `to` is not within what is still to be read.
    unsafe {
        if bytes < 16 {
            short(to, from, bytes);
        } else if to.addr().wrapping_sub(from.addr()) < bytes {
            backward(to, from, bytes);
        } else {
            forward(to, from, bytes);
        }
    }
}

/// Sets `bytes` bytes to `value`.
///
/// # Safety
/// They can be written.
#[inline(always)]
pub unsafe fn fill(to: *mut u8, value: u8, bytes: usize) {
    let word = u64::from(value) * 0x0101_0101_0101_0101;
    // SAFETY: every write lies within the `bytes` bytes.
    unsafe {
        if bytes < 16 {
            if bytes >= 8 {
                put(to, word);
                put(to.add(bytes - 8), word);
            } else if bytes >= 4 {
                put(to, word as u32);
                put(to.add(bytes - 4), word as u32);
            } else if bytes > 0 {
                put(to, value);
                put(to.add(bytes / 2), value);
                put(to.add(bytes - 1), value);
            }
            return;
        }
        let mut done = 0;
        if bytes < LONG {
            while done + 16 < bytes {
                put_pair(to.add(done), (word, word));
                done += 16;
            }
        } else {
            put_pair(to, (word, word));
            done = 16 - to.addr() % 16;
            asm!(
                "rep stosq",
                in("rax") word,
                inout("rcx") (bytes - done) / 8 => _,
                inout("rdi") to.add(done) => _,
                options(nostack, preserves_flags)
            );
        }
        put_pair(to.add(bytes - 16), (word, word));
    }
}

/// Less than 16 bytes: all are read before any is written.
///
/// # Safety
/// As [`core::ptr::copy`], with `bytes` below 16.
#[inline(always)]
unsafe fn short(to: *mut u8, from: *const u8, bytes: usize) {
    // SAFETY: every access lies within the `bytes` bytes.
    unsafe {
        if bytes >= 8 {
            let ends: (u64, u64) = (get(from), get(from.add(bytes - 8)));
            put(to, ends.0);
            put(to.add(bytes - 8), ends.1);
        } else if bytes >= 4 {
            let ends: (u32, u32) = (get(from), get(from.add(bytes - 4)));
            put(to, ends.0);
            put(to.add(bytes - 4), ends.1);
        } else if bytes > 0 {
            let middle = bytes / 2;
            let all: (u8, u8, u8) = (get(from), get(from.add(middle)), get(from.add(bytes - 1)));
            put(to, all.0);
            put(to.add(middle), all.1);
            put(to.add(bytes - 1), all.2);
        }
    }
}

/// From low to high addresses.
///
/// # Safety
/// As [`core::ptr::copy`], with 16 `bytes` at least, and `to` not inside of the source after its first byte.
#[inline(always)]
unsafe fn forward(to: *mut u8, from: *const u8, bytes: usize) {
    // SAFETY: every access lies within the `bytes` bytes. Where the two overlap, `to` is the lower: what is written is what has
    // been read already, but for the last 16 bytes, which are read first, and the first 16, which are written ahead only where
    // they end before the source.
    unsafe {
        let last = get_pair(from.add(bytes - 16));
        let mut done = 0;
        if bytes < LONG {
            while done + 16 < bytes {
                put_pair(to.add(done), get_pair(from.add(done)));
                done += 16;
            }
        } else {
            if from.addr().wrapping_sub(to.addr()) >= 16 {
                // To a multiple of 16, which is where the fast ways of `rep movsq` like to write.
                put_pair(to, get_pair(from));
                done = 16 - to.addr() % 16;
            }
            asm!(
                "rep movsq",
                inout("rcx") (bytes - done) / 8 => _,
                inout("rdi") to.add(done) => _,
                inout("rsi") from.add(done) => _,
                options(nostack, preserves_flags)
            );
        }
        put_pair(to.add(bytes - 16), last);
    }
}

/// From high to low addresses.
///
/// # Safety
/// As [`core::ptr::copy`], with 16 `bytes` at least, and `to` above `from`.
#[inline(always)]
unsafe fn backward(to: *mut u8, from: *const u8, bytes: usize) {
    // SAFETY: every access lies within the `bytes` bytes; what is written lies above what is still to be read, but for the first 16
    // bytes, which are read first.
    unsafe {
        let first = get_pair(from);
        let mut left = bytes;
        while left > 16 {
            left -= 16;
            put_pair(to.add(left), get_pair(from.add(left)));
        }
        put_pair(to, first);
    }
}

#[inline(always)]
unsafe fn get<T: Copy>(from: *const u8) -> T {
    // SAFETY: the caller's: so many bytes can be read, and `T` is an integer.
    unsafe { from.cast::<T>().read_unaligned() }
}

#[inline(always)]
unsafe fn put<T: Copy>(to: *mut u8, value: T) {
    // SAFETY: the caller's: so many bytes can be written.
    unsafe { to.cast::<T>().write_unaligned(value) }
}

/// Two words, both read before anything else happens.
#[inline(always)]
unsafe fn get_pair(from: *const u8) -> (u64, u64) {
    // SAFETY: the caller's: 16 bytes can be read.
    unsafe { (get(from), get(from.add(8))) }
}

#[inline(always)]
unsafe fn put_pair(to: *mut u8, (low, high): (u64, u64)) {
    // SAFETY: the caller's: 16 bytes can be written.
    unsafe {
        put(to, low);
        put(to.add(8), high);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LENGTHS: [usize; 22] = [
        0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 255, 511, 512, 513, 530, 1000, 2001,
    ];
    const ROOM: usize = 6000;

    fn numbered() -> Vec<u8> {
        (0..ROOM).map(|at| (at * 7 + at / 256) as u8).collect()
    }

    #[test]
    fn copies_of_any_length_and_alignment_touch_nothing_else() {
        let source = numbered();
        for bytes in LENGTHS {
            for (to, from) in (0..17).flat_map(|to| [(to, 0), (to, 5), (3, to)]) {
                let mut target = vec![0xaa; bytes + 64];
                // SAFETY: both are long enough.
                unsafe {
                    copy(
                        target.as_mut_ptr().add(to),
                        source.as_ptr().add(from),
                        bytes,
                    )
                };
                let (before, rest) = target.split_at(to);
                let (copied, after) = rest.split_at(bytes);
                assert_eq!(copied, &source[from..from + bytes], "{bytes} {to} {from}");
                assert!(before.iter().chain(after).all(|&byte| byte == 0xaa));
            }
        }
    }

    #[test]
    fn overlapping_copies_are_right_at_any_distance() {
        for bytes in LENGTHS {
            for distance in (0..40).chain([63, 64, 500, 511, 512, 600, 2500]) {
                for (to, from) in [(20, 20 + distance), (20 + distance, 20)] {
                    let mut ours = numbered();
                    let mut right = numbered();
                    right.copy_within(from..from + bytes, to);
                    let start = ours.as_mut_ptr();
                    // SAFETY: 20 + 2500 + 2001 bytes and more are there.
                    unsafe { copy_overlapping(start.add(to), start.add(from), bytes) };
                    assert!(ours == right, "{bytes} bytes from {from} to {to}");
                    if to <= from {
                        ours = numbered();
                        let start = ours.as_mut_ptr();
                        // SAFETY: as above, and `to` is not above `from`.
                        unsafe { copy(start.add(to), start.add(from), bytes) };
                        assert!(ours == right, "{bytes} bytes down from {from} to {to}");
                    }
                }
            }
        }
    }

    #[test]
    fn fills_of_any_length_and_alignment_touch_nothing_else() {
        for bytes in LENGTHS {
            for at in 0..17 {
                let mut target = vec![0xaa; bytes + 64];
                // SAFETY: it is long enough.
                unsafe { fill(target.as_mut_ptr().add(at), 0x5c, bytes) };
                let (before, rest) = target.split_at(at);
                let (filled, after) = rest.split_at(bytes);
                assert!(filled.iter().all(|&byte| byte == 0x5c), "{bytes} {at}");
                assert!(before.iter().chain(after).all(|&byte| byte == 0xaa));
            }
        }
    }
}
