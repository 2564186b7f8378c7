/*
 * Completion queues, doorbells as the sweep sees them, and interrupts. A queue in memory that is not to
 * be reached, or doorbell buffers that are not, end the controller (CSTS.CFS; NVMe 1.4, 9.5).
 */
#include "engine.h"

enum { MORE = 1 << 13 /* of the Status Field: the Error Information log has an entry */ };

void nvme_die(nvme_sq *q, uint32_t queue, uint64_t address, int error)
{
    nvme_controller *c = q->controller;
    const nvme_fatal fatal = {.address = address, .queue = queue, .error = error};

    if (!c->fatal) {
        c->fatal = true;
        (void)c->services->report(q->worker, NVME_REPORT_FATAL, &fatal, sizeof(fatal));
    }
    nvme_drop(q);
}

/* ---- doorbells ------------------------------------------------------------------------------- */

int nvme_doorbell(nvme_sq *q, uint32_t doorbell, uint32_t *value)
{
    const nvme_controller *c = q->controller;
    int error;

    if (c->shadow == 0) {
        /* Pairs with the guest's write barrier before its store (Linux: writel): the entries that it
         * has written are seen, and those that it is done with are no longer read. */
        *value = atomic_load_explicit(&c->words[doorbell], memory_order_acquire);
        return 0;
    }
    error = nvme_load(q, c->shadow + doorbell * sizeof(uint32_t), value);
    if (error != 0) {
        nvme_die(q, doorbell / 2, c->shadow, error);
    }
    return error;
}

int nvme_publish(nvme_sq *q, uint32_t doorbell, uint32_t value)
{
    const nvme_controller *c = q->controller;
    int error = nvme_store_word(q, c->eventidx + doorbell * sizeof(uint32_t), value);

    if (error != 0) {
        nvme_die(q, doorbell / 2, c->eventidx, error);
    }
    return error;
}

static uint32_t distance(uint32_t from, uint32_t to, uint32_t entries)
{
    return to >= from ? to - from : to + entries - from;
}

/* Looks where the head is now: true if it has moved. */
static bool refresh(nvme_sq *q)
{
    nvme_cq *cq = q->cq;
    uint32_t doorbell = 2 * cq->id + 1;
    uint32_t head;

    if (nvme_doorbell(q, doorbell, &head) != 0 || head == cq->head) {
        return false;
    }
    if (head >= cq->entries ||
        distance(cq->head, head, cq->entries) > distance(cq->head, cq->tail, cq->entries)) {
        const nvme_bad_doorbell bad = {.doorbell = doorbell, .value = head};

        if (head != cq->bad_head) {
            cq->bad_head = head;
            (void)q->controller->services->report(q->worker, NVME_REPORT_DOORBELL, &bad,
                                                  sizeof(bad));
        }
        return false;
    }
    cq->bad_head = NVME_NONE;
    cq->head = head;
    return true;
}

static uint32_t places_in(const nvme_cq *cq)
{
    return cq->entries - 1 - distance(cq->head, cq->tail, cq->entries);
}

/* Not whether the head has moved now: another queue of this CQ may have seen that. */
bool nvme_cq_room(nvme_sq *q)
{
    (void)refresh(q);
    return !q->controller->fatal && places_in(q->cq) != 0;
}

/*
 * While the queues are looked at, the guest need not tell us of the head: the event index is kept half
 * a lap before it.
 */
static void keep_event_away(nvme_sq *q)
{
    nvme_cq *cq = q->cq;

    if (distance(cq->head, cq->eventidx, cq->entries) <=
        distance(cq->head, cq->tail, cq->entries)) {
        uint32_t away = (cq->tail + cq->entries / 2) % cq->entries;

        (void)refresh(q);
        if (!q->controller->fatal && nvme_publish(q, 2 * cq->id + 1, away) == 0) {
            cq->eventidx = away;
        }
    }
}

/* ---- completions ----------------------------------------------------------------------------- */

/* Starting LBA, of commands that have one: what was refused may never have come to be t->at. */
static uint64_t first_block(const nvme_task *t)
{
    switch (t->c.opcode) {
    case NVME_READ:
    case NVME_WRITE:
    case NVME_COMPARE:
    case NVME_WRITE_ZEROES:
    case NVME_VERIFY:
        return (uint64_t)t->c.cdw11 << 32 | t->c.cdw10;
    default:
        return 0;
    }
}

static bool report(nvme_sq *q, const nvme_task *t, int status)
{
    const nvme_error error = {
        .lba = first_block(t),
        .nsid = t->c.nsid,
        .sqid = (uint16_t)q->id,
        .cid = t->c.cid,
        .status = (uint16_t)((uint32_t)(status | MORE) << 1),
        .location = t->location};

    return q->controller->services->report(q->worker, NVME_REPORT_ERROR, &error, sizeof(error));
}

void nvme_complete(nvme_sq *q, nvme_task *t, int status)
{
    nvme_counters *counters = &q->controller->counters;

    if (status == NVME_SUCCESS) {
        if (t->c.opcode == NVME_READ) {
            nvme_add(&counters->bytes_read, t->length);
        } else if (t->c.opcode == NVME_WRITE) {
            nvme_add(&counters->bytes_written, t->length);
        }
    } else {
        nvme_add(&counters->errors, 1);
        if (status == NVME_WRITE_FAULT || status == NVME_UNRECOVERED_READ) {
            nvme_add(&counters->media_errors, 1);
        }
        if (report(q, t, status)) {
            status |= MORE;
        }
    }
    q->done[q->n_done++] = (nvme_completion){
        .sqid = (uint16_t)q->id, .cid = t->c.cid, .status = (uint16_t)((uint32_t)status << 1)};
}

