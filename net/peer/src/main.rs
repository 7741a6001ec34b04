//! `outpost-peer`: see `--help`.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use outpost_config::ProgramConfig;
use outpost_peer::{Program, keygen};
use tokio::signal::unix::{SignalKind, signal};

const HELP: &str = "outpost-peer: Outpost's engine as a Linux program

  outpost-peer keygen               prints a new private_key and its public_key
  outpost-peer run --config FILE    runs; SIGHUP reads FILE again, SIGTERM and SIGINT stop in order
  outpost-peer --help

docs/peer.md has a session that can be pasted.
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

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        ["keygen"] => keygen()
            .map(|keys| print!("{keys}"))
            .map_err(|error| error.to_string()),
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
        Err(message) => {
            eprintln!("outpost-peer: {message}");
            ExitCode::FAILURE
        }
    }
}

fn read(file: &str) -> Result<ProgramConfig, String> {
    let text = std::fs::read_to_string(file).map_err(|error| format!("{file}: {error}"))?;
    ProgramConfig::parse(&text).map_err(|error| format!("{file}: {error}"))
}

fn run(file: &str) -> Result<(), String> {
    let _ = log::set_logger(&Logger);
    log::set_max_level(log::LevelFilter::Info);
    let config = read(file)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| error.to_string())?;
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let signals = |kind| signal(kind).map_err(|error| error.to_string());
        let mut hangup = signals(SignalKind::hangup())?;
        let mut terminate = signals(SignalKind::terminate())?;
        let mut interrupt = signals(SignalKind::interrupt())?;
        let mut program = Program::start(config).await.map_err(|error| error.to_string())?;
        log::info!("running");
        loop {
            tokio::select! {
                _ = hangup.recv() => {
                    let result = match read(file) {
                        Ok(config) => program.reload(config).await.map_err(|error| error.to_string()),
                        Err(error) => Err(error),
                    };
                    match result {
                        Ok(()) => log::info!("reloaded {file}"),
                        Err(error) => log::error!("not reloaded: {error}"),
                    }
                }
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
            }
        }
        log::info!("stopping");
        program.stop().await;
        Ok(())
    })
}
