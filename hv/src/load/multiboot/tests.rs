use proptest::prelude::*;

use super::*;

const MIB: u64 = 1 << 20;

fn put(file: &mut [u8], offset: usize, words: &[u32]) {
    for (index, word) in words.iter().enumerate() {
        file[offset + 4 * index..][..4].copy_from_slice(&word.to_le_bytes());
    }
}

/// An ELF32 kernel: one segment of 256 bytes at file offset 0x200, at 4 MiB, with 256 bytes of BSS; header at 0x100.
fn kernel() -> Vec<u8> {
    let mut file = alloc::vec![0; 0x300];
    file[..6].copy_from_slice(b"\x7FELF\x01\x01");
    put(&mut file, 0x10, &[2 | 3 << 16, 1, 0x40_0010, 0x34]);
    put(&mut file, 0x28, &[0x34 | 32 << 16, 1]);
    let segment = [1, 0x200, 0x40_0000, 0x40_0000, 0x100, 0x200, 7, 0x1000];
    put(&mut file, 0x34, &segment);
    let flags = 3;
    put(
        &mut file,
        0x100,
        &[
            HEADER_MAGIC,
            flags,
            0_u32.wrapping_sub(HEADER_MAGIC + flags),
        ],
    );
    file[0x200..].fill(0xCC);
    file
}

fn image<'a>(kernel: &'a [u8], modules: &'a [Module<'a>]) -> MultibootImage<'a> {
    MultibootImage {
        kernel,
        command_line: "kernel -v",
        modules,
    }
}

fn text(mem: &GuestMemory, pointer: u64) -> alloc::string::String {
    let mut at = u64::from(mem.read_u32(pointer).unwrap());
    let mut text = alloc::string::String::new();
    loop {
        match mem.read_u8(at).unwrap() {
            0 => return text,
            byte => text.push(char::from(byte)),
        }
        at += 1;
    }
}

#[test]
fn an_elf_kernel_and_its_modules_are_loaded() {
    let mem = GuestMemory::allocate(16 * MIB).unwrap();
    mem.fill(4 * MIB, MIB, 0xFF).unwrap();
    let modules = [
        Module {
            bytes: b"first",
            command_line: "a.env",
        },
        Module {
            bytes: b"second!",
            command_line: "",
        },
    ];
    let entry = load(&mem, &image(&kernel(), &modules)).unwrap();
    assert_eq!((entry.rip, entry.rax), (0x40_0010, 0x2BAD_B002));
    assert_eq!(mem.read_u64(0x40_00F8), Ok(0xCCCC_CCCC_CCCC_CCCC));
    assert_eq!(mem.read_u64(0x40_0100), Ok(0), "BSS is cleared");
    assert_eq!(mem.read_u8(0x40_0200), Ok(0xFF), "and nothing after it");

    let information = entry.rbx;
    assert_eq!(information, INFORMATION_ADDRESS);
    assert_eq!(mem.read_u32(information), Ok(INFORMATION));
    assert_eq!(mem.read_u32(information + 4), Ok(639));
    assert_eq!(mem.read_u32(information + 8), Ok(15 * 1024));
    assert_eq!(text(&mem, information + 16), "kernel -v");
    assert_eq!(text(&mem, information + 64), "Outpost");
    assert_eq!(mem.read_u32(information + 20), Ok(2));
    let table = u64::from(mem.read_u32(information + 24).unwrap());
    let start = u64::from(mem.read_u32(table).unwrap());
    assert_eq!(start, 0x40_1000);
    assert_eq!(mem.read_u32(table + 4), Ok(0x40_1005));
    let mut bytes = [0; 5];
    mem.read(start, &mut bytes).unwrap();
    assert_eq!(&bytes, b"first");
    assert_eq!(text(&mem, table + 8), "a.env");
    assert_eq!(mem.read_u32(table + 16), Ok(0x40_2000));
    assert_eq!(text(&mem, table + 24), "");
    assert_eq!(mem.read_u32(information + 44), Ok(24 * 6));
}

