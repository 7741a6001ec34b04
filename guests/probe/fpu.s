# Mode "fxrstor": every CPU has its own x87 and SSE registers, whatever other CPUs share its place with it and wherever it moves. Each loads them
# again and again and leaves the guest now and then, as a busy Linux does at its context switches, and looks at them: after an exit, and after it
# has waited for another CPU's turn. QEMU's translator (7.2 at least) mixes up two CPUs that load x87 state at the same time: see docs/hv.md.

        .set    LOADS, 100                      # for each exit
        .set    EXITS, 512                      # for each wait
        .set    WAIT_US, 6000                   # more than the hypervisor lets a CPU run while another one waits
        .set    WAIT_LONGER_US, 50000           # if it has seen no other CPU until then

        .set    FPU_SHIFT, 9                    # an image of FXSAVE and FXRSTOR (APM vol. 2, 11.4.4)
        .set    FPU_WORDS, 0                    # FCW, FSW, and a byte of tags
        .set    FPU_MXCSR, 24
        .set    FPU_ST, 32                      # eight of 10 bytes, 16 bytes apart
        .set    FPU_XMM, 160                    # eight of 16 bytes outside of 64-bit code
        .set    FPU_END, FPU_XMM + 8 * 16

        .text
        .globl  mode_fxrstor
mode_fxrstor:
        movl    $fxrstor_work, job
        call    work
        call    print_name
        movl    fpu_looks, %eax
        call    print_decimal
        movl    $text_looks, %esi
        call    print
        movl    fpu_turns, %eax
        call    print_decimal
        movl    $text_turns, %esi
        call    print
        # What was another's, and how often.
        movl    $fpu_parts, %ebx
1:      movl    4(%ebx), %esi
        movl    (%ebx), %eax
        testl   %eax, %eax
        jz      2f
        call    print_name
        call    print_decimal
        movl    $text_times, %esi
        call    print
        movl    4(%ebx), %esi
        cmpl    %esp, %esi                      # clears ZF
        call    expect_equal
2:      addl    $8, %ebx
        cmpl    $fpu_parts_end, %ebx
        jb      1b
        jmp     passed_or_failed

fxrstor_work:
        call    sse_on
        call    own_image
1:      movl    $EXITS, %ebp
2:      movl    $LOADS, %ecx
3:      fxrstor (%edi)
        loop    3b
        pushl   %ebx
        xorl    %eax, %eax
        cpuid
        popl    %ebx
        call    look_at_fpu
        decl    %ebp
        jnz     2b
        call    wait_turn
        call    look_at_fpu
        call    is_end
        jb      1b
        ret

# SSE instructions, and FXSAVE and FXRSTOR with SSE's registers. Changes EAX.
sse_on:
        movl    %cr4, %eax
        orl     $0x200, %eax                    # OSFXSR
        movl    %eax, %cr4
        movl    %cr0, %eax
        andl    $0xFFFFFFF3, %eax               # neither EM nor TS
        movl    %eax, %cr0
        ret

# Makes the image of the CPU of EBX, with its address in EDI: all of it depends on the CPU's number, and no exception is pending or comes.
# The first CPU's words are those after INIT but for the tags. Changes EAX, ECX, EDX.
own_image:
        movl    %ebx, %edx
        subl    $records, %edx
        movl    %edx, %edi
        shll    $(FPU_SHIFT - CPU_SHIFT), %edi
        addl    $fpu_images, %edi
        shrl    $CPU_SHIFT, %edx                # number: four bits
        movl    %edx, %eax
        shll    $11, %eax                       # three of it are the top of the stack, the last is C0
        movl    %eax, %ecx
        andl    $0x3800, %eax
        shrl    $6, %ecx
        andl    $0x100, %ecx
        orl     %ecx, %eax
        movw    %ax, FPU_WORDS + 2(%edi)
        movl    %edx, %eax
        andl    $3, %eax
        movl    %eax, %ecx
        shll    $10, %eax                       # rounding
        orl     $0x37F, %eax
        movw    %ax, FPU_WORDS(%edi)
        shll    $13, %ecx                       # rounding there
        movl    %edx, %eax
        shrl    $2, %eax                        # IE and DE
        leal    0x1F80(%ecx, %eax), %eax
        movl    %eax, FPU_MXCSR(%edi)
        movl    %edx, %eax
        orl     $0xF0, %eax
        movb    %al, FPU_WORDS + 4(%edi)
        shll    $16, %edx
        movl    $FPU_ST, %ecx
