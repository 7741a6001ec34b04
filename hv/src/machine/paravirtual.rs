//! What the guest and the hypervisor tell each other through memory, as KVM has it (Documentation/virt/kvm/x86/msr.rst): system time,
//! wall clock, ends of interrupts, steal time.

use super::processor::Processor;
use crate::msr::system_time_bytes;
use crate::platform::Platform;

/// The bit of KVM's PV EOI byte that the guest clears instead of writing the EOI register.
const END_NEEDS_NO_EXIT: u8 = 1;

/// Where `struct kvm_steal_time` has its version, and the word with `preempted`.
const STEAL_VERSION: u64 = 8;
const STEAL_PREEMPTED: u64 = 16;
/// Bits of `preempted`: the vCPU does not run; it is to flush its TLB before it does.
const PREEMPTED: u32 = 1;
const FLUSH_TLB: u32 = 2;

impl Processor<'_> {
    /// Lets the guest end the interrupt in service without an exit, if nobody needs to know at once (KVM's PV EOI).
    pub(super) fn offer_end(&mut self, platform: &Platform<'_>) {
        if let Some(address) = self.msrs.end_of_interrupt()
            && platform.end_needs_no_exit(self.index())
            && self
                .shared
                .memory
                .write_u8(address, END_NEEDS_NO_EXIT)
                .is_ok()
        {
            self.end_offered = Some(address);
        }
    }

    /// Takes the offer back; if the guest has used it, the interrupt has ended.
    pub(super) fn accept_end(&mut self) {
        let Some(address) = self.end_offered.take() else {
            return;
        };
        let shared = &*self.shared;
        if shared.memory.read_u8(address).unwrap_or(0) & END_NEEDS_NO_EXIT != 0 {
            // It could be written when the offer was made.
            let _ = shared.memory.write_u8(address, 0);
        } else {
            let index = self.topology.vcpu as usize;
            shared.with_platform(index, |platform| platform.end_of_interrupt(index));
        }
    }

    /// Writes KVM's system time structure, if the guest has one. It stays true: the TSC never changes its rate.
    pub(super) fn publish_system_time(&mut self) {
        let Some(address) = self.msrs.system_time() else {
            return;
        };
        // Two readings around the clock's: the middle is when the clock was read.
        let before = self.guest_tsc();
        let now = self.shared.host.now_ns();
        let tsc = before.wrapping_add(self.guest_tsc().wrapping_sub(before) / 2);
        self.clock_version = self.clock_version.wrapping_add(2);
        let bytes = system_time_bytes(self.clock_version, tsc, now, self.shared.clock);
        // Odd while it changes: another vCPU may be reading it.
        let memory = &self.shared.memory;
        let written = memory
            .write_u32(address, self.clock_version.wrapping_sub(1))
            .and_then(|()| memory.write(address + 4, bytes.get(4..).unwrap_or_default()))
            .and_then(|()| memory.write_u32(address, self.clock_version));
        if written.is_err() {
            log::debug!("guest wants its system time at {address:#x}, where it has no memory");
        }
    }

    /// Writes KVM's wall clock structure: version, seconds, nanoseconds at system time zero.
    pub(super) fn publish_wall_clock(&mut self, address: u64) {
        let seconds = self.shared.host.boot_unix_seconds() as u32;
        let mut bytes = [0; 12];
        bytes[0] = 2;
        bytes[4..8].copy_from_slice(&seconds.to_le_bytes());
        if self.shared.memory.write(address, &bytes).is_err() {
            log::debug!("guest wants the wall clock at {address:#x}, where it has no memory");
        }
    }

    /// The vCPU is about to run: tells the guest how long it could have run and did not, and does what other vCPUs have asked for meanwhile.
    pub(super) fn resume_steal_time(&mut self) {
        let Some(address) = self.msrs.steal_time() else {
            return;
        };
        if self.mark_preempted(address, 0) & FLUSH_TLB != 0 {
            self.vcpu.flush();
        }
        let memory = &self.shared.memory;
        let stolen = self.shared.host.stolen_ns(self.topology.vcpu as usize);
        self.steal_version = self.steal_version.wrapping_add(2);
        let written = memory
            .write_u32(address + STEAL_VERSION, self.steal_version.wrapping_sub(1))
            .and_then(|()| memory.write_u64(address, stolen))
            .and_then(|()| memory.write_u32(address + STEAL_VERSION, self.steal_version));
        if written.is_err() {
            log::debug!("guest wants its steal time at {address:#x}, where it has no memory");
        }
    }

    /// The vCPU does not run from now on: the others need not wait for it.
    pub(super) fn pause_steal_time(&mut self) {
        if let Some(address) = self.msrs.steal_time() {
            self.mark_preempted(address, PREEMPTED);
        }
    }

    /// Sets `preempted` and gives what it was. Other vCPUs change it by locked accesses at the same time.
    fn mark_preempted(&self, address: u64, new: u32) -> u32 {
        /// Each failure means that another vCPU has written; there is one bit for them to set.
        const TRIES: usize = 64;
        let memory = &self.shared.memory;
        for _ in 0..TRIES {
            let Ok(old) = memory.read_u32(address + STEAL_PREEMPTED) else {
                return 0;
            };
            let changed = old & !0xFF | new;
            match memory.compare_exchange_u32(address + STEAL_PREEMPTED, old, changed) {
                Ok(true) => return old,
                Ok(false) => {}
                Err(_) => return 0,
            }
        }
        // A guest that plays with it gets a flush too many.
        FLUSH_TLB
    }
}
