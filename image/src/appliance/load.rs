//! A service that wants all it can get and does nothing with it (`[services] load`): what the guest shares a CPU with when shares,
//! policies and latencies are measured. No box that is not measured has one.

use core::hint::black_box;

use outpost_hv::sched::CpuSet;

use super::cpus::Turn;
use crate::machine::clock;

/// The length of a piece, in nanoseconds: the box's own services are bounded likewise.
const PIECE_NS: u64 = 100_000;
/// Steps between two looks at the clock.
const STEPS: u32 = 500;

/// Says at the start that such services run on those of the CPUs `wanted` that are among the `cpus` that there are.
pub fn announce(wanted: CpuSet, cpus: usize) {
    for cpu in CpuSet(wanted.0 & CpuSet::below(cpus).0).iter() {
        log::info!("load: CPU {cpu} computes for nothing, for measurement ([services] load)");
    }
}

/// One piece of work. There is always another.
pub fn turn() -> Turn {
    let end = clock::now_ns() + PIECE_NS;
    let mut state = end;
    while clock::now_ns() < end {
        for _ in 0..STEPS {
            // Knuth's MMIX generator: something that depends on what was before.
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
        }
        black_box(state);
    }
    Turn::Busy
}
