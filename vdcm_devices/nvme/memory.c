/*
 * Commands to a store that is memory: done by the sweep itself, in pieces of its budget. A whole page
 * that is to be zeros is given back to the system, so that a store takes as much memory as there is
 * data in it.
 */
#define _GNU_SOURCE
#include <sys/mman.h>

#include "engine.h"

enum {
    FEW = 64 << 10,    /* bytes that are cleared faster than given back */
    STRIDE = 16 << 20, /* bytes to give back in one go */
    STRIDE_COST = 64 << 10
};

static uint64_t smaller(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

/* Some bytes from `at` on; how many. */
static uint64_t clear(uint8_t *at, uint64_t length, uint64_t *units)
{
    uint64_t to_page = -(uintptr_t)at % NVME_PAGE;

    if (length >= FEW && to_page == 0) {
        length = smaller(length, STRIDE) & ~(uint64_t)(NVME_PAGE - 1);
        *units += STRIDE_COST;
        if (madvise(at, length, MADV_DONTNEED) == 0) {
            return length;
        }
    }
    length = smaller(length, length >= FEW && to_page != 0 ? to_page : FEW);
    memset(at, 0, length);
    *units += length;
    return length;
}

/* One after the other; `done` are bytes of the one that it is at. */
static int deallocate(nvme_sq *q, nvme_task *t, uint64_t limit, uint64_t *units)
{
    const nvme_range *ranges = (const nvme_range *)(void *)t->buffer;
    uint64_t start = *units;

    if (!t->fua) { /* here: the ranges have been fetched */
        int status = nvme_fetch_ranges(q, t);

        *units += t->length;
        t->fua = true;
        if (status != NVME_MORE) {
            return status;
        }
    }
    while (t->range < t->length / sizeof(nvme_range)) {
        const nvme_range *r = &ranges[t->range];
        uint64_t bytes = (uint64_t)r->blocks << t->n->shift;

        if (t->done == bytes) {
            t->done = 0;
            t->range++;
            *units += 1;
            continue;
        }
        if (*units - start >= limit) {
            return NVME_MORE;
        }
        t->done += clear(t->n->memory + (r->lba << t->n->shift) + t->done, bytes - t->done, units);
    }
    return NVME_SUCCESS;
}

static int step_data(nvme_sq *q, nvme_task *t, uint64_t here)
{
    uint8_t *at = t->n->memory + t->at + t->done;

    return t->c.opcode == NVME_COMPARE ? nvme_pointer_compare(q, t, at, here)
                                       : nvme_pointer_move(q, t, at, here);
}

int nvme_memory_step(nvme_sq *q, nvme_task *t, uint64_t limit, uint64_t *units)
{
    uint64_t here = smaller(t->length - t->done, limit);
    int status = NVME_SUCCESS;

    switch (t->c.opcode) {
    case NVME_FLUSH:
    case NVME_VERIFY:
        return NVME_SUCCESS;
    case NVME_DATASET_MANAGEMENT:
        return deallocate(q, t, limit, units);
    case NVME_WRITE_ZEROES:
        here = clear(t->n->memory + t->at + t->done, t->length - t->done, units);
        break;
    default:
        status = step_data(q, t, here);
        *units += here;
        nvme_held(q, here);
    }
    t->done += here;
    return status != NVME_SUCCESS || t->done == t->length ? status : NVME_MORE;
}
