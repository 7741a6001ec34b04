# The last part of mode "mmio": operands of which a part is in RAM and the rest in the I/O APIC's page, or the other way round. Its first byte selects a
# register and keeps what is written; the 15 behind it and the page's last 16 are zero whatever is written. So RAM that is made like that is what
# each form must find, and its RAM what each must leave. All here is set up and looked at by accesses that cross nothing.

        .set    ACROSS, 0x40000000              # a page of RAM, the I/O APIC's, a page of RAM
        .set    INTO_DEVICE, ACROSS + 0x1000
        .set    OUT_OF_DEVICE, ACROSS + 0x2000
        .set    NEAR, 16                        # bytes on each side that forms may reach

        .text
across_pages:
        movl    $text_across, %esi
        call    print
        movl    $(page_below + 3), across_table
        movl    $(IO_APIC + 3), across_table + 4
        movl    $(page_above + 3), across_table + 8
        movl    $(across_table + 3), directory + ACROSS / 0x100000
        movl    %cr3, %eax
        movl    %eax, %cr3
        movl    $across, place
        call    all_forms
        movl    $into_device, border
        call    all_crossings
        movl    $out_of_device, border

# Each form around "border": the page's first byte, what it has on both sides, where its RAM is, and where in the 32 bytes.
        .set    BORDER_ADDRESS, 0
        .set    BORDER_BYTES, 4
        .set    BORDER_RAM, 36
        .set    BORDER_FROM, 40
all_crossings:
        movl    $crossings_begin, %ebp
1:      cmpl    $crossings_end, %ebp
        jae     2f
        incl    forms_run
        call    set_border
        movl    $(model + NEAR), %ebx
        movl    $ram_result, save_to
        call    run_crossing
        movl    border, %edx
        movl    BORDER_ADDRESS(%edx), %ebx
        movl    $device_result, save_to
        call    run_crossing
        call    same_results
        movl    border, %edx
        movl    BORDER_FROM(%edx), %esi
        addl    $model, %esi
        movl    BORDER_RAM(%edx), %edi
        movl    $(NEAR / 4), %ecx
        repe    cmpsl
        movl    (%ebp), %esi
        call    expect_equal
        movb    IO_APIC, %al
        cmpl    $into_device, border
        jne     3f
        cmpb    model + NEAR, %al
        jmp     4f
3:      cmpb    $SELECTED, %al                  # none of these may have changed it
4:      call    expect_equal
        addl    $8, %ebp
        jmp     1b
2:      ret

# Makes the bytes around the border, there and in the model. Changes ECX, EDX, ESI, EDI.
set_border:
        movl    border, %edx
        leal    BORDER_BYTES(%edx), %esi
        movl    $model, %edi
        movl    $(2 * NEAR / 4), %ecx
        rep     movsl
        movl    BORDER_FROM(%edx), %esi
        addl    $model, %esi
        movl    BORDER_RAM(%edx), %edi
        movl    $(NEAR / 4), %ecx
        rep     movsl
        movb    $SELECTED, IO_APIC
        ret

run_crossing:
        movl    $0x13579BDF, scratch
        movl    $0x02468ACE, scratch + 4
        movl    $0x5A5A1234, scratch + 8
        movl    $0x600DF00D, scratch + 12
        jmp     run_form

# The word with three bytes in RAM and one in the device.
write_across:
        movw    %ax, page_below + 0xFFD
        shrl    $16, %eax
        movb    %al, page_below + 0xFFF
        movb    %ah, IO_APIC
        ret
read_across:
        movzbl  IO_APIC, %eax
        shll    $8, %eax
        movb    page_below + 0xFFF, %al
        shll    $16, %eax
        movw    page_below + 0xFFD, %ax
        ret

# The forms: EBX points to the border, the rest is as for those in mmio.s.
        .macro  crossing name, code:vararg
        .pushsection .rodata
8:      .asciz  "across pages: \name"
        .popsection
        .pushsection .crossings, "a"
        .long   8b, 9f
        .popsection
9:      \code
        .endm
# The end of those with strings: the registers that went on say how far, and flags stay. What the scratch got is in EAX, EDX and (with what is left
# to repeat) ECX.
        .macro  string_end registers:vararg
        cld
        pushfl
        .irp    register, \registers
        subl    %ebx, %\register
        .endr
        popfl
        ret
        .endm
        .macro  scratch_end
        movl    scratch, %eax
        movl    scratch + 4, %edx
        addl    scratch + 8, %ecx
        string_end esi
        .endm

        .section .crossings, "a"
