//! Opens a device: whose store it is, and whether it is one at all.

use alloc::rc::Rc;
use alloc::vec;

use super::layout::{self, Found, Superblock};
use super::log::Direction;
use super::{BLOCK, BlockDevice, DeviceError};

/// The fewest slots for each direction.
const LEAST_SLOTS: u32 = 4;

/// Why a device cannot be used. It is left as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenError {
    /// It holds a store of another format than this version's.
    OtherVersion(u32),
    /// It has fewer bytes than that.
    TooSmall(u64),
    /// It does not even take the superblock.
    Device(DeviceError),
}

impl core::fmt::Display for OpenError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            OpenError::OtherVersion(version) => write!(
                f,
                "the store has format {version} and this version knows {}; it is left untouched",
                layout::VERSION
            ),
            OpenError::TooSmall(least) => {
                write!(f, "the store is too small; give it at least {least} bytes")
            }
            OpenError::Device(error) => write!(f, "{error}"),
        }
    }
}

impl core::error::Error for OpenError {}

/// What was found on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opened {
    /// This pair's store.
    Own,
    /// Nothing of ours, or damaged beyond use: started anew.
    Blank,
    /// The store of another pair of peers: started anew.
    Foreign,
}

/// An opened device, from which the logs of both directions are made.
#[derive(Clone)]
pub struct Disk {
    pub(super) device: Rc<dyn BlockDevice>,
    pub(super) store: [u8; 16],
    pub(super) keys: [u8; 32],
    pub(super) opened: Opened,
}

impl Disk {
    /// The fewest bytes that make a store.
    pub const LEAST_BYTES: u64 = layout::SLOTS_AT + 2 * LEAST_SLOTS as u64 * layout::SLOT;

    /// Opens the store of `owner` (a digest of both peers' public keys, ours first) on `device`, or starts one with secrets
    /// from `seed`.
    ///
    /// # Errors
    /// The device cannot be used; it has not been written to, unless writing was what failed.
    pub fn open(
        device: Rc<dyn BlockDevice>,
        owner: [u8; 32],
        seed: [u8; 48],
    ) -> Result<Disk, OpenError> {
        if device.size() < Disk::LEAST_BYTES {
            return Err(OpenError::TooSmall(Disk::LEAST_BYTES));
        }
        let found = Superblock::AT.map(|at| {
            let mut block = vec![0; BLOCK];
            match device.read(at, &mut block) {
                Ok(()) => Superblock::parse(&block),
                Err(_) => Found::Nothing,
            }
        });
        let good = found.iter().find_map(|found| match found {
            Found::Superblock(superblock) => Some(*superblock),
            _ => None,
        });
        let other = found.iter().find_map(|found| match found {
            Found::OtherVersion(version) => Some(*version),
            _ => None,
        });
        let (superblock, opened) = match (good, other) {
            (Some(good), _) if good.owner == owner => (good, Opened::Own),
            (None, Some(version)) => return Err(OpenError::OtherVersion(version)),
            (good, _) => {
                let (mut store, mut keys) = ([0; 16], [0; 32]);
                let (first, rest) = seed.split_at(16);
                store.copy_from_slice(first);
                keys.copy_from_slice(rest);
                let superblock = Superblock { owner, store, keys };
                let opened = if good.is_some() {
                    Opened::Foreign
                } else {
                    Opened::Blank
                };
                (superblock, opened)
            }
        };
        for (at, found) in Superblock::AT.into_iter().zip(found) {
            if found != Found::Superblock(superblock) {
                let written = device.write(at, &superblock.encode());
                // A copy that cannot be mended does no harm.
                if opened != Opened::Own {
                    written.map_err(OpenError::Device)?;
                }
            }
        }
        if opened != Opened::Own {
            device.flush().map_err(OpenError::Device)?;
        }
        Ok(Disk {
            device,
            store: superblock.store,
            keys: superblock.keys,
            opened,
        })
    }

    /// Whose store lies on `device`, if one does that this version can use. Nothing is written.
    pub fn owner(device: &dyn BlockDevice) -> Option<[u8; 32]> {
        Superblock::AT.iter().find_map(|at| {
            let mut block = vec![0; BLOCK];
            device.read(*at, &mut block).ok()?;
            match Superblock::parse(&block) {
                Found::Superblock(superblock) => Some(superblock.owner),
                _ => None,
            }
        })
    }

    /// What was found.
    pub fn opened(&self) -> Opened {
        self.opened
    }

    /// Name and secret of the sending side's log.
    pub(crate) fn sending(&self) -> ([u8; 16], [u8; 32]) {
        (self.store, self.keys)
    }

    /// Slots of one direction. Directions take turns, so that a device of another size has the same slots.
    pub(super) fn slots(&self, direction: Direction) -> impl Iterator<Item = u32> + use<> {
        let number = u32::from(direction.number());
        (number..layout::slots(self.device.size())).step_by(2)
    }

    /// Bytes that the log of each direction may hold.
    pub fn capacity(&self) -> u64 {
        // The window begins and ends somewhere within a segment.
        let slots = layout::slots(self.device.size()) / 2;
        u64::from(slots.saturating_sub(1)) << layout::SEGMENT_BITS
    }
}