struct posting {
    uint64_t *to;
    const nvme_completion *from;
    uint32_t count;
    uint16_t phase;
    uint16_t sqhd;
};

static int post(void *argument)
{
    const struct posting *p = argument;

    for (uint32_t i = 0; i < p->count; i++) {
        const nvme_completion *from = &p->from[i];
        uint64_t second = (uint64_t)(from->status | p->phase) << 48 | (uint64_t)from->cid << 32 |
                          (uint32_t)from->sqid << 16 | p->sqhd;

        __atomic_store_n(&p->to[2 * i], from->result, __ATOMIC_RELAXED);
        /* The phase is in this word, last: pairs with the guest's read barrier after it has seen
         * the phase (Linux: dma_rmb); the data come before it, too. */
        __atomic_store_n(&p->to[2 * i + 1], second, __ATOMIC_RELEASE);
    }
    return 0;
}

/* A run of completions that lie in one piece; how many, 0 if the queue is not to be reached. */
static uint32_t post_run(nvme_sq *q, const nvme_completion *from, uint32_t count)
{
    const vdcm_services *s = q->controller->services;
    nvme_cq *cq = q->cq;
    struct posting p = {.from = from, .count = count, .phase = cq->phase};
    uint64_t address = cq->address + (uint64_t)cq->tail * sizeof(*from);
    void *memory;
    uint64_t here;
    int error;

    if (p.count > cq->entries - cq->tail) {
        p.count = cq->entries - cq->tail;
    }
    error = nvme_reach(q, address, p.count * sizeof(*from), true, &memory, &here);
    p.to = memory;
    p.count = (uint32_t)(here / sizeof(*from));
    p.sqhd = (uint16_t)atomic_load_explicit(&q->head, memory_order_relaxed);
    if (error == 0) {
        error = s->guarded(q->worker, post, &p);
    }
    if (error != 0) {
        nvme_die(q, cq->id, address, error);
        return 0;
    }
    cq->tail += p.count;
    if (cq->tail == cq->entries) {
        cq->tail = 0;
        cq->phase ^= 1;
    }
    nvme_add(&q->controller->counters.posts, 1);
    return p.count;
}

static uint64_t now_ns(const nvme_cq *cq)
{
    return cq->controller->services->now();
}

static bool coalesces(const nvme_cq *cq)
{
    const nvme_settings *s = &cq->controller->settings;

    return cq->coalesced && s->coalesce_threshold > 1 && s->coalesce_us != 0;
}

void nvme_post(nvme_sq *q)
{
    nvme_cq *cq = q->cq;
    uint32_t posted = 0;

    while (posted < q->n_done) {
        uint32_t places = places_in(cq);
        uint32_t count = q->n_done - posted;

        /* Never more than the guest has room for: else it would take an old one for a new one. */
        if (places < count && !refresh(q) && places == 0) {
            q->full = !q->controller->fatal;
            break;
        }
        places = places_in(cq);
        count = post_run(q, &q->done[posted], count < places ? count : places);
        if (count == 0) {
            return; /* and everything was dropped */
        }
        posted += count;
    }
    if (posted == 0) {
        nvme_add(&q->controller->counters.full, q->full);
        return;
    }
    q->n_done -= posted;
    memmove(q->done, &q->done[posted], q->n_done * sizeof(q->done[0]));
    atomic_store_explicit(&q->completed,
                          atomic_load_explicit(&q->completed, memory_order_relaxed) + posted,
                          memory_order_relaxed);
    if (cq->interrupts) {
        if (cq->gathered == 0 && coalesces(cq)) {
            cq->since = now_ns(cq);
        }
        cq->gathered += posted;
    }
    if (q->controller->shadow != 0) {
        keep_event_away(q);
    }
}

/* Interrupt Coalescing (5.21.1.8) counts what one queue has, not what others of its vector have. */
static bool held_back(const nvme_cq *cq)
{
    const nvme_settings *s = &cq->controller->settings;

    return coalesces(cq) && cq->gathered < s->coalesce_threshold &&
           now_ns(cq) - cq->since < (uint64_t)s->coalesce_us * 1000;
}

/* Called a short while ago, the guest has not moved the head since. It is on its way, and will come
 * upon what is posted meanwhile. */
static bool on_its_way(const nvme_cq *cq)
{
    return cq->called != 0 && cq->called_at_head == cq->head &&
           now_ns(cq) - cq->called < (uint64_t)cq->controller->settings.recall_us * 1000;
}

void nvme_signal(nvme_sq *q)
{
    nvme_controller *c = q->controller;
    nvme_cq *cq = q->cq;

    if (cq->gathered == 0 || held_back(cq)) {
        return;
    }
    (void)refresh(q);
    if (on_its_way(cq)) {
        return;
    }
    cq->gathered = 0;
    if (cq->head == cq->tail) {
        return; /* it has seen all of them */
    }
    cq->called = now_ns(cq);
    cq->called_at_head = cq->head;
    nvme_add(&c->counters.interrupts, 1);
    (void)c->services->raise(q->worker, 0);
}
