# Outpost's probe: a bare-metal guest of a few kilobytes for tests of the hypervisor. Multiboot version 1, ELF32.
#
# Build, from the repository's root, with nothing but binutils:
#
#   cd guests/probe; as --32 -o probe.o probe.s bad.s debug.s exits.s fpu.s hello.s mmio.s pages.s paravirt.s real.s route.s smp.s virtio.s wake.s work.s
#   ld -m elf_i386 --no-warn-rwx-segments -static -n -nostdlib -Ttext=0x100000 -e start -o probe.elf probe.o
#
# The first word of its command line chooses what it does (the second, if the first is none of these: QEMU puts a file name there):
#
#   hello           checks CPUID, MSRs and the local APIC's timer; then ready, and idle
#   mmio            32-bit forms of instructions on device registers, also across pages, compared with the same on RAM
#   bad-msr         MSRs and instructions that must fault do, and the guest lives
#   garbage-virtio  nonsense in every virtio device's registers and queues; then says that it is still alive
#   exit N          writes N to the debug-exit port
#   triple-fault    crashes
#   spin            loops with interrupts off on every CPU
#   hang            the same, with the watchdog running
#   silent          halts with interrupts off, before a word
#   modules         says its whole command line and the modules it was given: text, length, sum of the bytes
#   smp N           starts the other CPUs of N, sends them interrupts and NMIs, routes a pin of the I/O APIC to each, has them forget a page, starts one again; by
#                   xAPIC, then by x2APIC
#   lock SECONDS    every CPU takes one spin lock again and again; says what was burnt waiting for a holder that had no CPU
#   burn SECONDS    every CPU computes; says how much of the time each one had
#   fxrstor SECONDS every CPU loads its x87 and SSE registers and leaves the guest, again and again, and keeps its own
#   debug SECONDS   every CPU keeps its own debug registers
#   exits N         leaves the guest N times for each of some reasons, and says how far the TSC goes on for one
#   nmi             an NMI that comes while another is handled waits for its end
#   paravirt        uses what KVM's interface offers beside clock and steal time: PV EOI, PV IPI, a kick, polling control
#   real            drops to real mode, takes an interrupt there, and comes back
#   wake SECONDS    the first CPU wakes the second from HLT, again and again, by pairs of interrupts alone
#   selfinit        sends INIT to itself
#   apicmove        moves its local APIC, which must fault
#   romwrite        writes where a PC has its ROM
#   flood SECONDS   notifies every virtio device as fast as it can
#   nowhere         points every virtio device to a queue where there is no memory
#
# It speaks on the serial port at 0x3f8. "outpost-guest: init" and "outpost-guest: ready" are the lines that the box waits for.
# A line with "FAILED" in it is a failure. Modes that come to an end, but for exit, say "probe: MODE: passed" or "probe: MODE: FAILED", write 0 or 1 to the
# debug-exit port, and, where there is none, idle. exit, triple-fault, spin, modules, smp, lock, burn, fxrstor, debug, nmi, real, wake and romwrite are the same
# on QEMU itself:
#
#   qemu-system-x86_64 -M q35 -cpu max -smp 4 -kernel probe.elf -append "smp 4" -serial stdio -display none -no-reboot \
#       -device isa-debug-exit,iobase=0xf4,iosize=4
#
# This file: start, console, exceptions, and the short modes.

        .set    COM1, 0x3f8
        .set    DEBUG_EXIT, 0xf4
        .set    MSR_APIC_BASE, 0x1b
        .set    MSR_TSC_DEADLINE, 0x6e0
        .set    MSR_SPURIOUS, 0x80f
        .set    MSR_EOI, 0x80b
        .set    MSR_LVT_TIMER, 0x832
        .set    MSR_INITIAL_COUNT, 0x838
        .set    MSR_DIVIDE, 0x83e
        .set    TIMER_VECTOR, 0x40

        .text
        .align  4
