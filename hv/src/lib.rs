//! Outpost's hypervisor: CPU back ends, nested paging, the guest's virtual machine, its devices and loaders.
//!
//! It reaches the box only through [`host::Host`] and knows nothing of the WAN stack. `unsafe` lives in `cpu` and `mem`.
#![cfg_attr(not(test), no_std)]

extern crate alloc;

pub mod acpi;
pub mod cpu;
pub mod cpuid;
pub mod decode;
pub mod device;
pub mod emulate;
pub mod exit;
pub mod host;
pub mod load;
pub mod machine;
pub mod mem;
pub mod msr;
pub mod platform;
pub mod sched;
