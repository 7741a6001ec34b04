//! `cargo xtask bench engine`: the dedup engine as the box has it, soft-float, beside the same code on the host: the same bytes on
//! the line, and the instructions that each byte costs. Nothing is timed, so the same inputs give the same figures anywhere.

mod callgrind;
mod inputs;
mod machine;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use outpost_engine_bench::Figures;

use super::report::{Limit, Report, Row};
use crate::process::{self, Scratch};
use crate::progress;
use crate::setup::{self, Group};

pub use inputs::generated;
pub use machine::{Machine, Measured};

/// `cargo xtask bench engine`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Two versions of something [default: 8 MiB of text and records, and an edited version, the same every time]
    #[arg(long, num_args = 2, value_names = ["OLD", "NEW"])]
    pair: Option<Vec<PathBuf>>,
    /// Count the host's instructions as well (with Valgrind's callgrind, which takes a minute or more)
    #[arg(long)]
    callgrind: bool,
    /// Also write the rows to this file, as JSON
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

/// Bytes of each of the two files that are made up.
const GENERATED_BYTES: usize = 8 << 20;

/// What two runs of the same may differ by, in per cent.
const MOST_DIFFERENCE: f64 = 0.1;

/// Runs the command.
///
/// # Errors
/// It could not be measured, or the report cannot be written.
pub fn run(arguments: &Args) -> Result<bool> {
    if arguments.callgrind {
        callgrind::check()?;
    }
    let (old, new) = match arguments.pair.as_deref() {
        Some([old, new]) => (read(old)?, read(new)?),
        _ => generated(1, GENERATED_BYTES),
    };
    setup::ensure(&[Group::Emulator, Group::FirmwareToolchain])?;
    let machine = Machine::build()?;
    let scratch = Scratch::new("engine")?;

    let spinner = progress::spinner("Running the engine on the host");
    let host = on_host(&old, &new)?;
    spinner.finish_and_clear();
    let spinner = progress::spinner("Running the engine in the emulator, twice");
    let box_ = machine.measure(&old, &new, &scratch.path().join("one"))?;
    process::check_interrupted()?;
    let again = machine.measure(&old, &new, &scratch.path().join("two"))?;
    spinner.finish_and_clear();
    let callgrind = match arguments.callgrind {
        true => {
            let counted = callgrind::count(&old, &new, scratch.path())?;
            ensure!(
                counted.len() == host.len(),
                "callgrind counted {} cases of {}",
                counted.len(),
                host.len()
            );
            Some(counted)
        }
        false => None,
    };

    println!(
        "OLD has {} bytes, NEW {}. UEFI program, soft-float, in QEMU's translator, which counts instructions (`rep` counts each repetition).",
        old.len(),
        new.len()
    );
    let mut report = Report::new("engine");
    report.add(Row::new(
        "clock ticks for an instruction, by a loop of known length",
        "1",
        box_.ticks_per_instruction,
    ));
    ensure!(
        box_.cases.len() == host.len() && again.cases.len() == host.len(),
        "the UEFI program did other cases than the host"
    );
    for (index, (here, there)) in box_.cases.iter().zip(&host).enumerate() {
        let counted = callgrind.as_ref().and_then(|all| all.get(index));
        case(here, there, counted, &mut report);
    }
    report.add(
        Row::new(
            "instructions: the most that a second run differs by",
            "%",
            difference(&box_, &again),
        )
        .limited(Limit::AtMost(MOST_DIFFERENCE)),
    );
    report.finish(arguments.report.as_deref())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    if bytes.is_empty() {
        bail!("{} is empty", path.display());
    }
    Ok(bytes)
}

/// The same cases in this program. Its instructions are not counted.
///
/// # Errors
/// The engine broke its promise.
pub fn on_host(old: &[u8], new: &[u8]) -> Result<Vec<Figures>> {
    let mut all = Vec::new();
    outpost_engine_bench::run(old, new, &mut || 0, &mut |figures| all.push(figures))?;
    Ok(all)
}

fn case(here: &Figures, host: &Figures, counted: Option<&(u64, u64)>, report: &mut Report) {
    let name = here.case.name();
    for (what, value, same) in [
        ("bytes on the line", here.line, host.line),
        ("bytes of confirmations", here.back, host.back),
    ] {
        report.add(
            Row::new(
                format!("{name}, {} bytes: {what}", here.bytes),
                "B",
                value as f64,
            )
            .beside("host", same as f64)
            .limited(Limit::Equal(same as f64)),
        );
    }
    let a_byte = |count: u64| count as f64 / here.bytes.max(1) as f64;
    for (what, count, native) in [
        ("encode", here.encoding, counted.map(|it| it.0)),
        ("decode", here.decoding, counted.map(|it| it.1)),
    ] {
        let row = Row::new(
            format!("{name}: instructions to {what} a byte"),
            "1/B",
            a_byte(count),
        );
        report.add(match native {
            Some(native) => row.beside("host by callgrind", a_byte(native)),
            None => row,
        });
    }
}

/// The most that a count of one run differs from the other's, in per cent.
fn difference(one: &Measured, other: &Measured) -> f64 {
    one.cases
        .iter()
        .zip(&other.cases)
        .flat_map(|(a, b)| [(a.encoding, b.encoding), (a.decoding, b.decoding)])
        .map(|(a, b)| 100.0 * a.abs_diff(b) as f64 / a.max(1) as f64)
        .fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_number_of_bytes_than_the_hosts_does_not_hold() {
        let figures = Figures {
            case: outpost_engine_bench::Case::Cold,
            bytes: 1000,
            line: 300,
            back: 20,
            encoding: 50_000,
            decoding: 4_000,
        };
        let holds = |here: Figures| {
            let mut report = Report::new("engine");
            case(&here, &figures, None, &mut report);
            report.finish(None).unwrap()
        };
        assert!(holds(figures));
        assert!(!holds(Figures {
            line: 301,
            ..figures
        }));
        assert!(!holds(Figures {
            back: 19,
            ..figures
        }));
    }

    #[test]
    fn the_largest_difference_counts() {
        let figures = |encoding, decoding| Figures {
            case: outpost_engine_bench::Case::Cold,
            bytes: 1,
            line: 1,
            back: 1,
            encoding,
            decoding,
        };
        let measured = |cases| Measured {
            ticks_per_instruction: 1.0,
            cases,
        };
        let one = measured(vec![figures(100, 200), figures(100, 100)]);
        let other = measured(vec![figures(101, 200), figures(100, 95)]);
        assert_eq!(difference(&one, &other), 5.0);
        assert_eq!(difference(&one, &one), 0.0);
    }
}
