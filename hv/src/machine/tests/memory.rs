//! Exits of memory accesses: what is emulated, and what stops the guest.

use super::*;

#[test]
fn device_memory_is_emulated() {
    let host = Box0::default();
    // mov eax,[ebx] with 32-bit operand and address in real mode: the I/O APIC's version is behind register 1.
    let code = [
        0x67, 0x66, 0xC7, 0x03, 1, 0, 0, 0, 0x67, 0x66, 0x8B, 0x43, 0x10,
    ];
    let exits = [0, 0x10].map(|offset| Exit::Memory(memory_exit(0xFEC0_0000 + offset)));
    let mut scene = Scene::new(&host, &code, &exits);
    scene.set(|registers| registers.set(Gpr::Rbx, 0xFEC0_0000));
    scene.run();
    assert_eq!(scene.register(Gpr::Rax), 0x0017_0020);
    assert_eq!(scene.rip(), CODE + code.len() as u64);
    // Where nothing is: ones, counted.
    let mut scene = Scene::new(&host, &code[8..], &[Exit::Memory(memory_exit(0xE000_0010))]);
    scene.set(|registers| registers.set(Gpr::Rbx, 0xE000_0000));
    scene.run();
    let counters = scene.machine.with_platform(|platform| platform.counters());
    assert_eq!(scene.register(Gpr::Rax), 0xFFFF_FFFF);
    assert_eq!(
        (counters.unclaimed_memory, counters.last_unclaimed_address),
        (1, 0xE000_0010)
    );
    assert_eq!(counters.lost_writes, 0);
}

#[test]
fn sse_registers_are_reached_through_the_vcpu() {
    let host = Box0::default();
    // movups xmm3,[ebx] where nothing is; movd [ebx+10h],xmm5 to the I/O APIC's select register, and back into EAX.
    let code = [
        0x67, 0x0F, 0x10, 0x1B, 0x67, 0x66, 0x0F, 0x7E, 0x2E, 0x67, 0x66, 0x8B, 0x06,
    ];
    let exits = [0xE000_0000, 0xFEC0_0000, 0xFEC0_0000].map(|at| Exit::Memory(memory_exit(at)));
    let mut scene = Scene::new(&host, &code, &exits);
    scene.set(|registers| {
        registers.set(Gpr::Rbx, 0xE000_0000);
        registers.set(Gpr::Rsi, 0xFEC0_0000);
    });
    {
        let mut script = scene.script.borrow_mut();
        script.system.cr4 |= 1 << 9;
        script.xmm[5] = 0x10;
    }
    scene.run();
    assert_eq!(scene.script.borrow().xmm[3], u128::MAX);
    assert_eq!(scene.register(Gpr::Rax), 0x10);
    assert_eq!(scene.rip(), CODE + code.len() as u64);
}

#[test]
fn memory_exits_that_are_no_device_access_stop_the_guest() {
    let host = Box0::default();
    let stop =
        |code: &[u8], access: MemoryAccess| Scene::new(&host, code, &[Exit::Memory(access)]).run();
    let far = memory_exit(0xE000_0000);
    assert_eq!(
        stop(&[], MemoryAccess { fetch: true, ..far }),
        StopReason::NoCode(0xE000_0000)
    );
    assert_eq!(
        stop(
            &[],
            MemoryAccess {
                table_walk: true,
                ..far
            }
        ),
        StopReason::NoTables(0xE000_0000)
    );
    assert_eq!(
        stop(&[], memory_exit(0x1000)),
        StopReason::NestedFault(0x1000)
    );
    let StopReason::UnknownInstruction { address, bytes } = stop(&[0xD9, 0x07], far) else {
        panic!("FLD is not emulated");
    };
    assert_eq!(
        (address, &bytes.as_slice()[..2]),
        (0xE000_0000, &[0xD9, 0x07][..])
    );
    let mut busy = Scene::new(&host, &[0x8B, 0x07], &[Exit::Memory(far)]);
    busy.script.borrow_mut().delivery = Some(Delivery::Busy);
    assert_eq!(busy.run(), StopReason::NoTables(0xE000_0000));
}
