//! Gang scheduling: the guest's runnable vCPUs run in *slots*, all at once, each on a CPU of its own. Between slots the
//! services have the CPUs, until on each of them they have had what their weights give them; a CPU without a service idles
//! meanwhile, which is the price and is counted.

#[cfg(test)]
mod tests;

use super::statistics::GangStatistics;
use super::{CpuSet, Decision, Kind, Scheduler, TaskId};

#[derive(Clone, Debug, Default)]
pub(super) struct Gang {
    pub(super) slot: Option<Slot>,
    pub(super) statistics: GangStatistics,
    /// Whether there were more vCPUs than CPUs when last looked.
    overflows: bool,
}

/// A time in which the whole gang runs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slot {
    started: u64,
    ends: u64,
    /// CPUs that were called when it began and have not come yet.
    awaited: CpuSet,
    /// CPUs that services keep from their vCPUs.
    kept: CpuSet,
    /// Since when there are any.
    kept_since: u64,
}

/// The least time that a service gets between slots, so that slots are not opened by the nanosecond.
const LEAST_SERVICE_NS: u64 = 50_000;
/// A vCPU that the gang made wait is owed at most so many slices afterwards.
const MOST_OWED_SLICES: u64 = 4;

impl Scheduler {
    /// The CPUs on which vCPUs could run now.
    fn members(&self) -> CpuSet {
        let mut members = CpuSet::default();
        for task in self
            .tasks
            .iter()
            .filter(|task| task.kind == Kind::Vcpu && task.is_runnable())
        {
            members = members.with(CpuSet::only(task.cpu));
        }
        members
    }

    /// Whether there is a gang to schedule: two vCPUs or more could run, each on a CPU of its own.
    pub(super) fn gang_applies(&mut self) -> bool {
        let runnable = self
            .tasks
            .iter()
            .filter(|task| task.kind == Kind::Vcpu && task.is_runnable())
            .count();
        let fits = self.members().len() == runnable;
        if !fits && !self.gang.overflows {
            self.gang.statistics.fallbacks += 1;
        }
        self.gang.overflows = !fits;
        fits && runnable >= 2
    }

    /// A vCPU woke or halted: the CPUs of the others must look whether they may start, go on or stop.
    pub(super) fn gang_changed(&self, id: TaskId) -> CpuSet {
        let is_vcpu = self
            .tasks
            .get(id.0)
            .is_some_and(|task| task.kind == Kind::Vcpu);
        if self.policy != super::Policy::Gang {
            return CpuSet::default();
        }
        // A service that has gone may have been what the gang waited for.
        if is_vcpu || self.gang.slot.is_none() {
            self.members()
        } else {
            CpuSet::default()
        }
    }

    /// The vCPU and the service that have had least on a CPU.
    fn rivals(&self, cpu: usize) -> (Option<TaskId>, Option<TaskId>) {
        let of = |kind| super::least(self.queue(cpu).filter(move |(_, task)| task.kind == kind));
        (of(Kind::Vcpu), of(Kind::Service))
    }

    /// How long a CPU's service must still run until its vCPU is due.
    fn service_needs(&self, cpu: usize) -> u64 {
        let (vcpu, service) = self.rivals(cpu);
        let task = |id: Option<TaskId>| id.and_then(|id| self.tasks.get(id.0));
        match (task(vcpu), task(service)) {
            (Some(vcpu), Some(service)) => service.had.until(vcpu.had, service.weight),
            _ => 0,
        }
    }

    pub(super) fn schedule_gang(&mut self, now: u64, cpu: usize) -> Decision {
        let members = self.members();
        let mut kick = CpuSet::default();
        if self.gang.slot.is_some_and(|slot| now >= slot.ends) {
            self.gang.slot = None;
        }
        if let Some(slot) = self.gang.slot {
            match self.in_slot(slot, now, cpu) {
                Some(decision) => return decision,
                // The service keeps its CPU for too long: the others stop.
                None => {
                    self.gang.statistics.broken += 1;
                    self.gang.slot = None;
                    kick = members.without(CpuSet::only(cpu));
                    return self.between(now, cpu, kick);
                }
            }
        }
        if !members.has(cpu) && self.first(cpu).is_none() {
            // A vCPU that waits elsewhere is due here at once.
            if self.pull(cpu, None).is_some() {
                kick = kick.with(self.members().without(CpuSet::only(cpu)));
            }
        }
        let members = self.members();
        if members.has(cpu) && members.iter().all(|cpu| self.service_needs(cpu) == 0) {
            self.open(now, members);
            if let Some(slot) = self.gang.slot
                && let Some(mut decision) = self.in_slot(slot, now, cpu)
            {
                decision.kick = members.without(CpuSet::only(cpu));
                return decision;
            }
        }
        self.between(now, cpu, kick)
    }

