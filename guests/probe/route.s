# Parts of mode "smp": a pin of the I/O APIC goes to each CPU in turn, and what the first CPU changes in the page tables the others see.

        .set    IO_APIC, 0xFEC00000
        .set    RTC_PIN, 8
        .set    PIN_MASKED, 0x10000
        .set    PIN_VECTOR, 0x45
        .set    PINS_WANTED, 2                  # interrupts at each CPU
        .set    SHOOT_VECTOR, 0x46
        .set    MAPPED, 0x40000000              # where one page, then another is mapped
        .set    FIRST_CONTENT, 0x11111111
        .set    SECOND_CONTENT, 0x22222222
        .set    CR4_PSE, 0x10
        .set    CR0_PG, 0x80000000

        .text
# The RTC's periodic interrupt, 64 a second, at each CPU in turn and at no other.
route_pins:
        movl    $PIN_VECTOR, %eax
        movl    $pin_interrupt, %edx
        call    set_gate
        movl    $0, pins_elsewhere
        movb    $0x0A, %al
        outb    %al, $0x70
        movb    $0x2A, %al
        outb    %al, $0x71
        movb    $0x42, %ah                      # periodic, 24 hours
        call    rtc_interrupts
        movl    $records, %ebx
1:      call    pin_to_cpu
        addl    $(1 << CPU_SHIFT), %ebx
        cmpl    last_record, %ebx
        jbe     1b
        movb    $2, %ah
        call    rtc_interrupts
        cmpl    $0, pins_elsewhere
        movl    $text_elsewhere, %esi
        jmp     expect_equal

pin_to_cpu:
        movl    CPU_ID(%ebx), %eax
        movl    %eax, pin_target
        movl    $0, pins_here
        shll    $24, %eax
        movl    $(0x11 + 2 * RTC_PIN), IO_APIC
        movl    %eax, IO_APIC + 0x10
        movl    $PIN_VECTOR, %eax               # edge, fixed, by identifier
        call    set_pin
        call    rtc_done                        # one that came before would keep the line high
        movl    $PINS_WANTED, %eax
        movl    $pins_here, %edi
        movl    $text_pin, %esi
        call    wait_equal
        movl    $PIN_MASKED, %eax
        call    set_pin
        cmpl    $records, %ebx
        je      1f
        # One that is on its way there comes before the answer to this.
        movl    $0, CPU_FIXED(%ebx)
        movl    $0, CPU_NMIS(%ebx)
        call    try_cpu
1:      ret

set_pin:
        movl    $(0x10 + 2 * RTC_PIN), IO_APIC
        movl    %eax, IO_APIC + 0x10
        ret

# Sets the RTC's register B to AH.
rtc_interrupts:
        movb    $0x0B, %al
        outb    %al, $0x70
        movb    %ah, %al
        outb    %al, $0x71
        ret

# Reads the RTC's register C: it may interrupt again.
rtc_done:
        movb    $0x0C, %al
        outb    %al, $0x70
        inb     $0x71, %al
        ret

pin_interrupt:
        pushal
        call    apic_id
        cmpl    pin_target, %eax
        jne     1f
        cmpl    $PINS_WANTED, pins_here
        jae     2f
        incl    pins_here
        jmp     2f
1:      incl    pins_elsewhere
2:      call    rtc_done
        call    apic_eoi
        popal
        iret

# The others read a page; the first CPU maps another one there, and interrupts them, so that they forget the old one.
shoot_down:
        cmpl    $1, cpus
        je      3f
        movl    $SHOOT_VECTOR, %eax
        movl    $shoot_interrupt, %edx
        call    set_gate
        movl    $shoot_directory, %edi           # all memory as it is, in pages of 4 MiB
        movl    $0x83, %eax
1:      stosl
        addl    $0x400000, %eax
        cmpl    $(shoot_directory + 4096), %edi
        jb      1b
        movl    $(shoot_table + 3), shoot_directory + (MAPPED >> 20)
        movl    $FIRST_CONTENT, first_page
        movl    $SECOND_CONTENT, second_page
        movl    $(first_page + 3), shoot_table
        movl    $pages_on, shoot_job
        movl    $FIRST_CONTENT, %eax
        call    shoot
        movl    $(second_page + 3), shoot_table
        movl    $forget_page, shoot_job
        movl    $SECOND_CONTENT, %eax
        call    shoot
        movl    $pages_off, shoot_job
        movl    $0, %eax
        call    shoot
3:      ret

# Has all others do the job and say what they see then, which must be EAX.
shoot:
        movl    %eax, shoot_content
        movl    $0, shoot_wrong
        movl    $0, shoot_answers
        movl    $(TO_OTHERS | IPI_FIXED | SHOOT_VECTOR), %eax
        xorl    %edx, %edx
        call    send_ipi
        movl    cpus, %eax
        decl    %eax
        movl    $shoot_answers, %edi
        movl    $text_shot, %esi
        call    wait_equal
        cmpl    $0, shoot_wrong
        movl    $text_stale, %esi
        jmp     expect_equal

shoot_interrupt:
        pushal
        call    *shoot_job
        cmpl    shoot_content, %eax
        je      1f
        lock incl shoot_wrong
1:      lock incl shoot_answers
        call    apic_eoi
        popal
        iret

# The jobs: what is seen comes in EAX.
pages_on:
        movl    $shoot_directory, %eax
        movl    %eax, %cr3
        movl    %cr4, %eax
        orl     $CR4_PSE, %eax
        movl    %eax, %cr4
        movl    %cr0, %eax
        orl     $CR0_PG, %eax
        movl    %eax, %cr0
        movl    MAPPED, %eax
        ret
forget_page:
        invlpg  MAPPED
        movl    MAPPED, %eax
        ret
pages_off:
        movl    %cr0, %eax
        andl    $~CR0_PG, %eax
        movl    %eax, %cr0
        xorl    %eax, %eax
        ret

        .section .rodata
text_pin:       .asciz  "interrupt of a pin to one CPU"
text_elsewhere: .asciz  "no interrupt of a pin to another CPU"
text_shot:      .asciz  "answer to a TLB shoot-down"
text_stale:     .asciz  "the page after a TLB shoot-down"

        .bss
        .align  4096
shoot_directory: .skip   4096
shoot_table:     .skip   4096
first_page:     .skip   4096
second_page:    .skip   4096
pin_target:     .long   0
pins_here:      .long   0
pins_elsewhere: .long   0
shoot_job:      .long   0
shoot_content:  .long   0
shoot_wrong:    .long   0
shoot_answers:  .long   0
