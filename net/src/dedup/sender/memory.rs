//! What a sending side takes of memory, and how large blocks may be: what both ends' coders hold of a flow is a few blocks, so who is short of memory asks for
//! small ones.

use super::Sender;
use crate::dedup::store::{Log, Store, StoreMemory};
use crate::dedup::wire::{LEAST_BLOCK, MAX_BLOCK};

impl Sender<Log> {
    /// What index and log have taken.
    pub fn store_memory(&self) -> StoreMemory {
        let mut memory = self.store.memory();
        memory.index = self.anchors.memory();
        memory
    }
}

impl<S: Store> Sender<S> {
    /// Makes no blocks that stand for more bytes from now on, [`MAX_BLOCK`] at most and [`LEAST_BLOCK`] at least; fewer if the peer has asked for fewer.
    pub fn set_block_limit(&mut self, bytes: usize) {
        self.block_limit.set_ours(bytes);
    }

    /// The most bytes that a block stands for now.
    pub fn block_limit(&self) -> usize {
        self.block_limit.get()
    }

    /// Keeps no more than that of buffers that encoders do not need now, in bytes.
    pub fn keep_spares(&mut self, bytes: usize) {
        self.room.keep_spares(bytes);
    }
}

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
