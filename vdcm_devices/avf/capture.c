/*
 * What a port sends and receives, as records of a pcap file (draft-ietf-opsawg-pcap, section 5) in a ring
 * that the control thread empties. Of no account while nobody asks for it, and bounded.
 */
#include <errno.h>
#include <stdlib.h>
#include <time.h>

#include "engine.h"

enum { RECORD = 16, TAG = 4, RING = 1 << 20 };

struct avf_capture {
    uint32_t head, tail; /* bytes that have gone out and in, ever; the ring's size divides 2^32 */
    uint64_t dropped;
    uint8_t record[RECORD + AVF_LONGEST + TAG];
    uint8_t ring[RING];
};

static void append(avf_capture *c, uint32_t length)
{
    uint32_t at = c->tail % RING;
    uint32_t here = RING - at < length ? RING - at : length;

    memcpy(c->ring + at, c->record, here);
    memcpy(c->ring, c->record + here, length - here);
    c->tail += length;
}

void avf_capture_frame(avf_port *p, vdcm_worker *worker, const avf_frame *f)
{
    avf_capture *c = p->capture;
    uint32_t tag = f->tagged ? TAG : 0;
    uint32_t length = f->length + tag;
    uint8_t *to;
    struct timespec now;

    if (c == NULL) {
        return;
    }
    if (RING - (c->tail - c->head) < RECORD + length) {
        c->dropped++;
        return;
    }
    clock_gettime(CLOCK_REALTIME, &now);
    memcpy(c->record, (uint32_t[]){(uint32_t)now.tv_sec, (uint32_t)(now.tv_nsec / 1000), length, length},
           RECORD);
    to = c->record + RECORD;
    memcpy(to, f->head, 12);
    if (f->tagged) {
        avf_put16(to + 12, 0x8100);
        avf_put16(to + 14, f->tag);
    }
    memcpy(to + 12 + tag, f->head + 12, f->head_length - 12);
    if (avf_copy_rest(p->its, worker, f, to + tag + f->head_length) == 0) {
        append(c, RECORD + length);
    }
}

int avf_capture_set(avf_port *p, bool on)
{
    avf_capture *made = on ? calloc(1, sizeof(*made)) : NULL;
    avf_capture *old;

    if (on && made == NULL) {
        return -ENOMEM;
    }
    avf_lock(p->its);
    old = p->capture;
    p->capture = made;
    avf_unlock(p->its);
    free(old);
    return 0;
}

uint32_t avf_capture_take(avf_port *p, uint8_t *to, uint32_t most, uint64_t *dropped)
{
    avf_capture *c;
    uint32_t length = 0;

    avf_lock(p->its);
    c = p->capture;
    if (c != NULL) {
        uint32_t at = c->head % RING;

        length = c->tail - c->head < most ? c->tail - c->head : most;
        length = RING - at < length ? RING - at : length;
        memcpy(to, c->ring + at, length);
        c->head += length;
        *dropped = c->dropped;
    }
    avf_unlock(p->its);
    return length;
}
