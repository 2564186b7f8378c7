// SPDX-License-Identifier: GPL-2.0
/*
 * MOVDIR64B for the kernel code of a guest whose CPU lacks it: QEMU's TCG has no such instruction,
 * and Linux' idxd driver submits with nothing else.
 *
 * The CPU raises #UD; a die notifier decodes the instruction and does eight 8-byte stores, the
 * first word last, because that is the one that a device may take as the end. The instruction's
 * 64 bytes arrive at once; here a lock keeps the stores of two CPUs to one place apart.
 *
 * Encoding and rules: Intel's Software Developer's Manual, volume 2, "MOVDIR64B" and chapter 2.
 *
 *   selftest=1   execute instructions of all forms when it is loaded, and fail unless all is well
 */
#include <asm/cpufeature.h>
#include <asm/processor.h>
#include <asm/trapnr.h>
#include <linux/kdebug.h>
#include <linux/module.h>
#include <linux/spinlock.h>
#include <linux/uaccess.h>

#include "movdir64b.h"

#define MOST_BYTES 15 /* of an instruction, all prefixes included */
#define WORDS 8
#define PAUSES 50 /* between two stores that are to be slow */

static bool selftest;
module_param(selftest, bool, 0444);
MODULE_PARM_DESC(selftest, "execute instructions of all forms first");

static unsigned int passed;
module_param(passed, uint, 0444);
MODULE_PARM_DESC(passed, "forms that the self-test has found right");

static unsigned int carried;
module_param(carried, uint, 0444);
MODULE_PARM_DESC(carried, "instructions that have been carried out");

static unsigned int refused;
module_param(refused, uint, 0444);
MODULE_PARM_DESC(refused, "instructions whose addresses are not the kernel's, or not aligned");

bool movdir64b_slow;

static DEFINE_RAW_SPINLOCK(lock);

struct cursor {
    const u8 *at;
    unsigned int left;
};

static bool fetch(struct cursor *code, u8 *byte)
{
    if (!code->left || get_kernel_nofault(*byte, code->at))
        return false;
    code->at++;
    code->left--;
    return true;
}

/* A displacement of ``size`` bytes: 0, 1 or 4. */
static bool fetch_displacement(struct cursor *code, unsigned int size, s64 *displacement)
{
    u32 value = 0;
    unsigned int i;
    u8 byte;

    for (i = 0; i < size; i++) {
        if (!fetch(code, &byte))
            return false;
        value |= (u32)byte << 8 * i;
    }
    *displacement = size == 1 ? (s8)value : (s32)value;
    return true;
}

u64 movdir64b_register(const struct pt_regs *regs, unsigned int number)
{
    static const u8 offsets[16] = {
        offsetof(struct pt_regs, ax),  offsetof(struct pt_regs, cx),
        offsetof(struct pt_regs, dx),  offsetof(struct pt_regs, bx),
        offsetof(struct pt_regs, sp),  offsetof(struct pt_regs, bp),
        offsetof(struct pt_regs, si),  offsetof(struct pt_regs, di),
        offsetof(struct pt_regs, r8),  offsetof(struct pt_regs, r9),
        offsetof(struct pt_regs, r10), offsetof(struct pt_regs, r11),
        offsetof(struct pt_regs, r12), offsetof(struct pt_regs, r13),
        offsetof(struct pt_regs, r14), offsetof(struct pt_regs, r15),
    };

    return *(const u64 *)((const u8 *)regs + offsets[number]);
}

/* The first byte behind the prefixes. A base in FS or GS, LOCK, F2 and F3 are no prefix here: the
 * byte is then no opcode, which refuses the instruction. */
static bool fetch_prefixes(struct cursor *code, bool *operand_size, bool *address_size, u8 *rex,
                           u8 *byte)
{
    *operand_size = *address_size = false;
    *rex = 0;
    while (fetch(code, byte)) {
        if ((*byte & 0xf0) == 0x40) {
            *rex = *byte;
            continue;
        }
        switch (*byte) {
        case 0x66:
            *operand_size = true;
            break;
        case 0x67:
            *address_size = true;
            break;
        case 0x26: /* ES, CS, SS, DS: without effect in 64-bit mode */
        case 0x2e:
        case 0x36:
        case 0x3e:
            break;
        default:
            return true;
        }
        *rex = 0; /* counts only as the last prefix */
    }
    return false;
}

