//! `cargo xtask bench bytes`: bytes on the line and what they cost in CPU time, of two `outpost-peer` programs on this machine,
//! beside zstd on the same bytes in the same run. docs/bench.md explains the rows.

mod inputs;
mod many;
mod offices;
mod relay;
mod zstd;

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};

use self::inputs::Pair;
use self::many::MANY;
use self::offices::{Line, Measured, Offices};
use super::report::{Limit, Report, Row};
use crate::setup::{self, Group};
use crate::{paths, process, progress};

const MIB: f64 = (1 << 20) as f64;
const NOISE_BYTES: usize = 64 << 20;
/// `zstd -1` on one thread, among the speeds.
const Z: &str = "Z";
const SEED: u64 = 20_260_401;
/// A line of which the CPU is no match for: effort is to rise to what it can.
const SLOW_BITS_PER_SECOND: u64 = 20_000_000;

/// `cargo xtask bench bytes`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Two files of your own instead of the published ones: the second is the next version of the first
    #[arg(long, num_args = 2, value_names = ["OLD", "NEW"])]
    pair: Option<Vec<PathBuf>>,
    /// One half only
    #[arg(long, value_enum)]
    only: Option<Half>,
    /// How often each speed is measured; the median counts, for zstd's too
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Leave out zstd -19, which takes minutes
    #[arg(long)]
    quick: bool,
    /// Also write the rows to this file, as JSON
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

/// A half of the benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Half {
    /// Bytes on the line
    Bytes,
    /// Payload for each CPU-second
    Speed,
}

/// Everything that a case needs.
struct Bench<'a> {
    arguments: &'a Args,
    program: PathBuf,
    report: Report,
}

/// Runs the command.
///
/// # Errors
/// An input cannot be had, a program fails, wrong bytes came out, or the report cannot be written.
pub fn run(arguments: &Args) -> Result<bool> {
    setup::ensure(&[Group::Bench])?;
    let directory = paths::output()?.join("bench");
    std::fs::create_dir_all(&directory)?;
    let own = match arguments.pair.as_deref() {
        Some([old, new]) => Some(inputs::own(old, new)?),
        _ => None,
    };
    let pairs = match &own {
        Some(pair) => vec![pair.clone()],
        None => vec![
            inputs::typescript(&directory)?,
            inputs::numpy(&directory)?,
            inputs::windows_sys(&directory)?,
            inputs::sqlite(&directory, SEED)?,
        ],
    };
    let mut bench = Bench {
        arguments,
        program: build()?,
        report: Report::new("bytes"),
    };
    if arguments.only != Some(Half::Speed) {
        println!("Bytes on the line: whole IP packets, both directions");
        for pair in &pairs {
            bench.pair_bytes(pair)?;
        }
        if own.is_none() {
            bench.noise_bytes()?;
        }
        if let [first, ..] = pairs.as_slice() {
            bench.small_bytes(first)?;
        }
    }
    if arguments.only != Some(Half::Bytes) {
        bench.speed(&pairs, own.is_none())?;
    }
    bench.report.finish(arguments.report.as_deref())
}

