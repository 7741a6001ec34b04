use proptest::prelude::*;

use super::*;

const SVR: u32 = 0x80F;
const EOI: u32 = 0x80B;
const ICR: u32 = 0x830;

fn enabled() -> LocalApic {
    let mut apic = LocalApic::new(0, ApicMode::X2Apic);
    assert_eq!(apic.write_msr(SVR, 0x1FF, 0), Ok(Effect::None));
    apic
}

#[test]
fn identity_follows_the_mode() {
    let mut apic = LocalApic::new(17, ApicMode::X2Apic);
    assert_eq!(apic.read_msr(0x802, 0), Ok(17));
    assert_eq!(apic.read_msr(0x80D, 0), Ok(1 << 16 | 2));
    assert_eq!(apic.read_msr(0x803, 0), Ok(0x5_0014));
    assert_eq!(apic.base(), 0xFEE0_0C00);
    assert!(!apic.has_mmio());
    let mut apic = LocalApic::new(3, ApicMode::XApic);
    assert_eq!(apic.read_mmio(0x20, 0), 3 << 24);
    assert_eq!(apic.read_msr(0x802, 0), Err(GeneralProtection));
    assert!(apic.has_mmio());
}

#[test]
fn interrupts_are_taken_by_priority() {
    let mut apic = enabled();
    assert_eq!(apic.pending(), None);
    for vector in [0x31, 0x52, 0x55] {
        apic.accept(DeliveryMode::Fixed, vector, false);
    }
    assert_eq!(apic.pending(), Some(0x55));
    apic.acknowledge(0x55);
    assert_eq!(apic.pending(), None, "0x52 is in the class in service");
    apic.accept(DeliveryMode::Fixed, 0x60, false);
    assert_eq!(apic.pending(), Some(0x60), "a higher class nests");
    assert_eq!(apic.read_msr(0x80A, 0), Ok(0x50));
    apic.acknowledge(0x60);
    assert_eq!(apic.write_msr(EOI, 0, 0), Ok(Effect::None));
    assert_eq!(apic.pending(), None);
    assert_eq!(apic.write_msr(EOI, 0, 0), Ok(Effect::None));
    assert_eq!(apic.pending(), Some(0x52));
    assert_eq!(apic.write_msr(0x808, 0x50, 0), Ok(Effect::None));
    assert_eq!(apic.pending(), None, "masked by the task priority");
    apic.set_task_priority(0x4F);
    assert_eq!(apic.pending(), Some(0x52));
    assert_eq!(apic.read_msr(0x822, 0), Ok(1 << (0x52 & 31)));
}

#[test]
fn the_end_of_a_level_interrupt_is_told() {
    let mut apic = enabled();
    apic.accept(DeliveryMode::Fixed, 0x40, true);
    apic.acknowledge(0x40);
    assert!(!apic.end_needs_no_exit());
    assert_eq!(apic.write_msr(EOI, 0, 0), Ok(Effect::EndOfLevel(0x40)));
    apic.accept(DeliveryMode::Fixed, 0x40, false);
    apic.acknowledge(0x40);
    assert!(apic.end_needs_no_exit());
    apic.accept(DeliveryMode::Fixed, 0x30, false);
    assert!(!apic.end_needs_no_exit());
    assert_eq!(apic.write_msr(EOI, 0, 0), Ok(Effect::None));
}

#[test]
fn commands_become_messages() {
    let mut apic = enabled();
    let send = |apic: &mut LocalApic, value: u64| match apic.write_msr(ICR, value, 0) {
        Ok(Effect::Send(message)) => Some(message),
        Ok(Effect::None) => None,
        other => panic!("{other:?}"),
    };
    let message = |destination, mode, vector| {
        Some(Message {
            destination,
            mode,
            vector,
            level: false,
        })
    };
    assert_eq!(
        send(&mut apic, 5 << 32 | 0x4041),
        message(Destination::Physical(5), DeliveryMode::Fixed, 0x41)
    );
    assert_eq!(
        send(&mut apic, 0x1_0003 << 32 | 0x0941),
        message(
            Destination::Logical(0x1_0003),
            DeliveryMode::LowestPriority,
            0x41
        )
    );
    assert_eq!(
        send(&mut apic, 0xC_4500),
        message(Destination::Others, DeliveryMode::Init, 0)
    );
    assert_eq!(send(&mut apic, 0xC_8500), None, "INIT de-assert");
    assert_eq!(
        send(&mut apic, 0xC_4608),
        message(Destination::Others, DeliveryMode::Startup, 8)
    );
    assert_eq!(
        send(&mut apic, 0xFFFF_FFFF << 32 | 0x4400),
        message(Destination::All, DeliveryMode::Nmi, 0)
    );
    assert_eq!(send(&mut apic, 0x4305), None, "a reserved mode");
    assert_eq!(send(&mut apic, 0x4005), None, "an illegal vector");
    assert_eq!(apic.write_msr(0x828, 0, 0), Ok(Effect::None));
    assert_eq!(apic.read_msr(0x828, 0), Ok(0x20));
    assert_eq!(
        apic.write_msr(0x83F, 0x77, 0),
        Ok(Effect::Send(Message {
            destination: Destination::Myself,
            mode: DeliveryMode::Fixed,
            vector: 0x77,
            level: false
        }))
    );
    assert_eq!(apic.write_msr(0x83F, 0x100, 0), Err(GeneralProtection));
}

