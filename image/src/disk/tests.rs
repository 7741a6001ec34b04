use super::*;
use std::collections::BTreeMap;

const BLOCK: usize = 512;
const MIB: u64 = 1 << 20;
const IMAGE_BLOCKS: u64 = 117 * 2048;

/// A disk in memory whose power is cut after a number of blocks written. Blocks of zeros take no room.
#[derive(Clone, PartialEq)]
struct Ram {
    data: BTreeMap<u64, [u8; BLOCK]>,
    blocks: u64,
    writes_left: usize,
}

impl Ram {
    fn new(blocks: u64) -> Self {
        Ram {
            data: BTreeMap::new(),
            blocks,
            writes_left: usize::MAX,
        }
    }

    fn byte(&mut self, at: usize) -> &mut u8 {
        let block = self.data.entry((at / BLOCK) as u64).or_insert([0; BLOCK]);
        &mut block[at % BLOCK]
    }
}

impl Blocks for Ram {
    fn block_bytes(&self) -> u32 {
        BLOCK as u32
    }
    fn blocks(&self) -> u64 {
        self.blocks
    }
    fn read(&mut self, lba: u64, out: &mut [u8]) -> Result<(), DiskFailed> {
        for (lba, block) in (lba..).zip(out.chunks_exact_mut(BLOCK)) {
            if lba >= self.blocks {
                return Err(DiskFailed);
            }
            block.copy_from_slice(self.data.get(&lba).unwrap_or(&[0; BLOCK]));
        }
        Ok(())
    }
    fn write(&mut self, lba: u64, bytes: &[u8]) -> Result<(), DiskFailed> {
        for (lba, block) in (lba..).zip(bytes.chunks_exact(BLOCK)) {
            if lba >= self.blocks {
                return Err(DiskFailed);
            }
            self.writes_left = self.writes_left.checked_sub(1).ok_or(DiskFailed)?;
            self.data.insert(lba, block.try_into().unwrap());
            if block.iter().all(|&byte| byte == 0) {
                self.data.remove(&lba);
            }
        }
        Ok(())
    }
    fn flush(&mut self) -> Result<(), DiskFailed> {
        Ok(())
    }
}

/// An image as the build makes it, written to a disk of `mib` MiB.
fn flashed(mib: u64) -> Ram {
    let mut image = Ram::new(IMAGE_BLOCKS);
    *image.byte(450) = 0xee;
    *image.byte(510) = 0x55;
    *image.byte(511) = 0xaa;
    let mut table = Table {
        header: GptHeader {
            first_usable_lba: LbaLe::from_u64(34),
            ..GptHeader::default()
        },
        entries: vec![0; 128 * ENTRY_BYTES],
        block_bytes: BLOCK as u64,
        disk_blocks: IMAGE_BLOCKS,
        both_whole: false,
    };
    table.header.number_of_partition_entries = U32Le::from_u32(128);
    let mut place = MIB / BLOCK as u64;
    for partition in Partition::ALL {
        if let Some(bytes) = partition.image_bytes() {
            place = table.add(partition, place, bytes);
        }
    }
    table.write(&mut image).unwrap();
    image.blocks = mib * MIB / BLOCK as u64;
    image
}

#[test]
fn makes_the_two_partitions_once() {
    let mut disk = flashed(256);
    let mut table = Table::load(&mut disk).unwrap();
    let slot = table.find(Partition::SlotA).unwrap().unwrap();
    assert_eq!(table.find(Partition::Guest), Ok(None));
    let Provisioned::Made { guest, store } = table.provision(&mut disk).unwrap() else {
        panic!("nothing made");
    };
    assert_eq!(guest, 69 * MIB);
    assert!(store >= 68 * MIB);
    let before = disk.clone();
    let mut table = Table::load(&mut disk).unwrap();
    assert_eq!(table.provision(&mut disk), Ok(Provisioned::Complete));
    assert!(disk == before, "a second boot writes nothing");
    assert_eq!(table.find(Partition::SlotA), Ok(Some(slot)));
    let (guest, store) = (
        table.find(Partition::Guest).unwrap().unwrap(),
        table.find(Partition::Store).unwrap().unwrap(),
    );
    assert_eq!(guest.first_lba * BLOCK as u64 % MIB, 0);
    assert_eq!(
        guest.first_lba + guest.bytes / BLOCK as u64,
        store.first_lba
    );
    assert!(store.first_lba + store.bytes / BLOCK as u64 <= 256 * 2048 - 33);
    let size: Vec<u8> = (458..462).map(|at| *disk.byte(at)).collect();
    assert_eq!(size, (256 * 2048 - 1_u32).to_le_bytes());
}

