/*
 * The checks of a descriptor before it is begun (5.4, 5.5), in one order: what stands in the way of
 * the completion record first, then what is the same for all operations, then the operation's own.
 */
#include <string.h>

#include "engine.h"

#define PASID_MASK UINT32_C(0xfffff)

bool dsa_privileged(const dsa_queue *q, const dsa_work *w)
{
    return q->wq != NULL ? w->d.pasid >> 31 : q->settings.flags & DSA_WQ_PRIVILEGED;
}

void dsa_bind(dsa_queue *q, dsa_work *w)
{
    if (q->wq == NULL) {
        w->data_pasid = q->services->primary(q->worker);
        w->record_pasid = q->services->secondary(q->worker);
    } else {
        w->data_pasid = q->services->translate(q->worker, w->d.pasid & PASID_MASK);
        w->record_pasid = w->data_pasid;
    }
}

int32_t dsa_message(dsa_queue *q, const dsa_work *w)
{
    uint32_t handle = w->d.handle;
    uint64_t entry;
    uint32_t pasid;

    if (handle >= DSA_HANDLES) {
        return -1;
    }
    entry = atomic_load_explicit(&q->handles[handle], memory_order_relaxed);
    pasid = (uint32_t)entry;
    if (pasid <= PASID_MASK && q->wq != NULL && pasid != (w->d.pasid & PASID_MASK)) {
        return -1;
    }
    return (int32_t)(entry >> 32) - 1;
}

static bool interrupt_allowed(const dsa_queue *q, const dsa_work *w)
{
    bool pasid = q->wq != NULL || q->settings.flags & DSA_WQ_PASID;

    return !pasid || dsa_privileged(q, w) || q->settings.flags & DSA_USER_INTERRUPTS;
}

/* The flags that are set and may not be, or are not and must be. */
static uint32_t bad_flags(const dsa_queue *q, const dsa_work *w)
{
    const dsa_descriptor *d = &w->d;
    uint64_t gencap = q->settings.gencap;
    uint32_t flags = dsa_flags(d);
    uint32_t code = dsa_opcode(d);
    uint32_t allowed = w->op->flags | DSA_FLAG_COMPLETION_VALID;
    uint32_t bad = w->op->required & ~flags;

    if (flags & DSA_FLAG_COMPLETION_VALID) {
        allowed |= DSA_FLAG_REQUEST_COMPLETION | DSA_FLAG_COMPLETION_TC;
    }
    if (interrupt_allowed(q, w)) {
        allowed |= DSA_FLAG_REQUEST_INTERRUPT;
    }
    if (w->member) {
        allowed |= DSA_FLAG_FENCE;
    }
    if (!(q->settings.flags & DSA_WQ_BLOCK_ON_FAULT)) {
        allowed &= ~(uint32_t)DSA_FLAG_BLOCK_ON_FAULT;
    }
    if (!(gencap & (code == DSA_OP_CACHE_FLUSH ? DSA_CAP_CACHE_CONTROL_FLUSH
                                               : DSA_CAP_CACHE_CONTROL_MEMORY))) {
        allowed &= ~(uint32_t)DSA_FLAG_CACHE_CONTROL;
    }
    if (!(gencap & DSA_CAP_DESTINATION_READBACK)) {
        allowed &= ~(uint32_t)DSA_FLAG_READBACK;
    }
    if (code == DSA_OP_DRAIN) {
        if (!(gencap & DSA_CAP_DRAIN_READBACK)) {
            allowed &= ~(uint32_t)(DSA_FLAG_READBACK1 | DSA_FLAG_READBACK2);
        }
        if (!(flags & allowed & DSA_FLAG_READBACK1)) {
            allowed &= ~(uint32_t)DSA_FLAG_ADDRESS1_TC;
        }
        if (!(flags & allowed & DSA_FLAG_READBACK2)) {
            allowed &= ~(uint32_t)DSA_FLAG_ADDRESS2_TC;
        }
        if (!(flags & (DSA_FLAG_REQUEST_COMPLETION | DSA_FLAG_REQUEST_INTERRUPT))) {
            bad |= DSA_FLAG_REQUEST_COMPLETION | DSA_FLAG_REQUEST_INTERRUPT;
        }
    }
    if ((code == DSA_OP_CRC || code == DSA_OP_COPY_CRC) && !(flags & DSA_FLAG_READ_SEED)) {
        allowed &= ~(uint32_t)DSA_FLAG_ADDRESS3_TC;
    }
    return bad | (flags & ~allowed);
}

static bool reserved_used(const dsa_work *w)
{
    const dsa_descriptor *d = &w->d;
    uint64_t words[8];
    uint64_t used = 0;

    memcpy(words, d, sizeof(words));
    for (int i = 2; i < 8; i++) {
        used |= words[i] & w->op->reserved[i];
    }
    return used != 0 || (!(dsa_flags(d) & DSA_FLAG_COMPLETION_VALID) && d->completion != 0) ||
           (!(dsa_flags(d) & DSA_FLAG_REQUEST_INTERRUPT) && d->handle != 0);
}

/* Can what happened be told, and is there anybody to tell? */
static int check_completion(dsa_queue *q, dsa_work *w)
{
    bool valid = dsa_flags(&w->d) & DSA_FLAG_COMPLETION_VALID;

    if (valid && w->d.completion % sizeof(dsa_completion) != 0) {
        return DSA_STATUS_COMPLETION_MISALIGNED;
    }
    if (valid && !dsa_reach_record(q, w)) {
        dsa_fault(w, w->d.completion, true, DSA_COMPLETION);
        return DSA_STATUS_COMPLETION_FAULT;
    }
    /* A PASID that is not bound reaches nothing; this refuses also what would not try. */
    return w->data_pasid == VDCM_NO_PASID ? DSA_STATUS_TRANSLATION : DSA_MORE;
}

int dsa_check(dsa_queue *q, dsa_work *w)
{
    const dsa_descriptor *d = &w->d;
    uint32_t flags = dsa_flags(d);
    uint32_t code = dsa_opcode(d);
    int status = check_completion(q, w);

    if (status != DSA_MORE) {
        return status;
    }
    if (flags & DSA_FLAG_REQUEST_INTERRUPT && interrupt_allowed(q, w)) {
        w->interrupt = dsa_message(q, w) >= 0;
    }
    if (q->wq != NULL && dsa_privileged(q, w) && !(q->settings.flags & DSA_PRIVILEGED_MODE)) {
        return DSA_STATUS_PRIVILEGE;
    }
    if (w->op == NULL || !(q->settings.operations[code / 64] >> code % 64 & 1) ||
        (w->member && (code == DSA_OP_BATCH || code == DSA_OP_DRAIN))) {
        return DSA_STATUS_BAD_OPERATION;
    }
    w->invalid_flags = bad_flags(q, w);
    if (w->invalid_flags != 0) {
        return DSA_STATUS_BAD_FLAGS;
    }
    if (reserved_used(w)) {
        return DSA_STATUS_RESERVED_FIELD;
    }
    if (flags & DSA_FLAG_REQUEST_INTERRUPT && !w->interrupt) {
        return DSA_STATUS_BAD_HANDLE;
    }
    if (w->op->sized && (d->size == 0 || d->size > q->settings.max_transfer)) {
        return DSA_STATUS_BAD_SIZE;
    }
    return w->op->check != NULL ? w->op->check(q, w) : DSA_MORE;
}
