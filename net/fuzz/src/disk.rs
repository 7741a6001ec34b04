//! The target for what lies on the store's device: superblocks, descriptions, pages.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use outpost_net::dedup::{Decoder, Encoder, Flush, Receiver, Sender};
use outpost_net::store::{BLOCK, BlockDevice, DeviceError, Disk, MAGIC, OpenError};

use crate::Target;
use crate::dedup::carry;
use crate::mutate::Random;
use crate::script::{Script, put_piece};

const OWNER: [u8; 32] = [6; 32];
/// Where slots begin, how large they are, and the parts of each: see `docs/store.md`.
const SLOTS_AT: u64 = 64 * 1024;
const DESCRIPTION: u64 = 64 * 1024;
const SLOT: u64 = 2 * DESCRIPTION + (1 << 20);
const SLOTS: u64 = 8;
/// A superblock up to its checksum; a description's fixed part.
const SUPER: usize = 96;
const HEADER: usize = 72 + 32 * 4;

/// A device that keeps the blocks that are not zero.
#[derive(Clone, Default)]
struct Memory(RefCell<BTreeMap<u64, [u8; BLOCK]>>);

impl BlockDevice for Memory {
    fn size(&self) -> u64 {
        SLOTS_AT + SLOTS * SLOT
    }

    fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<(), DeviceError> {
        self.check(offset, bytes.len())?;
        let blocks = self.0.borrow();
        for (number, block) in (offset / BLOCK as u64..).zip(bytes.chunks_mut(BLOCK)) {
            match blocks.get(&number) {
                Some(there) => block.copy_from_slice(there),
                None => block.fill(0),
            }
        }
        Ok(())
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), DeviceError> {
        self.check(offset, bytes.len())?;
        let mut blocks = self.0.borrow_mut();
        for (number, block) in (offset / BLOCK as u64..).zip(bytes.chunks(BLOCK)) {
            let block = block.try_into().expect("whole blocks");
            blocks.insert(number, block);
        }
        Ok(())
    }

    fn flush(&self) -> Result<(), DeviceError> {
        Ok(())
    }
}

impl Memory {
    fn check(&self, offset: u64, len: usize) -> Result<(), DeviceError> {
        let aligned = offset.is_multiple_of(BLOCK as u64) && len.is_multiple_of(BLOCK);
        assert!(aligned, "{len} bytes at {offset}");
        let end = offset
            .checked_add(len as u64)
            .ok_or(DeviceError::OutOfRange)?;
        if end > self.size() {
            return Err(DeviceError::OutOfRange);
        }
        Ok(())
    }

    /// Overwrites bytes anywhere.
    fn patch(&self, offset: u64, bytes: &[u8]) {
        let mut blocks = self.0.borrow_mut();
        for (at, byte) in (offset % self.size()..).zip(bytes) {
            let block = blocks.entry(at / BLOCK as u64).or_insert([0; BLOCK]);
            block[at as usize % BLOCK] = *byte;
        }
    }

    fn bytes(&self, offset: u64, len: usize) -> Vec<u8> {
        let before = offset as usize % BLOCK;
        let mut bytes = vec![0; (before + len).next_multiple_of(BLOCK)];
        let whole = self.read(offset - before as u64, &mut bytes);
        whole.expect("a place on the device");
        bytes[before..before + len].to_vec()
    }

    /// Makes every checksum right: of superblocks and descriptions, as far as they look like some.
    fn reseal(&self) {
        for at in [0, BLOCK as u64] {
            let block = self.bytes(at, SUPER);
            if block.starts_with(&MAGIC) {
                self.patch(at + SUPER as u64, &crc32fast::hash(&block).to_le_bytes());
            }
        }
        for copy in 0..SLOTS * 2 {
            let at = SLOTS_AT + copy / 2 * SLOT + copy % 2 * DESCRIPTION;
            let whole = self.bytes(at, DESCRIPTION as usize);
            if !whole.starts_with(b"OPSG") {
                continue;
            }
            let number = |place: usize| {
                u32::from_le_bytes([
                    whole[place],
                    whole[place + 1],
                    whole[place + 2],
                    whole[place + 3],
                ])
            };
            let entries = number(60) as usize + number(64) as usize;
            if let Some(body) = entries
                .checked_mul(8)
                .and_then(|it| whole.get(HEADER..HEADER + it))
            {
                self.patch(at + 68, &crc32fast::hash(body).to_le_bytes());
            }
            let header = self.bytes(at, HEADER);
            self.patch(at + 4, &crc32fast::hash(&header[8..]).to_le_bytes());
        }
    }
}

