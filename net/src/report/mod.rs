//! What box and program show of themselves, in the same words: metrics as Prometheus text, flows as JSON.

mod exposition;
mod flows;
mod shared;

pub use exposition::Exposition;
pub use flows::{BridgedReport, FlowReport, FlowsPage, MOST_FLOWS};
pub use shared::{add_dedup, add_dedup_memory, add_store, add_tunnel};

/// Media type of [`Exposition::into_text`] (Prometheus text format 0.0.4).
pub const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";
/// Media type of [`FlowsPage::to_json`].
pub const FLOWS_TYPE: &str = "application/json";
