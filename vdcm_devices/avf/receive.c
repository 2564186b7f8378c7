/*
 * Receive queues: fetch descriptors, fill buffers, write back (X710 datasheet, 8.3.2, legacy
 * descriptors of 32 bytes). All of it on behalf of the receiving ADI.
 */
#include <errno.h>

#include "engine.h"

enum {
    DESCRIPTOR = 32,
    BUFFERS = 10, /* of one frame: AVF_MAX_FRAME in buffers of 1 KiB */
    AHEAD = 2, /* buffers; so many are expected */
    TAG = 4
};

/* Bits of the second word. */
#define DD (UINT64_C(1) << 0)
#define EOP (UINT64_C(1) << 1)
#define L2TAG1P (UINT64_C(1) << 2)
#define L3L4P (UINT64_C(1) << 3)
#define UMBCAST_SHIFT 9
#define RSS_HASH (UINT64_C(3) << 12)
#define LPBK (UINT64_C(1) << 14)
#define IPE (UINT64_C(1) << 22)
#define L4E (UINT64_C(1) << 23)
#define PTYPE_SHIFT 30
#define LENGTH_SHIFT 38

struct piece {
    uint8_t *memory;
    uint32_t length;
};

struct filling {
    const avf_frame *f;
    const avf_source *source;
    uint64_t *descriptors[BUFFERS];
    uint32_t count;
    uint32_t n_pieces;
    struct piece pieces[BUFFERS * AVF_PIECES];
    uint32_t head_length;
    const uint8_t *head;
    uint32_t length; /* of the frame as it is received */
    uint32_t buffer;
    uint64_t first;  /* words of the last descriptor */
    uint64_t second;
};

struct cursor {
    const struct piece *piece;
    uint32_t at;
};

static void put(struct cursor *to, const uint8_t *from, uint32_t length)
{
    while (length != 0) {
        uint32_t here = to->piece->length - to->at;

        here = here < length ? here : length;
        memcpy(to->piece->memory + to->at, from, here);
        to->at += here;
        from += here;
        length -= here;
        if (to->at == to->piece->length) {
            to->piece++;
            to->at = 0;
        }
    }
}

static void write_back(uint64_t *descriptor, uint64_t first, uint64_t second)
{
    __atomic_store_n(&descriptor[0], first, __ATOMIC_RELAXED);
    __atomic_store_n(&descriptor[2], 0, __ATOMIC_RELAXED);
    __atomic_store_n(&descriptor[3], 0, __ATOMIC_RELAXED);
    /* DD is in this word, last: pairs with the driver's read barrier after it has seen it (Linux:
     * dma_rmb). The data come before it, too. */
    __atomic_store_n(&descriptor[1], second, __ATOMIC_RELEASE);
}

static int fill(void *argument)
{
    const struct filling *l = argument;
    struct cursor to = {.piece = l->pieces};
    uint32_t left = l->f->length - l->f->head_length;
    uint32_t at = l->f->at;

    put(&to, l->head, l->head_length);
    for (uint32_t i = 0; left != 0; i++) {
        uint32_t here = l->source->pieces[i].length;

        if (at >= here) {
            at -= here;
            continue;
        }
        here = here - at < left ? here - at : left;
        put(&to, l->source->pieces[i].memory + at, here);
        at = 0;
        left -= here;
    }
    for (uint32_t i = 0; i + 1 < l->count; i++) {
        write_back(l->descriptors[i], 0, DD | (uint64_t)l->buffer << LENGTH_SHIFT);
    }
    write_back(l->descriptors[l->count - 1], l->first, l->second);
    return 0;
}

/* A function that is no bus master has no place for frames, as one that is about to be reset. */
static int spoilt(avf_port *p, vdcm_worker *worker, uint32_t code, uint32_t queue,
                  uint64_t address, int error)
{
    if (error != -EPERM) {
        avf_offend(p, worker, code, false, queue, address, error);
    }
    return -ENOBUFS;
}

/* Descriptors from head + n_fetched on, up to the end of the ring. */
static int fetch(avf_port *p, vdcm_worker *worker, uint32_t queue, uint32_t available)
{
    avf_rx *q = &p->rx[queue];
    uint32_t at = (q->head + q->n_fetched) % q->is.length;
    uint64_t address = q->is.address + (uint64_t)at * DESCRIPTOR;
    uint32_t count = q->is.length - at;
    void *memory;
    uint64_t here;
    int error;

    memmove(q->fetched, q->fetched + q->first, q->n_fetched * sizeof(q->fetched[0]));
    q->first = 0;
    count = count < available - q->n_fetched ? count : available - q->n_fetched;
    count = count < AVF_FETCH - q->n_fetched ? count : AVF_FETCH - q->n_fetched;
    error = avf_reach(p->its, worker, &p->its->ring, address, (uint64_t)count * DESCRIPTOR, false,
                      &memory, &here);
    if (error == 0) {
        uint64_t words[AVF_FETCH * DESCRIPTOR / 8];

        count = (uint32_t)(here / DESCRIPTOR);
        error = count == 0 ? -EFAULT
                             : avf_copy(p->its, worker, words, memory, count * DESCRIPTOR);
        for (uint32_t i = 0; error == 0 && i < count; i++) {
            q->fetched[q->n_fetched++] = words[i * (DESCRIPTOR / 8)];
        }
    }
    return error == 0 ? 0 : spoilt(p, worker, AVF_BAD_RING, queue, address, error);
}