crossings_begin:
        .text
        .irp    here, 1, 2, 3
        crossing "mov r,m, the first bytes: \here", movl -\here(%ebx), %eax
        ret
        crossing "mov m,r, the first bytes: \here", movl %edx, -\here(%ebx)
        ret
        crossing "stos, the first bytes: \here", leal -\here(%ebx), %edi
        movl    %edx, %eax
        stosl
        string_end edi
        crossing "lods, the first bytes: \here", leal -\here(%ebx), %esi
        lodsl
        string_end esi
        crossing "movs from, the first bytes: \here", leal -\here(%ebx), %esi
        movl    $scratch, %edi
        movsl
        scratch_end
        crossing "movs to, the first bytes: \here", leal -\here(%ebx), %edi
        movl    $scratch, %esi
        movsl
        string_end edi
        .endr
        crossing "mov r16,m", movw -1(%ebx), %dx
        ret
        crossing "mov m,r16", movw %dx, -1(%ebx)
        ret
        crossing "movups x,m", movups -5(%ebx), %xmm1
        movups  %xmm1, scratch
        movl    scratch, %eax
        movl    scratch + 4, %edx
        movl    scratch + 8, %ecx
        movl    scratch + 12, %esi
        ret
        crossing "movups m,x", movups scratch, %xmm1
        movups  %xmm1, -5(%ebx)
        ret
        crossing "push m", pushl -2(%ebx)
        popl    %eax
        ret
        crossing "pop m", pushl %edx
        popl    -2(%ebx)
        ret
        crossing "scas", leal -2(%ebx), %edi
        scasl
        string_end edi
        crossing "repe cmps", leal -6(%ebx), %esi
        movl    %esi, %edi
        movl    $3, %ecx
        repe    cmpsl
        string_end esi, edi
        # The second of three crosses; then, downwards, it does again.
        crossing "rep stos", leal -6(%ebx), %edi
        movl    %edx, %eax
        movl    $3, %ecx
        rep     stosl
        string_end edi
        crossing "rep stos down", leal 2(%ebx), %edi
        movl    %edx, %eax
        movl    $3, %ecx
        std
        rep     stosl
        string_end edi
        crossing "rep stos of 16 bits", leal -3(%ebx), %edi
        movl    %edx, %eax
        movl    $3, %ecx
        rep     stosw
        string_end edi
        crossing "rep movs from", leal -6(%ebx), %esi
        movl    $scratch, %edi
        movl    $3, %ecx
        rep     movsl
        scratch_end
        crossing "rep movs from, down", leal 2(%ebx), %esi
        movl    $scratch + 8, %edi
        movl    $3, %ecx
        std
        rep     movsl
        scratch_end
        crossing "rep movs to", leal -6(%ebx), %edi
        movl    $scratch, %esi
        movl    $3, %ecx
        rep     movsl
        string_end edi
        crossing "rep movs to, down", leal 2(%ebx), %edi
        movl    $scratch + 8, %esi
        movl    $3, %ecx
        std
        rep     movsl
        string_end edi
        # Both elements cross.
        crossing "movs from and to", leal -3(%ebx), %esi
        leal    -2(%ebx), %edi
        movsl
        string_end esi, edi
        .section .crossings, "a"
crossings_end:

        .section .rodata
        .align  4
across:         .long   INTO_DEVICE - 3, 0x3E01A5C3, 0xFFFFFFFF, write_across, read_across
into_device:    .long   INTO_DEVICE
        .byte   0xA0, 0xA1, 0xA2, 0xA3, 0xA4, 0xA5, 0xA6, 0xA7, 0xA8, 0xA9, 0xAA, 0xAB, 0xAC, 0xAD, 0xAE, 0xAF
        .byte   SELECTED, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0
        .long   page_below + 0x1000 - NEAR, 0
out_of_device:  .long   OUT_OF_DEVICE
        .byte   0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0
        .byte   0xB0, 0xB1, 0xB2, 0xB3, 0xB4, 0xB5, 0xB6, 0xB7, 0xB8, 0xB9, 0xBA, 0xBB, 0xBC, 0xBD, 0xBE, 0xBF
        .long   page_above, NEAR
text_across:    .asciz  "probe: mmio: from here on across pages\n"

        .bss
        .align  4096
across_table:   .skip   4096
page_below:     .skip   4096
page_above:     .skip   4096
model:          .skip   2 * NEAR
border:         .long   0
