//! `outpost-peer`: see `--help`.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use outpost_config::{ProgramConfig, locate};
use outpost_peer::{Program, StartError, keygen};
use tokio::signal::unix::{SignalKind, signal};

const HELP: &str = "outpost-peer: Outpost's engine as a Linux program

  outpost-peer keygen               prints a new private_key and its public_key
  outpost-peer run --config FILE    runs; SIGHUP reads FILE again, SIGTERM and SIGINT stop in order
  outpost-peer --help

README.md has a session that can be pasted, docs/peer.md the rest.
";

struct Logger;

impl log::Log for Logger {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::Level::Info
    }
    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            eprintln!(
                "{}: {}",
                record.level().as_str().to_lowercase(),
                record.args()
            );
        }
    }
    fn flush(&self) {}
}

/// Why the program ends, and its exit status.
struct Failure {
    message: String,
    status: u8,
}

impl Failure {
    /// The configuration is at fault.
    fn of_configuration(file: &str, line: Option<usize>, message: &str) -> Failure {
        Failure {
            message: match line {
                Some(line) => format!("{file} line {line}: {message}"),
                None => format!("{file}: {message}"),
            },
            status: 2,
        }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Failure {
        Failure {
            message: error.to_string(),
            status: 1,
        }
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        ["keygen"] => keygen()
            .map(|keys| print!("{keys}"))
            .map_err(|error| Failure {
                message: error.to_string(),
                status: 1,
            }),
        ["run", "--config", file] => run(file),
        ["--help" | "-h" | "help"] => {
            print!("{HELP}");
            Ok(())
        }
        _ => {
            eprint!("{HELP}");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("outpost-peer: {}", failure.message);
            ExitCode::from(failure.status)
        }
    }
}

/// The file's text and what it says.
fn read(file: &str) -> Result<(Vec<u8>, ProgramConfig), Failure> {
    let bytes = std::fs::read(file).map_err(|error| {
        let message =
            format!("cannot be read: {error}; --config takes the path of an outpost.toml");
        Failure::of_configuration(file, None, &message)
    })?;
    match ProgramConfig::parse_bytes(&bytes) {
        Ok(config) => Ok((bytes, config)),
        Err(error) => Err(Failure::of_configuration(
            file,
            error.line(),
            error.message(),
        )),
    }
}

/// What could not be started, as a fault of the file.
fn not_started(file: &str, bytes: &[u8], error: &StartError) -> Failure {
    let text = String::from_utf8_lossy(bytes);
    let line = locate(&text, error.place());
    Failure::of_configuration(file, line, &error.to_string())
}

fn run(file: &str) -> Result<(), Failure> {
    let _ = log::set_logger(&Logger);
    log::set_max_level(log::LevelFilter::Info);
    let (bytes, config) = read(file)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let mut hangup = signal(SignalKind::hangup())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let started = Program::start(config).await;
        let mut program = started.map_err(|error| not_started(file, &bytes, &error))?;
        log::info!("running");
        loop {
            tokio::select! {
                _ = hangup.recv() => {
                    let result = match read(file) {
                        Ok((bytes, config)) => {
                            let reloaded = program.reload(config).await;
                            reloaded.map_err(|error| not_started(file, &bytes, &error))
                        }
                        Err(failure) => Err(failure),
                    };
                    match result {
                        Ok(()) => log::info!("reloaded {file}"),
                        Err(failure) => log::error!("not reloaded: {}", failure.message),
                    }
                }
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
            }
        }
        log::info!("stopping");
        // Asked once more, it does not wait.
        tokio::select! {
            () = program.stop() => {}
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        Ok(())
    })
}
