# Mode "real": the first CPU drops from protected to real mode, as a boot loader does that calls a BIOS, takes a software interrupt through the table at 0 there,
# and comes back.

        .set    REAL_COUNT, 0x7E00              # a word of low memory
        .set    REAL_STACK, 0x7C00
        .set    REAL_VECTOR, 0x60

        .text
        .globl  mode_real
mode_real:
        call    say_init
        movl    $real_stub, %esi
        movl    $TRAMPOLINE, %edi
        movl    $(real_stub_end - real_stub), %ecx
        rep     movsb
        movw    $0x1234, REAL_COUNT
        movl    %esp, protected_stack
        lgdt    real_gdt_register
        lidt    real_idt_register
        ljmp    $24, $TRAMPOLINE

        .code16
real_stub:
        movw    $32, %ax                        # limits of 64 KiB, as real mode has them
        movw    %ax, %ds
        movw    %ax, %es
        movw    %ax, %ss
        movl    %cr0, %eax
        andl    $0xFFFFFFFE, %eax
        movl    %eax, %cr0
        ljmp    $(TRAMPOLINE >> 4), $(1f - real_stub)
1:      xorw    %ax, %ax
        movw    %ax, %ds
        movw    %ax, %es
        movw    %ax, %ss
        movw    $REAL_STACK, %sp
        movw    $(real_interrupt - real_stub), REAL_VECTOR * 4
        movw    $(TRAMPOLINE >> 4), REAL_VECTOR * 4 + 2
        int     $REAL_VECTOR
        movw    %sp, REAL_COUNT + 2
        movl    %cr0, %eax
        orl     $1, %eax
        movl    %eax, %cr0
        ljmpl   $8, $protected_again
real_interrupt:
        incw    REAL_COUNT
        iretw
real_stub_end:
        .code32

protected_again:
        movw    $16, %cx
        movw    %cx, %ds
        movw    %cx, %es
        movw    %cx, %ss
        movl    protected_stack, %esp
        lgdt    gdt_register
        lidt    idt_register
        movl    $(REAL_STACK << 16 | 0x1235), %eax
        movl    $text_real, %esi
        cmpl    REAL_COUNT, %eax
        call    expect_equal
        jmp     passed_or_failed

        .section .rodata
text_real:      .asciz  "an interrupt in real mode"
        .align  8
real_gdt:       .quad   0, 0x00CF9B000000FFFF, 0x00CF93000000FFFF, 0x00009B000000FFFF, 0x000093000000FFFF
real_gdt_register:
        .word   39
        .long   real_gdt
real_idt_register:
        .word   0x3FF
        .long   0

        .bss
protected_stack: .long  0
