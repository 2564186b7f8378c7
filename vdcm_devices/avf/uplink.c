/*
 * The uplink: where frames go that are for no port of the switch, and where others come from. A thread
 * waits for what comes, and puts it into a ring that the sweep empties; what goes out is written by the
 * sweep, which never waits: what the other side does not take is dropped and counted.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "engine.h"

enum {
    SLOTS = 256,
    PREFIX = 4, /* of a stream: the frame's length, the highest byte first, as QEMU has it */
    TAG = 4,
    LEAST = 14,
    ROOM = AVF_LONGEST + TAG,
    LEAST_UNITS = 64
};

struct slot {
    uint32_t length;
    uint8_t bytes[ROOM];
};

struct avf_uplink {
    avf_switch *its;
    int kind;
    int fd;     /* the interface, the socket, or a stream's listening socket */
    int client; /* of a stream, -1: nobody; changed by the thread, under the switch's lock */
    int wake;   /* an eventfd */
    struct sockaddr_un peer;
    bool started;
    pthread_t thread;
    atomic_bool stopping;
    atomic_flag kicking;
    vdcm_queue *handle; /* under `kicking` */

    atomic_uint head; /* slots that the sweep has emptied, */
    atomic_uint tail; /* that the thread has filled */
    struct slot slots[SLOTS];
    /* The thread's: where it is in a stream. */
    uint8_t prefix[PREFIX];
    uint32_t got;  /* of the prefix and the frame */
    uint32_t skip; /* bytes of a frame that is too long */

    /* What follows is touched under the switch's lock. */
    uint8_t out[PREFIX + ROOM];
    uint32_t out_at; /* of a stream: a frame that has not been taken as a whole */
    uint32_t out_length;
    avf_uplink_counters counters;
};

/* ---- what comes -------------------------------------------------------------------------------- */

static struct slot *free_slot(avf_uplink *u)
{
    uint32_t tail = atomic_load_explicit(&u->tail, memory_order_relaxed);

    /* Pairs with the store in run(): the slot has been read. */
    return tail - atomic_load_explicit(&u->head, memory_order_acquire) < SLOTS ? &u->slots[tail % SLOTS]
                                                                               : NULL;
}

static void filled(avf_uplink *u, uint32_t length)
{
    uint32_t tail = atomic_load_explicit(&u->tail, memory_order_relaxed);

    if (length >= LEAST && length <= ROOM) {
        u->slots[tail % SLOTS].length = length;
        /* Pairs with the load in pending(): the slot is as it was filled. */
        atomic_store_explicit(&u->tail, tail + 1, memory_order_release);
    }
}

static void hang_up(avf_uplink *u)
{
    avf_lock(u->its);
    close(u->client);
    u->client = -1;
    u->out_at = u->out_length = 0;
    avf_unlock(u->its);
    u->got = u->skip = 0;
}

/* Part of a stream: what is left of a prefix, of a frame, or of one that is too long. */
static bool read_stream(avf_uplink *u, struct slot *slot)
{
    uint8_t waste[4096];
    uint32_t length = (uint32_t)u->prefix[0] << 24 | (uint32_t)u->prefix[1] << 16 |
                      avf_be16(u->prefix + 2);
    uint8_t *to = waste;
    uint32_t most;
    ssize_t count;

    if (u->got < PREFIX) {
        to = u->prefix + u->got;
        most = PREFIX - u->got;
    } else if (u->skip != 0) {
        most = u->skip < sizeof(waste) ? u->skip : sizeof(waste);
    } else {
        to = slot->bytes + (u->got - PREFIX);
        most = length - (u->got - PREFIX);
    }
    count = recv(u->client, to, most, MSG_DONTWAIT);
    if (count <= 0) {
        if (count == 0 || (errno != EAGAIN && errno != EINTR)) {
            hang_up(u);
        }
        return false;
    }
    if (u->skip != 0) {
        u->skip -= (uint32_t)count;
        u->got = u->skip != 0 ? u->got : 0;
        return true;
    }
    u->got += (uint32_t)count;
    if (u->got == PREFIX) {
        length = (uint32_t)u->prefix[0] << 24 | (uint32_t)u->prefix[1] << 16 |
                 avf_be16(u->prefix + 2);
        u->skip = length > ROOM ? length : 0;
        u->got = length == 0 ? 0 : u->got;
    } else if (u->got > PREFIX && u->got - PREFIX == length) {
        filled(u, length);
        u->got = 0;
    }
    return true;
}

static bool read_some(avf_uplink *u, struct slot *slot)
{
    ssize_t count;

    if (u->kind == AVF_STREAM) {
        return u->client >= 0 && read_stream(u, slot);
    }
    count = u->kind == AVF_INTERFACE ? read(u->fd, slot->bytes, ROOM)
                                     : recv(u->fd, slot->bytes, ROOM, MSG_DONTWAIT);
    if (count > 0) {
        filled(u, (uint32_t)count);
    }
    return count >= 0;
}

