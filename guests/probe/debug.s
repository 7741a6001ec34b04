# Mode "debug": every CPU keeps its own breakpoint addresses (DR0 to DR3), whatever other CPUs share its place with it and wherever it moves.

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

        .section .rodata
text_breakpoints: .asciz "every CPU finds its own addresses in DR0 to DR3"

        .bss
others_addresses: .long 0
