# Mode "exits N": leaves the guest N times for each of some reasons, and says how far the TSC went on for one: cycles on silicon, and on an emulator that
# counts instructions so many of them. The few of the guest's own loop are in it; "nothing" is those alone.

        .set    MSR_X2APIC_ID, 0x802
        .set    POST_PORT, 0x80
        .set    IOAPIC_WINDOW, 0xFEC00010
        .set    SOON, 20000                     # timer counts: the timer goes off while the guest computes

        .text
        .globl  mode_exits
mode_exits:
        call    say_init
        call    number
        movl    %eax, exits_wanted
        testl   %eax, %eax
        movl    $text_how_often, %esi
        call    expect_unequal
        cmpl    $0, failures
        jne     passed_or_failed
        call    timer_on
        .macro  measure name, code
        movl    $\code, %ebp
        movl    $7f, %esi
        call    measure_one
        .pushsection .rodata
7:      .asciz  "\name "
        .popsection
        .endm
        measure "nothing", exit_nothing
        measure "cpuid", exit_cpuid
        measure "hypercall", exit_hypercall
        measure "msr-read", exit_msr_read
        measure "timer-write", exit_timer_write
        measure "port-write", exit_port_write
        measure "mmio-read", exit_mmio_read
        measure "tick", exit_tick
        jmp     passed_or_failed

# Does what EBP says, once, and then as often as is wanted; ESI names it.
measure_one:
        pushl   %esi
        call    *%ebp
        rdtsc
        movl    %eax, exits_begun
        movl    %edx, exits_begun + 4
        movl    exits_wanted, %edi
1:      call    *%ebp
        decl    %edi
        jnz     1b
        rdtsc
        subl    exits_begun, %eax
        sbbl    exits_begun + 4, %edx
        movl    $-1, %ecx
        cmpl    exits_wanted, %edx
        jae     2f
        divl    exits_wanted
        movl    %eax, %ecx
2:      movl    $text_exits, %esi
        call    print
        popl    %esi
        call    print
        movl    %ecx, %eax
        call    print_decimal
        movl    $text_line_end, %esi
        jmp     print

exit_nothing:
        ret
exit_cpuid:
        xorl    %eax, %eax
        cpuid
        ret
exit_hypercall:
        movl    $0x7777, %eax                   # there is none of this number
        .byte   0x0f, 0x01, 0xd9                # vmmcall
        ret
exit_msr_read:
        movl    $MSR_X2APIC_ID, %ecx
        rdmsr
        ret
exit_timer_write:
        movl    $MSR_INITIAL_COUNT, %ecx
        movl    $0x7FFFFFFF, %eax
        xorl    %edx, %edx
        wrmsr
        ret
exit_port_write:
        xorl    %eax, %eax
        outb    %al, $POST_PORT
        ret
exit_mmio_read:
        movl    IOAPIC_WINDOW, %eax
        ret
# The timer is set, goes off while the guest computes, and its interrupt is ended: three exits, since nothing here is KVM's. The time between is no work of anybody's.
exit_tick:
        movl    ticks, %ebx
        movl    $MSR_INITIAL_COUNT, %ecx
        movl    $SOON, %eax
        xorl    %edx, %edx
        wrmsr
        sti
1:      cmpl    ticks, %ebx
        je      1b
        cli
        ret

        .section .rodata
text_exits:     .asciz  "probe: exits: "
text_how_often: .asciz  "how often, as a second word"

        .bss
        .align  8
exits_begun:    .quad   0
exits_wanted:   .long   0
