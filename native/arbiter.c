/*
 * Arbitration between those who have work: deficit round robin (Shreedhar and Varghese, 1995). Each
 * visit adds weight x QUANTUM units to what one may do, work takes away from it, and what went beyond
 * is owed in the next round. So shares follow the weights to within one long operation, whatever the
 * sizes of the operations, and a visit costs the same with one or a thousand. A rate limit is a token
 * bucket on top. (Scalable IOV, 2.6, leaves QoS to the device.)
 *
 * In the rounds of a sweep take part groups of ADIs, and ADIs without one; in those of a group, its
 * ADIs. Work counts at each level, and has to be allowed at each.
 */
#include <errno.h>

#include "engine.h"

enum {
    QUANTUM = 1024,        /* units in a round for each unit of weight */
    MAX_BUDGET = 64 << 10, /* units in one call of a device: bounds how long anybody waits */
    MAX_DONE = 16 << 20    /* units that one call can cost: a device is believed that much */
};
#define SECOND UINT64_C(1000000000)
#define MAX_RATE (UINT64_C(1) << 50)

void vdcm_activate(vdcm_share *share)
{
    for (; share != NULL && !share->in_ring; share = share->group) {
        vdcm_share *turn = *share->ring;

        share->in_ring = true;
        share->deficit = 0;
        if (turn == NULL) {
            share->next = share->previous = share;
            *share->ring = share;
            continue;
        }
        /* Before the one whose turn it is: at the end of the round. */
        share->next = turn;
        share->previous = turn->previous;
        share->previous->next = share;
        turn->previous = share;
    }
}

void vdcm_deactivate(vdcm_share *share)
{
    if (!share->in_ring) {
        return;
    }
    share->in_ring = false;
    if (share->adi != NULL) {
        share->adi->since = 0;
    }
    if (share->next == share) {
        *share->ring = NULL;
        return;
    }
    share->previous->next = share->next;
    share->next->previous = share->previous;
    if (*share->ring == share) {
        *share->ring = share->next;
    }
}

