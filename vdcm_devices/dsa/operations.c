/*
 * The operations (8.3), each a row of a table: what its descriptor may say, and how it is done.
 * Most walk along one, two or three buffers at one pace; delta records and DIF have rooms of their
 * own.
 */
#include <string.h>

#include "engine.h"

/* The same distance modulo 2^64, so that no sum of address and length can overflow. */
bool dsa_overlap(uint64_t a, uint64_t a_length, uint64_t b, uint64_t b_length)
{
    return a - b < b_length || b - a < a_length;
}

/* ---- bodies: in guarded(), on memory that the guest may write at the same time --------------- */

/* memmove: two addresses of the guest may be the same memory. */
static int move_body(void *argument)
{
    const dsa_job *job = argument;

    memmove(job->operands[1].memory, job->operands[0].memory, job->length);
    return 0;
}

static int dualcast_body(void *argument)
{
    const dsa_job *job = argument;

    memmove(job->operands[1].memory, job->operands[0].memory, job->length);
    memmove(job->operands[2].memory, job->operands[0].memory, job->length);
    return 0;
}

/* The pattern as it is `at` bytes behind the start of the buffer. */
static uint64_t pattern_at(uint64_t pattern, uint32_t at)
{
    unsigned shift = 8 * (at % 8);

    return shift == 0 ? pattern : pattern >> shift | pattern << (64 - shift);
}

static int fill_body(void *argument)
{
    const dsa_job *job = argument;
    uint64_t pattern = pattern_at(job->d->pattern, job->at);
    uint8_t *memory = job->operands[0].memory;
    uint32_t i = 0;

    for (; i + 8 <= job->length; i += 8) {
        memcpy(memory + i, &pattern, 8);
    }
    memcpy(memory + i, &pattern, job->length - i);
    return 0;
}

/* 1 + the offset of the first difference, else 0. */
static int compare_body(void *argument)
{
    const dsa_job *job = argument;
    const uint8_t *a = job->operands[0].memory;
    const uint8_t *b = job->operands[1].memory;

    if (memcmp(a, b, job->length) == 0) {
        return 0;
    }
    for (uint32_t i = 0; i < job->length; i++) {
        if (a[i] != b[i]) {
            return 1 + (int)i;
        }
    }
    return 0; /* the guest has made them equal in between */
}

static int compare_pattern_body(void *argument)
{
    const dsa_job *job = argument;
    uint64_t pattern = pattern_at(job->d->compared, job->at);
    const uint8_t *memory = job->operands[0].memory;
    uint64_t word;

    for (uint32_t i = 0; i < job->length; i += 8) {
        word = pattern;
        memcpy(&word, memory + i, job->length - i < 8 ? job->length - i : 8);
        if (word != pattern) {
            return 1 + (int)i + __builtin_ctzll(word ^ pattern) / 8;
        }
    }
    return 0;
}

static int crc_body(void *argument)
{
    dsa_job *job = argument;
    bool bypass = dsa_flags(job->d) & DSA_FLAG_BYPASS_REFLECTION;

    job->crc = dsa_crc32c_raw(job->crc, job->operands[0].memory, job->length, bypass);
    return 0;
}

/* The CRC is that of the bytes that were written, whatever happens to the source meanwhile. */
static int copy_crc_body(void *argument)
{
    enum { BLOCK = 4096 };
    dsa_job *job = argument;
    bool bypass = dsa_flags(job->d) & DSA_FLAG_BYPASS_REFLECTION;

    for (uint32_t i = 0; i < job->length; i += BLOCK) {
        uint32_t n = job->length - i < BLOCK ? job->length - i : BLOCK;

        memmove(job->operands[1].memory + i, job->operands[0].memory + i, n);
        job->crc = dsa_crc32c_raw(job->crc, job->operands[1].memory + i, n, bypass);
    }
    return 0;
}

/* Memory here is coherent with every CPU: the range has to be there, nothing is written back. */
static int flush_body(void *argument)
{
    (void)argument;
    return 0;
}

/* ---- steps ----------------------------------------------------------------------------------- */

static int check_result(const dsa_work *w, bool expected)
{
    return dsa_flags(&w->d) & DSA_FLAG_CHECK_RESULT && !expected ? DSA_STATUS_FALSE_PREDICATE
                                                                : DSA_STATUS_SUCCESS;
}