    fn open(&mut self, now: u64, members: CpuSet) {
        self.gang.statistics.slots += 1;
        self.gang.slot = Some(Slot {
            started: now,
            ends: now + self.tuning.slice_ns,
            awaited: members,
            kept: CpuSet::default(),
            kept_since: now,
        });
        // What the gang made a vCPU wait is not all made good: its services would pay for it later.
        let owed = self.tuning.slice_ns * MOST_OWED_SLICES;
        for cpu in members.iter() {
            let (Some(vcpu), Some(service)) = self.rivals(cpu) else {
                continue;
            };
            let Some(had) = self.tasks.get(service.0).map(|task| task.had) else {
                continue;
            };
            if let Some(task) = self.tasks.get_mut(vcpu.0) {
                task.had = task.had.max(had.before(owed, task.weight));
            }
        }
    }

    /// What a CPU does in a slot; `None`: the slot must end, for a service has kept this CPU for too long.
    fn in_slot(&mut self, mut slot: Slot, now: u64, cpu: usize) -> Option<Decision> {
        let (vcpu, service) = self.rivals(cpu);
        let Some(vcpu) = vcpu else {
            // Not a member: its services run as ever.
            let next = service.or_else(|| self.pull(cpu, Some(Kind::Service)));
            self.run(cpu, next, now);
            let contended = self.queue(cpu).count() > 1;
            return Some(Decision {
                run: next,
                until: contended.then_some(now + self.tuning.slice_ns),
                kick: CpuSet::default(),
            });
        };
        // A service with work that cannot wait takes the CPU, for a moment.
        let urgent = service.filter(|service| {
            self.current(cpu) == Some(*service) || self.should_take(*service, vcpu)
        });
        let urgent = urgent.filter(|service| {
            let task = |id: TaskId| self.tasks.get(id.0).map(|task| task.had);
            matches!((task(*service), task(vcpu)), (Some(service), Some(vcpu)) if vcpu.ahead_of(service) > 0)
        });
        if let Some(service) = urgent {
            if slot.kept.is_empty() {
                slot.kept_since = now;
            }
            let enough = slot.kept_since + self.tuning.patience_ns;
            if now >= enough {
                return None;
            }
            slot.kept = slot.kept.with(CpuSet::only(cpu));
            self.gang.slot = Some(slot);
            self.run(cpu, Some(service), now);
            return Some(Decision {
                run: Some(service),
                until: Some(enough.min(slot.ends)),
                kick: CpuSet::default(),
            });
        }
        slot.kept = slot.kept.without(CpuSet::only(cpu));
        if slot.awaited.has(cpu) {
            let skew = now.saturating_sub(slot.started);
            let statistics = &mut self.gang.statistics;
            statistics.skew_ns += skew;
            statistics.longest_skew_ns = statistics.longest_skew_ns.max(skew);
            statistics.missed += u64::from(skew > self.tuning.rendezvous_ns);
            slot.awaited = slot.awaited.without(CpuSet::only(cpu));
        }
        self.gang.slot = Some(slot);
        self.run(cpu, Some(vcpu), now);
        Some(Decision {
            run: Some(vcpu),
            until: Some(slot.ends),
            kick: CpuSet::default(),
        })
    }

    /// Whether a service has had so much less than a vCPU that it need not wait for the end of the slot.
    fn should_take(&self, service: TaskId, vcpu: TaskId) -> bool {
        match (self.tasks.get(service.0), self.tasks.get(vcpu.0)) {
            (Some(service), Some(vcpu)) => {
                let handicap = service
                    .had
                    .after(self.tuning.wake_ns, service.weight.max(1_024));
                // One that woke before the slot began takes part in the slots' turns, not in this.
                service.is_waiting()
                    && vcpu.had.ahead_of(handicap) > 0
                    && self
                        .gang
                        .slot
                        .is_some_and(|slot| service.woke > slot.started)
            }
            _ => false,
        }
    }

    /// What a CPU does between slots: its services, or nothing.
    fn between(&mut self, now: u64, cpu: usize, kick: CpuSet) -> Decision {
        let (vcpu, service) = self.rivals(cpu);
        let next = service.or_else(|| self.pull(cpu, Some(Kind::Service)));
        self.run(cpu, next, now);
        if next.is_none() && vcpu.is_some() {
            if let Some(this) = self.cpus.get_mut(cpu) {
                this.held_back = Some(now);
            }
            return Decision {
                run: None,
                until: None,
                kick,
            };
        }
        let slice = self.tuning.slice_ns;
        let until = match (vcpu, self.queue(cpu).count()) {
            (Some(_), _) => Some(now + self.service_needs(cpu).clamp(LEAST_SERVICE_NS, slice)),
            (None, 0 | 1) => None,
            (None, _) => Some(now + slice),
        };
        Decision {
            run: next,
            until,
            kick,
        }
    }

    /// The CPU asks again: whatever held it back has been waited for.
    pub(super) fn end_idle(&mut self, cpu: usize, now: u64) {
        if let Some(since) = self.cpus.get_mut(cpu).and_then(|cpu| cpu.held_back.take()) {
            self.gang.statistics.idle_lost_ns += now.saturating_sub(since);
        }
    }
}
