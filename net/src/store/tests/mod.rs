//! Crashes and trouble.
