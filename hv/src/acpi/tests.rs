use std::fs;
use std::process::Command;

use super::*;

fn tables(vcpus: usize) -> Tables {
    Tables::new(&AcpiConfig {
        vcpus,
        wake_micros: 100,
        virtio: VirtioSlot::ALL.to_vec(),
    })
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// The table at a guest-physical address.
fn table(tables: &Tables, address: u64) -> &[u8] {
    let start = (address - layout::TABLES) as usize;
    let length = u32_at(&tables.bytes, start + 4) as usize;
    &tables.bytes[start..start + length]
}

/// The tables by signature, found as a kernel finds them.
fn found(tables: &Tables) -> Vec<(String, Vec<u8>)> {
    let root = &tables.bytes[..36];
    assert_eq!(&root[..8], b"RSD PTR ");
    assert_eq!((sum(&root[..20]), sum(root)), (0, 0));
    let xsdt = table(tables, u64_at(root, 24));
    let mut list = alloc::vec![xsdt];
    for entry in xsdt[36..].chunks(8) {
        list.push(table(tables, u64_at(entry, 0)));
    }
    let fadt = list[1];
    list.push(table(tables, u64_at(fadt, 140)));
    assert_eq!(u64::from(u32_at(fadt, 40)), u64_at(fadt, 140));
    for bytes in &list {
        assert_eq!(sum(bytes), 0);
    }
    let facs = u64::from(u32_at(fadt, 36));
    assert_eq!(facs % 64, 0);
    assert_eq!(&table(tables, facs)[..4], b"FACS");
    list.into_iter()
        .map(|bytes| {
            (
                String::from_utf8(bytes[..4].to_vec()).unwrap(),
                bytes.to_vec(),
            )
        })
        .collect()
}

#[test]
fn a_kernel_finds_every_table() {
    let tables = tables(3);
    let found = found(&tables);
    let names: Vec<_> = found.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["XSDT", "FACP", "APIC", "WDAT", "DSDT"]);
    assert!(tables.bytes.len() < 0x2_0000);
    let madt = &found[2].1;
    assert_eq!(madt.len(), 44 + 3 * 8 + 12 + 10 + 6);
    assert_eq!(u32_at(madt, 40), 1, "there are 8259s");
}

/// The disassembler knows the specification better than we do. Without it (package acpica-tools) there is nothing to compare with.
#[test]
fn the_disassembler_understands_them() {
    if Command::new("iasl").arg("-v").output().is_err() {
        eprintln!("iasl is not installed: not checked");
        return;
    }
    let directory = std::env::temp_dir().join(format!("outpost-acpi-{}", std::process::id()));
    fs::create_dir_all(&directory).unwrap();
    let mut texts = Vec::new();
    for (name, bytes) in found(&tables(2)) {
        fs::write(directory.join(format!("{name}.aml")), bytes).unwrap();
        let output = Command::new("iasl")
            .current_dir(&directory)
            .args(["-d", &format!("{name}.aml")])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{name}: {said}");
        for bad in ["Warning", "Error", "Invalid", "error"] {
            assert!(!said.contains(bad), "{name}: {said}");
        }
        let text = fs::read_to_string(directory.join(format!("{name}.dsl"))).unwrap();
        assert!(!text.contains("Invalid"), "{name}: {text}");
        texts.push(text);
    }
    // What the disassembler wrote compiles again without a complaint.
    let output = Command::new("iasl")
        .current_dir(&directory)
        .args(["-p", "again", "DSDT.dsl"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("0 Errors, 0 Warnings"), "{said}");
    fs::remove_dir_all(&directory).unwrap();

    let dsdt = &texts[4];
    for part in [
        "\"LNRO0005\"",
        "0xD0000000",
        "0xD0001000",
        "PNP0501",
        "PNP0B00",
        "ACPI0007",
        "Register (FFixedHW,",
        "0x03F8",
    ] {
        assert!(dsdt.contains(part), "{part}: {dsdt}");
    }
    let fadt = &texts[1];
    for part in [
        "SCI Interrupt : 0009",
        "0000000000000608",
        "Value to cause reset : 06",
    ] {
        assert!(fadt.contains(part), "{part}: {fadt}");
    }
    let wdat = &texts[3];
    for part in [
        "Timer Period : 000003E8",
        "Enabled : 1",
        "0000000000000630",
        "Watchdog Action : 09",
    ] {
        assert!(wdat.contains(part), "{part}: {wdat}");
    }
}
