/*
 * Inside the data path: a queue and the work in it, and what the rooms of the engine have of each
 * other. Statuses are those of descriptor.h; a function that returns one returns DSA_MORE while
 * there is nothing to complain about.
 */
#ifndef DSA_ENGINE_H
#define DSA_ENGINE_H

#include <stdatomic.h>
#include <stddef.h>
#include <string.h>

#include "fastpath.h"
#include "queue.h"

enum {
    DSA_DEFERRED = -1, /* a batch: it ends when its descriptors have */
    DSA_MORE = 0,      /* not finished */
    DSA_CHUNK = 128 << 10, /* bytes of an operation that are done in one go */
    DSA_OVERHEAD = 64,     /* units that a descriptor costs apart from its bytes */
    DSA_CUT = 16 << 10,    /* units that a touch of memory costs that was cut short: a signal's time */
    DSA_PREFETCH = 16,     /* descriptors of a batch that are read in one go */
    DSA_PAGE = 4096        /* no mapping of guest memory is finer */
};

/* Which address of a descriptor (Table 8-13). */
enum { DSA_SOURCE = 1, DSA_SOURCE2, DSA_DESTINATION, DSA_DESTINATION2, DSA_COMPLETION };

/* Flags of Table 5-3 by groups. */
enum {
    DSA_FLAGS_CACHE = DSA_FLAG_CACHE_CONTROL | DSA_FLAG_READBACK,
    DSA_FLAGS_WRITES = DSA_FLAGS_CACHE | DSA_FLAG_STRICT_ORDERING,
    DSA_FLAGS_RECORD = DSA_FLAG_COMPLETION_VALID | DSA_FLAG_REQUEST_COMPLETION
};

typedef struct dsa_operation dsa_operation;

/* A descriptor that is being executed. */
typedef struct {
    dsa_descriptor d;
    const dsa_operation *op;
    bool started;   /* its checks are done */
    bool member;    /* of a batch */
    bool backwards;
    bool careful;   /* memory was cut short under it: page by page, to tell where */
    bool interrupt; /* was asked for, and could be had when it began */
    bool write;     /* the fault was one */
    uint8_t operand; /* that faulted */
    uint8_t result;
    uint32_t data_pasid;
    uint32_t record_pasid; /* of descriptor lists and completion records */
    uint32_t invalid_flags;
    uint32_t done; /* bytes of the source, or descriptors of the batch */
    uint64_t fault_address;
    union {
        uint32_t crc;
        uint32_t delta_size;
        uint32_t offset; /* behind the last that a delta record has had applied */
        dsa_tags source;
    };
    dsa_tags destination;
} dsa_work;

struct dsa_operation {
    uint32_t flags;    /* allowed beyond those that every operation has */
    uint32_t required;
    uint64_t reserved[8]; /* bits of the descriptor that must be 0, from word 4 on completely */
    bool sized;           /* Transfer Size is one */
    struct {
        uint8_t word; /* of the descriptor; 0: no such operand */
        uint8_t id;
        bool write;
    } operands[3]; /* of those that walk along their operands at one pace */
    /* Checks of its own; makes the work ready. */
    int (*check)(dsa_queue *q, dsa_work *w);
    /* Goes on with about `limit` bytes, DSA_PAGE or more, and adds to *units what it did. */
    int (*step)(dsa_queue *q, dsa_work *w, uint64_t limit, uint64_t *units);
    /* In guarded(): the work on one piece of memory (dsa_walk). */
    int (*body)(void *job);
};

struct dsa_wq {
    uint32_t size;
    uint32_t threshold;
    uint32_t reserved; /* entries for each queue */
    _Atomic uint32_t queues;
    _Atomic uint32_t occupancy;
    _Atomic int32_t common; /* of it, beyond what is reserved for the queue */
};

typedef struct {
    dsa_work work; /* the batch descriptor itself */
    bool active;
    bool failed; /* one of its descriptors did not succeed */
    uint32_t first; /* index of list[0] */
    uint32_t fetched;
    dsa_descriptor list[DSA_PREFETCH];
} dsa_batch;

