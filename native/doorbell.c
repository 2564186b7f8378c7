/*
 * The sweep: one thread that looks at the doorbells of its queues and runs those that have work.
 *
 * A doorbell is a word of shared memory that a guest stores to; nobody is told. So the thread looks,
 * and the only questions are how often and at what price. While there is work it looks at a queue as
 * soon as that has run, and at some of the others every LOOK_NS. Without work it looks at all of
 * them again and again for a while, longer if the last work came soon after the one before; then it
 * naps between two rounds, longer each time, up to a limit that keeps idling below 1 % of a CPU; and
 * no longer than a small part of the time since there was work, so that what comes now and then, as a
 * ping does, is not kept waiting as if nothing ever came. That takes some CPU, and only for a while.
 * A queue without doorbells is kicked instead, which ends a nap; a sweep that has none with doorbells
 * sleeps until then.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/futex.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "engine.h"

enum {
    LOOKS = 64,           /* at queues in one step */
    LOOK_NS = 10000,      /* between two looks at others while there is work */
    EAGER_NS = 3000,      /* after work: who has been waiting for it often has more at once */
    FIRST_NAP_NS = 50000, /* the kernel wakes nobody up much earlier */
    WAKE_NS = 5000,       /* what a nap costs others: the timer, the switch of threads */
    PATIENCE = 8,         /* times as long as it stays awake at least, it does at most */
    IDLE_SHARE = 125,     /* one part of so many is spent on idling, */
    RECENT_SHARE = 10,    /* and one of so many at most soon after work: */
    RECENT = 128          /* a nap is this part of the time since, or less */
};
#define USUAL_NAP_NS UINT64_C(1000000) /* the longest with few doorbells to look at */

static uint64_t read_clock(clockid_t clock)
{
    struct timespec now;

    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec;
}

static uint64_t now_ns(void)
{
    return read_clock(CLOCK_MONOTONIC);
}

static __thread uint64_t frozen;

void vdcm_freeze_clock(uint64_t ns)
{
    frozen = ns;
}

uint64_t vdcm_now(void)
{
    return frozen != 0 ? frozen : now_ns();
}

uint64_t vdcm_sweep_longest_nap(const vdcm_sweep *s, uint64_t spent_ns, uint64_t idle_ns)
{
    uint64_t round = (spent_ns < s->nap_ns ? spent_ns : s->nap_ns) + WAKE_NS;
    uint64_t nap = round * IDLE_SHARE < USUAL_NAP_NS ? USUAL_NAP_NS : round * IDLE_SHARE;
    uint64_t recent = idle_ns / RECENT < round * RECENT_SHARE ? round * RECENT_SHARE : idle_ns / RECENT;

    nap = nap < recent ? nap : recent;
    return nap > s->nap_ns ? s->nap_ns : nap;
}

/* Until `word` is no longer the value of s->wake, or `ns` have passed (UINT64_MAX: no limit). */
static void nap(vdcm_sweep *s, unsigned word, uint64_t ns)
{
    struct timespec limit = {.tv_sec = (time_t)(ns / UINT64_C(1000000000)),
                             .tv_nsec = (long)(ns % UINT64_C(1000000000))};

    atomic_fetch_add_explicit(&s->naps, 1, memory_order_relaxed);
    atomic_store(&s->napping, true);
    (void)syscall(SYS_futex, &s->wake, FUTEX_WAIT_PRIVATE, word, ns == UINT64_MAX ? NULL : &limit,
                  NULL, 0);
    atomic_store(&s->napping, false);
}

/*
 * To sleep and be woken costs a guest in the middle of something more than the sweep saves by it, so
 * it waits for the next work as long as the last one took to come, and half of that again; but not for
 * a guest that takes its time.
 */
void vdcm_adapt(vdcm_queue *q, uint64_t gap)
{
    uint64_t least = q->adi->sweep->spin_ns;
    uint64_t most = PATIENCE * least;

    if (gap > most) {
        q->patience = least;
    } else if (gap + gap / 2 > q->patience) {
        q->patience = gap + gap / 2 < most ? gap + gap / 2 : most;
    }
}

