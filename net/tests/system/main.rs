//! The whole system in simulated time: two boxes, a seeded line, real TCP hosts on both sides, every byte checked.
//!
//! A failing test prints its seed; `SEED=n cargo test -p outpost-net --test system` runs the random scenarios with it alone.

mod allocations;
mod bridge;
mod failures;
mod floods;
mod host;
mod hostile;
mod line;
mod nonsense;
mod pages;
mod store;
mod transfers;
mod world;

/// With `LOG=1` in the environment, what the engines log is printed.
struct Print;

impl log::Log for Print {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        eprintln!("{}: {}", record.level(), record.args());
    }

    fn flush(&self) {}
}

fn start_log() {
    if std::env::var_os("LOG").is_some() {
        let _ = log::set_logger(&Print);
        log::set_max_level(log::LevelFilter::Debug);
    }
}