1:      leal    0x80000000(%edx, %ecx), %eax    # normal numbers in ST0 to ST7: the highest bit of the fraction is set
        movl    %eax, (%edi, %ecx)
        addl    $4, %ecx
        cmpl    $FPU_END, %ecx
        jb      1b
        ret

# Compares the registers with the image at EDI, and counts each part of them that is another. Changes EAX, ECX, EDX, ESI.
look_at_fpu:
        lock incl fpu_looks
        leal    fpu_seen - fpu_images(%edi), %esi
        fxsave  (%esi)
        movl    FPU_WORDS(%esi), %eax
        xorl    FPU_WORDS(%edi), %eax
        movb    FPU_WORDS + 4(%esi), %dl
        xorb    FPU_WORDS + 4(%edi), %dl
        movzbl  %dl, %edx
        orl     %edx, %eax
        jz      1f
        lock incl fpu_words
1:      movl    FPU_MXCSR(%esi), %eax
        cmpl    FPU_MXCSR(%edi), %eax
        je      2f
        lock incl fpu_mxcsr
2:      movl    $FPU_ST, %ecx
3:      movl    (%esi, %ecx), %eax
        cmpl    (%edi, %ecx), %eax
        jne     4f
        movl    4(%esi, %ecx), %eax
        cmpl    4(%edi, %ecx), %eax
        jne     4f
        movw    8(%esi, %ecx), %ax
        cmpw    8(%edi, %ecx), %ax
        jne     4f
        addl    $16, %ecx
        cmpl    $FPU_XMM, %ecx
        jb      3b
        jmp     5f
4:      lock incl fpu_st
5:      movl    $FPU_XMM, %ecx
6:      movl    (%esi, %ecx), %eax
        cmpl    (%edi, %ecx), %eax
        jne     7f
        addl    $4, %ecx
        cmpl    $FPU_END, %ecx
        jb      6b
        ret
7:      lock incl fpu_xmm
        ret

# Waits until another CPU has run since, for some time in any case, and not for ever: there may be no other. Where CPUs share a place, it was there.
# Changes EAX, ECX, EDX, ESI.
wait_turn:
        pushl   %ebp
        rdtsc
        movl    %eax, %ebp
        xorl    %esi, %esi                      # 1: there was another
        movl    %ebx, fpu_ran
1:      pause
        movl    %ebx, %eax
        xchgl   %eax, fpu_ran
        cmpl    %ebx, %eax
        je      2f
        movl    $1, %esi
2:      movl    $WAIT_US, %ecx
        testl   %esi, %esi
        jnz     3f
        movl    $WAIT_LONGER_US, %ecx
3:      imull   ticks_per_us, %ecx
        rdtsc
        subl    %ebp, %eax
        cmpl    %ecx, %eax
        jb      1b
        lock addl %esi, fpu_turns
        popl    %ebp
        ret

        .section .rodata
text_looks:     .asciz  " looks at the registers, "
text_turns:     .asciz  " of them after another CPU's turn\n"
text_times:     .asciz  " times:\n"
text_words:     .asciz  "every CPU keeps its x87 control, status and tags"
text_st:        .asciz  "every CPU keeps its ST0 to ST7"
text_mxcsr:     .asciz  "every CPU keeps its MXCSR"
text_xmm:       .asciz  "every CPU keeps its XMM0 to XMM7"

        .data
        .align  4
fpu_parts:                                      # how often it was another's; what was expected
fpu_words:      .long   0, text_words
fpu_st:         .long   0, text_st
fpu_mxcsr:      .long   0, text_mxcsr
fpu_xmm:        .long   0, text_xmm
fpu_parts_end:

        .bss
        .align  16
fpu_images:     .skip   MAX_CPUS << FPU_SHIFT
fpu_seen:       .skip   MAX_CPUS << FPU_SHIFT
fpu_looks:      .long   0
fpu_turns:      .long   0
fpu_ran:        .long   0
