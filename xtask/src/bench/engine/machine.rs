//! The engine's UEFI program in a machine that counts instructions: what it starts from, and what it says on its serial port.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use outpost_engine_bench::{Figures, MARK, log_bytes};

use crate::accel::Accelerator;
use crate::image::volume;
use crate::qemu::{self, Disk, Qemu, Serial, TICKS_PER_INSTRUCTION};
use crate::{firmware, process};

/// The program's package.
const PACKAGE: &str = "outpost-engine-bench";
const MIB: usize = 1 << 20;
/// The machine's memory beside files and logs: firmware, tables, buffers.
const MORE_MEMORY: usize = 256 * MIB;
/// All of the memory lies below the hole for devices.
const MOST_MEMORY: usize = 2048 * MIB;
/// Far beyond what the start needs even on a busy machine, and a MiB.
const START: Duration = Duration::from_secs(180);
const A_MIB: Duration = Duration::from_secs(20);

/// The program, ready to run.
pub struct Machine {
    efi: Vec<u8>,
}

/// What the program found.
#[derive(Debug)]
pub struct Measured {
    /// How far the counter goes for an instruction.
    pub ticks_per_instruction: f64,
    /// The cases, in order.
    pub cases: Vec<Figures>,
}

impl Machine {
    /// Builds the program as the box's binary is built.
    ///
    /// # Errors
    /// It does not compile, or there is no toolchain for it.
    pub fn build() -> Result<Machine> {
        let efi = firmware::build_program(PACKAGE, "the engine's UEFI program")?;
        Ok(Machine { efi })
    }

    /// Runs it once; its files go to `folder`, which is made.
    ///
    /// # Errors
    /// QEMU is not there or fails, the files are too large, the program says that something went wrong, or the user interrupts.
    pub fn measure(&self, old: &[u8], new: &[u8], folder: &Path) -> Result<Measured> {
        let files = old.len() + new.len();
        let memory = files + 2 * log_bytes(old.len(), new.len()) * 17 / 16 + MORE_MEMORY;
        ensure!(
            memory <= MOST_MEMORY,
            "the files have {} MiB together: with the two logs that is more than the {} MiB that the machine can have; take smaller ones",
            files / MIB,
            MOST_MEMORY / MIB
        );
        std::fs::create_dir_all(folder)
            .with_context(|| format!("cannot make {}", folder.display()))?;
        let disk = folder.join("disk.img");
        let bytes = files + self.efi.len() + files / 32 + 40 * MIB;
        let contents = [
            ("EFI/BOOT/BOOTX64.EFI", &self.efi[..]),
            ("OLD", old),
            ("NEW", new),
        ];
        std::fs::write(
            &disk,
            volume(&contents, bytes.next_multiple_of(MIB) as u64)?,
        )
        .with_context(|| format!("cannot write {}", disk.display()))?;

        let serial = folder.join("serial.txt");
        let disk = Disk {
            snapshot: true,
            ..Disk::new(disk)
        };
        let mut machine = Qemu::new("engine", Accelerator::Tcg, disk);
        machine.cpus = 1;
        machine.counts_instructions = true;
        machine.memory_mib = u32::try_from(memory.div_ceil(MIB))?;
        machine.com1 = Serial::File(serial.clone());
        machine.entropy = false;
        machine.exit_on_reset = true;
        let mut qemu = machine.start(folder)?;
        let deadline = Instant::now() + START + A_MIB * u32::try_from(files / MIB)?;
        let status = loop {
            if let Some(status) = qemu.wait_for(Duration::from_millis(200))? {
                break status;
            }
            process::check_interrupted()?;
            if Instant::now() > deadline {
                bail!(
                    "the engine's UEFI program does not come to an end; its serial port said: {}",
                    last_lines(&serial)
                );
            }
        };
        if !status.success() {
            bail!(
                "QEMU ended with {status}: {}",
                qemu::log_of(folder, "engine")
            );
        }
        let text =
            std::fs::read(&serial).with_context(|| format!("cannot read {}", serial.display()))?;
        parse(&String::from_utf8_lossy(&text))
            .with_context(|| format!("the serial port said: {}", last_lines(&serial)))
    }
}

fn last_lines(serial: &Path) -> String {
    let bytes = std::fs::read(serial).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let text = console::strip_ansi_codes(&text);
    let lines: Vec<&str> = text
        .lines()
        .map(str::trim)
        .filter(|it| !it.is_empty())
        .collect();
    lines[lines.len().saturating_sub(8)..].join(" | ")
}

/// Reads what the program said. The firmware's own lines are passed over.
fn parse(text: &str) -> Result<Measured> {
    let mut cases = Vec::new();
    let mut ticks_per_instruction = None;
    for line in text.lines() {
        let Some((_, said)) = line.split_once(MARK) else {
            continue;
        };
        let said = said.trim();
        if let Ok(figures) = said.parse::<Figures>() {
            cases.push(Figures {
                encoding: figures.encoding / TICKS_PER_INSTRUCTION,
                decoding: figures.decoding / TICKS_PER_INSTRUCTION,
                ..figures
            });
        } else if let Some((ticks, instructions)) = said
            .strip_prefix("ticks ")
            .and_then(|numbers| numbers.split_once(' '))
        {
            let (ticks, instructions): (f64, f64) = (ticks.parse()?, instructions.parse()?);
            let ratio = ticks / instructions;
            let expected = TICKS_PER_INSTRUCTION as f64;
            // Whatever else it counts, it is not instructions.
            ensure!(
                (0.99..1.01).contains(&(ratio / expected)),
                "the machine's clock goes on by {ratio:.3} for an instruction, not by {expected}: this QEMU counts in another way"
            );
            ticks_per_instruction = Some(ratio);
        } else if said == "end" {
            return Ok(Measured {
                ticks_per_instruction: ticks_per_instruction
                    .context("the engine's UEFI program does not say how its clock runs")?,
                cases,
            });
        } else {
            bail!("the engine's UEFI program failed: {said}");
        }
    }
    bail!("the engine's UEFI program did not come to its end")
}

#[cfg(test)]
mod tests {
    use super::*;
    use outpost_engine_bench::Case;

    #[test]
    fn the_programs_lines_are_found_among_the_firmwares() {
        let text = "\x1b[2JBdsDxe: starting\r\n\r\nengine-bench: ticks 64000128 2000000\r\n\
                    engine-bench: cold 100 50 8 6400 3200\r\n\r\nengine-bench: end\r\n";
        let measured = parse(text).unwrap();
        assert_eq!(measured.ticks_per_instruction, 32.000064);
        let [cold] = &measured.cases[..] else {
            panic!("{measured:?}");
        };
        assert_eq!((cold.case, cold.line, cold.decoding), (Case::Cold, 50, 100));
    }

    #[test]
    fn what_went_wrong_is_said() {
        for (text, error) in [
            ("engine-bench: error: cannot read OLD", "cannot read OLD"),
            ("engine-bench: panic: at line 3", "panic: at line 3"),
            ("engine-bench: ticks 5000000 2000000", "2.500"),
            ("engine-bench: cold 1 1 1 1 1", "did not come to its end"),
            ("engine-bench: end", "how its clock runs"),
            ("Shell> ", "did not come to its end"),
        ] {
            let message = parse(text).unwrap_err().to_string();
            assert!(message.contains(error), "{message}");
        }
    }
}
