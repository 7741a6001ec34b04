//! Single steps and the resume flag at instructions that the hypervisor carries out.

use super::*;
use crate::cpu::RFLAGS_TF;

#[test]
fn an_emulated_instruction_is_single_stepped_too() {
    let host = Box0::default();
    let mut scene = Scene::new(&host, &[0x0F, 0xA2], &[Exit::Cpuid]);
    scene.set(|registers| registers.rflags |= RFLAGS_TF);
    scene.run();
    assert_eq!(scene.injected(), [Event::Exception(1, None)]);
    assert_eq!(scene.script.borrow().system.dr6 & 1 << 14, 1 << 14);
}

#[test]
fn single_step_stops_after_each_element_and_before_a_halt() {
    let host = Box0::default();
    let outsb = Exit::Port(PortAccess {
        port: 0x3F8,
        width: 1,
        write: true,
        string: true,
        next_rip: 0,
    });
    let mut scene = Scene::new(&host, &[0xF3, 0x6E], &[outsb, outsb]);
    scene.machine.memory().write(0x3000, b"ab\n").unwrap();
    scene.set(|registers| {
        registers.set(Gpr::Rdx, 0x3F8);
        registers.set(Gpr::Rsi, 0x3000);
        registers.set(Gpr::Rcx, 3);
        registers.rflags |= RFLAGS_TF;
    });
    scene.run();
    assert_eq!(scene.injected(), [Event::Exception(1, None); 2]);
    assert_eq!((scene.register(Gpr::Rcx), scene.rip()), (1, CODE));
    let mut scene = Scene::new(&host, &[0xF4], &[Exit::Halt]);
    scene.set(|registers| registers.rflags |= RFLAGS_TF | RFLAGS_IF);
    assert_eq!(scene.run(), StopReason::TripleFault, "it does not sleep");
    assert_eq!(scene.injected(), [Event::Exception(1, None)]);
}

#[test]
fn the_resume_flag_is_for_one_instruction() {
    const RF: u64 = 1 << 16;
    let host = Box0::default();
    let mut scene = Scene::new(&host, &[0x0F, 0xA2], &[Exit::Cpuid]);
    scene.set(|registers| registers.rflags |= RF);
    scene.run();
    assert_eq!(scene.script.borrow().registers.rflags & RF, 0);
    // A repeated instruction that is not through is still the same one.
    let outsb = Exit::Port(PortAccess {
        port: 0x80,
        width: 1,
        write: true,
        string: true,
        next_rip: 0,
    });
    let mut scene = Scene::new(&host, &[0xF3, 0x6E], &[outsb]);
    scene.set(|registers| {
        registers.set(Gpr::Rdx, 0x80);
        registers.set(Gpr::Rcx, 0x8000);
        registers.rflags |= RF;
    });
    scene.run();
    assert_eq!(scene.script.borrow().registers.rflags & RF, RF);
}