/// Builds `outpost-peer` and gives its path.
fn build() -> Result<PathBuf> {
    let spinner = progress::spinner("building outpost-peer");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = process::command(cargo)?;
    command
        .args(["build", "--release", "--quiet", "-p", "outpost-peer"])
        .current_dir(paths::workspace())
        .stdin(Stdio::null());
    process::output(command, "building outpost-peer")?;
    spinner.finish_and_clear();
    let program = paths::target().join("release/outpost-peer");
    ensure!(
        program.is_file(),
        "cargo built no {}; is another build directory configured than CARGO_TARGET_DIR says?",
        program.display()
    );
    Ok(program)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// A row of bytes on the line, beside `peer`'s bytes.
fn bytes_row(name: String, measured: Measured, peer: &str, bytes: u64) -> Row {
    let line = measured.line.unwrap_or_default();
    Row::new(name, "bytes", line as f64).beside(peer, bytes as f64)
}

/// A row of bytes on the line for 100 of payload.
fn percent_row(name: String, measured: Measured, limit: f64) -> Row {
    Row::new(name, "%", measured.percent()).limited(Limit::AtMost(limit))
}

impl Bench<'_> {
    fn counted(&self) -> Result<Offices> {
        Offices::new(&self.program, Line::Counted(None))
    }

    fn pair_bytes(&mut self, pair: &Pair) -> Result<()> {
        let name = &pair.name;
        let (old, new) = (read(&pair.old)?, read(&pair.new)?);
        let mut offices = self.counted()?;
        let cold = offices.carry(&[&old], false)?;
        let zstd = zstd::size(3, &pair.old)?;
        self.report.add(
            bytes_row(format!("{name}: cold"), cold, "zstd -3", zstd)
                .limited_by_ratio(Limit::AtMost(1.15)),
        );
        let again = offices.carry(&[&old], false)?;
        self.report
            .add(percent_row(format!("{name}: the same again"), again, 0.1));
        let next = offices.carry(&[&new], false)?;
        self.next_rows(pair, next)?;
        let again = offices.carry(&[&new], false)?;
        self.report.add(percent_row(
            format!("{name}: next version, again"),
            again,
            0.1,
        ));
        let shifted = [b"x".as_slice(), &new].concat();
        let shifted = offices.carry(&[&shifted], false)?;
        self.report.add(percent_row(
            format!("{name}: next version, shifted by one byte"),
            shifted,
            0.1,
        ));
        self.memory_rows(name, &offices)?;
        let before = offices.line_bytes();
        offices.restart(&self.program)?;
        let restarted = offices.carry_since(before, &[&new], false)?;
        self.report.add(percent_row(
            format!("{name}: again after both ends were restarted"),
            restarted,
            0.1,
        ));
        let pages = offices.carry(&[&inputs::rewrite_pages(&new, SEED)], false)?;
        self.report.add(percent_row(
            format!("{name}: 1% of its 4 KiB pages rewritten"),
            pages,
            1.3,
        ));
        drop(offices);
        let mut offices = Offices::new(&self.program, Line::Counted(Some(SLOW_BITS_PER_SECOND)))?;
        let slow = offices.carry(&[&old], false)?;
        self.report.add(
            bytes_row(format!("{name}: cold, at 20 Mbit/s"), slow, "zstd -3", zstd)
                .limited_by_ratio(Limit::AtMost(1.15)),
        );
        Ok(())
    }

    /// The next version, beside what zstd makes of it with the old one at hand.
    fn next_rows(&mut self, pair: &Pair, next: Measured) -> Result<()> {
        let name = format!("{}: next version", pair.name);
        let limit = match pair.name.as_str() {
            "typescript" => Some(1.4),
            "numpy" => Some(0.4),
            _ => None,
        };
        let patch = zstd::patch_size(3, &pair.old, &pair.new)?;
        let row = bytes_row(name.clone(), next, "zstd -3 --long=31 --patch-from", patch);
        self.report.add(match limit {
            Some(limit) => row.limited_by_ratio(Limit::AtMost(limit)),
            None => row,
        });
        if !self.arguments.quick {
            let spinner = progress::spinner("zstd -19 --long=31 --patch-from");
            let patch = zstd::patch_size(19, &pair.old, &pair.new)?;
            spinner.finish_and_clear();
            self.report.add(bytes_row(
                name,
                next,
                "zstd -19 --long=31 --patch-from",
                patch,
            ));
        }
        Ok(())
    }

    /// What the dictionaries take of memory, and whether the programs count their bytes as the line does.
    fn memory_rows(&mut self, name: &str, offices: &Offices) -> Result<()> {
        let metrics = offices.metrics()?;
        let of = |metric: &str| {
            let found = metrics
                .iter()
                .find(|(sample, _)| sample.starts_with(metric));
            found
                .map(|(_, value)| *value as f64)
                .with_context(|| format!("there is no {metric} on /metrics"))
        };
        // One direction's log is half of it, and only the sender of a log has an index over it.
        let log = of("outpost_store_capacity_bytes{")? / 2.0;
        let index = of("outpost_dedup_index_bytes{")?;
        self.report.add(
            Row::new(
                format!("{name}: index, for each GiB of dictionary"),
                "MiB",
                index / log * 1024.0,
            )
            .limited(Limit::AtMost(32.0)),
        );
        self.report.add(Row::new(
            format!("{name}: memory of a program, at most"),
            "MiB",
            offices.peak_memory()? as f64 / MIB,
        ));
        let line = offices.line_bytes().unwrap_or_default() as f64;
        let deviation = (offices.line_bytes_by_branch()? as f64 / line - 1.0).abs() * 100.0;
        self.report.add(
            Row::new(
                format!("{name}: the branch's own count of line bytes, off by"),
                "%",
                deviation,
            )
            .limited(Limit::AtMost(1.0)),
        );
        Ok(())
    }

    fn noise_bytes(&mut self) -> Result<()> {
        let noise = inputs::noise(SEED, NOISE_BYTES);
        let mut offices = self.counted()?;
        let cold = offices.carry(&[&noise], false)?;
        self.report
            .add(percent_row("noise: cold".into(), cold, 105.0));
        let again = offices.carry(&[&noise], false)?;
        self.report
            .add(percent_row("noise: the same again".into(), again, 0.1));
        let shifted = offices.carry(&[&[b"x", noise.as_slice()].concat()], false)?;
        self.report.add(percent_row(
            "noise: shifted by one byte".into(),
            shifted,
            0.1,
        ));
        let pages = offices.carry(&[&inputs::rewrite_pages(&noise, SEED)], false)?;
        self.report.add(percent_row(
            "noise: 1% of its 4 KiB pages rewritten".into(),
            pages,
            1.3,
        ));
        Ok(())
    }

    fn small_bytes(&mut self, pair: &Pair) -> Result<()> {
        let text = inputs::small_files(&read(&pair.old)?, SEED);
        let noise = inputs::small_files(&inputs::noise(SEED, 16 << 20), SEED);
        for (name, files) in [(pair.name.as_str(), text), ("noise", noise)] {
            let files: Vec<&[u8]> = files.iter().map(Vec::as_slice).collect();
            let name = format!("200 small files of {name}");
            let mut offices = self.counted()?;
            let first = offices.carry(&files, false)?;
            self.report.add(Row::new(
                format!("{name}: first time"),
                "%",
                first.percent(),
            ));
            let second = offices.carry(&files, false)?;
            self.report
                .add(percent_row(format!("{name}: second time"), second, 3.0));
        }
        Ok(())
    }

    fn speed(&mut self, pairs: &[Pair], with_noise: bool) -> Result<()> {
        println!(
            "Payload for each CPU-second of the busier program, median of {} rounds; Z is zstd -1 on one thread, likewise",
            self.arguments.rounds
        );
        let Some(first) = pairs.first() else {
            return Ok(());
        };
        let mut speeds = Speeds::default();
        for round in 1..=self.arguments.rounds {
            eprintln!("round {round} of {} …", self.arguments.rounds);
            self.speed_round(first, &mut speeds)?;
            for pair in pairs.iter().skip(1).filter(|pair| pair.name == "numpy") {
                self.speed_round(pair, &mut speeds)?;
            }
            if with_noise {
                let noise = inputs::noise(SEED, NOISE_BYTES);
                speeds.keep_speed(Z, zstd::speed(&first.old)?);
                let mut offices = Offices::new(&self.program, Line::Direct)?;
                let cold = offices.carry(&[&noise], false)?;
                speeds.keep_speed("noise: cold", cold.speed());
            }
        }
        self.speed_rows(pairs, &speeds);
        Ok(())
    }

    /// Each case of a pair once.
    fn speed_round(&self, pair: &Pair, speeds: &mut Speeds) -> Result<()> {
        let name = &pair.name;
        let (old, new) = (read(&pair.old)?, read(&pair.new)?);
        let is_first = name == "typescript" || self.arguments.pair.is_some();
        if is_first {
            speeds.keep_speed(Z, zstd::speed(&pair.old)?);
        }
        let mut offices = Offices::new(&self.program, Line::Direct)?;
        let mut keep = |case: &str, measured: Measured| {
            speeds.keep_speed(&format!("{name}: {case}"), measured.speed());
        };
        keep("cold", offices.carry(&[&old], false)?);
        keep("the same again", offices.carry(&[&old], false)?);
        keep("next version", offices.carry(&[&new], false)?);
        keep("next version, again", offices.carry(&[&new], false)?);
        drop(offices);
        let program = &self.program;
        for (case, beside) in [
            ("cold", many::cold(program, &old)?),
            ("again", many::again(program, &old)?),
        ] {
            speeds.keep_speed(&format!("{name}: {MANY} connections, {case}"), beside.many);
            speeds.keep_speed(&format!("{name}: one beside them, {case}"), beside.one);
        }
        if is_first {
            speeds.keep_speed(Z, zstd::speed(&pair.old)?);
        }
        Ok(())
    }

    fn speed_rows(&mut self, pairs: &[Pair], speeds: &Speeds) {
        let z = speeds.of(Z).unwrap_or_default();
        for pair in pairs {
            let name = &pair.name;
            for (case, limit) in [
                ("cold", (name == "typescript").then_some(0.4)),
                ("next version", Some(0.6)),
                ("the same again", Some(1.5)),
                ("next version, again", Some(1.5)),
            ] {
                self.speed_row(&format!("{name}: {case}"), speeds, (Z, z), limit);
            }
            for case in ["cold", "again"] {
                if let Some(one) = speeds.of(&format!("{name}: one beside them, {case}")) {
                    let case = format!("{name}: {MANY} connections, {case}");
                    self.speed_row(&case, speeds, ("one connection", one), Some(0.9));
                }
            }
        }
        self.speed_row("noise: cold", speeds, (Z, z), Some(0.6));
    }

    fn speed_row(&mut self, case: &str, speeds: &Speeds, peer: (&str, f64), limit: Option<f64>) {
        let Some(speed) = speeds.of(case) else { return };
        let row = Row::new(case, "MB/s", speed / 1e6).beside(peer.0, peer.1 / 1e6);
        self.report.add(match limit {
            Some(limit) => row.limited_by_ratio(Limit::AtLeast(limit)),
            None => row,
        });
    }
}

/// The speeds of each case so far, in bytes for each CPU-second.
#[derive(Debug, Default)]
struct Speeds(Vec<(String, Vec<f64>)>);

impl Speeds {
    fn keep_speed(&mut self, case: &str, speed: f64) {
        match self.0.iter_mut().find(|(name, _)| name == case) {
            Some((_, speeds)) => speeds.push(speed),
            None => self.0.push((case.to_owned(), vec![speed])),
        }
    }

    /// The median; of an even number the faster of the two in the middle.
    fn of(&self, case: &str) -> Option<f64> {
        let (_, speeds) = self.0.iter().find(|(name, _)| name == case)?;
        let mut sorted = speeds.clone();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len() / 2).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::Speeds;

    #[test]
    fn the_median_counts() {
        let mut speeds = Speeds::default();
        for speed in [3.0, 1.0, 2.0] {
            speeds.keep_speed("case", speed);
        }
        assert_eq!(speeds.of("case"), Some(2.0));
        speeds.keep_speed("case", 9.0);
        assert_eq!(speeds.of("case"), Some(3.0));
        assert_eq!(speeds.of("another"), None);
    }
}
