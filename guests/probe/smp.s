# Several CPUs: the local APIC in both modes, how the others are started, and modes "smp" and "spin".

        .set    LOCAL_APIC, 0xFEE00000
        .set    MSR_ICR, 0x830
        .set    MSR_APIC_ID, 0x802
        .set    TRAMPOLINE, 0x8000              # its page is the vector of SIPI
        .set    MAX_CPUS, 16
        .set    PM_TIMER, 0x608
        .set    PM_TICKS, 71590                 # 20 ms at 3.579545 MHz (ACPI 6.5, 4.8.3.3)
        .set    PM_MICROSECONDS, 20000
        .set    PATIENCE, 30000000              # microseconds for what must come

        .set    IPI_VECTOR, 0x41
        .set    REPLY_VECTOR, 0x42
        .set    IPI_NMI, 0x4400                 # ICR (Intel SDM 3A, 11.6.1): mode, assert
        .set    IPI_INIT, 0x4500
        .set    IPI_STARTUP, 0x4600 | TRAMPOLINE >> 12
        .set    IPI_FIXED, 0x4000
        .set    TO_OTHERS, 0xC0000

# What is known of each CPU; EBX points to its record nearly everywhere.
        .set    CPU_SHIFT, 7
        .set    CPU_TSC, 0                      # when it was last seen to run
        .set    CPU_RAN, 8
        .set    CPU_SPUN, 16
        .set    CPU_BURNT, 24
        .set    CPU_PENDING, 32
        .set    CPU_LOCKS, 36
        .set    CPU_ID, 40
        .set    CPU_FIXED, 44
        .set    CPU_NMIS, 48
        .set    CPU_STEAL, 52                   # its steal time when it was last absent
        .set    CPU_BELOW, 56                   # 1 if that absence was not the hypervisor's doing
        .set    CPU_STALLS, 60
        .set    CPU_STALLED, 64

        .set    WATCHDOG, 0x630

        .text
mode_smp:
        call    say_init
        call    number
        pushl   %eax
        call    several_init
        popl    %eax
        cmpl    %eax, cpus
        movl    $text_madt, %esi
        call    expect_equal
        movl    %eax, cpus
        decl    %eax
        cmpl    $MAX_CPUS, %eax
        jae     smp_bad_number
        movl    $ap_idle, ap_job
        call    smp_round
        movl    $1, %eax
        cpuid
        movl    $text_no_x2apic, %esi
        testl   $0x200000, %ecx
        jz      1f
        movl    $1, x2apic
        call    apic_on
        call    smp_round
        jmp     passed_or_failed
1:      call    print
        jmp     passed_or_failed
smp_bad_number:
        movl    $text_bad_number, %esi
        jmp     give_up

# As "spin", but the watchdog that the box has for its guest (docs/platform.md) runs, and nobody answers it.
mode_hang:
        movw    $(WATCHDOG + 4), %dx
        movl    $2, %eax                        # seconds
        outl    %eax, %dx
        movw    $WATCHDOG, %dx
        movl    $1, %eax
        outl    %eax, %dx
mode_spin:
        call    say_init
        call    several_init
        cmpl    $1, cpus
        je      1f
        movl    $ap_spin, ap_job
        call    start_others
1:      movl    $text_prefix, %esi
        call    print
        movl    cpus, %eax
        call    print_decimal
        movl    $text_spinning, %esi
        call    print
ap_spin:
        cli
2:      jmp     2b

# Everything that "smp" tries, in the mode that the APICs are in.
smp_round:
        call    start_others
        # Different identifiers, and all of them.
        xorl    %eax, %eax
        xorl    %ecx, %ecx
1:      btl     %ecx, cpu_ids
        adcl    $0, %eax
        incl    %ecx
        cmpl    $256, %ecx
        jb      1b
        cmpl    cpus, %eax
        movl    $text_ids, %esi
        call    expect_equal

        movl    $records, %ebx
        sti
2:      addl    $(1 << CPU_SHIFT), %ebx
        cmpl    last_record, %ebx
        ja      3f
        call    try_cpu
        jmp     2b

        # To all others at once.
3:      movl    $(TO_OTHERS | IPI_FIXED | IPI_VECTOR), %eax
        xorl    %edx, %edx
        call    send_ipi
        movl    $records, %ebx
4:      addl    $(1 << CPU_SHIFT), %ebx
        cmpl    last_record, %ebx
        ja      5f
        leal    CPU_FIXED(%ebx), %edi
        movl    $2, %eax
        movl    $text_broadcast, %esi
        call    wait_equal
        jmp     4b

