/* SPDX-License-Identifier: GPL-2.0 */
/*
 * MOVDIR64B in all its forms, as the assembler encodes them, and a table that says of each what it
 * means (struct form in selftest.c). Registers are loaded from movdir64b_in and, after the
 * instruction, stored to movdir64b_out, in the order of their numbers.
 */
#include <asm/asm.h>
#include <linux/linkage.h>

    .set n_rax, 0
    .set n_rcx, 1
    .set n_rdx, 2
    .set n_rbx, 3
    .set n_rsp, 4
    .set n_rbp, 5
    .set n_rsi, 6
    .set n_rdi, 7
    .set n_r8, 8
    .set n_r9, 9
    .set n_r10, 10
    .set n_r11, 11
    .set n_r12, 12
    .set n_r13, 13
    .set n_r14, 14
    .set n_r15, 15
    .set n_none, 255

    .set REFUSED, 1  /* stays #UD */
    .set ILLEGAL, 3  /* so does this, and is not decoded */
    .set SHORT, 4    /* addresses have 32 bits */
    .set STATIC, 8   /* the source is movdir64b_static */
    .set CROOKED, 16 /* the destination is not aligned */
    .set USER, 32    /* the destination is the user's */

    .text

/* void movdir64b_run(void): one instruction, at movdir64b_stub. */
SYM_FUNC_START(movdir64b_run)
    push %rbx
    push %rbp
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, saved_sp(%rip)
    .irp reg, rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15
    mov movdir64b_in + 8 * n_\reg(%rip), %\reg
    .endr
    jmp *movdir64b_stub(%rip)
trapped:
    movl $1, movdir64b_trapped(%rip)
done:
    .irp reg, rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15
    mov %\reg, movdir64b_out + 8 * n_\reg(%rip)
    .endr
    mov saved_sp(%rip), %rsp
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbp
    pop %rbx
    RET
SYM_FUNC_END(movdir64b_run)

    .section .rodata
    .balign 8
    .globl movdir64b_forms
movdir64b_forms:

/* One form: the instruction's text comes between BEGIN and END. */
.macro BEGIN
    .text
77:
.endm

.macro END dest, base, index, scale, disp, flags=0
78:
    jmp done
    _ASM_EXTABLE(77b, trapped)
    .section .rodata
    .quad 77b
    .long 78b - 77b, \disp
    .byte n_\dest, n_\base, n_\index, \scale, \flags, 0, 0, 0
.endm

/* As the assembler writes it; ``how`` may be {disp8} or {disp32}. */
.macro BASE dest, base, disp=0, how
    BEGIN
    \how movdir64b \disp(%\base), %\dest
    END \dest, \base, none, 1, \disp
.endm

.macro INDEXED dest, base, index, scale, disp=0, how
    BEGIN
    \how movdir64b \disp(%\base, %\index, \scale), %\dest
    END \dest, \base, \index, \scale, \disp
.endm

.macro BYTES dest, base, flags, bytes:vararg
    BEGIN
    .byte \bytes
    END \dest, \base, none, 1, 0, \flags
.endm

/* Every destination. */
    .irp reg, rax, rcx, rdx, rbx, rsp, rbp, rdi, r8, r9, r10, r11, r12, r13, r14, r15
    BASE \reg, rsi
    .endr
    BASE rsi, rdi

/* Every base, with every size of displacement, of both signs. */
    .irp reg, rax, rcx, rdx, rbx, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15
    .ifnc \reg, r9
    BASE r9, \reg
    BASE r9, \reg, 0x7f
    BASE r9, \reg, -0x80
    BASE r9, \reg, 0x12345678
    BASE r9, \reg, -0x12345678
    BASE r9, \reg, 0, {disp32}
    .else
    BASE rax, r9
    BASE rax, r9, 1
    BASE rax, r9, -0x80000000
    .endif
    .endr
    BASE rdx, rsp
    BASE r10, rsp, 0x40
    BASE rdi, rsp, 0x140

/* Every index and scale; with rbp and r13 there is no form without displacement. */
    .irp base, rbx, rbp, r12, r13
    .irp index, rax, rcx, rdx, rsi, rdi, r8, r9, r10, r11, r14, r15
    .irp scale, 1, 2, 4, 8
    .ifnc \index, rdi
    INDEXED rdi, \base, \index, \scale
    INDEXED rdi, \base, \index, \scale, -5
    .else
    INDEXED rsi, \base, \index, \scale, 0x10000
    .endif
    .endr
    .endr
    .endr
    INDEXED rax, rsi, rbx, 4
    INDEXED rax, rsi, rbp, 8, 0x11223344
    INDEXED rax, rsi, r12, 2
    INDEXED rax, rsi, r13, 1, 0x22
    INDEXED rax, rsp, rcx, 8
    INDEXED r15, rsp, r14, 2, 0x20
    INDEXED r15, rsp, rbp, 1, 0x120

