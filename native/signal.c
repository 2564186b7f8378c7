/*
 * Signals eventfds that belong to clients.
 *
 * write() to an eventfd blocks while its counter is full, unless O_NONBLOCK is set; but that flag
 * and the counter are in the open file, which is the client's too, so neither setting the one nor
 * looking at the other holds until the write. The kernel's own way to signal an eventfd never
 * blocks, and Linux AIO has it done for us: the completion of a request signals the eventfd named in
 * it (aio_resfd). The request is a read of nothing from an empty file, complete when submitted.
 * (Measured: 285 ns, where poll() and write() take 245 ns.)
 */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <linux/aio_abi.h>

#include "ims.h"

enum {
    REQUESTS = 128,   /* of the context; the kernel makes room for at least as many completions */
    REAP_EVERY = 32,  /* submissions, so that the completions' removal costs next to nothing */
    REAP = 64,        /* completions at a time */
    SUBMIT_TRIES = 16 /* a full context is soon empty again, a kernel without memory is not */
};

static pthread_once_t once = PTHREAD_ONCE_INIT;
static aio_context_t context; /* of the whole process; 0: there is none */
static int empty_file = -1;
static atomic_uint submitted;

static void set_up(void)
{
    empty_file = memfd_create("vdcm-signal", MFD_CLOEXEC);
    if (empty_file >= 0 && syscall(SYS_io_setup, REQUESTS, &context) < 0) {
        close(empty_file);
        context = 0;
    }
}

/* Nobody wants to know of the completions; they only take up room. */
static void reap(void)
{
    struct io_event events[REAP];

    (void)syscall(SYS_io_getevents, context, 0L, (long)REAP, events, NULL);
}

/* After fork() the child has no context: then submitting fails with EINVAL. */
static int submit(int eventfd)
{
    struct iocb request = {
        .aio_lio_opcode = IOCB_CMD_PREAD,
        .aio_fildes = (uint32_t)empty_file,
        .aio_flags = IOCB_FLAG_RESFD,
        .aio_resfd = (uint32_t)eventfd,
    };
    struct iocb *requests[1] = {&request};

    for (int i = 0; i < SUBMIT_TRIES; i++) {
        if (syscall(SYS_io_submit, context, 1L, requests) == 1) {
            if (atomic_fetch_add_explicit(&submitted, 1, memory_order_relaxed) % REAP_EVERY == 0) {
                reap();
            }
            return 0;
        }
        if (errno != EAGAIN) {
            break;
        }
        reap();
    }
    return -errno;
}

static int poll_and_write(int eventfd)
{
    struct pollfd poller = {.fd = eventfd, .events = POLLOUT};

    if (poll(&poller, 1, 0) < 0) {
        return -errno;
    }
    if (poller.revents & POLLNVAL) {
        return -EBADF;
    }
    if ((poller.revents & POLLOUT) && eventfd_write(eventfd, 1) < 0 && errno != EAGAIN) {
        return -errno;
    }
    return 0;
}

bool vdcm_signal_never_blocks(void)
{
    pthread_once(&once, set_up);
    return context != 0;
}

int vdcm_signal(int eventfd)
{
    if (vdcm_signal_never_blocks() && submit(eventfd) == 0) {
        return 0;
    }
    return poll_and_write(eventfd);
}
