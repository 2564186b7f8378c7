/*
 * Batches (3.8, 8.3.2): descriptors in guest memory, executed one after the other. They are read a
 * few at a time, each once; the guest may do with the list what it likes.
 */
#include <string.h>

#include "engine.h"

int dsa_batch_check(dsa_queue *q, dsa_work *w)
{
    if (w->d.list % sizeof(dsa_descriptor) != 0) {
        return DSA_STATUS_LIST_MISALIGNED;
    }
    if (w->d.count < 2 || w->d.count > q->settings.max_batch) {
        return DSA_STATUS_BAD_COUNT;
    }
    return DSA_MORE;
}

int dsa_batch_step(dsa_queue *q, dsa_work *w, uint64_t limit, uint64_t *units)
{
    (void)limit;
    *units += DSA_OVERHEAD;
    q->batch.work = *w;
    q->batch.active = true;
    q->batch.failed = false;
    q->batch.first = 0;
    q->batch.fetched = 0;
    q->busy = false;
    q->record = NULL;
    return DSA_DEFERRED;
}

static bool end(dsa_queue *q, int status)
{
    q->batch.active = false;
    dsa_finish(q, &q->batch.work, status);
    return false;
}

bool dsa_batch_next(dsa_queue *q)
{
    dsa_batch *b = &q->batch;
    dsa_work *w = &b->work;
    uint32_t index = w->done;

    dsa_bind(q, w);
    if (index == w->d.count) {
        return end(q, b->failed ? DSA_STATUS_BATCH_FAILED : DSA_STATUS_SUCCESS);
    }
    if (index - b->first >= b->fetched) {
        uint32_t wanted = w->d.count - index;

        wanted = wanted < DSA_PREFETCH ? wanted : DSA_PREFETCH;
        b->first = index;
        b->fetched = dsa_read(q, w, w->record_pasid, DSA_SOURCE,
                              w->d.list + (uint64_t)index * sizeof(dsa_descriptor), b->list,
                              wanted * (uint32_t)sizeof(dsa_descriptor)) /
                     (uint32_t)sizeof(dsa_descriptor);
        if (b->fetched == 0) {
            return end(q, DSA_STATUS_BATCH_PAGE_FAULT);
        }
    }
    dsa_begin(&q->work, &b->list[index - b->first], true);
    q->work.d.pasid = w->d.pasid;
    if (b->failed && dsa_flags(&q->work.d) & DSA_FLAG_FENCE) {
        return end(q, DSA_STATUS_BATCH_FAILED);
    }
    q->busy = true;
    dsa_count_dispatched(q, &q->work);
    return true;
}
