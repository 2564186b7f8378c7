/*
 * The end of a descriptor (3.6): its completion record, then its interrupt; and the report in
 * SWERROR of what no completion record can tell.
 */
#include <string.h>

#include "engine.h"

/* Statuses that are no errors: alone they need no record (8.1.3, Request Completion Record). */
static bool good(int status)
{
    return status == DSA_STATUS_SUCCESS || status == DSA_STATUS_FALSE_PREDICATE ||
           status == DSA_STATUS_BATCH_FAILED;
}

static bool page_fault(int status)
{
    return status == DSA_STATUS_PAGE_FAULT || status == DSA_STATUS_PAGE_FAULT_BLOCKED ||
           status == DSA_STATUS_BATCH_PAGE_FAULT || status == DSA_STATUS_COMPLETION_FAULT ||
           status == DSA_STATUS_READBACK_FAULT;
}

/* SWERROR as it stands in the register (9.2.15). */
static void report(dsa_queue *q, const dsa_work *w, int status)
{
    enum { VALID = 1 << 0, DESCRIPTOR = 1 << 2, WQ_INDEX = 1 << 3, MEMBER = 1 << 4, WRITE = 1 << 5,
           PRIVILEGED = 1 << 6, INFORMATION = 1 << 7 };
    bool shared = q->wq != NULL;
    uint32_t pasid = shared ? w->d.pasid & 0xfffff : q->settings.pasid;
    uint64_t information = status == DSA_STATUS_BAD_FLAGS    ? w->invalid_flags
                           : status == DSA_STATUS_BAD_HANDLE ? w->d.handle
                           : page_fault(status)              ? (uint64_t)w->operand << 29
                                                             : 0;
    uint64_t words[4] = {0};

    words[0] = VALID | DESCRIPTOR | WQ_INDEX | (uint64_t)(status & 0xff) << 8 |
               (uint64_t)(q->settings.index & 0xff) << 16 | (uint64_t)dsa_opcode(&w->d) << 32 |
               (uint64_t)pasid << 40;
    words[0] |= w->member ? MEMBER : 0;
    words[0] |= page_fault(status) && w->write ? WRITE : 0;
    words[0] |= dsa_privileged(q, w) ? PRIVILEGED : 0;
    /* Older revisions have Invalid Flags here and nothing else. */
    if (q->settings.gencap & DSA_CAP_FAULT_INFO || status == DSA_STATUS_BAD_FLAGS) {
        words[0] |= q->settings.gencap & DSA_CAP_FAULT_INFO ? INFORMATION : 0;
        words[1] = information << 32;
    }
    words[1] |= w->member ? q->batch.work.done & 0xffff : 0;
    words[2] = page_fault(status) ? w->fault_address : 0;
    dsa_add(&q->counters.reported, 1);
    q->services->report(q->worker, DSA_REPORT_SWERROR, words, sizeof(words));
}

static void fill_record(const dsa_queue *q, const dsa_work *w, int status, dsa_completion *r)
{
    uint32_t code = dsa_opcode(&w->d);

    *r = (dsa_completion){.status = (uint8_t)status, .result = w->result};
    if (page_fault(status)) {
        r->status |= w->write ? DSA_STATUS_WRITE : 0;
        r->fault_address = w->fault_address;
        r->fault_info = q->settings.gencap & DSA_CAP_FAULT_INFO ? (uint8_t)(w->operand << 1) : 0;
    }
    if (status == DSA_STATUS_BAD_FLAGS) {
        r->invalid_flags = w->invalid_flags;
    }
    if (status >= DSA_STATUS_BAD_OPERATION && status != DSA_STATUS_READBACK_FAULT) {
        r->result = 0;
        return; /* not begun */
    }
    /* Of one that has ended, only a comparison tells how far it got. */
    if (status != DSA_STATUS_SUCCESS && status != DSA_STATUS_FALSE_PREDICATE) {
        r->completed = w->done;
    } else if (code == DSA_OP_BATCH || (code == DSA_OP_COMPARE && w->result == 1) ||
               (code == DSA_OP_COMPARE_PATTERN && w->result == 1) ||
               (code == DSA_OP_CREATE_DELTA && w->result == 2)) {
        r->completed = w->done;
    }
    switch (code) {
    case DSA_OP_MEMORY_MOVE:
        r->result = page_fault(status) ? w->result : 0;
        break;
    case DSA_OP_CREATE_DELTA:
        r->delta_size = w->delta_size;
        break;
    case DSA_OP_CRC:
    case DSA_OP_COPY_CRC:
        r->crc = w->crc;
        break;
    case DSA_OP_DIF_CHECK:
    case DSA_OP_DIF_STRIP:
        r->source = w->source;
        break;
    case DSA_OP_DIF_INSERT:
        r->destination = w->destination;
        break;
    case DSA_OP_DIF_UPDATE:
        r->source = w->source;
        r->destination = w->destination;
        break;
    }
}