/* The memory of descriptor i of the frame, and of its buffer. */
static int reach(avf_port *p, vdcm_worker *worker, uint32_t queue, struct filling *l, uint32_t i)
{
    avf_switch *s = p->its;
    avf_rx *q = &p->rx[queue];
    uint64_t ring = q->is.address + (uint64_t)((q->head + i) % q->is.length) * DESCRIPTOR;
    uint64_t address = q->fetched[q->first + i];
    uint32_t left = l->length - i * l->buffer;
    void *memory;
    uint64_t here;
    int error = avf_reach(s, worker, &s->ring, ring, DESCRIPTOR, true, &memory, &here);

    if (error != 0 || here != DESCRIPTOR) {
        return spoilt(p, worker, AVF_BAD_RING, queue, ring, error);
    }
    l->descriptors[i] = memory;
    left = left < l->buffer ? left : l->buffer;
    while (left != 0) {
        error = l->n_pieces == BUFFERS * AVF_PIECES
                    ? -EFAULT
                    : avf_reach(s, worker, &s->to, address, left, true, &memory, &here);
        if (error != 0) {
            return spoilt(p, worker, AVF_BAD_BUFFER, queue, address, error);
        }
        l->pieces[l->n_pieces++] = (struct piece){.memory = memory, .length = (uint32_t)here};
        address += here;
        left -= (uint32_t)here;
    }
    return 0;
}

static uint64_t status(const avf_frame *f)
{
    uint64_t word = DD | EOP | (f->outside ? 0 : LPBK) | (uint64_t)f->kind << UMBCAST_SHIFT |
                    (uint64_t)f->packet_type << PTYPE_SHIFT;

    if (f->summed) {
        word |= L3L4P | (f->bad_ip ? IPE : 0) | (f->bad_l4 ? L4E : 0);
    }
    return word;
}

int avf_receive(avf_port *to, vdcm_worker *other, const avf_frame *f)
{
    avf_switch *s = to->its;
    struct filling l; /* not made zero: most of it is not needed */
    uint8_t tagged[AVF_HEAD + TAG];
    uint32_t queue = 0;
    uint32_t available;
    uint32_t tail;
    avf_rx *q;
    int error;

    l.f = f;
    l.source = &s->source;
    l.n_pieces = 0;
    l.length = f->length;
    l.head = f->head;
    l.head_length = f->head_length;
    l.first = 0;
    l.second = status(f);
    if (f->tagged && to->filters.strip) {
        l.first = (uint64_t)f->tag << 16;
        l.second |= L2TAG1P;
    } else if (f->tagged) {
        memcpy(tagged, f->head, 12);
        avf_put16(tagged + 12, 0x8100);
        avf_put16(tagged + 14, f->tag);
        memcpy(tagged + 16, f->head + 12, f->head_length - 12);
        l.head = tagged;
        l.head_length += TAG;
        l.length += TAG;
    }
    if (f->hashed != 0 && (to->types >> f->hash_type & 1) != 0) {
        uint32_t hash = avf_hash(to, f);

        queue = to->table[hash % AVF_TABLE];
        l.first |= (uint64_t)hash << 32;
        l.second |= RSS_HASH;
    }
    q = &to->rx[queue];
    if (!q->enabled || l.length + 4 > q->is.max_frame) {
        return -ENOBUFS;
    }
    tail = atomic_load_explicit(avf_at(to, AVF_QRX_TAIL, queue), memory_order_acquire);
    if (tail >= q->is.length) {
        return spoilt(to, other, AVF_BAD_TAIL, queue, tail, 0);
    }
    l.buffer = q->is.buffer;
    l.count = (l.length + l.buffer - 1) / l.buffer;
    available = tail >= q->head ? tail - q->head : tail + q->is.length - q->head;
    if (l.count > available || l.count > BUFFERS) {
        return -ENOBUFS;
    }
    while (q->n_fetched < l.count) {
        error = fetch(to, other, queue, available);
        if (error != 0) {
            return error;
        }
    }
    for (uint32_t i = 0; i < l.count; i++) {
        error = reach(to, other, queue, &l, i);
        if (error != 0) {
            return error;
        }
    }
    l.second |= (uint64_t)(l.length - (l.count - 1) * l.buffer) << LENGTH_SHIFT;
    error = s->services->guarded(other, fill, &l);
    if (error != 0) {
        /* Whose memory was cut short? The sender's, or this one's. */
        return avf_probe_source(s, other) != 0
                   ? -EIO
                   : spoilt(to, other, AVF_BAD_BUFFER, queue, q->fetched[q->first], error);
    }
    q->head = (q->head + l.count) % q->is.length;
    q->first += l.count;
    q->n_fetched -= l.count;
    if (q->n_fetched > AHEAD) {
        avf_expect(&s->to, q->fetched[q->first + AHEAD]);
    }
    avf_cause(to, q->is.message, q->is.itr);
    return 0;
}
