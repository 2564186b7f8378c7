/*
 * Channels to files, and the threads that serve them where there is no io_uring (uring.c). Nobody
 * sleeps with a lock here: each is held for a few instructions, by spinning.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

#include "ring.h"

enum { THREADS = 4 };

struct nvme_channel {
    nvme_pool *pool; /* NULL: the ring */
    nvme_ring *ring;
    atomic_flag lock;
    nvme_request *_Atomic first; /* finished, in order; changed with the lock */
    nvme_request *last;
    void (*kick)(vdcm_queue *); /* NULL: nobody is to be told */
    vdcm_queue *queue;
};

struct nvme_pool {
    atomic_flag lock;
    nvme_request *first;
    nvme_request *last;
    sem_t waiting; /* requests, or the end */
    atomic_bool stopping;
    unsigned threads;
    pthread_t thread[THREADS];
};

static void acquire(atomic_flag *lock)
{
    while (atomic_flag_test_and_set_explicit(lock, memory_order_acquire)) {
        sched_yield();
    }
}

static void release(atomic_flag *lock)
{
    atomic_flag_clear_explicit(lock, memory_order_release);
}

/* ---- the threads ----------------------------------------------------------------------------- */

static int64_t perform(const nvme_request *r)
{
    off_t offset = (off_t)r->offset;
    int64_t result;

    do {
        switch (r->operation) {
        case NVME_IO_READ:
            result = pread(r->fd, r->buffer, r->length, offset);
            break;
        case NVME_IO_WRITE:
            result = pwrite(r->fd, r->buffer, r->length, offset);
            break;
        case NVME_IO_SYNC:
            result = fdatasync(r->fd);
            break;
        default:
            result = fallocate(r->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset,
                               (off_t)r->length);
        }
    } while (result < 0 && errno == EINTR);
    return result < 0 ? -errno : result;
}

/* With the lock: whom we kick is not closed meanwhile. */
static void tell(nvme_channel *ch)
{
    if (ch->kick != NULL) {
        ch->kick(ch->queue);
        ch->kick = NULL;
    }
}

static void finish(nvme_request *r)
{
    nvme_channel *ch = r->channel;

    r->next = NULL;
    acquire(&ch->lock);
    if (atomic_load_explicit(&ch->first, memory_order_relaxed) == NULL) {
        atomic_store_explicit(&ch->first, r, memory_order_release);
    } else {
        ch->last->next = r;
    }
    ch->last = r;
    tell(ch);
    release(&ch->lock);
}

static void *serve(void *argument)
{
    nvme_pool *pool = argument;

    for (;;) {
        nvme_request *r;

        while (sem_wait(&pool->waiting) < 0) {
        }
        if (atomic_load(&pool->stopping)) {
            return NULL;
        }
        acquire(&pool->lock);
        r = pool->first;
        pool->first = r->next;
        release(&pool->lock);
        r->result = perform(r);
        finish(r);
    }
}

nvme_pool *nvme_pool_new(void)
{
    nvme_pool *pool = calloc(1, sizeof(*pool));
    sigset_t all;
    sigset_t before;

    if (pool == NULL) {
        return NULL;
    }
    (void)sem_init(&pool->waiting, 0, 0);
    sigfillset(&all); /* signals are the main thread's */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (pool->threads < THREADS &&
           pthread_create(&pool->thread[pool->threads], NULL, serve, pool) == 0) {
        pthread_setname_np(pool->thread[pool->threads++], "vdcm-nvme-io");
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (pool->threads == 0) {
        nvme_pool_free(pool);
        errno = EAGAIN;
        return NULL;
    }
    return pool;
}

void nvme_pool_free(nvme_pool *pool)
{
    if (pool == NULL) {
        return;
    }
    atomic_store(&pool->stopping, true);
    for (unsigned i = 0; i < pool->threads; i++) {
        (void)sem_post(&pool->waiting);
    }
    for (unsigned i = 0; i < pool->threads; i++) {
        pthread_join(pool->thread[i], NULL);
    }
    (void)sem_destroy(&pool->waiting);
    free(pool);
}

static void give(nvme_pool *pool, nvme_request *r)
{
    r->next = NULL;
    acquire(&pool->lock);
    if (pool->first == NULL) {
        pool->first = r;
    } else {
        pool->last->next = r;
    }
    pool->last = r;
    release(&pool->lock);
    (void)sem_post(&pool->waiting);
}

/* ---- channels -------------------------------------------------------------------------------- */

nvme_channel *nvme_channel_new(nvme_pool *pool, uint32_t requests)
{
    nvme_channel *ch = calloc(1, sizeof(*ch));

    if (ch == NULL) {
        return NULL;
    }
    ch->pool = pool;
    if (pool == NULL) {
        ch->ring = nvme_ring_new(requests);
        if (ch->ring == NULL) {
            free(ch);
            return NULL;
        }
    }
    return ch;
}

void nvme_channel_free(nvme_channel *ch)
{
    nvme_ring_free(ch->ring);
    free(ch);
}

void nvme_channel_submit(nvme_channel *ch, nvme_request *request)
{
    request->channel = ch;
    if (ch->ring != NULL) {
        nvme_ring_submit(ch->ring, request);
    } else {
        give(ch->pool, request);
    }
}

void nvme_channel_push(nvme_channel *ch)
{
    if (ch->ring != NULL) {
        nvme_ring_push(ch->ring);
    }
}

bool nvme_channel_finished(const nvme_channel *ch)
{
    if (ch->ring != NULL) {
        return nvme_ring_finished(ch->ring);
    }
    return atomic_load_explicit(&ch->first, memory_order_acquire) != NULL;
}

nvme_request *nvme_channel_take(nvme_channel *ch)
{
    nvme_request *r;

    if (ch->ring != NULL) {
        return nvme_ring_take(ch->ring);
    }
    if (!nvme_channel_finished(ch)) {
        return NULL;
    }
    acquire(&ch->lock);
    r = atomic_load_explicit(&ch->first, memory_order_relaxed);
    atomic_store_explicit(&ch->first, r->next, memory_order_relaxed);
    release(&ch->lock);
    return r;
}

void nvme_channel_wait(nvme_channel *ch)
{
    if (ch->ring != NULL) {
        nvme_ring_wait(ch->ring);
    } else {
        usleep(100); /* the control thread, for an old queue's last requests */
    }
}

bool nvme_channel_arm(nvme_channel *ch, void (*kick)(vdcm_queue *), vdcm_queue *queue)
{
    bool armed = false;

    if (ch->ring != NULL) {
        return nvme_ring_arm(ch->ring, kick, queue);
    }
    acquire(&ch->lock);
    if (!nvme_channel_finished(ch)) {
        ch->kick = kick;
        ch->queue = queue;
        armed = true;
    }
    release(&ch->lock);
    return armed;
}

void nvme_channel_disarm(nvme_channel *ch)
{
    if (ch->ring != NULL) {
        nvme_ring_disarm(ch->ring);
        return;
    }
    acquire(&ch->lock);
    ch->kick = NULL;
    release(&ch->lock);
}
