// SPDX-License-Identifier: GPL-2.0
/* The copies of one thread: chosen, submitted, awaited, compared. */
#define pr_fmt(format) KBUILD_MODNAME ": " format

#include <linux/dma-mapping.h>
#include <linux/gfp.h>
#include <linux/jiffies.h>
#include <linux/printk.h>
#include <linux/rcupdate.h>
#include <linux/sched.h>
#include <linux/string.h>

#include "dmacopy.h"

#define NEAR 128 /* bytes on each side that every copy is checked for */
#define SHOWN 5  /* of a kind that are described in the log */

int take(struct buffer *buffer, struct worker *worker, size_t size,
         enum dma_data_direction direction)
{
    buffer->device = worker->channel ? worker->channel->device->dev : NULL;
    buffer->memory = alloc_pages_exact(size, GFP_KERNEL | __GFP_RETRY_MAYFAIL | __GFP_NOWARN);
    if (!buffer->memory)
        return -ENOMEM;
    buffer->size = size;
    buffer->direction = direction;
    if (!buffer->device)
        return 0;
    buffer->address = dma_map_single(buffer->device, buffer->memory, size, direction);
    if (dma_mapping_error(buffer->device, buffer->address)) {
        free_pages_exact(buffer->memory, size);
        buffer->memory = NULL;
        return -ENOMEM;
    }
    return 0;
}

void give_back(struct buffer *buffer)
{
    if (!buffer->memory)
        return;
    if (buffer->device)
        dma_unmap_single(buffer->device, buffer->address, buffer->size, buffer->direction);
    free_pages_exact(buffer->memory, buffer->size);
}

static void for_device(struct buffer *buffer)
{
    if (buffer->device)
        dma_sync_single_for_device(buffer->device, buffer->address, buffer->size,
                                   buffer->direction);
}

static void for_cpu(struct buffer *buffer)
{
    if (buffer->device)
        dma_sync_single_for_cpu(buffer->device, buffer->address, buffer->size,
                                buffer->direction);
}

/* Always the same for a seed: what a source should hold can be made again. */
bool contents(struct worker *worker, bool compare, u8 *piece)
{
    struct rnd_state state;
    bool same = true;

    prandom_seed_state(&state, worker->seed);
    for (size_t at = 0; at < worker->source.size; at += CHUNK) {
        prandom_bytes_state(&state, piece, CHUNK);
        if (compare)
            same &= !memcmp(worker->source.memory + at, piece, CHUNK);
        else
            memcpy(worker->source.memory + at, piece, CHUNK);
        cond_resched();
    }
    if (!compare)
        for_device(&worker->source);
    return same;
}

/* A number below `bound`, which is not 0. */
static u32 below(struct worker *worker, u32 bound)
{
    return prandom_u32_state(&worker->random) % bound;
}

/* All powers of two are equally likely, and the ends of the range come often. */
static size_t some_size(struct worker *worker)
{
    u32 low = fls(min_size) - 1;
    u32 power = low + below(worker, fls(max_size) - low);

    return clamp_t(size_t, BIT(power) + below(worker, BIT(power)), min_size, max_size);
}

/* Where a copy begins: anywhere in a page, aligned, or so that it crosses the page's end. */
static size_t some_offset(struct worker *worker, size_t size)
{
    size_t offset = below(worker, PAGE_SIZE);

    switch (below(worker, 4)) {
    case 0:
        return offset & ~63UL;
    case 1:
        return PAGE_SIZE - below(worker, min_t(size_t, size, PAGE_SIZE - 1) + 1);
    default:
        return offset;
    }
}

static void arrived(void *argument, const struct dmaengine_result *result)
{
    struct slot *slot = argument;

    if (slot->number == 0 && fault == COMPLETION) {
        atomic_inc(&counts.late);
        return;
    }
    /* Until the unlock this function and what it uses stay: see release(). */
    rcu_read_lock();
    slot->result = result ? result->result : DMA_TRANS_NOERROR;
    if (READ_ONCE(slot->lost))
        atomic_inc(&counts.late);
    smp_store_release(&slot->done, 1);
    wake_up(&slot->worker->wake);
    rcu_read_unlock();
}

/* No byte of the target is what it is to become. */
static void invert(u8 *target, const u8 *source, size_t size)
{
    size_t at = 0;
    u64 word;

    for (; at + sizeof(word) <= size; at += sizeof(word)) {
        memcpy(&word, source + at, sizeof(word));
        word = ~word;
        memcpy(target + at, &word, sizeof(word));
    }
    for (; at < size; at++)
        target[at] = ~source[at];
}

static bool to_channel(struct worker *worker, struct slot *slot)
{
    struct dma_async_tx_descriptor *copy;

    copy = dmaengine_prep_dma_memcpy(worker->channel, slot->target.address + slot->to,
                                     worker->source.address + slot->from, slot->size,
                                     DMA_PREP_INTERRUPT);
    if (!copy)
        return false;
    copy->callback_result = arrived;
    copy->callback_param = slot;
    if (dma_submit_error(dmaengine_submit(copy)))
        return false;
    dma_async_issue_pending(worker->channel);
    return true;
}

static void by_cpu(struct slot *slot)
{
    memcpy(slot->target.memory + slot->to, slot->worker->source.memory + slot->from, slot->size);
}

