// SPDX-License-Identifier: GPL-2.0
/*
 * Executes the instructions of forms.S one by one, each with registers that make its addresses come
 * out right, and compares memory and registers afterwards. Then all CPUs store to one place.
 */
#include <asm/special_insns.h>
#include <linux/atomic.h>
#include <linux/irqflags.h>
#include <linux/kernel.h>
#include <linux/printk.h>
#include <linux/smp.h>
#include <linux/string.h>

#include "movdir64b.h"

#define SIZE 64
#define STACK 1024 /* bytes below the caller's stack that the forms may use */
#define RSP 4
#define NONE 0xff
#define INDEX 0x18 /* what an index register holds, unless the address is all its own */

enum { REFUSED = 1, ILLEGAL = 3, SHORT = 4, STATIC = 8, CROOKED = 16, USER = 32 };

#define STORM 200 /* rounds of each CPU */

struct form {
    u64 code;
    u32 length;
    s32 displacement;
    u8 destination, base, index, scale, flags, reserved[3];
};

extern const struct form movdir64b_forms[], movdir64b_forms_end[];
void movdir64b_run(void);

/* forms.S */
u64 movdir64b_in[16], movdir64b_out[16], movdir64b_stub;
u32 movdir64b_trapped;
u8 movdir64b_static[SIZE];

static struct {
    u8 before[SIZE];
    u8 destination[SIZE];
    u8 after[SIZE];
    u8 source[2 * SIZE];
} room __aligned(SIZE);

/* Registers such that the form's source and destination are these. What has neither base nor index,
 * and a base that is the stack pointer, are what they are; returns the source that results. */
static u64 set_registers(const struct form *form, u64 source, u64 destination, u64 stack)
{
    u64 offset = form->displacement;
    unsigned int i;

    for (i = 0; i < 16; i++)
        movdir64b_in[i] = 0x5a5a000000000000ull | i << 8;
    movdir64b_in[RSP] = stack;
    if (form->destination != RSP)
        movdir64b_in[form->destination] = destination;
    if (form->base == form->index && form->base != NONE) {
        movdir64b_in[form->base] = (source - offset) / (1 + form->scale);
        return source;
    }
    if (form->base == NONE && form->index != NONE) {
        movdir64b_in[form->index] = (source - offset) / form->scale;
        return source;
    }
    if (form->base == NONE)
        return form->flags & STATIC ? (u64)movdir64b_static : 0;
    if (form->index != NONE) {
        movdir64b_in[form->index] = INDEX;
        offset += INDEX * form->scale;
    }
    if (form->base == RSP)
        return stack + offset;
    movdir64b_in[form->base] = source - offset;
    return source;
}

static bool decoded_right(const struct form *form, u64 source, u64 destination)
{
    const u64 *in = movdir64b_in;
    struct pt_regs regs = {
        .ax = in[0], .cx = in[1], .dx = in[2], .bx = in[3], .sp = in[4], .bp = in[5],
        .si = in[6], .di = in[7], .r8 = in[8], .r9 = in[9], .r10 = in[10], .r11 = in[11],
        .r12 = in[12], .r13 = in[13], .r14 = in[14], .r15 = in[15], .ip = form->code,
    };
    struct movdir64b insn;
    u64 mask = form->flags & SHORT ? U32_MAX : U64_MAX;

    if ((form->flags & ILLEGAL) == ILLEGAL)
        return !movdir64b_decode(&regs, &insn);
    return movdir64b_decode(&regs, &insn) && insn.source == (source & mask) &&
           insn.destination == (destination & mask) && insn.length == form->length;
}

/* What is wrong with a form, or NULL. Not inlined: the stack below its frame is the forms'. */
static noinline const char *try(const struct form *form)
{
    u8 *stack = (u8 *)round_down(current_stack_pointer - STACK, SIZE);
    u8 *target = form->destination == RSP ? stack : room.destination, *destination = target;
    bool whole = form->base == NONE || form->base == form->index; /* the address is a multiple */
    bool refused = form->flags & REFUSED;
    u8 *source = room.source + (whole ? 0 : 3);
    unsigned long flags;
    u8 pattern[SIZE];
    bool moved;
    int i;

    if (form->flags & CROOKED)
        destination += 8;
    if (form->flags & USER)
        destination = (u8 *)PAGE_SIZE;
    for (i = 0; i < SIZE; i++)
        pattern[i] = i * 7 + form->code;
    memset(&room, 0xee, sizeof(room));
    source = (u8 *)set_registers(form, (u64)source, (u64)destination, (u64)stack);
    movdir64b_stub = form->code;
    movdir64b_trapped = 0;
    /* An interrupt would write to the stack, too. The trap does so, below the form's pointer. */
    local_irq_save(flags);
    if (source)
        memcpy(source, pattern, SIZE);
    movdir64b_run();
    moved = !memcmp(target, pattern, SIZE);
    local_irq_restore(flags);

    if (movdir64b_trapped != refused)
        return refused ? "was carried out" : "was refused";
    if (memcmp(movdir64b_in, movdir64b_out, sizeof(movdir64b_in)))
        return "has changed a register";
    if (moved == refused || (refused && memchr_inv(room.destination, 0xee, SIZE)))
        return "has moved something else";
    if (memchr_inv(room.before, 0xee, SIZE) || memchr_inv(room.after, 0xee, SIZE))
        return "has moved too much";
    if (!decoded_right(form, (u64)source, (u64)destination))
        return "is decoded otherwise";
    return NULL;
}

/* On every CPU at once: all store to one place, and look at it by what the lock holds for, too. */
static void storm(void *torn)
{
    static u64 slot[SIZE / 8] __aligned(SIZE);
    u64 mine[SIZE / 8] __aligned(SIZE), seen[SIZE / 8] __aligned(SIZE);
    u64 value = (u64)smp_processor_id() << 32;
    int i, word;

    for (i = 0; i < STORM; i++) {
        for (word = 0; word < SIZE / 8; word++)
            mine[word] = value + i;
        movdir64b((void *)slot, mine);
        movdir64b((void *)seen, slot);
        for (word = 1; word < SIZE / 8; word++) {
            if (seen[word] != seen[0]) {
                atomic_inc(torn);
                break;
            }
        }
    }
}

unsigned int movdir64b_selftest(unsigned int *passed)
{
    const struct form *form;
    atomic_t torn = ATOMIC_INIT(0);
    unsigned int failed = 0;
    const char *wrong;

    for (form = movdir64b_forms; form < movdir64b_forms_end; form++) {
        wrong = try(form);
        if (wrong)
            pr_err("movdir64b: %*ph %s\n", (int)form->length, (void *)form->code, wrong);
        failed += !!wrong;
        *passed += !wrong;
    }
    movdir64b_slow = true;
    on_each_cpu(storm, &torn, 1);
    movdir64b_slow = false;
    if (atomic_read(&torn))
        pr_err("movdir64b: %d blocks were torn\n", atomic_read(&torn));
    return failed + !!atomic_read(&torn);
}
