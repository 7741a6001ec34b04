# Mode "mmio": each form of instruction is run twice, on a word of RAM and on an I/O APIC register that holds the same, and everything that
# it leaves must be the same: the word, the registers, the flags. First without paging, then with, then on a word that is in RAM and in the device's
# page (pages.s). All of it is 32-bit code: 16-bit and 64-bit forms have tests of the hypervisor's own.

        .set    IO_APIC, 0xFEC00000
        .set    WINDOW, IO_APIC + 0x10
        .set    SELECTED, 0x3E                  # redirection entry of pin 23, low half
        .set    WRITABLE, 0x1AFFF               # its bits that can be written
        .set    INITIAL, 0x1A5C3

        .text
        .globl  mode_mmio
mode_mmio:
        movl    $text_mmio_init, %esi
        call    print
        call    sse_on
        movl    $7, %eax
        xorl    %ecx, %ecx
        cpuid
        andl    $0x108, %ebx                    # BMI1 and BMI2
        cmpl    $0x108, %ebx
        sete    has_bmi
        movl    $window, place
        call    all_forms
        call    other_forms
        call    paging_on
        call    all_forms
        call    other_forms
        call    across_pages
        movl    $text_prefix, %esi
        call    print
        movl    forms_run, %eax
        call    print_decimal
        movl    $text_forms, %esi
        call    print
        jmp     passed_or_failed

# The forms: EBX points to the word; EAX, ECX, EDX, ESI, EDI as set below. They may push and pop.
        .macro  forms_entry name
        .pushsection .rodata
8:      .asciz  "\name"
        .popsection
        .pushsection .forms, "a"
        .long   8b, 9f
        .popsection
9:
        .endm
        .macro  form name, code:vararg
        forms_entry "\name"
        \code
        ret
        .endm

        .section .forms, "a"
forms_begin:
        .text
        form "mov r,m", movl (%ebx), %eax
        form "mov m,r", movl %eax, (%ebx)
        form "mov m,imm", movl $0x18123, (%ebx)
        form "mov r8,m", movb (%ebx), %ch
        form "mov r16,m", movw (%ebx), %dx
        form "movzx r,m8", movzbl (%ebx), %eax
        form "movzx r,m16", movzwl (%ebx), %eax
        form "movzx r16,m8", movzbw (%ebx), %ax
        form "movsx r,m8", movsbl (%ebx), %ecx
        form "movsx r,m16", movswl (%ebx), %ecx
        form "movnti m,r", movnti %eax, (%ebx)
        form "mov with index", movl (%ebx, %ecx, 4), %eax
        form "mov with displacement", movl -4(%ebx, %edi), %eax
        form "add m,r", addl %eax, (%ebx)
        form "add r,m", addl (%ebx), %eax
        form "add m,imm8", addl $0x7f, (%ebx)
        form "or m,r", orl %eax, (%ebx)
        form "or m,imm", orl $0x10000, (%ebx)
        form "adc m,r", adcl %eax, (%ebx)
        form "sbb r,m", sbbl (%ebx), %eax
        form "and m,r", andl %eax, (%ebx)
        form "and m,imm", andl $0xFFFEFFFF, (%ebx)
        form "and r,m", andl (%ebx), %edx
        form "sub m,r", subl %edx, (%ebx)
        form "xor m,r", xorl %eax, (%ebx)
        form "lock xor m,imm", lock xorl $0x101, (%ebx)
        form "cmp m,r", cmpl %eax, (%ebx)
        form "cmp r,m", cmpl (%ebx), %eax
        form "cmp m,imm", cmpl $0x1A5C3, (%ebx)
        form "cmp m8,imm", cmpb $0xC3, (%ebx)
        form "cmp m16,r", cmpw %ax, (%ebx)
        form "test m,r", testl %eax, (%ebx)
        form "test m,imm", testl $0x2000, (%ebx)
        form "test m8,imm", testb $0x3C, (%ebx)
        form "inc m", incl (%ebx)
        form "dec m", decl (%ebx)
        form "neg m", negl (%ebx)
        form "not m", notl (%ebx)
        # Of a locked instruction that faults at an operand across pages, QEMU with several threads (7.2 at least) loses the flags: the others
        # that are locked set them.
        forms_entry "xchg m,r"
        xchgl %eax, (%ebx)
        pushfl
        cmpl $across, place
        jne 7f
        andl $0xFFFFFFFE, (%esp)
