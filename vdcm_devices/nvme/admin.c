/*
 * The admin queue's doorbells on a page that is mapped into the guest: nobody is told of a store to
 * them, so the sweep looks, and tells the host driver. Its commands are not executed here.
 */
#include <stdlib.h>

#include "engine.h"

struct nvme_admin {
    nvme_controller *controller;
    _Atomic uint32_t seen; /* as nvme_admin_look() returned it */
    atomic_bool reported;
};

static uint32_t look(const nvme_controller *c)
{
    return (nvme_doorbell_read(c, 0) & 0xffff) | nvme_doorbell_read(c, 1) << 16;
}

nvme_admin *nvme_admin_new(nvme_controller *c)
{
    nvme_admin *a = calloc(1, sizeof(*a));

    if (a != NULL) {
        a->controller = c;
    }
    return a;
}

void nvme_admin_free(nvme_admin *a)
{
    free(a);
}

uint32_t nvme_admin_look(nvme_admin *a)
{
    uint32_t now = look(a->controller);

    atomic_store_explicit(&a->seen, now, memory_order_relaxed);
    /* Last: whoever sees it compares with what was seen here. */
    atomic_store_explicit(&a->reported, false, memory_order_release);
    return now;
}

static bool take(void *queue, vdcm_worker *worker)
{
    nvme_admin *a = queue;

    if (!atomic_load_explicit(&a->reported, memory_order_acquire) &&
        look(a->controller) != atomic_load_explicit(&a->seen, memory_order_relaxed)) {
        atomic_store_explicit(&a->reported, true, memory_order_relaxed);
        if (!a->controller->services->report(worker, NVME_REPORT_ADMIN, NULL, 0)) {
            atomic_store_explicit(&a->reported, false, memory_order_relaxed); /* the next look again */
        }
    }
    return false;
}

static uint64_t run(void *queue, vdcm_worker *worker, uint64_t budget)
{
    (void)queue;
    (void)worker;
    (void)budget;
    return 0;
}

static bool pending(const void *queue)
{
    (void)queue;
    return false;
}

static void abort_all(void *queue, vdcm_worker *worker)
{
    (void)queue;
    (void)worker;
}

uintptr_t nvme_admin_fastpath(void)
{
    static const vdcm_fastpath table = {.abi = VDCM_FASTPATH_ABI,
                                        .name = "nvme-admin",
                                        .take = take,
                                        .run = run,
                                        .pending = pending,
                                        .abort = abort_all};

    return (uintptr_t)&table;
}
