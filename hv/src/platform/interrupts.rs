//! The interrupt fabric: every vCPU's local APIC, the I/O APIC, and the messages between them.

use alloc::vec::Vec;

use super::VcpuSet;
use crate::device::ioapic::{IoApic, is_vectored};
use crate::device::lapic::{ApicMode, DeliveryMode, Destination, Effect, LocalApic, Message};

/// Local APICs and I/O APIC.
#[derive(Debug)]
pub struct Interrupts {
    local: Vec<LocalApic>,
    io: IoApic,
    /// vCPUs that were given something to look at.
    touched: VcpuSet,
    /// A level-triggered interrupt waits for a local APIC that takes it.
    has_refused: bool,
}

impl Interrupts {
    /// The fabric of a machine with `vcpus` vCPUs.
    pub fn new(vcpus: usize, mode: ApicMode) -> Self {
        Self {
            local: (0..vcpus as u32)
                .map(|id| LocalApic::new(id, mode))
                .collect(),
            io: IoApic::default(),
            touched: VcpuSet::default(),
            has_refused: false,
        }
    }

    /// True if a level-triggered interrupt found no local APIC that took it: its line is to be told again ([`Interrupts::set_line`]).
    pub fn has_refused(&self) -> bool {
        self.has_refused
    }

    /// Every line is about to be told again.
    pub fn forget_refused(&mut self) {
        self.has_refused = false;
    }

    /// The vCPUs that were given something since the last call.
    pub fn take_touched(&mut self) -> VcpuSet {
        core::mem::take(&mut self.touched)
    }

    /// Notes that a vCPU has something to look at.
    pub fn touch(&mut self, vcpu: usize) {
        self.touched = self.touched.with(VcpuSet::only(vcpu));
    }

    /// Gives a message to the local APICs that it is for. True if one took it.
    pub fn send(&mut self, sender: Option<usize>, message: Message) -> bool {
        let taken = deliver(&mut self.local, sender, message);
        self.touched = self.touched.with(taken);
        !taken.is_empty()
    }

    /// Gives the I/O APIC's `message` to the local APICs that it is for. The vector of a level-triggered interrupt that none of them
    /// took.
    fn offer(local: &mut [LocalApic], touched: &mut VcpuSet, message: Message) -> Option<u8> {
        let taken = deliver(local, None, message);
        *touched = touched.with(taken);
        (taken.is_empty() && message.level).then_some(message.vector)
    }

    /// The local APIC of `vcpu`.
    pub fn local(&self, vcpu: usize) -> Option<&LocalApic> {
        self.local.get(vcpu)
    }

    /// The local APIC of `vcpu`.
    pub fn local_mut(&mut self, vcpu: usize) -> Option<&mut LocalApic> {
        self.local.get_mut(vcpu)
    }

    /// Every local APIC.
    #[cfg(test)]
    pub fn locals_mut(&mut self) -> impl Iterator<Item = &mut LocalApic> {
        self.local.iter_mut()
    }

    /// Every local APIC.
    pub fn locals(&self) -> impl Iterator<Item = &LocalApic> {
        self.local.iter()
    }

    /// Sets the line of a GSI.
    pub fn set_line(&mut self, gsi: u8, active: bool) {
        if let Some(message) = self.io.set_line(gsi, active) {
            let refused = Self::offer(&mut self.local, &mut self.touched, message);
            self.note_refused(refused);
        }
    }

    fn note_refused(&mut self, vector: Option<u8>) {
        if let Some(vector) = vector {
            self.has_refused = true;
            self.io.refused(vector);
        }
    }

    /// Reads an I/O APIC register.
    pub fn read_io(&self, offset: u64) -> u32 {
        self.io.read(offset)
    }

    /// Writes an I/O APIC register.
    pub fn write_io(&mut self, offset: u64, value: u32) {
        let (local, touched, mut refused) = (&mut self.local, &mut self.touched, None);
        self.io.write(offset, value, |message| {
            refused = refused.or(Self::offer(local, touched, message));
        });
        self.note_refused(refused);
    }