5:      call    route_pins
        call    shoot_down
        # The last one once more, from the beginning.
        cmpl    $1, cpus
        je      6f
        movl    last_record, %ebx
        movl    cpus, %eax
        decl    %eax
        movl    %eax, next_cpu
        movl    %eax, arrived
        movl    CPU_ID(%ebx), %edx
        movl    $0, CPU_FIXED(%ebx)
        movl    $0, CPU_NMIS(%ebx)
        movl    $IPI_INIT, %eax
        call    send_ipi
        movl    $IPI_STARTUP, %eax
        call    send_ipi
        movl    $IPI_STARTUP, %eax
        call    send_ipi
        movl    $arrived, %edi
        movl    cpus, %eax
        movl    $text_again, %esi
        call    wait_equal
        call    try_cpu
6:      cli
        movl    $text_prefix, %esi
        call    print
        movl    $text_smp, %esi
        call    print
        movl    cpus, %eax
        call    print_decimal
        movl    $text_xapic, %esi
        cmpl    $0, x2apic
        je      7f
        movl    $text_x2apic_mode, %esi
7:      jmp     print

# An interrupt to the CPU of EBX, which it answers with another, and an NMI.
try_cpu:
        movl    $0, replies
        movl    CPU_ID(%ebx), %edx
        movl    $(IPI_FIXED | IPI_VECTOR), %eax
        call    send_ipi
        leal    CPU_FIXED(%ebx), %edi
        movl    $1, %eax
        movl    $text_fixed, %esi
        call    wait_equal
        movl    $replies, %edi
        movl    $text_reply, %esi
        call    wait_equal
        movl    CPU_ID(%ebx), %edx
        movl    $IPI_NMI, %eax
        call    send_ipi
        leal    CPU_NMIS(%ebx), %edi
        movl    $1, %eax
        movl    $text_nmi, %esi
        jmp     wait_equal

# ---- starting ----------------------------------------------------------------------------------------------------------

# Time, the CPUs' number, the first CPU's APIC, and the handlers.
several_init:
        call    calibrate
        call    count_cpus
        call    apic_on
        call    apic_id
        movl    %eax, records + CPU_ID
        movl    $IPI_VECTOR, %eax
        movl    $ipi_interrupt, %edx
        call    set_gate
        movl    $REPLY_VECTOR, %eax
        movl    $reply_interrupt, %edx
        call    set_gate
        movl    $2, %eax
        movl    $nmi_interrupt, %edx
        call    set_gate
        movl    $trampoline, %esi
        movl    $TRAMPOLINE, %edi
        movl    $(trampoline_end - trampoline), %ecx
        rep     movsb
        ret

# Starts the other CPUs by broadcasts without a pause between them, and waits until all that should have come.
start_others:
        movl    $records + (1 << CPU_SHIFT), %edi
        movl    $((MAX_CPUS - 1) << CPU_SHIFT) / 4, %ecx
        xorl    %eax, %eax
        rep     stosl
        movl    $cpu_ids, %edi
        movl    $8, %ecx
        rep     stosl
        movl    records + CPU_ID, %eax
        btsl    %eax, cpu_ids
        movl    $1, next_cpu
        movl    $1, arrived
        movl    cpus, %eax
        decl    %eax
        shll    $CPU_SHIFT, %eax
        addl    $records, %eax
        movl    %eax, last_record
        cmpl    $0, x2apic
        jne     1f
        movl    $(TO_OTHERS | IPI_INIT), LOCAL_APIC + 0x300
        movl    $(TO_OTHERS | IPI_STARTUP), LOCAL_APIC + 0x300
        movl    $(TO_OTHERS | IPI_STARTUP), LOCAL_APIC + 0x300
        jmp     2f
1:      movl    $MSR_ICR, %ecx
        xorl    %edx, %edx
        movl    $(TO_OTHERS | IPI_INIT), %eax
        wrmsr
        movl    $(TO_OTHERS | IPI_STARTUP), %eax
        wrmsr
        wrmsr
2:      movl    $arrived, %edi
        movl    cpus, %eax
        movl    $text_arrived, %esi
        jmp     wait_equal

# Copied to low memory; where it begins in real mode.
        .code16
trampoline:
        cli
        cld
        lgdtl   %cs:(trampoline_gdt - trampoline)
        movl    %cr0, %eax
        andl    $0x9FFFFFFF, %eax               # caches on
        orl     $1, %eax
        movl    %eax, %cr0
        ljmpl   $8, $ap_start
trampoline_gdt:
        .word   23
        .long   gdt
trampoline_end:
        .code32

ap_start:
        movw    $16, %cx
        movw    %cx, %ds
        movw    %cx, %es
        movw    %cx, %fs
        movw    %cx, %gs
        movw    %cx, %ss
        movl    $1, %eax
        lock xaddl %eax, next_cpu
        cmpl    $MAX_CPUS, %eax
        jae     ap_stop
        movl    %eax, %ebx
        shll    $CPU_SHIFT, %ebx
        addl    $records, %ebx
        incl    %eax
        shll    $12, %eax
        leal    stacks(%eax), %esp
        lidt    idt_register
        call    apic_on
        call    apic_id
        movl    %eax, CPU_ID(%ebx)
        lock btsl %eax, cpu_ids
        lock incl arrived
        jmp     *ap_job
