//! Hypercalls, as KVM has them (Documentation/virt/kvm/x86/hypercalls.rst): number in RAX, arguments in RBX, RCX, RDX, RSI.

use super::processor::Processor;
use crate::cpu::Gpr;

/// Wake a vCPU from its halt: flags, local APIC identifier.
const KICK_CPU: u64 = 5;
/// Send an interrupt to many: bitmap (two words), identifier of its first bit, interrupt command register.
const SEND_IPI: u64 = 10;

/// KVM_ENOSYS, KVM_EPERM and KVM_EINVAL, negative.
const NO_SUCH_HYPERCALL: i64 = -1000;
const NOT_PERMITTED: i64 = -1;
const INVALID: i64 = -22;

impl Processor<'_> {
    pub(super) fn hypercall(&mut self) {
        let answer = if self.vcpu.system().cpl() == 0 {
            self.answer_hypercall()
        } else {
            NOT_PERMITTED
        };
        self.vcpu.registers_mut().set(Gpr::Rax, answer as u64);
        self.retire_opcode(&[0x0F, 0x01, 0xD9]);
    }

    fn answer_hypercall(&self) -> i64 {
        let wide = self.vcpu.system().code_bits() == 64;
        let argument = |register| {
            let value = self.vcpu.registers().get(register);
            if wide { value } else { value & 0xFFFF_FFFF }
        };
        let index = self.index();
        match argument(Gpr::Rax) {
            KICK_CPU => {
                let target = argument(Gpr::Rcx) as u32;
                self.shared.with_platform(index, |platform| {
                    platform.kick_by_hypercall(target);
                });
                0
            }
            SEND_IPI => {
                let (low, high) = (argument(Gpr::Rbx), argument(Gpr::Rcx));
                let bitmap = if wide {
                    u128::from(high) << 64 | u128::from(low)
                } else {
                    u128::from(high) << 32 | u128::from(low)
                };
                let (first, command) = (argument(Gpr::Rdx) as u32, argument(Gpr::Rsi) as u32);
                let taken = self.shared.with_platform(index, |platform| {
                    platform.send_by_hypercall(bitmap, first, command)
                });
                taken.map_or(INVALID, |count| count as i64)
            }
            _ => NO_SUCH_HYPERCALL,
        }
    }
}
