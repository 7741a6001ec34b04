//! The CPU time of this machine while a guest is measured: what the emulator took, and the share that other programs had.

use anyhow::{Context, Result};
use nix::unistd::{Pid, SysconfVar, sysconf};

/// CPU time so far, in clock ticks (`proc(5)`).
#[derive(Clone, Copy, Debug, PartialEq)]
struct Ticks {
    /// Of all CPUs, whatever they did.
    all: u64,
    /// Of all CPUs, idle or waiting for a disk.
    idle: u64,
    /// Of the program.
    own: u64,
}

/// Watches from now on.
pub struct Load {
    program: Pid,
    from: Ticks,
    /// The same with this program as its own.
    here: Ticks,
}

impl Load {
    /// Begins, with a program of ours that runs.
    ///
    /// # Errors
    /// `/proc` cannot be read.
    pub fn begin(program: Pid) -> Result<Load> {
        Ok(Load {
            program,
            from: now(program)?,
            here: now(Pid::this())?,
        })
    }

    /// The CPU time that the program has taken since, in seconds.
    ///
    /// # Errors
    /// `/proc` cannot be read.
    pub fn own(&self) -> Result<f64> {
        let ticks = now(self.program)?.own.saturating_sub(self.from.own);
        let per_second = sysconf(SysconfVar::CLK_TCK)?.unwrap_or(100);
        Ok(ticks as f64 / per_second as f64)
    }

    /// The share that other programs have had since, this one not counted, from 0 to 1. The program must still run.
    ///
    /// # Errors
    /// `/proc` cannot be read.
    pub fn others(&self) -> Result<f64> {
        let (to, here) = (now(self.program)?, now(Pid::this())?);
        let ours = Ticks {
            own: to.own + here.own.saturating_sub(self.here.own),
            ..to
        };
        Ok(share(self.from, ours))
    }
}

fn now(program: Pid) -> Result<Ticks> {
    let read =
        |path: &str| std::fs::read_to_string(path).with_context(|| format!("cannot read {path}"));
    let path = format!("/proc/{program}/stat");
    parse(&read("/proc/stat")?, &read(&path)?).context("/proc is not as proc(5) has it")
}

/// The first line of `/proc/stat`: user, nice, system, idle, iowait, irq, softirq, steal. Of `/proc/PID/stat` the 14th and the 15th
/// field: user and system.
fn parse(all: &str, own: &str) -> Option<Ticks> {
    let numbers = |text: &str| -> Option<Vec<u64>> {
        let words = text.split_whitespace();
        words.map(|word| word.parse().ok()).collect()
    };
    let all = numbers(all.lines().next()?.strip_prefix("cpu ")?)?;
    // The program's name is in parentheses, and may have any in it.
    let (_, own) = own.rsplit_once(") ")?;
    let own: Vec<&str> = own.split_whitespace().collect();
    Some(Ticks {
        all: all.get(..8)?.iter().sum(),
        idle: all.get(3)? + all.get(4)?,
        own: own.get(11)?.parse::<u64>().ok()? + own.get(12)?.parse::<u64>().ok()?,
    })
}

fn share(from: Ticks, to: Ticks) -> f64 {
    let all = to.all.saturating_sub(from.all);
    let ours = to.own.saturating_sub(from.own) + to.idle.saturating_sub(from.idle);
    all.saturating_sub(ours) as f64 / all.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_neither_idle_nor_ours_is_others() {
        let from = parse(
            "cpu  100 0 50 800 50 0 0 0 0 0\ncpu0 1\n",
            "12 (a b) c) S 1 12 12 0 -1 0 0 0 0 0 30 20 0 0",
        );
        let from = from.unwrap();
        assert_eq!((from.all, from.idle, from.own), (1000, 850, 50));
        let to = Ticks {
            all: 1200,
            idle: 900,
            own: 150,
        };
        assert_eq!(share(from, to), 0.25);
        assert!(parse("cpu 1 2", "x").is_none());
    }
}
