//! Fuzz targets: one function for each parser that faces the line, the disk or a host. A target panics when an invariant
//! breaks. It is plain Rust on the stable toolchain: a seeded mutator, a committed corpus, no instrumentation.
//!
//! [`TARGETS`] lists them, each with inputs that honest encoders made. `tests/corpus.rs` runs the corpus and some thousand
//! mutations of each; the program goes on for as long as it is asked to. `docs/fuzz.md` says how.
#![forbid(unsafe_code)]

pub mod config;
pub mod dedup;
pub mod disk;
pub mod engine;
pub mod flow;
pub mod image;
pub mod mutate;
pub mod run;
pub mod script;
pub mod text;
pub mod tunnel;

/// One target.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name: the folder of its corpus.
    pub name: &'static str,
    /// What it feeds, and what must hold.
    pub about: &'static str,
    /// Runs one input; panics when an invariant does not hold.
    pub run: fn(&[u8]),
    /// Inputs that honest encoders make, with a name for each.
    pub honest: fn() -> Vec<(&'static str, Vec<u8>)>,
    /// Mutations in the ordinary test.
    pub cases: usize,
    /// The most memory that one input may take at once, in bytes.
    pub memory: usize,
}

/// Every target.
pub const TARGETS: &[Target] = &[
    tunnel::DATAGRAMS,
    tunnel::HANDSHAKES,
    tunnel::FRAMES,
    tunnel::PAYLOADS,
    dedup::HEADERS,
    dedup::BODIES,
    dedup::BLOCKS,
    dedup::MESSAGES,
    dedup::CONTROL_TO_RECEIVER,
    dedup::CONTROL_TO_SENDER,
    dedup::ROUND_TRIP,
    flow::STREAMS,
    disk::DEVICE,
    image::SLOT,
    engine::FRAMES,
    text::HTTP,
    text::SOCKS,
    config::BOX,
    config::PROGRAM,
];

/// The target of that name.
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}