static void count(dsa_queue *q, const dsa_work *w, int status)
{
    uint32_t code = dsa_opcode(&w->d);
    bool success = status == DSA_STATUS_SUCCESS || status == DSA_STATUS_FALSE_PREDICATE;
    bool partial = status == DSA_STATUS_PAGE_FAULT || status == DSA_STATUS_PAGE_FAULT_BLOCKED ||
                   status == DSA_STATUS_BATCH_PAGE_FAULT;
    bool monitored = dsa_monitored(q);

    dsa_add(success ? &q->counters.succeeded : &q->counters.failed, 1);
    if (monitored) {
        dsa_monitor_completion(
            q, w, success ? DSA_EV_SUCCESS : partial ? DSA_EV_PARTIAL : DSA_EV_ERROR);
    }
    if (w->op != NULL) {
        dsa_add(&q->counters.descriptors[code], 1);
        dsa_add(&q->counters.bytes[code], code == DSA_OP_BATCH ? 0 : w->done);
        if (monitored) {
            dsa_monitor_end(q, w);
        }
    }
}

void dsa_finish(dsa_queue *q, dsa_work *w, int status)
{
    bool valid = dsa_flags(&w->d) & DSA_FLAG_COMPLETION_VALID;
    bool untold = status == DSA_STATUS_COMPLETION_FAULT || status == DSA_STATUS_PRIVILEGE ||
                  status == DSA_STATUS_COMPLETION_MISALIGNED;

    if (untold || (!valid && !good(status))) {
        report(q, w, status);
    } else if (valid && (!good(status) || dsa_flags(&w->d) & DSA_FLAG_REQUEST_COMPLETION)) {
        dsa_completion record;

        fill_record(q, w, status, &record);
        if (status == DSA_STATUS_BAD_HANDLE) {
            report(q, w, status); /* besides */
        }
        if (dsa_write_record(q, w, &record)) {
            if (dsa_monitored(q)) {
                dsa_monitor_completion(q, w, DSA_EV_RECORD);
            }
        } else { /* it was there when the descriptor began */
            dsa_fault(w, w->d.completion, true, DSA_COMPLETION);
            status = DSA_STATUS_COMPLETION_FAULT;
            untold = true;
            report(q, w, status);
        }
    }
    count(q, w, status);
    if (!untold && w->interrupt) {
        int32_t message = dsa_message(q, w); /* the handle may have been revoked meanwhile */

        if (message >= 0 && message != DSA_IGNORE &&
            q->services->raise(q->worker, (uint32_t)message) == 0) {
            dsa_add(&q->counters.interrupts, 1);
            if (dsa_monitored(q)) {
                dsa_monitor_completion(q, w, DSA_EV_NUM_MSIX);
            }
        }
    }
    q->record = NULL;
    if (w->member) {
        q->batch.failed |= status != DSA_STATUS_SUCCESS;
        q->batch.work.done++;
    }
    if (w == &q->work) {
        q->busy = false;
    }
}