/* One register in two places. */
    INDEXED rdx, rax, rax, 1

/* An index without base; an address; an address relative to the next instruction. */
    .irp scale, 1, 2, 4, 8
    BEGIN
    movdir64b 0x1238(, %rcx, \scale), %rbx
    END rbx, none, rcx, \scale, 0x1238
    BEGIN
    movdir64b -0x1238(, %r12, \scale), %r9
    END r9, none, r12, \scale, -0x1238
    .endr
    BEGIN
    movdir64b movdir64b_static, %rax
    END rax, none, none, 1, 0, STATIC
    BEGIN
    movdir64b movdir64b_static(%rip), %rax
    END rax, none, none, 1, 0, STATIC
    BEGIN
    movdir64b movdir64b_static(%rip), %r13
    END r13, none, none, 1, 0, STATIC

/* Prefixes: those without effect, repeated ones, REX that is not the last, REX.W, REX.X without
 * index, and the longest instruction there may be. */
    BYTES rax, rbx, 0, 0x26, 0x66, 0x0f, 0x38, 0xf8, 0x03
    BYTES rax, rbx, 0, 0x66, 0x2e, 0x0f, 0x38, 0xf8, 0x03
    BYTES rax, rbx, 0, 0x36, 0x3e, 0x66, 0x0f, 0x38, 0xf8, 0x03
    BYTES rax, rbx, 0, 0x66, 0x66, 0x0f, 0x38, 0xf8, 0x03
    BYTES rax, rbx, 0, 0x45, 0x66, 0x0f, 0x38, 0xf8, 0x03
    BYTES r8, rbx, 0, 0x41, 0x66, 0x44, 0x0f, 0x38, 0xf8, 0x03
    BYTES rax, rbx, 0, 0x66, 0x4a, 0x0f, 0x38, 0xf8, 0x03
    BYTES rax, rbx, 0, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, \
        0x0f, 0x38, 0xf8, 0x43, 0x00

/* 32-bit addresses: none of the kernel's. */
    BEGIN
    movdir64b 0x10(%ebx), %eax
    END rax, rbx, none, 1, 0x10, SHORT+REFUSED
    BEGIN
    movdir64b -0x1000(%r9d, %r10d, 4), %r11d
    END r11, r9, r10, 4, -0x1000, SHORT+REFUSED
    BEGIN
    movdir64b 0x20(, %edx, 8), %r8d
    END r8, none, rdx, 8, 0x20, SHORT+REFUSED

/* Not to be decoded: bases in FS and GS, LOCK, ENQCMD and ENQCMDS, a register as source, no operand
 * size, 16 bytes. */
    BYTES rax, rbx, ILLEGAL, 0x64, 0x66, 0x0f, 0x38, 0xf8, 0x03
    BYTES rax, rbx, ILLEGAL, 0x65, 0x66, 0x0f, 0x38, 0xf8, 0x03
    BYTES rax, rbx, ILLEGAL, 0xf0, 0x66, 0x0f, 0x38, 0xf8, 0x03
    BYTES rax, rbx, ILLEGAL, 0xf2, 0x0f, 0x38, 0xf8, 0x03
    BYTES rax, rbx, ILLEGAL, 0xf3, 0x0f, 0x38, 0xf8, 0x03
    BYTES rax, rbx, ILLEGAL, 0x66, 0xf2, 0x0f, 0x38, 0xf8, 0x03
    BYTES rax, rbx, ILLEGAL, 0x66, 0x0f, 0x38, 0xf8, 0xc3
    BYTES rax, rbx, ILLEGAL, 0x0f, 0x38, 0xf8, 0x03
    BYTES rax, rbx, ILLEGAL, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, \
        0x0f, 0x38, 0xf8, 0x43, 0x00

/* Not to be carried out: a destination that is not aligned or the user's, a source that is. */
    BYTES rax, rbx, REFUSED+CROOKED, 0x66, 0x0f, 0x38, 0xf8, 0x03
    BYTES rax, rbx, REFUSED+USER, 0x66, 0x0f, 0x38, 0xf8, 0x03
    BYTES rax, none, REFUSED, 0x66, 0x0f, 0x38, 0xf8, 0x04, 0x25, 0x00, 0x00, 0x00, 0x00

    .section .rodata
    .globl movdir64b_forms_end
movdir64b_forms_end:

    .bss
    .balign 8
saved_sp:
    .quad 0

    .section .note.GNU-stack, "", @progbits