static void by_workqueue(struct work_struct *work)
{
    struct slot *slot = container_of(work, struct slot, work);

    by_cpu(slot);
    arrived(slot, NULL);
}

static bool start(struct worker *worker, struct slot *slot)
{
    switch (method) {
    case THREAD:
        by_cpu(slot);
        slot->result = DMA_TRANS_NOERROR;
        slot->done = 1;
        return true;
    case WORKQUEUE:
        INIT_WORK(&slot->work, by_workqueue);
        return queue_work(copiers, &slot->work);
    default:
        return to_channel(worker, slot);
    }
}

static void submit(struct worker *worker, struct slot *slot, unsigned int number)
{
    u8 *target;

    slot->number = number;
    slot->size = some_size(worker);
    slot->from = some_offset(worker, slot->size);
    slot->to = PAGE_SIZE + some_offset(worker, slot->size);
    target = slot->target.memory + slot->to;
    if (number % every == 0)
        invert(target, worker->source.memory + slot->from, slot->size);
    for_device(&slot->target);
    slot->done = 0;
    slot->deadline = jiffies + timeout * HZ;
    slot->busy = start(worker, slot);
    if (slot->busy) {
        atomic_inc(&counts.submitted);
        return;
    }
    atomic_inc(&counts.refused);
    memset(target, FILL, slot->size);
}

static void describe(struct worker *worker, struct slot *slot)
{
    const u8 *expected = worker->source.memory + slot->from;
    const u8 *target = slot->target.memory + slot->to;
    size_t at = 0;

    while (at < slot->size && target[at] == expected[at])
        at++;
    if (at < slot->size)
        pr_err("thread %u, copy %u: %zu bytes from +%#zx to +%#zx: byte %zu is %02x, not %02x\n",
               worker->index, slot->number, slot->size, slot->from, slot->to, at, target[at],
               expected[at]);
    else
        pr_err("thread %u, copy %u: %zu bytes from +%#zx to +%#zx: bytes around it are changed\n",
               worker->index, slot->number, slot->size, slot->from, slot->to);
}

static void spoil(struct worker *worker, u8 *target, struct slot *slot)
{
    u8 *const places[FAULTS] = {
        [TARGET] = target + slot->size - 1,
        [BEFORE] = target - 1,
        [BEHIND] = target + slot->size,
        [ELSEWHERE] = slot->target.memory,
        [SOURCE] = worker->source.memory + worker->source.size - 1,
    };

    *places[fault] ^= 1;
}

static void check(struct worker *worker, struct slot *slot)
{
    u8 *target = slot->target.memory + slot->to;

    slot->busy = false;
    atomic_inc(&counts.done);
    atomic64_add(slot->size, &counts.bytes);
    for_cpu(&slot->target);
    if (slot->number == 0 && fault)
        spoil(worker, target, slot);
    if (slot->result != DMA_TRANS_NOERROR) {
        if (atomic_inc_return(&counts.failed) <= SHOWN)
            pr_err("thread %u, copy %u of %zu bytes: the device reports error %d\n",
                   worker->index, slot->number, slot->size, slot->result);
    } else if (slot->number % every == 0 &&
               (memcmp(target, worker->source.memory + slot->from, slot->size) ||
                (every == 1 && (memchr_inv(target - NEAR, FILL, NEAR) ||
                                memchr_inv(target + slot->size, FILL, NEAR))))) {
        if (atomic_inc_return(&counts.wrong) <= SHOWN)
            describe(worker, slot);
    }
    if (every == 1)
        memset(target - NEAR, FILL, slot->size + 2 * NEAR);
}

static bool any_done(struct worker *worker)
{
    for (unsigned int i = 0; i < depth; i++)
        if (worker->slots[i].busy && smp_load_acquire(&worker->slots[i].done))
            return true;
    return false;
}

static void await(struct worker *worker)
{
    unsigned long end = jiffies + HZ;

    if (!polled) {
        wait_event_timeout(worker->wake, any_done(worker), HZ);
        return;
    }
    while (!any_done(worker) && time_before(jiffies, end)) {
        cpu_relax();
        cond_resched();
    }
}

/* After a loss nothing new is begun. */
static bool over(void)
{
    return READ_ONCE(stop) || atomic_read(&counts.lost);
}

void copy_all(struct worker *worker)
{
    unsigned int next = 0, busy;
    bool first = true;

    do {
        busy = 0;
        for (unsigned int i = 0; i < depth; i++) {
            struct slot *slot = &worker->slots[i];

            if (!slot->busy && !slot->lost && next < worker->copies && !over())
                submit(worker, slot, next++);
            busy += slot->busy;
        }
        if (first)
            under_way();
        first = false;
        if (busy)
            await(worker);
        for (unsigned int i = 0; i < depth; i++) {
            struct slot *slot = &worker->slots[i];

            if (!slot->busy)
                continue;
            if (smp_load_acquire(&slot->done)) {
                check(worker, slot);
            } else if (time_after(jiffies, slot->deadline)) {
                WRITE_ONCE(slot->lost, true);
                slot->busy = false;
                if (atomic_inc_return(&counts.lost) <= SHOWN)
                    pr_err("thread %u, copy %u of %zu bytes is lost\n", worker->index,
                           slot->number, slot->size);
            }
        }
        cond_resched();
    } while (busy || (next < worker->copies && !over()));
}