multiboot:
        .long   0x1BADB002, 0, -0x1BADB002

        .globl  start
start:
        cli
        cld
        lgdt    gdt_register
        ljmp    $8, $1f
1:      movw    $16, %cx
        movw    %cx, %ds
        movw    %cx, %es
        movw    %cx, %fs
        movw    %cx, %gs
        movw    %cx, %ss
        movl    $stack_top, %esp
        cmpl    $0x2BADB002, %eax
        jne     not_multiboot
        testl   $4, (%ebx)
        jz      not_multiboot
        movl    %ebx, information
        movl    16(%ebx), %esi          # command line
        call    interrupts_init

        call    choose_mode
1:      cmpb    $0, (%esi)              # the next word
        je      unknown_mode
        cmpb    $' ', (%esi)
        leal    1(%esi), %esi
        jne     1b
        call    choose_mode
        jmp     unknown_mode

# Jumps to the mode that the word at ESI names, with the rest of the command line at EDX, or returns.
choose_mode:
        movl    $modes, %edi            # name, code
2:      movl    (%edi), %ebx
        testl   %ebx, %ebx
        jz      6f
        movl    %esi, %edx
3:      movb    (%ebx), %al
        testb   %al, %al
        jz      4f
        cmpb    (%edx), %al
        jne     5f
        incl    %ebx
        incl    %edx
        jmp     3b
4:      cmpb    $' ', (%edx)            # the name ends: so must the word
        ja      5f
        movl    (%edi), %eax
        movl    %eax, mode_name
        addl    $4, %esp
        jmp     *4(%edi)
5:      addl    $8, %edi
        jmp     2b
6:      ret

not_multiboot:
        movl    $text_not_multiboot, %esi
        call    print
        jmp     idle
unknown_mode:
        movl    $text_unknown_mode, %esi
        call    print
        jmp     idle

# ---- modes -------------------------------------------------------------------------------------------------------------

        .globl  passed_or_failed
mode_triple_fault:
        call    say_init
        lidt    empty_idt
        ud2

mode_silent:
        cli
        hlt
        jmp     mode_silent

mode_exit:
        call    say_init
        call    number
        movw    $DEBUG_EXIT, %dx
        outl    %eax, %dx
        jmp     idle

mode_modules:
        call    say_init
        movl    $text_command_line, %esi
        call    print
        movl    information, %ebx
        movl    16(%ebx), %esi
        call    print
        movl    $text_line_end, %esi
        call    print
        testl   $8, (%ebx)
        jz      passed_or_failed
        movl    20(%ebx), %edi          # how many
        movl    24(%ebx), %ebx          # start, end, text, nothing
1:      decl    %edi
        js      passed_or_failed
        movl    $text_module, %esi
        call    print
        movl    8(%ebx), %esi
        call    print
        movl    $text_module_length, %esi
        call    print
        movl    4(%ebx), %eax
        subl    (%ebx), %eax
        call    print_decimal
        movl    $text_module_sum, %esi
        call    print
        movl    (%ebx), %esi
        xorl    %eax, %eax
2:      cmpl    4(%ebx), %esi
        jae     3f
        movzbl  (%esi), %ecx
        addl    %ecx, %eax
        incl    %esi
        jmp     2b
3:      call    print_decimal
        movl    $text_line_end, %esi
        call    print
        addl    $16, %ebx
        jmp     1b

# The decimal number at EDX, spaces before it skipped, comes in EAX; 0 if there is none. EDX goes behind it.
number:
        xorl    %eax, %eax
7:      cmpb    $' ', (%edx)
        jne     8f
        incl    %edx
        jmp     7b
8:      movzbl  (%edx), %ecx
        subl    $'0', %ecx
        cmpl    $9, %ecx
        ja      9f
        imull   $10, %eax
        addl    %ecx, %eax
        incl    %edx
        jmp     8b
9:      ret

# ESI: name. The last vector must be EAX.
check_vector:
        cmpl    %eax, last_vector
        .globl  expect_equal
