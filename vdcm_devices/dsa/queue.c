/*
 * The queue of one ADI: what is accepted through its portals, and run() of the sweep. A shared WQ
 * bounds the entries of all its queues together; each ADI has a FIFO of its own, so that one can be
 * aborted, and be run within its share, without a look at the others.
 */
#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "engine.h"

_Static_assert(sizeof(dsa_descriptor) == 64, "as the guest lays it out");
_Static_assert(sizeof(dsa_completion) == 32, "as the guest lays it out");
_Static_assert(sizeof(((dsa_counters *)0)->bytes) == DSA_OPERATIONS * sizeof(uint64_t),
               "one for each operation");

dsa_wq *dsa_wq_new(uint32_t size, uint32_t threshold, uint32_t reserved)
{
    dsa_wq *wq;

    if (threshold == 0 || threshold > size || size > DSA_MAX_SIZE) {
        errno = EINVAL;
        return NULL;
    }
    wq = calloc(1, sizeof(*wq));
    if (wq != NULL) {
        wq->size = size;
        wq->threshold = threshold;
        wq->reserved = reserved;
    }
    return wq;
}

void dsa_wq_free(dsa_wq *wq)
{
    free(wq);
}

uint32_t dsa_wq_occupancy(const dsa_wq *wq)
{
    return atomic_load_explicit(&wq->occupancy, memory_order_relaxed);
}

/* Of `held` entries of one queue. */
static int32_t beyond_reserved(const dsa_wq *wq, uint32_t held)
{
    return held > wq->reserved ? (int32_t)(held - wq->reserved) : 0;
}

/*
 * Two threads do this to one queue, one of them holds and one lets go. Each changes `common` by what
 * its own change of `held` stands for, so that the sum is right whoever comes first; only for the
 * moment in between it may be off, below 0 too, and a Retry come that need not.
 */
bool dsa_hold(dsa_queue *q, uint32_t count)
{
    dsa_wq *wq = q->wq;
    uint32_t held = atomic_fetch_add_explicit(&q->entries_held, count, memory_order_relaxed);
    int32_t more = beyond_reserved(wq, held + count) - beyond_reserved(wq, held);
    uint64_t reserved = (uint64_t)wq->reserved *
                        atomic_load_explicit(&wq->queues, memory_order_relaxed);
    int32_t common = atomic_fetch_add_explicit(&wq->common, more, memory_order_relaxed);

    return more == 0 || (int64_t)common + more + (int64_t)reserved <= (int64_t)wq->size;
}

void dsa_let_go(dsa_queue *q, uint32_t count)
{
    dsa_wq *wq = q->wq;
    uint32_t held = atomic_fetch_sub_explicit(&q->entries_held, count, memory_order_relaxed);

    atomic_fetch_sub_explicit(&wq->common,
                              beyond_reserved(wq, held) - beyond_reserved(wq, held - count),
                              memory_order_relaxed);
}

dsa_queue *dsa_queue_new(dsa_wq *wq, uintptr_t services)
{
    const vdcm_services *table = (const vdcm_services *)services;
    dsa_queue *q;

    if (table == NULL || table->abi != VDCM_FASTPATH_ABI) {
        errno = EINVAL;
        return NULL;
    }
    q = calloc(1, sizeof(*q));
    if (q != NULL) {
        q->wq = wq;
        q->services = table;
        atomic_flag_clear(&q->lock);
        if (wq != NULL) {
            atomic_fetch_add_explicit(&wq->queues, 1, memory_order_relaxed);
        }
    }
    return q;
}

uint32_t dsa_queue_occupancy(const dsa_queue *q)
{
    return atomic_load_explicit(&q->tail, memory_order_acquire) -
           atomic_load_explicit(&q->head, memory_order_acquire);
}

/* Empties the FIFO; how many there were. */
static uint32_t drop(dsa_queue *q)
{
    uint32_t count = dsa_queue_occupancy(q);

    atomic_fetch_add_explicit(&q->head, count, memory_order_release);
    if (q->wq != NULL) {
        atomic_fetch_sub_explicit(&q->wq->occupancy, count, memory_order_release);
        dsa_let_go(q, count);
    }
    return count;
}

void dsa_queue_free(dsa_queue *q)
{
    if (q != NULL) {
        dsa_queue_shut(q);
        drop(q);
        if (q->wq != NULL) {
            atomic_fetch_sub_explicit(&q->wq->queues, 1, memory_order_relaxed);
        }
        free(q->entries);
        free(q);
    }
}

static bool has_work(const void *queue)
{
    const dsa_queue *q = queue;

    return q->busy || q->batch.active || dsa_queue_occupancy(q) != 0;
}

