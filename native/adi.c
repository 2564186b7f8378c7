/*
 * Assignable device interfaces and their queues: whose memory and whose messages a device's C may
 * use, and in which states it is called at all (Scalable IOV, 2.2, 2.5.2, 2.6, 2.7).
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine.h"

/* ---- what a device's C calls ------------------------------------------------------------------ */

static bool may_use(const vdcm_adi *a, uint32_t pasid)
{
    if (pasid == VDCM_NO_PASID || !a->bus_master) {
        return false;
    }
    return pasid == a->primary || pasid == a->secondary ||
           (a->guest_pasids != NULL && vdcm_pasid_map_holds(a->guest_pasids, pasid));
}

static int reach(vdcm_worker *worker, uint32_t pasid, uint64_t address, uint64_t length,
                 bool write, void **memory, uint64_t *here)
{
    int error = -EPERM; /* an ADI has no way to another's memory (Scalable IOV, 2.6) */

    if (may_use(worker->adi, pasid)) {
        error = vdcm_reach(worker->reader, pasid, address, length, write, memory, here);
    }
    if (error != 0) {
        worker->adi->counters.refused++;
    } else if (write) {
        worker->adi->counters.dma_written_bytes += *here;
    } else {
        worker->adi->counters.dma_read_bytes += *here;
    }
    return error;
}

static void used(vdcm_worker *worker, int64_t read, int64_t written)
{
    worker->adi->counters.dma_read_bytes += (uint64_t)read;
    worker->adi->counters.dma_written_bytes += (uint64_t)written;
}

static void leave(vdcm_worker *worker)
{
    vdcm_leave(worker->reader);
}

static int guarded(vdcm_worker *worker, int (*body)(void *), void *argument)
{
    (void)worker;
    return vdcm_guarded(body, argument);
}

static uint32_t primary(vdcm_worker *worker)
{
    return worker->adi->primary;
}

static uint32_t secondary(vdcm_worker *worker)
{
    const vdcm_adi *a = worker->adi;

    return a->secondary != VDCM_NO_PASID ? a->secondary : a->primary;
}

static uint32_t translate(vdcm_worker *worker, uint32_t guest_pasid)
{
    vdcm_pasid_map *map = worker->adi->guest_pasids;

    return map != NULL ? vdcm_pasid_map_translate(map, guest_pasid) : VDCM_NO_PASID;
}

static int raise_message(vdcm_worker *worker, uint32_t message)
{
    vdcm_adi *a = worker->adi;

    if (message >= a->n_messages) {
        return -ERANGE; /* only messages of its own (Scalable IOV, 2.5.2) */
    }
    if (!a->bus_master) {
        return -EPERM; /* a message is a write of memory (PCIe 5.0, 7.5.1.1.3) */
    }
    a->counters.messages++;
    return vdcm_ims_raise(a->ims, a->messages[message]);
}

static bool report(vdcm_worker *worker, uint32_t code, const void *data, uint32_t size)
{
    vdcm_adi *a = worker->adi;
    vdcm_adi_report *slot;

    a->counters.reports++;
    if (a->n_reports == VDCM_REPORTS || size > VDCM_REPORT_SIZE) {
        a->counters.lost++;
        return false;
    }
    slot = &a->reports[(a->first_report + a->n_reports) % VDCM_REPORTS];
    slot->code = code;
    slot->size = size;
    memset(slot->data, 0, sizeof(slot->data));
    if (size > 0) {
        memcpy(slot->data, data, size);
    }
    a->n_reports++;
    vdcm_adi_is_ready(a);
    return true;
}

static vdcm_queue *handle(vdcm_worker *worker)
{
    return worker->queue;
}

/* The sweep's lock is held, so `queue` keeps its state meanwhile, and its ADI what it may use. */
static int on_behalf(vdcm_worker *worker, vdcm_queue *queue,
                     int (*body)(void *argument, vdcm_worker *other), void *argument)
{
    vdcm_worker other = {.reader = worker->reader, .adi = queue->adi, .queue = queue};

    if (queue->adi->sweep != worker->adi->sweep) {
        return -EXDEV;
    }
    if (queue->state != VDCM_RUNNING) {
        return -EAGAIN;
    }
    return body(argument, &other);
}

