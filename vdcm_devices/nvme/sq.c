/*
 * A submission queue: what the sweep calls.
 */
#include "engine.h"

static bool take(void *queue, vdcm_worker *worker)
{
    (void)queue;
    (void)worker;
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
    const nvme_sq *q = queue;

    return atomic_load_explicit(&q->under_way, memory_order_relaxed) != 0;
}

static void abort_all(void *queue, vdcm_worker *worker)
{
    (void)queue;
    (void)worker;
}

uintptr_t nvme_fastpath(void)
{
    static const vdcm_fastpath table = {.abi = VDCM_FASTPATH_ABI,
                                        .name = "nvme",
                                        .take = take,
                                        .run = run,
                                        .pending = pending,
                                        .abort = abort_all};

    return (uintptr_t)&table;
}
