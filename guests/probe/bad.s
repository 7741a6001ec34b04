# Modes "selfinit", "apicmove" and "romwrite": things that no operating system does.

        .text
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
text_went_on:   .asciz  "the CPU went on after INIT"
text_apic_base: .asciz  "APIC base as before"
text_rom:       .asciz  "ROM below 4 GiB as before"

        .bss
apic_base_before: .long 0