7:      popfl
        ret
        form "xadd m,r", lock xaddl %eax, (%ebx)
        form "cmpxchg unequal", lock cmpxchgl %ecx, (%ebx)
        forms_entry "cmpxchg equal"
        movl initial, %eax
        lock cmpxchgl %edi, (%ebx)
        ret
        form "bt m,imm", btl $7, (%ebx)
        form "bts m,imm", btsl $3, (%ebx)
        form "btr m,r", btrl %edi, (%ebx)
        form "btc m,r", lock btcl %edi, (%ebx)
        forms_entry "bt far"
        movl $32, %ecx
        btl %ecx, -4(%ebx)
        ret
        form "shl m,1", shll $1, (%ebx)
        form "shr m,imm", shrl $3, (%ebx)
        forms_entry "sar m,cl"
        movb $2, %cl
        sarl %cl, (%ebx)
        ret
        form "rol m,1", roll $1, (%ebx)
        form "ror m,imm", rorl $4, (%ebx)
        forms_entry "cmovc taken"
        stc
        cmovcl (%ebx), %eax
        ret
        forms_entry "cmovz not taken"
        orl %edi, %edi
        cmovzl (%ebx), %eax
        ret
        form "imul r,m", imull (%ebx), %eax
        form "imul r,m,imm", imull $-3, (%ebx), %edx
        # What leaves flags undefined ends with others; CF or ZF, where defined, is kept in CL.
        forms_entry "mul m"
        mull (%ebx)
        setc %cl
        orl %edi, %edi
        ret
        forms_entry "imul m"
        imull (%ebx)
        setc %cl
        orl %edi, %edi
        ret
        forms_entry "div m"
        xorl %edx, %edx
        divl (%ebx)
        orl %edi, %edi
        ret
        forms_entry "idiv m"
        xorl %edx, %edx
        negl %eax
        decl %edx
        idivl (%ebx)
        orl %edi, %edi
        ret
        form "rcl m,1", rcll $1, (%ebx)
        form "rcr m,1", rcrl $1, (%ebx)
        form "shld m,r,1", shldl $1, %eax, (%ebx)
        form "shrd m,r,1", shrdl $1, %eax, (%ebx)
        forms_entry "bsf r,m"
        bsfl (%ebx), %eax
        setz %cl
        orl %edi, %edi
        ret
        forms_entry "bsr r,m"
        bsrl (%ebx), %eax
        setz %cl
        orl %edi, %edi
        ret
        forms_entry "movd x,m"
        movd (%ebx), %xmm1
        movd %xmm1, %eax
        ret
        forms_entry "movd m,x"
        movd %eax, %xmm2
        movd %xmm2, (%ebx)
        ret
        forms_entry "movss x,m"
        pcmpeqd %xmm3, %xmm3
        movss (%ebx), %xmm3
        movd %xmm3, %eax
        psrldq $4, %xmm3
        movd %xmm3, %edx
        ret
        forms_entry "movss m,x"
        movd %eax, %xmm7
        movss %xmm7, (%ebx)
        ret
        forms_entry "pop m"
        pushl %eax
        popl (%ebx)
        ret
        forms_entry "push m"
        pushl (%ebx)
        popl %eax
        ret
        forms_entry "lods"
        movl %ebx, %esi
        lodsl
        subl %ebx, %esi
        ret
        forms_entry "stos"
        pushl %edi
        movl %ebx, %edi
        stosl
        subl %ebx, %edi
        popl %ecx
        ret
        forms_entry "movs from"
        movl %ebx, %esi
        movl $scratch, %edi
        movsl
        movl scratch, %eax
        subl %ebx, %esi
        ret
        forms_entry "movs to"
        movl $scratch, %esi
        movl $0x8123, (%esi)
        movl %ebx, %edi
        movsl
        subl %ebx, %edi
        ret
        forms_entry "scas"
        movl %ebx, %edi
        scasl
        pushfl
        subl %ebx, %edi
        popfl
        ret
        forms_entry "cmps"
        movl %ebx, %esi
        movl $scratch, %edi
        cmpsl
        pushfl
        subl %ebx, %esi
        popfl
        ret
        forms_entry "rep lods"
        movl %ebx, %esi
        xorl %ecx, %ecx
        incl %ecx
        rep lodsl
        subl %ebx, %esi
        ret
        forms_entry "rep movs down"
        std
        movl %ebx, %esi
        movl $scratch, %edi
        movl $1, %ecx
        rep movsl
        cld
        subl %ebx, %esi
        ret
        form "fs override", movl %fs:(%ebx), %eax
        # PF is undefined after those of BMI that change flags; SF, ZF and CF are kept in CL, CH and DL.
        .macro  form_bmi name, code:vararg
        forms_entry "\name"
        cmpl    $0, has_bmi
        je      7f
        \code