# Counts a failure with the name ESI unless ZF is set.
expect_equal:
        je      1f
        incl    failures
        pushl   %eax
        pushl   %esi
        movl    $text_prefix, %esi
        call    print
        popl    %esi
        call    print
        movl    $text_failed, %esi
        call    print
        popl    %eax
1:      ret

        .globl  expect_unequal
expect_unequal:
        jne     1f
        cmpl    %esp, %esi              # clears ZF
        jmp     expect_equal
1:      ret

# The end of every mode that checks.
passed_or_failed:
        movl    $text_prefix, %esi
        call    print
        movl    mode_name, %esi
        call    print
        xorl    %eax, %eax
        movl    $text_passed, %esi
        cmpl    $0, failures
        je      1f
        incl    %eax
        movl    $text_failed, %esi
1:      call    print
        movw    $DEBUG_EXIT, %dx
        outl    %eax, %dx
idle:   sti
        hlt
        jmp     idle

say_init:
        pushl   %esi
        pushl   %edx
        movl    $text_init, %esi
        call    print
        popl    %edx
        popl    %esi
        ret

# ---- the local APIC's timer ---------------------------------------------------------------------------------------------

        .globl  timer_on
# x2APIC mode, with the timer one-shot and not yet set. Clears EDX.
timer_on:
        call    x2apic_on
        movl    $MSR_DIVIDE, %ecx
        movl    $0xB, %eax              # by 1
        xorl    %edx, %edx
        wrmsr
        movl    $MSR_LVT_TIMER, %ecx
        movl    $TIMER_VECTOR, %eax
        wrmsr
        ret

        .globl  x2apic_on
x2apic_on:
        movl    $MSR_APIC_BASE, %ecx
        rdmsr
        orl     $0xC00, %eax
        wrmsr
        movl    $MSR_SPURIOUS, %ecx
        movl    $0x1FF, %eax
        xorl    %edx, %edx
        wrmsr
        ret

# ---- console -----------------------------------------------------------------------------------------------------------

        .globl  print
# Prints the zero-terminated text at ESI. Changes nothing.
print:
        pushal
1:      lodsb
        testb   %al, %al
        jz      2f
        call    print_byte
        jmp     1b
2:      popal
        ret

print_byte:
        pushl   %edx
        pushl   %eax
        movw    $(COM1 + 5), %dx
1:      inb     %dx, %al
        testb   $0x20, %al
        jz      1b
        popl    %eax
        movw    $COM1, %dx
        outb    %al, %dx
        popl    %edx
        ret

        .globl  print_decimal
# Prints EAX. Changes nothing.
print_decimal:
        pushal
        movl    $10, %ebx
        xorl    %ecx, %ecx
1:      xorl    %edx, %edx
        divl    %ebx
        pushl   %edx
        incl    %ecx
        testl   %eax, %eax
        jnz     1b
2:      popl    %eax
        addb    $'0', %al
        call    print_byte
        loop    2b
        popal
        ret

# ---- exceptions and interrupts -----------------------------------------------------------------------------------------

interrupts_init:
        pushal
        movl    $idt, %edi
        xorl    %ecx, %ecx
1:      leal    vectors(, %ecx, 8), %eax
        movw    %ax, (%edi)
        movw    $8, 2(%edi)
        movw    $0x8E00, 4(%edi)
        shrl    $16, %eax
        movw    %ax, 6(%edi)
        addl    $8, %edi
        incl    %ecx
        cmpl    $VECTORS, %ecx
        jb      1b
        lidt    idt_register
        movb    $0xFF, %al              # mask both 8259
        outb    %al, $0x21
        outb    %al, $0xA1
        popal
        ret

        .set    VECTORS, 72
        .align  8
vectors:
        .set    vector, 0
        .rept   VECTORS
        .align  8
        pushl   $vector
        jmp     interrupt
        .set    vector, vector + 1
        .endr