ap_stop:
        cli
        hlt
        jmp     ap_stop
ap_idle:
        sti
        hlt
        jmp     ap_idle

# ---- interrupts --------------------------------------------------------------------------------------------------------

# Each of the other CPUs finds its record by its stack.
        .macro  find_record
        movl    %esp, %ebx
        subl    $stacks, %ebx
        shrl    $12, %ebx
        shll    $CPU_SHIFT, %ebx
        addl    $records, %ebx
        .endm

ipi_interrupt:
        pushal
        find_record
        incl    CPU_FIXED(%ebx)
        call    apic_eoi
        movl    records + CPU_ID, %edx
        movl    $(IPI_FIXED | REPLY_VECTOR), %eax
        call    send_ipi
        popal
        iret

reply_interrupt:
        pushal
        incl    replies
        call    apic_eoi
        popal
        iret

nmi_interrupt:
        pushal
        find_record
        incl    CPU_NMIS(%ebx)
        popal
        iret

# Handler EDX for vector EAX.
set_gate:
        movw    %dx, idt(, %eax, 8)
        shrl    $16, %edx
        movw    %dx, idt + 6(, %eax, 8)
        ret

# ---- the local APIC ----------------------------------------------------------------------------------------------------

# Switches this CPU's on, in the mode that "x2apic" says.
apic_on:
        cmpl    $0, x2apic
        jne     x2apic_on
        movl    $0x1FF, LOCAL_APIC + 0xF0
        ret

# Its identifier, in EAX.
apic_id:
        cmpl    $0, x2apic
        jne     1f
        movl    LOCAL_APIC + 0x20, %eax
        shrl    $24, %eax
        ret
1:      movl    $MSR_APIC_ID, %ecx
        rdmsr
        ret

apic_eoi:
        xorl    %eax, %eax
        cmpl    %eax, x2apic
        jne     1f
        movl    %eax, LOCAL_APIC + 0xB0
        ret
1:      xorl    %edx, %edx
        movl    $MSR_EOI, %ecx
        wrmsr
        ret

# Sends EAX to the CPU with identifier EDX. Changes ECX only.
send_ipi:
        cmpl    $0, x2apic
        jne     2f
1:      testl   $0x1000, LOCAL_APIC + 0x300     # the one before is on its way
        jnz     1b
        movl    %edx, %ecx
        shll    $24, %ecx
        movl    %ecx, LOCAL_APIC + 0x310
        movl    %eax, LOCAL_APIC + 0x300
        ret
2:      movl    $MSR_ICR, %ecx
        wrmsr
        ret

# ---- time --------------------------------------------------------------------------------------------------------------

# Finds out how many ticks of the TSC a microsecond has, by the PM timer.
calibrate:
        pushal
        movl    $0x1000000, %ecx                # looks at it, at most
        movw    $PM_TIMER, %dx
        inl     %dx, %eax
        movl    %eax, %ebx
        rdtsc
        movl    %eax, %esi
        movl    %edx, %edi
1:      decl    %ecx
        jz      2f
        pause
        movw    $PM_TIMER, %dx
        inl     %dx, %eax
        subl    %ebx, %eax
        andl    $0xFFFFFF, %eax
        cmpl    $PM_TICKS, %eax
        jb      1b
        movl    %eax, %ebp
        rdtsc
        subl    %esi, %eax
        sbbl    %edi, %edx
        # The timer may have gone on for longer: ticks × 71590 / what it says, / 20000.
        movl    %ebp, %ecx
        movl    %edx, %edi
        movl    $PM_TICKS, %esi
        mull    %esi
        imull   %esi, %edi
        addl    %edi, %edx
        divl    %ecx
        xorl    %edx, %edx
        movl    $PM_MICROSECONDS, %ecx
        divl    %ecx
        movl    %eax, ticks_per_us
        testl   %eax, %eax
        jz      2f
        popal
        ret
2:      movl    $text_pm_timer, %esi
        jmp     give_up

# Seconds from the command line (1 to 60; 2 if it has none), in EAX.
seconds:
        call    number
        testl   %eax, %eax
        jnz     1f
        movl    $2, %eax
1:      cmpl    $60, %eax
        jbe     2f
        movl    $60, %eax
2:      ret

# "end" is EAX seconds from now; time is measured first.
set_end:
        call    calibrate
        imull   $1000000, %eax
