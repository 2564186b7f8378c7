/*
 * Arbitration between the ADIs of a sweep that have work: deficit round robin (Shreedhar and
 * Varghese, 1995). Each visit adds weight x QUANTUM units to what an ADI may do, work takes away
 * from it, and what went beyond is owed in the next round. So shares follow the weights to within
 * one long operation, whatever the sizes of the operations, and a visit costs the same with one ADI
 * or a thousand. A rate limit is a token bucket on top. (Scalable IOV, 2.6, leaves QoS to the device.)
 */
#include "engine.h"

enum {
    QUANTUM = 1024,        /* units in a round for each unit of weight */
    MAX_BUDGET = 64 << 10, /* units in one call of a device: bounds how long anybody waits */
    MAX_DONE = 16 << 20    /* units that one call can cost: a device is believed that much */
};
#define SECOND UINT64_C(1000000000)

void vdcm_activate(vdcm_adi *a)
{
    vdcm_sweep *s = a->sweep;

    if (a->active) {
        return;
    }
    a->active = true;
    a->deficit = 0;
    if (s->active == NULL) {
        a->next_active = a->previous_active = a;
        s->active = a;
        return;
    }
    /* Before the one whose turn it is: at the end of the round. */
    a->next_active = s->active;
    a->previous_active = s->active->previous_active;
    a->previous_active->next_active = a;
    s->active->previous_active = a;
}

void vdcm_deactivate(vdcm_adi *a)
{
    vdcm_sweep *s = a->sweep;

    if (!a->active) {
        return;
    }
    a->active = false;
    if (a->next_active == a) {
        s->active = NULL;
        return;
    }
    a->previous_active->next_active = a->next_active;
    a->next_active->previous_active = a->previous_active;
    if (s->active == a) {
        s->active = a->next_active;
    }
}

bool vdcm_runnable(const vdcm_queue *q)
{
    return q->state != VDCM_STOPPED &&
           (q->ops->ready != NULL ? q->ops->ready : q->ops->pending)(q->device);
}

static vdcm_worker *work_for(vdcm_queue *queue)
{
    vdcm_worker *worker = &queue->adi->sweep->worker;

    worker->adi = queue->adi;
    worker->queue = queue;
    return worker;
}

bool vdcm_look(vdcm_queue *queue, uint64_t now)
{
    vdcm_worker *worker = work_for(queue);

    (void)queue->ops->take(queue->device, worker);
    vdcm_leave(worker->reader);
    if (!vdcm_runnable(queue)) {
        return false;
    }
    queue->idle_since = now;
    queue->rests = false;
    vdcm_activate(queue->adi);
    return true;
}

bool vdcm_rest(vdcm_queue *queue)
{
    vdcm_worker *worker = work_for(queue);
    bool rests = queue->ops->rest == NULL || queue->ops->rest(queue->device, worker);

    vdcm_leave(worker->reader);
    return rests;
}

/* Tokens up to now; the ns until there is one, 0 if there is. */
static uint64_t throttle(vdcm_adi *a, uint64_t now)
{
    uint64_t elapsed = now > a->refilled ? now - a->refilled : 0;
    int64_t burst = (int64_t)(a->rate / 100); /* 10 ms worth, so that napping loses nothing */

    if (a->rate == 0) {
        return 0;
    }
    if (burst < MAX_BUDGET) {
        burst = MAX_BUDGET;
    }
    /* Wide, and with what was left over: a limit is kept that is looked at every 100 ns, or whose
     * debt takes minutes to pay off. */
    unsigned __int128 earned = (unsigned __int128)elapsed * a->rate + a->fraction;
    if (earned / SECOND >= (uint64_t)(burst - a->tokens)) {
        a->tokens = burst;
        a->fraction = 0;
    } else {
        a->tokens += (int64_t)(earned / SECOND);
        a->fraction = (uint64_t)(earned % SECOND);
    }
    a->refilled = now;
    if (a->tokens > 0) {
        return 0;
    }
    return (uint64_t)((long double)(1 - a->tokens) * (long double)SECOND / (long double)a->rate) + 1;
}

/* A queue of `a` that has work, from its turn on; NULL if none has. */
static vdcm_queue *pick_queue(vdcm_adi *a)
{
    vdcm_queue *first = a->turn != NULL ? a->turn : a->queues;
    vdcm_queue *q = first;

    while (q != NULL) {
        if (vdcm_runnable(q)) {
            return q;
        }
        q = q->next != NULL ? q->next : a->queues;
        if (q == first) {
            break;
        }
    }
    return NULL;
}

void vdcm_queue_look_drained(vdcm_queue *q)
{
    if (q->state == VDCM_DRAINING && !q->ops->pending(q->device)) {
        q->state = VDCM_STOPPED;
        vdcm_adi_is_ready(q->adi);
    }
}

static uint64_t run(vdcm_adi *a, vdcm_queue *q, uint64_t now)
{
    vdcm_worker *worker = work_for(q);
    uint64_t budget = a->deficit < MAX_BUDGET ? (uint64_t)a->deficit : MAX_BUDGET;
    uint64_t done;

    done = q->ops->run(q->device, worker, budget);
    q->idle_since = now;
    q->rests = false;
    if (done > MAX_DONE) {
        done = MAX_DONE;
    }
    a->counters.units += done;
    a->deficit -= (int64_t)done;
    if (a->rate != 0) {
        a->tokens -= (int64_t)done;
    }
    if (q->listed) {
        (void)q->ops->take(q->device, worker); /* a busy queue need not wait for the sweep */
    }
    vdcm_leave(worker->reader);
    if (q->state == VDCM_DRAINING) {
        (void)vdcm_rest(q); /* nobody looks at it: what it waits for has to kick it */
    }
    vdcm_queue_look_drained(q);
    a->turn = q->next;
    return done;
}

uint64_t vdcm_arbitrate(vdcm_sweep *s, uint64_t now, uint64_t *wait)
{
    vdcm_adi *first_held = NULL; /* the first of a row that the rate limit holds back */

    *wait = UINT64_MAX;
    while (s->active != NULL) {
        vdcm_adi *a = s->active;
        vdcm_queue *q = pick_queue(a);
        uint64_t held;

        if (q == NULL) {
            if (a == first_held) {
                first_held = NULL;
            }
            vdcm_deactivate(a);
            continue;
        }
        held = throttle(a, now);
        if (held != 0) {
            if (a == first_held) {
                return 0; /* all of them */
            }
            if (first_held == NULL) {
                first_held = a;
            }
            *wait = held < *wait ? held : *wait;
            a->counters.throttled++;
            s->active = a->next_active;
            continue;
        }
        first_held = NULL;
        if (a->next_active == a) {
            a->deficit = MAX_BUDGET; /* nobody to share with: fewer, longer calls */
        } else if (a->deficit <= 0) {
            a->deficit += (int64_t)a->weight * QUANTUM;
            if (a->deficit <= 0) {
                s->active = a->next_active;
                continue;
            }
        }
        uint64_t done = run(a, q, now);
        if (a->deficit <= 0) {
            s->active = a->next_active; /* its round is over */
        }
        return done != 0 ? done : 1;
    }
    return 0;
}
