# Modes "debug" and "nmi".
#
# debug: every CPU keeps its own breakpoint addresses (DR0 to DR3), whatever other CPUs share its place with it and wherever it moves.

        .text
        .globl  mode_debug
mode_debug:
        movl    $debug_work, job
        call    work
        movl    others_addresses, %eax
        xorl    %ecx, %ecx
        movl    $text_breakpoints, %esi
        cmpl    %ecx, %eax
        call    expect_equal
        jmp     passed_or_failed

debug_work:
        movl    %ebx, %dr0
        leal    1(%ebx), %eax
        movl    %eax, %dr1
        incl    %eax
        movl    %eax, %dr2
        incl    %eax
        movl    %eax, %dr3
1:      movl    $100000, %ecx
2:      loop    2b
        movl    %dr0, %eax
        movl    %dr1, %ecx
        movl    %dr2, %edx
        movl    %dr3, %edi
        subl    %ebx, %eax
        subl    %ebx, %ecx
        subl    %ebx, %edx
        subl    %ebx, %edi
        shll    $2, %ecx
        shll    $4, %edx
        shll    $6, %edi
        orl     %ecx, %eax
        orl     %edx, %eax
        orl     %edi, %eax
        cmpl    $(1 << 2 | 2 << 4 | 3 << 6), %eax
        je      3f
        lock incl others_addresses
        ret
3:      call    is_end
        jb      1b
        ret

# nmi: a CPU that handles an NMI sends itself another, which has to wait for the IRET of the first, and come then.
        .globl  mode_nmi
mode_nmi:
        call    say_init
        call    calibrate
        call    apic_on
        movl    $2, %eax
        movl    $nmi_sends_another, %edx
        call    set_gate
        call    nmi_to_itself
        movl    $2, %eax
        movl    $nmis, %edi
        movl    $text_two_nmis, %esi
        call    wait_equal
        xorl    %eax, %eax
        movl    $text_in_turn, %esi
        cmpl    %eax, nmis_in_nmis
        call    expect_equal
        jmp     passed_or_failed

nmi_sends_another:
        pushal
        cmpl    $0, in_nmi
        je      1f
        incl    nmis_in_nmis
1:      incl    in_nmi
        incl    nmis
        cmpl    $1, nmis
        jne     2f
        call    nmi_to_itself
        xorl    %eax, %eax
        cpuid
        cpuid
2:      decl    in_nmi
        popal
        iret

nmi_to_itself:
        call    apic_id
        movl    %eax, %edx
        movl    $IPI_NMI, %eax
        jmp     send_ipi

        .section .rodata
text_two_nmis:  .asciz  "both NMIs came"
text_in_turn:   .asciz  "the second NMI waited for the end of the first"
text_breakpoints: .asciz "every CPU finds its own addresses in DR0 to DR3"

        .bss
others_addresses: .long 0
nmis:           .long   0
nmis_in_nmis:   .long   0
in_nmi:         .long   0
