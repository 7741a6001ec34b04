# Modes "lock" and "burn": work for every CPU, and how much of its time each one had. Only what a CPU has seen pass in small steps counts as its
# own: a large step between two looks at the TSC is time in which it did not run. If most of that is not in the CPU's steal time, where there is one, the
# hypervisor had given it a CPU, and the machine below (an emulator, say) did not run that: waiting for such a holder is "stalled", not "burnt".

        .set    ABSENT_US, 30                   # a step of so much or more
        .set    BURNT_US, 50                    # no progress of the holder for longer than this
        .set    HOLD_US, 20
        .set    OUTSIDE_US, 20
        .set    MSR_STEAL_TIME, 0x4b564d03

        .text
mode_lock:
        movl    $lock_work, job
        call    work
        # Sums over all CPUs, in microseconds and pieces.
        movl    $records, %ebx
1:      movl    $CPU_RAN, %esi
        call    to_us
        addl    %eax, sum_ran
        movl    $CPU_SPUN, %esi
        call    to_us
        addl    %eax, sum_spun
        movl    $CPU_BURNT, %esi
        call    to_us
        addl    %eax, sum_burnt
        movl    $CPU_STALLED, %esi
        call    to_us
        addl    %eax, sum_stalled
        movl    CPU_LOCKS(%ebx), %eax
        addl    %eax, sum_locks
        addl    $(1 << CPU_SHIFT), %ebx
        cmpl    last_record, %ebx
        jbe     1b
        call    print_name
        movl    cpus, %eax
        call    print_decimal
        movl    $text_cpus_ran, %esi
        call    print
        xorl    %edx, %edx
        movl    sum_ran, %eax
        movl    $1000, %ecx
        divl    %ecx
        call    print_decimal
        movl    $text_ms_took, %esi
        call    print
        movl    sum_locks, %eax
        call    print_decimal
        movl    $text_locks, %esi
        call    print
        call    print_name
        movl    sum_spun, %eax
        movl    sum_ran, %ecx
        call    print_permille
        movl    $text_spun, %esi
        call    print
        call    print_name
        movl    sum_burnt, %eax
        call    print_permille
        movl    $text_burnt, %esi
        call    print
        call    print_name
        movl    sum_stalled, %eax
        call    print_permille
        movl    $text_stalled, %esi
        call    print
        # Every CPU must have had the lock.
        movl    $records, %ebx
2:      cmpl    $0, CPU_LOCKS(%ebx)
        movl    $text_had_lock, %esi
        call    expect_unequal
        addl    $(1 << CPU_SHIFT), %ebx
        cmpl    last_record, %ebx
        jbe     2b
        jmp     passed_or_failed

mode_burn:
        movl    $burn_work, job
        call    work
        movl    $records, %ebx
        xorl    %ebp, %ebp
1:      call    print_name
        movl    $text_cpu, %esi
        call    print
        movl    %ebp, %eax
        call    print_decimal
        movl    $text_had, %esi
        call    print
        movl    $CPU_RAN, %esi
        call    to_us
        movl    wall_us, %ecx
        call    print_permille
        movl    $text_of_time, %esi
        call    print
        testl   %eax, %eax
        movl    $text_ran, %esi
        call    expect_unequal
        incl    %ebp
        addl    $(1 << CPU_SHIFT), %ebx
        cmpl    last_record, %ebx
        jbe     1b
        jmp     passed_or_failed

# Has every CPU do the job, for the seconds of the command line, and waits until all have done.
work:
        call    say_init
        call    seconds
        imull   $1000000, %eax
        movl    %eax, wall_us
        call    several_init
        movl    ticks_per_us, %eax
        imull   $ABSENT_US, %eax, %ecx
        movl    %ecx, absent
        imull   $BURNT_US, %eax, %ecx
        movl    %ecx, burnt
        imull   $HOLD_US, %eax, %ecx
        movl    %ecx, hold
        imull   $OUTSIDE_US, %eax, %ecx
        movl    %ecx, outside
        movl    $ap_work, ap_job
        call    start_others
        movl    wall_us, %eax
        call    set_end_us
        movl    $1, go
        movl    $records, %ebx
        call    steal_on
        call    tick
        movl    $0, CPU_RAN(%ebx)
        movl    $0, CPU_RAN + 4(%ebx)
        call    *job
        lock incl done
        movl    cpus, %eax
        movl    $done, %edi
        movl    $text_done, %esi
        jmp     wait_equal

ap_work:
        pause
        cmpl    $0, go
        je      ap_work
        call    steal_on
        call    tick
        movl    $0, CPU_RAN(%ebx)
        movl    $0, CPU_RAN + 4(%ebx)
        call    *job
        lock incl done
        jmp     ap_stop

# Has the hypervisor note how long this CPU could run and did not, if it can (Linux, Documentation/virt/kvm/x86/cpuid.rst and msr.rst). Changes
# EAX, ECX, EDX.
steal_on:
        pushl   %ebx
        movl    $0x40000000, %eax
        cpuid
        cmpl    $0x4b4d564b, %ebx               # "KVMK"
        jne     1f
        movl    $0x40000001, %eax
        cpuid
        testl   $(1 << 5), %eax
        jz      1f
        movl    (%esp), %ebx
        leal    steals - records(%ebx), %eax
        orl     $1, %eax
        xorl    %edx, %edx
        movl    $MSR_STEAL_TIME, %ecx
        wrmsr
1:      popl    %ebx
        ret