static void kick(avf_uplink *u)
{
    while (atomic_flag_test_and_set_explicit(&u->kicking, memory_order_acquire)) {
    }
    if (u->handle != NULL) {
        u->its->services->kick(u->handle);
    }
    atomic_flag_clear_explicit(&u->kicking, memory_order_release);
}

static void flush(avf_uplink *u);

static void *wait(void *argument)
{
    avf_uplink *u = argument;

    while (!atomic_load(&u->stopping)) {
        bool full = free_slot(u) == NULL;
        bool more;
        uint64_t count;
        struct pollfd fds[2] = {{.fd = u->wake, .events = POLLIN}};
        struct slot *slot;

        avf_lock(u->its);
        more = u->out_at != u->out_length;
        avf_unlock(u->its);
        fds[1].fd = u->kind == AVF_STREAM && u->client >= 0 ? u->client : u->fd;
        fds[1].events = (short)((full ? 0 : POLLIN) | (more ? POLLOUT : 0));
        /* While the ring is full, it is looked at every millisecond. */
        if (poll(fds, fds[1].events != 0 ? 2 : 1, full ? 1 : -1) < 0 && errno != EINTR) {
            break;
        }
        if ((fds[0].revents & POLLIN) != 0 && read(u->wake, &count, sizeof(count)) < 0) {
            continue;
        }
        if (more) {
            avf_lock(u->its);
            flush(u);
            avf_unlock(u->its);
        }
        if (fds[1].revents == 0) {
            continue;
        }
        if (u->kind == AVF_STREAM && u->client < 0) {
            int client = accept4(u->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

            avf_lock(u->its);
            u->client = client;
            avf_unlock(u->its);
            continue;
        }
        while ((slot = free_slot(u)) != NULL && read_some(u, slot)) {
        }
        kick(u);
    }
    return NULL;
}

/* ---- as the sweep has it ------------------------------------------------------------------------- */

static bool pending(const void *queue)
{
    const avf_uplink *u = queue;

    return atomic_load_explicit(&u->head, memory_order_relaxed) !=
           atomic_load_explicit(&u->tail, memory_order_acquire);
}

static bool take(void *queue, vdcm_worker *worker)
{
    (void)worker;
    return pending(queue);
}

static int deliver(avf_uplink *u, vdcm_worker *worker, const struct slot *slot)
{
    avf_switch *s = u->its;
    avf_frame *f = &s->frame;

    s->source.own = s->source.reached = true;
    s->source.n_pieces = 1;
    s->source.pieces[0].memory = slot->bytes;
    s->source.pieces[0].length = slot->length;
    f->length = slot->length;
    f->head_length = f->at = f->length < AVF_HEAD ? f->length : AVF_HEAD;
    memcpy(f->head, slot->bytes, f->head_length);
    (void)avf_take_tag(f);
    f->outside = true;
    f->kind = avf_kind_of(f);
    avf_classify(f);
    (void)avf_verify(s, worker, f);
    avf_forget(s, avf_mac(f->head + 6));
    return avf_forward(s, NULL, worker, f);
}

static uint64_t run(void *queue, vdcm_worker *worker, uint64_t budget)
{
    avf_uplink *u = queue;
    uint64_t units = 0;

    avf_lock(u->its);
    u->its->now = 0;
    while (units < budget && pending(u)) {
        uint32_t head = atomic_load_explicit(&u->head, memory_order_relaxed);
        const struct slot *slot = &u->slots[head % SLOTS];
        int sent = deliver(u, worker, slot);

        u->counters.received++;
        u->counters.received_bytes += slot->length;
        u->counters.unwanted += sent <= 0;
        units += slot->length < LEAST_UNITS ? LEAST_UNITS : slot->length;
        atomic_store_explicit(&u->head, head + 1, memory_order_release);
    }
    avf_interrupt_all(u->its, worker);
    avf_leave(u->its, worker);
    u->its->source.own = false;
    avf_unlock(u->its);
    return units != 0 ? units : 1;
}

static void abort_all(void *queue, vdcm_worker *worker)
{
    avf_uplink *u = queue;

    (void)worker;
    atomic_store_explicit(&u->head, atomic_load(&u->tail), memory_order_release);
}

static void closed(void *queue)
{
    avf_uplink *u = queue;

    while (atomic_flag_test_and_set_explicit(&u->kicking, memory_order_acquire)) {
    }
    u->handle = NULL;
    atomic_flag_clear_explicit(&u->kicking, memory_order_release);
}

uintptr_t avf_uplink_fastpath(void)
{
    static const vdcm_fastpath table = {.abi = VDCM_FASTPATH_ABI,
                                        .name = "avf-uplink",
                                        .take = take,
                                        .run = run,
                                        .pending = pending,
                                        .abort = abort_all,
                                        .closed = closed};

    return (uintptr_t)&table;
}

/* ---- what goes out ------------------------------------------------------------------------------- */

/* What is left of a stream's frame. */
static void flush(avf_uplink *u)
{
    while (u->client >= 0 && u->out_at < u->out_length) {
        ssize_t count = send(u->client, u->out + u->out_at, u->out_length - u->out_at,
                             MSG_DONTWAIT | MSG_NOSIGNAL);

        if (count < 0) {
            if (errno != EAGAIN && errno != EINTR) {
                u->out_at = u->out_length; /* the thread is about to see that it has gone */
            }
            return;
        }
        u->out_at += (uint32_t)count;
    }
}

static bool send_stream(avf_uplink *u, uint32_t length)
{
    const uint64_t one = 1;

    if (u->client < 0) {
        return false;
    }
    u->out[0] = u->out[1] = 0;
    avf_put16(u->out + 2, length);
    u->out_at = 0;
    u->out_length = PREFIX + length;
    flush(u);
    if (u->out_at == 0) {
        u->out_length = 0; /* nothing of it has been taken: as if it had not come */
        return false;
    }
    if (u->out_at != u->out_length) {
        return write(u->wake, &one, sizeof(one)) > 0; /* the thread does the rest */
    }
    return true;
}

int avf_uplink_send(avf_switch *s, vdcm_worker *worker, const avf_frame *f)
{
    avf_uplink *u = s->uplink;
    uint8_t *to = u->out + PREFIX;
    uint32_t length = f->length + (f->tagged ? TAG : 0);
    bool sent;
    int error;

    if (u->out_at != u->out_length) {
        flush(u);
        if (u->out_at != u->out_length) {
            u->counters.dropped++;
            return 0;
        }
    }
    memcpy(to, f->head, 12);
    if (f->tagged) {
        avf_put16(to + 12, 0x8100);
        avf_put16(to + 14, f->tag);
    }
    memcpy(to + 12 + (length - f->length), f->head + 12, f->head_length - 12);
    error = avf_copy_rest(s, worker, f, to + (length - f->length) + f->head_length);
    if (error != 0) {
        return error;
    }
    if (u->kind == AVF_STREAM) {
        sent = send_stream(u, length);
    } else if (u->kind == AVF_INTERFACE) {
        sent = write(u->fd, to, length) == (ssize_t)length;
    } else {
        sent = sendto(u->fd, to, length, MSG_DONTWAIT | MSG_NOSIGNAL,
                      (const struct sockaddr *)&u->peer, sizeof(u->peer)) == (ssize_t)length;
    }
    u->counters.sent += sent;
    u->counters.sent_bytes += sent ? length : 0;
    u->counters.dropped += !sent;
    return sent;
}

/* ---- the control side ---------------------------------------------------------------------------- */

avf_uplink *avf_uplink_new(avf_switch *s, int kind, int fd, const char *peer)
{
    avf_uplink *u = calloc(1, sizeof(*u));

    if (u == NULL) {
        return NULL;
    }
    u->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (u->wake < 0 || strlen(peer) >= sizeof(u->peer.sun_path)) {
        errno = u->wake < 0 ? errno : ENAMETOOLONG;
        if (u->wake >= 0) {
            close(u->wake);
        }
        free(u);
        return NULL;
    }
    u->its = s;
    u->kind = kind;
    u->fd = fd;
    u->client = -1;
    u->peer.sun_family = AF_UNIX;
    memcpy(u->peer.sun_path, peer, strlen(peer));
    avf_lock(s);
    s->uplink = u;
    avf_unlock(s);
    return u;
}

int avf_uplink_start(avf_uplink *u, uintptr_t queue)
{
    int error;

    u->handle = (vdcm_queue *)queue;
    error = pthread_create(&u->thread, NULL, wait, u);
    u->started = error == 0;
    return -error;
}

void avf_uplink_free(avf_uplink *u)
{
    const uint64_t one = 1;

    avf_lock(u->its);
    u->its->uplink = NULL;
    avf_unlock(u->its);
    atomic_store(&u->stopping, true);
    if (u->started && write(u->wake, &one, sizeof(one)) > 0) {
        pthread_join(u->thread, NULL);
    }
    if (u->client >= 0) {
        close(u->client);
    }
    close(u->wake);
    free(u);
}

void avf_uplink_count(avf_uplink *u, avf_uplink_counters *out)
{
    avf_lock(u->its);
    *out = u->counters;
    avf_unlock(u->its);
}
