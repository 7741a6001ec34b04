//! Images put together, read back, changed.

use std::io::Read;

use super::*;

fn read(image: &Path, partition: Partition) -> Vec<u8> {
    let file = std::fs::File::open(image).unwrap();
    let mut bytes = Vec::new();
    Disk::open(&file)
        .unwrap()
        .partition(partition)
        .unwrap()
        .read_to_end(&mut bytes)
        .unwrap();
    bytes
}

fn config(image: &Path) -> String {
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .open(image)
        .unwrap();
    esp::config(
        &mut Disk::open(&file)
            .unwrap()
            .partition(Partition::Esp)
            .unwrap(),
    )
    .unwrap()
}

fn guest() -> GuestFiles {
    GuestFiles {
        name: "directory".into(),
        command_line: "quiet".into(),
        kernel: vec![7; 70_000],
        ramdisk: Some(b"ramdisk".to_vec()),
    }
}

struct Example {
    folder: tempfile::TempDir,
    image: PathBuf,
}

fn example() -> Example {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("base.img");
    assemble(
        &[0xee; 300_000],
        "role = \"branch\"\n",
        Some(&guest().slot().unwrap()),
        &image,
    )
    .unwrap();
    Example { folder, image }
}

#[test]
fn an_image_has_what_was_put_in_and_is_small() {
    let Example {
        folder: _folder,
        image,
    } = example();
    let length = std::fs::metadata(&image).unwrap().len();
    assert!(
        length <= MAX_BYTES && length.is_multiple_of(1 << 20),
        "{length}"
    );
    assert_eq!(config(&image), "role = \"branch\"\n");
    let slot = read(&image, Partition::SlotA);
    let slot = Slot::parse(&slot).unwrap();
    assert_eq!(slot.read(KERNEL).unwrap(), [7; 70_000]);
    assert_eq!(slot.read(RAMDISK).unwrap(), b"ramdisk");
    assert!(read(&image, Partition::SlotB).iter().all(|&byte| byte == 0));
    assert!(read(&image, Partition::State).iter().all(|&byte| byte == 0));
    let what: Vec<String> = contents(&image)
        .unwrap()
        .into_iter()
        .map(|item| item.what)
        .collect();
    for expected in [
        "esp",
        "  EFI/BOOT/BOOTX64.EFI",
        "  outpost.toml",
        "slot-a",
        "    kernel",
        "slot-b",
        "state",
        "guest",
        "store",
    ] {
        assert!(
            what.iter().any(|what| what == expected),
            "{expected} is not in {what:?}"
        );
    }
}

#[test]
fn the_same_inputs_give_the_same_bytes() {
    assert_eq!(
        digest_of_file(&example().image).unwrap(),
        digest_of_file(&example().image).unwrap()
    );
}

#[test]
fn an_image_takes_little_room() {
    use std::os::unix::fs::MetadataExt;
    let on_disk = std::fs::metadata(&example().image).unwrap().blocks() * 512;
    assert!(on_disk < 4 << 20, "{on_disk} bytes");
}

#[test]
fn the_configuration_is_replaced_on_a_larger_disk() {
    let Example { folder, image } = example();
    let copy = folder.path().join("copy.img");
    for text in ["x", &"long ".repeat(2000), ""] {
        with_config(&image, text, &copy, Some(512 << 20)).unwrap();
        assert_eq!(config(&copy), text);
        assert_eq!(std::fs::metadata(&copy).unwrap().len(), 512 << 20);
        assert_eq!(
            read(&copy, Partition::SlotA),
            read(&image, Partition::SlotA)
        );
    }
    assert_eq!(
        config(&image),
        "role = \"branch\"\n",
        "the base is untouched"
    );
}

#[test]
fn the_same_configuration_gives_the_same_image() {
    let Example { folder, image } = example();
    let copies = ["one.img", "two.img"].map(|name| folder.path().join(name));
    for copy in &copies {
        with_config(&image, "role = \"core\"\n", copy, None).unwrap();
    }
    let [one, two] = copies.map(|copy| digest_of_file(&copy).unwrap());
    assert_eq!(one, two);
}

#[test]
fn what_is_no_image_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("noise");
    std::fs::write(&file, vec![9; 1 << 20]).unwrap();
    let error = with_config(&file, "", &folder.path().join("out"), None)
        .unwrap_err()
        .to_string();
    assert!(error.contains("not a disk image"), "{error}");
}

#[test]
fn what_is_too_large_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    assert!(assemble(&vec![1; 35 << 20], "", None, &out).is_err());
    assert!(!out.exists());
    assert!(
        GuestFiles {
            kernel: vec![1; 40 << 20],
            ..guest()
        }
        .slot()
        .is_err()
    );
}

#[test]
fn the_template_says_what_is_missing_and_is_right_once_filled_in() {
    let error = outpost_config::Config::parse(TEMPLATE)
        .unwrap_err()
        .to_string();
    assert!(error.contains("role"), "{error}");
    let key = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    let filled: String = TEMPLATE
        .lines()
        .filter_map(|line| line.strip_prefix("# "))
        .filter(|line| line.starts_with('[') || line.contains(" = "))
        .map(|line| line.replace('…', key) + "\n")
        .filter(|line| !line.starts_with("listen"))
        .collect();
    outpost_config::Config::parse(&filled).unwrap_or_else(|error| panic!("{error}\n{filled}"));
}
