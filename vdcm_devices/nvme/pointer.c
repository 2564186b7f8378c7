/*
 * Where the data of a command lies: Physical Region Page entries and lists (NVMe 1.4, 4.3), or a
 * Scatter Gather List (4.4). The guest may change a list while it is read: each entry is read once, and
 * checked as it was read. Pieces that follow each other are taken as one.
 */
#include "engine.h"

enum { DATA_BLOCK = 0, BIT_BUCKET = 1, SEGMENT = 2, LAST_SEGMENT = 3, DESCRIPTOR = 16 };

enum { AT_PRP1 = 24, AT_PRP2 = 32 }; /* bytes of the command */

static uint64_t page_of(const nvme_sq *q)
{
    return UINT64_C(1) << q->controller->settings.page_shift;
}

static uint64_t smaller(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static int fail(nvme_task *t, int status, uint16_t location)
{
    t->location = location;
    return status;
}

/* ---- PRP ------------------------------------------------------------------------------------- */

/* The next entries of the list. The last one in a page leads to the next list if more are needed. */
static int read_list(nvme_sq *q, nvme_task *t)
{
    nvme_pointer *p = &t->pointer;
    uint64_t page = page_of(q);
    uint64_t needed = (p->left + page - 1) / page;
    uint64_t fit = (page - p->list % page) / sizeof(uint64_t);

    if (fit == 1 && needed > 1) {
        uint64_t next;

        if (nvme_read(q, p->list, &next, sizeof(next)) != 0) {
            return fail(t, NVME_DATA_TRANSFER_ERROR, AT_PRP2);
        }
        if (next % page != 0) {
            return fail(t, NVME_INVALID_PRP_OFFSET, AT_PRP2);
        }
        p->list = next;
        fit = page / sizeof(uint64_t);
    }
    if (needed > fit) {
        needed = fit - 1; /* not the one that leads on */
    }
    p->count = (uint32_t)smaller(needed, NVME_LIST);
    p->next = 0;
    if (nvme_read(q, p->list, p->entries, p->count * sizeof(uint64_t)) != 0) {
        return fail(t, NVME_DATA_TRANSFER_ERROR, AT_PRP2);
    }
    p->list += p->count * sizeof(uint64_t);
    return NVME_SUCCESS;
}

static int next_page(nvme_sq *q, nvme_task *t)
{
    nvme_pointer *p = &t->pointer;
    uint64_t page = page_of(q);

    if (p->next == p->count) {
        int status = read_list(q, t);

        if (status != NVME_SUCCESS) {
            return status;
        }
    }
    p->address = p->entries[p->next];
    do {
        if (p->entries[p->next] % page != 0) {
            /* What came before it is whole, but the command fails all the same. */
            return fail(t, NVME_INVALID_PRP_OFFSET, AT_PRP2);
        }
        p->next++;
        p->here += smaller(page, p->left);
        p->left -= smaller(page, p->left);
    } while (p->next < p->count && p->left > 0 && p->entries[p->next] == p->address + p->here);
    return NVME_SUCCESS;
}

static int begin_prp(nvme_sq *q, nvme_task *t, uint64_t length)
{
    nvme_pointer *p = &t->pointer;
    uint64_t page = page_of(q);

    p->address = t->c.dptr[0];
    if (p->address % sizeof(uint32_t) != 0) {
        return fail(t, NVME_INVALID_PRP_OFFSET, AT_PRP1);
    }
    p->here = smaller(length, page - p->address % page);
    p->left = length - p->here;
    p->count = p->next = 0;
    if (p->left == 0) {
        return NVME_SUCCESS;
    }
    if (p->left <= page) {
        p->entries[0] = t->c.dptr[1];
        p->count = 1;
        return NVME_SUCCESS;
    }
    p->list = t->c.dptr[1];
    return p->list % sizeof(uint64_t) != 0 ? fail(t, NVME_INVALID_PRP_OFFSET, AT_PRP2) : NVME_SUCCESS;
}

/* ---- SGL ------------------------------------------------------------------------------------- */

/* A descriptor: its address, and a word with its length in bits 31:0 and its identifier in 63:56. */
static int follow(nvme_task *t, uint64_t address, uint64_t word, bool last_in_segment)
{
    nvme_pointer *p = &t->pointer;
    uint32_t length = (uint32_t)word;

    if (++p->walked > NVME_DESCRIPTORS) {
        return fail(t, NVME_INVALID_DESCRIPTOR_COUNT, AT_PRP1);
    }
    if ((word >> 56 & 0xf) != 0) {
        return fail(t, NVME_INVALID_SGL_TYPE, AT_PRP1); /* sub type: an address, nothing else */
    }
    switch (word >> 60) {
    case DATA_BLOCK:
        p->address = address;
        p->here = smaller(length, p->left);
        break;
    case BIT_BUCKET:
        p->bucket = true;
        p->here = p->to_host ? smaller(length, p->left) : 0; /* writes pass it over (4.4) */
        break;
    case SEGMENT:
    case LAST_SEGMENT:
        if (!last_in_segment) {
            return fail(t, NVME_INVALID_DESCRIPTOR_COUNT, AT_PRP1);
        }
        if (p->last || length == 0 || length % DESCRIPTOR != 0) {
            return fail(t, NVME_INVALID_SEGMENT, AT_PRP1);
        }
        p->last = word >> 60 == LAST_SEGMENT;
        p->list = address;
        p->descriptors = length / DESCRIPTOR;
        p->count = p->next = 0;
        break;
    default:
        return fail(t, NVME_INVALID_SGL_TYPE, AT_PRP1);
    }
    p->left -= p->here;
    return NVME_SUCCESS;
}

static int next_descriptor(nvme_sq *q, nvme_task *t)
{
    nvme_pointer *p = &t->pointer;

    p->bucket = false;
    if (p->next == p->count) {
        if (p->descriptors == 0) {
            return fail(t, NVME_INVALID_SGL_LENGTH, AT_PRP1); /* it ends before the data do */
        }
        p->count = (uint32_t)smaller(p->descriptors, NVME_LIST / 2) * 2;
        p->next = 0;
        p->descriptors -= p->count / 2;
        if (nvme_read(q, p->list, p->entries, p->count * sizeof(uint64_t)) != 0) {
            return fail(t, NVME_DATA_TRANSFER_ERROR, AT_PRP1);
        }
        p->list += p->count * sizeof(uint64_t);
    }
    p->next += 2;
    return follow(t, p->entries[p->next - 2], p->entries[p->next - 1],
                  p->next == p->count && p->descriptors == 0);
}

static int begin_sgl(nvme_task *t, uint64_t length)
{
    nvme_pointer *p = &t->pointer;

    p->here = 0;
    p->left = length;
    p->count = p->next = 0;
    p->descriptors = p->walked = 0;
    p->last = p->bucket = false;
    /* The one in the command: of data, or of the first segment. */
    return follow(t, t->c.dptr[0], t->c.dptr[1], true);
}

/* ---- both ------------------------------------------------------------------------------------ */

int nvme_pointer_begin(nvme_sq *q, nvme_task *t, uint64_t length, bool to_host)
{
    nvme_pointer *p = &t->pointer;

    p->to_host = to_host;
    p->sgl = (t->c.flags & 0xc0) != 0;
    p->bucket = false;
    return p->sgl ? begin_sgl(t, length) : begin_prp(q, t, length);
}

int nvme_pointer_next(nvme_sq *q, nvme_task *t, uint64_t most, void **memory, uint64_t *length)
{
    const vdcm_services *s = q->controller->services;
    nvme_pointer *p = &t->pointer;

    while (p->here == 0) {
        int status = p->sgl ? next_descriptor(q, t) : next_page(q, t);

        if (status != NVME_SUCCESS) {
            return status;
        }
    }
    *memory = NULL;
    *length = smaller(most, p->here);
    if (!p->bucket && s->reach(q->worker, s->primary(q->worker), p->address, *length, p->to_host,
                               memory, length) != 0) {
        return fail(t, NVME_DATA_TRANSFER_ERROR, AT_PRP1);
    }
    p->address += *length;
    p->here -= *length;
    return NVME_SUCCESS;
}

static int move(nvme_sq *q, const nvme_task *t, void *memory, uint8_t *mine, uint64_t length)
{
    if (t->pointer.to_host) {
        return nvme_copy(q, memory, mine, length);
    }
    return t->c.opcode == NVME_WRITE && t->n->memory != NULL ? nvme_stream(q, mine, memory, length)
                                                             : nvme_copy(q, mine, memory, length);
}

int nvme_pointer_move(nvme_sq *q, nvme_task *t, void *buffer, uint64_t length)
{
    uint8_t *mine = buffer;

    while (length > 0) {
        void *memory;
        uint64_t here;
        int status = nvme_pointer_next(q, t, length, &memory, &here);

        if (status != NVME_SUCCESS) {
            return status;
        }
        if (memory != NULL && move(q, t, memory, mine, here) != 0) {
            return fail(t, NVME_DATA_TRANSFER_ERROR, AT_PRP1);
        }
        mine += here;
        length -= here;
    }
    return NVME_SUCCESS;
}

int nvme_pointer_compare(nvme_sq *q, nvme_task *t, const void *buffer, uint64_t length)
{
    const uint8_t *mine = buffer;

    while (length > 0) {
        void *memory;
        uint64_t here;
        int status = nvme_pointer_next(q, t, length, &memory, &here);
        int result;

        if (status != NVME_SUCCESS) {
            return status;
        }
        result = nvme_compare(q, memory, mine, here);
        if (result != 0) {
            return result < 0 ? fail(t, NVME_DATA_TRANSFER_ERROR, AT_PRP1) : NVME_COMPARE_FAILURE;
        }
        mine += here;
        length -= here;
    }
    return NVME_SUCCESS;
}
