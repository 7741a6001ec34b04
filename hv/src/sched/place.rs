//! Where tasks wait: the CPU of a new or woken task, and what an idle CPU takes over from others.

use alloc::vec::Vec;

use super::{CpuSet, Kind, Policy, Scheduler, State, TaskId};

/// The CPUs, of those that there are, for a guest's `vcpus`: the `wanted` ones, if any is there; else all but `services`, where the services are, if that leaves
/// one for each vCPU, or if vCPUs must stay away from there (`apart`) and there is another; else all.
pub fn guest_cpus(
    there: CpuSet,
    wanted: CpuSet,
    services: usize,
    vcpus: usize,
    apart: bool,
) -> CpuSet {
    let wanted = CpuSet(wanted.0 & there.0);
    let others = there.without(CpuSet::only(services));
    if !wanted.is_empty() {
        wanted
    } else if others.len() >= vcpus || apart && !others.is_empty() {
        others
    } else {
        there
    }
}

/// Where each of a guest's `vcpus` may run, of the `allowed` CPUs, and the policy that they run under. Under [`Policy::Placed`] each has one CPU that no other
/// vCPU has, the lowest first; where there are fewer CPUs than vCPUs that cannot be, and the policy is [`Policy::Balance`]. Under every other policy all may run
/// on all.
pub fn place_guest(policy: Policy, allowed: CpuSet, vcpus: usize) -> (Policy, Vec<CpuSet>) {
    match policy {
        Policy::Placed if allowed.len() >= vcpus => {
            let own = allowed.iter().take(vcpus).map(CpuSet::only);
            (policy, own.collect())
        }
        Policy::Placed => (Policy::Balance, alloc::vec![allowed; vcpus]),
        _ => (policy, alloc::vec![allowed; vcpus]),
    }
}

impl Scheduler {
    /// Whether vCPUs keep apart under this policy.
    fn keeps_apart(&self) -> bool {
        matches!(self.policy, Policy::Balance | Policy::Gang)
    }

    /// CPUs for which a vCPU other than `id` runs or waits.
    fn taken(&self, id: TaskId) -> CpuSet {
        let mut taken = CpuSet::default();
        for (index, task) in self.tasks.iter().enumerate() {
            if TaskId(index) != id && task.kind == Kind::Vcpu && task.is_runnable() {
                taken = taken.with(CpuSet::only(task.cpu));
            }
        }
        taken
    }

    /// A new task's CPU: vCPUs are dealt out in turn.
    pub(super) fn first_home(&self, kind: Kind, allowed: CpuSet) -> usize {
        let nth = self.tasks.iter().filter(|task| task.kind == kind).count();
        allowed.iter().nth(nth % allowed.len().max(1)).unwrap_or(0)
    }

    /// The CPU for a task that wakes: its last one if that is free, else another free one, else the one with the least weight on it.
    pub(super) fn place(&self, id: TaskId) -> usize {
        let Some(task) = self.tasks.get(id.0) else {
            return 0;
        };
        let mut candidates = task.allowed;
        if task.kind == Kind::Vcpu && self.keeps_apart() {
            let apart = candidates.without(self.taken(id));
            if !apart.is_empty() {
                candidates = apart;
            }
        }
        let load = |cpu: usize| -> u64 {
            self.queue(cpu)
                .filter(|(other, _)| *other != id)
                .map(|(_, task)| u64::from(task.weight))
                .sum()
        };
        // Of CPUs that are as good, the last one: its caches may still be warm.
        candidates
            .iter()
            .min_by_key(|cpu| (load(*cpu), *cpu != task.cpu))
            .unwrap_or(task.cpu)
    }

    /// Makes a task belong to another CPU's queue, as far ahead there as it was here.
    pub(super) fn move_to(&mut self, id: TaskId, cpu: usize) {
        let Some(from) = self.tasks.get(id.0).map(|task| task.cpu) else {
            return;
        };
        if from == cpu {
            return;
        }
        let (before, after) = (self.floor(from), self.floor(cpu));
        if let Some(task) = self.tasks.get_mut(id.0) {
            task.had = task.had.moved(before, after);
            task.cpu = cpu;
            task.statistics.migrations += 1;
        }
    }

    /// An idle CPU takes over the task that has waited longest for another one; with `only`, of that kind.
    pub(super) fn pull(&mut self, cpu: usize, only: Option<Kind>) -> Option<TaskId> {
        let has_vcpu = self.queue(cpu).any(|(_, task)| task.kind == Kind::Vcpu);
        let mut longest: Option<(u64, TaskId)> = None;
        for (index, task) in self.tasks.iter().enumerate() {
            let State::Waiting(since) = task.state else {
                continue;
            };
            let may = task.allowed.has(cpu)
                && task.cpu != cpu
                && only.is_none_or(|kind| task.kind == kind)
                && !(task.kind == Kind::Vcpu && has_vcpu && self.keeps_apart());
            if may && longest.is_none_or(|(other, _)| since < other) {
                longest = Some((since, TaskId(index)));
            }
        }
        let (_, id) = longest?;
        self.move_to(id, cpu);
        Some(id)
    }
}