static void look_at_kicked(vdcm_sweep *s, uint64_t now)
{
    vdcm_queue *q;

    if (atomic_load_explicit(&s->kicked, memory_order_acquire) == NULL) {
        return;
    }
    vdcm_spin_lock(&s->kick_lock);
    q = atomic_exchange_explicit(&s->kicked, NULL, memory_order_relaxed);
    atomic_flag_clear_explicit(&s->kick_lock, memory_order_release);
    while (q != NULL) {
        vdcm_queue *next = q->next_kicked;

        /* Cleared before the look: a kick from now on is about something that may not be seen. */
        atomic_store(&q->kicked, false);
        if (q->state == VDCM_RUNNING) {
            vdcm_doorbells_add(q);
            if (!vdcm_look(q, now)) {
                q->idle_since = now;
            }
        } else if (vdcm_runnable(q)) {
            vdcm_activate(&q->adi->share);
        }
        q = next;
    }
}

/* It has been looked at in vain: may it rest? */
static void tire(vdcm_sweep *s, vdcm_queue *q, uint64_t now)
{
    if (q->rests) {
        return;
    }
    if (now - q->idle_since < q->patience) {
        s->awake = true;
        return;
    }
    if (!vdcm_rest(q)) {
        q->idle_since = now;
        s->awake = true;
        return;
    }
    q->rests = true;
    if (!q->doorbells) {
        vdcm_doorbells_remove(q);
        s->cursor--; /* another one has its place now */
    }
}

static void look_around(vdcm_sweep *s, uint64_t now)
{
    size_t looks = s->n_doorbells < LOOKS ? s->n_doorbells : LOOKS;

    for (size_t i = 0; i < looks && s->n_doorbells != 0; i++) {
        if (s->cursor >= s->n_doorbells) {
            s->cursor = 0;
        }
        vdcm_queue *q = s->doorbells[s->cursor++];

        if (vdcm_look(q, now)) {
            s->in_vain = 0;
        } else {
            s->in_vain++;
            tire(s, q, now);
        }
    }
    s->looks += looks;
}

/* ---- the thread -------------------------------------------------------------------------------- */

/* Under the lock. */
static uint64_t step(vdcm_sweep *s, uint64_t now, uint64_t *wait)
{
    uint64_t done;

    vdcm_end_turn(s, now);
    s->now = now;
    look_at_kicked(s, now);
    if (s->active == NULL || now >= s->next_look) {
        look_around(s, now);
        s->next_look = now + LOOK_NS;
    }
    done = vdcm_arbitrate(s, now, wait);
    if (done != 0) {
        s->in_vain = 0;
    }
    return done;
}

uint64_t vdcm_sweep_step(vdcm_sweep *s, uint64_t now_ns, uint64_t *wait_ns)
{
    uint64_t done;

    vdcm_spin_lock(&s->lock);
    done = step(s, now_ns, wait_ns);
    vdcm_sweep_unlock(s);
    return done;
}