    /// Carries out what `vcpu`'s local APIC wants done.
    pub fn apply(&mut self, vcpu: usize, effect: Effect) {
        match effect {
            Effect::None => {}
            Effect::EndOfLevel(vector) => {
                let (local, touched, mut refused) = (&mut self.local, &mut self.touched, None);
                self.io.end_of_interrupt(vector, |message| {
                    refused = refused.or(Self::offer(local, touched, message));
                });
                self.note_refused(refused);
            }
            Effect::Send(message) => {
                self.send(Some(vcpu), message);
            }
        }
    }
}

/// Gives `message` to the local APICs that it is for. `sender` is none for the I/O APIC. Those that took it.
fn deliver(local: &mut [LocalApic], sender: Option<usize>, message: Message) -> VcpuSet {
    let is_for = |index: usize, apic: &LocalApic| match message.destination {
        Destination::Physical(id) => apic.id() == id,
        Destination::Logical(target) => apic.matches_logical(target),
        Destination::Myself => Some(index) == sender,
        Destination::All => true,
        Destination::Others => Some(index) != sender,
    };
    if message.mode == DeliveryMode::LowestPriority {
        // The least busy one; of equals the first.
        let chosen = local
            .iter()
            .enumerate()
            .filter(|(index, apic)| apic.takes_interrupts() && is_for(*index, apic))
            .min_by_key(|(_, apic)| apic.arbitration_priority())
            .map(|(index, _)| index);
        return chosen
            .filter(|index| {
                local
                    .get_mut(*index)
                    .is_some_and(|apic| apic.accept(message.mode, message.vector, message.level))
            })
            .map_or(VcpuSet::default(), VcpuSet::only);
    }
    let mut taken = VcpuSet::default();
    for (index, apic) in local.iter_mut().enumerate() {
        if is_for(index, apic) {
            let level = message.level && is_vectored(message.mode);
            if apic.accept(message.mode, message.vector, level) {
                taken = taken.with(VcpuSet::only(index));
            }
        }
    }
    taken
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::lapic::VcpuEvent;

    fn enabled(vcpus: usize, mode: ApicMode) -> Interrupts {
        let mut interrupts = Interrupts::new(vcpus, mode);
        for apic in interrupts.locals_mut() {
            let effect = match mode {
                ApicMode::X2Apic => apic.write_msr(0x80F, 0x1FF, 0),
                ApicMode::XApic => Ok(apic.write_mmio(0xF0, 0x1FF, 0)),
            };
            assert_eq!(effect, Ok(Effect::None));
        }
        interrupts
    }

    fn command(interrupts: &mut Interrupts, vcpu: usize, value: u64) {
        let effect = interrupts
            .local_mut(vcpu)
            .unwrap()
            .write_msr(0x830, value, 0);
        interrupts.apply(vcpu, effect.unwrap());
    }

    fn pending(interrupts: &Interrupts) -> Vec<Option<u8>> {
        interrupts.locals().map(LocalApic::pending).collect()
    }

    #[test]
    fn messages_reach_their_destinations() {
        let mut interrupts = enabled(3, ApicMode::X2Apic);
        command(&mut interrupts, 0, 1 << 32 | 0x41);
        assert_eq!(pending(&interrupts), [None, Some(0x41), None]);
        command(&mut interrupts, 1, 0xC_0042);
        assert_eq!(pending(&interrupts), [Some(0x42), Some(0x41), Some(0x42)]);
        command(&mut interrupts, 2, 0b110 << 32 | 0x0843);
        assert_eq!(pending(&interrupts), [Some(0x42), Some(0x43), Some(0x43)]);
        command(&mut interrupts, 2, 0x4_0044);
        assert_eq!(pending(&interrupts)[2], Some(0x44));
        command(&mut interrupts, 0, 9 << 32 | 0x99);
        assert_eq!(pending(&interrupts)[0], Some(0x42), "no such vCPU");
    }

    #[test]
    fn lowest_priority_takes_the_idle_one() {
        let mut interrupts = enabled(3, ApicMode::X2Apic);
        interrupts.local_mut(0).unwrap().set_task_priority(0x30);
        interrupts.local_mut(1).unwrap().set_task_priority(0x10);
        interrupts.local_mut(2).unwrap().set_task_priority(0x20);
        command(&mut interrupts, 0, 0b111 << 32 | 0x0951);
        assert_eq!(pending(&interrupts), [None, Some(0x51), None]);
    }

    #[test]
    fn broadcast_starts_the_others() {
        let mut interrupts = enabled(3, ApicMode::X2Apic);
        command(&mut interrupts, 0, 0xC_4500);
        command(&mut interrupts, 0, 0xC_4612);
        assert!(!interrupts.local(0).unwrap().has_event(true));
        for vcpu in 1..3 {
            let apic = interrupts.local_mut(vcpu).unwrap();
            assert_eq!(apic.take_event(true), Some(VcpuEvent::Init));
            assert_eq!(apic.take_event(true), Some(VcpuEvent::Startup(0x12)));
        }
    }

    #[test]
    fn a_level_line_is_delivered_until_it_falls() {
        let mut interrupts = enabled(2, ApicMode::X2Apic);
        interrupts.write_io(0, 0x10 + 2 * 9 + 1);
        interrupts.write_io(0x10, 1 << 24);
        interrupts.write_io(0, 0x10 + 2 * 9);
        interrupts.write_io(0x10, 0x8061);
        interrupts.set_line(9, true);
        for _ in 0..2 {
            assert_eq!(pending(&interrupts), [None, Some(0x61)]);
            let apic = interrupts.local_mut(1).unwrap();
            apic.acknowledge(0x61);
            let effect = apic.end_of_interrupt();
            assert_eq!(effect, Effect::EndOfLevel(0x61));
            interrupts.apply(1, effect);
        }
        interrupts.set_line(9, false);
        let apic = interrupts.local_mut(1).unwrap();
        apic.acknowledge(0x61);
        let effect = apic.end_of_interrupt();
        interrupts.apply(1, effect);
        assert_eq!(pending(&interrupts), [None, None]);
    }

    #[test]
    fn a_level_line_waits_for_a_local_apic_that_takes_it() {
        let mut interrupts = Interrupts::new(1, ApicMode::X2Apic);
        interrupts.write_io(0, 0x10 + 2 * 9);
        interrupts.write_io(0x10, 0x8061);
        interrupts.set_line(9, true);
        let apic = interrupts.local_mut(0).unwrap();
        assert_eq!(apic.pending(), None, "it is still switched off");
        assert_eq!(apic.write_msr(0x80F, 0x1FF, 0), Ok(Effect::None));
        // Whatever happens next, the platform tells every line.
        interrupts.set_line(9, true);
        assert_eq!(pending(&interrupts), [Some(0x61)]);
    }

    #[test]
    fn flat_logical_destinations_work_in_xapic_mode() {
        let mut interrupts = enabled(2, ApicMode::XApic);
        for (vcpu, bit) in [(0, 1), (1, 2)] {
            let apic = interrupts.local_mut(vcpu).unwrap();
            assert_eq!(apic.write_mmio(0xD0, bit << 24, 0), Effect::None);
        }
        interrupts.write_io(0, 0x10 + 2 * 4 + 1);
        interrupts.write_io(0x10, 2 << 24);
        interrupts.write_io(0, 0x10 + 2 * 4);
        interrupts.write_io(0x10, 0x0834);
        interrupts.set_line(4, true);
        assert_eq!(pending(&interrupts), [None, Some(0x34)]);
    }
}
