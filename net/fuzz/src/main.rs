//! Runs one fuzz target for as long as it is asked to, replays an input, or writes the corpus.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use outpost_fuzz::run::{Failure, Runner, corpus};
use outpost_fuzz::{TARGETS, Target, target};
use peak_alloc::PeakAlloc;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

const HELP: &str = "\
Feeds a parser with mutated inputs and checks what must hold. See docs/fuzz.md.

Usage: cargo run --release -p outpost-fuzz -- TARGET [--seconds N] [--seed S] [--count N]
       cargo run -p outpost-fuzz -- TARGET --replay FILE
       cargo run -p outpost-fuzz -- corpus

  --seconds N    stop after so long (60, if neither this nor --count is given)
  --seed S       the first input's seed; the next one's is S + 1, and so on (drawn from the clock)
  --count N      stop after so many inputs
  --replay FILE  run this one input
  --to DIRECTORY where an input that fails is saved (the current one)
  corpus         write what honest encoders make now to net/fuzz/corpus

Without --release it is slower and also stops at arithmetic that overflows.

Targets:
";

struct Options {
    seconds: u64,
    count: u64,
    seed: u64,
    replay: Option<PathBuf>,
    to: PathBuf,
}

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let name = arguments.next().unwrap_or_else(|| "--help".to_owned());
    if ["--help", "-h", "help"].contains(&name.as_str()) {
        print!("{HELP}");
        for target in TARGETS {
            println!("  {:27} {}", target.name, target.about);
        }
        return ExitCode::SUCCESS;
    }
    let result = match (name.as_str(), target(&name)) {
        ("corpus", _) => write_corpus(),
        (_, Some(target)) => options(arguments).and_then(|options| fuzz(target, &options)),
        (_, None) => Err(format!("there is no target {name}; --help lists them")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

fn options(mut arguments: impl Iterator<Item = String>) -> Result<Options, String> {
    let clock = std::time::SystemTime::UNIX_EPOCH.elapsed();
    let mut options = Options {
        seconds: 0,
        count: 0,
        seed: clock.map_or(0, |it| it.as_micros() as u64) << 20,
        replay: None,
        to: PathBuf::from("."),
    };
    while let Some(name) = arguments.next() {
        let value = arguments.next().ok_or(format!("{name} needs a value"))?;
        let number = || {
            value
                .parse()
                .map_err(|_| format!("{name} needs a number, not {value}"))
        };
        match name.as_str() {
            "--seconds" => options.seconds = number()?,
            "--count" => options.count = number()?,
            "--seed" => options.seed = number()?,
            "--replay" => options.replay = Some(PathBuf::from(value)),
            "--to" => options.to = PathBuf::from(value),
            _ => return Err(format!("there is no option {name}; --help lists them")),
        }
    }
    if options.seconds == 0 {
        options.seconds = if options.count == 0 { 60 } else { u64::MAX };
    }
    Ok(options)
}

fn fuzz(target: &'static Target, options: &Options) -> Result<(), String> {
    let runner = Runner::new(target, &MEMORY);
    if let Some(path) = &options.replay {
        let input = std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
        runner.run(&input).map_err(|failure| failure.why)?;
        println!("{}: {} bytes, nothing wrong", target.name, input.len());
        return Ok(());
    }
    println!(
        "{}: {} inputs to begin with, first seed {}",
        target.name,
        runner.inputs.len(),
        options.seed
    );
    for (name, input) in &runner.inputs {
        runner
            .run(input)
            .map_err(|failure| format!("{name}: {}", failure.why))?;
    }
    let (begun, mut said) = (Instant::now(), Instant::now());
    let (mut count, mut slowest) = (0, (Duration::ZERO, 0));
    while begun.elapsed() < Duration::from_secs(options.seconds)
        && (options.count == 0 || count < options.count)
    {
        let seed = options.seed.wrapping_add(count);
        let input = runner.mutation(seed);
        let at = Instant::now();
        if let Err(failure) = runner.run(&input) {
            return Err(save(target, &options.to, seed, &failure));
        }
        slowest = slowest.max((at.elapsed(), seed));
        count += 1;
        if said.elapsed() > Duration::from_secs(10) {
            said = Instant::now();
            println!("{count} inputs");
        }
    }
    println!(
        "{}: {count} inputs in {:.0} s, nothing wrong; the slowest took {} ms (seed {})",
        target.name,
        begun.elapsed().as_secs_f64(),
        slowest.0.as_millis(),
        slowest.1
    );
    Ok(())
}

/// Saves an input that fails, and says how to run it again.
fn save(target: &Target, folder: &Path, seed: u64, failure: &Failure) -> String {
    let path = folder.join(format!("{}-{seed}", target.name));
    let saved = match std::fs::write(&path, &failure.input) {
        Ok(()) => format!(
            "cargo run -p outpost-fuzz -- {} --replay {}",
            target.name,
            path.display()
        ),
        Err(error) => format!("(it cannot be saved to {}: {error})", path.display()),
    };
    format!(
        "{}: seed {seed}: {}\nThe same input again: {saved}\nOnce mended, keep it as {}/NAME.",
        target.name,
        failure.why,
        corpus(target).display()
    )
}

fn write_corpus() -> Result<(), String> {
    for target in TARGETS {
        let folder = corpus(target);
        std::fs::create_dir_all(&folder).map_err(|error| error.to_string())?;
        for (name, bytes) in (target.honest)() {
            let path = folder.join(name);
            std::fs::write(&path, bytes).map_err(|error| format!("{}: {error}", path.display()))?;
        }
    }
    Ok(())
}