static const vdcm_services services = {
    .abi = VDCM_FASTPATH_ABI,
    .reach = reach,
    .used = used,
    .leave = leave,
    .guarded = guarded,
    .primary = primary,
    .secondary = secondary,
    .translate = translate,
    .raise = raise_message,
    .report = report,
    .handle = handle,
    .kick = vdcm_queue_kick,
    .on_behalf = on_behalf,
    .now = vdcm_now,
};

uintptr_t vdcm_services_table(void)
{
    return (uintptr_t)&services;
}

/* ---- groups ----------------------------------------------------------------------------------- */

vdcm_limit *vdcm_limit_new(void)
{
    return calloc(1, sizeof(vdcm_limit));
}

void vdcm_limit_free(vdcm_limit *limit)
{
    free(limit);
}

vdcm_group *vdcm_group_new(vdcm_sweep *s, vdcm_limit *limit)
{
    vdcm_group *g = calloc(1, sizeof(*g));

    if (g != NULL) {
        g->sweep = s;
        g->share = (vdcm_share){.ring = &s->active, .limit = limit, .weight = VDCM_DEFAULT_WEIGHT};
    }
    return g;
}

void vdcm_group_free(vdcm_group *g)
{
    if (g != NULL) {
        vdcm_sweep_lock(g->sweep);
        vdcm_deactivate(&g->share);
        vdcm_sweep_unlock(g->sweep);
        free(g);
    }
}

int vdcm_group_set_weight(vdcm_group *g, uint32_t weight)
{
    return vdcm_share_weigh(g->sweep, &g->share, weight);
}

/* ---- ADIs ------------------------------------------------------------------------------------- */

vdcm_adi *vdcm_adi_new(vdcm_sweep *s, vdcm_group *group, uint64_t id)
{
    vdcm_adi *a = calloc(1, sizeof(*a));

    if (a != NULL) {
        a->sweep = s;
        a->id = id;
        a->primary = a->secondary = VDCM_NO_PASID;
        a->share = (vdcm_share){.ring = group != NULL ? &group->share.active : &s->active,
                                .group = group != NULL ? &group->share : NULL,
                                .adi = a,
                                .limit = &a->limit,
                                .weight = VDCM_DEFAULT_WEIGHT};
    }
    return a;
}

void vdcm_adi_free(vdcm_adi *a)
{
    vdcm_adi **link;

    if (a == NULL) {
        return;
    }
    while (a->queues != NULL) {
        vdcm_queue_free(a->queues);
    }
    vdcm_sweep_lock(a->sweep);
    vdcm_deactivate(&a->share);
    if (a->sweep->ran == a) {
        a->sweep->ran = NULL;
    }
    for (link = &a->sweep->ready; *link != NULL; link = &(*link)->next_ready) {
        if (*link == a) {
            *link = a->next_ready;
            break;
        }
    }
    vdcm_sweep_unlock(a->sweep);
    free(a->messages);
    free(a);
}

void vdcm_adi_set_pasids(vdcm_adi *a, uint32_t primary_pasid, uint32_t secondary_pasid)
{
    vdcm_sweep_lock(a->sweep);
    a->primary = primary_pasid;
    a->secondary = secondary_pasid;
    vdcm_sweep_unlock(a->sweep);
}

void vdcm_adi_set_bus_master(vdcm_adi *a, bool enabled)
{
    vdcm_sweep_lock(a->sweep);
    a->bus_master = enabled;
    vdcm_sweep_unlock(a->sweep);
}

void vdcm_adi_set_guest_pasids(vdcm_adi *a, vdcm_pasid_map *map)
{
    vdcm_sweep_lock(a->sweep);
    a->guest_pasids = map;
    vdcm_sweep_unlock(a->sweep);
}

int vdcm_adi_set_messages(vdcm_adi *a, vdcm_ims *ims, const uint32_t *entries, uint32_t count)
{
    uint32_t *copy = NULL;
    uint32_t *old;

    if (count > VDCM_MAX_MESSAGES) {
        return -EINVAL;
    }
    if (count > 0) {
        copy = malloc(count * sizeof(*copy));
        if (copy == NULL) {
            return -ENOMEM;
        }
        memcpy(copy, entries, count * sizeof(*copy));
    }
    vdcm_sweep_lock(a->sweep);
    old = a->messages;
    a->ims = ims;
    a->messages = copy;
    a->n_messages = count;
    vdcm_sweep_unlock(a->sweep);
    free(old);
    return 0;
}

