//! Entropy: RDRAND and RDSEED where the CPU has them, the firmware's generator, and the jitter of the time-stamp counter.

use core::arch::asm;

use outpost::entropy::Generator;
use raw_cpuid::CpuId;
use spin::Mutex;

use super::clock;

static GENERATOR: Mutex<Generator> = Mutex::new(Generator::new());

/// Sixty-four bits from RDRAND; none if the CPU has no such instruction or it fails ten times (Intel DRNG guide, 5.2.1).
fn rdrand() -> Option<u64> {
    let has = CpuId::new()
        .get_feature_info()
        .is_some_and(|features| features.has_rdrand());
    if !has {
        return None;
    }
    (0..10).find_map(|_| {
        let (value, good): (u64, u8);
        // SAFETY: CPUID says that the instruction exists.
        unsafe {
            asm!("rdrand {}", "setc {}", out(reg) value, out(reg_byte) good, options(nomem, nostack));
        }
        // A generator that is stuck gives all ones or all zeros (AMD erratum 1202 and its kin).
        (good != 0 && value != u64::MAX && value != 0).then_some(value)
    })
}

/// Low bits of how long memory accesses and serialising instructions take, for as long as 512 samples last.
fn jitter(out: &mut [u8; 512]) {
    let mut last = clock::tsc();
    for byte in out.iter_mut() {
        let _ = core::arch::x86_64::__cpuid(0);
        let now = clock::tsc();
        *byte = now.wrapping_sub(last) as u8 ^ now as u8;
        last = now;
    }
}

/// Gathers what there is. `firmware` is what the firmware's generator gave, if it has one. True if a true generator took part.
pub fn gather(firmware: Option<[u8; 32]>) -> bool {
    let mut generator = GENERATOR.lock();
    let mut good = false;
    for _ in 0..8 {
        if let Some(value) = rdrand() {
            generator.mix(&value.to_le_bytes());
            good = true;
        }
    }
    if let Some(bytes) = firmware {
        generator.mix(&bytes);
        good = true;
    }
    let mut samples = [0; 512];
    jitter(&mut samples);
    generator.mix(&samples);
    good
}

/// Fills `out` with random bytes fit for keys.
pub fn fill(out: &mut [u8]) {
    let mut generator = GENERATOR.lock();
    if let Some(value) = rdrand() {
        generator.mix(&value.to_le_bytes());
    }
    generator.mix(&clock::tsc().to_le_bytes());
    generator.fill(out);
}
