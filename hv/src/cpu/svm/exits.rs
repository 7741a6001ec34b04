//! From the VMCB's exit fields to [`Exit`] (APM vol. 2, appendix C and 15.7 to 15.15), and the event that an exit interrupted.

use super::vmcb::{Vmcb, code, event};
use crate::exit::{Exit, MemoryAccess, PortAccess, Refusal};

/// Decodes the last exit.
pub fn decode(vmcb: &Vmcb) -> Exit {
    let control = &vmcb.control;
    let (one, two) = (control.exit_info_1, control.exit_info_2);
    // Only the low half is written alike everywhere.
    match control.exit_code as u32 {
        // An NMI is pending in the host until STGI, and has been taken by now.
        code::INTR | code::NMI => Exit::HostInterrupt,
        // IRET is intercepted for what may be delivered behind it.
        code::VINTR | code::IRET => Exit::InterruptWindow,
        code::HLT => Exit::Halt,
        code::CPUID => Exit::Cpuid,
        code::MSR if one & 1 != 0 => Exit::WriteMsr,
        code::MSR => Exit::ReadMsr,
        code::IO => Exit::Port(PortAccess {
            port: (one >> 16) as u16,
            width: match one >> 4 & 7 {
                1 => 1,
                2 => 2,
                _ => 4,
            },
            write: one & 1 == 0,
            string: one & 4 != 0,
            next_rip: two,
        }),
        code::NESTED_FAULT => Exit::Memory(MemoryAccess {
            address: two,
            write: one & 2 != 0,
            fetch: one & 16 != 0,
            table_walk: one & 1 << 33 != 0,
        }),
        code::CR8_READ => Exit::TaskPriority { write: false },
        code::CR8_WRITE => Exit::TaskPriority { write: true },
        code::INVD | code::WBINVD => Exit::CacheFlush,
        code::VMMCALL => Exit::Hypercall,
        code::RDPMC => Exit::Refused,
        code::INVLPGA
        | code::VMRUN
        | code::VMLOAD
        | code::VMSAVE
        | code::STGI
        | code::CLGI
        | code::SKINIT
        | code::MONITOR
        | code::MWAIT
        | code::MWAIT_ARMED
        | code::XSETBV
        | code::RDPRU => Exit::Undefined,
        code::SHUTDOWN => Exit::Shutdown,
        code::INVALID => Exit::BadState(Refusal::Cpu(None)),
        0x52 => Exit::MachineCheck,
        exception @ code::EXCEPTION..=code::LAST_EXCEPTION => {
            let vector = (exception - code::EXCEPTION) as u8;
            Exit::Exception(vector, has_error_code(vector).then_some(one as u32))
        }
        _ => Exit::Unknown([control.exit_code, one, two]),
    }
}

/// #DF, #TS, #NP, #SS, #GP, #PF, #AC, #CP.
fn has_error_code(vector: u8) -> bool {
    matches!(vector, 8 | 10..=14 | 17 | 21)
}

/// What to inject so that an event whose delivery the exit interrupted is not lost. `interrupted` is EXITINTINFO.
///
/// INT n, INT3 and INTO are not injected: RIP is still at the instruction, which is executed again.
pub fn to_deliver_again(interrupted: u64) -> u64 {
    let vector = interrupted & 0xFF;
    match interrupted & event::TYPE {
        _ if interrupted & event::VALID == 0 => 0,
        event::SOFTWARE => 0,
        // QEMU gives an interrupted external interrupt or NMI back as an exception.
        event::EXCEPTION if vector >= 32 => event::VALID | event::EXTERNAL | vector,
        event::EXCEPTION if vector == 2 => event::VALID | event::NMI | 2,
        event::EXCEPTION if matches!(vector, 3 | 4) => 0,
        _ => interrupted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit(code: u64, one: u64, two: u64) -> Exit {
        let mut vmcb = Vmcb::zeroed();
        vmcb.control.exit_code = code;
        vmcb.control.exit_info_1 = one;
        vmcb.control.exit_info_2 = two;
        decode(&vmcb)
    }

    #[test]
    fn ports_and_memory_are_decoded() {
        let out = PortAccess {
            port: 0x3F8,
            width: 1,
            write: true,
            string: false,
            next_rip: 0x1002,
        };
        assert_eq!(exit(0x7B, 0x03F8_0010, 0x1002), Exit::Port(out));
        let ins = PortAccess {
            port: 0x60,
            width: 4,
            write: false,
            string: true,
            next_rip: 5,
        };
        assert_eq!(exit(0x7B, 0x0060_004D, 5), Exit::Port(ins));
        let write = MemoryAccess {
            address: 0xFEC0_0000,
            write: true,
            fetch: false,
            table_walk: false,
        };
        assert_eq!(exit(0x400, 0x1_0000_0006, 0xFEC0_0000), Exit::Memory(write));
        assert_eq!(exit(0x7C, 1, 0), Exit::WriteMsr);
        assert_eq!(exit(0x7C, 0, 0), Exit::ReadMsr);
    }

    #[test]
    fn a_refused_state_is_told_however_it_is_extended() {
        assert!(matches!(exit(0xFFFF_FFFF, 0, 0), Exit::BadState(_)));
        assert!(matches!(exit(u64::MAX, 0, 0), Exit::BadState(_)));
        assert_eq!(exit(0x7D, 1, 2), Exit::Unknown([0x7D, 1, 2]));
    }

    #[test]
    fn exceptions_carry_their_error_code() {
        assert_eq!(exit(0x41, 7, 0), Exit::Exception(1, None));
        assert_eq!(exit(0x51, 0, 0), Exit::Exception(17, Some(0)));
        assert_eq!(exit(0x52, 0, 0), Exit::MachineCheck);
    }

    #[test]
    fn interrupted_events_are_delivered_again_as_what_they_were() {
        assert_eq!(to_deliver_again(0x30), 0);
        assert_eq!(to_deliver_again(0x8000_0030), 0x8000_0030);
        assert_eq!(
            to_deliver_again(0x8000_0330),
            0x8000_0030,
            "type 3 with an interrupt's vector"
        );
        assert_eq!(to_deliver_again(0x5_8000_0B0E), 0x5_8000_0B0E);
        assert_eq!(to_deliver_again(0x8000_0202), 0x8000_0202);
        assert_eq!(to_deliver_again(0x8000_0302), 0x8000_0202, "type 3, NMI");
        assert_eq!(
            to_deliver_again(0x8000_0480),
            0,
            "INT 80h is executed again"
        );
        assert_eq!(to_deliver_again(0x8000_0303), 0, "INT3 too");
    }
}