#[test]
fn reserved_bits_fault_in_x2apic_mode_only() {
    let mut apic = enabled();
    for (msr, value) in [
        (SVR, 0x11FF),
        (0x83E, 0x4),
        (0x832, 0x8_00EC),
        (0x833, 0x8000),
        (0x837, 0x100),
        (ICR, 0x10_0041),
        (ICR, 0x1_0041),
        (ICR, 0x2041),
    ] {
        let result = apic.write_msr(msr, value, 0);
        assert_eq!(result, Err(GeneralProtection), "{msr:#x}: {value:#x}");
    }
    assert_eq!(apic.read_msr(0x832, 0), Ok(0x1_0000), "as it was");
    // What a kernel reads and writes back is taken.
    assert_eq!(apic.write_msr(0x835, 0x1_5700, 0), Ok(Effect::None));
    assert_eq!(apic.read_msr(0x835, 0), Ok(0x1_0700));
    let mut apic = LocalApic::new(0, ApicMode::XApic);
    assert_eq!(apic.write_mmio(0xF0, 0xFFFF_F1FF, 0), Effect::None);
    assert_eq!(apic.read_mmio(0xF0, 0), 0x1FF);
}

#[test]
fn an_illegal_vector_to_oneself_is_a_send_error() {
    let mut apic = enabled();
    assert_eq!(apic.write_msr(0x83F, 5, 0), Ok(Effect::None));
    assert_eq!(apic.write_msr(0x828, 0, 0), Ok(Effect::None));
    assert_eq!(apic.read_msr(0x828, 0), Ok(0x20));
}

#[test]
fn xapic_commands_are_written_in_two_halves() {
    let mut apic = LocalApic::new(0, ApicMode::XApic);
    assert_eq!(apic.write_mmio(0xF0, 0x1FF, 0), Effect::None);
    assert_eq!(apic.write_mmio(0x310, 2 << 24, 0), Effect::None);
    assert_eq!(
        apic.write_mmio(0x300, 0x4500, 0),
        Effect::Send(Message {
            destination: Destination::Physical(2),
            mode: DeliveryMode::Init,
            vector: 0,
            level: false
        })
    );
    assert_eq!(apic.read_mmio(0x310, 0), 2 << 24);
    assert_eq!(apic.read_mmio(0x304, 0), 0);
    assert_eq!(apic.write_mmio(0x280, 0, 0), Effect::None);
    assert_eq!(apic.read_mmio(0x280, 0), 0x80, "no register there");
}

#[test]
fn modes_change_only_as_allowed() {
    let mut apic = LocalApic::new(0, ApicMode::XApic);
    let base = apic.base();
    assert_eq!(base, 0xFEE0_0900);
    assert_eq!(apic.set_base(base & !0x800 | 0x400), Err(GeneralProtection));
    assert_eq!(apic.set_base(base | 1), Err(GeneralProtection));
    assert_eq!(apic.set_base(base ^ 0x100), Err(GeneralProtection));
    assert_eq!(apic.set_base(base + 0x1000), Err(GeneralProtection));
    assert_eq!(apic.set_base(base | 0x400), Ok(()));
    assert_eq!(apic.set_base(base), Err(GeneralProtection));
    assert_eq!(apic.set_base(base & !0x800), Ok(()));
    assert_eq!(apic.read_msr(0x802, 0), Err(GeneralProtection));
    assert_eq!(apic.set_base(base | 0x400), Err(GeneralProtection));
    assert_eq!(apic.set_base(base), Ok(()));
}

