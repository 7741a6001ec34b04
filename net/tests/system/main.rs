//! The whole system in simulated time: two boxes, a seeded line, real TCP hosts on both sides, every byte checked.
//!
//! A failing test prints its seed; `SEED=n cargo test -p outpost-net --test system` runs the random scenarios with it alone.

mod host;
mod line;
mod transfers;
mod world;