int vdcm_adi_set_qos(vdcm_adi *a, uint32_t weight, uint64_t rate)
{
    if (weight < 1 || weight > VDCM_MAX_WEIGHT || vdcm_limit_set(&a->limit, rate) != 0) {
        return -EINVAL;
    }
    return vdcm_share_weigh(a->sweep, &a->share, weight);
}

size_t vdcm_adi_reports(vdcm_adi *a, vdcm_adi_report *out, size_t max)
{
    size_t count = 0;

    vdcm_sweep_lock(a->sweep);
    while (count < max && a->n_reports > 0) {
        out[count++] = a->reports[a->first_report];
        a->first_report = (a->first_report + 1) % VDCM_REPORTS;
        a->n_reports--;
    }
    vdcm_sweep_unlock(a->sweep);
    return count;
}

void vdcm_adi_count(vdcm_adi *a, vdcm_adi_counters *out)
{
    vdcm_sweep_lock(a->sweep);
    *out = a->counters;
    vdcm_sweep_unlock(a->sweep);
}

/* ---- queues ----------------------------------------------------------------------------------- */

vdcm_queue *vdcm_queue_new(vdcm_adi *a, uintptr_t fastpath, uintptr_t device, bool doorbells)
{
    const vdcm_fastpath *ops = (const vdcm_fastpath *)fastpath;
    vdcm_queue *q;

    if (ops == NULL || ops->abi != VDCM_FASTPATH_ABI) {
        errno = EINVAL;
        return NULL;
    }
    q = calloc(1, sizeof(*q));
    if (q == NULL) {
        return NULL;
    }
    q->adi = a;
    q->ops = ops;
    q->device = (void *)device;
    q->patience = a->sweep->spin_ns;
    q->doorbells = doorbells;
    q->state = VDCM_STOPPED;
    vdcm_sweep_lock(a->sweep);
    if (vdcm_may_be_listed(q) && !vdcm_doorbells_reserve(a->sweep)) {
        vdcm_sweep_unlock(a->sweep);
        free(q);
        errno = ENOMEM;
        return NULL;
    }
    q->next = a->queues;
    a->queues = q;
    vdcm_sweep_unlock(a->sweep);
    return q;
}

void vdcm_queue_free(vdcm_queue *q)
{
    vdcm_sweep *s;
    vdcm_queue **link;

    if (q == NULL) {
        return;
    }
    vdcm_queue_set_state(q, VDCM_STOPPED);
    if (q->ops->closed != NULL) {
        q->ops->closed(q->device);
    }
    s = q->adi->sweep;
    vdcm_sweep_lock(s);
    for (link = &q->adi->queues; *link != q; link = &(*link)->next) {
    }
    *link = q->next;
    if (vdcm_may_be_listed(q)) {
        s->reserved--;
    }
    q->adi->turn = NULL;
    vdcm_unkick(q);
    vdcm_sweep_unlock(s);
    free(q);
}

void vdcm_queue_set_state(vdcm_queue *q, int state)
{
    vdcm_sweep *s = q->adi->sweep;

    vdcm_sweep_lock(s);
    if (q->state == VDCM_RUNNING && state != VDCM_RUNNING) {
        vdcm_doorbells_remove(q);
    }
    if (state == VDCM_RUNNING && q->state != VDCM_RUNNING) {
        q->idle_since = s->now;
        vdcm_doorbells_add(q);
    }
    q->state = state;
    if (state == VDCM_DRAINING) {
        (void)vdcm_rest(q);
    }
    vdcm_queue_look_drained(q);
    if (vdcm_runnable(q)) {
        vdcm_activate(&q->adi->share);
    }
    vdcm_sweep_unlock(s);
    vdcm_sweep_wake(s);
}

int vdcm_queue_state(vdcm_queue *q)
{
    int state;

    vdcm_sweep_lock(q->adi->sweep);
    state = q->state;
    vdcm_sweep_unlock(q->adi->sweep);
    return state;
}

void vdcm_queue_abort(vdcm_queue *q)
{
    vdcm_sweep *s = q->adi->sweep;

    vdcm_sweep_lock(s);
    s->worker.adi = q->adi;
    s->worker.queue = q;
    q->ops->abort(q->device, &s->worker);
    vdcm_leave(s->worker.reader);
    vdcm_queue_look_drained(q);
    vdcm_sweep_unlock(s);
}