7:      ret
        .endm
        # QEMU before 8.0 has CF of BLSI, BLSMSK and BLSR wrong.
        .macro  form_bmi_flags name, carry, code:vararg
        forms_entry "\name"
        cmpl    $0, has_bmi
        je      7f
        \code
        sets    %cl
        setz    %ch
        .if     \carry
        setc    %dl
        .endif
        orl     %edi, %edi
7:      ret
        .endm
        form_bmi_flags "andn r,r,m", 1, andnl (%ebx), %esi, %eax
        form_bmi_flags "bextr r,m,r", 1, bextrl %edi, (%ebx), %eax
        form_bmi_flags "bzhi r,m,r", 1, bzhil %edi, (%ebx), %eax
        form_bmi_flags "blsi r,m", 0, blsil (%ebx), %eax
        form_bmi_flags "blsmsk r,m", 0, blsmskl (%ebx), %eax
        form_bmi_flags "blsr r,m", 0, blsrl (%ebx), %eax
        form_bmi "pdep r,r,m", pdepl (%ebx), %edx, %eax
        form_bmi "pext r,r,m", pextl (%ebx), %edx, %eax
        form_bmi "mulx r,r,m", mulxl (%ebx), %eax, %ecx
        form_bmi "shlx r,m,r", shlxl %edi, (%ebx), %eax
        form_bmi "shrx r,m,r", shrxl %edi, (%ebx), %eax
        form_bmi "sarx r,m,r", sarxl %edi, (%ebx), %eax
        form_bmi "rorx r,m,imm", rorxl $9, (%ebx), %eax

# On the word that "place" describes.
        .set    PLACE_ADDRESS, 0
        .set    PLACE_INITIAL, 4                # what it has before each form
        .set    PLACE_MASK, 8                   # which bits of it can be written
        .set    PLACE_WRITE, 12                 # code that writes EAX there, and may change EAX
        .set    PLACE_READ, 16                  # code that reads EAX from there
all_forms:
        movl    $forms_begin, %ebp
1:      cmpl    $forms_end, %ebp
        jae     2f
        incl    forms_run
        movl    place, %edi
        movl    PLACE_INITIAL(%edi), %eax
        movl    %eax, initial
        movl    %eax, word
        call    *PLACE_WRITE(%edi)
        movl    $0x77, scratch
        movl    $word, %ebx
        movl    $ram_result, save_to
        call    run_form
        movl    place, %edi
        movl    PLACE_ADDRESS(%edi), %ebx
        movl    $device_result, save_to
        call    run_form
        movl    place, %edi
        call    *PLACE_READ(%edi)
        movl    word, %ecx
        andl    PLACE_MASK(%edi), %ecx
        cmpl    %ecx, %eax
        movl    (%ebp), %esi
        call    expect_equal
        call    same_results
        addl    $8, %ebp
        jmp     1b
2:      ret

write_window:
        movl    $SELECTED, IO_APIC
        movl    %eax, WINDOW
        ret
read_window:
        movl    WINDOW, %eax
        ret

# The form at EBP has left the same in registers and flags.
same_results:
        movl    $ram_result, %esi
        movl    $device_result, %edi
        movl    $7, %ecx
        repe    cmpsl
        movl    (%ebp), %esi
        jmp     expect_equal

