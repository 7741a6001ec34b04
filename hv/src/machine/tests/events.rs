//! Interrupts, NMIs, INIT and the timer: when they are delivered, and what waits for what.

use super::*;

/// A guest whose local APIC fires vector 40h after a microsecond; gives what each entry was handed.
fn with_timer(host: &Box0, then: &[Exit], rflags: u64) -> (StopReason, Vec<(Option<Event>, bool)>) {
    let mut scene = Scene::new(host, &[0xF4; 16], then);
    for (msr, value) in [(0x80F, 0x1FF), (0x83E, 0xB), (0x832, 0x40), (0x838, 1000)] {
        scene.write_apic(msr, value);
    }
    scene.set(|registers| registers.rflags |= rflags);
    let reason = scene.run();
    let entries = scene.script.borrow().entries.clone();
    (reason, entries)
}

#[test]
fn a_halted_guest_is_woken_by_its_timer() {
    let host = Box0::default();
    let (reason, entries) = with_timer(&host, &[Exit::Halt], RFLAGS_IF);
    assert_eq!(reason, StopReason::TripleFault);
    assert_eq!(
        entries,
        [(None, false), (Some(Event::Interrupt(0x40)), false)]
    );
    assert_eq!(
        (host.idled.load(Ordering::Relaxed), host.now_ns()),
        (1, 1000)
    );
}

#[test]
fn a_masked_guest_tells_when_it_can_take_an_interrupt() {
    let host = Box0::default();
    host.inner.set_now(0);
    let mut scene = Scene::new(&host, &[], &[Exit::HostInterrupt, Exit::InterruptWindow]);
    for (msr, value) in [(0x80F, 0x1FF), (0x832, 0x40), (0x838, 1)] {
        scene.write_apic(msr, value);
    }
    host.inner.set_now(1000);
    scene.script.borrow_mut().delivery = Some(Delivery::Masked);
    scene.run();
    let entries = scene.script.borrow().entries.clone();
    assert_eq!(
        entries,
        [(None, true), (None, true), (None, true)],
        "watched until it can be delivered"
    );
    assert_eq!(host.interrupts.load(Ordering::Relaxed), 1);
}

#[test]
fn nothing_is_armed_in_an_interrupt_shadow() {
    let host = Box0::default();
    let scene = Scene::new(&host, &[], &[]);
    for (msr, value) in [(0x80F, 0x1FF), (0x832, 0x40), (0x838, 1)] {
        scene.write_apic(msr, value);
    }
    host.inner.set_now(1000);
    scene
        .machine
        .with_platform(|platform| platform.service(scene.machine.memory(), 0, true));
    scene.script.borrow_mut().delivery = Some(Delivery::Shadow);
    assert_eq!(
        scene.deliver(),
        Some(1000 + SHADOW_NS),
        "looked at again soon instead"
    );
    assert!(!scene.script.borrow().window && scene.script.borrow().injected.is_empty());
    // When the shadow is over it is still there.
    scene.script.borrow_mut().delivery = Some(Delivery::Ready);
    assert_eq!(scene.deliver(), None);
    assert_eq!(scene.script.borrow().injected, [Event::Interrupt(0x40)]);
}

#[test]
fn a_halt_in_an_interrupt_shadow_comes_before_the_interrupt() {
    let host = Box0::default();
    for (code, rest, retired) in [
        ([0xF4, 0x90], Some(crate::platform::Rest::Halted), 1),
        ([0x90, 0xF4], None, 0),
    ] {
        let scene = Scene::new(&host, &code, &[]);
        {
            let mut processor = scene.processor();
            let registers = processor.vcpu.registers_mut();
            (registers.rip, registers.rflags) = (CODE, RFLAGS_ONE | RFLAGS_IF);
        }
        scene.script.borrow_mut().delivery = Some(Delivery::Shadow);
        assert_eq!(scene.processor().handle(Exit::HostInterrupt), Ok(()));
        assert_eq!(scene.processor().rest, rest);
        assert_eq!(scene.processor().vcpu.registers().rip, CODE + retired);
    }
}

#[test]
fn an_nmi_waits_for_the_end_of_the_shadow_and_no_longer() {
    let host = Box0::default();
    let scene = Scene::new(&host, &[0xF4], &[]);
    // An NMI to itself.
    scene.write_apic(0x830, 0x4_4400);
    for busy in [Delivery::Shadow, Delivery::Busy] {
        scene.script.borrow_mut().delivery = Some(busy);
        assert_eq!(scene.deliver(), Some(SHADOW_NS));
        assert!(scene.script.borrow().injected.is_empty());
    }
    // Nor is it delivered while another is handled. The CPU says when that begins to end, but not when it has.
    scene.script.borrow_mut().delivery = Some(Delivery::Masked);
    for (window, again) in [
        (NmiWindow::Closed, None),
        (NmiWindow::Opening, Some(SHADOW_NS)),
    ] {
        scene.script.borrow_mut().nmi_window = window;
        assert_eq!(scene.deliver(), again);
        assert!(scene.script.borrow().injected.is_empty());
    }
    scene.script.borrow_mut().nmi_window = NmiWindow::Open;
    // It wakes a halt with interrupts off.
    scene.script.borrow_mut().delivery = Some(Delivery::Masked);
    assert_eq!(scene.processor().handle(Exit::Halt), Ok(()));
    assert_eq!(scene.deliver(), None);
    assert_eq!(scene.script.borrow().injected, [Event::Nmi]);
}

