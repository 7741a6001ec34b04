//! What the CPUs' TLBs may hold of a vCPU, and so what its next VMRUN has to flush (APM vol. 2, 15.16).
//!
//! A CPU tags what it caches with an ASID. The guest invalidates on the CPU where it runs, and nowhere else: what other CPUs have cached of it, under the same ASID, may be
//! stale. VMRUN flushes what TLB_CONTROL says and nothing more, and leaves that field as it is: a request stands there from when it is made until a VMRUN has carried it out, wherever
//! the vCPU is by then.

use super::vmcb::{Control, tlb_control};

/// Where a vCPU's cached translations are.
#[derive(Clone, Copy, Debug)]
pub struct Translations {
    /// Other vCPUs may have its ASID.
    shares_asid: bool,
    /// The CPU that ran it last: only there may be translations of it that are good.
    last_cpu: Option<usize>,
    /// The one that ran it before that, for evidence.
    cpu_before: Option<usize>,
}

impl Translations {
    /// Those of a vCPU that has not run: it has none, but an earlier guest may have left some under its ASID on any CPU.
    pub fn new(shares_asid: bool) -> Self {
        Self {
            shares_asid,
            last_cpu: None,
            cpu_before: None,
        }
    }

    /// The vCPU comes to CPU `cpu`, and runs there alone until it leaves. Its next VMRUN flushes if it was elsewhere meanwhile, or if others may
    /// have run there with its ASID.
    pub fn come_to(&mut self, cpu: usize, control: &mut Control) {
        let moves = self.last_cpu != Some(cpu);
        if moves || self.shares_asid {
            request_flush(control);
        }
        if moves {
            self.cpu_before = self.last_cpu.replace(cpu);
        }
    }

    /// The CPU that it came to last, and the one before that.
    pub fn cpus(&self) -> [Option<usize>; 2] {
        [self.last_cpu, self.cpu_before]
    }
}

/// The next VMRUN, on whatever CPU, flushes.
pub fn request_flush(control: &mut Control) {
    control.tlb_control = tlb_control::FLUSH_ALL;
}

/// VMRUN has carried out what it was asked for; the one after it flushes nothing.
pub fn end_flush(control: &mut Control) {
    control.tlb_control = tlb_control::DO_NOT_FLUSH;
}

#[cfg(test)]
mod tests;