/* The next piece of an operation that walks along its operands. */
static int walk(dsa_queue *q, dsa_work *w, uint64_t limit, uint64_t *units)
{
    const dsa_operation *op = w->op;
    uint32_t left = w->d.size - w->done;
    dsa_job job = {.d = &w->d, .crc = w->crc, .at = w->done};
    uint64_t words[8];
    int found;
    int status;

    memcpy(words, &w->d, sizeof(words));
    job.length = left < limit ? left : (uint32_t)limit;
    for (; job.count < 3 && op->operands[job.count].word != 0; job.count++) {
        uint64_t base = words[op->operands[job.count].word];

        job.operands[job.count] = (dsa_operand){
            .address = w->backwards ? base + (left - job.length) : base + w->done,
            .id = op->operands[job.count].id,
            .write = op->operands[job.count].write,
        };
    }
    status = dsa_reach(q, w, &job);
    if (status == DSA_MORE) {
        status = dsa_touch(q, w, &job, op->body, &found);
    }
    if (status != DSA_MORE) {
        return status;
    }
    if (found < 0) {
        return DSA_MORE;
    }
    *units += job.length;
    w->crc = job.crc;
    if (found > 0) {
        w->result = 1;
        w->done += (uint32_t)found - 1;
        return check_result(w, w->d.expected & 1);
    }
    w->done += job.length;
    return w->done < w->d.size ? DSA_MORE : DSA_STATUS_SUCCESS;
}

static int compare_step(dsa_queue *q, dsa_work *w, uint64_t limit, uint64_t *units)
{
    int status = walk(q, w, limit, units);

    if (status == DSA_STATUS_SUCCESS && w->result == 0) {
        return check_result(w, !(w->d.expected & 1));
    }
    return status;
}

static int noop_step(dsa_queue *q, dsa_work *w, uint64_t limit, uint64_t *units)
{
    (void)q;
    (void)w;
    (void)limit;
    (void)units;
    return DSA_STATUS_SUCCESS;
}

/* What came before it has ended: a queue works in order. The readbacks can still fault. */
static int drain_step(dsa_queue *q, dsa_work *w, uint64_t limit, uint64_t *units)
{
    uint8_t byte;

    (void)limit;
    (void)units;
    if ((dsa_flags(&w->d) & DSA_FLAG_READBACK1 &&
         dsa_read(q, w, w->data_pasid, DSA_SOURCE, w->d.readback, &byte, 1) != 1) ||
        (dsa_flags(&w->d) & DSA_FLAG_READBACK2 &&
         dsa_read(q, w, w->data_pasid, DSA_SOURCE2, w->d.readback2, &byte, 1) != 1)) {
        return DSA_STATUS_READBACK_FAULT;
    }
    return DSA_STATUS_SUCCESS;
}

/* ---- checks ---------------------------------------------------------------------------------- */

static int drain_check(dsa_queue *q, dsa_work *w)
{
    (void)q;
    if ((!(dsa_flags(&w->d) & DSA_FLAG_READBACK1) && w->d.readback != 0) ||
        (!(dsa_flags(&w->d) & DSA_FLAG_READBACK2) && w->d.readback2 != 0)) {
        return DSA_STATUS_RESERVED_FIELD;
    }
    return DSA_MORE;
}

static int move_check(dsa_queue *q, dsa_work *w)
{
    const dsa_descriptor *d = &w->d;

    if (dsa_overlap(d->source, d->size, d->destination, d->size)) {
        if (!(q->settings.gencap & DSA_CAP_OVERLAPPING_COPY)) {
            return DSA_STATUS_OVERLAP;
        }
        /* From the end, where the start of the destination lies in the source (8.3.4). */
        w->backwards = d->destination != d->source && d->destination - d->source < d->size;
        w->result = w->backwards;
    }
    return DSA_MORE;
}

static int dualcast_check(dsa_queue *q, dsa_work *w)
{
    const dsa_descriptor *d = &w->d;

    (void)q;
    if ((d->destination ^ d->destination2) & 0xfff) {
        return DSA_STATUS_DUALCAST_MISMATCH;
    }
    if (dsa_overlap(d->source, d->size, d->destination, d->size) ||
        dsa_overlap(d->source, d->size, d->destination2, d->size) ||
        dsa_overlap(d->destination, d->size, d->destination2, d->size)) {
        return DSA_STATUS_OVERLAP;
    }
    return DSA_MORE;
}

/* Seed and result as the descriptor's software has them, to the remainder of the division. */
static uint32_t crc_form(const dsa_work *w, uint32_t value)
{
    return dsa_flags(&w->d) & DSA_FLAG_BYPASS_INVERSION ? dsa_reverse32(value) : ~value;
}