# Stack: vector; error code for some; EIP, CS, EFLAGS.
interrupt:
        pushal
        movl    32(%esp), %eax
        movl    %eax, last_vector
        cmpl    $TIMER_VECTOR, %eax
        je      timer_interrupt
        cmpl    $0, resume_at
        je      unexpected
        # Go on where the test says, with the stack as before the fault.
        leal    36(%esp), %ebx          # error code or EIP
        cmpl    $8, %eax
        je      1f
        cmpl    $10, %eax
        jb      2f
        cmpl    $14, %eax
        ja      2f
1:      addl    $4, %ebx
2:      movl    resume_at, %eax
        movl    %eax, (%ebx)
        movl    %ebx, new_stack
        popal
        movl    new_stack, %esp
        iret

timer_interrupt:
        incl    ticks
        movl    $MSR_EOI, %ecx
        xorl    %eax, %eax
        xorl    %edx, %edx
        wrmsr
        popal
        addl    $4, %esp
        iret

unexpected:
        movl    $text_exception, %esi
        call    print
        call    print_decimal
        movl    $text_at, %esi
        call    print
        movl    36(%esp), %eax
        call    print_decimal
        movl    $text_failed, %esi
        call    print
        incl    failures
        jmp     passed_or_failed

# ---- data --------------------------------------------------------------------------------------------------------------

        .section .rodata
modes:
        .macro  mode name, code
        .long   8f, \code
        .pushsection .rodata.names, "a"
8:      .asciz  "\name"
        .popsection
        .endm
        mode    "hello", mode_hello
        mode    "mmio", mode_mmio
        mode    "bad-msr", mode_bad_msr
        mode    "garbage-virtio", mode_garbage_virtio
        mode    "exit", mode_exit
        mode    "triple-fault", mode_triple_fault
        mode    "spin", mode_spin
        mode    "hang", mode_hang
        mode    "silent", mode_silent
        mode    "modules", mode_modules
        mode    "smp", mode_smp
        mode    "lock", mode_lock
        mode    "burn", mode_burn
        mode    "fxrstor", mode_fxrstor
        mode    "debug", mode_debug
        mode    "exits", mode_exits
        mode    "nmi", mode_nmi
        mode    "paravirt", mode_paravirt
        mode    "real", mode_real
        mode    "wake", mode_wake
        mode    "selfinit", mode_self_init
        mode    "apicmove", mode_apic_move
        mode    "romwrite", mode_rom_write
        mode    "flood", mode_flood
        mode    "nowhere", mode_nowhere
        .long   0

text_init:      .asciz  "outpost-guest: init\n"
        .globl  text_prefix
text_prefix:    .asciz  "probe: "
text_passed:    .asciz  ": passed\n"
        .globl  text_failed
text_failed:    .asciz  ": FAILED\n"
text_command_line: .asciz "probe: command line: "
text_module:    .asciz  "probe: module "
text_module_length: .asciz ": length "
text_module_sum: .asciz ", sum "
text_line_end:  .asciz  "\n"
text_unknown_mode: .asciz "probe: unknown mode on the command line: FAILED\n"
text_not_multiboot: .asciz "probe: not started by a multiboot loader with a command line: FAILED\n"
text_exception: .asciz  "probe: unexpected exception or interrupt "
text_at:        .asciz  ", next word on the stack "

        .align  8
gdt:    .quad   0, 0x00CF9B000000FFFF, 0x00CF93000000FFFF
gdt_register:
        .word   23
        .long   gdt
idt_register:
        .word   8 * VECTORS - 1
        .long   idt
empty_idt:
        .word   0
        .long   0

        .bss
        .align  16
idt:    .skip   8 * VECTORS
        .globl  failures, resume_at
failures:       .long 0
mode_name:      .long 0
information:    .long 0
last_vector:    .long 0
resume_at:      .long 0
new_stack:      .long 0
ticks:          .long 0
        .align  16
        .skip   16384
stack_top:
