/*
 * Commands to a store in a file or block device: one request after the other, each of a chunk, by way
 * of a buffer of the task's own. Guest memory is reached only while its bytes are copied, so that it
 * may be unmapped while a request is under way.
 */
#include <errno.h>

#include "engine.h"

static uint64_t smaller(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

/* What the system says to an access of the file, as the guest is told. */
static int status_of(int64_t error, bool write)
{
    switch (error) {
    case -ENOSPC:
    case -EDQUOT:
    case -EFBIG:
        return NVME_CAPACITY_EXCEEDED;
    case -EBADF:
    case -EPERM:
    case -EROFS:
        return write ? NVME_WRITE_PROTECTED : NVME_UNRECOVERED_READ;
    case -ENOMEM:
    case -EAGAIN:
        return NVME_INTERNAL_ERROR;
    default:
        return write ? NVME_WRITE_FAULT : NVME_UNRECOVERED_READ;
    }
}

static int ask(nvme_task *t, int operation, uint64_t offset, uint64_t length)
{
    t->request.operation = operation;
    t->request.fd = t->n->store->fd;
    t->request.offset = t->n->offset + offset;
    t->request.length = length;
    t->request.buffer = t->buffer;
    return NVME_WAITS;
}

/* Brings [offset, offset + length) of the namespace to the disk; 0 bytes: all of the file. */
static int sync_file(nvme_task *t, uint64_t offset, uint64_t length)
{
    int status = ask(t, NVME_IO_SYNC, offset, length);

    t->syncing = true;
    if (length == 0) {
        t->request.offset = 0;
    }
    return status;
}

/* All blocks have been written. */
static int written(nvme_sq *q, nvme_task *t)
{
    if (!t->fua && !q->controller->settings.write_through) {
        return NVME_SUCCESS;
    }
    return t->c.opcode == NVME_DATASET_MANAGEMENT ? sync_file(t, 0, 0)
                                                  : sync_file(t, t->at, t->length);
}

/* ---- data ------------------------------------------------------------------------------------ */

static uint64_t chunk(const nvme_task *t)
{
    return smaller(t->length - t->done, NVME_CHUNK);
}

static int read_chunk(nvme_task *t)
{
    return t->done == t->length ? NVME_SUCCESS
                                : ask(t, NVME_IO_READ, t->at + t->done, chunk(t));
}

/* Bytes of the chunk have come; a file that ends before them has zeros there. */
static int have_read(nvme_sq *q, nvme_task *t, uint64_t *units)
{
    nvme_request *r = &t->request;
    uint64_t here = chunk(t);
    uint64_t had = here - r->length; /* by requests before, that were cut short */
    int status = NVME_SUCCESS;

    if (r->result < 0) {
        return status_of(r->result, false);
    }
    had += (uint64_t)r->result;
    if (had < here && r->result > 0) {
        r->offset += (uint64_t)r->result;
        r->length -= (uint64_t)r->result;
        r->buffer += r->result;
        return NVME_WAITS;
    }
    memset(t->buffer + had, 0, here - had);
    if (t->c.opcode == NVME_READ) {
        status = nvme_pointer_move(q, t, t->buffer, here);
    } else if (t->c.opcode == NVME_COMPARE) {
        status = nvme_pointer_compare(q, t, t->buffer, here);
    }
    *units += here;
    nvme_held(q, here);
    t->done += here;
    return status != NVME_SUCCESS ? status : read_chunk(t);
}

static int write_chunk(nvme_sq *q, nvme_task *t, uint64_t *units)
{
    uint64_t here = chunk(t);
    int status = NVME_SUCCESS;

    if (here == 0) {
        return written(q, t);
    }
    if (t->c.opcode == NVME_WRITE) {
        status = nvme_pointer_move(q, t, t->buffer, here);
        *units += here;
        nvme_held(q, here);
    } else {
        memset(t->buffer, 0, here);
    }
    return status != NVME_SUCCESS ? status : ask(t, NVME_IO_WRITE, t->at + t->done, here);
}

static int have_written(nvme_sq *q, nvme_task *t, uint64_t *units)
{
    nvme_request *r = &t->request;

    if (r->result <= 0) {
        return r->result == 0 ? NVME_WRITE_FAULT : status_of(r->result, true);
    }
    t->done += (uint64_t)r->result;
    r->offset += (uint64_t)r->result;
    r->length -= (uint64_t)r->result;
    r->buffer += r->result;
    return r->length != 0 ? NVME_WAITS : write_chunk(q, t, units);
}

/* ---- zeros ----------------------------------------------------------------------------------- */

/* The next range of a Dataset Management; t->at and t->length are of one then. */
static int next_range(nvme_sq *q, nvme_task *t)
{
    const nvme_range *ranges = (const nvme_range *)(void *)t->buffer;

    while (t->range <= (t->c.cdw10 & 0xff)) {
        const nvme_range *r = &ranges[t->range++];

        if (r->blocks != 0) {
            return ask(t, NVME_IO_PUNCH, r->lba << t->n->shift, (uint64_t)r->blocks << t->n->shift);
        }
    }
    return written(q, t);
}

/* A file system that has no holes: Write Zeroes writes them; deallocating is a hint all the same
 * (6.7), but says of its blocks that they read as zeros. */
static int have_punched(nvme_sq *q, nvme_task *t, uint64_t *units)
{
    bool cannot = t->request.result == -EOPNOTSUPP || t->request.result == -ENOSYS ||
                  t->request.result == -ENODEV;

    if (t->c.opcode == NVME_WRITE_ZEROES) {
        if (cannot) {
            t->punching = false;
            return write_chunk(q, t, units);
        }
        return t->request.result < 0 ? status_of(t->request.result, true) : written(q, t);
    }
    return t->request.result < 0 && !cannot ? status_of(t->request.result, true) : next_range(q, t);
}

/* ---- flush ----------------------------------------------------------------------------------- */

/* Of one namespace, or of all: those that are memory need none. */
static int flush(nvme_sq *q, nvme_task *t)
{
    const nvme_namespace *all = q->controller->namespaces;

    if (t->c.nsid <= NVME_MAX_NAMESPACES) {
        return sync_file(t, 0, 0);
    }
    while (++t->range <= NVME_MAX_NAMESPACES) {
        t->n = &all[t->range];
        if (t->n->store != NULL && t->n->memory == NULL) {
            return sync_file(t, 0, 0);
        }
    }
    t->n = NULL;
    return NVME_SUCCESS;
}

/*
 * The system says only once that it has lost what it had taken, to whoever asks first; whose it was it
 * does not say. All namespaces of the store hear of it, each at its own next flush.
 */
static int have_synced(nvme_sq *q, nvme_task *t)
{
    nvme_namespace *n = &q->controller->namespaces[t->n - q->controller->namespaces];
    uint32_t lost;

    t->syncing = false;
    if (t->request.result < 0) {
        atomic_fetch_add(&n->store->lost, 1);
    }
    lost = atomic_load(&n->store->lost);
    if (n->lost != lost) {
        n->lost = lost;
        return t->request.result < 0 ? status_of(t->request.result, true) : NVME_WRITE_FAULT;
    }
    return t->c.opcode == NVME_FLUSH && t->c.nsid > NVME_MAX_NAMESPACES ? flush(q, t)
                                                                       : NVME_SUCCESS;
}

/* ---- what the queue calls -------------------------------------------------------------------- */

int nvme_file_begin(nvme_sq *q, nvme_task *t, uint64_t *units)
{
    int status;

    t->dropped = t->syncing = t->punching = false;
    switch (t->c.opcode) {
    case NVME_FLUSH:
        return flush(q, t);
    case NVME_WRITE:
        return write_chunk(q, t, units);
    case NVME_WRITE_ZEROES:
        t->punching = true;
        return ask(t, NVME_IO_PUNCH, t->at, t->length);
    case NVME_DATASET_MANAGEMENT:
        t->punching = true;
        status = nvme_fetch_ranges(q, t);
        *units += t->length;
        return status == NVME_MORE ? next_range(q, t) : status;
    default: /* Read, Compare, Verify */
        return read_chunk(t);
    }
}

int nvme_file_step(nvme_sq *q, nvme_task *t, uint64_t *units)
{
    if (t->syncing) {
        return have_synced(q, t);
    }
    if (t->punching) {
        return have_punched(q, t, units);
    }
    if (t->c.opcode == NVME_WRITE || t->c.opcode == NVME_WRITE_ZEROES) {
        return have_written(q, t, units);
    }
    return have_read(q, t, units);
}
