//! outpost.toml
