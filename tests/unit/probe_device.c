/*
 * The smallest device with a direct path: a level doorbell (how many items there are in all), and
 * items that each cost some units, may fill some memory, raise a message, report something. It is
 * compiled against the installed fastpath.h alone, as a device outside this repository is.
 */
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include <vdcm/fastpath.h>

struct probe {
    const vdcm_services *services;
    _Atomic uint64_t *doorbell;
    uint64_t accepted;
    uint64_t done;
    uint64_t aborted;
    uint64_t cost;    /* units of an item */
    uint32_t pasid;   /* host PASID, or the special ones below */
    uint64_t address; /* each item fills [address, address + length) with `marker` */
    uint64_t length;
    uint8_t marker;
    int32_t message; /* -1: none */
    uint32_t report; /* code, 0: none */
    int last_error;
    uint64_t errors;
    uint64_t lost;
    /* of probe_that_rests */
    uint64_t rested;  /* times that it was asked to */
    uint64_t restless; /* times that it says no, yet */
    uint64_t closed;
    bool waits; /* accepted work cannot be run: somebody else is at work on it */
    vdcm_queue *_Atomic handle;
};

enum { PRIMARY = 0x80000000, SECONDARY, GUEST_PASID_7 };

struct fill {
    uint8_t *memory;
    uint64_t length;
    uint8_t marker;
};

static int fill(void *argument)
{
    struct fill *f = argument;

    memset(f->memory, f->marker, f->length);
    return 0;
}

static uint32_t pasid_of(struct probe *p, vdcm_worker *worker)
{
    switch (p->pasid) {
    case PRIMARY:
        return p->services->primary(worker);
    case SECONDARY:
        return p->services->secondary(worker);
    case GUEST_PASID_7:
        return p->services->translate(worker, 7);
    default:
        return p->pasid;
    }
}

static int item(struct probe *p, vdcm_worker *worker)
{
    uint64_t at = 0;

    while (at < p->length) {
        struct fill f = {.marker = p->marker};
        void *memory;
        int error = p->services->reach(worker, pasid_of(p, worker), p->address + at,
                                       p->length - at, true, &memory, &f.length);

        if (error != 0) {
            return error;
        }
        f.memory = memory;
        error = p->services->guarded(worker, fill, &f);
        p->services->leave(worker);
        if (error != 0) {
            return error;
        }
        at += f.length;
    }
    return 0;
}

static bool take(void *queue, vdcm_worker *worker)
{
    struct probe *p = queue;
    uint64_t tail = atomic_load_explicit(p->doorbell, memory_order_acquire);

    (void)worker;
    if (tail <= p->accepted) {
        return false;
    }
    p->accepted = tail;
    return true;
}

static uint64_t run(void *queue, vdcm_worker *worker, uint64_t budget)
{
    struct probe *p = queue;
    uint64_t units = 0;

    while (p->done < p->accepted && units < budget) {
        int error = item(p, worker);

        if (error != 0) {
            p->last_error = error;
            p->errors++;
        }
        if (p->message >= 0) {
            error = p->services->raise(worker, (uint32_t)p->message);
            p->last_error = error != 0 ? error : p->last_error;
        }
        p->done++;
        units += p->cost;
        if (p->report != 0 && !p->services->report(worker, p->report, &p->done, sizeof(p->done))) {
            p->lost++;
        }
    }
    return units;
}

static bool pending(const void *queue)
{
    const struct probe *p = queue;

    return p->done < p->accepted;
}

static void abort_all(void *queue, vdcm_worker *worker)
{
    struct probe *p = queue;

    (void)worker;
    p->aborted += p->accepted - p->done;
    p->done = p->accepted;
}

const vdcm_fastpath probe_fastpath = {
    .abi = VDCM_FASTPATH_ABI,
    .name = "probe",
    .take = take,
    .run = run,
    .pending = pending,
    .abort = abort_all,
};

static bool ready(const void *queue)
{
    const struct probe *p = queue;

    return pending(p) && !p->waits;
}

static bool rest(void *queue, vdcm_worker *worker)
{
    struct probe *p = queue;

    p->handle = p->services->handle(worker);
    p->rested++;
    if (p->restless > 0) {
        p->restless--;
        return false;
    }
    return true;
}

static void closed(void *queue)
{
    struct probe *p = queue;

    p->handle = NULL;
    p->closed++;
}

/* What a thread does that works for the queue: false if nobody is to be told any more. */
__attribute__((visibility("default"))) bool probe_work_is_back(struct probe *p)
{
    p->waits = false;
    if (p->handle == NULL) {
        return false;
    }
    p->services->kick(p->handle);
    return true;
}

const vdcm_fastpath probe_that_rests = {
    .abi = VDCM_FASTPATH_ABI,
    .name = "probe",
    .take = take,
    .run = run,
    .pending = pending,
    .abort = abort_all,
    .ready = ready,
    .rest = rest,
    .closed = closed,
};

const vdcm_fastpath probe_of_another_version = {.abi = VDCM_FASTPATH_ABI + 1, .name = "probe"};
