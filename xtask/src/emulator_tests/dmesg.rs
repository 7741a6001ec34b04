//! What Debian's stock kernel logs in a box, beside what the same kernel with the same ramdisk and command line logs on QEMU's own q35.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};

use super::Trial;
use crate::bench::hv::ways::{self, Bench, Running, Way};
use crate::image;
use crate::process;

const GUEST: &str = "stock";
const VCPUS: u8 = 2;
const MEMORY_MIB: u32 = 512;
/// The last level that is a warning (the kernel's include/linux/kern_levels.h).
const WARNING: u8 = 4;

/// Warnings that tell nothing but how fast this machine emulated the guest at a moment: no test goes by the clock. It has more emulated CPUs than this machine may
/// have, and one that is not run for a while within an interrupt makes this one.
const BY_THE_CLOCK: [&str; 1] = ["hrtimer: interrupt took # ns"];

/// A line of the kernel's log.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Line {
    level: u8,
    text: String,
}

/// A line as the guest prints it: `dmesg: <level>[time] text`, where lines that a process wrote have a facility in the level.
fn parse(line: &str) -> Option<Line> {
    let (level, rest) = line.trim().strip_prefix("dmesg: <")?.split_once('>')?;
    let text = match rest.trim_start().strip_prefix('[') {
        Some(rest) => rest.split_once(']').map_or(rest, |(_, text)| text),
        None => rest,
    };
    Some(Line {
        level: level.parse().ok()?,
        text: text.trim().to_owned(),
    })
}

/// The kernel's log to the end, and what the guest says of its devices.
fn log_of(running: &mut Running, deadline: Instant) -> Result<(Vec<Line>, Vec<String>)> {
    running
        .guest
        .set_read_timeout(Some(Duration::from_secs(1)))?;
    let mut reader = BufReader::new(running.guest.try_clone()?);
    let (mut lines, mut says, mut bytes) = (Vec::new(), Vec::new(), Vec::new());
    loop {
        process::check_interrupted()?;
        ensure!(
            Instant::now() < deadline,
            "the guest does not come to an end; the box says:\n{}",
            running.console()
        );
        match reader.read_until(b'\n', &mut bytes) {
            Ok(0) => bail!(
                "the guest ended early; QEMU says: {}; the box says:\n{}",
                running.log(),
                running.console()
            ),
            Ok(_) => {
                let line = String::from_utf8_lossy(&bytes).into_owned();
                bytes.clear();
                ensure!(!line.contains("cannot load"), "the guest says: {line}");
                if line.contains("stock: end") {
                    return Ok((lines, says));
                }
                says.extend(line.trim().strip_prefix("stock: ").map(str::to_owned));
                lines.extend(parse(&line));
            }
            Err(error)
                if matches!(
                    error.kind(),
                    std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
                ) => {}
            Err(error) => return Err(error).context("the guest's serial port"),
        }
    }
}

/// Numbers differ from machine to machine: addresses, counts, times.
fn without_numbers(text: &str) -> String {
    let mut words = Vec::new();
    for word in text.split(' ') {
        let is_number = word.chars().any(|character| character.is_ascii_digit());
        words.push(if is_number { "#" } else { word });
    }
    words.join(" ")
}

/// Errors and warnings of `ours` that `theirs` does not have, but for those [`BY_THE_CLOCK`].
fn surplus(ours: &[Line], theirs: &[Line]) -> Vec<String> {
    let known: BTreeSet<String> = theirs
        .iter()
        .map(|line| without_numbers(&line.text))
        .chain(BY_THE_CLOCK.map(str::to_owned))
        .collect();
    ours.iter()
        .filter(|line| line.level <= WARNING && !known.contains(&without_numbers(&line.text)))
        .map(|line| format!("<{}> {}", line.level, line.text))
        .collect()
}

/// What makes no line in the kernel's log when it is missing: each device has its driver, random numbers come from the box's, and the clock has the time of day.
fn devices_work(says: &[String]) -> Result<()> {
    const HAS: &str = "has block/vda net/eth0 tty/hvc0 watchdog/watchdog0";
    const RNG: &str = "rng virtio_rng.0 gave 16";
    /// Whatever this machine's clock is set to, the firmware's is that within this.
    const SECONDS: u64 = 3600;
    for line in [HAS, RNG] {
        ensure!(
            says.iter().any(|it| it == line),
            "{line:?} is not in {says:?}"
        );
    }
    let rtc = says.iter().find_map(|it| it.strip_prefix("rtc rtc_cmos "));
    // Behind the driver's name stands the device's.
    let rtc: u64 = rtc
        .and_then(|words| words.split(' ').nth(1)?.parse().ok())
        .with_context(|| format!("no RTC with a time in {says:?}"))?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    ensure!(
        rtc.abs_diff(now) < SECONDS,
        "the guest's RTC says {rtc} s since 1970, and it is {now}"
    );
    Ok(())
}

/// The test.
pub fn stock_kernel(trial: &mut Trial<'_>) -> Result<()> {
    let guest = image::guest_files(GUEST)?.context("the stock guest has no files")?;
    let image = trial.folder.join("stock.img");
    image::build_with(Some(guest.clone()), None, Some(&image))?;
    let bench = Bench {
        direct_cmdline: guest.command_line.clone(),
        guest,
        kvm: None,
        image,
        config: ways::box_config(GUEST, VCPUS, MEMORY_MIB, None)?,
        // One for the box, so that the guest's are of their own.
        cpus: VCPUS + 1,
        vcpus: VCPUS,
        memory: MEMORY_MIB,
        cpu_features: Vec::new(),
    };
    let mut logs = Vec::new();
    for way in [Way::Direct, Way::Outpost] {
        let mut running = bench.start(way)?;
        let (log, says) = log_of(&mut running, trial.deadline).with_context(|| way.name())?;
        if way == Way::Outpost {
            devices_work(&says)?;
        }
        let text: String = log
            .iter()
            .map(|line| format!("<{}> {}\n", line.level, line.text))
            .collect();
        std::fs::write(trial.folder.join(format!("{}.log", way.name())), text)?;
        ensure!(
            log.len() > 100,
            "{}: only {} lines of a kernel's log",
            way.name(),
            log.len()
        );
        logs.push(log);
    }
    let [theirs, ours] = logs.as_slice() else {
        bail!("two logs were wanted");
    };
    let surplus = surplus(ours, theirs);
    ensure!(
        surplus.is_empty(),
        "in a box the kernel warns of what it does not warn of on QEMU's q35:\n{}",
        surplus.join("\n")
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_have_a_level_and_no_time() {
        let line = parse("dmesg: <4>[    0.123456] ACPI: bad thing at 0xe0\r").unwrap();
        assert_eq!(
            (line.level, line.text.as_str()),
            (4, "ACPI: bad thing at 0xe0")
        );
        assert_eq!(parse("dmesg: <12>hello").unwrap().level, 12);
        assert_eq!(parse("stock: 6.1.0"), None);
        assert_eq!(parse("dmesg: no level"), None);
    }

    #[test]
    fn only_what_the_other_does_not_warn_of_counts() {
        let line = |level, text: &str| Line {
            level,
            text: text.to_owned(),
        };
        let theirs = [line(4, "clock is 12 ppm off"), line(6, "fine")];
        let ours = [
            line(4, "clock is 900 ppm off"),
            line(6, "news"),
            line(3, "no mouse"),
            line(12, "a process said so"),
            line(4, "hrtimer: interrupt took 173860509 ns"),
        ];
        assert_eq!(surplus(&ours, &theirs), ["<3> no mouse"]);
        assert!(surplus(&theirs, &ours).is_empty());
    }
}