struct dsa_queue {
    dsa_wq *wq; /* NULL: dedicated */
    const vdcm_services *services;
    struct dsa_gate *gate; /* portals.c, on the thread of the event loop */
    dsa_settings settings;
    dsa_perfmon *perfmon; /* NULL: nobody monitors */
    /* What was accepted: one consumer, run(); producers hold `lock`. The numbers run freely. */
    dsa_descriptor *entries;
    uint32_t capacity; /* a power of 2; 0: not configured */
    _Atomic uint32_t head;
    _Atomic uint32_t tail;
    _Atomic uint32_t entries_held; /* of the shared WQ, also those about to be given back */
    atomic_flag lock;
    struct {
        uint8_t *page;
        uint32_t next; /* slot */
    } portals[DSA_PORTALS];
    _Atomic uint64_t handles[DSA_HANDLES];
    /* The engine. `worker` and `record` are valid while it is called. */
    vdcm_worker *worker;
    uint64_t held;        /* units since leave() */
    uint64_t cuts;        /* touches of memory that was cut short, to be counted as work */
    uint8_t *record;      /* completion record of `work`, reached since leave() */
    bool busy;            /* `work` is being executed */
    dsa_work work;
    dsa_batch batch;
    dsa_counters counters; /* read by other threads: dsa_add() */
};

/* One writer, or numbers that may miss an event of two at once. */
static inline void dsa_add(uint64_t *counter, uint64_t n)
{
    uint64_t now = __atomic_load_n(counter, __ATOMIC_RELAXED);

    __atomic_store_n(counter, now + n, __ATOMIC_RELAXED);
}

/* ---- queue.c -------------------------------------------------------------------------------- */

/* Of a shared WQ: `count` entries more are this queue's. False: then too few are left of what is
 * reserved for others. dsa_let_go() in any case in the end. */
bool dsa_hold(dsa_queue *q, uint32_t count);
void dsa_let_go(dsa_queue *q, uint32_t count);

/* ---- perfmon.c: what happens is counted once for the host and once for the guest ------------- */

/* Has the guest enabled a counter? This is all that the data path pays while it has not. */
static inline bool dsa_monitored(const dsa_queue *q)
{
    return q->perfmon != NULL && __atomic_load_n(&q->perfmon->enabled, __ATOMIC_RELAXED) != 0;
}

/* The guest's part of it. `worker`: NULL on the control thread. */
void dsa_monitor_accepted(dsa_queue *q, vdcm_worker *worker, uint32_t portal,
                          const dsa_descriptor *d);
void dsa_monitor_full(dsa_queue *q, vdcm_worker *worker, uint32_t portal, const dsa_descriptor *d);
void dsa_monitor_dispatched(dsa_queue *q, const dsa_work *w);
/* `event`: of DSA_CATEGORY_COMPLETIONS. */
void dsa_monitor_completion(dsa_queue *q, const dsa_work *w, uint32_t event);
void dsa_monitor_end(dsa_queue *q, const dsa_work *w);

static inline void dsa_count_accepted(dsa_queue *q, vdcm_worker *worker, uint32_t portal,
                                      const dsa_descriptor *d)
{
    dsa_add(&q->counters.accepted, 1);
    if (dsa_monitored(q)) {
        dsa_monitor_accepted(q, worker, portal, d);
    }
}

/* Retry, or lost (5.3). */
static inline void dsa_count_full(dsa_queue *q, vdcm_worker *worker, uint32_t portal,
                                  const dsa_descriptor *d)
{
    dsa_add(&q->counters.retried, 1);
    if (dsa_monitored(q)) {
        dsa_monitor_full(q, worker, portal, d);
    }
}

static inline void dsa_count_dispatched(dsa_queue *q, const dsa_work *w)
{
    if (dsa_monitored(q)) {
        dsa_monitor_dispatched(q, w);
    }
}

/* ---- access.c -------------------------------------------------------------------------------- */

typedef struct {
    uint64_t address;
    uint8_t *memory;
    uint8_t id;
    bool write;
} dsa_operand;

typedef struct {
    dsa_operand operands[3];
    unsigned count;
    uint32_t length;
    uint32_t at; /* offset of the piece in the operation: phase of a pattern */
    uint32_t crc;
    const dsa_descriptor *d;
} dsa_job;

