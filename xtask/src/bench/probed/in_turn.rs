//! Boxes that are compared: one at a time runs, while the others are held still (SIGSTOP), in turn. Not what is measured.

use anyhow::{Result, bail};

use super::packets::reaches;
use super::{ProbedBox, Setting, Stage, again};
use crate::bench::hv::load::Load;

/// A turn is good if other programs had at most this share of the machine; of so many times as many turns as are wanted the best count.
const QUIET: f64 = 0.05;
const MOST: usize = 3;

/// What the probe is told, and says when it does it.
pub type Does = (&'static str, &'static str);
/// Its vCPUs are halted.
pub const HALTED: Does = ("hello", "probe: hello: passed");
/// `cli; jmp $` on every vCPU.
pub const SPINS: Does = ("spin", "2 CPUs spinning with interrupts off");

/// Boxes that differ in what the guest does, or the services.
pub struct InTurn<const N: usize>(pub [ProbedBox; N]);

impl<const N: usize> InTurn<N> {
    /// Starts one for each of these settings, and waits for what the probe says in it. All of them are still then.
    ///
    /// # Errors
    /// One does not start.
    pub fn start(stage: &Stage, settings: [(Setting, &str); N]) -> Result<InTurn<N>> {
        again(|| {
            let mut all = Vec::new();
            for (setting, says) in &settings {
                let mut machine = stage.start(setting)?;
                machine.console(says)?;
                reaches(&mut machine)?;
                machine.pause()?;
                all.push(machine);
            }
            match all.try_into() {
                Ok(all) => Ok(InTurn(all)),
                Err(_) => bail!("there is not a box for each setting"),
            }
        })
    }

    /// Measures one after the other, until so many turns found this machine quiet. Where that takes too long, the quietest ones count.
    ///
    /// # Errors
    /// As `measure`, or a box is gone.
    pub fn measure<T>(
        &mut self,
        wanted: usize,
        mut measure: impl FnMut(&mut ProbedBox) -> Result<T>,
    ) -> Result<Vec<[T; N]>> {
        let mut turns = Vec::new();
        while turns.len() < MOST * wanted {
            let mut busy = 0.0_f64;
            let mut turn = Vec::new();
            for machine in &mut self.0 {
                machine.go_on()?;
                // What a still machine missed (timers, a status line) is made up for first.
                reaches(machine)?;
                let load = Load::begin(machine.qemu.id())?;
                let result = measure(machine);
                busy = busy.max(load.others()?);
                machine.pause()?;
                turn.push(result?);
            }
            turns.push((busy, turn));
            if turns.iter().filter(|(busy, _)| *busy <= QUIET).count() >= wanted {
                break;
            }
        }
        turns.sort_by(|(a, _), (b, _)| a.total_cmp(b));
        turns.truncate(wanted);
        if let Some((busy, _)) = turns.last().filter(|(busy, _)| *busy > QUIET) {
            println!(
                "Other programs had up to {:.0}% of this machine's CPUs meanwhile: they keep the emulated ones waiting, most of all those that spin.",
                100.0 * busy
            );
        }
        let turns = turns.into_iter();
        Ok(turns.filter_map(|(_, turn)| turn.try_into().ok()).collect())
    }
}
