# Mode "hello": what a guest finds at its start, and the local APIC's timer in each of its ways.

        .text
        .globl  mode_hello
mode_hello:
        call    say_init
        call    check_cpuid
        call    check_timer
        movl    $text_ready, %esi
        call    print
        jmp     passed_or_failed

check_cpuid:
        movl    $0x40000000, %eax
        cpuid
        cmpl    $0x4b4d564b, %ebx       # "KVMK"
        movl    $text_signature, %esi
        call    expect_equal
        cmpl    $0x564b4d56, %ecx       # "VMKV"
        call    expect_equal
        cmpl    $0x4d, %edx             # "M"
        call    expect_equal
        movl    $0x40000001, %eax
        cpuid
        andl    $0x01000008, %eax
        cmpl    $0x01000008, %eax       # kvmclock, stable
        movl    $text_clock, %esi
        call    expect_equal
        movl    $1, %eax
        cpuid
        movl    %ecx, %eax
        andl    $0x80200000, %eax       # hypervisor, x2APIC
        cmpl    $0x80200000, %eax
        movl    $text_x2apic, %esi
        call    expect_equal
        testl   $0x1C000008, %ecx       # MONITOR, XSAVE, OSXSAVE, AVX
        movl    $text_hidden, %esi
        call    expect_equal
        movl    $0x80000001, %eax
        cpuid
        testl   $4, %ecx                # SVM
        movl    $text_hidden, %esi
        call    expect_equal
        movl    $0x80000007, %eax
        cpuid
        andl    $0x100, %edx
        cmpl    $0x100, %edx            # invariant TSC
        movl    $text_invariant, %esi
        call    expect_equal
        # Prefixes make an instruction longer; the next one must still be found.
        xorl    %eax, %eax
        .byte   0x66, 0x66
        cpuid
        testl   %eax, %eax
        movl    $text_prefixed, %esi
        call    expect_unequal
        ret

check_timer:
        call    timer_on
        # One-shot by count.
        movl    $0, ticks
        movl    $MSR_INITIAL_COUNT, %ecx
        movl    $1000000, %eax
        wrmsr
        sti
        hlt
        cli
        cmpl    $1, ticks
        movl    $text_one_shot, %esi
        call    expect_equal
        # One-shot that comes while the guest computes with interrupts on, and one that comes while they are off.
        movl    $MSR_INITIAL_COUNT, %ecx
        movl    $1000000, %eax
        wrmsr
        sti
1:      cmpl    $2, ticks
        jne     1b
        cli
        # QEMU's translator can lose the virtual interrupt by which a hypervisor learns of the STI (docs/hv.md), and then it comes late: it has three chances to come at once.
        movl    $3, %edi
2:      movl    ticks, %ebp
        movl    $MSR_INITIAL_COUNT, %ecx
        movl    $200000, %eax
        xorl    %edx, %edx
        wrmsr
3:      movl    $0x839, %ecx            # current count: until it has run down
        rdmsr
        testl   %eax, %eax
        jnz     3b
        cmpl    %ebp, ticks             # not while they are off
        movl    $text_masked, %esi
        call    expect_equal
        incl    %ebp
        sti
        nop
        nop
        cli
        cmpl    %ebp, ticks
        je      5f
        sti
4:      cmpl    %ebp, ticks
        jne     4b
        cli
        decl    %edi
        jnz     2b
        cmpl    %esp, %edi              # clears ZF
5:      movl    $text_window, %esi
        call    expect_equal
        # TSC deadline.
        movl    $MSR_LVT_TIMER, %ecx
        movl    $(0x40000 | TIMER_VECTOR), %eax
        xorl    %edx, %edx
        wrmsr
        rdtsc
        addl    $3000000, %eax
        adcl    $0, %edx
        movl    $MSR_TSC_DEADLINE, %ecx
        wrmsr
        sti
        hlt
        cli
        incl    %ebp
        cmpl    %ebp, ticks
        movl    $text_deadline, %esi
        call    expect_equal
        ret

        .section .rodata
text_ready:     .asciz  "outpost-guest: ready\n"
text_signature: .asciz  "hypervisor signature"
text_clock:     .asciz  "stable clock"
text_x2apic:    .asciz  "x2APIC and hypervisor bits"
text_hidden:    .asciz  "features that should be hidden"
text_invariant: .asciz  "invariant TSC"
text_prefixed:  .asciz  "CPUID with prefixes"
text_one_shot:  .asciz  "one-shot timer"
text_masked:    .asciz  "interrupt while masked"
text_window:    .asciz  "interrupt after unmasking"
text_deadline:  .asciz  "TSC deadline timer"
