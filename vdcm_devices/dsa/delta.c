/*
 * Delta records (8.3.8, 8.3.9): ten bytes for each eight that differ, their offset divided by eight
 * and what they are in the second source. Both operations work on copies of a piece, so that the
 * guest cannot change what has been looked at.
 */
#include <string.h>

#include "engine.h"

enum {
    DELTA = 10,
    PIECE = 2048,           /* bytes compared at a time: up to PIECE / 8 deltas */
    MAX_TRANSFER = 0x80000, /* an offset has 16 bits */
    MIN_RECORD = 80
};

int dsa_create_delta_check(dsa_queue *q, dsa_work *w)
{
    const dsa_descriptor *d = &w->d;

    if (d->size > MAX_TRANSFER) {
        return DSA_STATUS_BAD_SIZE;
    }
    if ((d->source | d->source2 | d->size) % 8 != 0) {
        return DSA_STATUS_MISALIGNED;
    }
    if (d->create.max_size < MIN_RECORD || d->create.max_size > q->settings.max_transfer) {
        return DSA_STATUS_BAD_FIELD;
    }
    if (dsa_overlap(d->create.record, d->create.max_size, d->source, d->size) ||
        dsa_overlap(d->create.record, d->create.max_size, d->source2, d->size)) {
        return DSA_STATUS_OVERLAP;
    }
    w->delta_size = 0;
    return DSA_MORE;
}

/* Result is 0, 1 or 2; the mask has a bit for each. */
static int judge(const dsa_work *w)
{
    if (dsa_flags(&w->d) & DSA_FLAG_CHECK_RESULT &&
        !(w->d.create.expected_mask >> w->result & 1)) {
        return DSA_STATUS_FALSE_PREDICATE;
    }
    return DSA_STATUS_SUCCESS;
}

int dsa_create_delta_step(dsa_queue *q, dsa_work *w, uint64_t limit, uint64_t *units)
{
    const dsa_descriptor *d = &w->d;
    uint32_t room = (d->create.max_size - w->delta_size) / DELTA;
    uint8_t one[PIECE];
    uint8_t two[PIECE];
    uint8_t deltas[PIECE / 8 * DELTA];
    uint32_t at[PIECE / 8]; /* where the differences are */
    uint32_t count = 0;
    uint32_t length = d->size - w->done;
    uint32_t compared;
    uint32_t usable;
    uint32_t written;
    bool fault;

    length = length < PIECE ? length : PIECE;
    length = length < limit ? length : (uint32_t)limit & ~7u;
    usable = dsa_read(q, w, w->data_pasid, DSA_SOURCE, d->source + w->done, one, length);
    fault = usable < length;
    if (usable > 0) {
        uint32_t second =
            dsa_read(q, w, w->data_pasid, DSA_SOURCE2, d->source2 + w->done, two, usable);

        fault |= second < usable; /* this one comes first, and is the one that is noted */
        usable = second;
    }
    for (compared = 0; compared < usable; compared += 8) {
        uint16_t offset = (uint16_t)((w->done + compared) / 8);

        if (memcmp(one + compared, two + compared, 8) == 0) {
            continue;
        }
        if (count == room) {
            break;
        }
        at[count] = compared;
        memcpy(deltas + count * DELTA, &offset, 2);
        memcpy(deltas + count * DELTA + 2, two + compared, 8);
        count++;
    }
    written = dsa_write(q, w, DSA_DESTINATION, d->create.record + w->delta_size, deltas,
                        count * DELTA) / DELTA;
    *units += compared + written * DELTA;
    w->delta_size += written * DELTA;
    w->result = w->delta_size != 0;
    if (written < count) { /* what is not in the record counts as not compared */
        w->done += at[written];
        return dsa_fault(w, w->fault_address, w->write, w->operand);
    }
    w->done += compared;
    if (compared < usable) {
        w->result = 2;
        return judge(w);
    }
    if (fault) {
        return dsa_fault(w, w->fault_address, w->write, w->operand);
    }
    return w->done < d->size ? DSA_MORE : judge(w);
}

int dsa_apply_delta_check(dsa_queue *q, dsa_work *w)
{
    const dsa_descriptor *d = &w->d;

    if (d->size > MAX_TRANSFER) {
        return DSA_STATUS_BAD_SIZE;
    }
    if ((d->destination | d->size) % 8 != 0) {
        return DSA_STATUS_MISALIGNED;
    }
    if (d->delta_size < DELTA || d->delta_size > q->settings.max_transfer) {
        return DSA_STATUS_BAD_FIELD;
    }
    if (dsa_overlap(d->delta, d->delta_size, d->destination, d->size)) {
        return DSA_STATUS_OVERLAP;
    }
    w->offset = 0;
    return DSA_MORE;
}

/* `done` counts bytes of the record; what is left at its end and is no delta is ignored. */
int dsa_apply_delta_step(dsa_queue *q, dsa_work *w, uint64_t limit, uint64_t *units)
{
    const dsa_descriptor *d = &w->d;
    uint8_t deltas[PIECE / DELTA * DELTA];
    uint32_t length = (d->delta_size - w->done) / DELTA * DELTA;
    uint32_t usable;

    length = length < sizeof(deltas) ? length : (uint32_t)sizeof(deltas);
    length = length < limit ? length : (uint32_t)limit / DELTA * DELTA;
    usable = dsa_read(q, w, w->data_pasid, DSA_SOURCE, d->delta + w->done, deltas, length);
    for (uint32_t i = 0; i + DELTA <= usable; i += DELTA) {
        uint16_t offset;

        memcpy(&offset, deltas + i, 2);
        if (offset * 8u >= d->size) {
            return DSA_STATUS_DELTA_OFFSET;
        }
        if (offset < w->offset) {
            return DSA_STATUS_DELTA_ORDER;
        }
        if (dsa_write(q, w, DSA_DESTINATION, d->destination + offset * 8u, deltas + i + 2, 8) < 8) {
            return dsa_fault(w, w->fault_address, w->write, w->operand);
        }
        w->offset = offset + 1u;
        w->done += DELTA;
        *units += DSA_OVERHEAD;
    }
    if (usable < length) {
        return dsa_fault(w, w->fault_address, w->write, w->operand);
    }
    return d->delta_size - w->done >= DELTA ? DSA_MORE : DSA_STATUS_SUCCESS;
}
