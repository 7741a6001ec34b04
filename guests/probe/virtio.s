# Modes "garbage-virtio", "flood" and "nowhere": nonsense in the registers and queues of every virtio-mmio device, and more notifications than
# it can serve. The device may stop; the guest and the box must live.

        .set    FIRST_WINDOW, 0xD0000000
        .set    WINDOW_STRIDE, 0x1000
        .set    DEVICES, 4
        .set    MAGIC, 0x74726976               # "virt"
        .set    QUEUE_ENTRIES, 8
        .set    RANDOM_WRITES, 300

        .text
        .globl  mode_garbage_virtio
mode_garbage_virtio:
        movl    $text_virtio_init, %esi
        call    print
        movl    $FIRST_WINDOW, %ebx
1:      cmpl    $MAGIC, (%ebx)
        jne     2f
        incl    found
        call    queue_attacks
        call    random_registers
        call    random_queues
        # The device must still answer, and come back from a reset.
        movl    $0, 0x70(%ebx)
        cmpl    $MAGIC, (%ebx)
        movl    $text_answers, %esi
        call    expect_equal
        cmpl    $0, 0x70(%ebx)
        movl    $text_reset, %esi
        call    expect_equal
2:      addl    $WINDOW_STRIDE, %ebx
        cmpl    $(FIRST_WINDOW + DEVICES * WINDOW_STRIDE), %ebx
        jb      1b
        movl    $text_prefix, %esi
        call    print
        movl    found, %eax
        call    print_decimal
        movl    $text_alive, %esi
        call    print
        cmpl    $0, found
        jne     3f
        incl    failures
3:      jmp     passed_or_failed

# Kicks a queue of each device, each time with one more buffer in it: what the network sends, what the console types, entropy, and requests of no kind to the disk.
mode_flood:
        call    say_init
        call    seconds
        call    set_end
1:      movl    $FIRST_WINDOW, %ebx
2:      cmpl    $MAGIC, (%ebx)
        jne     4f
        xorl    %eax, %eax
        cmpl    $1, 8(%ebx)                     # network
        sete    %al
        movl    %eax, queue
        call    device_start
        movl    queue, %eax
        xorl    $1, %eax
        shll    $1, %eax
        movw    %ax, descriptors + 12           # the device writes, but to queue 1
        cmpl    $2, 8(%ebx)
        jne     5f
        call    disk_request
5:      call    device_go
        movl    queue, %eax
        movl    $2000, %ecx
3:      incw    available + 2
        movl    %eax, 0x50(%ebx)
        incl    found
        loop    3b
        cmpl    $MAGIC, (%ebx)
        movl    $text_answers_flood, %esi
        call    expect_equal
        movl    $0, 0x70(%ebx)
4:      addl    $WINDOW_STRIDE, %ebx
        cmpl    $(FIRST_WINDOW + DEVICES * WINDOW_STRIDE), %ebx
        jb      2b
        call    is_end
        jb      1b
        movl    $text_prefix, %esi
        call    print
        movl    found, %eax
        call    print_decimal
        movl    $text_kicks, %esi
        call    print
        cmpl    $0, found
        movl    $text_no_device, %esi
        call    expect_unequal
        jmp     passed_or_failed

# The device must say that it needs a reset, and work again after it.
mode_nowhere:
        call    say_init
        call    calibrate
        movl    $FIRST_WINDOW, %ebx
1:      cmpl    $MAGIC, (%ebx)
        jne     3f
        incl    found
        movl    $1, queue                       # which the driver fills with data; the source of entropy and the disk have only queue 0
        cmpl    $4, 8(%ebx)
        je      6f
        cmpl    $2, 8(%ebx)
        jne     2f
6:      movl    $0, queue
2:      call    device_start
        movl    $0xE0000000, 0x80(%ebx)         # RAM ends at 3 GiB, and goes on at 4 GiB
        call    device_go
        movl    $2000000, %eax
        call    set_end_us
4:      movl    0x70(%ebx), %eax
        andl    $0x40, %eax                     # DEVICE_NEEDS_RESET
        jnz     5f
        call    is_end
        jb      4b
