//! What of the back end runs without the CPU in ring 0.

use super::*;
use check::Limits;

fn vcpu() -> SvmVcpu {
    vcpus(1, 16).pop().unwrap()
}

/// The vCPUs of a guest on CPUs with `asids` address space identifiers, the host's included.
pub fn vcpus(count: usize, asids: u32) -> Vec<SvmVcpu> {
    let memory = GuestMemory::allocate(2 << 20).unwrap();
    let (nested, needed) = NestedTables::of(&memory, true).unwrap();
    let limits = Limits {
        physical_bits: 52,
        asids,
    };
    let capabilities = Capabilities {
        limits,
        next_rip: false,
        gigabyte_pages: true,
    };
    SvmGuest::new(capabilities, nested, needed).vcpus(count)
}

#[test]
fn a_new_vcpu_passes_the_check() {
    let mut vcpu = vcpu();
    vcpu.set_system(&System {
        pat: 0x0007_0406_0007_0406,
        ..System::default()
    });
    vcpu.load_registers();
    assert_eq!(check_vmcb(&vcpu.vmcb, vcpu.capabilities.limits), Ok(()));
}

#[test]
fn an_unbound_vcpu_does_not_run() {
    assert!(matches!(vcpu().enter(), Exit::BadState(_)));
}

#[test]
fn its_place_is_that_of_its_pages() {
    let vcpu = vcpu();
    let place = vcpu.place();
    assert_eq!((place.cpus, place.cpu_save), ([None, None], None));
    assert_eq!(place.control % 4096, 0);
    assert_eq!(place.save, vcpu.host_save.address());
    assert_eq!(place.nested, (true, vcpu._guest.nested.root()));
    assert!(!place.is_hosts);
    let enter = instructions::enter as *const () as u64;
    assert!(instructions::is_in_enter(enter + 0x60));
    assert!(!instructions::is_in_enter(enter - 1) && !instructions::is_in_enter(enter + 512));
}

#[test]
fn only_exchanged_msrs_are_direct() {
    let mut map = [0xFF; 8192];
    DIRECT_MSRS.iter().for_each(|msr| allow_msr(&mut map, *msr));
    let clear: u32 = map.iter().map(|byte| byte.count_zeros()).sum();
    assert_eq!(clear as usize, 2 * DIRECT_MSRS.len());
    // STAR: MSR C0000081h, bits 102h and 103h of the second 2 KiB.
    assert_eq!(map[0x800 + 0x102 / 8], !(3 << 2) & !(3 << 4) & !(3 << 6));
    // SYSENTER_EIP: bits 2ECh, 2EDh.
    assert_eq!(map[0x2EC / 8] >> 4 & 3, 0);
}

#[test]
fn delivery_follows_flags_shadow_and_events() {
    let mut vcpu = vcpu();
    assert_eq!(vcpu.delivery(), Delivery::Masked);
    vcpu.registers.rflags |= RFLAGS_IF;
    assert_eq!(vcpu.delivery(), Delivery::Ready);
    vcpu.vmcb.control.shadow = 1;
    assert_eq!(vcpu.delivery(), Delivery::Shadow);
    vcpu.retire(0x42);
    assert_eq!(
        (vcpu.delivery(), vcpu.registers.rip),
        (Delivery::Ready, 0x42)
    );
    vcpu.inject(Event::Interrupt(0x30));
    assert_eq!(vcpu.delivery(), Delivery::Busy);
    assert_eq!(vcpu.vmcb.control.event, 0x8000_0030);
    vcpu.inject(Event::Exception(14, Some(2)));
    assert_eq!(vcpu.vmcb.control.event, 0x2_8000_0B0E);
    vcpu.inject(Event::Nmi);
    assert_eq!(vcpu.vmcb.control.event, 0x8000_0202);
}

#[test]
fn an_exception_ends_the_shadow_of_its_instruction() {
    let mut vcpu = vcpu();
    vcpu.set_system(&System {
        pat: 6,
        ..System::default()
    });
    // `mov ss` and then an instruction that faults: any program can do that.
    vcpu.vmcb.control.shadow = 1;
    vcpu.inject(Event::Exception(13, Some(0)));
    assert_eq!(vcpu.delivery(), Delivery::Busy);
    vcpu.watch_window(true);
    vcpu.load_registers();
    assert_eq!(check_vmcb(&vcpu.vmcb, vcpu.capabilities.limits), Ok(()));
}

#[test]
fn the_window_is_watched_and_let_go() {
    let mut vcpu = vcpu();
    vcpu.watch_window(true);
    assert_eq!(vcpu.vmcb.control.virtual_interrupt, 0x11F_0100);
    assert_ne!(vcpu.vmcb.control.intercept_first & first::VINTR, 0);
    vcpu.watch_window(false);
    assert_eq!(
        vcpu.vmcb.control.virtual_interrupt,
        virtual_interrupt::MASKING
    );
    assert_eq!(vcpu.vmcb.control.intercept_first & first::VINTR, 0);
}

#[test]
fn system_registers_come_back_as_set() {
    let mut vcpu = vcpu();
    let segment = |selector: u16| crate::cpu::Segment {
        selector,
        attributes: 0x93,
        limit: 0xFFFF,
        base: 0x1000,
    };
    let system = System {
        cs: segment(8),
        ss: segment(16),
        tr: segment(24),
        gdtr: segment(0),
        cr0: 0x8000_0011,
        cr3: 0x1000,
        cr4: 0x20,
        efer: 0x500,
        pat: 6,
        ..System::default()
    };
    vcpu.set_system(&system);
    assert_eq!(vcpu.system(), system);
    assert_eq!(vcpu.vmcb.save.efer, 0x1500);
}

#[test]
fn user_code_stays_user_code_whatever_sysret_left_in_ss() {
    let mut vcpu = vcpu();
    let mut system = System {
        cr0: 0x8000_0011,
        pat: 6,
        ..System::default()
    };
    system.ss.attributes = 0xC93;
    vcpu.set_system(&system);
    // The guest has gone to user mode by SYSRET: CPL is 3, the stack segment's descriptor is still the kernel's.
    vcpu.vmcb.save.cpl = 3;
    vcpu.store_registers();
    let system = vcpu.system();
    assert_eq!(system.cpl(), 3);
    vcpu.set_system(&system);
    assert_eq!(vcpu.vmcb.save.cpl, 3, "writing it back promotes nobody");
    vcpu.load_registers();
    assert_eq!(check_vmcb(&vcpu.vmcb, vcpu.capabilities.limits), Ok(()));
}
