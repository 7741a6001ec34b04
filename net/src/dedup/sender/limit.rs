//! How large blocks may be: what both ends' coders hold of a flow is a few blocks, so who is short of memory asks for small ones.

use crate::dedup::wire::{LEAST_BLOCK, MAX_BLOCK};

/// The most raw bytes of a block, as each end has it; the smaller counts.
pub struct BlockLimit {
    ours: usize,
    theirs: usize,
}

impl BlockLimit {
    /// As large as blocks can be.
    pub fn new() -> BlockLimit {
        BlockLimit {
            ours: MAX_BLOCK,
            theirs: MAX_BLOCK,
        }
    }

    /// What counts, in bytes.
    pub fn get(&self) -> usize {
        self.ours.min(self.theirs)
    }

    /// What this end wants.
    pub fn set_ours(&mut self, bytes: usize) {
        self.ours = bytes.clamp(LEAST_BLOCK, MAX_BLOCK);
    }

    /// What the peer has asked for. It can ask for no less than [`LEAST_BLOCK`].
    pub fn set_theirs(&mut self, bytes: u32) {
        let bytes = usize::try_from(bytes).unwrap_or(MAX_BLOCK);
        self.theirs = bytes.clamp(LEAST_BLOCK, MAX_BLOCK);
    }

    /// A session begins, in which the peer has asked for nothing yet.
    pub fn reset_peer(&mut self) {
        self.theirs = MAX_BLOCK;
    }
}
