//! The dedup engine by itself, its bytes and instructions counted: the same cases on the host and in a UEFI program that is built
//! as the box's binary is (`main.rs`). No tunnel, no device; `cargo xtask bench engine` runs both.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod figures;
mod line;

use alloc::vec::Vec;

pub use figures::{Case, Figures, MARK};
pub use line::{Error, decode_piece, encode_piece};

/// The most bytes of noise that are sent at the end.
const MOST_NOISE: usize = 4 << 20;

/// Bytes of the log at each end for these inputs: all of them fit, so that no case depends on what was evicted.
pub fn log_bytes(old: usize, new: usize) -> usize {
    (old + new + MOST_NOISE)
        .next_multiple_of(16 << 20)
        .max(64 << 20)
}

/// Sends `old`, then `new`, then `new` again, then noise over one pair of ends, and gives what each took to `done`. `count` reads
/// a counter of instructions that never goes back; a constant will do where there is none.
///
/// # Errors
/// The engine broke its promise: see [`Error`].
pub fn run(
    old: &[u8],
    new: &[u8],
    count: &mut dyn FnMut() -> u64,
    done: &mut dyn FnMut(Figures),
) -> Result<(), Error> {
    let mut line = line::Line::new(log_bytes(old.len(), new.len()))?;
    let noise = noise(old.len().min(MOST_NOISE));
    for (case, bytes) in [
        (Case::Cold, old),
        (Case::Next, new),
        (Case::Again, new),
        (Case::Noise, &noise),
    ] {
        if !bytes.is_empty() {
            done(line.transfer(case, bytes, count)?);
        }
    }
    Ok(())
}

/// What nothing shrinks: the upper bytes of a linear congruential generator (Knuth's MMIX constants).
fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 1u64;
    core::iter::repeat_with(|| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        state.to_be_bytes()[0]
    })
    .take(bytes)
    .collect()
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;

    /// Lines of a made-up listing, from `seed`.
    fn text(seed: u64, bytes: usize) -> Vec<u8> {
        use std::io::Write;
        let mut out = Vec::new();
        let mut state = seed;
        while out.len() < bytes {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let _ = writeln!(out, "entry {} of {} is open", state >> 54, state >> 60);
        }
        out.truncate(bytes);
        out
    }

    fn figures(old: &[u8], new: &[u8]) -> Vec<Figures> {
        let mut all = Vec::new();
        let mut count = 0;
        run(
            old,
            new,
            &mut || {
                count += 1;
                count
            },
            &mut |figures| all.push(figures),
        )
        .unwrap();
        all
    }

    #[test]
    fn what_repeats_costs_next_to_nothing_and_the_same_twice() {
        let old = text(1, 300_000);
        let new = [&old[..100_000], b"here", &old[100_000..]].concat();
        let all = figures(&old, &new);
        assert_eq!(all, figures(&old, &new));
        let [cold, next, again, noise] = &all[..] else {
            panic!("{all:?}");
        };
        assert!(cold.line < cold.bytes / 2 && next.line < 2_000 && again.line < 200);
        assert!(noise.bytes == 300_000 && noise.line >= noise.bytes);
        assert!(all.iter().all(|it| it.encoding > 0 && it.decoding > 0));
    }

    #[test]
    fn empty_inputs_have_no_figures() {
        assert_eq!(figures(b"", b""), []);
    }
}
