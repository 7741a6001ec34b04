//! What the scheduler counts, so that a user sees what a policy costs.

use serde::Serialize;

/// One task's times.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TaskStatistics {
    /// Nanoseconds on a CPU.
    pub run_ns: u64,
    /// Nanoseconds in which it could have run and did not. For a vCPU this is steal time.
    pub wait_ns: u64,
    /// The longest single wait, in nanoseconds; it may be the one that it is in.
    pub longest_wait_ns: u64,
    /// Times it was woken.
    pub wakes: u64,
    /// Times it moved to another CPU.
    pub migrations: u64,
}

/// What gang scheduling did and cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct GangStatistics {
    /// Slots begun: times at which all runnable vCPUs were called at once.
    pub slots: u64,
    /// Sum over all slots of the nanoseconds between the first vCPU's start and that of each other one that was called.
    pub skew_ns: u64,
    /// The longest such time.
    pub longest_skew_ns: u64,
    /// vCPUs that came later than the bound of the rendezvous: until then the slot went on without them.
    pub missed: u64,
    /// Slots ended early, because services kept vCPUs' CPUs for longer than the others should go on without them.
    pub broken: u64,
    /// Nanoseconds in which a CPU idled though one of its vCPUs could have run, but not the whole gang.
    #[serde(rename = "idle_ns")]
    pub idle_lost_ns: u64,
    /// Times that more vCPUs could run than there were CPUs for, so that `balance` took over.
    pub fallbacks: u64,
}
