//! `cargo xtask boot --once` as a user runs it: what is on stdout, what on stderr, and the exit status.

use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};

use super::Trial;
use crate::process::{self, Process};

/// What a run left.
struct Run {
    status: Option<i32>,
    stdout: String,
    stderr: String,
}

/// Runs the command with these words and waits for its end.
fn once(trial: &Trial<'_>, words: &[&str]) -> Result<Run> {
    once_until(trial, words, |_, _| Ok(()))
}

/// The same; `meanwhile` is given the process, and the file for its stdout.
fn once_until(
    trial: &Trial<'_>,
    words: &[&str],
    meanwhile: impl FnOnce(&Process, &Path) -> Result<()>,
) -> Result<Run> {
    let (out, err) = (trial.folder.join("out.log"), trial.folder.join("err.log"));
    let program = std::env::current_exe().context("cannot find this program")?;
    let mut command = process::command(program)?;
    command
        .args(["boot", "--once"])
        .args(words)
        .stdin(std::process::Stdio::null())
        .stdout(std::fs::File::create(&out)?)
        .stderr(std::fs::File::create(&err)?);
    let mut process = Process::start(command, "cargo xtask boot --once")?;
    meanwhile(&process, &out)?;
    let left = trial.deadline.saturating_duration_since(Instant::now());
    let status = process
        .wait_for(left)?
        .context("boot --once did not come to an end")?;
    let text = |path: &Path| -> Result<String> {
        Ok(String::from_utf8_lossy(&std::fs::read(path)?).into_owned())
    };
    Ok(Run {
        status: status.code(),
        stdout: text(&out)?,
        stderr: text(&err)?,
    })
}

impl Run {
    fn must_be(&self, what: &str, status: i32, stdout: &str, in_stderr: &str) -> Result<()> {
        ensure!(
            self.status == Some(status) && self.stdout == stdout && self.stderr.contains(in_stderr),
            "{what}: status {:?} instead of {status}, stdout {:?} instead of {stdout:?}, stderr without {in_stderr:?}: {}",
            self.status,
            self.stdout,
            self.stderr
        );
        Ok(())
    }
}

/// Ctrl-C while the guest runs: the command ends with 130 (128 + SIGINT).
fn interrupted(trial: &Trial<'_>, kernel: &str) -> Result<()> {
    const SPINS: &str = "spinning with interrupts off";
    let words = ["--guest-kernel", kernel, "--guest-cmdline", "spin"];
    let run = once_until(trial, &words, |process, out| {
        while !std::fs::read_to_string(out)?.contains(SPINS) {
            process::check_interrupted()?;
            ensure!(Instant::now() < trial.deadline, "the guest does not spin");
            std::thread::sleep(Duration::from_millis(50));
        }
        kill(process.id(), Signal::SIGINT).context("cannot interrupt boot --once")
    })?;
    ensure!(
        run.status == Some(130),
        "interrupted: status {:?} instead of 130, {}",
        run.status,
        run.stderr
    );
    Ok(())
}

/// A bzImage with an initial ramdisk: its first process switches the machine off, or resets it, which is no success.
fn linux(trial: &Trial<'_>) -> Result<()> {
    let guest = &trial.stage.directory;
    let ramdisk = guest
        .ramdisk
        .as_deref()
        .context("the guest has no ramdisk")?;
    let [kernel, module] =
        [("vmlinuz", &*guest.kernel), ("initrd", ramdisk)].map(|(name, bytes)| {
            let path = trial.folder.join(name);
            std::fs::write(&path, bytes).map(|()| path.display().to_string())
        });
    let (kernel, module) = (kernel?, module?);
    for (does, status, says) in [
        ("poweroff -f", 0, "reboot: Power down"),
        ("reboot -f", 1, "reboot: Restarting system"),
    ] {
        let words = format!(
            "console=ttyS0 quiet panic=-1 tsc=reliable pci=noearly rdinit=/bin/busybox -- {does}"
        );
        let run = once(
            trial,
            &[
                "--guest-kernel",
                &kernel,
                "--module",
                &module,
                "--guest-cmdline",
                &words,
            ],
        )?;
        ensure!(
            run.status == Some(status) && run.stdout.contains(says),
            "Linux, {does}: status {:?} instead of {status}, stdout {:?}, {}",
            run.status,
            run.stdout,
            run.stderr
        );
    }
    Ok(())
}

