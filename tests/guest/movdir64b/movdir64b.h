/* SPDX-License-Identifier: GPL-2.0 */
#ifndef MOVDIR64B_H
#define MOVDIR64B_H

#include <linux/ptrace.h>
#include <linux/types.h>

struct movdir64b {
    u64 source;
    u64 destination;
    unsigned int length; /* of the instruction, in bytes */
};

/* What the code at regs->ip is to move, and where; false if it is no MOVDIR64B or none that this
 * module carries out. Addresses are not looked at. */
bool movdir64b_decode(const struct pt_regs *regs, struct movdir64b *insn);

/* Register ``number`` as instructions encode it, 0 to 15. */
u64 movdir64b_register(const struct pt_regs *regs, unsigned int number);

/* Every store takes its time, so that two CPUs would meet if they could. */
extern bool movdir64b_slow;

/* Executes instructions of all forms; how many of them did not do what they should. */
unsigned int movdir64b_selftest(unsigned int *passed);

#endif
