//! The stack, jumps and calls through memory, and the task priority.

use super::*;

#[test]
fn pushes_go_to_the_stack() {
    let long = run(64, &[0xFF, 0x33]);
    assert_eq!(
        (long.registers.get(Gpr::Rsp), long.memory.read_u64(0x7FF8)),
        (0x7FF8, Ok(0xF7F6_F5F4_F3F2_F1F0))
    );
    let protected = run(32, &[0xFF, 0x33]);
    assert_eq!(
        (
            protected.registers.get(Gpr::Rsp),
            protected.memory.read_u32(0x7FFC)
        ),
        (0x7FFC, Ok(0xF3F2_F1F0))
    );
}

#[test]
fn pops_come_from_the_stack() {
    let on_stack = |_: &mut Registers, memory: &GuestMemory| {
        memory.write_u64(0x8000, 0x0102_0304_0506_0708).unwrap();
    };
    let long = run_with(&flat(64), &[0x8F, 0x03], on_stack);
    assert_eq!(
        (long.log.as_str(), long.registers.get(Gpr::Rsp)),
        ("w8@0=102030405060708 ", 0x8008)
    );
    let protected = run_with(&flat(32), &[0x8F, 0x03], on_stack);
    assert_eq!(
        (protected.log.as_str(), protected.registers.get(Gpr::Rsp)),
        ("w4@0=5060708 ", 0x8004)
    );
    let word = run_with(&flat(64), &[0x66, 0x8F, 0x43, 0x02], on_stack);
    assert_eq!(
        (word.log.as_str(), word.registers.get(Gpr::Rsp)),
        ("w2@2=708 ", 0x8002)
    );
    // pop [rsp+disp32]: the address is made with RSP as it is after the pop.
    let based = run_with(
        &flat(32),
        &[0x8F, 0x84, 0x24, 0, 0x80, 0xAF, 0xFE],
        on_stack,
    );
    assert_eq!(based.log, "w4@4=5060708 ");
}

#[test]
fn a_pop_that_faults_leaves_the_stack_pointer() {
    let mut system = flat(32);
    system.ds.limit = 0xFFFF;
    let run = run_with(&system, &[0x8F, 0x03], |_, _| ());
    assert_eq!(
        (run.result, run.registers.get(Gpr::Rsp)),
        (Err(Trouble::Inject(GENERAL_PROTECTION, None)), 0x8000)
    );
}

#[test]
fn a_stack_on_a_device_takes_immediates_as_wide_as_the_stack() {
    let push = |bits, code: &[u8]| {
        run_with(&flat(bits), code, |registers, _| {
            registers.set(Gpr::Rsp, DEVICE + 0x10);
        })
        .log
    };
    assert_eq!(push(64, &[0x6A, 0xFF]), "w8@8=ffffffffffffffff ");
    assert_eq!(push(32, &[0x6A, 0xFF]), "w4@c=ffffffff ");
    assert_eq!(push(32, &[0x68, 1, 2, 3, 4]), "w4@c=4030201 ");
}

#[test]
fn jumps_and_calls_through_a_device() {
    let protected = run_with(&flat(32), &[0xFF, 0x23], |_, _| ());
    assert_eq!(
        (protected.result, protected.log.as_str()),
        (Ok(0xF3F2_F1F0), "r4@0 ")
    );
    let short = run_with(&flat(32), &[0x66, 0xFF, 0x63, 0x02], |_, _| ());
    assert_eq!(short.result, Ok(0xF3F2));
    let call = run_with(&flat(32), &[0xFF, 0x53, 0x04], |_, _| ());
    assert_eq!(
        (
            call.result,
            call.registers.get(Gpr::Rsp),
            call.memory.read_u32(0x7FFC)
        ),
        (Ok(0xF7F6_F5F4), 0x7FFC, Ok(CODE as u32 + 3))
    );
    // What the device reads is no canonical address: #GP at the instruction, and nothing is pushed.
    let far = run_with(&flat(64), &[0xFF, 0x13], |_, _| ());
    assert_eq!(
        (far.result, far.registers.get(Gpr::Rsp)),
        (Err(Trouble::Inject(GENERAL_PROTECTION, None)), 0x8000)
    );
    // In 64-bit code through RAM: the address is 3000h.
    let long = run_with(&flat(64), &[0xFF, 0x16], |_, memory| {
        memory.write_u64(0x3000, 0x1234_5678).unwrap();
    });
    assert_eq!(
        (long.result, long.memory.read_u64(0x7FF8)),
        (Ok(0x1234_5678), Ok(CODE + 2))
    );
    let mut small = flat(32);
    small.cs.limit = 0xFFFF;
    let beyond = run_with(&small, &[0xFF, 0x23], |_, _| ());
    assert_eq!(
        beyond.result,
        Err(Trouble::Inject(GENERAL_PROTECTION, None))
    );
}

#[test]
fn task_priority_moves() {
    let read = run(64, &[0x44, 0x0F, 0x20, 0xC0]);
    assert_eq!(read.registers.get(Gpr::Rax), 5);
    let write = run_with(&flat(64), &[0x44, 0x0F, 0x22, 0xC1], |registers, _| {
        registers.set(Gpr::Rcx, 9)
    });
    assert_eq!((write.priority, write.result), (9, Ok(CODE + 4)));
}