#[test]
fn a_new_guest_partition_begins_with_zeros() {
    let mut disk = flashed(256);
    let place = 116 * MIB as usize;
    *disk.byte(place + 1080) = 0x53;
    *disk.byte(place + 65535) = 1;
    *disk.byte(place + 65536) = 2;
    let mut table = Table::load(&mut disk).unwrap();
    table.provision(&mut disk).unwrap();
    let guest = table.find(Partition::Guest).unwrap().unwrap();
    assert_eq!(guest.first_lba * BLOCK as u64, place as u64);
    let bytes = [1080, 65535, 65536].map(|at| *disk.byte(place + at));
    assert_eq!(bytes, [0, 0, 2]);
    // What the guest has written since stays.
    *disk.byte(place + 1080) = 0x53;
    let mut table = Table::load(&mut disk).unwrap();
    table.provision(&mut disk).unwrap();
    assert_eq!(*disk.byte(place + 1080), 0x53);
}

#[test]
fn a_power_cut_at_any_write_is_survived() {
    let flashed = flashed(200);
    let mut whole = flashed.clone();
    let mut table = Table::load(&mut whole).unwrap();
    table.provision(&mut whole).unwrap();
    for cut in 0.. {
        let mut disk = flashed.clone();
        disk.writes_left = cut;
        let outcome = Table::load(&mut disk).unwrap().provision(&mut disk);
        let finished = outcome.is_ok();
        disk.writes_left = usize::MAX;
        let mut table = Table::load(&mut disk).expect("a whole table at any time");
        for partition in [
            Partition::Esp,
            Partition::SlotA,
            Partition::SlotB,
            Partition::State,
        ] {
            assert!(table.find(partition).unwrap().is_some());
        }
        table.provision(&mut disk).unwrap();
        assert!(disk.data == whole.data, "cut after {cut} blocks");
        if finished {
            assert!(cut > 60, "the test must have cut something");
            break;
        }
    }
}

#[test]
fn a_damaged_primary_is_made_whole_again() {
    let mut disk = flashed(200);
    Table::load(&mut disk)
        .unwrap()
        .provision(&mut disk)
        .unwrap();
    let whole = disk.clone();
    *disk.byte(BLOCK + 20) ^= 1;
    let mut table = Table::load(&mut disk).unwrap();
    assert_eq!(table.provision(&mut disk), Ok(Provisioned::Repaired));
    assert!(disk.data == whole.data);
}

#[test]
fn damaged_entries_are_found_again_at_the_end_of_the_image() {
    let mut disk = flashed(200);
    *disk.byte(2 * BLOCK + 60) ^= 1;
    let table = Table::load(&mut disk).unwrap();
    assert!(table.find(Partition::SlotA).unwrap().is_some());
}

#[test]
fn a_disk_without_room_is_left_alone() {
    let mut disk = flashed(128);
    let before = disk.clone();
    let mut table = Table::load(&mut disk).unwrap();
    let outcome = table.provision(&mut disk).unwrap();
    assert!(matches!(outcome, Provisioned::NoRoom { free } if free < 2 * SMALLEST_BYTES));
    assert!(disk == before);
}

#[test]
fn an_image_that_is_cut_short_is_named() {
    let mut disk = flashed(200);
    disk.blocks = 60 * MIB / BLOCK as u64;
    disk.data.retain(|&lba, _| lba < 60 * MIB / BLOCK as u64);
    let before = disk.clone();
    let mut table = Table::load(&mut disk).unwrap();
    let error = table.find(Partition::SlotA).unwrap_err();
    assert!(error.to_string().contains("cut short"));
    assert!(matches!(
        table.provision(&mut disk),
        Err(TableError::CutShort { have, .. }) if have == 60 * MIB
    ));
    assert!(disk == before);
}

#[test]
fn what_is_no_table_is_refused() {
    let mut disk = Ram::new(64);
    assert_eq!(Table::load(&mut disk).unwrap_err(), TableError::NoTable);
}

#[test]
fn the_checksum_is_the_standards() {
    assert_eq!(crc(b"123456789"), Crc32(U32Le::from_u32(0xcbf4_3926)));
}

