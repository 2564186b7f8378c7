/*
 * How long things took, counted by half powers of two of nanoseconds: little to store and next to
 * nothing to count, and enough to tell a median or a percentile to within some percent.
 */
#ifndef VDCM_LATENCY_H
#define VDCM_LATENCY_H

#include <stdint.h>

/* cffi: begin */

enum { VDCM_LATENCY_BUCKETS = 48 };

/*
 * Bucket 0 is what took less than 256 ns. From there on, each power of two has two: 1 is 256 to 383
 * ns, 2 up to 511, 3 up to 767, and so on; the last one is what took 2^31 ns and longer.
 */
typedef struct {
    uint64_t count[VDCM_LATENCY_BUCKETS];
    uint64_t ns; /* of all of them together */
} vdcm_latencies;

/* cffi: end */

static inline void vdcm_latency_note(vdcm_latencies *l, uint64_t ns)
{
    unsigned bucket = 0;

    if (ns >= 256) {
        unsigned power = 63U - (unsigned)__builtin_clzll(ns);

        bucket = 2 * (power - 8) + (unsigned)(ns >> (power - 1) & 1) + 1;
        bucket = bucket < VDCM_LATENCY_BUCKETS ? bucket : VDCM_LATENCY_BUCKETS - 1;
    }
    l->count[bucket]++;
    l->ns += ns;
}

#endif
