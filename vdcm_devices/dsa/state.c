/*
 * Accepted and unfinished work as bytes, for suspend and resume (Scalable IOV, Table 4-1). What a
 * batch had fetched is not in them: it is read again.
 */
#include <errno.h>
#include <string.h>

#include "engine.h"

#define MAGIC UINT32_C(0x51415344) /* "DSAQ" */
enum { VERSION = 1 };

struct header {
    uint32_t magic;
    uint16_t version;
    uint8_t busy;   /* a saved_work follows */
    uint8_t batch;  /* another one: the batch it belongs to */
    uint8_t failed; /* a descriptor of the batch did */
    uint8_t zero[3];
    uint32_t count; /* descriptors, at the end */
    uint32_t next[DSA_PORTALS];
};

struct saved_work {
    dsa_descriptor d;
    dsa_tags source; /* or what shares its place */
    dsa_tags destination;
    uint32_t done;
    uint8_t started;
    uint8_t backwards;
    uint8_t interrupt;
    uint8_t result;
};

static struct saved_work to_saved(const dsa_work *w)
{
    return (struct saved_work){.d = w->d,
                               .source = w->source,
                               .destination = w->destination,
                               .done = w->done,
                               .started = w->started,
                               .backwards = w->backwards,
                               .interrupt = w->interrupt,
                               .result = w->result};
}

static dsa_work to_work(const struct saved_work *s, bool member)
{
    return (dsa_work){.d = s->d,
                      .op = dsa_operation_of(&s->d),
                      .source = s->source,
                      .destination = s->destination,
                      .done = s->done,
                      .started = s->started,
                      .backwards = s->backwards,
                      .interrupt = s->interrupt,
                      .result = s->result,
                      .member = member};
}

/* Could it have come so far? */
static bool possible(const dsa_queue *q, const struct saved_work *s, bool batch)
{
    const dsa_descriptor *d = &s->d;
    bool is_batch = dsa_opcode(d) == DSA_OP_BATCH;

    if (!s->started) {
        return !batch && s->done == 0;
    }
    if (dsa_operation_of(d) == NULL || is_batch != batch) {
        return false;
    }
    if (batch) {
        return d->count <= q->settings.max_batch && s->done <= d->count;
    }
    switch (dsa_opcode(d)) {
    case DSA_OP_APPLY_DELTA:
        return d->delta_size <= q->settings.max_transfer && s->done <= d->delta_size;
    case DSA_OP_CREATE_DELTA:
        if (to_work(s, false).delta_size > d->create.max_size || s->done % 8 != 0) {
            return false;
        }
        break;
    }
    return d->size <= q->settings.max_transfer && s->done <= d->size;
}

size_t dsa_queue_save(const dsa_queue *q, void *buffer, size_t room)
{
    uint32_t head = atomic_load_explicit(&q->head, memory_order_relaxed);
    struct header h = {.magic = MAGIC,
                       .version = VERSION,
                       .busy = q->busy,
                       .batch = q->batch.active,
                       .failed = q->batch.failed,
                       .count = dsa_queue_occupancy(q)};
    size_t size = sizeof(h) + (size_t)(h.busy + h.batch) * sizeof(struct saved_work) +
                  (size_t)h.count * sizeof(dsa_descriptor);
    uint8_t *out = buffer;

    if (room < size) {
        return size;
    }
    for (int i = 0; i < DSA_PORTALS; i++) {
        h.next[i] = q->portals[i].next;
    }
    memcpy(out, &h, sizeof(h));
    out += sizeof(h);
    for (int i = 0; i < 2; i++) {
        if (i == 0 ? q->busy : q->batch.active) {
            struct saved_work s = to_saved(i == 0 ? &q->work : &q->batch.work);

            memcpy(out, &s, sizeof(s));
            out += sizeof(s);
        }
    }
    for (uint32_t i = 0; i < h.count; i++) {
        memcpy(out, &q->entries[(head + i) & (q->capacity - 1)], sizeof(dsa_descriptor));
        out += sizeof(dsa_descriptor);
    }
    return size;
}

static bool reserve(dsa_queue *q, uint32_t count)
{
    uint32_t now;

    if (q->wq == NULL) {
        return count <= q->settings.size;
    }
    now = atomic_load_explicit(&q->wq->occupancy, memory_order_relaxed);
    while (now <= q->wq->size && count <= q->wq->size - now) {
        if (atomic_compare_exchange_weak_explicit(&q->wq->occupancy, &now, now + count,
                                                  memory_order_acquire, memory_order_relaxed)) {
            (void)dsa_hold(q, count); /* it has them, whatever its share is now */
            return true;
        }
    }
    return false;
}

int dsa_queue_restore(dsa_queue *q, const void *buffer, size_t length)
{
    const uint8_t *in = buffer;
    struct saved_work saved[2];
    struct header h;
    uint32_t tail;

    if (q->busy || q->batch.active || dsa_queue_occupancy(q) != 0) {
        return -EBUSY;
    }
    if (q->capacity == 0 || length < sizeof(h)) {
        return -EINVAL;
    }
    memcpy(&h, in, sizeof(h));
    in += sizeof(h);
    if (h.magic != MAGIC || h.version != VERSION || h.busy > 1 || h.batch > 1 ||
        h.count > DSA_MAX_SIZE ||
        length != sizeof(h) + (size_t)(h.busy + h.batch) * sizeof(struct saved_work) +
                      (size_t)h.count * sizeof(dsa_descriptor)) {
        return -EINVAL;
    }
    for (int i = 0; i < 2; i++) {
        if (i == 0 ? h.busy : h.batch) {
            memcpy(&saved[i], in, sizeof(saved[i]));
            in += sizeof(saved[i]);
            if (!possible(q, &saved[i], i == 1)) {
                return -EINVAL;
            }
        }
    }
    for (int i = 0; i < DSA_PORTALS; i++) {
        if (h.next[i] >= DSA_SLOTS) {
            return -EINVAL;
        }
    }
    if (!reserve(q, h.count)) {
        return -ENOSPC;
    }
    q->busy = h.busy;
    q->batch.active = h.batch;
    q->batch.failed = h.failed;
    q->batch.fetched = 0;
    if (h.busy) {
        q->work = to_work(&saved[0], h.batch);
    }
    if (h.batch) {
        q->batch.work = to_work(&saved[1], false);
    }
    for (int i = 0; i < DSA_PORTALS; i++) {
        q->portals[i].next = h.next[i];
    }
    tail = atomic_load_explicit(&q->tail, memory_order_relaxed);
    for (uint32_t i = 0; i < h.count; i++) {
        memcpy(&q->entries[(tail + i) & (q->capacity - 1)], in, sizeof(dsa_descriptor));
        in += sizeof(dsa_descriptor);
    }
    atomic_store_explicit(&q->tail, tail + h.count, memory_order_release);
    return 0;
}