void dsa_leave(dsa_queue *q);
/* Notes the fault; its status. */
int dsa_fault(dsa_work *w, uint64_t address, bool write, uint8_t operand);
/* Reaches the operands; makes job->length what lies there in one piece. */
int dsa_reach(dsa_queue *q, dsa_work *w, dsa_job *job);
/* body(job) in guarded(): a status, or DSA_MORE with *result what it returned, or with *result
 * below 0: nothing was done, try again. */
int dsa_touch(dsa_queue *q, dsa_work *w, dsa_job *job, int (*body)(void *), int *result);
/* Copies between `buffer` and guest memory, piece by piece. The bytes that came through; if they
 * are fewer than `length`, the fault is noted. */
uint32_t dsa_read(dsa_queue *q, dsa_work *w, uint32_t pasid, uint8_t operand, uint64_t address,
                  void *buffer, uint32_t length);
uint32_t dsa_write(dsa_queue *q, dsa_work *w, uint8_t operand, uint64_t address,
                   const void *buffer, uint32_t length);
/* Is the completion record there to be written? */
bool dsa_reach_record(dsa_queue *q, const dsa_work *w);
bool dsa_write_record(dsa_queue *q, const dsa_work *w, const dsa_completion *record);

/* ---- operations.c, delta.c, dif.c, crc.c ----------------------------------------------------- */

extern const dsa_operation dsa_operations[DSA_OPERATIONS];
/* NULL for one that there is not. */
static inline const dsa_operation *dsa_operation_of(const dsa_descriptor *d)
{
    uint32_t code = dsa_opcode(d);

    return code < DSA_OPERATIONS && dsa_operations[code].step != NULL ? &dsa_operations[code]
                                                                     : NULL;
}

/* Makes `d` the work. Cleared from `op` on: for all of it compilers take an instruction that is slow
 * to begin. */
static inline void dsa_begin(dsa_work *w, const dsa_descriptor *d, bool member)
{
    w->d = *d;
    memset(&w->op, 0, sizeof(*w) - offsetof(dsa_work, op));
    w->op = dsa_operation_of(d);
    w->member = member;
}

bool dsa_overlap(uint64_t a, uint64_t a_length, uint64_t b, uint64_t b_length);

int dsa_create_delta_check(dsa_queue *q, dsa_work *w);
int dsa_create_delta_step(dsa_queue *q, dsa_work *w, uint64_t limit, uint64_t *units);
int dsa_apply_delta_check(dsa_queue *q, dsa_work *w);
int dsa_apply_delta_step(dsa_queue *q, dsa_work *w, uint64_t limit, uint64_t *units);
int dsa_dif_check(dsa_queue *q, dsa_work *w);
int dsa_dif_step(dsa_queue *q, dsa_work *w, uint64_t limit, uint64_t *units);
/* Bytes in the destination so far. */
uint64_t dsa_dif_written(const dsa_work *w);

/* CRC-32C as the division leaves it: neither seed nor result is inverted. With `bypass` bit 7 of a
 * byte comes first, not bit 0. */
uint32_t dsa_crc32c_raw(uint32_t crc, const uint8_t *data, size_t length, bool bypass);
uint32_t dsa_reverse32(uint32_t value);
uint16_t dsa_crc16_t10(uint16_t crc, const uint8_t *data, size_t length);

/* ---- check.c, complete.c, batch.c ------------------------------------------------------------ */

/* The PASIDs as they are now: they may change between two calls of the engine. */
void dsa_bind(dsa_queue *q, dsa_work *w);
/* Priv of the descriptor, or of its WQ (8.1.1). */
bool dsa_privileged(const dsa_queue *q, const dsa_work *w);
/* The message behind its interrupt handle (3.7); below 0: it has none such. */
int32_t dsa_message(dsa_queue *q, const dsa_work *w);
/* Everything that can be said against a descriptor before it is begun (5.4). */
int dsa_check(dsa_queue *q, dsa_work *w);
/* Completion record, interrupt, report, counters. */
void dsa_finish(dsa_queue *q, dsa_work *w, int status);
int dsa_batch_check(dsa_queue *q, dsa_work *w);
int dsa_batch_step(dsa_queue *q, dsa_work *w, uint64_t limit, uint64_t *units);
/* Makes the batch's next descriptor the work; false: the batch is over, and finished. */
bool dsa_batch_next(dsa_queue *q);

#endif
