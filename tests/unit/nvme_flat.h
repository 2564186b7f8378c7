/*
 * The services of the engine for programs that run the NVMe data path by themselves: guest memory in one
 * piece from address 0 on, `flat_page()` saying which of its pages are there.
 */
#ifndef NVME_FLAT_H
#define NVME_FLAT_H

#include <stdio.h>
#include <stdlib.h>

#include "engine.h"

enum { PAGE = 4096, FLAT_PAGES = 128, FLAT_READ = 1, FLAT_WRITE = 2 };

static _Alignas(4096) uint8_t memory[FLAT_PAGES * PAGE];
static uint8_t flat_page[FLAT_PAGES]; /* FLAT_...; 0: a hole */
static unsigned long reports[NVME_REPORT_FATAL + 1];

static int flat_reach(vdcm_worker *w, uint32_t pasid, uint64_t address, uint64_t length, bool write,
                      void **found, uint64_t *here)
{
    uint64_t end = address / PAGE;

    (void)w, (void)pasid;
    if (length == 0) {
        abort(); /* the engine's -EINVAL, which no device should see */
    }
    while (end < FLAT_PAGES && flat_page[end] & (write ? FLAT_WRITE : FLAT_READ) &&
           end * PAGE < address + length) {
        end++;
    }
    if (end * PAGE <= address || address / PAGE >= FLAT_PAGES) {
        return -14;
    }
    *found = memory + address;
    *here = end * PAGE - address < length ? end * PAGE - address : length;
    return 0;
}

static void flat_leave(vdcm_worker *w)
{
    (void)w;
}

static int flat_guarded(vdcm_worker *w, int (*body)(void *), void *argument)
{
    (void)w;
    return body(argument);
}

static uint32_t flat_pasid(vdcm_worker *w)
{
    (void)w;
    return 0;
}

static int flat_raise(vdcm_worker *w, uint32_t message)
{
    (void)w, (void)message;
    return 0;
}

static bool flat_report(vdcm_worker *w, uint32_t code, const void *data, uint32_t size)
{
    (void)w, (void)data, (void)size;
    reports[code]++;
    return reports[code] % 3 != 0; /* now and then there is no room */
}

static uint64_t flat_now(void)
{
    static uint64_t ns;

    return ns += 1000;
}

static const vdcm_services flat_services = {.abi = VDCM_FASTPATH_ABI,
                                            .reach = flat_reach,
                                            .leave = flat_leave,
                                            .guarded = flat_guarded,
                                            .primary = flat_pasid,
                                            .secondary = flat_pasid,
                                            .raise = flat_raise,
                                            .report = flat_report,
                                            .now = flat_now};

static inline uint32_t random_below(uint32_t *state, uint32_t limit)
{
    *state = *state * 1664525 + 1013904223;
    return (*state >> 8) % limit;
}

#endif
