/*
 * The parts of the engine, from the ground up: sweep.c (lock and lists), arbiter.c (whose turn it is),
 * adi.c (ADIs and their queues), doorbell.c (the thread).
 */
#ifndef VDCM_ENGINE_H
#define VDCM_ENGINE_H

#include <pthread.h>
#include <stdatomic.h>

#include "fastpath.h"
#include "sweep.h"

struct vdcm_worker {
    vdcm_reader *reader;
    vdcm_adi *adi; /* on whose behalf it works now */
    vdcm_queue *queue;
};

struct vdcm_queue {
    vdcm_adi *adi;
    const vdcm_fastpath *ops;
    void *device;
    int state;
    bool doorbells;
    bool listed;         /* it is in the sweep's list of doorbells */
    size_t place;        /* there */
    bool rests;          /* rest() was called, and nothing has come since */
    uint64_t idle_since; /* ns */
    uint64_t patience;   /* ns without work after which it may rest */
    struct vdcm_queue *next; /* of the same ADI */
    atomic_bool kicked;      /* it is in the sweep's list of kicked ones */
    struct vdcm_queue *next_kicked;
};

/* A token bucket. Groups on several sweeps may have one in common. */
struct vdcm_limit {
    atomic_flag lock;
    _Atomic uint64_t rate; /* units a second, 0: no limit */
    int64_t tokens;        /* units that it allows now */
    uint64_t fraction;     /* of one more token, in parts of 10^9 */
    uint64_t refilled;     /* ns, when tokens were last added */
};

/* Who takes part in rounds: an ADI, or a group of them. */
typedef struct vdcm_share {
    struct vdcm_share **ring; /* where it takes part: those with work; the one whose turn it is */
    struct vdcm_share *group; /* whose ring that is; NULL: the sweep's */
    struct vdcm_share *active; /* a group: its own ring */
    vdcm_adi *adi;             /* NULL: a group */
    vdcm_limit *limit;
    uint32_t weight;
    int64_t deficit; /* units that it may do in this round */
    bool in_ring;
    struct vdcm_share *previous;
    struct vdcm_share *next;
} vdcm_share;

struct vdcm_group {
    vdcm_sweep *sweep;
    vdcm_share share;
};

struct vdcm_adi {
    vdcm_sweep *sweep;
    uint64_t id;
    uint32_t primary;
    uint32_t secondary;
    bool bus_master;
    vdcm_pasid_map *guest_pasids;
    vdcm_ims *ims;
    uint32_t *messages;
    uint32_t n_messages;

    /* arbiter.c */
    vdcm_share share;
    vdcm_limit limit;
    vdcm_queue *queues;
    vdcm_queue *turn; /* the queue whose turn it is */

    vdcm_adi_report reports[VDCM_REPORTS];
    size_t first_report;
    size_t n_reports;
    bool ready; /* in the sweep's list of ADIs with something to say */
    vdcm_adi *next_ready;
    uint64_t since; /* ns, when it began to wait for its turn; 0: it does not */
    vdcm_adi_counters counters;
};

struct vdcm_sweep {
    struct vdcm_worker worker;
    /*
     * Held by the thread for one step at a time, and by whoever changes anything. Not a sleeping
     * lock; `waiters` makes the thread let the others in first, or it would always win.
     */
    atomic_flag lock;
    atomic_int waiters;

    vdcm_queue **doorbells; /* RUNNING queues that are looked at */
    size_t n_doorbells;
    size_t room;
    size_t reserved; /* queues that may be there */
    size_t cursor;   /* the next one to look at */
    size_t in_vain;  /* looks since there was work last */
    bool awake;      /* one of them was at a queue that does not rest yet */
    vdcm_share *active; /* ring of groups, and of ADIs without one; the one whose turn it is */
    vdcm_adi *ready;
    int event_fd;

    atomic_flag kick_lock;
    vdcm_queue *_Atomic kicked;
    atomic_uint wake; /* changed to end a nap, a futex */
    atomic_bool napping;
    atomic_bool stopping;
    uint64_t spin_ns;
    uint64_t nap_ns;
    uint64_t looks;
    uint64_t now;       /* of the last step */
    vdcm_adi *ran;      /* in that step, or NULL */
    uint64_t next_look; /* ns, while there is work */
    bool threaded;
    _Atomic uint64_t naps;
    _Atomic uint64_t longest;
    pthread_t thread;
};

/* ---- doorbell.c ---- */

/* services->now(). */
uint64_t vdcm_now(void);

/* ---- sweep.c ---- */

/* For what takes some instructions: others yield until it is over. */
void vdcm_spin_lock(atomic_flag *lock);
void vdcm_sweep_lock(vdcm_sweep *s);
void vdcm_sweep_unlock(vdcm_sweep *s);
void vdcm_sweep_wake(vdcm_sweep *s);
/* Is it ever looked at without a kick? */
bool vdcm_may_be_listed(const vdcm_queue *q);
/* Room for one more of those, so that adding it later cannot fail. */
bool vdcm_doorbells_reserve(vdcm_sweep *s);
void vdcm_doorbells_add(vdcm_queue *q);
void vdcm_doorbells_remove(vdcm_queue *q);
/* Forget that it was kicked. */
void vdcm_unkick(vdcm_queue *q);
/* It has something to say. */
void vdcm_adi_is_ready(vdcm_adi *a);

/* Work has come after `gap` ns without: how long it is worth to wait awake for the next. */
void vdcm_adapt(vdcm_queue *q, uint64_t gap);

/* ---- arbiter.c ---- */

/* It has work, or none. */
void vdcm_activate(vdcm_share *share);
void vdcm_deactivate(vdcm_share *share);
/* 0 or -EINVAL. */
int vdcm_share_weigh(vdcm_sweep *s, vdcm_share *share, uint32_t weight);
bool vdcm_runnable(const vdcm_queue *q);
/* Look at `queue` (RUNNING): accept what is there, and make its ADI active. True: there is work. */
bool vdcm_look(vdcm_queue *queue, uint64_t now);
/* Nothing comes: what rest() says, true without one. */
bool vdcm_rest(vdcm_queue *queue);
/*
 * Run the ADI whose turn it is. Returns the units done; 0 when none may run, *wait being then the ns
 * until the rate limit lets one (UINT64_MAX: there is no work).
 */
uint64_t vdcm_arbitrate(vdcm_sweep *s, uint64_t now, uint64_t *wait);
/* The last step has ended at `now`: who ran in it is told how long that took. */
void vdcm_end_turn(vdcm_sweep *s, uint64_t now);
/* DRAINING and empty: STOPPED, and that is said. */
void vdcm_queue_look_drained(vdcm_queue *q);

#endif