#[test]
fn address_fields_load_a_flat_kernel() {
    let mem = GuestMemory::allocate(16 * MIB).unwrap();
    let mut file = alloc::vec![0x90; 0x100];
    let flags = FLAG_ADDRESSES;
    let check = 0_u32.wrapping_sub(HEADER_MAGIC + flags);
    let (base, end, bss) = (0x10_0000, 0x10_0100, 0x10_0180);
    put(
        &mut file,
        0x20,
        &[
            HEADER_MAGIC,
            flags,
            check,
            base + 0x20,
            base,
            end,
            bss,
            base + 0x40,
        ],
    );
    mem.fill(u64::from(base), 0x1000, 0xFF).unwrap();
    let entry = load(&mem, &image(&file, &[])).unwrap();
    assert_eq!(entry.rip, 0x10_0040);
    assert_eq!(mem.read_u32(0x10_0020), Ok(HEADER_MAGIC));
    assert_eq!(mem.read_u8(0x10_017F), Ok(0));
    assert_eq!(mem.read_u8(0x10_0180), Ok(0xFF));

    file.truncate(0xFF);
    assert_eq!(
        load(&mem, &image(&file, &[])),
        Err(LoadError::CutShort {
            part: "the kernel",
            need: 0x100,
            have: 0xFF
        })
    );
}

#[test]
fn a_kernel_in_low_memory_keeps_its_place() {
    let mem = GuestMemory::allocate(16 * MIB).unwrap();
    let mut file = kernel();
    let place = [0x8000, 0x8000, 0x100, 0x2000];
    put(&mut file, 0x34 + 8, &place);
    put(&mut file, 0x18, &[0x8010]);
    let entry = load(&mem, &image(&file, &[])).unwrap();
    assert_eq!((entry.rip, entry.rbx), (0x8010, 0xA000));
    put(&mut file, 0x34 + 8, &[0xF00, 0xF00]);
    put(&mut file, 0x18, &[0xF10]);
    assert!(matches!(
        load(&mem, &image(&file, &[])),
        Err(LoadError::Unsupported(_))
    ));
}

#[test]
fn wrong_files_are_refused() {
    let mem = GuestMemory::allocate(6 * MIB).unwrap();
    assert!(matches!(
        load(&mem, &image(&[0; 9000], &[])),
        Err(LoadError::WrongKind(_))
    ));
    let mut wide = kernel();
    wide[4] = 2;
    assert!(matches!(
        load(&mem, &image(&wide, &[])),
        Err(LoadError::Unsupported(_))
    ));
    let file = kernel();
    assert_eq!(
        load(&mem, &image(&file[..0x2FF], &[])),
        Err(LoadError::CutShort {
            part: "a segment of the kernel",
            need: 0x300,
            have: 0x2FF
        })
    );
    let large = alloc::vec![0; 2 * MIB as usize];
    let modules = [Module {
        bytes: &large,
        command_line: "",
    }];
    assert_eq!(
        load(&mem, &image(&file, &modules)),
        Err(LoadError::NoRoom {
            part: "a module",
            need: 6 * MIB + 0x1000,
            have: 6 * MIB
        })
    );
    let mut video = kernel();
    let flags = 7;
    let check = 0_u32.wrapping_sub(HEADER_MAGIC + flags);
    put(&mut video, 0x104, &[flags, check]);
    assert!(matches!(
        load(&mem, &image(&video, &[])),
        Err(LoadError::Unsupported(_))
    ));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Whatever a damaged file says, loading ends with an entry state or an error.
    #[test]
    fn mutated_files_never_panic(
        edits in proptest::collection::vec((0_usize..0x120, any::<u8>()), 1..8),
        cut in 0_usize..0x301,
    ) {
        let mem = GuestMemory::allocate(8 * MIB).unwrap();
        let mut file = kernel();
        for (offset, value) in edits {
            file[offset] = value;
        }
        file.truncate(cut);
        let modules = [Module { bytes: b"module", command_line: "m" }];
        let _ = load(&mem, &image(&file, &modules));
    }

    #[test]
    fn any_address_fields_never_panic(fields in any::<[u32; 5]>(), near in any::<bool>()) {
        let mem = GuestMemory::allocate(4 * MIB).unwrap();
        let mut file = alloc::vec![0; 0x400];
        let flags = FLAG_ADDRESSES;
        put(&mut file, 0, &[HEADER_MAGIC, flags, 0_u32.wrapping_sub(HEADER_MAGIC + flags)]);
        let fields = fields.map(|word| if near { 0x10_0000 + word % 0x800 } else { word });
        put(&mut file, 12, &fields);
        let _ = load(&mem, &image(&file, &[]));
    }
}
