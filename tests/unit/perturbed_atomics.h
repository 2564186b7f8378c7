/*
 * Read before anything else (cc -include): each sequentially consistent load or store is preceded
 * by a change of threads now and then, so that the moments between two of them, a few instructions
 * long, are really met.
 */
#ifndef PERTURBED_ATOMICS_H
#define PERTURBED_ATOMICS_H

#define _GNU_SOURCE
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>

static inline void perturb(void)
{
    static _Thread_local uint32_t state;

    state = state * 1664525 + 1013904223 + (uint32_t)(uintptr_t)&state;
    if (state >> 26 == 0) {
        sched_yield();
    }
}

#undef atomic_load
#undef atomic_store
#define atomic_load(object) (perturb(), atomic_load_explicit(object, memory_order_seq_cst))
#define atomic_store(object, value)                                                               \
    (perturb(), atomic_store_explicit(object, value, memory_order_seq_cst))

#endif