static void *sweep(void *argument)
{
    vdcm_sweep *s = argument;
    uint64_t idle_since = now_ns();
    uint64_t woke = 0; /* CPU time; 0: there was work since */
    uint64_t spent = 0;
    uint64_t this_nap = FIRST_NAP_NS;
    bool new_round = true;

    for (;;) {
        unsigned word = atomic_load(&s->wake); /* before all that a nap relies on */
        uint64_t now = now_ns();
        uint64_t wait;
        uint64_t done;
        bool round; /* all have been looked at */
        bool awake;
        bool doorbells;

        if (atomic_load(&s->stopping)) {
            return NULL;
        }
        while (atomic_load_explicit(&s->waiters, memory_order_relaxed) != 0) {
            sched_yield();
        }
        vdcm_spin_lock(&s->lock);
        if (new_round) {
            s->in_vain = 0;
            s->awake = false;
        }
        done = step(s, now, &wait);
        round = s->in_vain >= s->n_doorbells;
        awake = s->awake;
        doorbells = s->n_doorbells != 0;
        vdcm_sweep_unlock(s);
        new_round = false;
        if (done != 0) {
            idle_since = now;
            this_nap = FIRST_NAP_NS;
            woke = 0;
            continue;
        }
        if (!round) {
            continue;
        }
        new_round = true;
        if (awake) {
            if (now - idle_since >= EAGER_NS) {
                sched_yield(); /* to the guest, which may be on this CPU */
            }
            continue;
        }
        if (!doorbells) {
            nap(s, word, wait);
        } else {
            uint64_t longest = vdcm_sweep_longest_nap(s, spent, now - idle_since);
            uint64_t cpu;

            atomic_store_explicit(&s->longest, longest, memory_order_relaxed);
            this_nap = this_nap < longest ? this_nap : longest;
            nap(s, word, wait < this_nap ? wait : this_nap);
            cpu = read_clock(CLOCK_THREAD_CPUTIME_ID);
            if (woke != 0) {
                spent = spent == 0 ? cpu - woke : (7 * spent + (cpu - woke)) / 8;
            }
            woke = cpu;
            this_nap *= 2;
        }
        if (atomic_load(&s->wake) != word) {
            idle_since = now_ns(); /* somebody had a reason */
            this_nap = FIRST_NAP_NS;
            woke = 0;
        }
    }
}

vdcm_sweep *vdcm_sweep_new_stepped(uint64_t spin_ns, uint64_t nap_ns)
{
    vdcm_sweep *s = calloc(1, sizeof(*s));
    int error;

    if (s == NULL) {
        return NULL;
    }
    s->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    s->worker.reader = vdcm_reader_new();
    if (s->event_fd < 0 || s->worker.reader == NULL) {
        error = errno;
        vdcm_sweep_free(s);
        errno = error;
        return NULL;
    }
    s->spin_ns = spin_ns;
    s->nap_ns = nap_ns;
    return s;
}

int vdcm_sweep_resume(vdcm_sweep *s)
{
    sigset_t all;
    sigset_t before;
    int error;

    /* Signals are the main thread's; those that a thread causes itself cannot be put off. */
    sigfillset(&all);
    sigdelset(&all, SIGBUS);
    sigdelset(&all, SIGSEGV);
    sigdelset(&all, SIGFPE);
    sigdelset(&all, SIGILL);
    atomic_store(&s->stopping, false);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    error = pthread_create(&s->thread, NULL, sweep, s);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error != 0) {
        return -error;
    }
    s->threaded = true;
    pthread_setname_np(s->thread, "vdcm-sweep");
    return 0;
}

void vdcm_sweep_hold(vdcm_sweep *s)
{
    if (s->threaded) {
        atomic_store(&s->stopping, true);
        vdcm_sweep_wake(s);
        pthread_join(s->thread, NULL);
        s->threaded = false;
    }
}

vdcm_sweep *vdcm_sweep_new(uint64_t spin_ns, uint64_t nap_ns)
{
    vdcm_sweep *s = vdcm_sweep_new_stepped(spin_ns, nap_ns);
    int error;

    if (s == NULL) {
        return NULL;
    }
    error = vdcm_sweep_resume(s);
    if (error != 0) {
        vdcm_sweep_free(s);
        errno = -error;
        return NULL;
    }
    return s;
}

void vdcm_sweep_free(vdcm_sweep *s)
{
    if (s == NULL) {
        return;
    }
    vdcm_sweep_hold(s);
    vdcm_reader_free(s->worker.reader);
    if (s->event_fd >= 0) {
        close(s->event_fd);
    }
    free(s->doorbells);
    free(s);
}

void vdcm_sweep_count(vdcm_sweep *s, vdcm_sweep_counters *out)
{
    clockid_t clock;

    vdcm_sweep_lock(s);
    out->looks = s->looks;
    vdcm_sweep_unlock(s);
    out->cpu_ns = s->threaded && pthread_getcpuclockid(s->thread, &clock) == 0 ? read_clock(clock) : 0;
    out->naps = atomic_load_explicit(&s->naps, memory_order_relaxed);
    out->nap_ns = atomic_load_explicit(&s->longest, memory_order_relaxed);
}