static int crc_check(dsa_queue *q, dsa_work *w)
{
    const dsa_descriptor *d = &w->d;
    uint32_t seed = d->crc.seed;

    if (dsa_flags(d) & DSA_FLAG_READ_SEED) {
        if (d->crc.seed != 0) {
            return DSA_STATUS_RESERVED_FIELD;
        }
        if (d->crc.seed_address % 4 != 0) {
            return DSA_STATUS_MISALIGNED;
        }
    } else if (d->crc.seed_address != 0) {
        return DSA_STATUS_RESERVED_FIELD;
    }
    if (dsa_opcode(d) == DSA_OP_COPY_CRC &&
        dsa_overlap(d->source, d->size, d->destination, d->size)) {
        return DSA_STATUS_OVERLAP;
    }
    if (dsa_flags(d) & DSA_FLAG_READ_SEED &&
        dsa_read(q, w, w->data_pasid, DSA_SOURCE2, d->crc.seed_address, &seed, 4) != 4) {
        return dsa_fault(w, w->fault_address, false, DSA_SOURCE2);
    }
    w->crc = crc_form(w, seed);
    return DSA_MORE;
}

static int crc_step(dsa_queue *q, dsa_work *w, uint64_t limit, uint64_t *units)
{
    int status = walk(q, w, limit, units);

    if (status != DSA_MORE) {
        w->crc = crc_form(w, w->crc); /* also that of a part: the seed to go on with */
    }
    return status;
}

/* ---- the table (Tables 5-3 to 5-5) ----------------------------------------------------------- */

#define ALL UINT64_MAX
#define ABOVE(byte) (UINT64_MAX << (8 * (byte))) /* from this byte of a word on */
#define BYTE(byte) (UINT64_C(0xff) << (8 * (byte)))
#define HIGH_HALF ABOVE(6) /* bytes 38 and 39, which no operation uses */

enum {
    BOF = DSA_FLAG_BLOCK_ON_FAULT,
    TC1 = DSA_FLAG_ADDRESS1_TC,
    TC2 = DSA_FLAG_ADDRESS2_TC,
    TC3 = DSA_FLAG_ADDRESS3_TC,
    WRITES = DSA_FLAGS_WRITES,
    CRC_FLAGS = DSA_FLAG_READ_SEED | DSA_FLAG_BYPASS_INVERSION | DSA_FLAG_BYPASS_REFLECTION,
    /* Words of a descriptor. */
    W_SOURCE = 2,
    W_DESTINATION = 3,
    W_DESTINATION2 = 5
};

