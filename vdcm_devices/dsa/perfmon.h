/*
 * Performance monitoring (chapter 6, appendix D): the event counters of a VDEV. All its queues
 * count into them, on whatever threads they are run; Python has the registers (perfmon.py).
 *
 * Where no counter looks for an event, it costs the data path the look at one word.
 */
#ifndef DSA_PERFMON_H
#define DSA_PERFMON_H

#include <stdbool.h>
#include <stdint.h>

/* cffi: begin */

enum {
    DSA_COUNTERS = 8,
    DSA_COUNTER_WIDTH = 48, /* bits */
    DSA_UNIT = 32           /* bytes that EV_CL_... count as one; of each descriptor rounded up */
};

/* Event categories (Table 6-1). */
enum {
    DSA_CATEGORY_WQ,
    DSA_CATEGORY_ENGINE,
    DSA_CATEGORY_TRANSLATION, /* no event of it is counted: there is no ATS */
    DSA_CATEGORY_OPERATIONS,
    DSA_CATEGORY_COMPLETIONS,
    DSA_CATEGORIES
};

/* The events that are counted (D.1.1, D.1.2). Of the operations, each has its own bit. */
enum {
    DSA_EV_SWQ_SUCCESS_LIMITED = 0x01,
    DSA_EV_SWQ_RETRY_LIMITED = 0x02,
    DSA_EV_SWQ_SUCCESS_UNLIMITED = 0x04,
    DSA_EV_SWQ_RETRY_UNLIMITED = 0x08,
    DSA_EV_DWQ_SUCCESS = 0x10,
    DSA_EV_DWQ_FULL = 0x20,
    DSA_EV_WQ_DISCARD = 0x40, /* from version 2 on, as READ2 and WRITE2 */
    DSA_EV_CL_PROCESSED = 0x001,
    DSA_EV_CL_WRITE = 0x002,
    DSA_EV_NUM_READ = 0x004,
    DSA_EV_NUM_WRITE = 0x008,
    DSA_EV_DESC_FROM_BATCH = 0x010,
    DSA_EV_DESC_FROM_WQ = 0x020,
    DSA_EV_NUM_READ2 = 0x200,
    DSA_EV_NUM_WRITE2 = 0x400,
    DSA_EV_NUM_MSIX = 0x01,
    DSA_EV_PARTIAL = 0x04,
    DSA_EV_ERROR = 0x08,
    DSA_EV_SUCCESS = 0x10,
    DSA_EV_RECORD = 0x20
};

/* Filters by their encoding (Table 6-2). */
enum {
    DSA_FILTER_WQ,
    DSA_FILTER_TC,
    DSA_FILTER_PAGE_SIZE, /* of translations */
    DSA_FILTER_TRANSFER_SIZE,
    DSA_FILTER_ENGINE,
    DSA_FILTER_PASID, /* from version 2 on */
    DSA_FILTERS
};

/* What CNTRCFG and FLTCFG say of one counter (9.2.25.7, 9.2.25.8). */
typedef struct {
    uint32_t category;
    uint32_t events;
    uint32_t interrupt; /* on overflow */
    uint32_t freeze;    /* all counters on overflow */
    uint32_t filters[6];
} dsa_counter_settings;

/* One for each VDEV, zeroed at first; nothing but the functions below touches it. */
typedef struct {
    uint32_t wanted[5]; /* events of each category that enabled counters look for */
    uint32_t enabled;   /* counters, by bit, as in the masks below */
    uint32_t frozen;
    uint32_t overflowed;
    uint32_t interrupts; /* overflows that the guest is to be told of, and has not been */
    dsa_counter_settings settings[8];
    uint64_t values[8];
} dsa_perfmon;

/* From the control thread. `counter` is below DSA_COUNTERS. A queue that is just then counting an
 * event may count it as things were before. */
void dsa_perfmon_enable(dsa_perfmon *p, uint32_t counter, const dsa_counter_settings *settings);
/* It is not frozen any more, either (9.2.25.6). */
void dsa_perfmon_disable(dsa_perfmon *p, uint32_t counter);
uint64_t dsa_perfmon_value(const dsa_perfmon *p, uint32_t counter);
/* Bits beyond the counter's width are ignored. */
void dsa_perfmon_set_value(dsa_perfmon *p, uint32_t counter, uint64_t value);
uint32_t dsa_perfmon_frozen(const dsa_perfmon *p);
/* Those in `mask` are frozen if they are enabled, all others are not (9.2.25.6). */
void dsa_perfmon_freeze(dsa_perfmon *p, uint32_t mask);
uint32_t dsa_perfmon_overflowed(const dsa_perfmon *p);
void dsa_perfmon_clear_overflowed(dsa_perfmon *p, uint32_t mask);
/* Is there an overflow to tell the guest of? Each is said once. */
bool dsa_perfmon_interrupts(dsa_perfmon *p);
/* A descriptor for WQ `wq`, which was not enabled: Retry of a shared one, else it was discarded. */
void dsa_perfmon_refused(dsa_perfmon *p, uint32_t wq, uint32_t portal, bool shared,
                         uint32_t pasid);

/* cffi: end */

#endif