/// A store of both directions at one end, as two honest transfers leave it.
fn honest_device() -> Memory {
    thread_local! {
        static MADE: Memory = {
            let device = Rc::new(Memory::default());
            let disk = Disk::open(device.clone(), OWNER, [8; 48]).expect("a new store");
            let mut sender = Sender::on_disk(&disk, 0, [1; 32]);
            let mut receiver = Receiver::on_disk(&disk, 0);
            move_text(&mut sender, &mut receiver, &text()[..60_000]);
            let _ = (sender.place().sync(), receiver.place().sync());
            move_text(&mut sender, &mut receiver, &text()[60_000..]);
            let _ = (sender.place().sync(), receiver.place().sync());
            (*device).clone()
        };
    }
    MADE.with(Memory::clone)
}

fn text() -> Vec<u8> {
    Random::new(41).text(80_000)
}

/// Sends `text` from one end to the other, in a session of its own.
fn move_text(sender: &mut Sender, receiver: &mut Receiver, text: &[u8]) {
    sender.reset_peer();
    receiver.reset_peer();
    assert!(carry(sender, receiver), "honest ends understand each other");
    let (mut encoder, mut decoder) = (Encoder::new(sender), Decoder::new(receiver));
    let (mut sent, mut got, mut wire) = (0, 0, vec![]);
    for turn in 0.. {
        assert!(turn < 500, "stopped at {got} of {}", text.len());
        let end = (sent + 20_000).min(text.len());
        sent += encoder.encode(sender, &text[sent..end], Flush::Yes, &mut wire);
        // A block may be gone at both ends; then the flow ends, and says so.
        let Ok(taken) = decoder.push(receiver, &wire) else {
            break;
        };
        wire.drain(..taken);
        let ready = decoder.pop();
        assert!(text[got..].starts_with(ready), "wrong bytes at {got}");
        got += ready.len();
        let len = ready.len();
        decoder.consume(len);
        assert!(carry(sender, receiver), "honest ends understand each other");
        if got == text.len() {
            break;
        }
    }
    encoder.close(sender);
    decoder.close(receiver);
}