#[test]
fn an_interrupt_may_end_without_an_exit() {
    let host = Box0::default();
    let exits = [Exit::WriteMsr, Exit::HostInterrupt, Exit::HostInterrupt];
    let scene = Scene::new(&host, &[0x0F, 0x30], &exits);
    for (msr, value) in [(0x80F, 0x1FF), (0x832, 0x40), (0x838, 1)] {
        scene.write_apic(msr, value);
    }
    scene.set(|registers| {
        registers.set(Gpr::Rcx, 0x4B56_4D04);
        registers.set(Gpr::Rax, 0x9001);
    });
    scene.processor().vcpu.bind(0).unwrap();
    scene.processor().turn().unwrap();
    // The timer's interrupt is delivered and the end of it offered: the guest has not used that by the exit.
    host.inner.set_now(1_000_000);
    scene.processor().vcpu.registers_mut().rflags |= RFLAGS_IF;
    scene.processor().turn().unwrap();
    assert_eq!(scene.injected(), [Event::Interrupt(0x40)]);
    assert_eq!(scene.machine.memory().read_u8(0x9000), Ok(0), "taken back");
    assert!(scene.end_needs_no_exit(), "still in service");
    // Next time the guest clears the bit.
    scene
        .machine
        .with_platform(|platform| scene.processor().offer_end(platform));
    assert_eq!(scene.machine.memory().read_u8(0x9000), Ok(1));
    scene.machine.memory().write_u8(0x9000, 0).unwrap();
    scene.processor().accept_end();
    assert!(!scene.end_needs_no_exit(), "nothing in service");
}

#[test]
fn a_storm_of_exceptions_keeps_no_interrupt_from_the_box() {
    let host = Box0::default();
    // Alignment checks in the delivery of alignment checks: the guest never executes anything between them.
    let exits = [Exit::Exception(17, Some(0)); 5];
    let mut scene = Scene::new(&host, &[], &exits);
    assert_eq!(scene.run(), StopReason::TripleFault);
    assert_eq!(host.interrupts.load(Ordering::Relaxed), 5);
}

#[test]
fn a_new_tsc_moves_the_deadline() {
    let host = Box0::default();
    let mut scene = Scene::new(&host, &[0x0F, 0x30], &[Exit::WriteMsr]);
    scene.write_apic(0x80F, 0x1FF);
    scene.write_apic(0x832, 0x4_0040);
    // An hour ahead of where the TSC was, then half a second (of 2 GHz) ahead of where it is put.
    scene
        .machine
        .with_platform(|platform| platform.set_tsc_deadline(0, 7_200_000_000_000, 0));
    scene.set(|registers| {
        registers.set(Gpr::Rcx, 0x10);
        let tsc = 7_199_000_000_000_u64;
        registers.set(Gpr::Rax, tsc & 0xFFFF_FFFF);
        registers.set(Gpr::Rdx, tsc >> 32);
    });
    scene.run();
    let (value, deadline) = scene.machine.with_platform(|platform| {
        let deadline = platform.next_deadline_ns(0).unwrap();
        (platform.tsc_deadline(0), deadline)
    });
    assert_eq!(value, 7_200_000_000_000);
    assert!(deadline <= 500_000_000, "{deadline}");
}

#[test]
fn the_only_vcpu_cannot_reset_itself() {
    let host = Box0::default();
    let mut scene = Scene::new(&host, &[], &[]);
    scene.write_apic(0x80F, 0x1FF);
    // INIT to itself by physical identifier.
    scene.write_apic(0x830, 0x4500);
    assert_eq!(scene.run(), StopReason::SelfInit);
}

#[test]
fn the_timer_is_asked_for_again_whenever_others_may_have_used_it() {
    let host = Box0::default();
    // A guest without a timer of its own: the box may want its CPU back all the same.
    let exits = [Exit::HostInterrupt, Exit::InterruptWindow];
    let mut scene = Scene::new(&host, &[], &exits);
    host.leave.store(true, Ordering::Relaxed);
    assert_eq!(scene.machine.run(0, 0), Left::Preempted);
    assert_eq!(host.armings.load(Ordering::Relaxed), 0);
    scene.run();
    // At the first entry and after the interrupt, not after the window.
    assert_eq!(host.armings.load(Ordering::Relaxed), 2);
}
