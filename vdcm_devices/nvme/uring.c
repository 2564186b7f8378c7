/*
 * I/O in files by io_uring, a ring for each submission queue. The sweep submits, and sees what has
 * finished in the ring's memory; what is in the page cache has finished when it was submitted. Only a
 * queue that rests is kicked, by one thread of the process that waits for all rings of such queues.
 *
 * liburing: it is maintained by the kernel's own developers, and small enough to be linked in.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "ring.h"

struct nvme_ring {
    struct io_uring ring;
    bool unsent; /* submitted, and not told to the kernel */
    void (*kick)(vdcm_queue *); /* NULL: nobody is to be told */
    vdcm_queue *queue;
    nvme_ring *next;
};

static atomic_flag lock = ATOMIC_FLAG_INIT; /* of the list, and of who is kicked */
static nvme_ring *rings;
static int waiter = -1; /* epoll: the rings of queues that rest */
static pthread_once_t once = PTHREAD_ONCE_INIT;
static int set_up_error;

static void acquire(void)
{
    while (atomic_flag_test_and_set_explicit(&lock, memory_order_acquire)) {
        sched_yield();
    }
}

static void release(void)
{
    atomic_flag_clear_explicit(&lock, memory_order_release);
}

/* `found` is only compared: the ring may be gone. */
static void tell(const void *found)
{
    acquire();
    for (nvme_ring *r = rings; r != NULL; r = r->next) {
        if (r == found && r->kick != NULL) {
            r->kick(r->queue);
            r->kick = NULL;
        }
    }
    release();
}

static void *wait_for_rings(void *argument)
{
    struct epoll_event event;

    for (;;) {
        if (epoll_wait(waiter, &event, 1, -1) == 1) {
            tell(event.data.ptr);
        }
    }
    return argument;
}

static void set_up(void)
{
    pthread_t thread;
    sigset_t all;
    sigset_t before;

    waiter = epoll_create1(EPOLL_CLOEXEC);
    if (waiter < 0) {
        set_up_error = errno;
        return;
    }
    sigfillset(&all); /* signals are the main thread's */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    set_up_error = pthread_create(&thread, NULL, wait_for_rings, NULL);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (set_up_error == 0) {
        pthread_setname_np(thread, "vdcm-nvme-io");
        pthread_detach(thread);
    }
}

/* It is all that we ask for, and the kernel allows it. */
bool nvme_uring_works(void)
{
    nvme_ring *ring = nvme_ring_new(1);
    struct io_uring_probe *probe;
    bool works;

    if (ring == NULL) {
        return false;
    }
    probe = io_uring_get_probe_ring(&ring->ring);
    works = probe != NULL && io_uring_opcode_supported(probe, IORING_OP_READ) &&
            io_uring_opcode_supported(probe, IORING_OP_WRITE) &&
            io_uring_opcode_supported(probe, IORING_OP_FALLOCATE);
    io_uring_free_probe(probe);
    nvme_ring_free(ring);
    return works;
}

nvme_ring *nvme_ring_new(uint32_t requests)
{
    struct epoll_event event = {.events = 0};
    nvme_ring *ring;
    int error;

    pthread_once(&once, set_up);
    if (set_up_error != 0) {
        errno = set_up_error;
        return NULL;
    }
    ring = calloc(1, sizeof(*ring));
    if (ring == NULL) {
        return NULL;
    }
    error = -io_uring_queue_init(requests, &ring->ring, 0);
    if (error != 0) {
        free(ring);
        errno = error;
        return NULL;
    }
    event.data.ptr = ring;
    if (epoll_ctl(waiter, EPOLL_CTL_ADD, ring->ring.ring_fd, &event) < 0) {
        error = errno;
        io_uring_queue_exit(&ring->ring);
        free(ring);
        errno = error;
        return NULL;
    }
    acquire();
    ring->next = rings;
    rings = ring;
    release();
    return ring;
}

void nvme_ring_free(nvme_ring *ring)
{
    nvme_ring **link;

    if (ring == NULL) {
        return;
    }
    acquire();
    for (link = &rings; *link != ring; link = &(*link)->next) {
    }
    *link = ring->next;
    release();
    (void)epoll_ctl(waiter, EPOLL_CTL_DEL, ring->ring.ring_fd, NULL);
    io_uring_queue_exit(&ring->ring);
    free(ring);
}

void nvme_ring_submit(nvme_ring *ring, nvme_request *r)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&ring->ring);

    while (sqe == NULL) { /* full of what the kernel could not take: nvme_ring_push() */
        (void)io_uring_submit(&ring->ring);
        sqe = io_uring_get_sqe(&ring->ring);
    }
    switch (r->operation) {
    case NVME_IO_READ:
        io_uring_prep_read(sqe, r->fd, r->buffer, (unsigned)r->length, r->offset);
        break;
    case NVME_IO_WRITE:
        io_uring_prep_write(sqe, r->fd, r->buffer, (unsigned)r->length, r->offset);
        break;
    case NVME_IO_SYNC:
        io_uring_prep_fsync(sqe, r->fd, IORING_FSYNC_DATASYNC);
        sqe->off = r->offset;
        sqe->len = (uint32_t)r->length; /* 0 bytes at 0: all */
        break;
    default:
        io_uring_prep_fallocate(sqe, r->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                                (off_t)r->offset, (off_t)r->length);
    }
    io_uring_sqe_set_data(sqe, r);
    ring->unsent = true;
}

void nvme_ring_push(nvme_ring *ring)
{
    if (ring->unsent) {
        (void)io_uring_submit(&ring->ring);
        /* -EAGAIN, -EBUSY: some are left, for the next time. */
        ring->unsent = io_uring_sq_ready(&ring->ring) != 0;
    }
}

bool nvme_ring_finished(const nvme_ring *ring)
{
    return ring->unsent || io_uring_cq_ready(&ring->ring) != 0;
}

nvme_request *nvme_ring_take(nvme_ring *ring)
{
    struct io_uring_cqe *cqe;
    nvme_request *r;

    if (io_uring_cq_ready(&ring->ring) == 0 || io_uring_peek_cqe(&ring->ring, &cqe) != 0) {
        return NULL;
    }
    r = io_uring_cqe_get_data(cqe);
    r->result = cqe->res;
    io_uring_cqe_seen(&ring->ring, cqe);
    return r;
}

void nvme_ring_wait(nvme_ring *ring)
{
    struct io_uring_cqe *cqe;

    nvme_ring_push(ring);
    (void)io_uring_wait_cqe(&ring->ring, &cqe);
}

bool nvme_ring_arm(nvme_ring *ring, void (*kick)(vdcm_queue *), vdcm_queue *queue)
{
    /* Once: the kernel looks whether there is something already. */
    struct epoll_event event = {.events = EPOLLIN | EPOLLONESHOT, .data.ptr = ring};

    if (nvme_ring_finished(ring)) {
        return false;
    }
    acquire();
    ring->kick = kick;
    ring->queue = queue;
    release();
    return epoll_ctl(waiter, EPOLL_CTL_MOD, ring->ring.ring_fd, &event) == 0;
}

void nvme_ring_disarm(nvme_ring *ring)
{
    acquire();
    ring->kick = NULL;
    release();
}