5:      cmpl    $0x40, %eax
        movl    $text_needs_reset, %esi
        call    expect_equal
        call    device_start
        cmpl    $2, 8(%ebx)
        jne     7f
        call    disk_request
7:      call    device_go
        testl   $0x40, 0x70(%ebx)
        movl    $text_reset, %esi
        call    expect_equal
        movl    $0, 0x70(%ebx)
3:      addl    $WINDOW_STRIDE, %ebx
        cmpl    $(FIRST_WINDOW + DEVICES * WINDOW_STRIDE), %ebx
        jb      1b
        cmpl    $0, found
        movl    $text_no_device, %esi
        call    expect_unequal
        jmp     passed_or_failed

# A request of no kind there is, with its header and room for the answer: refused, and nothing else happens.
disk_request:
        movl    $0x7F, buffer
        movl    $16, descriptors + 8
        movl    $0x00010001, descriptors + 12
        movl    $(buffer + 64), descriptors + 16
        movl    $1, descriptors + 24
        movw    $2, descriptors + 28
        ret

# Each attack is a code that spoils rings which were right.
queue_attacks:
        movl    $attacks, %ebp
1:      movl    (%ebp), %eax
        testl   %eax, %eax
        jz      3f
        movl    $0, queue
2:      call    device_start
        call    *(%ebp)
        call    device_go
        incl    queue
        cmpl    $2, queue
        jb      2b
        addl    $4, %ebp
        jmp     1b
3:      ret

# Resets the device, negotiates, and makes rings for one buffer: descriptor 0 writable and readable in turn.
device_start:
        movl    $0, 0x70(%ebx)
        movl    $1, 0x70(%ebx)
        movl    $3, 0x70(%ebx)
        movl    $0, 0x24(%ebx)
        movl    $0, 0x20(%ebx)
        movl    $1, 0x24(%ebx)
        movl    $1, 0x20(%ebx)                  # VERSION_1
        movl    $11, 0x70(%ebx)
        movl    queue, %eax
        movl    %eax, 0x30(%ebx)
        movl    $QUEUE_ENTRIES, 0x38(%ebx)
        movl    $descriptors, 0x80(%ebx)
        movl    $0, 0x84(%ebx)
        movl    $available, 0x90(%ebx)
        movl    $0, 0x94(%ebx)
        movl    $used, 0xA0(%ebx)
        movl    $0, 0xA4(%ebx)
        pushl   %edi
        movl    $descriptors, %edi
        movl    $(rings_end - descriptors) / 4, %ecx
        xorl    %eax, %eax
        rep     stosl
        popl    %edi
        movl    $buffer, descriptors
        movl    $64, descriptors + 8
        movw    $1, available + 2
        ret

device_go:
        movl    $1, 0x44(%ebx)
        movl    $15, 0x70(%ebx)
        movl    queue, %eax
        movl    %eax, 0x50(%ebx)
        movl    %eax, 0x50(%ebx)
        movl    0x60(%ebx), %eax
        movl    %eax, 0x64(%ebx)
        ret

attack_none:
        ret
attack_address_high:
        movl    $0xFFFFF000, descriptors + 4
        ret
attack_address_wraps:
        movl    $0xFFFFFFFF, descriptors
        movl    $0xFFFFFFFF, descriptors + 4
        ret
attack_address_device:
        movl    $0xFEC00000, descriptors
        ret
attack_address_own_window:
        movl    %ebx, descriptors
        ret
attack_length_huge:
        movl    $0xFFFFFFFF, descriptors + 8
        ret
attack_length_zero:
        movl    $0, descriptors + 8
        ret
attack_loop_self:
        movw    $1, descriptors + 12            # NEXT, to itself
        ret
attack_loop_two:
        movw    $1, descriptors + 12
        movw    $1, descriptors + 14
        movl    $buffer, descriptors + 16
        movl    $8, descriptors + 24
        movw    $3, descriptors + 28            # NEXT, writable, back to 0
        ret
attack_next_outside:
        movw    $1, descriptors + 12
        movw    $0xFFFF, descriptors + 14
        ret
attack_indirect:
        movw    $4, descriptors + 12
        movl    $0x7FFFFFF0, descriptors + 8
        ret
