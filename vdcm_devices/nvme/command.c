/*
 * Commands of the NVM command set (NVMe 1.4, chapter 6): what is checked before any data is moved.
 */
#include "engine.h"

#define BROADCAST UINT32_C(0xffffffff)

enum { AT_OPCODE = 0, AT_FLAGS = 1, AT_NSID = 4, AT_CDW10 = 40, AT_CDW12 = 48 };
enum { FUA = 1 << 30, DIRECTIVE = 0xf << 20, DEALLOCATE = 1 << 2 };

static int fail(nvme_task *t, int status, uint16_t location)
{
    t->location = location;
    return status;
}

static int find_namespace(nvme_sq *q, nvme_task *t)
{
    const nvme_controller *c = q->controller;
    uint32_t most = c->settings.namespaces != 0 ? c->settings.namespaces : NVME_MAX_NAMESPACES;

    if (t->c.nsid == 0 || t->c.nsid > most) {
        return fail(t, NVME_INVALID_NAMESPACE, AT_NSID);
    }
    t->n = &c->namespaces[t->c.nsid];
    return t->n->store != NULL ? NVME_MORE : fail(t, NVME_INVALID_FIELD, AT_NSID); /* inactive (6.1.5) */
}

static bool writes(const nvme_task *t)
{
    return t->c.opcode == NVME_WRITE || t->c.opcode == NVME_WRITE_ZEROES ||
           t->c.opcode == NVME_DATASET_MANAGEMENT;
}

/* Starting LBA in Dwords 10 and 11, Number of Logical Blocks in Dword 12: makes them bytes. */
static int find_blocks(nvme_sq *q, nvme_task *t)
{
    uint64_t first = (uint64_t)t->c.cdw11 << 32 | t->c.cdw10;
    uint64_t blocks = (uint64_t)(t->c.cdw12 & 0xffff) + 1;
    bool data = t->c.opcode == NVME_READ || t->c.opcode == NVME_WRITE || t->c.opcode == NVME_COMPARE;

    t->length = blocks << t->n->shift;
    if (data && t->length > q->controller->settings.max_transfer) {
        return fail(t, NVME_INVALID_FIELD, AT_CDW12); /* MDTS (5.15.2.1) */
    }
    if (t->c.opcode == NVME_WRITE && (t->c.cdw12 & DIRECTIVE) != 0) {
        return fail(t, NVME_INVALID_FIELD, AT_CDW12); /* there are no directives (9) */
    }
    if (first > t->n->blocks || blocks > t->n->blocks - first) {
        return fail(t, NVME_LBA_OUT_OF_RANGE, AT_CDW10);
    }
    t->at = first << t->n->shift;
    t->fua = (t->c.cdw12 & FUA) != 0;
    return data ? nvme_pointer_begin(q, t, t->length, t->c.opcode == NVME_READ) : NVME_SUCCESS;
}

static void count(nvme_sq *q, const nvme_task *t)
{
    nvme_counters *counters = &q->controller->counters;

    switch (t->c.opcode) {
    case NVME_READ:
    case NVME_COMPARE:
        nvme_add(&counters->read_commands, 1);
        break;
    case NVME_WRITE:
        nvme_add(&counters->write_commands, 1);
        break;
    default:
        nvme_add(&counters->other_commands, 1);
    }
}

int nvme_check(nvme_sq *q, nvme_task *t)
{
    int status;

    t->location = 0xffff;
    t->done = 0;
    t->length = 0;
    t->range = 0;
    t->fua = false;
    t->n = NULL;
    count(q, t);
    switch (t->c.opcode) {
    case NVME_FLUSH:
    case NVME_WRITE:
    case NVME_READ:
    case NVME_COMPARE:
    case NVME_WRITE_ZEROES:
    case NVME_DATASET_MANAGEMENT:
    case NVME_VERIFY:
        break;
    default:
        return fail(t, NVME_INVALID_OPCODE, AT_OPCODE);
    }
    /* There are no fused operations, and no kind of pointer beyond PRP and SGL. */
    if ((t->c.flags & 0x03) != 0 || (t->c.flags & 0xc0) == 0xc0) {
        return fail(t, NVME_INVALID_FIELD, AT_FLAGS);
    }
    if (t->c.opcode == NVME_FLUSH && t->c.nsid == BROADCAST) {
        return NVME_MORE; /* all namespaces (6.8) */
    }
    status = find_namespace(q, t);
    if (status != NVME_MORE || t->c.opcode == NVME_FLUSH) {
        return status;
    }
    if (t->n->read_only && writes(t)) {
        return fail(t, NVME_WRITE_PROTECTED, AT_NSID);
    }
    if (t->c.opcode == NVME_DATASET_MANAGEMENT) {
        t->length = ((uint64_t)(t->c.cdw10 & 0xff) + 1) * sizeof(nvme_range);
        status = nvme_pointer_begin(q, t, t->length, false);
    } else {
        status = find_blocks(q, t);
    }
    return status == NVME_SUCCESS ? NVME_MORE : status;
}

int nvme_fetch_ranges(nvme_sq *q, nvme_task *t)
{
    const nvme_range *ranges = (const nvme_range *)(void *)t->buffer;
    int status = nvme_pointer_move(q, t, t->buffer, t->length);

    if (status != NVME_SUCCESS) {
        return status;
    }
    if ((t->c.cdw11 & DEALLOCATE) == 0) {
        return NVME_SUCCESS; /* hints, all the others */
    }
    for (uint32_t i = 0; i < t->length / sizeof(nvme_range); i++) {
        if (ranges[i].lba > t->n->blocks || ranges[i].blocks > t->n->blocks - ranges[i].lba) {
            return fail(t, NVME_LBA_OUT_OF_RANGE, AT_CDW10);
        }
    }
    return NVME_MORE;
}