#[test]
fn the_timer_fires_through_its_local_vector() {
    let mut apic = enabled();
    assert_eq!(apic.write_msr(0x832, 0xEC, 0), Ok(Effect::None));
    assert_eq!(apic.write_msr(0x83E, 0xB, 0), Ok(Effect::None));
    assert_eq!(apic.write_msr(0x838, 1000, 0), Ok(Effect::None));
    apic.service(999);
    assert_eq!(apic.pending(), None);
    assert_eq!(apic.read_msr(0x839, 400), Ok(600));
    apic.service(1000);
    assert_eq!(apic.pending(), Some(0xEC));
    apic.acknowledge(0xEC);
    assert_eq!(apic.write_msr(EOI, 0, 0), Ok(Effect::None));

    assert_eq!(apic.write_msr(0x832, 0x4_00EC, 0), Ok(Effect::None));
    assert!(apic.is_tsc_deadline());
    apic.set_tsc_deadline(9000, 1000, 2000, 1_000_000_000);
    assert_eq!(apic.deadline_ns(), Some(10_000));
    assert_eq!(apic.write_msr(0x832, 0x5_00EC, 0), Ok(Effect::None));
    apic.service(20_000);
    assert_eq!(apic.pending(), None, "masked");
    assert_eq!(apic.deadline_ns(), None);
}

#[test]
fn a_disabled_apic_takes_no_vectors_but_events() {
    let mut apic = LocalApic::new(1, ApicMode::X2Apic);
    apic.accept(DeliveryMode::Fixed, 0x50, false);
    assert_eq!(apic.pending(), None);
    apic.accept(DeliveryMode::Nmi, 0, false);
    apic.accept(DeliveryMode::Init, 0, false);
    apic.accept(DeliveryMode::Startup, 0x9A, false);
    assert!(apic.has_event(true));
    assert_eq!(apic.take_event(true), Some(VcpuEvent::Init));
    assert_eq!(apic.take_event(true), Some(VcpuEvent::Startup(0x9A)));
    assert_eq!(
        apic.take_event(true),
        None,
        "INIT discards what came before"
    );
    assert!(apic.is_x2apic(), "INIT keeps the mode");
}

#[test]
fn disabling_masks_the_local_vectors() {
    let mut apic = enabled();
    assert_eq!(apic.write_msr(0x835, 0x700, 0), Ok(Effect::None));
    assert_eq!(apic.read_msr(0x835, 0), Ok(0x700));
    assert_eq!(apic.write_msr(SVR, 0xFF, 0), Ok(Effect::None));
    assert_eq!(apic.read_msr(0x835, 0), Ok(0x1_0700));
    assert_eq!(apic.write_msr(0x835, 0x700, 0), Ok(Effect::None));
    assert_eq!(apic.read_msr(0x835, 0), Ok(0x1_0700));
}

proptest! {
    /// Any sequence of accesses in either mode leaves an APIC that answers, and PPR is never below a class in service.
    #[test]
    fn any_access_is_survived(
        ops in proptest::collection::vec((0_u8..6, any::<u32>(), any::<u64>()), 1..200),
        x2apic in any::<bool>(),
    ) {
        let mode = if x2apic { ApicMode::X2Apic } else { ApicMode::XApic };
        let mut apic = LocalApic::new(0, mode);
        let mut now = 0;
        for (op, index, value) in ops {
            now += u64::from(index & 0xFFFF);
            match op {
                0 => { let _ = apic.write_msr(0x800 + index % 0x42, value, now); }
                1 => { let _ = apic.read_msr(0x800 + index % 0x42, now); }
                2 => { let _ = apic.write_mmio(u64::from(index) & 0xFFC, value as u32, now); }
                3 => { let _ = apic.read_mmio(u64::from(index) & 0xFFC, now); }
                4 => {
                    apic.accept(DeliveryMode::Fixed, value as u8, index & 1 != 0);
                    if let Some(vector) = apic.pending() {
                        apic.acknowledge(vector);
                        prop_assert!(apic.priority() & 0xF0 >= vector & 0xF0);
                        prop_assert!(apic.pending().is_none_or(|next| next & 0xF0 > vector & 0xF0));
                    }
                }
                _ => {
                    let _ = apic.set_base(value & 0xFFF | LOCAL_APIC);
                    apic.set_tsc_deadline(value, 0, now, 1_000_000_000);
                    apic.service(now);
                    let _ = apic.take_event(true);
                }
            }
        }
    }
}