# Looks at the TSC: what has passed since the last look comes in EAX, and counts as run; 0 if that was so much that the CPU cannot have
# run all the time. Changes ECX, EDX, ESI.
tick:
        rdtsc
        movl    %eax, %ecx
        movl    %edx, %esi
        subl    CPU_TSC(%ebx), %eax
        sbbl    CPU_TSC + 4(%ebx), %edx
        movl    %ecx, CPU_TSC(%ebx)
        movl    %esi, CPU_TSC + 4(%ebx)
        jnz     1f
        cmpl    absent, %eax
        jae     1f
        addl    %eax, CPU_RAN(%ebx)
        adcl    $0, CPU_RAN + 4(%ebx)
        ret
1:      testl   %edx, %edx
        jz      2f
        movl    $-1, %eax
        xorl    %edx, %edx
2:      divl    ticks_per_us
        movl    %eax, %ecx                      # microseconds absent
        movl    steals - records(%ebx), %eax    # nanoseconds, the low half
        movl    %eax, %esi
        subl    CPU_STEAL(%ebx), %eax
        movl    %esi, CPU_STEAL(%ebx)
        xorl    %edx, %edx
        movl    $500, %esi
        divl    %esi                            # twice the microseconds stolen
        movl    $0, CPU_BELOW(%ebx)
        cmpl    %ecx, %eax
        jae     3f
        incl    CPU_BELOW(%ebx)
3:      xorl    %eax, %eax
        ret

burn_work:
        movl    $1000, %ecx
1:      imull   $1664525, %edi
        addl    $1013904223, %edi
        loop    1b
        call    tick
        call    is_end
        jb      burn_work
        ret

lock_work:
        movl    heartbeat, %ebp
        movl    stalls, %eax
        movl    %eax, CPU_STALLS(%ebx)
        movl    $0, CPU_PENDING(%ebx)
1:      cmpl    $0, lock
        jne     2f
        movl    $1, %eax
        xchgl   %eax, lock
        testl   %eax, %eax
        jz      4f
2:      pause
        call    tick
        addl    %eax, CPU_SPUN(%ebx)
        adcl    $0, CPU_SPUN + 4(%ebx)
        # Two signs of life: by the second one the holder has said why the first one came late.
        movl    heartbeat, %ecx
        subl    %ebp, %ecx
        cmpl    $2, %ecx
        jb      3f
        addl    %ecx, %ebp
        call    settle
        jmp     1b
3:      addl    %eax, CPU_PENDING(%ebx)
        jnc     1b
        movl    $-1, CPU_PENDING(%ebx)          # more than fits: as much as does
        jmp     1b
4:      call    settle
        # Work that the lock is for: so much of the CPU's own time, and each look is a sign of life.
        movl    hold, %edi
5:      call    tick
        testl   %eax, %eax
        jnz     6f
        movl    CPU_BELOW(%ebx), %ecx
        addl    %ecx, stalls
6:      incl    heartbeat
        subl    %eax, %edi
        ja      5b
        movl    $0, lock
        incl    CPU_LOCKS(%ebx)
        movl    outside, %edi
7:      call    tick
        subl    %eax, %edi
        ja      7b
        call    is_end
        jb      lock_work
        ret

# What was spun since the holder was last seen to go on is burnt if it was long, or stalled. Changes EAX, ECX, EDX.
settle:
        movl    CPU_PENDING(%ebx), %eax
        movl    $0, CPU_PENDING(%ebx)
        movl    CPU_STALLS(%ebx), %edx
        movl    stalls, %ecx
        movl    %ecx, CPU_STALLS(%ebx)
        cmpl    burnt, %eax
        jbe     1f
        cmpl    %ecx, %edx
        jne     2f
        addl    %eax, CPU_BURNT(%ebx)
        adcl    $0, CPU_BURNT + 4(%ebx)
1:      ret
2:      addl    %eax, CPU_STALLED(%ebx)
        adcl    $0, CPU_STALLED + 4(%ebx)
        ret

# The counter at EBX + ESI in microseconds, in EAX. Changes EDX.
to_us:
        movl    (%ebx, %esi), %eax
        movl    4(%ebx, %esi), %edx
        cmpl    ticks_per_us, %edx
        jae     1f
        divl    ticks_per_us
        ret
1:      movl    $-1, %eax
        ret

# Prints EAX as thousandths of ECX, which are in EAX then. Changes EDX.
print_permille:
        movl    $1000, %edx
        mull    %edx
        cmpl    %ecx, %edx
        jae     1f
        divl    %ecx
        jmp     2f
1:      movl    $-1, %eax
2:      jmp     print_decimal

# "probe: MODE: "
print_name:
        pushl   %esi
        movl    $text_prefix, %esi
        call    print
        movl    mode_name, %esi
        call    print
        movl    $text_colon, %esi
        call    print
        popl    %esi
        ret

        .section .rodata
text_colon:     .asciz  ": "
text_cpus_ran:  .asciz  " cpus ran "
text_ms_took:   .asciz  " ms, took "
text_locks:     .asciz  " locks\n"
text_spun:      .asciz  " permille spun\n"
text_burnt:     .asciz  " permille burnt\n"
text_stalled:   .asciz  " permille stalled\n"
text_cpu:       .asciz  "cpu "
text_had:       .asciz  " had "
text_of_time:   .asciz  " permille of the time\n"
text_had_lock:  .asciz  "every CPU had the lock"
text_ran:       .asciz  "every CPU ran"
text_done:      .asciz  "all CPUs came to the end"

        .bss
        .align  64
lock:           .skip   64
heartbeat:      .skip   64
stalls:         .skip   64
steals:         .skip   MAX_CPUS << CPU_SHIFT
go:             .long   0
done:           .long   0
job:            .long   0
wall_us:        .long   0
absent:         .long   0
burnt:          .long   0
hold:           .long   0
outside:        .long   0
sum_ran:        .long   0
sum_spun:       .long   0
sum_burnt:      .long   0
sum_stalled:    .long   0
sum_locks:      .long   0