/// The test: one use after another, as a person would.
pub fn once_command(trial: &mut Trial<'_>) -> Result<()> {
    const INIT: &str = "outpost-guest: init\n";
    let file = |name: &str| trial.folder.join(name).display().to_string();
    let kernel = file("probe.elf");
    std::fs::write(&kernel, &trial.stage.probe.kernel)?;
    let probe = |words: &[&str]| {
        let mut all = vec!["--guest-kernel", kernel.as_str()];
        all.extend(words);
        once(trial, &all)
    };

    probe(&["--guest-cmdline", "exit 42"])?.must_be("exit 42", 85, INIT, "")?;
    // The status is the low byte, as from QEMU.
    probe(&["--guest-cmdline", "exit 128"])?.must_be("exit 128", 1, INIT, "")?;
    probe(&["--guest-cmdline", "triple-fault"])?.must_be(
        "triple-fault",
        1,
        INIT,
        "triple fault",
    )?;
    let run = probe(&["--guest-cmdline", "spin", "--timeout", "20"])?;
    ensure!(
        run.status == Some(124) && run.stderr.contains("20 s") && run.stdout.starts_with(INIT),
        "a guest without an end: status {:?}, stdout {:?}, {}",
        run.status,
        run.stdout,
        run.stderr
    );
    let run = probe(&["--guest-cmdline", "smp 2", "--vcpus", "2", "--memory", "96"])?;
    ensure!(
        run.status == Some(1) && run.stdout.contains("smp: 2 cpus, ipis ok (x2APIC)"),
        "two vCPUs: status {:?}, stdout {:?}, {}",
        run.status,
        run.stdout,
        run.stderr
    );
    interrupted(trial, &kernel)?;
    // What the box would not take is said at once, and not waited for.
    probe(&["--guest-cmdline", "spin", "--memory", "8"])?.must_be(
        "too little memory",
        1,
        "",
        "a guest does not start in 8 MiB",
    )?;
    probe(&["--guest-cmdline", "spin", "--vcpus", "17"])?.must_be("too many vCPUs", 2, "", "17")?;

    // What it has its paravirtual console write is not its serial port's.
    let run = probe(&["--guest-cmdline", "nowhere"])?;
    ensure!(
        run.status == Some(1)
            && run.stdout.starts_with(INIT)
            && run.stdout.ends_with("probe: nowhere: passed\n")
            && !run.stdout.contains('\0'),
        "queues without memory: status {:?}, stdout {:?}",
        run.status,
        run.stdout
    );

    linux(trial)?;

    let modules = [("first", "alpha"), ("second", "beta beta")];
    let mut words = vec![
        "--guest-cmdline".to_owned(),
        "modules -- as  given".to_owned(),
    ];
    // The command line is the user's, to the letter.
    let mut expected = format!("{INIT}probe: command line: modules -- as  given\n");
    for (index, (name, bytes)) in modules.into_iter().enumerate() {
        std::fs::write(file(name), bytes)?;
        let text = match index {
            0 => file(name),
            _ => format!("{} with words", file(name)),
        };
        let sum: u32 = bytes.bytes().map(u32::from).sum();
        writeln!(
            expected,
            "probe: module {text}: length {}, sum {sum}",
            bytes.len()
        )?;
        words.extend(["--module".to_owned(), text]);
    }
    expected.push_str("probe: modules: passed\n");
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    probe(&words)?.must_be("modules", 1, &expected, "")?;

    let other = file("text");
    std::fs::write(&other, "not a kernel")?;
    once(trial, &["--guest-kernel", &other])?.must_be(
        "a file of another kind",
        1,
        "",
        "neither a bzImage nor",
    )?;
    let cut = file("cut.elf");
    let half = trial.stage.probe.kernel.len() / 2;
    std::fs::write(
        &cut,
        trial.stage.probe.kernel.get(..half).unwrap_or_default(),
    )?;
    once(trial, &["--guest-kernel", &cut])?.must_be("half a kernel", 1, "", "cut short")?;
    let none = file("none");
    once(trial, &["--guest-kernel", &none])?.must_be("no kernel", 1, "", &none)
}