/// A byte that says whether checksums are made right, then pieces: where (4 bytes, little endian), and what is written there.
pub const DEVICE: Target = Target {
    name: "store_device",
    about: "a device with anything on it, checksums right or wrong: both logs open, and what they carry afterwards is right",
    run: device,
    honest: || {
        let device = honest_device();
        let place = |offset: u64, bytes: &[u8]| {
            let mut script = vec![];
            put_piece(
                &mut script,
                &[&(offset as u32).to_le_bytes(), bytes].concat(),
            );
            script
        };
        let copy = |offset: u64, len: usize| place(offset, &device.bytes(offset, len));
        let mut all = vec![("untouched", vec![0])];
        for (name, slot) in [("sending", 0), ("receiving", 1)] {
            let at = SLOTS_AT + slot * SLOT;
            all.push((
                name,
                [vec![1], copy(at, 400), copy(at + DESCRIPTION, 400)].concat(),
            ));
        }
        all.push((
            "superblock",
            [vec![1], copy(0, 100), copy(BLOCK as u64, 100)].concat(),
        ));
        let page = SLOTS_AT + SLOT + 2 * DESCRIPTION;
        all.push(("page", [vec![0], copy(page + 1000, 64)].concat()));
        let newer = [&MAGIC[..], &2u32.to_le_bytes()].concat();
        let newer = [vec![0], place(0, &newer), place(BLOCK as u64, &newer)].concat();
        all.push(("newer_format", newer));
        // Fields that claim what cannot be, in descriptions that have their checksums.
        for (name, field, claim) in [
            (
                "last_segment",
                16,
                ((1u64 << 44) - 1).to_le_bytes().to_vec(),
            ),
            (
                "last_but_one_segment",
                16,
                ((1u64 << 44) - 2).to_le_bytes().to_vec(),
            ),
            ("last_generation", 8, u64::MAX.to_le_bytes().to_vec()),
            ("gigabytes_of_ranges", 60, vec![0, 0, 0, 0x40]),
            ("gigabytes_of_anchors", 64, vec![0xf0, 0xff, 0xff, 0xff]),
            ("range_too_long", HEADER as u64 + 4, vec![1, 0, 0x10, 0]),
            (
                "range_of_all",
                HEADER as u64,
                vec![0, 0, 0, 0, 0, 0, 0x10, 0],
            ),
            ("range_of_all_of_the_last", 16, {
                let mut claim = device.bytes(SLOTS_AT + 16, HEADER - 8);
                claim[..8].copy_from_slice(&((1u64 << 44) - 1).to_le_bytes());
                claim[HEADER - 16..].copy_from_slice(&[0, 0, 0, 0, 0, 0, 0x10, 0]);
                claim
            }),
        ] {
            let both = [0, 1].map(|slot| {
                let at = SLOTS_AT + slot * SLOT + field;
                [place(at, &claim), place(at + DESCRIPTION, &claim)].concat()
            });
            all.push((name, [vec![1], both.concat()].concat()));
        }
        // A description moved to another slot.
        let moved = device.bytes(SLOTS_AT + SLOT, 400);
        all.push((
            "moved",
            [vec![1], place(SLOTS_AT + 3 * SLOT, &moved)].concat(),
        ));
        all
    },
    cases: 500,
    memory: 48 << 20,
};

fn device(input: &[u8]) {
    let device = Rc::new(honest_device());
    let mut script = Script(input);
    let reseal = script.byte() & 1 == 1;
    while !script.is_empty() {
        let mut piece = Script(script.piece());
        let at = u32::from(piece.short()) | u32::from(piece.short()) << 16;
        device.patch(u64::from(at), piece.rest());
    }
    if reseal {
        device.reseal();
    }
    let [one, two] = [0, BLOCK as u64].map(|at| device.bytes(at, SUPER + 4));
    let is_newer = |block: &[u8]| block.starts_with(&MAGIC) && block[8..12] != [1, 0, 0, 0];
    let is_good = |block: &[u8]| {
        block.starts_with(&MAGIC)
            && block[8..16] == [1, 0, 0, 0, 0, 0, 16, 0]
            && crc32fast::hash(&block[..SUPER]).to_le_bytes() == block[SUPER..]
    };
    let is_left = !is_good(&one) && !is_good(&two) && (is_newer(&one) || is_newer(&two));
    let mut edited = Random::new(42).edited(text(), 5);
    for round in 0..2u8 {
        let before = device.0.borrow().clone();
        let disk = match Disk::open(device.clone(), OWNER, [9; 48]) {
            Ok(disk) => {
                assert!(!is_left, "a store of a newer format is written over");
                disk
            }
            Err(OpenError::OtherVersion(_)) => {
                assert!(
                    *device.0.borrow() == before,
                    "what is of a newer format is left alone"
                );
                return;
            }
            Err(error) => panic!("{error}"),
        };
        let mut sender = Sender::on_disk(&disk, 0, [10 + round; 32]);
        let mut receiver = Receiver::on_disk(&disk, 0);
        for warm in [sender.store_statistics(), receiver.store_statistics()] {
            assert!(warm.store_warm_bytes <= warm.store_capacity_bytes);
        }
        // Both directions belong to one log here: what the receiver has is what this sender has sent.
        move_text(&mut sender, &mut receiver, &edited);
        edited.reverse();
        move_text(&mut sender, &mut receiver, &edited);
        let _ = (sender.place().sync(), receiver.place().sync());
    }
}
