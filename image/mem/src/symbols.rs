//! The names that compiled code calls. They come before those of `compiler_builtins`, which are weak.

use crate::copy;

/// C17, 7.24.2.1.
///
/// # Safety
/// `bytes` bytes can be read at `from` and written at `to`; they do not overlap.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, bytes: usize) -> *mut u8 {
    // SAFETY: by this function's own contract.
    unsafe { copy::copy(to, from, bytes) };
    to
}

/// C17, 7.24.2.2.
///
/// # Safety
/// `bytes` bytes can be read at `from` and written at `to`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, bytes: usize) -> *mut u8 {
    // SAFETY: by this function's own contract.
    unsafe { copy::copy_overlapping(to, from, bytes) };
    to
}

/// C17, 7.24.6.1.
///
/// # Safety
/// `bytes` bytes can be written at `to`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memset(to: *mut u8, value: i32, bytes: usize) -> *mut u8 {
    // SAFETY: by this function's own contract.
    unsafe { copy::fill(to, value as u8, bytes) };
    to
}