int dsa_queue_configure(dsa_queue *q, const dsa_settings *settings)
{
    uint32_t size = q->wq != NULL ? q->wq->size : settings->size;
    uint32_t capacity = 1;
    dsa_descriptor *entries;

    if (has_work(q)) {
        return -EBUSY;
    }
    if (size == 0 || size > DSA_MAX_SIZE || settings->max_transfer == 0 ||
        settings->max_transfer > UINT32_C(1) << DSA_MAX_TRANSFER_SHIFT ||
        settings->max_batch == 0 || settings->max_batch > UINT32_C(1) << DSA_MAX_BATCH_SHIFT) {
        return -EINVAL;
    }
    while (capacity < size) {
        capacity *= 2;
    }
    entries = aligned_alloc(sizeof(*entries), capacity * sizeof(*entries));
    if (entries == NULL) {
        return -ENOMEM;
    }
    free(q->entries);
    q->entries = entries;
    q->capacity = capacity;
    q->settings = *settings;
    q->settings.size = size;
    return 0;
}

int dsa_queue_handle(dsa_queue *q, uint32_t handle, int32_t message, uint32_t pasid)
{
    if (handle >= DSA_HANDLES || message == INT32_MAX) {
        return -EINVAL;
    }
    /* Zeroed memory means that no handle is valid. */
    atomic_store_explicit(&q->handles[handle],
                          message < 0 ? 0 : (uint64_t)(message + 1) << 32 | pasid,
                          memory_order_relaxed);
    return 0;
}

int dsa_queue_portal(dsa_queue *q, uint32_t portal, uintptr_t page)
{
    if (portal >= DSA_PORTALS || page % DSA_PAGE != 0) {
        return -EINVAL;
    }
    q->portals[portal].page = (uint8_t *)page;
    q->portals[portal].next = 0;
    return 0;
}

void dsa_queue_set_perfmon(dsa_queue *q, dsa_perfmon *perfmon)
{
    q->perfmon = perfmon;
}

/* ---- accepting ------------------------------------------------------------------------------- */

/* An entry of the WQ. A limited portal, one with an odd number, gets less of a shared one (5.3). */
static bool take_entry(dsa_queue *q, uint32_t portal)
{
    uint32_t limit;
    uint32_t now;

    if (q->wq == NULL) {
        return dsa_queue_occupancy(q) < q->settings.size;
    }
    limit = portal % 2 != 0 ? q->wq->threshold : q->wq->size;
    now = dsa_hold(q, 1) ? atomic_load_explicit(&q->wq->occupancy, memory_order_relaxed) : limit;
    while (now < limit) {
        /* Pairs with the release of whoever gave the entry back: its FIFO slot has been read. */
        if (atomic_compare_exchange_weak_explicit(&q->wq->occupancy, &now, now + 1,
                                                  memory_order_acquire, memory_order_relaxed)) {
            return true;
        }
    }
    dsa_let_go(q, 1);
    return false;
}

/* With the lock. */
static bool accept(dsa_queue *q, vdcm_worker *worker, uint32_t portal, const dsa_descriptor *d)
{
    uint32_t tail = atomic_load_explicit(&q->tail, memory_order_relaxed);

    if (!take_entry(q, portal)) {
        return false;
    }
    q->entries[tail & (q->capacity - 1)] = *d;
    /* Pairs with the acquire in next(). */
    atomic_store_explicit(&q->tail, tail + 1, memory_order_release);
    dsa_count_accepted(q, worker, portal, d);
    return true;
}

int dsa_submit(dsa_queue *q, uint32_t portal, const void *descriptor)
{
    dsa_descriptor d;
    bool accepted;

    if (portal >= DSA_PORTALS || q->capacity == 0) {
        return -EINVAL;
    }
    memcpy(&d, descriptor, sizeof(d));
    while (atomic_flag_test_and_set_explicit(&q->lock, memory_order_acquire)) {
        sched_yield(); /* take() has it for as long as a page of slots takes */
    }
    accepted = accept(q, NULL, portal, &d);
    if (!accepted) {
        dsa_count_full(q, NULL, portal, &d);
    }
    atomic_flag_clear_explicit(&q->lock, memory_order_release);
    return accepted ? 0 : -EAGAIN;
}

/*
 * The next slots of one direct portal. Word 0 is the doorbell: the guest writes it last, non-zero;
 * we answer with 0 for accepted, all ones for Retry. It is read once, and so are the others.
 */
static bool take_portal(dsa_queue *q, vdcm_worker *worker, uint32_t portal)
{
    bool any = false;

    for (uint32_t i = 0; i < DSA_SLOTS; i++) {
        uint32_t next = q->portals[portal].next;
        uint64_t *slot = (uint64_t *)(q->portals[portal].page + next * sizeof(dsa_descriptor));
        /* Pairs with the release of the guest's store to word 0. */
        uint64_t words[8] = {__atomic_load_n(&slot[0], __ATOMIC_ACQUIRE)};
        dsa_descriptor d;

        if (words[0] == 0 || words[0] == UINT64_MAX) {
            break;
        }
        for (int k = 1; k < 8; k++) {
            words[k] = __atomic_load_n(&slot[k], __ATOMIC_RELAXED);
        }
        memcpy(&d, words, sizeof(d));
        if (!accept(q, worker, portal, &d)) {
            if (q->wq != NULL) {
                dsa_count_full(q, worker, portal, &d);
                __atomic_store_n(&slot[0], UINT64_MAX, __ATOMIC_RELEASE);
            }
            break; /* a dedicated WQ takes it when there is room */
        }
        /* After the loads: pairs with the guest's acquire before it writes words 1 to 7 again. */
        __atomic_store_n(&slot[0], 0, __ATOMIC_RELEASE);
        q->portals[portal].next = (next + 1) % DSA_SLOTS;
        any = true;
    }
    return any;
}

