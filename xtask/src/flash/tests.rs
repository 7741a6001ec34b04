//! Flashing files and, as root, loop devices.

use std::io::{Read, Seek, SeekFrom, Write};

use super::*;

struct Stage {
    folder: tempfile::TempDir,
    image: PathBuf,
}

fn stage() -> Stage {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("outpost.img");
    image::assemble(&[0x90; 100_000], "", None, &image).unwrap();
    Stage { folder, image }
}

fn arguments(device: &Path, image: &Path) -> Args {
    Args {
        device: device.into(),
        image: Some(image.into()),
        config: None,
        yes: true,
        allow_fixed: false,
        allow_mounted: false,
    }
}

/// A file of `bytes` full of something else.
fn disk(path: &Path, bytes: u64) {
    let mut file = std::fs::File::create(path).unwrap();
    file.write_all(&[0xaa; 1 << 20]).unwrap();
    file.set_len(bytes).unwrap();
    file.seek(SeekFrom::Start(bytes - 4096)).unwrap();
    file.write_all(&[0xaa; 4096]).unwrap();
}

fn check_written(device: &Path, image: &Path, bytes: u64) {
    let expected = std::fs::read(image).unwrap();
    let mut file = std::fs::File::open(device).unwrap();
    let mut found = vec![0; expected.len()];
    file.read_exact(&mut found).unwrap();
    assert!(found == expected, "the device holds the image");
    file.seek(SeekFrom::Start(bytes - 4096)).unwrap();
    let mut tail = Vec::new();
    file.read_to_end(&mut tail).unwrap();
    assert!(
        tail.iter().all(|&byte| byte == 0),
        "the old backup table is gone"
    );
}

#[test]
fn a_file_is_written_and_verified() {
    let Stage { folder, image } = stage();
    let device = folder.path().join("disk");
    disk(&device, 200 << 20);
    run(&arguments(&device, &image)).unwrap();
    check_written(&device, &image, 200 << 20);
}

#[test]
fn a_difference_is_found() {
    let Stage { folder, image } = stage();
    let device = folder.path().join("disk");
    disk(&device, 200 << 20);
    let target = Target::inspect(&device).unwrap();
    write::write(&image, &target, false).unwrap();
    write::verify(&image, &target).unwrap();
    let mut file = std::fs::File::options().write(true).open(&device).unwrap();
    file.seek(SeekFrom::Start(70_000_003)).unwrap();
    file.write_all(&[1]).unwrap();
    let error = write::verify(&image, &target).unwrap_err().to_string();
    assert!(error.contains("byte 70000003"), "{error}");
}

#[test]
fn refusals_say_what_to_do() {
    let Stage { folder, image } = stage();
    let device = folder.path().join("disk");
    disk(&device, 100 << 20);
    let refused = |arguments: &Args| run(arguments).unwrap_err().to_string();
    assert!(
        refused(&arguments(&device, &image)).contains("the image needs"),
        "too small"
    );
    assert!(refused(&arguments(Path::new("/dev/no-such-disk"), &image)).contains("lsblk"));
    assert!(
        refused(&arguments(Path::new("/dev/null"), &image)).contains("neither a disk nor a file")
    );
    disk(&device, 200 << 20);
    assert!(
        refused(&Args {
            yes: false,
            ..arguments(&device, &image)
        })
        .contains("--yes")
            || std::io::stdin().is_terminal()
    );
    assert!(refused(&arguments(&device, &device)).contains("not a disk image"));

    let target = Target::inspect(&device).unwrap();
    let check = |target: &Target, arguments: &Args| {
        check(target, arguments).map_err(|error| error.to_string())
    };
    let plain = arguments(&device, &image);
    let fixed = Target {
        removable: false,
        ..target.clone()
    };
    assert!(check(&fixed, &plain).unwrap_err().contains("--allow-fixed"));
    check(
        &fixed,
        &Args {
            allow_fixed: true,
            ..arguments(&device, &image)
        },
    )
    .unwrap();
    let mounted = Target {
        uses: vec!["sdz1 is mounted at /media".into()],
        ..target.clone()
    };
    let error = check(&mounted, &plain).unwrap_err();
    assert!(
        error.contains("/media") && error.contains("--allow-mounted"),
        "{error}"
    );
    check(
        &mounted,
        &Args {
            allow_mounted: true,
            ..arguments(&device, &image)
        },
    )
    .unwrap();
    let partition = Target {
        partition_of: Some("sdz".into()),
        ..target
    };
    assert!(
        check(&partition, &plain)
            .unwrap_err()
            .contains("name /dev/sdz")
    );
}

/// A loop device over a file, detached when dropped.
struct Loop(PathBuf);

impl Loop {
    fn attach(file: &Path) -> Option<Loop> {
        if !nix::unistd::geteuid().is_root() {
            return None;
        }
        let mut command = process::command("losetup").ok()?;
        command.args(["--find", "--show"]).arg(file);
        let output = process::output(command, "losetup").ok()?;
        Some(Loop(String::from_utf8(output).ok()?.trim().into()))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        if let Ok(mut command) = process::command("losetup") {
            command.arg("--detach").arg(&self.0);
            let _ = process::output(command, "losetup");
        }
    }
}

#[test]
fn a_loop_device_is_written_only_when_told_that_it_is_fixed() {
    let Stage { folder, image } = stage();
    let backing = folder.path().join("disk");
    disk(&backing, 200 << 20);
    let Some(device) = Loop::attach(&backing) else {
        eprintln!("skipped: no loop devices here");
        return;
    };
    let error = run(&arguments(&device.0, &image)).unwrap_err().to_string();
    assert!(error.contains("--allow-fixed"), "{error}");
    run(&Args {
        allow_fixed: true,
        ..arguments(&device.0, &image)
    })
    .unwrap();
    check_written(&device.0, &image, 200 << 20);
}
