//! The Outpost appliance.
fn main() {}