# Runs the form at EBP on the word at EBX and keeps its registers and flags at save_to.
run_form:
        pushl   %ebp
        movl    $0x00A50F0F, %eax
        xorl    %ecx, %ecx
        movl    $0x12345678, %edx
        movl    $0x11111111, %esi
        movl    $4, %edi
        pushl   $0x2
        popfl
        stc
        movl    4(%ebp), %ebp
        call    *%ebp
        pushfl
        cld
        pushl   %edi
        movl    save_to, %edi
        movl    %eax, (%edi)
        movl    %ecx, 4(%edi)
        movl    %edx, 8(%edi)
        movl    %esi, 12(%edi)
        popl    16(%edi)
        popl    %eax
        andl    $0x8C5, %eax            # OF, SF, ZF, PF, CF; AF is left undefined by too many
        movl    %eax, 20(%edi)
        movl    %ebp, 24(%edi)
        popl    %ebp
        ret

# Forms that need more than that: narrow writes, an absolute address, several elements, sixteen bytes.
other_forms:
        addl    $7, forms_run
        movl    $SELECTED, IO_APIC
        movl    $INITIAL, WINDOW
        .byte   0xA1                            # mov eax, moffs
        .long   WINDOW
        cmpl    $INITIAL, %eax
        movl    $text_moffs, %esi
        call    expect_equal
        movb    $0x3D, IO_APIC                  # the select register is one byte wide
        cmpb    $0x3D, IO_APIC
        movl    $text_byte, %esi
        call    expect_equal
        movw    $SELECTED, IO_APIC
        cmpl    $SELECTED, IO_APIC
        movl    $text_word, %esi
        call    expect_equal
        stc
        setc    IO_APIC
        cmpl    $1, IO_APIC
        movl    $text_setcc, %esi
        call    expect_equal
        # Nothing is between the select register and the window: ones, and writes go nowhere.
        movl    $0xE0000000, %edi
        movl    $3, %ecx
        xorl    %eax, %eax
        rep     stosl
        cmpl    $0xE000000C, %edi
        movl    $text_rep_stos, %esi
        call    expect_equal
        movl    -4(%edi), %eax
        cmpl    $-1, %eax
        movl    $text_unclaimed, %esi
        call    expect_equal
        pxor    %xmm0, %xmm0
        movups  -8(%edi), %xmm0
        movd    %xmm0, %eax
        psrldq  $12, %xmm0
        movd    %xmm0, %ecx
        andl    %ecx, %eax
        cmpl    $-1, %eax
        movl    $text_movups, %esi
        call    expect_equal
        ret

# 4 MiB pages, one to one.
paging_on:
        movl    %cr4, %eax
        orl     $0x10, %eax                     # PSE
        movl    %eax, %cr4
        movl    $directory, %edi
        movl    $0x83, %eax
1:      movl    %eax, (%edi)
        addl    $4, %edi
        addl    $0x400000, %eax
        jnc     1b
        movl    $directory, %eax
        movl    %eax, %cr3
        movl    %cr0, %eax
        orl     $0x80000000, %eax
        movl    %eax, %cr0
        ret

        .section .forms, "a"
forms_end:

        .section .rodata
window:         .long   WINDOW, INITIAL, WRITABLE, write_window, read_window
text_mmio_init: .asciz  "outpost-guest: init\n"
text_forms:     .asciz  " forms of instructions on device registers\n"
text_moffs:     .asciz  "mov eax,moffs"
text_byte:      .asciz  "mov m8,imm"
text_word:      .asciz  "mov m16,imm"
text_setcc:     .asciz  "setc m8"
text_rep_stos:  .asciz  "rep stos"
text_movups:    .asciz  "movups x,m"
text_unclaimed: .asciz  "unclaimed address"

        .bss
        .align  4096
directory:      .skip 4096
        .skip   4
word:           .long 0
scratch:        .skip 16
place:          .long 0
initial:        .long 0
save_to:        .long 0
forms_run:      .long 0
has_bmi:        .long 0
ram_result:     .skip 28
device_result:  .skip 28
