/*
 * What a guest does with a device's registers that suggests that it waits in vain, for hints to the
 * author (vdcm/hints.py). It is on the path of every access, so it is a few stores: Python is told
 * after 4, 8, 16, 32 ... reads that were alike, not of each.
 */
#ifndef VDCM_WATCH_H
#define VDCM_WATCH_H

#include <stdbool.h>
#include <stdint.h>

#include "native.h"

enum {
    VDCM_WATCHED = 8,     /* places that are watched at a time */
    VDCM_FIRST_REPEAT = 4 /* reads after which Python is told first, a power of two */
};

/* Longer apart, two reads are no polling, but a watchdog's. */
#define VDCM_REPEAT_GAP UINT64_C(250000000)

/*
 * Reads of one place that have seen one value, and no write or interrupt in between; but each may be
 * followed by one write of what it has seen, as who clears bits by writing 1 does it.
 */
struct vdcm_repeat {
    uint64_t offset;
    uint64_t value;
    uint64_t stamp; /* of the watch, at the last read */
    uint64_t since; /* ns */
    uint64_t last;
    uint32_t where; /* region and width */
    uint32_t times;
};

struct vdcm_watch {
    uint64_t now;        /* ns: when the message that is being handled was looked for */
    uint64_t stamp;      /* writes, and interrupts that the VDCM has signalled */
    uint64_t interrupts; /* of these */
    uint64_t wrote;      /* the stamp of `written` */
    struct vdcm_repeat repeats[VDCM_WATCHED];
    vdcm_written written; /* the last write of a BAR; `interrupts`: how many before */
    bool any;             /* there was one */
    bool silent;          /* nothing has followed it, and nobody was told */
};

/* Counts a read; how often it has been like this, if Python is to be told, else 0. */
uint32_t vdcm_watch_read(struct vdcm_watch *watch, uint32_t region, uint64_t offset,
                         uint32_t width, uint64_t value, uint64_t *ns);
void vdcm_watch_write(struct vdcm_watch *watch, uint32_t region, uint64_t offset, uint32_t width,
                      uint64_t value);
void vdcm_watch_interrupt(struct vdcm_watch *watch);

#endif
