# Modes "bad-msr", "selfinit", "apicmove" and "romwrite": things that no operating system does.

        .text
mode_bad_msr:
        call    say_init
        .macro  must_fault vector, name, code:vararg
        movl    $9f, resume_at
        movl    $-1, last_vector
        \code
9:      movl    $0, resume_at
        movl    $\vector, %eax
        movl    $1f, %esi
        call    check_vector
        .pushsection .rodata
1:      .asciz  "\name"
        .popsection
        .endm
        movl    $0x12345678, %ecx
        must_fault 13, "rdmsr 12345678", rdmsr
        must_fault 13, "wrmsr 12345678", wrmsr
        movl    $0xC0010117, %ecx
        must_fault 13, "rdmsr vm_hsave_pa", rdmsr
        must_fault 13, "wrmsr vm_hsave_pa", wrmsr
        movl    $0xC0010114, %ecx
        must_fault 13, "rdmsr vm_cr", rdmsr
        movl    $0xC0000080, %ecx
        movl    $0x1000, %eax           # EFER.SVME
        xorl    %edx, %edx
        must_fault 13, "efer.svme", wrmsr
        movl    $0x277, %ecx
        movl    $2, %eax                # a memory type that does not exist
        must_fault 13, "pat", wrmsr
        movl    $MSR_APIC_BASE, %ecx
        movl    $0xFEE10900, %eax       # another address
        must_fault 13, "apic base", wrmsr
        must_fault 13, "rdpmc", rdpmc
        xorl    %ecx, %ecx
        must_fault 6, "xsetbv", .byte 0x0f, 0x01, 0xd1
        must_fault 6, "monitor", .byte 0x0f, 0x01, 0xc8
        must_fault 6, "mwait", .byte 0x0f, 0x01, 0xc9
        xorl    %eax, %eax              # an address that VMRUN and its kin would take
        must_fault 6, "vmrun", .byte 0x0f, 0x01, 0xd8
        xorl    %eax, %eax
        must_fault 6, "vmload", .byte 0x0f, 0x01, 0xda
        xorl    %eax, %eax
        must_fault 6, "vmsave", .byte 0x0f, 0x01, 0xdb
        must_fault 6, "clgi", .byte 0x0f, 0x01, 0xdd
        must_fault 6, "stgi", .byte 0x0f, 0x01, 0xdc
        # An unknown hypercall gives an error and no fault.
        movl    $0x7777, %eax
        .byte   0x0f, 0x01, 0xd9
        cmpl    $-1000, %eax
        movl    $text_hypercall, %esi
        call    expect_equal
        jmp     passed_or_failed

# The first CPU has no one who would start it again.
mode_self_init:
        call    say_init
        call    calibrate
        call    apic_on
        call    apic_id
        movl    %eax, %edx
        movl    $0x4500, %eax                   # INIT, assert
        call    send_ipi
        movl    $2000000, %eax
        call    set_end_us
1:      pause
        call    is_end
        jb      1b
        movl    $text_went_on, %esi
        cmpl    %esp, %esi                      # clears ZF
        call    expect_equal
        jmp     passed_or_failed

mode_apic_move:
        call    say_init
        movl    $MSR_APIC_BASE, %ecx
        rdmsr
        movl    %eax, apic_base_before
        addl    $0x100000, %eax
        must_fault 13, "local APIC moved within 4 GiB", wrmsr
        movl    apic_base_before, %eax
        movl    $1, %edx
        must_fault 13, "local APIC moved above 4 GiB", wrmsr
        rdmsr
        cmpl    apic_base_before, %eax
        movl    $text_apic_base, %esi
        call    expect_equal
        jmp     passed_or_failed

# Below 4 GiB nothing may change; below 1 MiB there may be RAM, which is the guest's own.
mode_rom_write:
        call    say_init
        movl    $0xFFFFFFF0, %ebx
        movl    (%ebx), %eax
        movl    %eax, %edx
        notl    %edx
        movl    %edx, (%ebx)
        cmpl    %eax, (%ebx)
        movl    $text_rom, %esi
        call    expect_equal
        movb    %dl, 3(%ebx)
        cmpl    %eax, (%ebx)
        call    expect_equal
        xchgl   %edx, (%ebx)
        cmpl    %eax, (%ebx)
        call    expect_equal
        movl    $0xFFFFF000, %edi
        movl    $1024, %ecx
        rep     stosl
        cmpl    $0, %edi
        call    expect_equal
        movl    $0xDEADBEEF, 0xFFFF0
        movl    $0xDEADBEEF, 0xC0000
        jmp     passed_or_failed

        .section .rodata
text_hypercall: .asciz  "unknown hypercall"
text_went_on:   .asciz  "the CPU went on after INIT"
text_apic_base: .asciz  "APIC base as before"
text_rom:       .asciz  "ROM below 4 GiB as before"

        .bss
apic_base_before: .long 0