const dsa_operation dsa_operations[DSA_OPERATIONS] = {
    [DSA_OP_NOOP] = {.reserved = {[2] = ALL, ALL, ~(BYTE(4) | BYTE(5)), ALL, ALL, ALL},
                     .step = noop_step},
    [DSA_OP_BATCH] = {.flags = TC1,
                      .reserved = {[3] = ALL, HIGH_HALF, ALL, ALL, ALL},
                      .check = dsa_batch_check,
                      .step = dsa_batch_step},
    [DSA_OP_DRAIN] = {.flags = TC1 | TC2 | DSA_FLAG_READBACK1 | DSA_FLAG_READBACK2 |
                               DSA_FLAG_NO_READBACK_TC_A | DSA_FLAG_NO_READBACK_TC_B,
                      .reserved = {[4] = ~(BYTE(4) | BYTE(5)), ALL, ALL, ALL},
                      .check = drain_check,
                      .step = drain_step},
    [DSA_OP_MEMORY_MOVE] = {.flags = BOF | WRITES | TC1 | TC2,
                            .reserved = {[4] = HIGH_HALF, ALL, ALL, ALL},
                            .sized = true,
                            .operands = {{W_SOURCE, DSA_SOURCE, false},
                                         {W_DESTINATION, DSA_DESTINATION, true}},
                            .check = move_check,
                            .step = walk,
                            .body = move_body},
    [DSA_OP_FILL] = {.flags = BOF | WRITES | TC2,
                     .reserved = {[4] = HIGH_HALF, ALL, ALL, ALL},
                     .sized = true,
                     .operands = {{W_DESTINATION, DSA_DESTINATION, true}},
                     .step = walk,
                     .body = fill_body},
    [DSA_OP_COMPARE] = {.flags = BOF | DSA_FLAG_CHECK_RESULT | TC1 | TC2,
                        .required = DSA_FLAGS_RECORD,
                        .reserved = {[4] = HIGH_HALF, ABOVE(1), ALL, ALL},
                        .sized = true,
                        .operands = {{W_SOURCE, DSA_SOURCE, false},
                                     {W_DESTINATION, DSA_SOURCE2, false}},
                        .step = compare_step,
                        .body = compare_body},
    [DSA_OP_COMPARE_PATTERN] = {.flags = BOF | DSA_FLAG_CHECK_RESULT | TC1,
                                .required = DSA_FLAGS_RECORD,
                                .reserved = {[4] = HIGH_HALF, ABOVE(1), ALL, ALL},
                                .sized = true,
                                .operands = {{W_SOURCE, DSA_SOURCE, false}},
                                .step = compare_step,
                                .body = compare_pattern_body},
    [DSA_OP_CREATE_DELTA] = {.flags = BOF | DSA_FLAG_CHECK_RESULT | WRITES | TC1 | TC2 | TC3,
                             .required = DSA_FLAGS_RECORD,
                             .reserved = {[4] = HIGH_HALF, 0, ABOVE(4), ABOVE(1)},
                             .sized = true,
                             .check = dsa_create_delta_check,
                             .step = dsa_create_delta_step},
    [DSA_OP_APPLY_DELTA] = {.flags = BOF | WRITES | TC1 | TC2,
                            .reserved = {[4] = HIGH_HALF, ABOVE(4), ALL, ALL},
                            .sized = true,
                            .check = dsa_apply_delta_check,
                            .step = dsa_apply_delta_step},
    [DSA_OP_DUALCAST] = {.flags = BOF | WRITES | TC1 | TC2 | TC3,
                         .reserved = {[4] = HIGH_HALF, 0, ALL, ALL},
                         .sized = true,
                         .operands = {{W_SOURCE, DSA_SOURCE, false},
                                      {W_DESTINATION, DSA_DESTINATION, true},
                                      {W_DESTINATION2, DSA_DESTINATION2, true}},
                         .check = dualcast_check,
                         .step = walk,
                         .body = dualcast_body},
    [DSA_OP_CRC] = {.flags = BOF | TC1 | TC3 | CRC_FLAGS,
                    .required = DSA_FLAGS_RECORD,
                    .reserved = {[3] = ALL, HIGH_HALF, ABOVE(4), 0, ALL},
                    .sized = true,
                    .operands = {{W_SOURCE, DSA_SOURCE, false}},
                    .check = crc_check,
                    .step = crc_step,
                    .body = crc_body},
    [DSA_OP_COPY_CRC] = {.flags = BOF | WRITES | TC1 | TC2 | TC3 | CRC_FLAGS,
                         .required = DSA_FLAGS_RECORD,
                         .reserved = {[4] = HIGH_HALF, ABOVE(4), 0, ALL},
                         .sized = true,
                         .operands = {{W_SOURCE, DSA_SOURCE, false},
                                      {W_DESTINATION, DSA_DESTINATION, true}},
                         .check = crc_check,
                         .step = crc_step,
                         .body = copy_crc_body},
    [DSA_OP_DIF_CHECK] = {.flags = BOF | TC1,
                          .required = DSA_FLAGS_RECORD,
                          .reserved = {[3] = ALL, HIGH_HALF, ABOVE(3) | BYTE(1), 0, ALL},
                          .sized = true,
                          .check = dsa_dif_check,
                          .step = dsa_dif_step},
    [DSA_OP_DIF_INSERT] = {.flags = BOF | WRITES | TC1 | TC2,
                           .reserved = {[4] = HIGH_HALF, ABOVE(3) | BYTE(0), ALL},
                           .sized = true,
                           .check = dsa_dif_check,
                           .step = dsa_dif_step},
    [DSA_OP_DIF_STRIP] = {.flags = BOF | WRITES | TC1 | TC2,
                          .reserved = {[4] = HIGH_HALF, ABOVE(3) | BYTE(1), 0, ALL},
                          .sized = true,
                          .check = dsa_dif_check,
                          .step = dsa_dif_step},
    [DSA_OP_DIF_UPDATE] = {.flags = BOF | WRITES | TC1 | TC2,
                           .reserved = {[4] = HIGH_HALF, ABOVE(3)},
                           .sized = true,
                           .check = dsa_dif_check,
                           .step = dsa_dif_step},
    [DSA_OP_CACHE_FLUSH] = {.flags = BOF | WRITES | TC2,
                            .reserved = {[2] = ALL, [4] = HIGH_HALF, ALL, ALL, ALL},
                            .sized = true,
                            .operands = {{W_DESTINATION, DSA_DESTINATION, false}},
                            .step = walk,
                            .body = flush_body},
};