# … EAX microseconds.
set_end_us:
        mull    ticks_per_us
        movl    %eax, end
        movl    %edx, end + 4
        rdtsc
        addl    %eax, end
        adcl    %edx, end + 4
        ret

# Carry is set before "end". Changes EAX, EDX.
is_end:
        rdtsc
        subl    end, %eax
        sbbl    end + 4, %edx
        ret

# Waits until the word at EDI is EAX; if it does not become that, the name ESI has failed. Changes ECX, EDX.
wait_equal:
        movl    %eax, %ecx
        cmpl    %ecx, (%edi)
        je      2f
        pushl   %ebx
        pushl   %ebp
        movl    $PATIENCE, %eax
        mull    ticks_per_us
        movl    %eax, %ebx
        movl    %edx, %ebp
        rdtsc
        addl    %eax, %ebx
        adcl    %edx, %ebp
1:      pause
        rdtsc
        subl    %ebx, %eax
        sbbl    %ebp, %edx
        jnc     give_up
        cmpl    %ecx, (%edi)
        jne     1b
        movl    %ecx, %eax
        popl    %ebp
        popl    %ebx
2:      ret

# The name ESI has failed, and nothing more can be done.
give_up:
        cli
        cmpl    %esp, %esi                      # clears ZF
        call    expect_equal
        jmp     passed_or_failed

# ---- the number of CPUs ------------------------------------------------------------------------------------------------

# As the MADT says (ACPI 6.5, 5.2.12): enabled processors.
count_cpus:
        movl    $0xE0000, %esi
1:      cmpl    $0x20445352, (%esi)             # "RSD PTR "
        jne     2f
        cmpl    $0x20525450, 4(%esi)
        je      3f
2:      addl    $16, %esi
        cmpl    $0x100000, %esi
        jb      1b
        jmp     9f
3:      movl    $4, %ebp                        # bytes of an entry
        movl    16(%esi), %edi                  # RSDT
        cmpb    $2, 15(%esi)
        jb      4f
        movl    24(%esi), %eax                  # XSDT
        testl   %eax, %eax
        jz      4f
        movl    %eax, %edi
        movl    $8, %ebp
4:      movl    4(%edi), %ecx
        addl    %edi, %ecx                      # its end
        addl    $36, %edi
5:      cmpl    %ecx, %edi
        jae     9f
        movl    (%edi), %esi
        cmpl    $0x43495041, (%esi)             # "APIC"
        je      6f
        addl    %ebp, %edi
        jmp     5b
6:      movl    4(%esi), %ecx
        addl    %esi, %ecx
        addl    $44, %esi
        xorl    %eax, %eax
7:      cmpl    %ecx, %esi
        jae     8f
        movzbl  1(%esi), %edx
        testl   %edx, %edx
        jz      9f
        cmpb    $0, (%esi)                      # local APIC
        jne     1f
        testb   $1, 4(%esi)
        jz      2f
        incl    %eax
        jmp     2f
1:      cmpb    $9, (%esi)                      # local x2APIC
        jne     2f
        testb   $1, 8(%esi)
        jz      2f
        incl    %eax
2:      addl    %edx, %esi
        jmp     7b
8:      movl    %eax, cpus
        ret
9:      movl    $text_no_madt, %esi
        jmp     give_up

        .section .rodata
text_spinning:  .asciz  " CPUs spinning with interrupts off\n"
text_smp:       .asciz  "smp: "
text_xapic:     .asciz  " cpus, ipis ok (xAPIC)\n"
text_x2apic_mode: .asciz " cpus, ipis ok (x2APIC)\n"
text_no_x2apic: .asciz  "probe: smp: this CPU has no x2APIC\n"
text_bad_number: .asciz "number of CPUs from 1 to 16"
text_madt:      .asciz  "number of CPUs in the MADT"
text_no_madt:   .asciz  "ACPI tables with a MADT"
text_pm_timer:  .asciz  "PM timer at port 0x608"
text_arrived:   .asciz  "all CPUs came after a broadcast"
text_ids:       .asciz  "APIC identifiers are different"
text_fixed:     .asciz  "interrupt to one CPU"
text_reply:     .asciz  "interrupt back to the first CPU"
text_nmi:       .asciz  "NMI to one CPU"
text_broadcast: .asciz  "interrupt to all others"
text_again:     .asciz  "a CPU came again after INIT and SIPI"

        .bss
        .align  4096
stacks:         .skip   4096 * MAX_CPUS         # the first CPU has another
        .align  64
records:        .skip   MAX_CPUS << CPU_SHIFT
end:            .skip   8
cpu_ids:        .skip   32
x2apic:         .long   0
cpus:           .long   0
last_record:    .long   0
next_cpu:       .long   0
arrived:        .long   0
replies:        .long   0
ap_job:         .long   0
ticks_per_us:   .long   0
