/*
 * What the parts of the engine share: the lock of a sweep, the lists of its queues that have doorbells
 * or were kicked, and the list of its ADIs that have something to say.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/futex.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "engine.h"

/* ---- the lock, and waking ---------------------------------------------------------------------- */

void vdcm_spin_lock(atomic_flag *lock)
{
    while (atomic_flag_test_and_set_explicit(lock, memory_order_acquire)) {
        sched_yield(); /* whoever has it may be waiting for this very CPU */
    }
}

void vdcm_sweep_lock(vdcm_sweep *s)
{
    atomic_fetch_add_explicit(&s->waiters, 1, memory_order_relaxed);
    vdcm_spin_lock(&s->lock);
    atomic_fetch_sub_explicit(&s->waiters, 1, memory_order_relaxed);
}

void vdcm_sweep_unlock(vdcm_sweep *s)
{
    atomic_flag_clear_explicit(&s->lock, memory_order_release);
}

void vdcm_sweep_wake(vdcm_sweep *s)
{
    /*
     * seq_cst: the word is changed before `napping` is read. The thread says that it naps before it
     * compares the word (the kernel does), so one of the two sees the other.
     */
    atomic_fetch_add(&s->wake, 1);
    if (atomic_load(&s->napping)) {
        (void)syscall(SYS_futex, &s->wake, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
    }
}

/* ---- doorbells and kicks ----------------------------------------------------------------------- */

bool vdcm_doorbells_reserve(vdcm_sweep *s)
{
    if (s->reserved == s->room) {
        size_t room = s->room != 0 ? 2 * s->room : 16;
        vdcm_queue **doorbells = realloc(s->doorbells, room * sizeof(vdcm_queue *));

        if (doorbells == NULL) {
            return false;
        }
        s->doorbells = doorbells;
        s->room = room;
    }
    s->reserved++;
    return true;
}

bool vdcm_may_be_listed(const vdcm_queue *q)
{
    return q->doorbells || q->ops->rest != NULL;
}

void vdcm_doorbells_add(vdcm_queue *q)
{
    vdcm_sweep *s = q->adi->sweep;

    q->rests = false;
    if (!q->listed && vdcm_may_be_listed(q)) {
        q->listed = true;
        q->place = s->n_doorbells++;
        s->doorbells[q->place] = q;
        s->in_vain = 0;
    }
}

void vdcm_doorbells_remove(vdcm_queue *q)
{
    vdcm_sweep *s = q->adi->sweep;

    if (q->listed) {
        vdcm_queue *last = s->doorbells[--s->n_doorbells];

        q->listed = false;
        s->doorbells[q->place] = last;
        last->place = q->place;
    }
}

void vdcm_queue_kick(vdcm_queue *q)
{
    vdcm_sweep *s = q->adi->sweep;

    if (!atomic_exchange(&q->kicked, true)) {
        vdcm_spin_lock(&s->kick_lock);
        q->next_kicked = atomic_load_explicit(&s->kicked, memory_order_relaxed);
        atomic_store_explicit(&s->kicked, q, memory_order_release);
        atomic_flag_clear_explicit(&s->kick_lock, memory_order_release);
    }
    vdcm_sweep_wake(s);
}

void vdcm_unkick(vdcm_queue *q)
{
    vdcm_sweep *s = q->adi->sweep;
    vdcm_queue *list;

    vdcm_spin_lock(&s->kick_lock);
    list = atomic_load_explicit(&s->kicked, memory_order_relaxed);
    if (list == q) {
        atomic_store_explicit(&s->kicked, q->next_kicked, memory_order_relaxed);
    } else {
        for (; list != NULL; list = list->next_kicked) {
            if (list->next_kicked == q) {
                list->next_kicked = q->next_kicked;
                break;
            }
        }
    }
    atomic_flag_clear_explicit(&s->kick_lock, memory_order_release);
}

/* ---- ADIs with something to say --------------------------------------------------------------- */

void vdcm_adi_is_ready(vdcm_adi *a)
{
    vdcm_sweep *s = a->sweep;
    uint64_t one = 1;

    if (a->ready) {
        return;
    }
    a->ready = true;
    a->next_ready = s->ready;
    s->ready = a;
    /* Our own descriptor, and non-blocking: when it is full, it is readable. */
    if (write(s->event_fd, &one, sizeof(one)) < 0) {
        return;
    }
}

int vdcm_sweep_fd(const vdcm_sweep *s)
{
    return s->event_fd;
}

size_t vdcm_sweep_ready(vdcm_sweep *s, uint64_t *ids, size_t max)
{
    size_t count = 0;
    uint64_t ignored;
    bool more;

    vdcm_sweep_lock(s);
    while (s->ready != NULL && count < max) {
        vdcm_adi *a = s->ready;

        s->ready = a->next_ready;
        a->ready = false;
        ids[count++] = a->id;
    }
    more = s->ready != NULL;
    if (!more && read(s->event_fd, &ignored, sizeof(ignored)) < 0) {
        ignored = 0; /* it was not readable, which is what we want */
    }
    vdcm_sweep_unlock(s);
    return count;
}
