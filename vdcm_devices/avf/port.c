/* A port as the sweep has it: its transmit tails, turns of its queues, and its interrupts. */
#include "engine.h"

static bool look(avf_port *p, vdcm_worker *worker)
{
    uint32_t ready = 0;

    for (uint32_t left = p->tx_enabled; left != 0; left &= left - 1) {
        uint32_t i = (uint32_t)__builtin_ctz(left);
        avf_tx *q = &p->tx[i];
        /* Pairs with the driver's write barrier before its store (Linux: writel): the descriptors that
         * it has written are seen. */
        uint32_t tail = atomic_load_explicit(avf_at(p, AVF_QTX_TAIL, i), memory_order_acquire);

        if (tail >= q->is.length) {
            avf_offend(p, worker, AVF_BAD_TAIL, true, i, tail, 0);
            return false;
        }
        q->tail = tail;
        if (tail == q->stuck) {
            continue;
        }
        q->stuck = UINT32_MAX;
        if (tail != q->head) {
            ready |= 1u << i;
        }
    }
    atomic_store_explicit(&p->ready, ready, memory_order_relaxed);
    return ready != 0;
}

static bool take(void *queue, vdcm_worker *worker)
{
    avf_port *p = queue;
    avf_switch *s = p->its;
    bool found = false;

    avf_lock(s);
    p->handle = s->services->handle(worker);
    if (p->pages != NULL && !p->broken) {
        found = look(p, worker);
        avf_interrupt(p, worker);
    }
    avf_unlock(s);
    return found;
}

static uint64_t run(void *queue, vdcm_worker *worker, uint64_t budget)
{
    avf_port *p = queue;
    avf_switch *s = p->its;
    uint32_t frames = AVF_FRAMES;
    uint64_t units = 0;
    uint32_t ready;

    avf_lock(s);
    s->now = 0;
    while ((ready = atomic_load_explicit(&p->ready, memory_order_relaxed)) != 0 &&
           units < budget && frames != 0 && !p->broken) {
        uint32_t later = ready & ~((1u << p->turn) - 1);
        uint32_t i = (uint32_t)__builtin_ctz(later != 0 ? later : ready);

        units += avf_transmit(p, worker, i, budget - units, &frames);
        if (p->tx[i].head == p->tx[i].tail || p->tx[i].tail == p->tx[i].stuck) {
            atomic_fetch_and_explicit(&p->ready, ~(1u << i), memory_order_relaxed);
        }
        p->turn = (i + 1) % AVF_QUEUES;
    }
    avf_interrupt_all(s, worker);
    avf_leave(s, worker);
    avf_unlock(s);
    return units != 0 ? units : 1;
}

static bool pending(const void *queue)
{
    const avf_port *p = queue;

    return atomic_load_explicit(&p->ready, memory_order_relaxed) != 0;
}

/* What is in the rings stays the driver's, until it disables or resets its queues. */
static void abort_all(void *queue, vdcm_worker *worker)
{
    avf_port *p = queue;

    (void)worker;
    avf_lock(p->its);
    for (uint32_t i = 0; i < AVF_QUEUES; i++) {
        p->tx[i].head = p->tx[i].tail;
    }
    atomic_store_explicit(&p->ready, 0, memory_order_relaxed);
    avf_unlock(p->its);
}

/* An interrupt that is held back has its time, which nobody else looks at. */
static bool rest(void *queue, vdcm_worker *worker)
{
    avf_port *p = queue;
    bool rests;

    (void)worker;
    avf_lock(p->its);
    rests = !p->held;
    avf_unlock(p->its);
    return rests;
}

static void closed(void *queue)
{
    avf_port *p = queue;

    avf_lock(p->its);
    p->handle = NULL;
    avf_unlock(p->its);
}

uintptr_t avf_fastpath(void)
{
    static const vdcm_fastpath table = {.abi = VDCM_FASTPATH_ABI,
                                        .name = "avf",
                                        .take = take,
                                        .run = run,
                                        .pending = pending,
                                        .abort = abort_all,
                                        .rest = rest,
                                        .closed = closed};

    return (uintptr_t)&table;
}