static bool take(void *queue, vdcm_worker *worker)
{
    dsa_queue *q = queue;
    bool any = false;

    if (q->capacity == 0) {
        return false;
    }
    for (uint32_t portal = 0; portal < DSA_PORTALS; portal++) {
        if (q->portals[portal].page == NULL) {
            continue;
        }
        /* The control thread may be asleep with it: then the next sweep does this. */
        if (atomic_flag_test_and_set_explicit(&q->lock, memory_order_acquire)) {
            return any;
        }
        any |= take_portal(q, worker, portal);
        atomic_flag_clear_explicit(&q->lock, memory_order_release);
    }
    return any;
}

/* ---- running --------------------------------------------------------------------------------- */

/* Makes the next descriptor of the FIFO the work. */
static bool next(dsa_queue *q)
{
    uint32_t head = atomic_load_explicit(&q->head, memory_order_relaxed);

    if (atomic_load_explicit(&q->tail, memory_order_acquire) == head) {
        return false;
    }
    dsa_begin(&q->work, &q->entries[head & (q->capacity - 1)], false);
    q->busy = true;
    dsa_count_dispatched(q, &q->work);
    atomic_store_explicit(&q->head, head + 1, memory_order_release);
    if (q->wq != NULL) {
        atomic_fetch_sub_explicit(&q->wq->occupancy, 1, memory_order_release);
        dsa_let_go(q, 1);
    }
    return true;
}

/* Goes on with the work for about `limit` units; what it did. */
static uint64_t advance(dsa_queue *q, uint64_t limit)
{
    dsa_work *w = &q->work;
    uint64_t units = 0;
    int status = DSA_MORE;

    dsa_bind(q, w);
    if (!w->started) {
        status = dsa_check(q, w);
        w->started = true;
    }
    if (status == DSA_MORE) {
        status = w->op->step(q, w, limit, &units);
    }
    if (status > 0) {
        dsa_finish(q, w, status);
        units += DSA_OVERHEAD;
    }
    return units;
}

/* What it did besides, that takes time and moves nothing. */
static uint64_t cost_of_cuts(dsa_queue *q)
{
    uint64_t units = q->cuts * DSA_CUT;

    q->cuts = 0;
    return units;
}

static uint64_t run(void *queue, vdcm_worker *worker, uint64_t budget)
{
    dsa_queue *q = queue;
    uint64_t units = 0;

    q->worker = worker;
    q->held = 0;
    q->record = NULL;
    while (units < budget) {
        uint64_t limit = budget - units;
        uint64_t did;

        if (!q->busy && q->batch.active && !dsa_batch_next(q)) {
            units += DSA_OVERHEAD + cost_of_cuts(q);
            continue;
        }
        if (!q->busy && !next(q)) {
            break;
        }
        limit = limit < DSA_PAGE ? DSA_PAGE : limit > DSA_CHUNK ? DSA_CHUNK : limit;
        did = advance(q, limit) + cost_of_cuts(q);
        /* A try that found memory gone does nothing, but is not for nothing. */
        units += did != 0 ? did : 1;
        q->held += did;
        if (q->held + DSA_CHUNK > VDCM_HOLD_LIMIT) {
            dsa_leave(q);
        }
    }
    dsa_leave(q);
    q->worker = NULL;
    return units;
}

static void abort_all(void *queue, vdcm_worker *worker)
{
    dsa_queue *q = queue;
    uint64_t count = drop(q) + q->busy + q->batch.active;

    (void)worker;
    /* No record, no interrupt (3.15); what has been written already, stays written. */
    q->busy = false;
    q->batch.active = false;
    dsa_add(&q->counters.aborted, count);
}

void dsa_queue_count(const dsa_queue *q, dsa_counters *out)
{
    const uint64_t *from = (const uint64_t *)&q->counters;
    uint64_t *to = (uint64_t *)out;

    for (size_t i = 0; i < sizeof(*out) / sizeof(*to); i++) {
        to[i] = __atomic_load_n(&from[i], __ATOMIC_RELAXED);
    }
}

uintptr_t dsa_fastpath(void)
{
    static const vdcm_fastpath table = {.abi = VDCM_FASTPATH_ABI,
                                        .name = "dsa",
                                        .take = take,
                                        .run = run,
                                        .pending = has_work,
                                        .abort = abort_all};

    return (uintptr_t)&table;
}
