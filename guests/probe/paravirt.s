# Mode "paravirt": what KVM's interface offers beside clock and steal time, by one CPU. An interrupt in service is ended without a write of its register
# (PV EOI), and the next one comes; an interrupt is sent by a hypercall (PV IPI); a kick is taken (PV unhalt); polling can be switched off (polling control).

        .set    MSR_END_OF_INTERRUPT, 0x4b564d04
        .set    MSR_POLL_CONTROL, 0x4b564d05
        .set    HYPERCALL_KICK, 5
        .set    HYPERCALL_SEND_IPI, 10
        .set    END_VECTOR, 0x43
        .set    ENDS, 100                       # interrupts with the offer, and without
        .set    MODERATELY_SOON, 50000          # timer counts

        .text
        .globl  mode_paravirt
mode_paravirt:
        call    say_init
        movl    $0x40000001, %eax
        cpuid
        andl    $0x18C0, %eax
        cmpl    $0x18C0, %eax                   # PV EOI, PV unhalt, PV IPI, polling control
        movl    $text_offered, %esi
        call    expect_equal
        movl    $END_VECTOR, %eax
        movl    $end_interrupt, %edx
        call    set_gate
        call    timer_on
        movl    $MSR_LVT_TIMER, %ecx
        movl    $END_VECTOR, %eax
        xorl    %edx, %edx
        wrmsr

        call    take_ends
        cmpl    $ENDS, ends_written
        movl    $text_without, %esi
        call    expect_equal
        movl    $MSR_END_OF_INTERRUPT, %ecx
        movl    $(end_offered + 1), %eax
        xorl    %edx, %edx
        wrmsr
        call    take_ends
        cmpl    $0, ends_written
        movl    $text_with, %esi
        call    expect_equal
        call    print_name
        movl    $ENDS, %eax
        subl    ends_written, %eax
        call    print_decimal
        movl    $text_ends, %esi
        call    print
        # One that is left behind must not be taken for the next one's.
        movl    $MSR_END_OF_INTERRUPT, %ecx
        xorl    %eax, %eax
        xorl    %edx, %edx
        wrmsr
        call    take_ends
        cmpl    $ENDS, ends_written
        movl    $text_without, %esi
        call    expect_equal

        movl    ends_seen, %ebp
        movl    $HYPERCALL_SEND_IPI, %eax
        movl    $1, %ebx                        # the first of those from APIC identifier 0 on
        xorl    %ecx, %ecx
        xorl    %edx, %edx
        movl    $END_VECTOR, %esi
        .byte   0x0f, 0x01, 0xd9                # vmmcall
        cmpl    $1, %eax
        movl    $text_sent, %esi
        call    expect_equal
        incl    %ebp
        call    await_end
        movl    $HYPERCALL_KICK, %eax
        xorl    %ebx, %ebx
        xorl    %ecx, %ecx
        .byte   0x0f, 0x01, 0xd9
        testl   %eax, %eax
        movl    $text_kicked, %esi
        call    expect_equal
        sti
        hlt                                     # the kick ends it, and nothing else does
        cli

        movl    $MSR_POLL_CONTROL, %ecx
        rdmsr
        cmpl    $1, %eax
        movl    $text_polls, %esi
        call    expect_equal
        xorl    %eax, %eax
        xorl    %edx, %edx
        wrmsr
        movl    $1, %eax
        rdmsr
        testl   %eax, %eax
        call    expect_equal
        movl    $2, %eax
        must_fault 13, "polling control with a reserved bit", wrmsr
        jmp     passed_or_failed

# Takes ENDS interrupts, one after the other, each while the CPU computes.
take_ends:
        movl    $0, ends_written
        movl    $ENDS, %edi
        movl    ends_seen, %ebp
1:      movl    $MSR_INITIAL_COUNT, %ecx
        movl    $MODERATELY_SOON, %eax
        xorl    %edx, %edx
        wrmsr
        incl    %ebp
        call    await_end
        decl    %edi
        jnz     1b
        ret

# Waits with interrupts on until EBP of them have been.
await_end:
        sti
1:      cmpl    ends_seen, %ebp
        jne     1b
        cli
        ret

end_interrupt:
        pushal
        incl    ends_seen
        btrl    $0, end_offered
        jc      1f
        incl    ends_written
        movl    $MSR_EOI, %ecx
        xorl    %eax, %eax
        xorl    %edx, %edx
        wrmsr
1:      popal
        iret

        .section .rodata
text_offered:   .asciz  "the features offered"
text_without:   .asciz  "without PV EOI each end written"
text_with:      .asciz  "with PV EOI no end written"
text_ends:      .asciz  " interrupts ended without a write\n"
text_sent:      .asciz  "an interrupt sent by hypercall"
text_kicked:    .asciz  "a kick"
text_polls:     .asciz  "polling control keeps what is written"

        .bss
        .balign 4
end_offered:    .long   0
ends_seen:      .long   0
ends_written:   .long   0
