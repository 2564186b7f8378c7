/*
 * A submission queue: what the sweep calls. take() sees that the tail has moved, run() fetches entries
 * in runs, executes them in order and posts what has ended in runs, too. Commands to files leave run()
 * as requests, and end when these have (tasks.c).
 */
#include <errno.h>
#include <stdlib.h>

#include "engine.h"

static uint32_t load(const _Atomic uint32_t *word)
{
    return atomic_load_explicit(word, memory_order_relaxed);
}

static void store(_Atomic uint32_t *word, uint32_t value)
{
    atomic_store_explicit(word, value, memory_order_relaxed);
}

/* ---- fetching and executing ------------------------------------------------------------------ */

/* Is anything accepted that was not fetched? */
static bool waiting(const nvme_sq *q)
{
    return load(&q->head) != load(&q->tail);
}

static bool fetch(nvme_sq *q)
{
    uint32_t head = load(&q->head);
    uint32_t tail = load(&q->tail);
    uint32_t count = tail >= head ? tail - head : q->entries - head;
    uint64_t address = q->address + (uint64_t)head * sizeof(nvme_command);
    void *memory;
    uint64_t here;
    int error;

    if (count == 0) {
        return false;
    }
    if (count > NVME_FETCH) {
        count = NVME_FETCH;
    }
    error = nvme_reach(q, address, count * sizeof(nvme_command), false, &memory, &here);
    if (error == 0) {
        count = (uint32_t)(here / sizeof(nvme_command)); /* mappings are of whole pages */
        error = nvme_copy(q, q->fetched, memory, count * sizeof(nvme_command));
    }
    if (error != 0) {
        nvme_die(q, q->id, address, error);
        return false;
    }
    q->next = 0;
    q->count = count;
    store(&q->head, head + count == q->entries ? 0 : head + count);
    nvme_add(&q->controller->counters.fetches, 1);
    return true;
}

static bool in_file(const nvme_sq *q, const nvme_command *c)
{
    const nvme_namespace *n = c->nsid <= NVME_MAX_NAMESPACES ? &q->controller->namespaces[c->nsid]
                                                             : NULL;

    return q->files != NULL && (n == NULL || (n->store != NULL && n->memory == NULL));
}

/* Begins the next command; false if it has to wait. */
static bool begin(nvme_sq *q, uint64_t *units)
{
    const nvme_command *c = &q->fetched[q->next];
    bool file = in_file(q, c);
    nvme_task *t = file ? nvme_task_free(q) : &q->current;
    int status;

    if (t == NULL) {
        q->no_task = true;
        return false;
    }
    t->c = *c;
    q->next++;
    *units += NVME_OVERHEAD;
    status = nvme_check(q, t);
    if (status != NVME_MORE) {
        nvme_complete(q, t, status);
    } else if (!file) {
        q->busy = true;
    } else {
        nvme_task_begin(q, t, units);
    }
    return true;
}

static void advance(nvme_sq *q, uint64_t limit, uint64_t *units)
{
    int status;

    limit = limit < NVME_PAGE ? NVME_PAGE : limit > NVME_CHUNK ? NVME_CHUNK : limit;
    status = nvme_memory_step(q, &q->current, limit, units);
    if (status != NVME_MORE) {
        q->busy = false;
        nvme_complete(q, &q->current, status);
    }
}

static void count_under_way(nvme_sq *q)
{
    store(&q->under_way, q->count - q->next + q->busy + q->n_active + q->n_done);
    if (q->files != NULL) {
        nvme_tasks_count(q);
    }
}

/* ---- what the sweep calls -------------------------------------------------------------------- */

static bool accept(nvme_sq *q)
{
    uint32_t tail;

    if (nvme_doorbell(q, 2 * q->id, &tail) != 0 || tail == load(&q->tail)) {
        return false;
    }
    if (tail >= q->entries) {
        const nvme_bad_doorbell bad = {.doorbell = 2 * q->id, .value = tail};

        if (tail != q->bad_tail) {
            q->bad_tail = tail;
            (void)q->controller->services->report(q->worker, NVME_REPORT_DOORBELL, &bad,
                                                  sizeof(bad));
        }
        return false;
    }
    q->bad_tail = NVME_NONE;
    store(&q->tail, tail);
    if (q->controller->shadow != 0) {
        uint32_t ahead = q->eventidx > tail ? q->eventidx - tail : q->eventidx + q->entries - tail;

        /* The guest need not tell us while we look: the event index stays far ahead of it. */
        if (ahead <= q->entries / 2) {
            uint32_t away = tail == 0 ? q->entries - 1 : tail - 1;

            if (nvme_publish(q, 2 * q->id, away) == 0) {
                q->eventidx = away;
            }
        }
    }
    return true;
}

static bool take(void *queue, vdcm_worker *worker)
{
    nvme_sq *q = queue;
    bool any;

    if (q->controller->fatal) {
        return false;
    }
    q->worker = worker;
    any = accept(q);
    if (q->full && nvme_cq_room(q)) {
        q->full = false;
        any = true;
    }
    nvme_signal(q);
    return any;
}

