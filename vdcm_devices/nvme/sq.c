/*
 * A submission queue: what the sweep calls. take() sees that the tail has moved, run() fetches entries
 * in runs, executes them in order and posts what has ended in runs, too. Commands to files leave run()
 * as requests, and end when these have.
 */
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "engine.h"

static uint32_t load(const _Atomic uint32_t *word)
{
    return atomic_load_explicit(word, memory_order_relaxed);
}

static void store(_Atomic uint32_t *word, uint32_t value)
{
    atomic_store_explicit(word, value, memory_order_relaxed);
}

/* ---- I/O in files ---------------------------------------------------------------------------- */

static nvme_channel *new_channel(nvme_sq *q)
{
    for (uint32_t i = 1; i <= NVME_MAX_NAMESPACES; i++) {
        const nvme_namespace *n = &q->controller->namespaces[i];

        if (n->store != NULL && n->memory == NULL) {
            return nvme_channel_new(n->store->pool, NVME_TASKS);
        }
    }
    errno = EINVAL;
    return NULL;
}

int nvme_sq_open(nvme_sq *q)
{
    size_t bytes = (size_t)NVME_TASKS * NVME_CHUNK;

    if (q->channel != NULL) {
        return 0;
    }
    q->tasks = calloc(NVME_TASKS, sizeof(*q->tasks));
    q->buffers = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    q->channel = q->tasks != NULL && q->buffers != MAP_FAILED ? new_channel(q) : NULL;
    if (q->channel == NULL) {
        int error = errno;

        free(q->tasks);
        q->tasks = NULL;
        if (q->buffers != MAP_FAILED) {
            munmap(q->buffers, bytes);
        }
        return -error;
    }
    for (uint32_t i = 0; i < NVME_TASKS; i++) {
        q->tasks[i].buffer = q->buffers + (size_t)i * NVME_CHUNK;
    }
    return 0;
}

static nvme_task *free_task(nvme_sq *q)
{
    for (uint32_t i = 0; i < NVME_TASKS; i++) {
        if (!q->tasks[i].active) {
            return &q->tasks[i];
        }
    }
    return NULL;
}

static nvme_task *task_of(nvme_request *request)
{
    return (nvme_task *)(void *)((uint8_t *)request - offsetof(nvme_task, request));
}

static void count_in_files(nvme_sq *q)
{
    uint32_t count = 0;

    for (uint32_t i = 0; i < NVME_TASKS; i++) {
        count += q->tasks[i].active;
    }
    store(&q->in_files, count);
}

/* `t` has a status, or waits for its request. */
static void end_in_file(nvme_sq *q, nvme_task *t, int status)
{
    if (status == NVME_WAITS) {
        nvme_channel_submit(q->channel, &t->request);
        return;
    }
    t->active = false;
    q->n_active--;
    q->no_task = false;
    nvme_complete(q, t, status);
}

/* Goes on with what has come back from files, about `budget` units of it. */
static uint64_t take_back(nvme_sq *q, uint64_t budget)
{
    uint64_t units = 0;
    nvme_request *request;

    while (units < budget && (request = nvme_channel_take(q->channel)) != NULL) {
        nvme_task *t = task_of(request);

        if (t->dropped) {
            t->active = t->dropped = false;
            q->no_task = false;
            continue;
        }
        end_in_file(q, t, nvme_file_step(q, t, &units));
        units++;
    }
    return units;
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

    return q->channel != NULL && (n == NULL || (n->store != NULL && n->memory == NULL));
}

/* Begins the next command; false if it has to wait. */
static bool begin(nvme_sq *q, uint64_t *units)
{
    const nvme_command *c = &q->fetched[q->next];
    bool file = in_file(q, c);
    nvme_task *t = file ? free_task(q) : &q->current;
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
        t->active = true;
        q->n_active++;
        end_in_file(q, t, nvme_file_begin(q, t, units));
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
    if (q->channel != NULL) {
        count_in_files(q);
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
    if (q->channel != NULL) {
        units += take_back(q, budget);
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
    if (q->channel != NULL) {
        nvme_channel_push(q->channel);
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
    if (q->channel != NULL && nvme_channel_finished(q->channel)) {
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
    if (q->channel != NULL &&
        !nvme_channel_arm(q->channel, c->services->kick, c->services->handle(worker))) {
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

    for (uint32_t i = 0; q->channel != NULL && i < NVME_TASKS; i++) {
        q->tasks[i].dropped = q->tasks[i].active;
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
    if (q->channel != NULL) {
        nvme_channel_disarm(q->channel);
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
        int error = nvme_sq_open(q);

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
    if (q->channel != NULL) {
        uint32_t active = 0;

        for (uint32_t i = 0; i < NVME_TASKS; i++) {
            active += q->tasks[i].active;
        }
        for (; active > 0; active--) {
            while (nvme_channel_take(q->channel) == NULL) {
                nvme_channel_wait(q->channel);
            }
        }
        nvme_channel_free(q->channel);
        free(q->tasks);
        munmap(q->buffers, (size_t)NVME_TASKS * NVME_CHUNK);
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
