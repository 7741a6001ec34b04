//! Builds, runs, tests and flashes Outpost.
fn main() {}