int vdcm_share_weigh(vdcm_sweep *s, vdcm_share *share, uint32_t weight)
{
    if (weight < 1 || weight > VDCM_MAX_WEIGHT) {
        return -EINVAL;
    }
    vdcm_sweep_lock(s);
    share->weight = weight;
    vdcm_sweep_unlock(s);
    vdcm_sweep_wake(s); /* its limit may have changed, too */
    return 0;
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

static void await_turn(vdcm_adi *a, uint64_t now)
{
    if (a->since == 0) {
        a->since = now;
    }
}

void vdcm_end_turn(vdcm_sweep *s, uint64_t now)
{
    vdcm_adi *a = s->ran;

    if (a != NULL) {
        vdcm_latency_note(&a->counters.turn_ns, now - a->since);
        a->counters.busy_ns += now - s->now;
        a->since = now; /* if there is no more work, that is found out, and this forgotten */
        s->ran = NULL;
    }
}

bool vdcm_look(vdcm_queue *queue, uint64_t now)
{
    vdcm_worker *worker = work_for(queue);

    (void)queue->ops->take(queue->device, worker);
    vdcm_leave(worker->reader);
    if (!vdcm_runnable(queue)) {
        return false;
    }
    vdcm_adapt(queue, now - queue->idle_since);
    queue->idle_since = now;
    queue->rests = false;
    await_turn(queue->adi, now);
    vdcm_activate(&queue->adi->share);
    return true;
}

bool vdcm_rest(vdcm_queue *queue)
{
    vdcm_worker *worker = work_for(queue);
    bool rests = queue->ops->rest == NULL || queue->ops->rest(queue->device, worker);

    vdcm_leave(worker->reader);
    return rests;
}

/* ---- rate limits ------------------------------------------------------------------------------- */

int vdcm_limit_set(vdcm_limit *limit, uint64_t rate)
{
    if (rate > MAX_RATE) {
        return -EINVAL;
    }
    vdcm_spin_lock(&limit->lock);
    limit->rate = rate;
    limit->tokens = 0;
    limit->fraction = 0;
    limit->refilled = 0; /* long ago: it begins with a burst */
    atomic_flag_clear_explicit(&limit->lock, memory_order_release);
    return 0;
}

/* Under the lock: tokens up to now; the ns until there is one, 0 if there is. */
static uint64_t refill(vdcm_limit *l, uint64_t now)
{
    uint64_t rate = l->rate;
    uint64_t elapsed = now > l->refilled ? now - l->refilled : 0;
    int64_t burst = (int64_t)(rate / 100); /* 10 ms worth, so that napping loses nothing */

    if (rate == 0) {
        return 0;
    }
    if (burst < MAX_BUDGET) {
        burst = MAX_BUDGET;
    }
    /* Wide, and with what was left over: a limit is kept that is looked at every 100 ns, or whose
     * debt takes minutes to pay off. */
    unsigned __int128 earned = (unsigned __int128)elapsed * rate + l->fraction;
    if (earned / SECOND >= (uint64_t)(burst - l->tokens)) {
        l->tokens = burst;
        l->fraction = 0;
    } else {
        l->tokens += (int64_t)(earned / SECOND);
        l->fraction = (uint64_t)(earned % SECOND);
    }
    l->refilled += elapsed; /* never back: another sweep's clock may be ahead of this one's */
    if (l->tokens > 0) {
        return 0;
    }
    return (uint64_t)((long double)(1 - l->tokens) * (long double)SECOND / (long double)rate) + 1;
}

static uint64_t throttle(vdcm_limit *limit, uint64_t now)
{
    uint64_t wait;

    if (atomic_load_explicit(&limit->rate, memory_order_relaxed) == 0) {
        return 0;
    }
    vdcm_spin_lock(&limit->lock);
    wait = refill(limit, now);
    atomic_flag_clear_explicit(&limit->lock, memory_order_release);
    return wait;
}

static void spend(vdcm_limit *limit, uint64_t units)
{
    if (atomic_load_explicit(&limit->rate, memory_order_relaxed) == 0) {
        return;
    }
    vdcm_spin_lock(&limit->lock);
    limit->tokens -= (int64_t)units;
    atomic_flag_clear_explicit(&limit->lock, memory_order_release);
}

/* ---- rounds ------------------------------------------------------------------------------------ */

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

static uint64_t run(vdcm_queue *q, uint64_t now)
{
    vdcm_worker *worker = work_for(q);
    vdcm_adi *a = q->adi;
    uint64_t budget = MAX_BUDGET;
    uint64_t done;

    for (vdcm_share *share = &a->share; share != NULL; share = share->group) {
        budget = share->deficit < (int64_t)budget ? (uint64_t)share->deficit : budget;
    }
    await_turn(a, now); /* it has not been seen to have work where its state has let it run */
    a->sweep->ran = a;
    done = q->ops->run(q->device, worker, budget);
    q->idle_since = now;
    q->rests = false;
    if (done > MAX_DONE) {
        done = MAX_DONE;
    }
    a->counters.units += done;
    for (vdcm_share *share = &a->share; share != NULL; share = share->group) {
        spend(share->limit, done);
        share->deficit -= (int64_t)done;
        if (share->deficit <= 0) {
            *share->ring = share->next; /* its round is over */
        }
    }
    a->turn = q->next;
    if (q->listed) {
        (void)q->ops->take(q->device, worker); /* a busy queue need not wait for the sweep */
    }
    vdcm_leave(worker->reader);
    if (q->state == VDCM_DRAINING) {
        (void)vdcm_rest(q); /* nobody looks at it: what it waits for has to kick it */
    }
    vdcm_queue_look_drained(q);
    return done;
}

/*
 * The queue whose turn it is in `ring`, and in the ring within, each of which is left with the one
 * chosen in front. NULL if none may run: *wait as vdcm_arbitrate() says.
 */
static vdcm_queue *choose(vdcm_share **ring, uint64_t now, uint64_t *wait)
{
    vdcm_share *first_held = NULL; /* the first of a row that rate limits hold back */

    *wait = UINT64_MAX;
    while (*ring != NULL) {
        vdcm_share *share = *ring;
        uint64_t held = 0;
        vdcm_queue *q = share->adi != NULL ? pick_queue(share->adi)
                                           : choose(&share->active, now, &held);

        if (q == NULL && (share->adi != NULL || share->active == NULL)) {
            if (share == first_held) {
                first_held = NULL;
            }
            vdcm_deactivate(share);
            continue;
        }
        if (q != NULL) {
            held = throttle(share->limit, now);
        }
        if (held != 0) {
            if (share == first_held) {
                return NULL; /* all of them */
            }
            if (first_held == NULL) {
                first_held = share;
            }
            *wait = held < *wait ? held : *wait;
            if (q != NULL) {
                q->adi->counters.throttled++;
            }
            *ring = share->next;
            continue;
        }
        first_held = NULL;
        if (share->next == share) {
            share->deficit = MAX_BUDGET; /* nobody to share with: fewer, longer calls */
        } else if (share->deficit <= 0) {
            share->deficit += (int64_t)share->weight * QUANTUM;
            if (share->deficit <= 0) {
                *ring = share->next;
                continue;
            }
        }
        return q;
    }
    return NULL;
}

uint64_t vdcm_arbitrate(vdcm_sweep *s, uint64_t now, uint64_t *wait)
{
    vdcm_queue *q = choose(&s->active, now, wait);
    uint64_t done = q != NULL ? run(q, now) : 0;

    return q != NULL && done == 0 ? 1 : done;
}