attack_head_outside:
        movw    $0xFFFF, available + 4
        ret
attack_index_jumps:
        movw    $0x8000, available + 2
        ret
attack_all_flags:
        movw    $0xFFFF, descriptors + 12
        ret
attack_rings_outside:
        movl    $0xFFFFFFF0, 0x80(%ebx)
        movl    $0xFFFFFFFF, 0x84(%ebx)
        ret
attack_rings_device:
        movl    $0xFEC00000, 0x90(%ebx)
        ret
attack_rings_unaligned:
        movl    $(used + 1), 0xA0(%ebx)
        ret
attack_used_over_available:
        movl    $available, 0xA0(%ebx)
        ret
attack_size_zero:
        movl    $0, 0x38(%ebx)
        ret
attack_size_odd:
        movl    $0xFFFF, 0x38(%ebx)
        ret
attack_queue_unknown:
        movl    $0xFFFFFFFF, 0x30(%ebx)
        movl    $0xFFFFFFFF, 0x50(%ebx)
        ret
attack_used_over_buffer:
        movl    $used, descriptors
        movw    $2, descriptors + 12
        movl    $0x1000, descriptors + 8
        ret

# Random numbers at random places of the window, of every width. Ring addresses stay out of RAM: a device that does as it is told
# would write over this program.
random_registers:
        movl    $RANDOM_WRITES, %ecx
1:      call    random
        movl    %eax, %edi
        shrl    $7, %edi
        andl    $0x1FF, %edi
        call    random
        testl   $0x300, %eax
        jz      2f
        andl    $0x1FC, %edi
        cmpl    $0x80, %edi
        jb      4f
        orl     $0x80000000, %eax
4:      movl    %eax, (%ebx, %edi)
        jmp     3f
2:      movb    %al, (%ebx, %edi)
        movw    (%ebx, %edi), %ax
3:      loop    1b
        ret

# Rings full of random numbers, with a device that runs. Small ones keep it away from this program, as above.
random_queues:
        movl    $24, %ecx
1:      pushl   %ecx
        movl    %ecx, %eax
        andl    $1, %eax
        movl    %eax, queue
        call    device_start
        movl    $descriptors, %edi
        movl    $(rings_end - descriptors) / 4, %ecx
2:      call    random
        testl   $0x1000, %eax                   # half of them small, so that some make sense
        jz      3f
        andl    $0x00030007, %eax
        jmp     4f
3:      orl     $0x80000000, %eax
4:      stosl
        loop    2b
        call    device_go
        popl    %ecx
        loop    1b
        ret

# A number in EAX (Numerical Recipes' generator, the better half twice).
random:
        movl    seed, %eax
        imull   $1664525, %eax
        addl    $1013904223, %eax
        movl    %eax, seed
        rorl    $16, %eax
        ret

        .section .rodata
        .align  4
attacks:
        .long   attack_none, attack_address_high, attack_address_wraps, attack_address_device, attack_address_own_window
        .long   attack_length_huge, attack_length_zero, attack_loop_self, attack_loop_two, attack_next_outside, attack_indirect
        .long   attack_head_outside, attack_index_jumps, attack_all_flags, attack_rings_outside, attack_rings_device
        .long   attack_rings_unaligned, attack_used_over_available, attack_size_zero, attack_size_odd, attack_queue_unknown
        .long   attack_used_over_buffer, 0
text_virtio_init: .asciz "outpost-guest: init\n"
text_alive:     .asciz  " virtio devices were given garbage; the guest is still alive\n"
text_answers:   .asciz  "device answers after garbage"
text_reset:     .asciz  "device resets after garbage"
text_kicks:     .asciz  " notifications\n"
text_no_device: .asciz  "there is a virtio device"
text_answers_flood: .asciz "device answers in the flood"
text_needs_reset: .asciz "device says that it needs a reset"

        .data
seed:   .long   0x2545F491

        .bss
        .align  4096
descriptors:    .skip 16 * QUEUE_ENTRIES
available:      .skip 64
used:           .skip 128
rings_end:
        .align  4096
buffer:         .skip 4096
found:          .long 0
queue:          .long 0
