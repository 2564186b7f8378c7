/*
 * Transmit queues: descriptors to frames (X710 datasheet, 8.4.2). A frame is a context descriptor, if it
 * needs one, and data descriptors, the last of which says so (EOP). Descriptors that ask for it (RS)
 * are written back when their frame has been sent.
 */
#include <errno.h>

#include "engine.h"

enum {
    DESCRIPTOR = 16,
    DATA = 0,
    CONTEXT = 1,
    DONE = 15,
    AHEAD = 4,       /* descriptors; so many buffers are expected */
    LEAST_UNITS = 64 /* bytes that a frame counts, at least */
};
#define TUNNEL UINT64_C(3)             /* in the first word of a context */
#define L2TAG2 (UINT64_C(3) << 6)      /* in its second */
#define EOP (UINT64_C(1) << 4)
#define RS (UINT64_C(1) << 5)

static uint32_t waiting(const avf_tx *q)
{
    return q->tail >= q->head ? q->tail - q->head : q->tail + q->is.length - q->head;
}

/* `count` descriptors from head on: between the ring and `fetched`, by `body`. */
struct run {
    avf_tx_descriptor *fetched;
    uint64_t *ring;
    uint32_t count;
};

static int read_run(void *argument)
{
    const struct run *r = argument;

    for (uint32_t i = 0; i < r->count; i++) {
        r->fetched[i].address = __atomic_load_n(&r->ring[2 * i], __ATOMIC_RELAXED);
        r->fetched[i].word = __atomic_load_n(&r->ring[2 * i + 1], __ATOMIC_RELAXED);
    }
    return 0;
}

static int write_run(void *argument)
{
    const struct run *r = argument;

    for (uint32_t i = 0; i < r->count; i++) {
        if ((r->fetched[i].word & RS) != 0) {
            /* Pairs with the driver's read barrier: it has seen that the device is done with it. */
            __atomic_store_n(&r->ring[2 * i + 1], r->fetched[i].word | DONE, __ATOMIC_RELEASE);
        }
    }
    return 0;
}

static int each_run(avf_port *p, vdcm_worker *worker, uint32_t queue, uint32_t count,
                    int (*body)(void *))
{
    const vdcm_services *s = p->its->services;
    const avf_tx *q = &p->tx[queue];
    uint32_t done = 0;

    while (done < count) {
        uint32_t at = (q->head + done) % q->is.length;
        uint64_t address = q->is.address + (uint64_t)at * DESCRIPTOR;
        struct run r = {.fetched = &p->its->fetched[done], .count = count - done};
        void *memory;
        uint64_t here;
        int error;

        r.count = r.count < q->is.length - at ? r.count : q->is.length - at;
        error = s->reach(worker, s->primary(worker), address, (uint64_t)r.count * DESCRIPTOR,
                         body == write_run, &memory, &here);
        if (error == 0) {
            r.ring = memory;
            r.count = (uint32_t)(here / DESCRIPTOR);
            error = r.count == 0 ? -EFAULT : s->guarded(worker, body, &r);
        }
        if (error != 0) {
            if (error != -EPERM) {
                avf_offend(p, worker, AVF_BAD_RING, true, queue, address, error);
            }
            return error;
        }
        done += r.count;
    }
    return 0;
}

/* The frame that begins at `d`: how many descriptors it has, 0 if its end is not among `count`;
 * negative: the driver has been reported. */
static int parse(avf_port *p, vdcm_worker *worker, uint32_t queue, const avf_tx_descriptor *d,
                 uint32_t count)
{
    avf_source *source = &p->its->source;

    source->n_buffers = source->n_pieces = 0;
    source->length = 0;
    source->context = 0;
    source->reached = source->own = false;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t length = d[i].word >> 34 & 0x3fff;
        uint32_t type = d[i].word & 15;

        if (type == CONTEXT && source->n_buffers == 0 && (d[i].address & TUNNEL) == 0 &&
            (d[i].word & L2TAG2) == 0) {
            source->context = d[i].word;
            continue;
        }
        if (type != DATA) { /* or a context for what is not offered */
            avf_offend(p, worker, AVF_BAD_TYPE, true, queue, d[i].word, 0);
            return -1;
        }
        if (length == 0) {
            avf_offend(p, worker, AVF_BAD_LENGTH, true, queue, 0, 0);
            return -1;
        }
        if (source->n_buffers == 0) {
            source->word = d[i].word;
        }
        source->buffers[source->n_buffers].address = d[i].address;
        source->buffers[source->n_buffers++].length = length;
        source->length += length;
        if ((d[i].word & EOP) != 0) {
            return (int)i + 1;
        }
    }
    return 0;
}

uint64_t avf_transmit(avf_port *p, vdcm_worker *worker, uint32_t queue, uint64_t budget,
                      uint32_t *frames)
{
    avf_switch *s = p->its;
    avf_tx *q = &p->tx[queue];
    uint32_t count = waiting(q) < AVF_MAX_CHAIN ? waiting(q) : AVF_MAX_CHAIN;
    uint32_t next = 0;
    uint64_t units = 0;
    bool reports = false;

    if (each_run(p, worker, queue, count, read_run) != 0) {
        q->stuck = q->tail; /* until the driver stores again, if it is only that it is no bus master */
        return 0;
    }
    while (next < count && units < budget && *frames != 0 && !p->broken) {
        int used = parse(p, worker, queue, &s->fetched[next], count - next);
        int64_t sent;

        if (used <= 0) {
            if (used == 0 && next == 0) {
                q->stuck = q->tail;
                if (count == AVF_MAX_CHAIN || count == q->is.length - 1) {
                    avf_offend(p, worker, AVF_ENDLESS, true, queue, count, 0);
                }
            }
            break;
        }
        if (next + (uint32_t)used + AHEAD < count) {
            avf_expect(&s->from, s->fetched[next + (uint32_t)used + AHEAD].address);
        }
        sent = avf_send(p, worker, queue);
        if (sent < 0) {
            avf_offend(p, worker, AVF_BAD_BUFFER, true, queue, s->source.buffers[0].address,
                       (int)sent);
        }
        if (p->broken) {
            break;
        }
        units += sent < LEAST_UNITS ? LEAST_UNITS : (uint64_t)sent;
        for (int i = 0; i < used; i++) {
            reports |= (s->fetched[next + (uint32_t)i].word & RS) != 0;
        }
        next += (uint32_t)used;
        (*frames)--;
    }
    s->source.reached = false;
    if (reports && each_run(p, worker, queue, next, write_run) == 0) {
        avf_cause(p, q->is.message, q->is.itr);
    }
    q->head = (q->head + next) % q->is.length;
    return units;
}
