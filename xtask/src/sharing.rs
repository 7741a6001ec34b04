//! What a box's scheduler has counted, as its telemetry reports it each second (`"sharing"` of a status event).

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;

/// All counters of one moment, or (see [`Sharing::since`]) of the time between two.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Sharing {
    /// How vCPUs are placed.
    pub policy: String,
    /// `network`, `vcpu0` and so on, `load0` for what `[services] load` has on CPU 0.
    pub tasks: BTreeMap<String, Times>,
    /// What gang scheduling did.
    pub gang: Gang,
}

/// One task's times.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Times {
    /// Nanoseconds on a CPU.
    pub run_ns: u64,
    /// Nanoseconds in which it could have run and did not.
    pub wait_ns: u64,
    /// The longest such wait since the box started.
    pub longest_wait_ns: u64,
    /// Times it was woken.
    pub wakes: u64,
    /// Times it moved to another CPU.
    pub migrations: u64,
}

/// Counters of gang scheduling.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Gang {
    /// Times that all vCPUs were started together.
    pub slots: u64,
    /// vCPUs that came too late to that.
    pub missed: u64,
    /// Slots that ended early for a service.
    pub broken: u64,
    /// Times that the gang did not fit.
    pub fallbacks: u64,
    /// Nanoseconds between the first vCPU's start and the others'.
    pub skew_ns: u64,
    /// The longest such time since the box started.
    pub longest_skew_ns: u64,
    /// Nanoseconds left unused so that the vCPUs could start together.
    pub idle_ns: u64,
}

impl Sharing {
    /// What was counted since `before`. A task that was not there then is left out.
    pub fn since(&self, before: &Sharing) -> Sharing {
        let tasks = self.tasks.iter().filter_map(|(name, now)| {
            let then = before.tasks.get(name)?;
            let times = Times {
                run_ns: now.run_ns.saturating_sub(then.run_ns),
                wait_ns: now.wait_ns.saturating_sub(then.wait_ns),
                wakes: now.wakes.saturating_sub(then.wakes),
                migrations: now.migrations.saturating_sub(then.migrations),
                ..*now
            };
            Some((name.clone(), times))
        });
        let (now, then) = (self.gang, before.gang);
        Sharing {
            policy: self.policy.clone(),
            tasks: tasks.collect(),
            gang: Gang {
                slots: now.slots.saturating_sub(then.slots),
                missed: now.missed.saturating_sub(then.missed),
                broken: now.broken.saturating_sub(then.broken),
                fallbacks: now.fallbacks.saturating_sub(then.fallbacks),
                skew_ns: now.skew_ns.saturating_sub(then.skew_ns),
                longest_skew_ns: now.longest_skew_ns,
                idle_ns: now.idle_ns.saturating_sub(then.idle_ns),
            },
        }
    }

    /// Nanoseconds on a CPU of all tasks whose names begin like this.
    pub fn ran(&self, prefix: &str) -> u64 {
        let all = self.tasks.iter();
        let of = all.filter(|(name, _)| name.starts_with(prefix));
        of.map(|(_, times)| times.run_ns).sum()
    }
}

/// A line for each task.
impl fmt::Display for Sharing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = |ns: u64| ns as f64 / 1e9;
        for (name, times) in &self.tasks {
            let (ran, waited) = (seconds(times.run_ns), seconds(times.wait_ns));
            writeln!(f, "{name} ran {ran:.3} s, waited {waited:.3} s")?;
        }
        let gang = &self.gang;
        if gang.slots > 0 {
            writeln!(
                f,
                "gang: {} starts, {} missed, {} broken, skew {} us on average, idle {:.3} s",
                gang.slots,
                gang.missed,
                gang.broken,
                gang.skew_ns / gang.slots / 1000,
                seconds(gang.idle_ns)
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_counted_between_two_moments() {
        let at = |ran: u64| -> Sharing {
            let text = format!(
                r#"{{"policy": "gang", "tasks": {{
                    "vcpu0": {{"run_ns": {ran}, "wait_ns": 5, "longest_wait_ns": 3, "wakes": 1, "migrations": {ran}}},
                    "vcpu1": {{"run_ns": 7, "wait_ns": 0, "longest_wait_ns": 0, "wakes": 1, "migrations": 0}},
                    "load0": {{"run_ns": 100, "wait_ns": 0, "longest_wait_ns": 0, "wakes": 1, "migrations": 0}}}},
                  "gang": {{"slots": {ran}, "missed": 0, "broken": 0, "fallbacks": 0, "skew_ns": 0, "longest_skew_ns": 9, "idle_ns": 0}}}}"#
            );
            serde_json::from_str(&text).unwrap()
        };
        assert_eq!(at(30).ran("vcpu"), 37);
        let between = at(30).since(&at(10));
        assert_eq!((between.ran("vcpu"), between.ran("load")), (20, 0));
        assert_eq!(between.tasks["vcpu0"].longest_wait_ns, 3);
        assert_eq!(between.tasks["vcpu0"].migrations, 20);
        assert_eq!((between.gang.slots, between.gang.longest_skew_ns), (20, 9));
        let mut before = at(10);
        before.tasks.remove("vcpu1");
        assert!(!at(30).since(&before).tasks.contains_key("vcpu1"));
    }
}