bool movdir64b_decode(const struct pt_regs *regs, struct movdir64b *insn)
{
    struct cursor code = { (const u8 *)regs->ip, MOST_BYTES };
    unsigned int mod, rm, base, index, size;
    bool operand_size, address_size, relative = false;
    u8 rex, byte, modrm, sib;
    s64 displacement;
    u64 source = 0;

    if (!fetch_prefixes(&code, &operand_size, &address_size, &rex, &byte) || !operand_size ||
        byte != 0x0f || !fetch(&code, &byte) || byte != 0x38 || !fetch(&code, &byte) ||
        byte != 0xf8 || !fetch(&code, &modrm))
        return false;
    mod = modrm >> 6;
    rm = modrm & 7;
    if (mod == 3)
        return false;
    size = mod == 2 ? 4 : mod;
    base = rm;
    if (rm == 4) {
        if (!fetch(&code, &sib))
            return false;
        index = (sib >> 3 & 7) | (rex & 2) << 2;
        if (index != 4)
            source = movdir64b_register(regs, index) << (sib >> 6);
        base = sib & 7;
    }
    if (mod == 0 && base == 5) {
        size = 4; /* instead of a base */
        relative = rm == 5;
    } else {
        source += movdir64b_register(regs, base | (rex & 1) << 3);
    }
    if (!fetch_displacement(&code, size, &displacement))
        return false;
    source += displacement;
    if (relative)
        source += (u64)code.at;
    insn->source = source;
    insn->destination = movdir64b_register(regs, (modrm >> 3 & 7) | (rex & 4) << 1);
    if (address_size) {
        insn->source = (u32)insn->source;
        insn->destination = (u32)insn->destination;
    }
    insn->length = MOST_BYTES - code.left;
    return true;
}

/* False, with nothing done, if an address is not the kernel's, not mapped or not aligned. */
static bool carry_out(const struct movdir64b *insn)
{
    u64 words[WORDS], *to = (u64 *)insn->destination;
    int i, pause;

    if (insn->destination % sizeof(words) || (s64)insn->destination >= 0 ||
        copy_from_kernel_nofault(words, (const void *)insn->source, sizeof(words)))
        return false;
    for (i = WORDS - 1; i >= 0; i--) {
        __put_kernel_nofault(&to[i], &words[i], u64, unmapped);
        for (pause = 0; movdir64b_slow && pause < PAUSES; pause++)
            cpu_relax();
    }
    return true;
unmapped:
    return false;
}

static int on_die(struct notifier_block *block, unsigned long event, void *data)
{
    struct die_args *args = data;
    struct movdir64b insn;
    unsigned long flags;
    bool done;

    if (event != DIE_TRAP || args->trapnr != X86_TRAP_UD || user_mode(args->regs) ||
        !movdir64b_decode(args->regs, &insn))
        return NOTIFY_DONE;
    raw_spin_lock_irqsave(&lock, flags);
    done = carry_out(&insn);
    carried += done;
    refused += !done;
    raw_spin_unlock_irqrestore(&lock, flags);
    if (!done)
        return NOTIFY_DONE;
    args->regs->ip += insn.length;
    return NOTIFY_STOP;
}

static struct notifier_block notifier = { .notifier_call = on_die };

static void stop(void)
{
    clear_bit(X86_FEATURE_MOVDIR64B, (unsigned long *)&boot_cpu_data.x86_capability);
    unregister_die_notifier(&notifier);
}

static int __init movdir64b_init(void)
{
    unsigned int failed;
    int error;

    if (boot_cpu_has(X86_FEATURE_MOVDIR64B)) {
        pr_err("movdir64b: the CPU has the instruction; do not load this module\n");
        return -EEXIST;
    }
    error = register_die_notifier(&notifier);
    if (error)
        return error;
    /* Not in the flags of each CPU, which user space sees: there the instruction is still #UD. */
    set_bit(X86_FEATURE_MOVDIR64B, (unsigned long *)&boot_cpu_data.x86_capability);
    if (selftest) {
        failed = movdir64b_selftest(&passed);
        if (failed) {
            pr_err("movdir64b: self-test: %u passed, %u failed\n", passed, failed);
            stop();
            return -EIO;
        }
    }
    return 0;
}

static void __exit movdir64b_exit(void)
{
    stop();
}

module_init(movdir64b_init);
module_exit(movdir64b_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("MOVDIR64B by eight stores, where the CPU lacks it");