static uint64_t run(void *queue, vdcm_worker *worker, uint64_t budget)
{
    nvme_sq *q = queue;
    uint64_t units = 0;

    q->worker = worker;
    q->held = 0;
    if (q->files != NULL) {
        units += nvme_tasks_go_on(q, budget);
    }
    while (units < budget && !q->controller->fatal) {
        if (q->n_done >= NVME_POST) {
            nvme_post(q);
            if (q->full) {
                break;
            }
        }
        if (q->busy) {
            advance(q, budget - units, &units);
        } else if ((q->next == q->count && !fetch(q)) || !begin(q, &units)) {
            break;
        }
        units += q->cuts * NVME_CUT;
        q->cuts = 0;
    }
    if (q->files != NULL) {
        nvme_channel_push(q->files->channel);
    }
    if (q->n_done != 0) {
        nvme_post(q);
    }
    nvme_signal(q);
    count_under_way(q);
    return units != 0 ? units : 1;
}

static bool ready(const void *queue)
{
    const nvme_sq *q = queue;

    if (q->controller->fatal) {
        return false;
    }
    if (q->files != NULL && nvme_channel_finished(q->files->channel)) {
        return true;
    }
    return !q->full && (q->n_done != 0 || q->busy ||
                        (!q->no_task && (q->next != q->count || waiting(q))));
}

static bool pending(const void *queue)
{
    const nvme_sq *q = queue;

    return q->next != q->count || q->busy || q->n_done != 0 || q->n_active != 0 || waiting(q);
}

static bool rest(void *queue, vdcm_worker *worker)
{
    nvme_sq *q = queue;
    nvme_controller *c = q->controller;
    nvme_cq *cq = q->cq;

    if (c->fatal) {
        return true;
    }
    q->worker = worker;
    if (q->files != NULL &&
        !nvme_channel_arm(q->files->channel, c->services->kick, c->services->handle(worker))) {
        return false;
    }
    if (c->shadow != 0) {
        uint32_t tail = load(&q->tail);

        if (nvme_publish(q, 2 * q->id, tail) != 0 ||
            (q->full && nvme_publish(q, 2 * cq->id + 1, cq->head) != 0)) {
            return true;
        }
        q->eventidx = tail;
        cq->eventidx = q->full ? cq->head : cq->eventidx;
        /* Our stores come before our loads, all being sequentially consistent; the guest has a full
         * barrier between its store of the shadow doorbell and its load of the event index (Linux:
         * mb). So one of us sees the other's. */
        if (accept(q) || (q->full && nvme_cq_room(q))) {
            return false; /* take() is going to see it, too */
        }
    }
    return cq->gathered == 0; /* an interrupt that is held back has its time */
}

void nvme_drop(nvme_sq *q)
{
    uint32_t fetched = q->count - q->next + q->busy + q->n_active + q->n_done;

    if (q->files != NULL) {
        nvme_tasks_drop(q);
    }
    nvme_add(&q->controller->counters.aborted, fetched);
    q->next = q->count = q->n_done = q->n_active = 0;
    q->busy = q->full = q->no_task = false;
    store(&q->head, load(&q->tail));
    count_under_way(q);
}

static void abort_all(void *queue, vdcm_worker *worker)
{
    (void)worker;
    nvme_drop(queue);
}

static void closed(void *queue)
{
    nvme_sq *q = queue;

    q->engine = NULL;
    if (q->files != NULL) {
        nvme_channel_disarm(q->files->channel);
    }
}

uintptr_t nvme_fastpath(void)
{
    static const vdcm_fastpath table = {.abi = VDCM_FASTPATH_ABI,
                                        .name = "nvme",
                                        .take = take,
                                        .run = run,
                                        .pending = pending,
                                        .abort = abort_all,
                                        .ready = ready,
                                        .rest = rest,
                                        .closed = closed};

    return (uintptr_t)&table;
}

/* ---- as the control thread has it ------------------------------------------------------------ */

nvme_sq *nvme_sq_new(nvme_controller *c, uint32_t id, uint64_t address, uint32_t entries,
                     nvme_cq *cq)
{
    nvme_sq *q;

    errno = nvme_check_queue(id, address, entries, id <= NVME_MAX_QUEUES ? c->sqs[id] : NULL);
    if (errno == 0 && (cq == NULL || cq->controller != c)) {
        errno = EINVAL;
    }
    if (errno != 0) {
        return NULL;
    }
    q = aligned_alloc(_Alignof(nvme_sq), sizeof(*q));
    if (q == NULL) {
        return NULL;
    }
    memset(q, 0, sizeof(*q));
    q->controller = c;
    q->cq = cq;
    q->id = id;
    q->entries = entries;
    q->bad_tail = NVME_NONE;
    q->address = address;
    q->current.buffer = q->page;
    if (nvme_uses_files(c)) {
        int error = nvme_tasks_open(q);

        if (error != 0) {
            free(q);
            errno = -error;
            return NULL;
        }
    }
    cq->users++;
    c->sqs[id] = q;
    store(&c->words[2 * id], 0);
    return q;
}

void nvme_sq_set_engine(nvme_sq *q, uintptr_t engine)
{
    q->engine = (vdcm_queue *)engine;
}

void nvme_sq_free(nvme_sq *q)
{
    if (q == NULL) {
        return;
    }
    if (q->files != NULL) {
        nvme_tasks_leave(q);
    }
    q->controller->sqs[q->id] = NULL;
    q->cq->users--;
    free(q);
}

void nvme_sq_look(const nvme_sq *q, nvme_sq_state *out)
{
    out->tail = load(&q->tail);
    out->head = load(&q->head);
    out->under_way = load(&q->under_way);
    out->in_files = load(&q->in_files);
    out->completed = atomic_load_explicit(&q->completed, memory_order_relaxed);
}
