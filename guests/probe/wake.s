# Mode "wake": the second CPU halts again and again, and nothing but the first CPU's interrupts wakes it: no timer makes up for one that is lost. They come
# two at a time, the second at any moment of what the first one leads to, while the CPU that they are for leaves the guest with interrupts off.

        .set    FIRST_VECTOR, 0x43
        .set    SECOND_VECTOR, 0x44
        .set    MASKED_EXITS, 8                 # between two rests
        .set    GAP, 8192                       # loops between the two, less than

        .text
        .globl  mode_wake
mode_wake:
        pushl   %edx
        movl    $FIRST_VECTOR, %eax
        movl    $wake_interrupt, %edx
        call    set_gate
        movl    $SECOND_VECTOR, %eax
        movl    $wake_interrupt, %edx
        call    set_gate
        movl    $1, %eax
        cpuid
        shrl    $21, %ecx
        andl    $1, %ecx
        movl    %ecx, x2apic
        popl    %edx
        movl    $wake_work, job
        call    work
        call    print_name
        movl    rounds, %eax
        call    print_decimal
        movl    $text_rounds, %esi
        call    print
        pushl   %eax
        movl    $longest_round, %ebx
        xorl    %esi, %esi
        call    to_us
        call    print_decimal
        movl    $text_longest, %esi
        call    print
        popl    %eax
        testl   %eax, %eax
        movl    $text_two_cpus, %esi
        call    expect_unequal
        jmp     passed_or_failed

wake_work:
        cmpl    $records + (1 << CPU_SHIFT), %ebx
        je      sleeper
        ja      2f
        cmpl    $2, cpus
        jb      2f
1:      rdtsc
        movl    %eax, round_began
        movl    %edx, round_began + 4
        call    wake_round
        incl    rounds
        rdtsc
        subl    round_began, %eax
        sbbl    round_began + 4, %edx
        cmpl    longest_round, %eax
        movl    %edx, %ecx
        sbbl    longest_round + 4, %ecx
        jb      3f
        movl    %eax, longest_round
        movl    %edx, longest_round + 4
3:      call    is_end
        jb      1b
        movl    $1, sleepers_end
        movl    records + (1 << CPU_SHIFT) + CPU_ID, %edx
        movl    $(IPI_FIXED | FIRST_VECTOR), %eax
        call    send_ipi
2:      ret

wake_round:
        movl    records + (1 << CPU_SHIFT) + CPU_ID, %edx
        movl    $(IPI_FIXED | FIRST_VECTOR), %eax
        call    send_ipi
        imull   $1664525, gap, %ecx
        addl    $1013904223, %ecx
        movl    %ecx, gap
        shrl    $8, %ecx
        andl    $(GAP - 1), %ecx
        incl    %ecx
1:      loop    1b
        movl    $(IPI_FIXED | SECOND_VECTOR), %eax
        call    send_ipi
        movl    rounds, %eax
        leal    2(, %eax, 2), %eax
        movl    $seen_awake, %edi
        movl    $text_woken, %esi
        jmp     wait_equal

sleeper:
        cli
        movl    $MASKED_EXITS, %edi
1:      pushl   %ebx
        xorl    %eax, %eax
        cpuid
        popl    %ebx
        decl    %edi
        jnz     1b
        movl    CPU_FIXED(%ebx), %eax
        movl    %eax, seen_awake                # an interrupt between here and HLT has to end the HLT
        sti
        hlt
        cmpl    $0, sleepers_end
        je      sleeper
        cli
        ret

wake_interrupt:
        pushal
        find_record
        incl    CPU_FIXED(%ebx)
        call    apic_eoi
        popal
        iret

        .section .rodata
text_rounds:    .asciz  " rounds, the longest of "
text_longest:   .asciz  " us\n"
text_woken:     .asciz  "both interrupts came, and woke the CPU"
text_two_cpus:  .asciz  "two CPUs"

        .bss
        .balign 8
round_began:    .quad   0
longest_round:  .quad   0
rounds:         .long   0
gap:            .long   0
seen_awake:     .long   0                       # interrupts that the second CPU knew of when it rested last
sleepers_end:   .long   0