/// Fields of a table set to other numbers, with its checksums made right: it is used, or refused with nothing written; what is made lies
/// where nothing is, is found again, and is made once.
#[test]
fn a_table_with_any_numbers_in_it_costs_no_partition() {
    let mut state = 7_u64;
    let mut random = move |below: u64| {
        // Knuth's MMIX generator.
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below.max(1)
    };
    let good = flashed(256);
    let blocks = good.blocks;
    let mut outcomes = [0; 3];
    for case in 0..1_000 {
        let mut disk = good.clone();
        let lba = PRIMARY_LBA as usize * BLOCK;
        for _ in 0..1 + random(3) {
            let near = [
                0,
                1,
                33,
                34,
                100,
                2047,
                2048,
                blocks - 34,
                blocks - 1,
                blocks,
                u64::MAX,
            ];
            let value = match random(4) {
                0 => random(blocks + 10),
                _ => near[random(near.len() as u64) as usize],
            };
            // The header's first and last block and the place of its entries; or an entry's beginning, end and attributes.
            let at = match random(3) {
                0 => lba + 32 + 8 * random(3) as usize + 8 * random(2) as usize,
                1 => lba + 80,
                _ => lba + BLOCK + ENTRY_BYTES * random(5) as usize + 32 + 8 * random(3) as usize,
            };
            let width = if at == lba + 80 { 4 } else { 8 };
            for (offset, byte) in value.to_le_bytes().into_iter().take(width).enumerate() {
                *disk.byte(at + offset) = byte;
            }
        }
        make_right(&mut disk);
        let before = disk.clone();
        let Ok(mut table) = Table::load(&mut disk) else {
            outcomes[0] += 1;
            continue;
        };
        let extents = |table: &Table| {
            Partition::ALL.map(|partition| {
                let found = table.find(partition).ok().flatten();
                if let Some(extent) = found {
                    assert!(
                        extent.first_lba + extent.bytes / BLOCK as u64 <= blocks,
                        "case {case}"
                    );
                }
                found
            })
        };
        let there = extents(&table);
        match table.provision(&mut disk) {
            Err(_) | Ok(Provisioned::NoRoom { .. }) => {
                outcomes[1] += 1;
                assert!(disk == before, "case {case}: something was written");
            }
            Ok(_) => {
                outcomes[2] += 1;
                for extent in there.into_iter().flatten() {
                    let range = extent.first_lba..extent.first_lba + extent.bytes / BLOCK as u64;
                    let of = |disk: &Ram| {
                        disk.data
                            .range(range.clone())
                            .map(|(at, block)| (*at, *block))
                            .collect::<Vec<_>>()
                    };
                    assert!(of(&disk) == of(&before), "case {case}: {extent:?}");
                }
                let mut again = Table::load(&mut disk).expect("a whole table");
                let now = extents(&again);
                for ((old, new), partition) in there.iter().zip(&now).zip(Partition::ALL) {
                    let is_made = matches!(partition, Partition::Guest | Partition::Store);
                    assert!(
                        old == new || (is_made && old.is_none()),
                        "case {case}: {partition:?}"
                    );
                    assert!(new.is_some() || !is_made, "case {case}: {partition:?}");
                }
                let written = disk.clone();
                assert_eq!(
                    again.provision(&mut disk),
                    Ok(Provisioned::Complete),
                    "case {case}"
                );
                assert!(disk == written, "case {case}: a second boot writes");
            }
        }
    }
    assert!(outcomes.iter().all(|count| *count > 50), "{outcomes:?}");
}

/// Gives the primary table on `disk` the checksums of what is in it, as far as its entries are on the disk.
fn make_right(disk: &mut Ram) {
    let mut block = [0; BLOCK];
    disk.read(PRIMARY_LBA, &mut block).unwrap();
    let mut header: GptHeader = pod_read_unaligned(&block[..size_of::<GptHeader>()]);
    let count = header.number_of_partition_entries.to_u32().min(MAX_ENTRIES);
    let mut entries = vec![0; (count as usize * ENTRY_BYTES).next_multiple_of(BLOCK)];
    if disk
        .read(header.partition_entry_lba.to_u64(), &mut entries)
        .is_ok()
    {
        header.partition_entry_array_crc32 = crc(&entries[..count as usize * ENTRY_BYTES]);
    }
    header.update_header_crc32();
    block[..size_of::<GptHeader>()].copy_from_slice(bytes_of(&header));
    disk.write(PRIMARY_LBA, &block).unwrap();
}
