//! A device in memory that records what is done to it, so that a power cut can be played at any point.

use alloc::collections::BTreeMap;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};

use super::super::{BLOCK, BlockDevice, DeviceError};
use crate::dedup::tests::simulation::Rng;

/// What a disk writes whole, or not at all.
const SECTOR: usize = 512;

/// Blocks by number; those that are not there are zero.
type Blocks = BTreeMap<u64, Rc<[u8]>>;

#[derive(Clone)]
pub enum Step {
    Write(u64, Rc<[u8]>),
    Flush,
}

/// What has gone wrong with a device.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    None,
    /// Reads fail.
    Read,
    /// Writes fail.
    Write,
    /// Writes fail for want of room.
    Full,
    /// Writes are said to be done, and are not.
    Liar,
    /// Reads give other bytes.
    Garbage,
}

pub struct Memory {
    size: Cell<u64>,
    blocks: RefCell<Blocks>,
    /// What was done, if it is recorded.
    steps: RefCell<Option<Vec<Step>>>,
    pub fault: Cell<Fault>,
}

impl Memory {
    pub fn new(size: u64) -> Rc<Memory> {
        Memory::with(size, Blocks::new())
    }

    fn with(size: u64, blocks: Blocks) -> Rc<Memory> {
        Rc::new(Memory {
            size: Cell::new(size),
            blocks: RefCell::new(blocks),
            steps: RefCell::new(None),
            fault: Cell::new(Fault::None),
        })
    }

    /// The same contents on a device of another size.
    pub fn resized(&self, size: u64) -> Rc<Memory> {
        let mut blocks = self.blocks.borrow().clone();
        blocks.retain(|block, _| (block + 1) * BLOCK as u64 <= size);
        Memory::with(size, blocks)
    }

    pub fn copy(&self) -> Rc<Memory> {
        self.resized(self.size.get())
    }

    /// Records from here on.
    pub fn record(&self) {
        *self.steps.borrow_mut() = Some(Vec::new());
    }

    pub fn steps(&self) -> Vec<Step> {
        self.steps.borrow().clone().unwrap_or_default()
    }

    pub fn count(&self) -> usize {
        self.steps.borrow().as_ref().map_or(0, Vec::len)
    }

    /// Flips one bit somewhere in what has been written.
    pub fn rot(&self, rng: &mut Rng) {
        let mut blocks = self.blocks.borrow_mut();
        let index = rng.below(blocks.len());
        if let Some(block) = blocks.values_mut().nth(index) {
            let mut bytes = block.to_vec();
            let at = rng.below(bytes.len());
            bytes[at] ^= 1 << rng.below(8);
            *block = bytes.into();
        }
    }

    pub fn zero(&self, offset: u64) {
        self.blocks.borrow_mut().remove(&(offset / BLOCK as u64));
    }

    fn put(blocks: &mut Blocks, offset: u64, bytes: &[u8]) {
        for (index, piece) in bytes.chunks(BLOCK).enumerate() {
            blocks.insert(offset / BLOCK as u64 + index as u64, piece.into());
        }
    }
}

impl BlockDevice for Memory {
    fn size(&self) -> u64 {
        self.size.get()
    }

    fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<(), DeviceError> {
        assert!(offset.is_multiple_of(BLOCK as u64) && bytes.len().is_multiple_of(BLOCK));
        if offset + bytes.len() as u64 > self.size.get() {
            return Err(DeviceError::OutOfRange);
        }
        if self.fault.get() == Fault::Read {
            return Err(DeviceError::Failed);
        }
        let blocks = self.blocks.borrow();
        for (index, piece) in bytes.chunks_mut(BLOCK).enumerate() {
            match blocks.get(&(offset / BLOCK as u64 + index as u64)) {
                Some(block) => piece.copy_from_slice(block),
                None => piece.fill(0),
            }
            if self.fault.get() == Fault::Garbage {
                piece
                    .iter_mut()
                    .for_each(|byte| *byte = byte.wrapping_mul(3) ^ 0x55);
            }
        }
        Ok(())
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), DeviceError> {
        assert!(offset.is_multiple_of(BLOCK as u64) && bytes.len().is_multiple_of(BLOCK));
        if offset + bytes.len() as u64 > self.size.get() {
            return Err(DeviceError::OutOfRange);
        }
        match self.fault.get() {
            Fault::Write => return Err(DeviceError::Failed),
            Fault::Full => return Err(DeviceError::Full),
            Fault::Liar => return Ok(()),
            _ => {}
        }
        if let Some(steps) = self.steps.borrow_mut().as_mut() {
            steps.push(Step::Write(offset, bytes.into()));
        }
        Memory::put(&mut self.blocks.borrow_mut(), offset, bytes);
        Ok(())
    }

    fn flush(&self) -> Result<(), DeviceError> {
        if self.fault.get() == Fault::Write {
            return Err(DeviceError::Failed);
        }
        if let Some(steps) = self.steps.borrow_mut().as_mut() {
            steps.push(Step::Flush);
        }
        Ok(())
    }
}

/// What a power cut does with writes that no flush has made safe.
#[derive(Clone, Copy, Debug)]
pub enum Cut {
    /// All are lost.
    Lost,
    /// All are there, as after a mere crash of the program.
    Kept,
    /// Some are lost, and each of the rest may be torn: only some of its sectors are there.
    Torn,
    /// They take effect in any order, and some not at all.
    Reordered,
}

/// The device `before`, after the first `at` of `steps` and then a power cut.
pub fn cut(before: &Memory, steps: &[Step], at: usize, how: Cut, rng: &mut Rng) -> Rc<Memory> {
    let mut blocks = before.blocks.borrow().clone();
    let done = &steps[..at];
    let safe = done
        .iter()
        .rposition(|step| matches!(step, Step::Flush))
        .unwrap_or(0);
    let mut open = Vec::new();
    for (index, step) in done.iter().enumerate() {
        match step {
            Step::Write(offset, bytes) if index < safe => Memory::put(&mut blocks, *offset, bytes),
            Step::Write(offset, bytes) => open.push((*offset, bytes.clone())),
            Step::Flush => {}
        }
    }
    if matches!(how, Cut::Reordered) {
        for index in (1..open.len()).rev() {
            open.swap(index, rng.below(index + 1));
        }
    }
    for (offset, bytes) in open {
        match how {
            Cut::Lost => {}
            Cut::Kept => Memory::put(&mut blocks, offset, &bytes),
            Cut::Reordered if rng.below(3) == 0 => {}
            Cut::Reordered => Memory::put(&mut blocks, offset, &bytes),
            Cut::Torn => {
                let kept = rng.below(4);
                for (index, block) in bytes.chunks(BLOCK).enumerate() {
                    let number = offset / BLOCK as u64 + index as u64;
                    let mut torn = match blocks.get(&number) {
                        Some(old) => old.to_vec(),
                        None => alloc::vec![0; BLOCK],
                    };
                    // Most blocks are there as a whole or not at all, as on a disk with large sectors.
                    let is_whole = rng.below(4) > 0;
                    let mut is_kept = rng.below(2) == 0;
                    for (old, new) in torn.chunks_mut(SECTOR).zip(block.chunks(SECTOR)) {
                        if !is_whole {
                            is_kept = rng.below(2) == 0;
                        }
                        if kept == 1 || (kept > 1 && is_kept) {
                            old.copy_from_slice(new);
                        }
                    }
                    Memory::put(&mut blocks, number * BLOCK as u64, &torn);
                }
            }
        }
    }
    Memory::with(before.size.get(), blocks)
}
