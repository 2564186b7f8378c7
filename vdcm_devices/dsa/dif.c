/*
 * Data integrity fields (8.3.14 to 8.3.17, appendix B): check, insert, strip and update, block by
 * block, each on a copy of the block: what was checked is what is written.
 */
#include <string.h>

#include "engine.h"

enum { MAX_BLOCK = 4104, FIELD = 8 };

static const uint16_t block_sizes[] = {512, 520, 4096, 4104};

/* The bytes of one block in the source, and in the destination. */
struct shape {
    uint32_t block;
    uint32_t source;
    uint32_t destination; /* 0: none is written */
};

static struct shape shape_of(const dsa_descriptor *d)
{
    uint32_t block = block_sizes[d->dif.flags & DSA_DIF_BLOCK_SIZE];
    uint32_t both = block + FIELD;

    switch (dsa_opcode(d)) {
    case DSA_OP_DIF_INSERT:
        return (struct shape){block, block, both};
    case DSA_OP_DIF_STRIP:
        return (struct shape){block, both, block};
    case DSA_OP_DIF_UPDATE:
        return (struct shape){block, both, both};
    default:
        return (struct shape){block, both, 0};
    }
}

int dsa_dif_check(dsa_queue *q, dsa_work *w)
{
    const dsa_descriptor *d = &w->d;
    struct shape shape = shape_of(d);
    uint64_t destination = (uint64_t)d->size / shape.source * shape.destination;

    (void)q;
    if (d->dif.flags & ~(DSA_DIF_BLOCK_SIZE | DSA_DIF_INVERT_SEED | DSA_DIF_INVERT_RESULT) ||
        d->dif.destination_flags & 0x07) {
        return DSA_STATUS_RESERVED_FIELD;
    }
    /* The specification wants whole blocks and does not say what happens else. */
    if (d->size % shape.source != 0) {
        return DSA_STATUS_BAD_SIZE;
    }
    if (destination != 0 && dsa_overlap(d->source, d->size, d->destination, destination)) {
        return DSA_STATUS_OVERLAP;
    }
    w->source = d->dif.source;
    w->destination = d->dif.destination;
    return DSA_MORE;
}

uint64_t dsa_dif_written(const dsa_work *w)
{
    struct shape shape = shape_of(&w->d);

    return (uint64_t)(w->done / shape.source) * shape.destination;
}

/* A field as it lies in memory: most significant byte first. */
struct field {
    uint16_t guard;
    uint16_t app;
    uint32_t ref;
};

static struct field field_at(const uint8_t *bytes)
{
    struct field f;

    memcpy(&f, bytes, FIELD);
    return (struct field){__builtin_bswap16(f.guard), __builtin_bswap16(f.app),
                          __builtin_bswap32(f.ref)};
}

static void put_field(uint8_t *bytes, struct field f)
{
    f = (struct field){__builtin_bswap16(f.guard), __builtin_bswap16(f.app),
                       __builtin_bswap32(f.ref)};
    memcpy(bytes, &f, FIELD);
}

static uint16_t guard_of(const dsa_descriptor *d, const uint8_t *block, uint32_t length)
{
    uint16_t crc = dsa_crc16_t10(d->dif.flags & DSA_DIF_INVERT_SEED ? 0xffff : 0, block, length);

    return d->dif.flags & DSA_DIF_INVERT_RESULT ? (uint16_t)~crc : crc;
}

static uint16_t masked(dsa_tags tags)
{
    return tags.app & (uint16_t)~tags.app_mask;
}

/* DIF Status of a block, 0 if its field is right (8.3.17.4). */
static uint8_t judge(const dsa_work *w, const uint8_t *block, uint32_t length)
{
    uint8_t flags = w->d.dif.source_flags;
    struct field f = field_at(block + length);
    bool app_f = f.app == 0xffff;
    bool app_ref_f = app_f && f.ref == 0xffffffff;
    bool all_f = app_ref_f && f.guard == 0xffff;
    uint8_t status = 0;

    if (flags & DSA_DIF_SOURCE_ALL_F && all_f) {
        return flags & DSA_DIF_SOURCE_ALL_F_ERROR ? DSA_DIF_ALL_F_DETECTED : 0;
    }
    if ((flags & DSA_DIF_SOURCE_APP_F && app_f) ||
        (flags & DSA_DIF_SOURCE_APP_REF_F && app_ref_f)) {
        return 0;
    }
    if (!(flags & DSA_DIF_SOURCE_NO_GUARD) && f.guard != guard_of(&w->d, block, length)) {
        status |= DSA_DIF_GUARD_MISMATCH;
    }
    if (w->source.app_mask != 0xffff && f.app != masked(w->source)) {
        status |= DSA_DIF_APP_MISMATCH;
    }
    if (!(flags & DSA_DIF_SOURCE_NO_REF) && f.ref != w->source.ref) {
        status |= DSA_DIF_REF_MISMATCH;
    }
    return status;
}

/* Puts the destination's field behind the block, where for an update the source's is now. */
static void make_field(const dsa_work *w, uint8_t *block, uint32_t length)
{
    uint8_t pass = dsa_opcode(&w->d) == DSA_OP_DIF_UPDATE ? w->d.dif.destination_flags : 0;
    struct field f = {0};

    if (pass != 0) {
        f = field_at(block + length);
    }
    if (!(pass & DSA_DIF_DEST_GUARD_PASS)) {
        f.guard = guard_of(&w->d, block, length);
    }
    if (!(pass & DSA_DIF_DEST_APP_PASS)) {
        f.app = masked(w->destination);
    }
    if (!(pass & DSA_DIF_DEST_REF_PASS)) {
        f.ref = w->destination.ref;
    }
    put_field(block + length, f);
}

/* The bits mean the same for source and destination. */
static void advance(dsa_tags *tags, uint8_t flags)
{
    tags->ref += !(flags & DSA_DIF_SOURCE_REF_FIXED);
    tags->app = (uint16_t)(tags->app + !!(flags & DSA_DIF_SOURCE_APP_INCREMENTS));
}

int dsa_dif_step(dsa_queue *q, dsa_work *w, uint64_t limit, uint64_t *units)
{
    const dsa_descriptor *d = &w->d;
    struct shape shape = shape_of(d);
    uint64_t destination = d->destination + (uint64_t)(w->done / shape.source) * shape.destination;
    uint8_t block[MAX_BLOCK + FIELD];

    for (uint64_t did = 0; did < limit && w->done < d->size; did += shape.source) {
        if (dsa_read(q, w, w->data_pasid, DSA_SOURCE, d->source + w->done, block, shape.source) <
            shape.source) {
            return dsa_fault(w, w->fault_address, w->write, w->operand);
        }
        *units += shape.source;
        if (shape.source > shape.block) {
            w->result = judge(w, block, shape.block);
            if (w->result != 0) {
                return DSA_STATUS_DIF_ERROR;
            }
        }
        if (shape.destination > shape.block) {
            make_field(w, block, shape.block);
        }
        if (dsa_write(q, w, DSA_DESTINATION, destination, block, shape.destination) <
            shape.destination) {
            return dsa_fault(w, w->fault_address, w->write, w->operand);
        }
        /* The tags that the operation has none of are never looked at. */
        advance(&w->source, d->dif.source_flags);
        advance(&w->destination, d->dif.destination_flags);
        destination += shape.destination;
        w->done += shape.source;
    }
    return w->done < d->size ? DSA_MORE : DSA_STATUS_SUCCESS;
}
