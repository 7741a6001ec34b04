# Mode "fxrstor": every CPU loads its x87 and SSE registers again and again, and leaves the guest now and then, as a busy Linux does at its context
# switches. QEMU's translator (7.2 at least) mixes up two CPUs that do this at the same time: see docs/hv.md.

        .set    LOADS, 100                      # for each exit

        .text
        .globl  mode_fxrstor
mode_fxrstor:
        movl    $fxrstor_work, job
        call    work
        jmp     passed_or_failed

fxrstor_work:
        movl    $LOADS, %ecx
1:      fxrstor fpu_image
        loop    1b
        pushl   %ebx
        xorl    %eax, %eax
        cpuid
        popl    %ebx
        call    is_end
        jb      fxrstor_work
        ret

        .section .rodata
        .align  16
fpu_image:                                      # as after INIT: FCW, MXCSR (APM vol. 2, 11.4.4)
        .word   0x37f
        .skip   22
        .long   0x1f80
        .skip   484
