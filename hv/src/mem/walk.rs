//! The guest's own page tables, walked by the hypervisor: for the bytes and operands of instructions that it emulates.
//!
//! Real mode and unpaged, 32-bit, PAE and four-level paging. It checks what the CPU would check on the walk (APM vol. 2, chapter 5)
//! as far as reading for an instruction that the CPU itself has already begun needs: presence, write and user permission.
